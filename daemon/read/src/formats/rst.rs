//! reStructuredText to Markdown: headings, lists, tables, directives and literal blocks.
//!
//! <https://docutils.sourceforge.io/docs/ref/rst/restructuredtext.html>. Names of links and roles go, their words stay.

use super::{Fault, Parsed, markdown, office::write_rows, one_line};

/// Deepest nesting of indented content; deeper content is text.
const MAX_DEPTH: usize = 12;

/// Most columns of a table.
const MAX_COLUMNS: usize = 256;

/// Converts a document; its first heading is its title.
#[allow(clippy::unnecessary_wraps, reason = "the signature of all readers")]
pub(super) fn to_markdown(source: &str) -> Result<Parsed, Fault> {
    let expanded: Vec<String> = source.lines().map(|line| line.trim_end().replace('\t', "        ")).collect();
    let lines: Vec<&str> = expanded.iter().map(String::as_str).collect();
    let mut writer = Writer { text: String::new(), styles: Vec::new(), names: Vec::new(), excluded: Vec::new() };
    writer.names = substitutions(&lines);
    writer.blocks(&lines, 0);
    let mut note = None;
    if !writer.excluded.is_empty() {
        note = Some(format!("files that it includes were not read: {}", writer.excluded.join(", ")));
    }
    Ok(Parsed { title: None, text: writer.text, note })
}

struct Writer {
    text: String,
    /// Underlines of headings, from the outermost, and whether they have a line above too.
    styles: Vec<(char, bool)>,
    /// Substitutions by name.
    names: Vec<(String, String)>,
    /// Included files.
    excluded: Vec<String>,
}

/// Definitions such as `.. |name| replace:: words`.
fn substitutions(lines: &[&str]) -> Vec<(String, String)> {
    let defined = lines.iter().filter_map(|line| {
        let (name, rest) = line.trim_start().strip_prefix(".. |")?.split_once('|')?;
        Some((format!("|{name}|"), rest.trim_start().strip_prefix("replace::")?.trim().to_owned()))
    });
    defined.take(1000).collect()
}

/// The character of a line of punctuation.
fn adornment(line: &str) -> Option<char> {
    let first = line.chars().next().filter(char::is_ascii_punctuation)?;
    (line.len() >= 3 && line.chars().all(|char| char == first)).then_some(first)
}

fn indentation(line: &str) -> usize {
    line.len() - line.trim_start_matches(' ').len()
}

/// The lines from the first on that are blank or indented at least so far, without blank ones at the end.
fn indented(lines: &[&str], least: usize) -> usize {
    let count = lines.iter().take_while(|line| line.is_empty() || indentation(line) >= least).count();
    lines[..count].iter().rposition(|line| !line.is_empty()).map_or(0, |last| last + 1)
}

/// Lines without their common indentation.
fn dedented<'a>(lines: &[&'a str]) -> Vec<&'a str> {
    let common = lines.iter().filter(|line| !line.is_empty()).map(|line| indentation(line)).min().unwrap_or(0);
    lines.iter().map(|line| line.get(common..).unwrap_or("")).collect()
}

/// The mark of an item, with the blanks behind it.
fn marker(line: &str) -> Option<(String, usize)> {
    let rest = line.strip_prefix(['-', '*', '+', '•']);
    if let Some(rest) = rest.filter(|rest| rest.starts_with(' ')) {
        return Some(("- ".into(), line.len() - rest.trim_start().len()));
    }
    let (mark, rest) = line.split_once(' ')?;
    let number = mark.strip_suffix(['.', ')'])?.trim_start_matches('(');
    let is_number =
        number == "#" || (number.len() <= 3 && !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit()));
    is_number.then(|| (format!("{number}. "), line.len() - rest.trim_start().len()))
}

