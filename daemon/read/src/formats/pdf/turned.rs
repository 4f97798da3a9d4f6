//! Text that is turned against the text of its page: the upright heads of a table, or a table across the page.
//!
//! A single line (a stamp in the margin, the label of an axis) is left out.

use super::{
    content::{Glyph, Rule},
    rows::baselines,
};

/// Gap between words, and between parts of a line that are no one sentence, in ems.
const WORD_GAP: f32 = 0.15;
const PART_GAP: f32 = 1.5;

/// Most lines of one label, and their largest distance in ems.
const MAX_LINES: usize = 3;
const LEADING: f32 = 1.6;

/// Farthest text below a head, in ems.
const BELOW: f32 = 4.0;

/// Fewest lines and words of a block.
const BLOCK_LINES: usize = 3;
const BLOCK_WORDS: usize = 8;

/// The part of turned text on its page.
pub(super) enum Part {
    /// Heads of columns, as a line of the page.
    Heads(Vec<Glyph>),
    /// Text of its own, in its own direction.
    Block(Vec<Glyph>),
    Nothing,
}

/// A size of a page, and the quarter turns clockwise of text on it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Frame {
    pub turn: u8,
    pub width: f32,
    pub height: f32,
}

impl Frame {
    /// A place on the page, seen so that the text is level.
    pub(super) fn level(self, (x, y): (f32, f32)) -> (f32, f32) {
        match self.turn {
            0 => (x, y),
            1 => (y, self.width - x),
            2 => (self.width - x, self.height - y),
            _ => (self.height - y, x),
        }
    }

    /// The place on the page of one where the text is level.
    fn back(self, (x, y): (f32, f32)) -> (f32, f32) {
        match self.turn {
            0 => (x, y),
            1 => (self.width - y, x),
            2 => (self.width - x, self.height - y),
            _ => (y, self.height - x),
        }
    }
}

/// An upright label.
struct Label {
    glyphs: Vec<Glyph>,
    lines: usize,
    /// Its middle across the page.
    x: f32,
    /// Its ends.
    top: f32,
    bottom: f32,
    size: f32,
}

/// The part of text in its own direction on a page with this text.
pub(super) fn part(glyphs: Vec<Glyph>, frame: Frame, page: &[Glyph]) -> Part {
    let lines = baselines(glyphs);
    let all: usize = lines.iter().map(Vec::len).sum();
    let heads = if frame.turn == 2 { Vec::new() } else { heads(&lines, frame, page) };
    let of_heads: usize = heads.iter().map(|head| head.glyphs.len()).sum();
    let words: usize = lines.iter().map(|line| line.chunk_by(|a, b| !apart(a, b, WORD_GAP)).count()).sum();
    // Two directions on one page are usual where text can go downwards.
    let ideographs = |glyphs: &mut dyn Iterator<Item = &Glyph>| glyphs.filter(|glyph| glyph.char >= '\u{2E80}').count();
    let asian = ideographs(&mut lines.iter().flatten()) * 2 > all || ideographs(&mut page.iter()) * 2 > page.len();
    if heads.len() >= 2 && of_heads * 2 > all {
        Part::Heads(level(heads))
    } else if lines.len() >= BLOCK_LINES && words >= BLOCK_WORDS || asian && frame.turn != 2 {
        Part::Block(lines.concat())
    } else {
        Part::Nothing
    }
}

fn apart(a: &Glyph, b: &Glyph, ems: f32) -> bool {
    (a.char == ' ') != (b.char == ' ') && ems == WORD_GAP || b.x - a.end > ems * a.size
}

