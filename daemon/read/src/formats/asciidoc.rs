//! AsciiDoc to Markdown: headings, lists, tables, admonitions and delimited blocks.
//!
//! <https://docs.asciidoctor.org/asciidoc/latest/>. One pass over the lines; macros keep their words.

use std::collections::HashMap;

use super::{Fault, Parsed, markdown, office::write_rows, one_line};

/// Most columns of a table.
const MAX_COLUMNS: usize = 256;

/// Converts a document; its first heading is its title.
#[allow(clippy::unnecessary_wraps, reason = "the signature of all readers")]
pub(super) fn to_markdown(source: &str) -> Result<Parsed, Fault> {
    let lines: Vec<&str> = source.lines().map(str::trim_end).collect();
    let mut writer = Writer::default();
    let mut at = 0;
    while at < lines.len() {
        at += writer.block(&lines[at..]).max(1);
    }
    writer.end_paragraph();
    let note =
        (!writer.excluded.is_empty()).then(|| format!("files that it includes were not read: {}", writer.excluded.join(", ")));
    Ok(Parsed { title: None, text: writer.text, note })
}

#[derive(Default)]
struct Writer {
    text: String,
    /// Lines of the open paragraph or item.
    paragraph: String,
    names: HashMap<String, String>,
    /// Attributes in brackets above the next block.
    attributes: String,
    excluded: Vec<String>,
}

/// The delimiter of a block: four or more of one character, or two hyphens.
fn delimiter(line: &str) -> Option<char> {
    let first = line.chars().next()?;
    let is_run = line.len() >= 4 && "-.=*_/+".contains(first) && line.chars().all(|char| char == first);
    (is_run || line == "--").then_some(first)
}

/// A mark of an item: its level from 0, whether it is numbered, and its words.
fn item(line: &str) -> Option<(usize, bool, &str)> {
    let line = line.trim_start();
    let (mark, words) = line.split_once(' ')?;
    let all = |char: char| mark.len() <= 6 && mark.chars().all(|other| other == char);
    let words = words.trim_start();
    if all('*') {
        Some((mark.len() - 1, false, words))
    } else if mark == "-" {
        Some((0, false, words))
    } else if all('.') {
        Some((mark.len() - 1, true, words))
    } else {
        let number = mark.strip_suffix('.')?;
        (number.len() <= 3 && !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit())).then_some((0, true, words))
    }
}

impl Writer {
    /// Reads one block or line; the number of its lines.
    fn block(&mut self, lines: &[&str]) -> usize {
        let line = lines[0];
        if line.is_empty() || line == "+" {
            self.end_paragraph();
            return 1;
        }
        if line.starts_with("```") {
            let end = lines[1..].iter().position(|other| other.starts_with("```")).map_or(lines.len(), |end| end + 1);
            self.code(&lines[1..end]);
            return end + 1;
        }
        if line.starts_with("|===") || line.starts_with(",===") || line.starts_with(":===") {
            let end = lines[1..].iter().position(|other| *other == line).map_or(lines.len(), |end| end + 1);
            self.table(&line[..1], &lines[1..end]);
            return end + 1;
        }
        let underlined = lines.get(1).copied().unwrap_or("");
        if let Some(level) = self.setext(line, underlined) {
            self.heading(level, line);
            return 2;
        }
        if let Some(kind) = delimiter(line) {
            self.end_paragraph();
            if !matches!(kind, '-' | '.' | '/' | '+') || line == "--" {
                // The delimiters of examples, sidebars and quotes go, their contents stay.
                self.label();
                return 1;
            }
            let end = lines[1..].iter().position(|other| *other == line).map_or(lines.len(), |end| end + 1);
            if kind == '-' || kind == '.' {
                self.code(&lines[1..end]);
            }
            self.attributes.clear();
            return end + 1;
        }
        if line.starts_with("//") || line == "'''" || line == "<<<" {
            return 1;
        }
        if let Some(level) = (1..=6).find(|level| line.starts_with(&format!("{} ", "=".repeat(*level)))) {
            self.heading(level, &line[level + 1..]);
            return 1;
        }
        if line.starts_with('[') && line.ends_with(']') && self.paragraph.is_empty() {
            if !line.starts_with("[[") {
                line[1..line.len() - 1].clone_into(&mut self.attributes);
            }
            return 1;
        }
        if let Some((name, value)) = line.strip_prefix(':').and_then(|rest| rest.split_once(':')).filter(|(name, _)| {
            !name.is_empty() && name.chars().all(|char| char.is_alphanumeric() || matches!(char, '-' | '_' | '!'))
        }) && self.paragraph.is_empty()
        {
            if self.names.len() < 1000 {
                self.names.insert(name.to_owned(), value.trim().to_owned());
            }
            return 1;
        }
        if let Some(file) = line.strip_prefix("include::") {
            self.excluded.push(file.split('[').next().unwrap_or(file).to_owned());
            return 1;
        }
        if ["ifdef::", "ifndef::", "ifeval::", "endif::", "toc::"].iter().any(|name| line.starts_with(name)) {
            return 1;
        }
        if let Some((_, rest)) = line.split_once("::").filter(|(name, _)| matches!(*name, "image" | "video" | "audio")) {
            self.end_paragraph();
            let alt = rest.split_once('[').map_or("", |(_, alt)| alt.trim_end_matches(']').split(',').next().unwrap_or(""));
            if !alt.contains('=') {
                self.paragraph.push_str(alt.trim_matches('"'));
            }
            self.end_paragraph();
            return 1;
        }
        if let Some(caption) = line.strip_prefix('.').filter(|rest| !rest.starts_with(['.', ' '])) {
            self.end_paragraph();
            self.paragraph.push_str(caption.trim_end_matches(':'));
            self.paragraph.push(':');
            self.end_paragraph();
            return 1;
        }
        if let Some((level, is_numbered, words)) = item(line) {
            self.begin_item(level, is_numbered, words);
            return 1;
        }
        // `term:: words`
        if let Some((term, words)) = line.split_once("::").filter(|(term, words)| {
            !term.is_empty()
                && !term.contains("//")
                && (words.is_empty() || words.starts_with(' ') || words.trim_start_matches(':').is_empty())
        }) {
            self.end_paragraph();
            self.paragraph = format!("{}: {}", term.trim(), words.trim_start_matches(':').trim_start());
            return 1;
        }
        if self.paragraph.is_empty() && line.starts_with(' ') {
            let count = lines.iter().take_while(|line| line.starts_with(' ')).count();
            self.code(&lines[..count]);
            return count;
        }
        if self.paragraph.is_empty() {
            self.label();
        }
        if !self.paragraph.is_empty() && !self.paragraph.ends_with([' ', '\n']) {
            self.paragraph.push('\n');
        }
        self.paragraph.push_str(line.trim().trim_end_matches(" +"));
        1
    }

