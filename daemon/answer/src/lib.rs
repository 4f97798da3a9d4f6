//! Turns a question into a cited answer: retrieve, show the evidence, prompt, generate, cite, or abstain.
//!
//! [`eval`] measures retrieval and answers on labelled sets, and fits the confidence.
#![forbid(unsafe_code)]

mod cache;
mod copying;
mod encoder;
pub mod eval;
mod evidence;
mod languages;
mod marks;
mod precompute;
mod prompts;
mod reading;
mod sentences;
mod session;
mod speech;
mod support;
mod waiting;
mod written;

use cache::Cache;
use copying::SpanRules;
pub use encoder::Encoder;
use evidence::{Scored, Selector};
pub use languages::{Kind, Languages, Words};
use library::retrieve::{Passage, Query, Retrieval, RetrieveError, Retriever};
use library::store::terms::Language;
use llm::embed::{EmbedError, Embedder};
use llm::engine::{Asked, Completion, Engine, EngineError, Event, Finish, Form, Request};
pub use precompute::Precompute;
use precompute::Wishes;
pub use prompts::{ModelFacts, PromptError, Prompts};
use reading::Reading;
use serde::{Deserialize, Serialize};
pub use session::{SessionKey, Sessions, Turn};
use std::sync::Arc;
use std::time::{Duration, Instant};
use support::Support;
use waiting::{Searched, WaitingRoom};
use wire::{Answer, AnsweredBy, Cancel, Citation, ErrorCode, Mode, Progress, Question, Timings, Usage};
use written::Written;

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

/// How an answer is made from the passages. The key `answer.strategy` uses the same words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Strategy {
    /// As the model's prompt file says, by the kind of the question: the best run of sentences, a verdict before it, or a few words
    /// that the model takes from them.
    #[default]
    Auto,
    /// No generation: the best sentences are the answer, word for word. Very small models are right less often than the
    /// sentences they read, and sometimes say the opposite (`benches/results/answers.md`).
    Quote,
    /// The model reads the best section, as far as time allows, and writes every answer.
    #[serde(alias = "evidence", alias = "best", alias = "each", alias = "joined")]
    Read,
}

impl Strategy {
    /// The word in the configuration.
    pub fn word(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Quote => "quote",
            Self::Read => "read",
        }
    }
}

/// Options from the configuration.
#[derive(Debug, Clone)]
pub struct AnswerOptions {
    /// The prompts for this generator, with the words of all languages.
    pub prompts: Prompts,
    /// The owner's system prompt; empty: the one of `prompts`.
    pub system: String,
    /// Below this confidence the library holds no answer.
    pub threshold: f32,
    /// The reply if the library holds no answer; empty: fixed words in the question's language.
    pub not_found: String,
    /// Questions that may wait at the same time for documents that the library lacks.
    pub waiting: usize,
    /// Strings that end an answer.
    pub stop: Vec<String>,
    /// How an answer is made.
    pub strategy: Strategy,
    /// Time for reading, before the first token.
    pub patience: Duration,
    /// Whether sentences that the passages do not support are held back.
    pub check: bool,
    /// Sentences that a quote has: the best ones of all passages.
    pub sentences: usize,
    /// Answers kept for the same question over the same library; 0: none.
    pub cache: usize,
}

impl AnswerOptions {
    /// Whether the generator takes part in answers.
    fn reads(&self) -> bool {
        match self.strategy {
            Strategy::Auto => self.prompts.strategy() == Strategy::Read,
            Strategy::Quote => false,
            Strategy::Read => true,
        }
    }

    /// Whether the answer is given in the passages' words. Passages in another language are of no use to their reader.
    fn is_quoted(&self, kind: Kind, asked: Option<Language>, written: Language) -> bool {
        let by_kind = self.strategy == Strategy::Auto && self.prompts.is_quoted(kind);
        !self.reads() || (by_kind && asked.is_none_or(|asked| asked == written))
    }

    /// Whether the generator answers with a run of the passages' words.
    fn is_copied(&self, kind: Kind, asked: Option<Language>, written: Language) -> bool {
        let otherwise = self.prompts.is_quoted(kind) || (kind == Kind::YesNo && self.prompts.verdict().is_some());
        let by_kind = self.strategy == Strategy::Auto && self.prompts.is_copied(kind) && !otherwise;
        self.reads() && by_kind && asked.is_none_or(|asked| asked == written)
    }

