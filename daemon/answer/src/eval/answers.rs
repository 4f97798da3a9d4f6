//! Measures of an answer's words against the best of several accepted answers: those of SQuAD (Rajpurkar et al. 2016), and
//! ROUGE-L (Lin 2004).

use std::collections::HashMap;

/// Lower case, without punctuation and the articles a, an, the; words separated by one space.
pub fn normalize_answer(text: &str) -> String {
    let bare: String = text.to_lowercase().chars().filter(|c| !is_punctuation(*c)).collect();
    let words = bare.split_whitespace().filter(|word| !matches!(*word, "a" | "an" | "the"));
    words.collect::<Vec<_>>().join(" ")
}

/// ASCII punctuation, as in the reference script, and the typographic quotes, dashes and dots of generators.
fn is_punctuation(c: char) -> bool {
    c.is_ascii_punctuation() || matches!(c, '\u{2010}'..='\u{2027}' | '«' | '»')
}

/// Whether the answer equals an accepted one after normalisation.
pub fn exact_match(answer: &str, accepted: &[String]) -> bool {
    let answer = normalize_answer(answer);
    accepted.iter().any(|accepted| normalize_answer(accepted) == answer)
}

/// Whether the answer contains an accepted one, word by word, after normalisation.
pub fn contains_answer(answer: &str, accepted: &[String]) -> bool {
    let answer = format!(" {} ", normalize_answer(answer));
    accepted
        .iter()
        .map(|accepted| normalize_answer(accepted))
        .any(|accepted| !accepted.is_empty() && answer.contains(&format!(" {accepted} ")))
}

/// Harmonic mean of the precision and recall of words, the best over the accepted answers; 0 to 1.
pub fn token_f1(answer: &str, accepted: &[String]) -> f64 {
    best(answer, accepted, |answer, accepted| 2.0 * shared(answer, accepted) as f64 / (answer.len() + accepted.len()) as f64)
}

/// Share of an accepted answer's words that the answer holds, the best over the accepted answers; 0 to 1.
pub fn gold_recall(answer: &str, accepted: &[String]) -> f64 {
    best(answer, accepted, |answer, accepted| shared(answer, accepted) as f64 / accepted.len() as f64)
}

/// ROUGE-L: F1 of the longest common subsequence of words, the best over the accepted answers; 0 to 1. Words are those of
/// [`normalize_answer`], without stemming.
pub fn rouge_l(answer: &str, accepted: &[String]) -> f64 {
    best(answer, accepted, |answer, accepted| 2.0 * common(answer, accepted) as f64 / (answer.len() + accepted.len()) as f64)
}

/// The best score of an answer's words with those of an accepted one. Two empty texts agree; one empty text never does.
fn best(answer: &str, accepted: &[String], score: impl Fn(&[&str], &[&str]) -> f64) -> f64 {
    let answer = normalize_answer(answer);
    let answer: Vec<&str> = answer.split(' ').filter(|word| !word.is_empty()).collect();
    let one = |accepted: &String| {
        let accepted = normalize_answer(accepted);
        let accepted: Vec<&str> = accepted.split(' ').filter(|word| !word.is_empty()).collect();
        if answer.is_empty() || accepted.is_empty() {
            return f64::from(u8::from(answer.is_empty() && accepted.is_empty()));
        }
        score(&answer, &accepted)
    };
    accepted.iter().map(one).fold(0.0, f64::max)
}

/// Length of the longest common subsequence.
fn common(a: &[&str], b: &[&str]) -> usize {
    let mut above = vec![0usize; b.len() + 1];
    for word in a {
        let mut diagonal = 0;
        for (at, other) in b.iter().enumerate() {
            let here = if word == other { diagonal + 1 } else { above[at].max(above[at + 1]) };
            diagonal = above[at + 1];
            above[at + 1] = here;
        }
    }
    above[b.len()]
}

/// Number of the answer's words that the accepted one holds; a word counts as often as both have it.
fn shared(answer: &[&str], accepted: &[&str]) -> usize {
    let mut left: HashMap<&str, usize> = HashMap::new();
    for word in accepted {
        *left.entry(word).or_default() += 1;
    }
    let mut shared = 0usize;
    for word in answer {
        if let Some(count) = left.get_mut(word).filter(|count| **count > 0) {
            *count -= 1;
            shared += 1;
        }
    }
    shared
}

#[cfg(test)]
mod tests {
    use super::*;

    fn accepted(answers: &[&str]) -> Vec<String> {
        answers.iter().map(|answer| (*answer).to_owned()).collect()
    }

    #[test]
    fn articles_punctuation_and_case_do_not_count() {
        assert_eq!(normalize_answer("The  “Denver” Broncos, an A-team!"), "denver broncos ateam");
        assert!(exact_match("the Denver Broncos.", &accepted(&["Panthers", "Denver Broncos"])));
        assert!(!exact_match("Broncos", &accepted(&["Denver Broncos"])));
    }

    #[test]
    fn containing_means_whole_words() {
        assert!(contains_answer("It surrendered 308 points.", &accepted(&["308"])));
        assert!(!contains_answer("It surrendered 3080 points.", &accepted(&["308"])));
        assert!(!contains_answer("anything", &accepted(&["the"])), "nothing is left to look for");
    }

    #[test]
    fn f1_by_hand() {
        // Two of three words are right, two of two are found: 2 * 2 / (3 + 2).
        assert!((token_f1("Denver Broncos won", &accepted(&["x", "the Denver Broncos"])) - 0.8).abs() < 1e-9);
        // A word counts as often as the accepted answer has it.
        assert!((token_f1("so so so", &accepted(&["so what"])) - 0.4).abs() < 1e-9);
        assert!(token_f1("", &accepted(&["x"])).abs() < 1e-9 && token_f1("x", &[]).abs() < 1e-9);
    }

    #[test]
    fn recall_by_hand() {
        // Three of four words, however long the answer is.
        assert!((gold_recall("one two three five six seven", &accepted(&["one two three four"])) - 0.75).abs() < 1e-9);
        assert!((gold_recall("one one", &accepted(&["one two"])) - 0.5).abs() < 1e-9);
        assert!((gold_recall("two", &accepted(&["x y", "two"])) - 1.0).abs() < 1e-9);
        assert!(gold_recall("x", &accepted(&["the"])).abs() < 1e-9, "an article is no word");
    }

    #[test]
    fn the_longest_common_subsequence_by_hand() {
        // Lin 2004: "police kill the gunman" against "police killed the gunman" shares "police gunman"; articles do not count.
        assert!((rouge_l("police kill the gunman", &accepted(&["police killed the gunman"])) - 4.0 / 6.0).abs() < 1e-9);
        // The same words in another order: two of four stay in order.
        let turned = accepted(&["s p r q"]);
        assert!((rouge_l("p q r s", &turned) - 0.5).abs() < 1e-9 && (token_f1("p q r s", &turned) - 1.0).abs() < 1e-9);
        assert!((rouge_l("x", &accepted(&["x"])) - 1.0).abs() < 1e-9 && rouge_l("", &accepted(&["x"])).abs() < 1e-9);
    }
}