impl Writer {
    fn blocks(&mut self, lines: &[&str], depth: usize) {
        let mut at = 0;
        let mut automatic = 0_u32;
        while at < lines.len() {
            let (line, rest) = (lines[at], &lines[at + 1..]);
            if line.is_empty() {
                at += 1;
            } else if depth >= MAX_DEPTH {
                self.paragraph(&lines[at..=at]);
                at += 1;
            } else if let Some(taken) = self.heading(&lines[at..]) {
                at += taken;
            } else if line.starts_with(' ') {
                let count = indented(&lines[at..], 1);
                self.blocks(&dedented(&lines[at..at + count]), depth + 1);
                at += count;
            } else if line == ".." || line.starts_with(".. ") {
                let count = 1 + indented(rest, 1);
                self.explicit(&lines[at..at + count], depth);
                at += count;
            } else if line.starts_with("+-") && line.ends_with('+') {
                let count = lines[at..].iter().take_while(|line| line.starts_with(['+', '|'])).count();
                self.table(&grid(&lines[at..at + count]));
                at += count;
            } else if is_border(line) {
                let count = simple_end(&lines[at..]);
                self.table(&simple(&lines[at..at + count]));
                at += count;
            } else if adornment(line).is_some() {
                at += 1;
            } else if line.starts_with(">>> ") {
                let count = lines[at..].iter().take_while(|line| !line.is_empty()).count();
                self.code(&lines[at..at + count]);
                at += count;
            } else if let Some((mark, width)) = marker(line) {
                let count = 1 + indented(rest, width.clamp(1, 2));
                let mark = if mark == "#. " {
                    automatic += 1;
                    format!("{automatic}. ")
                } else {
                    mark
                };
                let blank = " ".repeat(width);
                let first = format!("{blank}{}", &line[width..]);
                let item: Vec<&str> = std::iter::once(first.as_str()).chain(rest[..count - 1].iter().copied()).collect();
                self.item(&mark, &dedented(&item), depth);
                at += count;
            } else {
                at += self.text_block(&lines[at..], depth);
            }
        }
    }

    /// A heading; the number of its lines.
    fn heading(&mut self, lines: &[&str]) -> Option<usize> {
        let (title, style, taken) = match lines {
            [over, title, under, ..]
                if adornment(over).is_some() && adornment(over) == adornment(under) && !title.trim().is_empty() =>
            {
                (title.trim(), (adornment(over)?, true), 3)
            }
            [title, under, ..] if !title.starts_with(' ') && adornment(title).is_none() => {
                let is_long = under.len() + 3 >= title.chars().count();
                (*title, (adornment(under).filter(|_| is_long)?, false), 2)
            }
            _ => return None,
        };
        let level = self.styles.iter().position(|known| *known == style).unwrap_or_else(|| {
            self.styles.push(style);
            self.styles.len() - 1
        });
        let words = self.inline(title);
        self.gap();
        self.text.extend(["#".repeat((level + 1).min(6)).as_str(), " ", &words, "\n\n"]);
        Some(taken)
    }

    /// A paragraph, a definition, or a paragraph with a literal block behind it; the number of lines.
    fn text_block(&mut self, lines: &[&str], depth: usize) -> usize {
        // A term with its definition.
        if lines.len() > 1 && !lines[1].is_empty() && lines[1].starts_with(' ') {
            let count = indented(&lines[1..], 1);
            let term = self.inline(lines[0].trim_end_matches(':'));
            self.gap();
            self.text.extend([&term, ":\n\n"]);
            self.blocks(&dedented(&lines[1..=count]), depth + 1);
            return count + 1;
        }
        let count = lines.iter().take_while(|line| !line.is_empty() && !line.starts_with(' ')).count().max(1);
        let fields = lines[..count].iter().all(|line| line.starts_with(':') && line[1..].contains(':'));
        let bars = lines[..count].iter().all(|line| *line == "|" || line.starts_with("| "));
        let opens = lines[count - 1].ends_with("::");
        let mut own: Vec<&str> = lines[..count].to_vec();
        if opens {
            let last = own[count - 1].trim_end_matches("::").trim_end();
            own[count - 1] = last;
        }
        if fields || bars {
            for line in &own {
                let words = self.inline(line.trim_start_matches(['|', ':']).trim_start());
                self.text.push_str(&words);
                self.text.push('\n');
            }
            self.text.push('\n');
        } else if own.iter().any(|line| !line.is_empty()) {
            let words = self.inline(&own.join("\n"));
            let colon = if opens && !words.ends_with(':') { ":" } else { "" };
            self.words(&words, colon);
        }
        if !opens {
            return count;
        }
        let blank = lines[count..].iter().take_while(|line| line.is_empty()).count();
        let literal = indented(&lines[count + blank..], 1);
        self.code(&dedented(&lines[count + blank..count + blank + literal]));
        count + blank + literal
    }

