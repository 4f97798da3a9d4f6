//! How well each row fits a question: exact dense scan and BM25F.

use super::fuse::Weighed;
use crate::store::Index;
use crate::store::terms::{self, Language};

/// BM25 saturation of repeated terms; with [`B`] the values Trotman, Puurula and Burgess (2014) found to hold across
/// collections, which measured better here than the textbook's 1.2 and 0.75 on both labelled sets.
pub(super) const K1: f32 = 0.9;
/// BM25F length normalisation of title and headings, and of the body.
pub(super) const B: [f32; 2] = [0.4, 0.4];
/// BM25F weight of an occurrence in title and headings, and in the body. Heavier headings helped one labelled set by less
/// than they cost in the fused ranking.
const WEIGHTS: [f32; 2] = [1.0, 1.0];
/// Largest code of the question's vector. 12 bits lose nothing against int8 rows, and a sum over 8,192 dimensions of
/// 127 x 2047 still fits an i32.
const QUERY_CODE_MAX: f32 = 2047.0;
/// Rows kept of either score; their union is fused.
const KEPT: usize = 1000;

/// A row that may answer, with both of its scores.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Hit {
    /// The row.
    pub(super) row: u32,
    /// Cosine, -1 to 1.
    pub(super) dense: f32,
    /// BM25F, 0 and up.
    pub(super) lexical: f32,
}

/// The question's terms with their weights in the collection.
pub(super) fn weigh(index: &Index, question: &str) -> Weighed {
    let weigh = |term: String| {
        let weight = inverse_document_frequency(index, &term);
        (term, weight)
    };
    let languages: Vec<Language> = index.languages().into_iter().collect();
    let analyses = terms::analyze_question(question, &languages);
    let weighed = analyses.into_iter().map(|analysis| analysis.terms.into_iter().map(weigh).collect());
    Weighed {
        by_language: languages.iter().copied().zip(weighed).collect(),
        mean_length: index.mean_lengths().iter().sum::<f32>().max(1.0),
    }
}

/// The rows that are among the [`KEPT`] best by either score. `selected` says per document slot whether its rows take part;
/// `vector` has unit length and the index's dimensions.
pub(super) fn hits(index: &Index, vector: &[f32], question: &Weighed, selected: &[bool]) -> Vec<Hit> {
    let (dense, lexical) = (dense(index, vector), lexical(index, question));
    let takes_part = |row: &u32| selected[index.place(*row).slot as usize];
    let rows: Vec<u32> = (0..index.rows() as u32).filter(takes_part).collect();
    let hit = |row: u32| Hit { row, dense: dense[row as usize], lexical: lexical[row as usize] };
    let mut kept = best(&rows, &dense);
    kept.extend(best(&rows, &lexical));
    kept.sort_unstable();
    kept.dedup();
    kept.into_iter().map(hit).collect()
}

/// The [`KEPT`] rows of highest score, in no order.
fn best(rows: &[u32], scores: &[f32]) -> Vec<u32> {
    let mut rows = rows.to_vec();
    if rows.len() > KEPT {
        rows.select_nth_unstable_by(KEPT, |a, b| scores[*b as usize].total_cmp(&scores[*a as usize]).then(a.cmp(b)));
        rows.truncate(KEPT);
    }
    rows
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
fn lexical(index: &Index, question: &Weighed) -> Vec<f32> {
    let mut scores = vec![0.0; index.rows()];
    let mean = index.mean_lengths().map(|mean| mean.max(1.0));
    for (term, weight) in question.distinct() {
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
