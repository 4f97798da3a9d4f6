//! Turns a question into a cited answer: retrieve, show the evidence, prompt, generate, cite, or abstain.
//!
//! [`eval`] measures retrieval and answers on labelled sets, and fits the confidence.
#![forbid(unsafe_code)]

mod cache;
mod encoder;
pub mod eval;
mod evidence;
mod marks;
mod precompute;

use cache::Cache;
pub use encoder::Encoder;
use evidence::{Scored, Selector};
use library::retrieve::{Passage, Query, RetrieveError, Retriever};
use llm::embed::{EmbedError, Embedder};
use llm::engine::{Completion, Engine, EngineError, Event, Finish, PassageSet, PromptPassage, Request};
use marks::Marks;
pub use precompute::Precompute;
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use std::time::Duration;
use wire::{Answer, Cancel, Citation, ErrorCode, Mode, Progress, Question, Timings, Usage};

/// The reason why a question gets no answer.
#[derive(Debug, thiserror::Error)]
pub enum AnswerError {
    /// Retrieval failed.
    #[error(transparent)]
    Retrieve(#[from] RetrieveError),
    /// The passages' sentences could not be encoded.
    #[error(transparent)]
    Embed(#[from] EmbedError),
    /// The generator failed or refused.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// The question's deadline passed.
    #[error(
        "the deadline of {0} ms passed before the answer was complete; allow more time (deadline_ms, Message Expiry) or lower max_tokens"
    )]
    DeadlineExceeded(u128),
    /// A client cancelled the question.
    #[error("the question was cancelled")]
    Cancelled,
    /// A task of the daemon ended unexpectedly.
    #[error("an internal task failed: {0}")]
    Internal(String),
}

impl AnswerError {
    /// Its code.
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::Retrieve(error) => error.code(),
            Self::Engine(EngineError::QueueFull { .. }) => ErrorCode::QueueFull,
            Self::Engine(EngineError::PromptTooLong { .. }) => ErrorCode::TooLarge,
            Self::Engine(_) | Self::Embed(_) | Self::Internal(_) => ErrorCode::Internal,
            Self::DeadlineExceeded(_) => ErrorCode::DeadlineExceeded,
            Self::Cancelled => ErrorCode::Cancelled,
        }
    }
}

/// Generators with fewer parameters answer worse than the sentences they read.
pub const QUOTE_BELOW: u64 = 500_000_000;

/// How an answer is made from the passages. The key `answer.strategy` uses the same words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Strategy {
    /// [`Strategy::Quote`] for generators with fewer than [`QUOTE_BELOW`] parameters, else [`Strategy::Evidence`].
    #[default]
    Auto,
    /// No generation: the best sentences are the answer, word for word. Very small models are right less often than the
    /// sentences they read, and sometimes say the opposite (`benches/results/answers.md`).
    Quote,
    /// The best few sentences of all passages.
    Evidence,
    /// The chunk with the highest rank, alone.
    Best,
    /// Each passage that ranks close to the first, in its own prompt; the likeliest answer wins.
    Each,
    /// All passages in one prompt.
    Joined,
}

impl Strategy {
    /// The word in the configuration.
    pub fn word(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Quote => "quote",
            Self::Evidence => "evidence",
            Self::Best => "best",
            Self::Each => "each",
            Self::Joined => "joined",
        }
    }

    /// Resolves [`Strategy::Auto`] for a generator with this many parameters.
    #[must_use]
    pub fn for_weights(self, parameters: u64) -> Self {
        match self {
            Self::Auto if parameters < QUOTE_BELOW => Self::Quote,
            Self::Auto => Self::Evidence,
            chosen => chosen,
        }
    }
}

/// Options from the configuration.
#[derive(Debug, Clone)]
pub struct AnswerOptions {
    /// The system prompt.
    pub system: String,
    /// Below this confidence the library holds no answer.
    pub threshold: f32,
    /// The reply if the library holds no answer.
    pub not_found: String,
    /// Strings that end an answer.
    pub stop: Vec<String>,
    /// How an answer is made.
    pub strategy: Strategy,
    /// Sentences in the prompt, for strategies that read sentences: the best ones of all passages.
    pub sentences: usize,
    /// Answers kept for the same question over the same library; 0: none.
    pub cache: usize,
}

