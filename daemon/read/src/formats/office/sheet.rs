//! Sheets as Markdown: every row must be understood alone, for the chunker cuts between rows.

use std::collections::BTreeMap;

use super::{MAX_TEXT_BYTES, too_much};
use crate::formats::{Fault, Parsed, markdown, one_line};

/// Most columns, and most characters of all heads, of a table that is written as one. The chunker repeats the head of a table
/// before each part, if it takes at most half of a chunk. Rows of wider tables name their columns themselves.
const MAX_TABLE_COLUMNS: usize = 8;
const MAX_HEAD_CHARS: usize = 120;

/// Most cells of a sheet, and the longest run of rows that one cell covers.
const MAX_CELLS: usize = 600_000;
const MAX_MERGED_ROWS: usize = 1024;

/// Longest head of a column.
const MAX_HEAD_WORDS: usize = 80;

/// Most columns that count.
const MAX_COLUMNS: usize = 16_384;

/// One sheet of a file.
#[derive(Debug, Default)]
pub(super) struct Sheet {
    pub(super) name: String,
    /// Rows without gaps between columns. An empty row parts two tables.
    pub(super) rows: Vec<Vec<String>>,
}

/// The cells of a sheet that have words, by row and column.
#[derive(Debug, Default)]
pub(super) struct Cells {
    rows: BTreeMap<usize, BTreeMap<usize, String>>,
    count: usize,
    bytes: usize,
}

impl Cells {
    pub(super) fn put(&mut self, row: usize, column: usize, words: String) -> Result<(), Fault> {
        if column >= MAX_COLUMNS {
            return Ok(());
        }
        self.count += 1;
        self.bytes += words.len();
        // Half a million cells take 120 MB.
        if self.count > MAX_CELLS {
            return Err(Fault::Damaged(format!("it has more than the {MAX_CELLS} cells that are read; split it")));
        }
        if self.bytes > MAX_TEXT_BYTES {
            return Err(too_much());
        }
        self.rows.entry(row).or_default().insert(column, words);
        Ok(())
    }

    /// Repeats a row that stands for `count` equal ones.
    pub(super) fn repeat_row(&mut self, row: usize, count: usize) -> Result<(), Fault> {
        let Some(cells) = self.rows.get(&row).cloned() else { return Ok(()) };
        for other in row + 1..row + count {
            for (column, words) in &cells {
                self.put(other, *column, words.clone())?;
            }
        }
        Ok(())
    }

    /// Repeats a cell that covers rows, down to `last`.
    pub(super) fn merge(&mut self, row: usize, column: usize, last: usize) {
        let Some(words) = self.rows.get(&row).and_then(|cells| cells.get(&column)).cloned() else { return };
        for below in row + 1..=last.min(row + MAX_MERGED_ROWS) {
            // Only rows that say something themselves.
            if let Some(cells) = self.rows.get_mut(&below) {
                cells.entry(column).or_insert_with(|| words.clone());
            }
        }
    }

    /// The rows, without empty columns at the left.
    pub(super) fn into_rows(self) -> Vec<Vec<String>> {
        let mut columns: Vec<usize> = self.rows.values().flat_map(BTreeMap::keys).copied().collect();
        columns.sort_unstable();
        columns.dedup();
        let mut rows: Vec<Vec<String>> = Vec::new();
        let mut next = 0;
        for (at, mut cells) in self.rows {
            if at > next && !rows.is_empty() {
                rows.push(Vec::new());
            }
            next = at + 1;
            let last = cells.keys().next_back().copied().unwrap_or(0);
            let row = columns.iter().take_while(|column| **column <= last);
            rows.push(row.map(|column| cells.remove(column).unwrap_or_default()).collect());
        }
        rows
    }
}

/// Writes the sheets of a file, each under its name.
pub(super) fn write_sheets(sheets: &[Sheet]) -> Parsed {
    let mut text = String::new();
    for sheet in sheets.iter().filter(|sheet| !sheet.rows.is_empty()) {
        // A program's own name for the only sheet says nothing.
        if sheets.len() > 1 {
            text.extend(["## ", &one_line(&sheet.name), "\n\n"]);
        }
        write_rows(&sheet.rows, &mut text);
    }
    Parsed { title: None, text, note: None }
}

