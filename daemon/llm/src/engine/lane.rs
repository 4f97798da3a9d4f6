//! A lane: the prompt of one question in one sequence, and the model's answer to it.

use super::Finish;
use super::copying::Copier;
use super::prompt::Prompt;
use super::text::TextStream;
use llama_cpp_2::model::LlamaModel;
use llama_cpp_2::token::LlamaToken;
use wire::Sampling;

/// How the next token is chosen from logits.
pub(super) enum Chooser {
    /// The likeliest.
    Greedy,
    /// Sampled within bounds. llama.cpp's samplers do the same, but go through the whole vocabulary for each token. That took a
    /// tenth of the time with a model of 262,144 tokens.
    Chance(Sampling, fastrand::Rng),
}

impl Chooser {
    pub(super) fn new(sampling: &Sampling) -> Self {
        if sampling.temperature <= 0.0 {
            return Self::Greedy;
        }
        Self::Chance(sampling.clone(), fastrand::Rng::with_seed(sampling.seed.into()))
    }

    fn choose(&mut self, logits: &[f32]) -> LlamaToken {
        LlamaToken(match self {
            Self::Greedy => greedy(logits) as i32,
            Self::Chance(sampling, random) => by_chance(logits, sampling, random) as i32,
        })
    }
}

/// Largest difference of logits to the likeliest token; tokens farther away are never sampled.
const FARTHEST: f32 = 20.0;

/// Samples among the tokens that `top_p` and `min_p` leave, with the probabilities that the temperature gives them.
fn by_chance(logits: &[f32], sampling: &Sampling, random: &mut fastrand::Rng) -> usize {
    let highest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let least = highest + sampling.min_p.ln().max(-FARTHEST);
    let mut left: Vec<(usize, f32)> =
        logits.iter().enumerate().filter(|(_, logit)| **logit >= least).map(|(token, logit)| (token, logit - highest)).collect();
    if sampling.top_p < 1.0 {
        left.sort_unstable_by(|a, b| b.1.total_cmp(&a.1));
        // `top_p` is a share of all tokens, those below `min_p` included.
        let all: f32 = logits.iter().map(|logit| (logit - highest).exp()).sum();
        // The likeliest token always stays.
        let wanted = (sampling.top_p * all).max(f32::MIN_POSITIVE);
        let mut mass = 0.0;
        left.retain(|(_, logit)| {
            let before = mass;
            mass += logit.exp();
            before < wanted
        });
    }
    let weight = |logit: f32| (logit / sampling.temperature).exp();
    let mut drawn = random.f32() * left.iter().map(|(_, logit)| weight(*logit)).sum::<f32>();
    for (token, logit) in &left {
        drawn -= weight(*logit);
        if drawn < 0.0 {
            return *token;
        }
    }
    left.first().map_or_else(|| greedy(logits), |(token, _)| *token)
}

/// The first of the largest.
fn greedy(logits: &[f32]) -> usize {
    let mut best = (0, f32::NEG_INFINITY);
    for (i, logit) in logits.iter().enumerate() {
        if *logit > best.1 {
            best = (i, *logit);
        }
    }
    best.0
}

/// ln of the sum of the exponentials of logits: up to a constant, ln of the probability of their tokens together.
pub(super) fn log_sum(logits: impl Iterator<Item = f32> + Clone) -> f64 {
    let highest = logits.clone().map(f64::from).fold(f64::MIN, f64::max);
    highest + logits.map(|logit| (f64::from(logit) - highest).exp()).sum::<f64>().ln()
}

/// The likeliest tokens with their logits, for the log: they show how close the choice was where two builds differ.
fn likeliest(logits: &[f32]) -> String {
    let mut order: Vec<(usize, f32)> = logits.iter().copied().enumerate().collect();
    order.sort_unstable_by(|a, b| b.1.total_cmp(&a.1));
    order.iter().take(5).map(|(token, logit)| format!(" {token}:{logit}")).collect()
}

