//! The owner thread: loads the model, holds the context, works off the queue.

use super::prompt::{self, Template};
use super::text::TextStream;
use super::{Completion, EngineError, EngineInfo, EngineOptions, Event, Finish, Job, Request, Sampling};
use crate::gguf::{Gguf, Kind};
use llama_cpp_2::context::LlamaContext;
use llama_cpp_2::context::params::LlamaContextParams;
use llama_cpp_2::llama_batch::LlamaBatch;
use llama_cpp_2::model::LlamaModel;
use llama_cpp_2::model::params::LlamaModelParams;
use llama_cpp_2::sampling::LlamaSampler;
use llama_cpp_2::token::LlamaToken;
use std::num::NonZeroU32;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender};
use std::time::{Duration, Instant};

/// Tokens of a prompt computed between two looks at cancel and deadline. Prefill speed does not depend on it from 64 up.
pub const PREFILL_STEP: usize = 64;

/// Positions kept free at the end of the context.
const CONTEXT_MARGIN: usize = 4;

/// Checks what llama.cpp would abort on or fail late on, before it is called.
pub(super) fn check(gguf: &Gguf, path: &Path, options: &EngineOptions) -> Result<(), EngineError> {
    if gguf.kind() != Kind::Generator {
        return Err(EngineError::NotAGenerator { path: path.to_owned(), architecture: gguf.architecture().to_owned() });
    }
    let memory = crate::llama::available_memory();
    crate::llama::check_fits(gguf, options.context, PREFILL_STEP as u32, &memory)?;
    Ok(())
}

/// Runs the owner thread until the last handle is gone.
pub(super) fn run(
    path: &Path,
    gguf: &Gguf,
    options: &EngineOptions,
    ready: &SyncSender<Result<EngineInfo, EngineError>>,
    jobs: &Receiver<Job>,
    stopping: &AtomicBool,
) {
    let failed = |reason: String| Err(EngineError::Load { path: path.to_owned(), reason });
    let backend = match crate::llama::backend() {
        Ok(backend) => backend,
        Err(error) => return ready.send(Err(error.into())).unwrap_or(()),
    };
    let model = match LlamaModel::load_from_file(backend, path, &LlamaModelParams::default().with_n_gpu_layers(0)) {
        Ok(model) => model,
        Err(error) => return ready.send(failed(error.to_string())).unwrap_or(()),
    };
    let context = options.context.min(model.n_ctx_train()).max(PREFILL_STEP as u32);
    let params = LlamaContextParams::default()
        .with_n_ctx(NonZeroU32::new(context))
        .with_n_batch(PREFILL_STEP as u32)
        .with_n_ubatch(PREFILL_STEP as u32)
        .with_n_threads(options.threads.decode as i32)
        .with_n_threads_batch(options.threads.batch as i32)
        // 1.35 times faster prefill on CPUs than without.
        .with_flash_attention_policy(llama_cpp_sys_2::LLAMA_FLASH_ATTN_TYPE_ENABLED);
    let ctx = match model.new_context(backend, params) {
        Ok(ctx) => ctx,
        Err(error) => return ready.send(failed(error.to_string())).unwrap_or(()),
    };
    let template = Template::of(&model);
    let info = EngineInfo {
        model: gguf.name(),
        architecture: gguf.architecture().to_owned(),
        fingerprint: gguf.fingerprint(),
        context,
        own_template: template.is_own(),
        threads: options.threads,
    };
    let mut session = Session {
        model: &model,
        ctx,
        batch: LlamaBatch::new(PREFILL_STEP, 1),
        cached: vec![],
        template,
        context: context as usize,
    };
    if ready.send(Ok(info)).is_err() {
        return;
    }
    session.warm_up(&options.system, stopping);
    while let Ok(job) = jobs.recv() {
        session.work(&job, stopping);
    }
}

struct Session<'model> {
    model: &'model LlamaModel,
    ctx: LlamaContext<'model>,
    batch: LlamaBatch<'static>,
    /// Tokens whose state is in sequence 0 of the KV cache, in order.
    cached: Vec<LlamaToken>,
    template: Template,
    /// Context in tokens.
    context: usize,
}

/// A prompt that fits.
struct Prompt {
    tokens: Vec<LlamaToken>,
    passages_used: usize,
}