    /// The level of a heading that is underlined.
    fn setext(&self, line: &str, under: &str) -> Option<usize> {
        let first = under.chars().next()?;
        let level = "=-~^+".find(first)? + 1;
        let (length, width) = (under.chars().count(), line.chars().count());
        let fits = length >= 3 && length.abs_diff(width) <= 2 && under.chars().all(|char| char == first);
        (fits && self.paragraph.is_empty() && line.starts_with(char::is_alphanumeric)).then_some(level)
    }

    fn heading(&mut self, level: usize, words: &str) {
        self.end_paragraph();
        self.attributes.clear();
        let words = one_line(&self.inline(words));
        self.gap();
        self.text.extend(["#".repeat(level).as_str(), " ", &words, "\n\n"]);
    }

    /// `[WARNING]` above a block.
    fn label(&mut self) {
        let attributes = std::mem::take(&mut self.attributes);
        let name = attributes.split([',', '.', '#', '%']).next().unwrap_or("");
        if matches!(name, "NOTE" | "TIP" | "IMPORTANT" | "WARNING" | "CAUTION") {
            self.paragraph.push_str(name);
            self.paragraph.push_str(": ");
        }
    }

    fn begin_item(&mut self, level: usize, is_numbered: bool, words: &str) {
        self.end_paragraph();
        let is_list = self.text.trim_end().lines().next_back().is_some_and(|line| {
            let line = line.trim_start();
            line.starts_with("- ") || line.split_once(". ").is_some_and(|(number, _)| number.parse::<u32>().is_ok())
        });
        if is_list {
            self.text.truncate(self.text.trim_end().len());
            self.text.push('\n');
        }
        let blank = "   ".repeat(level);
        let mark = if is_numbered {
            // Counted from the items above.
            let above = self.text.lines().rev().take_while(|line| !line.is_empty()).find_map(|line| {
                let (number, _) = line.strip_prefix(&blank)?.split_once(". ")?;
                number.parse::<u32>().ok()
            });
            format!("{}. ", above.filter(|_| is_list).unwrap_or(0) + 1)
        } else {
            "- ".to_owned()
        };
        self.paragraph = format!("{blank}{mark}{}", words.trim_end_matches(" +"));
    }

    fn end_paragraph(&mut self) {
        let paragraph = std::mem::take(&mut self.paragraph);
        if paragraph.trim().is_empty() {
            return;
        }
        let words = self.inline(&paragraph);
        for line in words.lines() {
            if markdown::reads_as_markup(line) {
                self.text.push('\\');
            }
            self.text.push_str(line);
            self.text.push('\n');
        }
        self.text.push('\n');
    }

