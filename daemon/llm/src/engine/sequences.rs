//! The sequences of the KV cache: their tokens, and the prefixes that the next prompt can reuse.
//!
//! Sequence 0 holds the system prompt for good. Lanes take the other sequences. Their contents stay until the next question has
//! reused their prefixes: people ask about the same page again.

use crate::llama::Context;
use llama_cpp_2::token::LlamaToken;

/// The sequence of the system prompt.
pub(super) const SYSTEM: u32 = 0;

#[derive(Debug, Default)]
struct Held {
    tokens: Vec<LlamaToken>,
    /// A lane uses it.
    busy: bool,
    /// Time of last use, counted in uses.
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

    /// Cells for all lanes together: all but the system prompt's.
    pub(super) fn room(&self) -> usize {
        self.cells.saturating_sub(self.held[SYSTEM as usize].tokens.len())
    }

    /// Length of the longest prefix of `tokens` that ends at one of `cuts` and stands in a sequence. See [`Sequences::take`].
    pub(super) fn longest(&self, tokens: &[LlamaToken], cuts: &[usize]) -> usize {
        if !self.divisible {
            return 0;
        }
        self.held.iter().map(|held| usable(held, tokens, cuts)).max().unwrap_or(0)
    }

    /// Takes a free sequence and fills it with the longest usable prefix of `tokens` that ends at one of `cuts`. `None` when all
    /// sequences are busy. The last token is never reused: its logits are needed.
    ///
    /// `reserved`: cells that all running lanes need, the new one included.
    pub(super) fn take(
        &mut self,
        context: &mut Context<'_>,
        tokens: &[LlamaToken],
        cuts: &[usize],
        reserved: usize,
    ) -> Option<(u32, usize)> {
        let free = (1..self.held.len()).filter(|i| !self.held[*i].busy).min_by_key(|i| {
            // Empty sequences first, then the least recently used.
            (!self.held[*i].tokens.is_empty(), self.held[*i].used)
        })?;
        let best = if self.divisible {
            // A sliding window may have given away the first cells of a sequence.
            let whole = |i: &usize| self.held[*i].tokens.is_empty() || context.first_position(*i as u32) == Some(0);
            // Prefer the system prompt's own sequence: a state loaded beside others brings a copy in other cells.
            let order = |(n, i): &(usize, usize)| (*n, *i == SYSTEM as usize, *i == free);
            (0..self.held.len()).filter(whole).map(|i| (usable(&self.held[i], tokens, cuts), i)).max_by_key(order)
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

    /// Replaces the contents of a taken sequence by a state. Alone, the state's system prompt replaces sequence 0, so that no
    /// cells are taken twice and each lies where it would be computed. If that fails, sequence 0 is empty too. Other busy
    /// sequences share the cells of sequence 0; then the state brings its own copy.
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
            // We count no tokens in it, but llama.cpp may hold some.
            context.truncate(sequence, 0);
        }
        whole
    }

    /// Truncates a busy sequence after `upto` tokens; `false` where llama.cpp cannot.
    pub(super) fn truncate(&mut self, context: &mut Context<'_>, sequence: u32, upto: usize) -> bool {
        self.held[sequence as usize].tokens.truncate(upto);
        context.truncate(sequence, upto)
    }

    /// Releases a sequence; its contents stay while there is room.
    pub(super) fn release(&mut self, context: &mut Context<'_>, sequence: u32) {
        self.uses += 1;
        let held = &mut self.held[sequence as usize];
        held.busy = false;
        held.used = self.uses;
        if !self.divisible {
            self.empty(context, sequence as usize);
        }
    }

    /// Releases a sequence and empties it.
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

    /// Drops idle contents, the oldest first, until `reserved` cells fit.
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

    /// Drops all idle contents.
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

/// Length of the longest common beginning that ends at one of `cuts`. The last token is never reused: its logits are needed.
fn usable(held: &Held, tokens: &[LlamaToken], cuts: &[usize]) -> usize {
    let common = held.tokens.iter().zip(tokens).take_while(|(a, b)| a == b).count();
    let common = common.min(tokens.len().saturating_sub(1));
    cuts.iter().copied().filter(|cut| *cut <= common).max().unwrap_or(0)
}
