//! The formats that are read: one row of [`FORMATS`] each. A reader turns bytes or text into Markdown.
//!
//! The readers know only bytes and text, so that they can run in a child process (`child`) and be fuzzed alone.

mod epub;
pub mod html;
mod markdown;
#[cfg(feature = "pdf")]
mod pdf;
mod text;

use crate::Form;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// A document as Markdown.
#[derive(Debug, Serialize, Deserialize)]
pub struct Parsed {
    /// The title that the document gives itself.
    pub title: Option<String>,
    /// Markdown; form feeds end pages.
    pub text: String,
    /// A remark for the owner.
    pub note: Option<String>,
}

/// Why a document yields no text.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Fault {
    /// The document breaks the rules of its format; the text continues "it cannot be read: ".
    Damaged(String),
    /// A PDF that is damaged or cut off; the text continues likewise, and [`MEND_PDF`] follows it.
    DamagedPdf(String),
    /// The document needs a password.
    Locked,
    /// Its pages are images.
    NoText {
        /// Number of pages.
        pages: usize,
    },
    /// This program was built without the reader of the format of this name.
    NotBuilt(String),
    /// The reader needs too much time.
    TooSlow(Duration),
}

/// The remedy for a damaged PDF.
pub const MEND_PDF: &str =
    "download or copy it again, or repair it (for example `qpdf IN.pdf OUT.pdf` or `mutool clean IN.pdf OUT.pdf`)";

/// A format that is read.
#[derive(Debug)]
pub struct Format {
    /// Its name, in messages and, in small letters, on the command line of the child.
    pub name: &'static str,
    /// The IANA media type.
    pub media_type: &'static str,
    /// Other media types under which it is sent.
    pub aliases: &'static [&'static str],
    /// Endings of the files that are taken from a folder.
    pub extensions: &'static [&'static str],
    /// Further endings by which a file is known that is given by name.
    pub also: &'static [&'static str],
    /// Whether the first bytes leave no doubt.
    pub signature: fn(&[u8]) -> bool,
    /// Whether form feeds in the Markdown end pages.
    pub paged: bool,
    /// The reader.
    pub reader: Reader,
}

/// The reader of a format.
#[derive(Debug, Clone, Copy)]
pub enum Reader {
    /// Takes decoded text, in the caller's process.
    Text(fn(&str) -> Result<Parsed, Fault>, Form),
    /// Takes bytes, in a process of its own: such files are programs, archives, or both.
    Confined(fn(Vec<u8>) -> Result<Parsed, Fault>),
}

/// `text/plain`, and everything else that is text without a reader of its own.
pub static PLAIN: Format = Format {
    name: "text",
    media_type: "text/plain",
    aliases: &[],
    extensions: &["txt", "text", "rst", "adoc"],
    also: &["log", "org", "csv", "tsv", "json", "yaml", "yml", "toml", "xml", "ini", "conf"],
    signature: never,
    paged: false,
    reader: Reader::Text(text::plain, Form::Plain),
};

/// `text/markdown`.
pub static MARKDOWN: Format = Format {
    name: "Markdown",
    media_type: "text/markdown",
    aliases: &["text/x-markdown"],
    extensions: &["md", "markdown", "mkd"],
    also: &["mdown"],
    signature: never,
    paged: false,
    reader: Reader::Text(text::markdown, Form::Markdown),
};

/// `text/html` and `application/xhtml+xml`.
pub static HTML: Format = Format {
    name: "HTML",
    media_type: "text/html",
    aliases: &["application/xhtml+xml"],
    extensions: &["html", "htm", "xhtml"],
    also: &[],
    signature: never,
    paged: false,
    reader: Reader::Text(html::to_markdown, Form::Markdown),
};

/// `application/pdf`.
pub static PDF: Format = Format {
    name: "PDF",
    media_type: "application/pdf",
    aliases: &[],
    extensions: &["pdf"],
    also: &[],
    signature: |bytes| bytes.starts_with(b"%PDF"),
    paged: true,
    #[cfg(feature = "pdf")]
    reader: Reader::Confined(pdf::parse),
    #[cfg(not(feature = "pdf"))]
    reader: Reader::Confined(|_| Err(Fault::NotBuilt("PDF".into()))),
};

/// `application/epub+zip`, a book as an archive of pages.
pub static EPUB: Format = Format {
    name: "EPUB",
    media_type: "application/epub+zip",
    aliases: &[],
    extensions: &["epub"],
    also: &[],
    signature: epub::is_epub,
    paged: false,
    reader: Reader::Confined(|bytes| epub::parse(&bytes)),
};

/// All formats. A new one is a file in this folder and a row here.
pub static FORMATS: [&Format; 5] = [&PLAIN, &MARKDOWN, &HTML, &PDF, &EPUB];

/// The names of all formats, as a message lists them.
pub(crate) fn readable() -> String {
    let names: Vec<&str> = FORMATS.iter().map(|format| format.name).collect();
    match names.split_last() {
        Some((last, rest)) => format!("{} or {last}", rest.join(", ")),
        None => String::new(),
    }
}

fn never(_: &[u8]) -> bool {
    false
}

impl PartialEq for Format {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name
    }
}

impl Eq for Format {}

impl Format {
    /// The format of that name, whatever its case.
    pub fn named(name: &str) -> Option<&'static Self> {
        FORMATS.into_iter().find(|format| format.name.eq_ignore_ascii_case(name))
    }

    /// Reads a document in this process.
    ///
    /// # Errors
    /// The reader's fault.
    pub fn parse(&self, bytes: Vec<u8>) -> Result<Parsed, Fault> {
        match self.reader {
            Reader::Text(read, _) => {
                let (text, note) = decode(&bytes);
                let parsed = read(&text::unix_lines(&text))?;
                Ok(Parsed { note: note.or(parsed.note), ..parsed })
            }
            Reader::Confined(read) => read(bytes),
        }
    }
}

/// `text` with every run of white space as one blank, none at the ends.
pub fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Text from bytes: UTF-8 and UTF-16 by their byte order mark, else UTF-8, else Windows-1252 (the superset of Latin-1 that most
/// Latin-1 files use). The second part is a note if Windows-1252 was guessed or UTF-16 had broken pairs.
pub fn decode(bytes: &[u8]) -> (String, Option<String>) {
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
