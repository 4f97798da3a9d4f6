//! Fixed words by language, and the kinds of questions that they tell (`config/prompts/languages.toml`).

use library::store::terms::{self, Language};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The kind of answer that a question asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// A procedure.
    Steps,
    /// A name, a number, a date, a place.
    Value,
    /// Yes or no, with the condition.
    YesNo,
    /// Several things.
    List,
    /// The meaning of an error code.
    Code,
    /// One to three sentences.
    Explanation,
}

/// The words of one language. All are lower case.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Words {
    /// The language's English name.
    pub name: String,
    /// The answer when the library holds none.
    pub not_found: String,
    /// The answer while the library is not whole, with `{have}` and `{of}`.
    pub not_yet: String,
    /// The source for the ear, with `{title}` and `{place}`.
    pub source: String,
    /// The place in a source with pages, with `{page}`.
    pub page: String,
    #[serde(default)]
    steps: Vec<String>,
    #[serde(default)]
    yes_no: Vec<String>,
    #[serde(default)]
    list: Vec<String>,
    #[serde(default)]
    code: Vec<String>,
    #[serde(default)]
    explanation: Vec<String>,
    /// Beginnings of questions that ask what a thing is. With more words the question is about a part of it: a value.
    #[serde(default)]
    definition: Vec<String>,
    #[serde(default)]
    value: Vec<String>,
    /// Words that turn a statement into its opposite.
    #[serde(default)]
    pub(super) negations: Vec<String>,
    /// Words that bind a statement to a condition.
    #[serde(default)]
    pub(super) conditions: Vec<String>,
    /// The beginning of an answer that agrees.
    #[serde(default)]
    pub(super) yes: Vec<String>,
    /// The beginning of an answer that denies.
    #[serde(default)]
    pub(super) no: Vec<String>,
    /// Parts of a sentence by which a model says that the text holds no answer.
    #[serde(default)]
    silent: Vec<String>,
    /// Words of a question that goes on from the one before.
    #[serde(default)]
    follow_ups: Vec<String>,
    /// Parts of questions that ask for a number.
    #[serde(default)]
    amounts: Vec<String>,
    /// The numbers from zero on, as words.
    #[serde(default)]
    pub(super) numbers: Vec<String>,
}

/// Least bytes of an opening that tells a language against its common words.
const SEVERAL_WORDS: usize = 8;

/// Most words of a thing in a question that asks what it is.
const DEFINED_WORDS: usize = 3;

/// The words of all languages.
#[derive(Debug, Clone)]
pub struct Languages(BTreeMap<Language, Words>);

impl Languages {
    /// Parses a table of languages.
    ///
    /// # Errors
    /// The text is no such table, or English is missing.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let table: BTreeMap<Language, Words> = toml::from_str(text).map_err(|e| e.to_string())?;
        if table.contains_key(&Language::English) { Ok(Self(table)) } else { Err("the table [en] is missing".into()) }
    }

    /// Takes over the keys of another table; a language's other keys stay as `built_in` has them.
    pub(super) fn replace(&mut self, text: &str, built_in: &str) -> Result<(), String> {
        let tables = |text: &str| toml::from_str::<BTreeMap<Language, toml::Table>>(text).map_err(|e| e.to_string());
        let mut known = tables(built_in)?;
        for (language, own) in tables(text)? {
            let mut table = known.remove(&language).unwrap_or_default();
            table.extend(own);
            let words = table.try_into().map_err(|e| format!("the table of {language:?}: {e}"))?;
            self.0.insert(language, words);
        }
        Ok(())
    }

    /// The words of a language; English where there are none.
    pub fn of(&self, language: Language) -> &Words {
        self.0.get(&language).unwrap_or_else(|| &self.0[&Language::English])
    }

    /// The language of a question: as an opening of several words tells, else its common words, else its opening. `None` if
    /// nothing tells; codes do not.
    pub fn language_of(&self, question: &str) -> Option<Language> {
        let asked = lower(question);
        let words: Vec<&str> = asked.split_whitespace().filter(|word| !terms::is_code(plain(word))).collect();
        let fits = self.0.iter().filter_map(|(language, words)| Some((words.longest_opening(&asked)?, *language)));
        let opening = fits.max_by_key(|(length, _)| *length);
        let by_words = terms::language_of_question(&words.join(" "));
        let own = by_words.and_then(|language| self.of(language).longest_opening(&asked));
        match opening {
            // "Was" alone is English as well as German.
            Some((length, language)) if length >= SEVERAL_WORDS && own.is_none_or(|own| length > own) => Some(language),
            _ => by_words.or(opening.map(|(_, language)| language)),
        }
    }
}

