//! Text to terms, the same for documents (by [`super::Store::put`]) and for questions (by the `retrieve` room).
//!
//! Words by Unicode segmentation (UAX #29), case and accents folded, English stop words dropped, English Snowball stems.
//! What looks like a code is kept whole beside its parts, so that it can be found verbatim and in another spelling:
//!
//! | text | terms |
//! |---|---|
//! | `E-42` | `e-42` `e42` `e` `42` |
//! | `P0420` | `p0420` |
//! | `/etc/fstab` | `/etc/fstab` `etc` `fstab` |
//! | `192.168.1.1` | `192.168.1.1` `192` `168` `1` `1` |
//! | `self-test` | `selftest` `self` `test` |
//! | `3.5` | `3.5` |
//!
//! Scripts written without spaces (Han, Kana, Thai and neighbours) become overlapping pairs of characters.

use rust_stemmers::{Algorithm, Stemmer};
use unicode_normalization::UnicodeNormalization;
use unicode_segmentation::UnicodeSegmentation;

/// A term is cut here; longer ones are not words anyone asks for.
const MAX_TERM_BYTES: usize = 64;

/// Words too common to tell passages apart (sorted). Deliberately without `on off no not up down in out`-like words that
/// name positions of a switch or a direction in a manual, except where they are mostly grammar (`in`, `of`, `to`).
const STOP_WORDS: [&str; 72] = [
    "a", "about", "an", "and", "any", "are", "as", "at", "be", "been", "but", "by", "can", "could", "did", "do", "does", "for",
    "from", "had", "has", "have", "he", "her", "his", "how", "i", "if", "in", "into", "is", "it", "its", "may", "me", "my", "of",
    "or", "our", "s", "she", "should", "so", "such", "t", "than", "that", "the", "their", "them", "then", "there", "these",
    "they", "this", "those", "to", "was", "we", "were", "what", "when", "where", "which", "who", "why", "will", "with", "would",
    "you", "your", "yours",
];

/// The terms of a text in order (repeats included), and its length in words as BM25 counts it.
#[derive(Debug, Default)]
pub struct Analysis {
    /// Terms; a code contributes several.
    pub terms: Vec<String>,
    /// Words that are not stop words; the extra forms of a code do not count.
    pub length: usize,
}

/// The terms of a text; see the module for what becomes of words, codes and scripts without spaces.
pub fn analyze(text: &str) -> Analysis {
    let folded = fold(text);
    let stemmer = Stemmer::create(Algorithm::English);
    let mut analysis = Analysis::default();
    for token in folded.split_whitespace() {
        analysis.add_token(token, &stemmer);
    }
    analysis
}

impl Analysis {
    fn add_token(&mut self, token: &str, stemmer: &Stemmer) {
        for (piece, spaceless) in pieces(token) {
            let piece = trim(piece);
            if spaceless {
                self.add_pairs(piece);
            } else if is_joined(piece) {
                self.add_code(piece, stemmer);
            } else {
                for word in piece.unicode_words() {
                    self.add_word(word, stemmer);
                }
            }
        }
    }

    /// A code whole, without its separators, and by parts, as far as each is likely to be asked for.
    fn add_code(&mut self, code: &str, stemmer: &Stemmer) {
        if is_decimal(code) {
            self.length += 1;
            self.terms.push(code.to_owned());
            return;
        }
        let parts = code.split(|c: char| !c.is_alphanumeric()).filter(|part| !part.is_empty());
        let digits = code.contains(char::is_numeric);
        if digits || code.contains(['/', '\\', '_', '@']) {
            self.terms.push(code.to_owned());
        }
        if code.contains(char::is_alphabetic) && (digits || code.contains('-')) && !code.contains(['/', '\\', '@']) {
            self.terms.push(parts.clone().collect());
        }
        for part in parts {
            self.add_word(part, stemmer);
        }
    }

