//! The library as one file: `tar`, compressed with gzip, with the checksums of all its files at the end. Stock tools can read
//! and check it (`tar xzf FILE && sha256sum -c SHA256SUMS`).
//!
//! The file holds the sources, their records and the notes of other rooms (calibrations): all that the database is made from.
//! Vectors and terms are not in it: they are larger than the sources, belong to one encoder, and are rebuilt (see `recovery`).

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, BufReader, Read, Write};
use std::path::{Component, Path, PathBuf};

use flate2::{Compression, read::GzDecoder, write::GzEncoder};
use sha2::{Digest, Sha256};

use super::{Store, StoreError, lock, sources};

const SUMS: &str = "SHA256SUMS";
/// The parts of a backup, below the store's directory.
const PARTS: [&str; 2] = ["sources", "notes"];
const BLOCK: usize = 512;
/// Longest file in a backup; ustar writes sizes in eleven octal digits.
const MAX_FILE_BYTES: u64 = 1 << 32;
/// Most files of a backup that is read.
const MAX_FILES: usize = 4_000_000;

/// The content of a backup.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Backup {
    /// Documents.
    pub documents: usize,
    /// Bytes of all files, as they are on disk.
    pub bytes: u64,
}

/// A library at one moment, beside the living one; removed on drop.
#[derive(Debug)]
pub struct Snapshot {
    dir: PathBuf,
}

impl Drop for Snapshot {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.dir) {
            log::warn!("cannot remove {}: {error}", self.dir.display());
        }
    }
}

impl Store {
    /// Holds the library of this moment still. Hard links cost neither time nor space. Changes wait meanwhile.
    pub fn snapshot(&self) -> Result<Snapshot, StoreError> {
        let _writer = self.writer();
        self.hold_still()
    }

    /// [`Store::snapshot`] for a caller that holds the writer's lock.
    fn hold_still(&self) -> Result<Snapshot, StoreError> {
        let snapshot = Snapshot { dir: self.inner.dir.join(format!("snapshot.{:08x}.unfinished", fastrand::u32(..))) };
        for part in PARTS {
            link(&self.inner.dir.join(part), &snapshot.dir.join(part))?;
        }
        Ok(snapshot)
    }
}

impl Store {
    /// Writes a backup to `path`; it is on disk when this returns. The caller holds the writer's lock.
    pub(super) fn back_up_beside(&self, path: &Path) -> Result<(), StoreError> {
        let write = |snapshot: &Snapshot| {
            let mut file = File::create(path)?;
            snapshot.write(io::BufWriter::new(&mut file))?;
            file.sync_all()
        };
        write(&self.hold_still()?).map_err(StoreError::io("write", path))
    }
}

fn link(from: &Path, to: &Path) -> Result<(), StoreError> {
    fs::create_dir_all(to).map_err(StoreError::io("create", to))?;
    for name in sources::entries(from)? {
        let (from, to) = (from.join(&name), to.join(&name));
        if from.is_dir() {
            link(&from, &to)?;
        } else if !name.ends_with(sources::UNFINISHED) {
            // Some file systems have no hard links.
            fs::hard_link(&from, &to).or_else(|_| fs::copy(&from, &to).map(|_| ())).map_err(StoreError::io("copy", &from))?;
        }
    }
    Ok(())
}

impl Snapshot {
    /// Writes the archive.
    pub fn write(&self, out: impl Write) -> io::Result<Backup> {
        use std::fmt::Write as _;
        let mut paths = Vec::new();
        files_below(&self.dir, &mut paths)?;
        paths.sort();
        let (mut gz, mut sums, mut held) = (GzEncoder::new(out, Compression::default()), String::new(), Backup::default());
        for path in paths {
            let name = path.strip_prefix(&self.dir).map_err(io::Error::other)?.to_string_lossy().into_owned();
            let bytes = fs::read(&path)?;
            append(&mut gz, &name, &bytes)?;
            writeln!(sums, "{}  {name}", sources::sha256_hex(&bytes)).map_err(io::Error::other)?;
            held.bytes += bytes.len() as u64;
            held.documents += usize::from(is_record(&name));
        }
        append(&mut gz, SUMS, sums.as_bytes())?;
        gz.write_all(&[0; 2 * BLOCK])?;
        gz.finish()?.flush()?;
        Ok(held)
    }
}

fn is_record(name: &str) -> bool {
    name.starts_with("sources/") && Path::new(name).extension().is_some_and(|extension| extension == "json")
}

fn files_below(dir: &Path, found: &mut Vec<PathBuf>) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() { files_below(&entry.path(), found)? } else { found.push(entry.path()) }
    }
    Ok(())
}

