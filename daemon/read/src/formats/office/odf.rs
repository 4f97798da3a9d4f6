//! OpenDocument: texts, sheets and slides are one vocabulary of XML.

use std::collections::{HashMap, HashSet};

use super::{
    Skip, broken, next_token, own_title,
    sheet::{Cells, Sheet, write_sheets},
};
use crate::formats::{
    Fault, Parsed,
    archive::Archive,
    html::Writer,
    one_line,
    xml::{Element, Token, Xml},
};

/// Most times that a cell or row is repeated: a sheet fills its empty end with a million.
const MAX_REPEATS: usize = 1024;

pub(super) fn parse(archive: &mut Archive) -> Result<Parsed, Fault> {
    let manifest = archive.text("META-INF/manifest.xml").unwrap_or_default();
    if manifest.contains("encryption-data") {
        return Err(Fault::Locked);
    }
    let text =
        archive.text("content.xml").ok_or_else(|| Fault::Damaged("it is a ZIP archive, but not an OpenDocument file".into()))?;
    let mut styles = Styles::default();
    styles.add(&archive.text("styles.xml").unwrap_or_default());
    styles.add(&text);
    let title = own_title(archive);
    let parsed = if text.contains("<office:spreadsheet") { sheets(&text)? } else { Reader::new(styles).read(&text)? };
    Ok(Parsed { title, ..parsed })
}

/// The styles that tell the kind of a list or paragraph.
#[derive(Default)]
struct Styles {
    /// Levels of list styles that are numbered.
    numbered: HashSet<(String, usize)>,
    /// Styles of paragraphs by the style that they are made from.
    parents: HashMap<String, String>,
}

impl Styles {
    fn add(&mut self, text: &str) {
        let (mut xml, mut list) = (Xml::new(text), String::new());
        while let Ok(Some(token)) = xml.next() {
            let Token::Open(element) = token else { continue };
            let named = || element.get("name").unwrap_or_default();
            match element.full_name() {
                "text:list-style" => list = named(),
                "text:list-level-style-number" if element.get("num-format").is_some_and(|format| !format.is_empty()) => {
                    let level = element.get("level").and_then(|level| level.parse().ok()).unwrap_or(1);
                    self.numbered.insert((list.clone(), level));
                }
                "style:style" => {
                    if let Some(parent) = element.get("parent-style-name") {
                        self.parents.insert(named(), parent);
                    }
                }
                // The rest is the document itself.
                "office:body" => break,
                _ => {}
            }
        }
    }

    fn is_title(&self, style: &str) -> bool {
        style == "Title" || self.parents.get(style).is_some_and(|parent| parent == "Title")
    }
}

/// Elements whose words are not the document's own.
fn is_left_out(name: &str) -> bool {
    matches!(
        name,
        "text:table-of-content"
            | "text:alphabetical-index"
            | "text:illustration-index"
            | "text:table-index"
            | "text:object-index"
            | "text:user-index"
            | "text:tracked-changes"
            | "office:annotation"
            | "office:forms"
            | "svg:title"
            | "svg:desc"
            | "office:binary-data"
            | "office:scripts"
            | "office:meta"
            | "office:settings"
            | "office:styles"
            | "office:automatic-styles"
            | "office:master-styles"
            | "office:font-face-decls"
            | "text:ruby-text"
            | "table:shapes"
            | "table:covered-table-cell"
            | "presentation:footer-decl"
            | "presentation:date-time-decl"
            | "text:sequence-decls"
            | "text:variable-decls"
    )
}

struct List {
    element: &'static str,
    style: String,
    id: String,
    count: u32,
}

#[allow(clippy::struct_excessive_bools, reason = "each is a place that the reader is in")]
struct Reader {
    writer: Writer,
    styles: Styles,
    lists: Vec<List>,
    /// Numbers that lists ended with, by id and by style.
    ended: HashMap<String, u32>,
    /// Open paragraphs, by element.
    paragraphs: Vec<&'static str>,
    tables: usize,
    in_head: bool,
    /// The note that is open.
    note: Option<String>,
    cited: String,
    notes: Vec<String>,
    in_citation: bool,
    in_title: bool,
    in_remarks: bool,
}

impl Reader {
    fn new(styles: Styles) -> Self {
        Self {
            writer: Writer::default(),
            styles,
            lists: Vec::new(),
            ended: HashMap::new(),
            paragraphs: Vec::new(),
            tables: 0,
            in_head: false,
            note: None,
            cited: String::new(),
            notes: Vec::new(),
            in_citation: false,
            in_title: false,
            in_remarks: false,
        }
    }

