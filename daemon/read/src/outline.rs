//! The structure of a text: sections under their headings, and the blocks in each.

use std::ops::Range;

use pulldown_cmark::{Event, HeadingLevel, Options, Parser, Tag, TagEnd};

use crate::formats::one_line;
use crate::{MAX_TITLE_CHARS, shortened};

/// Longest heading kept in a path, in characters.
const MAX_HEADING_CHARS: usize = 120;

/// The text from one heading to the next.
#[derive(Debug, Default)]
pub struct Section {
    /// Headings from the outermost to this section's own; empty before the first one.
    pub path: Vec<String>,
    /// Byte range of the heading itself; empty before the first one.
    pub heading: Range<usize>,
    /// The heading's words.
    pub title: String,
    /// Paragraphs, lists, tables and so on, in order.
    pub blocks: Vec<Block>,
}

/// One block at the top level of a section.
#[derive(Debug)]
pub struct Block {
    /// Byte range in the text.
    pub range: Range<usize>,
    /// The kind of block.
    pub kind: BlockKind,
}

/// Kinds of block, by how they are split when they must be.
#[derive(Debug, PartialEq, Eq)]
pub enum BlockKind {
    /// A paragraph: between sentences.
    Prose,
    /// Code, or text that is laid out by hand: between lines.
    Lines,
    /// Quotes, footnotes, raw HTML: between the parts that Markdown knows.
    Nested,
    /// A list: between its items.
    List(Vec<Range<usize>>),
    /// A table: between rows. Rows do not include the header.
    Table(Vec<Range<usize>>),
}

/// Sections of a Markdown text. Headings in quotes, lists and code make none.
pub fn markdown(text: &str) -> Vec<Section> {
    let mut sections = vec![Section::default()];
    let mut open: Vec<(HeadingLevel, String)> = Vec::new();
    let mut heading: Option<(HeadingLevel, Range<usize>, String)> = None;
    let mut depth = 0_usize;
    for (event, range) in parser(text).into_offset_iter() {
        match event {
            Event::Start(tag) => {
                match (tag, depth) {
                    (Tag::Heading { level, .. }, 0) => {
                        heading = Some((level, range, String::new()));
                    }
                    (tag, 0) => start_block(&mut sections, &tag, range),
                    (tag, 1) => start_part(&mut sections, &tag, range),
                    _ => {}
                }
                depth += 1;
            }
            Event::End(TagEnd::Heading(_)) if depth == 1 => {
                depth = 0;
                if let Some((level, range, words)) = heading.take() {
                    let title = heading_text(&words);
                    open.retain(|(above, _)| *above < level);
                    open.push((level, title.clone()));
                    let path = open.iter().map(|(_, words)| words.clone()).filter(|words| !words.is_empty()).collect();
                    sections.push(Section { path, heading: range, title, blocks: Vec::new() });
                }
            }
            Event::End(_) => depth = depth.saturating_sub(1),
            event => {
                if let Some((_, _, words)) = &mut heading {
                    push_words(words, &event);
                }
            }
        }
    }
    // A form feed alone is no paragraph.
    for section in &mut sections {
        section.blocks.retain(|block| !text[block.range.clone()].trim().is_empty());
    }
    sections
}

/// The first heading of a Markdown text, whatever its level.
pub fn first_heading(text: &str) -> Option<String> {
    let mut events = parser(text).skip_while(|event| !matches!(event, Event::Start(Tag::Heading { .. })));
    events.next()?;
    let mut words = String::new();
    for event in events.take_while(|event| !matches!(event, Event::End(TagEnd::Heading(_)))) {
        push_words(&mut words, &event);
    }
    let words = shortened(&one_line(&words), MAX_TITLE_CHARS).into_owned();
    (!words.is_empty()).then_some(words)
}

