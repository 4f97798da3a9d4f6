//! The drawing of a page: characters with their places, and straight lines.
//!
//! A content stream is a small program (ISO 32000-2, chapters 8 and 9). Only operators that move, show text or draw possible
//! rules of tables are followed. Colours, clipping and images do not matter for text.

use std::{
    borrow::Cow,
    collections::HashMap,
    f64::consts::{FRAC_PI_2, PI, TAU},
    io::Read,
    rc::Rc,
};

use hayro_cmap::BfString;
use hayro_syntax::{
    Filter,
    content::{TypedIter, ops::TypedInstruction as Op},
    object::{Array, Dict, Name, Number, Object, Rect, Stream, String as Text},
    page::{Page, Resources},
};
use unicode_normalization::UnicodeNormalization;

use super::{
    annotations::{self, Annotation},
    bidi::is_leftward,
    fonts::{Face, Fonts, said},
    turned::{self, Frame, Part},
};

/// Deepest nesting of form objects, and of saved graphics states.
const MAX_FORMS: usize = 12;
const MAX_STATES: usize = 256;

/// Most characters and rules kept from one page, and most operators followed.
const MAX_GLYPHS: usize = 200_000;
const MAX_RULES: usize = 20_000;
const MAX_OPERATORS: usize = 4_000_000;

/// Most bytes of a page's program, over all its streams.
const MAX_PROGRAM_BYTES: usize = 64 << 20;

/// The look of a font.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Style {
    pub bold: bool,
    pub italic: bool,
    /// The font is monospaced.
    pub mono: bool,
}

/// A character on the page. Coordinates are points; y grows downwards, x along the text.
#[derive(Debug, Clone, Copy)]
pub(super) struct Glyph {
    pub char: char,
    /// Start of the character, and start of the next one.
    pub x: f32,
    pub end: f32,
    /// The baseline.
    pub y: f32,
    /// Font size on the page.
    pub size: f32,
    pub style: Style,
}

/// A straight line, horizontal or vertical.
#[derive(Debug, Clone, Copy)]
pub(super) struct Rule {
    pub x0: f32,
    pub y0: f32,
    pub x1: f32,
    pub y1: f32,
}

/// Text that is turned against the page, in its own direction, with the rules of the page.
#[derive(Debug)]
pub(super) struct Aside {
    pub glyphs: Vec<Glyph>,
    pub rules: Vec<Rule>,
}

/// The drawing of one page.
#[derive(Debug, Default)]
pub(super) struct Canvas {
    pub glyphs: Vec<Glyph>,
    pub rules: Vec<Rule>,
    /// Text in other directions.
    pub aside: Vec<Aside>,
    /// Size of the page in points, turned as the text is read.
    pub width: f32,
    pub height: f32,
    /// Images cover a good part of the page.
    pub pictured: bool,
    /// Characters that the font does not map to Unicode.
    pub unknown: usize,
    /// The page's program, or the fonts of most of its text, cannot be read completely.
    pub damaged: bool,
}

/// An affine map; `a * b` applies `b` first.
#[derive(Debug, Clone, Copy)]
struct Matrix([f64; 6]);

impl Matrix {
    const IDENTITY: Self = Self([1.0, 0.0, 0.0, 1.0, 0.0, 0.0]);

    fn shift(x: f64, y: f64) -> Self {
        Self([1.0, 0.0, 0.0, 1.0, x, y])
    }

    #[allow(clippy::many_single_char_names)] // as the standard names them
    fn apply(&self, x: f64, y: f64) -> (f64, f64) {
        let [a, b, c, d, e, f] = self.0;
        (a * x + c * y + e, b * x + d * y + f)
    }
}

impl std::ops::Mul for Matrix {
    type Output = Self;

    #[allow(clippy::many_single_char_names)]
    fn mul(self, other: Self) -> Self {
        let [a, b, c, d, e, f] = self.0;
        let [g, h, i, j, k, l] = other.0;
        Self([a * g + c * h, b * g + d * h, a * i + c * j, b * i + d * j, a * k + c * l + e, b * k + d * l + f])
    }
}

#[derive(Clone)]
struct State<'a> {
    ctm: Matrix,
    face: Option<Rc<Face<'a>>>,
    size: f64,
    char_space: f64,
    word_space: f64,
    stretch: f64,
    leading: f64,
    rise: f64,
}

