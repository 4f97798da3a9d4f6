//! A question becomes a cited answer: retrieve, show the evidence, prompt, generate, cite, or abstain.

mod cache;
mod evidence;
mod marks;
mod precompute;

use crate::embed::{EmbedError, Embedder};
use crate::engine::{Cancel, Completion, Engine, EngineError, Event, Finish, PromptPassage, Reading, Request, Sampling};
use crate::retrieve::{Passage, Query, RetrieveError, Retriever};
use cache::Cache;
use evidence::{Scored, Selector};
use marks::Marks;
pub use precompute::{Precompute, PrecomputeProgress};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// What can go wrong with a question.
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
    /// The question was cancelled.
    #[error("the question was cancelled")]
    Cancelled,
    /// A task of the daemon ended unexpectedly.
    #[error("an internal task failed: {0}")]
    Internal(String),
}

/// How much is done for a question.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// Evidence and a generated answer.
    #[default]
    Answer,
    /// Evidence alone, in milliseconds.
    Evidence,
}

/// One question.
#[derive(Debug, Clone)]
pub struct Question {
    /// Its text.
    pub text: String,
    /// The collection that is asked.
    pub collection: String,
    /// Tags that passages must have: keys are AND-ed, values OR-ed.
    pub filter: BTreeMap<String, Vec<String>>,
    /// Passages to retrieve.
    pub top_k: usize,
    /// Longest answer in tokens.
    pub max_tokens: usize,
    /// How much is done.
    pub mode: Mode,
    /// How tokens are chosen.
    pub sampling: Sampling,
    /// When it was received.
    pub asked: Instant,
    /// Time allowed from then on.
    pub allowed: Duration,
}

/// A passage that an answer rests on, as it crosses the wire.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Citation {
    /// Its number in the prompt, from 1.
    pub n: usize,
    /// The document's id.
    pub document: String,
    /// The document's title.
    pub title: String,
    /// Headings that the best of the quoted sentences stands under, joined by ` > `.
    pub heading: String,
    /// Page that the best of the quoted sentences begins on, where the source has pages.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub page: Option<u32>,
    /// Pages that the quoted sentences begin on, ascending, where they are several.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub pages: Vec<u32>,
    /// The chunk's id.
    pub chunk: String,
    /// Fused score, 0 to 1.
    pub score: f32,
    /// The sentences that answer best: one to four, two on average over the passages.
    pub quote: String,
}

/// Where the time went, in milliseconds.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Timings {
    /// Question to evidence.
    pub evidence_ms: f64,
    /// Encoding the question.
    pub embed_ms: f64,
    /// Searching the library.
    pub search_ms: f64,
    /// Waiting for the generator.
    pub queue_ms: f64,
    /// Reading the prompt.
    pub prefill_ms: f64,
    /// Question to the first piece of the answer.
    pub ttft_ms: f64,
    /// Question to the whole answer.
    pub total_ms: f64,
    /// Decoding speed.
    pub tokens_per_s: f64,
}

/// What was computed.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Usage {
    /// Passages in the prompt.
    pub passages: usize,
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Of those, tokens whose state was reused.
    pub reused_tokens: usize,
    /// Tokens of the answer.
    pub answer_tokens: usize,
    /// Tokens guessed by looking them up in what was read, where that is done, and those of them that the answer has.
    #[serde(default, skip_serializing_if = "is_none")]
    pub drafted_tokens: usize,
    /// See `drafted_tokens`.
    #[serde(default, skip_serializing_if = "is_none")]
    pub accepted_tokens: usize,
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde calls it so")]
fn is_none(count: &usize) -> bool {
    *count == 0
}

/// A cited answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Answer {
    /// Its text.
    pub answer: String,
    /// Whether the library holds an answer.
    pub found: bool,
    /// How sure retrieval is that it does, 0 to 1.
    pub confidence: f32,
    /// The passages that were found, strongest first; marks such as `[1]` in the answer name them.
    pub citations: Vec<Citation>,
    /// The generator.
    pub model: String,
    /// Why the answer ended: `stop`, `length`.
    pub finish: String,
    /// It was given before, to the same question over the same library; the timings are those of this time.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub cached: bool,
    /// Where the time went.
    pub timings: Timings,
    /// What was computed.
    pub usage: Usage,
}

