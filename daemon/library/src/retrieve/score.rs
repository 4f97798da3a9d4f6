//! The fit of each row to a question: exact dense scan and BM25F.

use roaring::RoaringBitmap;

use super::fuse::{Terms, Weighed};
use crate::store::Index;
use crate::store::dense::Query;
use crate::store::terms::{self, Language};

/// BM25 saturation of repeated terms. Trotman, Puurula and Burgess (2014) found this value and [`B`] to hold across
/// collections. Here both labelled sets measured better with them than with the textbook's 1.2 and 0.75.
pub(super) const K1: f32 = 0.9;
/// BM25F length normalisation of title and headings, and of the body.
pub(super) const B: [f32; 2] = [0.4, 0.4];
/// BM25F weight of an occurrence in title and headings, and in the body. Heavier headings helped one labelled set by less than
/// they cost in the fused ranking.
const WEIGHTS: [f32; 2] = [1.0, 1.0];
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

/// The question's terms with their weights in the collection, as if the `hidden` rows were not there.
pub(super) fn weigh(index: &Index, question: &str, hidden: &RoaringBitmap) -> Weighed {
    let frequency = |term: &str| document_frequency(index, term, hidden);
    let rows = (index.live().len() - index.live().intersection_len(hidden)) as f32;
    let weigh = |term: String| {
        let weight = inverse_document_frequency(rows, frequency(&term));
        (term, weight)
    };
    let languages: Vec<Language> = index.languages().into_iter().collect();
    let analyses = terms::analyze_question(question, &languages);
    let weighed = analyses.into_iter().map(|analysis| analysis.terms.into_iter().map(weigh).collect());
    let by_language: Vec<(Language, Terms)> = languages.iter().copied().zip(weighed).collect();
    let unknown_code = by_language.iter().flat_map(|(_, terms)| terms).any(|(term, _)| is_unknown_code(&frequency, term));
    Weighed { unknown_code, by_language, mean_length: index.mean_lengths().iter().sum::<f32>().max(1.0) }
}

/// Whether no row holds a code or the numbers in it: then the collection does not know it in any spelling. An address has one
/// spelling only.
fn is_unknown_code(frequency: &dyn Fn(&str) -> u32, term: &str) -> bool {
    if term.parse::<std::net::Ipv4Addr>().is_ok() {
        return frequency(term) == 0;
    }
    let mut numbers = term.split(|c: char| !c.is_numeric()).filter(|number| !number.is_empty()).peekable();
    let is_unknown = |term: &str| frequency(term) == 0;
    terms::is_code(term) && is_unknown(term) && numbers.peek().is_some() && numbers.all(is_unknown)
}

/// The rows out of `selected` that are among the [`KEPT`] best by either score, ascending. `vector` has unit length and the
/// index's dimensions.
pub(super) fn hits(index: &Index, vector: &[f32], question: &Weighed, selected: &RoaringBitmap) -> Vec<Hit> {
    let lexical = lexical(index, question);
    let query = Query::new(vector);
    let mut dense = index.nearest(&query, KEPT, selected);
    let near: RoaringBitmap = dense.iter().map(|(row, _)| *row).collect();
    let others = highest(&lexical, selected, KEPT).into_iter().map(|(row, _)| row).filter(|row| !near.contains(*row));
    dense.extend(others.map(|row| (row, index.cosine(&query, row))));
    dense.sort_unstable_by_key(|(row, _)| *row);
    dense.into_iter().map(|(row, dense)| Hit { row, dense, lexical: lexical[row as usize] }).collect()
}

/// The `count` rows out of `selected` with the highest scores above 0, unordered; the lower row of equals.
pub(super) fn highest(scores: &[f32], selected: &RoaringBitmap, count: usize) -> Vec<(u32, f32)> {
    let scored = (0..).zip(scores).filter(|(row, score)| **score > 0.0 && selected.contains(*row));
    let mut rows: Vec<(u32, f32)> = scored.map(|(row, score)| (row, *score)).collect();
    if rows.len() > count {
        rows.select_nth_unstable_by(count, |a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        rows.truncate(count);
    }
    rows
}

/// BM25F of every row. Per term the field counts are normalised by field length, weighted and summed before saturation.
pub(super) fn lexical(index: &Index, question: &Weighed) -> Vec<f32> {
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

/// The number of rows that hold a term, without the `hidden` ones.
fn document_frequency(index: &Index, term: &str, hidden: &RoaringBitmap) -> u32 {
    if hidden.is_empty() {
        return index.document_frequency(term);
    }
    index.postings(term).filter(|posting| index.live().contains(posting.row) && !hidden.contains(posting.row)).count() as u32
}

/// `ln(1 + (N - n + 0.5) / (n + 0.5))` for `n` of `N` rows: never negative, highest for a term no row holds.
fn inverse_document_frequency(rows: f32, holding: u32) -> f32 {
    let holding = (holding as f32).min(rows);
    ((rows - holding + 0.5) / (holding + 0.5)).ln_1p()
}
