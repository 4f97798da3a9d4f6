//! Fits the confidence of a retrieval: the probability that the library holds an answer.
//!
//! Examples come from labelled sets ([`from_sets`]) or from the library alone ([`from_library`]). [`fit`] is a plain logistic
//! regression, deterministic, so that the same questions give the same constants. [`judge`] measures a fit on unseen questions,
//! beside the constants in use.

use std::collections::BTreeSet;

use serde::Serialize;

use super::{Dataset, EvalError};
use library::ingest::embedded_text;
use library::retrieve::{Calibration, FEATURES, Features, Query, Retriever, sentences};
use library::store::{Chunk, Store, terms};
use llm::embed::Embedder;

/// Questions on many subjects; any library leaves most of them unanswered.
const FOREIGN: &str = include_str!("foreign.txt");
/// Chunks of the library that become questions.
const MADE_QUESTIONS: usize = 300;
/// Fewest terms of a sentence that becomes a question, and terms asked.
const SENTENCE_TERMS: usize = 6;

/// Features of questions with a known verdict.
#[derive(Clone, Debug, Default)]
pub struct Examples {
    /// The library holds an answer.
    pub answerable: Vec<Features>,
    /// Questions about another subject.
    pub foreign: Vec<Features>,
    /// Questions about the library's subject, without the documents that answer. Other documents may answer some of them.
    pub near: Vec<Features>,
}

/// How well some constants separate examples.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Measured {
    /// Area under the ROC curve, answerable against foreign questions.
    pub roc_auc: f64,
    /// The same against questions without their documents; `None` without such questions.
    pub roc_auc_near: Option<f64>,
    /// Mean log loss, both kinds weighing the same. A lower loss makes the confidence a better probability.
    pub log_loss: f64,
    /// Threshold that keeps 95 % of the answerable questions.
    pub threshold_at_95: f32,
    /// Share of the foreign questions refused at that threshold.
    pub refused_at_95: f64,
    /// Share of the answerable questions kept at the threshold in use.
    pub kept: f64,
    /// Share of the foreign questions refused at the threshold in use.
    pub refused: f64,
    /// Share of the questions without their documents refused at the threshold in use.
    pub refused_near: Option<f64>,
}

/// A fit beside the constants in use.
#[derive(Clone, Debug, Serialize)]
pub struct Judged {
    /// The constants fitted to all examples.
    pub calibration: Calibration,
    /// Answerable examples.
    pub answerable: usize,
    /// Examples on other subjects.
    pub foreign: usize,
    /// Examples without their documents.
    pub near: usize,
    /// The constants in use, on all examples.
    pub current: Measured,
    /// Fits of each half of the examples, measured on the other half.
    pub fitted: Measured,
}

impl Judged {
    /// Whether the fit is worth keeping: a better probability, and no worse separation. Questions that were `made` only resemble
    /// those that people ask, so their fit must be better by a quarter, as is a fit for another encoder.
    pub fn is_better(&self, made: bool) -> bool {
        let needed = if made { 0.75 } else { 1.0 };
        self.fitted.log_loss < needed * self.current.log_loss && self.fitted.roc_auc > self.current.roc_auc - 0.005
    }
}

/// Examples from labelled sets, each with the collection of its documents. Every question is asked to its own library, to the
/// other libraries, and to its own without the documents that answer. A single set has no others, so `foreign` questions are
/// asked instead. Calls `asked` for each question.
pub fn from_sets(
    sets: &[(Dataset, String)],
    foreign: &[String],
    retriever: &Retriever,
    asked: &mut dyn FnMut(),
) -> Result<Examples, EvalError> {
    let mut examples = Examples::default();
    for (own, (dataset, _)) in sets.iter().enumerate() {
        for question in dataset.judged() {
            for (library, (_, collection)) in sets.iter().enumerate() {
                let found = retriever.features(&query(&question.text, collection))?;
                if own == library {
                    examples.answerable.extend(found);
                    let near = Query { without: question.relevant(), ..query(&question.text, collection) };
                    examples.near.extend(retriever.features(&near)?);
                } else {
                    examples.foreign.extend(found);
                }
            }
            asked();
        }
    }
    if let [(_, collection)] = sets {
        for question in foreign {
            examples.foreign.extend(retriever.features(&query(question, collection))?);
        }
    }
    Ok(examples)
}