    fn code(&mut self, lines: &[&str]) {
        self.end_paragraph();
        self.attributes.clear();
        let code = lines.join("\n");
        let code = code.trim_matches('\n');
        if !code.trim().is_empty() {
            let fence = markdown::fence_for(code);
            self.text.extend([&fence, "\n", code, "\n", &fence, "\n\n"]);
        }
    }

    fn gap(&mut self) {
        if !self.text.is_empty() && !self.text.ends_with("\n\n") {
            self.text.push('\n');
        }
    }

    fn table(&mut self, separator: &str, lines: &[&str]) {
        self.end_paragraph();
        let attributes = std::mem::take(&mut self.attributes);
        let lines: Vec<&str> = lines.iter().copied().filter(|line| !line.starts_with("//")).collect();
        if separator != "|" {
            let text = lines.join("\n");
            if let Ok(parsed) = super::table::to_markdown(&text) {
                self.text.push_str(&parsed.text);
            }
            return;
        }
        let (mut cells, mut first_row) = (Vec::<(usize, String)>::new(), 0);
        for line in lines.iter().skip_while(|line| line.is_empty()) {
            if line.is_empty() {
                if first_row == 0 {
                    first_row = cells.len();
                }
                if let Some((_, cell)) = cells.last_mut() {
                    cell.push(' ');
                }
                continue;
            }
            for (index, part) in split_cells(line).into_iter().enumerate() {
                match (index, cells.last_mut()) {
                    (0, Some((_, cell))) => {
                        cell.push(' ');
                        cell.push_str(&part.1);
                    }
                    (0, None) => {}
                    _ => cells.push(part),
                }
            }
        }
        let on_first_line = lines.iter().find(|line| !line.is_empty()).map_or(0, |line| split_cells(line).len() - 1);
        let columns = columns(&attributes).unwrap_or(on_first_line).clamp(1, MAX_COLUMNS);
        let has_head = attributes.contains("header") || (first_row > 0 && first_row == columns && first_row < cells.len());
        let (mut rows, mut row) = (Vec::new(), Vec::new());
        for (span, cell) in cells {
            row.push(one_line(&self.inline(&cell)));
            row.extend(std::iter::repeat_n(String::new(), (span - 1).min(columns)));
            if row.len() >= columns {
                rows.push(std::mem::take(&mut row));
            }
        }
        if !row.is_empty() {
            rows.push(row);
        }
        if has_head {
            write_rows(&rows, &mut self.text);
        } else {
            markdown::write_table(&rows, false, &mut self.text);
            self.text.push('\n');
        }
    }

    /// Words without macros and references.
    fn inline(&self, text: &str) -> String {
        let mut out = String::new();
        let mut rest = text;
        while let Some(at) = rest.find(['{', '[', '<']) {
            let (before, marked) = rest.split_at(at);
            out.push_str(before);
            if let Some((name, after)) = marked.strip_prefix('{').and_then(|inner| inner.split_once('}')) {
                match (name, self.names.get(name)) {
                    ("nbsp" | "sp", _) => out.push(' '),
                    ("empty" | "blank" | "zwsp", _) => {}
                    (_, Some(value)) => out.push_str(value),
                    (name, None) => out.extend(["{", name, "}"]),
                }
                rest = after;
            } else if let Some((inner, after)) = marked.strip_prefix("<<").and_then(|inner| inner.split_once(">>")) {
                out.push_str(inner.split_once(',').map_or(inner, |(_, words)| words.trim()));
                rest = after;
            } else if let Some((_, after)) = marked.strip_prefix("[[").and_then(|inner| inner.split_once("]]")) {
                rest = after;
            } else if let Some((inner, after)) = marked.strip_prefix('[').and_then(|inner| inner.split_once(']')) {
                let begun = out.rfind(|char: char| char.is_whitespace() || "(\"".contains(char)).map_or(0, |at| at + 1);
                let begun = out.ceil_char_boundary(begun);
                let before = &out[begun..];
                let scheme = before.split_once(':').map(|(scheme, _)| scheme.to_owned());
                match scheme.as_deref() {
                    Some("link" | "xref" | "http" | "https" | "mailto" | "image" | "icon" | "kbd" | "btn") => {
                        let words = inner.split(",window=").next().unwrap_or(inner).trim_end_matches('^');
                        if !words.is_empty() && !words.contains('=') {
                            out.truncate(begun);
                            out.push_str(words);
                        }
                    }
                    Some("menu") => {
                        let menu = before["menu:".len()..].to_owned();
                        out.truncate(begun);
                        out.extend([&menu, " > ", inner]);
                    }
                    _ if before.ends_with("footnote:") => {
                        let end = out.len() - "footnote:".len();
                        out.truncate(end);
                        out.extend([" (", inner, ")"]);
                    }
                    // `[.lead]#words#` marks words.
                    _ if inner.starts_with(['.', '#']) && after.starts_with('#') => {}
                    _ => out.extend(["[", inner, "]"]),
                }
                rest = after;
            } else {
                out.push_str(&marked[..1]);
                rest = &marked[1..];
            }
        }
        out + rest
    }
}

