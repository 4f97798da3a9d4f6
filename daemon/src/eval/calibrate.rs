//! Fits the confidence of a retrieval: which scores mean that the library holds an answer.
//!
//! Positives are questions asked to the library that answers them, negatives questions asked to a foreign library.
//! [`fit`] is a plain logistic regression, deterministic, so that the same questions give the same constants.

use serde::Serialize;

use super::Dataset;
use crate::retrieve::{Calibration, Features, Query, RetrieveError, Retriever};

/// A fit and how well it tells its own examples apart.
#[derive(Clone, Debug, Serialize)]
pub struct Calibrated {
    /// The fitted constants.
    pub calibration: Calibration,
    /// Questions asked to the library that answers them.
    pub positives: usize,
    /// Questions asked to a foreign library.
    pub negatives: usize,
    /// Area under the ROC curve.
    pub roc_auc: f64,
    /// Threshold that keeps 95 % of the positives.
    pub threshold_at_95: f32,
    /// Share of the negatives that threshold refuses.
    pub refused_at_95: f64,
}

/// Asks the questions of each set to every library: `sets` are at least two, each with the collection that holds it.
pub fn calibrate(sets: &[(&Dataset, &str)], retriever: &Retriever) -> Result<Calibrated, RetrieveError> {
    let (mut positives, mut negatives) = (Vec::new(), Vec::new());
    for (asked, (dataset, _)) in sets.iter().enumerate() {
        for (library, (_, collection)) in sets.iter().enumerate() {
            let examples = if asked == library { &mut positives } else { &mut negatives };
            for question in &dataset.queries {
                let query =
                    Query { text: question.text.clone(), collection: (*collection).to_owned(), top_k: 1, ..Query::default() };
                examples.extend(retriever.search(&query)?.features);
            }
        }
    }
    let calibration = fit(&positives, &negatives);
    let scores =
        |examples: &[Features]| -> Vec<f32> { examples.iter().map(|features| calibration.confidence(features)).collect() };
    let (kept, foreign) = (scores(&positives), scores(&negatives));
    let threshold_at_95 = kept_threshold(&kept, 0.95);
    Ok(Calibrated {
        calibration,
        positives: positives.len(),
        negatives: negatives.len(),
        roc_auc: roc_auc(&kept, &foreign),
        threshold_at_95,
        refused_at_95: refused_share(&foreign, threshold_at_95),
    })
}

/// Steps of gradient descent; the three features converge long before.
const STEPS: usize = 20_000;
const RATE: f64 = 1.0;
/// Ridge penalty on the weights of the standardised features; keeps them finite where the classes separate.
const PENALTY: f64 = 1e-3;

/// Logistic regression on standardised features by gradient descent; both classes weigh the same however many examples
/// each has.
pub fn fit(positives: &[Features], negatives: &[Features]) -> Calibration {
    let rows: Vec<([f64; 3], f64, f64)> = [(positives, 1.0), (negatives, 0.0)]
        .into_iter()
        .flat_map(|(examples, label)| {
            let weight = 0.5 / examples.len().max(1) as f64;
            examples.iter().map(move |features| (features.values().map(f64::from), label, weight))
        })
        .collect();
    let mut mean = [0.0; 3];
    let mut deviation = [0.0; 3];
    for (values, _, weight) in &rows {
        for feature in 0..3 {
            mean[feature] += weight * values[feature];
        }
    }
    for (values, _, weight) in &rows {
        for feature in 0..3 {
            deviation[feature] += weight * (values[feature] - mean[feature]).powi(2);
        }
    }
    let deviation = deviation.map(|variance| variance.sqrt().max(1e-6));
    let (mut bias, mut weights) = (0.0, [0.0; 3]);
    for _ in 0..STEPS {
        let mut bias_slope = 0.0;
        let mut slopes = weights.map(|weight| PENALTY * weight);
        for (values, label, weight) in &rows {
            let standard: [f64; 3] = std::array::from_fn(|at| (values[at] - mean[at]) / deviation[at]);
            let sum: f64 = bias + standard.iter().zip(weights).map(|(value, weight)| value * weight).sum::<f64>();
            let error = weight * (1.0 / (1.0 + (-sum).exp()) - label);
            bias_slope += error;
            for feature in 0..3 {
                slopes[feature] += error * standard[feature];
            }
        }
        bias -= RATE * bias_slope;
        for feature in 0..3 {
            weights[feature] -= RATE * slopes[feature];
        }
    }
    let raw: [f64; 3] = std::array::from_fn(|at| weights[at] / deviation[at]);
    let shift: f64 = raw.iter().zip(mean).map(|(weight, mean)| weight * mean).sum();
    Calibration { bias: (bias - shift) as f32, weights: raw.map(|weight| weight as f32) }
}

/// Area under the ROC curve: the chance that a positive scores above a negative, ties counted half.
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

/// The highest threshold at which at least `share` of the positives still reach it; 0 when there are none.
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
    fn a_fit_separates_what_can_be_separated() {
        let feature = |dense: f32, noise: f32| Features { dense, coverage: noise, margin: 0.1 };
        let positives: Vec<Features> = (0..50u8).map(|n| feature(0.6 + f32::from(n) / 200.0, f32::from(n % 7) / 7.0)).collect();
        let negatives: Vec<Features> = (0..20u8).map(|n| feature(0.3 + f32::from(n) / 100.0, f32::from(n % 7) / 7.0)).collect();
        let calibration = fit(&positives, &negatives);
        let scores = |examples: &[Features]| examples.iter().map(|features| calibration.confidence(features)).collect::<Vec<_>>();
        assert!(roc_auc(&scores(&positives), &scores(&negatives)) > 0.99);
        assert!(calibration.weights[0] > 0.0);
        assert!(calibration.confidence(&positives[49]) > 0.9 && calibration.confidence(&negatives[0]) < 0.1);
    }

    #[test]
    fn curves_by_hand() {
        assert!((roc_auc(&[0.9, 0.5], &[0.5, 0.1]) - 0.875).abs() < 1e-9);
        assert!((kept_threshold(&[0.9, 0.8, 0.7, 0.1], 0.75) - 0.7).abs() < 1e-6);
        assert!((refused_share(&[0.1, 0.7, 0.2, 0.3], 0.7) - 0.75).abs() < 1e-9);
    }
}
