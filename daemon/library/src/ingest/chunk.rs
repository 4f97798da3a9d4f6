//! From a document's text to chunks: along headings, then blocks, then sentences, measured in the embedder's tokens.
//!
//! A section's blocks become *atoms*, which are kept whole: a paragraph, a list or code block that fits, a table's row.
//! `text-splitter` splits blocks that do not fit, between sentences or lines. Atoms are packed in order until the limit. A
//! chunk is then one slice of the text, after the table's header if the chunk starts inside a table. Last, small neighbouring
//! sections are joined. Their headings stand between them as words without marks.

use std::{cell::RefCell, collections::HashMap, ops::Range};

use text_splitter::{ChunkConfig, ChunkSizer, MarkdownSplitter, TextSplitter};

use read::outline::{self, Block, BlockKind, Section};
use read::{Form, Reading};

use crate::store::Subsection;

/// Most embedder tokens in a chunk, title and heading path included, unless the configuration says otherwise.
pub const DEFAULT_MAX_TOKENS: usize = 176;

/// The smallest limit that leaves room for text beside a heading path.
pub const MIN_MAX_TOKENS: usize = 32;

/// A text counts as at least one token per so many bytes. An encoder reads a kilobyte without blanks as one unknown word, but
/// the reader of the passage has to read all of it.
const MAX_BYTES_PER_TOKEN: usize = 16;

/// Words whose token counts are remembered while one document is chunked.
const MAX_COUNTED_WORDS: usize = 50_000;

/// A part of a document that is found and quoted as one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TextChunk {
    /// Headings from the outermost to the innermost, without the document's title.
    pub heading: Vec<String>,
    /// Page from 1, if the source has pages.
    pub page: Option<u32>,
    /// The text, in Markdown if the document was.
    pub text: String,
    /// Offsets in `text` at which further pages begin, in bytes, ascending. The first entry is the second page.
    pub breaks: Vec<u32>,
    /// Sections that begin inside the chunk.
    pub sections: Vec<Subsection>,
    /// Offset in the [`Reading`]'s text, in bytes.
    pub offset: u64,
    /// Embedder tokens of [`embedded_text`].
    pub tokens: u32,
}

/// The text that is embedded and indexed for a chunk: a line `title > heading > heading`, then the chunk.
pub fn embedded_text(title: &str, heading: &[String], text: &str) -> String {
    prefix(title, heading) + text
}

fn prefix(title: &str, heading: &[String]) -> String {
    let mut line = title.to_owned();
    for part in heading {
        if !line.is_empty() {
            line.push_str(" > ");
        }
        line.push_str(part);
    }
    line.push('\n');
    line
}

/// Splits a document into chunks of at most `max_tokens` tokens (at least [`MIN_MAX_TOKENS`]), counted by `count` over
/// [`embedded_text`]. The limit is exact for tokenizers that part words at white space, as those of the BERT family do.
pub fn chunk<'a>(reading: &'a Reading, max_tokens: usize, count: &'a dyn Fn(&str) -> usize) -> Chunks<'a> {
    let chunker = Chunker { reading, limit: max_tokens.max(MIN_MAX_TOKENS), meter: Meter { count, words: RefCell::default() } };
    let mut sections = match reading.form {
        Form::Markdown => outline::markdown(&reading.text),
        Form::Plain => outline::plain(&reading.text),
    };
    // The title is in front of every chunk already. The first of several headings of its level is no title of the others.
    let mut paths = sections.iter().map(|section| &section.path).filter(|path| !path.is_empty());
    if paths.all(|path| path.first() == Some(&reading.title)) {
        sections.iter_mut().filter(|section| !section.path.is_empty()).for_each(|section| drop(section.path.remove(0)));
    }
    let mut drafts = Vec::new();
    for (index, section) in sections.iter().enumerate() {
        let parent = sections.get(index + 1).is_some_and(|next| next.path.len() > section.path.len());
        chunker.draft(section, parent, &mut drafts);
    }
    let mut drafts = chunker.join_small(drafts);
    drafts.shrink_to_fit();
    Chunks { reading, count, drafts: drafts.into_iter(), pages: Pages::new(reading) }
}

/// The chunks of a document in order. Each chunk is only a place until it is asked for, so a long document is in memory once.
pub struct Chunks<'a> {
    reading: &'a Reading,
    count: &'a dyn Fn(&str) -> usize,
    drafts: std::vec::IntoIter<Draft>,
    pages: Pages<'a>,
}

