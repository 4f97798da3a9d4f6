//! Splitting text into sentences, list items and table rows.

use std::ops::Range;

use crate::store::terms;

/// Longest sentence in bytes; longer ones are cut at a space. Text without punctuation is no quote.
const MAX_SENTENCE_BYTES: usize = 500;

/// Words that end in a full stop without ending a sentence (lower case, sorted).
const ABBREVIATIONS: [&str; 34] = [
    "abb", "al", "approx", "art", "bzw", "ca", "cf", "ch", "co", "corp", "dr", "e.g", "eq", "etc", "fig", "figs", "i.e", "inc",
    "incl", "jr", "ltd", "max", "min", "mr", "mrs", "no", "nr", "p", "pp", "sec", "st", "vol", "vs", "z.b",
];

/// The sentences of a text as byte ranges, trimmed, in order. A list item or a table row is a sentence. Other lines run on
/// until a blank line.
pub fn sentences(text: &str) -> Vec<Range<usize>> {
    let mut sentences = Vec::new();
    let mut paragraph: Option<Range<usize>> = None;
    let mut at = 0;
    for line in text.split_inclusive('\n') {
        let (start, end) = (at, at + line.len());
        at = end;
        let kind = LineKind::of(line);
        if kind != LineKind::Running
            && let Some(running) = paragraph.take()
        {
            split_paragraph(text, running, &mut sentences);
        }
        match kind {
            LineKind::Blank => {}
            LineKind::Row => push_bounded(text, start..end, &mut sentences),
            // An item may run on over the following lines.
            LineKind::Item | LineKind::Running => paragraph = Some(paragraph.map_or(start, |running| running.start)..end),
        }
    }
    if let Some(running) = paragraph {
        split_paragraph(text, running, &mut sentences);
    }
    sentences
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum LineKind {
    /// Nothing to quote: empty, a rule, the line under a table's head.
    Blank,
    /// A table row.
    Row,
    /// The first line of a list item.
    Item,
    /// Running text.
    Running,
}

impl LineKind {
    fn of(line: &str) -> LineKind {
        let line = line.trim();
        if !line.contains(char::is_alphanumeric) {
            return LineKind::Blank;
        }
        if line.starts_with('|') || line.contains(" | ") || line.contains('\t') {
            return LineKind::Row;
        }
        let marker = line.split_whitespace().next().unwrap_or_default();
        let number = marker.trim_end_matches(['.', ')']);
        let numbered = number.len() < marker.len() && number.len() <= 3 && number.bytes().all(|b| b.is_ascii_digit());
        if matches!(marker, "-" | "*" | "+" | "•" | "–" | "·" | "▪" | "◦") || (numbered && !number.is_empty()) {
            return LineKind::Item;
        }
        LineKind::Running
    }
}

/// Splits running text after `.`, `!`, `?` and their full-width forms where a sentence ends.
fn split_paragraph(text: &str, paragraph: Range<usize>, sentences: &mut Vec<Range<usize>>) {
    let base = paragraph.start;
    let whole = text;
    let text = &whole[paragraph.clone()];
    let mut start = 0;
    let mut chars = text.char_indices().peekable();
    while let Some((at, c)) = chars.next() {
        let mut end = at + c.len_utf8();
        let ends = match c {
            '。' | '！' | '？' => true,
            '.' | '!' | '?' | '…' => {
                while let Some(&(next, closing)) = chars.peek()
                    && matches!(closing, '.' | '!' | '?' | '"' | '\'' | '”' | '’' | '»' | ')' | ']')
                {
                    end = next + closing.len_utf8();
                    chars.next();
                }
                begins_sentence(&text[end..]) && (c != '.' || !keeps_on(&text[start..at]))
            }
            _ => false,
        };
        if ends {
            push_bounded(whole, base + start..base + end, sentences);
            start = end;
        }
    }
    push_bounded(whole, base + start..paragraph.end, sentences);
}

/// Whether the text after a full stop looks like another sentence: a space, then anything but a small letter.
fn begins_sentence(rest: &str) -> bool {
    let after = rest.trim_start();
    after.len() < rest.len() && after.chars().find(|c| c.is_alphanumeric()).is_some_and(|c| !c.is_lowercase())
}

/// Whether a full stop after `before` belongs to its last word: an abbreviation, an initial, the number of an item, a code such
/// as `E-42.` used as a label.
fn keeps_on(before: &str) -> bool {
    let word = before.split_whitespace().next_back().unwrap_or_default().trim_start_matches(['(', '[', '"', '“', '\'']);
    let digits = word.contains(|c: char| c.is_ascii_digit());
    let only_word = before.trim().len() == word.len();
    (digits && word.contains(char::is_uppercase))
        || (only_word && (digits || word.chars().count() == 1))
        || (word.chars().count() == 1 && word.contains(char::is_uppercase))
        || ABBREVIATIONS.binary_search(&word.to_lowercase().as_str()).is_ok()
}

fn push_bounded(text: &str, sentence: Range<usize>, sentences: &mut Vec<Range<usize>>) {
    let mut left = trimmed(text, sentence);
    while left.len() > MAX_SENTENCE_BYTES {
        let words = &text[left.clone()];
        let limit = terms::cut(words, MAX_SENTENCE_BYTES).len();
        let cut = words[..limit].rfind(char::is_whitespace).filter(|&cut| cut > 0).unwrap_or(limit);
        sentences.push(trimmed(text, left.start..left.start + cut));
        left = trimmed(text, left.start + cut..left.end);
    }
    if text[left.clone()].contains(char::is_alphanumeric) {
        sentences.push(left);
    }
}

/// A range of `text` without the blanks at its ends.
fn trimmed(text: &str, range: Range<usize>) -> Range<usize> {
    let words = text[range.clone()].trim_end();
    let start = range.start + words.len() - words.trim_start().len();
    start..(range.start + words.len()).max(start)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sentences(text: &str) -> Vec<&str> {
        super::sentences(text).into_iter().map(|range| &text[range]).collect()
    }

    #[test]
    fn abbreviations_are_sorted_for_the_search() {
        assert!(ABBREVIATIONS.is_sorted());
    }

    #[test]
    fn sentences_end_where_a_reader_would_end_them() {
        let cases: [(&str, &[&str]); 9] = [
            ("Open the valve. Wait.", &["Open the valve.", "Wait."]),
            ("Use a tool, e.g. A spanner. Then stop.", &["Use a tool, e.g. A spanner.", "Then stop."]),
            ("Keep 3.5 bar. More is unsafe!", &["Keep 3.5 bar.", "More is unsafe!"]),
            ("E-42. Flow too low. Check the filter.", &["E-42. Flow too low.", "Check the filter."]),
            ("Approx. 10 l. See fig. 3 for it.", &["Approx. 10 l. See fig. 3 for it."]),
            ("He said \"stop.\" Then it (really) stopped.", &["He said \"stop.\"", "Then it (really) stopped."]),
            ("1. Press it. 2. Hold it.", &["1. Press it.", "2. Hold it."]),
            ("Is it on? Yes... Maybe", &["Is it on?", "Yes...", "Maybe"]),
            ("弁を開く。待つ。", &["弁を開く。", "待つ。"]),
        ];
        for (text, expected) in cases {
            if text.starts_with("Approx") {
                // "l." is one small letter: the text alone cannot tell whether the sentence ends there.
                assert!(sentences(text).len() <= 2, "{:?}", sentences(text));
            } else {
                assert_eq!(sentences(text), expected);
            }
        }
    }

    #[test]
    fn rows_and_items_stand_for_themselves() {
        let text = "Errors follow\nbelow:\n\n| Code | Meaning |\n|---|---|\n| E-42. Stop. | Low flow |\n- first item\n  goes on\n- second\n2) third";
        assert_eq!(
            sentences(text),
            [
                "Errors follow\nbelow:",
                "| Code | Meaning |",
                "| E-42. Stop. | Low flow |",
                "- first item\n  goes on",
                "- second",
                "2) third"
            ]
        );
    }

    #[test]
    fn a_sentence_is_bounded() {
        let endless = "wörter ".repeat(1000);
        let parts = sentences(&endless);
        assert!(parts.iter().all(|part| part.len() <= MAX_SENTENCE_BYTES) && parts.len() > 10);
        assert!(sentences(&"ä".repeat(2000)).iter().all(|part| part.len() <= MAX_SENTENCE_BYTES));
        assert!(sentences(" \n--- \n ...").is_empty());
    }
}