    fn paragraph(&mut self, lines: &[&str]) {
        let words = self.inline(&lines.join("\n"));
        self.words(&words, "");
    }

    fn words(&mut self, words: &str, end: &str) {
        for line in words.trim().lines() {
            if markdown::reads_as_markup(line.trim()) {
                self.text.push('\\');
            }
            self.text.push_str(line.trim());
            self.text.push('\n');
        }
        self.text.truncate(self.text.trim_end().len());
        self.text.push_str(end);
        self.text.push_str("\n\n");
    }

    fn code(&mut self, lines: &[&str]) {
        let code = lines.join("\n");
        let code = code.trim_matches('\n');
        if !code.is_empty() {
            let fence = markdown::fence_for(code);
            self.text.extend([&fence, "\n", code, "\n", &fence, "\n\n"]);
        }
    }

    fn table(&mut self, (rows, has_head): &(Vec<Vec<String>>, bool)) {
        let rows: Vec<Vec<String>> = rows.iter().map(|row| row.iter().map(|cell| self.inline(cell)).collect()).collect();
        if rows.is_empty() {
            return;
        }
        if *has_head || rows.first().is_some_and(|row| row.len() > 8) {
            write_rows(&rows, &mut self.text);
        } else {
            markdown::write_table(&rows, false, &mut self.text);
            self.text.push('\n');
        }
    }

    fn item(&mut self, mark: &str, lines: &[&str], depth: usize) {
        let outer = std::mem::take(&mut self.text);
        self.blocks(lines, depth + 1);
        let inner = std::mem::replace(&mut self.text, outer);
        let blank = " ".repeat(mark.len());
        // Items follow each other without a gap.
        if self.text.ends_with("\n\n")
            && self.text.trim_end().lines().next_back().is_some_and(|line| marker(line.trim()).is_some())
        {
            self.text.pop();
        }
        for (index, line) in inner.trim_end().lines().enumerate() {
            match (index, line.is_empty()) {
                (0, _) => self.text.push_str(mark),
                (_, true) => {}
                (_, false) => self.text.push_str(&blank),
            }
            self.text.push_str(line);
            self.text.push('\n');
        }
        self.text.push('\n');
    }

    fn gap(&mut self) {
        if !self.text.is_empty() && !self.text.ends_with("\n\n") {
            self.text.push('\n');
        }
    }

