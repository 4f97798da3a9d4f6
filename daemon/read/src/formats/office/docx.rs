//! WordprocessingML: paragraphs with styles, numbering, tables and footnotes.

use std::collections::HashMap;

use super::{Skip, main_part, next_token, own_title, relations};
use crate::formats::{
    Fault, Parsed,
    archive::Archive,
    html::Writer,
    one_line,
    xml::{Element, Token, Xml},
};

/// Levels of a list.
const LEVELS: usize = 9;

/// Longest chain of styles that are based on each other.
const MAX_STYLE_CHAIN: usize = 16;

pub(super) fn parse(archive: &mut Archive) -> Result<Parsed, Fault> {
    let part = main_part(archive, "word/document.xml");
    let text = archive.text(&part).ok_or_else(|| Fault::Damaged("it is a ZIP archive, but not a DOCX".into()))?;
    let relations = relations(archive, &part);
    let mut part_of = |kind: &str| {
        let relation = relations.values().find(|relation| relation.kind == kind)?;
        archive.text(&relation.target)
    };
    let styles = styles(&part_of("styles").unwrap_or_default());
    let numbering = Numbering::new(&part_of("numbering").unwrap_or_default());
    let mut notes = HashMap::new();
    for kind in ["footnote", "endnote"] {
        notes.extend(notes_of(kind, &part_of(&format!("{kind}s")).unwrap_or_default()));
    }
    let mut reader = Reader {
        styles,
        numbering,
        notes,
        writer: Writer::default(),
        paragraphs: Vec::new(),
        tables: Vec::new(),
        told_notes: 0,
        open_notes: Vec::new(),
        has_title: false,
    };
    reader.read(&text)?;
    // A title on the page is the first heading, and comes before the one in the properties.
    let title = if reader.has_title { None } else { own_title(archive) };
    Ok(Parsed { title, ..reader.writer.finish() })
}

#[derive(Debug, Default, Clone)]
struct Style {
    name: String,
    based_on: Option<String>,
    list: Option<String>,
    level: Option<usize>,
    /// 0 is the outermost heading.
    outline: Option<usize>,
}

fn styles(text: &str) -> HashMap<String, Style> {
    let (mut xml, mut styles) = (Xml::new(text), HashMap::new());
    let mut open: Option<(String, Style)> = None;
    while let Ok(Some(token)) = xml.next() {
        match token {
            Token::Open(element) if element.name() == "style" => {
                open = Some((element.get("styleId").unwrap_or_default(), Style::default()));
            }
            Token::Open(element) => {
                let Some((_, style)) = &mut open else { continue };
                let value = || element.get("val");
                match element.name() {
                    "name" => style.name = value().unwrap_or_default().to_lowercase(),
                    "basedOn" => style.based_on = value(),
                    "numId" => style.list = value(),
                    "ilvl" => style.level = number(&element),
                    "outlineLvl" => style.outline = number(&element),
                    _ => {}
                }
            }
            Token::Close(name) if name == "style" => styles.extend(open.take()),
            _ => {}
        }
    }
    styles
}

fn number(element: &Element) -> Option<usize> {
    element.get("val")?.parse().ok()
}

/// The notes of a file of footnotes or endnotes, by `footnote 3`.
fn notes_of(kind: &str, text: &str) -> HashMap<String, String> {
    let (mut xml, mut notes) = (Xml::new(text), HashMap::new());
    let (mut open, mut in_text) = (None, false);
    while let Ok(Some(token)) = xml.next() {
        match token {
            Token::Open(element) if element.name() == kind => {
                open = element.get("id").map(|id| (format!("{kind} {id}"), String::new()));
            }
            Token::Open(element) => {
                in_text = element.name() == "t";
                if let Some((_, note)) = &mut open
                    && matches!(element.name(), "p" | "tab" | "br")
                {
                    note.push(' ');
                }
            }
            Token::Close(name) => {
                in_text = false;
                if name == kind {
                    notes.extend(open.take().map(|(id, note)| (id, one_line(&note))).filter(|(_, note)| !note.is_empty()));
                }
            }
            Token::Words(words) if in_text => {
                if let Some((_, note)) = &mut open {
                    note.push_str(&words);
                }
            }
            Token::Words(_) => {}
        }
    }
    notes
}

