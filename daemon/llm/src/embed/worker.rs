//! The threads that own llama.cpp contexts, and the queue before them.
//!
//! Each context computes on one thread, and a pass goes to the next free one. Several threads in one pass meet at some hundred
//! barriers, where they spin or sleep whenever other work has a core. Parallel passes never wait for each other.

use std::collections::VecDeque;
use std::num::NonZeroU32;
use std::ops::Range;
use std::path::Path;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use llama_cpp_2::context::LlamaContext;
use llama_cpp_2::context::params::{LlamaContextParams, LlamaPoolingType};
use llama_cpp_2::llama_batch::LlamaBatch;
use llama_cpp_2::model::LlamaModel;
use llama_cpp_2::token::LlamaToken;
use llama_cpp_sys_2::LLAMA_FLASH_ATTN_TYPE_ENABLED;

use super::{EmbedError, EmbedOptions};
use crate::gguf::Pooling;
use crate::llama::{self, Pulse};

/// Queries that may wait; further callers block until there is room.
const MAX_QUERIES: usize = 64;
/// Packs that may wait. A caller with more packs blocks, so that the queue stays short.
const MAX_BATCHES: usize = 4;
/// Sequences of one pass.
const MAX_SEQUENCES: usize = 32;
/// Most tokens of one pass: attention needs memory in proportion to the square.
const MAX_BATCH_TOKENS: usize = 8192;

/// Limits of one forward pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Limits {
    pub(super) batch_tokens: usize,
    pub(super) sequences: usize,
    /// Tokens of one sequence, special tokens included. llama.cpp aborts on more tokens than the model has positions.
    pub(super) longest: usize,
}

impl Limits {
    /// `longest` is the longest sequence, special tokens included; it always fits a pass.
    pub(super) fn new(options: &EmbedOptions, longest: usize) -> Limits {
        let wanted = options.batch_tokens.min(MAX_BATCH_TOKENS).max(longest);
        // llama.cpp divides a pass evenly among sequences when it reserves memory, and aborts if that fails. So tokens are a
        // multiple of sequences, and never fewer.
        Limits { batch_tokens: wanted.next_multiple_of(MAX_SEQUENCES), sequences: MAX_SEQUENCES, longest }
    }
}

/// One text as the model sees it.
#[derive(Debug, Clone, Default)]
pub(super) struct Sequence {
    /// Token ids, special tokens included.
    pub(super) ids: Vec<i32>,
    /// Ranges in `ids` that get a vector of their own.
    pub(super) parts: Vec<Range<usize>>,
}

/// The unit vectors of one sequence.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Pooled {
    pub(super) whole: Vec<f32>,
    /// In the order of the sequence's parts.
    pub(super) parts: Vec<Vec<f32>>,
}

type Vectors = Vec<Pooled>;

/// Pooling of the model's token vectors.
#[derive(Debug, Clone, Copy)]
pub(super) struct Output {
    pub(super) dimensions: usize,
    /// Pooling of a whole text, mean or CLS; parts are always means.
    pub(super) pooling: Pooling,
}

/// The sequences of one pass and the destination of their vectors.
struct Job {
    sequences: Vec<Sequence>,
    tag: usize,
    reply: Sender<(usize, Result<Vectors, EmbedError>)>,
}

/// Handle of the threads; dropping it ends them after their current passes.
pub(super) struct Worker {
    queue: Arc<Queue>,
    thread: Option<JoinHandle<()>>,
    pulses: Vec<Pulse>,
}

impl Worker {
    pub(super) fn start(path: &Path, limits: Limits, threads: usize, output: Output) -> Result<Worker, EmbedError> {
        let queue = Arc::new(Queue::default());
        let (ready, loaded) = channel();
        let (of_thread, path) = (Arc::clone(&queue), path.to_path_buf());
        let pulses = vec![(); threads].into_iter().map(|()| Pulse::default()).collect::<Vec<_>>();
        let of_threads = pulses.clone();
        let body = move || {
            // If the thread ends for any reason, its callers must not wait.
            let _closes = CloseOnDrop(Arc::clone(&of_thread));
            own_model(&path, limits, of_threads, output, &of_thread, &ready);
        };
        let thread = std::thread::Builder::new().name("embedder".into()).spawn(body);
        let thread = thread.map_err(|error| EmbedError::Run(format!("cannot start a thread: {error}")))?;
        let worker = Worker { queue, thread: Some(thread), pulses };
        loaded.recv().unwrap_or(Err(EmbedError::Stopped))?;
        Ok(worker)
    }

    /// Sign of life of each thread; a pass is a step.
    pub(super) fn pulses(&self) -> &[Pulse] {
        &self.pulses
    }

