//! Text from right to left: characters in the order of their places become characters in the order of reading.
//!
//! Sorted from left to right, Arabic and Hebrew stand backwards. The Unicode bidirectional algorithm (UAX 9) turns the order of
//! reading into places; on lines of text it is its own inverse. A page of such text is also laid out from the right: its lines,
//! columns and cells are mirrored as whole pieces, so that all later stages may go from left to right.

use unicode_bidi::{BidiClass, BidiInfo, Level, bidi_class};

use super::content::Glyph;

/// Gap between pieces of a line that are no one sentence, in ems.
const GAP: f32 = 1.2;

/// Fewest words that tell the order of a document.
const MIN_VOTES: usize = 2;

/// The order of characters met so far, by letters that only begin or only end a word.
#[derive(Debug, Default)]
pub(super) struct Order {
    /// Words whose places go from right to left, as they should.
    leftward: usize,
    /// Words that a program without the algorithm has laid from left to right.
    rightward: usize,
}

/// The layout of a page.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Layout {
    /// Nothing is turned.
    Plain,
    /// From the left, with characters that go leftward.
    Mixed,
    /// From the right; the width of the page.
    Mirrored(f32),
}

impl Order {
    /// The layout of a page with these lines, each sorted by place.
    pub(super) fn layout(&mut self, lines: &[Vec<Glyph>], width: f32) -> Layout {
        let strong = |char: char| match bidi_class(char) {
            BidiClass::R | BidiClass::AL => (1, 0),
            BidiClass::L => (0, 1),
            _ => (0, 0),
        };
        let glyphs = || lines.iter().flatten();
        if !glyphs().any(|glyph| is_leftward(glyph.char)) {
            return Layout::Plain;
        }
        for line in lines {
            self.vote(line);
        }
        if self.rightward >= MIN_VOTES && self.rightward > 2 * self.leftward {
            return Layout::Plain;
        }
        let (left, right) = glyphs().map(|glyph| strong(glyph.char)).fold((0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1));
        if left > right { Layout::Mirrored(width) } else { Layout::Mixed }
    }

    fn vote(&mut self, line: &[Glyph]) {
        let apart = |a: &Glyph, b: &Glyph| b.x - a.end > 0.15 * a.size;
        for word in line.chunk_by(|a, b| a.char != ' ' && b.char != ' ' && !apart(a, b)) {
            let letters: Vec<char> = word.iter().map(|glyph| glyph.char).filter(|&char| is_leftward(char)).collect();
            let [first, second, .., before, last] = letters.as_slice() else { continue };
            // Final forms of Hebrew, `ta marbuta` and `alef maqsura` end a word; the article `al` begins it.
            let ends = |char: &char| "ךםןףץةى".contains(*char);
            self.leftward += usize::from(ends(first) || (*before, *last) == ('ل', 'ا'));
            self.rightward += usize::from(ends(last) || (*first, *second) == ('ا', 'ل'));
        }
    }
}

/// Whether a letter is written from right to left.
pub(super) fn is_leftward(char: char) -> bool {
    char >= '\u{590}' && matches!(bidi_class(char), BidiClass::R | BidiClass::AL)
}

/// A line, sorted by place, in the order of reading, with places that go up in this order.
pub(super) fn in_order(line: Vec<Glyph>, layout: Layout) -> Vec<Glyph> {
    let mirrored = match layout {
        Layout::Plain => return line,
        Layout::Mixed => None,
        Layout::Mirrored(width) => Some(width),
    };
    let mut pieces: Vec<Vec<Glyph>> = line.chunk_by(|a, b| b.x - a.end <= GAP * a.size).map(<[Glyph]>::to_vec).collect();
    for piece in &mut pieces {
        let (from, to) = extent(piece);
        if piece.iter().any(|glyph| is_leftward(glyph.char)) {
            turn(piece);
        }
        if let Some(width) = mirrored {
            for glyph in piece.iter_mut() {
                shift(glyph, width - to - from);
            }
        }
    }
    if mirrored.is_some() {
        pieces.reverse();
    }
    pieces.concat()
}

/// Turns the parts of a piece that are written from right to left.
fn turn(piece: &mut [Glyph]) {
    bind_marks(piece);
    let mut text = String::new();
    let mut at = Vec::with_capacity(piece.len());
    for (index, glyph) in piece.iter().enumerate() {
        if index > 0 && glyph.x - piece[index - 1].end > 0.15 * glyph.size {
            text.push(' ');
        }
        at.push(text.len());
        text.push(glyph.char);
    }
    let leftward = piece.iter().filter(|glyph| is_leftward(glyph.char)).count();
    let rightward = piece.iter().filter(|glyph| bidi_class(glyph.char) == BidiClass::L).count();
    let base = if leftward > rightward { Level::rtl() } else { Level::ltr() };
    let info = BidiInfo::new(&text, Some(base));
    let mut levels: Vec<u8> = at.iter().map(|&at| info.levels[at].number()).collect();
    // A mark stands before its letter here, and goes with it.
    for index in (0..piece.len().saturating_sub(1)).rev() {
        if is_mark(piece[index].char) {
            levels[index] = levels[index + 1];
        }
    }
    let highest = levels.iter().copied().max().unwrap_or(0);
    for level in (1..=highest).rev() {
        let mut from = 0;
        while from < piece.len() {
            let count = levels[from..].iter().take_while(|&&of| of >= level).count();
            if count > 0 {
                mirror(&mut piece[from..from + count]);
                levels[from..from + count].reverse();
            }
            from += count.max(1);
        }
    }
    pair_brackets(piece, &levels);
}

/// Puts marks, which are drawn over their letters, right before them.
fn bind_marks(piece: &mut [Glyph]) {
    for index in 1..piece.len() {
        let (before, mark) = (piece[index - 1], piece[index]);
        if is_mark(mark.char) && !is_mark(before.char) && mark.x < before.end {
            piece.swap(index - 1, index);
        }
    }
}

fn is_mark(char: char) -> bool {
    char >= '\u{591}' && bidi_class(char) == BidiClass::NSM
}

/// Reverses characters between the ends of their run.
fn mirror(run: &mut [Glyph]) {
    let (from, to) = extent(run);
    run.reverse();
    for glyph in run {
        (glyph.x, glyph.end) = (from + to - glyph.end, from + to - glyph.x);
    }
}

/// Brackets are characters for some programs and shapes for others: a shape that opens on the page closes in the text.
fn pair_brackets(piece: &mut [Glyph], levels: &[u8]) {
    const PAIRS: [(char, char); 4] = [('(', ')'), ('[', ']'), ('{', '}'), ('«', '»')];
    for (open, close) in PAIRS {
        let turned = |at: &usize| levels[*at] % 2 == 1 && [open, close].contains(&piece[*at].char);
        let places: Vec<usize> = (0..piece.len()).filter(turned).collect();
        if places.first().is_some_and(|&at| piece[at].char == close) {
            for at in places {
                piece[at].char = if piece[at].char == open { close } else { open };
            }
        }
    }
}

fn extent(glyphs: &[Glyph]) -> (f32, f32) {
    glyphs.iter().fold((f32::MAX, f32::MIN), |(low, high), glyph| (low.min(glyph.x), high.max(glyph.end)))
}

fn shift(glyph: &mut Glyph, by: f32) {
    glyph.x += by;
    glyph.end += by;
}
