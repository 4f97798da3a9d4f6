//! Precomputed states of passages. The owner thread computes them step by step while no request waits or runs. A step is given up
//! when a request arrives.

use super::kv_cache::{Reason, StateKey};
use super::prompt::{Asked, Prompt, PromptPassage};
use super::scheduler::{CONTEXT_MARGIN, Scheduler};
use super::state_file::HEAD;
use crate::llama::{BatchEntry, DecodeFailure};
use std::sync::atomic::Ordering;
use std::sync::mpsc::SyncSender;

/// Outcome of precomputing a passage's state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Precomputed {
    /// The state was on disk already.
    Held,
    /// The state is on disk now.
    Kept,
    /// The state was not kept: it would evict another one, or the disk is nearly full.
    NoRoom,
    /// The state cannot be kept: the passage does not fit into the context or the model's window, or there is no KV cache on
    /// disk.
    Impossible,
    /// The generator failed.
    Failed,
}

/// A state to be precomputed.
pub(super) struct Wish {
    system: String,
    passage: PromptPassage,
    reply: SyncSender<Precomputed>,
    begun: Option<Begun>,
}

/// Progress of a wish.
struct Begun {
    prompt: Prompt,
    /// Length of the prefix whose state is kept, and its document.
    upto: usize,
    document: u64,
    key: StateKey,
    /// The sequence that computes it; `None` while it is paused.
    sequence: Option<u32>,
}

impl Wish {
    pub(super) fn new(system: &str, passage: PromptPassage, reply: SyncSender<Precomputed>) -> Self {
        Self { system: system.to_owned(), passage, reply, begun: None }
    }
}

impl Scheduler<'_> {
    /// Computes one step of the wish, if there is one.
    pub(super) fn precompute(&mut self) {
        let Some(mut wish) = self.wish.take() else { return };
        match self.advance(&mut wish) {
            None => self.wish = Some(wish),
            Some(result) => {
                if let Some(sequence) = wish.begun.and_then(|begun| begun.sequence) {
                    // The state is on disk now; its cells are for questions.
                    self.sequences.discard(&mut self.context, sequence);
                }
                let _ = wish.reply.send(result);
            }
        }
    }

    /// Releases the sequence and drops its progress. `for_good`: the wish is dropped too.
    pub(super) fn pause_precomputing(&mut self, for_good: bool) {
        if let Some(wish) = &mut self.wish
            && let Some(sequence) = wish.begun.as_mut().and_then(|begun| begun.sequence.take())
        {
            self.sequences.discard(&mut self.context, sequence);
        }
        if for_good {
            self.wish = None;
        }
    }

    /// Computes one step of a wish; returns its outcome once that is clear.
    fn advance(&mut self, wish: &mut Wish) -> Option<Precomputed> {
        let Some(cache) = self.kv_cache.clone() else { return Some(Precomputed::Impossible) };
        if wish.begun.is_none() {
            let room = self.cells - CONTEXT_MARGIN;
            let prompt = self
                .template
                .lay_out(self.model, &wish.system, std::slice::from_ref(&wish.passage), &Asked::default(), room)
                .ok();
            let Some((prompt, (upto, document))) = prompt.and_then(|prompt| Some((prompt.clone(), prompt.keep?))) else {
                return Some(Precomputed::Impossible);
            };
            if upto > self.longest_state {
                return Some(Precomputed::Impossible);
            }
            let key = self.keys.of(&prompt.tokens[..upto]);
            if cache.holds(document, &key) {
                return Some(Precomputed::Held);
            }
            if !cache.has_room(0) {
                return Some(Precomputed::NoRoom);
            }
            wish.begun = Some(Begun { prompt, upto, document, key, sequence: None });
        }
        let begun = wish.begun.as_mut()?;
        let sequence = match begun.sequence {
            Some(sequence) => sequence,
            None => {
                let cuts: Vec<usize> = begun.prompt.cuts.iter().copied().filter(|cut| *cut <= begun.upto).collect();
                let taken = self.sequences.take(&mut self.context, &begun.prompt.tokens, &cuts, begun.upto);
                let Some((sequence, _)) = taken else { return Some(Precomputed::Failed) };
                // Idle cells go first, so that the state is computed in the cells where a question would compute it. Another
                // order of cells rounds sums differently.
                self.sequences.drop_idle(&mut self.context);
                *begun.sequence.insert(sequence)
            }
        };
        let held = self.sequences.tokens(sequence).len();
        if held < begun.upto {
            let step = held..begun.prompt.next_cut(held);
            let tokens = begun.prompt.tokens[step.clone()].to_vec();
            let entry = |(token, position)| BatchEntry { token, position: position as u32, sequence, logits: false };
            let entries: Vec<BatchEntry> = tokens.iter().copied().zip(step).map(entry).collect();
            self.context.set_threads(self.tuner.threads());
            let given_up = || self.asked.load(Ordering::Relaxed);
            let mut result = self.context.decode_unless(&entries, &given_up);
            if result == Err(DecodeFailure::NoRoom) {
                self.sequences.drop_idle(&mut self.context);
                result = self.context.decode_unless(&entries, &given_up);
            }
            if result == Err(DecodeFailure::GivenUp) {
                return None;
            }
            if let Err(error) = result {
                log::warn!("precomputing a passage failed: {error}");
                self.forget();
                return Some(Precomputed::Failed);
            }
            self.sequences.extend(sequence, &tokens);
            return None;
        }
        let Some(bytes) = self.context.state(sequence, HEAD) else { return Some(Precomputed::Failed) };
        if !cache.has_room(bytes.len() as u64) {
            return Some(Precomputed::NoRoom);
        }
        // This is tried again while the writer's queue is full.
        cache.keep(begun.document, &begun.key, bytes, Reason::InAdvance).then_some(Precomputed::Kept)
    }
}