impl Words {
    /// Whether a question seems to go on from the one before: it names a thing by a pronoun, or begins with "and".
    pub(super) fn is_follow_up(&self, question: &str) -> bool {
        let question = lower(question);
        question.split_whitespace().map(plain).any(|word| self.follow_ups.iter().any(|other| other == word))
    }

    /// Whether a sentence says that the text holds no answer.
    pub(super) fn is_silent(&self, sentence: &str) -> bool {
        let sentence = sentence.to_lowercase();
        self.silent.iter().any(|part| sentence.contains(part.as_str()))
    }

    /// Whether a question in lower case asks what a thing is, in few words.
    fn is_definition(&self, asked: &str) -> bool {
        let Some(opening) = longest(&self.definition, asked) else { return false };
        let words = asked.get(opening..).map_or(0, |rest| rest.split_whitespace().count());
        (1..=DEFINED_WORDS).contains(&words) && longest(&self.value, asked) <= Some(opening)
    }

    /// Whether a question asks which code it is: it speaks of codes, and names none.
    pub(super) fn asks_for_code(&self, question: &str) -> bool {
        self.speaks_of_codes(&lower(question)) && codes_of(question).is_empty()
    }

    fn speaks_of_codes(&self, asked: &str) -> bool {
        self.code.iter().any(|word| fits(word, asked))
    }

    /// Whether a question asks for a number or a date.
    pub(super) fn asks_for_number(&self, question: &str) -> bool {
        let asked = lower(question);
        self.amounts.iter().any(|opening| fits(opening, &asked))
    }

    /// The kind of a question in this language. A table tells by its openings; the longest one that fits counts.
    pub fn kind(&self, question: &str) -> Kind {
        let asked = lower(question);
        let codes = codes_of(question).len();
        if codes > 0 && (codes == words_of(question).count() || self.speaks_of_codes(&asked)) {
            return Kind::Code;
        }
        if self.is_definition(&asked) {
            return Kind::Explanation;
        }
        // Of equal lengths the first kind counts.
        let openings = self.openings();
        let longest = |openings: &[String]| longest(openings, &asked);
        let found = openings.iter().rev().filter_map(|(kind, openings)| Some((longest(openings)?, *kind)));
        let found = found.max_by_key(|(length, _)| *length);
        let anywhere = || asked.split_whitespace().map(plain).any(|word| self.value.iter().any(|opening| opening == word));
        let otherwise = if anywhere() { Kind::Value } else { Kind::Explanation };
        found.map_or(otherwise, |(_, kind)| kind)
    }
}

impl Words {
    fn openings(&self) -> [(Kind, &[String]); 5] {
        [
            (Kind::Steps, &self.steps),
            (Kind::YesNo, &self.yes_no),
            (Kind::List, &self.list),
            (Kind::Explanation, &self.explanation),
            (Kind::Value, &self.value),
        ]
    }

    /// Length of the longest opening that fits.
    fn longest_opening(&self, asked: &str) -> Option<usize> {
        self.openings().iter().filter_map(|(_, openings)| longest(openings, asked)).max()
    }
}

/// A question in lower case, without the signs before it.
fn lower(question: &str) -> String {
    question.trim().trim_start_matches(|c: char| !c.is_alphanumeric()).to_lowercase()
}

/// Length of the longest opening that fits.
fn longest(openings: &[String], asked: &str) -> Option<usize> {
    openings.iter().filter(|opening| fits(opening, asked)).map(String::len).max()
}

/// A word without the signs around it.
fn plain(word: &str) -> &str {
    word.trim_matches(|c: char| !c.is_alphanumeric())
}

/// The words of a text in lower case, without the signs around them.
pub(super) fn words_of(text: &str) -> impl Iterator<Item = String> {
    text.split_whitespace().map(|word| plain(word).to_lowercase()).filter(|word| !word.is_empty())
}