impl State<'_> {
    fn new(ctm: Matrix) -> Self {
        Self { ctm, face: None, size: 1.0, char_space: 0.0, word_space: 0.0, stretch: 1.0, leading: 0.0, rise: 0.0 }
    }
}

/// A glyph before the direction of the page is known.
struct Placed {
    glyph: Glyph,
    /// Its direction in quarter turns clockwise.
    turn: u8,
    /// The rest of its direction, in radians.
    slant: f64,
    from: (f64, f64),
    to: (f64, f64),
}

struct Drawing<'f, 'a> {
    fonts: &'f mut Fonts<'a>,
    state: State<'a>,
    saved: Vec<State<'a>>,
    text: Matrix,
    line: Matrix,
    placed: Vec<Placed>,
    /// Ends of the straight pieces of the path, and the rectangles in it.
    pieces: Vec<[(f64, f64); 2]>,
    boxes: Vec<[(f64, f64); 2]>,
    at: (f64, f64),
    begun: (f64, f64),
    rules: Vec<Rule>,
    operators: usize,
    /// Open marked content; true for a running head or foot.
    marked: Vec<bool>,
    page_area: f64,
    /// The area of all images.
    images: f64,
    unknown: usize,
    /// Bytes of text in missing fonts.
    mute: usize,
    /// An object to be drawn is missing.
    lacking: bool,
    damaged: bool,
}

/// Draws a page.
pub(super) fn draw<'a>(page: &Page<'a>, fonts: &mut Fonts<'a>) -> Canvas {
    let (width, height) = page.render_dimensions();
    let ctm = Matrix(page.initial_transform(true).as_coeffs());
    let state = State::new(ctm);
    let mut drawing = Drawing {
        fonts,
        state,
        saved: Vec::new(),
        text: Matrix::IDENTITY,
        line: Matrix::IDENTITY,
        placed: Vec::new(),
        pieces: Vec::new(),
        boxes: Vec::new(),
        at: (0.0, 0.0),
        begun: (0.0, 0.0),
        rules: Vec::new(),
        operators: 0,
        marked: Vec::new(),
        page_area: f64::from(width * height),
        images: 0.0,
        unknown: 0,
        mute: 0,
        lacking: false,
        damaged: false,
    };
    let (program, whole) = program(page);
    drawing.damaged = !whole;
    drawing.run(&program, page.resources(), 0);
    drawing.saved.clear();
    drawing.annotate(page);
    drawing.finish(width, height)
}

/// The page's content streams as one, and whether they are undamaged. (hayro's own accessor keeps the decoded bytes as long as
/// the document.)
fn program(page: &Page) -> (Vec<u8>, bool) {
    let (mut bytes, mut whole) = (Vec::new(), true);
    let mut add = |stream: &Stream| {
        let (decoded, sound) = decoded(stream);
        let decoded = decoded.filter(|decoded| bytes.len() + decoded.len() <= MAX_PROGRAM_BYTES);
        whole &= sound && decoded.is_some();
        if let Some(decoded) = decoded {
            bytes.extend_from_slice(&decoded);
            bytes.push(b'\n');
        }
    };
    let there = if let Some(stream) = page.raw().get::<Stream>("Contents") {
        add(&stream);
        true
    } else if let Some(streams) = page.raw().get::<Array>("Contents") {
        let found: Vec<Stream> = streams.iter::<Stream>().collect();
        found.iter().for_each(add);
        found.len() == streams.raw_iter().count()
    } else {
        // A page may be empty, but the streams it names should exist.
        !page.raw().contains_key("Contents")
    };
    (bytes, whole && there)
}

/// The readable part of a stream, and whether it is complete. hayro returns the part before the damage without an error.
fn decoded<'a>(stream: &Stream<'a>) -> (Option<Cow<'a, [u8]>>, bool) {
    let plain = !["DecodeParms", "DP"].iter().any(|key| stream.dict().contains_key(key));
    if !plain || stream.filters().as_slice() != [Filter::FlateDecode] {
        let decoded = stream.decoded_data().ok();
        let sound = decoded.is_some();
        return (decoded, sound);
    }
    match inflate(&stream.raw_data()) {
        Some(decoded) => (Some(decoded.into()), true),
        None => (stream.decoded_data().ok(), false),
    }
}

