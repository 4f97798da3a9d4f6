//! Brings a model's files into a folder: resumed after a cut, checked, renamed when whole.
//!
//! A file grows as `NAME.part` and gets its name when its sum is right and it is a model. So a file with its name is whole.

use super::catalogue::Model;
use super::source::{Place, Source};
use super::web::WebError;
use llm::gguf::{Gguf, Precision, convert};
use rustix::fs::{FlockOperation, flock};
use serde::Serialize;
use sha2::{Digest, Sha256};
use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{ErrorKind, Read, Seek, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Disk that a download leaves free.
const RESERVE_BYTES: u64 = 64 << 20;
/// Largest file, whatever a server announces.
const MAX_FILE_BYTES: u64 = 64 << 30;
/// Cuts in a row, each after less than [`PROGRESS_BYTES`], after which a transfer is given up.
const MAX_CUTS: u32 = 3;
/// Bytes after which a cut counts as the first one again.
const PROGRESS_BYTES: u64 = 1 << 20;
/// Bytes in one step.
const STEP_BYTES: usize = 256 << 10;
/// The part of a converted model that its sum belongs to.
const WEIGHTS: &str = "model.safetensors";

/// Why a file did not come.
#[derive(Debug, thiserror::Error)]
pub enum PullError {
    /// The transfer was cut; the same command goes on with it.
    #[error("{what}; {have} bytes are here, and the same command goes on from there")]
    Cut {
        /// The reason.
        what: String,
        /// Bytes that are kept.
        have: u64,
    },
    /// The source does not have the file, or does not give it.
    #[error("{0}")]
    Refused(String),
    /// The file is not the one that was announced, or no model.
    #[error("{0}")]
    Wrong(String),
    /// This machine cannot keep the file.
    #[error("{0}")]
    Disk(String),
}

/// The sum that a file was compared with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Checked {
    /// The sum of the catalogue, or the one given.
    Known,
    /// The sum that the hub sent.
    Hub,
    /// No sum is known.
    No,
}

/// How a file came here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// It was here already.
    Present,
    /// It was fetched.
    Pulled,
}

/// A file that is here now.
#[derive(Debug, Clone, Serialize)]
pub struct Pulled {
    /// Its path.
    pub path: PathBuf,
    /// Its size.
    pub bytes: u64,
    /// How it came here.
    pub outcome: Outcome,
    /// Its SHA-256, or that of the weights that it was converted from; `None` for a file that was here already.
    pub sha256: Option<String>,
    /// The sum that it was compared with.
    pub checked: Checked,
    /// Bytes that an earlier try had left.
    pub resumed_bytes: u64,
}

/// Takes the name of the file in progress, the bytes done and the bytes in all.
pub type Progress<'a> = dyn FnMut(&str, u64, Option<u64>) + 'a;

/// Pulls files from a source into a folder.
pub struct Puller<'a> {
    /// The source.
    pub source: &'a Source,
    /// The folder.
    pub dir: &'a Path,
    /// Told about each step.
    pub progress: &'a mut Progress<'a>,
}

/// A file to bring.
struct Wanted<'a> {
    place: Place,
    path: PathBuf,
    sha256: Option<&'a str>,
    most: u64,
    /// Whether it must be a model.
    gguf: bool,
}

