//! Which sequence of the KV cache holds which tokens, and what of it the next prompt can begin with.
//!
//! Sequence 0 holds the system prompt for good. The others are taken by the lanes of questions at work; when those are done, their
//! contents stay until the next question has taken up what it can use of them, for people ask about the same page again.

use crate::llama::Context;
use llama_cpp_2::token::LlamaToken;

/// The sequence of the system prompt.
pub(super) const SYSTEM: u32 = 0;

#[derive(Debug, Default)]
struct Held {
    tokens: Vec<LlamaToken>,
    /// A lane works on it.
    busy: bool,
    /// When it was used last, in uses.
    used: u64,
}

/// The sequences of one context.
#[derive(Debug)]
pub(super) struct Sequences {
    held: Vec<Held>,
    uses: u64,
    /// Cells of all sequences together.
    cells: usize,
    /// Whether prefixes can be cut off and copied; recurrent models cannot.
    divisible: bool,
}

impl Sequences {
    /// `count` sequences with `cells` together, sequence [`SYSTEM`] among them.
    pub(super) fn new(count: usize, cells: usize, divisible: bool) -> Self {
        let mut held: Vec<Held> = std::iter::repeat_with(Held::default).take(count).collect();
        held[SYSTEM as usize].busy = true;
        Self { held, uses: 0, cells, divisible }
    }

    /// Tokens that a sequence holds.
    pub(super) fn tokens(&self, sequence: u32) -> &[LlamaToken] {
        &self.held[sequence as usize].tokens
    }

    /// Notes that tokens have been computed at the end of a sequence.
    pub(super) fn extend(&mut self, sequence: u32, tokens: &[LlamaToken]) {
        self.held[sequence as usize].tokens.extend_from_slice(tokens);
    }

    /// Cells that lanes can have together: all but the system prompt's.
    pub(super) fn room(&self) -> usize {
        self.cells.saturating_sub(self.held[SYSTEM as usize].tokens.len())
    }

    /// Gives a free sequence that holds the longest usable beginning of `tokens`, one of `cuts` long at most, or `None` when all
    /// are at work. The last token is never among what is reused: its logits are what comes next.
    ///
    /// `reserved`: cells that lanes at work, the new one included, will need.
    pub(super) fn take(
        &mut self,
        context: &mut Context<'_>,
        tokens: &[LlamaToken],
        cuts: &[usize],
        reserved: usize,
    ) -> Option<(u32, usize)> {
        let free = (1..self.held.len()).filter(|i| !self.held[*i].busy).min_by_key(|i| {
            // Empty ones first, then the oldest.
            (!self.held[*i].tokens.is_empty(), self.held[*i].used)
        })?;
        let usable = |held: &Held| {
            let common = held.tokens.iter().zip(tokens).take_while(|(a, b)| a == b).count();
            let common = common.min(tokens.len().saturating_sub(1));
            cuts.iter().copied().filter(|cut| *cut <= common).max().unwrap_or(0)
        };
        let best = if self.divisible {
            // Of a window that has gone on, llama.cpp may have given the first cells away.
            let whole = |i: &usize| self.held[*i].tokens.is_empty() || context.first_position(*i as u32) == Some(0);
            // The system prompt from its own place: a state that was loaded beside others has brought one that lies elsewhere.
            let order = |(n, i): &(usize, usize)| (*n, *i == SYSTEM as usize, *i == free);
            (0..self.held.len()).filter(whole).map(|i| (usable(&self.held[i]), i)).max_by_key(order)
        } else {
            None
        };
        let mut reused = 0;
        match best {
            Some((upto, from)) if upto > 0 => {
                self.uses += 1;
                self.held[from].used = self.uses;
                if from != free {
                    self.empty(context, free);
                    context.copy(from as u32, free as u32, upto);
                    self.held[free].tokens = tokens[..upto].to_vec();
                    reused = upto;
                } else if context.truncate(free as u32, upto) {
                    self.held[free].tokens.truncate(upto);
                    reused = upto;
                } else {
                    self.empty(context, free);
                }
            }
            _ => self.empty(context, free),
        }
        self.held[free].busy = true;
        self.make_room(context, reserved);
        Some((free as u32, reused))
    }