/// Unpacks an undamaged stream. The checksum at the end may be missing: some writers leave it out.
fn inflate(data: &[u8]) -> Option<Vec<u8>> {
    const HEADER: usize = 2;
    const CHECKSUM: u64 = 4;
    let mut plain = Vec::new();
    if flate2::read::ZlibDecoder::new(data).read_to_end(&mut plain).is_ok() {
        return Some(plain);
    }
    plain.clear();
    let packed = data.get(HEADER..)?;
    let mut raw = flate2::read::DeflateDecoder::new(packed);
    raw.read_to_end(&mut plain).ok()?;
    (raw.total_in() + CHECKSUM > packed.len() as u64).then_some(plain)
}

impl<'a> Drawing<'_, 'a> {
    fn run(&mut self, program: &[u8], resources: &Resources<'a>, depth: usize) {
        let floor = self.saved.len();
        let mut operators = TypedIter::new(program);
        while let Some(operator) = operators.next() {
            self.operators += 1;
            if self.operators > MAX_OPERATORS || self.placed.len() > MAX_GLYPHS {
                break;
            }
            self.step(&operator, resources, depth, floor);
        }
        self.saved.truncate(floor);
    }

    fn step(&mut self, operator: &Op<'_, '_>, resources: &Resources<'a>, depth: usize, floor: usize) {
        match operator {
            Op::SaveState(_) => {
                if self.saved.len() < MAX_STATES {
                    self.saved.push(self.state.clone());
                }
            }
            Op::RestoreState(_) => {
                if self.saved.len() > floor
                    && let Some(state) = self.saved.pop()
                {
                    self.state = state;
                }
            }
            Op::Transform(m) => self.state.ctm = self.state.ctm * matrix([m.0, m.1, m.2, m.3, m.4, m.5]),
            Op::XObject(name) => self.object(name.0, resources, depth),
            Op::InlineImage(_) => self.image(),
            Op::BeginMarkedContent(_) => self.marked.push(false),
            Op::BeginMarkedContentWithProperties(mark) => self.marked.push(is_pagination(mark.0, mark.1, resources)),
            Op::EndMarkedContent(_) => {
                self.marked.pop();
            }
            _ => {
                self.text_step(operator, resources);
                self.path_step(operator);
            }
        }
    }

    fn text_step(&mut self, operator: &Op<'_, '_>, resources: &Resources<'a>) {
        match operator {
            Op::BeginText(_) => (self.text, self.line) = (Matrix::IDENTITY, Matrix::IDENTITY),
            Op::CharacterSpacing(n) => self.state.char_space = n.0.as_f64(),
            Op::WordSpacing(n) => self.state.word_space = n.0.as_f64(),
            Op::HorizontalScaling(n) => self.state.stretch = n.0.as_f64() / 100.0,
            Op::TextLeading(n) => self.state.leading = n.0.as_f64(),
            Op::TextRise(n) => self.state.rise = n.0.as_f64(),
            Op::TextFont(font) => {
                let dict = resources.fonts.get::<Dict<'a>>(font.0.as_ref());
                let named = resources.fonts.get_ref(font.0.as_ref()).is_some();
                self.state.face = dict.and_then(|dict| self.fonts.face(&dict, named));
                self.state.size = font.1.as_f64();
            }
            Op::NextLine(n) => self.next_line(n.0.as_f64(), n.1.as_f64()),
            Op::NextLineAndSetLeading(n) => {
                self.state.leading = -n.1.as_f64();
                self.next_line(n.0.as_f64(), n.1.as_f64());
            }
            Op::SetTextMatrix(m) => {
                self.line = matrix([m.0, m.1, m.2, m.3, m.4, m.5]);
                self.text = self.line;
            }
            Op::NextLineUsingLeading(_) => self.next_line(0.0, -self.state.leading),
            Op::ShowText(text) => self.show(text.0),
            Op::NextLineAndShowText(text) => {
                self.next_line(0.0, -self.state.leading);
                self.show(text.0);
            }
            Op::ShowTextWithParameters(text) => {
                self.state.word_space = text.0.as_f64();
                self.state.char_space = text.1.as_f64();
                self.next_line(0.0, -self.state.leading);
                self.show(text.2);
            }
            Op::ShowTexts(parts) => {
                for part in parts.0.iter::<Object>() {
                    match part {
                        Object::String(text) => self.show(&text),
                        Object::Number(back) => {
                            let x = -back.as_f64() / 1000.0 * self.state.size * self.state.stretch;
                            self.text = self.text * Matrix::shift(x, 0.0);
                        }
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }

    fn next_line(&mut self, x: f64, y: f64) {
        self.line = self.line * Matrix::shift(x, y);
        self.text = self.line;
    }

    fn show(&mut self, text: &Text) {
        let bytes = text.as_bytes();
        let Some(face) = self.state.face.clone() else {
            self.mute += bytes.len();
            return;
        };
        let hidden = self.marked.iter().any(|&running| running);
        let mut at = 0;
        while at < bytes.len() && self.placed.len() <= MAX_GLYPHS {
            let (code, length) = face.font.read_code(bytes, at);
            at += length.max(1);
            let advance = face.font.code_advance(code);
            let space = self.state.char_space + if code == 32 && length == 1 { self.state.word_space } else { 0.0 };
            let scaled = |units: f64| units / 1000.0 * self.state.size;
            let step = if face.font.is_horizontal() {
                ((scaled(advance.x) + space) * self.state.stretch, 0.0)
            } else {
                (0.0, scaled(advance.y) + space)
            };
            if !hidden {
                // The spacing after a letter is not part of its width: wide spacing separates words.
                let end = if face.font.is_horizontal() {
                    (scaled(advance.x) * self.state.stretch, 0.0)
                } else {
                    (0.0, scaled(advance.y))
                };
                self.place(&face, code, end);
            }
            self.text = self.text * Matrix::shift(step.0, step.1);
        }
    }

    /// Places the characters of a code, from the origin of the text to `end`. Text downwards counts as turned.
    fn place(&mut self, face: &Face<'a>, code: u32, end: (f64, f64)) {
        let map = self.state.ctm * self.text * Matrix::shift(0.0, self.state.rise);
        let from = map.apply(0.0, 0.0);
        let to = map.apply(end.0, end.1);
        let [a, b, c, d, ..] = map.0;
        let size = letter_size(c.hypot(d) * self.state.size.abs(), face.scale);
        // A negative size turns the text, and a negative stretch turns it back.
        let sign = if self.state.size < 0.0 && self.state.stretch > 0.0 { -1.0 } else { 1.0 };
        let along = if face.font.is_horizontal() { (a * sign, b * sign) } else { (-c * sign, -d * sign) };
        let Some(turn) = quarter_turns(along.0, along.1) else { return };
        let slant = slant(along.0, along.1, turn);
        if !(from.0.is_finite() && from.1.is_finite() && to.0.is_finite() && to.1.is_finite() && size.is_finite()) {
            return;
        }
        let mut chars = ['\0'; 8];
        let count = self.unicode(face, code, &mut chars);
        // A glyph of several letters has their order of reading.
        if chars[..count].iter().any(|&char| is_leftward(char)) {
            chars[..count].reverse();
        }
        for (index, &char) in chars[..count].iter().enumerate() {
            let part = |n: usize| {
                let share = n as f64 / count as f64;
                (from.0 + (to.0 - from.0) * share, from.1 + (to.1 - from.1) * share)
            };
            let glyph = Glyph { char, x: 0.0, end: 0.0, y: 0.0, size: size as f32, style: face.style };
            self.placed.push(Placed { glyph, turn, slant, from: part(index), to: part(index + 1) });
        }
    }

    /// Writes the characters of a code into `chars` and returns their number.
    fn unicode(&mut self, face: &Face<'a>, code: u32, chars: &mut [char; 8]) -> usize {
        let said = said(&face.font, code);
        let said = said.or_else(|| face.cids.as_ref().and_then(|map| map.lookup_bf_string(code)));
        let own = || face.codes_are_unicode.then(|| char::from_u32(code)).flatten().map(BfString::Char);
        let said = said.or_else(own);
        let mut count = 0;
        let mut push = |char: char| {
            if count < chars.len() {
                chars[count] = char;
                count += 1;
            }
        };
        match said {
            Some(BfString::Char(char)) => expand(char, &mut push),
            Some(BfString::String(text)) => text.chars().for_each(|char| expand(char, &mut push)),
            // Bitmap fonts number their letters as ASCII does.
            None if (0x21..0x7F).contains(&code) => push(char::from(code as u8)),
            None if code == 0x20 => push(' '),
            None => {
                self.unknown += 1;
                push(char::REPLACEMENT_CHARACTER);
            }
        }
        count
    }

    fn object(&mut self, name: &Name, resources: &Resources<'a>, depth: usize) {
        let Some(stream) = resources.x_objects.get::<Stream<'a>>(name.as_ref()) else {
            self.lacking = true;
            return;
        };
        match stream.dict().get::<Name>("Subtype").as_ref().map(Name::as_str) {
            Some("Image") => self.image(),
            Some("Form") if depth < MAX_FORMS => self.form(&stream, resources, depth),
            _ => {}
        }
    }

    /// An image is a unit square, and a scan may be cut into many.
    fn image(&mut self) {
        let [a, b, c, d, ..] = self.state.ctm.0;
        self.images += (a * d - b * c).abs();
    }

    fn form(&mut self, stream: &Stream<'a>, resources: &Resources<'a>, depth: usize) {
        let (program, whole) = decoded(stream);
        self.damaged |= !whole;
        let Some(program) = program else { return };
        let own = stream.dict().get::<Dict<'a>>("Resources").map(Resources::new);
        let before = (self.state.clone(), self.text, self.line);
        if let Some(map) = stream.dict().get::<[f64; 6]>("Matrix") {
            self.state.ctm = self.state.ctm * Matrix(map);
        }
        let marks = self.marked.len();
        self.run(&program, own.as_ref().unwrap_or(resources), depth + 1);
        self.marked.truncate(marks);
        (self.state, self.text, self.line) = before;
    }

    /// Draws what lies upon the page: by its own drawing, or else by its value.
    fn annotate(&mut self, page: &Page<'a>) {
        let annotations = annotations::annotations(page);
        if annotations.is_empty() {
            return;
        }
        let fallback = annotations::form_resources(page).map(Resources::new);
        // Without a text beside it, a field has no other label than its name.
        let bare = self.placed.is_empty();
        self.marked.clear();
        for Annotation { rect, appearance, value, name } in annotations {
            self.state = State::new(Matrix(page.initial_transform(true).as_coeffs()));
            let begun = self.placed.len();
            if let (true, Some(name), Some(value)) = (bare, &name, &value) {
                self.write(rect, &format!("{name}: {value}"));
                continue;
            }
            if let Some(stream) = appearance {
                self.state.ctm = self.state.ctm * fitted(&stream, rect);
                self.form(&stream, fallback.as_ref().unwrap_or(page.resources()), 0);
            }
            if let (true, Some(value)) = (begun == self.placed.len(), &value) {
                self.state = State::new(Matrix(page.initial_transform(true).as_coeffs()));
                self.write(rect, value);
            }
        }
    }

    /// Writes text into a box, in lines as long as fit.
    fn write(&mut self, rect: Rect, text: &str) {
        const LARGEST: f64 = 10.0;
        const WIDTH: f64 = 0.5;
        let (width, height) = (rect.x1 - rect.x0, rect.y1 - rect.y0);
        let size = (height * 0.8).clamp(4.0, LARGEST);
        let room = ((width / (WIDTH * size)) as usize).max(8);
        let single = height < 2.2 * size;
        let mut lines: Vec<String> = Vec::new();
        for line in text.lines() {
            let mut open = String::new();
            for word in line.split_whitespace() {
                if !single && !open.is_empty() && open.chars().count() + word.chars().count() >= room {
                    lines.push(std::mem::take(&mut open));
                }
                if !open.is_empty() {
                    open.push(' ');
                }
                open.push_str(word);
            }
            lines.push(open);
        }
        let first = if single { rect.y0 + (height - 0.7 * size) / 2.0 } else { rect.y1 - 1.1 * size };
        for (row, line) in lines.iter().enumerate() {
            let step = (WIDTH * size).min(width / line.chars().count().max(1) as f64);
            // Letters that go leftward have their places from the right, as a program would draw them.
            let count = line.chars().count();
            let leftward = line.chars().any(is_leftward);
            for (index, char) in line.chars().enumerate() {
                let index = if leftward { count - 1 - index } else { index };
                let at =
                    |index: usize| self.state.ctm.apply(rect.x0 + 2.0 + step * index as f64, first - 1.2 * size * row as f64);
                let (from, to) = (at(index), at(index + 1));
                let Some(turn) = quarter_turns(to.0 - from.0, to.1 - from.1) else { return };
                if self.placed.len() <= MAX_GLYPHS {
                    let glyph = Glyph { char, x: 0.0, end: 0.0, y: 0.0, size: size as f32, style: Style::default() };
                    self.placed.push(Placed { glyph, turn, slant: 0.0, from, to });
                }
            }
        }
    }

    fn path_step(&mut self, operator: &Op<'_, '_>) {
        let map = self.state.ctm;
        let point = |x: &Number, y: &Number| map.apply(x.as_f64(), y.as_f64());
        match operator {
            Op::MoveTo(p) => {
                self.at = point(&p.0, &p.1);
                self.begun = self.at;
            }
            Op::LineTo(p) => {
                let to = point(&p.0, &p.1);
                self.piece(to);
            }
            Op::ClosePath(_) => self.piece(self.begun),
            Op::CubicTo(p) => self.at = point(&p.4, &p.5),
            Op::RectPath(r) => {
                let (x, y) = (r.0.as_f64(), r.1.as_f64());
                let far = map.apply(x + r.2.as_f64(), y + r.3.as_f64());
                if self.boxes.len() < MAX_RULES {
                    self.boxes.push([map.apply(x, y), far]);
                }
            }
            Op::StrokePath(_) | Op::FillAndStrokeNonZero(_) | Op::FillAndStrokeEvenOdd(_) => self.paint(true),
            Op::CloseAndStrokePath(_) | Op::CloseFillAndStrokeNonZero(_) | Op::CloseFillAndStrokeEvenOdd(_) => {
                self.piece(self.begun);
                self.paint(true);
            }
            Op::FillPathNonZero(_) | Op::FillPathNonZeroCompatibility(_) | Op::FillPathEvenOdd(_) => self.paint(false),
            Op::EndPath(_) => {
                self.pieces.clear();
                self.boxes.clear();
            }
            _ => {}
        }
    }

    fn piece(&mut self, to: (f64, f64)) {
        if self.pieces.len() < MAX_RULES {
            self.pieces.push([self.at, to]);
        }
        self.at = to;
    }

    /// Turns a slanted page so that its text is level: a scan is seldom straight.
    fn straighten(&mut self, turn: u8, x: f64, y: f64) {
        const STEP: f64 = 0.005;
        const LEAST: f64 = 0.002;
        let mut angles: HashMap<i64, (usize, f64)> = HashMap::new();
        let mut all = 0;
        for placed in self.placed.iter().filter(|placed| placed.turn == turn) {
            let (count, sum) = angles.entry((placed.slant / STEP).round() as i64).or_default();
            *count += 1;
            *sum += placed.slant;
            all += 1;
        }
        let Some((count, sum)) = angles.into_values().max_by_key(|&(count, _)| count) else { return };
        let angle = sum / count as f64;
        if angle.abs() < LEAST || count * 2 < all {
            return;
        }
        let (sin, cos) = (-angle).sin_cos();
        let back = Matrix::shift(x, y) * Matrix([cos, sin, -sin, cos, 0.0, 0.0]) * Matrix::shift(-x, -y);
        for placed in &mut self.placed {
            placed.from = back.apply(placed.from.0, placed.from.1);
            placed.to = back.apply(placed.to.0, placed.to.1);
        }
    }

    /// Keeps possible rules: a stroked straight line, the side of a stroked box, a thin filled box.
    fn paint(&mut self, stroked: bool) {
        const THIN: f64 = 2.5;
        let pieces = std::mem::take(&mut self.pieces);
        if stroked {
            for &[from, to] in &pieces {
                self.rule(from, to);
            }
        } else if (4..=5).contains(&pieces.len()) {
            // A thin box drawn line by line.
            let corners = pieces.iter().flatten();
            let low = corners.clone().fold((f64::MAX, f64::MAX), |low, p| (low.0.min(p.0), low.1.min(p.1)));
            let high = corners.fold((f64::MIN, f64::MIN), |high, p| (high.0.max(p.0), high.1.max(p.1)));
            self.boxes.push([low, high]);
        }
        for [(x0, y0), (x1, y1)] in std::mem::take(&mut self.boxes) {
            if (x1 - x0).abs() <= THIN {
                self.rule((f64::midpoint(x0, x1), y0), (f64::midpoint(x0, x1), y1));
            } else if (y1 - y0).abs() <= THIN {
                self.rule((x0, f64::midpoint(y0, y1)), (x1, f64::midpoint(y0, y1)));
            } else if stroked {
                self.rule((x0, y0), (x1, y0));
                self.rule((x0, y1), (x1, y1));
                self.rule((x0, y0), (x0, y1));
                self.rule((x1, y0), (x1, y1));
            }
        }
    }

    fn rule(&mut self, from: (f64, f64), to: (f64, f64)) {
        const SHORTEST: f64 = 6.0;
        let (dx, dy) = ((to.0 - from.0).abs(), (to.1 - from.1).abs());
        if self.rules.len() < MAX_RULES && dx.min(dy) < 1.0 && dx.max(dy) >= SHORTEST && (dx + dy).is_finite() {
            self.rules.push(Rule {
                x0: from.0.min(to.0) as f32,
                y0: from.1.min(to.1) as f32,
                x1: from.0.max(to.0) as f32,
                y1: from.1.max(to.1) as f32,
            });
        }
    }

    /// Turns the page so that most of its text is horizontal.
    fn finish(mut self, width: f32, height: f32) -> Canvas {
        let mut counts = [0_usize; 4];
        self.placed.iter().for_each(|placed| counts[usize::from(placed.turn)] += 1);
        let turn = (0..4_u8).max_by_key(|&turn| (counts[usize::from(turn)], 4 - turn)).unwrap_or(0);
        self.straighten(turn, f64::from(width) / 2.0, f64::from(height) / 2.0);
        let frame = Frame { turn, width, height };
        let at = |(x, y): (f64, f64)| frame.level((x as f32, y as f32));
        let (width, height) = if turn % 2 == 0 { (width, height) } else { (height, width) };
        let level = |from: (f32, f32), to: (f32, f32), glyph: Glyph| Glyph {
            x: from.0.min(to.0),
            end: to.0.max(from.0),
            y: from.1,
            ..glyph
        };
        let of = |turn: u8| self.placed.iter().filter(move |placed| placed.turn == turn);
        let mut glyphs: Vec<Glyph> = of(turn).map(|placed| level(at(placed.from), at(placed.to), placed.glyph)).collect();
        let turned_rule = |rule: &Rule, at: &dyn Fn((f32, f32)) -> (f32, f32)| {
            let (a, b) = (at((rule.x0, rule.y0)), at((rule.x1, rule.y1)));
            Rule { x0: a.0.min(b.0), y0: a.1.min(b.1), x1: a.0.max(b.0), y1: a.1.max(b.1) }
        };
        let mut rules: Vec<Rule> = self.rules.iter().map(|rule| turned_rule(rule, &|place| frame.level(place))).collect();
        let mut aside = Vec::new();
        for other in 1..4 {
            let own = Frame { turn: other, width, height };
            let own_at = |place| own.level(at(place));
            let turned = of((turn + other) % 4).map(|placed| level(own_at(placed.from), own_at(placed.to), placed.glyph));
            match turned::part(turned.collect(), own, &glyphs) {
                Part::Heads(heads) => {
                    rules.extend(turned::rule_below(&heads, &rules));
                    glyphs.extend(heads);
                }
                Part::Block(block) => {
                    aside.push(Aside {
                        glyphs: block,
                        rules: rules.iter().map(|rule| turned_rule(rule, &|place| own.level(place))).collect(),
                    });
                }
                Part::Nothing => {}
            }
        }
        let damaged = self.damaged || self.mute > self.placed.len() || self.lacking && self.placed.is_empty();
        let (pictured, unknown) = (self.images > 0.3 * self.page_area, self.unknown);
        Canvas { glyphs, rules, aside, width, height, pictured, unknown, damaged }
    }
}

/// The map of an appearance into the place of its annotation (ISO 32000-2, 12.5.5).
fn fitted(stream: &Stream, rect: Rect) -> Matrix {
    let own = stream.dict().get::<[f64; 6]>("Matrix").map_or(Matrix::IDENTITY, Matrix);
    let Some(bbox) = stream.dict().get::<Rect>("BBox") else { return Matrix::shift(rect.x0, rect.y0) };
    let corners = [(bbox.x0, bbox.y0), (bbox.x0, bbox.y1), (bbox.x1, bbox.y0), (bbox.x1, bbox.y1)].map(|(x, y)| own.apply(x, y));
    let low = corners.iter().fold((f64::MAX, f64::MAX), |low, at| (low.0.min(at.0), low.1.min(at.1)));
    let high = corners.iter().fold((f64::MIN, f64::MIN), |high, at| (high.0.max(at.0), high.1.max(at.1)));
    let scale = |to: f64, from: f64| if from.abs() > 1e-6 { to / from } else { 1.0 };
    let (x, y) = (scale(rect.x1 - rect.x0, high.0 - low.0), scale(rect.y1 - rect.y0, high.1 - low.1));
    Matrix([x, 0.0, 0.0, y, rect.x0 - x * low.0, rect.y0 - y * low.1])
}

/// The size of text from the size of its font. A box far from an em is believed only if it makes tiny text readable.
fn letter_size(size: f64, scale: f32) -> f64 {
    let scaled = size * f64::from(scale);
    if (0.05..20.0).contains(&scale) || size < 1.0 && (1.0..200.0).contains(&scaled) { scaled } else { size }
}

/// The angle of a direction against quarter turns clockwise.
fn slant(x: f64, y: f64, turn: u8) -> f64 {
    let angle = y.atan2(x) - f64::from(turn) * FRAC_PI_2;
    (angle + PI).rem_euclid(TAU) - PI
}

fn matrix(numbers: [Number; 6]) -> Matrix {
    Matrix(numbers.map(|number| number.as_f64()))
}

/// Quarter turns clockwise, seen on the page, of a direction; `None` for a slanted one.
fn quarter_turns(x: f64, y: f64) -> Option<u8> {
    const STRAIGHT: f64 = 0.2;
    if y.abs() <= STRAIGHT * x.abs() {
        Some(if x >= 0.0 { 0 } else { 2 })
    } else if x.abs() <= STRAIGHT * y.abs() {
        Some(if y >= 0.0 { 1 } else { 3 })
    } else {
        None
    }
}

/// Running heads and feet are marked as such in tagged documents (ISO 32000-2, 14.8.2.2).
fn is_pagination(tag: &Name, properties: &Object, resources: &Resources) -> bool {
    if tag.as_str() != "Artifact" {
        return false;
    }
    let kind = match properties {
        Object::Dict(dict) => dict.get::<Name>("Type"),
        Object::Name(name) => resources.properties.get::<Dict>(name.as_ref()).and_then(|dict| dict.get::<Name>("Type")),
        _ => None,
    };
    kind.is_some_and(|kind| kind.as_str() == "Pagination")
}

/// Ligatures become letters, blanks of all widths become blanks. Invisible characters are dropped.
fn expand(char: char, push: &mut impl FnMut(char)) {
    let letters = match char {
        '\u{FB00}' => "ff",
        '\u{FB01}' => "fi",
        '\u{FB02}' => "fl",
        '\u{FB03}' => "ffi",
        '\u{FB04}' => "ffl",
        '\u{FB05}' | '\u{FB06}' => "st",
        '\u{00A0}' | '\u{2000}'..='\u{200A}' | '\u{202F}' | '\u{205F}' | '\u{3000}' | '\t' => " ",
        '\u{2010}' | '\u{2011}' => "-",
        '\u{200B}'..='\u{200F}' | '\u{202A}'..='\u{202E}' | '\u{2060}' | '\u{FEFF}' => "",
        // Shapes of Arabic and Hebrew letters by their place in the word.
        '\u{FB1D}'..='\u{FDFF}' | '\u{FE70}'..='\u{FEFC}' => return std::iter::once(char).nfkc().for_each(push),
        char if char.is_control() => "",
        char => return push(char),
    };
    letters.chars().for_each(push);
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::inflate;

    #[test]
    fn only_what_is_whole_is_unpacked() {
        let words = b"BT /F 10 Tf (The pump moves water from the tank to the coil and back again.) Tj ET\n".repeat(20);
        let mut packed = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::default());
        packed.write_all(&words).expect("memory");
        let packed = packed.finish().expect("memory");
        assert_eq!(inflate(&packed).as_deref(), Some(&words[..]));
        assert_eq!(inflate(&packed[..packed.len() - 4]).as_deref(), Some(&words[..]), "without its checksum");
        assert_eq!(inflate(&packed[..packed.len() / 2]), None);
        for at in 2..packed.len() {
            let mut damaged = packed.clone();
            damaged[at] ^= 0x5A;
            assert_eq!(inflate(&damaged), None, "{at}");
        }
    }
}
