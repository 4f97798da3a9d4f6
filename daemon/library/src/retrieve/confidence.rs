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
