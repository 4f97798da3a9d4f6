//! The index that a search reads: the rows of one collection, derived from the database and kept current.
//!
//! The **base** is the rows at the time the collection's index file was written, mapped and never changed. The **tail** is the
//! rows that came since, in memory. The **live** rows are the ones of both that count. Rows are numbered through, base first. A
//! document's rows follow each other, so the table of documents tells the place of each row's chunk. When the tail or the dead
//! rows become too many, the live rows are written as a new base.

mod base;
mod postings;
mod tail;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::io;
use std::path::Path;

use roaring::RoaringBitmap;

use super::dense::{Best, Query, Scorer};
use super::row::Row;
use super::sections::Unusable;
use super::terms::Language;
use base::{Base, Opened};
use tail::Tail;

pub(super) use base::Origin;
pub use postings::Posting;

/// Rows changed since the base was written that are worth a new one in any case. A tail of them takes some 8 MB.
const CHANGED_ROWS: u64 = 8192;
/// Changed rows that are always worth a new base, so that memory stays bounded however large the base is.
const MOST_CHANGED_ROWS: u64 = 65_536;

/// The searchable rows of one collection.
#[derive(Debug)]
pub struct Index {
    base: Option<Base>,
    tail: Tail,
    /// Documents by rising first row.
    entries: Vec<IndexEntry>,
    /// Index in `entries` of each version of a document.
    slots: HashMap<u64, u32>,
    live: RoaringBitmap,
    total_lengths: [u64; 2],
    threads: usize,
    /// Changed rows below which no new base is tried, after a failed attempt.
    postponed: u64,
}

/// The place of a row's chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Number of the document within the index, see [`Index::document`].
    pub slot: u32,
    /// The chunk's ordinal in it.
    pub ordinal: u32,
}

/// The part of a document that filters and results need.
#[derive(Clone, Debug)]
pub struct IndexedDocument {
    /// The document's id.
    pub id: String,
    /// The number of this version of the document, part of its chunks' keys.
    pub number: u64,
    /// Tags that a filter may name.
    pub tags: BTreeMap<String, String>,
    /// The language of its stems.
    pub language: Language,
}

/// A document and its rows.
#[derive(Debug)]
struct IndexEntry {
    document: IndexedDocument,
    first_row: u32,
    rows: u32,
    live: bool,
}

impl Index {
    pub(super) fn new(dimensions: usize, threads: usize) -> Index {
        Index {
            base: None,
            tail: Tail::new(dimensions),
            entries: Vec::new(),
            slots: HashMap::new(),
            live: RoaringBitmap::new(),
            total_lengths: [0; 2],
            threads,
            postponed: 0,
        }
    }

    /// Opens an index file. Its origin has to be `origin`, of this version or an older one; returns that version.
    pub(super) fn open(path: &Path, origin: &Origin, threads: usize) -> Result<(Index, u64), Unusable> {
        let Opened { base, origin: found, documents } = Base::open(path)?;
        if (found.store, &found.embedder) != (origin.store, &origin.embedder) || found.version > origin.version {
            return Err(Unusable::Unfit("it stems from another database or another embedder"));
        }
        if found.terms != origin.terms {
            return Err(Unusable::Unfit("its terms are of another version of vademecum"));
        }
        let mut index = Index::new(base.vectors().dimensions(), threads);
        for (document, rows) in documents {
            let first_row = index.entries.last().map_or(0, |last| last.first_row + last.rows);
            if index.slots.insert(document.number, index.entries.len() as u32).is_some() {
                return Err(Unusable::Unfit("it names a document twice"));
            }
            index.entries.push(IndexEntry { document, first_row, rows, live: true });
        }
        index.live.insert_range(0..base.rows());
        for lengths in base.lengths() {
            index.total_lengths.iter_mut().zip(lengths).for_each(|(total, length)| *total += u64::from(*length));
        }
        index.base = Some(base);
        Ok((index, found.version))
    }

