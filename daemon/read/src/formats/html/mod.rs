//! HTML and XHTML to Markdown in one pass over their tokens.
//!
//! No tree is built: a page takes no more memory than its own size, whatever its nesting, and nothing recurses. That matters more
//! here than a browser's fidelity: pages come from strangers and the board is small. Headings, paragraphs, lists, tables and
//! preformatted text keep their structure. Links and emphasis keep their words only. Scripts, styles, navigation and banners
//! are left out, and form controls that stand alone. The tokenizer is html5ever's: entities, comments, quoting and raw text follow
//! the standard (<https://html.spec.whatwg.org/multipage/parsing.html#tokenization>).
//!
//! XHTML is read as XML: there `<script/>` is empty, and in HTML it swallows the page. Pages that call themselves XHTML and are
//! not well-formed go through HTML's tokenizer, with empty elements as in XML.

mod elements;
mod table;
#[cfg(test)]
mod tests;

use std::{
    cell::RefCell,
    time::{Duration, Instant},
};

use html5ever::{
    tendril::StrTendril,
    tokenizer::{
        BufferQueue, TagKind, Token, TokenSink, TokenSinkResult, Tokenizer, TokenizerOpts,
        states::RawKind::{Rawtext, Rcdata, ScriptData},
    },
};

use super::{
    Fault, Parsed, markdown, one_line,
    xml::{NotWellFormed, Token as XmlToken, Xml},
};
use elements::{heading_level, is_block, is_clutter, is_left_out, menu_of_links};
use table::Table;

/// The tokenizer gets pieces of this size, and the clock is checked between them: the time of an element grows with the square of
/// its attributes.
const PIECE_BYTES: usize = 16 * 1024;

/// Longest time for one page.
const TIME_LIMIT: Duration = Duration::from_secs(20);

/// Deepest indentation of lists.
const MAX_LIST_DEPTH: usize = 8;

/// Most columns of a table, and most columns or rows of one cell.
const MAX_SPAN: usize = 64;

/// Longest head of a column that is guessed to be one, in characters.
const MAX_GUESSED_HEAD: usize = 60;

/// Deepest nesting of a formula that is followed.
const MAX_FORMULA_DEPTH: usize = 64;

/// Longest list of choices that is text and no data.
const MAX_CHOICES_BYTES: usize = 300;

/// XML tokens between two looks at the clock.
const TOKENS_PER_LOOK: usize = 4096;

/// A page is XHTML if its first bytes say so.
const MAX_XHTML_HEAD_BYTES: usize = 1024;

/// Converts a page; the title comes from `<title>`.
pub(crate) fn to_markdown(html: &str) -> Result<Parsed, Fault> {
    convert(html, is_xhtml(html))
}

/// Converts a page that is XHTML by the rules of its container.
pub(super) fn xhtml_to_markdown(xhtml: &str) -> Result<Parsed, Fault> {
    convert(xhtml, true)
}

fn convert(page: &str, is_xhtml: bool) -> Result<Parsed, Fault> {
    let begun = Instant::now();
    let given_up = || begun.elapsed() > TIME_LIMIT;
    let read = |keeps_all: bool| {
        let parsed = match is_xhtml.then(|| convert_xml_unless(page, keeps_all, given_up)) {
            Some(Ok(parsed)) => parsed,
            Some(Err(NotWellFormed)) | None => convert_unless(page, is_xhtml, keeps_all, given_up),
        };
        parsed.ok_or(Fault::TooSlow(TIME_LIMIT))
    };
    let parsed = read(false)?;
    // A name can mislead: a page is better read with its menus than not at all.
    if parsed.text.trim().is_empty() { read(true) } else { Ok(parsed) }
}

/// Whether a page calls itself XML or names XHTML's name space.
fn is_xhtml(page: &str) -> bool {
    let page = page.trim_start();
    let head = &page[..page.floor_char_boundary(MAX_XHTML_HEAD_BYTES)];
    head.starts_with("<?xml") || head.contains("http://www.w3.org/1999/xhtml")
}

