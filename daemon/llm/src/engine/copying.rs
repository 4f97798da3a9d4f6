//! Answers that are a run of words of the passages, copied token by token.
//!
//! A small model that is asked for "a few words of the text" knows the place, and yet writes numbers that stand nowhere or begins
//! to retell. Here each token is the likeliest among those that go on with the text, so the answer is always a run of its words.
//! Decoding within the input is an old idea (pointer networks, Vinyals et al. 2015, arXiv 1506.03134).

use super::lane::log_sum;
use super::prompt::data_tokens;
use crate::has_no_spaces;
use llama_cpp_2::model::LlamaModel;
use llama_cpp_2::token::LlamaToken;
use std::sync::Arc;

/// Most places where an answer may begin; the rest of the text is left out.
const MOST_STARTS: usize = 1000;

/// Characters behind a place that its first token is taken from.
const FIRST_CHARS: usize = 24;

/// Longest run, in characters.
const MOST_CHARS: usize = 240;

/// Taken off the logit of an end where the run is not whole.
const NOT_WHOLE: f32 = 4.0;

/// The asker's view of the runs of a text.
pub trait CopyRules: std::fmt::Debug + Send + Sync {
    /// Added to the logit of a run's first token. The run begins at the byte `at` of a line.
    fn at_start(&self, line: &str, at: usize) -> f32;

    /// Whether a run may stand as an answer.
    fn is_whole(&self, run: &str) -> bool;
}

/// Texts by which a model ends an answer, beside its own end tokens.
const ENDS: [&str; 6] = ["\n", "\n\n", ".\n", ".\n\n", "\"", "\".\n"];

/// The tokens that end an answer.
pub(super) fn ends(model: &LlamaModel) -> Vec<LlamaToken> {
    let vocab = model.vocab();
    let single = |text: &&str| match data_tokens(model, text).as_slice() {
        [token] => Some(*token),
        _ => None,
    };
    let of_answers = (0..model.n_vocab()).map(LlamaToken).filter(|token| vocab.is_eog(*token));
    of_answers.chain(ENDS.iter().filter_map(single)).collect()
}

/// A run of words on its way out of a text.
pub(super) struct Copier {
    text: String,
    ends: Vec<LlamaToken>,
    rules: Arc<dyn CopyRules>,
    /// The runs that agree with the tokens said so far; before the first one, all that may begin.
    runs: Vec<Run>,
    said: usize,
    certainty: Option<f64>,
    /// Whether the answer has ended where it may.
    whole: bool,
}

/// A place in the text, with the tokens from there on.
struct Run {
    start: usize,
    /// The first token alone until it is said.
    tokens: Vec<LlamaToken>,
    /// Whether its first letter is a capital, other than in the text.
    capital: bool,
    /// Added to the logit of its first token.
    bonus: f32,
}

impl Copier {
    pub(super) fn new(model: &LlamaModel, text: String, rules: Arc<dyn CopyRules>, ends: Vec<LlamaToken>) -> Self {
        let mut runs = Vec::new();
        for start in starts(&text).into_iter().take(MOST_STARTS) {
            let line = text[..start].rfind('\n').map_or(0, |at| at + 1);
            let bonus = rules.at_start(text[line..].lines().next().unwrap_or(""), start - line);
            for capital in [false, true] {
                let written = written(&text, start, capital, FIRST_CHARS);
                let differs = !capital || !text[start..].starts_with(&written);
                if let Some(first) = data_tokens(model, &written).first().filter(|_| differs) {
                    runs.push(Run { start, tokens: vec![*first], capital, bonus });
                }
            }
        }
        Self { text, ends, rules, runs, said: 0, certainty: None, whole: false }
    }

    /// The next token; `None` at the end of the answer.
    pub(super) fn choose(&mut self, model: &LlamaModel, logits: &[f32]) -> Option<LlamaToken> {
        if self.said == 1 {
            for run in &mut self.runs {
                let tokens = data_tokens(model, &written(&self.text, run.start, run.capital, MOST_CHARS));
                // A long word may be divided otherwise than its beginning was.
                if tokens.first() == run.tokens.first() {
                    run.tokens = tokens;
                }
            }
        }
        let logit = |token: LlamaToken| logits.get(token.0 as usize).copied().unwrap_or(f32::NEG_INFINITY);
        let bonus = |run: &Run| if self.said == 0 { run.bonus } else { 0.0 };
        let next = |run: &Run| run.tokens.get(self.said).map(|token| (*token, logit(*token) + bonus(run)));
        let candidates = self.runs.iter().filter_map(next);
        let Some((best, likely)) = candidates.max_by(|a, b| a.1.total_cmp(&b.1)) else {
            self.whole = self.may_end(model) == Some(true);
            return None;
        };
        if self.said == 0 {
            let mut firsts: Vec<LlamaToken> = self.runs.iter().filter_map(|run| run.tokens.first().copied()).collect();
            firsts.sort_unstable_by_key(|token| token.0);
            firsts.dedup();
            let all = log_sum(logits.iter().copied());
            let copied = log_sum(firsts.iter().map(|token| logit(*token)));
            self.certainty = Some((copied - all) + (f64::from(logit(best)) - all));
        } else {
            let end = self.ends.iter().map(|end| logit(*end)).fold(f32::NEG_INFINITY, f32::max);
            let ends = |whole: bool| end - if whole { 0.0 } else { NOT_WHOLE } >= likely;
            if ends(true)
                && let Some(whole) = self.may_end(model).filter(|whole| ends(*whole))
            {
                self.whole = whole;
                return None;
            }
        }
        self.runs.retain(|run| run.tokens.get(self.said) == Some(&best));
        self.said += 1;
        Some(best)
    }

