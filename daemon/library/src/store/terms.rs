//! Text to terms, the same for documents (by [`super::Store::put`]) and for questions (by the `retrieve` room).
//!
//! Words come from Unicode segmentation (UAX #29). Case and accents are folded, stop words dropped, and words reduced to
//! Snowball stems. Stop words and stems are those of the document's language, told once at its put ([`language_of`]). A
//! question is analysed in each language of its library ([`analyze_question`]). Stemmers look at accents, but people leave them
//! out: a word whose stem would differ without its accents has both stems.
//!
//! A word that looks like a code is kept whole beside its parts. It can be found verbatim and in another spelling:
//!
//! | text | terms |
//! |---|---|
//! | `E-42` | `e-42` `e42` `e` `42` |
//! | `P0420` | `p0420` |
//! | `/etc/fstab` | `/etc/fstab` `etc` `fstab` |
//! | `192.168.1.1` | `192.168.1.1` `192` `168` `1` `1` |
//! | `self-test` | `selftest` `self` `test` |
//! | `3.5` | `3.5` |
//! | `C++` | `c++` `c` |
//! | `--force` | `--force` `forc` |
//! | `::1` | `::1` `1` |
//!
//! Scripts written without spaces (Han, Kana, Thai and neighbours) become overlapping pairs of characters.

use std::borrow::Cow;

use rust_stemmers::Stemmer;
use unicode_normalization::UnicodeNormalization;
use unicode_segmentation::UnicodeSegmentation;

pub use super::language::Language;

/// Version of the rules below. Raise it with every change of a text's terms: an index then makes the terms of older documents
/// anew.
pub(super) const VERSION: u32 = 2;

/// Longest term in bytes; longer ones are cut. Nobody asks for longer words.
const MAX_TERM_BYTES: usize = 64;

/// Signs that a code may begin with, as `--force`, `::1`, `.bashrc`, `$HOME`, `#include` and `./run` do.
const BEFORE: [char; 9] = ['-', ':', '.', '/', '$', '#', '@', '+', '%'];
/// Signs that a code may end with, as `C++` and `F#` do.
const AFTER: [char; 2] = ['+', '#'];
/// Most signs before or after a code that is no path. More signs are a rule or dots.
const MAX_SIGNS: usize = 2;

/// The terms of a text in order (repeats included), and its length in words as BM25 counts it.
#[derive(Debug, Default)]
pub struct Analysis {
    /// Terms; a code contributes several.
    pub terms: Vec<String>,
    /// Words that are not stop words; the extra forms of a code do not count.
    pub length: usize,
}

/// The terms of a text; the module tells how words, codes and scripts without spaces become terms.
pub fn analyze(text: &str, language: Language) -> Analysis {
    Analyzer::new(language, None).analyze(text)
}

/// The terms of a question in each of `languages`, in their order. If the question's own language can be told, its stop words
/// are dropped from all.
pub fn analyze_question(text: &str, languages: &[Language]) -> Vec<Analysis> {
    let own = if languages.len() > 1 { Language::of_question(words(&fold(text)), languages) } else { None };
    languages.iter().map(|&language| Analyzer::new(language, own).analyze(text)).collect()
}

/// The language of a document, told from its beginning.
pub fn language_of<'a>(parts: impl Iterator<Item = &'a str>) -> Language {
    let mut beginning = String::new();
    for part in parts {
        beginning.push_str(cut(part, LANGUAGE_BYTES));
        beginning.push('\n');
        if beginning.len() >= LANGUAGE_BYTES {
            break;
        }
    }
    Language::of_document(words(&fold(&beginning)))
}

/// The language of a question; `None` when it holds no common word of any.
pub fn language_of_question(text: &str) -> Option<Language> {
    Language::of_question(words(&fold(text)), &Language::all())
}

/// Whether a term is a code: letters and digits mixed, a path, an address, a word that begins or ends with signs.
pub fn is_code(term: &str) -> bool {
    let digits = term.contains(char::is_numeric);
    let separators = term.chars().filter(|c| !c.is_alphanumeric() && *c != '\'').count();
    (digits && (separators > 1 || term.contains(char::is_alphabetic)))
        || term.contains(['/', '\\', '_', '@'])
        || term.starts_with(BEFORE)
        || term.ends_with(AFTER)
}

