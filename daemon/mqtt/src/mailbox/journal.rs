//! An append-only file of records, each with a checksum, appended in one write and synced on demand.
//!
//! ```text
//! file     "VADMAIL2" record*
//! record   magic u32 | length u32 | CRC-32 of the body u32 | body          little-endian
//! body     a zero, then the content with a zero behind each byte F5
//! ```
//!
//! A write(2) survives the process, a finished fdatasync(2) the power. Reading skips a damaged or cut-off record, and finds the
//! next one by its magic number. Bodies hold the words of strangers; the stuffed zeros keep the magic number out of them.
//! Otherwise a question could smuggle in a record, such as an answer to any topic. That record would count as soon as the
//! question's own record is damaged.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

const HEADER: &[u8; 8] = b"VADMAIL2";
/// The header of files with unstuffed bodies; opening such a file rewrites it.
const PLAIN: &[u8; 8] = b"VADMAIL1";
const MAGIC: [u8; 4] = *b"\xF5rec";
const HEAD: usize = 12;
/// Longest body, zeros included.
pub(super) const MAX_BODY: usize = 16 << 20;
/// Largest file that is read, far above any that is written.
const MAX_FILE: u64 = 256 << 20;

/// The open file.
#[derive(Debug)]
pub(super) struct Journal {
    path: PathBuf,
    file: File,
    length: u64,
}

/// The contents of a file.
#[derive(Debug, Default)]
pub struct Loaded {
    pub bodies: Vec<Vec<u8>>,
    /// Places of skipped bytes.
    pub damaged: usize,
}

impl Journal {
    /// Opens or makes the file.
    pub(super) fn open(path: &Path) -> io::Result<(Self, Loaded)> {
        let mut file = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o640).open(path)?;
        let mut bytes = Vec::new();
        (&mut file).take(MAX_FILE).read_to_end(&mut bytes)?;
        let loaded = read(&bytes);
        let mut journal = Self { path: path.to_owned(), file, length: bytes.len() as u64 };
        if bytes.len() < HEADER.len() || bytes[..HEADER.len()] != HEADER[..] {
            journal.rewrite(&loaded.bodies)?;
        }
        Ok((journal, loaded))
    }

    /// Bytes of the file.
    pub(super) fn length(&self) -> u64 {
        self.length
    }

    /// A second handle, for a sync during appends.
    pub(super) fn handle(&self) -> io::Result<File> {
        self.file.try_clone()
    }

    /// Appends a record; after an error the file is unchanged.
    pub(super) fn append(&mut self, body: &[u8]) -> io::Result<()> {
        let record = record(body);
        if record.len() > HEAD + MAX_BODY {
            // Reading would reject this record, so refuse it now instead of losing it then.
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "the record is too long for the file"));
        }
        if let Err(error) = self.file.write_all_at(&record, self.length) {
            // A partial record does no harm, but it occupies the missing space.
            let _ = self.file.set_len(self.length);
            return Err(error);
        }
        self.length += record.len() as u64;
        Ok(())
    }

    /// Replaces the file by these records: all of them are on disk afterwards, or nothing has changed.
    pub(super) fn rewrite(&mut self, bodies: &[Vec<u8>]) -> io::Result<()> {
        let part = self.path.with_extension("part");
        let mut bytes = HEADER.to_vec();
        for body in bodies {
            bytes.extend_from_slice(&record(body));
        }
        let mut file = OpenOptions::new().read(true).write(true).create(true).truncate(true).mode(0o640).open(&part)?;
        let replaced = file.write_all(&bytes).and_then(|()| file.sync_all()).and_then(|()| std::fs::rename(&part, &self.path));
        if let Err(error) = replaced {
            let _ = std::fs::remove_file(&part);
            return Err(error);
        }
        if let Some(dir) = self.path.parent() {
            File::open(dir)?.sync_all()?;
        }
        (self.file, self.length) = (file, bytes.len() as u64);
        Ok(())
    }
}

pub fn record(body: &[u8]) -> Vec<u8> {
    let mut record = Vec::with_capacity(HEAD + body.len());
    // The first zero separates the checksum, whose last byte may be F5, from the body.
    record.extend_from_slice(&[0; HEAD + 1]);
    for byte in body {
        record.push(*byte);
        if *byte == MAGIC[0] {
            record.push(0);
        }
    }
    let (length, checksum) = ((record.len() - HEAD) as u32, crc32fast::hash(&record[HEAD..]));
    record[..4].copy_from_slice(&MAGIC);
    record[4..8].copy_from_slice(&length.to_le_bytes());
    record[8..HEAD].copy_from_slice(&checksum.to_le_bytes());
    record
}

/// A body without the stuffed zeros.
fn contents(body: &[u8]) -> Vec<u8> {
    let mut contents = Vec::with_capacity(body.len());
    let mut bytes = body.iter().skip(1);
    while let Some(byte) = bytes.next() {
        contents.push(*byte);
        if *byte == MAGIC[0] {
            bytes.next();
        }
    }
    contents
}

/// The records in a file's bytes, however damaged.
pub fn read(bytes: &[u8]) -> Loaded {
    let mut loaded = Loaded::default();
    let plain = bytes.starts_with(PLAIN);
    let mut lost = !bytes.is_empty() && !bytes.starts_with(HEADER) && !plain;
    // Without its beginning, a file may have its first record anywhere.
    let mut at = if lost { 0 } else { HEADER.len().min(bytes.len()) };
    while at < bytes.len() {
        match body_at(bytes, at) {
            Some(body) => {
                loaded.damaged += usize::from(std::mem::take(&mut lost));
                at += HEAD + body.len();
                loaded.bodies.push(if plain { body.to_vec() } else { contents(body) });
            }
            None => {
                lost = true;
                let next = bytes[at + 1..].windows(MAGIC.len()).position(|window| window == MAGIC);
                at = next.map_or(bytes.len(), |next| at + 1 + next);
            }
        }
    }
    loaded.damaged += usize::from(lost);
    loaded
}