    /// Embeds one sequence ahead of all batches.
    pub(super) fn query(&self, sequence: Sequence) -> Result<Vectors, EmbedError> {
        let (reply, replies) = channel();
        let job = Job { sequences: vec![sequence], tag: 0, reply };
        self.queue.push(job, Urgency::Query)?;
        receive(&replies).and_then(|(_, vectors)| vectors)
    }

    /// Embeds packs of indices; `sequence` returns the sequence of an index. Returns the vector of each index.
    pub(super) fn batches(
        &self,
        packs: &[Vec<usize>],
        sequence: impl Fn(usize) -> Sequence,
    ) -> Result<Vec<(usize, Pooled)>, EmbedError> {
        let (reply, replies) = channel();
        for (tag, pack) in packs.iter().enumerate() {
            let job = Job { sequences: pack.iter().map(|index| sequence(*index)).collect(), tag, reply: reply.clone() };
            self.queue.push(job, Urgency::Batch)?;
        }
        drop(reply);
        let mut all = Vec::new();
        for _ in packs {
            let (tag, vectors) = receive(&replies)?;
            all.extend(packs[tag].iter().copied().zip(vectors?));
        }
        Ok(all)
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.queue.close();
        if let Some(thread) = self.thread.take() {
            // A panic of the thread has been reported already.
            let _ = thread.join();
        }
    }
}