/// Examples from a collection alone, for owners without labelled questions.
///
/// Answerable questions come from sentences of chunks spread evenly over the documents. Half of them follow the inverse cloze
/// task (Lee, Chang and Toutanova 2019): a sentence is the question, and its chunk counts without it, embedded anew. The other
/// half are known items: every second content word of a sentence, in its order. The first kind is harder than people's questions,
/// the second easier. Foreign questions are asked unchanged; the library happens to answer a few, but the others outweigh them.
/// Calls `asked` for each question.
pub fn from_library(
    store: &Store,
    embedder: &Embedder,
    retriever: &Retriever,
    collection: &str,
    foreign: &[String],
    asked: &mut dyn FnMut(),
) -> Result<Examples, EvalError> {
    let mut examples = Examples::default();
    for (at, chunk) in spread(store, collection)?.into_iter().enumerate() {
        let Some((sentence, rest)) = cloze(&chunk.text) else { continue };
        // By pairs, so that both halves of `judge` contain both kinds.
        let found = if at % 4 < 2 {
            let title = store.document(collection, &chunk.document)?.map(|document| document.title).unwrap_or_default();
            let vector =
                embedder.embed(&[embedded_text(&title, &chunk.heading, &rest)]).map_err(EvalError::Embed)?.remove(0).vector;
            let changed = Chunk { text: rest, ..chunk };
            retriever.features_with(&query(&sentence, collection), &changed, &vector)?
        } else {
            retriever.features(&query(&every_second_word(&sentence), collection))?
        };
        examples.answerable.extend(found);
        asked();
    }
    for question in foreign {
        examples.foreign.extend(retriever.features(&query(question, collection))?);
        asked();
    }
    Ok(examples)
}

/// The foreign questions shipped with the program.
pub fn foreign_questions() -> Vec<String> {
    FOREIGN.lines().map(str::to_owned).collect()
}

/// At most [`MADE_QUESTIONS`] chunks that can become a question, evenly spread.
fn spread(store: &Store, collection: &str) -> Result<Vec<Chunk>, EvalError> {
    let mut usable: Vec<Chunk> = Vec::new();
    // Halves the density whenever twice as many as wanted are held, so memory stays bounded in any library.
    let (mut seen, mut step) = (0usize, 1usize);
    store.for_each_chunk(collection, &mut |chunk| {
        if cloze(&chunk.text).is_none() {
            return;
        }
        if seen.is_multiple_of(step) {
            usable.push(chunk);
        }
        seen += 1;
        if usable.len() >= 2 * MADE_QUESTIONS {
            let mut keep = false;
            usable.retain(|_| {
                keep = !keep;
                keep
            });
            step *= 2;
        }
    })?;
    let every = usable.len() as f64 / MADE_QUESTIONS as f64;
    if every <= 1.0 {
        return Ok(usable);
    }
    let chosen: BTreeSet<usize> = (0..MADE_QUESTIONS).map(|at| (at as f64 * every) as usize).collect();
    Ok(usable.into_iter().enumerate().filter(|(at, _)| chosen.contains(at)).map(|(_, chunk)| chunk).collect())
}

/// The middle one of a text's long sentences, and the text without it; `None` if the text has fewer than three.
fn cloze(text: &str) -> Option<(String, String)> {
    let says_enough = |sentence: &&str| terms::analyze(sentence, terms::Language::English).length >= SENTENCE_TERMS;
    let long: Vec<&str> = sentences(text).into_iter().map(|at| &text[at]).filter(says_enough).collect();
    if long.len() < 3 {
        return None;
    }
    let sentence = long[long.len() / 2];
    Some((sentence.to_owned(), text.replacen(sentence, "", 1)))
}

fn every_second_word(sentence: &str) -> String {
    let is_content = |word: &&str| !terms::analyze(word, terms::Language::English).terms.is_empty();
    sentence.split_whitespace().filter(is_content).step_by(2).collect::<Vec<_>>().join(" ")
}

fn query(text: &str, collection: &str) -> Query {
    Query { text: text.to_owned(), collection: collection.to_owned(), top_k: 1, ..Query::default() }
}

/// Fits the examples, and measures the fit and the `current` constants at the `threshold` in use.
pub fn judge(examples: &Examples, current: &Calibration, threshold: f32) -> Judged {
    let half = |of: &[Features], odd: usize| -> Vec<Features> { of.iter().skip(odd).step_by(2).copied().collect() };
    let of = |odd| [&examples.answerable, &examples.foreign, &examples.near].map(|of| half(of, odd));
    let halves = [0, 1].map(|odd| {
        let [answerable, foreign, near] = of(odd);
        fit(&Examples { answerable, foreign, near })
    });
    let held_out = |of: &[Features]| of.iter().enumerate().map(|(at, f)| halves[(at + 1) % 2].confidence(f)).collect();
    let now = |of: &[Features]| of.iter().map(|f| current.confidence(f)).collect();
    Judged {
        calibration: fit(examples),
        answerable: examples.answerable.len(),
        foreign: examples.foreign.len(),
        near: examples.near.len(),
        current: measure(examples, &now, threshold),
        fitted: measure(examples, &held_out, threshold),
    }
}