/// A running sequence.
pub(super) struct Lane {
    pub(super) sequence: u32,
    pub(super) prompt: Prompt,
    /// Tokens of the prompt that were reused from the KV cache.
    pub(super) reused: usize,
    chooser: Chooser,
    /// Chooses instead, for an answer that is copied.
    copier: Option<Copier>,
    stream: TextStream,
    pub(super) said: Vec<LlamaToken>,
    /// Text of the answer that has not been sent yet.
    pub(super) unsent: String,
    /// The token that was chosen and not computed yet.
    pub(super) next: Option<LlamaToken>,
    /// Tokens that begin the words of two groups, and ln of the odds of the first group once it is known.
    choices: Option<[Vec<LlamaToken>; 2]>,
    pub(super) preference: Option<f64>,
    pub(super) finish: Option<Finish>,
    /// The state of its passage was computed and has yet to be written to disk.
    pub(super) unkept: bool,
}

impl Lane {
    pub(super) fn new(sequence: u32, prompt: Prompt, reused: usize, sampling: &Sampling, stops: Vec<String>) -> Self {
        Self {
            sequence,
            prompt,
            reused,
            chooser: Chooser::new(sampling),
            copier: None,
            stream: TextStream::new(stops),
            said: vec![],
            unsent: String::new(),
            next: None,
            choices: None,
            preference: None,
            finish: None,
            unkept: false,
        }
    }

    /// Whether the likeliest token is chosen every time.
    pub(super) fn is_greedy(&self) -> bool {
        matches!(self.chooser, Chooser::Greedy)
    }

    /// Makes the lane compare two groups of first tokens.
    pub(super) fn comparing(mut self, choices: [Vec<LlamaToken>; 2]) -> Self {
        self.choices = Some(choices);
        self
    }

    /// Makes the lane copy its answer.
    pub(super) fn copying(mut self, copier: Copier) -> Self {
        self.copier = Some(copier);
        self
    }

    /// See [`super::Completion::certainty`].
    pub(super) fn certainty(&self) -> Option<f64> {
        self.copier.as_ref().and_then(Copier::certainty)
    }

    /// The answer so far.
    pub(super) fn text(&self) -> &str {
        self.stream.text()
    }

    /// Takes the logits after the prompt or the last token and advances by one token. `room`: whether another token can be
    /// computed after this one.
    pub(super) fn advance(&mut self, logits: &[f32], model: &LlamaModel, max_tokens: usize, room: bool) {
        let vocab = model.vocab();
        let token = match &mut self.copier {
            None => self.chooser.choose(logits),
            Some(copier) => match copier.choose(model, logits) {
                Some(token) => token,
                None => return self.end(Finish::Stop),
            },
        };
        log::trace!("says {}; likeliest:{}", token.0, likeliest(logits));
        if let Some([first, second]) = self.choices.take() {
            let own = |tokens: &[LlamaToken]| log_sum(tokens.iter().filter_map(|token| logits.get(token.0 as usize)).copied());
            self.preference = Some(own(&first) - own(&second));
        }
        if vocab.is_eog(token) {
            return self.end(Finish::Stop);
        }
        let mut piece = Vec::with_capacity(16);
        vocab.token_to_piece_into(token, &mut piece, false, None);
        let delta = self.stream.push(&piece);
        self.unsent.push_str(&delta);
        self.said.push(token);
        if self.stream.stopped() || goes_in_circles(&self.said) {
            self.end(Finish::Stop);
        } else if self.said.len() >= max_tokens || !room {
            self.end(Finish::Length);
        } else {
            self.next = Some(token);
        }
    }

    /// Ends the lane and flushes the held text.
    pub(super) fn end(&mut self, finish: Finish) {
        if self.finish.is_none() {
            self.finish = Some(finish);
            self.next = None;
            let rest = self.stream.finish();
            self.unsent.push_str(&rest);
        }
    }
}

