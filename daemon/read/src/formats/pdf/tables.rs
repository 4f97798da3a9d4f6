//! Finds tables by their rules if they have a grid, else by white columns that several rows share.

use super::{
    columns::{Strip, strips},
    content::Rule,
    rows::{Row, Sheet, Word},
};

/// Places closer than this, in points, are the same.
const SAME: f32 = 3.0;

/// Most rules of a page that are searched: a page with more is a drawing.
const MAX_RULES: usize = 1500;

/// Most rows of a flow that are searched: a flow with more is no text.
const MAX_ROWS: usize = 1000;

/// Most columns of a table.
const MAX_COLUMNS: usize = 24;

/// Rows `first..=last` of a flow, as cells.
#[derive(Debug)]
pub(super) struct Table {
    pub first: usize,
    pub last: usize,
    /// Cells by logical row, each as its lines on the page.
    pub cells: Vec<Vec<Vec<String>>>,
    /// Whether the first row names the columns.
    pub heads: bool,
}

/// The borders of a table's columns, and the rules between its rows.
struct Frame {
    first: usize,
    last: usize,
    /// Whether vertical rules separate its columns.
    walled: bool,
    /// Borders between columns.
    edges: Vec<f32>,
    /// Heights of horizontal rules, from the top.
    levels: Vec<f32>,
}

/// Finds the tables of a flow, from the top; no two share a row.
pub(super) fn tables(sheet: &Sheet, rows: &[Row]) -> Vec<Table> {
    if rows.len() > MAX_ROWS {
        return Vec::new();
    }
    let mut frames = ruled(rows, &sheet.rules);
    for frame in aligned(sheet, rows, &sheet.rules) {
        if frames.iter().all(|other| other.last < frame.first || other.first > frame.last) {
            frames.push(frame);
        }
    }
    frames.sort_by_key(|frame| frame.first);
    frames.iter().filter_map(|frame| fill(sheet, rows, frame)).collect()
}

/// Tables with rules: boxes of rules that touch each other. Vertical rules separate the columns, or else white space.
fn ruled(rows: &[Row], rules: &[Rule]) -> Vec<Frame> {
    if rules.len() < 2 || rules.len() > MAX_RULES {
        return Vec::new();
    }
    let mut frames: Vec<Frame> = Vec::new();
    for group in groups(rules) {
        let (level, upright): (Vec<&Rule>, Vec<&Rule>) = group.iter().partition(|rule| rule.x1 - rule.x0 > rule.y1 - rule.y0);
        let levels = distinct(level.iter().map(|rule| rule.y0));
        let walls = distinct(upright.iter().map(|rule| rule.x0));
        let (top, bottom) = (extent(&group, |rule| rule.y0).0, extent(&group, |rule| rule.y1).1);
        let (left, right) = (extent(&group, |rule| rule.x0).0, extent(&group, |rule| rule.x1).1);
        let beside = |row: &Row| row.x0() > left - 6.0 && row.x1() < right + 6.0;
        let inside = |row: &Row| row.y > top && row.y < bottom + 2.0 && beside(row);
        let Some(first) = rows.iter().position(inside) else { continue };
        let last = first + rows[first..].iter().take_while(|row| inside(row)).count() - 1;
        // The outermost vertical rules, if any, frame the table.
        let inner: Vec<f32> = walls.into_iter().filter(|&x| x > left + SAME && x < right - SAME).collect();
        let walled = !inner.is_empty();
        let edges = if walled {
            inner
        } else if levels.len() >= 2 && last > first {
            let mut found = strips(&rows[first..=last], 0.7, false);
            found.retain(|strip| strip.both * 2 > last - first);
            distinct(found.iter().map(|strip| f32::midpoint(strip.x0, strip.x1)))
        } else {
            Vec::new()
        };
        // The names of the columns may stand above the first rule.
        let names = |above: &Row| beside(above) && top - above.y < above.size && in_columns(above, &edges);
        let first = if first > 0 && names(&rows[first - 1]) { first - 1 } else { first };
        let free = frames.iter().all(|other| other.last < first || other.first > last);
        if !edges.is_empty() && edges.len() < MAX_COLUMNS && levels.len() >= 2 && free {
            frames.push(Frame { first, last, walled, edges, levels });
        }
    }
    frames
}