impl Puller<'_> {
    /// Brings a model of the catalogue.
    ///
    /// # Errors
    /// [`PullError`] with the remedy.
    pub fn model(&mut self, model: &Model) -> Result<Pulled, PullError> {
        let path = self.dir.join(&model.file);
        let ready = self.source.place(&model.repository, &model.file);
        let is_ready = model.convert.is_empty() || matches!(&ready, Place::File(file) if file.exists());
        let sha256 = model.sha256.as_deref().filter(|_| model.convert.is_empty());
        if let Some(here) = present(&path, sha256.map(|_| model.bytes)) {
            return Ok(here);
        }
        let most = model.bytes.saturating_mul(2).saturating_add(RESERVE_BYTES);
        if is_ready {
            return self.file(&Wanted { place: ready, path, sha256, most, gguf: true });
        }
        // Converted here, from the maker's own files.
        let parts = self.dir.join(format!("{}.parts", model.name));
        let mut weights = None;
        for part in &model.convert {
            let path = parts.join(part);
            let is_weights = part == WEIGHTS;
            let sha256 = model.sha256.as_deref().filter(|_| is_weights);
            if path.exists() && sha256.is_none() {
                continue;
            }
            make_folder(path.parent().unwrap_or(&parts))?;
            let pulled =
                self.file(&Wanted { place: self.source.place(&model.repository, part), path, sha256, most, gguf: false })?;
            weights = if is_weights { Some(pulled) } else { weights };
        }
        let (name, progress) = (&model.file, &mut *self.progress);
        convert(&parts, &path, Precision::Q8_0, &mut |done, total| progress(name, done, Some(total)))
            .map_err(|error| PullError::Wrong(error.to_string()))?;
        readable(&path)?;
        let _ = fs::remove_dir_all(&parts);
        let bytes = fs::metadata(&path).map_err(|error| disk(&path, &error))?.len();
        let (sha256, checked, resumed_bytes) =
            weights.map_or((None, Checked::No, 0), |pulled| (pulled.sha256, pulled.checked, pulled.resumed_bytes));
        Ok(Pulled { path, bytes, outcome: Outcome::Pulled, sha256, checked, resumed_bytes })
    }

    /// Brings the GGUF file at an address under the name `file`.
    ///
    /// # Errors
    /// [`PullError`] with the remedy.
    pub fn address(&mut self, url: &str, file: &str, sha256: Option<&str>) -> Result<Pulled, PullError> {
        let path = self.dir.join(file);
        // Without a sum the name alone would tell: another address may have another file of that name.
        if let Some(here) = present(&path, None).filter(|_| sha256.is_none_or(|sum| sum_of(&path).as_deref() == Some(sum))) {
            return Ok(here);
        }
        self.file(&Wanted { place: Place::Address(url.to_owned()), path, sha256, most: MAX_FILE_BYTES, gguf: true })
    }

    fn file(&mut self, wanted: &Wanted<'_>) -> Result<Pulled, PullError> {
        make_folder(wanted.path.parent().unwrap_or(self.dir))?;
        let mut part = Part::open(&wanted.path)?;
        let brought = self.bring(wanted, &mut part);
        if brought.is_ok() {
            part.finish(&wanted.path)?;
        } else if part.bytes == 0 {
            part.remove();
        }
        brought
    }

    /// Fills the part until it is whole and right.
    fn bring(&mut self, wanted: &Wanted<'_>, part: &mut Part) -> Result<Pulled, PullError> {
        let resumed_bytes = part.bytes;
        let (mut resumed, mut cuts, mut hub_sum) = (part.bytes > 0, 0, None);
        let mut began = false;
        loop {
            let before = part.bytes;
            // The process may have ended between the last byte and the new name.
            let whole = wanted.sha256.is_some_and(|sum| part.sum() == sum);
            match if whole { Ok(()) } else { self.transfer(wanted, part, &mut hub_sum) } {
                Ok(()) => {}
                Err(Fault::Web(WebError::Cut(what))) => {
                    cuts = if part.bytes.saturating_sub(before) >= PROGRESS_BYTES { 0 } else { cuts + 1 };
                    began |= part.bytes > before;
                    // Nothing came at all: the network is away, and waiting here helps nobody.
                    if cuts >= MAX_CUTS || !began {
                        return Err(PullError::Cut { what, have: part.bytes });
                    }
                    std::thread::sleep(Duration::from_secs(u64::from(cuts)));
                    continue;
                }
                Err(Fault::Web(WebError::BadRange)) if part.bytes > 0 => {
                    part.restart()?;
                    continue;
                }
                Err(Fault::Web(error)) => return Err(PullError::Refused(error.to_string())),
                Err(Fault::Pull(error)) => return Err(error),
            }
            let sum = part.sum();
            let expected = wanted.sha256.map(str::to_owned).or_else(|| hub_sum.clone());
            match &expected {
                Some(expected) if *expected != sum => {
                    part.restart()?;
                    // A part of another version of the file: once more, from the beginning.
                    if std::mem::take(&mut resumed) {
                        continue;
                    }
                    return Err(PullError::Wrong(format!(
                        "{}: the sum is wrong: SHA-256 {sum}, and {expected} is expected; the download is removed: pull it again, \
                         or take another source with --from",
                        wanted.place
                    )));
                }
                _ => {}
            }
            if wanted.gguf
                && let Err(error) = Gguf::open(&part.path)
            {
                part.restart()?;
                return Err(PullError::Wrong(format!("{}: {error}; the download is removed", wanted.place)));
            }
            let checked = match (wanted.sha256, &expected) {
                (Some(_), _) => Checked::Known,
                (None, Some(_)) => Checked::Hub,
                (None, None) => Checked::No,
            };
            return Ok(Pulled {
                path: wanted.path.clone(),
                bytes: part.bytes,
                outcome: Outcome::Pulled,
                sha256: Some(sum),
                checked,
                resumed_bytes,
            });
        }
    }

    /// Adds the missing bytes to the part.
    fn transfer(&mut self, wanted: &Wanted<'_>, part: &mut Part, hub_sum: &mut Option<String>) -> Result<(), Fault> {
        let name = wanted.path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        // A known sum tells at the end whether the parts belong together. Without one the entity tag must tell now.
        let etag = part.etag.clone().filter(|_| wanted.sha256.is_none());
        if part.bytes > 0 && wanted.sha256.is_none() && etag.is_none() {
            part.restart()?;
        }
        let mut answer = self.source.open(&wanted.place, part.bytes, etag.as_deref())?;
        if answer.start != part.bytes {
            part.restart()?;
        }
        if let (Some(known), Some(sent)) = (wanted.sha256, &answer.sha256)
            && known != sent
        {
            return Err(Fault::Pull(PullError::Wrong(format!(
                "{}: the hub now has another file than the catalogue knows (SHA-256 {sent}, not {known}); if you trust it, pull it by \
                 its address",
                wanted.place
            ))));
        }
        hub_sum.clone_from(&answer.sha256);
        let total = answer.total;
        if let Some(total) = total.filter(|total| *total > wanted.most) {
            let what = format!("{}: {total} bytes, and at most {} are expected; check the source", wanted.place, wanted.most);
            return Err(Fault::Web(WebError::Refused(what)));
        }
        let missing = total.map_or(0, |total| total.saturating_sub(part.bytes));
        room(self.dir, missing)?;
        part.note(answer.etag.as_deref())?;
        let mut step = vec![0; STEP_BYTES];
        loop {
            (self.progress)(&name, part.bytes, total);
            let read = match answer.body.read(&mut step) {
                Ok(0) => break,
                Ok(read) => read,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => return Err(Fault::Web(WebError::Cut(format!("{}: cut off: {error}", wanted.place)))),
            };
            part.add(&step[..read])?;
            if part.bytes > total.unwrap_or(wanted.most) {
                part.restart()?;
                let what = format!("{}: more bytes come than were announced; check the source", wanted.place);
                return Err(Fault::Web(WebError::Refused(what)));
            }
        }
        match total {
            Some(total) if part.bytes < total => {
                Err(Fault::Web(WebError::Cut(format!("{}: cut off at {} of {total} bytes", wanted.place, part.bytes))))
            }
            _ => Ok(()),
        }
    }
}

