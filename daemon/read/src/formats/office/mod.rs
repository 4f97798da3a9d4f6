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
    archive::{Archive, resolved},
    html::Writer,
    xml::{NotWellFormed, Token, Xml},
};

/// Most characters of one document's text.
const MAX_TEXT_BYTES: usize = 30 << 20;

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
            let from = if target.starts_with('/') { "" } else { folder };
            relations.insert(id, Relation { kind, target: resolved(from, &target) });
        }
    }
    relations
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

/// The next token of a text that counts; `None` at the end. The text before a damage is worth more than nothing.
fn next_token<'a>(
    xml: &mut Xml<'a>,
    skip: &mut Skip,
    is_left_out: fn(&str) -> bool,
    writer: &mut Writer,
    part: &str,
) -> Result<Option<Token<'a>>, Fault> {
    loop {
        if writer.has_more_than(MAX_TEXT_BYTES) {
            return Err(too_much());
        }
        match xml.next() {
            Ok(Some(token)) if skip.takes(&token, is_left_out) => {}
            Ok(token) => return Ok(token),
            Err(NotWellFormed) if writer.has_text() => {
                writer.note("the document is damaged; the text behind the damage is missing");
                return Ok(None);
            }
            Err(fault) => return Err(broken(part)(fault)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::formats::{archive::stored, example};

    #[test]
    fn given_files_are_read() {
        let table = "| Code | Meaning |\n|---|---|\n| E-17 | Low pressure |\n";
        let text = docx(&example("office/a.docx")).unwrap();
        assert_eq!(text.text, format!("# Pump\n\nThe key is in the cupboard.\n\n{table}"));
        assert_eq!(odf(&example("office/a.odt")).unwrap().text, "# Pump\n\nThe key is in the cupboard.\n");
        assert_eq!(xlsx(&example("office/a.xlsx")).unwrap().text.trim_end(), table.trim_end());
    }

    const STYLES: &str = "<w:styles xmlns:w='x'><w:style w:styleId='berschrift2'><w:name w:val='heading 2'/></w:style>
        <w:style w:styleId='Eigene'><w:name w:val='Own'/><w:basedOn w:val='berschrift2'/></w:style>
        <w:style w:styleId='Verzeichnis1'><w:name w:val='toc 1'/></w:style></w:styles>";
    const NUMBERING: &str = "<w:numbering xmlns:w='x'><w:abstractNum w:abstractNumId='4'>
        <w:lvl w:ilvl='0'><w:start w:val='1'/><w:numFmt w:val='decimal'/><w:lvlText w:val='%1.'/></w:lvl>
        <w:lvl w:ilvl='1'><w:start w:val='1'/><w:numFmt w:val='lowerLetter'/><w:lvlText w:val='%2)'/></w:lvl></w:abstractNum>
        <w:abstractNum w:abstractNumId='5'><w:lvl w:ilvl='0'><w:numFmt w:val='bullet'/></w:lvl></w:abstractNum>
        <w:num w:numId='1'><w:abstractNumId w:val='4'/></w:num><w:num w:numId='2'><w:abstractNumId w:val='5'/></w:num></w:numbering>";

    /// A DOCX of paragraphs and tables.
    fn word(body: &str) -> Vec<u8> {
        let relation = |id: u8, kind: &str, target: &str| {
            format!("<Relationship Id='r{id}' Type='http://x/relationships/{kind}' Target='{target}'/>")
        };
        let relations = [
            relation(1, "styles", "styles.xml"),
            relation(2, "numbering", "numbering.xml"),
            relation(3, "footnotes", "/word/footnotes.xml"),
        ];
        stored(&[
            ("_rels/.rels", &format!("<Relationships>{}</Relationships>", relation(1, "officeDocument", "word/document2.xml"))),
            ("word/_rels/document2.xml.rels", &format!("<Relationships>{}</Relationships>", relations.concat())),
            ("word/document2.xml", &format!("<w:document xmlns:w='x'><w:body>{body}</w:body></w:document>")),
            ("word/styles.xml", STYLES),
            ("word/numbering.xml", NUMBERING),
            (
                "word/footnotes.xml",
                "<w:footnotes xmlns:w='x'><w:footnote w:id='7'><w:p><w:r><w:t>Only when cold.</w:t></w:r></w:p></w:footnote></w:footnotes>",
            ),
        ])
    }

    fn paragraph(properties: &str, words: &str) -> String {
        format!("<w:p><w:pPr>{properties}</w:pPr><w:r><w:t>{words}</w:t></w:r></w:p>")
    }

    fn item(list: u8, level: u8, words: &str) -> String {
        paragraph(&format!("<w:numPr><w:ilvl w:val='{level}'/><w:numId w:val='{list}'/></w:numPr>"), words)
    }

    #[test]
    fn words_structure_is_kept() {
        let body = [
            paragraph("<w:pStyle w:val='Verzeichnis1'/>", "Pump 3"),
            paragraph("<w:pStyle w:val='Eigene'/>", "Pump"),
            "<w:p><w:r><w:t xml:space='preserve'>Fill </w:t></w:r><w:del><w:r><w:delText>gone</w:delText></w:r></w:del><w:ins><w:r><w:t>it</w:t>
             </w:r></w:ins><w:r><w:footnoteReference w:id='7'/></w:r><w:r><w:tab/><w:instrText>PAGE</w:instrText><w:t>slowly 10</w:t></w:r>
             <w:r><w:rPr><w:vertAlign w:val='superscript'/></w:rPr><w:t>-3</w:t></w:r></w:p>"
                .to_owned(),
            item(1, 0, "open"),
            item(1, 1, "the valve"),
            item(2, 0, "a bullet"),
            item(1, 0, "close"),
            "<w:tbl><w:tr><w:trPr><w:tblHeader/></w:trPr><w:tc><w:p><w:r><w:t>Code</w:t></w:r></w:p></w:tc><w:tc><w:p><w:r><w:t>Cause</w:t></w:r>
             </w:p></w:tc></w:tr><w:tr><w:tc><w:tcPr><w:vMerge w:val='restart'/></w:tcPr><w:p><w:r><w:t>E-17</w:t></w:r></w:p></w:tc><w:tc>
             <w:p><w:r><w:t>low</w:t></w:r></w:p><w:p><w:r><w:t>water</w:t></w:r></w:p></w:tc></w:tr><w:tr><w:tc><w:tcPr><w:vMerge/></w:tcPr><w:p/>
             </w:tc><w:tc><w:p><w:r><w:t>high</w:t></w:r></w:p></w:tc></w:tr></w:tbl>"
                .to_owned(),
            "<w:p><w:r><w:t>before</w:t><w:pict><v:textbox><w:txbxContent><w:p><w:r><w:t>in the box</w:t></w:r></w:p></w:txbxContent></v:textbox>
             </w:pict></w:r></w:p>"
                .to_owned(),
        ];
        assert_eq!(
            docx(&word(&body.concat())).unwrap().text,
            "## Pump\n\nFill it[1] slowly 10^-3\n\n[1] Only when cold.\n\n1. open\n  - a) the valve\n\n- a bullet\n\n2. close\n\n\
             | Code | Cause |\n|---|---|\n| E-17 | low water |\n| E-17 | high |\n\nbefore\n\nin the box\n"
        );
    }

    #[test]
    fn damage_depth_and_foreign_archives_are_borne() {
        let whole = word(&paragraph("", "first"));
        for end in 0..whole.len() {
            let _ = docx(&whole[..end]);
        }
        let cut = word(&format!("{}<w:p><w:r>", paragraph("", "first")));
        let read = docx(&cut).unwrap();
        assert_eq!(read.text, "first\n");
        assert!(read.note.unwrap().contains("damaged"));
        for (tag, end) in [("<w:tbl><w:tr><w:tc><w:p>", "</w:p></w:tc></w:tr></w:tbl>"), ("<w:p>", "</w:p>")] {
            let deep = format!("{}{}{}", tag.repeat(20_000), "<w:r><w:t>deep</w:t></w:r>", end.repeat(20_000));
            assert_eq!(docx(&word(&deep)).unwrap().text.trim(), "deep");
        }
        let other = stored(&[("a.txt", "x")]);
        for read in [docx, xlsx, pptx, odf] {
            assert!(matches!(read(&other), Err(Fault::Damaged(_))));
            assert!(matches!(read(b"PK\x03\x04"), Err(Fault::Damaged(_))));
        }
    }

    #[test]
    fn encrypted_files_are_refused_by_name() {
        let name: Vec<u8> = "EncryptedPackage".encode_utf16().flat_map(u16::to_le_bytes).collect();
        let locked = [b"\xD0\xCF\x11\xE0\xA1\xB1\x1A\xE1".to_vec(), vec![0; 64], name].concat();
        let source = |name, bytes| crate::Original { id: name, bytes, ..crate::Original::default() };
        assert_eq!(crate::read(source("a.docx", &locked)).unwrap_err(), crate::ReadError::Locked);
        let old = crate::read(source("a.doc", b"\xD0\xCF\x11\xE0\xA1\xB1\x1A\xE1 old")).unwrap_err().to_string();
        assert!(old.contains("soffice --headless --convert-to"), "{old}");
        let odt = stored(&[
            ("mimetype", "application/vnd.oasis.opendocument.text"),
            ("META-INF/manifest.xml", "<m:file-entry><m:encryption-data/></m:file-entry>"),
            ("content.xml", "noise"),
        ]);
        assert_eq!(crate::read(source("a", &odt)).unwrap_err(), crate::ReadError::Locked);
    }

    /// An OpenDocument file of a kind.
    fn open_document(kind: &str, body: &str) -> Vec<u8> {
        let content = format!(
            "<office:document-content xmlns:office='o' xmlns:text='t' xmlns:table='b' xmlns:draw='d' xmlns:style='s' xmlns:presentation='p'>
             <office:automatic-styles><text:list-style style:name='L1'><text:list-level-style-number text:level='1' style:num-format='1'/>
             </text:list-style></office:automatic-styles><office:body><office:{kind}>{body}</office:{kind}></office:body></office:document-content>"
        );
        stored(&[("mimetype", &format!("application/vnd.oasis.opendocument.{kind}")), ("content.xml", &content)])
    }

    #[test]
    fn open_documents_keep_their_structure() {
        let body = "<text:table-of-content><text:p>Pump 3</text:p></text:table-of-content><text:h text:outline-level='2'>Pump</text:h>
            <text:p>Fill<text:s text:c='3'/>it<text:note><text:note-citation>1</text:note-citation><text:note-body><text:p>Only <text:span>when</text:span>
            cold.</text:p></text:note-body></text:note>.<text:line-break/>End</text:p>
            <text:list xml:id='a' text:style-name='L1'><text:list-item><text:p>open</text:p><text:list><text:list-item><text:p>valve</text:p></text:list-item>
            </text:list></text:list-item></text:list><text:p>then</text:p>
            <text:list text:continue-list='a' text:style-name='L1'><text:list-item><text:p>close</text:p></text:list-item></text:list>
            <table:table><table:table-header-rows><table:table-row><table:table-cell><text:p>Code</text:p></table:table-cell><table:table-cell><text:p>
            Cause</text:p></table:table-cell></table:table-row></table:table-header-rows><table:table-row><table:table-cell table:number-rows-spanned='2'>
            <text:p>E-17</text:p></table:table-cell><table:table-cell><text:p>low</text:p></table:table-cell></table:table-row><table:table-row>
            <table:covered-table-cell/><table:table-cell><text:p>high</text:p></table:table-cell></table:table-row></table:table>";
        let read =
            crate::read(crate::Original { id: "a", bytes: &open_document("text", body), ..crate::Original::default() }).unwrap();
        assert_eq!(read.format, &crate::formats::ODT);
        assert_eq!(
            read.text,
            "## Pump\n\nFill it[1].\nEnd\n\n[1] Only when cold.\n\n1. open\n  - valve\n\nthen\n\n2. close\n\n\
             | Code | Cause |\n|---|---|\n| E-17 | low |\n| E-17 | high |\n"
        );
        let sheet = "<table:table table:name='Faults'><table:table-row><table:table-cell><text:p>Code</text:p></table:table-cell><table:table-cell>
            <text:p>Cause</text:p></table:table-cell></table:table-row><table:table-row><table:table-cell table:number-columns-repeated='2'><text:p>same
            </text:p></table:table-cell><table:table-cell table:number-columns-repeated='16000'/></table:table-row>
            <table:table-row table:number-rows-repeated='1048000'><table:table-cell/></table:table-row></table:table>";
        let text = odf(&open_document("spreadsheet", sheet)).unwrap().text;
        assert_eq!(text, "| Code | Cause |\n|---|---|\n| same | same |\n\n");
        let slides = "<draw:page><draw:frame presentation:class='title'><draw:text-box><text:p>Pump</text:p></draw:text-box></draw:frame><draw:frame>
            <draw:text-box><text:p>Fill it.</text:p></draw:text-box></draw:frame><presentation:notes><draw:frame><draw:text-box><text:p>Slowly.</text:p>
            </draw:text-box></draw:frame></presentation:notes></draw:page><draw:page><draw:frame><draw:text-box><text:p>End</text:p></draw:text-box></draw:frame></draw:page>";
        let text = odf(&open_document("presentation", slides)).unwrap().text;
        assert_eq!(text.trim(), "## Pump\n\nFill it.\n\nNotes: Slowly.\n\n\u{C}\n\nEnd");
    }

    #[test]
    fn slides_are_pages() {
        let slide = "<p:sld xmlns:p='p' xmlns:a='a'><p:sp><p:nvPr><p:ph type='title'/></p:nvPr><a:p><a:r><a:t>Pump</a:t></a:r></a:p></p:sp>
            <p:sp><p:nvPr><p:ph idx='1'/></p:nvPr><a:p><a:r><a:t>open </a:t></a:r><a:r><a:t>it</a:t></a:r></a:p><a:p><a:pPr lvl='1'/><a:r><a:t>valve</a:t></a:r></a:p></p:sp>
            <p:sp><p:nvPr><p:ph type='sldNum'/></p:nvPr><a:p><a:fld><a:t>7</a:t></a:fld></a:p></p:sp>
            <p:sp><a:p><a:r><a:t>A box</a:t></a:r></a:p></p:sp>
            <a:tbl><a:tr><a:tc><a:p><a:r><a:t>Code</a:t></a:r></a:p></a:tc><a:tc><a:p><a:r><a:t>Cause</a:t></a:r></a:p></a:tc></a:tr>
            <a:tr><a:tc><a:p><a:r><a:t>E-17</a:t></a:r></a:p></a:tc><a:tc><a:p><a:r><a:t>low</a:t></a:r></a:p></a:tc></a:tr></a:tbl></p:sld>";
        let show = stored(&[
            (
                "ppt/presentation.xml",
                "<p:presentation xmlns:r='r'><p:sldId id='256' r:id='r2'/><p:sldId id='257' r:id='r1'/></p:presentation>",
            ),
            (
                "ppt/_rels/presentation.xml.rels",
                "<R><Relationship Id='r1' Type='x/slide' Target='slides/slide1.xml'/><Relationship Id='r2' Type='x/slide' Target='slides/slide2.xml'/></R>",
            ),
            ("ppt/slides/slide2.xml", slide),
            (
                "ppt/slides/_rels/slide2.xml.rels",
                "<R><Relationship Id='r1' Type='x/notesSlide' Target='../notesSlides/n.xml'/></R>",
            ),
            (
                "ppt/notesSlides/n.xml",
                "<p:notes><p:sp><p:nvPr><p:ph type='body'/></p:nvPr><a:p><a:r><a:t>Slowly.</a:t></a:r></a:p></p:sp></p:notes>",
            ),
            ("ppt/slides/slide1.xml", "<p:sld><p:sp><a:p><a:r><a:t>End</a:t></a:r></a:p></p:sp></p:sld>"),
        ]);
        assert_eq!(
            pptx(&show).unwrap().text,
            "## Pump\n\n- open it\n  - valve\n\nA box\n\n| Code | Cause |\n|---|---|\n| E-17 | low |\n\nNotes: Slowly.\n\n\u{C}\n\nEnd\n"
        );
    }
}