/// What is told while an answer is made.
#[derive(Debug)]
pub enum Progress {
    /// Before a token is generated; empty when the library holds no answer.
    Evidence(Vec<Citation>),
    /// A piece of the answer.
    Delta(String),
}

/// A generator with fewer parameters does not say it better than the sentences that it reads.
pub const QUOTE_BELOW: u64 = 500_000_000;

/// How an answer is made from the passages. The words are those of the key `answer.strategy`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Strategy {
    /// [`Strategy::Quote`] for generators of less than [`QUOTE_BELOW`] parameters, else [`Strategy::Evidence`].
    #[default]
    Auto,
    /// Nothing: the best sentences are the answer, word for word. Very small models say the right thing less often than the
    /// sentences do that they read, and sometimes the opposite (`benches/results/answers.md`).
    Quote,
    /// The best few sentences of all passages.
    Evidence,
    /// The chunk that ranked highest, alone.
    Best,
    /// Each passage that ranks close to the first, by itself; the likeliest answer is given.
    Each,
    /// All passages in one prompt.
    Joined,
}

impl Strategy {
    /// The strategy itself; [`Strategy::Auto`] becomes the one for a generator of so many weights.
    #[must_use]
    pub fn for_weights(self, parameters: u64) -> Self {
        match self {
            Self::Auto if parameters < QUOTE_BELOW => Self::Quote,
            Self::Auto => Self::Evidence,
            chosen => chosen,
        }
    }
}

/// What the answering room needs to know from the configuration.
#[derive(Debug, Clone)]
pub struct AnswerOptions {
    /// The system prompt.
    pub system: String,
    /// Below this confidence the library holds no answer.
    pub threshold: f32,
    /// What is said then.
    pub not_found: String,
    /// Strings that end an answer.
    pub stop: Vec<String>,
    /// What the model reads.
    pub strategy: Strategy,
    /// Sentences that it reads where it reads sentences: the best ones of all passages.
    pub sentences: usize,
    /// Answers that are kept for the same question over the same library; 0: none.
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
    /// Joins the rooms that an answer needs.
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

    /// How an answer is made; never [`Strategy::Auto`].
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

