//! The shape of a reply: small clients want a short answer, few citations, or plain text. This is the only place that shortens.

use crate::{Answer, Citation, marks};
use serde::{Deserialize, Serialize};
use unicode_segmentation::UnicodeSegmentation;

/// The form of a final reply.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ReplyForm {
    /// The object with all fields, in the encoding of the request.
    #[default]
    Json,
    /// The text of the answer alone, in UTF-8. An error is one line, see [`crate::Fault::line`].
    Text,
}

/// Bounds that a client sets on its reply.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Shape {
    /// Most characters (Unicode scalar values) of the answer, and of its speech.
    pub max_chars: Option<usize>,
    /// Most citations.
    pub citations: Option<usize>,
}

impl Shape {
    /// Gives an answer this shape.
    pub fn apply(self, answer: &mut Answer) {
        if let Some(most) = self.citations {
            keep_citations(answer, most);
        }
        if let Some(most) = self.max_chars {
            if cut(&mut answer.answer, most) {
                // The sentences that are left cannot be told apart from here.
                answer.support.clear();
            }
            cut(&mut answer.speech, most);
            keep_steps(&mut answer.steps, most);
        }
    }

    /// Bounds evidence, which comes before any answer marks it: the strongest passages stay.
    pub fn apply_to_evidence(self, evidence: &mut Vec<Citation>) {
        evidence.truncate(self.citations.unwrap_or(usize::MAX));
    }
}

/// Keeps at most this many citations. The ones that the answer marks go first, because they are its sources. Marks of the others
/// disappear with them.
fn keep_citations(answer: &mut Answer, most: usize) {
    let marked = marks::numbers(&answer.answer);
    let (cited, uncited): (Vec<usize>, Vec<usize>) = answer.citations.iter().map(|c| c.n).partition(|n| marked.contains(n));
    let dropped: Vec<usize> = cited.into_iter().chain(uncited).skip(most).collect();
    answer.citations.retain(|citation| !dropped.contains(&citation.n));
    answer.answer = marks::without(&answer.answer, |n| dropped.contains(&n));
}

/// Keeps the first steps, as many as have this many characters together. An "…" in place of the next one tells the reader.
fn keep_steps(steps: &mut Vec<String>, most: usize) {
    let mut room = most;
    let fitting = steps.iter().take_while(|step| {
        let chars = step.chars().count();
        let fits = chars <= room;
        room = room.saturating_sub(chars);
        fits
    });
    let fitting = fitting.count();
    if fitting < steps.len() {
        steps.truncate(fitting);
        if fitting > 0 {
            steps.push("…".to_owned());
        }
    }
}

/// Shortens a text to at most this many characters, and says whether it was longer. A shortened text ends in "…".
///
/// The text ends after the last sentence that fits, or else after a word. Either must leave half of the characters; in scripts
/// without blanks the text ends after any character that a reader would take for one. A mark is never split.
pub fn cut(text: &mut String, most: usize) -> bool {
    let start_of = |n: usize| text.char_indices().nth(n).map_or(text.len(), |(at, _)| at);
    if start_of(most) == text.len() {
        return false;
    }
    let least = start_of(most / 2);
    // Room for " …" after a sentence, and for "…" after a word.
    let (sentence_room, word_room) = (start_of(most.saturating_sub(2)), start_of(most.saturating_sub(1)));
    let sentence = sentence_ends(text).into_iter().filter(|end| (least..=sentence_room).contains(end)).max();
    if let Some(end) = sentence {
        text.truncate(end);
        text.push_str(" …");
        return true;
    }
    // The character after the room may be the blank that ends the last word.
    let blanks = text.char_indices().take_while(|(at, _)| *at <= word_room).filter(|(_, c)| c.is_whitespace());
    let word = blanks.map(|(at, _)| at).last().filter(|at| *at >= least);
    let mut end = word.unwrap_or_else(|| {
        let borders = text.grapheme_indices(true).map(|(at, _)| at);
        // An endless character, of nothing but accents, is split all the same.
        borders.take_while(|at| *at <= word_room).last().filter(|at| *at > 0).unwrap_or(word_room)
    });
    if let Some(open) = text[..end].rfind('[')
        && let Some((_, length)) = marks::at_start(&text[open..])
        && open + length > end
    {
        end = open;
    }
    let kept = text[..end].trim_end_matches(|c: char| c.is_whitespace() || matches!(c, ',' | ';' | ':')).len();
    text.truncate(kept);
    text.push('…');
    true
}