impl Session<'_> {
    /// Computes the system prompt once, so that the first question need not, and touches the weights' pages.
    fn warm_up(&mut self, system: &str, stopping: &AtomicBool) {
        let prefix = self.template.prefix(self.model, system);
        let interrupted = || stopping.load(Ordering::Relaxed).then_some(Finish::Cancelled);
        if prefix.len() < self.context / 2
            && let Err(error) = self.prefill(&prefix, prefix.len(), interrupted)
        {
            log::warn!("computing the system prompt in advance failed: {error}");
        }
    }

    fn work(&mut self, job: &Job, stopping: &AtomicBool) {
        let end = match self.answer(job, stopping) {
            Ok(completion) => Event::Done(completion),
            Err(error) => {
                // The KV cache may hold half of a batch now: begin afresh.
                self.cached.clear();
                self.ctx.clear_kv_cache();
                Event::Failed(error)
            }
        };
        // A receiver that has gone has cancelled; there is nobody to tell.
        let _ = job.events.send(end);
    }

    fn answer(&mut self, job: &Job, stopping: &AtomicBool) -> Result<Completion, EngineError> {
        let request = &job.request;
        let interrupted = || {
            if job.cancel.is_cancelled() || job.events.is_closed() || stopping.load(Ordering::Relaxed) {
                Some(Finish::Cancelled)
            } else if Instant::now() >= request.deadline {
                Some(Finish::Deadline)
            } else {
                None
            }
        };
        let started = Instant::now();
        let mut completion = Completion {
            text: String::new(),
            finish: Finish::Cancelled,
            passages_used: 0,
            prompt_tokens: 0,
            reused_tokens: 0,
            answer_tokens: 0,
            waited: started - job.queued,
            prefill: Duration::ZERO,
            decode: Duration::ZERO,
        };
        if let Some(finish) = interrupted() {
            completion.finish = finish;
            return Ok(completion);
        }
        let prompt = self.fit(request)?;
        let anchor = self.template.prefix(self.model, &request.system).len();
        completion.passages_used = prompt.passages_used;
        let _ = job.events.send(Event::Prompt { passages_used: prompt.passages_used });
        completion.prompt_tokens = prompt.tokens.len();
        let (reused, stopped) = self.prefill(&prompt.tokens, anchor, interrupted)?;
        completion.reused_tokens = reused;
        completion.prefill = started.elapsed();
        if let Some(finish) = stopped {
            completion.finish = finish;
            return Ok(completion);
        }
        let decoding = Instant::now();
        self.decode(job, &mut completion, interrupted)?;
        completion.decode = decoding.elapsed();
        Ok(completion)
    }

    /// Lays out the prompt, leaving out the weakest passages until it fits.
    fn fit(&self, request: &Request) -> Result<Prompt, EngineError> {
        let room = self.context.saturating_sub(request.max_tokens + CONTEXT_MARGIN);
        let question = prompt::data_tokens(self.model, &prompt::question_text(&request.question, self.template.is_own()));
        let fixed = self.template.tokens(self.model, &request.system, &question).len();
        let mut user = Vec::new();
        let mut passages_used = 0;
        for (i, passage) in request.passages.iter().enumerate() {
            let tokens = prompt::data_tokens(self.model, &prompt::passage_text(passage));
            if fixed + user.len() + tokens.len() > room {
                if i == 0 {
                    return Err(EngineError::PromptTooLong { needed: fixed + tokens.len(), room });
                }
                log::info!(
                    "{} of {} passages do not fit into the context and are left out",
                    request.passages.len() - i,
                    request.passages.len()
                );
                break;
            }
            user.extend(tokens);
            passages_used = i + 1;
        }
        user.extend(question);
        let tokens = self.template.tokens(self.model, &request.system, &user);
        if tokens.len() > room {
            return Err(EngineError::PromptTooLong { needed: tokens.len(), room });
        }
        Ok(Prompt { tokens, passages_used })
    }

    /// Brings the KV cache to hold exactly `tokens`, computing only what it does not hold yet.
    ///
    /// The prompt is computed in fixed steps, counted from the end of the system prompt at `anchor`, and whole steps are
    /// reused: how tokens are grouped changes the rounding, and a greedy answer must not depend on what was asked before.
    ///
    /// Returns the number of tokens that were reused, and why it stopped early, if it did.
    fn prefill(
        &mut self,
        tokens: &[LlamaToken],
        anchor: usize,
        interrupted: impl Fn() -> Option<Finish>,
    ) -> Result<(usize, Option<Finish>), EngineError> {
        let common = self.cached.iter().zip(tokens).take_while(|(a, b)| a == b).count();
        // The last token is always computed: its logits are what comes next.
        let common = common.min(tokens.len().saturating_sub(1));
        self.keep(step_start(common, anchor));
        let keep = self.cached.len();
        while self.cached.len() < tokens.len() {
            if let Some(finish) = interrupted() {
                return Ok((keep, Some(finish)));
            }
            let from = self.cached.len();
            let to = step_end(from, anchor).min(tokens.len());
            self.compute(&tokens[from..to], to == tokens.len())?;
        }
        Ok((keep, None))
    }

    /// Drops everything from position `keep` on.
    fn keep(&mut self, keep: usize) {
        if keep < self.cached.len() {
            if self.ctx.kv_cache_seq_rm(0, Some(keep as u32), None).is_ok() {
                self.cached.truncate(keep);
            } else {
                // Recurrent models cannot go back: begin afresh.
                self.ctx.clear_kv_cache();
                self.cached.clear();
            }
        }
    }

    fn compute(&mut self, tokens: &[LlamaToken], logits_of_last: bool) -> Result<(), EngineError> {
        self.batch.clear();
        for (i, token) in tokens.iter().enumerate() {
            let logits = logits_of_last && i + 1 == tokens.len();
            let position = (self.cached.len() + i) as i32;
            self.batch.add(*token, position, &[0], logits).map_err(|e| EngineError::Compute(e.to_string()))?;
        }
        self.ctx.decode(&mut self.batch).map_err(|e| EngineError::Compute(e.to_string()))?;
        self.cached.extend_from_slice(tokens);
        Ok(())
    }

    fn decode(
        &mut self,
        job: &Job,
        completion: &mut Completion,
        interrupted: impl Fn() -> Option<Finish>,
    ) -> Result<(), EngineError> {
        let mut stops = job.request.stop.clone();
        stops.push(prompt::NEXT_QUESTION.into());
        if !self.template.is_own() {
            stops.extend(prompt::PLAIN_STOPS.map(String::from));
        }
        let mut stream = TextStream::new(stops);
        let mut sampler = sampler(&job.request.sampling);
        let vocab = self.model.vocab();
        let mut piece = Vec::with_capacity(64);
        let mut said: Vec<LlamaToken> = Vec::new();
        completion.finish = loop {
            if let Some(finish) = interrupted() {
                break finish;
            }
            let token = sampler.sample(&self.ctx, -1);
            if vocab.is_eog(token) {
                break Finish::Stop;
            }
            completion.answer_tokens += 1;
            piece.clear();
            vocab.token_to_piece_into(token, &mut piece, false, None);
            let delta = stream.push(&piece);
            if !delta.is_empty() {
                let _ = job.events.send(Event::Delta(delta));
            }
            said.push(token);
            if stream.stopped() || goes_in_circles(&said) {
                break Finish::Stop;
            }
            if completion.answer_tokens >= job.request.max_tokens || self.cached.len() + 1 >= self.context {
                break Finish::Length;
            }
            self.compute(&[token], true)?;
        };
        let rest = stream.finish();
        if !rest.is_empty() {
            let _ = job.events.send(Event::Delta(rest));
        }
        stream.text().clone_into(&mut completion.text);
        Ok(())
    }
}

