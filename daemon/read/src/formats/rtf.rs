//! RTF to Markdown (Rich Text Format 1.9.1): control words, groups, and text in the code page of its font.
//!
//! One pass, without recursion. Groups that hold no text of the document are passed over.

use std::collections::HashMap;

use encoding_rs::{Encoding, UTF_8, WINDOWS_1252};

use super::{Fault, Parsed, html::Writer, one_line};

/// Deepest nesting of groups.
const MAX_GROUPS: usize = 1000;

/// Longest run of letters in a control word; longer ones are none.
const MAX_WORD_LETTERS: usize = 32;

/// Most cells of a row.
const MAX_CELLS: usize = 256;

/// Stands for the end of a line inside a paragraph.
const LINE_END: char = '\u{2028}';

pub(super) fn parse(bytes: &[u8]) -> Result<Parsed, Fault> {
    if !bytes.starts_with(b"{\\rtf") {
        return Err(Fault::Damaged("it is not an RTF file".into()));
    }
    let mut reader = Reader::new(bytes);
    while reader.step() {}
    Ok(reader.finish())
}

/// The place that the text of a group goes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Target {
    Document,
    Nowhere,
    Fonts,
    Styles,
    Info,
    Title,
    /// The mark of an item.
    Marker,
    Note,
}

/// Properties that end with their group.
#[derive(Debug, Clone, Copy)]
struct Group {
    target: Target,
    encoding: &'static Encoding,
    /// Characters that stand behind `\u` for old programs.
    fallback: usize,
    is_hidden: bool,
}

/// Properties of a paragraph. They hold until `\pard`.
#[derive(Debug, Default, Clone, Copy)]
struct Layout {
    style: usize,
    outline: Option<usize>,
    in_table: bool,
    level: usize,
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
    groups: Vec<Group>,
    /// Groups beyond the deepest.
    beyond: usize,
    /// Bytes of text that wait for their decoding.
    raw: Vec<u8>,
    /// Characters still to be passed over behind `\u`.
    skip: usize,
    /// The first half of a character from `\u`.
    high: Option<u16>,
    default: &'static Encoding,
    fonts: HashMap<i64, &'static Encoding>,
    font: i64,
    outlines: HashMap<usize, usize>,
    style: usize,
    layout: Layout,
    words: String,
    /// Words of the paragraph while a note is read.
    interrupted: String,
    marker: String,
    title: String,
    name: String,
    cells: Vec<String>,
    /// By cell: whether it belongs to the one above.
    continued: Vec<bool>,
    is_continued: bool,
    in_table: bool,
    notes: Vec<String>,
    told_notes: usize,
    writer: Writer,
}

impl<'a> Reader<'a> {
    fn new(bytes: &'a [u8]) -> Self {
        let group = Group { target: Target::Document, encoding: WINDOWS_1252, fallback: 1, is_hidden: false };
        Self {
            bytes,
            at: 0,
            groups: vec![group],
            beyond: 0,
            raw: Vec::new(),
            skip: 0,
            high: None,
            default: WINDOWS_1252,
            fonts: HashMap::new(),
            font: 0,
            outlines: HashMap::new(),
            style: 0,
            layout: Layout::default(),
            words: String::new(),
            interrupted: String::new(),
            marker: String::new(),
            title: String::new(),
            name: String::new(),
            cells: Vec::new(),
            continued: Vec::new(),
            is_continued: false,
            in_table: false,
            notes: Vec::new(),
            told_notes: 0,
            writer: Writer::default(),
        }
    }

    fn group(&mut self) -> &mut Group {
        let last = self.groups.len() - 1;
        &mut self.groups[last]
    }

    /// Reads one token; false at the end.
    fn step(&mut self) -> bool {
        let Some(&byte) = self.bytes.get(self.at) else { return false };
        self.at += 1;
        match byte {
            b'{' => {
                self.decode();
                if self.groups.len() < MAX_GROUPS {
                    self.groups.push(*self.groups.last().unwrap_or(&self.groups[0]));
                } else {
                    self.beyond += 1;
                }
            }
            b'}' => self.end_group(),
            b'\\' => self.control(),
            b'\r' | b'\n' => {}
            byte => self.text(byte),
        }
        true
    }

    fn text(&mut self, byte: u8) {
        if self.skip > 0 {
            self.skip -= 1;
        } else {
            self.raw.push(byte);
        }
    }

