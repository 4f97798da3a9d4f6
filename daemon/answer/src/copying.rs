//! The rules for an answer that is a run of words of the passages: where it should begin, and when it is whole.

use crate::languages::Words;
use library::store::terms::{self, Language};
use llm::engine::CopyRules;
use std::collections::HashSet;

/// Sentences whose words are favoured.
pub(super) const FAVOURED: usize = 2;

/// Added to the logits of first words of the best sentence; half of it for the second best. The encoder knows the place better
/// than a small model does.
const FAVOUR: f32 = 2.0;

/// Taken off the logits of first words that stand in the question: small models like to repeat them.
const REPEATED: f32 = 3.0;

/// Added to the logits of numbers where the question asks for one.
const NUMBER: f32 = 2.0;

/// Added to the logits of codes where the question asks for one.
const CODE: f32 = 4.0;

/// Taken off the logits of first words of headings: a path of headings is no answer.
const HEADING: f32 = 100.0;

/// Weight of the generator's certainty in the confidence, and the constant beside it. With them some 95 % of the answerable
/// questions of xquad-en-a keep a confidence of 0.5, as they do before the reading (`benches/results/answers.md`).
const CERTAINTY_WEIGHT: f64 = 0.5;
const CERTAINTY_BIAS: f64 = 0.9;

/// Certainty below which a copied answer is a guess, and the sentences are told instead. With -3, -2 and -1 the answers contain
/// the gold one more often, and token F1 falls (`benches/results/answers.md`).
pub(super) const GUESS: f64 = -2.0;

/// The confidence of retrieval, joined by the generator's certainty of a copied answer (`llm::engine::Completion::certainty`).
/// Certainty 0 gives the highest confidence that reading can lead to.
pub(super) fn confidence(retrieval: f32, certainty: f64) -> f32 {
    let odds = f64::from(retrieval) / (1.0 - f64::from(retrieval)).max(1e-9);
    let odds = odds * (CERTAINTY_WEIGHT * certainty + CERTAINTY_BIAS).exp();
    (odds / (1.0 + odds)) as f32
}

/// The rules of one question.
#[derive(Debug)]
pub(super) struct SpanRules {
    language: Language,
    /// Terms of the question.
    asked: HashSet<String>,
    /// The best sentences, best first.
    favoured: Vec<String>,
    /// Lines that are headings.
    headings: Vec<String>,
    /// Whether a number is asked for.
    number: bool,
    /// Whether a code is asked for.
    code: bool,
    /// Words that are numbers.
    numbers: Vec<String>,
}

impl SpanRules {
    /// `words`: of the question's language, which is the passages' too.
    pub(super) fn new(question: &str, language: Language, words: &Words, favoured: Vec<String>, headings: Vec<String>) -> Self {
        Self {
            language,
            asked: terms::analyze(question, language).terms.into_iter().collect(),
            favoured,
            headings,
            number: words.asks_for_number(question),
            code: words.asks_for_code(question),
            numbers: words.numbers.clone(),
        }
    }

    /// Whether a text has terms, and all of them stand in the question.
    fn repeats(&self, text: &str) -> bool {
        let own = terms::analyze(text, self.language).terms;
        !own.is_empty() && own.iter().all(|term| self.asked.contains(term))
    }

    fn is_number(&self, word: &str) -> bool {
        word.contains(|c: char| c.is_numeric()) || self.numbers.contains(&word.to_lowercase())
    }
}

impl CopyRules for SpanRules {
    fn at_start(&self, line: &str, at: usize) -> f32 {
        if self.headings.iter().any(|heading| heading.trim() == line.trim()) {
            return -HEADING;
        }
        let word = line[at..].split(|c: char| c.is_whitespace()).next().unwrap_or("");
        let plain = word.trim_matches(|c: char| !c.is_alphanumeric());
        let is_in =
            |sentence: &String| line.find(sentence.trim()).is_some_and(|from| (from..from + sentence.trim().len()).contains(&at));
        let rank = self.favoured.iter().position(is_in);
        let favour = rank.map_or(0.0, |rank| FAVOUR / (rank + 1) as f32);
        let number = if self.number && self.is_number(plain) { NUMBER } else { 0.0 };
        let repeated = if self.repeats(plain) { REPEATED } else { 0.0 };
        let code = if self.code && terms::is_code(&plain.to_lowercase()) { CODE } else { 0.0 };
        favour + number + code - repeated
    }