/// Converts well-formed XML; `None` once `given_up`.
fn convert_xml_unless(page: &str, keeps_all: bool, mut given_up: impl FnMut() -> bool) -> Result<Option<Parsed>, NotWellFormed> {
    let (mut xml, mut writer) = (Xml::new(page), Writer { keeps_all, ..Writer::default() });
    let mut count = 0_usize;
    while let Some(token) = xml.next()? {
        if count.is_multiple_of(TOKENS_PER_LOOK) && given_up() {
            return Ok(None);
        }
        count += 1;
        match token {
            XmlToken::Open(element) => {
                let name = element.name().to_ascii_lowercase();
                writer.open(&Tag { name: &name, attribute: &|name| element.get(name), is_empty: false });
            }
            XmlToken::Close(name) => writer.close(&name.to_ascii_lowercase()),
            XmlToken::Words(words) => writer.words(&words),
        }
    }
    Ok(Some(writer.finish()))
}

/// Converts HTML; `None` once `given_up`, which is asked before every piece.
fn convert_unless(html: &str, is_xhtml: bool, keeps_all: bool, mut given_up: impl FnMut() -> bool) -> Option<Parsed> {
    let sink = Sink { writer: RefCell::new(Writer { keeps_all, ..Writer::default() }), is_xhtml };
    let tokenizer = Tokenizer::new(sink, TokenizerOpts::default());
    let input = BufferQueue::default();
    let mut rest = html;
    while !rest.is_empty() {
        if given_up() {
            return None;
        }
        let (piece, after) = rest.split_at(rest.floor_char_boundary(PIECE_BYTES));
        input.push_back(StrTendril::from_slice(piece));
        let _ = tokenizer.feed(&input);
        rest = after;
    }
    tokenizer.end();
    Some(tokenizer.sink.writer.into_inner().finish())
}

struct Sink {
    writer: RefCell<Writer>,
    /// Whether a slash closes any element.
    is_xhtml: bool,
}

impl Sink {
    /// The name that counts. In HTML a colon is a part of it: Word's `<o:p>` is no paragraph.
    fn local<'a>(&self, name: &'a str) -> &'a str {
        if self.is_xhtml { name.rsplit(':').next().unwrap_or(name) } else { name }
    }
}

impl TokenSink for Sink {
    type Handle = ();

    fn process_token(&self, token: Token, _line: u64) -> TokenSinkResult<()> {
        let mut writer = self.writer.borrow_mut();
        match token {
            Token::CharacterTokens(text) => writer.words(&text),
            Token::TagToken(tag) if tag.kind == TagKind::StartTag => {
                let value = |name: &str| {
                    tag.attrs.iter().find(|attribute| &*attribute.name.local == name).map(|attribute| attribute.value.to_string())
                };
                let (name, closed) = (self.local(&tag.name), tag.self_closing && self.is_xhtml);
                writer.open(&Tag { name, attribute: &value, is_empty: tag.self_closing && !closed });
                if !closed {
                    return raw_text(name);
                }
                writer.close(name);
            }
            Token::TagToken(tag) => writer.close(self.local(&tag.name)),
            _ => {}
        }
        TokenSinkResult::Continue
    }
}

/// A start tag, from either tokenizer or from the reader of another format.
pub(super) struct Tag<'a> {
    pub(super) name: &'a str,
    /// The value of the attribute of a name.
    pub(super) attribute: &'a dyn Fn(&str) -> Option<String>,
    /// Whether it ends with a slash, and no end tag will follow.
    pub(super) is_empty: bool,
}

impl Tag<'_> {
    fn get(&self, name: &str) -> Option<String> {
        (self.attribute)(name)
    }
}

/// Elements whose content is not markup, as a tree builder would tell the tokenizer.
fn raw_text(name: &str) -> TokenSinkResult<()> {
    match name {
        "script" => TokenSinkResult::RawData(ScriptData),
        "style" | "xmp" | "iframe" | "noembed" | "noframes" => TokenSinkResult::RawData(Rawtext),
        "title" | "textarea" => TokenSinkResult::RawData(Rcdata),
        "plaintext" => TokenSinkResult::Plaintext,
        _ => TokenSinkResult::Continue,
    }
}