impl Iterator for Chunks<'_> {
    type Item = TextChunk;

    fn next(&mut self) -> Option<TextChunk> {
        let draft = self.drafts.next()?;
        let whole = &self.reading.text[draft.range.clone()];
        let blank = whole.len() - whole.trim_start_matches(['\n', '\u{0C}']).len();
        let page = self.pages.of(draft.range.start + blank);
        let mut body = Body::default();
        if let Some(header) = &draft.header {
            // The repeated header stands on the page of this chunk's first row.
            body.text = self.reading.text[header.clone()].trim_end().replace('\u{0C}', "");
            body.text.push('\n');
        }
        let mut from = draft.range.start + blank;
        for inner in draft.sections {
            body.push(&self.reading.text[from..inner.range.start.max(from)]);
            from = inner.range.end;
            body.begin(inner);
        }
        body.push(self.reading.text[from..draft.range.end].trim_end());
        let Body { text, breaks, sections } = body.finish();
        let tokens = (self.count)(&embedded_text(&self.reading.title, &draft.path, &text)) as u32;
        Some(TextChunk { heading: draft.path, page, text, breaks, sections, offset: draft.range.start as u64, tokens })
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        self.drafts.size_hint()
    }
}

impl ExactSizeIterator for Chunks<'_> {}

/// A piece of text that is not split further.
#[derive(Debug, Clone)]
struct Atom {
    range: Range<usize>,
    tokens: usize,
    /// The table header to repeat when a chunk starts here, and its tokens.
    header: Option<(Range<usize>, usize)>,
}

/// A chunk before it is written out.
#[derive(Debug)]
struct Draft {
    path: Vec<String>,
    range: Range<usize>,
    header: Option<Range<usize>>,
    /// Tokens of the text, header included, path not.
    tokens: usize,
    /// The heading and its tokens, if the chunk is a whole section.
    whole: Option<(Heading, usize)>,
    /// Headings inside the range, if sections were joined or the heading is all there is.
    sections: Vec<Heading>,
}

/// A heading as it stands in the document.
#[derive(Debug, Clone, Default)]
struct Heading {
    range: Range<usize>,
    words: String,
    /// The headings from the outermost to this one.
    path: Vec<String>,
}

struct Chunker<'a> {
    reading: &'a Reading,
    limit: usize,
    meter: Meter<'a>,
}

