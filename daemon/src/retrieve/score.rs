//! How well each row fits a question: exact dense scan, BM25F, and the convex sum of both.

use std::collections::BTreeMap;

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
/// Largest code of the question's vector. 12 bits lose nothing against int8 rows, and a sum over 8,192 dimensions of
/// 127 x 2047 still fits an i32.
const QUERY_CODE_MAX: f32 = 2047.0;

/// A question's terms with how often each occurs.
pub(super) fn query_terms(text: &str) -> BTreeMap<String, u32> {
    let mut counts = BTreeMap::new();
    for term in terms::analyze(text).terms {
        *counts.entry(term).or_insert(0) += 1;
    }
    counts
}

/// Scores of all rows of an index; rows that are dead or filtered out have `fused` = -inf.
#[derive(Debug)]
pub(super) struct Scores {
    /// Cosine, -1 to 1.
    pub(super) dense: Vec<f32>,
    /// BM25F, 0 and up.
    pub(super) lexical: Vec<f32>,
    /// Convex sum of both after normalisation, 0 to 1.
    pub(super) fused: Vec<f32>,
}

impl Scores {
    /// Rows that are neither dead nor filtered out.
    pub(super) fn taking_part(&self) -> usize {
        self.fused.iter().filter(|fused| **fused > f32::NEG_INFINITY).count()
    }

    /// Scores every row. `selected` says per document slot whether its rows take part; `vector` has unit length and the
    /// index's dimensions.
    pub(super) fn new(index: &Index, vector: &[f32], terms: &BTreeMap<String, u32>, selected: &[bool]) -> Scores {
        let mut scores = Scores { dense: dense(index, vector), lexical: lexical(index, terms), fused: Vec::new() };
        let takes_part: Vec<bool> = (0..index.rows() as u32).map(|row| selected[index.place(row).slot as usize]).collect();
        let normalised = [&scores.dense, &scores.lexical].map(|raw| Normal::over(raw, &takes_part));
        scores.fused = (0..index.rows())
            .map(|row| {
                if !takes_part[row] {
                    return f32::NEG_INFINITY;
                }
                let dense = normalised[0].of(scores.dense[row]);
                let lexical = normalised[1].of(scores.lexical[row]);
                DENSE_SHARE * dense + (1.0 - DENSE_SHARE) * lexical
            })
            .collect();
        scores
    }

    /// The `count` best rows, best first; equal ones in the order they were stored.
    pub(super) fn best(&self, count: usize) -> Vec<u32> {
        let mut rows: Vec<u32> =
            (0..self.fused.len() as u32).filter(|&row| self.fused[row as usize] > f32::NEG_INFINITY).collect();
        let order = |a: &u32, b: &u32| self.fused[*b as usize].total_cmp(&self.fused[*a as usize]).then(a.cmp(b));
        if count < rows.len() {
            rows.select_nth_unstable_by(count, order);
            rows.truncate(count);
        }
        rows.sort_unstable_by(order);
        rows
    }
}

/// Min-max normalisation of the rows that take part.
struct Normal {
    lowest: f32,
    span: f32,
}

impl Normal {
    fn over(raw: &[f32], takes_part: &[bool]) -> Normal {
        let values = raw.iter().zip(takes_part).filter(|(_, takes_part)| **takes_part).map(|(value, _)| *value);
        let (lowest, highest) =
            values.fold((f32::INFINITY, f32::NEG_INFINITY), |(low, high), value| (low.min(value), high.max(value)));
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

/// Cosine of `vector` with every row.
fn dense(index: &Index, vector: &[f32]) -> Vec<f32> {
    let largest = vector.iter().fold(0.0f32, |largest, value| largest.max(value.abs()));
    if largest == 0.0 || index.dimensions() != vector.len() {
        return vec![0.0; index.rows()];
    }
    let query_scale = largest / QUERY_CODE_MAX;
    let query: Vec<i16> = vector.iter().map(|value| (value / query_scale).round() as i16).collect();
    let rows = index.codes().chunks_exact(query.len());
    rows.zip(index.scales()).map(|(row, scale)| dot(row, &query) as f32 * scale * query_scale).collect()
}

/// Written so that the compiler makes widening multiply-adds of it (`pmaddwd` on x86-64, `smlal` on aarch64).
fn dot(row: &[i8], query: &[i16]) -> i32 {
    row.iter().zip(query).map(|(&code, &value)| i32::from(code) * i32::from(value)).sum()
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
    let rows = index.live_rows() as f32;
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
