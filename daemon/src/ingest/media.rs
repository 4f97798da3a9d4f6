//! What a document is (its media type), and its bytes as text.

use super::{
    IngestError, Source,
    formats::{decode, docbook, man},
};

/// The kinds of document that are told apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MediaType {
    /// `text/plain` and everything else that is text without a reader of its own.
    PlainText,
    /// `text/markdown`.
    Markdown,
    /// `text/html` and `application/xhtml+xml`.
    Html,
    /// `application/docbook+xml`.
    DocBook,
    /// `text/troff`: a manual page, also compressed with gzip.
    ManPage,
    /// `application/pdf`.
    Pdf,
    /// `application/epub+zip`.
    Epub,
}

impl MediaType {
    /// Whether its bytes are text as they stand.
    fn is_text(self) -> bool {
        matches!(self, Self::PlainText | Self::Markdown | Self::Html | Self::DocBook)
    }

    /// The IANA name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::PlainText => "text/plain",
            Self::Markdown => "text/markdown",
            Self::Html => "text/html",
            Self::DocBook => "application/docbook+xml",
            Self::ManPage => "text/troff",
            Self::Pdf => "application/pdf",
            Self::Epub => "application/epub+zip",
        }
    }
}

/// Checks a media type as someone gives it; one that says nothing, such as `application/octet-stream`, leaves it to the content.
///
/// # Errors
/// The known ones, for one that is not.
pub fn check_media_type(given: &str) -> Result<String, String> {
    use MediaType::{DocBook, Epub, Html, ManPage, Markdown, Pdf, PlainText};
    if matches!(from_given(given), Some(Kind::Readable(_))) || given.trim().eq_ignore_ascii_case("application/octet-stream") {
        return Ok(given.to_owned());
    }
    let known = [PlainText, Markdown, Html, DocBook, ManPage, Pdf, Epub].map(MediaType::as_str);
    Err(format!("known are {}", known.join(", ")))
}