    /// Writes the live rows as an index file.
    pub(super) fn write(&self, path: &Path, origin: &Origin) -> io::Result<()> {
        base::write(path, self, origin)
    }

    /// Whether enough has changed since the base was written to be worth a new one.
    pub(super) fn is_worn(&self) -> bool {
        let bound = (CHANGED_ROWS + u64::from(self.base_rows()) / 4).min(MOST_CHANGED_ROWS);
        self.changed_rows() > bound.max(self.postponed)
    }

    /// Whether memory holds as many changes as it may. While an index is made anew nobody searches yet, and fewer bases are
    /// written on the way.
    pub(super) fn is_full(&self) -> bool {
        self.changed_rows() > MOST_CHANGED_ROWS.max(self.postponed)
    }

    /// Whether reading the changes again at the next start would take longer than writing them now.
    pub(super) fn is_worth_keeping(&self) -> bool {
        self.changed_rows() > CHANGED_ROWS / 8 + u64::from(self.base_rows()) / 16
    }

    /// After a failed attempt, the next one is due at twice as many changes.
    pub(super) fn postpone_writing(&mut self) {
        self.postponed = 2 * self.changed_rows();
    }

    fn changed_rows(&self) -> u64 {
        u64::from(self.tail.rows()) + (self.rows() as u64 - self.live.len())
    }

    /// Whether part of the base was found damaged; a search's results then mean nothing.
    pub(super) fn is_damaged(&self) -> bool {
        self.base.as_ref().is_some_and(|base| base.vectors().is_damaged())
    }

    /// Registers a document; its rows follow through [`Index::append`].
    pub(super) fn add_document(&mut self, document: IndexedDocument) {
        self.slots.insert(document.number, self.entries.len() as u32);
        self.entries.push(IndexEntry { document, first_row: self.rows() as u32, rows: 0, live: true });
    }

    /// Appends a row to the newest document; `None` when it does not have the index's shape.
    pub(super) fn append(&mut self, row: &Row<'_>) -> Option<()> {
        let number = u32::try_from(self.rows()).ok()?;
        let entry = self.entries.last_mut()?;
        self.tail.append(row)?;
        entry.rows += 1;
        self.live.insert(number);
        self.total_lengths.iter_mut().zip(row.lengths).for_each(|(total, length)| *total += u64::from(length));
        Some(())
    }

    /// Takes a version of a document out of the index, if it is there.
    pub(super) fn remove_document(&mut self, number: u64) {
        let Some(&slot) = self.slots.get(&number) else { return };
        let entry = &mut self.entries[slot as usize];
        if !std::mem::take(&mut entry.live) {
            return;
        }
        let rows = entry.first_row..entry.first_row + entry.rows;
        self.live.remove_range(rows.clone());
        for row in rows {
            let lengths = self.lengths(row);
            self.total_lengths.iter_mut().zip(lengths).for_each(|(total, length)| *total -= u64::from(length));
        }
    }

    /// Takes out the documents whose number is not among `numbers`.
    pub(super) fn retain_documents(&mut self, numbers: &HashSet<u64>) {
        let gone = self.entries.iter().map(|entry| entry.document.number).filter(|number| !numbers.contains(number));
        for number in gone.collect::<Vec<_>>() {
            self.remove_document(number);
        }
    }

    /// Rows of a version of a document, if it is there.
    pub(super) fn rows_of(&self, number: u64) -> Option<u32> {
        self.slots.get(&number).map(|&slot| self.entries[slot as usize].rows)
    }

    fn base_rows(&self) -> u32 {
        self.base.as_ref().map_or(0, Base::rows)
    }

    /// Numbers per vector.
    pub fn dimensions(&self) -> usize {
        self.tail.dimensions()
    }

    /// Rows, dead ones included.
    pub fn rows(&self) -> usize {
        self.base_rows() as usize + self.tail.rows() as usize
    }

    /// The rows that are not dead.
    pub fn live(&self) -> &RoaringBitmap {
        &self.live
    }

