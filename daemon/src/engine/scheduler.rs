//! The owner thread: loads the model, holds the context, and computes all requests at work in common batches.
//!
//! Every batch holds one token of each lane that writes, and of those that read their prompts the next step each, while there
//! is room; the request that came first goes first.

use super::lane::Lane;
use super::lookup;
use super::passages::{Keys, PassageCache, Reason};
use super::precompute::Wish;
use super::prompt::{self, Prompt, STEP, Template};
use super::sequences::{SYSTEM, Sequences};
use super::state_file::HEAD;
use super::tuner::Tuner;
use super::{Completion, EngineError, EngineInfo, EngineOptions, Event, Finish, Job, Work};
use crate::gguf::{Gguf, Kind};
use crate::llama::{Context, ContextOptions, DecodeFailure, Entry, Placed, Pulse};
use llama_cpp_2::model::LlamaModel;
use llama_cpp_2::token::LlamaToken;
use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender};
use std::time::{Duration, Instant};

/// Most tokens in a batch: a step, and a token of each lane that writes.
pub const BATCH: usize = STEP + 64;

/// Tokens of a prompt computed at once while others write: they wait for it at every token.
const STEP_BESIDE_OTHERS: usize = 64;

/// Readings of one request that can be at work.
const MAX_READINGS: usize = 4;

/// Positions kept free at the end of the context.
pub(super) const CONTEXT_MARGIN: usize = 4;

/// Tokens after which competing readings are compared, unless all have ended before. Of 60 questions of xquad-en-a (SmolLM2) 4 and 8 answer
/// 0.42 with the gold answer, 2 and 1 0.35 and 0.37.
const COMPARE_AFTER: usize = 4;

/// Checks what llama.cpp would abort on or fail late on, before it is called.
pub(super) fn check(gguf: &Gguf, path: &Path, options: &EngineOptions) -> Result<(), EngineError> {
    if gguf.kind() != Kind::Generator {
        return Err(EngineError::NotAGenerator { path: path.to_owned(), architecture: gguf.architecture().to_owned() });
    }
    let memory = crate::llama::available_memory();
    crate::llama::check_fits(gguf, options.context, BATCH as u32, &memory)?;
    Ok(())
}

/// What the owner thread begins with.
pub(super) struct Start {
    pub(super) path: PathBuf,
    pub(super) gguf: Gguf,
    pub(super) options: EngineOptions,
    pub(super) placed: Placed,
    pub(super) tuner: Tuner,
    pub(super) passages: Option<PassageCache>,
    /// Set when there is new work.
    pub(super) asked: Arc<AtomicBool>,
    pub(super) pulse: Pulse,
}