/// The codes that a question names.
pub(super) fn codes_of(question: &str) -> Vec<String> {
    words_of(question).filter(|word| terms::is_code(word)).collect()
}

/// Whether a question opens with these words. `*` before them: it holds them anywhere. `*` between them: anything stands there.
/// `*` behind them: its next word may go on.
fn fits(opening: &str, asked: &str) -> bool {
    let inner = opening.trim_end_matches('*');
    if let Some((first, rest)) = inner.split_once('*') {
        let mut left = if first.is_empty() { Some(asked) } else { asked.strip_prefix(first) };
        for part in rest.split('*') {
            left = left.and_then(|left| left.find(part).map(|at| &left[at + part.len()..]));
        }
        return left.is_some();
    }
    let open_end = opening.ends_with(['*', ' ', '\'']);
    asked.strip_prefix(opening.trim_end_matches('*')).is_some_and(|rest| open_end || !rest.starts_with(char::is_alphanumeric))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::prompts::LANGUAGES;

    #[test]
    fn questions_tell_their_kind() {
        let languages = Languages::parse(LANGUAGES).expect("parses");
        let questions = [
            ("How do I reset the controller?", Kind::Steps),
            ("What should I do to change the filter?", Kind::Steps),
            ("Tell me how to clean it", Kind::Steps),
            ("Can I use tap water?", Kind::YesNo),
            ("Is it possible to stop the pump?", Kind::YesNo),
            ("How many bar does the pump give?", Kind::Value),
            ("Which team won?", Kind::Value),
            ("In what year was it built?", Kind::Value),
            ("What colour is the lamp?", Kind::Value),
            ("Who installed it?", Kind::Value),
            ("What does error E-17 mean?", Kind::Code),
            ("What does the red lamp mean?", Kind::Explanation),
            ("Why does it hum?", Kind::Explanation),
            ("What happens if the pressure falls?", Kind::Explanation),
            ("What are the parts of the set?", Kind::List),
            ("What is a three-way valve?", Kind::Explanation),
            ("What are cookies?", Kind::Explanation),
            ("What is the largest pressure of the circuit?", Kind::Value),
            ("What are private schools in Germany called?", Kind::Value),
            ("The pump took how many hours?", Kind::Value),
            ("The pump hums. What should I do?", Kind::Steps),
            ("Where do I find the filter?", Kind::Steps),
            ("Where did they live?", Kind::Value),
            ("Was sind Cookies?", Kind::Explanation),
            ("E-17?", Kind::Code),
            ("Was bedeutet F2?", Kind::Code),
            ("Along with the pump, what is delivered?", Kind::Value),
            ("Wie stelle ich die Uhr?", Kind::Steps),
            ("Was bedeutet der Fehler E-17?", Kind::Code),
            ("Wie viel Wasser fasst der Tank?", Kind::Value),
            ("Kann ich Leitungswasser verwenden?", Kind::YesNo),
            ("Comment changer le filtre ?", Kind::Steps),
            ("¿Cómo se cambia el filtro?", Kind::Steps),
            ("¿Cuántos litros caben?", Kind::Value),
        ];
        for (question, kind) in questions {
            let words = languages.of(languages.language_of(question).unwrap_or_default());
            assert_eq!(words.kind(question), kind, "{question} ({})", words.name);
        }
    }

    #[test]
    fn every_language_has_its_fixed_words() {
        let languages = Languages::parse(LANGUAGES).expect("parses");
        assert_eq!(languages.0.len(), 18, "every language with a stemmer");
        for (language, words) in &languages.0 {
            for text in [&words.name, &words.not_found, &words.not_yet, &words.source, &words.page] {
                assert!(!text.is_empty(), "{language:?}");
            }
            assert!(
                words.source.contains("{title}") && words.source.contains("{place}") && words.page.contains("{page}"),
                "{language:?}"
            );
            assert!(words.not_yet.contains("{have}") && words.not_yet.contains("{of}"), "{language:?}");
            assert!(!words.negations.is_empty() && !words.conditions.is_empty() && !words.yes.is_empty() && !words.no.is_empty());
        }
        assert!(
            Languages::parse("[de]\nname = \"x\"\nnot_found = \"\"\nnot_yet = \"\"\nsource = \"\"\npage = \"\"").is_err(),
            "no English"
        );
    }
}