fn measure(examples: &Examples, confidence: &dyn Fn(&[Features]) -> Vec<f32>, threshold: f32) -> Measured {
    let [answerable, foreign, near] = [&examples.answerable, &examples.foreign, &examples.near].map(|of| confidence(of));
    let loss = |scores: &[f32], is_there: bool| {
        let of = |score: f32| -f64::from(if is_there { score } else { 1.0 - score }).max(1e-6).ln();
        scores.iter().map(|score| of(*score)).sum::<f64>() / scores.len().max(1) as f64
    };
    let threshold_at_95 = kept_threshold(&answerable, 0.95);
    Measured {
        roc_auc: roc_auc(&answerable, &foreign),
        roc_auc_near: (!near.is_empty()).then(|| roc_auc(&answerable, &near)),
        log_loss: f64::midpoint(loss(&answerable, true), loss(&foreign, false)),
        threshold_at_95,
        refused_at_95: refused_share(&foreign, threshold_at_95),
        kept: 1.0 - refused_share(&answerable, threshold),
        refused: refused_share(&foreign, threshold),
        refused_near: (!near.is_empty()).then(|| refused_share(&near, threshold)),
    }
}

/// Steps of gradient descent; the features converge long before.
const STEPS: usize = 20_000;
const RATE: f64 = 1.0;
/// Ridge penalty on the weights of the standardised features; it keeps them finite if the classes separate.
const PENALTY: f64 = 1e-3;
/// Share of the answerable questions that a confidence of 0.5 keeps, where a fit has to tell near questions apart.
const KEPT: f64 = 0.95;

/// Logistic regression on standardised features by gradient descent. Both classes weigh the same, whatever their number of
/// examples, and so do foreign and near questions among the negatives. Near questions overlap with answerable ones, so with them
/// the bias is set by the share of the answerable that is kept.
pub fn fit(examples: &Examples) -> Calibration {
    let Examples { answerable, foreign, near } = examples;
    let negative = if near.is_empty() { 0.5 } else { 0.25 };
    let rows: Vec<([f64; FEATURES], f64, f64)> = [(answerable, 1.0, 0.5), (foreign, 0.0, negative), (near, 0.0, negative)]
        .into_iter()
        .flat_map(|(examples, label, share)| {
            let weight = share / examples.len().max(1) as f64;
            examples.iter().map(move |features| (features.values().map(f64::from), label, weight))
        })
        .collect();
    let mut mean = [0.0; FEATURES];
    let mut deviation = [0.0; FEATURES];
    for (values, _, weight) in &rows {
        for feature in 0..FEATURES {
            mean[feature] += weight * values[feature];
        }
    }
    for (values, _, weight) in &rows {
        for feature in 0..FEATURES {
            deviation[feature] += weight * (values[feature] - mean[feature]).powi(2);
        }
    }
    let deviation = deviation.map(|variance| variance.sqrt().max(1e-6));
    let (mut bias, mut weights) = (0.0, [0.0; FEATURES]);
    for _ in 0..STEPS {
        let mut bias_slope = 0.0;
        let mut slopes = weights.map(|weight| PENALTY * weight);
        for (values, label, weight) in &rows {
            let standard: [f64; FEATURES] = std::array::from_fn(|at| (values[at] - mean[at]) / deviation[at]);
            let sum: f64 = bias + standard.iter().zip(weights).map(|(value, weight)| value * weight).sum::<f64>();
            let error = weight * (1.0 / (1.0 + (-sum).exp()) - label);
            bias_slope += error;
            for feature in 0..FEATURES {
                slopes[feature] += error * standard[feature];
            }
        }
        bias -= RATE * bias_slope;
        for feature in 0..FEATURES {
            // Each feature is evidence for an answer, so a higher value never lowers the confidence.
            weights[feature] = (weights[feature] - RATE * slopes[feature]).max(0.0);
        }
    }
    let raw: [f64; FEATURES] = std::array::from_fn(|at| weights[at] / deviation[at]);
    let shift: f64 = raw.iter().zip(mean).map(|(weight, mean)| weight * mean).sum();
    let mut calibration = Calibration { bias: (bias - shift) as f32, weights: raw.map(|weight| weight as f32) };
    if !near.is_empty() {
        let scores: Vec<f32> = answerable.iter().map(|features| calibration.confidence(features)).collect();
        let least = kept_threshold(&scores, KEPT).clamp(1e-6, 1.0 - 1e-6);
        calibration.bias -= (least / (1.0 - least)).ln();
    }
    calibration
}

/// Area under the ROC curve: the chance that a positive scores above a negative; ties count half.
pub fn roc_auc(positives: &[f32], negatives: &[f32]) -> f64 {
    let mut sorted = negatives.to_vec();
    sorted.sort_unstable_by(f32::total_cmp);
    let wins: f64 = positives
        .iter()
        .map(|score| {
            let below = sorted.partition_point(|other| other < score);
            let not_above = sorted.partition_point(|other| other <= score);
            (below + not_above) as f64 / 2.0
        })
        .sum();
    wins / (positives.len() * negatives.len()).max(1) as f64
}