/// Answers questions; cheap to clone.
#[derive(Clone)]
pub struct Answerer {
    retriever: Retriever,
    selector: Selector,
    engine: Engine,
    options: Arc<AnswerOptions>,
    cache: Arc<Cache>,
}

impl Answerer {
    /// Joins the parts that an answer needs.
    pub fn new(retriever: Retriever, embedder: Embedder, engine: Engine, mut options: AnswerOptions) -> Self {
        options.strategy = options.strategy.for_weights(engine.info().parameters);
        Self {
            retriever,
            selector: Selector::new(embedder),
            engine,
            cache: Arc::new(Cache::new(options.cache)),
            options: Arc::new(options),
        }
    }

    /// The generator.
    pub fn engine(&self) -> &Engine {
        &self.engine
    }

    /// The strategy in use; never [`Strategy::Auto`].
    pub fn strategy(&self) -> Strategy {
        self.options.strategy
    }

    /// Below this confidence the library holds no answer.
    pub fn threshold(&self) -> f32 {
        self.options.threshold
    }

    /// The retriever.
    pub fn retriever(&self) -> &Retriever {
        &self.retriever
    }

    /// Answers one question, and reports the evidence and each piece of the answer to `progress`.
    ///
    /// # Errors
    /// The collection is unknown, the queue full, the deadline passed, or the question cancelled.
    pub async fn answer(
        &self,
        question: &Question,
        cancel: &Cancel,
        progress: &mut (dyn FnMut(Progress) + Send),
    ) -> Result<Answer, AnswerError> {
        let key = self.cache.key(question);
        // Read before the search, so that a change in between makes the cache entry useless, not wrong.
        let version = match &key {
            Some(_) => self.retriever.version(&question.collection)?,
            None => 0,
        };
        if let Some(mut answer) = key.as_ref().and_then(|key| self.cache.find(key, version)) {
            progress(Progress::Evidence(answer.citations.clone()));
            if !answer.answer.is_empty() {
                progress(Progress::Delta(answer.answer.clone()));
            }
            answer.cached = true;
            let now = millis(question.asked.elapsed());
            answer.timings = Timings { evidence_ms: now, ttft_ms: now, total_ms: now, ..Timings::default() };
            answer.usage = Usage::default();
            return Ok(answer);
        }
        let (found, evidence) = self.evidence(question).await?;
        let mut answer = Answer {
            answer: String::new(),
            found,
            confidence: evidence.confidence,
            citations: evidence.citations,
            model: self.engine.info().model.clone(),
            finish: "stop".into(),
            cached: false,
            timings: Timings {
                evidence_ms: millis(question.asked.elapsed()),
                embed_ms: rounded(evidence.embed_ms),
                search_ms: rounded(evidence.search_ms),
                ..Timings::default()
            },
            usage: Usage::default(),
        };
        progress(Progress::Evidence(answer.citations.clone()));
        match (found, question.mode) {
            (false, _) => answer.answer.clone_from(&self.options.not_found),
            (true, Mode::Evidence) => answer.answer = answer.citations.first().map(|c| c.quote.clone()).unwrap_or_default(),
            (true, Mode::Answer) if !evidence.quoted.is_empty() => {
                answer.timings.ttft_ms = millis(question.asked.elapsed());
                progress(Progress::Delta(evidence.quoted.clone()));
                answer.answer = evidence.quoted;
            }
            (true, Mode::Answer) => self.generate(question, evidence.passage_sets, cancel, progress, &mut answer).await?,
        }
        answer.timings.total_ms = millis(question.asked.elapsed());
        if answer.timings.ttft_ms == 0.0 && answer.usage.answer_tokens > 0 {
            answer.timings.ttft_ms = answer.timings.total_ms;
        }
        if let Some(key) = key {
            self.cache.keep(key, version, &answer);
        }
        Ok(answer)
    }

