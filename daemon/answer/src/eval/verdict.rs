//! Whether an answer says yes where yes is right, no where no is right, and names the condition where there is one.

use super::beir::Verdict;
use super::claims::{Source, contradicts_negation};
use super::words::{Words, held};
use serde::Serialize;

/// Words that name a condition, English and German, separated by `|`.
const CONDITIONAL: &str = "only|if|unless|when|except|provided|until|after|before|while|during|without|as long as|up to|at most|at least|nur|\
    wenn|falls|sofern|außer|solange|bis|nachdem|erst|während|ohne|sobald|mindestens|höchstens";
/// Share of the gold answer's words that make an answer without "yes" or "no" about the same.
const SAME: f64 = 0.5;

/// How an answer compares with the right verdict.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Judgement {
    /// It says the same.
    Right,
    /// It says the opposite, or leaves the condition out.
    Opposite,
    /// It says neither.
    Unclear,
}

/// Compares an answer with the right verdict. The first word tells; without "yes" or "no" the gold answers do: an answer with
/// most of their words agrees, unless it negates what they do not.
pub(super) fn judge(answer: &str, verdict: Verdict, gold: &[String]) -> Judgement {
    let says = says(answer);
    match (verdict, says) {
        (Verdict::NoAnswer, _) => Judgement::Unclear,
        (Verdict::OnlyIf, _) => match says {
            _ if names_condition(answer) => Judgement::Right,
            Some(_) => Judgement::Opposite,
            None => Judgement::Unclear,
        },
        (Verdict::Yes | Verdict::No, Some(yes)) if yes == (verdict == Verdict::Yes) => Judgement::Right,
        (Verdict::Yes | Verdict::No, Some(_)) => Judgement::Opposite,
        (Verdict::Yes | Verdict::No, None) => {
            let sources: Vec<Source> = gold.iter().map(|gold| Source::of_lines(gold)).collect();
            let said = Words::of(answer);
            if contradicts_negation(answer, &sources) {
                Judgement::Opposite
            } else if gold.iter().any(|gold| held(&Words::of(gold).content, &said.content) >= SAME) {
                Judgement::Right
            } else {
                Judgement::Unclear
            }
        }
    }
}

/// Whether the answer begins with "yes", "no" or "only".
pub(super) fn is_outright(answer: &str) -> bool {
    says(answer).is_some() || matches!(first_word(answer).as_deref(), Some("only" | "nur"))
}

/// Whether the answer begins with "yes" or with "no".
fn says(answer: &str) -> Option<bool> {
    match first_word(answer)?.as_str() {
        "yes" | "ja" => Some(true),
        "no" | "nein" => Some(false),
        _ => None,
    }
}

fn first_word(answer: &str) -> Option<String> {
    answer.split(|c: char| !c.is_alphanumeric()).find(|word| !word.is_empty()).map(str::to_lowercase)
}

fn names_condition(answer: &str) -> bool {
    let words: Vec<String> = answer.to_lowercase().split(|c: char| !c.is_alphanumeric()).map(str::to_owned).collect();
    let text = format!(" {} ", words.join(" "));
    CONDITIONAL.split('|').any(|word| text.contains(&format!(" {word} ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(answer: &str, verdict: Verdict, gold: &str) -> Judgement {
        judge(answer, verdict, &[gold.to_owned()])
    }

    #[test]
    fn the_first_word_tells() {
        let gold = "No. Do not use solvents or sprays.";
        assert_eq!(judged("No, never.", Verdict::No, gold), Judgement::Right);
        assert_eq!(judged("**Yes**, you can.", Verdict::No, gold), Judgement::Opposite);
        assert_eq!(judged("Nein.", Verdict::Yes, "Ja."), Judgement::Opposite);
    }

    #[test]
    fn without_a_first_word_the_sentence_tells() {
        let gold = "No. Do not use solvents or sprays.";
        assert_eq!(judged("Do not use solvents or sprays.", Verdict::No, gold), Judgement::Right);
        assert_eq!(judged("You may use solvents and sprays.", Verdict::No, gold), Judgement::Opposite);
        assert_eq!(judged("Wipe it with a cloth.", Verdict::No, gold), Judgement::Unclear);
        assert_eq!(judged("Faults are shown while keys are locked.", Verdict::Yes, "Yes. Faults are shown."), Judgement::Right);
    }

    #[test]
    fn a_condition_must_be_named() {
        let gold = "Only if commands are allowed in the menu.";
        assert_eq!(judged("Yes, if commands are allowed.", Verdict::OnlyIf, gold), Judgement::Right);
        assert_eq!(judged("No, unless commands are allowed.", Verdict::OnlyIf, gold), Judgement::Right);
        assert_eq!(judged("Yes, it accepts commands.", Verdict::OnlyIf, gold), Judgement::Opposite);
        assert_eq!(judged("It sends values.", Verdict::OnlyIf, gold), Judgement::Unclear);
        assert_eq!(judged("Yes.", Verdict::NoAnswer, gold), Judgement::Unclear);
        assert!(
            is_outright("Only if it is on.") && is_outright("Nein, nie.") && !is_outright("Commands are accepted only if on.")
        );
    }
}