    fn read(mut self, text: &str) -> Result<Parsed, Fault> {
        let (mut xml, mut skip) = (Xml::new(text), Skip::default());
        while let Some(token) = next_token(&mut xml, &mut skip, is_left_out, &mut self.writer, "content.xml")? {
            match token {
                Token::Open(element) => self.open(&element),
                Token::Close(name) => self.close(&name),
                Token::Words(words) if self.in_citation => self.cited.push_str(&words),
                Token::Words(words) => {
                    if let Some(note) = &mut self.note {
                        note.push_str(&words);
                    } else if !self.paragraphs.is_empty() {
                        self.writer.words(&words);
                    }
                }
            }
        }
        Ok(self.writer.finish())
    }

    fn open(&mut self, element: &Element) {
        let repeats = |name: &str| element.get(name).and_then(|count| count.parse::<usize>().ok()).unwrap_or(1);
        if let Some(note) = &mut self.note {
            if matches!(element.full_name(), "text:p" | "text:s" | "text:tab" | "text:line-break") {
                note.push(' ');
            }
            return;
        }
        match element.full_name() {
            "text:h" | "text:p" => {
                let level = element.get("outline-level").and_then(|level| level.parse::<usize>().ok());
                let is_title = element.get("style-name").is_some_and(|style| self.styles.is_title(&style));
                let level = match element.name() {
                    "h" => Some(level.unwrap_or(1)),
                    _ if is_title => Some(1),
                    _ if self.in_title => Some(2),
                    _ => None,
                };
                let name = match level {
                    Some(level) if self.tables == 0 => ["h1", "h2", "h3", "h4", "h5", "h6"][level.clamp(1, 6) - 1],
                    _ => "p",
                };
                if let Some(outer) = self.paragraphs.last_mut() {
                    // A text box stands inside a paragraph.
                    self.writer.close(outer);
                    *outer = "p";
                }
                self.paragraphs.push(name);
                self.writer.begin(name);
                if std::mem::take(&mut self.in_remarks) {
                    self.writer.words("Notes: ");
                }
            }
            "text:s" | "text:tab" => self.writer.words(" "),
            "text:line-break" => self.writer.begin("br"),
            "text:list" => self.begin_list(element),
            "text:list-item" | "text:list-header" => {
                if let Some(list) = self.lists.last_mut() {
                    list.count = element.get("start-value").and_then(|value| value.parse().ok()).unwrap_or(list.count + 1);
                }
                let value = self.lists.last().map(|list| list.count.to_string()).unwrap_or_default();
                self.writer.begin_with("li", &[("value", &value)]);
            }
            "text:note-citation" => {
                self.in_citation = true;
                self.cited.clear();
            }
            "text:note-body" => self.note = Some(String::new()),
            "table:table" => {
                self.tables += 1;
                self.writer.begin_with("table", &[("heads", "guess")]);
            }
            "table:table-header-rows" => self.in_head = true,
            "table:table-row" => self.writer.begin("tr"),
            "table:table-cell" => {
                let name = if self.in_head { "th" } else { "td" };
                for _ in 1..repeats("number-columns-repeated").min(64) {
                    self.writer.begin(name);
                    self.writer.close(name);
                }
                let (columns, rows) = (repeats("number-columns-spanned").to_string(), repeats("number-rows-spanned").to_string());
                self.writer.begin_with(name, &[("colspan", &columns), ("rowspan", &rows)]);
            }
            "draw:page" => {
                self.in_title = false;
            }
            "draw:frame" | "draw:custom-shape" => {
                self.in_title = element.get("class").is_some_and(|class| class == "title");
            }
            "presentation:notes" => self.in_remarks = true,
            _ => {}
        }
    }

    fn close(&mut self, name: &str) {
        if self.note.is_some() && name != "note-body" {
            return;
        }
        match name {
            "h" | "p" => {
                if let Some(element) = self.paragraphs.pop() {
                    self.writer.close(element);
                }
                if self.tables == 0 && self.paragraphs.is_empty() {
                    self.write_notes();
                }
            }
            "list" => {
                if let Some(list) = self.lists.pop() {
                    self.writer.close(list.element);
                    self.ended.insert(list.style, list.count);
                    self.ended.insert(list.id, list.count);
                }
            }
            "list-item" | "list-header" => self.writer.close("li"),
            "note-citation" => {
                self.in_citation = false;
                let mark = format!("[{}]", self.cited.trim());
                self.writer.words(&mark);
            }
            "note-body" => {
                let note = one_line(&self.note.take().unwrap_or_default());
                self.notes.push(format!("[{}] {note}", self.cited.trim()));
            }
            "table" => {
                self.tables = self.tables.saturating_sub(1);
                self.writer.close("table");
                if self.tables == 0 {
                    self.write_notes();
                }
            }
            "table-header-rows" => self.in_head = false,
            "table-row" => self.writer.close("tr"),
            "table-cell" => self.writer.close(if self.in_head { "th" } else { "td" }),
            "frame" | "custom-shape" => self.in_title = false,
            "notes" => self.in_remarks = false,
            "page" => self.writer.page_break(),
            _ => {}
        }
    }