#[derive(Debug, Default, Clone)]
struct Level {
    format: String,
    /// `%1.%2`
    text: String,
    start: u32,
    /// The style whose paragraphs have this level.
    style: Option<String>,
}

/// Lists by their ids, and their counters.
#[derive(Default)]
struct Numbering {
    /// By the id of a list: the id of its definition.
    lists: HashMap<String, String>,
    definitions: HashMap<String, Vec<Level>>,
    counters: HashMap<String, [Option<u32>; LEVELS]>,
}

/// The mark of a paragraph in a list.
enum Mark {
    Bullet,
    /// A number that Markdown writes itself.
    Number(u32),
    /// `1.2`, `a)`.
    Label(String),
}

impl Numbering {
    fn new(text: &str) -> Self {
        let (mut xml, mut numbering) = (Xml::new(text), Self::default());
        let (mut definition, mut list, mut level) = (String::new(), String::new(), 0);
        while let Ok(Some(token)) = xml.next() {
            let Token::Open(element) = token else { continue };
            let value = || element.get("val").unwrap_or_default();
            match element.name() {
                "abstractNum" => {
                    definition = element.get("abstractNumId").unwrap_or_default();
                    numbering.definitions.insert(definition.clone(), vec![Level { start: 1, ..Level::default() }; LEVELS]);
                    list.clear();
                }
                "num" => list = element.get("numId").unwrap_or_default(),
                "abstractNumId" => {
                    numbering.lists.insert(list.clone(), value());
                }
                "lvl" => level = element.get("ilvl").and_then(|level| level.parse().ok()).unwrap_or(LEVELS),
                name => {
                    let levels = if list.is_empty() { numbering.definitions.get_mut(&definition) } else { None };
                    let Some(level) = levels.and_then(|levels| levels.get_mut(level)) else { continue };
                    match name {
                        "numFmt" => level.format = value(),
                        "lvlText" => level.text = value(),
                        "start" => level.start = value().parse().unwrap_or(1),
                        "pStyle" => level.style = Some(value()),
                        _ => {}
                    }
                }
            }
        }
        numbering
    }

    /// The level of a style's paragraphs in a list.
    fn level_of(&self, list: &str, style: &str) -> Option<usize> {
        let levels = self.definitions.get(self.lists.get(list)?)?;
        levels.iter().position(|level| level.style.as_deref() == Some(style))
    }

    /// Counts a paragraph; `None` if it has no mark.
    fn mark(&mut self, list: &str, level: usize) -> Option<Mark> {
        let definition = self.lists.get(list)?;
        let levels = self.definitions.get(definition)?;
        let here = levels.get(level)?;
        let counters = self.counters.entry(definition.clone()).or_default();
        counters[level] = Some(counters[level].map_or(here.start, |count| count.saturating_add(1)));
        counters[level + 1..].fill(None);
        match here.format.as_str() {
            "bullet" => return Some(Mark::Bullet),
            "none" | "" => return None,
            _ => {}
        }
        let count = counters[level].unwrap_or(here.start);
        if here.format == "decimal" && here.text == format!("%{}.", level + 1) {
            return Some(Mark::Number(count));
        }
        let mut label = here.text.clone();
        for (index, level) in levels.iter().enumerate() {
            label = label.replace(&format!("%{}", index + 1), &written(counters[index].unwrap_or(level.start), &level.format));
        }
        let label = label.trim();
        (!label.is_empty()).then(|| Mark::Label(label.to_owned()))
    }
}

