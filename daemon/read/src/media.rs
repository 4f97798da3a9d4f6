//! Tells a document's format.

use std::io::Read;

use flate2::read::MultiGzDecoder;

use crate::formats::{
    DOCX, EPUB, FORMATS, Format, HTML, MARKDOWN, ODP, ODS, ODT, PLAIN, PPTX, Reader, XLSX,
    encoding::{decode_head, legacy_name, utf_16_without_mark},
    office,
};
use crate::{Original, ReadError};

/// Checks a given media type. A type that says nothing, such as `application/octet-stream`, leaves the decision to the content.
///
/// # Errors
/// An unknown type: the message lists the supported ones. A known format without a reader: the message names the command that
/// converts it.
pub fn check_media_type(given: &str) -> Result<String, String> {
    match from_given(given) {
        Some(Kind::Readable(_)) => return Ok(given.to_owned()),
        Some(Kind::Convert(kind, command)) => {
            return Err(format!("{kind} cannot be read; convert it first (`{command}`)"));
        }
        Some(Kind::Binary(_) | Kind::Locked) | None => {}
    }
    if given.trim().eq_ignore_ascii_case("application/octet-stream") {
        return Ok(given.to_owned());
    }
    let known = FORMATS.map(|format| format.media_type);
    Err(format!("known are {}", known.join(", ")))
}

/// The finding about a document, readable or not.
#[derive(Debug, PartialEq, Eq)]
enum Kind {
    Readable(&'static Format),
    Binary(&'static str),
    /// A format, and the command that turns it into one that is read.
    Convert(&'static str, &'static str),
    /// A document that asks for a password.
    Locked,
}

const DOCBOOK: Kind = Kind::Convert("DocBook", "xmlto html-nochunks FILE");

const OLD_OFFICE: Kind =
    Kind::Convert("an old Microsoft Office file (DOC, XLS, PPT)", "soffice --headless --convert-to docx|xlsx|pptx FILE");

const ZIP: Kind = Kind::Binary("a ZIP archive");

const MANUAL_PAGE: Kind = Kind::Convert("a manual page", "mandoc -T html FILE");

/// Tells the format: from unmistakable first bytes, then from the given type, from the extension of the name (or else of the
/// id), and from the text itself.
///
/// # Errors
/// [`ReadError::Binary`] and [`ReadError::Convert`] for documents without a reader.
pub fn format_of(source: Original) -> Result<&'static Format, ReadError> {
    if let Some((bytes, packed)) = unpacked(source)? {
        return format_of(Original { bytes: &bytes, ..packed });
    }
    let kind = manual_page(source)
        .or_else(|| signature(source.bytes))
        // An archive of unusual order is known by its name or type only.
        .map(|kind| if kind == ZIP { named(source).filter(is_archive).unwrap_or(kind) } else { kind })
        .or_else(|| named(source))
        .unwrap_or_else(|| Kind::Readable(from_content(source.bytes)));
    match kind {
        Kind::Readable(format) if matches!(format.reader, Reader::Text(..)) && looks_binary(source.bytes) => {
            Err(ReadError::Binary { kind: "binary data".into() })
        }
        Kind::Readable(format) => Ok(format),
        Kind::Binary(kind) => Err(ReadError::Binary { kind: kind.into() }),
        Kind::Convert(kind, command) => Err(ReadError::Convert { kind, command }),
        Kind::Locked => Err(ReadError::Locked),
    }
}

/// The media type under which a document is stored: its format's, with the encoding if the sender named one that no reader would
/// find out when it reads the stored bytes again.
///
/// # Errors
/// As [`format_of`].
pub fn media_type_of(source: Original) -> Result<String, ReadError> {
    let format = format_of(source)?;
    let charset = source.media_type.and_then(charset).and_then(legacy_name);
    Ok(match (format.reader, charset) {
        (Reader::Text(..), Some(charset)) => format!("{}; charset={charset}", format.media_type),
        _ => format.media_type.to_owned(),
    })
}

/// The finding by the given type and the names.
fn named(source: Original) -> Option<Kind> {
    let given = source.media_type.and_then(from_given);
    given.or_else(|| from_extension(source.name)).or_else(|| from_extension(source.id))
}

/// Whether a format's files are ZIP archives.
fn is_archive(kind: &Kind) -> bool {
    matches!(kind, Kind::Readable(format) if [&EPUB, &DOCX, &XLSX, &PPTX, &ODT, &ODS, &ODP].contains(format))
}

/// The contents of a gzip file, and its name without the ending; `None` for anything else, and for a file that is damaged from its
/// beginning. Files in it that are packed again stay so.
///
/// # Errors
/// [`ReadError::TooMuchText`].
pub(crate) fn unpacked<'a>(source: Original<'a>) -> Result<Option<(Vec<u8>, Original<'a>)>, ReadError> {
    if !source.bytes.starts_with(&[0x1F, 0x8B]) || manual_page(source).is_some() {
        return Ok(None);
    }
    let mut bytes = Vec::new();
    // The part before a fault is text.
    let _ = MultiGzDecoder::new(source.bytes).take(MAX_UNPACKED_BYTES + 1).read_to_end(&mut bytes);
    if bytes.len() as u64 > MAX_UNPACKED_BYTES {
        return Err(ReadError::TooMuchText { limit: MAX_UNPACKED_BYTES });
    }
    if bytes.is_empty() || bytes.starts_with(&[0x1F, 0x8B]) {
        return Ok(None);
    }
    let stem = |name: &'a str| name.strip_suffix(".gz").or_else(|| name.strip_suffix(".GZ")).unwrap_or(name);
    let media_type = source.media_type.filter(|given| !given.to_ascii_lowercase().contains("gzip"));
    Ok(Some((bytes, Original { name: stem(source.name), id: stem(source.id), media_type, bytes: &[], ..source })))
}