fn receive<T>(replies: &Receiver<T>) -> Result<T, EmbedError> {
    replies.recv().map_err(|_| EmbedError::Stopped)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Urgency {
    Query,
    Batch,
}

/// A bounded queue of two lanes.
#[derive(Default)]
struct Queue {
    lanes: Mutex<Lanes>,
    /// Signalled on every change: a new job, a free place, closed.
    changed: Condvar,
}

#[derive(Default)]
struct Lanes {
    queries: VecDeque<Job>,
    batches: VecDeque<Job>,
    closed: bool,
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, Lanes> {
        // The lanes are consistent between any two statements that change them.
        self.lanes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, lanes: MutexGuard<'a, Lanes>) -> MutexGuard<'a, Lanes> {
        self.changed.wait(lanes).unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a job; blocks while its lane is full.
    fn push(&self, job: Job, urgency: Urgency) -> Result<(), EmbedError> {
        let mut lanes = self.lock();
        loop {
            if lanes.closed {
                return Err(EmbedError::Stopped);
            }
            let (lane, most) = match urgency {
                Urgency::Query => (&mut lanes.queries, MAX_QUERIES),
                Urgency::Batch => (&mut lanes.batches, MAX_BATCHES),
            };
            if lane.len() < most {
                lane.push_back(job);
                self.changed.notify_all();
                return Ok(());
            }
            lanes = self.wait(lanes);
        }
    }

    /// The next job, queries first; `None` once closed.
    fn pop(&self) -> Option<Job> {
        let mut lanes = self.lock();
        loop {
            if lanes.closed {
                return None;
            }
            if let Some(job) = lanes.queries.pop_front().or_else(|| lanes.batches.pop_front()) {
                self.changed.notify_all();
                return Some(job);
            }
            lanes = self.wait(lanes);
        }
    }

    /// Refuses further jobs and drops those that wait, which tells their callers.
    fn close(&self) {
        let mut lanes = self.lock();
        lanes.closed = true;
        lanes.queries.clear();
        lanes.batches.clear();
        self.changed.notify_all();
    }
}

struct CloseOnDrop(Arc<Queue>);

impl Drop for CloseOnDrop {
    fn drop(&mut self) {
        self.0.close();
    }
}

/// The life of the model: load, report, serve until the queue is closed.
fn own_model(
    path: &Path,
    limits: Limits,
    pulses: Vec<Pulse>,
    output: Output,
    queue: &Arc<Queue>,
    ready: &Sender<Result<(), EmbedError>>,
) {
    let loaded = load_model(path);
    let model = loaded.as_ref().map_err(Clone::clone);
    let contexts = model.and_then(|model| pulses.iter().map(|_| new_context(model, limits)).collect::<Result<Vec<_>, _>>());
    let contexts = match contexts {
        Ok(contexts) => contexts,
        Err(error) => {
            // Sending fails only if the caller is gone.
            let _ = ready.send(Err(EmbedError::Run(error)));
            return;
        }
    };
    let _ = ready.send(Ok(()));
    std::thread::scope(|scope| {
        for (context, pulse) in contexts.into_iter().zip(pulses) {
            let queue = Arc::clone(queue);
            let serve = move || {
                // If a thread ends for any reason, its callers must not wait.
                let _closes = CloseOnDrop(Arc::clone(&queue));
                let mut encoder = Encoder::new(context, limits, output);
                while let Some(job) = queue.pop() {
                    pulse.beat();
                    pulse.set_at_work(true);
                    let vectors = encoder.forward(&job.sequences);
                    let _ = job.reply.send((job.tag, vectors));
                    pulse.set_at_work(false);
                }
            };
            // One thread fewer is slower, not wrong; without any, the queue is closed below.
            if let Err(error) = std::thread::Builder::new().name("embed".into()).spawn_scoped(scope, serve) {
                log::warn!("an embedder thread cannot be started: {error}");
            }
        }
    });
}

fn load_model(path: &Path) -> Result<LlamaModel, String> {
    let backend = llama::backend().map_err(|error| error.to_string())?;
    llama::load(backend, path, llama::Placement::PROCESSOR).map_err(|error| format!("cannot load {}: {error}", path.display()))
}

/// A context and a batch of fixed size.
struct Encoder<'model> {
    context: LlamaContext<'model>,
    batch: LlamaBatch<'static>,
    limits: Limits,
    output: Output,
    /// Tokens of the largest pass so far.
    largest: usize,
}

fn new_context(model: &LlamaModel, limits: Limits) -> Result<LlamaContext<'_>, String> {
    let backend = llama::backend().map_err(|error| error.to_string())?;
    let tokens = limits.batch_tokens as u32;
    // An encoder takes a batch in one piece: n_ubatch below the batch's tokens aborts.
    let params = LlamaContextParams::default()
        .with_n_ctx(NonZeroU32::new(tokens))
        .with_n_batch(tokens)
        .with_n_ubatch(tokens)
        .with_n_seq_max(limits.sequences as u32)
        .with_kv_unified(true)
        .with_n_threads(1)
        .with_n_threads_batch(1)
        .with_flash_attention_policy(LLAMA_FLASH_ATTN_TYPE_ENABLED)
        .with_no_perf(true)
        // This crate pools, so that parts of a text get vectors from the same pass.
        .with_pooling_type(LlamaPoolingType::None)
        .with_embeddings(true);
    model.new_context(backend, params).map_err(|error| format!("no context: {error}"))
}

impl<'model> Encoder<'model> {
    fn new(context: LlamaContext<'model>, limits: Limits, output: Output) -> Encoder<'model> {
        // Created with a row for each sequence.
        release_logits(&context, limits.sequences);
        Encoder { context, batch: LlamaBatch::new(limits.batch_tokens, 1), limits, output, largest: 0 }
    }

    /// Computes one pass: the unit vectors of each sequence.
    fn forward(&mut self, sequences: &[Sequence]) -> Result<Vectors, EmbedError> {
        let tokens: usize = sequences.iter().map(|sequence| sequence.ids.len()).sum();
        let fits = sequences.iter().all(|sequence| (1..=self.limits.longest).contains(&sequence.ids.len()));
        if !fits || tokens > self.limits.batch_tokens || sequences.len() > self.limits.sequences {
            return Err(EmbedError::Run(format!("{tokens} tokens do not fit one pass")));
        }
        let refused = |error: &dyn std::fmt::Display| EmbedError::Run(error.to_string());
        self.batch.clear();
        for (number, sequence) in (0..).zip(sequences) {
            for (position, id) in (0..).zip(&sequence.ids) {
                self.batch.add(LlamaToken(*id), position, &[number], true).map_err(|error| refused(&error))?;
            }
        }
        self.context.encode(&mut self.batch).map_err(|error| refused(&error))?;
        if tokens > self.largest {
            self.largest = tokens;
            release_logits(&self.context, tokens.max(self.limits.sequences));
        }
        let mut begins = 0;
        let mut pooled = Vec::with_capacity(sequences.len());
        for sequence in sequences {
            pooled.push(self.pool(begins, sequence)?);
            begins += sequence.ids.len();
        }
        Ok(pooled)
    }

    /// Pools the token vectors of the sequence whose first token was the pass's `begins`-th.
    fn pool(&self, begins: usize, sequence: &Sequence) -> Result<Pooled, EmbedError> {
        let whole = match self.output.pooling {
            Pooling::Cls => 0..1,
            _ => 0..sequence.ids.len(),
        };
        let mean = |tokens: Range<usize>| {
            let mut sum = vec![0.0; self.output.dimensions];
            for token in tokens {
                let vector = self.context.embeddings_ith((begins + token) as i32);
                let vector = vector.map_err(|error| EmbedError::Run(error.to_string()))?;
                if vector.len() != sum.len() {
                    return Err(EmbedError::NotFinite);
                }
                sum.iter_mut().zip(vector).for_each(|(sum, value)| *sum += value);
            }
            unit(&sum)
        };
        let parts = sequence.parts.iter().map(|part| mean(part.clone())).collect::<Result<_, _>>()?;
        Ok(Pooled { whole: mean(whole)?, parts })
    }
}

/// Gives back the memory of logits that an encoder never computes.
///
/// llama.cpp reserves a row of logits for every token of a pass and fills it with zeros, even for encoders. That takes vocabulary
/// times tokens times 4 bytes: 31 MB for 256 tokens of BERT, most of an encoder's memory. The buffer only ever grows, so this is
/// needed once per growth.
fn release_logits(context: &LlamaContext, rows: usize) {
    const PAGE: usize = 65_536; // the largest page size of the boards in question
    let row = context.get_logits();
    let start = row.as_ptr() as usize;
    let end = start + rows * size_of_val(row);
    let (first, last) = (start.next_multiple_of(PAGE), end / PAGE * PAGE);
    if first < last {
        // SAFETY: the range lies within the logits buffer of the last pass: llama.cpp reserves max(tokens, n_seq_max) rows. The
        // buffer holds zeros and is private anonymous memory, so dropped pages read as zeros again.
        let result = unsafe { libc::madvise(first as *mut libc::c_void, last - first, libc::MADV_DONTNEED) };
        if result != 0 {
            log::debug!("memory of unused logits stays: {}", std::io::Error::last_os_error());
        }
    }
}

/// Scales the vector to length 1.
fn unit(vector: &[f32]) -> Result<Vec<f32>, EmbedError> {
    let norm = vector.iter().map(|x| f64::from(*x) * f64::from(*x)).sum::<f64>().sqrt();
    if !norm.is_finite() || norm < 1e-12 {
        return Err(EmbedError::NotFinite);
    }
    Ok(vector.iter().map(|x| (f64::from(*x) / norm) as f32).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job(tag: usize, reply: &Sender<(usize, Result<Vectors, EmbedError>)>) -> Job {
        Job { sequences: Vec::new(), tag, reply: reply.clone() }
    }

    #[test]
    fn queries_overtake_waiting_batches() {
        let queue = Queue::default();
        let (reply, _replies) = channel();
        for tag in [1, 2] {
            queue.push(job(tag, &reply), Urgency::Batch).expect("room");
        }
        queue.push(job(3, &reply), Urgency::Query).expect("room");
        let order: Vec<usize> = (0..3).filter_map(|_| queue.pop()).map(|job| job.tag).collect();
        assert_eq!(order, [3, 1, 2]);
    }

    #[test]
    fn a_full_lane_blocks_and_a_closed_queue_answers() {
        let queue = Arc::new(Queue::default());
        let (reply, replies) = channel();
        for tag in 0..MAX_BATCHES {
            queue.push(job(tag, &reply), Urgency::Batch).expect("room");
        }
        let (waiting, more) = (Arc::clone(&queue), job(9, &reply));
        let (own_id, id) = channel();
        let blocked = std::thread::spawn(move || {
            own_id.send(rustix::thread::gettid().as_raw_nonzero()).expect("the test listens");
            waiting.push(more, Urgency::Batch)
        });
        let stat = format!("/proc/self/task/{}/stat", id.recv().expect("an id"));
        let sleeps = || std::fs::read_to_string(&stat).is_ok_and(|stat| stat.contains(") S "));
        while !sleeps() && !blocked.is_finished() {
            std::thread::yield_now();
        }
        assert!(!blocked.is_finished());
        assert!(queue.pop().is_some());
        blocked.join().expect("no panic").expect("there is room now");
        queue.close();
        drop(reply);
        assert!(queue.pop().is_none());
        assert!(replies.recv().is_err(), "the jobs that waited are dropped");
    }

    #[test]
    fn a_vector_without_direction_is_an_error() {
        assert!(matches!(unit(&[0.0; 3]), Err(EmbedError::NotFinite)));
        assert!(matches!(unit(&[f32::NAN, 1.0]), Err(EmbedError::NotFinite)));
        assert_eq!(unit(&[3.0, 4.0]).expect("a vector"), [0.6, 0.8]);
    }

    #[test]
    fn a_pass_holds_the_longest_sequence() {
        let options = |batch_tokens| EmbedOptions { batch_tokens, ..EmbedOptions::default() };
        assert_eq!(Limits::new(&options(0), 256).batch_tokens, 256);
        assert_eq!(Limits::new(&options(300), 256).batch_tokens, 320);
        assert_eq!(Limits::new(&options(usize::MAX), 512).batch_tokens, MAX_BATCH_TOKENS);
    }
}