/// A number as a list writes it.
fn written(number: u32, format: &str) -> String {
    const ROMAN: [(u32, &str); 13] = [
        (1000, "m"),
        (900, "cm"),
        (500, "d"),
        (400, "cd"),
        (100, "c"),
        (90, "xc"),
        (50, "l"),
        (40, "xl"),
        (10, "x"),
        (9, "ix"),
        (5, "v"),
        (4, "iv"),
        (1, "i"),
    ];
    let letters = || {
        let letter = char::from(b'a' + (number.saturating_sub(1) % 26) as u8);
        letter.to_string().repeat((number.saturating_sub(1) / 26 + 1).min(8) as usize)
    };
    let roman = || {
        let (mut rest, mut text) = (number.min(4000), String::new());
        for (value, digits) in ROMAN {
            while rest >= value {
                text.push_str(digits);
                rest -= value;
            }
        }
        text
    };
    match format {
        "lowerLetter" => letters(),
        "upperLetter" => letters().to_uppercase(),
        "lowerRoman" => roman(),
        "upperRoman" => roman().to_uppercase(),
        "decimalZero" => format!("{number:02}"),
        _ => number.to_string(),
    }
}

/// A paragraph, open while its text is read. Text boxes put paragraphs into paragraphs.
#[derive(Debug, Default)]
struct Paragraph {
    style: Option<String>,
    list: Option<String>,
    level: Option<usize>,
    outline: Option<usize>,
    /// The element that it became; empty before its first words and after a text box.
    element: &'static str,
    begun: bool,
    /// A line of a table of contents.
    is_left_out: bool,
}

#[derive(Default)]
struct Table {
    in_head: bool,
    /// Attributes of the cell, until it begins.
    cell: Option<Cell>,
}

#[derive(Default)]
struct Cell {
    columns: String,
    is_continued: bool,
    begun: bool,
}

struct Reader {
    styles: HashMap<String, Style>,
    numbering: Numbering,
    notes: HashMap<String, String>,
    writer: Writer,
    paragraphs: Vec<Paragraph>,
    tables: Vec<Table>,
    told_notes: usize,
    /// Notes that follow the paragraph.
    open_notes: Vec<String>,
    /// Whether a paragraph has the style of a title.
    has_title: bool,
}

/// Elements that are not text of this version, or stand a second time.
fn is_left_out(name: &str) -> bool {
    matches!(
        name,
        "w:del"
            | "w:moveFrom"
            | "w:instrText"
            | "w:delText"
            | "mc:Fallback"
            | "w:pPrChange"
            | "w:rPrChange"
            | "w:tabs"
            | "w:sectPr"
            | "w:tblPrChange"
            | "w:tcPrChange"
            | "w:trPrChange"
            | "w:numPrChange"
            | "m:ctrlPr"
    )
}

impl Reader {
    fn read(&mut self, text: &str) -> Result<(), Fault> {
        let (mut xml, mut skip) = (Xml::new(text), Skip::default());
        let (mut in_text, mut raised) = (false, false);
        while let Some(token) = next_token(&mut xml, &mut skip, is_left_out, &mut self.writer, "document")? {
            match token {
                Token::Open(element) => {
                    match element.name() {
                        "t" => in_text = true,
                        "r" => raised = false,
                        "vertAlign" => raised = element.get("val").is_some_and(|place| place == "superscript"),
                        _ => {}
                    }
                    self.open(&element);
                }
                Token::Close(name) => {
                    in_text &= name != "t";
                    self.close(&name);
                }
                Token::Words(words) if in_text => {
                    // 10⁻³ is not 10-3. Raised letters are read as they stand: 1st.
                    if std::mem::take(&mut raised)
                        && words.starts_with(|char: char| char.is_ascii_digit() || "+-−".contains(char))
                    {
                        self.begin_paragraph();
                        self.writer.begin("sup");
                    }
                    self.words(&words);
                }
                Token::Words(_) => {}
            }
        }
        self.writer.end_lists(0);
        self.write_notes();
        Ok(())
    }