/// Writes one file in the format of POSIX ustar.
fn append(out: &mut impl Write, name: &str, bytes: &[u8]) -> io::Result<()> {
    let mut header = [0_u8; BLOCK];
    // A name has at most 64 + 1 + 16 + 5 characters below two folders, or two parts of at most 64.
    if name.len() > 100 || bytes.len() as u64 > MAX_FILE_BYTES {
        // The longest names are those of records; ustar wants them split.
        let cut = name[..name.len().min(155)].rfind('/').filter(|cut| name.len() - cut <= 101);
        let cut = cut
            .filter(|_| bytes.len() as u64 <= MAX_FILE_BYTES)
            .ok_or_else(|| io::Error::other(format!("{name} does not fit into a backup")))?;
        header[345..345 + cut].copy_from_slice(&name.as_bytes()[..cut]);
        header[..name.len() - cut - 1].copy_from_slice(&name.as_bytes()[cut + 1..]);
    } else {
        header[..name.len()].copy_from_slice(name.as_bytes());
    }
    header[100..108].copy_from_slice(b"0000640\0");
    header[108..116].copy_from_slice(b"0000000\0");
    header[116..124].copy_from_slice(b"0000000\0");
    header[124..136].copy_from_slice(format!("{:011o}\0", bytes.len()).as_bytes());
    header[136..148].copy_from_slice(b"00000000000\0");
    header[148..156].copy_from_slice(b"        ");
    header[156] = b'0';
    header[257..265].copy_from_slice(b"ustar\x0000");
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    out.write_all(&header)?;
    out.write_all(bytes)?;
    out.write_all(&vec![0; bytes.len().next_multiple_of(BLOCK) - bytes.len()])
}

/// Hands every file of the archive to `visit`, which reads it. Unread bytes are skipped.
fn each_file(path: &Path, visit: &mut dyn FnMut(&str, &mut dyn Read) -> io::Result<()>) -> io::Result<()> {
    let mut input = GzDecoder::new(BufReader::new(File::open(path)?));
    for _ in 0..MAX_FILES {
        let mut header = [0; BLOCK];
        input.read_exact(&mut header)?;
        if header.iter().all(|byte| *byte == 0) {
            // Read to the end: the checksum stands there.
            return io::copy(&mut input, &mut io::sink()).map(|_| ());
        }
        let (name, length) = entry_of(&header).ok_or_else(|| invalid("it is no backup"))?;
        let padding = length.next_multiple_of(BLOCK as u64) - length;
        let mut bytes = (&mut input).take(length);
        visit(&name, &mut bytes)?;
        let rest = bytes.limit();
        let passed = io::copy(&mut (&mut input).take(rest + padding), &mut io::sink())?;
        if passed != rest + padding {
            return Err(invalid("it ends too soon"));
        }
    }
    Err(invalid("it has too many files"))
}

/// Name and length of a file that a backup may hold.
fn entry_of(header: &[u8; BLOCK]) -> Option<(String, u64)> {
    let text = |range: std::ops::Range<usize>| {
        let field = header.get(range)?;
        let end = field.iter().position(|byte| *byte == 0).unwrap_or(field.len());
        std::str::from_utf8(&field[..end]).ok()
    };
    let (prefix, name) = (text(345..500)?, text(0..100)?);
    let name = if prefix.is_empty() { name.to_owned() } else { format!("{prefix}/{name}") };
    let length = u64::from_str_radix(text(124..136)?.trim(), 8).ok()?;
    let plain = Path::new(&name).components().all(|part| matches!(part, Component::Normal(_)));
    let known = name == SUMS || PARTS.iter().any(|part| name.strip_prefix(part).is_some_and(|rest| rest.starts_with('/')));
    (header[257..262] == *b"ustar" && header[156] == b'0' && plain && known && length <= MAX_FILE_BYTES).then_some((name, length))
}

fn invalid(reason: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, reason.to_owned())
}

/// Reads a whole archive and compares every file with its sum. Touches nothing.
///
/// # Errors
/// The archive cannot be read, or is not whole.
pub fn verify(path: &Path) -> Result<Backup, StoreError> {
    check(path).map_err(|error| {
        let cut_off = matches!(error.kind(), io::ErrorKind::UnexpectedEof | io::ErrorKind::InvalidInput);
        let error = if cut_off { invalid("it is no backup, or not all of one") } else { error };
        StoreError::io("use the backup", path)(error)
    })
}

fn check(path: &Path) -> io::Result<Backup> {
    let (mut found, mut listed, mut held) = (BTreeMap::new(), None, Backup::default());
    each_file(path, &mut |name, bytes| {
        if name == SUMS {
            let mut text = String::new();
            bytes.read_to_string(&mut text)?;
            let lines = text.lines().map(|line| line.split_once("  ").map(|(sum, name)| (name.to_owned(), sum.to_owned())));
            listed = lines.collect::<Option<BTreeMap<String, String>>>();
            return Ok(());
        }
        let mut sum = Sha256::new();
        held.bytes += io::copy(bytes, &mut sum)?;
        held.documents += usize::from(is_record(name));
        found.insert(name.to_owned(), sources::hex(&sum.finalize()));
        Ok(())
    })?;
    if listed.as_ref() == Some(&found) { Ok(held) } else { Err(invalid("its files do not match its checksums")) }
}