/// Builds the Markdown from the tokens.
#[derive(Default)]
#[allow(clippy::struct_excessive_bools, reason = "each is a place that the writer is in")]
pub(super) struct Writer {
    title: Option<String>,
    /// A remark for the owner.
    note: Option<String>,
    in_title: bool,
    text: String,
    /// Words of the current block or table cell.
    block: String,
    /// Beginning of the block: `## `, `- `.
    marker: String,
    /// Whether the writer is inside `<pre>`: white space counts.
    preformatted: bool,
    lists: Vec<List>,
    table: Option<Table>,
    place: Place,
    /// The element that holds the page's main part, and the number of open elements of its name.
    main: (String, usize),
    /// The element that is left out, and the number of open elements of its name.
    left_out: Option<(String, usize)>,
    /// Whether menus and banners are kept too.
    keeps_all: bool,
    /// The element that may be a menu.
    menu: Option<Menu>,
    /// Links, characters in links, and all characters of the page so far.
    links: (usize, usize, usize),
    in_link: bool,
    has_heading: bool,
    /// The form control that is open, and the length of the block before it.
    control: Option<(String, usize)>,
    /// Characters of the block that come from controls.
    control_chars: usize,
    /// Open elements of a formula, and the number of their parts.
    formula: Vec<(String, usize)>,
    /// Open drawings, and whether a text in them is open.
    drawings: usize,
    in_drawn_text: bool,
}

/// An element that is a menu if most of its words are links.
struct Menu {
    name: String,
    /// Open elements of its name.
    depth: usize,
    /// The least links and percentage of linked words.
    least: (usize, usize),
    /// The counts before it, and the length of the text.
    links: (usize, usize, usize),
    text: usize,
}

/// Position relative to the page's `<main>`.
#[derive(Default, PartialEq, Eq)]
enum Place {
    #[default]
    Before,
    Inside,
    After,
}

struct List {
    /// The next number, in an ordered list.
    number: Option<u64>,
}

impl Writer {
    /// Opens an element without attributes, for the reader of another format.
    pub(super) fn begin(&mut self, name: &str) {
        self.begin_with(name, &[]);
    }

    /// Opens an element. Two attributes are not HTML's: `<table heads>` may have a first row that names the columns, and
    /// `<td continued=yes>` belongs to the cell above.
    pub(super) fn begin_with(&mut self, name: &str, attributes: &[(&str, &str)]) {
        let value = |name: &str| attributes.iter().find(|(of, _)| *of == name).map(|(_, value)| (*value).to_owned());
        self.open(&Tag { name, attribute: &value, is_empty: false });
    }

    /// Opens an item of a list, and the lists around it, down to a level from 0.
    pub(super) fn begin_item(&mut self, level: usize, number: Option<u32>) {
        let level = level.min(MAX_LIST_DEPTH - 1);
        self.end_lists(level + 1);
        if self.lists.len() == level + 1 && self.lists[level].number.is_some() != number.is_some() {
            self.end_lists(level);
        }
        while self.lists.len() <= level {
            self.begin(if number.is_some() { "ol" } else { "ul" });
        }
        self.begin_with("li", &[("value", &number.unwrap_or_default().to_string())]);
    }

    /// Closes lists until `depth` are open.
    pub(super) fn end_lists(&mut self, depth: usize) {
        while self.lists.len() > depth {
            self.close("ul");
        }
    }

    /// Ends a page. The next one begins behind the form feed.
    pub(super) fn page_break(&mut self) {
        self.end_table();
        self.end_block();
        self.lists.clear();
        self.text.push_str("\n\u{0C}\n");
    }

    /// A remark for the owner of the document.
    pub(super) fn note(&mut self, note: &str) {
        self.note = Some(note.to_owned());
    }

    /// Whether any words have been written.
    pub(super) fn has_text(&self) -> bool {
        !self.text.trim().is_empty() || !self.block.trim().is_empty()
    }

    pub(super) fn has_more_than(&self, bytes: usize) -> bool {
        self.text.len() + self.block.len() > bytes
    }

    pub(super) fn finish(mut self) -> Parsed {
        self.end_table();
        self.end_block();
        let title = self.title.map(|title| one_line(&title)).filter(|title| !title.is_empty());
        Parsed { title, text: self.text.trim_end().to_owned() + "\n", note: self.note }
    }

    /// Words of the document, within whatever is open.
    pub(super) fn words(&mut self, words: &str) {
        if self.in_title {
            if let Some(title) = &mut self.title
                && title.len() < 4096
            {
                title.push_str(words);
            }
        } else if self.is_passed_over(words) {
        } else if self.preformatted {
            self.block.push_str(words);
        } else {
            let count = words.chars().filter(|char| !char.is_whitespace()).count();
            self.links.2 += count;
            self.links.1 += if self.in_link { count } else { 0 };
            for char in words.chars() {
                self.push_collapsed(if char.is_whitespace() && char != '\u{A0}' { ' ' } else { char });
            }
        }
    }