    fn open(&mut self, element: &Element) {
        let name = element.name();
        match name {
            "p" if element.full_name() == "w:p" || !element.full_name().contains(':') => {
                self.begin_cell();
                // A text box stands inside a paragraph.
                if let Some(outer) = self.paragraphs.last_mut() {
                    let element = std::mem::take(&mut outer.element);
                    if !element.is_empty() {
                        self.writer.close(element);
                    }
                    outer.begun = false;
                    outer.list = Some("0".into());
                }
                self.paragraphs.push(Paragraph::default());
            }
            "tbl" => {
                if self.tables.is_empty() {
                    self.writer.end_lists(0);
                }
                self.tables.push(Table::default());
                self.writer.begin_with("table", &[("heads", "guess")]);
            }
            "tr" => {
                if let Some(table) = self.tables.last_mut() {
                    table.in_head = false;
                }
                self.writer.begin("tr");
            }
            "tc" => {
                if let Some(table) = self.tables.last_mut() {
                    table.cell = Some(Cell { columns: "1".into(), ..Cell::default() });
                }
            }
            "tblHeader" if element.get("val").is_none_or(|value| value != "0" && value != "false") => {
                if let Some(table) = self.tables.last_mut() {
                    table.in_head = true;
                }
            }
            "gridSpan" | "vMerge" => {
                if let Some(cell) = self.tables.last_mut().and_then(|table| table.cell.as_mut()) {
                    match name {
                        "gridSpan" => cell.columns = element.get("val").unwrap_or_default(),
                        _ => cell.is_continued = element.get("val").is_none_or(|value| value == "continue"),
                    }
                }
            }
            "footnoteReference" | "endnoteReference" => {
                let kind = name.trim_end_matches("Reference");
                if let Some(note) = element.get("id").and_then(|id| self.notes.get(&format!("{kind} {id}"))) {
                    self.told_notes += 1;
                    self.open_notes.push(format!("[{}] {note}", self.told_notes));
                    self.words(&format!("[{}]", self.told_notes));
                }
            }
            "tab" | "ptab" => self.words(" "),
            "noBreakHyphen" => self.words("-"),
            "cr" => self.writer.begin("br"),
            "br" if element.get("type").is_none() => self.writer.begin("br"),
            "den" => self.words("/"),
            "sup" if element.full_name() == "m:sup" => self.words("^"),
            "sub" if element.full_name() == "m:sub" => self.words("_"),
            _ => {
                let Some(paragraph) = self.paragraphs.last_mut().filter(|paragraph| !paragraph.begun) else { return };
                match name {
                    "pStyle" => paragraph.style = element.get("val"),
                    "numId" => paragraph.list = element.get("val"),
                    "ilvl" => paragraph.level = number(element),
                    "outlineLvl" => paragraph.outline = number(element),
                    _ => {}
                }
            }
        }
    }

    fn close(&mut self, name: &str) {
        match name {
            "p" => {
                if let Some(paragraph) = self.paragraphs.pop() {
                    if !paragraph.element.is_empty() {
                        self.writer.close(paragraph.element);
                    }
                    if self.tables.is_empty() && self.paragraphs.is_empty() {
                        self.write_notes();
                    }
                }
            }
            "tc" => {
                self.begin_cell();
                if let Some(table) = self.tables.last_mut() {
                    table.cell = None;
                }
                self.writer.close("td");
            }
            "tr" => {
                self.writer.close("tr");
            }
            "tbl" => {
                self.tables.pop();
                self.writer.close("table");
                if self.tables.is_empty() {
                    self.write_notes();
                }
            }
            _ => {}
        }
    }

    /// A cell begins once its properties are known.
    fn begin_cell(&mut self) {
        let Some(table) = self.tables.last_mut() else { return };
        let name = if table.in_head { "th" } else { "td" };
        if let Some(cell) = table.cell.as_mut().filter(|cell| !cell.begun) {
            cell.begun = true;
            let continued = if cell.is_continued { "yes" } else { "" };
            self.writer.begin_with(name, &[("colspan", &cell.columns), ("continued", continued)]);
        }
    }