/// Most bytes of a gzip file's contents: twice the largest document that is taken by default.
const MAX_UNPACKED_BYTES: u64 = 64 << 20;

/// A manual page is known by its macros, once its name (`ls.1`, `open.3p.gz`) says that it may be one.
fn manual_page(source: Original) -> Option<Kind> {
    let named = |name: &str| {
        let name = name.strip_suffix(".gz").unwrap_or(name);
        name.rsplit_once('.').is_some_and(|(_, section)| {
            section.len() <= 8
                && section.starts_with(|char| matches!(char, '1'..='9'))
                && section.chars().all(char::is_alphanumeric)
        })
    };
    ((named(source.name) || named(source.id)) && has_page_macros(source.bytes)).then_some(MANUAL_PAGE)
}

/// Whether the first lines of a file, compressed or not, call the macros at the beginning of a manual page.
fn has_page_macros(bytes: &[u8]) -> bool {
    const MACROS: [&[u8]; 6] = [b".TH ", b".Dd", b".Dt ", b".SH ", b".Sh ", b".so "];
    let mut head = Vec::new();
    // The part unpacked before an error suffices.
    let _ = if bytes.starts_with(&[0x1F, 0x8B]) {
        MultiGzDecoder::new(bytes).take(MAX_HEAD_BYTES).read_to_end(&mut head)
    } else {
        bytes.take(MAX_HEAD_BYTES).read_to_end(&mut head)
    };
    head.split(|&byte| byte == b'\n').any(|line| MACROS.iter().any(|name| line.starts_with(name)))
}

/// Bytes from the start that are searched for signs of DocBook or a manual page: some files begin with a licence.
const MAX_HEAD_BYTES: u64 = 64 * 1024;

fn signature(bytes: &[u8]) -> Option<Kind> {
    const SIGNATURES: &[(&[u8], &str)] = &[
        (b"\x89PNG", "a PNG image"),
        (b"\xFF\xD8\xFF", "a JPEG image"),
        (b"GIF8", "a GIF image"),
        (b"\x1F\x8B", "a gzip archive"),
        (b"\xFD7zXZ", "an xz archive"),
        (b"7z\xBC\xAF", "a 7z archive"),
        (b"Rar!", "a RAR archive"),
        (b"BZh", "a bzip2 archive"),
        (b"\x28\xB5\x2F\xFD", "a zstd archive"),
        (b"\x7FELF", "a program"),
        (b"GGUF", "a GGUF model"),
        (b"SQLite format 3", "a SQLite database"),
    ];
    if let Some(format) = FORMATS.into_iter().find(|format| (format.signature)(bytes)) {
        return Some(Kind::Readable(format));
    }
    if bytes.starts_with(b"\xD0\xCF\x11\xE0") {
        return Some(if office::is_locked(bytes) { Kind::Locked } else { OLD_OFFICE });
    }
    if bytes.starts_with(b"PK\x03\x04") {
        return Some(ZIP);
    }
    if is_docbook(bytes) {
        return Some(DOCBOOK);
    }
    if bytes.get(257..262) == Some(b"ustar") {
        return Some(Kind::Binary("a tar archive"));
    }
    SIGNATURES.iter().find(|(magic, _)| bytes.starts_with(magic)).map(|(_, name)| Kind::Binary(name))
}