    /// Whether the best few sentences are read, unless the section was read before.
    fn is_narrow(&self, kind: Kind) -> bool {
        self.strategy == Strategy::Auto && self.prompts.is_narrow(kind)
    }

    /// The system prompt.
    pub fn system(&self) -> &str {
        if self.system.is_empty() { self.prompts.system() } else { &self.system }
    }
}

/// Answers questions; cheap to clone.
#[derive(Clone)]
pub struct Answerer {
    retriever: Retriever,
    selector: Selector,
    engine: Engine,
    options: Arc<AnswerOptions>,
    cache: Arc<Cache>,
    wishes: Wishes,
    waiting_room: WaitingRoom,
    /// The last turn of each session.
    sessions: Arc<Sessions>,
}

impl Answerer {
    /// Joins the parts that an answer needs.
    pub fn new(retriever: Retriever, embedder: Embedder, engine: Engine, options: AnswerOptions) -> Self {
        Self {
            retriever,
            selector: Selector::new(embedder),
            engine,
            cache: Arc::new(Cache::new(options.cache)),
            waiting_room: WaitingRoom::new(options.waiting),
            options: Arc::new(options),
            wishes: Wishes::default(),
            sessions: Arc::default(),
        }
    }

    /// The generator.
    pub fn engine(&self) -> &Engine {
        &self.engine
    }

    /// The strategy in use: the configured one, or [`Strategy::Quote`] where the prompt file of the model says so.
    pub fn strategy(&self) -> Strategy {
        if self.reads() { self.options.strategy } else { Strategy::Quote }
    }

    /// Whether the generator takes part in answers.
    pub fn reads(&self) -> bool {
        self.options.reads()
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
        let session = SessionKey::of(question);
        let earlier = session.as_ref().and_then(|session| self.sessions.last(session, Instant::now()));
        // A question of codes alone has no language; it is answered in the words of the text.
        let told = self.options.prompts.languages.language_of(&question.text);
        let language = told.unwrap_or_default();
        let kind = self.options.prompts.languages.of(language).kind(&question.text);
        let Searched { found, library, evidence, .. } =
            self.patient_evidence(question, (kind, told), earlier.as_ref(), cancel, progress).await?;
        let mut answer = Answer {
            found,
            confidence: evidence.confidence,
            citations: evidence.citations.clone(),
            model: self.engine.info().model.clone(),
            finish: "stop".into(),
            library,
            timings: Timings {
                evidence_ms: millis(question.asked.elapsed()),
                embed_ms: rounded(evidence.embed_ms),
                search_ms: rounded(evidence.search_ms),
                ..Timings::default()
            },
            ..Answer::default()
        };
        progress(Progress::Evidence(answer.citations.clone()));
        let turn = evidence.turn.clone();
        match (found, question.mode) {
            (false, _) => {}
            (true, Mode::Evidence) => answer.answer = answer.citations.first().map(|c| c.quote.clone()).unwrap_or_default(),
            (true, Mode::Answer) if self.options.is_quoted(kind, told, evidence.language) => {
                Self::quote(None, question, &evidence, progress, &mut answer);
            }
            (true, Mode::Answer)
                if kind == Kind::YesNo
                    && self.options.strategy == Strategy::Auto
                    && language == evidence.language
                    && self.options.prompts.verdict().is_some() =>
            {
                let verdict = self.verdict(question, language, &evidence, cancel, &mut answer).await?;
                Self::quote(verdict, question, &evidence, progress, &mut answer);
            }
            (true, Mode::Answer) => self.read(question, (kind, told), evidence, cancel, progress, &mut answer).await?,
        }
        if !answer.found {
            answer.citations.clear();
            answer.support.clear();
            let words = self.options.prompts.languages.of(language);
            let own = &self.options.not_found;
            answer.answer = match &answer.library {
                Some(state) => waiting::not_yet(&words.not_yet, state),
                None if own.is_empty() => words.not_found.clone(),
                None => own.clone(),
            };
        }
        answer.speech = speech::speech(&answer.answer, &answer.citations, self.options.prompts.languages.of(language));
        answer.steps = speech::steps(&answer.answer);
        answer.timings.total_ms = millis(question.asked.elapsed());
        if answer.timings.ttft_ms == 0.0 && answer.usage.answer_tokens > 0 {
            answer.timings.ttft_ms = answer.timings.total_ms;
        }
        if let Some(session) = session.filter(|_| answer.found) {
            self.sessions.keep(session, Turn { question: turn, answer: answer.answer.clone() }, Instant::now());
        }
        // Another document may answer better in a moment.
        if let Some(key) = key
            && answer.library.is_none()
        {
            self.cache.keep(key, version, &answer);
        }
        Ok(answer)
    }

