//! The order of reading: rows across the page, and rows of two or more columns side by side.
//!
//! A gutter, a tall white strip, separates columns. Breuel ("Two Geometric Algorithms for Layout Analysis", 2002) finds such
//! strips as maximal empty rectangles. Here strips grow from the gaps in rows: a gap is followed up and down as long as no word
//! stands in it. A tall strip can also separate the columns of a table, which must be read row by row. So a strip counts as a
//! gutter only with running text on both sides.

use super::{
    content::Rule,
    rows::{Row, Word},
};

/// Most rows of a page that are searched for columns; a page with more is no text.
const MAX_ROWS: usize = 600;

/// Deepest nesting of columns in columns.
const MAX_DEPTH: usize = 6;

/// Fewest rows of columns.
const MIN_ROWS: usize = 5;

/// A strip of white between words, over `first..=last`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Strip {
    pub x0: f32,
    pub x1: f32,
    pub first: usize,
    pub last: usize,
    /// Rows with words on both sides.
    pub both: usize,
}

/// Rows in the order of reading, as flows: each is one column, or the rows above or below columns.
pub(super) fn flows(rows: Vec<Row>, rules: &[Rule]) -> Vec<Vec<Row>> {
    let mut flows = Vec::new();
    part(rows, rules, 0, &mut flows);
    flows
}

fn part(rows: Vec<Row>, rules: &[Rule], depth: usize, flows: &mut Vec<Vec<Row>>) {
    if rows.is_empty() {
        return;
    }
    let gutter = if depth < MAX_DEPTH && (MIN_ROWS..=MAX_ROWS).contains(&rows.len()) { gutter(&rows, rules) } else { None };
    let Some(gutter) = gutter else {
        flows.push(rows);
        return;
    };
    let middle = f32::midpoint(gutter.x0, gutter.x1);
    let mut rows = rows.into_iter();
    let above: Vec<Row> = rows.by_ref().take(gutter.first).collect();
    let (mut left, mut right) = (Vec::new(), Vec::new());
    for row in rows.by_ref().take(gutter.last - gutter.first + 1) {
        let (before, after): (Vec<Word>, Vec<Word>) = row.words.iter().partition(|word| word.x0 < middle);
        for (side, words) in [(&mut left, before), (&mut right, after)] {
            if !words.is_empty() {
                side.push(Row::new(words, row.y));
            }
        }
    }
    for rows in [above, left, right, rows.collect()] {
        part(rows, rules, depth + 1, flows);
    }
}

/// The tallest gutter, if any.
fn gutter(rows: &[Row], rules: &[Rule]) -> Option<Strip> {
    let mut found = strips(rows, 0.8, false);
    found.sort_by(|a, b| b.both.cmp(&a.both).then((b.x1 - b.x0).total_cmp(&(a.x1 - a.x0))));
    found.into_iter().find(|strip| is_gutter(rows, strip, rules))
}

/// All strips at least `ems` wide with words on both sides in at least three rows. Each covers as many rows as it reaches. With
/// `even` it covers only rows of about one size: a heading ends a table.
pub(super) fn strips(rows: &[Row], ems: f32, even: bool) -> Vec<Strip> {
    let mut found: Vec<Strip> = Vec::new();
    for (index, row) in rows.iter().enumerate() {
        let least = ems * row.size;
        let mut reach: Option<f32> = None;
        for word in &row.words {
            let before = reach;
            reach = Some(before.map_or(word.x1, |reach| reach.max(word.x1)));
            let Some(gap) = before.map(|before| (before, word.x0)).filter(|gap| gap.1 - gap.0 >= least) else { continue };
            let known = found
                .iter()
                .any(|strip| (strip.first..=strip.last).contains(&index) && strip.x0 < gap.1 - 1.0 && strip.x1 > gap.0 + 1.0);
            if !known {
                let strip = follow(rows, index, gap, least, even);
                if strip.both >= 3 {
                    found.push(strip);
                }
            }
        }
    }
    found
}