/// Length of a document's beginning that its language is told from, in bytes.
const LANGUAGE_BYTES: usize = 16 * 1024;

/// The words of a folded text; an elided article stands for itself.
fn words(folded: &str) -> impl Iterator<Item = &str> {
    folded.unicode_words().flat_map(|word| word.split('\''))
}

/// Analyses text in one language.
struct Analyzer {
    language: Language,
    /// Another language whose stop words are dropped too.
    also: Option<Language>,
    stemmer: Stemmer,
    analysis: Analysis,
}

impl Analyzer {
    fn new(language: Language, also: Option<Language>) -> Analyzer {
        Analyzer { language, also, stemmer: language.stemmer(), analysis: Analysis::default() }
    }

    fn analyze(mut self, text: &str) -> Analysis {
        // The English stemmer knows no accents.
        let text = if self.language == Language::English { fold(text) } else { unify(text) };
        for token in text.split_whitespace() {
            self.add_token(token);
        }
        self.analysis
    }

    fn add_token(&mut self, token: &str) {
        for (piece, spaceless) in pieces(token) {
            let bare = trim(piece);
            if spaceless {
                self.add_pairs(bare);
                continue;
            }
            // A path that begins with `/` is kept whole below.
            for code in signed(piece).into_iter().flatten().filter(|code| *code != bare) {
                self.push(folded(code).into_owned());
            }
            if is_joined(bare) {
                self.add_code(bare);
            } else {
                for word in bare.unicode_words() {
                    self.add_word(word);
                }
            }
        }
    }

    /// Adds a code whole, without its separators, and by parts, as far as each is likely to be asked for.
    fn add_code(&mut self, code: &str) {
        let folded = folded(code);
        if is_decimal(&folded) {
            self.analysis.length += 1;
            self.push(folded.into_owned());
            return;
        }
        let digits = folded.contains(char::is_numeric);
        if digits || folded.contains(['/', '\\', '_', '@']) {
            self.push(folded.clone().into_owned());
        }
        if folded.contains(char::is_alphabetic) && (digits || folded.contains('-')) && !folded.contains(['/', '\\', '@']) {
            self.push(folded.chars().filter(|c| c.is_alphanumeric()).collect());
        }
        let parts = code.split(|c: char| !c.is_alphanumeric()).filter(|part| !part.is_empty());
        for part in parts {
            self.add_word(part);
        }
    }

    fn add_word(&mut self, word: &str) {
        // "l'eau" is an article and a word; "pump's" is a word and its base form.
        if self.language != Language::English && word.contains('\'') {
            return word.split('\'').for_each(|part| self.add_word(part));
        }
        let word = cut(word.strip_suffix("'s").unwrap_or(word), MAX_TERM_BYTES);
        let bare = folded(word);
        if bare.is_empty() || [Some(self.language), self.also].into_iter().flatten().any(|l| l.is_stop_word(&bare)) {
            return;
        }
        self.analysis.length += 1;
        if !bare.chars().all(|c| c.is_alphabetic() || c == '\'') {
            return self.push(bare.into_owned());
        }
        let stem = folded(&self.stemmer.stem(word)).into_owned();
        if bare != word && word.contains(|c: char| c.is_ascii_alphabetic()) {
            let other = self.stemmer.stem(&bare);
            if other != stem {
                let other = other.into_owned();
                self.push(other);
            }
        }
        self.push(stem);
    }

    fn push(&mut self, term: String) {
        self.analysis.terms.push(term);
    }