    fn words(&mut self, words: &str) {
        self.begin_paragraph();
        if self.paragraphs.last().is_none_or(|paragraph| !paragraph.is_left_out) {
            self.writer.words(words);
        }
    }

    /// A paragraph begins with its first words, when its properties are known.
    fn begin_paragraph(&mut self) {
        let Some(paragraph) = self.paragraphs.last_mut().filter(|paragraph| !paragraph.begun) else { return };
        paragraph.begun = true;
        let style = Resolved::of(&self.styles, paragraph.style.as_deref());
        if style.name.starts_with("toc ") || style.name.starts_with("table of figures") {
            paragraph.is_left_out = true;
            return;
        }
        let in_table = !self.tables.is_empty();
        let own_style = paragraph.style.clone().unwrap_or_default();
        let list = paragraph.list.clone().or(style.list).filter(|list| list != "0");
        let mark = list.and_then(|list| {
            let level = paragraph.level.or(style.level).or_else(|| self.numbering.level_of(&list, &own_style)).unwrap_or(0);
            Some((self.numbering.mark(&list, level)?, level))
        });
        let heading = paragraph.outline.or(style.outline).filter(|level| *level < 9);
        let is_title = style.name == "title";
        if let Some(level) = heading.or(is_title.then_some(0)).filter(|_| !in_table) {
            self.has_title |= is_title;
            paragraph.element = ["h1", "h2", "h3", "h4", "h5", "h6"][level.min(5)];
            self.writer.end_lists(0);
            self.writer.begin(paragraph.element);
            match mark {
                Some((Mark::Number(number), _)) => self.writer.words(&format!("{number}. ")),
                Some((Mark::Label(label), _)) => self.writer.words(&format!("{label} ")),
                _ => {}
            }
            return;
        }
        match mark {
            Some((mark, _)) if in_table => {
                paragraph.element = "p";
                self.writer.begin("li");
                match mark {
                    Mark::Number(number) => self.writer.words(&format!("{number}. ")),
                    Mark::Label(label) => self.writer.words(&format!("{label} ")),
                    Mark::Bullet => {}
                }
            }
            Some((mark, level)) => {
                paragraph.element = "li";
                let number = if let Mark::Number(number) = mark { Some(number) } else { None };
                self.writer.begin_item(level, number);
                if let Mark::Label(label) = mark {
                    self.writer.words(&format!("{label} "));
                }
            }
            None => {
                paragraph.element = "p";
                if !in_table {
                    self.writer.end_lists(0);
                }
                self.writer.begin("p");
            }
        }
    }

    fn write_notes(&mut self) {
        for note in std::mem::take(&mut self.open_notes) {
            self.writer.end_lists(0);
            self.writer.begin("p");
            self.writer.words(&note);
            self.writer.close("p");
        }
    }
}

/// A style with the properties that it inherits.
#[derive(Default)]
struct Resolved {
    name: String,
    list: Option<String>,
    level: Option<usize>,
    outline: Option<usize>,
}

impl Resolved {
    fn of(styles: &HashMap<String, Style>, id: Option<&str>) -> Self {
        let mut found = Self::default();
        let mut next = id;
        for _ in 0..MAX_STYLE_CHAIN {
            let Some(style) = next.and_then(|id| styles.get(id)) else { break };
            if found.name.is_empty() {
                found.name.clone_from(&style.name);
            }
            let by_name = style.name.strip_prefix("heading ").and_then(|level| level.parse::<usize>().ok());
            found.outline = found.outline.or(style.outline).or(by_name.map(|level| level.saturating_sub(1)));
            found.list = found.list.or_else(|| style.list.clone());
            found.level = found.level.or(style.level);
            next = style.based_on.as_deref();
        }
        found
    }
}