impl Chunker<'_> {
    fn text(&self, range: &Range<usize>) -> &str {
        &self.reading.text[range.clone()]
    }

    fn tokens(&self, range: &Range<usize>) -> usize {
        self.meter.size(self.text(range))
    }

    fn prefix_tokens(&self, path: &[String]) -> usize {
        self.meter.size(&prefix(&self.reading.title, path))
    }

    /// Adds the chunks of one section. `parent`: whether sections of a deeper level follow.
    fn draft(&self, section: &Section, parent: bool, drafts: &mut Vec<Draft>) {
        let mut path = section.path.clone();
        // A path that leaves no room for text loses its outermost headings.
        while !path.is_empty() && self.prefix_tokens(&path) > self.limit / 2 {
            path.remove(0);
        }
        let budget = self.limit.saturating_sub(self.prefix_tokens(&path)).max(MIN_MAX_TOKENS / 2);
        let heading = Heading { range: section.heading.clone(), words: section.title.clone(), path: path.clone() };
        if section.blocks.is_empty() {
            // A heading without text can still be found by its words.
            if !parent && !section.title.is_empty() {
                let (range, sections) = (heading.range.clone(), vec![heading.clone()]);
                drafts.push(Draft {
                    path,
                    tokens: self.tokens(&range),
                    range,
                    header: None,
                    whole: Some((heading, 0)),
                    sections,
                });
            }
            return;
        }
        let groups = pack(self.atoms(&section.blocks, budget), budget);
        let whole = (groups.len() == 1).then(|| (heading, self.tokens(&section.heading)));
        drafts.extend(groups.into_iter().filter_map(|group| {
            let (first, last) = (group.first()?, group.last()?);
            Some(Draft {
                path: path.clone(),
                range: first.range.start..last.range.end,
                header: first.header.as_ref().map(|(range, _)| range.clone()),
                tokens: size(&group),
                whole: whole.clone(),
                sections: Vec::new(),
            })
        }));
    }

    fn atoms(&self, blocks: &[Block], budget: usize) -> Vec<Atom> {
        let mut atoms: Vec<Atom> = Vec::new();
        let mut before = Tie::None;
        for block in blocks {
            let first = atoms.len();
            self.push_block(block, budget, &mut atoms);
            let tie = self.tie(block, before);
            if matches!(before, Tie::Next | Tie::Label) || tie == Tie::Previous {
                glue(&mut atoms, first, budget);
            }
            before = tie;
        }
        atoms
    }

    /// The neighbour that a block belongs to. "To reset the fault:" and a warning belong to the block after them, a note to the
    /// block before it.
    fn tie(&self, block: &Block, before: Tie) -> Tie {
        if !matches!(block.kind, BlockKind::Prose | BlockKind::Nested) {
            return Tie::None;
        }
        let text = self.text(&block.range).trim();
        let (label, is_alone) = label_of(text);
        match label {
            Some(_) if is_alone => Tie::Label,
            Some(Label::Warning) => Tie::Next,
            Some(Label::Note) => Tie::Previous,
            // The block under a lone label is the warning itself.
            None if before == Tie::Label || text.ends_with(':') => Tie::Next,
            None => Tie::None,
        }
    }

    fn push_block(&self, block: &Block, budget: usize, atoms: &mut Vec<Atom>) {
        let tokens = self.tokens(&block.range);
        if tokens <= budget {
            atoms.push(Atom { range: block.range.clone(), tokens, header: None });
            return;
        }
        match &block.kind {
            BlockKind::Table(rows) if !rows.is_empty() => self.push_rows(block, rows, budget, atoms),
            BlockKind::List(items) if !items.is_empty() => {
                for item in items {
                    self.push_part(item, &BlockKind::Nested, budget, None, atoms);
                }
            }
            kind => self.push_split(&block.range, kind, budget, atoms),
        }
    }

    /// The header stays with the first row and is repeated before later ones.
    fn push_rows(&self, table: &Block, rows: &[Range<usize>], budget: usize, atoms: &mut Vec<Atom>) {
        let header = table.range.start..rows[0].start;
        let header_tokens = self.tokens(&header);
        self.push_part(&(table.range.start..rows[0].end), &BlockKind::Lines, budget, None, atoms);
        for row in &rows[1..] {
            let repeated = (header_tokens <= budget / 2).then(|| (header.clone(), header_tokens));
            self.push_part(row, &BlockKind::Lines, budget, repeated, atoms);
        }
    }

    fn push_part(
        &self,
        part: &Range<usize>,
        kind: &BlockKind,
        budget: usize,
        header: Option<(Range<usize>, usize)>,
        atoms: &mut Vec<Atom>,
    ) {
        let tokens = self.tokens(part);
        if tokens + header.as_ref().map_or(0, |(_, tokens)| *tokens) <= budget {
            atoms.push(Atom { range: part.clone(), tokens, header });
        } else if tokens <= budget {
            atoms.push(Atom { range: part.clone(), tokens, header: None });
        } else {
            self.push_split(part, kind, budget, atoms);
        }
    }

    /// Splits a long range into parts of about equal size that fit.
    fn push_split(&self, range: &Range<usize>, kind: &BlockKind, budget: usize, atoms: &mut Vec<Atom>) {
        let total = self.tokens(range);
        let even = total.div_ceil(total.div_ceil(budget).max(1));
        let size = (even + even / 8).clamp(1, budget);
        let mut start = range.start;
        while start < range.end {
            // The splitter's work grows with the square of its input. A window of two chunks is enough to find one.
            let window = self.text(&(start..range.end));
            let window = &window[..window.floor_char_boundary(budget * 2 * MAX_BYTES_PER_TOKEN)];
            let length = whole_words(window, self.first_part(window, kind, size));
            let part = start..start + length.max(1);
            atoms.push(Atom { tokens: self.tokens(&part), range: part.clone(), header: None });
            start = part.end;
        }
    }

    /// Length in bytes of the first part of `window`, as `text-splitter` cuts it.
    fn first_part(&self, window: &str, kind: &BlockKind, size: usize) -> usize {
        let config = ChunkConfig::new(size).with_sizer(&self.meter).with_trim(false);
        let first = match kind {
            BlockKind::Lines => TextSplitter::new(config).chunks(window).next().map(str::len),
            BlockKind::Prose => {
                // A paragraph's line ends are accidental; sentences count.
                let flowing = window.replace('\n', " ");
                TextSplitter::new(config).chunks(&flowing).next().map(str::len)
            }
            _ => MarkdownSplitter::new(config).chunks(window).next().map(str::len),
        };
        first.unwrap_or(window.len())
    }

    /// Joins sections too small to stand alone with a neighbour under the same parent.
    fn join_small(&self, drafts: Vec<Draft>) -> Vec<Draft> {
        let mut joined: Vec<Draft> = Vec::with_capacity(drafts.len());
        for draft in drafts {
            match joined.last_mut().and_then(|left| Some((self.union(left, &draft)?, left))) {
                Some((union, left)) => *left = union,
                None => joined.push(draft),
            }
        }
        for draft in &mut joined {
            draft.whole = None;
        }
        joined
    }

    fn union(&self, left: &Draft, right: &Draft) -> Option<Draft> {
        let (heading, right_heading) = right.whole.as_ref()?;
        if left.tokens.min(right.tokens) >= self.limit / 4 {
            return None;
        }
        let parent = right.path.split_last()?.1;
        let under_parent = left.path == parent;
        let (start, left_heading, before) = if under_parent {
            (left.range.start, 0, left.sections.as_slice())
        } else {
            let (heading, tokens) = left.whole.as_ref()?;
            (heading.range.start, *tokens, std::slice::from_ref(heading))
        };
        if !under_parent && left.path.split_last()?.1 != parent {
            return None;
        }
        let tokens = left.tokens + left_heading + right_heading + right.tokens;
        (tokens + self.prefix_tokens(parent) <= self.limit).then(|| Draft {
            path: parent.to_vec(),
            range: start..right.range.end,
            header: if under_parent { left.header.clone() } else { None },
            tokens,
            whole: None,
            sections: [before, std::slice::from_ref(heading)].concat(),
        })
    }
}

