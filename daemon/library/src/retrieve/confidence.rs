//! The confidence that the library holds an answer, 0 to 1.

use serde::{Deserialize, Serialize};

/// The inputs of the confidence.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Features {
    /// Highest cosine of any chunk with the question.
    pub dense: f32,
    /// Share of the question's terms, weighted by rarity, that the best passage holds, 0 to 1.
    pub coverage: f32,
    /// The highest cosine less the mean cosine of the [`MARGIN_RANK`] next ones.
    pub margin: f32,
    /// Highest cosine of any statement of the first passages with the question.
    pub statement: f32,
    /// The largest share of the question's terms that one statement of these passages holds, weighted by rarity, 0 to 1.
    pub told: f32,
}

/// Number of next best chunks that the margin is measured against.
pub const MARGIN_RANK: usize = 10;

/// Number of features.
pub const FEATURES: usize = 5;

/// Logistic regression over [`Features`]: `1 / (1 + exp(-(bias + weights . features)))`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Calibration {
    /// Constant term.
    pub bias: f32,
    /// Weights of `dense`, `coverage`, `margin`, `statement`, `told`.
    pub weights: [f32; FEATURES],
}

impl Features {
    /// The numbers, in the order of [`Calibration::weights`].
    pub fn values(&self) -> [f32; FEATURES] {
        [self.dense, self.coverage, self.margin, self.statement, self.told]
    }
}

impl Calibration {
    /// These constants for a library in a language that the encoder is `fluent` in, 0 to 1, and [`UNFAMILIAR`] for the rest.
    pub(super) fn for_fluency(self, fluent: f32) -> Calibration {
        let mix = |own: f32, other: f32| fluent * own + (1.0 - fluent) * other;
        let weights = std::array::from_fn(|at| mix(self.weights[at], UNFAMILIAR.weights[at]));
        Calibration { bias: mix(self.bias, UNFAMILIAR.bias), weights }
    }

    /// The confidence of a retrieval with these features.
    pub fn confidence(&self, features: &Features) -> f32 {
        let sum: f32 = features.values().iter().zip(self.weights).map(|(value, weight)| value * weight).sum();
        1.0 / (1.0 + (-(self.bias + sum)).exp())
    }
}

/// Confidence from the cosine of the best statement alone, for libraries of at most [`MARGIN_RANK`] chunks. The statement's
/// vector is the one kept with its chunk.
///
/// Measured with all-MiniLM-L6-v2 in Q8_0 over the statements of the three best documents, every third question of the two sets
/// below. Asked to their own library, 90 % of the questions reach 0.45. Asked to the other's, 99 % stay below 0.42 and none
/// reaches 0.44. The gain stands in `benches/results/retrieval-roc.md`.
pub(super) fn of_statement(cosine: f32) -> f32 {
    1.0 / (1.0 + (-25.0 * (cosine - 0.44)).exp())
}

/// Confidence of a question that names a code, from the share of its terms that the best passage holds. A bare `E-17?` says
/// nothing to an encoder; a passage that holds the code and every other word asked for answers it. The confidence is 0.5 at a
/// share of 0.85: one common word may be missing beside the code, the code may not.
pub(super) fn of_code(coverage: f32) -> f32 {
    1.0 / (1.0 + (-40.0 * (coverage - 0.85)).exp())
}

/// Highest confidence for a question that names a code which no document knows, or which the passages found do not hold. Text about other codes is no answer, however
/// alike the words.
pub(super) const UNKNOWN_CODE: f32 = 0.25;

/// Constants fitted to one collection, kept beside it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Fitted {
    /// The constants.
    pub calibration: Calibration,
    /// Fingerprint of the encoder whose cosines the constants were fitted to.
    pub embedder: String,
    /// Questions with an answer that were used.
    pub answerable: usize,
    /// Questions without an answer that were used.
    pub foreign: usize,
    /// Area under the ROC curve, measured on the half of the questions that the fit had not seen.
    pub roc_auc: f64,
}

/// The name under which [`Fitted`] is kept in the store.
/// The number of features is part of it: constants for others are fitted anew.
pub(super) const NOTE: &str = "calibration-5";

/// Fitted by `answer::eval::calibrate` on two labelled sets with all-MiniLM-L6-v2 in Q8_0 and chunks of up to 220 tokens. The
/// sets are a consumer product's manual (421 questions) and encyclopaedia paragraphs (612 questions). Positives are questions
/// asked to their own library. Negatives are the same questions asked to the other's, and to their own without the documents that
/// answer.
///
/// Measured on the half of the questions that each fit had not seen (`vademecum calibrate --labelled DIR --labelled DIR
/// --dry-run`): a threshold of 0.5 keeps 94.7 % of the answerable questions, and refuses 99.1 % of the foreign ones and 50.0 % of
/// those whose documents are hidden. Constants for three features, fitted to foreign questions alone, kept 97.5 %, and refused
/// 98.3 % and 32.8 %.
pub(super) const DEFAULT: Calibration = Calibration { bias: -4.876, weights: [0.0, 3.756, 6.359, 4.352, 0.734] };

/// For languages that the encoder does not know: the words alone tell. Fitted, mixed with [`DEFAULT`] by fluency, to XQuAD in nine
/// languages with all-MiniLM-L6-v2: half of the articles as the library, questions about the others as foreign ones. At a threshold
/// of 0.5 it keeps and refuses (with [`DEFAULT`] alone): German 0.75 and 1.00 (0.64 and 1.00), Spanish 0.90 and 0.97 (0.82 and 0.98),
/// Russian 0.81 and 0.93 (0.57 and 0.98), Arabic 0.75 and 0.97 (0.30 and 1.00), Chinese 0.59 and 1.00 (0.39 and 1.00), and, to its
/// loss, Vietnamese 0.98 and 0.54 (0.96 and 0.78).
pub(super) const UNFAMILIAR: Calibration = Calibration { bias: -3.765, weights: [0.0, 5.521, 0.0, 0.0, 5.894] };

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_tell_where_the_encoder_is_a_stranger() {
        let alike = Features { dense: 0.9, coverage: 0.1, margin: 0.3, statement: 0.9, told: 0.1 };
        let told = Features { dense: 0.1, coverage: 0.9, margin: 0.0, statement: 0.1, told: 0.9 };
        let of = |fluent: f32, features: &Features| DEFAULT.for_fluency(fluent).confidence(features);
        assert!(of(1.0, &alike) > 0.5 && of(0.0, &alike) < 0.1);
        assert!(of(1.0, &told) < 0.5 && of(0.0, &told) > 0.9);
        assert_eq!(DEFAULT.for_fluency(1.0), DEFAULT);
    }
}
