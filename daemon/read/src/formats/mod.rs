//! The formats that are read: one row of [`FORMATS`] each. A reader turns bytes or text into Markdown.
//!
//! The readers know only bytes and text, so that they can run in a child process (`child`) and be fuzzed alone.

mod archive;
mod asciidoc;
pub mod encoding;
mod epub;
pub mod html;
mod json;
mod mail;
mod markdown;
pub(crate) mod office;
#[cfg(feature = "pdf")]
mod pdf;
mod rst;
mod rtf;
mod subtitles;
mod table;
mod text;
mod xml;

use crate::Form;
use encoding::Declaration;
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
    /// The document is protected against copying.
    Protected,
    /// The document is text in an encoding that cannot be told.
    UnknownEncoding,
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
    extensions: &["txt", "text"],
    also: &["log", "org", "yaml", "yml", "toml", "xml", "ini", "conf"],
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

/// DOCX, texts of Word and of most other programs.
pub static DOCX: Format = Format {
    name: "DOCX",
    media_type: "application/vnd.openxmlformats-officedocument.wordprocessingml.document",
    aliases: &[
        "application/vnd.ms-word.document.macroenabled.12",
        "application/vnd.openxmlformats-officedocument.wordprocessingml.template",
    ],
    extensions: &["docx"],
    also: &["docm", "dotx", "dotm"],
    signature: |bytes| archive::holds(bytes, "word/document"),
    paged: false,
    reader: Reader::Confined(|bytes| office::docx(&bytes)),
};

/// XLSX, sheets of Excel.
pub static XLSX: Format = Format {
    name: "XLSX",
    media_type: "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet",
    aliases: &[
        "application/vnd.ms-excel.sheet.macroenabled.12",
        "application/vnd.openxmlformats-officedocument.spreadsheetml.template",
    ],
    extensions: &["xlsx"],
    also: &["xlsm", "xltx", "xltm"],
    signature: |bytes| archive::holds(bytes, "xl/workbook.xml"),
    paged: false,
    reader: Reader::Confined(|bytes| office::xlsx(&bytes)),
};

/// PPTX, slides of PowerPoint. A slide is a page.
pub static PPTX: Format = Format {
    name: "PPTX",
    media_type: "application/vnd.openxmlformats-officedocument.presentationml.presentation",
    aliases: &[
        "application/vnd.ms-powerpoint.presentation.macroenabled.12",
        "application/vnd.openxmlformats-officedocument.presentationml.slideshow",
    ],
    extensions: &["pptx"],
    also: &["pptm", "ppsx", "potx"],
    signature: |bytes| archive::holds(bytes, "ppt/presentation.xml"),
    paged: true,
    reader: Reader::Confined(|bytes| office::pptx(&bytes)),
};

/// ODT, texts of LibreOffice.
pub static ODT: Format = Format {
    name: "ODT",
    media_type: "application/vnd.oasis.opendocument.text",
    aliases: &["application/vnd.oasis.opendocument.text-template"],
    extensions: &["odt"],
    also: &["ott"],
    signature: |bytes| office::is_odf(bytes, "text"),
    paged: false,
    reader: Reader::Confined(|bytes| office::odf(&bytes)),
};

/// ODS, sheets of LibreOffice.
pub static ODS: Format = Format {
    name: "ODS",
    media_type: "application/vnd.oasis.opendocument.spreadsheet",
    aliases: &["application/vnd.oasis.opendocument.spreadsheet-template"],
    extensions: &["ods"],
    also: &["ots"],
    signature: |bytes| office::is_odf(bytes, "spreadsheet"),
    paged: false,
    reader: Reader::Confined(|bytes| office::odf(&bytes)),
};

/// ODP, slides of LibreOffice. A slide is a page.
pub static ODP: Format = Format {
    name: "ODP",
    media_type: "application/vnd.oasis.opendocument.presentation",
    aliases: &["application/vnd.oasis.opendocument.presentation-template"],
    extensions: &["odp"],
    also: &["otp"],
    signature: |bytes| office::is_odf(bytes, "presentation"),
    paged: true,
    reader: Reader::Confined(|bytes| office::odf(&bytes)),
};

/// RTF.
pub static RTF: Format = Format {
    name: "RTF",
    media_type: "application/rtf",
    aliases: &["text/rtf"],
    extensions: &["rtf"],
    also: &[],
    signature: |bytes| bytes.starts_with(b"{\\rtf"),
    paged: false,
    reader: Reader::Confined(|bytes| rtf::parse(&bytes)),
};