/// The labels that begin or end at one height, each above text of the page.
fn heads(lines: &[Vec<Glyph>], frame: Frame, page: &[Glyph]) -> Vec<Label> {
    let mut labels: Vec<(Label, f32)> = Vec::new();
    for line in lines {
        for part in line.chunk_by(|a, b| !apart(a, b, PART_GAP)) {
            let (first, last) = (part[0], part[part.len() - 1]);
            let ends = [frame.back((first.x, first.y)), frame.back((last.end, last.y))];
            // Letters stand on the right of a baseline that goes down, and on the left of one that goes up.
            let x = ends[0].0 + if frame.turn == 1 { 0.35 } else { -0.35 } * first.size;
            let (top, bottom) = (ends[0].1.min(ends[1].1), ends[0].1.max(ends[1].1));
            let open = labels.last_mut().filter(|(label, y)| {
                first.y - *y < LEADING * first.size
                    && (label.bottom - bottom).abs() < 0.5 * (last.end - first.x).max(6.0 * first.size)
            });
            if let Some((label, y)) = open {
                let blank = Glyph { char: ' ', ..first };
                label.glyphs.push(blank);
                label.glyphs.extend(part);
                label.lines += 1;
                label.x = f32::midpoint(label.x, x);
                (label.top, label.bottom) = (label.top.min(top), label.bottom.max(bottom));
                *y = first.y;
            } else {
                labels.push((Label { glyphs: part.to_vec(), lines: 1, x, top, bottom, size: first.size }, first.y));
            }
        }
    }
    let mut labels: Vec<Label> = labels.into_iter().map(|(label, _)| label).filter(|label| label.lines <= MAX_LINES).collect();
    let common = |of: fn(&Label) -> f32| {
        let mut ends: Vec<f32> = labels.iter().map(of).collect();
        ends.sort_by(f32::total_cmp);
        ends.get(ends.len() / 2).copied().unwrap_or(0.0)
    };
    let (top, bottom) = (common(|label| label.top), common(|label| label.bottom));
    let in_line = |label: &Label| (label.bottom - bottom).abs() < 2.0 * label.size || (label.top - top).abs() < 2.0 * label.size;
    labels.retain(in_line);
    let lowest = labels.iter().map(|label| label.bottom).fold(f32::MIN, f32::max);
    labels.sort_by(|a, b| a.x.total_cmp(&b.x));
    let pitch = labels.windows(2).map(|pair| pair[1].x - pair[0].x).fold(f32::MAX, f32::min);
    let above_text = |label: &Label| {
        let reach = (0.5 * pitch).min(3.0 * label.size);
        let under = |glyph: &Glyph| glyph.y > label.bottom && glyph.y < lowest + BELOW * label.size;
        page.iter().any(|glyph| under(glyph) && glyph.x < label.x + reach && glyph.end > label.x - reach)
    };
    labels.retain(above_text);
    labels
}

/// A rule that parts heads from the rows below, as wide as the next rule of their table.
pub(super) fn rule_below(heads: &[Glyph], rules: &[Rule]) -> Option<Rule> {
    const FAR: f32 = 6.0;
    let Glyph { y, size, .. } = *heads.first()?;
    let (left, right) = heads.iter().fold((f32::MAX, f32::MIN), |(low, high), glyph| (low.min(glyph.x), high.max(glyph.end)));
    let below =
        |rule: &&Rule| rule.y1 - rule.y0 < 1.0 && rule.y0 > y && rule.y0 < y + FAR * size && rule.x0 < right && rule.x1 > left;
    let next = rules.iter().filter(below).min_by(|a, b| a.y0.total_cmp(&b.y0));
    let (x0, x1) = next.map_or((left, right), |rule| (rule.x0, rule.x1));
    let at = y + 0.25 * size;
    next.is_none_or(|rule| rule.y0 > at + size).then_some(Rule { x0, x1, y0: at, y1: at })
}

/// Labels as one line above their columns, each as wide as its column allows.
fn level(labels: Vec<Label>) -> Vec<Glyph> {
    let bottom = labels.iter().map(|label| label.bottom).fold(f32::MIN, f32::max);
    let places: Vec<f32> = labels.iter().map(|label| label.x).collect();
    let mut line = Vec::new();
    for (at, label) in labels.into_iter().enumerate() {
        let near = |other: Option<&f32>| other.map_or(f32::MAX, |other| (other - label.x).abs());
        let pitch = near(at.checked_sub(1).and_then(|at| places.get(at))).min(near(places.get(at + 1)));
        let count = label.glyphs.len() as f32;
        let step = (0.5 * label.size).min((pitch - 1.3 * label.size).max(0.3 * pitch) / count);
        let from = label.x - step * count / 2.0;
        for (index, glyph) in label.glyphs.into_iter().enumerate() {
            let x = from + step * index as f32;
            line.push(Glyph { x, end: x + step, y: bottom, size: label.size, ..glyph });
        }
    }
    line
}