/// Whether a row has a word in every column, but maybe not at the corner, and none across a border.
fn in_columns(row: &Row, edges: &[f32]) -> bool {
    let column = |x: f32| edges.partition_point(|&edge| edge < x);
    let columns: Vec<usize> = row.words.iter().map(|word| column(word.x0)).collect();
    row.words.iter().zip(&columns).all(|(word, &at)| column(word.x1) == at) && (1..=edges.len()).all(|at| columns.contains(&at))
}

/// The member that stands for a group, followed from any other.
fn root(group: &mut [usize], mut at: usize) -> usize {
    while group[at] != at {
        group[at] = group[group[at]];
        at = group[at];
    }
    at
}

/// Rules that touch, directly or through others. Horizontal rules of the same width above each other count as touching: they
/// belong to a table without vertical rules.
fn groups(rules: &[Rule]) -> Vec<Vec<Rule>> {
    let mut group: Vec<usize> = (0..rules.len()).collect();
    let level = |rule: &Rule| rule.y1 - rule.y0 < 1.0;
    let touch = |a: &Rule, b: &Rule| {
        let meet = a.x0 <= b.x1 + 2.0 && b.x0 <= a.x1 + 2.0 && a.y0 <= b.y1 + 2.0 && b.y0 <= a.y1 + 2.0;
        let twins = level(a) && level(b) && (a.x0 - b.x0).abs() < SAME && (a.x1 - b.x1).abs() < SAME;
        meet || (twins && (a.y0 - b.y0).abs() < 260.0)
    };
    for a in 0..rules.len() {
        for b in a + 1..rules.len() {
            if touch(&rules[a], &rules[b]) {
                let (a, b) = (root(&mut group, a), root(&mut group, b));
                group[b] = a;
            }
        }
    }
    let mut found: Vec<(usize, Vec<Rule>)> = Vec::new();
    for (at, &rule) in rules.iter().enumerate() {
        let root = root(&mut group, at);
        match found.iter_mut().find(|(of, _)| *of == root) {
            Some((_, rules)) => rules.push(rule),
            None => found.push((root, vec![rule])),
        }
    }
    found.into_iter().map(|(_, rules)| rules).filter(|rules| rules.len() >= 2).collect()
}

/// Tables without a grid: at least three rows with the same white columns, aligned.
fn aligned(sheet: &Sheet, rows: &[Row], rules: &[Rule]) -> Vec<Frame> {
    let mut found = strips(rows, 1.0, true);
    found.sort_by_key(|strip| std::cmp::Reverse(strip.both));
    let mut frames: Vec<Frame> = Vec::new();
    for strip in &found {
        if frames.iter().any(|frame| frame.first <= strip.last && strip.first <= frame.last) {
            continue;
        }
        let mut columns: Vec<&Strip> = found
            .iter()
            .filter(|other| {
                let common = other.last.min(strip.last) as f32 - other.first.max(strip.first) as f32 + 1.0;
                common >= 0.6 * (strip.last - strip.first + 1) as f32
            })
            .collect();
        columns.sort_by(|a, b| a.x0.total_cmp(&b.x0));
        columns.dedup_by(|b, a| b.x0 < a.x1);
        if columns.len() < MAX_COLUMNS && is_table(sheet, rows, strip, &columns) {
            let edges = columns.iter().map(|strip| f32::midpoint(strip.x0, strip.x1)).collect();
            let (top, bottom) = (rows[strip.first].y, rows[strip.last].y);
            let levels = rules.iter().filter(|rule| rule.y1 - rule.y0 < 1.0 && rule.x1 - rule.x0 > 30.0).map(|rule| rule.y0);
            let levels = distinct(levels.filter(|&y| y > top && y < bottom));
            frames.push(Frame { first: strip.first, last: strip.last, walled: false, edges, levels });
        }
    }
    frames
}