/// A block's tie to its neighbours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Tie {
    None,
    /// Belongs to the block before.
    Previous,
    /// Belongs to the block after.
    Next,
    /// Belongs to the block after, which in turn belongs to the one that follows.
    Label,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Label {
    Warning,
    Note,
}

/// Joins the atom at `at` to the one before, if both fit a chunk.
fn glue(atoms: &mut Vec<Atom>, at: usize, budget: usize) {
    if at == 0 || at >= atoms.len() || atoms[at - 1].tokens + atoms[at].tokens > budget {
        return;
    }
    let next = atoms.remove(at);
    let intro = &mut atoms[at - 1];
    intro.range.end = next.range.end;
    intro.tokens += next.tokens;
}

/// The label that a paragraph or quote begins with (`WARNING:`, `**Note**`, `> [!CAUTION]`), and whether the label is all of
/// it.
fn label_of(text: &str) -> (Option<Label>, bool) {
    let is_mark = |char: char| char.is_whitespace() || "*_>[]!:.".contains(char);
    let begun = text.trim_start_matches(is_mark);
    let word_end = begun.find(|char: char| !char.is_alphabetic()).unwrap_or(begun.len());
    let (word, rest) = begun.split_at(word_end);
    let label = match word.to_lowercase().as_str() {
        "warning" | "caution" | "danger" | "attention" | "important" => Label::Warning,
        "note" | "notice" | "tip" | "hint" => Label::Note,
        _ => return (None, false),
    };
    let is_alone = rest.trim_matches(is_mark).is_empty();
    // "Note that …" is an ordinary sentence.
    let is_label = is_alone || rest.starts_with([':', '*', '_', ']', '!']);
    (is_label.then_some(label), is_alone)
}

/// Tokens of a chunk made of these atoms.
fn size(group: &[Atom]) -> usize {
    let header = group.first().and_then(|first| first.header.as_ref()).map_or(0, |(_, tokens)| *tokens);
    header + group.iter().map(|atom| atom.tokens).sum::<usize>()
}

/// Groups atoms in order, each group as full as possible. A small last group is evened out with the one before.
fn pack(atoms: Vec<Atom>, budget: usize) -> Vec<Vec<Atom>> {
    let mut groups: Vec<Vec<Atom>> = Vec::new();
    let mut used = 0;
    for atom in atoms {
        match groups.last_mut() {
            Some(group) if used + atom.tokens <= budget => {
                used += atom.tokens;
                group.push(atom);
            }
            _ => {
                let group = vec![atom];
                used = size(&group);
                groups.push(group);
            }
        }
    }
    if let [.., before, last] = groups.as_mut_slice() {
        while size(last) < budget / 4 && before.len() > 1 {
            let Some(atom) = before.pop() else { break };
            last.insert(0, atom);
            if size(last) > budget || size(last) > size(before) {
                before.push(last.remove(0));
                break;
            }
        }
    }
    groups
}