    /// A directive, a footnote, a target or a comment.
    fn explicit(&mut self, lines: &[&str], depth: usize) {
        let first = lines[0].trim_start_matches('.').trim_start();
        if let Some((label, words)) = first.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
            let body: Vec<&str> = std::iter::once(words.trim()).chain(lines[1..].iter().map(|line| line.trim())).collect();
            let words = self.inline(&body.join(" "));
            self.words(&format!("[{}] {}", label.trim_start_matches('#'), one_line(&words)), "");
            return;
        }
        let Some((name, argument)) = first.split_once("::").filter(|(name, _)| {
            !name.is_empty() && name.chars().all(|char| char.is_alphanumeric() || matches!(char, '-' | '_' | ':' | '.' | '+'))
        }) else {
            return;
        };
        let argument = argument.trim();
        let body = dedented(&lines[1..]);
        let options = body.iter().take_while(|line| line.starts_with(':')).count();
        let option = |name: &str| {
            body[..options].iter().find_map(|line| line.strip_prefix(':')?.strip_prefix(name)?.strip_prefix(':').map(str::trim))
        };
        let content = &body[options..];
        match name {
            "note" | "warning" | "danger" | "caution" | "attention" | "error" | "hint" | "important" | "tip" | "seealso"
            | "admonition" | "deprecated" | "versionadded" | "versionchanged" | "topic" | "sidebar" | "rubric" => {
                let label = match name {
                    "admonition" | "topic" | "sidebar" | "rubric" => argument.to_owned(),
                    "seealso" => "See also".into(),
                    "versionadded" => format!("New in version {argument}"),
                    "versionchanged" => format!("Changed in version {argument}"),
                    "deprecated" => format!("Deprecated since version {argument}"),
                    name => name[..1].to_uppercase() + &name[1..],
                };
                // The words of a short directive stand beside its name.
                let beside = if label == argument || label.ends_with(argument) { "" } else { argument };
                let begun = self.text.len();
                let body: Vec<&str> = std::iter::once(beside).chain(content.iter().copied()).collect();
                self.blocks(&body, depth + 1);
                let has_words = !self.text[begun..].trim().is_empty();
                self.text.insert_str(begun, &(label + if has_words { ": " } else { "\n\n" }));
            }
            "code" | "code-block" | "sourcecode" | "parsed-literal" | "math" | "productionlist" | "graphviz" | "prompt" => {
                self.code(if argument.contains(' ') { &body } else { content });
            }
            "image" | "figure" => {
                if let Some(alt) = option("alt") {
                    self.words(alt, "");
                }
                self.blocks(content, depth + 1);
            }
            "list-table" => {
                self.caption(argument);
                let rows = list_table(content);
                self.table(&(rows, option("header-rows").is_some()));
            }
            "csv-table" => {
                self.caption(argument);
                let header = option("header").map(|header| format!("{header}\n")).unwrap_or_default();
                if let Ok(parsed) = super::table::to_markdown(&(header + &content.join("\n"))) {
                    self.text.push_str(&parsed.text);
                }
            }
            "table" => {
                self.caption(argument);
                self.blocks(content, depth + 1);
            }
            "include" | "literalinclude" => self.excluded.push(argument.to_owned()),
            "contents" | "toctree" | "index" | "raw" | "meta" | "highlight" | "default-role" | "currentmodule" | "module"
            | "sectnum" | "role" | "target-notes" | "class" | "tabularcolumns" | "automodule" | "autoclass" | "autofunction" => {}
            name => {
                // Objects of a program, and directives of extensions: their argument is text.
                let is_object = name.contains(':')
                    || matches!(
                        name,
                        "function" | "method" | "option" | "data" | "attribute" | "envvar" | "cmdoption" | "confval" | "describe"
                    );
                if !argument.is_empty()
                    && !matches!(name, "only" | "ifconfig" | "container" | "tabs" | "code-tab" | "grid" | "grid-item-card")
                {
                    let words = if is_object { format!("`{argument}`") } else { self.inline(argument) };
                    self.words(&words, "");
                }
                self.blocks(content, depth + 1);
            }
        }
    }

    fn caption(&mut self, words: &str) {
        if !words.is_empty() {
            let words = self.inline(words);
            self.words(words.trim_end_matches(':'), ":");
        }
    }

    /// Words without the names of their roles and links.
    fn inline(&self, text: &str) -> String {
        let mut out = String::new();
        let mut rest = text;
        while let Some(at) = rest.find(['`', '\\', '|', '_']) {
            let (before, marked) = rest.split_at(at);
            out.push_str(before);
            if let Some(code) = marked.strip_prefix("``").and_then(|inner| inner.split_once("``")) {
                out.extend(["`", code.0, "`"]);
                rest = code.1;
            } else if let Some((inner, after)) = marked.strip_prefix('`').and_then(|inner| inner.split_once('`')) {
                // The role stands before or behind.
                let role = out.ends_with(':').then(|| out[..out.len() - 1].rfind(':')).flatten();
                if let Some(role) = role.filter(|role| !out[*role..].contains(char::is_whitespace)) {
                    out.truncate(role);
                }
                let words = inner.split_once('<').map_or(inner, |(words, target)| {
                    if words.trim().is_empty() { target.trim_end_matches('>') } else { words.trim() }
                });
                out.push_str(words.trim_start_matches(['~', '!']));
                rest = after.strip_prefix("__").or_else(|| after.strip_prefix('_')).unwrap_or(after);
            } else if let Some(after) = marked.strip_prefix('\\') {
                // A backslash makes the next character plain; before a blank both go.
                let mut chars = after.chars();
                out.extend(chars.next().filter(|char| !char.is_whitespace()));
                rest = chars.as_str();
            } else if let Some((name, words)) = self.names.iter().find(|(name, _)| marked.starts_with(name)) {
                out.push_str(words);
                rest = &marked[name.len()..];
            } else {
                // `name_` and `[1]_` are links.
                let after = &marked[1..];
                let ends = after.is_empty() || after.starts_with(|char: char| char.is_whitespace() || ".,;:!?)".contains(char));
                let is_link =
                    marked.starts_with('_') && ends && out.ends_with(|char: char| char.is_alphanumeric() || char == ']');
                if !is_link {
                    out.push_str(&marked[..1]);
                }
                rest = after;
            }
        }
        out + rest
    }
}