    fn end_group(&mut self) {
        self.decode();
        self.skip = 0;
        if self.beyond > 0 {
            self.beyond -= 1;
            return;
        }
        // The last brace ends the document, whatever stands behind it.
        if self.groups.len() <= 2 {
            self.at = self.bytes.len();
            return;
        }
        let ended = self.groups.pop().map(|group| group.target);
        let outer = self.group().target;
        if ended == Some(Target::Note) && outer != Target::Note {
            let note = one_line(&std::mem::take(&mut self.words).replace(LINE_END, " "));
            self.words = std::mem::take(&mut self.interrupted);
            if !note.is_empty() {
                self.told_notes += 1;
                let mark = format!("[{}]", self.told_notes);
                self.words.push_str(&mark);
                self.notes.push(format!("{mark} {note}"));
            }
        }
        if ended == Some(Target::Styles) {
            let name = std::mem::take(&mut self.name).trim().trim_end_matches(';').to_lowercase();
            if let Some(level) = name.strip_prefix("heading ").and_then(|level| level.parse::<usize>().ok()) {
                self.outlines.insert(self.style, level.saturating_sub(1));
            } else if name == "title" {
                self.outlines.insert(self.style, 0);
            }
        }
    }

    /// A backslash and what follows.
    fn control(&mut self) {
        let Some(&byte) = self.bytes.get(self.at) else { return };
        if !byte.is_ascii_alphabetic() {
            self.at += 1;
            match byte {
                b'\'' => {
                    let digits = self.bytes.get(self.at..self.at + 2).and_then(|digits| std::str::from_utf8(digits).ok());
                    if let Some(byte) = digits.and_then(|digits| u8::from_str_radix(digits, 16).ok()) {
                        self.at += 2;
                        self.text(byte);
                    }
                }
                b'\\' | b'{' | b'}' => self.text(byte),
                b'~' => self.char('\u{A0}'),
                b'_' => self.char('-'),
                b'*' => {
                    // A destination that old programs pass over. The known ones with text are handled by their names.
                    self.decode();
                    let rest = &self.bytes[self.at..];
                    let known = [&b"\\shpinst"[..], b"\\shptxt", b"\\footnote"].iter().any(|name| rest.starts_with(name));
                    if !known {
                        self.group().target = Target::Nowhere;
                    }
                }
                b'\r' | b'\n' => self.end_paragraph(),
                _ => {}
            }
            return;
        }
        let rest = &self.bytes[self.at..];
        let letters = rest.iter().take_while(|byte| byte.is_ascii_alphabetic()).count();
        let sign = usize::from(rest.get(letters) == Some(&b'-'));
        let digits = rest[letters + sign..].iter().take(10).take_while(|byte| byte.is_ascii_digit()).count();
        let end = if digits == 0 { letters } else { letters + sign + digits };
        let number = std::str::from_utf8(&rest[letters..end]).ok().and_then(|number| number.parse::<i64>().ok());
        self.at += end + usize::from(rest.get(end) == Some(&b' '));
        if letters <= MAX_WORD_LETTERS
            && let Ok(word) = std::str::from_utf8(&rest[..letters])
        {
            self.word(word, number);
        }
    }

