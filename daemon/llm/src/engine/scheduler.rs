//! The owner thread: it loads the model, holds the context, and computes all running requests in common batches.
//!
//! Every batch holds one token of each lane that writes. The rest of the batch goes to the next steps of prompts, the earliest
//! request first.

use super::copying::{self, Copier};
use super::kv_cache::{KvCache, Reason, StateKeys};
use super::lane::Lane;
use super::lookup;
use super::precompute::Wish;
use super::prompt::{self, Prompt, STEP, Template, data_tokens};
use super::sequences::{SYSTEM, Sequences};
use super::speed::ReadingSpeed;
use super::state_file::HEAD;
use super::tuner::Tuner;
use wire::ModelInfo;

use super::{Completion, EngineError, EngineOptions, Event, Finish, Form, Job, Work};
use crate::gguf::{Gguf, ModelKind};
use crate::llama::{BatchEntry, Context, ContextOptions, DecodeFailure, Placed, Pulse};
use llama_cpp_2::model::LlamaModel;
use llama_cpp_2::token::LlamaToken;
use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender};
use std::time::{Duration, Instant};

/// Most tokens in a batch: one step of a prompt, and one token of each lane that writes.
pub const BATCH: usize = STEP + 64;

/// Tokens of a prompt computed at once while other lanes write: each of their tokens waits for this step.
const STEP_BESIDE_OTHERS: usize = 64;

/// Sequences for each request that may run: its own, and those that still hold what earlier questions have read. With an empty one
/// at hand, a state gets the cells where it would be computed.
const SEQUENCES_PER_SLOT: usize = 4;

/// Logits for each request that may run: the next token, and guesses.
const OUTPUTS_PER_SLOT: usize = 4;

/// Positions kept free at the end of the context.
pub(super) const CONTEXT_MARGIN: usize = 4;

/// Refuses models on which llama.cpp would abort or fail late.
pub(super) fn check(gguf: &Gguf, path: &Path, options: &EngineOptions) -> Result<(), EngineError> {
    if gguf.kind() != ModelKind::Generator {
        return Err(EngineError::NotAGenerator { path: path.to_owned(), architecture: gguf.architecture().to_owned() });
    }
    let memory = crate::llama::available_memory();
    crate::llama::check_fits(gguf, options.context, BATCH as u32, &memory)?;
    Ok(())
}

/// Inputs of the owner thread.
pub(super) struct Start {
    pub(super) path: PathBuf,
    pub(super) gguf: Gguf,
    pub(super) options: EngineOptions,
    pub(super) placed: Placed,
    pub(super) tuner: Tuner,
    pub(super) kv_cache: Option<KvCache>,
    /// Set when there is new work.
    pub(super) asked: Arc<AtomicBool>,
    pub(super) speed: ReadingSpeed,
    pub(super) pulse: Pulse,
}

