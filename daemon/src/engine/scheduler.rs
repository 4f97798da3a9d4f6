//! The owner thread: loads the model, holds the context, and computes all requests at work in common batches.
//!
//! Every batch holds one token of each lane that writes, and of those that read their prompts the next step each, while there
//! is room; the request that came first goes first.

use super::lane::{Lane, Reading};
use super::lookup;
use super::passages::{HEAD, Keys, PassageCache};
use super::prompt::{self, MOST_APART, Prompt, STEP, Template};
use super::sequences::{SYSTEM, Sequences};
use super::tuner::Tuner;
use super::{Completion, EngineError, EngineInfo, EngineOptions, Event, Finish, Job};
use crate::gguf::{Gguf, Kind};
use crate::llama::{Context, ContextOptions, DecodeFailure, Entry};
use llama_cpp_2::model::LlamaModel;
use std::collections::VecDeque;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender};
use std::time::{Duration, Instant};

/// Most tokens in a batch: a step for two lanes, or the questions of several readings at once.
pub const BATCH: usize = 2 * STEP;

/// Positions kept free at the end of the context.
const CONTEXT_MARGIN: usize = 4;

/// Tokens after which competing readings are compared, unless all have ended before. Most short answers have.
const COMPARE_AFTER: usize = 8;

/// Checks what llama.cpp would abort on or fail late on, before it is called.
pub(super) fn check(gguf: &Gguf, path: &Path, options: &EngineOptions) -> Result<(), EngineError> {
    if gguf.kind() != Kind::Generator {
        return Err(EngineError::NotAGenerator { path: path.to_owned(), architecture: gguf.architecture().to_owned() });
    }
    let memory = crate::llama::available_memory();
    crate::llama::check_fits(gguf, options.context, BATCH as u32, &memory)?;
    Ok(())
}

/// Runs the owner thread until the last handle is gone.
pub(super) fn run(
    path: &Path,
    gguf: &Gguf,
    options: &EngineOptions,
    tuner: Tuner,
    passages: Option<PassageCache>,
    ready: &SyncSender<Result<EngineInfo, EngineError>>,
    jobs: &Receiver<Job>,
    stopping: &AtomicBool,
) {
    let failed = |reason: String| Err(EngineError::Load { path: path.to_owned(), reason });
    let backend = match crate::llama::backend() {
        Ok(backend) => backend,
        Err(error) => return ready.send(Err(error.into())).unwrap_or(()),
    };
    let needed = crate::llama::context_bytes(gguf, options.context, BATCH as u32);
    let (repack, why) = options.repack.decide(gguf, needed, &crate::llama::available_memory());
    let model = match crate::llama::load(backend, path, repack, options.mlock) {
        Ok(model) => model,
        Err(error) => return ready.send(failed(error.to_string())).unwrap_or(()),
    };
    let threads = tuner.plan.threads;
    let cells = options.context.min(model.n_ctx_train()).max(BATCH as u32);
    let slots = options.slots.max(1);
    // A lane for each reading of each request, and the system prompt's sequence.
    let sequences = slots * MOST_APART + 1;
    let context_options =
        ContextOptions { cells, batch: BATCH as u32, sequences: sequences as u32, outputs: sequences as u32, threads };
    let Some(context) = Context::new(&model, &context_options) else {
        return ready.send(failed("it makes no context; the log says why".into())).unwrap_or(());
    };
    let template = Template::of(&model);
    let divisible = !crate::llama::is_recurrent(&model);
    let tuner = if divisible { tuner } else { tuner.without_lookup("the model keeps a running state, which cannot go back") };
    let passages_off = (passages.is_some() && !divisible)
        .then(|| "the model keeps a running state instead of keys and values, which cannot be cut".to_owned());
    let composed_off = if !divisible {
        Some("the model keeps a running state instead of keys and values, which cannot be put together".to_owned())
    } else if !context.can_shift() {
        Some("llama.cpp cannot move this model's keys to other positions".to_owned())
    } else {
        None
    };
    let info = EngineInfo {
        model: gguf.name(),
        architecture: gguf.architecture().to_owned(),
        fingerprint: gguf.fingerprint(),
        parameters: gguf.parameters(),
        context: cells,
        own_template: template.is_own(),
        repack: why,
        slots,
        passages_off,
        composed_off,
    };
    let mut scheduler = Scheduler {
        model: &model,
        context,
        sequences: Sequences::new(sequences, cells as usize, divisible),
        template,
        passages: passages.filter(|_| divisible),
        tuner,
        keys: Keys::new(&info.fingerprint),
        cells: cells as usize,
        slots,
        outputs: sequences,
        system: options.system.clone(),
        cold: true,
        waiting: VecDeque::new(),
        running: vec![],
        entries: vec![],
    };
    if ready.send(Ok(info)).is_err() {
        return;
    }
    scheduler.run(jobs, stopping);
}