    async fn evidence(&self, question: &Question) -> Result<(bool, Evidence), AnswerError> {
        let query = Query {
            text: question.text.clone(),
            collection: question.collection.clone(),
            filter: question.filter.clone(),
            top_k: question.top_k,
        };
        let (retriever, selector) = (self.retriever.clone(), self.selector.clone());
        let options = Arc::clone(&self.options);
        let work = move || -> Result<(bool, Evidence), AnswerError> {
            let retrieval = retriever.search(&query)?;
            let found = !retrieval.passages.is_empty() && retrieval.confidence >= options.threshold;
            let mut evidence = Evidence {
                citations: vec![],
                passage_sets: vec![],
                quoted: String::new(),
                confidence: retrieval.confidence,
                embed_ms: retrieval.embed_ms,
                search_ms: retrieval.search_ms,
            };
            if found {
                let ranked = selector.rank(&retrieval.vector, &retrieval.passages)?;
                let scores: Vec<f32> = retrieval.passages.iter().map(|passage| passage.score).collect();
                let quotes = evidence::quotes(&ranked, &scores);
                for (i, ((passage, ranked), quote)) in retrieval.passages.iter().zip(&ranked).zip(quotes).enumerate() {
                    evidence.citations.push(cite(i + 1, passage, ranked.first(), &quote));
                }
                let sentences = || {
                    let best = evidence::best_of_all(&ranked, &scores, options.sentences).into_iter().enumerate();
                    let held = best.filter(|(_, chosen)| !chosen.is_empty());
                    held.map(|(i, chosen)| PromptPassage { n: i + 1, document: None, text: evidence::text(&chosen) })
                };
                evidence.passage_sets = match options.strategy {
                    Strategy::Quote | Strategy::Auto => {
                        let marked: Vec<String> = sentences().map(|said| format!("{} [{}]", said.text, said.n)).collect();
                        evidence.quoted = marked.join("\n");
                        vec![]
                    }
                    Strategy::Evidence => vec![passage_set(sentences().collect())],
                    Strategy::Joined => vec![passage_set(chunks(&retrieval.passages).collect())],
                    Strategy::Best => chunks(&retrieval.passages).take(1).map(|passage| passage_set(vec![passage])).collect(),
                    Strategy::Each => apart(chunks(&retrieval.passages), &scores),
                };
            }
            Ok((found, evidence))
        };
        tokio::task::spawn_blocking(work).await.map_err(|e| AnswerError::Internal(e.to_string()))?
    }

    async fn generate(
        &self,
        question: &Question,
        passage_sets: Vec<PassageSet>,
        cancel: &Cancel,
        progress: &mut (dyn FnMut(Progress) + Send),
        answer: &mut Answer,
    ) -> Result<(), AnswerError> {
        let numbers: Vec<Vec<usize>> =
            passage_sets.iter().map(|set| set.passages.iter().map(|passage| passage.n).collect()).collect();
        let mut marks = Marks::new(vec![]);
        let mut read_alone = None;
        let request = Request {
            system: self.options.system.clone(),
            passage_sets,
            no_answer: says_not_found,
            question: question.text.clone(),
            max_tokens: question.max_tokens,
            stop: self.options.stop.clone(),
            sampling: question.sampling.clone(),
            deadline: question.asked + question.allowed,
        };
        let mut generation = self.engine.generate(request, cancel.clone())?;
        let deadline = tokio::time::Instant::from_std(question.asked + question.allowed);
        let completion = loop {
            // Ends a question that still waits for the generator; the engine ends a running one as well.
            let event = tokio::select! {
                event = generation.events.recv() => event,
                () = cancel.cancelled() => return Err(AnswerError::Cancelled),
                () = tokio::time::sleep_until(deadline) => return Err(AnswerError::DeadlineExceeded(question.allowed.as_millis())),
            };
            match event {
                Some(Event::Chosen { set, passages_used }) => {
                    // Passages that did not fit were not read, so they are neither cited nor named.
                    let numbers = numbers.get(set).map_or(&[][..], Vec::as_slice);
                    let (read, left_out) = numbers.split_at(passages_used.min(numbers.len()));
                    answer.citations.retain(|citation| !left_out.contains(&citation.n));
                    read_alone = if let [only] = read { Some(*only) } else { None };
                    marks = Marks::new(read.to_vec());
                }
                Some(Event::Delta(delta)) => {
                    let delta = marks.push(&delta);
                    if delta.is_empty() {
                        continue;
                    }
                    if answer.timings.ttft_ms == 0.0 {
                        answer.timings.ttft_ms = millis(question.asked.elapsed());
                    }
                    progress(Progress::Delta(delta));
                }
                Some(Event::Done(completion)) => break completion,
                Some(Event::Failed(error)) => return Err(error.into()),
                None => return Err(EngineError::Stopped.into()),
            }
        };
        let mut rest = marks.finish();
        // A model that has read a single passage need not name it.
        let mut text = marks.text().trim().to_owned();
        if let Some(n) = read_alone
            && !marks::are_all(&text)
            && !says_not_found(&text)
            && !text.ends_with(']')
        {
            let mark = format!(" [{n}]");
            text.push_str(&mark);
            rest = rest.trim_end().to_owned() + &mark;
        }
        if !rest.trim_end().is_empty() {
            progress(Progress::Delta(rest));
        }
        match completion.finish {
            Finish::Cancelled => return Err(AnswerError::Cancelled),
            Finish::Deadline => return Err(AnswerError::DeadlineExceeded(question.allowed.as_millis())),
            Finish::Stop => {}
            Finish::Length => answer.finish = "length".into(),
        }
        self.complete(&completion, &text, answer);
        Ok(())
    }