    fn word(&mut self, word: &str, number: Option<i64>) {
        self.decode();
        let value = number.unwrap_or(0);
        match word {
            "bin" => self.at = self.at.saturating_add(usize::try_from(value).unwrap_or(0)).min(self.bytes.len()),
            "u" => {
                let unit = (value & 0xFFFF) as u16;
                self.unit(unit);
                self.skip = self.group().fallback;
            }
            "uc" => self.group().fallback = usize::try_from(value).unwrap_or(1).min(16),
            "ansicpg" => {
                self.default = code_page(value);
                self.group().encoding = self.default;
            }
            "mac" => self.group().encoding = encoding_rs::MACINTOSH,
            "f" if self.group().target == Target::Fonts => self.font = value,
            "fcharset" => {
                let encoding = charset(value).unwrap_or(self.default);
                self.fonts.insert(self.font, encoding);
            }
            "f" => self.group().encoding = self.fonts.get(&value).copied().unwrap_or(self.default),
            "plain" => {
                let encoding = self.default;
                *self.group() = Group { encoding, is_hidden: false, ..*self.group() };
            }
            "v" => self.group().is_hidden = number != Some(0),
            "fonttbl" => self.group().target = Target::Fonts,
            "stylesheet" => {
                self.group().target = Target::Styles;
                self.name.clear();
            }
            "info" => self.group().target = Target::Info,
            "title" if self.group().target == Target::Info => self.group().target = Target::Title,
            "pntext" | "listtext" => {
                self.group().target = Target::Marker;
                self.marker.clear();
            }
            "footnote" if self.group().target == Target::Document => {
                self.group().target = Target::Note;
                self.interrupted = std::mem::take(&mut self.words);
            }
            "colortbl" | "pict" | "objdata" | "header" | "headerl" | "headerr" | "headerf" | "footer" | "footerl" | "footerr"
            | "footerf" | "fldinst" | "sn" | "sv" | "xe" | "tc" | "txe" | "rxe" | "nonshppict" | "author" | "operator"
            | "mmathPr" | "ftnsep" | "ftnsepc" | "aftnsep" | "aftnsepc" | "nonesttables" | "themedata" | "datastore" => {
                self.group().target = Target::Nowhere;
            }
            _ if self.group().target == Target::Nowhere => {}
            "s" if self.group().target == Target::Styles => self.style = usize::try_from(value).unwrap_or(0),
            _ if matches!(self.group().target, Target::Styles | Target::Fonts | Target::Info) => {}
            "par" | "sect" | "page" => self.end_paragraph(),
            "line" => self.words.push(LINE_END),
            "tab" | "emspace" | "enspace" | "qmspace" => self.char(' '),
            "emdash" => self.char('—'),
            "endash" => self.char('–'),
            "lquote" => self.char('‘'),
            "rquote" => self.char('’'),
            "ldblquote" => self.char('“'),
            "rdblquote" => self.char('”'),
            "bullet" => self.char('•'),
            "pard" => self.layout = Layout::default(),
            "s" => self.layout.style = usize::try_from(value).unwrap_or(0),
            "outlinelevel" => self.layout.outline = usize::try_from(value).ok(),
            "ilvl" => self.layout.level = usize::try_from(value).unwrap_or(0).min(8),
            "intbl" => self.layout.in_table = true,
            "trowd" => {
                self.continued.clear();
                self.is_continued = false;
            }
            "clvmrg" => self.is_continued = true,
            "cellx" => {
                let is_continued = std::mem::take(&mut self.is_continued);
                if self.continued.len() < MAX_CELLS {
                    self.continued.push(is_continued);
                }
            }
            "cell" => {
                let words = std::mem::take(&mut self.words).replace(LINE_END, " ");
                self.marker.clear();
                if self.cells.len() < MAX_CELLS {
                    self.cells.push(words);
                }
            }
            "nestcell" | "nestrow" => self.words.push_str("; "),
            "row" => self.end_row(),
            _ => {}
        }
    }

    /// A character from `\u`; two halves make one.
    fn unit(&mut self, unit: u16) {
        let high = self.high.take();
        match (high, unit) {
            (_, 0xD800..=0xDBFF) => self.high = Some(unit),
            (Some(high), 0xDC00..=0xDFFF) => {
                let char = char::decode_utf16([high, unit]).next().and_then(Result::ok);
                self.char(char.unwrap_or(char::REPLACEMENT_CHARACTER));
            }
            _ => self.char(char::from_u32(unit.into()).unwrap_or(char::REPLACEMENT_CHARACTER)),
        }
    }

    fn char(&mut self, char: char) {
        self.decode();
        self.put(char.encode_utf8(&mut [0; 4]));
    }

    fn decode(&mut self) {
        if !self.raw.is_empty() {
            let raw = std::mem::take(&mut self.raw);
            let encoding = self.group().encoding;
            self.put(&encoding.decode_without_bom_handling(&raw).0);
        }
    }

    fn put(&mut self, text: &str) {
        let group = *self.group();
        match group.target {
            Target::Document | Target::Note if !group.is_hidden => self.words.push_str(text),
            Target::Marker => self.marker.push_str(text),
            Target::Title => self.title.push_str(text),
            Target::Styles => self.name.push_str(text),
            _ => {}
        }
    }

    fn end_paragraph(&mut self) {
        if self.group().target == Target::Note || self.layout.in_table {
            self.words.push(' ');
            return;
        }
        self.end_table();
        let words = std::mem::take(&mut self.words);
        let marker = std::mem::take(&mut self.marker);
        let outline = self.layout.outline.or_else(|| self.outlines.get(&self.layout.style).copied()).filter(|level| *level < 9);
        let marker = marker.trim();
        if !words.trim().is_empty() {
            let number = marker.trim_end_matches(['.', ')']).parse::<u32>().ok();
            let label = marker.chars().any(char::is_alphanumeric);
            let element = match outline {
                Some(level) => ["h1", "h2", "h3", "h4", "h5", "h6"][level.min(5)],
                None if marker.is_empty() => "p",
                None => "li",
            };
            if element == "li" {
                self.writer.begin_item(self.layout.level, number);
            } else {
                self.writer.end_lists(0);
                self.writer.begin(element);
            }
            if label && (number.is_none() || element != "li") {
                self.writer.words(marker);
                self.writer.words(" ");
            }
            for (index, line) in words.split(LINE_END).enumerate() {
                if index > 0 {
                    self.writer.begin("br");
                }
                self.writer.words(line);
            }
            self.writer.close(element);
        }
        self.write_notes();
    }