/// Writes rows, which may hold several tables, with titles above them.
pub(in super::super) fn write_rows(rows: &[Vec<String>], text: &mut String) {
    let mut heads: Vec<String> = Vec::new();
    for table in rows.split(|row| row.iter().all(String::is_empty)).filter(|table| !table.is_empty()) {
        let filled = |row: &[String]| row.iter().filter(|cell| !cell.is_empty()).count();
        let width = table.iter().map(|row| filled(row)).max().unwrap_or(0);
        let mut rest = table;
        // A row of one cell above a table is its title.
        while let Some((row, below)) = rest.split_first()
            && (width == 1 || (filled(row) == 1 && !below.is_empty()))
        {
            let words = row.iter().find(|cell| !cell.is_empty()).map_or("", String::as_str);
            let escape = if markdown::reads_as_markup(words) { "\\" } else { "" };
            text.extend([escape, words, "\n\n"]);
            rest = below;
        }
        let Some((first, below)) = rest.split_first() else { continue };
        let is_head = !below.is_empty() && filled(first) * 3 >= width * 2 && first.iter().all(|cell| is_head_cell(cell));
        if is_head {
            heads.clone_from(first);
            rest = below;
        } else if heads.len() < first.len() {
            heads.clear();
        }
        write_table(&heads, rest, text);
    }
}

/// Whether a cell can name a column: a few words, no figure.
fn is_head_cell(cell: &str) -> bool {
    let is_figure = cell.starts_with(|char: char| char.is_ascii_digit() || "+-".contains(char))
        && cell.chars().filter(char::is_ascii_digit).count() * 2 >= cell.chars().filter(|char| !char.is_whitespace()).count();
    // A year or a plain number over a column of figures is a head in many tables, but cannot be told from a figure.
    !is_figure && cell.chars().count() <= MAX_HEAD_WORDS
}

fn write_table(heads: &[String], rows: &[Vec<String>], text: &mut String) {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0).max(heads.len());
    let head_chars: usize = heads.iter().map(|head| head.chars().count()).sum();
    if columns <= MAX_TABLE_COLUMNS && head_chars <= MAX_HEAD_CHARS {
        let all: Vec<Vec<String>> = (!heads.is_empty()).then(|| heads.to_vec()).into_iter().chain(rows.iter().cloned()).collect();
        markdown::write_table(&all, !heads.is_empty(), text);
    } else {
        for row in rows {
            text.push_str("- ");
            let mut first = true;
            for (column, cell) in row.iter().enumerate().filter(|(_, cell)| !cell.is_empty()) {
                if !std::mem::take(&mut first) {
                    text.push_str("; ");
                }
                if let Some(head) = heads.get(column).filter(|head| !head.is_empty()) {
                    text.extend([head, ": "]);
                }
                text.push_str(cell);
            }
            text.push('\n');
        }
    }
    text.push('\n');
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(text: &str) -> String {
        let rows: Vec<Vec<String>> =
            text.lines().map(|line| line.split(',').map(|cell| cell.trim().to_owned()).collect()).collect();
        let mut text = String::new();
        write_rows(&rows, &mut text);
        text
    }

    #[test]
    fn titles_heads_and_further_tables_are_told_apart() {
        assert_eq!(
            rows("Faults,,\nCode,Cause,Days\nE-17,low,3\nE-18,high,\n,,\nE-19,none,4"),
            "Faults\n\n| Code | Cause | Days |\n|---|---|---|\n| E-17 | low | 3 |\n| E-18 | high |  |\n\n\
             | Code | Cause | Days |\n|---|---|---|\n| E-19 | none | 4 |\n\n"
        );
        assert_eq!(rows("1,2\n3,4"), "|  |  |\n|---|---|\n| 1 | 2 |\n| 3 | 4 |\n\n");
        assert_eq!(rows("# only\nwords"), "\\# only\n\nwords\n\n");
    }

    #[test]
    fn rows_of_wide_tables_name_their_columns() {
        let heads: Vec<String> = (1..=12).map(|n| format!("Head{n}")).collect();
        let text = rows(&format!("{}\na,b,,d,,,,,,,,z", heads.join(",")));
        assert_eq!(text, "- Head1: a; Head2: b; Head4: d; Head12: z\n\n");
    }

    #[test]
    fn cells_are_sparse_and_bounded() {
        let mut cells = Cells::default();
        for (row, column, words) in [(0, 0, "a"), (0, 9000, "b"), (1, 9000, "c"), (900_000, 0, "d")] {
            cells.put(row, column, words.into()).unwrap();
        }
        cells.merge(0, 0, 1);
        assert_eq!(cells.into_rows(), [vec!["a", "b"], vec!["a", "c"], vec![], vec!["d"]]);
        let mut cells = Cells::default();
        assert!((0..).map(|row| cells.put(row, 0, "x".repeat(1 << 20))).take(40).any(|put| put.is_err()));
    }
}