/// Whether an XML file is DocBook, by its document type, the name space of its root, or a root element that only DocBook has.
fn is_docbook(bytes: &[u8]) -> bool {
    let bytes = bytes.strip_prefix(&[0xEF, 0xBB, 0xBF]).unwrap_or(bytes);
    if !bytes.trim_ascii_start().starts_with(b"<") {
        return false;
    }
    let head = String::from_utf8_lossy(&bytes[..bytes.len().min(MAX_HEAD_BYTES as usize)]);
    // `<?` and `<!` stand before the root.
    let Some(root) = head.match_indices('<').find(|(at, _)| head[at + 1..].starts_with(char::is_alphabetic)) else {
        return false;
    };
    let (prolog, root) = head.split_at(root.0);
    let tag = root.split('>').next().unwrap_or(root);
    let name = tag[1..].split(|char: char| char.is_whitespace() || char == '/').next().unwrap_or("");
    let declared = name.split_once(':').map_or_else(|| "xmlns=".to_owned(), |(prefix, _)| format!("xmlns:{prefix}="));
    let of_docbook = |value: &str| value.trim_start_matches(['"', '\'']).starts_with("http://docbook.org/ns/docbook");
    prolog.contains("//DTD DocBook")
        || tag.split(&declared).skip(1).any(of_docbook)
        || matches!(name, "refentry" | "sect1" | "refsect1")
}

/// The finding for a media type with or without parameters; `None` for one that says nothing.
fn from_given(given: &str) -> Option<Kind> {
    let essence = given.split(';').next()?.trim().to_ascii_lowercase();
    if let Some(format) =
        FORMATS.into_iter().find(|format| format.media_type == essence || format.aliases.contains(&essence.as_str()))
    {
        return Some(Kind::Readable(format));
    }
    match essence.as_str() {
        "application/docbook+xml" => Some(DOCBOOK),
        "text/troff" | "application/x-troff-man" => Some(MANUAL_PAGE),
        other if other.starts_with("text/") => Some(Kind::Readable(&PLAIN)),
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
    let extension = extension.to_ascii_lowercase();
    let is_it = |format: &&Format| format.extensions.iter().chain(format.also).any(|known| *known == extension);
    if matches!(extension.as_str(), "dbk" | "docbook") {
        return Some(DOCBOOK);
    }
    FORMATS.into_iter().find(is_it).map(Kind::Readable)
}

/// The type of text without a given type or extension, from its first 4 KiB.
fn from_content(bytes: &[u8]) -> &'static Format {
    let head = decode_head(bytes);
    let start = head.trim_start().get(..64).unwrap_or(head.trim_start()).to_ascii_lowercase();
    if start.starts_with("<!doctype html") || start.contains("<html") {
        return &HTML;
    }
    let is_heading = |line: &str| {
        let rest = line.trim_start_matches('#');
        (1..=6).contains(&(line.len() - rest.len())) && rest.starts_with(' ')
    };
    // A script's comments look like headings; its first line identifies it.
    let marked_up = !head.starts_with("#!")
        && head
            .lines()
            .any(|line| is_heading(line) || line.starts_with("```") || line.starts_with("|--") || line.starts_with("| --"));
    if marked_up { &MARKDOWN } else { &PLAIN }
}

/// The parameter `charset` of a media type.
pub(crate) fn charset(media_type: &str) -> Option<&str> {
    media_type.split(';').skip(1).find_map(|parameter| {
        let (name, value) = parameter.split_once('=')?;
        name.trim().eq_ignore_ascii_case("charset").then(|| value.trim().trim_matches('"'))
    })
}

