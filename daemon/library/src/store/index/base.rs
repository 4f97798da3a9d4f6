//! The rows of a collection at the time its index file was written: mapped, never changed.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::super::dense::{self, DenseIndex};
use super::super::row::Counts;
use super::super::sections::{SectionKind, Sections, Unusable, Writer};
use super::super::terms::Language;
use super::postings::{Packed, Unpacked};
use super::{Index, IndexedDocument};

/// The origin of a base. A base of another store, another encoder or a newer version is of no use.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(in super::super) struct Origin {
    /// Identity of the database: numbers of documents repeat in another database.
    pub(in super::super) store: u64,
    /// Fingerprint of the embedder.
    pub(in super::super) embedder: String,
    /// Version of the terms ([`super::super::terms`]).
    #[serde(default)]
    pub(in super::super) terms: u32,
    /// Version of the collection.
    pub(in super::super) version: u64,
}

/// A document as the file lists it. Its rows follow those of the document before.
#[derive(Serialize, Deserialize)]
struct Listed {
    id: String,
    number: u64,
    rows: u32,
    tags: BTreeMap<String, String>,
    language: Language,
}

/// An open index file.
#[derive(Debug)]
pub(super) struct Base {
    vectors: DenseIndex,
}

/// The result of [`Base::open`].
#[derive(Debug)]
pub(super) struct Opened {
    pub(super) base: Base,
    /// The origin of the base.
    pub(super) origin: Origin,
    /// Its documents, each with its number of rows.
    pub(super) documents: Vec<(IndexedDocument, u32)>,
}

impl Base {
    /// Opens a file.
    pub(super) fn open(path: &Path) -> Result<Opened, Unusable> {
        let base = Base { vectors: DenseIndex::of(Sections::open(path)?)? };
        let file = base.vectors.file();
        let unfit = |_| Unusable::Unfit("its records cannot be read");
        let origin: Origin = ciborium::from_reader(file.get::<u8>(SectionKind::Origin)).map_err(unfit)?;
        let listed: Vec<Listed> = ciborium::from_reader(file.get::<u8>(SectionKind::Documents)).map_err(unfit)?;
        let rows: u64 = listed.iter().map(|document| u64::from(document.rows)).sum();
        let fits = rows == base.vectors.rows() as u64
            && file.get::<[u16; 2]>(SectionKind::Lengths).len() as u64 == rows
            && base.terms_fit();
        if !fits {
            return Err(Unusable::Unfit("its sections do not fit together"));
        }
        let documents = listed
            .into_iter()
            .map(|Listed { id, number, rows, tags, language }| (IndexedDocument { id, number, tags, language }, rows));
        Ok(Opened { documents: documents.collect(), base, origin })
    }

    /// Whether each term's bytes and postings end where the next one's begin, or at the end.
    fn terms_fit(&self) -> bool {
        let file = self.vectors.file();
        let [bytes, postings] = [SectionKind::TermBytes, SectionKind::Postings].map(|kind| file.get::<u8>(kind).len() as u64);
        let ends = [bytes, postings];
        let index = file.get::<[u32; 3]>(SectionKind::TermIndex);
        let starts = |entry: &[u32; 3]| [u64::from(entry[0]), u64::from(entry[1])];
        let rises = |a: [u64; 2], b: [u64; 2]| a[0] <= b[0] && a[1] <= b[1];
        index.windows(2).all(|pair| rises(starts(&pair[0]), starts(&pair[1])))
            && index.last().is_none_or(|last| rises(starts(last), ends))
    }

    pub(super) fn vectors(&self) -> &DenseIndex {
        &self.vectors
    }

    pub(super) fn rows(&self) -> u32 {
        self.vectors.rows() as u32
    }

    pub(super) fn lengths(&self) -> &[[u16; 2]] {
        self.vectors.file().get(SectionKind::Lengths)
    }

    fn term_count(&self) -> usize {
        self.vectors.file().get::<[u32; 3]>(SectionKind::TermIndex).len()
    }

    /// The bytes of a term, the number of rows that hold it, and those rows.
    fn term(&self, at: usize) -> (&[u8], u32, Unpacked<'_>) {
        let file = self.vectors.file();
        let index = file.get::<[u32; 3]>(SectionKind::TermIndex);
        let part = |kind: SectionKind, column: usize| {
            let all = file.get::<u8>(kind);
            let end = index.get(at + 1).map_or(all.len(), |next| next[column] as usize);
            &all[index[at][column] as usize..end]
        };
        (part(SectionKind::TermBytes, 0), index[at][2], Unpacked::new(part(SectionKind::Postings, 1), self.rows(), 0))
    }

