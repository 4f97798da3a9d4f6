//! EPUB to Markdown: an archive of XHTML pages, read in the order of its spine.
//!
//! `META-INF/container.xml` names the package document, and the package lists the pages and their order (EPUB 3.3,
//! <https://www.w3.org/TR/epub-33/>). Pages are converted like any other XHTML.

use std::collections::{HashMap, HashSet};

use super::{
    Fault, Parsed,
    archive::{self, Archive, resolved},
    html, one_line,
    xml::{Element, Token, Xml},
};

/// Most pages of a book, and most elements of its package.
const MAX_PAGES: usize = 10_000;
const MAX_ELEMENTS: usize = 100_000;

/// Most bytes of all pages together: the largest books have a tenth of that.
const MAX_BOOK_BYTES: usize = 30 << 20;

/// The file of an EPUB that names its package.
const CONTAINER: &str = "META-INF/container.xml";

/// Ciphers that hide fonts from copying, and nothing else.
const FONT_CIPHERS: [&str; 2] = ["http://www.idpf.org/2008/embedding", "http://ns.adobe.com/pdf/enc#RC"];

/// Whether an archive has that file. An EPUB's first file should name the type, but not every tool puts it first.
pub(super) fn is_epub(bytes: &[u8]) -> bool {
    archive::holds(bytes, CONTAINER)
}

