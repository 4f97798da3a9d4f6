//! Words, numbers and negations of a text, for the judges of answers.
//!
//! On purpose this shares nothing with the analysis that retrieval uses: a judge with the same notion of a word would make the
//! same mistakes.

use std::collections::BTreeSet;

use library::retrieve::sentences;

/// Letters of a word that count: a stemmer that needs no language (Can et al. 2008 found five letters best).
const STEM: usize = 5;

/// Words without content, English and German, separated by blanks.
const STOP_WORDS: &str = "\
    a about after all also am an and any are as at auch auf aus be been before bei being beim bin but by can could da \
    damit dann das dass dem den der des did die dies diese diesem diesen dieser do does durch du each ein eine einem einen \
    einer eines er es for from für had has have he her hier his how i ich if ihr ihre im in into is ist it its ja kann \
    können man may me mit muss must my müssen nach nur of oder on one only or our sein she should sich sie sind so some \
    than that the their them then there these they this those to um und unter us von vor was we welche wenn werden were \
    what when where which while who wie will wird with would yes you your zu zum zur über according manual document";

/// Words that negate, separated by blanks; those with `n't` and `kein` in any form negate, too.
const NEGATIONS: &str = "\
    no not never none neither cannot without nothing nobody nicht nie niemals ohne weder nichts";

/// Numbers as words, from 2 on: "one" and "ein" are articles as well.
const NUMBER_WORDS: [(&str, &str); 11] = [
    ("two", "zwei"),
    ("three", "drei"),
    ("four", "vier"),
    ("five", "fünf"),
    ("six", "sechs"),
    ("seven", "sieben"),
    ("eight", "acht"),
    ("nine", "neun"),
    ("ten", "zehn"),
    ("eleven", "elf"),
    ("twelve", "zwölf"),
];

/// The parts of a text that judges compare.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Words {
    /// Stems of the words with content, and codes such as `e17`.
    pub(super) content: BTreeSet<String>,
    /// Numbers, in one spelling: `1.5` for `1,5`.
    pub(super) numbers: BTreeSet<String>,
    /// Whether the text negates: two negations cancel each other.
    pub(super) negated: bool,
}

impl Words {
    /// Takes a text apart.
    pub(super) fn of(text: &str) -> Words {
        let mut words = Words::default();
        for token in tokens(text) {
            if let Some(number) = number(&token) {
                words.numbers.insert(number);
            } else if is_negation(&token) {
                words.negated = !words.negated;
            } else if !is_one_of(STOP_WORDS, &token) {
                words.content.insert(stem(&token));
            }
        }
        words
    }

    /// Whether nothing is left to compare.
    pub(super) fn is_empty(&self) -> bool {
        self.content.is_empty() && self.numbers.is_empty()
    }
}

/// Share of `part` that `whole` holds; 1 if `part` is empty.
pub(super) fn held(part: &BTreeSet<String>, whole: &BTreeSet<String>) -> f64 {
    if part.is_empty() { 1.0 } else { part.intersection(whole).count() as f64 / part.len() as f64 }
}

/// The sentences of an answer or of a quote, whose lines never run on into the next one.
pub(super) fn sentences_of_lines(text: &str) -> impl Iterator<Item = &str> {
    text.lines().flat_map(|line| sentences(line).into_iter().map(move |at| &line[at]))
}

/// The clauses of a sentence: pieces between commas, colons, brackets, cells of a table, and before "but".
pub(super) fn clauses(sentence: &str) -> Vec<&str> {
    let mut clauses = Vec::new();
    let mut rest = sentence;
    while !rest.is_empty() {
        let end = clause_end(rest);
        let (clause, after) = rest.split_at(end);
        clauses.push(clause.trim());
        let mark = after.chars().next().map_or(0, char::len_utf8);
        rest = &after[mark..];
    }
    clauses.retain(|clause| clause.contains(char::is_alphanumeric));
    clauses
}