/// The cells of a grid table, and whether it has a head.
fn grid(lines: &[&str]) -> (Vec<Vec<String>>, bool) {
    let chars: Vec<Vec<char>> = lines.iter().map(|line| line.chars().collect()).collect();
    let widest = chars
        .iter()
        .filter(|line| line.first() == Some(&'+'))
        .max_by_key(|line| line.iter().filter(|char| **char == '+').count());
    let borders: Vec<usize> =
        widest.into_iter().flatten().enumerate().filter(|(_, char)| **char == '+').map(|(at, _)| at).take(MAX_COLUMNS).collect();
    let (mut rows, mut row, mut has_head) = (Vec::new(), vec![String::new(); borders.len().saturating_sub(1)], false);
    let mut flush = |row: &mut Vec<String>| {
        let full: Vec<String> = row.iter_mut().map(|cell| one_line(&std::mem::take(cell))).collect();
        if full.iter().any(|cell| !cell.is_empty()) {
            rows.push(full);
        }
    };
    for line in &chars {
        if line.first() == Some(&'+') {
            has_head |= line.contains(&'=');
            flush(&mut row);
            continue;
        }
        for (column, pair) in borders.windows(2).enumerate() {
            let (begin, end) = (pair[0], pair[1]);
            // A cell that spans columns has no bar at their border.
            let is_cell = line.get(begin) == Some(&'|') || line.get(begin) == Some(&'+');
            let words: String = line.get(begin + 1..end.min(line.len())).unwrap_or_default().iter().collect();
            let target = if is_cell || begin == 0 { column } else { column.saturating_sub(1) };
            if !words.chars().all(|char| char == '-' || char == '=') {
                if is_cell {
                    row[target].push(' ');
                }
                row[target].push_str(&words);
            }
        }
    }
    flush(&mut row);
    (rows, has_head)
}

/// Whether a line is the border of a simple table: runs of `=` with blanks between.
fn is_border(line: &str) -> bool {
    line.contains("= =") || (line.contains("=  ") && line.chars().all(|char| char == '=' || char == ' ')) && line.starts_with('=')
}

/// The number of lines of a simple table: to its third border, or the second one before a blank line.
fn simple_end(lines: &[&str]) -> usize {
    let mut borders = 0;
    for (at, line) in lines.iter().enumerate() {
        if line.starts_with('=') && line.chars().all(|char| char == '=' || char == ' ') {
            borders += 1;
            let ends = lines.get(at + 1).is_none_or(|next| next.is_empty());
            if borders == 3 || (borders == 2 && ends) {
                return at + 1;
            }
        }
    }
    lines.iter().position(|line| line.is_empty()).unwrap_or(lines.len()).max(1)
}

fn simple(lines: &[&str]) -> (Vec<Vec<String>>, bool) {
    let border: Vec<char> = lines[0].chars().collect();
    let starts: Vec<usize> =
        (0..border.len()).filter(|at| border[*at] == '=' && (*at == 0 || border[*at - 1] == ' ')).take(MAX_COLUMNS).collect();
    let mut rows: Vec<Vec<String>> = Vec::new();
    let borders =
        lines.iter().filter(|line| line.starts_with('=') && line.chars().all(|char| char == '=' || char == ' ')).count();
    for line in &lines[1..] {
        if line.is_empty() || line.chars().all(|char| matches!(char, '=' | '-' | ' ')) {
            continue;
        }
        let chars: Vec<char> = line.chars().collect();
        let cell = |index: usize| -> String {
            let end = starts.get(index + 1).copied().unwrap_or(chars.len()).min(chars.len());
            one_line(&chars.get(starts[index]..end).unwrap_or_default().iter().collect::<String>())
        };
        let cells: Vec<String> = (0..starts.len()).map(cell).collect();
        match rows.last_mut() {
            // An empty first cell continues the row above.
            Some(above) if cells.first().is_some_and(String::is_empty) => {
                for (above, cell) in above.iter_mut().zip(cells).filter(|(_, cell)| !cell.is_empty()) {
                    *above = one_line(&format!("{above} {cell}"));
                }
            }
            _ => rows.push(cells),
        }
    }
    (rows, borders >= 3)
}