/// Reads an EPUB.
pub(super) fn parse(bytes: &[u8]) -> Result<Parsed, Fault> {
    let damaged = |what: &str| Fault::Damaged(what.into());
    let mut archive = Archive::open(bytes)?;
    let container = archive.text(CONTAINER).ok_or_else(|| damaged("it is a ZIP archive, but not an EPUB"))?;
    let package = elements(&container).into_iter().find(|part| part.name == "rootfile").and_then(|part| part.get("full-path"));
    let package = package.ok_or_else(|| damaged("its container names no package"))?;
    let encrypted = encrypted(&mut archive);
    let listing = archive.text(&package).ok_or_else(|| damaged("its package document is missing"))?;
    let folder = package.rsplit_once('/').map_or("", |(folder, _)| folder);
    let book = Book::new(&elements(&listing));
    if book.pages.is_empty() {
        return Err(damaged("its package lists no pages"));
    }
    let mut text = String::new();
    for page in book.pages.iter().take(MAX_PAGES) {
        let name = path(folder, page);
        if encrypted.contains(&name) || archive.is_locked(&name) {
            return Err(Fault::Protected);
        }
        let Some(page) = archive.text(&name) else { continue };
        let page = html::xhtml_to_markdown(&page)?;
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

/// Files whose bytes are encrypted, as Adobe, Readium LCP, Kobo and Apple declare them. Hidden fonts do not count.
fn encrypted(archive: &mut Archive) -> HashSet<String> {
    let (mut names, mut cipher) = (HashSet::new(), None);
    for part in elements(&archive.text("META-INF/encryption.xml").unwrap_or_default()) {
        match part.name.as_str() {
            "EncryptedData" => cipher = None,
            // The key has a method too; the first one is the file's.
            "EncryptionMethod" => cipher = cipher.or_else(|| part.get("Algorithm")),
            "CipherReference" if cipher.as_deref().is_none_or(|cipher| !FONT_CIPHERS.contains(&cipher)) => {
                names.extend(part.get("URI").map(|uri| path("", &uri)));
            }
            _ => {}
        }
    }
    names
}

/// The contents of the package document.
struct Book {
    title: Option<String>,
    /// References to the pages, in order.
    pages: Vec<String>,
}

impl Book {
    fn new(elements: &[Part]) -> Self {
        let items: HashMap<String, String> = elements
            .iter()
            .filter(|element| {
                element.name == "item" && element.get("properties").is_none_or(|has| !has.split(' ').any(|word| word == "nav"))
            })
            .filter_map(|element| Some((element.get("id")?, element.get("href")?)))
            .collect();
        let in_order = elements.iter().filter(|element| element.name == "itemref");
        let pages = in_order.filter_map(|element| items.get(&element.get("idref")?).cloned()).collect();
        let title = elements.iter().find(|element| element.name == "title").map(|element| one_line(&element.text));
        Self { title: title.filter(|title| !title.is_empty()), pages }
    }
}

/// A reference as the name of a file in the archive.
fn path(folder: &str, reference: &str) -> String {
    resolved(folder, &unescape(reference.split('#').next().unwrap_or("")))
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
struct Part {
    name: String,
    attributes: HashMap<&'static str, String>,
    text: String,
}

impl Part {
    fn new(element: &Element) -> Self {
        const ATTRIBUTES: [&str; 8] = ["full-path", "id", "href", "idref", "properties", "URI", "Algorithm", "media-type"];
        let attributes = ATTRIBUTES.into_iter().filter_map(|name| Some((name, element.get(name)?))).collect();
        Self { name: element.name().to_owned(), attributes, text: String::new() }
    }

    fn get(&self, name: &str) -> Option<String> {
        self.attributes.get(name).cloned()
    }
}

/// The elements of a small XML file, in order; of a damaged one those before the fault.
fn elements(xml: &str) -> Vec<Part> {
    let (mut xml, mut parts) = (Xml::new(xml), Vec::<Part>::new());
    while let Ok(Some(token)) = xml.next() {
        match token {
            Token::Open(element) if parts.len() < MAX_ELEMENTS => parts.push(Part::new(&element)),
            Token::Words(words) => {
                if let Some(last) = parts.last_mut().filter(|last| last.text.len() < 4096) {
                    last.text.push_str(&words);
                }
            }
            _ => {}
        }
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::formats::archive::stored as archive;

    const ONE_BOOK: &str = "<container><rootfiles><rootfile full-path=\"OPS/book.opf\"/></rootfiles></container>";

    #[test]
    fn pages_come_in_the_order_of_the_spine() {
        let package = "<package><metadata><dc:title>The pump</dc:title></metadata><manifest>
            <item id='n' href='nav.xhtml' properties='nav'/><item id='b' href='text/two%20b.xhtml'/><item id='a' href='text/one.xhtml'/></manifest>
            <spine><itemref idref='n'/><itemref idref='a'/><itemref idref='b'/><itemref idref='gone'/></spine></package>";
        let bytes = archive(&[
            (CONTAINER, ONE_BOOK),
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
    fn given_books_are_read() {
        for name in ["container-prefix", "opf-prefix", "self-closing-script", "self-closing-title"] {
            let book = parse(&crate::formats::example(&format!("epub/{name}.epub"))).unwrap();
            assert_eq!(book.title.as_deref(), Some("Pump"), "{name}");
            assert_eq!(book.text, "# Pump\n\nThe valve key is in the cupboard above the door.\n\n", "{name}");
        }
    }

    #[test]
    fn protected_books_are_refused_and_hidden_fonts_are_not() {
        assert_eq!(parse(&crate::formats::example("epub/lcp-drm.epub")).unwrap_err(), Fault::Protected);
        let package = "<package><manifest><item id='a' href='a.xhtml'/></manifest><spine><itemref idref='a'/></spine></package>";
        let book = |cipher: &str, file: &str| {
            let encryption = format!(
                "<encryption xmlns:e='x'><e:EncryptedData><e:EncryptionMethod Algorithm='{cipher}'/><k:KeyInfo xmlns:k='y'/>
                 <e:CipherData><e:CipherReference URI='{file}'/></e:CipherData></e:EncryptedData></encryption>"
            );
            parse(&archive(&[
                (CONTAINER, ONE_BOOK),
                ("META-INF/encryption.xml", &encryption),
                ("META-INF/rights.xml", "<rights/>"),
                ("OPS/book.opf", package),
                ("OPS/a.xhtml", "<p>First.</p>"),
            ]))
        };
        let aes = "http://www.w3.org/2001/04/xmlenc#aes128-cbc";
        assert_eq!(book(aes, "OPS/a.xhtml").unwrap_err(), Fault::Protected);
        assert_eq!(book(aes, "OPS/photo.jpg").unwrap().text, "First.\n\n");
        assert_eq!(book(FONT_CIPHERS[0], "OPS/a.xhtml").unwrap().text, "First.\n\n");
    }

    #[test]
    fn other_archives_are_refused() {
        assert!(matches!(parse(b"PK\x03\x04"), Err(Fault::Damaged(_))));
        let error = parse(&archive(&[("word/document.xml", "<w/>")])).unwrap_err();
        assert_eq!(error, Fault::Damaged("it is a ZIP archive, but not an EPUB".into()));
    }
}