    /// Words outside the subject, in a drawing, and blanks that lay out a formula's source.
    fn is_passed_over(&self, words: &str) -> bool {
        self.left_out.is_some()
            || self.place == Place::After
            || (self.drawings > 0 && !self.in_drawn_text)
            || (!self.formula.is_empty() && words.trim().is_empty())
    }

    fn push_collapsed(&mut self, char: char) {
        // Soft hyphens and the invisible signs of formulas.
        if matches!(char, '\u{AD}' | '\u{2061}'..='\u{2064}') {
            return;
        }
        if char != ' ' || !(self.block.is_empty() || self.block.ends_with([' ', '\n'])) {
            self.block.push(if char == '\u{A0}' { ' ' } else { char });
        }
    }

    fn open(&mut self, tag: &Tag) {
        let name = tag.name;
        let is_main = name == "main" || (name != "body" && tag.get("role").is_some_and(|role| role == "main"));
        if let Some((left_out, depth)) = &mut self.left_out {
            // A menu that is never closed does not swallow the page.
            if is_main || matches!(name, "article" | "body") {
                self.left_out = None;
            } else {
                *depth += usize::from(name == left_out && !tag.is_empty);
                return;
            }
        }
        if is_main && self.place != Place::Inside {
            self.begin_main(name);
        } else if self.place == Place::Inside && name == self.main.0 {
            self.main.1 += usize::from(!tag.is_empty);
        }
        let begins_block = is_block(name) || heading_level(name).is_some();
        if begins_block && !self.in_drawn_text {
            // Blocks stand in no formula or drawing: it was never closed.
            (self.drawings, self.formula) = (0, Vec::new());
        }
        self.has_heading |= heading_level(name).is_some();
        match name {
            "a" => {
                self.in_link = tag.get("href").is_some();
                self.links.0 += usize::from(self.in_link);
            }
            _ if begins_block => self.in_link = false,
            _ => {}
        }
        if let Some(menu) = self.menu.as_mut().filter(|menu| menu.name == name) {
            menu.depth += usize::from(!tag.is_empty);
        } else if self.menu.is_none()
            && !self.keeps_all
            && self.table.is_none()
            && self.lists.is_empty()
            && let Some(least) = menu_of_links(tag, !self.has_heading)
        {
            self.end_block();
            let (links, text) = (self.links, self.text.len());
            self.menu = Some(Menu { name: name.to_owned(), depth: 1, least, links, text });
        }
        if self.drawings > 0 {
            self.open_in_drawing(tag);
        } else if is_left_out(name) || (!self.keeps_all && is_clutter(tag)) {
            self.left_out = Some((name.to_owned(), 1));
        } else if name == "svg" {
            // The slash closes `<svg/>`, but means nothing on HTML's own elements.
            self.drawings = usize::from(!tag.is_empty);
        } else if name == "math" || !self.formula.is_empty() {
            self.open_in_formula(tag);
        } else if name == "title" {
            self.in_title = self.title.is_none();
            self.title.get_or_insert_default();
        } else if self.table.is_some() {
            self.open_in_table(tag);
        } else {
            self.open_in_flow(tag);
        }
    }

    /// A page with `<main>` declares the rest to be about something else.
    fn begin_main(&mut self, name: &str) {
        *self = Self {
            title: self.title.take(),
            note: self.note.take(),
            keeps_all: self.keeps_all,
            main: (name.to_owned(), 1),
            place: Place::Inside,
            text: if self.place == Place::After { std::mem::take(&mut self.text) } else { String::new() },
            ..Self::default()
        };
    }

    fn end_main(&mut self) {
        self.end_table();
        self.end_block();
        self.place = Place::After;
    }

    pub(super) fn close(&mut self, name: &str) {
        if self.place == Place::Inside && name == self.main.0 {
            self.main.1 = self.main.1.saturating_sub(1);
            if self.main.1 == 0 || name == "main" {
                self.left_out = None;
                self.end_main();
                return;
            }
        }
        if name == "title" {
            self.in_title = false;
        } else if let Some((left_out, depth)) = &mut self.left_out {
            *depth -= usize::from(name == left_out);
            if *depth == 0 {
                self.left_out = None;
            }
        } else if self.drawings > 0 {
            self.close_in_drawing(name);
        } else if !self.formula.is_empty() {
            self.close_in_formula(name);
        } else if self.control.as_ref().is_some_and(|(control, _)| control == name) {
            self.end_control();
        } else if self.table.is_some() {
            self.close_in_table(name);
        } else {
            self.close_in_flow(name);
            self.close_menu(name);
        }
        if name == "a" {
            self.in_link = false;
        }
    }