    /// See [`super::Completion::certainty`].
    pub(super) fn certainty(&self) -> Option<f64> {
        self.certainty.filter(|certainty| self.whole && !certainty.is_nan())
    }

    /// If one of the runs may end here, whether it is whole.
    fn may_end(&self, model: &LlamaModel) -> Option<bool> {
        let mut piece = Vec::new();
        self.runs.iter().find_map(|run| {
            let mut said = Vec::new();
            for token in run.tokens.iter().take(self.said) {
                piece.clear();
                model.vocab().token_to_piece_into(*token, &mut piece, false, None);
                said.extend_from_slice(&piece);
            }
            // Some vocabularies write a space before the first word.
            let length = said.len() - usize::from(said.starts_with(b" "));
            let at = run.start + length;
            is_end(&self.text, at).then(|| self.rules.is_whole(&self.text[run.start..at]))
        })
    }
}

/// The places where a run may begin: words with the signs that belong to them. `-5` without its sign, or a part of `3.5`, would
/// be another value.
fn starts(text: &str) -> Vec<usize> {
    let mut places = Vec::new();
    let (mut first, mut before) = (' ', ' ');
    for (at, c) in text.char_indices() {
        let quotes = matches!(c, '"' | '“' | '„' | '«');
        let signed = is_sign(before) && !first.is_alphanumeric() || is_joint(before) && first.is_alphanumeric();
        let word = c.is_alphanumeric() && !signed && (!before.is_alphanumeric() || has_no_spaces(c));
        if word || (quotes && before.is_whitespace()) || (is_sign(c) && !before.is_alphanumeric()) {
            places.push(at);
        }
        (first, before) = (before, c);
    }
    places
}

/// Whether a sign before a number or a word changes its meaning.
fn is_sign(c: char) -> bool {
    matches!(c, '$' | '€' | '£' | '-' | '−' | '+' | '<' | '>' | '≤' | '≥' | '±' | '~')
}

/// Whether a run may end before the byte `at`: not in a word, and not in a number such as `51.6%`.
fn is_end(text: &str, at: usize) -> bool {
    let (Some(before), Some(after)) = (text.get(..at), text.get(at..)) else { return false };
    let mut before = before.chars().rev();
    let Some(last) = before.next() else { return false };
    let joined = before.next().is_some_and(char::is_alphanumeric) && after.starts_with(char::is_alphanumeric);
    let mut after = after.chars();
    let Some(next) = after.next() else { return true };
    let joins = last.is_alphanumeric() && after.next().is_some_and(char::is_alphanumeric);
    match next {
        '%' | '°' | ')' => false,
        _ if joined && is_joint(last) => false,
        _ if is_joint(next) => !joins,
        _ => !(last.is_alphanumeric() && next.is_alphanumeric()) || has_no_spaces(next),
    }
}

/// Whether a sign joins letters and digits into one word.
fn is_joint(sign: char) -> bool {
    matches!(sign, '.' | ',' | '\'' | '’' | '-' | '‑' | '/' | ':' | '_')
}

/// At most `most` characters from a place to the end of its line, or of its cell in a table. `capital`: the first one is a
/// capital letter.
fn written(text: &str, start: usize, capital: bool, most: usize) -> String {
    let mut letters = text[start..].chars().take(most).take_while(|c| !matches!(c, '\n' | '|'));
    let first = letters.next();
    // A capital of another length would move the places behind it.
    let single = |c: char| {
        let mut upper = c.to_uppercase();
        upper.next().filter(|first| upper.next().is_none() && first.len_utf8() == c.len_utf8())
    };
    // `kPa` is a unit.
    let mixed = text[start..].chars().nth(1).is_some_and(char::is_uppercase);
    let upper = first.filter(|_| capital && !mixed).and_then(single);
    upper.or(first).into_iter().chain(letters).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_begin_at_words_and_their_signs() {
        let at = |text: &str| starts(text).iter().map(|at| text[*at..].to_owned()).collect::<Vec<_>>();
        assert_eq!(at("It's 5°C"), ["It's 5°C", "5°C", "C"]);
        assert_eq!(at("to -5 (max)"), ["to -5 (max)", "-5 (max)", "max)"]);
        assert_eq!(at("(-5 °C)"), ["-5 °C)", "C)"]);
        assert_eq!(at("E-17 −0.8"), ["E-17 −0.8", "−0.8"]);
        assert_eq!(at("\"We are\""), ["\"We are\"", "We are\"", "are\""]);
        assert_eq!(at("水泵"), ["水泵", "泵"]);
    }

    #[test]
    fn runs_end_with_whole_words_and_numbers() {
        let ends =
            |text: &str| (1..=text.len()).filter(|at| is_end(text, *at)).map(|at| text[..at].to_owned()).collect::<Vec<_>>();
        assert_eq!(ends("51.6% of"), ["51.6%", "51.6% ", "51.6% of"]);
        assert_eq!(ends("V-7, on."), ["V-7", "V-7,", "V-7, ", "V-7, on", "V-7, on."]);
        assert_eq!(ends("水泵"), ["水", "水泵"]);
        assert_eq!(ends("né"), ["né"], "no half characters");
    }

    #[test]
    fn a_run_stays_in_its_line_or_cell() {
        assert_eq!(written("| E-17 | high | x |", 9, false, 99), "high ");
        let text = "over half\nof it";
        assert_eq!(written(text, 0, false, 99), "over half");
        assert_eq!(written(text, 5, true, 3), "Hal");
        assert_eq!(written("ßa", 0, true, 9), "ßa");
        assert_eq!(written("kPa", 0, true, 9), "kPa");
        assert_eq!(written("ŉa", 0, true, 9), "ŉa");
    }
}
