//! What a search reads: the rows of one collection in memory, derived from the database and kept current.
//!
//! Rows are only ever appended; a deleted document's rows stay as dead rows until they are too many, when the index is
//! dropped and read again from the database. Per row: one int8 code per dimension and 16 bytes, and per distinct term of
//! the row about four bytes.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::row::{Counts, Row};
use super::terms::Language;

/// The searchable rows of one collection.
#[derive(Debug)]
pub struct Index {
    dimensions: usize,
    codes: Vec<i8>,
    scales: Vec<f32>,
    lengths: Vec<[u16; 2]>,
    places: Vec<Place>,
    documents: Vec<Option<IndexedDocument>>,
    postings: HashMap<Box<str>, TermPostings>,
    live_rows: usize,
    total_lengths: [u64; 2],
}

/// Where a row's chunk stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Number of the document within the index, see [`Index::document`].
    pub slot: u32,
    /// The chunk's ordinal in it.
    pub ordinal: u32,
}

/// What filters and results need of a document.
#[derive(Clone, Debug)]
pub struct IndexedDocument {
    /// The document's id.
    pub id: String,
    /// The number of this version of the document, part of its chunks' keys.
    pub number: u64,
    /// Tags that a filter may name.
    pub tags: BTreeMap<String, String>,
    /// The language its terms are stemmed in.
    pub language: Language,
}

/// Occurrences of one term in one row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Posting {
    /// The row.
    pub row: u32,
    /// Occurrences in document title and headings, at most 255.
    pub head: u8,
    /// Occurrences in the body, at most 255.
    pub body: u8,
}

/// Postings of a term by rising row: per row the distance to the row before (LEB128), then both counts.
#[derive(Debug, Default)]
struct TermPostings {
    bytes: Vec<u8>,
    next_row: u32,
    /// Live rows that hold the term.
    live: u32,
}

impl Index {
    pub(super) fn new(dimensions: usize, rows: usize) -> Index {
        Index {
            dimensions,
            codes: Vec::with_capacity(rows * dimensions),
            scales: Vec::with_capacity(rows),
            lengths: Vec::with_capacity(rows),
            places: Vec::with_capacity(rows),
            documents: Vec::new(),
            postings: HashMap::new(),
            live_rows: 0,
            total_lengths: [0; 2],
        }
    }

    /// Registers a document; its rows follow through [`Index::append`].
    pub(super) fn add_document(&mut self, document: IndexedDocument) -> u32 {
        self.documents.push(Some(document));
        (self.documents.len() - 1) as u32
    }

    /// Appends a chunk's row; `None` when it does not have the index's shape.
    pub(super) fn append(&mut self, slot: u32, ordinal: u32, row: &Row<'_>) -> Option<()> {
        if row.codes.len() != self.dimensions {
            return None;
        }
        self.reserve_row();
        let number = self.places.len() as u32;
        row.for_each_term(|term, counts| match self.postings.get_mut(term) {
            Some(postings) => postings.push(number, counts),
            None => self.postings.entry(term.into()).or_default().push(number, counts),
        })?;
        self.codes.extend(row.codes.iter().map(|&code| code as i8));
        self.scales.push(row.scale);
        self.lengths.push(row.lengths);
        self.places.push(Place { slot, ordinal });
        self.live_rows += 1;
        for (total, length) in self.total_lengths.iter_mut().zip(row.lengths) {
            *total += u64::from(length);
        }
        Some(())
    }

    /// Makes room in steps of a sixteenth instead of doubling: on a small board the slack would be the larger part.
    fn reserve_row(&mut self) {
        if self.places.len() == self.places.capacity() {
            let more = (self.places.len() / 16).max(64);
            self.codes.reserve_exact(more * self.dimensions);
            self.scales.reserve_exact(more);
            self.lengths.reserve_exact(more);
            self.places.reserve_exact(more);
        }
    }

    /// The slot of a version of a document.
    pub(super) fn slot_of(&self, number: u64) -> Option<u32> {
        let at = self.documents.iter().position(|document| document.as_ref().is_some_and(|d| d.number == number))?;
        Some(at as u32)
    }

