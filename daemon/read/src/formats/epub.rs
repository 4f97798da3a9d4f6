//! EPUB to Markdown: an archive of XHTML pages, read in the order of its spine.
//!
//! `META-INF/container.xml` names the package document, and the package lists the pages and their order (EPUB 3.3,
//! <https://www.w3.org/TR/epub-33/>). Pages are converted like any other HTML.

use std::{collections::HashMap, io::Read};

use flate2::read::DeflateDecoder;
use html5ever::tokenizer::{BufferQueue, TagKind, Token, TokenSink, TokenSinkResult, Tokenizer, TokenizerOpts};

use super::{Fault, Parsed, decode, html, one_line};

/// Most entries of an archive, pages of a book, and bytes of one file in it.
const MAX_ENTRIES: usize = 50_000;
const MAX_PAGES: usize = 10_000;
const MAX_FILE_BYTES: u64 = 32 << 20;

/// Most bytes of all pages together: the largest books have a tenth of that.
const MAX_BOOK_BYTES: usize = 30 << 20;

/// The file of an EPUB that names its package. An archive holds names uncompressed.
const CONTAINER: &[u8] = b"META-INF/container.xml";

/// Whether an archive has that file. An EPUB's first file should name the type, but not every tool puts it first.
pub(super) fn is_epub(bytes: &[u8]) -> bool {
    bytes.starts_with(b"PK\x03\x04") && bytes.windows(CONTAINER.len()).any(|name| name == CONTAINER)
}

/// Reads an EPUB.
pub(super) fn parse(bytes: &[u8]) -> Result<Parsed, Fault> {
    let damaged = |what: &str| Fault::Damaged(what.into());
    let archive = Archive::open(bytes).ok_or_else(|| damaged("it is not a ZIP archive, or a damaged one"))?;
    let container = archive.text("META-INF/container.xml").ok_or_else(|| damaged("it is a ZIP archive, but not an EPUB"))?;
    if archive.places.contains_key("META-INF/encryption.xml") && archive.places.contains_key("META-INF/rights.xml") {
        return Err(damaged("it is protected against copying"));
    }
    let package =
        elements(&container).into_iter().find(|element| element.name == "rootfile").and_then(|element| element.get("full-path"));
    let package = package.ok_or_else(|| damaged("its container names no package"))?;
    let listing = archive.text(&package).ok_or_else(|| damaged("its package document is missing"))?;
    let folder = package.rsplit_once('/').map_or("", |(folder, _)| folder);
    let book = Book::new(&elements(&listing));
    let mut text = String::new();
    for page in book.pages.iter().take(MAX_PAGES) {
        let Some(page) = archive.text(&path(folder, page)) else { continue };
        let page = html::to_markdown(&page)?;
        if !page.text.trim().is_empty() {
            text.push_str(&page.text);
            text.push('\n');
        }
        if text.len() > MAX_BOOK_BYTES {
            return Err(damaged("its pages unfold into more text than a library holds"));
        }
    }
    Ok(Parsed { title: book.title, text, note: None })
}

/// The contents of the package document.
struct Book {
    title: Option<String>,
    /// References to the pages, in order.
    pages: Vec<String>,
}

impl Book {
    fn new(elements: &[Element]) -> Self {
        let items: HashMap<String, String> = elements
            .iter()
            .filter(|element| {
                element.name == "item" && element.get("properties").is_none_or(|has| !has.split(' ').any(|word| word == "nav"))
            })
            .filter_map(|element| Some((element.get("id")?, element.get("href")?)))
            .collect();
        let in_order = elements.iter().filter(|element| element.name == "itemref");
        let pages = in_order.filter_map(|element| items.get(&element.get("idref")?).cloned()).collect();
        let title = elements.iter().find(|element| element.name == "dc:title").map(|element| one_line(&element.text));
        Self { title: title.filter(|title| !title.is_empty()), pages }
    }
}