/// Many control characters in the first 8 KiB of something that is not UTF-16, or zero bytes beside signs of binary data. A
/// power cut leaves runs of zeros in a log, which is text all the same.
fn looks_binary(bytes: &[u8]) -> bool {
    if bytes.starts_with(&[0xFF, 0xFE]) || bytes.starts_with(&[0xFE, 0xFF]) || utf_16_without_mark(bytes).is_some() {
        return false;
    }
    let head = &bytes[..bytes.len().min(8192)];
    let control = head.iter().filter(|&&byte| byte < 0x20 && !matches!(byte, 0 | b'\t' | b'\n' | b'\r' | 0x0C | 0x1B)).count();
    if !head.contains(&0) {
        return control * 20 > head.len();
    }
    let runs = head.chunk_by(|a, b| (*a == 0) == (*b == 0)).filter(|run| run[0] == 0).count();
    let faults = head.utf8_chunks().filter(|chunk| !chunk.invalid().is_empty()).count();
    control > 0 || runs * 8 > head.len() || faults * 100 > head.len()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::formats::PDF;

    fn told(name: &str, media_type: Option<&str>, bytes: &[u8]) -> Result<&'static Format, ReadError> {
        format_of(Original { id: "doc", name, media_type, bytes, ..Original::default() })
    }

    #[test]
    fn an_epub_is_known_by_its_container() {
        let archive = b"PK\x03\x04 other.xhtml ... META-INF/container.xml ...";
        assert_eq!(told("book.bin", None, archive).unwrap(), &EPUB);
        assert!(told("report", None, b"PK\x03\x04 other").is_err());
    }

    #[test]
    fn given_type_comes_before_extension_and_content() {
        assert_eq!(told("a.txt", Some("text/html; charset=utf-8"), b"# x").unwrap(), &HTML);
        assert_eq!(told("a.MD", None, b"<html>").unwrap(), &MARKDOWN);
        assert_eq!(told("a.md", Some("application/octet-stream"), b"x").unwrap(), &MARKDOWN);
        assert_eq!(told("README", None, b"# Title\n\ntext").unwrap(), &MARKDOWN);
        assert_eq!(told("", None, b"\n<!DOCTYPE html><p>x").unwrap(), &HTML);
        assert_eq!(told("run", None, b"#!/bin/sh\n# comment\n").unwrap(), &PLAIN);
        assert_eq!(told("notes", None, b"just words").unwrap(), &PLAIN);
    }

    #[test]
    fn a_named_encoding_is_stored_with_the_type() {
        let stored = |given: &str| {
            let source = Original { id: "a.txt", media_type: Some(given), bytes: b"\xEB\xCC\xC0\xDE", ..Original::default() };
            (media_type_of(source).unwrap(), crate::read(source).map(|reading| reading.text))
        };
        let (stored_type, text) = stored("text/plain; Charset=\"KOI8-R\"");
        assert_eq!((stored_type.as_str(), text.unwrap().as_str()), ("text/plain; charset=KOI8-R", "Ключ"));
        assert_eq!(stored(&stored_type).0, stored_type);
        for given in ["text/plain; charset=utf-8", "text/plain; charset=none", "text/plain"] {
            assert_eq!(stored(given).0, "text/plain");
        }
    }

    #[test]
    fn text_with_zeros_is_text() {
        let log = crate::formats::example("encoding/nul-in-log.txt");
        assert_eq!(told("pump.log", None, &log).unwrap(), &PLAIN);
        let reading = crate::read(Original { id: "pump.log", bytes: &log, ..Original::default() }).unwrap();
        assert!(reading.text.contains("pump failed with E-17\n12:03 stop"), "{}", reading.text);
        let cut = [b"12:01 start\n".to_vec(), vec![0; 9000], b"12:03 stop\n".to_vec()].concat();
        assert_eq!(told("pump.log", None, &cut).unwrap(), &PLAIN);
        let wide: Vec<u8> = "Wartung der Heizungspumpe".encode_utf16().flat_map(u16::to_le_bytes).collect();
        assert_eq!(told("a.txt", None, &wide).unwrap(), &PLAIN);
        let structs: Vec<u8> = (0..400_u32).flat_map(u32::to_le_bytes).collect();
        assert!(told("a.txt", None, &structs).is_err());
    }

    /// The error message for a file.
    fn refused(name: &str, given: Option<&str>, bytes: &[u8]) -> String {
        told(name, given, bytes).expect_err(name).to_string()
    }

    #[test]
    fn docbook_is_refused_with_a_remedy() {
        let typed = "<?xml version='1.0'?>\n<!-- by hand -->\n\
            <!DOCTYPE book PUBLIC \"-//OASIS//DTD DocBook XML V4.5//EN\" \"x.dtd\" [\n\
            <!ENTITY pump \"<productname>HP-7</productname>\">\n]>\n<book><title>Pump</title></book>";
        let named = ["<article xmlns='http://docbook.org/ns/docbook'>", "<d:book\n xmlns:d=\"http://docbook.org/ns/docbook\">"];
        for xml in named.into_iter().chain([typed, "\u{FEFF}<refentry id='ls'>"]) {
            let error = refused("a.xml", None, xml.as_bytes());
            assert_eq!(error, "DocBook cannot be read; convert it first (`xmlto html-nochunks FILE`)", "{xml}");
        }
        assert!(refused("part.dbk", None, b"<para>x</para>").contains("xmlto html-nochunks FILE"));
        assert!(refused("part", Some("application/docbook+xml"), b"<para>x</para>").contains("xmlto html-nochunks FILE"));
        let sheet = b"<xsl:stylesheet xmlns:xsl='http://www.w3.org/1999/XSL/Transform' xmlns:d='http://docbook.org/ns/docbook'>";
        for other in [&b"<config><article/></config>"[..], sheet, b"<", b"<?xml"] {
            assert_eq!(told("a.xml", None, other).unwrap(), &PLAIN);
        }
        let about = b"<html><body><p>Begin with &lt;!DOCTYPE book PUBLIC \"-//OASIS//DTD DocBook XML V4.5//EN\"></body></html>";
        assert_eq!(told("docbook.html", None, about).unwrap(), &HTML);
    }

    #[test]
    fn a_manual_page_is_refused_with_a_remedy() {
        let page = b".\\\" A licence.\n.TH LS 1\n.SH NAME\nls \\- list\n";
        let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        std::io::Write::write_all(&mut packed, page).unwrap();
        let packed = packed.finish().unwrap();
        for (name, given, bytes) in [
            ("ls.1", None, &page[..]),
            ("open.3pm", None, page),
            ("page", Some("text/troff"), page),
            ("man1/ls.1.gz", None, &packed),
        ] {
            let error = refused(name, given, bytes);
            assert_eq!(error, "a manual page cannot be read; convert it first (`mandoc -T html FILE`)", "{name}");
        }
        assert_eq!(told("app.log.1", None, b"12:01 started").unwrap(), &PLAIN);
        assert!(refused("app.log.1.gz", None, b"\x1F\x8B\x08 no page").contains("a gzip archive"));
    }

    #[test]
    fn gzip_is_unpacked_once() {
        let pack = |bytes: &[u8]| {
            let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            std::io::Write::write_all(&mut packed, bytes).unwrap();
            packed.finish().unwrap()
        };
        let page = pack(b"<h1>Pump</h1><p>Key.");
        let reading = crate::read(Original { id: "a.html.gz", name: "a.html.gz", bytes: &page, ..Original::default() }).unwrap();
        assert_eq!((reading.format, reading.text.as_str()), (&HTML, "# Pump\n\nKey.\n"));
        assert_eq!(crate::read(Original { id: "a.txt.gz", bytes: &pack(b"text"), ..Original::default() }).unwrap().title, "a");
        assert!(refused("a.gz", None, &pack(&page)).contains("a gzip archive"));
        let tar = [vec![b'x'; 257], b"ustar".to_vec(), vec![0; 300]].concat();
        assert!(refused("a.tar.gz", None, &pack(&tar)).contains("a tar archive"));
        let bomb = pack(&vec![b'a'; MAX_UNPACKED_BYTES as usize + 1]);
        assert!(matches!(told("a.txt.gz", None, &bomb), Err(ReadError::TooMuchText { .. })));
    }

    #[test]
    fn unknown_types_are_refused_with_the_known_ones() {
        for given in ["text/html; charset=utf-8", "TEXT/x-rst", "application/pdf", "application/octet-stream"] {
            assert_eq!(check_media_type(given).as_deref(), Ok(given));
        }
        for given in ["foo", "", "image/png"] {
            assert!(check_media_type(given).unwrap_err().contains("application/epub+zip"), "{given}");
        }
        assert!(check_media_type("application/docbook+xml").unwrap_err().contains("`xmlto html-nochunks FILE`"));
        assert!(check_media_type("text/troff").unwrap_err().contains("`mandoc -T html FILE`"));
    }

    #[test]
    fn pdf_is_told_by_extension_type_and_magic() {
        for (name, given, bytes) in
            [("a.pdf", None, &b"x\0"[..]), ("a.txt", None, b"%PDF-1.7"), ("a", Some("application/pdf"), b"x")]
        {
            assert_eq!(told(name, given, bytes).unwrap(), &PDF, "{name}");
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