    /// Terms in title and headings, and in the body, of a row.
    pub fn lengths(&self, row: u32) -> [u16; 2] {
        match &self.base {
            Some(base) if row < base.rows() => base.lengths()[row as usize],
            _ => self.tail.lengths(row - self.base_rows()),
        }
    }

    /// Mean of [`Index::lengths`] over the live rows; 0 if there are none.
    pub fn mean_lengths(&self) -> [f32; 2] {
        self.total_lengths.map(|total| total as f32 / self.live.len().max(1) as f32)
    }

    /// The place of a row's chunk.
    pub fn place(&self, row: u32) -> Place {
        let slot = self.entries.partition_point(|entry| entry.first_row <= row).saturating_sub(1);
        Place { slot: slot as u32, ordinal: row - self.entries.get(slot).map_or(0, |entry| entry.first_row) }
    }

    /// The document in a slot; `None` if it was deleted and its rows are dead.
    pub fn document(&self, slot: u32) -> Option<&IndexedDocument> {
        self.entries.get(slot as usize).filter(|entry| entry.live).map(|entry| &entry.document)
    }

    /// The languages of the documents, each once.
    pub fn languages(&self) -> BTreeSet<Language> {
        self.entries.iter().filter(|entry| entry.live).map(|entry| entry.document.language).collect()
    }

    /// The live rows of the documents that are `accept`ed.
    pub fn select(&self, accept: impl Fn(&IndexedDocument) -> bool) -> RoaringBitmap {
        let mut rows = RoaringBitmap::new();
        let mut run = 0..0;
        for entry in self.entries.iter().filter(|entry| entry.live && accept(&entry.document)) {
            // Neighbouring documents go in as one range: an insertion costs more than a comparison.
            if entry.first_row != run.end {
                rows.insert_range(run);
                run = entry.first_row..entry.first_row;
            }
            run.end = entry.first_row + entry.rows;
        }
        rows.insert_range(run);
        rows
    }

    /// The `count` rows out of `rows` with the highest cosines, and those, best first.
    pub fn nearest(&self, query: &Query, count: usize, rows: &RoaringBitmap) -> Vec<(u32, f32)> {
        let mut best = Best::new(count);
        if query.dimensions() == self.dimensions() {
            if let Some(base) = &self.base {
                base.vectors().nearest(query, rows, self.threads, &mut best);
            }
            self.tail.nearest(query, rows, self.base_rows(), &mut best);
        }
        best.into_sorted()
    }

    /// The cosine of one row with the question.
    pub fn cosine(&self, query: &Query, row: u32) -> f32 {
        if query.dimensions() != self.dimensions() {
            return 0.0;
        }
        let scorer = Scorer::new(query);
        match &self.base {
            Some(base) if row < base.rows() => base.vectors().score(scorer, row),
            _ => {
                let row = row - self.base_rows();
                scorer.one(self.tail.codes(row), self.tail.scale(row))
            }
        }
    }

    /// Codes and scale of a row.
    fn codes(&self, row: u32) -> (&[i8], f32) {
        match &self.base {
            Some(base) if row < base.rows() => (base.vectors().codes(row).unwrap_or_default(), base.vectors().scale(row)),
            _ => {
                let row = row - self.base_rows();
                (self.tail.codes(row), self.tail.scale(row))
            }
        }
    }

    /// Number of live rows that hold a term.
    pub fn document_frequency(&self, term: &str) -> u32 {
        if self.live.len() < self.rows() as u64 {
            return self.postings(term).filter(|posting| self.live.contains(posting.row)).count() as u32;
        }
        self.base.as_ref().map_or(0, |base| base.postings(term).0) + self.tail.postings(term, 0).0
    }

    /// The rows that hold a term, dead ones included, by rising row.
    pub fn postings(&self, term: &str) -> impl Iterator<Item = Posting> + '_ {
        let base = self.base.as_ref().map(|base| base.postings(term).1);
        base.into_iter().flatten().chain(self.tail.postings(term, self.base_rows()).1)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
