//! Readers of single formats: bytes become Markdown.
//!
//! They know of nothing but bytes and text, so that they can run in a process of their own (`child`) and be fuzzed without
//! the rest of the program.

mod epub;
pub(super) mod html;
mod markdown;
#[cfg(feature = "pdf")]
mod pdf;

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// A document as Markdown.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Parsed {
    /// The title that the document gives itself.
    pub title: Option<String>,
    /// Markdown; form feeds end pages.
    pub text: String,
    /// Something its owner should know.
    pub note: Option<String>,
}

/// Why a document gives no text.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Fault {
    /// It breaks the rules of its format; the words follow on "it cannot be read: ".
    Damaged(String),
    /// A PDF that is damaged or cut off; the words follow as above, and [`MEND_PDF`] follows them.
    DamagedPdf(String),
    /// It asks for a password.
    Locked,
    /// Its pages are images.
    NoText {
        /// Number of pages.
        pages: usize,
    },
    /// This program has no reader for it.
    #[cfg(not(feature = "pdf"))]
    NotBuilt(Format),
    /// It keeps its reader busy beyond reason.
    TooSlow(Duration),
}

/// What to do about a damaged PDF.
pub(crate) const MEND_PDF: &str =
    "download or copy it again, or repair it (for example `qpdf IN.pdf OUT.pdf` or `mutool clean IN.pdf OUT.pdf`)";

/// Formats whose readers need a process of their own: their files are programs, archives, or both.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Format {
    /// Portable Document Format.
    Pdf,
    /// EPUB, a book as an archive of pages.
    Epub,
}

impl Format {
    /// Its name on the command line of the reading process.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Pdf => "pdf",
            Self::Epub => "epub",
        }
    }

    /// The format of that name.
    pub(crate) fn from_name(name: &str) -> Option<Self> {
        [Self::Pdf, Self::Epub].into_iter().find(|format| format.name() == name)
    }
}

/// Reads a document of a known format.
#[cfg_attr(not(feature = "pdf"), allow(clippy::needless_pass_by_value, reason = "the reader of PDF keeps the bytes"))]
pub(crate) fn parse(format: Format, bytes: Vec<u8>) -> Result<Parsed, Fault> {
    match format {
        #[cfg(feature = "pdf")]
        Format::Pdf => pdf::parse(bytes),
        #[cfg(not(feature = "pdf"))]
        Format::Pdf => Err(Fault::NotBuilt(format)),
        Format::Epub => epub::parse(&bytes),
    }
}

/// The largest character boundary of `text` not after `at`.
pub(crate) fn floor_char_boundary(text: &str, at: usize) -> usize {
    let boundary = |&at: &usize| text.is_char_boundary(at);
    if at >= text.len() { text.len() } else { (0..=at).rev().find(boundary).unwrap_or(0) }
}

/// `text` with every run of white space as one blank, none at the ends.
pub(crate) fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Text from bytes: UTF-8 and UTF-16 by their byte order mark, else UTF-8, else Windows-1252 (the superset of Latin-1
/// that files so labelled are written in). The second part says so when that last guess had to be made, or when
/// UTF-16 had broken pairs.
pub(crate) fn decode(bytes: &[u8]) -> (String, Option<String>) {
    if let Some(rest) = bytes.strip_prefix(&[0xEF, 0xBB, 0xBF]) {
        return decode(rest);
    }
    if let Some(rest) = bytes.strip_prefix(&[0xFF, 0xFE]) {
        return decode_utf16(rest, u16::from_le_bytes);
    }
    if let Some(rest) = bytes.strip_prefix(&[0xFE, 0xFF]) {
        return decode_utf16(rest, u16::from_be_bytes);
    }
    match std::str::from_utf8(bytes) {
        Ok(text) => (text.to_owned(), None),
        Err(_) => (
            bytes.iter().map(|&byte| windows_1252(byte)).collect(),
            Some("not UTF-8: read as Latin-1 (Windows-1252); save it as UTF-8 if letters look wrong".into()),
        ),
    }
}

fn decode_utf16(bytes: &[u8], unit: fn([u8; 2]) -> u16) -> (String, Option<String>) {
    let (pairs, rest) = bytes.as_chunks::<2>();
    let mut broken = !rest.is_empty();
    let text = char::decode_utf16(pairs.iter().map(|&pair| unit(pair)))
        .map(|unit| {
            unit.unwrap_or_else(|_| {
                broken = true;
                char::REPLACEMENT_CHARACTER
            })
        })
        .collect();
    (text, broken.then(|| "UTF-16 with broken characters, which were replaced".into()))
}

/// Windows-1252: Latin-1 but for 0x80 to 0x9F (table: <https://encoding.spec.whatwg.org/index-windows-1252.txt>).
fn windows_1252(byte: u8) -> char {
    const HIGH: [char; 32] = [
        '€', '\u{81}', '‚', 'ƒ', '„', '…', '†', '‡', 'ˆ', '‰', 'Š', '‹', 'Œ', '\u{8D}', 'Ž', '\u{8F}', '\u{90}', '‘', '’', '“',
        '”', '•', '–', '—', '˜', '™', 'š', '›', 'œ', '\u{9D}', 'ž', 'Ÿ',
    ];
    match byte {
        0x80..=0x9F => HIGH[usize::from(byte - 0x80)],
        _ => char::from(byte),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn byte_order_marks_and_latin_1_are_decoded() {
        assert_eq!(decode("\u{FEFF}für".as_bytes()), ("für".into(), None));
        let little: Vec<u8> = [0xFF, 0xFE].into_iter().chain("für€".encode_utf16().flat_map(u16::to_le_bytes)).collect();
        let big: Vec<u8> = [0xFE, 0xFF].into_iter().chain("für€".encode_utf16().flat_map(u16::to_be_bytes)).collect();
        assert_eq!(decode(&little), ("für€".into(), None));
        assert_eq!(decode(&big), ("für€".into(), None));
        let (text, note) = decode(b"f\xFCr 5 \x80");
        assert_eq!(text, "für 5 €");
        assert!(note.unwrap().contains("Latin-1"));
        assert!(decode(&[0xFF, 0xFE, 0x00, 0xD8]).1.is_some());
    }
}
