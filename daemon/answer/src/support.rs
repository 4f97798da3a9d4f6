//! Whether the passages that were read support a sentence of the answer.
//!
//! A sentence is compared with the statements of the passages word by word (stems, without the common words). It is held back if
//! it names a number, a code or a name that they do not hold, if it turns a statement into its opposite, or if too few of its
//! words stand in them. The passage that holds most of its words is cited.

use crate::languages::Words;
use library::retrieve::statements_of_chunk;
use library::store::terms::{self, Language};
use std::collections::{BTreeSet, HashSet};

/// Least share of a sentence's words that the statements behind it hold.
const LEAST_SUPPORT: f32 = 0.5;

/// Statements that may stand together behind one sentence.
const STATEMENTS: usize = 3;

/// Least share of a clause's words in another clause, for the two to say the same or the opposite.
const SAME_CLAUSE: f32 = 0.6;

/// A passage that the model has read.
#[derive(Debug)]
pub(super) struct ReadPassage {
    /// Its number in the citations.
    pub(super) n: usize,
    /// Title and headings.
    pub(super) heading: String,
    /// Its text.
    pub(super) text: String,
}

/// Why a sentence is held back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Fault {
    /// A number, code or name that the passages do not hold.
    Unknown(String),
    /// The opposite of a statement.
    Opposite,
    /// Too few of its words stand in the passages.
    Words,
}

/// The judgement of one sentence.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Checked {
    /// Share of its words that the statements behind it hold, 0 to 1.
    pub(super) support: f32,
    /// The number of the passage behind it.
    pub(super) n: Option<usize>,
    /// Why it is held back, if it is.
    pub(super) fault: Option<Fault>,
}

/// The passages that were read, prepared for comparison.
pub(super) struct Support<'a> {
    words: &'a Words,
    language: Language,
    statements: Vec<Statement>,
    clauses: Vec<Clause>,
    /// Terms of the passages, their headings, and the question.
    known: HashSet<String>,
    /// Terms of the question that the passages do not hold.
    only_asked: HashSet<String>,
    /// Numbers of the passages and the question.
    numbers: HashSet<String>,
}

struct Statement {
    n: usize,
    terms: BTreeSet<String>,
    /// Terms of the headings above it.
    heading: BTreeSet<String>,
}

/// A part of a sentence between two signs.
#[derive(Debug)]
struct Clause {
    terms: BTreeSet<String>,
    negated: bool,
}

impl<'a> Support<'a> {
    /// Prepares passages in `language` for answers to `question`.
    pub(super) fn new(words: &'a Words, language: Language, question: &str, passages: &[ReadPassage]) -> Self {
        let mut support = Self {
            words,
            language,
            statements: Vec::new(),
            clauses: Vec::new(),
            known: HashSet::new(),
            only_asked: HashSet::new(),
            numbers: HashSet::new(),
        };
        for passage in passages {
            let heading = support.terms(&passage.heading);
            support.known.extend(heading.iter().cloned());
            support.numbers.extend(support.numbers_of(&passage.heading));
            support.numbers.extend(support.numbers_of(&passage.text));
            for said in statements_of_chunk(&passage.text) {
                let terms = support.terms(&said.text);
                support.clauses.extend(support.clauses_of(&said.text));
                support.statements.push(Statement { n: passage.n, terms, heading: heading.clone() });
            }
            support.known.extend(support.terms(&passage.text));
        }
        let asked = support.terms(question);
        support.only_asked = asked.iter().filter(|term| !support.known.contains(*term)).cloned().collect();
        support.known.extend(asked);
        support.numbers.extend(support.numbers_of(question));
        support
    }

    /// Judges one sentence of the answer, without its marks.
    pub(super) fn check(&self, sentence: &str) -> Checked {
        let sentence = without_list_mark(sentence);
        let mut own = self.terms(sentence);
        own.retain(|term| !self.only_asked.contains(term));
        let (n, covered) = self.behind(&own);
        let support = if own.is_empty() { 1.0 } else { covered as f32 / own.len() as f32 };
        let fault = if let Some(unknown) = self.unknown(sentence) {
            Some(Fault::Unknown(unknown))
        } else if self.is_opposite(sentence) {
            Some(Fault::Opposite)
        } else {
            (support < LEAST_SUPPORT).then_some(Fault::Words)
        };
        Checked { support, n, fault }
    }

    /// Whether a text has one negation, or an odd number of them.
    pub(super) fn is_negated_text(&self, text: &str) -> bool {
        self.is_negated(&lower_words(text))
    }

    /// Whether a statement is bound to a condition or negated: nobody may leave that out.
    pub(super) fn is_bound(&self, statement: &str) -> bool {
        let words = lower_words(statement);
        words.iter().any(|word| self.words.conditions.contains(word)) || self.is_negated(&words)
    }