/// Offset of the first end of a clause.
fn clause_end(text: &str) -> usize {
    for (at, char) in text.char_indices() {
        let after = &text[at + char.len_utf8()..];
        let ends = match char {
            // A comma or colon inside a number is none.
            ',' | ';' | ':' | '.' | '!' | '?' => after.is_empty() || after.starts_with(char::is_whitespace),
            '(' | ')' | '|' | '–' | '—' | '。' | '、' | '，' => true,
            ' ' => ["but ", "aber ", "sondern "].iter().any(|word| after.starts_with(word)),
            _ => false,
        };
        if ends {
            return at;
        }
    }
    text.len()
}

/// Removes citation marks such as `[1]` and `[1, 2]`.
pub(super) fn without_marks(text: &str) -> String {
    let mut kept = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(open) = rest.find('[') {
        let (before, after) = rest.split_at(open);
        kept.push_str(before);
        let end = after.find(']').filter(|end| {
            let inside = &after[1..*end];
            inside.contains(|c: char| c.is_ascii_digit()) && inside.chars().all(|c| c.is_ascii_digit() || matches!(c, ',' | ' '))
        });
        match end {
            Some(end) => {
                kept.truncate(kept.trim_end_matches(' ').len());
                rest = &after[end + 1..];
            }
            None => {
                kept.push('[');
                rest = &after[1..];
            }
        }
    }
    kept + rest
}

/// Lower-case words, codes and numbers in order. A number and its unit are two.
fn tokens(text: &str) -> Vec<String> {
    let chars: Vec<char> = text.to_lowercase().chars().collect();
    let mut tokens = Vec::new();
    let mut token = String::new();
    for (at, &char) in chars.iter().enumerate() {
        let before = at.checked_sub(1).map(|at| chars[at]);
        let after = chars.get(at + 1).copied();
        let digit = |side: Option<char>| side.is_some_and(|c| c.is_ascii_digit());
        let letter = |side: Option<char>| side.is_some_and(char::is_alphabetic);
        if is_unspaced(char) {
            flush(&mut token, &mut tokens);
            tokens.push(char.to_string());
        } else if char.is_alphanumeric() {
            // "36mm"
            if char.is_alphabetic() && token.starts_with(|c: char| c.is_ascii_digit() || c == '-') {
                flush(&mut token, &mut tokens);
            }
            token.push(char);
        } else {
            match char {
                // "1.5", "x3.1", "2:00"
                '.' | ',' | ':' if digit(before) && digit(after) && !token.is_empty() => token.push(char),
                // "don't"
                '\'' | '’' if letter(before) && letter(after) => token.push('\''),
                // "e-17" is a code in one piece, "three-way" is two words, "1-2" two numbers.
                '-' if letter(before) && digit(after) => {}
                // "-7", not "1-7"
                '-' | '−' if digit(after) && !before.is_some_and(char::is_alphanumeric) => {
                    flush(&mut token, &mut tokens);
                    token.push('-');
                }
                _ => flush(&mut token, &mut tokens),
            }
        }
    }
    flush(&mut token, &mut tokens);
    tokens
}

fn flush(token: &mut String, tokens: &mut Vec<String>) {
    if !token.is_empty() {
        tokens.push(std::mem::take(token));
    }
}

/// Whether a script writes this letter without spaces between words: then each letter counts as a word.
fn is_unspaced(c: char) -> bool {
    matches!(c, '\u{0E00}'..='\u{0EFF}' | '\u{3040}'..='\u{30FF}' | '\u{3400}'..='\u{9FFF}' | '\u{F900}'..='\u{FAFF}')
}

fn is_one_of(words: &str, token: &str) -> bool {
    words.split(' ').any(|word| word == token)
}

fn is_negation(token: &str) -> bool {
    is_one_of(NEGATIONS, token) || token.ends_with("n't") || token.starts_with("kein")
}