    /// Takes a document out of the index. Its `rows` are read again from the database to correct the statistics.
    pub(super) fn remove_document<'a>(&mut self, slot: u32, rows: impl Iterator<Item = Row<'a>>) {
        for row in rows {
            let _ = row.for_each_term(|term, _| {
                if let Some(postings) = self.postings.get_mut(term) {
                    postings.live = postings.live.saturating_sub(1);
                }
            });
            self.live_rows -= 1;
            for (total, length) in self.total_lengths.iter_mut().zip(row.lengths) {
                *total -= u64::from(length);
            }
        }
        if let Some(document) = self.documents.get_mut(slot as usize) {
            *document = None;
        }
    }

    /// Whether so many rows are dead that reading the index anew is worth it.
    pub(super) fn is_worn(&self) -> bool {
        self.rows() - self.live_rows > 1024 + self.live_rows / 4
    }

    /// Numbers per vector.
    pub fn dimensions(&self) -> usize {
        self.dimensions
    }

    /// Rows, dead ones included.
    pub fn rows(&self) -> usize {
        self.places.len()
    }

    /// Rows that are not dead.
    pub fn live_rows(&self) -> usize {
        self.live_rows
    }

    /// The int8 codes of all rows, row after row, [`Index::dimensions`] each.
    pub fn codes(&self) -> &[i8] {
        &self.codes
    }

    /// The scale of each row: `value ~ code * scale`.
    pub fn scales(&self) -> &[f32] {
        &self.scales
    }

    /// Terms in title and headings, and in the body, of a row.
    pub fn lengths(&self, row: u32) -> [u16; 2] {
        self.lengths[row as usize]
    }

    /// Mean over the live rows of [`Index::lengths`]; 0 when there are none.
    pub fn mean_lengths(&self) -> [f32; 2] {
        self.total_lengths.map(|total| total as f32 / self.live_rows.max(1) as f32)
    }

    /// Where a row's chunk stands.
    pub fn place(&self, row: u32) -> Place {
        self.places[row as usize]
    }

    /// The document in a slot; `None` when it has been deleted and its rows are dead.
    pub fn document(&self, slot: u32) -> Option<&IndexedDocument> {
        self.documents.get(slot as usize)?.as_ref()
    }

    /// For each slot whether its document is live and `accept`ed.
    pub fn select(&self, accept: impl Fn(&IndexedDocument) -> bool) -> Vec<bool> {
        self.documents.iter().map(|document| document.as_ref().is_some_and(&accept)).collect()
    }

    /// The languages of the documents, each once.
    pub fn languages(&self) -> BTreeSet<Language> {
        self.documents.iter().flatten().map(|document| document.language).collect()
    }

    /// In how many live rows a term stands.
    pub fn document_frequency(&self, term: &str) -> u32 {
        self.postings.get(term).map_or(0, |postings| postings.live)
    }

    /// The rows that hold a term, dead ones included, by rising row.
    pub fn postings(&self, term: &str) -> impl Iterator<Item = Posting> + '_ {
        let mut bytes = self.postings.get(term).map_or(&[][..], |postings| &postings.bytes);
        let mut next_row = 0u32;
        std::iter::from_fn(move || {
            let (mut distance, mut shift) = (0u32, 0);
            loop {
                let (&byte, rest) = bytes.split_first()?;
                bytes = rest;
                distance |= u32::from(byte & 0x7f) << shift;
                if byte < 0x80 {
                    break;
                }
                shift += 7;
            }
            let (&[head, body], rest) = bytes.split_first_chunk()?;
            bytes = rest;
            let row = next_row + distance;
            next_row = row + 1;
            Some(Posting { row, head, body })
        })
    }

    /// Bytes held, without the allocator's own overhead.
    pub fn bytes(&self) -> usize {
        let rows = self.codes.capacity() + self.places.capacity() * (4 + size_of::<[u16; 2]>() + size_of::<Place>());
        let postings = self.postings.iter().map(|(term, postings)| term.len() + postings.bytes.capacity()).sum::<usize>();
        let table = self.postings.capacity() * (size_of::<(Box<str>, TermPostings)>() + 1);
        rows + postings + table
    }
}

impl TermPostings {
    fn push(&mut self, row: u32, counts: Counts) {
        let mut distance = row - self.next_row;
        let mut bytes = [0u8; 7];
        let mut used = 0;
        while distance >= 0x80 {
            bytes[used] = distance as u8 | 0x80;
            distance >>= 7;
            used += 1;
        }
        bytes[used] = distance as u8;
        bytes[used + 1] = counts.head;
        bytes[used + 2] = counts.body;
        let used = used + 3;
        if self.bytes.capacity() - self.bytes.len() < used {
            // Most terms are rare: grow by an eighth, not by half.
            self.bytes.reserve_exact(used.max(self.bytes.len() / 8));
        }
        self.bytes.extend_from_slice(&bytes[..used]);
        self.next_row = row + 1;
        self.live += 1;
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::super::row;
    use super::*;

    fn document(id: &str, number: u64) -> IndexedDocument {
        IndexedDocument { id: id.to_owned(), number, tags: BTreeMap::new(), language: Language::English }
    }

    #[test]
    fn postings_come_back_in_order_over_long_distances() {
        let mut index = Index::new(1, 0);
        let slot = index.add_document(document("a", 1));
        let rare = row::encode(&[1.0], "", "rare common", Language::English);
        let common = row::encode(&[1.0], "common", "common common", Language::English);
        for ordinal in 0..20_000 {
            let bytes = if ordinal % 7000 == 5 { &rare } else { &common };
            index.append(slot, ordinal, &row::decode(bytes).unwrap()).unwrap();
        }
        let rows: Vec<u32> = index.postings("rare").map(|posting| posting.row).collect();
        assert_eq!(rows, [5, 7005, 14005]);
        assert_eq!(index.postings("common").count(), 20_000);
        assert_eq!(index.postings("common").next(), Some(Posting { row: 0, head: 1, body: 2 }));
        assert_eq!(index.postings("absent").count(), 0);
    }

    #[test]
    fn a_removed_document_leaves_the_statistics() {
        let mut index = Index::new(2, 0);
        let first = row::encode(&[1.0, 0.0], "Pump", "pump noise", Language::English);
        let second = row::encode(&[0.0, 1.0], "", "pump", Language::English);
        for (id, bytes) in [("a", &first), ("b", &second)] {
            let slot = index.add_document(document(id, u64::from(id.as_bytes()[0])));
            index.append(slot, 0, &row::decode(bytes).unwrap()).unwrap();
        }
        assert_eq!((index.document_frequency("pump"), index.live_rows()), (2, 2));
        let slot = index.slot_of(u64::from(b'a')).unwrap();
        index.remove_document(slot, row::decode(&first).into_iter());
        assert_eq!((index.document_frequency("pump"), index.document_frequency("nois")), (1, 0));
        let [head, body] = index.mean_lengths();
        assert!(head.abs() < 1e-6 && (body - 1.0).abs() < 1e-6);
        assert!(index.document(slot).is_none());
        assert!(
            index.append(0, 0, &row::decode(&row::encode(&[1.0], "", "", Language::English)).unwrap()).is_none(),
            "another shape"
        );
    }
}
