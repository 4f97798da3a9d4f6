//! How well each row fits a question: dense scan, BM25F, and the convex sum of both.

use std::collections::BTreeMap;

use roaring::RoaringBitmap;

use crate::store::dense::Query;
use crate::store::{Index, terms};

/// BM25 saturation of repeated terms; with [`B`] the values Trotman, Puurula and Burgess (2014) found to hold across
/// collections, which measured better here than the textbook's 1.2 and 0.75 on both labelled sets.
const K1: f32 = 0.9;
/// BM25F length normalisation of title and headings, and of the body.
const B: [f32; 2] = [0.4, 0.4];
/// BM25F weight of an occurrence in title and headings, and in the body. Heavier headings helped one labelled set by less
/// than they cost in the fused ranking.
const WEIGHTS: [f32; 2] = [1.0, 1.0];
/// Share of the dense score in the convex sum (Bruch, Gai and Ingber 2023); the rest is BM25.
const DENSE_SHARE: f32 = 0.5;
/// Up to so many rows taking part, all are candidates.
const ALL_ROWS: u64 = 4096;
/// Otherwise so many of the best by either score are.
const CANDIDATES: usize = 1000;

/// A question's terms with how often each occurs.
pub(super) fn query_terms(text: &str) -> BTreeMap<String, u32> {
    let mut counts = BTreeMap::new();
    for term in terms::analyze(text).terms {
        *counts.entry(term).or_insert(0) += 1;
    }
    counts
}

/// Scores of the candidates: in a small collection all rows that take part, in a large one the best by either score.
#[derive(Debug)]
pub(super) struct Scores {
    /// The rows, ascending; the scores are in the same order.
    pub(super) rows: Vec<u32>,
    /// Cosine, -1 to 1.
    pub(super) dense: Vec<f32>,
    /// BM25F, 0 and up.
    pub(super) lexical: Vec<f32>,
    /// Convex sum of both after normalisation, 0 to 1.
    pub(super) fused: Vec<f32>,
    /// Rows that are neither dead nor filtered out, candidates or not.
    pub(super) taking_part: usize,
}

impl Scores {
    /// Scores a question. `selected` are the rows that take part; `vector` has unit length and the index's dimensions.
    pub(super) fn new(index: &Index, vector: &[f32], terms: &BTreeMap<String, u32>, selected: &RoaringBitmap) -> Scores {
        let lexical = lexical(index, terms);
        let taking_part = selected.len() as usize;
        let wanted = if selected.len() <= ALL_ROWS { taking_part } else { CANDIDATES };
        let query = Query::new(vector);
        let mut nearest = index.nearest(&query, wanted, selected);
        if wanted < taking_part {
            let known: RoaringBitmap = nearest.best.iter().map(|(row, _)| *row).collect();
            let others = highest(&lexical, selected, wanted).into_iter().filter(|row| !known.contains(*row));
            nearest.best.extend(others.map(|row| (row, index.cosine(&query, row))));
        }
        nearest.best.sort_unstable_by_key(|(row, _)| *row);
        let (rows, dense): (Vec<u32>, Vec<f32>) = nearest.best.into_iter().unzip();
        let lexical: Vec<f32> = rows.iter().map(|&row| lexical[row as usize]).collect();
        // In a large collection some row holds none of the question's terms.
        let least = if wanted < taking_part { 0.0 } else { f32::INFINITY };
        let normalised = [Normal::over(&dense, nearest.lowest), Normal::over(&lexical, least)];
        let fuse = |(dense, lexical): (&f32, &f32)| {
            DENSE_SHARE * normalised[0].of(*dense) + (1.0 - DENSE_SHARE) * normalised[1].of(*lexical)
        };
        let fused = dense.iter().zip(&lexical).map(fuse).collect();
        Scores { rows, dense, lexical, fused, taking_part }
    }

    /// Where in the scores the `count` best rows stand, best first; equal ones in the order they were stored.
    pub(super) fn best(&self, count: usize) -> Vec<usize> {
        let mut places: Vec<usize> = (0..self.fused.len()).collect();
        let order = |a: &usize, b: &usize| self.fused[*b].total_cmp(&self.fused[*a]).then(a.cmp(b));
        if count < places.len() {
            places.select_nth_unstable_by(count, order);
            places.truncate(count);
        }
        places.sort_unstable_by(order);
        places
    }
}

/// The `count` rows out of `selected` with the highest scores above 0; of equal ones the lower row.
fn highest(scores: &[f32], selected: &RoaringBitmap, count: usize) -> Vec<u32> {
    let scored = (0..).zip(scores).filter(|(row, score)| **score > 0.0 && selected.contains(*row));
    let mut rows: Vec<(u32, f32)> = scored.map(|(row, score)| (row, *score)).collect();
    if count < rows.len() {
        rows.select_nth_unstable_by(count, |a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        rows.truncate(count);
    }
    rows.into_iter().map(|(row, _)| row).collect()
}

/// Min-max normalisation of the rows that take part.
struct Normal {
    lowest: f32,
    span: f32,
}

impl Normal {
    /// Over `raw`, which holds the highest score of all, and the lowest of those it does not hold.
    fn over(raw: &[f32], lowest: f32) -> Normal {
        let (lowest, highest) =
            raw.iter().fold((lowest, f32::NEG_INFINITY), |(low, high), value| (low.min(*value), high.max(*value)));
        Normal { lowest, span: highest - lowest }
    }

    fn of(&self, value: f32) -> f32 {
        if self.span > 0.0 {
            (value - self.lowest) / self.span
        } else {
            // One row, or rows alike: each is as good as the best, unless there is nothing in it.
            f32::from(u8::from(value > 0.0))
        }
    }
}

/// BM25F of every row: per term the field counts are normalised by field length, weighted and summed before saturation.
pub(super) fn lexical(index: &Index, terms: &BTreeMap<String, u32>) -> Vec<f32> {
    let mut scores = vec![0.0; index.rows()];
    let mean = index.mean_lengths().map(|mean| mean.max(1.0));
    for (term, &count) in terms {
        let weight = inverse_document_frequency(index, term) * count as f32;
        for posting in index.postings(term) {
            let lengths = index.lengths(posting.row);
            let mut frequency = 0.0;
            for (field, occurrences) in [posting.head, posting.body].into_iter().enumerate() {
                let length = 1.0 - B[field] + B[field] * f32::from(lengths[field]) / mean[field];
                frequency += WEIGHTS[field] * f32::from(occurrences) / length;
            }
            scores[posting.row as usize] += weight * frequency / (K1 + frequency);
        }
    }
    scores
}

/// `ln(1 + (N - n + 0.5) / (n + 0.5))`: never negative, highest for a term no row holds.
fn inverse_document_frequency(index: &Index, term: &str) -> f32 {
    let rows = index.live().len() as f32;
    let holding = (index.document_frequency(term) as f32).min(rows);
    ((rows - holding + 0.5) / (holding + 0.5)).ln_1p()
}

/// Share of the question's terms, weighted by their rarity, that a row holds; 0 for a question without terms.
pub(super) fn coverage(index: &Index, terms: &BTreeMap<String, u32>, row: u32) -> f32 {
    let (mut held, mut asked) = (0.0, 0.0);
    for term in terms.keys() {
        let weight = inverse_document_frequency(index, term);
        asked += weight;
        let found = index.postings(term).find(|posting| posting.row >= row);
        if found.is_some_and(|posting| posting.row == row) {
            held += weight;
        }
    }
    if asked > 0.0 { held / asked } else { 0.0 }
}
