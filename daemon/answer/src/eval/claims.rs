//! Whether the sentences of an answer stand in its sources, by their words alone.
//!
//! An answer is compared sentence by sentence with the sentences of the sources. The judge knows no meaning: it sees words,
//! numbers and negations. So it is the same for every generator, and its mistakes are those of no model.

use std::collections::BTreeSet;

use super::words::{Words, clauses, held, sentences_of_lines};
use library::retrieve::sentences;

/// Share of a sentence's words that a place in a source must hold to support it.
const SUPPORTS: f64 = 0.6;
/// Share of a clause's words that a sentence must hold, or F1 that a clause must reach, to be about the same.
const SAME: f64 = 0.6;
/// Fewest words of a clause that can be compared.
const LEAST_WORDS: usize = 2;

/// A sentence of a source.
struct Sentence {
    words: Words,
    clauses: Vec<Words>,
}

impl Sentence {
    fn of(text: &str) -> Sentence {
        Sentence { words: Words::of(text), clauses: clauses(text).into_iter().map(Words::of).collect() }
    }
}

/// A text that answers are compared with: its sentences, list items and table rows in order.
pub(super) struct Source(Vec<Sentence>);

impl Source {
    /// A document, whose lines may run on.
    pub(super) fn of(text: &str) -> Source {
        Source(sentences(text).into_iter().map(|at| Sentence::of(&text[at])).collect())
    }

    /// A quote or a gold answer: a sentence ends with its line.
    pub(super) fn of_lines(text: &str) -> Source {
        Source(sentences_of_lines(text).map(Sentence::of).collect())
    }

    /// A sentence together with its neighbours: an answer may join what stands in two.
    fn windows(&self) -> impl Iterator<Item = (BTreeSet<String>, BTreeSet<String>)> + '_ {
        (0..self.0.len()).map(|at| {
            let near = &self.0[at.saturating_sub(1)..(at + 2).min(self.0.len())];
            let all = |part: fn(&Words) -> &BTreeSet<String>| near.iter().flat_map(|said| part(&said.words)).cloned().collect();
            (all(|words| &words.content), all(|words| &words.numbers))
        })
    }
}

/// How many sentences of an answer the sources support, and how many can be judged. A supported sentence has most of its words
/// and all of its numbers in neighbouring sentences of one source, and turns no negation round.
pub(super) fn supported(answer: &str, sources: &[Source]) -> (usize, usize) {
    let windows: Vec<_> = sources.iter().flat_map(Source::windows).collect();
    let holds = |said: &Words| {
        windows.iter().any(|(content, numbers)| held(&said.content, content) >= SUPPORTS && said.numbers.is_subset(numbers))
    };
    let (mut supported, mut judged) = (0, 0);
    for sentence in sentences_of_lines(answer) {
        let said = Words::of(without_number(sentence));
        if !said.is_empty() {
            judged += 1;
            supported += usize::from(holds(&said) && !contradicts_negation(sentence, sources));
        }
    }
    (supported, judged)
}

/// Whether a clause of the answer negates what the clause most like it does not, or the other way round.
pub(super) fn contradicts_negation(answer: &str, sources: &[Source]) -> bool {
    let known = || sources.iter().flat_map(|source| &source.0).flat_map(|sentence| &sentence.clauses);
    clauses_of(answer).any(|said| {
        let alike =
            |negated: bool| known().filter(|other| other.negated == negated).map(|other| f1(&said, other)).fold(0.0, f64::max);
        let (same, other) = (alike(said.negated), alike(!said.negated));
        other >= SAME && other > same
    })
}

/// Whether a clause of the answer has a number that the sentence most like it lacks, and that sentence has others.
pub(super) fn contradicts_number(answer: &str, sources: &[Source]) -> bool {
    let known = || sources.iter().flat_map(|source| &source.0).map(|sentence| &sentence.words);
    clauses_of(answer).filter(|said| !said.numbers.is_empty()).any(|said| {
        let likeness = |other: &Words| held(&said.content, &other.content);
        let most = known().map(likeness).fold(0.0, f64::max);
        let mut alike = known().filter(|other| likeness(other) >= most).peekable();
        let has_others = alike.clone().any(|other| !other.numbers.is_empty());
        most >= SAME && alike.peek().is_some() && has_others && !alike.any(|other| said.numbers.is_subset(&other.numbers))
    })
}

