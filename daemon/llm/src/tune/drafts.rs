//! Decides whether prompt lookup gains: guessing tokens and verifying several in one pass.
//!
//! A pass over `n` tokens takes hardly longer than one over a single token if decoding waits for memory. It takes nearly `n`
//! times as long if decoding waits for arithmetic. If each guess is right with the probability `a`, a pass with `k` guesses
//! yields 1+a+a²+…+aᵏ tokens (Leviathan et al. 2023, arXiv 2211.17192).

use std::time::Duration;

/// Tokens of the passes that are measured: one, and one with 1, 2, 4 and 8 guesses.
const WIDTHS: [usize; 5] = [1, 2, 3, 5, 9];
/// Most rounds of measurements.
const ROUNDS: usize = 7;
/// Probability that a guess is right after a right one: the lower of two measured strategies (`benches/results/answers.md`).
const RIGHT: f64 = 0.6;
/// Least gain that turns prompt lookup on: the figures are rough.
const WORTH: f64 = 1.05;

/// The time of a pass over some tokens.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Pass {
    /// Tokens.
    pub tokens: usize,
    /// Milliseconds, median.
    pub ms: f64,
}

/// Measures passes over one and several tokens. They take turns, so that a disturbance hits all. `measure` returns the time of a
/// pass, `elapsed` the time since the beginning. No round begins after `limit`, but the first one that counts always runs.
///
/// # Errors
/// The first error of `measure`.
pub fn verify<E>(
    limit: Duration,
    mut elapsed: impl FnMut() -> Duration,
    mut measure: impl FnMut(usize) -> Result<Duration, E>,
) -> Result<Vec<Pass>, E> {
    let mut series = [const { Vec::new() }; WIDTHS.len()];
    for round in 0..=ROUNDS {
        if round > 1 && elapsed() >= limit {
            break;
        }
        for (tokens, series) in WIDTHS.into_iter().zip(&mut series) {
            let taken = measure(tokens)?.as_secs_f64() * 1e3;
            // The first round only wakes the threads.
            if round > 0 {
                series.push(taken);
            }
        }
    }
    let median = |mut series: Vec<f64>| {
        series.sort_by(f64::total_cmp);
        series[series.len() / 2]
    };
    Ok(WIDTHS.into_iter().zip(series).map(|(tokens, series)| Pass { tokens, ms: median(series) }).collect())
}

/// Whether the figures are plausible.
pub(super) fn are_sound(passes: &[Pass]) -> bool {
    let ascending = passes.windows(2).all(|pair| pair[0].tokens < pair[1].tokens);
    passes.len() <= 64 && ascending && passes.iter().all(|pass| pass.tokens > 0 && pass.ms > 0.0 && pass.ms.is_finite())
}

/// The best number of guesses, and its gain.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Drafts {
    /// Tokens guessed at once.
    pub tokens: usize,
    /// Expected speed with guesses, as a multiple of the speed without.
    pub gain: f64,
}

impl Drafts {
    /// The best number of guesses by these measured passes; `None` without passes.
    pub fn of(passes: &[Pass]) -> Option<Self> {
        let single = passes.iter().find(|pass| pass.tokens == 1)?.ms;
        let gain = |pass: &Pass| (1.0 - RIGHT.powi(pass.tokens as i32)) / (1.0 - RIGHT) * single / pass.ms;
        let drafts = passes.iter().filter(|pass| pass.tokens > 1).map(|pass| Self { tokens: pass.tokens - 1, gain: gain(pass) });
        drafts.max_by(|a, b| a.gain.total_cmp(&b.gain))
    }

    /// Whether prompt lookup is worth it.
    pub fn gains(&self) -> bool {
        self.gain >= WORTH
    }
}

impl std::fmt::Display for Drafts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let on = if self.gains() { "on" } else { "off" };
        write!(f, "{on}: guessing {} tokens at once would give {:.2} times the speed", self.tokens, self.gain)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn passes(ms: impl Fn(usize) -> f64) -> Vec<Pass> {
        let measure = |tokens| Ok::<_, ()>(Duration::from_secs_f64(ms(tokens) / 1e3));
        verify(Duration::MAX, || Duration::ZERO, measure).expect("no error")
    }

    #[test]
    fn lookup_gains_if_memory_is_the_bottleneck() {
        // Eight more tokens take a tenth longer.
        let memory = Drafts::of(&passes(|tokens| 20.0 + 0.25 * (tokens - 1) as f64)).expect("measured");
        assert!(memory.gains() && memory.tokens >= 2 && (2.0..2.5).contains(&memory.gain), "{memory}");
        // Each token takes two thirds as long as the first.
        let arithmetic = Drafts::of(&passes(|tokens| 20.0 + 13.0 * (tokens - 1) as f64)).expect("measured");
        assert!(!arithmetic.gains() && arithmetic.tokens == 1, "{arithmetic}");
        assert!(memory.to_string().starts_with("on: ") && arithmetic.to_string().starts_with("off: "));
        assert_eq!(Drafts::of(&[]), None);
    }

    #[test]
    fn a_disturbed_pass_does_not_count() {
        let mut calls = 0;
        let disturbed = verify(
            Duration::MAX,
            || Duration::ZERO,
            |tokens| {
                calls += 1;
                let slow = if calls % 13 == 0 { 50.0 } else { 1.0 };
                Ok::<_, ()>(Duration::from_secs_f64(0.001 * tokens as f64 * slow))
            },
        );
        let disturbed = disturbed.expect("no error");
        assert!(disturbed.iter().all(|pass| (pass.ms - pass.tokens as f64).abs() < 1e-6), "{disturbed:?}");
        assert!(are_sound(&disturbed) && !are_sound(&[Pass { tokens: 1, ms: -1.0 }]));
        let second = Duration::from_secs(1);
        assert_eq!(verify(second, || Duration::ZERO, |_| Err("no")), Err("no"));
        // Without time left there is one round, after the one that wakes the threads.
        let mut calls = 0;
        let late = verify(
            second,
            || second,
            |_| {
                calls += 1;
                Ok::<_, ()>(second)
            },
        );
        assert_eq!((late.expect("no error").len(), calls), (WIDTHS.len(), 2 * WIDTHS.len()));
    }
}