    /// Share of a statement's words that a text holds, 0 to 1.
    pub(super) fn told(&self, statement: &str, text: &str) -> f32 {
        let (own, text) = (self.terms(statement), self.terms(text));
        if own.is_empty() { 1.0 } else { own.intersection(&text).count() as f32 / own.len() as f32 }
    }

    /// The passage whose few best statements hold most of `own`, and how many terms they hold.
    fn behind(&self, own: &BTreeSet<String>) -> (Option<usize>, usize) {
        let mut numbers: Vec<usize> = self.statements.iter().map(|statement| statement.n).collect();
        numbers.dedup();
        let mut best = (None, 0);
        for n in numbers {
            let of = || self.statements.iter().filter(|statement| statement.n == n);
            let mut covered: BTreeSet<&String> = BTreeSet::new();
            for _ in 0..STATEMENTS {
                let new =
                    |statement: &Statement| statement.terms.iter().filter(|t| own.contains(*t) && !covered.contains(*t)).count();
                let Some(next) = of().max_by_key(|statement| new(statement)).filter(|statement| new(statement) > 0) else {
                    break;
                };
                covered.extend(own.iter().filter(|term| next.terms.contains(*term) || next.heading.contains(*term)));
            }
            if covered.len() > best.1 {
                best = (Some(n), covered.len());
            }
        }
        best
    }

    /// The first number, code or name of a sentence that neither the passages nor the question hold.
    fn unknown(&self, sentence: &str) -> Option<String> {
        if let Some(number) = self.numbers_of(sentence).into_iter().find(|number| !self.numbers.contains(number)) {
            return Some(number);
        }
        let mut begins = true;
        for word in sentence.split_whitespace() {
            let plain = word.trim_matches(|c: char| !c.is_alphanumeric());
            let is_name = !begins && self.language != Language::German && plain.chars().next().is_some_and(char::is_uppercase);
            begins = word.ends_with(['.', ':', '!', '?', '"', '“', '»', ')']);
            if plain.is_empty() || !(is_name || terms::is_code(&plain.to_lowercase())) {
                continue;
            }
            let own = self.terms(plain);
            if !own.is_empty() && own.iter().all(|term| !self.known.contains(term)) {
                return Some(plain.to_owned());
            }
        }
        None
    }

    /// Whether a clause of the sentence says the opposite of a clause that was read, and none that was read says the same.
    fn is_opposite(&self, sentence: &str) -> bool {
        self.clauses_of(sentence).iter().any(|own| {
            if own.terms.len() < 2 {
                return false;
            }
            let shared = |read: &Clause| own.terms.intersection(&read.terms).count() as f32 / own.terms.len() as f32;
            let best = |negated: bool| self.clauses.iter().filter(|read| read.negated == negated).map(shared).fold(0.0, f32::max);
            let (same, opposite) = (best(own.negated), best(!own.negated));
            opposite >= SAME_CLAUSE && opposite > same
        })
    }

    fn clauses_of(&self, text: &str) -> Vec<Clause> {
        let parts = text.split([',', ';', ':', '(', ')', '–', '—', '\n']).filter(|part| part.contains(char::is_alphanumeric));
        parts.map(|part| Clause { terms: self.terms(part), negated: self.is_negated(&lower_words(part)) }).collect()
    }

    /// Two negations cancel each other out, as in "do not use it without the filter".
    fn is_negated(&self, words: &[String]) -> bool {
        words.iter().filter(|word| self.words.negations.contains(word)).count() % 2 == 1
    }

    fn terms(&self, text: &str) -> BTreeSet<String> {
        let all = terms::analyze(text, self.language).terms.into_iter();
        let fixed = [&self.words.negations, &self.words.conditions, &self.words.yes, &self.words.no];
        all.filter(|term| fixed.iter().all(|words| !words.contains(term))).collect()
    }

    /// The numbers of a text as they are compared: without the signs between thousands, a decimal comma as a point, words as
    /// digits.
    fn numbers_of(&self, text: &str) -> Vec<String> {
        let mut numbers = digits_of(text);
        for word in lower_words(text) {
            // "One" is an article in many languages.
            if let Some(value) = self.words.numbers.iter().position(|number| *number == word).filter(|value| *value > 1) {
                numbers.push(value.to_string());
            }
        }
        numbers
    }
}

/// The words of a text in lower case. An apostrophe belongs to its word, for `don't`.
fn lower_words(text: &str) -> Vec<String> {
    let split = text.split(|c: char| !c.is_alphanumeric() && c != '\'' && c != '’');
    split.filter(|word| !word.is_empty()).map(|word| word.to_lowercase().replace('’', "'")).collect()
}