/// Runs the owner thread until the last handle is gone.
pub(super) fn run(
    start: Start,
    ready: &SyncSender<Result<ModelInfo, EngineError>>,
    jobs: &Receiver<Work>,
    stopping: &AtomicBool,
) {
    let Start { path, gguf, options, placed, tuner, kv_cache, asked, speed, pulse } = start;
    let (path, gguf, options) = (path.as_path(), &gguf, &options);
    let failed = |reason: String| Err(EngineError::Load { path: path.to_owned(), reason });
    let backend = match crate::llama::backend() {
        Ok(backend) => backend,
        Err(error) => return ready.send(Err(error.into())).unwrap_or(()),
    };
    let model = match crate::llama::load(backend, path, placed.placement) {
        Ok(model) => model,
        Err(error) => return ready.send(failed(error.to_string())).unwrap_or(()),
    };
    let threads = tuner.plan.threads;
    let cells = options.context.min(model.n_ctx_train()).max(BATCH as u32);
    let slots = options.slots.max(1);
    // The requests' and the system prompt's.
    let sequences = slots * SEQUENCES_PER_SLOT + 1;
    let outputs = slots * OUTPUTS_PER_SLOT + 1;
    let context_options = ContextOptions {
        cells,
        batch: BATCH as u32,
        sequences: sequences as u32,
        outputs: outputs as u32,
        threads,
        pulse: pulse.clone(),
    };
    let template = Template::of(&model);
    let divisible = !crate::llama::is_recurrent(&model);
    let kv_cache_off = (kv_cache.is_some() && !divisible)
        .then(|| "the model keeps a running state instead of keys and values, which cannot be cut".to_owned());
    let longest_state = crate::llama::longest_state(&model);
    let tuner = match longest_state {
        _ if !divisible => tuner.without_lookup("the model keeps a running state, which cannot go back"),
        Some(_) => tuner.without_lookup("it is not done with models that have a sliding window"),
        None => tuner,
    };
    let info = ModelInfo {
        model: gguf.name(),
        architecture: gguf.architecture().to_owned(),
        fingerprint: gguf.fingerprint(),
        parameters: gguf.parameters(),
        context: cells,
        own_template: template.is_own(),
        repack: placed.repack,
        repacked_bytes: placed.repacked_bytes,
        mlock: placed.placement.mlock.then(crate::llama::locked),
        gpu: placed.gpu,
        slots,
        kv_cache_off,
        kv_cache_up_to: longest_state,
    };
    if ready.send(Ok(info)).is_err() {
        return;
    }
    // An idle generator needs neither KV cache nor buffers: the first request makes the context.
    let (context, work) = loop {
        let Ok(work) = jobs.recv() else { return };
        pulse.set_at_work(true);
        let context = check(gguf, path, options).and_then(|()| {
            let reason = "it cannot make a context; see the log".into();
            Context::new(&model, &context_options).ok_or(EngineError::Load { path: path.to_owned(), reason })
        });
        match context {
            Ok(context) => break (context, work),
            Err(error) => work.refuse(error),
        }
        pulse.set_at_work(false);
    };
    let mut scheduler = Scheduler {
        model: &model,
        context,
        sequences: Sequences::new(sequences, cells as usize, divisible),
        template,
        kv_cache: kv_cache.filter(|_| divisible),
        longest_state: longest_state.unwrap_or(usize::MAX),
        tuner,
        keys: StateKeys::new(&gguf.fingerprint(), &placed.placement.to_string()),
        system: String::new(),
        cold: false,
        cells: cells as usize,
        slots,
        outputs,
        waiting: VecDeque::new(),
        running: vec![],
        wish: None,
        asked,
        speed,
        unkept: vec![],
        ends: copying::ends(&model),
        entries: vec![],
    };
    scheduler.take(work);
    scheduler.run(jobs, stopping);
}

pub(super) struct Scheduler<'model> {
    pub(super) model: &'model LlamaModel,
    pub(super) context: Context<'model>,
    pub(super) sequences: Sequences,
    pub(super) template: Template,
    pub(super) kv_cache: Option<KvCache>,
    /// Longest prefix whose state is kept, in tokens.
    pub(super) longest_state: usize,
    pub(super) tuner: Tuner,
    pub(super) keys: StateKeys,
    /// The system prompt. `cold`: it has yet to be computed.
    system: String,
    cold: bool,
    /// Cells of the KV cache.
    pub(super) cells: usize,
    slots: usize,
    /// Most entries of a batch that ask for logits.
    outputs: usize,
    waiting: VecDeque<Job>,
    /// Running requests, in order of arrival.
    running: Vec<Running>,
    /// The state to precompute while there are no requests.
    pub(super) wish: Option<Wish>,
    /// Whether there is new work.
    pub(super) asked: Arc<AtomicBool>,
    speed: ReadingSpeed,
    /// The prefix whose state a comparison computed and did not keep.
    unkept: Vec<LlamaToken>,
    /// The tokens that end an answer.
    ends: Vec<LlamaToken>,
    /// The batch, kept for its allocation.
    pub(super) entries: Vec<BatchEntry>,
}