fn body_at(bytes: &[u8], at: usize) -> Option<&[u8]> {
    let number = |from: usize| Some(u32::from_le_bytes(bytes.get(from..from + 4)?.try_into().ok()?));
    if bytes.get(at..at + 4)? != MAGIC {
        return None;
    }
    let length = number(at + 4)? as usize;
    let body = bytes.get(at + HEAD..(at + HEAD).checked_add(length.min(MAX_BODY + 1))?)?;
    (length <= MAX_BODY && crc32fast::hash(body) == number(at + 8)?).then_some(body)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bodies(path: &Path) -> Loaded {
        Journal::open(path).expect("opens").1
    }

    #[test]
    fn appended_records_are_read_again() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("mail");
        let (mut journal, loaded) = Journal::open(&path).expect("opens");
        assert!(loaded.bodies.is_empty() && loaded.damaged == 0);
        for body in [&b"one"[..], b"", b"three"] {
            journal.append(body).expect("written");
        }
        let loaded = bodies(&path);
        assert_eq!((loaded.bodies, loaded.damaged), (vec![b"one".to_vec(), vec![], b"three".to_vec()], 0));
        journal.rewrite(&[b"kept".to_vec()]).expect("rewritten");
        journal.append(b"more").expect("written");
        assert_eq!(bodies(&path).bodies, [b"kept".to_vec(), b"more".to_vec()]);
        assert!(!dir.path().join("mail.part").exists());
    }

    #[test]
    fn damage_costs_the_damaged_record_only() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("mail");
        let (mut journal, _) = Journal::open(&path).expect("opens");
        for n in 0..10_u8 {
            journal.append(&[n; 100]).expect("written");
        }
        let whole = std::fs::read(&path).expect("bytes");
        for at in 0..whole.len() {
            for damaged in [[&whole[..at], &[whole[at] ^ 0x40], &whole[at + 1..]].concat(), whole[..at].to_vec()] {
                let cut = damaged.len() < whole.len();
                let loaded = read(&damaged);
                // Damage in the header costs no record.
                let least = if cut { at.saturating_sub(8) / 113 } else { 9 + usize::from(at < 8) };
                assert!(loaded.bodies.len() >= least, "byte {at}: {} records", loaded.bodies.len());
                assert!(loaded.bodies.iter().all(|body| body.len() == 100 && body.iter().all(|b| *b == body[0])));
                assert_eq!(
                    loaded.damaged,
                    usize::from(!cut || (at > 0 && at < 8) || (at >= 8 && (at - 8) % 113 != 0)),
                    "byte {at}, cut {cut}"
                );
            }
        }
        // Opening a file with a wrong header rewrites it with all records found.
        std::fs::write(&path, &whole[3..]).expect("written");
        assert_eq!(bodies(&path).bodies.len(), 10);
        assert_eq!(bodies(&path).damaged, 0);
    }

    #[test]
    fn a_record_inside_a_record_is_never_one() {
        let forged = record(b"an answer for anywhere");
        for outer in [forged.clone(), [&b"\xF5"[..], &forged, b"\xF5\xF5"].concat(), [&forged[..], &forged].concat()] {
            let whole = [&HEADER[..], &record(&outer), &record(b"next")].concat();
            assert_eq!(read(&whole).bodies, [outer.clone(), b"next".to_vec()], "what goes in comes out");
            for at in HEADER.len()..HEADER.len() + record(&outer).len() {
                let changed = [&whole[..at], &[whole[at] ^ 0x40], &whole[at + 1..]].concat();
                assert_eq!(read(&changed).bodies, [b"next".to_vec()], "byte {at} changed");
                assert!(read(&whole[..at]).bodies.is_empty(), "cut at {at}");
            }
        }
    }

    #[test]
    fn files_of_the_first_form_are_rewritten() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("mail");
        let body = b"\xF5 with \xF5\x00 in it";
        let mut old = PLAIN.to_vec();
        old.extend_from_slice(&MAGIC);
        old.extend_from_slice(&(body.len() as u32).to_le_bytes());
        old.extend_from_slice(&crc32fast::hash(body).to_le_bytes());
        old.extend_from_slice(body);
        std::fs::write(&path, old).expect("written");
        for _ in 0..2 {
            let loaded = bodies(&path);
            assert_eq!((loaded.bodies, loaded.damaged), (vec![body.to_vec()], 0));
            assert!(std::fs::read(&path).expect("bytes").starts_with(HEADER));
        }
    }

    #[test]
    fn a_record_too_long_to_read_is_refused() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("mail");
        let (mut journal, _) = Journal::open(&path).expect("opens");
        assert!(journal.append(&vec![0; MAX_BODY + 1]).is_err());
        assert!(journal.append(&vec![MAGIC[0]; MAX_BODY / 2]).is_err());
        journal.append(&vec![MAGIC[0]; MAX_BODY / 2 - 1]).expect("it just fits");
        assert_eq!(bodies(&path).bodies.len(), 1);
    }

    #[test]
    fn a_failed_append_changes_nothing() {
        let path = Path::new("/dev/full");
        let file = OpenOptions::new().write(true).open(path).expect("Linux has it");
        let mut journal = Journal { path: path.to_owned(), file, length: 8 };
        assert!(journal.append(b"no").is_err());
        assert_eq!(journal.length(), 8);
    }
}