/// The numbers that a text writes with digits.
fn digits_of(text: &str) -> Vec<String> {
    let mut numbers = Vec::new();
    let mut rest = text;
    while let Some(start) = rest.find(|c: char| c.is_ascii_digit()) {
        rest = &rest[start..];
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.' && c != ',').unwrap_or(rest.len());
        let number = rest[..end].trim_end_matches(['.', ',']);
        rest = &rest[end..];
        numbers.push(canonical(number));
    }
    numbers
}

/// `1,000` and `1.000` become `1000`, `2,5` and `2.50` become `2.5`.
fn canonical(number: &str) -> String {
    let groups: Vec<&str> = number.split(['.', ',']).collect();
    if groups.len() > 1 && groups[1..].iter().all(|group| group.len() == 3) {
        return groups.concat();
    }
    match groups.as_slice() {
        [whole, decimals] if !decimals.trim_end_matches('0').is_empty() => format!("{whole}.{}", decimals.trim_end_matches('0')),
        [whole, _] => (*whole).to_owned(),
        _ => number.to_owned(),
    }
}

/// A sentence without the number or the bullet of a list before it.
pub(super) fn without_list_mark(sentence: &str) -> &str {
    let text = sentence.trim();
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let after = &text[digits..];
    if (1..=2).contains(&digits)
        && let Some(rest) = after.strip_prefix(". ").or_else(|| after.strip_prefix(") "))
    {
        return rest.trim_start();
    }
    text.strip_prefix(['-', '*', '•', '–']).map_or(text, str::trim_start)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::languages::Languages;
    use crate::prompts::LANGUAGES;

    const TEXT: &str = "To clean the filter, close valve V7 and open the cover. Rinse the filter with 2 litres of warm water. Do not use \
        detergent.\n\nFace unlock is only available on the Galaxy S10e. The pump runs for 1,500 hours. It does not need oil.";

    fn check(question: &str, sentence: &str) -> Checked {
        let languages = Languages::parse(LANGUAGES).expect("parses");
        let passage = ReadPassage { n: 2, heading: "Care > Filter".into(), text: TEXT.into() };
        Support::new(languages.of(Language::English), Language::English, question, &[passage]).check(sentence)
    }

    #[test]
    fn the_words_of_the_text_are_supported() {
        for sentence in [
            "1. Close valve V7 and open the cover.",
            "Rinse the filter with two litres of warm water.",
            "The pump runs for 1500 hours.",
            "Don't use detergent.",
            "You do not need oil.",
            "No, it is only available on the Galaxy S10e.",
            "Yes.",
        ] {
            let checked = check("How do I clean the filter?", sentence);
            assert_eq!(checked.fault, None, "{sentence} {checked:?}");
        }
        assert_eq!(check("How?", "Close valve V7.").n, Some(2));
    }

    #[test]
    fn inventions_are_held_back() {
        let unknown = |word: &str| Some(Fault::Unknown(word.into()));
        let question = "How do I clean the filter of model X9?";
        assert_eq!(check(question, "Rinse the filter with 3 litres of warm water.").fault, unknown("3"));
        assert_eq!(check(question, "Close valve V8 and open the cover.").fault, unknown("8"));
        assert_eq!(check(question, "Rinse the filter with Persil and water.").fault, unknown("Persil"));
        assert_eq!(check(question, "Use detergent.").fault, Some(Fault::Opposite));
        assert_eq!(check(question, "You can use detergent to rinse the filter.").fault, None, "a new thought with known words");
        assert_eq!(check(question, "The pump does need oil for hours.").fault, None);
        assert_eq!(check(question, "Face unlock is not available on the Galaxy S10e.").fault, Some(Fault::Opposite));
        assert_eq!(check(question, "Ask a friendly neighbour for assistance tomorrow.").fault, Some(Fault::Words));
    }

    #[test]
    fn numbers_are_compared_by_value() {
        assert_eq!(digits_of("1,000 and 1.000, 2,5 or 2.50; 10:30, 3.0."), ["1000", "1000", "2.5", "2.5", "10", "30", "3"]);
        assert_eq!(without_list_mark(" 12) Press"), "Press");
        assert_eq!(without_list_mark("2024. was"), "2024. was");
        assert_eq!(without_list_mark("- Press"), "Press");
    }

    #[test]
    fn negations_and_conditions_are_told() {
        let languages = Languages::parse(LANGUAGES).expect("parses");
        let support = Support::new(languages.of(Language::German), Language::German, "", &[]);
        assert!(support.is_negated_text("Das geht nie.") && !support.is_negated_text("Nicht ohne Filter!"));
        assert!(support.is_bound("Nur im Winter.") && support.is_bound("Das geht nicht.") && !support.is_bound("Das geht."));
        assert!((support.told("Nur im Winter heizen.", "im Winter") - 0.5).abs() < 1e-6);
    }
}