/// A number in one spelling; `None` for other tokens.
fn number(token: &str) -> Option<String> {
    if let Some(at) = NUMBER_WORDS.iter().position(|(english, german)| *english == token || *german == token) {
        return Some((at + 2).to_string());
    }
    let digits = token.strip_prefix('-').unwrap_or(token);
    if !digits.starts_with(|c: char| c.is_ascii_digit()) || !digits.chars().all(|c| c.is_ascii_digit() || ".,:".contains(c)) {
        return None;
    }
    let sign = if token.starts_with('-') { "-" } else { "" };
    // "100,000"
    let groups: Vec<&str> = digits.split(',').collect();
    let thousands = groups.len() > 1 && groups[0].len() <= 3 && groups[1..].iter().all(|group| group.len() == 3);
    let plain = if thousands { digits.replace(',', "") } else { digits.replace(',', ".") };
    let plain = plain.trim_start_matches('0');
    let plain = if plain.contains('.') { plain.trim_end_matches('0').trim_end_matches('.') } else { plain };
    let plain = if plain.starts_with(|c: char| c.is_ascii_digit()) { plain.to_owned() } else { format!("0{plain}") };
    Some(format!("{sign}{plain}"))
}

/// A word's first letters; a code as it is.
fn stem(token: &str) -> String {
    if token.chars().any(|c| c.is_ascii_digit()) { token.to_owned() } else { token.chars().take(STEM).collect() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(words: &[&str]) -> BTreeSet<String> {
        words.iter().map(|word| (*word).to_owned()).collect()
    }

    #[test]
    fn numbers_have_one_spelling() {
        for (text, expected) in [
            ("1.5 bar, 1,5 bar and 01.50", &["1.5"][..]),
            ("100,000 writes", &["100000"]),
            ("-7 °C or 1-7", &["-7", "1", "7"]),
            ("36mm at 2:00", &["36", "2:00"]),
            ("two keys, zwei Tasten", &["2"]),
            ("0 and 0.0", &["0"]),
            ("1.Turn it. 2.Start", &["1", "2"]),
            ("E-17, R290, X3.1", &[]),
        ] {
            assert_eq!(Words::of(text).numbers, set(expected), "{text}");
        }
    }

    #[test]
    fn content_is_stems_and_codes() {
        assert_eq!(Words::of("E-17: the switches of E17 have opened").content, set(&["e17", "switc", "opene"]));
        assert_eq!(Words::of("X3.1 three-way valve").content, set(&["x3.1", "way", "valve"]));
        assert_eq!(Words::of("高圧 pump").content, set(&["高", "圧", "pump"]));
        assert!(Words::of("Yes, it is.").is_empty());
    }

    #[test]
    fn two_negations_cancel_each_other() {
        for (text, negated) in [
            ("Do not use solvents.", true),
            ("It can't be changed.", true),
            ("It cannot be changed without a reset.", false),
            ("Keine Lösungsmittel.", true),
            ("Use a cloth.", false),
            ("The note is nothing.", true),
        ] {
            assert_eq!(Words::of(text).negated, negated, "{text}");
        }
    }

    #[test]
    fn clauses_by_hand() {
        assert_eq!(
            clauses("The owner may look, but must not open it (1,5 bar): see E-17."),
            ["The owner may look", "but must not open it", "1,5 bar", "see E-17"]
        );
        assert_eq!(clauses("| E-38 | No connection |"), ["E-38", "No connection"]);
        assert_eq!(clauses("It is small but heavy"), ["It is small", "but heavy"]);
        assert!(clauses(" , ").is_empty());
    }

    #[test]
    fn marks_are_no_words() {
        assert_eq!(without_marks("Refill it [1]. See [12, 3], [a] and [ ]."), "Refill it. See, [a] and [ ].");
        assert_eq!(without_marks("Open ["), "Open [");
    }
}
