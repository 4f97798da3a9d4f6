//! Blocks to Markdown.

use std::{
    collections::HashSet,
    hash::{DefaultHasher, Hash, Hasher},
};

use super::super::markdown;
use super::{
    blocks::{Line, bullet, is_marker},
    leaders,
};

/// Most different words remembered.
const MAX_WORDS: usize = 1_000_000;

/// The words of a document: they show how a word at the end of a line is written elsewhere.
#[derive(Default)]
pub(super) struct Words(HashSet<u64>);

impl Words {
    pub(super) fn add(&mut self, word: &str) {
        let word = core(word);
        if word.len() >= 4 && self.0.len() < MAX_WORDS {
            self.0.insert(fingerprint(&word));
        }
    }

    fn has(&self, word: &str) -> bool {
        self.0.contains(&fingerprint(&core(word)))
    }
}

fn core(word: &str) -> String {
    word.trim_matches(|char: char| !char.is_alphanumeric()).to_lowercase()
}

fn fingerprint(word: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    word.hash(&mut hasher);
    hasher.finish()
}

/// The open block: the next block may continue it, even on the next page.
enum Open {
    Nothing,
    Paragraph(String),
    /// An item of a list.
    Item(String),
    Code(Vec<String>),
    Table(Vec<Vec<String>>, bool),
}

/// Writes Markdown, with a form feed for each end of a page: inside a block that continues, else on a line of its own.
pub(super) struct MarkdownWriter {
    text: String,
    open: Open,
    /// Ends of pages since the open block.
    breaks: usize,
    words: Words,
    /// A label such as `Warning` on a line of its own: it belongs to the next paragraph.
    label: Option<String>,
    /// Whether the last block was an item: the next item follows without a gap.
    in_list: bool,
}

impl MarkdownWriter {
    pub(super) fn new(words: Words) -> Self {
        Self { text: String::new(), open: Open::Nothing, breaks: 0, words, label: None, in_list: false }
    }

    pub(super) fn finish(mut self) -> String {
        self.put_label();
        self.close();
        self.text
    }

    pub(super) fn page_break(&mut self) {
        self.breaks += 1;
    }

    pub(super) fn heading(&mut self, lines: &[Line], level: usize) {
        let mut heading = String::new();
        for line in lines {
            self.append(&mut heading, &line.text);
        }
        if is_only_number(&heading) || leaders::is_title(&heading) {
            return;
        }
        self.put_label();
        self.close();
        self.gap();
        self.text.push_str(&"#".repeat(level));
        self.text.push(' ');
        self.text.push_str(&heading);
        self.text.push('\n');
    }

    pub(super) fn text(&mut self, lines: &[Line]) {
        if lines.len() == 1 && is_label(&lines[0].text) {
            self.put_label();
            self.label = Some(lines[0].text.clone());
            return;
        }
        let (mark, rest) = lines[0].text.split_once(' ').unwrap_or((&lines[0].text, ""));
        let item = is_marker(mark) && !(rest.is_empty() && lines.len() == 1);
        let first = match (item, bullet(mark)) {
            (true, true) => format!("- {}", rest.trim_start()),
            _ => lines[0].text.clone(),
        };
        let label = self.label.take();
        let goes_on = !item
            && label.is_none()
            && self.breaks > 0
            && starts_inside(&lines[0].text)
            && matches!(&self.open, Open::Paragraph(text) | Open::Item(text) if ends_inside(text));
        let mut block = if goes_on { self.reopen() } else { Open::Nothing };
        if !goes_on {
            self.close();
            block = if item { Open::Item(String::new()) } else { Open::Paragraph(String::new()) };
        }
        if let Open::Paragraph(text) | Open::Item(text) = &mut block {
            if let Some(label) = label {
                text.push_str(label.trim_end_matches(':'));
                text.push(':');
            }
            for line in std::iter::once(first.as_str()).chain(lines[1..].iter().map(|line| line.text.as_str())) {
                self.append(text, line);
            }
        }
        self.open = block;
    }

    pub(super) fn code(&mut self, mut lines: Vec<String>) {
        self.put_label();
        if let (Open::Code(before), 1..) = (&mut self.open, self.breaks) {
            if let Some(last) = before.last_mut() {
                last.extend(std::iter::repeat_n('\u{0C}', self.breaks));
            }
            self.breaks = 0;
            before.append(&mut lines);
            return;
        }
        self.close();
        self.open = Open::Code(lines);
    }

    pub(super) fn table(&mut self, cells: &[Vec<Vec<String>>], heads: bool) {
        self.put_label();
        let join = |lines: &Vec<String>| {
            let mut cell = String::new();
            for line in lines {
                self.append(&mut cell, line);
            }
            cell
        };
        let mut cells: Vec<Vec<String>> = cells.iter().map(|row| row.iter().map(join).collect()).collect();
        if let (Open::Table(before, _), 1..) = (&mut self.open, self.breaks)
            && before.first().map(Vec::len) == cells.first().map(Vec::len)
        {
            if before.first() == cells.first() {
                cells.remove(0);
            }
            if let Some(last) = before.last_mut().and_then(|row| row.last_mut()) {
                last.push(' ');
                last.extend(std::iter::repeat_n('\u{0C}', self.breaks));
            }
            self.breaks = 0;
            before.append(&mut cells);
            return;
        }
        self.close();
        self.open = Open::Table(cells, heads);
    }