/// The rows of `* - a`, each with cells of `  - b`.
fn list_table(lines: &[&str]) -> Vec<Vec<String>> {
    let mut rows: Vec<Vec<String>> = Vec::new();
    for line in lines {
        let (starts_row, line) = match line.strip_prefix("* ") {
            Some(rest) => (true, rest.trim_start()),
            None => (false, line.trim_start()),
        };
        if starts_row {
            rows.push(Vec::new());
        }
        let Some(row) = rows.last_mut() else { continue };
        match line.strip_prefix('-').filter(|rest| rest.is_empty() || rest.starts_with(' ')) {
            Some(words) => row.push(words.trim().to_owned()),
            None => {
                if let Some(cell) = row.last_mut() {
                    *cell = one_line(&format!("{cell} {line}"));
                }
            }
        }
    }
    rows
}

#[cfg(test)]
mod tests {
    use super::*;

    fn markdown(source: &str) -> String {
        to_markdown(source).unwrap().text
    }

    #[test]
    fn the_given_file_is_read() {
        let given = crate::formats::example("text/setext-rst.rst");
        let read = crate::read(crate::Original { id: "setext.rst", bytes: &given, ..crate::Original::default() }).unwrap();
        assert_eq!(read.title, "Pump");
        assert_eq!(
            read.text.trim_end(),
            "# Pump\n\n## Installation\n\nWarning: Never run it dry.\n\n| Code | Meaning |\n|---|---|\n| E-17 | Low |"
        );
    }

    #[test]
    fn structure_and_words_are_kept() {
        let source = "======\nManual\n======\n\nPump\n~~~~\n\nSee :ref:`the key <key>`, `docs <http://x>`_ and ``a_b``; |ver| [1]_.\n\n.. |ver| replace:: 2.1\n\
            .. _key:\n.. a comment\n   over lines\n.. [1] A note\n   goes on.\n\n* one\n  more\n\n  * nested\n* two\n\n#. open\n#. close\n\nterm\n   its words\n\n\
            Run this::\n\n   make\n     all\n\n.. code-block:: c\n   :linenos:\n\n   int x;\n\n.. figure:: a.png\n   :alt: the valve\n\n   Caption\n\n\
            .. toctree::\n\n   other\n\n.. note:: Short.\n\n   Longer.\n\n===== =====\nCode  Cause\n===== =====\nE-17  low\n      water\nE-18  high\n===== =====\n\n\
            .. list-table:: Faults\n   :header-rows: 1\n\n   * - Code\n     - Cause\n   * - E-19\n     - none\n";
        assert_eq!(
            markdown(source),
            "# Manual\n\n## Pump\n\nSee the key, docs and `a_b`; 2.1 [1].\n\n[1] A note goes on.\n\n- one\nmore\n\n  - nested\n- two\n1. open\n2. close\n\n\
             term:\n\nits words\n\nRun this:\n\n```\nmake\n  all\n```\n\n```\nint x;\n```\n\nthe valve\n\nCaption\n\nNote: Short.\n\nLonger.\n\n\
             | Code | Cause |\n|---|---|\n| E-17 | low water |\n| E-18 | high |\n\nFaults:\n\n| Code | Cause |\n|---|---|\n| E-19 | none |\n\n"
                .replace("- one\nmore", "- one\n  more")
        );
    }

    #[test]
    fn hostile_text_takes_neither_stack_nor_time() {
        let deep: String = (0..2000).map(|depth| format!("{}* x\n\n", "  ".repeat(depth))).collect();
        assert!(markdown(&deep).contains('x'));
        for text in
            ["`", "``", "+-+\n", "= =\n", ".. ", "::", ".. x::", "===\n===\n===", "|", "\\", "_", ".. list-table::\n\n   * -\n"]
        {
            let _ = markdown(text);
            let _ = markdown(&text.repeat(2000));
        }
    }
}