/// `length` moved back to the last white space of `text[..length]` if it would cut a word. `E-17` is one word here.
fn whole_words(text: &str, length: usize) -> usize {
    let (head, tail) = text.split_at(length);
    let inside = !tail.is_empty() && !head.ends_with(char::is_whitespace) && !tail.starts_with(char::is_whitespace);
    // Scripts without blanks between words are cut at the splitter's place.
    let western = head.chars().next_back().is_some_and(|last| last.is_ascii() || last.len_utf8() < 3);
    if !inside || !western {
        return length;
    }
    head.rfind(char::is_whitespace)
        .map(|at| at + head[at..].chars().next().map_or(1, char::len_utf8))
        .filter(|&end| !head[..end].trim().is_empty())
        .unwrap_or(length)
}

/// Counts tokens word by word and remembers them: the splitter asks about the same words many times.
struct Meter<'a> {
    count: &'a dyn Fn(&str) -> usize,
    words: RefCell<HashMap<String, usize>>,
}

impl Meter<'_> {
    fn word(&self, word: &str) -> usize {
        if let Some(&tokens) = self.words.borrow().get(word) {
            return tokens;
        }
        let tokens = (self.count)(word);
        let mut words = self.words.borrow_mut();
        if words.len() < MAX_COUNTED_WORDS && word.len() <= 64 {
            words.insert(word.to_owned(), tokens);
        }
        tokens
    }
}

impl ChunkSizer for Meter<'_> {
    fn size(&self, text: &str) -> usize {
        let tokens: usize = text.split_whitespace().map(|word| self.word(word)).sum();
        tokens.max(text.len() / MAX_BYTES_PER_TOKEN)
    }
}

/// A chunk's text under construction.
#[derive(Default)]
struct Body {
    text: String,
    breaks: Vec<u32>,
    sections: Vec<Subsection>,
}

impl Body {
    /// Adds a part without its form feeds; their places are noted. Line ends around one make one paragraph's end at most.
    fn push(&mut self, paged: &str) {
        let begins = self.text.is_empty() || self.text.ends_with("\n\n");
        let mut pages = if begins { paged.trim_start_matches('\n') } else { paged }.split('\u{0C}');
        self.text.push_str(pages.next().unwrap_or_default());
        for page in pages {
            let rest = page.trim_start_matches('\n');
            let kept = self.text.trim_end_matches('\n').len();
            let line_ends = self.text.len() - kept + page.len() - rest.len();
            self.text.truncate(kept);
            self.text.push_str(&"\n\n"[..line_ends.min(2)]);
            self.breaks.push(self.text.len() as u32);
            self.text.push_str(rest);
        }
    }

    /// Ends the paragraph.
    fn end(&mut self) {
        self.text.truncate(self.text.trim_end().len());
        if !self.text.is_empty() {
            self.text.push_str("\n\n");
        }
        let length = self.text.len() as u32;
        self.breaks.iter_mut().for_each(|at| *at = (*at).min(length));
    }

    /// Adds a heading; a section begins below it.
    fn begin(&mut self, heading: Heading) {
        self.end();
        let at = self.text.len() as u32;
        self.text.push_str(&heading.words);
        self.end();
        self.sections.push(Subsection { at, body: self.text.len() as u32, heading: heading.path });
    }

    fn finish(mut self) -> Self {
        self.end();
        self.text.truncate(self.text.trim_end().len());
        let ends = self.sections.iter().skip(1).map(|next| next.at).chain([self.text.len() as u32]).collect::<Vec<_>>();
        for (section, end) in self.sections.iter_mut().zip(ends) {
            if section.body >= end {
                section.body = section.at;
            }
        }
        self
    }
}

/// Page numbers by form feeds; `of` is asked in ascending order.
struct Pages<'a> {
    text: &'a str,
    counted: usize,
    page: Option<u32>,
}

impl<'a> Pages<'a> {
    fn new(reading: &'a Reading) -> Self {
        let paged = reading.format.paged || reading.form == Form::Plain && reading.text.contains('\u{0C}');
        Self { text: &reading.text, counted: 0, page: paged.then_some(1) }
    }

    /// The page at `offset`.
    fn of(&mut self, offset: usize) -> Option<u32> {
        let page = self.page.as_mut()?;
        let breaks = |text: &str| text.bytes().filter(|&byte| byte == 0x0C).count() as u32;
        if offset > self.counted {
            *page += breaks(&self.text[self.counted..offset]);
            self.counted = offset;
        }
        Some(*page)
    }
}

#[cfg(test)]
#[allow(clippy::format_collect)]
mod tests {
    use super::*;
    use crate::ingest::Source;

    /// A stand-in for a tokenizer: words and signs, as BERT parts them before the vocabulary.
    fn words(text: &str) -> usize {
        text.split_whitespace()
            .map(|word| {
                let signs = word.chars().filter(|char| !char.is_alphanumeric()).count();
                signs + word.split(|char: char| !char.is_alphanumeric()).filter(|part| !part.is_empty()).count()
            })
            .sum()
    }