/// The columns that `cols="1,2a"` or `cols="3*"` declares.
fn columns(attributes: &str) -> Option<usize> {
    let (_, value) = attributes.split_once("cols=")?;
    let value = value
        .strip_prefix('"')
        .and_then(|value| value.split('"').next())
        .unwrap_or_else(|| value.split(',').next().unwrap_or(""));
    let count =
        value.split([',', ';']).map(|part| part.split_once('*').and_then(|(times, _)| times.trim().parse().ok()).unwrap_or(1));
    Some(count.fold(0_usize, usize::saturating_add))
}

/// The parts of a line between bars: columns spanned, and words. The first part stands before the first bar.
fn split_cells(line: &str) -> Vec<(usize, String)> {
    let mut parts = vec![(1, String::new())];
    let mut chars = line.chars().peekable();
    while let Some(char) = chars.next() {
        match char {
            '\\' if chars.peek() == Some(&'|') => {
                chars.next();
                parts.last_mut().expect("never empty").1.push('|');
            }
            '|' => {
                // The specifier of a cell stands before its bar: `2+|`, `a|`, `.2+^|`.
                let before = &mut parts.last_mut().expect("never empty").1;
                let start = before.rfind(' ').map_or(0, |at| at + 1);
                let specifier = &before[start..];
                let is_one = specifier.chars().all(|char| char.is_ascii_digit() || ".+*<>^adehlms".contains(char))
                    && (start > 0 || before.len() == specifier.len());
                let mut span = 1;
                if is_one && !specifier.is_empty() && specifier.chars().count() <= 8 {
                    span =
                        specifier.split_once('+').and_then(|(columns, _)| columns.split('.').next()?.parse().ok()).unwrap_or(1);
                    before.truncate(start);
                }
                parts.push((span.clamp(1, MAX_COLUMNS), String::new()));
            }
            char => parts.last_mut().expect("never empty").1.push(char),
        }
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    fn markdown(source: &str) -> String {
        to_markdown(source).unwrap().text
    }

    #[test]
    fn the_given_file_is_read() {
        let given = crate::formats::example("text/doc.adoc");
        let read = crate::read(crate::Original { id: "doc.adoc", bytes: &given, ..crate::Original::default() }).unwrap();
        assert_eq!(read.title, "Pump");
        assert_eq!(
            read.text.trim_end(),
            "# Pump\n\n## Installation\n\nWARNING: Never run it dry.\n\n| Code | Meaning |\n|---|---|\n| E-17 | Low water |"
        );
    }

    #[test]
    fn structure_and_words_are_kept() {
        let source = "= Manual\n:version: 2.1\n// a comment\n\n[[pump]]\n== Pump\n\nVersion {version}; see <<pump,the pump>>, link:a.html[here],\nhttps://x.org[site] and press kbd:[F1].footnote:[Once.]\n\n\
            * one\n** nested\n* two\n\n. open\n. close\n\nterm:: its words\n\n[CAUTION]\n====\nHot.\n====\n\n[source,c]\n----\nint x; // [y]\n----\n\n\
            .Faults\n[cols=\"1,2\",options=\"header\"]\n|===\n|Code |Cause\n|E-17\n|low\nwater\n2+|both\n|===\n\n////\ngone\n////\n\nOld\n~~~\n\ninclude::more.adoc[]\nimage::a.png[The valve]\n";
        let read = to_markdown(source).unwrap();
        assert_eq!(
            read.text,
            "# Manual\n\n## Pump\n\nVersion 2.1; see the pump, here,\nsite and press F1. (Once.)\n\n- one\n   - nested\n- two\n1. open\n2. close\n\nterm: its words\n\n\
             CAUTION: Hot.\n\n```\nint x; // [y]\n```\n\nFaults:\n\n| Code | Cause |\n|---|---|\n| E-17 | low water |\n| both |  |\n\n### Old\n\nThe valve\n\n"
        );
        assert_eq!(read.note.as_deref(), Some("files that it includes were not read: more.adoc"));
    }

    #[test]
    fn hostile_text_is_borne() {
        for text in ["|===\n", "[", "{", "<<", "----\n", "|", "* ", "a::\n", "= ", "[cols=\"999999999*\"]\n|===\n|a\n|===\n"] {
            let _ = markdown(text);
            let _ = markdown(&text.repeat(3000));
        }
    }
}
