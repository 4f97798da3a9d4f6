//! A derived file of checksummed sections, written once, renamed into place and mapped from then on.
//!
//! ```text
//! magic u64, layout u32, number of kinds u32
//! per kind: offset u64, length u64, CRC-32 u32, zero u32
//! CRC-32 of all of the above u32
//! sections, each at a multiple of 64 bytes
//! ```
//!
//! Numbers are in the machine's own byte order: on another machine the file is made again. The section of codes, by far the
//! largest, is not read at opening. Its checksums, one per block, are a section of their own (see [`super::dense`]).
#![allow(unsafe_code, reason = "a mapped file")]

use std::fs::{self, File};
use std::io::{self, BufWriter, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use bytemuck::Pod;
use memmap2::Mmap;

/// `VADEMIDX`; with the other byte order it is another number.
const MAGIC: u64 = u64::from_be_bytes(*b"VADEMIDX");
/// Layout of the sections; a file of any other is made again.
const LAYOUT: u32 = 2;
const ALIGNMENT: u64 = 64;
const HEADER: usize = 16 + KINDS * ENTRY + 4;
const ENTRY: usize = 24;
const KINDS: usize = 11;

/// The content of a section.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SectionKind {
    /// Number of rows and dimensions (u32 each).
    Shape,
    /// The scale of each row's codes (f32).
    Scales,
    /// Packed signs, see [`super::dense`].
    Signs,
    /// An int8 code for each row and dimension.
    Codes,
    /// CRC-32 of each block of codes (u32).
    CodeSums,
    /// The origin of the index (CBOR).
    Origin,
    /// The documents (CBOR).
    Documents,
    /// The number of terms in each row's title and headings, and in its body (u16 each).
    Lengths,
    /// Offsets of each term's bytes and postings, and the number of rows that hold it (u32 each).
    TermIndex,
    /// The bytes of the terms in ascending order, one after the other.
    TermBytes,
    /// Postings of the terms, in the same order.
    Postings,
}

/// Why a file cannot be used; it is made again.
#[derive(Debug, thiserror::Error)]
pub enum Unusable {
    /// The file does not exist.
    #[error("it is not there")]
    Missing,
    /// The file has another layout, other data, or damage.
    #[error("{0}")]
    Unfit(&'static str),
    /// The file cannot be read.
    #[error("it cannot be read: {0}")]
    Io(#[from] io::Error),
}

#[derive(Clone, Copy, Debug, Default)]
struct Section {
    offset: u64,
    length: u64,
    checksum: u32,
}

/// A mapped file whose header and sections, codes excepted, have been checked.
#[derive(Debug)]
pub struct Sections {
    map: Mmap,
    table: [Section; KINDS],
}

impl Sections {
    pub fn open(path: &Path) -> Result<Sections, Unusable> {
        let file = File::open(path).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => Unusable::Missing,
            _ => Unusable::Io(error),
        })?;
        // SAFETY: the file is only ever replaced, never written in place or cut, and the store's lock keeps other
        // processes of this program away.
        let map = unsafe { Mmap::map(&file)? };
        let table = table(&map).ok_or(Unusable::Unfit("its header is damaged or of another version"))?;
        let sections = Sections { map, table };
        for (kind, section) in table.iter().enumerate() {
            let fits = section.offset % ALIGNMENT == 0
                && section.offset.checked_add(section.length).is_some_and(|end| end <= sections.map.len() as u64);
            if !fits {
                return Err(Unusable::Unfit("it is cut short"));
            }
            if kind != SectionKind::Codes as usize && crc32fast::hash(sections.bytes(kind)) != section.checksum {
                return Err(Unusable::Unfit("a checksum does not match"));
            }
        }
        Ok(sections)
    }

    /// A section's elements; none when its length is no multiple of theirs.
    pub fn get<T: Pod>(&self, kind: SectionKind) -> &[T] {
        bytemuck::try_cast_slice(self.bytes(kind as usize)).unwrap_or_default()
    }

    fn bytes(&self, kind: usize) -> &[u8] {
        let section = self.table[kind];
        &self.map[section.offset as usize..(section.offset + section.length) as usize]
    }

    /// Length of the whole file.
    pub(super) fn file_bytes(&self) -> usize {
        self.map.len()
    }