/// One section with the paragraphs of a plain text.
pub fn plain(text: &str) -> Vec<Section> {
    let mut blocks: Vec<Block> = Vec::new();
    let mut start = None;
    let mut offset = 0;
    for line in text.split_inclusive('\n') {
        if line.trim().is_empty() || line.starts_with('\u{0C}') {
            blocks.extend(start.take().map(|start| paragraph(text, start..offset)));
        }
        if !line.trim().is_empty() {
            start = start.or(Some(offset));
        }
        offset += line.len();
    }
    blocks.extend(start.map(|start| paragraph(text, start..offset)));
    vec![Section { blocks, ..Section::default() }]
}

fn parser(text: &str) -> Parser<'_> {
    Parser::new_ext(text, Options::ENABLE_TABLES | Options::ENABLE_HEADING_ATTRIBUTES)
}

fn heading_text(words: &str) -> String {
    shortened(&one_line(words), MAX_HEADING_CHARS).into_owned()
}

fn push_words(words: &mut String, event: &Event) {
    match event {
        Event::Text(text) | Event::Code(text) => words.push_str(text),
        Event::SoftBreak | Event::HardBreak => words.push(' '),
        _ => {}
    }
}

fn start_block(sections: &mut [Section], tag: &Tag, range: Range<usize>) {
    let kind = match tag {
        Tag::Paragraph => BlockKind::Prose,
        Tag::CodeBlock(_) => BlockKind::Lines,
        Tag::List(_) => BlockKind::List(Vec::new()),
        Tag::Table(_) => BlockKind::Table(Vec::new()),
        _ => BlockKind::Nested,
    };
    if let Some(section) = sections.last_mut() {
        section.blocks.push(Block { range, kind });
    }
}

fn start_part(sections: &mut [Section], tag: &Tag, range: Range<usize>) {
    match (tag, sections.last_mut().and_then(|section| section.blocks.last_mut()).map(|block| &mut block.kind)) {
        (Tag::Item, Some(BlockKind::List(parts))) | (Tag::TableRow, Some(BlockKind::Table(parts))) => {
            parts.push(range);
        }
        _ => {}
    }
}

/// A paragraph of plain text is prose unless blanks line something up in columns.
fn paragraph(text: &str, range: Range<usize>) -> Block {
    let columns = text[range.clone()].lines().any(|line| line.trim().contains("   ") || line.trim().contains('\t'));
    Block { range, kind: if columns { BlockKind::Lines } else { BlockKind::Prose } }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sections_follow_atx_and_setext_headings() {
        let text = "intro\n\nPump\n====\n\ntext\n\n## Fuses\n\n```\n# not a heading\n```\n\n> # nor this\n\n- # nor this\n\nHeat `x`\n----\n\n#### Deep #\nend\n# Next\n";
        let paths: Vec<String> = markdown(text).iter().map(|section| section.path.join(" > ")).collect();
        assert_eq!(paths, ["", "Pump", "Pump > Fuses", "Pump > Heat x", "Pump > Heat x > Deep", "Next"]);
    }

    #[test]
    fn lists_and_tables_know_their_parts() {
        let text = "1. one\n   - nested\n2. two\n\n| a | b |\n|---|---|\n| 1 | 2 |\n| 3 | 4 |\n";
        let sections = markdown(text);
        let parts = |kind: &BlockKind| match kind {
            BlockKind::List(parts) | BlockKind::Table(parts) => {
                parts.iter().map(|part| text[part.clone()].trim().to_owned()).collect()
            }
            _ => Vec::new(),
        };
        assert_eq!(parts(&sections[0].blocks[0].kind), ["1. one\n   - nested", "2. two"]);
        assert_eq!(parts(&sections[0].blocks[1].kind), ["| 1 | 2 |", "| 3 | 4 |"]);
    }

    #[test]
    fn plain_text_parts_at_blank_lines_and_pages() {
        let text = "a b\nc d\n \n\ncol1    col2\nx       y\n\u{0C}next page\n";
        let blocks = &plain(text)[0].blocks;
        let found: Vec<_> = blocks.iter().map(|block| (text[block.range.clone()].trim(), &block.kind)).collect();
        assert_eq!(
            found,
            [("a b\nc d", &BlockKind::Prose), ("col1    col2\nx       y", &BlockKind::Lines), ("next page", &BlockKind::Prose)]
        );
    }
}