/// What a document turns out to be before it is known to be readable.
#[derive(Debug, PartialEq, Eq)]
enum Kind {
    Readable(MediaType),
    Binary(&'static str),
}

/// Tells the media type: by the bytes where they are unmistakable, then by the type given, by the extension of the
/// name (or else of the id), and by the text itself.
///
/// # Errors
/// [`IngestError::Binary`] for what has no reader.
pub(crate) fn media_type(source: &Source) -> Result<MediaType, IngestError> {
    let id = || source.id.clone();
    let kind = man_page(source)
        .or_else(|| signature(&source.bytes))
        .or_else(|| source.media_type.as_deref().and_then(from_given))
        .or_else(|| from_extension(&source.name))
        .or_else(|| from_extension(&source.id))
        .unwrap_or_else(|| Kind::Readable(from_content(&source.bytes)));
    match kind {
        Kind::Readable(media_type) if media_type.is_text() && looks_binary(&source.bytes) => {
            Err(IngestError::Binary { id: id(), kind: "binary data".into() })
        }
        Kind::Readable(media_type) => Ok(media_type),
        Kind::Binary(kind) => Err(IngestError::Binary { id: id(), kind: kind.into() }),
    }
}

/// A manual page is known by its macros, once its type or its name (`ls.1`, `open.3p.gz`) says that it may be one.
fn man_page(source: &Source) -> Option<Kind> {
    let given = source.media_type.as_deref().is_some_and(|given| from_given(given) == Some(Kind::Readable(MediaType::ManPage)));
    let named = |name: &str| {
        let name = name.strip_suffix(".gz").unwrap_or(name);
        name.rsplit_once('.').is_some_and(|(_, section)| {
            section.len() <= 8
                && section.starts_with(|char| matches!(char, '1'..='9'))
                && section.chars().all(char::is_alphanumeric)
        })
    };
    let may_be = given || named(&source.name) || named(&source.id);
    (may_be && man::is_man_page(&source.bytes)).then_some(Kind::Readable(MediaType::ManPage))
}

/// The file of an EPUB that names its package; names stand in an archive as they are.
const CONTAINER: &[u8] = b"META-INF/container.xml";

/// First bytes that leave no doubt.
fn signature(bytes: &[u8]) -> Option<Kind> {
    const SIGNATURES: &[(&[u8], &str)] = &[
        (b"PK\x03\x04", "a ZIP archive (also DOCX, XLSX, ODT)"),
        (b"\xD0\xCF\x11\xE0", "an old Microsoft Office file"),
        (b"\x89PNG", "a PNG image"),
        (b"\xFF\xD8\xFF", "a JPEG image"),
        (b"GIF8", "a GIF image"),
        (b"\x1F\x8B", "a gzip archive"),
        (b"\xFD7zXZ", "an xz archive"),
        (b"7z\xBC\xAF", "a 7z archive"),
        (b"\x7FELF", "a program"),
        (b"GGUF", "a GGUF model"),
        (b"SQLite format 3", "a SQLite database"),
        (b"{\\rtf", "an RTF file"),
    ];
    if bytes.starts_with(b"%PDF") {
        return Some(Kind::Readable(MediaType::Pdf));
    }
    // An EPUB's first file should say what the archive is; not every tool puts it first. This one every EPUB has.
    if bytes.starts_with(b"PK\x03\x04") && bytes.windows(CONTAINER.len()).any(|name| name == CONTAINER) {
        return Some(Kind::Readable(MediaType::Epub));
    }
    if is_docbook(bytes) {
        return Some(Kind::Readable(MediaType::DocBook));
    }
    SIGNATURES.iter().find(|(magic, _)| bytes.starts_with(magic)).map(|(_, name)| Kind::Binary(name))
}

/// Whether the root of an XML file is one of DocBook's.
fn is_docbook(bytes: &[u8]) -> bool {
    let bytes = bytes.strip_prefix(&[0xEF, 0xBB, 0xBF]).unwrap_or(bytes);
    bytes.trim_ascii_start().starts_with(b"<")
        && docbook::is_docbook(&String::from_utf8_lossy(&bytes[..bytes.len().min(64 * 1024)]))
}

/// From a media type with or without parameters; `None` for one that says nothing.
fn from_given(given: &str) -> Option<Kind> {
    let essence = given.split(';').next()?.trim().to_ascii_lowercase();
    match essence.as_str() {
        "text/markdown" | "text/x-markdown" => Some(Kind::Readable(MediaType::Markdown)),
        "text/html" | "application/xhtml+xml" => Some(Kind::Readable(MediaType::Html)),
        "application/docbook+xml" => Some(Kind::Readable(MediaType::DocBook)),
        "text/troff" | "application/x-troff-man" => Some(Kind::Readable(MediaType::ManPage)),
        "application/pdf" => Some(Kind::Readable(MediaType::Pdf)),
        "application/epub+zip" => Some(Kind::Readable(MediaType::Epub)),
        other if other.starts_with("text/") => Some(Kind::Readable(MediaType::PlainText)),
        other if other.starts_with("image/") => Some(Kind::Binary("an image")),
        other if other.starts_with("audio/") => Some(Kind::Binary("a sound recording")),
        other if other.starts_with("video/") => Some(Kind::Binary("a video")),
        _ => None,
    }
}

fn from_extension(name: &str) -> Option<Kind> {
    let (stem, extension) = name.rsplit(['/', '\\']).next()?.rsplit_once('.')?;
    if stem.is_empty() {
        return None;
    }
    Some(match extension.to_ascii_lowercase().as_str() {
        "md" | "markdown" | "mkd" | "mdown" => Kind::Readable(MediaType::Markdown),
        "html" | "htm" | "xhtml" => Kind::Readable(MediaType::Html),
        "txt" | "text" | "log" | "rst" | "adoc" | "org" | "csv" | "tsv" | "json" | "yaml" | "yml" | "toml" | "xml" | "ini"
        | "conf" => Kind::Readable(MediaType::PlainText),
        "pdf" => Kind::Readable(MediaType::Pdf),
        _ => return None,
    })
}

/// By the look of the first 4 KiB, for text of which nothing else is known.
fn from_content(bytes: &[u8]) -> MediaType {
    let (head, _) = decode(&bytes[..bytes.len().min(4096)]);
    let start = head.trim_start().get(..64).unwrap_or(head.trim_start()).to_ascii_lowercase();
    if start.starts_with("<!doctype html") || start.contains("<html") {
        return MediaType::Html;
    }
    let is_heading = |line: &str| {
        let rest = line.trim_start_matches('#');
        (1..=6).contains(&(line.len() - rest.len())) && rest.starts_with(' ')
    };
    // A script's comments look like headings; a script says so in its first line.
    let marked_up = !head.starts_with("#!")
        && head
            .lines()
            .any(|line| is_heading(line) || line.starts_with("```") || line.starts_with("|--") || line.starts_with("| --"));
    if marked_up { MediaType::Markdown } else { MediaType::PlainText }
}

/// Zero bytes, or many control characters, in the first 8 KiB of something that is not UTF-16.
fn looks_binary(bytes: &[u8]) -> bool {
    if bytes.starts_with(&[0xFF, 0xFE]) || bytes.starts_with(&[0xFE, 0xFF]) {
        return false;
    }
    let head = &bytes[..bytes.len().min(8192)];
    let control = head.iter().filter(|&&byte| byte < 0x20 && !matches!(byte, b'\t' | b'\n' | b'\r' | 0x0C | 0x1B)).count();
    head.contains(&0) || control * 20 > head.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(name: &str, media_type: Option<&str>, bytes: &[u8]) -> Result<MediaType, IngestError> {
        media_type_of(name, media_type, bytes)
    }

    fn media_type_of(name: &str, given: Option<&str>, bytes: &[u8]) -> Result<MediaType, IngestError> {
        media_type(&Source {
            id: "doc".into(),
            name: name.into(),
            media_type: given.map(Into::into),
            bytes: bytes.into(),
            ..Source::default()
        })
    }

    #[test]
    fn an_epub_is_known_by_its_container_wherever_it_stands() {
        let archive = b"PK\x03\x04 other.xhtml ... META-INF/container.xml ...";
        assert_eq!(told("book.bin", None, archive).unwrap(), MediaType::Epub);
        assert!(told("report.docx", None, b"PK\x03\x04[Content_Types].xml").is_err());
    }

    #[test]
    fn given_type_comes_before_extension_and_content() {
        assert_eq!(told("a.txt", Some("text/html; charset=utf-8"), b"# x").unwrap(), MediaType::Html);
        assert_eq!(told("a.MD", None, b"<html>").unwrap(), MediaType::Markdown);
        assert_eq!(told("a.md", Some("application/octet-stream"), b"x").unwrap(), MediaType::Markdown);
        assert_eq!(told("README", None, b"# Title\n\ntext").unwrap(), MediaType::Markdown);
        assert_eq!(told("", None, b"\n<!DOCTYPE html><p>x").unwrap(), MediaType::Html);
        assert_eq!(told("run", None, b"#!/bin/sh\n# comment\n").unwrap(), MediaType::PlainText);
        assert_eq!(told("notes", None, b"just words").unwrap(), MediaType::PlainText);
    }

    #[test]
    fn docbook_and_manual_pages_are_told_by_what_is_in_them() {
        let docbook = b"<?xml version='1.0'?>\n<article xmlns='http://docbook.org/ns/docbook'>";
        assert_eq!(told("a.xml", None, docbook).unwrap(), MediaType::DocBook);
        assert_eq!(told("a.xml", None, b"<config><article/></config>").unwrap(), MediaType::PlainText);
        let page = b".TH LS 1\n.SH NAME\nls \\- list\n";
        for (name, given) in [("ls.1", None), ("open.3pm", None), ("page", Some("text/troff"))] {
            assert_eq!(told(name, given, page).unwrap(), MediaType::ManPage, "{name}");
        }
        assert_eq!(told("app.log.1", None, b"12:01 started").unwrap(), MediaType::PlainText);
        assert!(told("a.1.gz", None, b"\x1F\x8B\x08 no page").is_err());
    }

    #[test]
    fn unknown_types_are_refused_with_the_known_ones() {
        for given in ["text/html; charset=utf-8", "TEXT/x-rst", "application/pdf", "application/octet-stream"] {
            assert_eq!(check_media_type(given).as_deref(), Ok(given));
        }
        for given in ["foo", "", "image/png"] {
            assert!(check_media_type(given).unwrap_err().contains("application/epub+zip"), "{given}");
        }
    }

    #[test]
    fn pdf_is_told_by_extension_type_and_magic() {
        for (name, given, bytes) in
            [("a.pdf", None, &b"x\0"[..]), ("a.txt", None, b"%PDF-1.7"), ("a", Some("application/pdf"), b"x")]
        {
            assert_eq!(told(name, given, bytes).unwrap(), MediaType::Pdf, "{name}");
        }
    }

    #[test]
    fn binary_is_refused_by_name() {
        let kinds: [(&[u8], &str); 4] =
            [(b"PK\x03\x04rest", "ZIP"), (b"\x89PNG\r\n", "PNG"), (b"GGUF\x03\0\0\0", "GGUF"), (b"ab\0cd", "binary data")];
        for (bytes, word) in kinds {
            let error = told("a.txt", None, bytes).unwrap_err().to_string();
            assert!(error.contains(word), "{error}");
        }
    }
}
