//! Office files to Markdown: archives of XML, as ECMA-376 (DOCX, XLSX, PPTX) and OpenDocument 1.3 (ODT, ODS, ODP) describe them.
//!
//! Each reader turns its elements into those of HTML, for the writer that HTML pages go through. So lists, spans and nested
//! tables are written in one way, and nothing recurses.

mod docx;
mod odf;
mod pptx;
mod sheet;
mod xlsx;

pub(super) use sheet::write_rows;

use std::collections::HashMap;

use super::{
    Fault, Parsed,
    archive::Archive,
    xml::{NotWellFormed, Token, Xml},
};

/// Most characters of one document's text.
const MAX_TEXT_BYTES: usize = 30 << 20;

/// Whether an archive holds a file whose name begins so.
pub(super) fn holds(bytes: &[u8], name: &str) -> bool {
    bytes.starts_with(b"PK\x03\x04") && bytes.windows(name.len()).any(|window| window == name.as_bytes())
}

/// Whether an archive's first file declares one of OpenDocument's types.
pub(super) fn is_odf(bytes: &[u8], kind: &str) -> bool {
    let declared = format!("mimetypeapplication/vnd.oasis.opendocument.{kind}");
    bytes.starts_with(b"PK\x03\x04") && bytes.get(30..30 + declared.len()) == Some(declared.as_bytes())
}

/// Whether an OLE file wraps an encrypted office file: its directory then names this stream, in UTF-16.
pub(crate) fn is_locked(bytes: &[u8]) -> bool {
    let name: Vec<u8> = "EncryptedPackage".encode_utf16().flat_map(u16::to_le_bytes).collect();
    bytes.starts_with(b"\xD0\xCF\x11\xE0") && bytes.windows(name.len()).any(|window| window == name)
}

pub(super) fn docx(bytes: &[u8]) -> Result<Parsed, Fault> {
    read(bytes, docx::parse)
}

pub(super) fn xlsx(bytes: &[u8]) -> Result<Parsed, Fault> {
    read(bytes, xlsx::parse)
}

pub(super) fn pptx(bytes: &[u8]) -> Result<Parsed, Fault> {
    read(bytes, pptx::parse)
}

pub(super) fn odf(bytes: &[u8]) -> Result<Parsed, Fault> {
    read(bytes, odf::parse)
}

fn read(bytes: &[u8], parse: fn(&mut Archive) -> Result<Parsed, Fault>) -> Result<Parsed, Fault> {
    if is_locked(bytes) {
        return Err(Fault::Locked);
    }
    let parsed = parse(&mut Archive::open(bytes)?)?;
    if parsed.text.len() > MAX_TEXT_BYTES {
        return Err(too_much());
    }
    Ok(parsed)
}

fn too_much() -> Fault {
    Fault::Damaged("it unfolds into more text than a library holds".into())
}

/// A fault in a part of the archive.
fn broken(part: &str) -> impl FnOnce(NotWellFormed) -> Fault + '_ {
    move |NotWellFormed| Fault::Damaged(format!("its part {part} is damaged"))
}

/// A reference from one part of an archive to another.
struct Relation {
    /// The last word of its type, such as `officeDocument`.
    kind: String,
    /// The name of the part.
    target: String,
}

/// The references of a part, by their ids; of the archive itself if `part` is empty.
fn relations(archive: &mut Archive, part: &str) -> HashMap<String, Relation> {
    let (folder, file) = part.rsplit_once('/').unwrap_or(("", part));
    let name = if folder.is_empty() { format!("_rels/{file}.rels") } else { format!("{folder}/_rels/{file}.rels") };
    let text = archive.text(&name).unwrap_or_default();
    let (mut xml, mut relations) = (Xml::new(&text), HashMap::new());
    while let Ok(Some(token)) = xml.next() {
        if let Token::Open(element) = token
            && element.name() == "Relationship"
            && element.get("TargetMode").is_none_or(|mode| mode != "External")
            && let (Some(id), Some(kind), Some(target)) = (element.get("Id"), element.get("Type"), element.get("Target"))
        {
            let kind = kind.rsplit('/').next().unwrap_or_default().to_owned();
            relations.insert(id, Relation { kind, target: resolve(folder, &target) });
        }
    }
    relations
}

/// The name of a part that a reference leads to.
fn resolve(folder: &str, target: &str) -> String {
    let from = if target.starts_with('/') { "" } else { folder };
    let mut parts: Vec<&str> = from.split('/').filter(|part| !part.is_empty()).collect();
    for part in target.split('/') {
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

/// The main part of an archive.
fn main_part(archive: &mut Archive, usual: &str) -> String {
    let named = relations(archive, "").into_values().find(|relation| relation.kind == "officeDocument");
    named.map_or_else(|| usual.to_owned(), |relation| relation.target)
}

/// The title in a file's properties, unless a program put it there.
fn own_title(archive: &mut Archive) -> Option<String> {
    const DEFAULTS: [&str; 8] = [
        "powerpoint presentation",
        "powerpoint-präsentation",
        "présentation powerpoint",
        "presentación de powerpoint",
        "presentazione standard di powerpoint",
        "powerpoint-presentatie",
        "word document",
        "untitled",
    ];
    let text = archive.text("docProps/core.xml").or_else(|| archive.text("meta.xml"))?;
    let (mut xml, mut title, mut inside) = (Xml::new(&text), String::new(), false);
    while let Ok(Some(token)) = xml.next() {
        match token {
            Token::Open(element) => inside = element.name() == "title",
            Token::Close(_) => inside = false,
            Token::Words(words) if inside => title.push_str(&words),
            Token::Words(_) => {}
        }
    }
    let (title, small) = (title.trim().to_owned(), title.trim().to_lowercase());
    let is_default = small.is_empty()
        || DEFAULTS.iter().any(|default| small.starts_with(default))
        || small.starts_with("microsoft ")
        || [".doc", ".docx", ".odt", ".ppt", ".pptx", ".xls", ".xlsx", ".dot", ".dotx"].iter().any(|end| small.ends_with(end));
    (!is_default).then_some(title)
}

/// An element that is left out with all it holds.
#[derive(Default)]
struct Skip(Option<(String, usize)>);

impl Skip {
    /// Whether the token belongs to an element that is left out; one that `begins` opens such an element.
    fn takes(&mut self, token: &Token, begins: impl Fn(&str) -> bool) -> bool {
        let Some((skipped, depth)) = &mut self.0 else {
            if let Token::Open(element) = token
                && begins(element.full_name())
            {
                self.0 = Some((element.name().to_owned(), 1));
                return true;
            }
            return false;
        };
        match token {
            Token::Open(element) => *depth += usize::from(element.name() == skipped),
            Token::Close(name) => *depth -= usize::from(name == skipped),
            Token::Words(_) => {}
        }
        if *depth == 0 {
            self.0 = None;
        }
        true
    }
}
