//! Near questions: the documents that answer are hidden, their neighbours stay. A library on the same subject should refuse them,
//! and still answer the questions as they are.

use super::asking::Asked;
use super::calibrate::{kept_threshold, refused_share, roc_auc};
use serde::Serialize;
use wire::Answer;

/// Share of the answerable questions that the second threshold keeps.
const KEPT: f64 = 0.95;

/// Figures of a set's near questions; shares of the questions asked both ways.
#[derive(Clone, Debug, Serialize)]
pub struct NearReport {
    /// Questions asked both ways.
    pub asked: usize,
    /// Share answered as they are: `found` of the reply.
    pub kept: f64,
    /// Share refused with their documents hidden.
    pub refused: f64,
    /// The threshold of the confidence in use.
    pub threshold: f32,
    /// The threshold of the confidence that keeps 95 % of the questions as they are.
    pub threshold_at_95: f32,
    /// Share of the near questions below that threshold.
    pub refused_at_95: f64,
    /// Area under the ROC curve of the confidence: questions as they are against near ones.
    pub roc_auc: f64,
    /// Questions about other subjects.
    pub foreign: usize,
    /// Share of them refused.
    pub foreign_refused: f64,
    /// Share of them below the threshold that keeps 95 %.
    pub foreign_refused_at_95: f64,
}

impl NearReport {
    /// The figures of questions asked both ways, and of answers to foreign ones. Questions that were asked one way do not count.
    pub fn of(asked: &[Asked], foreign: &[Answer], threshold: f32) -> NearReport {
        let both: Vec<(&Answer, &Answer)> =
            asked.iter().filter_map(|asked| Some((&asked.reply.answer, &asked.near.as_ref()?.answer))).collect();
        let answerable: Vec<f32> = both.iter().map(|(reply, _)| reply.confidence).collect();
        let near: Vec<f32> = both.iter().map(|(_, near)| near.confidence).collect();
        let other: Vec<f32> = foreign.iter().map(|answer| answer.confidence).collect();
        let share = |count: usize, of: usize| count as f64 / of.max(1) as f64;
        let threshold_at_95 = kept_threshold(&answerable, KEPT);
        NearReport {
            asked: both.len(),
            kept: share(both.iter().filter(|(reply, _)| reply.found).count(), both.len()),
            refused: share(both.iter().filter(|(_, near)| !near.found).count(), both.len()),
            threshold,
            threshold_at_95,
            refused_at_95: refused_share(&near, threshold_at_95),
            roc_auc: roc_auc(&answerable, &near),
            foreign: foreign.len(),
            foreign_refused: share(foreign.iter().filter(|answer| !answer.found).count(), foreign.len()),
            foreign_refused_at_95: refused_share(&other, threshold_at_95),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::asking::Reply;
    use super::*;
    use std::collections::BTreeSet;

    fn reply(confidence: f32, found: bool) -> Reply {
        Reply { answer: Answer { found, confidence, ..Answer::default() }, features: None }
    }

    fn asked(reply: Reply, near: Option<Reply>) -> Asked {
        Asked {
            id: String::new(),
            kind: None,
            previous: vec![],
            question: String::new(),
            gold: vec![],
            verdict: None,
            words: vec![],
            documents: BTreeSet::new(),
            reply,
            near,
            scores: None,
        }
    }

    #[test]
    fn near_questions_by_hand() {
        let all = [
            asked(reply(0.9, true), Some(reply(0.6, true))),
            asked(reply(0.8, true), Some(reply(0.2, false))),
            // Reading found no answer, though the confidence was high.
            asked(reply(0.7, false), Some(reply(0.9, false))),
            asked(reply(0.4, false), Some(reply(0.3, false))),
            asked(reply(0.1, false), None),
        ];
        let foreign = [reply(0.1, false).answer, reply(0.6, true).answer];
        let report = NearReport::of(&all, &foreign, 0.5);
        assert_eq!((report.asked, report.foreign), (4, 2));
        let close = |value: f64, expected: f64| assert!((value - expected).abs() < 1e-6, "{report:?}");
        close(report.kept, 0.5);
        close(report.refused, 0.75);
        // All four must be kept: the lowest of them is the threshold.
        close(f64::from(report.threshold_at_95), 0.4);
        close(report.refused_at_95, 0.5);
        // 0.9 wins 3.5 of 4, 0.8 and 0.7 win 3, 0.4 wins 2.
        close(report.roc_auc, 11.5 / 16.0);
        close(report.foreign_refused, 0.5);
        close(report.foreign_refused_at_95, 0.5);
        assert_eq!(NearReport::of(&[], &[], 0.5).asked, 0);
    }
}