    /// Copies the generator's text and figures into the answer.
    fn complete(&self, completion: &Completion, text: &str, answer: &mut Answer) {
        if marks::are_all(text) {
            // A model that only writes marks, or nothing, has found nothing better than the passage's own words.
            answer.answer = answer.citations.first().map(|citation| citation.quote.clone()).unwrap_or_default();
        } else if says_not_found(text) {
            answer.found = false;
            answer.citations.clear();
            answer.answer.clone_from(&self.options.not_found);
        } else {
            text.clone_into(&mut answer.answer);
        }
        let timings = &mut answer.timings;
        timings.queue_ms = millis(completion.waited);
        timings.prefill_ms = millis(completion.prefill);
        let seconds = completion.decode.as_secs_f64();
        // The first token comes from the prompt's last step; decoding yields the others.
        timings.tokens_per_s = if completion.answer_tokens > 1 && seconds > 0.0 {
            rounded((completion.answer_tokens - 1) as f64 / seconds)
        } else {
            0.0
        };
        answer.usage = Usage {
            passages: completion.passages_used,
            prompt_tokens: completion.prompt_tokens,
            reused_tokens: completion.reused_tokens,
            answer_tokens: completion.answer_tokens,
            drafted_tokens: completion.drafted_tokens,
            accepted_tokens: completion.accepted_tokens,
        };
    }
}

/// Evidence from retrieval.
struct Evidence {
    citations: Vec<Citation>,
    /// The passage sets for the prompt.
    passage_sets: Vec<PassageSet>,
    /// The answer itself, for strategies that quote.
    quoted: String,
    confidence: f32,
    embed_ms: f64,
    search_ms: f64,
}

/// The best chunk of each passage. A passage's neighbouring chunks vary from question to question, but the chunk has always the
/// same words, so the KV cache holds its state.
fn chunks(passages: &[Passage]) -> impl Iterator<Item = PromptPassage> + '_ {
    passages.iter().enumerate().map(|(i, passage)| chunk_passage(i + 1, passage.number, passage.best_chunk()))
}

/// The prompt passage of a chunk in a document. Questions and precomputing both use this function: the same words under the same
/// document make one find the other's KV state.
fn chunk_passage(n: usize, document: u64, text: &str) -> PromptPassage {
    PromptPassage { n, document: Some(document), text: text.to_owned() }
}

fn passage_set(passages: Vec<PromptPassage>) -> PassageSet {
    PassageSet { passages, prior: 0.0 }
}