/// A reference as the name of a file in the archive.
fn path(folder: &str, reference: &str) -> String {
    let reference = unescape(reference.split('#').next().unwrap_or(""));
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

/// Decodes `%20` and the like.
fn unescape(reference: &str) -> String {
    let mut bytes = Vec::with_capacity(reference.len());
    let mut rest = reference.as_bytes();
    while let Some((&first, after)) = rest.split_first() {
        let escaped = (first == b'%')
            .then(|| after.get(..2))
            .flatten()
            .and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok());
        bytes.push(escaped.unwrap_or(first));
        rest = if escaped.is_some() { &after[2..] } else { after };
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// An element with its attributes and the text up to the next tag.
struct Element {
    name: String,
    attributes: Vec<(String, String)>,
    text: String,
}

impl Element {
    fn get(&self, name: &str) -> Option<String> {
        self.attributes.iter().find(|(of, _)| of == name).map(|(_, value)| value.clone())
    }
}

/// The elements of a small XML file, in order. HTML's tokenizer suffices for EPUB's XML; it returns names in lower case.
fn elements(xml: &str) -> Vec<Element> {
    #[derive(Default)]
    struct Sink(std::cell::RefCell<Vec<Element>>);
    impl TokenSink for Sink {
        type Handle = ();

        fn process_token(&self, token: Token, _line: u64) -> TokenSinkResult<()> {
            let mut elements = self.0.borrow_mut();
            match token {
                Token::TagToken(tag) if tag.kind == TagKind::StartTag && elements.len() < MAX_ENTRIES => {
                    let attributes = tag
                        .attrs
                        .iter()
                        .map(|attribute| (attribute.name.local.to_string(), attribute.value.to_string()))
                        .collect();
                    elements.push(Element { name: tag.name.to_string(), attributes, text: String::new() });
                }
                Token::CharacterTokens(text) => {
                    if let Some(last) = elements.last_mut().filter(|last| last.text.len() < 4096) {
                        last.text.push_str(&text);
                    }
                }
                _ => {}
            }
            TokenSinkResult::Continue
        }
    }
    let tokenizer = Tokenizer::new(Sink::default(), TokenizerOpts::default());
    let input = BufferQueue::default();
    input.push_back(xml.into());
    let _ = tokenizer.feed(&input);
    tokenizer.end();
    tokenizer.sink.0.into_inner()
}

/// A ZIP archive (<https://pkware.cachefly.net/webdocs/casestudies/APPNOTE.TXT>), as far as EPUB allows it: one file, stored or
/// deflated, not encrypted.
struct Archive<'a> {
    bytes: &'a [u8],
    places: HashMap<String, Place>,
}

struct Place {
    deflated: bool,
    size: usize,
    header: usize,
}

impl<'a> Archive<'a> {
    /// Reads the directory at the end.
    fn open(bytes: &'a [u8]) -> Option<Self> {
        const END: &[u8] = b"PK\x05\x06";
        const ENTRY: &[u8] = b"PK\x01\x02";
        // The end record may be followed by a comment of 64 KiB at most.
        let tail = bytes.len().saturating_sub(22 + 65_535);
        let end = tail + bytes[tail..].windows(END.len()).rposition(|window| window == END)?;
        let count = u16_at(bytes, end + 10)?;
        let mut at = u32_at(bytes, end + 16)?;
        let mut places = HashMap::new();
        for _ in 0..count.min(MAX_ENTRIES) {
            if bytes.get(at..at.checked_add(4)?)? != ENTRY {
                break;
            }
            let (name, extra, comment) = (u16_at(bytes, at + 28)?, u16_at(bytes, at + 30)?, u16_at(bytes, at + 32)?);
            let text = String::from_utf8_lossy(bytes.get(at + 46..at + 46 + name)?).into_owned();
            let place =
                Place { deflated: u16_at(bytes, at + 10)? == 8, size: u32_at(bytes, at + 20)?, header: u32_at(bytes, at + 42)? };
            places.insert(text, place);
            at += 46 + name + extra + comment;
        }
        Some(Self { bytes, places })
    }

    /// A file's text; `None` if the file is missing or damaged. Large files are cut.
    fn text(&self, name: &str) -> Option<String> {
        let place = self.places.get(name)?;
        let start = place.header + 30 + u16_at(self.bytes, place.header + 26)? + u16_at(self.bytes, place.header + 28)?;
        let data = self.bytes.get(start..start.checked_add(place.size)?)?;
        let mut content = Vec::new();
        if place.deflated {
            // Data unpacked before an error is still text.
            let _ = DeflateDecoder::new(data).take(MAX_FILE_BYTES).read_to_end(&mut content);
        } else {
            content.extend_from_slice(data);
        }
        Some(decode(&content).0)
    }
}

fn u16_at(bytes: &[u8], at: usize) -> Option<usize> {
    let pair = bytes.get(at..at.checked_add(2)?)?;
    Some(usize::from(u16::from_le_bytes([pair[0], pair[1]])))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<usize> {
    Some(u16_at(bytes, at)? | u16_at(bytes, at + 2)? << 16)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An archive of stored files.
    fn archive(files: &[(&str, &str)]) -> Vec<u8> {
        let (mut bytes, mut directory) = (Vec::new(), Vec::new());
        let number = |value: usize, size: usize| value.to_le_bytes()[..size].to_vec();
        for (name, text) in files {
            let header = bytes.len();
            let sizes = [number(text.len(), 4), number(text.len(), 4), number(name.len(), 2), number(0, 2)].concat();
            bytes.extend(
                [b"PK\x03\x04".to_vec(), vec![0; 14], sizes.clone(), name.as_bytes().to_vec(), text.as_bytes().to_vec()].concat(),
            );
            directory.extend(
                [b"PK\x01\x02".to_vec(), vec![0; 16], sizes, vec![0; 10], number(header, 4), name.as_bytes().to_vec()].concat(),
            );
        }
        let place = bytes.len();
        let end = [
            b"PK\x05\x06".to_vec(),
            vec![0; 6],
            number(files.len(), 2),
            number(directory.len(), 4),
            number(place, 4),
            vec![0; 2],
        ]
        .concat();
        [bytes, directory, end].concat()
    }

    const CONTAINER: &str = "<container><rootfiles><rootfile full-path=\"OPS/book.opf\"/></rootfiles></container>";

    #[test]
    fn pages_come_in_the_order_of_the_spine() {
        let package = "<package><metadata><dc:title>The pump</dc:title></metadata><manifest>
            <item id='n' href='nav.xhtml' properties='nav'/><item id='b' href='text/two%20b.xhtml'/><item id='a' href='text/one.xhtml'/></manifest>
            <spine><itemref idref='n'/><itemref idref='a'/><itemref idref='b'/><itemref idref='gone'/></spine></package>";
        let bytes = archive(&[
            ("META-INF/container.xml", CONTAINER),
            ("OPS/book.opf", package),
            ("OPS/nav.xhtml", "<p>Contents</p>"),
            ("OPS/text/two b.xhtml", "<h1>Two</h1><p>Second.</p>"),
            ("OPS/text/one.xhtml", "<html><head><title>x</title></head><body><h1>One</h1><p>First.</p></body></html>"),
        ]);
        let book = parse(&bytes).unwrap();
        assert_eq!(book.title.as_deref(), Some("The pump"));
        assert_eq!(book.text, "# One\n\nFirst.\n\n# Two\n\nSecond.\n\n");
        for end in 0..bytes.len() {
            let _ = parse(&bytes[..end]);
        }
    }

    #[test]
    fn other_archives_are_refused() {
        assert!(matches!(parse(b"PK\x03\x04"), Err(Fault::Damaged(_))));
        let error = parse(&archive(&[("word/document.xml", "<w/>")])).unwrap_err();
        assert_eq!(error, Fault::Damaged("it is a ZIP archive, but not an EPUB".into()));
    }
}
