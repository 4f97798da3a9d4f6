//! A lane: one passage set of one question, as a prompt in one sequence and the model's answer to it.

use super::Finish;
use super::prompt::Prompt;
use super::text::TextStream;
use llama_cpp_2::token::LlamaToken;
use llama_cpp_2::vocab::LlamaVocab;
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

/// ln of the probability that the softmax of `logits` gives to `token`.
fn log_probability(logits: &[f32], token: LlamaToken) -> f64 {
    let highest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|logit| f64::from((logit - highest).exp())).sum();
    let own = logits.get(token.0 as usize).copied().unwrap_or(f32::NEG_INFINITY);
    f64::from(own - highest) - sum.ln()
}

/// The likeliest tokens with their logits, for the log: they show how close the choice was where two builds differ.
fn likeliest(logits: &[f32]) -> String {
    let mut order: Vec<(usize, f32)> = logits.iter().copied().enumerate().collect();
    order.sort_unstable_by(|a, b| b.1.total_cmp(&a.1));
    order.iter().take(5).map(|(token, logit)| format!(" {token}:{logit}")).collect()
}

/// A running sequence.
pub(super) struct Lane {
    /// Index of its passage set in the request.
    pub(super) set: usize,
    pub(super) sequence: u32,
    pub(super) prompt: Prompt,
    /// Tokens of the prompt that were reused from the KV cache.
    pub(super) reused: usize,
    chooser: Chooser,
    stream: TextStream,
    pub(super) said: Vec<LlamaToken>,
    /// Text of the answer that has not been sent yet.
    pub(super) unsent: String,
    /// The token that was chosen and not computed yet.
    pub(super) next: Option<LlamaToken>,
    /// Sum of log probabilities of the answer; kept only where passage sets compete.
    log_probability: Option<f64>,
    pub(super) finish: Option<Finish>,
    /// The state of its passage was computed and has yet to be written to disk.
    pub(super) unkept: bool,
    /// Its sequence has been released.
    pub(super) released: bool,
}

impl Lane {
    pub(super) fn new(set: usize, sequence: u32, prompt: Prompt, reused: usize, sampling: &Sampling, stops: Vec<String>) -> Self {
        Self {
            set,
            sequence,
            prompt,
            reused,
            chooser: Chooser::new(sampling),
            stream: TextStream::new(stops),
            said: vec![],
            unsent: String::new(),
            next: None,
            log_probability: None,
            finish: None,
            unkept: false,
            released: false,
        }
    }

    /// Whether the likeliest token is chosen every time.
    pub(super) fn is_greedy(&self) -> bool {
        matches!(self.chooser, Chooser::Greedy)
    }

    /// Makes the lane sum up the log probabilities of its answer.
    pub(super) fn weighed(mut self) -> Self {
        self.log_probability = Some(0.0);
        self
    }

    /// The answer so far.
    pub(super) fn text(&self) -> &str {
        self.stream.text()
    }

    /// Mean ln probability of a token.
    pub(super) fn likelihood(&self) -> f64 {
        self.log_probability.unwrap_or(0.0) / self.said.len().max(1) as f64
    }

    /// Takes the logits after the prompt or the last token and advances by one token. `room`: whether another token can be
    /// computed after this one.
    pub(super) fn advance(&mut self, logits: &[f32], vocab: &LlamaVocab, max_tokens: usize, room: bool) {
        let token = self.chooser.choose(logits);
        log::trace!("passage set {} says {}; likeliest:{}", self.set, token.0, likeliest(logits));
        if let Some(sum) = &mut self.log_probability {
            *sum += log_probability(logits, token);
        }
        if vocab.is_eog(token) {
            // The end token counts in the likelihood, but is no text.
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
    fn probabilities_are_those_of_the_softmax() {
        let logits = [0.0, 1.0, 3.0, f32::NEG_INFINITY];
        let all: f64 = (0..4).map(|i| log_probability(&logits, LlamaToken(i)).exp()).sum();
        assert!((all - 1.0).abs() < 1e-6);
        assert!((log_probability(&logits, LlamaToken(2)) - (-0.169_85)).abs() < 1e-4);
        assert_eq!(greedy(&logits), 2);
        assert_eq!(greedy(&[2.0, 2.0]), 0);
    }
}