    fn chunks(name: &str, text: &str, limit: usize) -> Vec<TextChunk> {
        let source = Source { id: name.into(), name: name.into(), bytes: text.into(), ..Source::default() };
        let reading = read::read(source.original()).unwrap();
        let chunks: Vec<TextChunk> = chunk(&reading, limit, &words).collect();
        for chunk in &chunks {
            let embedded = embedded_text(&reading.title, &chunk.heading, &chunk.text);
            assert_eq!(chunk.tokens as usize, words(&embedded));
            assert!(chunk.tokens as usize <= limit, "{} tokens: {embedded}", chunk.tokens);
            assert!(!chunk.text.trim().is_empty());
        }
        assert!(chunks.is_sorted_by_key(|chunk| chunk.offset));
        chunks
    }

    fn prose(sentences: usize) -> String {
        (0..sentences).map(|n| format!("Sentence number {n} says that valve V-{n} opens at 3.5 bar. ")).collect()
    }

    #[test]
    fn chunks_follow_headings_and_carry_their_path() {
        let text = format!("# Manual\n\n{}\n\n## Fuses\n\n{}\n\n### Main\n\n{}\n", prose(5), prose(5), prose(5));
        let chunks = chunks("a.md", &text, 100);
        let paths: Vec<String> = chunks.iter().map(|chunk| chunk.heading.join(" > ")).collect();
        assert_eq!(paths, ["", "Fuses", "Fuses > Main"]);
        for chunk in &chunks {
            assert!(text[chunk.offset as usize..].starts_with(&chunk.text));
            assert!(!chunk.text.contains('#'));
        }
    }

    #[test]
    fn long_paragraphs_part_evenly_at_sentences() {
        let hard_wrapped = prose(40).replace(" says ", " says\n");
        for (name, text) in [("a.md", &hard_wrapped), ("a.txt", &hard_wrapped)] {
            let chunks = chunks(name, text, 80);
            assert!(chunks.len() >= 5);
            for chunk in &chunks {
                assert!(chunk.text.starts_with("Sentence") && chunk.text.ends_with("bar."), "{:?}", chunk.text);
                assert!(chunk.tokens > 30, "a fragment: {:?}", chunk.text);
            }
            let all: Vec<&str> = chunks.iter().flat_map(|chunk| chunk.text.split_whitespace()).collect();
            assert_eq!(all, text.split_whitespace().collect::<Vec<_>>());
        }
    }

    #[test]
    fn words_are_not_cut() {
        let text = "E-17 and E-42.5 or 24V/AC with_underscore non-stop ".repeat(60).replace('.', "·");
        let known: Vec<&str> = text.split_whitespace().collect();
        for chunk in chunks("a.txt", &text, 40) {
            for word in chunk.text.split_whitespace() {
                assert!(known.contains(&word), "{word}");
            }
        }
    }

    #[test]
    fn a_split_table_repeats_its_header() {
        let rows: String = (1..40).map(|n| format!("| E-{n:02} | Sensor {n} open | Check plug X{n} |\n")).collect();
        let text = format!("# M\n\n## Errors\n\nThe codes:\n\n| Code | Cause | Remedy |\n|---|---|---|\n{rows}");
        let chunks = chunks("a.md", &text, 90);
        assert!(chunks.len() > 3);
        for chunk in &chunks {
            assert!(chunk.text.contains("| Code | Cause | Remedy |\n|---|---|---|\n| E-"), "{}", chunk.text);
            assert_eq!(chunk.heading, ["Errors"]);
        }
        assert!(chunks[0].text.starts_with("The codes:"));
        let found: String = chunks
            .iter()
            .flat_map(|chunk| chunk.text.lines())
            .filter(|line| line.starts_with("| E-"))
            .map(|line| format!("{line}\n"))
            .collect();
        assert_eq!(found, rows);
    }

    #[test]
    fn code_and_list_items_that_fit_stay_whole() {
        let code: String = (0..12).map(|n| format!("set p{n}\n")).collect();
        let items: String =
            (1..15).map(|n| format!("{n}. Turn screw S{n} by a quarter. Wait until the lamp is green.\n")).collect();
        let text = format!("# M\n\n{}\n\n```\n{code}```\n\n{}\n\n{items}", prose(3), prose(2));
        let chunks = chunks("a.md", &text, 60);
        assert!(chunks.iter().any(|chunk| chunk.text.contains(&code)));
        for n in 1..15 {
            let item = format!("{n}. Turn screw S{n} by a quarter. Wait until the lamp is green.");
            assert!(chunks.iter().any(|chunk| chunk.text.contains(&item)), "{item}");
        }
    }

