//! The speed of reading prompts, in tokens per second. It decides how much a model reads within the asker's patience.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

/// Fewer tokens in a batch say little about the speed of reading.
const LEAST_TOKENS: usize = 32;

/// Weight of the newest batch in the moving average.
const NEWEST: f32 = 0.3;

/// The measured speed, shared between the owner thread and its callers.
#[derive(Debug, Clone, Default)]
pub struct ReadingSpeed(Arc<AtomicU32>);

impl ReadingSpeed {
    /// Tokens per second; `None` before a batch was read.
    pub fn tokens_per_second(&self) -> Option<f32> {
        Some(f32::from_bits(self.0.load(Ordering::Relaxed))).filter(|speed| *speed > 0.0)
    }

    /// Takes in a batch of prompt tokens.
    pub(super) fn observe(&self, tokens: usize, elapsed: Duration) {
        if tokens < LEAST_TOKENS || elapsed.is_zero() {
            return;
        }
        let now = tokens as f32 / elapsed.as_secs_f32();
        let speed = self.tokens_per_second().map_or(now, |before| before + NEWEST * (now - before));
        self.0.store(speed.to_bits(), Ordering::Relaxed);
    }

    /// Tokens that are read within `patience` beside `others` requests. Before the first measurement nothing is known, and
    /// everything is read.
    pub(super) fn budget(&self, patience: Duration, others: usize) -> usize {
        let share = |speed: f32| (patience.as_secs_f32() * speed / (others + 1) as f32) as usize;
        self.tokens_per_second().map_or(usize::MAX, share)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_budget_follows_the_measured_speed() {
        let speed = ReadingSpeed::default();
        assert_eq!(speed.budget(Duration::from_secs(1), 0), usize::MAX);
        speed.observe(LEAST_TOKENS - 1, Duration::from_secs(1));
        assert_eq!(speed.tokens_per_second(), None, "too few tokens");
        speed.observe(100, Duration::from_secs(1));
        assert_eq!(speed.budget(Duration::from_secs(3), 0), 300);
        assert_eq!(speed.budget(Duration::from_secs(3), 2), 100, "others read too");
        (0..50).for_each(|_| speed.observe(100, Duration::from_secs(2)));
        assert!((49..=51).contains(&speed.budget(Duration::from_secs(1), 0)));
    }
}