/// Weight of a passage's score beside the mean ln probability of a token of its answer.
const PRIOR_WEIGHT: f64 = 1.0;

/// A passage this far behind the best, as ln of its score, is not read: its answer hardly ever makes up for that. Over 268
/// questions of two sets and two models it did so in 4, and 1.2 to 1.6 passages of 3 are read (`benches/results/answers.md`).
const TOO_FAR_BEHIND: f64 = 0.3;

/// A passage set for each passage that can still hold the answer.
fn apart(passages: impl Iterator<Item = PromptPassage>, scores: &[f32]) -> Vec<PassageSet> {
    let priors: Vec<f64> = scores.iter().map(|score| PRIOR_WEIGHT * f64::from(score.max(1e-3)).ln()).collect();
    let least = priors.iter().copied().fold(f64::NEG_INFINITY, f64::max) - TOO_FAR_BEHIND;
    let all = passages.zip(&priors).map(|(passage, prior)| PassageSet { prior: *prior, ..passage_set(vec![passage]) });
    all.filter(|set| set.prior >= least).collect()
}

/// Heading and page belong to the best sentence, because a passage may span several.
fn cite(n: usize, passage: &Passage, best: Option<&Scored>, quoted: &[&Scored]) -> Citation {
    let mut pages: Vec<u32> = quoted.iter().filter_map(|sentence| passage.page_at(sentence.at)).collect();
    pages.dedup();
    Citation {
        n,
        document: passage.document.clone(),
        title: passage.title.clone(),
        heading: best.map_or(passage.heading.as_str(), |best| passage.heading_at(best.at)).to_owned(),
        page: best.map_or(passage.page, |best| passage.page_at(best.at)),
        pages: if pages.len() > 1 { pages } else { Vec::new() },
        chunk: passage.chunk.clone(),
        score: passage.score,
        quote: evidence::text(quoted),
    }
}

/// A figure with three decimals.
pub fn rounded(value: f64) -> f64 {
    (value * 1e3).round() / 1e3
}

/// Milliseconds with three decimals.
pub fn millis(duration: Duration) -> f64 {
    rounded(duration.as_secs_f64() * 1e3)
}

/// Whether the model says that the passages hold no answer. The built-in prompt does not ask for it: SmolLM2 never says so, and
/// answers worse when asked (`benches/results/answers.md`); retrieval has its own threshold. An owner's `answer.system` may ask.
fn says_not_found(text: &str) -> bool {
    let plain = text.trim_matches(|c: char| !c.is_alphanumeric()).to_lowercase();
    plain == "not found" || plain.starts_with("not found.") || plain.starts_with("not found [")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_citation_has_its_quotes_page_and_heading() {
        let passage = Passage {
            heading: "Care".into(),
            page: Some(3),
            pages: vec![(0, 3), (20, 4)],
            headings: vec![(0, "Care > Filter".into()), (20, "Care > Pump".into())],
            ..Passage::default()
        };
        let said = |at, text: &str| Scored { at, text: text.into(), score: 1.0 };
        let (rinse, oil, turn) = (said(0, "Rinse it weekly."), said(22, "Oil it."), said(30, "Turn it."));
        let both = cite(1, &passage, Some(&oil), &[&rinse, &oil]);
        assert_eq!((both.page, both.pages.as_slice(), both.heading.as_str()), (Some(4), &[3, 4][..], "Care > Pump"));
        assert_eq!(both.quote, "Rinse it weekly.\nOil it.");
        let one = cite(1, &passage, Some(&turn), &[&oil, &turn]);
        assert_eq!((one.page, one.pages.as_slice()), (Some(4), &[][..]), "the page goes without saying twice");
        let none = cite(1, &passage, None, &[]);
        assert_eq!((none.page, none.heading.as_str()), (Some(3), "Care"));
    }

    #[test]
    fn only_a_whole_answer_is_an_abstention() {
        assert!(says_not_found("Not found."));
        assert!(says_not_found(" \"not found\" "));
        assert!(!says_not_found("The sensor was not found on the bus."));
        assert!(!says_not_found("Error 404 means page not found."));
    }
}