    fn is_whole(&self, run: &str) -> bool {
        let last = run.split_whitespace().next_back().unwrap_or("");
        terms::analyze(last, self.language).length > 0 && !self.repeats(run)
    }
}

/// A run without the signs at its ends: points, and brackets and quotation marks that have no partner in it.
pub(super) fn trimmed(run: &str) -> &str {
    const PAIRS: [(char, char); 6] = [('(', ')'), ('[', ']'), ('"', '"'), ('“', '”'), ('„', '“'), ('«', '»')];
    let mut run = run.trim();
    loop {
        let before = run.len();
        run = run.trim_end_matches(['.', ',', ';', ':', '?', '!']).trim();
        for (open, close) in PAIRS {
            let lonely = |c: char, other: char| {
                run.contains(c) && if c == other { run.matches(c).count() == 1 } else { !run.contains(other) }
            };
            if lonely(close, open) {
                run = run.trim_end_matches(close).trim();
            }
            if lonely(open, close) {
                run = run.trim_start_matches(open).trim();
            }
        }
        if run.len() == before {
            return run;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::languages::Languages;
    use crate::prompts::LANGUAGES;

    fn rules(question: &str) -> SpanRules {
        let languages = Languages::parse(LANGUAGES).expect("parses");
        let favoured = vec!["The pump gives 29 bar.".to_owned(), "It has five stages.".to_owned()];
        SpanRules::new(question, Language::English, languages.of(Language::English), favoured, vec!["Manual > Pump".into()])
    }

    #[test]
    fn the_best_sentence_and_numbers_are_favoured() {
        let asked = rules("Which pressure does the pump give?");
        let at = |line: &str, word: &str| asked.at_start(line, line.find(word).expect("held"));
        let (best, second, other) = ("The pump gives 29 bar.", "It has five stages.", "Other pumps give 29 bar.");
        let is = |bonus: f32, wanted: f32, why: &str| assert!((bonus - wanted).abs() < 1e-6, "{why}: {bonus}");
        is(at("Manual > Pump", "Pump"), -HEADING, "a heading");
        is(at(best, "29"), FAVOUR, "the best sentence");
        is(at(second, "five"), FAVOUR / 2.0, "the second");
        is(at(other, "29"), 0.0, "another");
        is(at(other, "pumps"), -REPEATED, "another form of a word that was asked");
        let asked = rules("How many stages does it have?");
        is(asked.at_start(second, 7), FAVOUR / 2.0 + NUMBER, "a number as a word");
        is(asked.at_start(second, 0), FAVOUR / 2.0, "no number");
    }

    #[test]
    fn an_answer_says_more_than_the_question() {
        let asked = rules("What is the Dutch word for the pump?");
        for (run, whole) in
            [("Dutch", false), ("the pump", false), ("Dutch: pomp", true), ("pomp of the", false), ("5 bar", true)]
        {
            assert_eq!(asked.is_whole(run), whole, "{run}");
        }
    }

    #[test]
    fn certainty_moves_the_confidence() {
        assert!((confidence(0.5, -2.0 * CERTAINTY_BIAS) - 0.5).abs() < 1e-6);
        assert!(confidence(0.5, 0.0) > 0.6 && confidence(0.5, -8.0) < 0.1);
        assert!(confidence(0.25, 0.0) < 0.5, "an unknown code stays unknown");
        for (retrieval, certainty) in [(1.0, f64::NEG_INFINITY), (0.0, 0.0), (1.0, 0.0)] {
            assert!((0.0..=1.0).contains(&confidence(retrieval, certainty)), "{retrieval} {certainty}");
        }
    }

    #[test]
    fn lonely_signs_at_the_ends_go() {
        for (run, wanted) in [
            ("7.4%)", "7.4%"),
            ("the filter (left)", "the filter (left)"),
            (" 18.;", "18"),
            ("\"We are beggars,\"", "\"We are beggars,\""),
            ("\"We are beggars", "We are beggars"),
            ("“Ja", "Ja"),
            ("f(x", "f(x"),
        ] {
            assert_eq!(trimmed(run), wanted, "{run}");
        }
    }
}
