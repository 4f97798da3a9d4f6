//! States of passages, computed before anybody asks about them: step by step while no request waits or runs; a step is given up when
//! one comes.

use super::passages::{Key, Reason};
use super::prompt::{Prompt, Reading};
use super::scheduler::{CONTEXT_MARGIN, Scheduler};
use super::state_file::HEAD;
use crate::llama::{DecodeFailure, Entry};
use std::sync::atomic::Ordering;
use std::sync::mpsc::SyncSender;

/// What became of a passage's state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Precomputed {
    /// It was there already.
    Held,
    /// It is kept now.
    Kept,
    /// It was not kept, for another one would have had to go, or the disk is nearly full.
    NoRoom,
    /// It cannot be: the passage does not fit into the context or the model's window, or no states are kept at all.
    Impossible,
    /// The generator failed.
    Failed,
}

/// A state that is wished for.
pub(super) struct Wish {
    system: String,
    reading: Reading,
    reply: SyncSender<Precomputed>,
    begun: Option<Begun>,
}

/// How far one is.
struct Begun {
    prompt: Prompt,
    /// Tokens whose state is kept, and their document.
    upto: usize,
    document: u64,
    key: Key,
    /// Where it is computed; `None` while it is laid aside.
    sequence: Option<u32>,
}

impl Wish {
    pub(super) fn new(system: &str, reading: Reading, reply: SyncSender<Precomputed>) -> Self {
        Self { system: system.to_owned(), reading, reply, begun: None }
    }
}

impl Scheduler<'_> {
    /// Goes one step on with the state that is wished for, if there is one.
    pub(super) fn precompute(&mut self) {
        let Some(mut wish) = self.wish.take() else { return };
        match self.advance(&mut wish) {
            None => self.wish = Some(wish),
            Some(result) => {
                if let Some(sequence) = wish.begun.and_then(|begun| begun.sequence) {
                    // It is on disk now; the cells are for what is asked about.
                    self.sequences.discard(&mut self.context, sequence);
                }
                let _ = wish.reply.send(result);
            }
        }
    }

    /// Gives the sequence back, with what is in it as long as nobody needs the room. `for_good`: the wish is not fulfilled any more.
    pub(super) fn pause_precomputing(&mut self, for_good: bool) {
        if let Some(wish) = &mut self.wish
            && let Some(sequence) = wish.begun.as_mut().and_then(|begun| begun.sequence.take())
        {
            self.sequences.release(&mut self.context, sequence);
        }
        if for_good {
            self.wish = None;
        }
    }

    /// One step of a wish; what became of it, once that is clear.
    fn advance(&mut self, wish: &mut Wish) -> Option<Precomputed> {
        let Some(cache) = self.passages.clone() else { return Some(Precomputed::Impossible) };
        if wish.begun.is_none() {
            let room = self.cells - CONTEXT_MARGIN;
            let prompt = self.template.lay_out(self.model, &wish.system, &wish.reading, "", room).ok();
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
                // What was computed before a question came may still be there.
                let cuts: Vec<usize> = begun.prompt.cuts.iter().copied().filter(|cut| *cut <= begun.upto).collect();
                let taken = self.sequences.take(&mut self.context, &begun.prompt.tokens, &cuts, begun.upto);
                let Some((sequence, _)) = taken else { return Some(Precomputed::Failed) };
                *begun.sequence.insert(sequence)
            }
        };
        let held = self.sequences.tokens(sequence).len();
        if held < begun.upto {
            let step = held..begun.prompt.next_cut(held);
            let tokens = begun.prompt.tokens[step.clone()].to_vec();
            let entry = |(token, position)| Entry { token, position: position as u32, sequence, logits: false };
            let entries: Vec<Entry> = tokens.iter().copied().zip(step).map(entry).collect();
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
                log::warn!("computing a passage in advance failed: {error}");
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
        cache.keep(begun.document, &begun.key, bytes, Reason::InAdvance);
        Some(Precomputed::Kept)
    }
}
