//! How sure a retrieval is that the library holds an answer, 0 to 1.

/// What the confidence is computed from.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Features {
    /// Highest cosine of any chunk with the question.
    pub dense: f32,
    /// Share of the question's terms, weighted by rarity, that the best passage holds, 0 to 1.
    pub coverage: f32,
    /// By how much the highest cosine stands above the mean cosine of the [`MARGIN_RANK`] next ones.
    pub margin: f32,
}

/// How many of the next best chunks the margin is measured against.
pub const MARGIN_RANK: usize = 10;

/// Logistic regression over [`Features`]: `1 / (1 + exp(-(bias + weights . features)))`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Calibration {
    /// Constant term.
    pub bias: f32,
    /// Weights of `dense`, `coverage`, `margin`.
    pub weights: [f32; 3],
}

impl Features {
    pub(crate) fn values(&self) -> [f32; 3] {
        [self.dense, self.coverage, self.margin]
    }
}

impl Calibration {
    /// The confidence of a retrieval with these features.
    pub fn confidence(&self, features: &Features) -> f32 {
        let sum: f32 = features.values().iter().zip(self.weights).map(|(value, weight)| value * weight).sum();
        1.0 / (1.0 + (-(self.bias + sum)).exp())
    }
}

/// PROVISIONAL
pub(super) const DEFAULT: Calibration = Calibration { bias: -5.0, weights: [6.0, 3.0, 2.0] };