/// Comma-separated values, by any separator.
pub static CSV: Format = Format {
    name: "CSV",
    media_type: "text/csv",
    aliases: &["text/tab-separated-values", "application/csv"],
    extensions: &["csv", "tsv"],
    also: &[],
    signature: never,
    paged: false,
    reader: Reader::Text(table::to_markdown, Form::Markdown),
};

/// reStructuredText.
pub static RST: Format = Format {
    name: "reStructuredText",
    media_type: "text/x-rst",
    aliases: &["text/prs.fallenstein.rst"],
    extensions: &["rst"],
    also: &["rest"],
    signature: never,
    paged: false,
    reader: Reader::Text(rst::to_markdown, Form::Markdown),
};

/// AsciiDoc.
pub static ASCIIDOC: Format = Format {
    name: "AsciiDoc",
    media_type: "text/asciidoc",
    aliases: &["text/x-asciidoc"],
    extensions: &["adoc", "asciidoc"],
    also: &["asc"],
    signature: never,
    paged: false,
    reader: Reader::Text(asciidoc::to_markdown, Form::Markdown),
};

/// Mails, and pages that a browser saved in one file.
pub static MAIL: Format = Format {
    name: "EML",
    media_type: "message/rfc822",
    aliases: &["multipart/related", "application/x-mimearchive"],
    extensions: &["eml", "mht", "mhtml"],
    also: &[],
    signature: mail::is_mail,
    paged: false,
    reader: Reader::Confined(|bytes| mail::parse(&bytes)),
};

/// Notebooks of Jupyter.
pub static NOTEBOOK: Format = Format {
    name: "IPYNB",
    media_type: "application/x-ipynb+json",
    aliases: &[],
    extensions: &["ipynb"],
    also: &[],
    signature: never,
    paged: false,
    reader: Reader::Text(json::notebook, Form::Markdown),
};

/// JSON, and files of several JSON values.
pub static JSON: Format = Format {
    name: "JSON",
    media_type: "application/json",
    aliases: &["text/json", "application/x-ndjson", "application/jsonl"],
    extensions: &[],
    also: &["json", "jsonl", "ndjson"],
    signature: never,
    paged: false,
    reader: Reader::Confined(|bytes| json::parse(&bytes)),
};

/// Subtitles.
pub static SUBTITLES: Format = Format {
    name: "SRT",
    media_type: "application/x-subrip",
    aliases: &["text/vtt", "text/srt"],
    extensions: &["srt", "vtt"],
    also: &[],
    signature: |bytes| bytes.starts_with(b"WEBVTT"),
    paged: false,
    reader: Reader::Text(subtitles::to_markdown, Form::Markdown),
};

/// All formats. A new one is a file in this folder and a row here.
pub static FORMATS: [&Format; 19] = [
    &PLAIN, &MARKDOWN, &HTML, &PDF, &EPUB, &DOCX, &XLSX, &PPTX, &ODT, &ODS, &ODP, &RTF, &CSV, &RST, &ASCIIDOC, &MAIL, &NOTEBOOK,
    &JSON, &SUBTITLES,
];

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
        self.parse_in(bytes, None)
    }

    /// Like [`parse`](Self::parse); `charset`: the encoding of a text, as the sender names it.
    ///
    /// # Errors
    /// The reader's fault.
    pub fn parse_in(&self, bytes: Vec<u8>, charset: Option<&str>) -> Result<Parsed, Fault> {
        match self.reader {
            Reader::Text(read, _) => {
                let in_document = if *self == HTML { Declaration::InHtml } else { Declaration::InXml };
                let (text, note) = encoding::decode(&bytes, charset.map_or(in_document, Declaration::Beside))?;
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

/// Text that begins with a byte order mark.
#[cfg(feature = "pdf")]
fn decode(bytes: &[u8]) -> (String, Option<String>) {
    encoding::decode(bytes, Declaration::InXml).unwrap_or_default()
}

/// A given case, for tests.
#[cfg(test)]
pub(crate) fn example(name: &str) -> Vec<u8> {
    std::fs::read(format!("{}/tests/cases/{name}", env!("CARGO_MANIFEST_DIR"))).expect(name)
}