    /// The answer in the words of the passages, behind a verdict if there is one.
    fn quote(
        verdict: Option<String>,
        question: &Question,
        evidence: &Evidence,
        progress: &mut (dyn FnMut(Progress) + Send),
        answer: &mut Answer,
    ) {
        answer.citations.clone_from(&evidence.citations);
        answer.by = if verdict.is_some() { AnsweredBy::Model } else { AnsweredBy::Quote };
        answer.support = vec![1.0; evidence.quoted.lines().count()];
        answer.answer = verdict.map(|verdict| format!("{verdict}. ")).unwrap_or_default() + &evidence.quoted;
        send(answer.answer.clone(), question, progress, answer);
    }

    /// Yes or no, in the question's language, if the model is sure and the text does not speak against it.
    async fn verdict(
        &self,
        question: &Question,
        language: Language,
        evidence: &Evidence,
        cancel: &Cancel,
        answer: &mut Answer,
    ) -> Result<Option<String>, AnswerError> {
        let prompts = &self.options.prompts;
        let Some(verdict) = prompts.verdict() else { return Ok(None) };
        let asked = Asked { question: prompts.question(&evidence.asked), task: prompts.task(Kind::YesNo, None) };
        let words = [verdict.yes.clone(), verdict.no.clone()];
        let (name, completion) =
            Reader { answerer: self, question, kind: Kind::YesNo, cancel }.compare(&evidence.readings, asked, words).await?;
        let preference = completion.preference.unwrap_or(0.0);
        log::debug!("verdict: preference {preference:.2}");
        self.note(&completion, answer);
        // Its one token is all that was wanted.
        answer.finish = "stop".into();
        answer.usage.read = name;
        let words = prompts.languages.of(language);
        let agrees = preference > 0.0;
        let support = Support::new(words, language, &question.text, &[]);
        // A denial needs a negation in the best sentence, and an agreement must not stand on a negation: small models lean
        // towards one of the two.
        let against = if agrees {
            evidence.quoted.lines().any(|line| support.is_negated_text(line)) && !support.is_negated_text(&question.text)
        } else {
            !support.is_negated_text(&evidence.best)
        };
        if preference.abs() < SURE_VERDICT || against {
            return Ok(None);
        }
        let word = if agrees { words.yes.first() } else { words.no.first() };
        Ok(word.map(|word| capitalised(word)))
    }

    async fn evidence(
        &self,
        question: &Question,
        (kind, told): (Kind, Option<Language>),
        earlier: Option<&Turn>,
    ) -> Result<(bool, Evidence), AnswerError> {
        let query = Query {
            text: question.text.clone(),
            collection: question.collection.clone(),
            filter: question.filter.clone(),
            without: question.without.clone(),
            top_k: question.top_k,
        };
        let (retriever, selector) = (self.retriever.clone(), self.selector.clone());
        let options = Arc::clone(&self.options);
        let earlier = earlier.cloned();
        let mode = question.mode;
        let follows_up = options.prompts.languages.of(told.unwrap_or_default()).is_follow_up(&question.text);
        let work = move || -> Result<(bool, Evidence), AnswerError> {
            let text = query.text.clone();
            let (retrieval, asked, turn) = with_earlier(&retriever, query, earlier, follows_up)?;
            let searched = if turn == text { text } else { format!("{turn} {text}") };
            let written = retrieval.passages.first().map(|passage| passage.language).unwrap_or_default();
            let named = kind == Kind::Code && evidence::hold_codes(&searched, &retrieval.passages);
            let confidence = if named { retrieval.confidence.max(NAMED_CODE) } else { retrieval.confidence };
            // The generator has its say after reading.
            let reachable = match mode {
                Mode::Answer if options.is_copied(kind, told, written) => copying::confidence(confidence, 0.0),
                _ => confidence,
            };
            let found = !retrieval.passages.is_empty() && reachable >= options.threshold;
            let mut evidence = Evidence {
                citations: vec![],
                readings: vec![],
                language: written,
                quoted: String::new(),
                asked,
                turn,
                best: String::new(),
                favoured: vec![],
                confidence,
                embed_ms: retrieval.embed_ms,
                search_ms: retrieval.search_ms,
            };
            if found {
                let ranked = selector.rank(&searched, kind, &retrieval.vector, &retrieval.passages)?;
                let scores: Vec<f32> = retrieval.passages.iter().map(|passage| passage.score).collect();
                let quotes = evidence::quotes(&ranked, &scores);
                for (i, ((passage, ranked), quote)) in retrieval.passages.iter().zip(&ranked).zip(quotes).enumerate() {
                    evidence.citations.push(cite(i + 1, passage, ranked.first(), &quote));
                }
                let best = match kind {
                    Kind::Value | Kind::YesNo => evidence::best_of_all(&ranked, &scores, options.sentences),
                    _ => evidence::best_run(&ranked, &scores),
                };
                let best = best.into_iter().enumerate();
                let marked = best.filter(|(_, chosen)| !chosen.is_empty());
                let marked = marked.map(|(i, chosen)| (i, speech::readable(&evidence::text(&chosen))));
                let marked: Vec<String> = marked.map(|(i, text)| format!("{text} [{}]", i + 1)).collect();
                evidence.quoted = marked.join("\n");
                evidence.best =
                    ranked.first().and_then(|ranked| ranked.first()).map(|said| said.text.clone()).unwrap_or_default();
                if mode == Mode::Answer && !options.is_quoted(kind, told, evidence.language) {
                    let best = evidence::in_order(&ranked, &scores).into_iter().take(copying::FAVOURED);
                    evidence.favoured = best.map(|(_, said)| said.text.clone()).collect();
                    let passages = &retrieval.passages;
                    evidence.readings =
                        reading::readings(&options.prompts, &retriever, passages, &ranked, options.is_narrow(kind))?;
                }
            }
            Ok((found, evidence))
        };
        tokio::task::spawn_blocking(work).await.map_err(|e| AnswerError::Internal(e.to_string()))?
    }