    fn end_row(&mut self) {
        let cells = std::mem::take(&mut self.cells);
        if cells.is_empty() {
            return;
        }
        if !self.in_table {
            self.in_table = true;
            self.writer.end_lists(0);
            self.writer.begin_with("table", &[("heads", "guess")]);
        }
        self.writer.begin("tr");
        for (at, cell) in cells.iter().enumerate() {
            let continued = if self.continued.get(at) == Some(&true) { "yes" } else { "" };
            self.writer.begin_with("td", &[("continued", continued)]);
            self.writer.words(cell);
            self.writer.close("td");
        }
        self.writer.close("tr");
    }

    fn end_table(&mut self) {
        self.end_row();
        if std::mem::take(&mut self.in_table) {
            self.writer.close("table");
            self.write_notes();
        }
    }

    fn write_notes(&mut self) {
        for note in std::mem::take(&mut self.notes) {
            self.writer.end_lists(0);
            self.writer.begin("p");
            self.writer.words(&note);
            self.writer.close("p");
        }
    }

    fn finish(mut self) -> Parsed {
        self.decode();
        self.layout.in_table = false;
        let target = Target::Document;
        self.group().target = target;
        self.end_paragraph();
        let title = one_line(&self.title);
        Parsed { title: (!title.is_empty()).then_some(title), ..self.writer.finish() }
    }
}

fn code_page(number: i64) -> &'static Encoding {
    let label = match number {
        65001 => return UTF_8,
        932 => "shift_jis".into(),
        936 => "gbk".into(),
        949 => "euc-kr".into(),
        950 => "big5".into(),
        866 => "ibm866".into(),
        10000 => "macintosh".into(),
        number => format!("windows-{number}"),
    };
    Encoding::for_label(label.as_bytes()).unwrap_or(WINDOWS_1252)
}

/// The encoding of a font's character set; `None` for the document's own.
fn charset(number: i64) -> Option<&'static Encoding> {
    let page = match number {
        77 => 10000,
        128 => 932,
        129 | 130 => 949,
        134 => 936,
        136 => 950,
        161 => 1253,
        162 => 1254,
        163 => 1258,
        177 => 1255,
        178 => 1256,
        186 => 1257,
        204 => 1251,
        222 => 874,
        238 => 1250,
        _ => return None,
    };
    Some(code_page(page))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(rtf: &str) -> String {
        parse(rtf.as_bytes()).unwrap().text
    }

    #[test]
    fn the_given_file_is_read() {
        let read = parse(&crate::formats::example("office/a.rtf")).unwrap();
        assert_eq!(read.text, "The key is in the cupboard. Schlüssel.\n");
    }

    #[test]
    fn structure_is_kept_and_other_groups_are_not_text() {
        let rtf = r"{\rtf1\ansi\ansicpg1252{\fonttbl{\f0 Arial;}{\f1\fcharset204 Arial;}}{\colortbl;\red0;}
{\stylesheet{\s0 Normal;}{\s1\outlinelevel0 heading 1;}}{\info{\title The pump}{\author A}}{\header Page}
\pard\s1 Faults\par\pard{\listtext\f0 1.\tab}First\par{\listtext 2.\tab}second\line line\par\pard
{\f1 \'ca\'eb\'fe\'f7} \u1050?\u-10179?\u-8704? {\v hidden}{\*\unknown gone}x{\footnote\pard \chftn A note.}y\par
\trowd\cellx1\cellx2\intbl Code\cell Cause\cell\row\trowd\cellx1\cellx2\intbl E-17\cell low\par water\cell\row
\trowd\clvmrg\cellx1\cellx2\intbl\cell high\cell\row\pard end}trailing";
        let read = parse(rtf.as_bytes()).unwrap();
        assert_eq!(read.title.as_deref(), Some("The pump"));
        assert_eq!(
            read.text,
            "# Faults\n\n1. First\n2. second\n   line\n\nКлюч К😀 x[1]y\n\n[1] A note.\n\n\
             | Code | Cause |\n|---|---|\n| E-17 | low water |\n| E-17 | high |\n\nend\n"
        );
    }

    #[test]
    fn damage_and_depth_are_borne() {
        let deep = format!("{{\\rtf1 {}deep{} after}}", "{".repeat(100_000), "}".repeat(100_000));
        assert_eq!(text(&deep), "deep after\n");
        assert_eq!(text("{\\rtf1 a{\\b b\\"), "ab\n");
        assert_eq!(text("{\\rtf1 a\\bin99999999999 b}"), "a\n");
        assert!(parse(b"{rtf1").is_err());
        let whole = br"{\rtf1{\pict 00ff}\u8364?\'80\uc2\u8364??x}";
        assert_eq!(parse(whole).unwrap().text, "€€€x\n");
        for end in 5..whole.len() {
            let _ = parse(&whole[..end]);
        }
    }
}