/// A running request.
struct Running {
    job: Job,
    lane: Lane,
    /// Cells reserved for it.
    reserved: usize,
    started: Instant,
    /// When the first token of the answer was computed.
    read: Option<Instant>,
    /// Tokens that prompt lookup guessed, and the confirmed ones.
    drafted: usize,
    accepted: usize,
}

/// The destination of a batch's results: request, index of the first logits; `None` without logits.
struct Route {
    running: usize,
    logits: Option<usize>,
    tokens: usize,
    /// Guessed tokens at the end of `tokens`. The logits after each of them, and before the first, are wanted.
    drafted: usize,
}

impl Running {
    fn completion(&self, finish: Finish) -> Completion {
        let now = Instant::now();
        let lane = &self.lane;
        let read = self.read.unwrap_or(now);
        Completion {
            text: lane.text().to_owned(),
            finish,
            passages_used: lane.prompt.passages_used,
            prompt_tokens: lane.prompt.tokens.len(),
            reused_tokens: lane.reused,
            answer_tokens: lane.said.len(),
            drafted_tokens: self.drafted,
            accepted_tokens: self.accepted,
            preference: lane.preference,
            certainty: lane.certainty(),
            waited: self.started - self.job.queued,
            prefill: read - self.started,
            decode: now - read,
        }
    }

    /// Sends text that can be shown. Returns why the answer ended, if it has.
    fn speak(&mut self) -> Option<Finish> {
        if !self.lane.unsent.is_empty() {
            let _ = self.job.events.send(Event::Delta(std::mem::take(&mut self.lane.unsent)));
        }
        self.lane.finish
    }
}

fn interrupted(job: &Job, stopping: bool) -> Option<Finish> {
    if stopping || job.cancel.is_cancelled() || job.events.is_closed() {
        Some(Finish::Cancelled)
    } else if Instant::now() >= job.request.deadline {
        Some(Finish::Deadline)
    } else {
        None
    }
}