fn is_table(sheet: &Sheet, rows: &[Row], strip: &Strip, columns: &[&Strip]) -> bool {
    let rows = &rows[strip.first..=strip.last];
    let both: Vec<&Row> = rows.iter().filter(|row| strip.sides(row) == (true, true)).collect();
    let least = if columns.len() >= 2 || both.len() == rows.len() { 3 } else { 4 };
    if both.len() < least || both.len() * 3 < rows.len() {
        return false;
    }
    let middle = f32::midpoint(strip.x0, strip.x1);
    let split = |row: &Row| row.words.partition_point(|word| word.x0 < middle);
    // A list has its text beside its marks and is no table.
    let marks = both.iter().filter(|row| {
        let left = &row.words[..split(row)];
        left.len() == 1 && super::blocks::is_marker(sheet.word(&left[0]))
    });
    if marks.count() * 2 > both.len() {
        return false;
    }
    // A listing aligns its text too and is no table.
    let (mono, words) =
        both.iter().flat_map(|row| &row.words).fold((0, 0), |(mono, all), word| (mono + usize::from(word.style.mono), all + 1));
    if mono * 10 > words * 8 {
        return false;
    }
    let lined_up = |place: &dyn Fn(&Row) -> f32| {
        let mut places: Vec<f32> = both.iter().map(|row| place(row)).collect();
        places.sort_by(f32::total_cmp);
        let common = places[places.len() / 2];
        places.iter().filter(|&&at| (at - common).abs() < SAME).count() * 10 >= places.len() * 6
    };
    let word = |row: &Row, at: usize| row.words.get(at).copied().unwrap_or(row.words[0]);
    lined_up(&|row| word(row, split(row)).x0)
        || lined_up(&|row| row.words.last().map_or(0.0, |word| word.x1))
        || lined_up(&|row| f32::midpoint(word(row, split(row)).x0, row.x1()))
}

/// Puts the words of a table's rows into its cells.
fn fill(sheet: &Sheet, rows: &[Row], frame: &Frame) -> Option<Table> {
    let lines = &rows[frame.first..=frame.last];
    let breaks = breaks(lines, frame);
    let mut cells: Vec<Vec<Vec<Vec<Word>>>> = Vec::new();
    for (index, row) in lines.iter().enumerate() {
        if index == 0 || breaks[index] {
            cells.push(vec![Vec::new(); frame.edges.len() + 1]);
        }
        let of_row = cells.last_mut()?;
        let mut line = vec![Vec::new(); frame.edges.len() + 1];
        for word in &row.words {
            let middle = f32::midpoint(word.x0, word.x1);
            line[frame.edges.partition_point(|&edge| edge < middle)].push(*word);
        }
        for (cell, words) in of_row.iter_mut().zip(line).filter(|(_, words)| !words.is_empty()) {
            cell.push(words);
        }
    }
    let filled = cells.iter().filter(|row| row.iter().filter(|cell| !cell.is_empty()).count() >= 2).count();
    if filled < 2 || filled * 3 < cells.len() {
        return None;
    }
    let heads = heads(&cells, lines, frame) || may_head(sheet, &cells);
    let text = |cell: &Vec<Vec<Word>>| cell.iter().map(|line| sheet.line(line)).collect();
    let cells = cells.iter().map(|row| row.iter().map(text).collect()).collect();
    Some(Table { first: frame.first, last: frame.last, cells, heads })
}