    /// The number of rows that hold a term, and those rows.
    pub(super) fn postings(&self, term: &str) -> (u32, Unpacked<'_>) {
        let (mut low, mut high) = (0, self.term_count());
        while low < high {
            let middle = usize::midpoint(low, high);
            let (found, count, postings) = self.term(middle);
            match found.cmp(term.as_bytes()) {
                Ordering::Less => low = middle + 1,
                Ordering::Greater => high = middle,
                Ordering::Equal => return (count, postings),
            }
        }
        (0, Unpacked::new(&[], 0, 0))
    }
}

/// Writes the live rows of an index as a base, in their order. Memory holds nothing but the terms' index.
pub(super) fn write(path: &Path, index: &Index, origin: &Origin) -> io::Result<()> {
    if index.base.as_ref().is_some_and(|base| !base.vectors.check()) {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "the file to be replaced is damaged"));
    }
    let mut writer = Writer::create(path)?;
    writer.whole(SectionKind::Origin, &cbor(origin)?)?;
    let listed: Vec<Listed> = index.entries.iter().filter(|entry| entry.live).map(listed).collect();
    writer.whole(SectionKind::Documents, &cbor(&listed)?)?;
    dense::write(&mut writer, index.dimensions(), || index.live.iter().map(|row| index.codes(row)))?;
    writer.section(SectionKind::Lengths, |section| index.live.iter().try_for_each(|row| section.push(&[index.lengths(row)])))?;
    write_terms(&mut writer, index)?;
    writer.finish()
}

fn listed(entry: &super::IndexEntry) -> Listed {
    let IndexedDocument { id, number, tags, language } = entry.document.clone();
    Listed { id, number, rows: entry.rows, tags, language }
}

fn cbor(value: &impl Serialize) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    ciborium::into_writer(value, &mut bytes).map_err(io::Error::other)?;
    Ok(bytes)
}

/// Merges the terms of base and tail, both in ascending order, and numbers the live rows anew.
fn write_terms(writer: &mut Writer, index: &Index) -> io::Result<()> {
    let mut numbers = vec![u32::MAX; index.rows()];
    for (number, row) in (0..).zip(&index.live) {
        numbers[row as usize] = number;
    }
    let tail = index.tail.terms(index.base_rows());
    let (mut term_index, mut term_bytes): (Vec<[u32; 3]>, Vec<u8>) = (Vec::new(), Vec::new());
    let mut written = 0usize;
    let fits = |bytes: usize| u32::try_from(bytes).map_err(|_| io::Error::other("the postings exceed 4 GiB"));
    writer.section(SectionKind::Postings, |section| {
        let mut packed = Packed::default();
        let base_terms = index.base.as_ref().map_or(0, Base::term_count);
        let (mut from_base, mut from_tail) = ((0..base_terms).peekable(), tail.into_iter().peekable());
        loop {
            let base = from_base.peek().and_then(|&at| index.base.as_ref().map(|base| base.term(at)));
            let order = match (&base, from_tail.peek()) {
                (None, None) => break,
                (Some(_), None) => Ordering::Less,
                (None, Some(_)) => Ordering::Greater,
                (Some((a, ..)), Some((b, _))) => (*a).cmp(b),
            };
            let base = base.filter(|_| order.is_le()).inspect(|_| _ = from_base.next());
            let tail = if order.is_ge() { from_tail.next() } else { None };
            let Some(term) = base.as_ref().map(|(term, ..)| *term).or(tail.as_ref().map(|(term, _)| *term)) else { break };
            packed.clear();
            let postings =
                base.into_iter().flat_map(|(.., postings)| postings).chain(tail.into_iter().flat_map(|(_, postings)| postings));
            for posting in postings.filter(|posting| numbers[posting.row as usize] != u32::MAX) {
                packed.push(numbers[posting.row as usize], Counts { head: posting.head, body: posting.body });
            }
            if packed.count > 0 {
                term_index.push([fits(term_bytes.len())?, fits(written)?, packed.count]);
                term_bytes.extend_from_slice(term);
                section.push(&packed.bytes)?;
                written += packed.bytes.len();
            }
        }
        Ok(())
    })?;
    writer.whole(SectionKind::TermIndex, &term_index)?;
    writer.whole(SectionKind::TermBytes, &term_bytes)
}
