//! ZIP archives, as EPUB and office files are. The files in them are read one at a time, each within a bound.

use std::io::{Cursor, Read};

use zip::ZipArchive;

use super::{Fault, encoding::decode_xml};

/// Most bytes of one file in an archive.
const MAX_FILE_BYTES: u64 = 64 << 20;

/// Most bytes unpacked from one archive: a file may be asked for many times.
const MAX_ARCHIVE_BYTES: u64 = 256 << 20;

/// The bytes of an archive's directory, which names its files; of a damaged archive all bytes, and nothing of another file.
fn directory(bytes: &[u8]) -> &[u8] {
    const END: &[u8] = b"PK\x05\x06";
    if !bytes.starts_with(b"PK\x03\x04") {
        return &[];
    }
    // The end record may be followed by a comment of 64 KiB at most.
    let tail = bytes.len().saturating_sub(22 + 65_535);
    let place = bytes[tail..].windows(END.len()).rposition(|window| window == END).and_then(|end| {
        let field = bytes.get(tail + end + 16..tail + end + 20)?;
        usize::try_from(u32::from_le_bytes(field.try_into().ok()?)).ok()
    });
    place.and_then(|place| bytes.get(place..)).unwrap_or(bytes)
}

/// Whether an archive's directory has a file whose name begins so. Files of the archive may be archives themselves: slides hold
/// the sheets of their charts.
pub(super) fn holds(bytes: &[u8], name: &str) -> bool {
    let directory = directory(bytes);
    [name.to_owned(), name.replace('/', "\\")]
        .iter()
        .any(|name| directory.windows(name.len()).any(|window| window == name.as_bytes()))
}

/// The name of the file that a reference leads to, from a file in `folder`.
pub(super) fn resolved(folder: &str, reference: &str) -> String {
    let mut parts: Vec<&str> = folder.split('/').filter(|part| !part.is_empty()).collect();
    for part in reference.split('/') {
        match part {
            ".." => {
                parts.pop();
            }
            "" | "." => {}
            part => parts.push(part),
        }
    }
    parts.join("/")
}

/// An archive in memory.
pub(super) struct Archive<'a> {
    files: ZipArchive<Cursor<&'a [u8]>>,
    /// Bytes that may still be unpacked.
    budget: u64,
}

impl<'a> Archive<'a> {
    pub(super) fn open(bytes: &'a [u8]) -> Result<Self, Fault> {
        let files = ZipArchive::new(Cursor::new(bytes));
        let files = files.map_err(|_| Fault::Damaged("it is not a ZIP archive, or a damaged one".into()))?;
        Ok(Self { files, budget: MAX_ARCHIVE_BYTES })
    }

    /// Whether a file in the archive needs a password.
    pub(super) fn is_locked(&mut self, name: &str) -> bool {
        let Some(index) = self.files.index_for_name(name) else { return false };
        self.files.by_index_raw(index).is_ok_and(|file| file.encrypted())
    }

    /// A file's text; `None` if the file is missing or its beginning is damaged. The text before a later fault counts, and a
    /// large file is cut.
    pub(super) fn text(&mut self, name: &str) -> Option<String> {
        let exact = self.files.index_for_name(name);
        // Some programs write names with backslashes or in other letters.
        let is_same = |other: &[u8]| {
            let slashes = |byte: &u8| if *byte == b'\\' { b'/' } else { byte.to_ascii_lowercase() };
            other.len() == name.len() && other.iter().map(slashes).eq(name.bytes().map(|byte| byte.to_ascii_lowercase()))
        };
        let index = exact.or_else(|| self.files.file_names_raw().position(is_same));
        let file = self.files.by_index(index?).ok()?;
        let mut content = Vec::new();
        let read = file.take(MAX_FILE_BYTES.min(self.budget)).read_to_end(&mut content);
        self.budget -= content.len() as u64;
        (read.is_ok() || !content.is_empty()).then(|| decode_xml(&content))
    }
}

/// An archive of files, for tests.
#[cfg(test)]
pub(super) fn stored(files: &[(&str, &str)]) -> Vec<u8> {
    use std::io::Write;
    let mut archive = zip::ZipWriter::new(Cursor::new(Vec::new()));
    for (name, text) in files {
        let options = zip::write::SimpleFileOptions::default().compression_method(zip::CompressionMethod::Stored);
        archive.start_file(*name, options).unwrap();
        archive.write_all(text.as_bytes()).unwrap();
    }
    archive.finish().unwrap().into_inner()
}
