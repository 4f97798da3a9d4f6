//! A passage as statements: sentences, list items, and table rows with their column heads.
//!
//! A row alone, `| E-17 | High pressure | Clean the filter |`, means little to a reader and less to a small model. `Code: E-17;
//! Meaning: High pressure; Remedy: Clean the filter` is the row in full.

use std::ops::Range;

use super::sentences;

/// Version of the rules below. Raise it with every change of them: vectors of other statements are then not used.
pub const VERSION: u8 = 1;

/// Most statements of one chunk; the rest is left out.
const MAX_STATEMENTS: usize = 24;

/// A statement of a chunk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChunkStatement {
    /// Its place in the chunk's text, in bytes.
    pub place: Range<usize>,
    /// Its text as it is encoded: a row with its column heads.
    pub text: String,
    /// Its text as a person would write it: `E-17: High pressure. Remedy: Clean the filter.` for a row.
    pub shown: String,
}

/// A chunk's first statements.
pub fn statements_of_chunk(text: &str) -> Vec<ChunkStatement> {
    let mut all = statements(text);
    all.truncate(MAX_STATEMENTS);
    let placed = |(at, Said { text: said, shown }): (usize, Said)| {
        let rest = &text[at..];
        // A sentence stands in the text word for word, a row on a line of its own.
        let length = if rest.starts_with(&said) { said.len() } else { rest.lines().next().map_or(0, |row| row.trim_end().len()) };
        ChunkStatement { place: at..at + length, text: said, shown }
    };
    all.into_iter().map(placed).collect()
}

/// The two forms of a statement.
struct Said {
    text: String,
    shown: String,
}

/// The statements of a passage in reading order, each with its offset in bytes.
fn statements(passage: &str) -> Vec<(usize, Said)> {
    let mut all = Vec::new();
    let mut prose = 0..0;
    let mut table: Vec<(usize, &str)> = Vec::new();
    let mut at = 0;
    for line in passage.split_inclusive('\n') {
        let begins = at;
        at += line.len();
        if line.trim_start().starts_with('|') {
            flush_prose(passage, prose, &mut all);
            table.push((begins, line.trim_end()));
            prose = at..at;
        } else {
            flush_table(&mut table, &mut all);
            prose.end = at;
        }
    }
    flush_table(&mut table, &mut all);
    flush_prose(passage, prose, &mut all);
    all
}

fn flush_prose(passage: &str, prose: Range<usize>, all: &mut Vec<(usize, Said)>) {
    let words = &passage[prose.clone()];
    let said = |at: Range<usize>| {
        let text = words[at.clone()].to_owned();
        (prose.start + at.start, Said { shown: text.clone(), text })
    };
    all.extend(sentences(words).into_iter().map(said));
}

fn flush_table(table: &mut Vec<(usize, &str)>, all: &mut Vec<(usize, Said)>) {
    let lines = std::mem::take(table);
    // The rule under the first row marks the head. A head can come again in joined chunks.
    let is_head = |i: usize| lines.get(i + 1).is_some_and(|(_, next)| is_rule(next));
    let mut head: Vec<&str> = Vec::new();
    for (i, (begins, line)) in lines.iter().enumerate() {
        if is_head(i) {
            head = cells(line);
        } else if !is_rule(line) {
            all.extend(row(&head, &cells(line)).map(|said| (*begins, said)));
        }
    }
}

/// A row as one statement; `None` when it is empty.
fn row(head: &[&str], cells: &[&str]) -> Option<Said> {
    let named = |(i, cell): (usize, &&str)| match head.get(i) {
        Some(name) if !name.is_empty() => format!("{name}: {cell}"),
        _ => (*cell).to_owned(),
    };
    let all: Vec<(usize, &&str)> = cells.iter().enumerate().filter(|(_, cell)| !cell.is_empty()).collect();
    let text = all.iter().copied().map(named).collect::<Vec<_>>().join("; ");
    let shown = match all.as_slice() {
        // The first column names the thing, the second tells about it.
        [(0, thing), (1, about), rest @ ..] => {
            let first = ended(&format!("{thing}: {about}"));
            std::iter::once(first).chain(rest.iter().copied().map(|cell| ended(&named(cell)))).collect::<Vec<_>>().join(" ")
        }
        _ => text.clone(),
    };
    (!all.is_empty()).then_some(Said { text, shown })
}