    #[test]
    fn only_small_siblings_are_joined() {
        let text = "# M\n\n## A\n\n### A1\n\nshort one\n\n### A2\n\nshort two\n\n## B\n\nalone here\n";
        let chunks = chunks("a.md", text, 100);
        assert_eq!(chunks[0].heading, ["A"]);
        assert_eq!(chunks[0].text, "A1\n\nshort one\n\nA2\n\nshort two");
        let sections: Vec<(u32, u32, String)> =
            chunks[0].sections.iter().map(|inner| (inner.at, inner.body, inner.heading.join(" > "))).collect();
        assert_eq!(sections, [(0, 4, "A > A1".to_owned()), (15, 19, "A > A2".to_owned())]);
        assert!(chunks[1].sections.is_empty());
        assert_eq!((chunks[1].heading.as_slice(), chunks[1].text.as_str()), (&["B".to_owned()][..], "alone here"));
    }

    #[test]
    fn an_announced_list_stays_with_its_announcement() {
        let text = format!(
            "# M\n\n{}\n\nTo reset:\n\n1. Press Menu.\n2. Hold both keys for five seconds until the display goes dark.\n",
            prose(4)
        );
        let chunks = chunks("a.md", &text, 70);
        assert!(chunks.iter().any(|chunk| chunk.text.contains("To reset:\n\n1. Press Menu.")));
    }

    #[test]
    fn warnings_and_notes_stay_with_their_steps() {
        let warnings = [
            "WARNING: Let the boiler cool down first.",
            "**Caution:** Let the boiler cool down first.",
            "> **Warning**\n>\n> Let the boiler cool down first.",
            "> [!DANGER]\n> Let the boiler cool down first.",
            "**Warning**\n\nLet the boiler cool down first.",
        ];
        // Warning and step are found together, whatever the chunk's end.
        for (warning, before) in warnings.iter().flat_map(|warning| (1..12).map(move |before| (warning, before))) {
            let text = format!("# M\n\n{}\n\n{warning}\n\n1. Open the cover.\n2. Pull the plug.\n\n{}", prose(before), prose(3));
            let chunks = chunks("a.md", &text, 60);
            let with = |part: &str| chunks.iter().position(|chunk| chunk.text.contains(part));
            assert_eq!(with("Let the boiler"), with("Open the cover"), "{before}: {warning}");
        }
        for before in 1..12 {
            let text = format!("# M\n\n{}\n\nOpen the cover now.\n\nNOTE: It opens to the left.\n\n{}", prose(before), prose(3));
            let chunks = chunks("a.md", &text, 60);
            assert!(chunks.iter().any(|chunk| chunk.text.contains("Open the cover now.\n\nNOTE: It opens")), "{before}");
        }
        assert_eq!(label_of("Note that it opens to the left."), (None, false));
        assert_eq!(label_of("Notes are kept here."), (None, false));
    }

    #[test]
    fn headings_alone_can_be_found() {
        let chunks = chunks("a.md", "# M\n\n## Warranty void if opened\n", 100);
        assert_eq!(chunks.len(), 1);
        assert_eq!(chunks[0].text, "Warranty void if opened");
        let joined = "# M\n\n## Warranty void if opened\n\nUnderlined\n----------\nText at once.\n";
        let chunks = self::chunks("a.md", joined, 100);
        assert_eq!(chunks[0].text, "Warranty void if opened\n\nUnderlined\n\nText at once.");
        let said: Vec<(u32, u32)> = chunks[0].sections.iter().map(|inner| (inner.at, inner.body)).collect();
        assert_eq!(said, [(0, 0), (25, 37)], "a heading that is all there is, and one above a text");
    }

    #[test]
    fn form_feeds_leave_their_places() {
        let cases = [
            ("a\n\u{0C}b", "a\nb", vec![2]),
            ("a\n\u{0C}\nb", "a\n\nb", vec![3]),
            ("a\n\n\u{0C}\n\nb\u{0C}c", "a\n\nb\u{0}c", vec![3, 4]),
            ("a\n\u{0C}\u{0C}\nb", "a\n\nb", vec![2, 3]),
            ("a", "a", vec![]),
        ];
        for (paged, text, breaks) in cases {
            let mut body = Body::default();
            body.push(paged);
            assert_eq!((body.text, body.breaks), (text.replace('\0', ""), breaks), "{paged:?}");
        }
    }

