//! The rows that came after the base was written, in ordinary memory.

use std::collections::HashMap;

use roaring::RoaringBitmap;

use super::super::dense::{BLOCK, Best, Query, Scorer};
use super::super::row::Row;
use super::postings::{Packed, Unpacked};

/// Rows in memory, numbered from 0.
#[derive(Debug, Default)]
pub(super) struct Tail {
    dimensions: usize,
    codes: Vec<i8>,
    scales: Vec<f32>,
    lengths: Vec<[u16; 2]>,
    postings: HashMap<Box<str>, Packed>,
}

impl Tail {
    pub(super) fn new(dimensions: usize) -> Tail {
        Tail { dimensions, ..Tail::default() }
    }

    /// Appends a chunk's row; `None` when it does not have the index's shape.
    pub(super) fn append(&mut self, row: &Row<'_>) -> Option<()> {
        if row.codes.len() != self.dimensions {
            return None;
        }
        self.reserve_row();
        let number = self.scales.len() as u32;
        row.for_each_term(|term, counts| match self.postings.get_mut(term) {
            Some(postings) => postings.push(number, counts),
            None => self.postings.entry(term.into()).or_default().push(number, counts),
        })?;
        self.codes.extend(row.codes.iter().map(|&code| code as i8));
        self.scales.push(row.scale);
        self.lengths.push(row.lengths);
        Some(())
    }

    /// Makes room in steps of a sixteenth instead of doubling. On a small board the slack would be the larger part.
    fn reserve_row(&mut self) {
        if self.scales.len() == self.scales.capacity() {
            let more = (self.scales.len() / 16).max(64);
            self.codes.reserve_exact(more * self.dimensions);
            self.scales.reserve_exact(more);
            self.lengths.reserve_exact(more);
        }
    }

    pub(super) fn dimensions(&self) -> usize {
        self.dimensions
    }

    pub(super) fn rows(&self) -> u32 {
        self.scales.len() as u32
    }

    pub(super) fn lengths(&self, row: u32) -> [u16; 2] {
        self.lengths[row as usize]
    }

    pub(super) fn codes(&self, row: u32) -> &[i8] {
        &self.codes[row as usize * self.dimensions..][..self.dimensions]
    }

    pub(super) fn scale(&self, row: u32) -> f32 {
        self.scales[row as usize]
    }

    /// Scores all rows and offers those in `rows` to `best`; both number them from `offset`.
    pub(super) fn nearest(&self, query: &Query, rows: &RoaringBitmap, offset: u32, best: &mut Best) {
        let scorer = Scorer::new(query);
        let blocks = self.codes.chunks(BLOCK * self.dimensions.max(1)).zip(self.scales.chunks(BLOCK));
        for (block, (codes, scales)) in blocks.enumerate() {
            let mut scores = [0.0; BLOCK];
            scorer.block(codes, scales, &mut scores);
            let first = offset + (block * BLOCK) as u32;
            for (row, score) in (first..).zip(&scores[..scales.len()]) {
                if rows.contains(row) {
                    best.offer(row, *score);
                }
            }
        }
    }

    /// The number of rows that hold a term, and those rows, numbered from `offset`.
    pub(super) fn postings(&self, term: &str, offset: u32) -> (u32, Unpacked<'_>) {
        match self.postings.get(term) {
            Some(packed) => (packed.count, Unpacked::new(&packed.bytes, self.rows(), offset)),
            None => (0, Unpacked::new(&[], 0, 0)),
        }
    }

    /// All terms in ascending order with their postings, numbered from `offset`.
    pub(super) fn terms(&self, offset: u32) -> Vec<(&[u8], Unpacked<'_>)> {
        let terms = self.postings.iter();
        let mut terms: Vec<_> =
            terms.map(|(term, packed)| (term.as_bytes(), Unpacked::new(&packed.bytes, self.rows(), offset))).collect();
        terms.sort_unstable_by_key(|(term, _)| *term);
        terms
    }
}