    fn begin_list(&mut self, element: &Element) {
        let style = element.get("style-name").or_else(|| self.lists.last().map(|list| list.style.clone())).unwrap_or_default();
        let is_numbered = self.styles.numbered.contains(&(style.clone(), self.lists.len() + 1));
        let before = match element.get("continue-list") {
            Some(list) => self.ended.get(&list),
            None => element.get("continue-numbering").filter(|value| value == "true").and_then(|_| self.ended.get(&style)),
        };
        let list = List {
            element: if is_numbered { "ol" } else { "ul" },
            count: before.copied().unwrap_or(0),
            id: element.get("id").unwrap_or_else(|| style.clone()),
            style,
        };
        self.writer.begin(list.element);
        self.lists.push(list);
    }

    fn write_notes(&mut self) {
        for note in std::mem::take(&mut self.notes) {
            self.writer.begin("p");
            self.writer.words(&note);
            self.writer.close("p");
        }
    }
}

/// Reads the sheets of a file: their cells hold their text as it is shown.
fn sheets(text: &str) -> Result<Parsed, Fault> {
    let (mut xml, mut skip) = (Xml::new(text), Skip::default());
    let mut sheets: Vec<Sheet> = Vec::new();
    let mut cells = Cells::default();
    let (mut row, mut column, mut row_repeats) = (0, 0, 1_usize);
    let (mut cell, mut spans, mut in_words) = (String::new(), (1, 1, 1), 0_usize);
    // Covered cells count as columns here.
    let left_out = |name: &str| name != "table:covered-table-cell" && is_left_out(name);
    while let Some(token) = xml.next().map_err(broken("content.xml"))? {
        if skip.takes(&token, left_out) {
            continue;
        }
        match token {
            Token::Open(element) => {
                let number = |name: &str| element.get(name).and_then(|count| count.parse::<usize>().ok()).unwrap_or(1);
                match element.full_name() {
                    "table:table" => {
                        cells = Cells::default();
                        row = 0;
                        sheets.push(Sheet { name: element.get("name").unwrap_or_default(), ..Sheet::default() });
                    }
                    "table:table-row" => {
                        column = 0;
                        row_repeats = number("number-rows-repeated");
                    }
                    "table:table-cell" | "table:covered-table-cell" => {
                        cell.clear();
                        let spanned = (number("number-columns-spanned"), number("number-rows-spanned"));
                        spans = (number("number-columns-repeated"), spanned.0, spanned.1);
                    }
                    "text:p" => {
                        in_words += 1;
                        if !cell.is_empty() {
                            cell.push(' ');
                        }
                    }
                    "text:s" | "text:tab" | "text:line-break" => cell.push(' '),
                    _ => {}
                }
            }
            Token::Words(words) if in_words > 0 => cell.push_str(&words),
            Token::Words(_) => {}
            Token::Close(name) => match name.as_str() {
                "p" => in_words = in_words.saturating_sub(1),
                "table-cell" | "covered-table-cell" => {
                    let (repeats, _, rows) = spans;
                    let words = one_line(&cell);
                    if !words.is_empty() {
                        for repeat in 0..repeats.min(MAX_REPEATS) {
                            cells.put(row, column + repeat, words.clone())?;
                        }
                        if rows > 1 {
                            cells.merge(row, column, row + rows - 1);
                        }
                    }
                    column = column.saturating_add(repeats);
                    cell.clear();
                }
                "table-row" => {
                    if row_repeats > 1 {
                        cells.repeat_row(row, row_repeats.min(MAX_REPEATS))?;
                    }
                    row = row.saturating_add(row_repeats);
                }
                "table" => {
                    if let Some(sheet) = sheets.last_mut() {
                        sheet.rows = std::mem::take(&mut cells).into_rows();
                    }
                }
                _ => {}
            },
        }
    }
    Ok(write_sheets(&sheets))
}