    /// Lets the model read and answer. Each sentence is checked against the passages before it is sent.
    async fn read(
        &self,
        question: &Question,
        (kind, told): (Kind, Option<Language>),
        mut evidence: Evidence,
        cancel: &Cancel,
        progress: &mut (dyn FnMut(Progress) + Send),
        answer: &mut Answer,
    ) -> Result<(), AnswerError> {
        let prompts = &self.options.prompts;
        let language = told.unwrap_or_default();
        let words = prompts.languages.of(language);
        let name = (language != Language::English).then_some(words.name.as_str());
        let asked = Asked { question: prompts.question(&evidence.asked), task: prompts.task(kind, name) };
        let copied = self.options.is_copied(kind, told, evidence.language);
        let form = if copied { Form::Copied(Arc::new(evidence.copy_rules(question, words))) } else { Form::Written };
        let mut generation = Reader { answerer: self, question, kind, cancel }.start(&evidence.readings, asked, form)?;
        let mut written: Option<Written<'_>> = None;
        let mut run = String::new();
        let completion = loop {
            match generation.next().await? {
                Step::Chosen { reading, passages_used } => {
                    self.wish(&evidence.readings, reading);
                    let Reading { name, mut passages, .. } = evidence.readings.swap_remove(reading);
                    // Passages that were not read are not cited.
                    passages.truncate(passages_used);
                    answer.citations.retain(|citation| passages.iter().any(|passage| passage.n == citation.n));
                    answer.usage.read = Some(name.to_owned());
                    let support =
                        Support::new(prompts.languages.of(evidence.language), evidence.language, &evidence.asked, &passages);
                    written =
                        Some(Written::new(support, kind, words, passages.first().map(|passage| passage.n), self.options.check));
                }
                // The signs at its end are not known before.
                Step::Delta(delta) if copied => run.push_str(&delta),
                Step::Delta(delta) => {
                    let sent = written.as_mut().map(|written| written.push(&delta)).unwrap_or_default();
                    send(sent, question, progress, answer);
                }
                Step::Done(completion) => break completion,
            }
        };
        let Some(mut written) = written else { return Err(EngineError::Stopped.into()) };
        if copied {
            if let Some(certainty) = completion.certainty {
                answer.confidence = copying::confidence(answer.confidence, certainty);
                log::debug!("certainty {certainty:.2}, confidence {:.2}", answer.confidence);
            }
            // A run that was cut, or that only repeats the question, is no answer. The sentences say more than a guess.
            if completion.certainty.is_none_or(|certainty| certainty < copying::GUESS) {
                run.clear();
            }
            let sure = answer.confidence >= self.options.threshold;
            if !sure {
                self.note(&completion, answer);
                answer.found = false;
                return Ok(());
            }
        }
        let rest = if copied { written.copied(copying::trimmed(&run)) } else { written.finish(&evidence.best) };
        send(rest, question, progress, answer);
        self.note(&completion, answer);
        answer.usage.withheld = written.withheld;
        if written.silent {
            answer.found = false;
        } else if written.text.is_empty() {
            Self::quote(None, question, &evidence, progress, answer);
        } else {
            answer.by = AnsweredBy::Model;
            answer.support = written.support;
            answer.answer = written.text;
        }
        Ok(())
    }