    fn add_word(&mut self, word: &str, stemmer: &Stemmer) {
        let word = word.strip_suffix("'s").unwrap_or(word);
        if STOP_WORDS.binary_search(&word).is_ok() {
            return;
        }
        self.length += 1;
        let word = cut(word, MAX_TERM_BYTES);
        if word.bytes().all(|b| b.is_ascii_alphabetic() || b == b'\'') {
            self.terms.push(stemmer.stem(word).into_owned());
        } else {
            self.terms.push(word.to_owned());
        }
    }

    /// Overlapping pairs of characters; a single character stands for itself.
    fn add_pairs(&mut self, run: &str) {
        let starts: Vec<usize> = run.char_indices().map(|(at, _)| at).chain([run.len()]).collect();
        self.length += starts.len() - 1;
        if starts.len() == 2 {
            self.terms.push(run.to_owned());
        }
        self.terms.extend(starts.windows(3).map(|pair| run[pair[0]..pair[2]].to_owned()));
    }
}

/// At most `bytes` of the beginning of a text, never half a character.
pub(crate) fn cut(text: &str, bytes: usize) -> &str {
    let mut end = bytes.min(text.len());
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

/// Lower case, compatibility forms unified, diacritics removed. Marks that carry vowels (Devanagari, Thai) stay.
fn fold(text: &str) -> String {
    text.nfkd().filter(|&c| !is_diacritic(c)).flat_map(char::to_lowercase).filter(|&c| !is_diacritic(c)).nfc().fold(
        String::with_capacity(text.len()),
        |mut folded, c| {
            match c {
                'ß' => folded.push_str("ss"),
                'ς' => folded.push('σ'),
                'æ' => folded.push_str("ae"),
                'ø' => folded.push('o'),
                'ł' => folded.push('l'),
                'ı' => folded.push('i'),
                '\u{2019}' | '\u{2018}' => folded.push('\''),
                '\u{2010}'..='\u{2013}' => folded.push('-'),
                '\u{ad}' | '\u{200b}'..='\u{200d}' | '\u{feff}' => {}
                other => folded.push(other),
            }
            folded
        },
    )
}

/// Combining accents of Latin, Greek and Cyrillic, Hebrew points and Arabic vowel signs.
fn is_diacritic(c: char) -> bool {
    matches!(c, '\u{300}'..='\u{36f}' | '\u{591}'..='\u{5bd}' | '\u{64b}'..='\u{652}' | '\u{1ab0}'..='\u{1aff}'
        | '\u{1dc0}'..='\u{1dff}' | '\u{20d0}'..='\u{20ff}')
}

/// Drops punctuation around a token; a leading `/` of a path stays.
fn trim(token: &str) -> &str {
    let token = token.trim_end_matches(|c: char| !c.is_alphanumeric());
    let bare = token.trim_start_matches(|c: char| !c.is_alphanumeric());
    let before = &token[..token.len() - bare.len()];
    if before.ends_with('/') && bare.contains('/') { &token[before.len() - 1..] } else { bare }
}

/// At least two parts of letters and digits held together by the separators of codes, paths, addresses and numbers.
fn is_joined(token: &str) -> bool {
    let is_separator = |c| matches!(c, '-' | '_' | '.' | '/' | '\\' | ':' | '@' | '+' | '#' | ',');
    token.len() <= MAX_TERM_BYTES && token.contains(is_separator) && token.chars().all(|c| c.is_alphanumeric() || is_separator(c))
}

/// `3.5`, `1,000`: digits around one point or comma.
fn is_decimal(token: &str) -> bool {
    token.split_once(['.', ',']).is_some_and(|(whole, fraction)| {
        [whole, fraction].iter().all(|part| !part.is_empty() && part.chars().all(char::is_numeric))
    })
}

fn is_spaceless(c: char) -> bool {
    matches!(c, '\u{e00}'..='\u{eff}' | '\u{1000}'..='\u{109f}' | '\u{1780}'..='\u{17ff}' | '\u{3005}'
        | '\u{3041}'..='\u{30ff}' | '\u{3400}'..='\u{4dbf}' | '\u{4e00}'..='\u{9fff}' | '\u{f900}'..='\u{faff}'
        | '\u{20000}'..='\u{3ffff}')
}

/// Splits a token into runs with and without spaces between words.
fn pieces(token: &str) -> Vec<(&str, bool)> {
    let mut pieces: Vec<(&str, bool)> = Vec::new();
    let mut start = 0;
    let mut kind = None;
    for (at, c) in token.char_indices() {
        let spaceless = is_spaceless(c);
        if kind.is_some_and(|kind| kind != spaceless) {
            pieces.push((&token[start..at], !spaceless));
            start = at;
        }
        kind = Some(spaceless);
    }
    if let Some(kind) = kind {
        pieces.push((&token[start..], kind));
    }
    pieces
}

#[cfg(test)]
mod tests {
    use super::*;

    fn terms(text: &str) -> Vec<String> {
        analyze(text).terms
    }

    #[test]
    fn stop_words_are_sorted_for_the_search() {
        assert!(STOP_WORDS.is_sorted());
    }

    #[test]
    fn words_are_folded_stemmed_and_stripped_of_stop_words() {
        assert_eq!(terms("The Pumps are RUNNING"), ["pump", "run"]);
        assert_eq!(terms("Überdruck naïve STRASSE"), terms("uberdruck NAÏVE Straße"));
        assert_eq!(terms("Überdruck naïve Straße"), ["uberdruck", "naiv", "strass"]);
        assert_eq!(terms("the TV\u{2019}s remote"), ["tv", "remot"]);
        assert_eq!(terms("turn it on or off, not up"), ["turn", "on", "off", "not", "up"]);
        assert_eq!(analyze("The Pumps are RUNNING").length, 2);
    }

    #[test]
    fn codes_are_kept_whole_and_by_parts() {
        assert_eq!(terms("Error E-42."), ["error", "e-42", "e42", "e", "42"]);
        assert_eq!(terms("(P0420)"), ["p0420"]);
        assert_eq!(terms("M3x10"), ["m3x10"]);
        assert_eq!(terms("edit /etc/fstab,"), ["edit", "/etc/fstab", "etc", "fstab"]);
        assert_eq!(terms("192.168.1.1"), ["192.168.1.1", "192", "168", "1", "1"]);
        assert_eq!(terms("self-test"), ["selftest", "self", "test"]);
        assert_eq!(terms("3.5 bar, 1,000 h"), ["3.5", "bar", "1,000", "h"]);
        assert_eq!(terms("A-12"), ["a-12", "a12", "12"], "a stop word that is part of a code eats nothing but itself");
    }

    #[test]
    fn every_spelling_of_a_code_meets_the_others() {
        for (asked, written) in [("E42", "E-42"), ("e-42", "E-42"), ("fstab", "/etc/fstab"), ("p0420", "P0420:")] {
            let written = terms(written);
            assert!(terms(asked).iter().any(|term| written.contains(term)), "{asked} {written:?}");
        }
    }

    #[test]
    fn scripts_without_spaces_become_pairs() {
        assert_eq!(terms("暖房装置"), ["暖房", "房装", "装置"]);
        assert_eq!(terms("弁"), ["弁"]);
        assert_eq!(terms("E-42エラー"), ["e-42", "e42", "e", "42", "エラ", "ラー"]);
    }

    #[test]
    fn terms_are_bounded() {
        let long = "é".repeat(500) + "漢";
        assert!(terms(&long).iter().all(|term| term.len() <= MAX_TERM_BYTES));
        let joined = "a-1".repeat(100);
        assert!(terms(&joined).iter().all(|term| term.len() <= MAX_TERM_BYTES));
        assert!(terms("--- ... /// \u{301}").is_empty());
    }
}
