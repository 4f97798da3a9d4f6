//! Rows of one column become blocks: paragraphs, items of lists, listings, tables.

use super::{
    leaders,
    rows::{Row, Sheet, Word},
    tables::{self, Table},
};

/// A line of text on the page.
#[derive(Debug, Clone)]
pub(super) struct Line {
    pub text: String,
    pub x0: f32,
    pub x1: f32,
    pub y: f32,
    pub size: f32,
    pub bold: bool,
    pub mono: bool,
}

/// A part of a page.
#[derive(Debug)]
pub(super) enum PageBlock {
    /// A paragraph, a heading, an item of a list.
    Text(Vec<Line>),
    /// Lines whose blanks count.
    Code(Vec<String>),
    /// Lines of cells by row, and whether the first row names the columns.
    Table(Vec<Vec<Vec<String>>>, bool),
}

/// Cuts a flow into blocks. `mono_counts`: monospaced text is a listing; false if all text is monospaced.
pub(super) fn blocks(sheet: &Sheet, rows: &[Row], mono_counts: bool) -> Vec<PageBlock> {
    let kept = leaders::without_contents(sheet, rows);
    let rows: &[Row] = &kept;
    let mut blocks = Vec::new();
    let mut from = 0;
    for Table { first, last, cells, heads } in tables::tables(sheet, rows) {
        text_blocks(sheet, &rows[from..first], mono_counts, &mut blocks);
        blocks.push(PageBlock::Table(cells, heads));
        from = last + 1;
    }
    text_blocks(sheet, &rows[from..], mono_counts, &mut blocks);
    blocks
}

fn text_blocks(sheet: &Sheet, rows: &[Row], mono_counts: bool, blocks: &mut Vec<PageBlock>) {
    let leading = leading(rows);
    let right = rows.iter().map(Row::x1).fold(0.0, f32::max);
    let mut paragraph: Vec<Line> = Vec::new();
    let mut at = 0;
    while at < rows.len() {
        let listing = rows[at..].iter().take_while(|row| mono_counts && is_mono(&row.words)).count();
        if listing > 0 {
            flush(&mut paragraph, blocks);
            blocks.push(PageBlock::Code(code(sheet, &rows[at..at + listing], leading)));
            at += listing;
            continue;
        }
        let line = line(sheet, &rows[at]);
        if paragraph.last().is_some_and(|before| begins(&paragraph, before, &line, leading, right)) {
            flush(&mut paragraph, blocks);
        }
        paragraph.push(line);
        at += 1;
    }
    flush(&mut paragraph, blocks);
}

fn flush(paragraph: &mut Vec<Line>, blocks: &mut Vec<PageBlock>) {
    if !paragraph.is_empty() {
        blocks.push(PageBlock::Text(std::mem::take(paragraph)));
    }
}

fn line(sheet: &Sheet, row: &Row) -> Line {
    let words = &row.words;
    Line {
        text: sheet.line(words),
        x0: row.x0(),
        x1: row.x1(),
        y: row.y,
        size: row.size,
        bold: words.iter().all(|word| word.style.bold),
        mono: is_mono(words),
    }
}

fn is_mono(words: &[Word]) -> bool {
    words.iter().all(|word| word.style.mono)
}

/// The usual distance of lines.
fn leading(rows: &[Row]) -> f32 {
    let near = |pair: &[Row]| {
        let apart = pair[1].y - pair[0].y;
        (apart > 0.0 && apart < 2.2 * pair[1].size).then_some(apart)
    };
    let mut distances: Vec<f32> = rows.windows(2).filter_map(near).collect();
    distances.sort_by(f32::total_cmp);
    distances.get(distances.len() * 2 / 5).copied().unwrap_or_else(|| rows.first().map_or(12.0, |row| 1.25 * row.size))
}

/// Whether `line` begins a new paragraph after `before`, the last line of `paragraph`.
fn begins(paragraph: &[Line], before: &Line, line: &Line, leading: f32, right: f32) -> bool {
    let size = before.size.max(line.size);
    let apart = line.y - before.y;
    let styled =
        (before.size - line.size).abs() > 0.08 * size || before.bold != line.bold && (before.bold || is_capital(&line.text));
    let item = line.text.split(' ').next().is_some_and(is_marker) && !before.text.ends_with('-');
    let hanging = paragraph.len() == 1 && paragraph[0].text.split(' ').next().is_some_and(is_marker);
    let indented = line.x0 > before.x0 + 0.9 * size && !hanging && (paragraph.len() > 1 || before.x1 < right - 2.0 * size);
    let outdented = line.x0 < before.x0 - 0.9 * size && (paragraph.len() > 1 || line.x0 < before.x0 - 4.0 * size);
    // A heading of two lines may have a wide line spacing, a paragraph does not.
    let wide = match (before.bold && line.bold, paragraph.len()) {
        (true, ..4) => 1.7,
        (false, ..4) => 1.38,
        _ => 1.05,
    };
    let ended = before.text.ends_with(['.', '!', '?', ':', ';']);
    let short = before.x1 < right - 0.3 * (right - before.x0);
    apart < 0.0
        || apart > (1.3 * leading).max(wide * size)
        || styled
        || item
        || indented
        || outdented
        || (short && ended && is_capital(&line.text))
}

fn is_capital(text: &str) -> bool {
    !text.starts_with(char::is_lowercase)
}

/// Lines of a listing, with empty lines for larger gaps.
fn code(sheet: &Sheet, rows: &[Row], leading: f32) -> Vec<String> {
    let left = rows.iter().map(Row::x0).fold(f32::MAX, f32::min);
    let step = rows.windows(2).map(|pair| pair[1].y - pair[0].y).filter(|&step| step > 0.5).fold(leading, f32::min).max(1.0);
    let mut lines: Vec<String> = Vec::new();
    for (index, row) in rows.iter().enumerate() {
        if index > 0 {
            let blank = ((row.y - rows[index - 1].y) / step).round() as usize;
            lines.extend(std::iter::repeat_n(String::new(), blank.saturating_sub(1).min(2)));
        }
        lines.push(sheet.listing(&row.words, left).trim_end().to_owned());
    }
    lines
}

/// Whether a word is the mark of a list's item: a bullet, `3.`, `a)`, `(iv)`.
pub(super) fn is_marker(word: &str) -> bool {
    if bullet(word) {
        return true;
    }
    let Some(inner) = word.strip_suffix(['.', ')']) else { return false };
    let inner = inner.strip_prefix('(').unwrap_or(inner);
    let number = inner.len() <= 3 && inner.chars().all(|char| char.is_ascii_digit());
    let letter = inner.len() == 1 && inner.chars().all(|char| char.is_ascii_alphabetic());
    let roman = inner.len() <= 4 && inner.chars().all(|char| "ivx".contains(char));
    !inner.is_empty() && (number || (letter && !word.ends_with('.')) || (roman && word.ends_with(')')))
}

/// Whether a word is a bullet. Symbol fonts put theirs into the private use area.
pub(super) fn bullet(word: &str) -> bool {
    let mut chars = word.chars();
    let first = chars.next();
    chars.next().is_none()
        && first.is_some_and(|char| {
            matches!(
                char,
                '•' | '◦'
                    | '▪'
                    | '▫'
                    | '‣'
                    | '∙'
                    | '·'
                    | '●'
                    | '○'
                    | '■'
                    | '□'
                    | '◆'
                    | '➢'
                    | '➤'
                    | '✓'
                    | '–'
                    | '*'
                    | '-'
            ) || ('\u{F000}'..='\u{F0FF}').contains(&char)
        })
}