/// Places at which a sentence or a line has ended, in bytes; each lies behind the marks of its sentence.
fn sentence_ends(text: &str) -> Vec<usize> {
    let mut ends = Vec::new();
    for (at, c) in text.char_indices() {
        let behind = at + c.len_utf8();
        match c {
            // A sentence may run on over the end of a line.
            '\n' if !text[behind..].starts_with(char::is_lowercase) => ends.push(text[..at].trim_end().len()),
            '。' | '！' | '？' => ends.push(past_marks(text, behind)),
            '.' | '!' | '?' => {
                let end = past_marks(text, behind);
                if is_blank_next(&text[end..]) && (c != '.' || is_full_stop(&text[..at], &text[end..])) {
                    ends.push(end);
                }
            }
            _ => {}
        }
    }
    ends
}

/// The place behind closing quotes and marks.
fn past_marks(text: &str, from: usize) -> usize {
    let closing = |c: char| matches!(c, '"' | '\'' | ')' | '”' | '’' | '»' | '」');
    let mut end = text.len() - text[from..].trim_start_matches(closing).len();
    while let Some((_, length)) = marks::at_start(text[end..].trim_start_matches(' ')) {
        end = text.len() - text[end..].trim_start_matches(' ').len() + length;
    }
    end
}

fn is_blank_next(rest: &str) -> bool {
    rest.chars().next().is_none_or(char::is_whitespace)
}