/// Verifies an archive and puts it in the place of the library in `dir`. The next start makes the database from it.
///
/// # Errors
/// The archive is not whole, another process uses the library, or the library has documents and `force` is not given. Nothing
/// is changed then.
pub fn restore(path: &Path, dir: &Path, force: bool) -> Result<Backup, StoreError> {
    let held = verify(path)?;
    fs::create_dir_all(dir).map_err(StoreError::io("create", dir))?;
    let _lock = lock(dir)?;
    tidy(dir);
    if !force && has_files(&dir.join("sources")) {
        let source = io::Error::new(io::ErrorKind::AlreadyExists, "there are documents in it; give --force to replace them");
        return Err(StoreError::io("restore into", dir)(source));
    }
    let staged = dir.join("restore.unfinished");
    let _ = fs::remove_dir_all(&staged);
    let done = unpack(path, &staged).map_err(StoreError::io("unpack into", &staged)).and_then(|()| swap(dir, &staged));
    // A full disk has no room for leftovers.
    let _ = fs::remove_dir_all(&staged);
    done.map(|()| held)
}

/// Removes the leftovers of an interrupted backup or restoration. The caller holds the lock.
pub(super) fn tidy(dir: &Path) {
    for part in PARTS {
        let (target, before) = (dir.join(part), dir.join(format!("{part}.before-restore")));
        // A restoration interrupted between the two renames: the earlier library counts.
        let tidied = if !before.exists() {
            Ok(())
        } else if target.exists() {
            fs::remove_dir_all(&before)
        } else {
            fs::rename(&before, &target)
        };
        if let Err(error) = tidied {
            log::warn!("{}: {error}", before.display());
        }
    }
    let Ok(names) = sources::entries(dir) else { return };
    for name in names.iter().filter(|name| name.ends_with(sources::UNFINISHED)) {
        let path = dir.join(name);
        let removed = if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
        if let Err(error) = removed {
            log::warn!("cannot remove {}: {error}", path.display());
        }
    }
}

fn has_files(dir: &Path) -> bool {
    let mut found = Vec::new();
    files_below(dir, &mut found).is_ok() && !found.is_empty()
}

fn unpack(path: &Path, staged: &Path) -> io::Result<()> {
    for part in PARTS {
        fs::create_dir_all(staged.join(part))?;
    }
    each_file(path, &mut |name, bytes| {
        if name == SUMS {
            return Ok(());
        }
        let path = staged.join(name);
        path.parent().map_or(Ok(()), fs::create_dir_all)?;
        io::copy(bytes, &mut File::create(path)?).map(|_| ())
    })?;
    // One sync for all files: waiting for each of thousands takes minutes on a card.
    rustix::fs::syncfs(File::open(staged)?).map_err(io::Error::from)
}

/// Removes the database first: without it, any sources are the library. A power cut in between leaves the old sources or the
/// new ones, and the restoration can be repeated.
fn swap(dir: &Path, staged: &Path) -> Result<(), StoreError> {
    let remove = |path: &Path| match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(StoreError::io("remove", path)(error)),
        _ => Ok(()),
    };
    for name in ["db", "index"] {
        remove(&dir.join(name))?;
    }
    for part in PARTS {
        let (target, before) = (dir.join(part), dir.join(format!("{part}.before-restore")));
        remove(&before)?;
        if target.exists() {
            fs::rename(&target, &before).map_err(StoreError::io("set aside", &target))?;
        }
        fs::rename(staged.join(part), &target).map_err(StoreError::io("restore", &target))?;
        sources::sync_folder(dir)?;
        remove(&before)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_restoration_leaves_nothing() {
        let dir = tempfile::tempdir().expect("a folder");
        let (archive, data) = (dir.path().join("library.tar.gz"), dir.path().join("data"));
        let mut gz = GzEncoder::new(File::create(&archive).expect("made"), Compression::default());
        // A whole archive that cannot be unpacked: one name is a file and a folder.
        let names = ["notes/a", "notes/a/b"];
        let sums = names.map(|name| format!("{}  {name}\n", sources::sha256_hex(b"note"))).concat();
        for (name, bytes) in [(names[0], "note"), (names[1], "note"), (SUMS, &sums)] {
            append(&mut gz, name, bytes.as_bytes()).expect("written");
        }
        gz.write_all(&[0; 2 * BLOCK]).and_then(|()| gz.finish().map(drop)).expect("written");
        assert_eq!(verify(&archive).expect("whole").bytes, 8);
        let error = restore(&archive, &data, false).expect_err("not unpacked").to_string();
        assert!(error.contains("cannot unpack"), "{error}");
        assert_eq!(sources::entries(&data).expect("a folder"), ["lock"]);
    }
}