/// Whether an answer repeats itself, as small models do when they decode greedily. Its end is then four or more copies of one run
/// of up to 24 tokens, 16 tokens in all.
fn goes_in_circles<T: PartialEq>(said: &[T]) -> bool {
    (1..=24).any(|period| {
        let length = (4 * period).max(16);
        said.len() >= length && said[said.len() - length..].windows(period + 1).all(|window| window[0] == window[period])
    })
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

    /// The share of each token in 20,000 choices.
    fn shares(logits: &[f32], temperature: f32, top_p: f32, min_p: f32) -> Vec<f64> {
        let mut chooser = Chooser::new(&Sampling { temperature, top_p, min_p, seed: 7 });
        let mut counts = vec![0; logits.len()];
        (0..20_000).for_each(|_| counts[chooser.choose(logits).0 as usize] += 1);
        counts.into_iter().map(|count| f64::from(count) / 20_000.0).collect()
    }

    #[test]
    fn sampling_follows_the_bounded_probabilities() {
        // Probabilities 0.1, 0.6, 0.3, 0.
        let logits = [0.1_f32.ln(), 0.6_f32.ln(), f32::NEG_INFINITY, 0.3_f32.ln()];
        let near = |shares: Vec<f64>, expected: [f64; 4]| {
            assert!(shares.iter().zip(expected).all(|(a, b)| (a - b).abs() < 0.015), "{shares:?} {expected:?}");
        };
        near(shares(&logits, 1.0, 1.0, 0.0), [0.1, 0.6, 0.0, 0.3]);
        near(shares(&logits, 0.5, 1.0, 0.0), [0.01 / 0.46, 0.36 / 0.46, 0.0, 0.09 / 0.46]);
        // The smallest set that reaches `top_p`, the token that crosses it included.
        near(shares(&logits, 1.0, 0.7, 0.0), [0.0, 2.0 / 3.0, 0.0, 1.0 / 3.0]);
        near(shares(&logits, 1.0, 0.5, 0.0), [0.0, 1.0, 0.0, 0.0]);
        near(shares(&logits, 1.0, 0.0, 0.0), [0.0, 1.0, 0.0, 0.0]);
        near(shares(&logits, 1.0, 1.0, 0.4), [0.0, 2.0 / 3.0, 0.0, 1.0 / 3.0]);
        near(shares(&logits, 5.0, 1.0, 1.0), [0.0, 1.0, 0.0, 0.0]);
        let once = |seed| {
            let mut chooser = Chooser::new(&Sampling { temperature: 1.0, top_p: 0.9, min_p: 0.0, seed });
            (0..50).map(|_| chooser.choose(&logits).0).collect::<Vec<_>>()
        };
        assert_eq!(once(3), once(3));
        assert_ne!(once(3), once(4));
    }

    #[test]
    fn strange_logits_end_in_a_token() {
        for logits in [vec![f32::NAN; 3], vec![f32::NEG_INFINITY; 3], vec![f32::INFINITY, 0.0], vec![0.0]] {
            let mut chooser = Chooser::new(&Sampling { temperature: 1.0, top_p: 0.9, min_p: 0.05, seed: 1 });
            assert!((chooser.choose(&logits).0 as usize) < logits.len(), "{logits:?}");
        }
    }

    #[test]
    fn groups_of_tokens_are_weighed_together() {
        let logits = [0.0, 1.0, 3.0, f32::NEG_INFINITY];
        assert!((log_sum(logits[..2].iter().copied()) - (1.0 + 1.0_f64.exp()).ln()).abs() < 1e-6);
        assert!((log_sum(logits[2..].iter().copied()) - 3.0).abs() < 1e-6);
        assert!(log_sum(std::iter::empty()) < log_sum(logits.iter().copied()), "no token at all");
        assert_eq!(greedy(&logits), 2);
        assert_eq!(greedy(&[2.0, 2.0]), 0);
    }
}