/// Follows a gap upwards and downwards as long as `least` of it is free.
fn follow(rows: &[Row], index: usize, gap: (f32, f32), least: f32, even: bool) -> Strip {
    let size = rows[index].size;
    let uneven = |row: &Row| even && (row.size > 1.12 * size || row.size < 0.8 * size);
    let mut strip = Strip { x0: gap.0, x1: gap.1, first: index, last: index, both: 1 };
    for (next, row) in rows.iter().enumerate().skip(index + 1) {
        if uneven(row) || !strip.narrow(row, least) {
            break;
        }
        strip.last = next;
    }
    for next in (0..index).rev() {
        if uneven(&rows[next]) || !strip.narrow(&rows[next], least) {
            break;
        }
        strip.first = next;
    }
    // A row on one side only is a heading above the columns. Below them it belongs to the longer column, unless a gap separates
    // it.
    let apart = |at: usize| rows[at].y - rows[at - 1].y > 2.2 * rows[at].size;
    while let Some(at) = (strip.first + 1..=strip.last).rev().find(|&at| apart(at))
        && (at..=strip.last).all(|at| strip.sides(&rows[at]) != (true, true))
    {
        strip.last = at - 1;
    }
    while strip.first < strip.last && strip.sides(&rows[strip.first]) != (true, true) {
        strip.first += 1;
    }
    strip.both = rows[strip.first..=strip.last].iter().filter(|row| strip.sides(row) == (true, true)).count();
    strip
}

impl Strip {
    /// Narrows the strip by the words of a row; false, and unchanged, if too little would be left.
    fn narrow(&mut self, row: &Row, least: f32) -> bool {
        let (mut x0, mut x1) = (self.x0, self.x1);
        for word in row.words.iter().filter(|word| word.x1 > self.x0 && word.x0 < self.x1) {
            // The word reaches in from one side or stands in the middle: keep the wider rest.
            if word.x1 - x0 < x1 - word.x0 { x0 = x0.max(word.x1) } else { x1 = x1.min(word.x0) }
        }
        let free = x1 - x0 >= least;
        if free {
            (self.x0, self.x1) = (x0, x1);
        }
        free
    }

    /// Whether a row has words on the left and on the right.
    pub(super) fn sides(&self, row: &Row) -> (bool, bool) {
        let middle = f32::midpoint(self.x0, self.x1);
        (row.words.iter().any(|word| word.x0 < middle), row.words.iter().any(|word| word.x0 >= middle))
    }
}

/// Whether running text stands on both sides of a strip, or two lists of the same width down the page.
fn is_gutter(rows: &[Row], strip: &Strip, rules: &[Rule]) -> bool {
    let rows = &rows[strip.first..=strip.last];
    if strip.both < MIN_ROWS || crossing(rows, strip, rules) >= 2 {
        return false;
    }
    let middle = f32::midpoint(strip.x0, strip.x1);
    let left = Side::of(rows, |word| word.x0 < middle);
    let right = Side::of(rows, |word| word.x0 >= middle);
    let prose = left.words >= 3.5 && right.words >= 3.5 && left.fill >= 0.5 && right.fill >= 0.5;
    let ratio = (left.width / right.width.max(1.0)).max(right.width / left.width.max(1.0));
    let twins = ratio < 1.25 && strip.both >= 20 && left.words >= 1.5 && right.words >= 1.5;
    prose || twins
}

/// Horizontal rules across a strip: those of a table.
fn crossing(rows: &[Row], strip: &Strip, rules: &[Rule]) -> usize {
    let (Some(first), Some(last)) = (rows.first(), rows.last()) else { return 0 };
    rules
        .iter()
        .filter(|rule| rule.y1 - rule.y0 < 1.0 && rule.y0 > first.y - first.size && rule.y0 < last.y + last.size)
        .filter(|rule| rule.x0 < strip.x0 && rule.x1 > strip.x1)
        .count()
}

/// The text on one side of a strip.
struct Side {
    /// Mean number of words in a row.
    words: f32,
    /// Mean width of a row, as a share of the side's width.
    fill: f32,
    width: f32,
}

impl Side {
    fn of(rows: &[Row], belongs: impl Fn(&Word) -> bool) -> Self {
        let (mut x0, mut x1) = (f32::MAX, f32::MIN);
        let (mut words, mut lines, mut covered) = (0_usize, 0_usize, 0.0);
        for row in rows {
            let mut of_row = row.words.iter().filter(|word| belongs(word)).peekable();
            let Some(first) = of_row.peek() else { continue };
            let from = first.x0;
            let mut to = from;
            for word in of_row {
                words += 1;
                to = to.max(word.x1);
            }
            lines += 1;
            covered += to - from;
            (x0, x1) = (x0.min(from), x1.max(to));
        }
        let count = lines.max(1) as f32;
        let width = (x1 - x0).max(1.0);
        Self { words: words as f32 / count, fill: covered / count / width, width }
    }
}