impl Scheduler<'_> {
    /// Computes the system prompt once, if there is one, so that the first question need not, and touches the weights' pages. Runs
    /// again after a failure.
    fn warm_up(&mut self, stopping: &AtomicBool) {
        self.cold = false;
        if self.system.is_empty() || !self.sequences.tokens(SYSTEM).is_empty() {
            return;
        }
        let prefix = self.template.prefix(self.model, &self.system);
        if prefix.len() >= self.cells / 2 || prefix.is_empty() {
            return;
        }
        let prompt = Prompt::new(prefix, &[], STEP);
        let mut at = 0;
        while at < prompt.tokens.len() && !stopping.load(Ordering::Relaxed) {
            let upto = prompt.next_cut(at);
            self.entries.clear();
            self.entries.extend((at..upto).map(|position| BatchEntry {
                token: prompt.tokens[position],
                position: position as u32,
                sequence: SYSTEM,
                logits: false,
            }));
            let started = Instant::now();
            let result = self.context.decode(&self.entries);
            self.speed.observe(upto - at, started.elapsed());
            if let Err(error) = result {
                log::warn!("precomputing the system prompt failed: {error}");
                return self.sequences.clear(&mut self.context);
            }
            self.sequences.extend(SYSTEM, &prompt.tokens[at..upto]);
            at = upto;
        }
    }

    fn take(&mut self, work: Work) {
        match work {
            Work::Answer(job) => self.waiting.push_back(job),
            Work::Precompute(wish) => {
                // One wish at a time: the caller of an earlier one learns that it was dropped.
                self.pause_precomputing(true);
                self.wish = Some(wish);
            }
            Work::WarmUp { system, reply } => {
                self.cold = true;
                self.system = system;
                let _ = reply.send(Ok(()));
            }
        }
    }

    fn run(&mut self, jobs: &Receiver<Work>, stopping: &AtomicBool) {
        loop {
            if self.running.is_empty() && self.waiting.is_empty() && self.wish.is_none() {
                match self.tuner.wait(self.model, jobs, stopping) {
                    Some(work) => self.take(work),
                    None => return,
                }
            }
            if self.cold && self.running.is_empty() {
                self.warm_up(stopping);
            }
            self.asked.store(false, Ordering::Relaxed);
            for work in jobs.try_iter() {
                self.take(work);
            }
            let stop = stopping.load(Ordering::Relaxed);
            if stop || !self.waiting.is_empty() {
                self.pause_precomputing(stop);
            }
            self.admit(stop);
            for i in (0..self.running.len()).rev() {
                if let Some(finish) = interrupted(&self.running[i].job, stop) {
                    self.end(i, finish);
                }
            }
            if !self.running.is_empty() {
                self.step(stopping);
            } else if self.waiting.is_empty() {
                self.precompute();
            }
        }
    }

    /// Starts waiting requests, in order, while their cells fit.
    fn admit(&mut self, stop: bool) {
        while self.running.len() < self.slots
            && let Some(job) = self.waiting.pop_front()
        {
            if let Some(finish) = interrupted(&job, stop) {
                let _ = job.events.send(Event::Done(Completion::nothing(finish, job.queued.elapsed())));
                continue;
            }
            match self.start(job) {
                Ok(()) => {}
                Err(Refusal::NoRoomNow(job)) => {
                    self.waiting.push_front(*job);
                    return;
                }
                Err(Refusal::Never(job, error)) => drop(job.events.send(Event::Failed(error))),
            }
        }
    }

    fn start(&mut self, job: Job) -> Result<(), Refusal> {
        let started = Instant::now();
        let request = &job.request;
        let room = self.cells.saturating_sub(request.max_tokens + CONTEXT_MARGIN);
        let budget = self.speed.budget(request.patience, self.running.len());
        let (number, prompt) = match self.choose(&job, room, budget) {
            Ok(chosen) => chosen,
            Err(needed) => return Err(Refusal::Never(Box::new(job), EngineError::PromptTooLong { needed, room })),
        };
        // The system prompt is included: a state from a file brings its own copy.
        let own = prompt.tokens.len() + request.max_tokens + CONTEXT_MARGIN;
        let reserved = own + self.running.iter().map(|running| running.reserved).sum::<usize>();
        if !self.running.is_empty() && reserved > self.sequences.room() {
            return Err(Refusal::NoRoomNow(Box::new(job)));
        }
        let mut stops = request.stop.clone();
        stops.push(prompt::NEXT_QUESTION.into());
        if !self.template.is_own() {
            stops.extend(prompt::PLAIN_STOPS.map(String::from));
        }
        let Some((sequence, reused)) = self.begin(&prompt, reserved) else { return Err(Refusal::NoRoomNow(Box::new(job))) };
        let _ = job.events.send(Event::Chosen { reading: number, passages_used: prompt.passages_used });
        let unkept = std::mem::take(&mut self.unkept);
        let inherits = |(upto, _): (usize, u64)| upto == unkept.len() && upto <= reused && prompt.tokens.starts_with(&unkept);
        let inherits = prompt.keep.is_some_and(inherits);
        let mut lane = Lane::new(sequence, prompt, reused, &request.sampling, stops);
        lane.unkept = inherits;
        match &request.form {
            Form::Written => {}
            Form::Copied(rules) => {
                let read = request.readings[number].iter().take(lane.prompt.passages_used).map(|passage| passage.text.as_str());
                let text = read.collect::<Vec<_>>().join("\n");
                lane = lane.copying(Copier::new(self.model, text, Arc::clone(rules), self.ends.clone()));
            }
            Form::Compared(words) => lane = lane.comparing(words.each_ref().map(|words| self.first_tokens(words))),
        }
        // Drop idle cells. Attention masks them but still scans them: 2,000 idle cells cost 20 % of the speed. States on disk are
        // loaded again when they are needed.
        self.sequences.drop_idle(&mut self.context);
        self.running.push(Running { job, lane, reserved: own, started, read: None, drafted: 0, accepted: 0 });
        Ok(())
    }

    /// The first reading whose unread tokens fit the budget, else the one with the fewest; with its number. A reading that does
    /// not fit into the context is passed over.
    ///
    /// # Errors
    /// No reading fits: the tokens that the last one needs.
    fn choose(&self, job: &Job, room: usize, budget: usize) -> Result<(usize, Prompt), usize> {
        let request = &job.request;
        let mut fewest = usize::MAX;
        let mut best = Err(0);
        for (number, reading) in request.readings.iter().enumerate() {
            match self.template.lay_out(self.model, &request.system, reading, &request.asked, room) {
                Ok(prompt) => {
                    let unread = prompt.tokens.len() - self.known(&prompt);
                    log::debug!("reading {number}: {unread} of {} tokens unread, budget {budget}", prompt.tokens.len());
                    if unread <= budget {
                        return Ok((number, prompt));
                    }
                    if unread <= fewest {
                        fewest = unread;
                        best = Ok((number, prompt));
                    }
                }
                Err(too_long) if best.is_err() => best = Err(too_long.needed),
                Err(_) => {}
            }
        }
        best
    }

    /// Tokens of a prompt whose state is held, in memory or on disk.
    fn known(&self, prompt: &Prompt) -> usize {
        let in_memory = self.sequences.longest(&prompt.tokens, &prompt.cuts);
        match (&self.kv_cache, prompt.keep) {
            (Some(cache), Some((upto, document)))
                if upto > in_memory
                    && upto <= self.longest_state
                    && cache.holds(document, &self.keys.of(&prompt.tokens[..upto])) =>
            {
                upto
            }
            _ => in_memory,
        }
    }

    /// The tokens that begin some words, each once.
    fn first_tokens(&self, words: &[String]) -> Vec<LlamaToken> {
        let mut tokens: Vec<LlamaToken> =
            words.iter().filter_map(|word| data_tokens(self.model, word).first().copied()).collect();
        tokens.sort_by_key(|token| token.0);
        tokens.dedup();
        tokens
    }

    /// Takes a sequence for a prompt and fills it with the longest known prefix, from memory or from disk.
    fn begin(&mut self, prompt: &Prompt, reserved: usize) -> Option<(u32, usize)> {
        let (sequence, reused) = self.sequences.take(&mut self.context, &prompt.tokens, &prompt.cuts, reserved)?;
        if let (Some(cache), Some((upto, document))) = (&self.kv_cache, prompt.keep)
            && (reused + 1..=self.longest_state).contains(&upto)
        {
            let key = self.keys.of(&prompt.tokens[..upto]);
            if let Some(bytes) = cache.load(document, &key) {
                // Idle cells go first, so that the state gets the cells where it would be computed. Another order of cells rounds
                // sums differently.
                self.sequences.drop_idle(&mut self.context);
                if self.sequences.restore(&mut self.context, sequence, &prompt.tokens[..upto], &bytes[HEAD..]) {
                    return Some((sequence, upto));
                }
                // Perhaps no contiguous cells were free. The sequence's earlier contents are gone either way.
                log::debug!("llama.cpp refused a passage's state; the passage is computed");
                self.cold = true;
                cache.refuse(document, &key);
                return Some((sequence, 0));
            }
        }
        Some((sequence, reused))
    }

    /// Computes one batch.
    fn step(&mut self, stopping: &AtomicBool) {
        let mut entries = std::mem::take(&mut self.entries);
        entries.clear();
        let routes = self.fill(&mut entries);
        self.context.set_threads(self.tuner.threads());
        let started = Instant::now();
        let running = &self.running;
        let given_up = || running.iter().all(|running| interrupted(&running.job, stopping.load(Ordering::Relaxed)).is_some());
        let mut result = self.context.decode_unless(&entries, &given_up);
        if entries.len() == 1 && result.is_ok() {
            self.tuner.observe(started.elapsed());
        } else if result.is_ok() && routes.iter().all(|route| self.running[route.running].lane.next.is_none()) {
            self.speed.observe(entries.len(), started.elapsed());
        }
        if result == Err(DecodeFailure::NoRoom) {
            self.sequences.drop_idle(&mut self.context);
            result = self.context.decode_unless(&entries, &given_up);
        }
        match result {
            Ok(()) => self.distribute(&entries, &routes),
            // Every request is interrupted; the next turn of the loop ends them.
            Err(DecodeFailure::GivenUp) => {}
            // The reservations rule this out. Should it happen, the other requests go on.
            Err(error @ DecodeFailure::NoRoom) if self.running.len() > 1 => {
                if let Some(running) = self.running.pop() {
                    self.fail_one(&running, error);
                }
            }
            Err(error) => self.fail(error),
        }
        self.entries = entries;
    }

    /// Fills the next batch.
    fn fill(&self, entries: &mut Vec<BatchEntry>) -> Vec<Route> {
        let mut routes = Vec::new();
        // Writing lanes that are still to come: each gets its token, before any prompt step.
        let mut writing = self.running.iter().filter(|running| running.lane.next.is_some()).count();
        let others_write = writing > 0;
        // Every lane may want logits; the spare outputs are for guesses.
        let mut spare = self.outputs.saturating_sub(self.running.len());
        for (r, running) in self.running.iter().enumerate() {
            let lane = &running.lane;
            let held = self.sequences.tokens(lane.sequence);
            let from = entries.len();
            if let Some(token) = lane.next {
                let most = spare.min(BATCH.saturating_sub(from + writing));
                let drafted = self.guess(running, held, token, most);
                writing -= 1;
                spare -= drafted.len();
                entries.extend(std::iter::once(&token).chain(&drafted).enumerate().map(|(i, token)| BatchEntry {
                    token: *token,
                    position: (held.len() + i) as u32,
                    sequence: lane.sequence,
                    logits: true,
                }));
                routes.push(Route { running: r, logits: Some(from), tokens: 1 + drafted.len(), drafted: drafted.len() });
            } else if lane.finish.is_none() && held.len() < lane.prompt.tokens.len() {
                let most = if others_write { STEP_BESIDE_OTHERS } else { STEP };
                let step = held.len()..lane.prompt.next_cut(held.len()).min(held.len() + most);
                // Writing lanes go first; a step that does not fit waits for the next batch.
                if from + step.len() + writing > BATCH && !(from == 0 && writing == 0) {
                    continue;
                }
                let whole = step.end == lane.prompt.tokens.len();
                routes.push(Route { running: r, logits: whole.then_some(from + step.len() - 1), tokens: step.len(), drafted: 0 });
                entries.extend(step.clone().map(|position| BatchEntry {
                    token: lane.prompt.tokens[position],
                    position: position as u32,
                    sequence: lane.sequence,
                    logits: whole && position + 1 == step.end,
                }));
            }
        }
        routes
    }

    /// At most `most` tokens that may follow `next`.
    fn guess(&self, running: &Running, held: &[LlamaToken], next: LlamaToken, most: usize) -> Vec<LlamaToken> {
        if !running.lane.is_greedy() {
            return vec![];
        }
        let left = running.job.request.max_tokens.saturating_sub(running.lane.said.len());
        lookup::draft(held, next, self.tuner.draft().min(most).min(left))
    }

    /// Hands the results of a batch to the lanes.
    fn distribute(&mut self, entries: &[BatchEntry], routes: &[Route]) {
        let mut at = 0;
        for route in routes {
            let computed: Vec<_> = entries[at..at + route.tokens].iter().map(|entry| entry.token).collect();
            at += route.tokens;
            let running = &mut self.running[route.running];
            let max_tokens = running.job.request.max_tokens;
            let lane = &mut running.lane;
            self.sequences.extend(lane.sequence, &computed);
            let held = self.sequences.tokens(lane.sequence).len();
            if lane.prompt.keep.is_some_and(|(upto, _)| held == upto && upto <= self.longest_state) {
                lane.unkept = true;
            }
            let Some(index) = route.logits else { continue };
            running.read.get_or_insert_with(Instant::now);
            let (sure, guessed) = (held - route.drafted, &computed[route.tokens - route.drafted..]);
            // A guess counts as long as the model confirms it.
            let mut accepted = 0;
            loop {
                lane.next = None;
                lane.advance(self.context.logits(index + accepted), self.model, max_tokens, sure + accepted + 1 < self.cells);
                match guessed.get(accepted) {
                    Some(guess) if lane.next == Some(*guess) => accepted += 1,
                    _ => break,
                }
            }
            running.drafted += route.drafted;
            running.accepted += accepted;
            if accepted < route.drafted && !self.sequences.truncate(&mut self.context, lane.sequence, sure + accepted) {
                return self.fail(DecodeFailure::NotCut);
            }
        }
        for i in (0..self.running.len()).rev() {
            if let Some(finish) = self.running[i].speak() {
                self.end(i, finish);
            }
        }
    }

    /// Ends a request and tells its caller.
    fn end(&mut self, i: usize, finish: Finish) {
        let mut running = self.running.remove(i);
        running.lane.end(finish);
        let _ = running.speak();
        // A dropped receiver has cancelled; there is nobody to tell.
        let _ = running.job.events.send(Event::Done(running.completion(finish)));
        let Running { job, mut lane, .. } = running;
        let compared = matches!(job.request.form, Form::Compared(_));
        drop(job);
        match lane.prompt.keep {
            // The answer to the same question follows, and reads on where this prompt parts from it.
            Some((upto, _)) if compared && std::mem::take(&mut lane.unkept) => {
                self.unkept = lane.prompt.tokens[..upto].to_vec();
            }
            _ => self.keep(&mut lane),
        }
        self.sequences.release(&mut self.context, lane.sequence);
    }

    /// Keeps the passage state of a lane that is about to be released. Copying megabytes earlier would delay the first token.
    fn keep(&mut self, lane: &mut Lane) {
        let Some(cache) = &self.kv_cache else { return };
        let Some((upto, document)) = lane.prompt.keep.filter(|_| std::mem::take(&mut lane.unkept)) else { return };
        // Cells after the prefix are specific to this question.
        if !self.sequences.truncate(&mut self.context, lane.sequence, upto) {
            self.sequences.discard(&mut self.context, lane.sequence);
        } else if let Some(bytes) = self.context.state(lane.sequence, HEAD) {
            cache.keep(document, &self.keys.of(&lane.prompt.tokens[..upto]), bytes, Reason::Asked);
        }
    }

    /// Fails all requests: after a failure nothing in the KV cache can be relied on.
    fn fail(&mut self, error: DecodeFailure) {
        for running in std::mem::take(&mut self.running) {
            self.fail_one(&running, error);
        }
        self.forget();
    }

    fn fail_one(&mut self, running: &Running, error: DecodeFailure) {
        self.sequences.release(&mut self.context, running.lane.sequence);
        let _ = running.job.events.send(Event::Failed(EngineError::Compute(error.to_string())));
    }

    /// Forgets everything that was computed, after a failure.
    pub(super) fn forget(&mut self) {
        self.sequences.clear(&mut self.context);
        self.cold = true;
    }
}

/// A request that was not started.
enum Refusal {
    NoRoomNow(Box<Job>),
    Never(Box<Job>, EngineError),
}

impl Completion {
    /// The completion of a request that was never started.
    fn nothing(finish: Finish, waited: Duration) -> Self {
        Self {
            text: String::new(),
            finish,
            passages_used: 0,
            prompt_tokens: 0,
            reused_tokens: 0,
            answer_tokens: 0,
            drafted_tokens: 0,
            accepted_tokens: 0,
            preference: None,
            certainty: None,
            waited,
            prefill: Duration::ZERO,
            decode: Duration::ZERO,
        }
    }
}