    /// Writes a label that nothing followed.
    fn put_label(&mut self) {
        if let Some(label) = self.label.take() {
            self.close();
            self.open = Open::Paragraph(label);
        }
    }

    /// The open block, with the ends of pages behind it.
    fn reopen(&mut self) -> Open {
        let mut open = std::mem::replace(&mut self.open, Open::Nothing);
        if let Open::Paragraph(text) | Open::Item(text) = &mut open {
            text.extend(std::iter::repeat_n('\u{0C}', self.breaks));
            self.breaks = 0;
        }
        open
    }

    /// Adds a line to a paragraph and joins a hyphenated word.
    fn append(&self, text: &mut String, line: &str) {
        let line = line.trim();
        let paged = text.len() - text.trim_end_matches('\u{0C}').len();
        let end = text.len() - paged;
        let mut joined = false;
        if text[..end].ends_with('\u{AD}') {
            text.replace_range(end - '\u{AD}'.len_utf8()..end, "");
            joined = true;
        } else if text[..end].ends_with('-') && !text[..end].ends_with(" -") {
            let last = text[..end - 1].rsplit(char::is_whitespace).next().unwrap_or("");
            let first = line.split(' ').next().unwrap_or("");
            let letters = last.ends_with(char::is_alphabetic) && first.starts_with(char::is_lowercase);
            // `fonts-crosextra-` is the beginning of a name, whose hyphens stay; `Donau-Dampf-` is a compound of words.
            let compound = !last.contains(['_', '/', '.', ':'])
                && last.rsplit('-').next().is_some_and(|part| part.starts_with(char::is_uppercase));
            let name = last.contains(['-', '_', '/', '.', ':']) && !compound;
            let whole = self.words.has(&format!("{last}{first}"));
            if letters && !whole && is_conjunction(first) {
                // `Strom-` shares the end of another word: `Strom- und Wasserleitungen`.
                text.insert(end, ' ');
            } else if letters && (whole || !name && !self.words.has(&format!("{last}-{first}"))) {
                text.replace_range(end - 1..end, "");
            }
            joined = true;
        }
        if !joined && !text.is_empty() {
            text.push(' ');
        }
        text.extend(line.chars().filter(|&char| char != '\u{AD}' || line.ends_with('\u{AD}')));
    }

    fn gap(&mut self) {
        if !self.text.is_empty() && !self.text.ends_with("\n\n") {
            self.text.push('\n');
        }
    }

    /// Writes out the open block and the ends of pages after it.
    fn close(&mut self) {
        let listed = std::mem::take(&mut self.in_list);
        match std::mem::replace(&mut self.open, Open::Nothing) {
            Open::Nothing => {}
            Open::Item(text) => {
                if !listed {
                    self.gap();
                }
                self.text.push_str(&text);
                self.text.push('\n');
                self.in_list = true;
            }
            Open::Paragraph(text) => {
                self.gap();
                if markdown::reads_as_markup(&text) || text.starts_with(['>', '|']) {
                    self.text.push('\\');
                }
                self.text.push_str(&text);
                self.text.push('\n');
            }
            Open::Code(lines) => {
                self.gap();
                let code = lines.join("\n");
                let fence = markdown::fence_for(&code);
                for part in [&fence, "\n", &code, "\n", &fence, "\n"] {
                    self.text.push_str(part);
                }
            }
            Open::Table(cells, heads) => {
                self.gap();
                markdown::write_table(&cells, heads, &mut self.text);
            }
        }
        if self.breaks > 0 {
            self.gap();
            self.text.extend(std::iter::repeat_n('\u{0C}', std::mem::take(&mut self.breaks)));
            self.text.push('\n');
            self.in_list = false;
        }
    }
}

/// Whether a line is a label such as `Warning` or `NOTE:`.
fn is_label(line: &str) -> bool {
    const LABELS: [&str; 11] =
        ["note", "notes", "warning", "caution", "danger", "important", "tip", "notice", "attention", "hinweis", "achtung"];
    LABELS.contains(&line.trim_end_matches([':', '!']).to_lowercase().as_str())
}

/// Whether a word joins words that share their end.
fn is_conjunction(word: &str) -> bool {
    // Shorter ones can be the end of a word: `tak-`, `en`.
    const WORDS: [&str; 7] = ["und", "oder", "bzw", "sowie", "and", "och", "eller"];
    WORDS.contains(&word.trim_end_matches(['.', ',']))
}

/// Whether a paragraph seems to continue.
fn ends_inside(text: &str) -> bool {
    !text.ends_with(['.', '!', '?', ':', ';'])
}

fn starts_inside(text: &str) -> bool {
    text.starts_with(|char: char| char.is_lowercase() || char.is_ascii_digit() || char == '(')
}

/// Whether a line is like `Chapter 3` alone: the next heading says more.
fn is_only_number(heading: &str) -> bool {
    let mut words = heading.split_whitespace();
    let named = words
        .next()
        .is_some_and(|word| matches!(word.to_lowercase().as_str(), "chapter" | "appendix" | "part" | "section" | "kapitel"));
    named && words.next().is_some_and(|word| word.len() <= 5) && words.next().is_none()
}
