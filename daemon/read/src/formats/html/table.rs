//! A table while it is read: cells with spans become full rows.

use super::{MAX_GUESSED_HEAD, MAX_SPAN, markdown};

#[derive(Default)]
#[allow(clippy::struct_excessive_bools, reason = "each says something else about the table or its open cell")]
pub(super) struct Table {
    pub(super) caption: String,
    pub(super) rows: Vec<Vec<String>>,
    pub(super) row: Vec<String>,
    /// Whether the first row names the columns.
    pub(super) heads: bool,
    pub(super) in_cell: bool,
    /// Whether the first row is looked at for heads.
    pub(super) guesses: bool,
    /// Whether the current cell belongs to the one above.
    pub(super) is_continued: bool,
    /// Columns and rows of the current cell.
    pub(super) span: (usize, usize),
    /// By column: a cell that spans rows, and the number of rows left.
    pub(super) reaching: Vec<(usize, String)>,
}

impl Table {
    pub(super) fn push_cell(&mut self, words: &str) {
        self.fill_reaching();
        let (columns, rows) = self.span;
        let above = self.rows.last().and_then(|row| row.get(self.row.len())).filter(|_| self.is_continued && words.is_empty());
        let words = above.cloned().unwrap_or_else(|| words.to_owned());
        for column in 0..columns {
            if self.row.len() >= MAX_SPAN {
                return;
            }
            if rows > 1 {
                self.reaching.resize(self.reaching.len().max(self.row.len() + 1), (0, String::new()));
                self.reaching[self.row.len()] = (rows - 1, words.clone());
            }
            self.row.push(if column == 0 { words.clone() } else { String::new() });
        }
    }

    /// Repeats cells from above that span this row: each row may be read alone later.
    fn fill_reaching(&mut self) {
        while let Some((rows, words)) = self.reaching.get_mut(self.row.len())
            && *rows > 0
        {
            *rows -= 1;
            self.row.push(words.clone());
        }
    }

    pub(super) fn end_row(&mut self) {
        if self.row.is_empty() {
            return;
        }
        self.fill_reaching();
        let row = std::mem::take(&mut self.row);
        if row.iter().any(|cell| !cell.is_empty()) {
            self.rows.push(row);
        }
    }

    /// Whether the first row can name the columns: a few different words in each cell, no figure alone.
    fn has_heads(&self) -> bool {
        let Some((first, below)) = self.rows.split_first() else { return false };
        let is_name = |cell: &String| {
            !cell.is_empty() && cell.chars().count() <= MAX_GUESSED_HEAD && cell.parse::<f64>().is_err() && !cell.ends_with('.')
        };
        let different = first.iter().enumerate().all(|(at, cell)| !first[..at].contains(cell));
        !below.is_empty() && first.len() >= 2 && first.iter().all(is_name) && different
    }

    pub(super) fn write(&self, text: &mut String) {
        if !self.caption.is_empty() {
            text.push_str(self.caption.trim_end_matches(':'));
            text.push_str(":\n\n");
        }
        markdown::write_table(&self.rows, self.heads || (self.guesses && self.has_heads()), text);
    }
}