/// The clauses of an answer that have enough words to be compared.
fn clauses_of(answer: &str) -> impl Iterator<Item = Words> + '_ {
    let words = sentences_of_lines(answer).map(without_number).map(without_verdict).flat_map(clauses).map(Words::of);
    words.filter(|words| words.content.len() >= LEAST_WORDS)
}

/// A list item without its number.
fn without_number(sentence: &str) -> &str {
    let rest = sentence.trim_start().trim_start_matches(|c: char| c.is_ascii_digit());
    match rest.strip_prefix(['.', ')']) {
        Some(item) if rest.len() < sentence.trim_start().len() && !item.starts_with(|c: char| c.is_ascii_digit()) => item,
        _ => sentence,
    }
}

/// A sentence without "yes" or "no" in front: that is the verdict, and negates nothing. "No solvents" keeps its first word.
fn without_verdict(sentence: &str) -> &str {
    let start = sentence.trim_start_matches(|c: char| !c.is_alphanumeric());
    let (word, rest) = start.split_at(start.find(|c: char| !c.is_alphanumeric()).unwrap_or(start.len()));
    let next = rest.strip_prefix(' ').and_then(|rest| rest.chars().next());
    match word.to_lowercase().as_str() {
        "yes" | "ja" | "nein" => rest,
        "no" if !next.is_some_and(char::is_lowercase) => rest,
        _ => sentence,
    }
}

fn f1(a: &Words, b: &Words) -> f64 {
    let shared = a.content.intersection(&b.content).count();
    if shared < LEAST_WORDS { 0.0 } else { 2.0 * shared as f64 / (a.content.len() + b.content.len()) as f64 }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MANUAL: &str = "Wipe the housing with a damp cloth. Do not use solvents or sprays.\n\n\
        | Fuse | Value |\n|---|---|\n| Fuse F1 (controller) | 2 A slow-blow |\n| Fuse F2 (circulation pump) | 4 A slow-blow |\n\n\
        The owner may change settings in the user menu, but must not open the housing.\n\
        The choice cannot be changed later without a factory reset. Fill slowly until the display shows 1.5 bar.";

    fn sources() -> Vec<Source> {
        vec![Source::of(MANUAL)]
    }

    #[test]
    fn support_by_hand() {
        for (answer, expected) in [
            ("Use a damp cloth to wipe the housing.", (1, 1)),
            ("Wipe the housing. Then polish everything carefully by hand.", (1, 2)),
            // Joined from two neighbours.
            ("Wipe the housing with a damp cloth, never use sprays.", (1, 1)),
            ("Fill until the display shows 2.5 bar.", (0, 1)),
            ("1. Wipe the housing.\n2. Fill slowly to 1,5 bar.", (2, 2)),
            ("Fuse: F1; Value: 2 A\nCall the service of the maker", (1, 2)),
            ("Use solvents or sprays.", (0, 1)),
            ("Yes.", (0, 0)),
            ("", (0, 0)),
        ] {
            assert_eq!(supported(answer, &sources()), expected, "{answer}");
        }
    }

    #[test]
    fn negations_turned_round_are_found() {
        for (answer, contradicts) in [
            ("You can use solvents or sprays.", true),
            ("Never use solvents.", false),
            ("Do not wipe the housing with a damp cloth.", true),
            ("The owner may change settings in the user menu.", false),
            ("The owner may open the housing.", true),
            ("It can be changed later with a factory reset.", false),
            ("Do not touch the antenna.", false),
            ("No. Do not use sprays.", false),
            ("No Wipe the housing with a damp cloth.", false),
            ("No solvents or sprays may be used.", false),
            ("**No**, do not use solvents or sprays.", false),
        ] {
            assert_eq!(contradicts_negation(answer, &sources()), contradicts, "{answer}");
        }
    }

    #[test]
    fn exchanged_numbers_are_found() {
        for (answer, contradicts) in [
            ("The fuse F1 of the controller has 2 A.", false),
            ("The fuse F1 of the controller has 4 A.", true),
            ("Fuse F2 has 4 A, fuse F1 has 2 A.", false),
            ("Fill until the display shows 2.5 bar.", true),
            ("Fill until the display shows 1,5 bar.", false),
            ("1. Fill slowly.", false),
            // A number where the source has none is not supported, but contradicts nothing.
            ("Wipe the housing with 3 damp cloths.", false),
            ("The antenna has 5 dB of gain.", false),
        ] {
            assert_eq!(contradicts_number(answer, &sources()), contradicts, "{answer}");
        }
        assert!(!contradicts_number("Fill to 1.5 bar.", &[]) && !contradicts_negation("Do not fill it slowly.", &[]));
    }
}