/// Whether an answer has come to say the same thing over and over, as small models do when they choose greedily: its end
/// is at least four times the same run of up to 24 tokens, 16 tokens in all.
fn goes_in_circles<T: PartialEq>(said: &[T]) -> bool {
    (1..=24).any(|period| {
        let length = (4 * period).max(16);
        said.len() >= length && said[said.len() - length..].windows(period + 1).all(|window| window[0] == window[period])
    })
}

/// The last step boundary at or before `position`.
fn step_start(position: usize, anchor: usize) -> usize {
    if position >= anchor {
        anchor + (position - anchor) / PREFILL_STEP * PREFILL_STEP
    } else {
        position / PREFILL_STEP * PREFILL_STEP
    }
}

/// The first step boundary after `position`.
fn step_end(position: usize, anchor: usize) -> usize {
    if position >= anchor {
        step_start(position, anchor) + PREFILL_STEP
    } else {
        (step_start(position, anchor) + PREFILL_STEP).min(anchor)
    }
}

fn sampler(sampling: &Sampling) -> LlamaSampler {
    if sampling.temperature <= 0.0 {
        return LlamaSampler::greedy();
    }
    LlamaSampler::chain_simple([
        LlamaSampler::top_p(sampling.top_p, 1),
        LlamaSampler::min_p(sampling.min_p, 1),
        LlamaSampler::temp(sampling.temperature),
        LlamaSampler::dist(sampling.seed),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn circles_are_told_from_lists() {
        assert!(goes_in_circles(&[7; 16]));
        assert!(!goes_in_circles(&[7; 15]));
        let around: Vec<i32> = (0..40).map(|i| i % 9).collect();
        assert!(goes_in_circles(&around[..36]) && !goes_in_circles(&around[..35]));
        let list: Vec<i32> = (0..60).map(|i| if i % 5 == 0 { i } else { i % 5 }).collect();
        assert!(!goes_in_circles(&list));
    }

    #[test]
    fn steps_are_the_same_whatever_is_reused() {
        for (anchor, len) in [(30, 300), (0, 64), (64, 65), (100, 90), (130, 400)] {
            let boundaries = |mut from: usize| {
                let mut all = vec![from];
                while from < len {
                    from = step_end(from, anchor).min(len);
                    all.push(from);
                }
                all
            };
            let whole = boundaries(0);
            for common in 0..len {
                let from = step_start(common, anchor);
                assert!(from <= common && whole.contains(&from), "{anchor} {common}");
                assert!(whole.ends_with(&boundaries(from)));
            }
            assert!(whole.windows(2).all(|w| w[1] - w[0] <= PREFILL_STEP));
            assert!(anchor > len || whole.contains(&anchor));
        }
    }
}