    /// A menu goes when it ends. One that never ends stays.
    fn close_menu(&mut self, name: &str) {
        let Some(menu) = self.menu.as_mut().filter(|menu| menu.name == name) else { return };
        menu.depth -= 1;
        if menu.depth > 0 {
            return;
        }
        self.end_block();
        let Some(menu) = self.menu.take() else { return };
        let (links, linked, all) = (self.links.0 - menu.links.0, self.links.1 - menu.links.1, self.links.2 - menu.links.2);
        let (least_links, percent) = menu.least;
        if links >= least_links && linked * 100 >= all * percent && menu.text <= self.text.len() {
            self.text.truncate(menu.text);
        }
    }

    /// In a drawing only its texts count.
    fn open_in_drawing(&mut self, tag: &Tag) {
        match tag.name {
            "svg" => self.drawings += usize::from(!tag.is_empty),
            "text" | "foreignobject" | "foreignObject" => {
                self.in_drawn_text = true;
                self.push_collapsed(' ');
            }
            _ => {}
        }
    }

    fn close_in_drawing(&mut self, name: &str) {
        match name {
            "svg" => {
                self.drawings -= 1;
                self.in_drawn_text = false;
                self.push_collapsed(' ');
            }
            "text" | "foreignobject" | "foreignObject" => self.in_drawn_text = false,
            _ => {}
        }
    }

    /// A formula on one line: `(a+b)/c`, `x^2`, `√(y)`.
    fn open_in_formula(&mut self, tag: &Tag) {
        let mut is_operand = false;
        if let Some((parent, parts)) = self.formula.last_mut() {
            *parts += 1;
            let sign = match (parent.as_str(), *parts) {
                ("mfrac", 2) => "/",
                ("msup" | "mover", 2) | ("msubsup" | "munderover", 3) => "^",
                ("msub" | "munder" | "msubsup" | "munderover", 2) => "_",
                ("mtr", 2..) => " ",
                ("mtable", 2..) => "; ",
                _ => "",
            };
            is_operand = tag.name == "mrow" && matches!(parent.as_str(), "mfrac" | "msup" | "msub" | "msubsup");
            self.block.push_str(sign);
        }
        match tag.name {
            "msqrt" | "mroot" => self.block.push_str("√("),
            _ if is_operand => self.block.push('('),
            _ => {}
        }
        if !tag.is_empty && self.formula.len() < MAX_FORMULA_DEPTH {
            let name = if is_operand { "mrow (" } else { tag.name };
            self.formula.push((name.to_owned(), 0));
        }
    }

    fn close_in_formula(&mut self, name: &str) {
        let Some(at) = self.formula.iter().rposition(|(open, _)| open.split(' ').next() == Some(name)) else { return };
        for (open, _) in self.formula.split_off(at).iter().rev() {
            if matches!(open.as_str(), "msqrt" | "mroot" | "mrow (") {
                self.block.push(')');
            }
        }
    }

    /// The words of a control belong to the sentence around it. A block of controls alone is none of the text.
    fn end_control(&mut self) {
        let Some((name, begun)) = self.control.take() else { return };
        let Some(words) = self.block.get(begun..) else { return };
        if name == "select" && words.len() > MAX_CHOICES_BYTES {
            self.block.truncate(begun);
        } else {
            self.control_chars += words.chars().filter(|char| !char.is_whitespace()).count();
        }
    }