    fn paged(text: &str, limit: usize) -> Vec<TextChunk> {
        let reading =
            Reading { title: "M".into(), text: text.into(), form: Form::Markdown, format: &read::formats::PDF, note: None };
        chunk(&reading, limit, &words).collect()
    }

    #[test]
    fn a_pdf_of_one_page_has_that_page() {
        assert_eq!(paged("One page only.\n", 100)[0].page, Some(1));
    }

    #[test]
    fn joined_sections_know_their_pages() {
        let chunks = paged("## A\n\nshort one  \n\n\u{0C}\n\n## B\n\n\u{0C}\n\nshort two\n", 100);
        assert_eq!(chunks.len(), 1);
        let TextChunk { text, breaks, sections, page, .. } = &chunks[0];
        assert_eq!((text.as_str(), *page), ("A\n\nshort one\n\nB\n\nshort two", Some(1)));
        assert_eq!(sections.iter().map(|inner| (inner.at, inner.body)).collect::<Vec<_>>(), [(0, 3), (14, 17)]);
        assert_eq!(breaks, &[14, 17]);
    }

    #[test]
    fn a_head_from_an_earlier_page_counts_no_page() {
        let rows: String = (1..40).map(|n| format!("| E-{n:02} | Sensor {n} open | Check plug X{n} |\n")).collect();
        let chunks = paged(&format!("Codes\n\n| Code | Cause | Remedy \u{0C}|\n|---|---|---|\n{rows}"), 90);
        assert!(chunks.len() > 2);
        for chunk in &chunks[1..] {
            assert!(chunk.text.starts_with("| Code | Cause | Remedy |\n|---|---|---|\n| E-"), "{}", chunk.text);
            assert_eq!((chunk.page, chunk.breaks.as_slice()), (Some(2), &[][..]));
        }
    }

    #[test]
    fn pages_come_from_form_feeds() {
        let text = format!("{}\n\n\u{0C}{}\n\u{0C}\n\u{0C}{}", prose(4), prose(4), prose(4));
        let pages: Vec<Option<u32>> = chunks("a.txt", &text, 80).iter().map(|chunk| chunk.page).collect();
        assert_eq!(pages, [Some(1), Some(2), Some(4)]);
    }

    #[test]
    fn text_without_blanks_is_bounded() {
        // Builds of `make cross` know no words of these languages.
        let scripts = ["漢字", "かなカナ", "ภาษาไทย", "ພາສາລາວ", "ភាសាខ្មែរ", "မြန်မာစာ"].map(|text| text.repeat(20_000));
        for text in scripts.into_iter().chain(["x".repeat(200_000), "é".repeat(50_000)]) {
            for chunk in chunks("a.txt", &text, 100) {
                assert!(chunk.text.len() <= 100 * MAX_BYTES_PER_TOKEN);
            }
        }
    }

    #[test]
    fn deep_and_long_headings_leave_room_for_text() {
        let headings: String =
            (1..=6).map(|level| format!("{} {}\n\n", "#".repeat(level), format!("h{level} ").repeat(30))).collect();
        let chunks = chunks("a.md", &format!("# M\n\n{headings}{}", prose(20)), 100);
        assert!(chunks.iter().all(|chunk| chunk.heading.len() <= 2));
    }

    /// CPU time of this thread in seconds: other processes do not count.
    fn cpu_seconds(work: impl FnOnce()) -> f64 {
        let now = || rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
        let begun = now();
        work();
        let ended = now();
        (ended.tv_sec - begun.tv_sec) as f64 + (ended.tv_nsec - begun.tv_nsec) as f64 / 1e9
    }

    #[test]
    fn big_documents_take_linear_time() {
        let lines = |n: usize| (0..n).map(|n| format!("2024-05-01 12:00:00   line {n} ok\n")).collect::<String>();
        let nested = |n: usize| "> ".repeat(2 * n) + "x\n\n" + &"[".repeat(5 * n) + &"- a\n".repeat(5 * n);
        let of_lines = |n: usize| cpu_seconds(|| assert!(chunks("a.txt", &lines(n), 100).len() > n / 20));
        let of_nested = |n: usize| cpu_seconds(|| drop(chunks("a.md", &nested(n), 100)));
        // Four times the text: 4 times the work, where quadratic work would be 16 times.
        for (small, large) in [(of_lines(50_000), of_lines(200_000)), (of_nested(2500), of_nested(10_000))] {
            assert!(large < 9.0 * small, "{small} s, {large} s");
        }
    }
}