    /// Has the section read while the generator is idle, if there was no time for it now.
    fn wish(&self, readings: &[Reading], chosen: usize) {
        let wanted = readings.first().and_then(|reading| reading.prompt.first());
        let read = readings.get(chosen).and_then(|reading| reading.prompt.first());
        if let Some(wanted) = wanted.filter(|wanted| wanted.document.is_some() && Some(*wanted) != read) {
            self.wishes.ask(wanted.clone());
        }
    }

    /// Notes the times and the tokens of a completion.
    fn note(&self, completion: &Completion, answer: &mut Answer) {
        if completion.finish == Finish::Length {
            answer.finish = "length".into();
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
            reading_tokens_per_s: self.engine.reading_speed().tokens_per_second().map(|speed| rounded(speed.into())),
            ..std::mem::take(&mut answer.usage)
        };
    }
}

/// Least ln of the odds for a verdict to be told.
const SURE_VERDICT: f64 = 0.5;

/// A word with a capital.
fn capitalised(word: &str) -> String {
    let mut letters = word.chars();
    letters.next().map(|first| first.to_uppercase().chain(letters).collect()).unwrap_or_default()
}

/// Least confidence where a question asks for the meaning of a code, and the passages hold it: no other word tells as much.
const NAMED_CODE: f32 = 0.75;

/// Confidence below which a question of a session is searched for with the question before it as well.
const WEAK: f32 = 0.9;

/// Most words of a short question with a pronoun and without a number, and the share of its own confidence that the search with the question before it
/// needs to win.
const SHORT_FOLLOW_UP: usize = 7;
const POINTS_BACK: f32 = 0.7;

/// Most characters of the last answer in a prompt.
const EARLIER_CHARS: usize = 300;

/// Searches for a question; and, where it finds little by itself or seems to go on from the last turn, with the question of that
/// turn in front. The higher confidence wins, so a new topic is not dragged back. Returns the question for the generator, and the
/// one that the session keeps: the topic stays the one of the first question.
fn with_earlier(
    retriever: &Retriever,
    query: Query,
    earlier: Option<Turn>,
    follows_up: bool,
) -> Result<(Retrieval, String, String), RetrieveError> {
    let alone = retriever.search(&query)?;
    let text = query.text.clone();
    let Some(earlier) = earlier.filter(|_| follows_up || alone.confidence < WEAK) else { return Ok((alone, text.clone(), text)) };
    let both = Query { text: format!("{} {text}", earlier.question), ..query };
    let together = retriever.search(&both)?;
    // "How do I reset it?" finds something in any manual; "it" means the thing before.
    let names_number = text.contains(|c: char| c.is_numeric());
    let short = follows_up && !names_number && text.split_whitespace().count() <= SHORT_FOLLOW_UP;
    if together.confidence <= if short { POINTS_BACK * alone.confidence } else { alone.confidence } {
        return Ok((alone, text.clone(), text));
    }
    let mut said = earlier.answer;
    wire::cut(&mut said, EARLIER_CHARS);
    Ok((together, format!("{}\n{said}\n{text}", earlier.question), earlier.question))
}

/// Sends a piece of the answer.
fn send(text: String, question: &Question, progress: &mut (dyn FnMut(Progress) + Send), answer: &mut Answer) {
    if text.is_empty() {
        return;
    }
    if answer.timings.ttft_ms == 0.0 {
        answer.timings.ttft_ms = millis(question.asked.elapsed());
    }
    progress(Progress::Delta(text));
}

/// Starts a request to the generator.
struct Reader<'a> {
    answerer: &'a Answerer,
    question: &'a Question,
    kind: Kind,
    cancel: &'a Cancel,
}

/// A running request.
struct Running<'a> {
    generation: llm::engine::Generation,
    question: &'a Question,
    cancel: &'a Cancel,
}

/// An event of a running request.
enum Step {
    Chosen { reading: usize, passages_used: usize },
    Delta(String),
    Done(Completion),
}