    fn open_in_flow(&mut self, tag: &Tag) {
        let name = tag.name;
        if let Some(level) = heading_level(name) {
            self.end_block();
            self.lists.clear();
            self.marker = format!("{} ", "#".repeat(level));
            return;
        }
        match name {
            "ul" | "ol" | "menu" | "dir" => {
                self.end_block();
                if self.lists.is_empty() {
                    self.blank_line();
                }
                let start = tag.get("start").and_then(|start| start.parse().ok()).unwrap_or(1);
                if self.lists.len() < MAX_LIST_DEPTH {
                    self.lists.push(List { number: (name == "ol").then_some(start) });
                }
            }
            "li" => {
                if let Some(number) = tag.get("value").and_then(|value| value.parse().ok())
                    && let Some(list) = self.lists.last_mut().filter(|list| list.number.is_some())
                {
                    list.number = Some(number);
                }
                self.open_item();
            }
            "pre" => {
                self.end_block();
                self.preformatted = true;
            }
            "table" => {
                self.end_block();
                self.table = Some(Table { guesses: tag.get("heads").is_some(), ..Table::default() });
            }
            "br" if self.preformatted => self.block.push('\n'),
            "br" => {
                self.block.truncate(self.block.trim_end_matches(' ').len());
                self.block.push('\n');
            }
            name if is_block(name) => self.end_block(),
            _ => self.open_inline(tag),
        }
    }

    fn open_inline(&mut self, tag: &Tag) {
        match tag.name {
            "img" => {
                // A formula's picture has its source in TeX, beside the formula itself.
                if let Some(alt) = tag.get("alt").filter(|alt| !alt.starts_with("{\\displaystyle") && !alt.starts_with("data:")) {
                    self.words(&alt);
                }
            }
            "button" | "select" | "textarea" if self.control.is_none() => {
                self.control = Some((tag.name.to_owned(), self.block.len()));
            }
            "option" if self.control.as_ref().is_some_and(|(_, begun)| self.block.trim_end().len() > *begun) => {
                self.separate(" / ");
            }
            "input" if self.control.is_none() => {
                let is_shown = tag.get("type").is_none_or(|kind| {
                    matches!(
                        kind.to_ascii_lowercase().as_str(),
                        "text" | "button" | "submit" | "reset" | "number" | "tel" | "url"
                    )
                });
                if let Some(value) = tag.get("value").filter(|_| is_shown) {
                    let begun = self.block.len();
                    self.words(&value);
                    self.control = Some(("input".into(), begun));
                    self.end_control();
                }
            }
            // 10<sup>-3</sup> is not 10-3.
            "sup" if self.block.ends_with(char::is_alphanumeric) => self.block.push('^'),
            _ => {}
        }
    }

    fn open_item(&mut self) {
        self.end_block();
        let indentation = "  ".repeat(self.lists.len().saturating_sub(1));
        self.marker = match self.lists.last_mut().and_then(|list| list.number.as_mut()) {
            Some(number) => {
                let marker = format!("{indentation}{number}. ");
                *number = number.saturating_add(1);
                marker
            }
            None => format!("{indentation}- "),
        };
    }

    fn close_in_flow(&mut self, name: &str) {
        match name {
            "ul" | "ol" | "menu" | "dir" => {
                self.end_block();
                self.lists.pop();
                if self.lists.is_empty() {
                    self.blank_line();
                }
            }
            "pre" => {
                self.end_block();
                self.preformatted = false;
            }
            // A term announces its definition, which the chunker keeps with it.
            "dt" if !self.block.trim().is_empty() => {
                self.block.truncate(self.block.trim_end().len());
                self.block.push(':');
                self.end_block();
            }
            name if is_block(name) || name == "li" || heading_level(name).is_some() => {
                self.end_block();
            }
            _ => {}
        }
    }

    fn end_block(&mut self) {
        let block = std::mem::take(&mut self.block);
        let control_chars = std::mem::take(&mut self.control_chars);
        let is_controls = control_chars > 0
            && !self.marker.starts_with('#')
            && block.chars().filter(|char| !char.is_whitespace()).count() <= control_chars;
        if block.trim().is_empty() || is_controls {
            // `<li><p>` keeps the item's marker for the paragraph.
            if !self.lists.is_empty() || self.marker.starts_with('#') {
                return;
            }
            self.marker.clear();
            return;
        }
        let marker = std::mem::take(&mut self.marker);
        if self.preformatted {
            self.blank_line();
            let fence = markdown::fence_for(&block);
            for part in [&fence, "\n", block.trim_matches('\n'), "\n", &fence, "\n"] {
                self.text.push_str(part);
            }
        } else if marker.starts_with('#') {
            self.blank_line();
            self.text.push_str(&marker);
            self.text.push_str(&one_line(&block));
            self.text.push('\n');
        } else if self.lists.is_empty() && marker.is_empty() {
            self.blank_line();
            self.push_lines(&block, "");
        } else {
            self.text.push_str(&marker);
            let indentation = " ".repeat(if marker.is_empty() { 2 * self.lists.len() } else { marker.len() });
            if marker.is_empty() {
                self.blank_line();
                self.text.push_str(&indentation);
            }
            self.push_lines(&block, &indentation);
        }
    }