/// Whether a full stop ends a sentence. It does not after an initial or an abbreviation with stops inside, after the number of an
/// item, and before a small letter or a number (`approx. 5`).
fn is_full_stop(before: &str, rest: &str) -> bool {
    let line = before.rsplit('\n').next().unwrap_or_default();
    let word = line.rsplit(char::is_whitespace).next().unwrap_or_default();
    let item = line.trim_start() == word && word.bytes().all(|b| b.is_ascii_digit());
    let initial = word.chars().count() == 1 && word.contains(char::is_alphabetic);
    let inner_stop = word.contains('.') && word.contains(char::is_alphabetic);
    let goes_on = rest.trim_start().starts_with(|c: char| c.is_lowercase() || c.is_numeric());
    !(item || initial || inner_stop || (goes_on && !rest.starts_with('\n')))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shortened(text: &str, most: usize) -> String {
        let mut text = text.to_owned();
        cut(&mut text, most);
        text
    }

    #[test]
    fn a_text_that_fits_is_untouched() {
        for text in ["", "größer", "Exactly sixteen."] {
            let mut same = text.to_owned();
            assert!(!cut(&mut same, 16), "{text}");
            assert_eq!(same, text);
        }
    }

    #[test]
    fn a_long_text_ends_after_a_sentence_with_its_marks() {
        for (text, most, expected) in [
            ("Open the valve. Wait for a minute.", 20, "Open the valve. …"),
            ("Open the valve [1]. Wait for a minute.", 24, "Open the valve [1]. …"),
            ("Open the valve. [1][2] Wait for a minute.", 30, "Open the valve. [1][2] …"),
            ("He says \"Stop.\" Then he waits.", 20, "He says \"Stop.\" …"),
            ("Torque: 1.2 Nm [1]\nSpeed: 3 m/s [2]", 24, "Torque: 1.2 Nm [1] …"),
            ("Open the valve and\nwait. Then call us at once.", 30, "Open the valve and\nwait. …"),
            ("Is it on? It has to be on.", 16, "Is it on? …"),
            ("弁を開く。しばらく待ってから閉じる。", 10, "弁を開く。 …"),
        ] {
            assert_eq!(shortened(text, most), expected, "{text}");
        }
    }

    #[test]
    fn stops_inside_a_sentence_do_not_end_it() {
        for (text, most, expected) in [
            ("Press it, e.g. Start, and wait.", 20, "Press it, e.g.…"),
            ("Turn it to approx. 5 bar slowly.", 20, "Turn it to approx.…"),
            ("1. Open it\n2. Close the valve", 18, "1. Open it …"),
            ("Ask Dr. B. Miller about it today.", 16, "Ask Dr. B.…"),
        ] {
            assert_eq!(shortened(text, most), expected, "{text}");
        }
    }

    #[test]
    fn else_it_ends_after_a_word() {
        assert_eq!(shortened("Quantity: Tightening torque, housing screws", 30), "Quantity: Tightening torque…");
        assert_eq!(shortened("Tightening torque of the screws", 18), "Tightening torque…", "the blank after the room counts");
        assert_eq!(shortened("Yes. Otherwise call the service of your dealer", 30), "Yes. Otherwise call the…", "not half");
    }

    #[test]
    fn marks_and_characters_stay_whole() {
        assert_eq!(shortened("Donaudampfschiff[12]fahrt", 19), "Donaudampfschiff…");
        assert_eq!(shortened("弁を開いてしばらく待ってから", 8), "弁を開いてしば…");
        // A letter with its accent, and a family of four, are one character to a reader.
        assert_eq!(shortened("aaaae\u{301}bbbb", 6), "aaaa…");
        let family = "\u{1f468}\u{200d}\u{1f469}\u{200d}\u{1f467}";
        assert_eq!(shortened(&format!("aaaa{family}b"), 8), "aaaa…");
        assert_eq!(shortened(&"\u{301}".repeat(50), 16).chars().count(), 16);
    }

    #[test]
    fn every_bound_holds() {
        let texts = [
            "Press reset [1]. Wait [2].\nz. B. größer als 5 [12] ist 漢字。e\u{301} …", // typos: ignore
            "a b c d e f g h i j k",
            "[1][2][3][4][5][6]",
        ];
        for text in texts {
            for most in 2..=text.chars().count() {
                let short = shortened(text, most);
                assert!(short.chars().count() <= most, "{most}: {short}");
                assert!(short == text || short.ends_with('…'), "{most}: {short}");
                let kept = short.trim_end_matches(['…', ' ']);
                assert!(text.starts_with(kept), "{most}: {short}");
                let half = kept.rfind('[').is_some_and(|open| marks::at_start(&kept[open..]).is_none());
                assert!(!half, "{most}: {short}");
            }
        }
    }

    fn answer() -> Answer {
        let citation = |n| Citation { n, ..Citation::default() };
        Answer {
            answer: "Open the valve [3]. Wait for a minute [1].".into(),
            speech: "Open the valve. Wait for a minute. Source: Pump manual.".into(),
            steps: vec!["Open the valve.".into(), "Wait for a minute.".into()],
            support: vec![0.9, 0.8],
            citations: [1, 2, 3].map(citation).into(),
            ..Answer::default()
        }
    }

    fn shaped(shape: Shape) -> Answer {
        let mut answer = answer();
        shape.apply(&mut answer);
        answer
    }

    #[test]
    fn no_shape_changes_nothing() {
        assert_eq!(shaped(Shape::default()), answer());
        assert_eq!(shaped(Shape { max_chars: Some(100), citations: Some(3) }), answer());
    }

    #[test]
    fn marks_go_with_their_citations() {
        let none = shaped(Shape { citations: Some(0), ..Shape::default() });
        assert_eq!((none.answer.as_str(), none.citations.len()), ("Open the valve. Wait for a minute.", 0));
        let two = shaped(Shape { citations: Some(2), ..Shape::default() });
        assert_eq!((two.answer, two.citations.iter().map(|c| c.n).collect::<Vec<_>>()), (answer().answer, vec![1, 3]));
        let one = shaped(Shape { citations: Some(1), ..Shape::default() });
        assert_eq!((one.answer.as_str(), one.citations[0].n), ("Open the valve. Wait for a minute [1].", 1));
        let mut evidence = answer().citations;
        Shape { citations: Some(1), ..Shape::default() }.apply_to_evidence(&mut evidence);
        assert_eq!(evidence.iter().map(|c| c.n).collect::<Vec<_>>(), [1], "nothing is marked yet");
    }

    #[test]
    fn brackets_that_are_no_marks_stay() {
        let mut answer = Answer { answer: "Set a[7] [1].".into(), ..answer() };
        Shape { citations: Some(0), ..Shape::default() }.apply(&mut answer);
        assert_eq!(answer.answer, "Set a[7].");
    }

    #[test]
    fn answer_speech_and_steps_are_bounded_alike() {
        let short = shaped(Shape { max_chars: Some(24), ..Shape::default() });
        assert_eq!((short.answer.as_str(), short.speech.as_str()), ("Open the valve [3]. …", "Open the valve. …"));
        assert_eq!(short.steps, ["Open the valve.", "…"]);
        assert!(short.support.is_empty(), "it would be of other sentences");
        assert!(shaped(Shape { max_chars: Some(12), ..Shape::default() }).steps.is_empty());
    }
}