/// The lines that begin a new row of the table. Rules tell if there are about as many as rows, else larger gaps between lines,
/// else text in the first column.
fn breaks(lines: &[Row], frame: &Frame) -> Vec<bool> {
    let between = |index: usize| {
        let (above, below) = (&lines[index - 1], &lines[index]);
        frame.levels.iter().any(|&y| y > above.y - 0.3 * above.size && y < below.y - 0.3 * below.size)
    };
    let ruled: Vec<bool> = (0..lines.len()).map(|index| index > 0 && between(index)).collect();
    let rules = ruled.iter().filter(|&&at| at).count();
    if rules >= 2 && rules * if frame.walled { 5 } else { 3 } >= lines.len() {
        return ruled;
    }
    let gaps: Vec<f32> = lines.windows(2).map(|pair| pair[1].y - pair[0].y).collect();
    let mut sorted = gaps.clone();
    sorted.sort_by(f32::total_cmp);
    let narrow = sorted.get(sorted.len() / 10).copied().unwrap_or(0.0);
    let wide = |index: usize| index > 0 && gaps[index - 1] > 1.2 * narrow;
    let wides = (1..lines.len()).filter(|&index| wide(index)).count();
    let by_space = wides >= 2 && wides * 4 >= gaps.len() && wides < gaps.len();
    let first_edge = frame.edges[0];
    let speaks = |row: &Row| row.words.iter().any(|word| f32::midpoint(word.x0, word.x1) < first_edge);
    (0..lines.len()).map(|index| ruled[index] || if by_space { wide(index) } else { speaks(&lines[index]) }).collect()
}

/// Whether the first row is a head: it is bold and the rest is not, or a rule of its own separates it, or it tops a full grid.
fn heads(cells: &[Vec<Vec<Vec<Word>>>], lines: &[Row], frame: &Frame) -> bool {
    let bold = |row: &Vec<Vec<Vec<Word>>>| {
        let mut words = row.iter().flatten().flatten().peekable();
        words.peek().is_some() && words.all(|word| word.style.bold)
    };
    let full = cells[0].iter().filter(|cell| !cell.is_empty()).count() * 2 > cells[0].len();
    let bold_rest = cells[1..].iter().filter(|row| bold(row)).count();
    if !full || cells.len() < 2 {
        return false;
    }
    if bold(&cells[0]) {
        return bold_rest * 2 < cells.len() - 1 || !frame.levels.is_empty();
    }
    let top = lines[0].y;
    frame.levels.iter().any(|&y| y > top - 1.0 && lines.get(1).is_none_or(|next| y < next.y)) && bold_rest == 0
}

/// Longest name of a column, in words, if only its place suggests a name.
const MAX_NAME_WORDS: usize = 6;

/// Whether the first row names the columns, as a last resort. Every cell has short words (one at the corner may be empty), and no
/// figures stand above figures.
fn may_head(sheet: &Sheet, cells: &[Vec<Vec<Vec<Word>>>]) -> bool {
    let Some((head, rows)) = cells.split_first() else { return false };
    let has_digit =
        |cell: &Vec<Vec<Word>>| cell.iter().flatten().any(|word| sheet.word(word).contains(|char: char| char.is_ascii_digit()));
    let names = |(column, cell): (usize, &Vec<Vec<Word>>)| {
        let words = cell.iter().flatten().count();
        let ends = cell.iter().flatten().last().is_some_and(|word| sheet.word(word).ends_with(['.', ';', ',']));
        let filled = || rows.iter().map(|row| &row[column]).filter(|cell| !cell.is_empty());
        let figures = has_digit(cell) && filled().filter(|cell| has_digit(cell)).count() * 2 > filled().count();
        words <= MAX_NAME_WORDS && (words > 0 || column == 0) && !ends && !figures
    };
    // Single letters are a formula.
    let is_word = |cell: &Vec<Vec<Word>>| {
        cell.iter().flatten().any(|word| sheet.word(word).chars().filter(|char| char.is_alphabetic()).count() > 1)
    };
    rows.len() >= 2 && head.iter().enumerate().all(names) && head.iter().filter(|cell| is_word(cell)).count() * 2 >= head.len()
}

/// Sorted; equal places count once.
fn distinct(places: impl Iterator<Item = f32>) -> Vec<f32> {
    let mut places: Vec<f32> = places.collect();
    places.sort_by(f32::total_cmp);
    places.dedup_by(|b, a| *b - *a < SAME);
    places
}

fn extent(rules: &[Rule], of: impl Fn(&Rule) -> f32) -> (f32, f32) {
    rules.iter().map(of).fold((f32::MAX, f32::MIN), |(low, high), at| (low.min(at), high.max(at)))
}