    /// Puts a state into a taken sequence, in place of what it held. Where no other is at work, the system prompt it begins with takes the
    /// place of ours, so that it stands where it would stand if it were computed, and no cells are taken twice; when that
    /// fails, ours is gone as well. Beside others, who share the cells of ours, it brings its own.
    pub(super) fn restore(&mut self, context: &mut Context<'_>, sequence: u32, tokens: &[LlamaToken], state: &[u8]) -> bool {
        self.empty(context, sequence as usize);
        let system = self.held[SYSTEM as usize].tokens.len();
        let alone = (1..self.held.len()).all(|i| i == sequence as usize || !self.held[i].busy);
        let shared = alone && system > 0 && tokens.starts_with(&self.held[SYSTEM as usize].tokens);
        if shared {
            context.truncate(SYSTEM, 0);
        }
        let whole = context.restore(sequence, state)
            && context.first_position(sequence) == Some(0)
            && context.last_position(sequence).map(|last| last + 1) == Some(tokens.len());
        if whole {
            self.held[sequence as usize].tokens = tokens.to_vec();
            if shared {
                context.copy(sequence, SYSTEM, system);
            }
        } else {
            if shared {
                self.held[SYSTEM as usize].tokens.clear();
            }
            // We hold no tokens in it, llama.cpp may.
            context.truncate(sequence, 0);
        }
        whole
    }

    /// Cuts a sequence at work off after `upto` tokens; `false` where llama.cpp cannot.
    pub(super) fn truncate(&mut self, context: &mut Context<'_>, sequence: u32, upto: usize) -> bool {
        self.held[sequence as usize].tokens.truncate(upto);
        context.truncate(sequence, upto)
    }

    /// Gives a sequence back; its contents stay while there is room.
    pub(super) fn release(&mut self, context: &mut Context<'_>, sequence: u32) {
        self.uses += 1;
        let held = &mut self.held[sequence as usize];
        held.busy = false;
        held.used = self.uses;
        if !self.divisible {
            self.empty(context, sequence as usize);
        }
    }

    /// Gives a sequence back with nothing in it.
    pub(super) fn discard(&mut self, context: &mut Context<'_>, sequence: u32) {
        self.empty(context, sequence as usize);
        self.held[sequence as usize].busy = false;
    }

    /// Forgets everything, after a failure.
    pub(super) fn clear(&mut self, context: &mut Context<'_>) {
        context.clear();
        for held in &mut self.held {
            held.tokens.clear();
        }
    }

    /// Drops kept contents, the oldest first, until `reserved` cells fit beside what is left.
    fn make_room(&mut self, context: &mut Context<'_>, reserved: usize) {
        loop {
            let kept: usize = self.idle().map(|i| self.held[i].tokens.len()).sum();
            if kept + reserved <= self.room() {
                return;
            }
            let Some(oldest) = self.idle().min_by_key(|i| self.held[*i].used) else { return };
            self.empty(context, oldest);
        }
    }

    /// Drops all kept contents.
    pub(super) fn drop_idle(&mut self, context: &mut Context<'_>) {
        for i in self.idle().collect::<Vec<_>>() {
            self.empty(context, i);
        }
    }

    fn idle(&self) -> impl Iterator<Item = usize> {
        (1..self.held.len()).filter(|i| !self.held[*i].busy && !self.held[*i].tokens.is_empty())
    }

    fn empty(&mut self, context: &mut Context<'_>, i: usize) {
        if !self.held[i].tokens.is_empty() {
            context.truncate(i as u32, 0);
            self.held[i].tokens.clear();
        }
    }
}