struct Scheduler<'model> {
    model: &'model LlamaModel,
    context: Context<'model>,
    sequences: Sequences,
    template: Template,
    passages: Option<PassageCache>,
    tuner: Tuner,
    keys: Keys,
    /// Cells of the KV cache.
    cells: usize,
    slots: usize,
    /// Most entries of a batch that ask for logits.
    outputs: usize,
    /// The system prompt that most questions begin with.
    system: String,
    /// It is not in the KV cache, and computing it has not been tried.
    cold: bool,
    waiting: VecDeque<Job>,
    /// In the order in which they came.
    running: Vec<Running>,
    /// The batch, kept for its allocation.
    entries: Vec<Entry>,
}

/// A request at work.
struct Running {
    job: Job,
    lanes: Vec<Lane>,
    /// The lane whose answer is given, once that is clear.
    chosen: Option<usize>,
    /// Cells that it will need beyond the system prompt's.
    reserved: usize,
    started: Instant,
    /// When the first token was there.
    read: Option<Instant>,
    prompt_tokens: usize,
    passages_used: usize,
    /// Tokens of the prompts whose state was there.
    reused: usize,
    /// Tokens guessed, and guessed right.
    drafted: usize,
    accepted: usize,
}

/// Where the results of a batch go: request, lane, index of the first logits; `None` without logits.
struct Route {
    running: usize,
    lane: usize,
    /// One of the lane's parts; `None`: the lane itself.
    part: Option<usize>,
    logits: Option<usize>,
    tokens: usize,
    /// Of the tokens, those at the end that are only guessed; the logits after each and the one before them are wanted.
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
            reused_tokens: self.reused,
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
        let _ = self.job.events.send(Event::Reading { reading: lane.reading, passages_used: lane.main.prompt.passages_used });
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
    /// Computes the system prompt once, so that the first question need not, and touches the weights' pages.
    fn warm_up(&mut self, stopping: &AtomicBool) {
        self.cold = false;
        let prefix = self.template.frame(self.model, &self.system).before;
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

    fn run(&mut self, jobs: &Receiver<Job>, stopping: &AtomicBool) {
        loop {
            // At the start, and after a failed batch.
            if self.cold && self.running.is_empty() {
                self.warm_up(stopping);
            }
            if self.running.is_empty() && self.waiting.is_empty() {
                match self.tuner.wait(self.model, jobs, stopping) {
                    Some(job) => self.waiting.push_back(job),
                    None => return,
                }
            }
            self.waiting.extend(jobs.try_iter());
            let stop = stopping.load(Ordering::Relaxed);
            self.admit(stop);
            for i in (0..self.running.len()).rev() {
                if let Some(finish) = interrupted(&self.running[i].job, stop) {
                    self.end(i, finish);
                }
            }
            if !self.running.is_empty() {
                self.step();
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
        for reading in request.readings.iter().take(MOST_APART) {
            match self.template.lay_out(self.model, &request.system, reading, &request.question, room) {
                Ok(prompt) => prompts.push(prompt),
                Err(too_long) if prompts.is_empty() => {
                    return Err(Refusal::Never(Box::new(job), EngineError::PromptTooLong { needed: too_long.needed, room }));
                }
                // A longer one among the weaker readings.
                Err(_) => break,
            }
        }
        let system = self.sequences.tokens(SYSTEM).len();
        let needs = |prompts: &[Prompt]| -> usize {
            // A part has the beginning once more until it is put in its place.
            let own = |prompt: &Prompt| prompt.tokens.len().saturating_sub(system) + prompt.parts.len() * prompt.anchor;
            prompts.iter().map(|prompt| own(prompt) + request.max_tokens + CONTEXT_MARGIN).sum()
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
        for (reading, mut prompt) in prompts.into_iter().enumerate() {
            let parts = std::mem::take(&mut prompt.parts);
            let Some(main) = self.begin(prompt, reserved) else { break };
            let parts = parts.into_iter().map_while(|part| self.begin(part, reserved)).collect();
            let lane = Lane::new(reading, main, parts, &request.sampling, stops.clone());
            lanes.push(if competing { lane.weighed() } else { lane });
        }
        if lanes.is_empty() {
            return Err(Refusal::NoRoomNow(Box::new(job)));
        }
        let reused = |lane: &Lane| -> usize {
            let parts = lane.parts.iter().map(|part| part.reused.saturating_sub(lane.main.prompt.anchor));
            lane.main.reused + parts.sum::<usize>()
        };
        let mut running = Running {
            reused: lanes.iter().map(reused).sum(),
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
    fn begin(&mut self, prompt: Prompt, reserved: usize) -> Option<Reading> {
        let (sequence, mut reused) = self.sequences.take(&mut self.context, &prompt.tokens, &prompt.cuts, reserved)?;
        let mut key = None;
        if let (Some(cache), Some((upto, document))) = (&self.passages, prompt.keep)
            && reused < upto
        {
            let named = self.keys.of(&prompt.tokens[..upto]);
            if let Some(bytes) = cache.load(document, &named) {
                if self.sequences.restore(&mut self.context, sequence, &prompt.tokens[..upto], &bytes[HEAD..]) {
                    reused = upto;
                } else {
                    // There may have been no room for it in one piece; what was there before is gone either way.
                    log::debug!("llama.cpp did not take a passage's state; it is computed");
                    cache.refuse(document, &named);
                    reused = 0;
                }
            }
            key = Some(named);
        }
        Some(Reading { sequence, prompt, reused, key })
    }

    /// Puts together what was read apart, where all of it is there.
    fn compose(&mut self) {
        for lane in self.running.iter_mut().flat_map(|running| &mut running.lanes) {
            let whole = |(_, reading, upto): (_, &Reading, usize)| self.sequences.tokens(reading.sequence).len() >= upto;
            if lane.parts.is_empty() || lane.finish.is_some() || !lane.readings().all(whole) {
                continue;
            }
            let parts: Vec<u32> = lane.parts.drain(..).map(|part| part.sequence).collect();
            if !self.sequences.append(&mut self.context, lane.main.sequence, &parts, lane.main.prompt.anchor) {
                log::debug!("llama.cpp did not take a passage's state; it is computed");
            }
            for part in parts {
                self.sequences.release(&mut self.context, part);
            }
        }
    }

    /// Computes one batch.
    fn step(&mut self) {
        self.compose();
        let mut entries = std::mem::take(&mut self.entries);
        entries.clear();
        let routes = self.fill(&mut entries);
        self.context.set_threads(self.tuner.threads());
        let started = Instant::now();
        let mut result = self.context.decode(&entries);
        if entries.len() == 1 {
            self.tuner.observe(started.elapsed());
        }
        if result == Err(DecodeFailure::NoRoom) {
            self.sequences.drop_idle(&mut self.context);
            result = self.context.decode(&entries);
        }
        match result {
            Ok(()) => self.distribute(&entries, &routes),
            Err(error) => self.fail(error),
        }
        self.entries = entries;
    }

    /// Chooses what the next batch computes.
    fn fill(&self, entries: &mut Vec<Entry>) -> Vec<Route> {
        let mut routes = Vec::new();
        let lanes = || self.running.iter().enumerate().flat_map(|(r, running)| running.lanes.iter().enumerate().map(move |(l, lane)| (r, l, lane)));
        let writing = lanes().filter(|(_, _, lane)| lane.next.is_some()).count();
        // Guesses take what those that write leave of the room.
        let mut room = self.outputs.min(BATCH).saturating_sub(lanes().filter(|(_, _, lane)| lane.finish.is_none()).count());
        for (r, l, lane) in lanes() {
            if let Some(token) = lane.next {
                let running = &self.running[r];
                let held = self.sequences.tokens(lane.main.sequence);
                let drafted = if running.chosen.is_some() && lane.is_greedy() {
                    let left = running.job.request.max_tokens.saturating_sub(lane.said.len());
                    lookup::draft(held, token, self.tuner.draft().min(room).min(left))
                } else {
                    vec![]
                };
                room -= drafted.len();
                let from = entries.len();
                entries.extend(std::iter::once(&token).chain(&drafted).enumerate().map(|(i, token)| Entry {
                    token: *token,
                    position: (held.len() + i) as u32,
                    sequence: lane.main.sequence,
                    logits: true,
                }));
                routes.push(Route { running: r, lane: l, part: None, logits: Some(from), tokens: 1 + drafted.len(), drafted: drafted.len() });
                continue;
            }
            if lane.finish.is_some() {
                continue;
            }
            for (part, reading, end) in lane.readings() {
                let held = self.sequences.tokens(reading.sequence).len();
                if held >= end {
                    continue;
                }
                let from = entries.len();
                let upto = reading.prompt.next_cut(held);
                // Those that write go first; a step that does not fit waits for the next batch.
                if from + (upto - held) + writing > BATCH && !(from == 0 && writing == 0) {
                    continue;
                }
                let answers = part.is_none() && upto == reading.prompt.tokens.len();
                entries.extend((held..upto).map(|position| Entry {
                    token: reading.prompt.tokens[position],
                    position: position as u32,
                    sequence: reading.sequence,
                    logits: answers && position + 1 == upto,
                }));
                let logits = answers.then_some(entries.len() - 1);
                routes.push(Route { running: r, lane: l, part, logits, tokens: upto - held, drafted: 0 });
            }
        }
        routes
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
            let reading = match route.part {
                Some(part) => &lane.parts[part],
                None => &lane.main,
            };
            let sequence = reading.sequence;
            self.sequences.extend(sequence, &computed);
            let held = self.sequences.tokens(sequence).len();
            if let (Some(cache), Some((upto, document))) = (&self.passages, reading.prompt.keep)
                && held == upto
                && let Some(bytes) = self.context.state(sequence, HEAD)
            {
                let key = reading.key.unwrap_or_else(|| self.keys.of(&reading.prompt.tokens[..upto]));
                cache.keep(document, &key, bytes);
            }
            let Some(index) = route.logits else { continue };
            running.read.get_or_insert_with(Instant::now);
            lane.next = None;
            // What was guessed counts as long as it is what the model says.
            let sure = held - route.drafted;
            let guessed = &computed[computed.len() - route.drafted..];
            let mut accepted = 0;
            loop {
                let logits = self.context.logits(index + accepted);
                lane.advance(logits, &vocab, max_tokens, sure + accepted + 1 < self.cells);
                match guessed.get(accepted) {
                    Some(guess) if lane.next == Some(*guess) => accepted += 1,
                    _ => break,
                }
            }
            running.drafted += route.drafted;
            running.accepted += accepted;
            if accepted < route.drafted {
                self.sequences.truncate(&mut self.context, sequence, sure + accepted);
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
                self.sequences.release(&mut self.context, lane.main.sequence);
                for part in lane.parts.drain(..) {
                    self.sequences.release(&mut self.context, part.sequence);
                }
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
        self.release(&mut running.lanes, None);
        // A receiver that has gone has cancelled; there is nobody to tell.
        let _ = running.job.events.send(Event::Done(running.completion(finish)));
    }

    /// After a failure nothing in the KV cache can be relied on.
    fn fail(&mut self, error: DecodeFailure) {
        for mut running in std::mem::take(&mut self.running) {
            self.release(&mut running.lanes, None);
            let _ = running.job.events.send(Event::Failed(EngineError::Compute(error.to_string())));
        }
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