/// Runs the owner thread until the last handle is gone.
pub(super) fn run(
    start: Start,
    ready: &SyncSender<Result<EngineInfo, EngineError>>,
    jobs: &Receiver<Work>,
    stopping: &AtomicBool,
) {
    let Start { path, gguf, options, placed, tuner, passages, asked, pulse } = start;
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
    // A lane for each reading of each request, and the system prompt's sequence.
    let sequences = slots * MAX_READINGS + 1;
    let context_options = ContextOptions {
        cells,
        batch: BATCH as u32,
        sequences: sequences as u32,
        outputs: sequences as u32,
        threads,
        pulse: pulse.clone(),
    };
    let template = Template::of(&model);
    let divisible = !crate::llama::is_recurrent(&model);
    let passages_off = (passages.is_some() && !divisible)
        .then(|| "the model keeps a running state instead of keys and values, which cannot be cut".to_owned());
    let longest_state = crate::llama::longest_state(&model);
    let tuner = match longest_state {
        _ if !divisible => tuner.without_lookup("the model keeps a running state, which cannot go back"),
        Some(_) => tuner.without_lookup("it is not done with models that have a sliding window"),
        None => tuner,
    };
    let info = EngineInfo {
        model: gguf.name(),
        architecture: gguf.architecture().to_owned(),
        fingerprint: gguf.fingerprint(),
        parameters: gguf.parameters(),
        context: cells,
        own_template: template.is_own(),
        repack: placed.repack,
        mlock: placed.placement.mlock.then(crate::llama::locked),
        gpu: placed.gpu,
        slots,
        passages_off,
        passages_up_to: longest_state,
    };
    if ready.send(Ok(info)).is_err() {
        return;
    }
    // A generator that nobody asks needs neither keys and values nor buffers.
    let (context, work) = loop {
        let Ok(work) = jobs.recv() else { return };
        pulse.set_at_work(true);
        let context = check(gguf, path, options).and_then(|()| {
            let reason = "it makes no context; the log says why".into();
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
        passages: passages.filter(|_| divisible),
        longest_state: longest_state.unwrap_or(usize::MAX),
        tuner,
        keys: Keys::new(&gguf.fingerprint(), &placed.placement.to_string()),
        system: options.system.clone(),
        cold: true,
        cells: cells as usize,
        slots,
        outputs: sequences,
        waiting: VecDeque::new(),
        running: vec![],
        wish: None,
        asked,
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
    pub(super) passages: Option<PassageCache>,
    /// Tokens of the longest state that is kept.
    pub(super) longest_state: usize,
    pub(super) tuner: Tuner,
    pub(super) keys: Keys,
    /// The system prompt, and whether it has yet to be computed.
    system: String,
    cold: bool,
    /// Cells of the KV cache.
    pub(super) cells: usize,
    slots: usize,
    /// Most entries of a batch that ask for logits.
    outputs: usize,
    waiting: VecDeque<Job>,
    /// In the order in which they came.
    running: Vec<Running>,
    /// What is computed while there are no requests.
    pub(super) wish: Option<Wish>,
    /// Whether there is new work.
    pub(super) asked: Arc<AtomicBool>,
    /// The batch, kept for its allocation.
    pub(super) entries: Vec<Entry>,
}

/// A request at work.
struct Running {
    job: Job,
    lanes: Vec<Lane>,
    /// The lane whose answer is given, once that is clear.
    chosen: Option<usize>,
    /// Cells that it will need.
    reserved: usize,
    started: Instant,
    /// When the first token was there.
    read: Option<Instant>,
    prompt_tokens: usize,
    passages_used: usize,
    /// Tokens guessed, and guessed right.
    drafted: usize,
    accepted: usize,
}

/// Where the results of a batch go: request, lane, index of the first logits; `None` without logits.
struct Route {
    running: usize,
    lane: usize,
    logits: Option<usize>,
    tokens: usize,
    /// Of the tokens, those at the end that are only guessed; the logits after each and after the one before them are wanted.
    drafted: usize,
}

impl Running {
    fn completion(&self, finish: Finish) -> Completion {
        let now = Instant::now();
        let lane = &self.lanes[self.chosen.unwrap_or(0)];
        let read = self.read.unwrap_or(now);
        Completion {
            text: lane.text().to_owned(),
            finish,
            passages_used: self.passages_used,
            prompt_tokens: self.prompt_tokens,
            reused_tokens: self.lanes.iter().map(|lane| lane.reused).sum(),
            answer_tokens: lane.said.len(),
            drafted_tokens: self.drafted,
            accepted_tokens: self.accepted,
            waited: self.started - self.job.queued,
            prefill: read - self.started,
            decode: now - read,
        }
    }

    /// Sends what can be shown, choosing among readings when the time has come. Returns why it has ended, when it has.
    fn speak(&mut self) -> Option<Finish> {
        if self.chosen.is_none() && self.lanes.iter().all(|lane| lane.finish.is_some() || lane.said.len() >= COMPARE_AFTER) {
            let request = &self.job.request;
            let score = |lane: &Lane| {
                let nothing = lane.text().trim().is_empty() || (request.no_answer)(lane.text());
                let prior = request.readings[lane.reading].prior;
                log::debug!("reading {}: {:.3}, and {prior:.3} before it was read", lane.reading, lane.likelihood());
                (!nothing, lane.likelihood() + prior)
            };
            let best = (0..self.lanes.len()).max_by(|a, b| {
                let (a, b) = (score(&self.lanes[*a]), score(&self.lanes[*b]));
                a.0.cmp(&b.0).then(a.1.total_cmp(&b.1))
            });
            self.choose(best.unwrap_or(0));
        }
        let lane = &mut self.lanes[self.chosen?];
        if !lane.unsent.is_empty() {
            let _ = self.job.events.send(Event::Delta(std::mem::take(&mut lane.unsent)));
        }
        lane.finish
    }

    fn choose(&mut self, lane: usize) {
        self.chosen = Some(lane);
        let lane = &self.lanes[lane];
        let _ = self.job.events.send(Event::Reading { reading: lane.reading, passages_used: lane.prompt.passages_used });
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
    /// Computes the system prompt once, so that the first question need not, and touches the weights' pages; again after a failure.
    fn warm_up(&mut self, stopping: &AtomicBool) {
        self.cold = false;
        if !self.sequences.tokens(SYSTEM).is_empty() {
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
            self.entries.extend((at..upto).map(|position| Entry {
                token: prompt.tokens[position],
                position: position as u32,
                sequence: SYSTEM,
                logits: false,
            }));
            if let Err(error) = self.context.decode(&self.entries) {
                log::warn!("computing the system prompt in advance failed: {error}");
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
                // One at a time; whoever waits for an earlier one learns that it will not be.
                self.pause_precomputing(true);
                self.wish = Some(wish);
            }
            Work::WarmUp(reply) => drop(reply.send(Ok(()))),
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

    /// Starts waiting requests, in order, while there is room for them.
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
        let mut prompts = Vec::new();
        for reading in request.readings.iter().take(MAX_READINGS) {
            match self.template.lay_out(self.model, &request.system, reading, &request.question, room) {
                Ok(prompt) => prompts.push(prompt),
                Err(too_long) if prompts.is_empty() => {
                    return Err(Refusal::Never(Box::new(job), EngineError::PromptTooLong { needed: too_long.needed, room }));
                }
                // A longer one among the weaker readings.
                Err(_) => break,
            }
        }
        // With the system prompt: a state that comes from a file brings its own.
        let needs = |prompts: &[Prompt]| -> usize {
            prompts.iter().map(|prompt| prompt.tokens.len() + request.max_tokens + CONTEXT_MARGIN).sum()
        };
        while prompts.len() > 1 && needs(&prompts) > self.sequences.room() {
            prompts.pop();
        }
        let own = needs(&prompts);
        let reserved = own + self.running.iter().map(|running| running.reserved).sum::<usize>();
        if !self.running.is_empty() && reserved > self.sequences.room() {
            return Err(Refusal::NoRoomNow(Box::new(job)));
        }
        let mut stops = request.stop.clone();
        stops.push(prompt::NEXT_QUESTION.into());
        if !self.template.is_own() {
            stops.extend(prompt::PLAIN_STOPS.map(String::from));
        }
        let competing = prompts.len() > 1;
        let (prompt_tokens, passages_used) =
            (prompts.iter().map(|p| p.tokens.len()).sum(), prompts.iter().map(|p| p.passages_used).sum());
        let mut lanes = Vec::new();
        for (reading, prompt) in prompts.into_iter().enumerate() {
            let Some((sequence, reused)) = self.begin(&prompt, reserved) else { break };
            let lane = Lane::new(reading, sequence, prompt, reused, &request.sampling, stops.clone());
            lanes.push(if competing { lane.weighed() } else { lane });
        }
        if lanes.is_empty() {
            return Err(Refusal::NoRoomNow(Box::new(job)));
        }
        // What earlier questions have left and these lanes did not take up: every token would be compared with it, if only to be told
        // that it does not count (2,000 cells of others: 0.8 of the speed). Passages that are kept come back from their file.
        self.sequences.drop_idle(&mut self.context);
        let mut running = Running {
            job,
            lanes,
            chosen: None,
            reserved: own,
            started,
            read: None,
            prompt_tokens,
            passages_used,
            drafted: 0,
            accepted: 0,
        };
        if !competing {
            running.choose(0);
        }
        self.running.push(running);
        Ok(())
    }

    /// Takes a sequence for a prompt and brings into it what is known of the prompt's beginning.
    fn begin(&mut self, prompt: &Prompt, reserved: usize) -> Option<(u32, usize)> {
        let (sequence, reused) = self.sequences.take(&mut self.context, &prompt.tokens, &prompt.cuts, reserved)?;
        if let (Some(cache), Some((upto, document))) = (&self.passages, prompt.keep)
            && (reused + 1..=self.longest_state).contains(&upto)
        {
            let key = self.keys.of(&prompt.tokens[..upto]);
            if let Some(bytes) = cache.load(document, &key) {
                // It stands where it would stand if it were computed: in another order of cells sums are rounded in another way.
                self.sequences.drop_idle(&mut self.context);
                if self.sequences.restore(&mut self.context, sequence, &prompt.tokens[..upto], &bytes[HEAD..]) {
                    return Some((sequence, upto));
                }
                // There may have been no room for it in one piece; what was there before is gone either way.
                log::debug!("llama.cpp did not take a passage's state; it is computed");
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
        }
        if result == Err(DecodeFailure::NoRoom) {
            self.sequences.drop_idle(&mut self.context);
            result = self.context.decode_unless(&entries, &given_up);
        }
        match result {
            Ok(()) => self.distribute(&entries, &routes),
            // All of them end with the next look at them.
            Err(DecodeFailure::GivenUp) => {}
            // Never so by what is reserved; if it is all the same, the others go on.
            Err(error @ DecodeFailure::NoRoom) if self.running.len() > 1 => {
                if let Some(running) = self.running.pop() {
                    self.fail_one(running, error);
                }
            }
            Err(error) => self.fail(error),
        }
        self.entries = entries;
    }

    /// Chooses what the next batch computes.
    fn fill(&self, entries: &mut Vec<Entry>) -> Vec<Route> {
        let lanes = || {
            let running = self.running.iter().enumerate();
            running.flat_map(|(r, running)| running.lanes.iter().enumerate().map(move |(l, lane)| (r, l, lane)))
        };
        let mut routes = Vec::new();
        // Those that write and have not been seen yet: each gets its token, whatever the others want.
        let mut writing = lanes().filter(|(_, _, lane)| lane.next.is_some()).count();
        let others_write = writing > 0;
        // Every lane may want logits; what is left of them is for guesses.
        let mut spare = self.outputs.saturating_sub(lanes().filter(|(_, _, lane)| lane.finish.is_none()).count());
        for (r, l, lane) in lanes() {
            let held = self.sequences.tokens(lane.sequence);
            let from = entries.len();
            if let Some(token) = lane.next {
                let most = spare.min(BATCH.saturating_sub(from + writing));
                let drafted = self.guess(&self.running[r], lane, held, token, most);
                writing -= 1;
                spare -= drafted.len();
                entries.extend(std::iter::once(&token).chain(&drafted).enumerate().map(|(i, token)| Entry {
                    token: *token,
                    position: (held.len() + i) as u32,
                    sequence: lane.sequence,
                    logits: true,
                }));
                routes.push(Route { running: r, lane: l, logits: Some(from), tokens: 1 + drafted.len(), drafted: drafted.len() });
            } else if lane.finish.is_none() && held.len() < lane.prompt.tokens.len() {
                let most = if others_write { STEP_BESIDE_OTHERS } else { STEP };
                let step = held.len()..lane.prompt.next_cut(held.len()).min(held.len() + most);
                // Those that write go first; a step that does not fit waits for the next batch.
                if from + step.len() + writing > BATCH && !(from == 0 && writing == 0) {
                    continue;
                }
                let whole = step.end == lane.prompt.tokens.len();
                routes.push(Route {
                    running: r,
                    lane: l,
                    logits: whole.then_some(from + step.len() - 1),
                    tokens: step.len(),
                    drafted: 0,
                });
                entries.extend(step.clone().map(|position| Entry {
                    token: lane.prompt.tokens[position],
                    position: position as u32,
                    sequence: lane.sequence,
                    logits: whole && position + 1 == step.end,
                }));
            }
        }
        routes
    }

    /// At most `most` tokens that a lane may say after `next`. While readings compete, only some of what they say is wanted.
    fn guess(&self, running: &Running, lane: &Lane, held: &[LlamaToken], next: LlamaToken, most: usize) -> Vec<LlamaToken> {
        if running.chosen.is_none() || !lane.is_greedy() {
            return vec![];
        }
        let left = running.job.request.max_tokens.saturating_sub(lane.said.len());
        lookup::draft(held, next, self.tuner.draft().min(most).min(left))
    }

    /// Hands the results of a batch to the lanes.
    fn distribute(&mut self, entries: &[Entry], routes: &[Route]) {
        let vocab = self.model.vocab();
        let mut at = 0;
        for route in routes {
            let computed: Vec<_> = entries[at..at + route.tokens].iter().map(|entry| entry.token).collect();
            at += route.tokens;
            let running = &mut self.running[route.running];
            let max_tokens = running.job.request.max_tokens;
            let lane = &mut running.lanes[route.lane];
            self.sequences.extend(lane.sequence, &computed);
            let held = self.sequences.tokens(lane.sequence).len();
            if lane.prompt.keep.is_some_and(|(upto, _)| held == upto && upto <= self.longest_state) {
                lane.unkept = true;
            }
            let Some(index) = route.logits else { continue };
            running.read.get_or_insert_with(Instant::now);
            let (sure, guessed) = (held - route.drafted, &computed[route.tokens - route.drafted..]);
            // What was guessed counts as long as it is what the model says.
            let mut accepted = 0;
            loop {
                lane.next = None;
                lane.advance(self.context.logits(index + accepted), &vocab, max_tokens, sure + accepted + 1 < self.cells);
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
            let decided = self.running[i].chosen.is_some();
            let finish = self.running[i].speak();
            if let Some(finish) = finish {
                self.end(i, finish);
            } else if !decided && let Some(chosen) = self.running[i].chosen {
                // The others need not be computed further.
                let mut lanes = std::mem::take(&mut self.running[i].lanes);
                let (before, after) = lanes.split_at_mut(chosen);
                self.keep(before);
                self.keep(&mut after[1..]);
                self.release(&mut lanes, Some(chosen));
                self.running[i].lanes = lanes;
            }
        }
    }

    /// Ends lanes, all but one or all, and gives their sequences back.
    fn release(&mut self, lanes: &mut [Lane], but: Option<usize>) {
        for (l, lane) in lanes.iter_mut().enumerate() {
            if but != Some(l) && !std::mem::replace(&mut lane.released, true) {
                lane.end(Finish::Stop);
                self.sequences.release(&mut self.context, lane.sequence);
            }
        }
    }

    /// Ends a request and tells its owner.
    fn end(&mut self, i: usize, finish: Finish) {
        let mut running = self.running.remove(i);
        for lane in &mut running.lanes {
            lane.end(finish);
        }
        let _ = running.speak();
        // A receiver that has gone has cancelled; there is nobody to tell.
        let _ = running.job.events.send(Event::Done(running.completion(finish)));
        let Running { job, mut lanes, .. } = running;
        drop(job);
        self.keep(&mut lanes);
        self.release(&mut lanes, None);
    }

    /// Keeps the states of the passages that lanes have read which are to be released. Not earlier: copying, checking and writing megabytes
    /// would hold up the first token.
    fn keep(&mut self, lanes: &mut [Lane]) {
        let Some(cache) = &self.passages else { return };
        for lane in lanes {
            let Some((upto, document)) = lane.prompt.keep.filter(|_| std::mem::take(&mut lane.unkept)) else { continue };
            // What stands behind it no other prompt could have begun with.
            if !self.sequences.truncate(&mut self.context, lane.sequence, upto) {
                self.sequences.discard(&mut self.context, lane.sequence);
            } else if let Some(bytes) = self.context.state(lane.sequence, HEAD) {
                cache.keep(document, &self.keys.of(&lane.prompt.tokens[..upto]), bytes, Reason::Asked);
            }
        }
    }

    /// After a failure nothing in the KV cache can be relied on.
    fn fail(&mut self, error: DecodeFailure) {
        for running in std::mem::take(&mut self.running) {
            self.fail_one(running, error);
        }
        self.forget();
    }

    fn fail_one(&mut self, mut running: Running, error: DecodeFailure) {
        self.release(&mut running.lanes, None);
        let _ = running.job.events.send(Event::Failed(EngineError::Compute(error.to_string())));
    }

    /// Forgets everything that was computed, after a failure.
    pub(super) fn forget(&mut self) {
        self.sequences.clear(&mut self.context);
        self.cold = true;
    }
}

/// A request that is not started, given back.
enum Refusal {
    NoRoomNow(Box<Job>),
    Never(Box<Job>, EngineError),
}

impl Completion {
    /// Of a request that was never started.
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
            waited,
            prefill: Duration::ZERO,
            decode: Duration::ZERO,
        }
    }
}
