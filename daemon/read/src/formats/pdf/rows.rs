//! Characters to words, and words to rows: everything on one baseline, across the page.

use super::{
    bidi::{self, Layout, Order},
    content::{Aside, Canvas, Glyph, Rule, Style},
};

/// Least gap between words, in ems. Kerning stays well below, the blank of a justified line above.
const WORD_GAP: f32 = 0.15;

/// Most words of rows that are joined: a longer row is no line of text.
const MAX_MERGED: usize = 500;

/// A word, with its text in [`Sheet::text`].
#[derive(Debug, Clone, Copy)]
pub(super) struct Word {
    start: u32,
    end: u32,
    pub x0: f32,
    pub x1: f32,
    pub size: f32,
    pub style: Style,
}

/// Words on one baseline, from left to right.
#[derive(Debug, Clone)]
pub(super) struct Row {
    pub words: Vec<Word>,
    pub y: f32,
    /// Font size over most of its width.
    pub size: f32,
}

/// A page as rows from top to bottom.
#[derive(Debug, Default)]
pub(super) struct Sheet {
    text: String,
    pub rows: Vec<Row>,
    /// Rows of text in other directions.
    pub aside: Vec<Row>,
    pub rules: Vec<Rule>,
    /// In points.
    pub height: f32,
    /// Images cover a good part of the page.
    pub pictured: bool,
    pub unknown: usize,
    pub damaged: bool,
}

impl Sheet {
    pub(super) fn new(canvas: Canvas, order: &mut Order) -> Self {
        let Canvas { glyphs, mut rules, aside, width, height, pictured, unknown, damaged } = canvas;
        let mut lines = baselines(glyphs);
        let layout = order.layout(&lines, width);
        if layout != Layout::Plain {
            lines = lines.into_iter().map(|line| bidi::in_order(line, layout)).collect();
        }
        if layout == Layout::Mirrored(width) {
            for rule in &mut rules {
                (rule.x0, rule.x1) = (width - rule.x1, width - rule.x0);
            }
        }
        let mut sheet = Self { rules, height, pictured, unknown, damaged, ..Self::default() };
        let mut rows: Vec<Row> = lines.into_iter().map(|line| sheet.words(line)).collect();
        rows.retain(|row| !row.words.is_empty());
        sheet.rows = merge(rows);
        let mut bottom = height;
        for Aside { glyphs, rules } in aside {
            sheet.add_below(bottom, glyphs, &rules, order);
            bottom += width.max(height);
        }
        sheet
    }

    /// Adds text in another direction as if it stood below the page.
    fn add_below(&mut self, bottom: f32, glyphs: Vec<Glyph>, rules: &[Rule], order: &mut Order) {
        let lines = baselines(glyphs);
        let width = lines.iter().flatten().map(|glyph| glyph.end).fold(0.0, f32::max);
        let layout = order.layout(&lines, width);
        let lines = lines.into_iter().map(|line| bidi::in_order(line, layout));
        let mut rows: Vec<Row> = lines.map(|line| self.words(line)).collect();
        rows.retain(|row| !row.words.is_empty());
        self.aside.extend(merge(rows).into_iter().map(|row| Row { y: row.y + bottom, ..row }));
        self.rules.extend(rules.iter().map(|rule| Rule { y0: rule.y0 + bottom, y1: rule.y1 + bottom, ..*rule }));
    }

    pub(super) fn word(&self, word: &Word) -> &str {
        &self.text[word.start as usize..word.end as usize]
    }

    /// Words on the page.
    pub(super) fn words_count(&self) -> usize {
        self.rows.iter().chain(&self.aside).map(|row| row.words.len()).sum()
    }

    /// Characters on the page, blanks not counted.
    pub(super) fn chars(&self) -> usize {
        self.text.chars().count()
    }

    /// The words of a row, or of a part of one, with single blanks between them.
    pub(super) fn line(&self, words: &[Word]) -> String {
        let mut line = String::new();
        for (index, word) in words.iter().enumerate() {
            let text = self.word(word);
            if index > 0 {
                let before = &words[index - 1];
                line.push_str(if is_exponent(self.word(before), before, text, word) { "^" } else { " " });
            }
            line.push_str(text);
        }
        line
    }

    /// The words as a line of a listing: blanks in proportion to the gaps, counted from `left`.
    pub(super) fn listing(&self, words: &[Word], left: f32) -> String {
        let mut line = String::new();
        let mut column = 0_usize;
        for word in words {
            let text = self.word(word);
            let letters = text.chars().count().max(1);
            let width = ((word.x1 - word.x0) / letters as f32).max(word.size * 0.3).max(1.0);
            let target = (((word.x0 - left) / width).round().max(0.0) as usize).min(400);
            let blanks = target.saturating_sub(column).max(usize::from(column > 0));
            line.extend(std::iter::repeat_n(' ', blanks));
            line.push_str(text);
            column += blanks + letters;
        }
        line
    }

