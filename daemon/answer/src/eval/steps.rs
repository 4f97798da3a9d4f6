//! Whether an answer gives the steps of a procedure, and in their order.

use super::words::{Words, held, sentences_of_lines};

/// Share of a step's words that a sentence must hold to say it.
const SAYS: f64 = 0.6;
/// Fewest steps of a procedure.
const LEAST_STEPS: usize = 2;

/// The steps of a text that numbers them from 1, with `1.` or `1)`; none for other texts.
pub(super) fn steps_of(text: &str) -> Vec<&str> {
    let mut begins = Vec::new();
    let mut from = 0;
    while let Some((at, end)) = marker(text, from, begins.len() + 1) {
        begins.push((at, end));
        from = end;
    }
    if begins.len() < LEAST_STEPS {
        return Vec::new();
    }
    let ends = begins.iter().skip(1).map(|(at, _)| *at).chain([text.len()]);
    begins.iter().zip(ends).map(|((_, begin), end)| text[*begin..end].trim()).collect()
}

/// The place of a step's number behind `from`: where it begins, and where the step does.
fn marker(text: &str, from: usize, number: usize) -> Option<(usize, usize)> {
    let number = number.to_string();
    text[from..].match_indices(number.as_str()).map(|(at, _)| from + at).find_map(|at| {
        let end = at + number.len();
        let begins = !text[..at].ends_with(|c: char| c.is_alphanumeric() || matches!(c, '.' | ',' | '-'));
        let after = text[end..].strip_prefix(['.', ')'])?;
        (begins && !after.starts_with(|c: char| c.is_ascii_digit())).then_some((at, end + 1))
    })
}

/// Share of the gold steps that the answer gives in order: the longest run of matched steps that does not go back, divided by all
/// steps; 0 to 1. A step is matched by the sentence that holds most of its words, at least 60 %.
pub(super) fn in_order(answer: &str, gold: &[&str]) -> f64 {
    let said: Vec<Words> = sentences_of_lines(answer).map(Words::of).collect();
    let places: Vec<usize> = gold.iter().filter_map(|step| place(&Words::of(step), &said)).collect();
    // The longest subsequence that never falls; two steps may share a sentence.
    let mut longest = vec![0usize; places.len()];
    for at in 0..places.len() {
        let before = (0..at).filter(|earlier| places[*earlier] <= places[at]).map(|earlier| longest[earlier]).max();
        longest[at] = before.unwrap_or(0) + 1;
    }
    longest.into_iter().max().unwrap_or(0) as f64 / gold.len().max(1) as f64
}

/// The first sentence that says most of a step.
fn place(step: &Words, said: &[Words]) -> Option<usize> {
    let mut best = (SAYS, None);
    for (at, sentence) in said.iter().enumerate() {
        let share = held(&step.content, &sentence.content);
        if share > best.0 || (share >= best.0 && best.1.is_none()) {
            best = (share, Some(at));
        }
    }
    best.1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbered_steps_are_found() {
        assert_eq!(
            steps_of("1.Turn on the TV. 2.Start the app (1.5 GB).\n3) Enter 4 digits."),
            ["Turn on the TV.", "Start the app (1.5 GB).", "Enter 4 digits."]
        );
        for none in ["Set it to 1.5 bar and 2.5 bar.", "See chapter 1. It helps.", "", "2. Only one."] {
            assert!(steps_of(none).is_empty(), "{none}");
        }
    }

    #[test]
    fn order_by_hand() {
        let gold = ["Close the ball valve.", "Unscrew the cap with a spanner.", "Rinse the sieve.", "Open the ball valve again."];
        for (answer, expected) in [
            ("1. Close the valve. 2. Unscrew the cap. 3. Rinse the sieve. 4. Open the ball valve again.", 1.0),
            ("Close the ball valve.\nRinse the sieve.", 0.5),
            // The sieve before the cap: one of both is out of order.
            ("Close the ball valve. Rinse the sieve. Unscrew the cap with a spanner.", 0.5),
            ("Close the ball valve and unscrew the cap with a spanner.", 0.5),
            ("Call the service.", 0.0),
            ("", 0.0),
        ] {
            assert!((in_order(answer, &gold) - expected).abs() < 1e-9, "{answer}: {}", in_order(answer, &gold));
        }
        assert!(in_order("Anything.", &[]).abs() < 1e-9);
    }
}
