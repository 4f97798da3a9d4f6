//! A generated text, cut into sentences as it comes.

use library::retrieve::sentences;

/// Collects pieces of an answer and gives out whole sentences. List items are sentences too.
#[derive(Debug, Default)]
pub(super) struct SentenceStream {
    held: String,
}

/// A sentence with the white space before it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Sentence {
    /// Whether a new line begins with it.
    pub(super) new_line: bool,
    /// Its text.
    pub(super) text: String,
}

impl SentenceStream {
    /// Takes a piece; returns the sentences that are complete: another one has begun behind them.
    pub(super) fn push(&mut self, piece: &str) -> Vec<Sentence> {
        self.held.push_str(piece);
        let parts = parts(&self.held);
        let Some(last) = parts.len().checked_sub(1) else { return vec![] };
        // A line break ends a sentence: the next line is another item.
        let ended = self.held[parts[last].1..].contains('\n');
        let complete = if ended { &parts[..] } else { &parts[..last] };
        let Some((_, upto)) = complete.last().copied() else { return vec![] };
        let out = cut(&self.held, complete);
        self.held.drain(..upto);
        out
    }

    /// The held sentences, at the end of the answer.
    pub(super) fn finish(&mut self) -> Vec<Sentence> {
        let held = std::mem::take(&mut self.held);
        cut(&held, &parts(&held))
    }
}

/// Sentences as (start, end), in bytes. Each line is split on its own, so that a list need not have marks.
fn parts(text: &str) -> Vec<(usize, usize)> {
    let mut all = Vec::new();
    let mut at = 0;
    for line in text.split_inclusive('\n') {
        let begin = at;
        at += line.len();
        // The sign of a list before its first word is no sentence.
        all.extend(sentences(line).into_iter().map(|range| (begin + range.start, begin + range.end)));
    }
    all
}

fn cut(text: &str, parts: &[(usize, usize)]) -> Vec<Sentence> {
    let mut before = 0;
    let sentence = |&(start, end): &(usize, usize)| {
        let lead = &text[before..start];
        before = end;
        Sentence { new_line: lead.contains('\n'), text: text[start..end].trim().to_owned() }
    };
    parts.iter().map(sentence).filter(|sentence| !sentence.text.is_empty()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn streamed(text: &str, size: usize) -> Vec<(bool, String)> {
        let mut stream = SentenceStream::default();
        let chars: Vec<char> = text.chars().collect();
        let mut out: Vec<Sentence> =
            chars.chunks(size).flat_map(|piece| stream.push(&piece.iter().collect::<String>())).collect();
        out.extend(stream.finish());
        out.into_iter().map(|sentence| (sentence.new_line, sentence.text)).collect()
    }

    #[test]
    fn sentences_come_whole_however_the_text_is_cut() {
        let text = "Open the cover. It takes 2.5 minutes!\n\n1. Press Reset.\n2. Wait";
        let expected =
            [(false, "Open the cover."), (false, "It takes 2.5 minutes!"), (true, "1. Press Reset."), (true, "2. Wait")];
        for size in 1..9 {
            let expected: Vec<(bool, String)> = expected.iter().map(|(line, text)| (*line, (*text).to_owned())).collect();
            assert_eq!(streamed(text, size), expected, "{size}");
        }
        assert!(streamed(" \n ", 1).is_empty());
    }

    #[test]
    fn a_line_is_given_out_at_its_end() {
        let mut stream = SentenceStream::default();
        assert_eq!(stream.push("1. Press"), []);
        assert_eq!(stream.push(" Reset\n"), [Sentence { new_line: false, text: "1. Press Reset".into() }]);
        assert_eq!(stream.finish(), []);
    }
}