impl<'a> Reader<'a> {
    fn start(&self, readings: &[Reading], asked: Asked, form: Form) -> Result<Running<'a>, AnswerError> {
        let options = &self.answerer.options;
        let request = Request {
            system: options.system().to_owned(),
            readings: readings.iter().map(|reading| reading.prompt.clone()).collect(),
            patience: if options.is_narrow(self.kind) { Duration::ZERO } else { options.patience },
            asked,
            max_tokens: if matches!(form, Form::Compared(_)) { 1 } else { self.question.max_tokens },
            form,
            stop: options.stop.clone(),
            sampling: self.question.sampling.clone(),
            deadline: self.question.asked + self.question.allowed,
        };
        let generation = self.answerer.engine.generate(request, self.cancel.clone())?;
        Ok(Running { generation, question: self.question, cancel: self.cancel })
    }

    /// Compares two groups of first words. Returns the name of the reading, and the completion with its preference.
    async fn compare(
        &self,
        readings: &[Reading],
        asked: Asked,
        words: [Vec<String>; 2],
    ) -> Result<(Option<String>, Completion), AnswerError> {
        let mut running = self.start(readings, asked, Form::Compared(words))?;
        let mut name = None;
        loop {
            match running.next().await? {
                Step::Chosen { reading, .. } => {
                    self.answerer.wish(readings, reading);
                    name = readings.get(reading).map(|reading| reading.name.to_owned());
                }
                Step::Delta(_) => {}
                Step::Done(completion) => return Ok((name, completion)),
            }
        }
    }
}

impl Running<'_> {
    /// The next event. A cancelled or late question ends here even while it waits for the generator.
    async fn next(&mut self) -> Result<Step, AnswerError> {
        let question = self.question;
        let late = || AnswerError::DeadlineExceeded(question.allowed.as_millis());
        let deadline = tokio::time::Instant::from_std(question.asked + question.allowed);
        let event = tokio::select! {
            event = self.generation.events.recv() => event,
            () = self.cancel.cancelled() => return Err(AnswerError::Cancelled),
            () = tokio::time::sleep_until(deadline) => return Err(late()),
        };
        match event {
            Some(Event::Chosen { reading, passages_used }) => Ok(Step::Chosen { reading, passages_used }),
            Some(Event::Delta(delta)) => Ok(Step::Delta(delta)),
            Some(Event::Done(completion)) => match completion.finish {
                Finish::Cancelled => Err(AnswerError::Cancelled),
                Finish::Deadline => Err(late()),
                Finish::Stop | Finish::Length => Ok(Step::Done(completion)),
            },
            Some(Event::Failed(error)) => Err(error.into()),
            None => Err(EngineError::Stopped.into()),
        }
    }
}

/// Evidence from retrieval.
struct Evidence {
    citations: Vec<Citation>,
    /// The readings for the generator, best first.
    readings: Vec<Reading>,
    /// Language of the best passage.
    language: Language,
    /// The answer in the passages' own words, with marks.
    quoted: String,
    /// The question as the generator sees it: behind the last turn of its session where it goes on from it.
    asked: String,
    /// The question that the session keeps.
    turn: String,
    /// The sentence of the best passage that answers best.
    best: String,
    /// The sentences that answer best, best first.
    favoured: Vec<String>,
    confidence: f32,
    embed_ms: f64,
    search_ms: f64,
}

impl Evidence {
    /// The rules for an answer that is copied.
    fn copy_rules(&self, question: &Question, words: &Words) -> SpanRules {
        let read = self.readings.iter().flat_map(|reading| &reading.passages);
        let headings = read.map(|passage| passage.heading.clone()).collect();
        SpanRules::new(&question.text, self.language, words, self.favoured.clone(), headings)
    }
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
        let said = |at, text: &str| Scored { at, text: text.into(), score: 1.0, section: 0 };
        let (rinse, oil, turn) = (said(0, "Rinse it weekly."), said(22, "Oil it."), said(30, "Turn it."));
        let both = cite(1, &passage, Some(&oil), &[&rinse, &oil]);
        assert_eq!((both.page, both.pages.as_slice(), both.heading.as_str()), (Some(4), &[3, 4][..], "Care > Pump"));
        assert_eq!(both.quote, "Rinse it weekly.\nOil it.");
        let one = cite(1, &passage, Some(&turn), &[&oil, &turn]);
        assert_eq!((one.page, one.pages.as_slice()), (Some(4), &[][..]), "the page goes without saying twice");
        let none = cite(1, &passage, None, &[]);
        assert_eq!((none.page, none.heading.as_str()), (Some(3), "Care"));
    }
}