    /// One line of characters, in the order of reading, as words.
    fn words(&mut self, line: Vec<Glyph>) -> Row {
        let y = line.first().map_or(0.0, |glyph| glyph.y);
        let mut words: Vec<Word> = Vec::new();
        let mut before: Option<Glyph> = None;
        let mut blank = true;
        for glyph in line {
            if glyph.char == ' ' {
                blank = true;
                continue;
            }
            if let Some(last) = before {
                // Some programs make bold text by drawing it twice.
                if last.char == glyph.char && glyph.x - last.x < 0.12 * glyph.size {
                    continue;
                }
                blank |= glyph.x - last.end > WORD_GAP * glyph.size.max(last.size);
            }
            match words.last_mut() {
                Some(word) if !blank => {
                    word.end += glyph.char.len_utf8() as u32;
                    word.x1 = word.x1.max(glyph.end);
                }
                _ => {
                    let start = self.text.len() as u32;
                    let end = start + glyph.char.len_utf8() as u32;
                    words.push(Word { start, end, x0: glyph.x, x1: glyph.end, size: glyph.size, style: glyph.style });
                }
            }
            self.text.push(glyph.char);
            before = Some(glyph);
            blank = false;
        }
        Row::new(words, y)
    }
}

impl Word {
    /// Bytes of its text.
    pub(super) fn length(&self) -> usize {
        (self.end - self.start) as usize
    }
}

impl Row {
    pub(super) fn new(words: Vec<Word>, y: f32) -> Self {
        let size = main_size(&words);
        Self { words, y, size }
    }

    pub(super) fn x0(&self) -> f32 {
        self.words.first().map_or(0.0, |word| word.x0)
    }

    pub(super) fn x1(&self) -> f32 {
        self.words.iter().map(|word| word.x1).fold(0.0, f32::max)
    }
}

/// The font size over most of the width of some words.
fn main_size(words: &[Word]) -> f32 {
    const MAX_SIZES: usize = 16;
    let mut sizes: Vec<(f32, f32)> = Vec::new();
    for word in words {
        let width = word.x1 - word.x0;
        if let Some((_, sum)) = sizes.iter_mut().find(|(size, _)| (size - word.size).abs() < 0.25) {
            *sum += width;
        } else if sizes.len() < MAX_SIZES {
            sizes.push((word.size, width));
        }
    }
    sizes.into_iter().max_by(|a, b| a.1.total_cmp(&b.1)).map_or(10.0, |(size, _)| size)
}

/// Whether a word is written small and high after a number or a unit.
fn is_exponent(base: &str, before: &Word, text: &str, word: &Word) -> bool {
    word.size < 0.85 * before.size
        && word.x0 - before.x1 < 0.15 * before.size
        && text.starts_with(|char: char| char.is_ascii_digit() || matches!(char, '-' | '−' | '+'))
        && (base.ends_with(|char: char| char.is_ascii_digit()) || base.chars().count() <= 3)
}

/// Characters of (nearly) the same baseline, from the top, each line sorted by place.
pub(super) fn baselines(mut glyphs: Vec<Glyph>) -> Vec<Vec<Glyph>> {
    glyphs.retain(|glyph| glyph.size > 0.5 && glyph.size < 2000.0);
    glyphs.sort_by(|a, b| a.y.total_cmp(&b.y));
    let mut lines: Vec<Vec<Glyph>> = Vec::new();
    for glyph in glyphs {
        match lines.last_mut() {
            Some(line) if line.last().is_some_and(|last| glyph.y - last.y <= 0.06 * glyph.size.min(last.size) + 0.2) => {
                line.push(glyph);
            }
            _ => lines.push(vec![glyph]),
        }
    }
    for line in &mut lines {
        line.sort_by(|a, b| a.x.total_cmp(&b.x));
    }
    lines
}

/// Joins rows that look like one: raised and lowered words with their line, and neighbours whose baselines differ a little.
fn merge(rows: Vec<Row>) -> Vec<Row> {
    let mut merged: Vec<Row> = Vec::with_capacity(rows.len());
    for row in rows {
        let Some(above) = merged.last_mut().filter(|above| above.words.len() + row.words.len() <= MAX_MERGED) else {
            merged.push(row);
            continue;
        };
        let apart = row.y - above.y;
        let (upper, lower) = (above.size, row.size);
        let raised = upper < 0.85 * lower && apart < 0.6 * lower && touches(above, &row, lower);
        let lowered = lower < 0.85 * upper && apart < 0.45 * upper && touches(&row, above, upper);
        let level = apart < 0.3 * upper.min(lower) && !overlaps(above, &row);
        if raised || lowered || level {
            let length = |row: &Row| row.words.iter().map(Word::length).sum::<usize>();
            let y = if raised || (level && length(above) < length(&row)) { row.y } else { above.y };
            let mut words = std::mem::take(&mut above.words);
            words.extend(row.words);
            words.sort_by(|a, b| a.x0.total_cmp(&b.x0));
            *above = Row::new(words, y);
        } else {
            merged.push(row);
        }
    }
    merged
}

/// Whether every word of `small` stands right beside a word of `large` without covering one.
fn touches(small: &Row, large: &Row, size: f32) -> bool {
    small.words.iter().all(|a| large.words.iter().any(|b| (a.x0 - b.x1).abs() < 0.6 * size || (b.x0 - a.x1).abs() < 0.6 * size))
        && !overlaps(small, large)
}

fn overlaps(a: &Row, b: &Row) -> bool {
    const SLACK: f32 = 1.0;
    let mut right = b.words.iter().peekable();
    a.words.iter().any(|word| {
        while right.next_if(|other| other.x1 <= word.x0 + SLACK).is_some() {}
        right.peek().is_some_and(|other| other.x0 < word.x1 - SLACK)
    })
}
