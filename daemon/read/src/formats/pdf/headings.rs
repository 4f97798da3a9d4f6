//! Finds the lines that are headings.
//!
//! The document's outline goes first, if its titles are found on their pages. Elsewhere the size decides, and also the weight in
//! documents without an outline.

use std::collections::HashMap;

use super::{
    blocks::{Line, is_marker},
    bookmarks::Bookmark,
    rows::Sheet,
    write::MarkdownWriter,
};

/// Least size of a heading, relative to the text.
const LARGER: f32 = 1.12;

/// Most lines and characters of a heading.
const MAX_LINES: usize = 4;
const MAX_CHARS: usize = 200;

/// Deepest level of Markdown.
const DEEPEST: usize = 6;

/// Knowledge about a document's headings.
pub(super) struct Headings {
    /// By page: titles of the outline that have not been found yet, as [`bare`] text, and their level.
    outline: HashMap<usize, Vec<(String, usize)>>,
    /// Deepest level of the outline; 0 without one.
    depth: usize,
    /// Font sizes of headings, the largest first.
    sizes: Vec<f32>,
    body: f32,
}

impl Headings {
    pub(super) fn new(sheets: &[Sheet], bookmarks: Vec<Bookmark>, body: f32) -> Self {
        let depth = bookmarks.iter().map(|bookmark| bookmark.level).max().unwrap_or(0);
        let mut outline: HashMap<usize, Vec<(String, usize)>> = HashMap::new();
        for Bookmark { title, level, page } in bookmarks {
            let title = bare(&title);
            if !title.is_empty() {
                outline.entry(page).or_default().push((title, level));
            }
        }
        let mut sizes: Vec<f32> = Vec::new();
        for row in sheets.iter().flat_map(|sheet| &sheet.rows) {
            let size = row.size;
            if size > LARGER * body && row.words.len() <= 15 && !sizes.iter().any(|known| (known - size).abs() < 0.6) {
                sizes.push(size);
            }
        }
        sizes.sort_by(|a, b| b.total_cmp(a));
        Self { outline, depth, sizes, body }
    }

    /// Writes a block of text with its headings.
    pub(super) fn split(&mut self, page: usize, mut lines: Vec<Line>, writer: &mut MarkdownWriter) {
        while !lines.is_empty() {
            let found = (0..lines.len().min(12)).find_map(|at| Some((at, self.in_outline(page, &lines[at..])?)));
            let Some((at, (count, level))) = found else {
                match self.by_look(&lines) {
                    Some(level) => writer.heading(&lines, level),
                    None => writer.text(&lines),
                }
                return;
            };
            let rest = lines.split_off(at + count);
            let heading = lines.split_off(at);
            if !lines.is_empty() {
                writer.text(&lines);
            }
            writer.heading(&heading, level);
            lines = rest;
        }
    }

    /// The number of lines, from the first, that are a title of the outline, and its level.
    fn in_outline(&mut self, page: usize, lines: &[Line]) -> Option<(usize, usize)> {
        if self.depth == 0 || lines[0].mono && !lines[0].bold {
            return None;
        }
        let mut text = String::new();
        for (index, line) in lines.iter().take(MAX_LINES).enumerate() {
            // Text in another size does not continue the heading.
            if index > 0 && (line.size - lines[0].size).abs() > 1.0 {
                return None;
            }
            if !text.is_empty() {
                text.push(' ');
            }
            text.push_str(&line.text);
            let bare = bare(&text);
            if bare.is_empty() {
                continue;
            }
            for page in [Some(page), page.checked_sub(1), page.checked_add(1)].into_iter().flatten() {
                let Some(titles) = self.outline.get_mut(&page) else { continue };
                if let Some(at) = titles.iter().position(|(title, _)| *title == bare) {
                    let (_, level) = titles.remove(at);
                    return Some((index + 1, level.min(DEEPEST)));
                }
            }
        }
        None
    }

    fn by_look(&self, lines: &[Line]) -> Option<usize> {
        let first = &lines[0];
        let text: String = lines.iter().map(|line| line.text.as_str()).collect::<Vec<_>>().join(" ");
        let letters = text.chars().filter(|char| char.is_alphabetic()).count();
        let fits = lines.len() <= MAX_LINES
            && text.chars().count() <= MAX_CHARS
            && letters >= 3
            && letters * 2 > text.chars().filter(|char| !char.is_whitespace()).count();
        if !fits || text.ends_with([',', ';']) {
            return None;
        }
        if first.size > LARGER * self.body {
            let rank = self.sizes.iter().position(|size| (size - first.size).abs() < 0.6).unwrap_or(self.sizes.len());
            return Some(if self.depth > 0 { self.depth + 1 } else { rank + 1 }.min(DEEPEST));
        }
        let plain = text.ends_with(['.', ':', '!', '?'])
            || is_caption(&text)
            || text.split(' ').next().is_some_and(is_marker) && !first.bold;
        let bold = self.depth == 0
            && lines.iter().all(|line| line.bold && !line.mono)
            && first.size > 0.93 * self.body
            && lines.len() <= 2;
        (bold && !plain && text.chars().count() <= 100).then(|| (self.sizes.len() + 1).min(DEEPEST))
    }
}

/// Words that begin a caption or a remark, which are set in bold as well.
fn is_caption(text: &str) -> bool {
    const WORDS: [&str; 14] = [
        "figure",
        "fig",
        "table",
        "note",
        "notes",
        "warning",
        "caution",
        "tip",
        "important",
        "danger",
        "example",
        "hinweis",
        "achtung",
        "warnung",
    ];
    let first = text.split(|char: char| !char.is_alphabetic()).next().unwrap_or("").to_lowercase();
    WORDS.contains(&first.as_str())
}

/// A title for comparisons: without its number, lower-case letters and digits only.
pub(super) fn bare(title: &str) -> String {
    let mut words = title.split_whitespace().peekable();
    let named =
        words.peek().is_some_and(|word| matches!(word.to_lowercase().as_str(), "chapter" | "appendix" | "part" | "section"));
    if named {
        words.next();
    }
    while let Some(word) = words.peek() {
        let core = word.trim_end_matches(['.', ':', ')']);
        let numbered =
            core.chars().all(|char| char.is_ascii_digit() || char == '.') && core.chars().any(|char| char.is_ascii_digit());
        let lettered = core.len() <= 8
            && core.starts_with(|char: char| char.is_ascii_uppercase())
            && core[1..].chars().all(|char| char.is_ascii_digit() || char == '.')
            && (core.len() > 1 || core != *word || named);
        if !(numbered || lettered) {
            break;
        }
        words.next();
    }
    let rest: String = words.flat_map(str::chars).filter(|char| char.is_alphanumeric()).flat_map(char::to_lowercase).collect();
    if rest.is_empty() {
        title.chars().filter(|char| char.is_alphanumeric()).flat_map(char::to_lowercase).collect()
    } else {
        rest
    }
}