/// A text with a full stop, if it ends without a sign.
fn ended(text: &str) -> String {
    if text.ends_with(|c: char| c.is_alphanumeric() || matches!(c, ')' | '%' | '"' | '°')) {
        format!("{text}.")
    } else {
        text.to_owned()
    }
}

/// Whether a line is the rule between a table's head and body, such as `|---|:--:|`.
fn is_rule(line: &str) -> bool {
    line.contains("--") && line.chars().all(|c| matches!(c, '|' | '-' | ':' | ' '))
}

/// The cells of a row, trimmed; `\|` is a bar inside a cell.
fn cells(line: &str) -> Vec<&str> {
    let line = line.trim();
    let line = line.strip_prefix('|').unwrap_or(line);
    let line = if line.ends_with("\\|") { line } else { line.strip_suffix('|').unwrap_or(line) };
    let mut cells = Vec::new();
    let mut start = 0;
    for (at, _) in line.match_indices('|') {
        if !line[..at].ends_with('\\') {
            cells.push(line[start..at].trim());
            start = at + 1;
        }
    }
    cells.push(line[start..].trim());
    cells
}

#[cfg(test)]
mod tests {
    fn statements(passage: &str) -> Vec<String> {
        let found: Vec<(usize, String)> = super::statements(passage).into_iter().map(|(at, said)| (at, said.text)).collect();
        // Each begins at its first words.
        for (at, said) in &found {
            let words = |text: &str| text.split(|c: char| !c.is_alphanumeric()).find(|word| !word.is_empty()).map(str::to_owned);
            let is_row = passage[*at..].trim_start().starts_with('|');
            assert!(is_row || words(&passage[*at..]) == words(said), "{at} {said}");
        }
        assert!(found.is_sorted_by(|a, b| a.0 < b.0));
        found.into_iter().map(|(_, said)| said).collect()
    }

    #[test]
    fn rows_are_shown_as_sentences() {
        let shown = |passage: &str| super::statements(passage).into_iter().map(|(_, said)| said.shown).collect::<Vec<_>>();
        let table = "| Code | Meaning | Remedy |\n|---|---|---|\n| E-17 | High pressure | Clean the filter. |\n| | Low | |\n";
        assert_eq!(shown(table), ["E-17: High pressure. Remedy: Clean the filter.", "Meaning: Low"]);
        assert_eq!(shown("| a | 5 % |\n| b | |"), ["a: 5 %.", "b"]);
        assert_eq!(shown("Press it."), ["Press it."]);
    }

    #[test]
    fn rows_are_said_with_their_heads() {
        let passage = "Faults of the circuit. Read on.\n\n| Code | Meaning | Remedy |\n|---|:--:|---|\n| E-17 | High pressure | Clean the filter |\n| E-18 | | Call \\| write |\n\nDone.";
        assert_eq!(
            statements(passage),
            [
                "Faults of the circuit.",
                "Read on.",
                "Code: E-17; Meaning: High pressure; Remedy: Clean the filter",
                "Code: E-18; Remedy: Call \\| write",
                "Done."
            ]
        );
    }

    #[test]
    fn rows_without_a_head_and_heads_that_come_again() {
        assert_eq!(statements("| a | b |\n| c |"), ["a; b", "c"]);
        assert_eq!(statements("| H |\n|--|\n| a |\n| H |\n|--|\n| b |"), ["H: a", "H: b"]);
        assert!(statements("|\n||\n|--|").is_empty());
    }
}