    /// Overlapping pairs of characters; a single character stands for itself.
    fn add_pairs(&mut self, run: &str) {
        let starts: Vec<usize> = run.char_indices().map(|(at, _)| at).chain([run.len()]).collect();
        self.analysis.length += starts.len() - 1;
        if starts.len() == 2 {
            self.push(run.to_owned());
        }
        self.analysis.terms.extend(starts.windows(3).map(|pair| run[pair[0]..pair[2]].to_owned()));
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

/// Lower case, compatibility forms and punctuation unified; accents stay.
fn unify(text: &str) -> String {
    if text.is_ascii() {
        return text.to_ascii_lowercase();
    }
    text.nfkc().flat_map(char::to_lowercase).nfc().filter_map(plain).collect()
}

/// [`unify`], and diacritics removed. Marks that carry vowels (Devanagari, Thai) stay.
fn fold(text: &str) -> String {
    if text.is_ascii() {
        return text.to_ascii_lowercase();
    }
    let bare = text.nfkd().filter(|&c| !is_diacritic(c)).flat_map(char::to_lowercase).filter(|&c| !is_diacritic(c)).nfc();
    let mut folded = String::with_capacity(text.len());
    for c in bare.filter_map(plain) {
        match c {
            'ß' => folded.push_str("ss"),
            'ς' => folded.push('σ'),
            'æ' => folded.push_str("ae"),
            'ø' => folded.push('o'),
            'ł' => folded.push('l'),
            'ı' => folded.push('i'),
            other => folded.push(other),
        }
    }
    folded
}

/// [`fold`], without a copy of text that is folded already.
fn folded(text: &str) -> Cow<'_, str> {
    let plain = text.is_ascii() && !text.bytes().any(|b| b.is_ascii_uppercase());
    if plain { Cow::Borrowed(text) } else { Cow::Owned(fold(text)) }
}

/// One spelling of apostrophes and hyphens; `None` for invisible characters.
fn plain(c: char) -> Option<char> {
    match c {
        '\u{2019}' | '\u{2018}' => Some('\''),
        '\u{2010}'..='\u{2013}' => Some('-'),
        '\u{ad}' | '\u{200b}'..='\u{200d}' | '\u{feff}' => None,
        other => Some(other),
    }
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
    token.len() <= MAX_TERM_BYTES && token.contains(is_separator) && token.chars().all(is_part)
}

fn is_separator(c: char) -> bool {
    matches!(c, '-' | '_' | '.' | '/' | '\\' | ':' | '@' | '+' | '#' | ',')
}

fn is_part(c: char) -> bool {
    c.is_alphanumeric() || is_separator(c)
}

/// The codes in a token that begin or end with signs, without the punctuation around them. One stands at the token's beginning
/// and one at its end, or one is both. A number with a sign is a number, unless the sign is `::`.
fn signed(token: &str) -> [Option<&str>; 2] {
    let end = token.trim_end_matches(|c: char| !c.is_alphanumeric()).len();
    let start = end - token[..end].trim_start_matches(|c: char| !c.is_alphanumeric()).len();
    let before = start - token[..start].trim_end_matches(BEFORE).len();
    let after = token[end..].len() - token[end..].trim_start_matches(AFTER).len();
    let is_path = token[start - before..start].contains('/');
    let before = if before <= MAX_SIGNS || is_path { before } else { 0 };
    let after = if after <= MAX_SIGNS { after } else { 0 };
    let core = &token[start..end];
    let first = start + core.find(|c| !is_part(c)).unwrap_or(core.len());
    let last = end - core.rsplit(|c| !is_part(c)).next().unwrap_or(core).len();
    let code = |from: usize, to: usize, signs: usize| {
        let code = &token[from..to];
        let named = code.contains(char::is_alphabetic) || code.starts_with("::");
        (signs > 0 && named && code.len() <= MAX_TERM_BYTES).then_some(code)
    };
    if first == end {
        return [code(start - before, end + after, before + after), None];
    }
    [code(start - before, first, before), code(last, end + after, after)]
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
        analyze(text, Language::English).terms
    }

    fn terms_in(language: Language, text: &str) -> Vec<String> {
        analyze(text, language).terms
    }

    #[test]
    fn stems_follow_the_language() {
        use Language as L;
        for (language, one, other) in [
            (L::German, "die Pumpen", "Pumpe"),
            (L::German, "Überdrücke", "uberdruck"),
            (L::French, "les réglages de l\u{2019}eau", "réglage eau"),
            (L::French, "vérifiées", "vérifié"),
            (L::French, "vérifiées", "verifiees"),
            (L::Spanish, "configuraciones", "la configuración"),
            (L::Spanish, "configuración", "configuracion"), // typos: ignore
            (L::Italian, "i filtri", "dell'filtro"),
            (L::Russian, "фильтры", "фильтра"),
            (L::Swedish, "pumparna", "pumpar"),
        ] {
            let (one, other) = (terms_in(language, one), terms_in(language, other));
            assert!(other.iter().any(|term| one.contains(term)), "{language:?} {one:?} {other:?}");
        }
        assert_eq!(terms_in(L::German, "Wie wird die Pumpe entlüftet?"), ["pump", "entluftet"]);
        assert_eq!(terms_in(L::German, "Fehler E-17 an der Pumpe"), ["fehl", "e-17", "e17", "e", "17", "an", "pump"]);
    }