/// The highest threshold that at least `share` of the positives reach; 0 without positives.
pub fn kept_threshold(positives: &[f32], share: f64) -> f32 {
    let mut sorted = positives.to_vec();
    sorted.sort_unstable_by(|a, b| b.total_cmp(a));
    let kept = (sorted.len() as f64 * share).ceil() as usize;
    sorted.get(kept.saturating_sub(1)).copied().unwrap_or(0.0)
}

/// Share of the negatives below a threshold.
pub fn refused_share(negatives: &[f32], threshold: f32) -> f64 {
    negatives.iter().filter(|score| **score < threshold).count() as f64 / negatives.len().max(1) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fit_separates_separable_examples() {
        let feature = |dense: f32, noise: f32| Features { dense, coverage: noise, margin: 0.1, statement: dense, told: noise };
        let positives: Vec<Features> = (0..50u8).map(|n| feature(0.6 + f32::from(n) / 200.0, f32::from(n % 7) / 7.0)).collect();
        let negatives: Vec<Features> = (0..20u8).map(|n| feature(0.3 + f32::from(n) / 100.0, f32::from(n % 7) / 7.0)).collect();
        let examples = Examples { answerable: positives.clone(), foreign: negatives.clone(), near: Vec::new() };
        let calibration = fit(&examples);
        let scores = |examples: &[Features]| examples.iter().map(|features| calibration.confidence(features)).collect::<Vec<_>>();
        assert!(roc_auc(&scores(&positives), &scores(&negatives)) > 0.99);
        assert!(calibration.weights[0] > 0.0);
        assert!(calibration.confidence(&positives[49]) > 0.9 && calibration.confidence(&negatives[0]) < 0.1);
    }

    #[test]
    fn with_near_questions_half_keeps_nearly_all() {
        let feature = |told: f32| Features { dense: 0.5, coverage: told, margin: 0.1, statement: 0.5, told };
        let spread = |from: f32| (0..100u8).map(|n| feature(from + f32::from(n) / 200.0)).collect::<Vec<_>>();
        let examples = Examples { answerable: spread(0.4), foreign: spread(0.0), near: spread(0.3) };
        let calibration = fit(&examples);
        let kept = examples.answerable.iter().filter(|features| calibration.confidence(features) >= 0.4999).count();
        assert!((95..=96).contains(&kept), "{kept}");
    }

    #[test]
    fn a_fit_is_kept_only_where_it_is_better() {
        let feature = |dense: f32| Features { dense, coverage: 0.5, margin: 0.1, statement: 0.5, told: 0.5 };
        let examples = Examples {
            answerable: (0..40u8).map(|n| feature(0.80 + f32::from(n) / 400.0)).collect(),
            foreign: (0..40u8).map(|n| feature(0.60 + f32::from(n) / 400.0)).collect(),
            near: Vec::new(),
        };
        // Constants for an encoder with lower cosines: everything is an answer.
        let unfit = Calibration { bias: -5.0, weights: [20.0, 0.0, 0.0, 0.0, 0.0] };
        let judged = judge(&examples, &unfit, 0.5);
        assert!(judged.current.refused < 0.01 && judged.fitted.refused > 0.99, "{judged:?}");
        assert!(judged.is_better(true));
        let again = judge(&examples, &judged.calibration, 0.5);
        assert!(!again.is_better(true), "{again:?}");
    }

    #[test]
    fn made_questions_leave_their_sentence_out() {
        let text = "The controller watches the pressure in both heating circuits. It switches off the pump below half a bar \
                    to protect the bearings. Fill the circuit slowly and open every vent valve once.";
        let (sentence, rest) = cloze(text).unwrap_or_default();
        assert!(sentence.starts_with("It switches off") && !rest.contains(&sentence) && rest.contains("vent valve"));
        assert_eq!(every_second_word("The pump and the valve were both open"), "pump both");
        assert!(cloze("Too short. To ask. Anything.").is_none());
        assert!(foreign_questions().iter().all(|line| line.ends_with('?')) && foreign_questions().len() >= 100);
    }

    #[test]
    fn curves_by_hand() {
        assert!((roc_auc(&[0.9, 0.5], &[0.5, 0.1]) - 0.875).abs() < 1e-9);
        assert!((kept_threshold(&[0.9, 0.8, 0.7, 0.1], 0.75) - 0.7).abs() < 1e-6);
        assert!((refused_share(&[0.1, 0.7, 0.2, 0.3], 0.7) - 0.75).abs() < 1e-9);
    }
}