    /// Answers one question, telling `progress` about the evidence and each piece of the answer on the way.
    ///
    /// # Errors
    /// [`AnswerError`]: the collection is unknown, the queue full, the deadline passed, the question cancelled.
    pub async fn answer(
        &self,
        question: &Question,
        cancel: &Cancel,
        progress: &mut (dyn FnMut(Progress) + Send),
    ) -> Result<Answer, AnswerError> {
        let key = self.cache.key(question);
        // Read before the search: a change in between makes the entry useless, not wrong.
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
            (true, Mode::Answer) => self.generate(question, evidence.readings, cancel, progress, &mut answer).await?,
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
                readings: vec![],
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
                evidence.readings = match options.strategy {
                    Strategy::Quote | Strategy::Auto => {
                        let marked: Vec<String> = sentences().map(|said| format!("{} [{}]", said.text, said.n)).collect();
                        evidence.quoted = marked.join("\n");
                        vec![]
                    }
                    Strategy::Evidence => vec![reading(sentences().collect())],
                    Strategy::Joined => vec![reading(chunks(&retrieval.passages).collect())],
                    Strategy::Best => chunks(&retrieval.passages).take(1).map(|passage| reading(vec![passage])).collect(),
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
        readings: Vec<Reading>,
        cancel: &Cancel,
        progress: &mut (dyn FnMut(Progress) + Send),
        answer: &mut Answer,
    ) -> Result<(), AnswerError> {
        let numbers: Vec<Vec<usize>> =
            readings.iter().map(|reading| reading.passages.iter().map(|passage| passage.n).collect()).collect();
        let mut marks = Marks::new(vec![]);
        let mut read_alone = None;
        let request = Request {
            system: self.options.system.clone(),
            readings,
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
            // A question that still waits for the generator is ended here; one that runs is ended there as well.
            let event = tokio::select! {
                event = generation.events.recv() => event,
                () = cancel.cancelled() => return Err(AnswerError::Cancelled),
                () = tokio::time::sleep_until(deadline) => return Err(AnswerError::DeadlineExceeded(question.allowed.as_millis())),
            };
            match event {
                Some(Event::Reading { reading, passages_used }) => {
                    // What did not fit was not read, and is neither cited nor named.
                    let numbers = numbers.get(reading).map_or(&[][..], Vec::as_slice);
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
        // A model that has read one passage is not asked to name it.
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

    /// Puts the generator's text and figures into the answer.
    fn complete(&self, completion: &Completion, text: &str, answer: &mut Answer) {
        if marks::are_all(text) {
            // A model that only points, or says nothing, has found nothing better than the passage's own words.
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
        // The first token comes out of the prompt's last step; decoding brings the others.
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

/// What retrieval gave.
struct Evidence {
    citations: Vec<Citation>,
    /// What the model is to read.
    readings: Vec<Reading>,
    /// The answer itself, where nothing is to be read.
    quoted: String,
    confidence: f32,
    embed_ms: f64,
    search_ms: f64,
}

/// Of each passage the chunk that ranked highest. What joins it as a neighbour differs from question to question; the chunk is
/// always the same words, so that its state is found again.
fn chunks(passages: &[Passage]) -> impl Iterator<Item = PromptPassage> + '_ {
    passages.iter().enumerate().map(|(i, passage)| chunk_passage(i + 1, passage.number, passage.best_chunk()))
}

/// What the model reads of a text that stands in a document just so: whether a question is about it or its state is computed
/// in advance, the same words under the same document, so that the one finds what the other has kept.
fn chunk_passage(n: usize, document: u64, text: &str) -> PromptPassage {
    PromptPassage { n, document: Some(document), text: text.to_owned() }
}

fn reading(passages: Vec<PromptPassage>) -> Reading {
    Reading { passages, prior: 0.0 }
}

/// How much a passage's score counts beside the mean ln probability of a token of its answer.
const PRIOR_WEIGHT: f64 = 1.0;

/// A passage this far behind the best, as ln of its score, is not read: what the model says of it hardly ever makes up for that. Of 268
/// questions of two sets and two models it did so in 4, and 1.2 to 1.6 readings are left of 3 (`benches/results/answers.md`).
const TOO_FAR_BEHIND: f64 = 0.3;

/// A reading of its own for each passage that can still hold the answer given.
fn apart(passages: impl Iterator<Item = PromptPassage>, scores: &[f32]) -> Vec<Reading> {
    let priors: Vec<f64> = scores.iter().map(|score| PRIOR_WEIGHT * f64::from(score.max(1e-3)).ln()).collect();
    let least = priors.iter().copied().fold(f64::NEG_INFINITY, f64::max) - TOO_FAR_BEHIND;
    let all = passages.zip(&priors).map(|(passage, prior)| Reading { prior: *prior, ..reading(vec![passage]) });
    all.filter(|reading| reading.prior >= least).collect()
}

/// Heading and page are those of the best sentence: a passage may go on over several.
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

/// Whether the model says that the passages hold no answer. The prompt of its own does not ask it to: SmolLM2 never says
/// so, and answers less well for being asked (`benches/results/answers.md`); retrieval has its own threshold. An owner's `answer.system` may.
fn says_not_found(text: &str) -> bool {
    let plain = text.trim_matches(|c: char| !c.is_alphanumeric()).to_lowercase();
    plain == "not found" || plain.starts_with("not found.") || plain.starts_with("not found [")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_citation_names_the_page_and_the_heading_of_what_it_quotes() {
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
    fn abstention_is_recognised_only_as_the_whole_answer() {
        assert!(says_not_found("Not found."));
        assert!(says_not_found(" \"not found\" "));
        assert!(!says_not_found("The sensor was not found on the bus."));
        assert!(!says_not_found("Error 404 means page not found."));
    }
}
