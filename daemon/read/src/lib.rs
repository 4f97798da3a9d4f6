//! Readers: a document of any supported format becomes a title and text.
//!
//! ```text
//! Original -> media type -> decoding, or a reader in a child process (`child`) -> Reading
//! ```
//!
//! The readers know nothing of models, databases or networks. A document that cannot be read costs that document only.
#![deny(unsafe_code)]

pub mod child;
mod error;
pub mod formats;
mod media;
pub mod outline;

pub use error::ReadError;
pub use formats::{Format, Reader};
pub use media::{check_media_type, format_of, media_type_of};

use error::refused;
use formats::{Parsed, one_line};
use std::borrow::Cow;

/// Longest title kept, in characters.
pub const MAX_TITLE_CHARS: usize = 160;

/// The form of a [`Reading`]'s text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// CommonMark with tables: headings make sections. From a PDF, form feeds part pages.
    Markdown,
    /// Paragraphs between blank lines; form feeds part pages, as `pdftotext` writes them.
    Plain,
}

/// A document that has been read.
#[derive(Debug, Clone)]
pub struct Reading {
    /// The sender's title, else the document's own (front matter, `<title>`, first heading), else the file's name.
    pub title: String,
    /// The text, lines ended by `\n`.
    pub text: String,
    /// Whether the text has Markdown's structure.
    pub form: Form,
    /// The format of the source.
    pub format: &'static Format,
    /// A remark for the owner, such as a guessed encoding.
    pub note: Option<String>,
}

/// A document as it arrives.
#[derive(Debug, Clone, Copy, Default)]
pub struct Original<'a> {
    /// The name under which it is stored.
    pub id: &'a str,
    /// File name or other hint for media type and title; may be empty.
    pub name: &'a str,
    /// Media type as the sender gave it (`text/html; charset=utf-8`), if any.
    pub media_type: Option<&'a str>,
    /// Title to use in place of the one the document gives itself.
    pub title: Option<&'a str>,
    /// The bytes as they were found.
    pub bytes: &'a [u8],
}

/// Reads a document: media type, decoding, conversion, title.
///
/// # Errors
/// [`ReadError::Binary`], [`ReadError::Convert`], [`ReadError::Empty`], and the faults found by the readers.
pub fn read(source: Original) -> Result<Reading, ReadError> {
    if let Some((bytes, packed)) = media::unpacked(source)? {
        return read(Original { bytes: &bytes, ..packed });
    }
    let format = format_of(source)?;
    let (parsed, form) = match format.reader {
        Reader::Text(_, form) => {
            let charset = source.media_type.and_then(media::charset);
            (format.parse_in(source.bytes.to_vec(), charset).map_err(refused)?, form)
        }
        Reader::Confined(_) => (child::read(format, source.bytes)?, Form::Markdown),
    };
    let Parsed { title: own_title, text, note } = parsed;
    if text.trim().is_empty() {
        return Err(ReadError::Empty);
    }
    let title = given_title(source)
        .or_else(|| own_title.map(|title| one_line(&title)).filter(|title| !title.is_empty()))
        .or_else(|| (form == Form::Markdown).then(|| outline::first_heading(&text)).flatten())
        .unwrap_or_else(|| name_of(source));
    Ok(Reading { title: shortened(&title, MAX_TITLE_CHARS).into_owned(), text, form, format, note })
}

/// The title that the sender gave, as it is kept.
pub fn given_title(source: Original) -> Option<String> {
    let title = one_line(source.title?);
    (!title.is_empty()).then(|| shortened(&title, MAX_TITLE_CHARS).into_owned())
}

/// The last part of the name, or of the id, without its extension.
fn name_of(source: Original) -> String {
    let name = if source.name.trim().is_empty() { source.id } else { source.name };
    let last = name.rsplit(['/', '\\']).next().unwrap_or(name);
    let stem = last.rsplit_once('.').map_or(last, |(stem, _)| if stem.is_empty() { last } else { stem });
    one_line(stem)
}

/// `text` cut to at most `max_chars` characters, with an ellipsis where something is missing.
pub fn shortened(text: &str, max_chars: usize) -> Cow<'_, str> {
    match text.char_indices().nth(max_chars) {
        None => text.into(),
        Some((end, _)) => format!("{}…", text[..end].trim_end()).into(),
    }
}

/// The message of a panic that was caught.
pub fn panic_message(panic: &(dyn std::any::Any + Send)) -> String {
    let words = panic.downcast_ref::<&str>().map(|words| (*words).to_owned()).or_else(|| panic.downcast_ref::<String>().cloned());
    words.unwrap_or_else(|| "a panic without a message".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reading(name: &str, text: &str) -> Reading {
        read(source(name, text)).unwrap()
    }

    fn source<'a>(name: &'a str, text: &'a str) -> Original<'a> {
        Original { id: "folder/document", name, bytes: text.as_bytes(), ..Original::default() }
    }

    #[test]
    fn titles_come_from_the_best_source() {
        assert_eq!(reading("a.md", "---\nlang: en\ntitle: \"The pump\"\n---\n# Other\n").title, "The pump");
        assert_eq!(reading("a.md", "+++\ntitle = 'The pump'\n+++\ntext\n").title, "The pump");
        assert_eq!(reading("a.md", "intro\n\n# The *big*\tpump #\n").title, "The big pump");
        assert_eq!(reading("a.md", "The pump\n========\ntext").title, "The pump");
        assert_eq!(reading("Pump manual.v2.txt", "# no heading here").title, "Pump manual.v2");
        assert_eq!(reading("a.html", "<title>The\n pump</title><h1>Other</h1><p>x").title, "The pump");
        assert_eq!(reading("a.html", "<h1>Other</h1><p>x").title, "Other");
        let given = Original { title: Some(" Mine "), ..source("a.md", "# Own") };
        assert_eq!(read(given).unwrap().title, "Mine");
        assert_eq!(reading("a.md", &format!("# {}", "x".repeat(500))).title.chars().count(), MAX_TITLE_CHARS + 1);
    }

    #[test]
    fn front_matter_is_not_text() {
        assert_eq!(reading("a.md", "---\r\ntitle: x\r\n---\r\nbody\r\n").text, "body\n");
        assert_eq!(reading("a.md", "---\nno end\n").text, "---\nno end\n");
    }

    #[test]
    fn nothing_to_read_is_an_error() {
        for (name, text) in [("a.txt", " \n\t"), ("a.html", "<script>x</script><nav>menu</nav>"), ("a.md", "")] {
            assert!(matches!(read(source(name, text)), Err(ReadError::Empty)), "{name}");
        }
    }

    #[test]
    fn a_guessed_encoding_is_said() {
        let latin = Original { bytes: b"f\xFCnf", ..source("a.txt", "") };
        let reading = read(latin).unwrap();
        assert_eq!(reading.text, "fünf");
        assert!(reading.note.is_some());
    }

    #[test]
    fn shortening_keeps_characters_whole() {
        assert_eq!(shortened("äöü", 3), "äöü");
        assert_eq!(shortened("äöü", 2), "äö…");
    }
}