/// A fault of a transfer: of the source, or of this machine.
enum Fault {
    Web(WebError),
    Pull(PullError),
}

impl From<WebError> for Fault {
    fn from(error: WebError) -> Self {
        Self::Web(error)
    }
}

impl From<PullError> for Fault {
    fn from(error: PullError) -> Self {
        Self::Pull(error)
    }
}

/// A file that is here already: a model, and of the size that belongs to a known sum.
fn present(path: &Path, bytes: Option<u64>) -> Option<Pulled> {
    let gguf = Gguf::open(path).ok()?;
    let size = gguf.file_bytes();
    bytes.is_none_or(|bytes| bytes == size).then(|| Pulled {
        path: path.to_owned(),
        bytes: size,
        outcome: Outcome::Present,
        sha256: None,
        checked: Checked::No,
        resumed_bytes: 0,
    })
}

fn sum_of(path: &Path) -> Option<String> {
    let mut sum = Sha256::new();
    std::io::copy(&mut File::open(path).ok()?, &mut sum).ok()?;
    Some(hexadecimal(sum))
}

fn hexadecimal(sum: Sha256) -> String {
    sum.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

fn disk(path: &Path, error: &std::io::Error) -> PullError {
    let remedy = match error.kind() {
        ErrorKind::PermissionDenied => "run it as root (sudo), or choose a folder with --to",
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => "free some space, or choose a folder with --to",
        _ => "check the disk, or choose a folder with --to",
    };
    PullError::Disk(format!("{}: {error}; {remedy}", path.display()))
}

fn make_folder(dir: &Path) -> Result<(), PullError> {
    fs::create_dir_all(dir).map_err(|error| disk(dir, &error))
}

/// Refuses a download that would fill the disk.
fn room(dir: &Path, missing: u64) -> Result<(), PullError> {
    match wire::free_bytes(dir) {
        Some(free) if free < missing.saturating_add(RESERVE_BYTES) => Err(PullError::Disk(format!(
            "{}: {} MB are free, and {} MB are missing; free some space, or choose a folder with --to",
            dir.display(),
            free / 1_000_000,
            missing.saturating_add(RESERVE_BYTES) / 1_000_000
        ))),
        _ => Ok(()),
    }
}

/// Lets everybody read a model: root pulls it, the service's user reads it.
fn readable(path: &Path) -> Result<(), PullError> {
    fs::set_permissions(path, Permissions::from_mode(0o644)).map_err(|error| disk(path, &error))
}

/// A file in the making, with its sum. One process at a time has it.
struct Part {
    path: PathBuf,
    file: File,
    bytes: u64,
    sum: Sha256,
    etag: Option<String>,
}

impl Part {
    fn open(whole: &Path) -> Result<Self, PullError> {
        let path = beside(whole, ".part");
        let fails = |error: std::io::Error| disk(&path, &error);
        loop {
            // No link is followed: root may pull into a folder of the service's user.
            let mut options = OpenOptions::new();
            options.read(true).write(true).create(true).truncate(false).mode(0o644).custom_flags(libc::O_NOFOLLOW);
            let mut file = options.open(&path).map_err(fails)?;
            flock(&file, FlockOperation::NonBlockingLockExclusive)
                .map_err(|_| PullError::Disk(format!("{}: another command pulls this file; wait for its end", path.display())))?;
            // The file that was locked may have got its name in the meantime.
            let ours = file.metadata().map_err(fails)?;
            if fs::symlink_metadata(&path).map_or(true, |now| (now.dev(), now.ino()) != (ours.dev(), ours.ino())) {
                continue;
            }
            let mut sum = Sha256::new();
            let bytes = std::io::copy(&mut file, &mut sum).map_err(fails)?;
            let etag = fs::read_to_string(beside(whole, ".part.etag")).ok().filter(|tag| tag.starts_with('"') && tag.len() < 200);
            return Ok(Self { path, file, bytes, sum, etag });
        }
    }

    fn fails(&self, error: &std::io::Error) -> PullError {
        disk(&self.path, error)
    }

    /// The sum of the bytes so far.
    fn sum(&self) -> String {
        hexadecimal(self.sum.clone())
    }

    fn restart(&mut self) -> Result<(), PullError> {
        let cleared = self.file.set_len(0).and_then(|()| self.file.rewind());
        cleared.map_err(|error| self.fails(&error))?;
        (self.bytes, self.sum, self.etag) = (0, Sha256::new(), None);
        Ok(())
    }

    /// Keeps the entity tag beside the part, for the next try.
    fn note(&mut self, etag: Option<&str>) -> Result<(), PullError> {
        self.etag = etag.map(str::to_owned);
        let beside = self.etag_path();
        let _ = fs::remove_file(&beside);
        let Some(etag) = etag else { return Ok(()) };
        // Made anew: a link in its place would be followed.
        let kept = File::create_new(&beside).and_then(|mut file| file.write_all(etag.as_bytes()));
        kept.map_err(|error| disk(&beside, &error))
    }

    fn add(&mut self, bytes: &[u8]) -> Result<(), PullError> {
        self.file.write_all(bytes).map_err(|error| self.fails(&error))?;
        self.sum.update(bytes);
        self.bytes += bytes.len() as u64;
        Ok(())
    }

    /// Gives the file its name, durably.
    fn finish(&self, whole: &Path) -> Result<(), PullError> {
        readable(&self.path)?;
        self.file.sync_all().and_then(|()| fs::rename(&self.path, whole)).map_err(|error| self.fails(&error))?;
        let _ = fs::remove_file(self.etag_path());
        if let Some(dir) = whole.parent() {
            // File systems without this only lose the guarantee.
            let _ = File::open(dir).and_then(|dir| dir.sync_all());
        }
        Ok(())
    }

    fn remove(&self) {
        let _ = fs::remove_file(&self.path);
        let _ = fs::remove_file(self.etag_path());
    }

    fn etag_path(&self) -> PathBuf {
        self.path.with_extension("part.etag")
    }
}

fn beside(whole: &Path, ending: &str) -> PathBuf {
    let mut name = whole.file_name().unwrap_or_default().to_os_string();
    name.push(ending);
    whole.with_file_name(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_goes_on_where_it_was_left() {
        let dir = tempfile::tempdir().expect("a folder");
        let whole = dir.path().join("a.gguf");
        {
            let mut part = Part::open(&whole).expect("opens");
            part.add(b"hello ").expect("written");
            part.note(Some("\"tag\"")).expect("kept");
            assert!(matches!(Part::open(&whole), Err(PullError::Disk(why)) if why.contains("another command")), "one at a time");
        }
        let mut part = Part::open(&whole).expect("opens again");
        assert_eq!((part.bytes, part.etag.as_deref()), (6, Some("\"tag\"")));
        part.add(b"world").expect("written");
        assert_eq!(part.sum(), "b94d27b9934d3e08a52e52d7da7dabfac484efe37a5380ee9088f7ace2efcde9");
        part.finish(&whole).expect("renamed");
        assert_eq!(fs::read(&whole).expect("whole"), b"hello world");
        assert_eq!(fs::read_dir(dir.path()).expect("a folder").count(), 1, "nothing is left beside it");
    }

    #[test]
    fn a_link_in_the_place_of_a_part_is_not_followed() {
        let dir = tempfile::tempdir().expect("a folder");
        let secret = dir.path().join("secret");
        fs::write(&secret, "kept").expect("written");
        std::os::unix::fs::symlink(&secret, dir.path().join("a.gguf.part")).expect("linked");
        assert!(matches!(Part::open(&dir.path().join("a.gguf")), Err(PullError::Disk(_))));
        assert_eq!(fs::read_to_string(&secret).expect("kept"), "kept");
    }

    #[test]
    fn a_full_disk_is_told_before() {
        let dir = tempfile::tempdir().expect("a folder");
        assert!(room(dir.path(), 0).is_ok());
        assert!(matches!(room(dir.path(), 1 << 60), Err(PullError::Disk(why)) if why.contains("free some space")));
    }
}