    /// Tells the kernel that a section is read here and there, not from end to end.
    pub fn read_at_random(&self, kind: SectionKind) {
        let section = self.table[kind as usize];
        if section.length > 0 {
            // The call is only advice: without it the kernel reads more than is needed.
            let _ = self.map.advise_range(memmap2::Advice::Random, section.offset as usize, section.length as usize);
        }
    }
}

fn table(bytes: &[u8]) -> Option<[Section; KINDS]> {
    let header = bytes.get(..HEADER)?;
    let (checked, checksum) = header.split_at(HEADER - 4);
    let number = |at: usize| Some(u64::from_ne_bytes(header.get(at..at + 8)?.try_into().ok()?));
    let fits = number(0)? == MAGIC
        && number(8)? == u64::from(LAYOUT) | (KINDS as u64) << 32
        && crc32fast::hash(checked).to_ne_bytes() == checksum;
    let mut table = [Section::default(); KINDS];
    for (kind, section) in table.iter_mut().enumerate() {
        let at = 16 + kind * ENTRY;
        *section = Section { offset: number(at)?, length: number(at + 8)?, checksum: number(at + 16)? as u32 };
    }
    fits.then_some(table)
}

/// Writes such a file beside its name; [`Writer::finish`] renames it.
#[derive(Debug)]
pub(super) struct Writer {
    file: BufWriter<File>,
    path: PathBuf,
    unfinished: PathBuf,
    table: [Section; KINDS],
    position: u64,
    checksum: crc32fast::Hasher,
    finished: bool,
}

impl Writer {
    pub(super) fn create(path: &Path) -> io::Result<Writer> {
        let unfinished = path.with_extension("unfinished");
        let mut file = BufWriter::with_capacity(1 << 18, File::create(&unfinished)?);
        file.write_all(&[0; HEADER])?;
        Ok(Writer {
            file,
            path: path.to_owned(),
            unfinished,
            table: [Section::default(); KINDS],
            position: HEADER as u64,
            checksum: crc32fast::Hasher::new(),
            finished: false,
        })
    }

    /// Writes one section: `fill` writes its elements.
    pub(super) fn section(&mut self, kind: SectionKind, fill: impl FnOnce(&mut Writer) -> io::Result<()>) -> io::Result<()> {
        let padding = self.position.next_multiple_of(ALIGNMENT) - self.position;
        self.file.write_all(&[0; ALIGNMENT as usize][..padding as usize])?;
        self.position += padding;
        self.checksum.reset();
        let offset = self.position;
        fill(self)?;
        let checksum = self.checksum.clone().finalize();
        self.table[kind as usize] = Section { offset, length: self.position - offset, checksum };
        Ok(())
    }

    /// Writes a section that is in memory.
    pub(super) fn whole<T: Pod>(&mut self, kind: SectionKind, elements: &[T]) -> io::Result<()> {
        self.section(kind, |section| section.push(elements))
    }

    /// Appends to the section being filled.
    pub(super) fn push<T: Pod>(&mut self, elements: &[T]) -> io::Result<()> {
        let bytes: &[u8] = bytemuck::cast_slice(elements);
        self.checksum.update(bytes);
        self.position += bytes.len() as u64;
        self.file.write_all(bytes)
    }

    /// Writes the header, syncs, and renames the file over an older one.
    pub(super) fn finish(mut self) -> io::Result<()> {
        let mut header = Vec::with_capacity(HEADER);
        header.extend_from_slice(&MAGIC.to_ne_bytes());
        header.extend_from_slice(&(u64::from(LAYOUT) | (KINDS as u64) << 32).to_ne_bytes());
        for section in self.table {
            for number in [section.offset, section.length, u64::from(section.checksum)] {
                header.extend_from_slice(&number.to_ne_bytes());
            }
        }
        header.extend_from_slice(&crc32fast::hash(&header).to_ne_bytes());
        self.file.seek(SeekFrom::Start(0))?;
        self.file.write_all(&header)?;
        self.file.flush()?;
        self.file.get_ref().sync_all()?;
        fs::rename(&self.unfinished, &self.path)?;
        self.finished = true;
        match self.path.parent() {
            Some(folder) => File::open(folder)?.sync_all(),
            None => Ok(()),
        }
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        if !self.finished {
            // Half a file only fills a full disk.
            let _ = fs::remove_file(&self.unfinished);
        }
    }
}