    fn push_lines(&mut self, block: &str, indentation: &str) {
        for (index, line) in block.trim().lines().map(str::trim).filter(|line| !line.is_empty()).enumerate() {
            if index > 0 {
                self.text.push_str(indentation);
            }
            if markdown::reads_as_markup(line) {
                self.text.push('\\');
            }
            self.text.push_str(line);
            self.text.push('\n');
        }
    }

    /// A list after a list follows without a gap; other blocks are separated.
    fn blank_line(&mut self) {
        if !self.text.is_empty() && !self.text.ends_with("\n\n") {
            self.text.push('\n');
        }
    }

    fn open_in_table(&mut self, tag: &Tag) {
        let name = tag.name;
        match name {
            // A table that contains a table or a heading is a layout table.
            "table" => {
                self.dissolve_table();
                self.open_in_flow(tag);
            }
            name if heading_level(name).is_some() => {
                self.dissolve_table();
                self.open_in_flow(tag);
            }
            "tr" => {
                self.end_cell();
                self.table_mut(Table::end_row);
            }
            "td" | "th" => {
                self.end_cell();
                let span = |name| tag.get(name).and_then(|span| span.parse().ok()).unwrap_or(1).clamp(1, MAX_SPAN);
                let is_continued = tag.get("continued").is_some_and(|value| value == "yes");
                let (columns, rows, heads) = (span("colspan"), span("rowspan"), name == "th");
                self.table_mut(|table| {
                    table.in_cell = true;
                    table.is_continued = is_continued;
                    table.span = (columns, rows);
                    table.heads |= heads && table.rows.is_empty();
                });
            }
            "caption" => self.end_cell(),
            "li" => self.separate("; "),
            "br" | "p" | "div" | "ul" | "ol" | "pre" => self.separate(" "),
            _ => self.open_inline(tag),
        }
    }

    fn separate(&mut self, separator: &str) {
        let end = self.block.trim_end_matches(' ').len();
        self.block.truncate(end);
        if !self.block.is_empty() {
            self.block.push_str(separator);
        }
    }

    fn close_in_table(&mut self, name: &str) {
        match name {
            "table" => self.end_table(),
            "td" | "th" => self.end_cell(),
            "tr" => {
                self.end_cell();
                self.table_mut(Table::end_row);
            }
            "thead" => {
                self.end_cell();
                self.table_mut(|table| {
                    table.end_row();
                    table.heads |= table.rows.len() == 1;
                });
            }
            "caption" => {
                let caption = std::mem::take(&mut self.block);
                self.table_mut(|table| table.caption = one_line(&caption));
            }
            "p" | "div" => self.separate(" "),
            _ => {}
        }
    }

    fn table_mut(&mut self, change: impl FnOnce(&mut Table)) {
        if let Some(table) = &mut self.table {
            change(table);
        }
    }

    fn end_cell(&mut self) {
        let words = one_line(&std::mem::take(&mut self.block));
        self.control_chars = 0;
        self.table_mut(|table| {
            if std::mem::take(&mut table.in_cell) {
                table.push_cell(&words);
            }
        });
    }

    fn end_table(&mut self) {
        if self.table.is_some() {
            self.end_cell();
        }
        let Some(mut table) = self.table.take() else {
            return;
        };
        table.end_row();
        // An office file frames words with a table of one column.
        if table.guesses && table.rows.iter().all(|row| row.len() <= 1) {
            self.write_cells(table);
            return;
        }
        self.blank_line();
        table.write(&mut self.text);
        self.blank_line();
    }

    /// Writes the cells of a layout table as paragraphs and continues without the table.
    fn dissolve_table(&mut self) {
        self.end_cell();
        let Some(mut table) = self.table.take() else {
            return;
        };
        table.end_row();
        self.write_cells(table);
    }

    /// Writes each cell as a paragraph.
    fn write_cells(&mut self, table: Table) {
        for cell in table.rows.into_iter().flatten() {
            self.block = cell;
            self.end_block();
        }
    }
}