    #[test]
    fn questions_are_analysed_in_every_language() {
        use Language as L;
        let both = analyze_question("Wie wird die Pumpe entlüftet?", &[L::English, L::German]);
        assert_eq!(both[1].terms, ["pump", "entluftet"]);
        assert_eq!(both[0].terms, ["pump", "entluftet"], "its own stop words are dropped in English, too");
        let english = analyze_question("Which cells die?", &[L::English, L::German]);
        assert_eq!(english[0].terms, ["cell", "die"]);
        assert_eq!(analyze_question("pumps", &[L::English])[0].terms, ["pump"]);
        assert!(analyze_question("pumps", &[]).is_empty());
    }

    #[test]
    fn a_document_tells_its_language() {
        let german = "Die Wärmepumpe wird von der Regelung abgeschaltet, wenn der Druck zu hoch ist."; // typos: ignore
        assert_eq!(language_of([german].into_iter()), Language::German);
        assert_eq!(language_of(["| E-17 | 3 bar |", ""].into_iter()), Language::English);
        assert_eq!(language_of(std::iter::empty()), Language::English);
    }

    #[test]
    fn words_are_folded_and_stemmed() {
        assert_eq!(terms("The Pumps are RUNNING"), ["pump", "run"]);
        assert_eq!(terms("Überdruck naïve STRASSE"), terms("uberdruck NAÏVE Straße"));
        assert_eq!(terms("Überdruck naïve Straße"), ["uberdruck", "naiv", "strass"]);
        assert_eq!(terms("the TV\u{2019}s remote"), ["tv", "remot"]);
        assert_eq!(terms("turn it on or off, not up"), ["turn", "on", "off", "not", "up"]);
        assert_eq!(analyze("The Pumps are RUNNING", Language::English).length, 2);
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
    fn signs_before_and_after_a_code_belong_to_it() {
        assert_eq!(terms("C++"), ["c++", "c"]);
        assert_eq!(terms("Is it (C#)?"), ["c#", "c"]);
        assert_eq!(terms("::1"), ["::1", "1"]);
        assert_eq!(terms("\"-z\","), ["-z", "z"]);
        assert_eq!(terms("`--force`, `--force=yes`"), ["--force", "forc", "--force", "forc", "yes"]);
        assert_eq!(terms("**\u{2010}x**"), ["-x", "x"], "hyphens have one spelling");
        assert_eq!(terms(".NET $HOME/bin"), [".net", "net", "$home/bin", "home/bin", "home", "bin"]);
        assert_eq!(terms("/etc ../lib"), ["/etc", "etc", "../lib", "lib"]);
        assert_eq!(terms("--std=c++"), ["--std", "c++", "std", "c"]);
        assert_eq!(analyze("use --force", Language::English).length, 2, "the extra form does not count");
        // Numbers, rules, dots and mere punctuation.
        assert_eq!(terms("-5 +49 $100 #3 .5 18+"), ["5", "49", "100", "3", "5", "18"]);
        assert_eq!(terms("...well ---- ---done *note* _note_ (note)"), ["well", "done", "note", "note", "note"]);
        assert_eq!(terms_in(Language::German, "mit --größe"), ["--grosse", "gross"]);
        assert_eq!(terms(&format!("--{}", "x".repeat(70))).len(), 1);
    }

    #[test]
    fn codes_are_told_from_words_and_numbers() {
        assert!(["e-42", "p0420", "m3x10", "/etc/fstab", "192.168.1.1", "max_size"].iter().all(|term| is_code(term)));
        assert!(["c++", "c#", "::1", "-z", "--force", ".net", "$home"].iter().all(|term| is_code(term)));
        assert!(["pump", "1998", "3.5", "don't", "42"].iter().all(|term| !is_code(term)));
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
