//! Ranking measures as trec_eval defines them: `ndcg_cut`, `recall`, `recip_rank`. `ranked` is best first. A grade above 0 is
//! relevant. A query without a relevant document scores 0.

use std::collections::BTreeMap;

/// Normalised discounted cumulative gain of the first `cut` documents. Gain is the grade, discount is log2(rank + 1). The sum is
/// divided by that of the ideal order of all judged documents.
pub fn ndcg(ranked: &[&str], relevance: &BTreeMap<String, i32>, cut: usize) -> f64 {
    let sum = |grades: &mut dyn Iterator<Item = i32>| -> f64 {
        grades.take(cut).zip(1u32..).map(|(grade, rank)| f64::from(grade.max(0)) / f64::from(rank + 1).log2()).sum()
    };
    let mut ideal: Vec<i32> = relevance.values().copied().collect();
    ideal.sort_unstable_by(|a, b| b.cmp(a));
    let ideal = sum(&mut ideal.into_iter());
    if ideal == 0.0 {
        return 0.0;
    }
    sum(&mut ranked.iter().map(|id| relevance.get(*id).copied().unwrap_or(0))) / ideal
}

/// Share of all relevant documents that are among the first `cut`.
pub fn recall(ranked: &[&str], relevance: &BTreeMap<String, i32>, cut: usize) -> f64 {
    let relevant = relevance.values().filter(|grade| **grade > 0).count();
    let found = ranked.iter().take(cut).filter(|id| is_relevant(id, relevance)).count();
    if relevant == 0 { 0.0 } else { found as f64 / relevant as f64 }
}

/// One over the rank of the first relevant document; 0 without one.
pub fn reciprocal_rank(ranked: &[&str], relevance: &BTreeMap<String, i32>) -> f64 {
    ranked.iter().position(|id| is_relevant(id, relevance)).map_or(0.0, |at| 1.0 / (at + 1) as f64)
}

fn is_relevant(id: &str, relevance: &BTreeMap<String, i32>) -> bool {
    relevance.get(id).is_some_and(|grade| *grade > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grades(pairs: &[(&str, i32)]) -> BTreeMap<String, i32> {
        pairs.iter().map(|(id, grade)| ((*id).to_owned(), *grade)).collect()
    }

    fn close(value: f64, expected: f64) {
        assert!((value - expected).abs() < 1e-9, "{value} instead of {expected}");
    }

    #[test]
    fn graded_gain_by_hand() {
        let relevance = grades(&[("a", 3), ("b", 2), ("c", 1), ("d", 0), ("e", -1)]);
        // b at 1, a at 3, c outside the cut: (2/log2(2) + 3/log2(4)) / (3/log2(2) + 2/log2(3) + 1/log2(4))
        let ideal = 3.0 + 2.0 / 3f64.log2() + 0.5;
        close(ndcg(&["b", "x", "a", "c"], &relevance, 3), 3.5 / ideal);
        close(ndcg(&["a", "b", "c"], &relevance, 10), 1.0);
        close(ndcg(&["e", "d", "a"], &relevance, 10), 1.5 / ideal);
        // The cut applies to the ideal as well.
        close(ndcg(&["b"], &relevance, 1), 2.0 / 3.0);
    }

    #[test]
    fn recall_and_rank_by_hand() {
        let relevance = grades(&[("a", 1), ("b", 2), ("c", 0), ("gone", 1)]);
        close(recall(&["c", "a", "x", "b"], &relevance, 2), 1.0 / 3.0);
        close(recall(&["c", "a", "x", "b"], &relevance, 100), 2.0 / 3.0);
        close(reciprocal_rank(&["c", "x", "a"], &relevance), 1.0 / 3.0);
        close(reciprocal_rank(&["c", "x"], &relevance), 0.0);
    }

    #[test]
    fn nothing_relevant_scores_nothing() {
        let relevance = grades(&[("a", 0)]);
        for value in [ndcg(&["a"], &relevance, 10), recall(&["a"], &relevance, 5), reciprocal_rank(&[], &relevance)] {
            close(value, 0.0);
        }
    }
}
