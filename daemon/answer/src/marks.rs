//! Marks such as `[2]` in an answer. Marks that name a passage in the prompt stay; all others are removed. A citation to nowhere
//! is worse than none, and must not appear in the stream either.

/// Longest number in a mark, in digits.
const DIGITS: usize = 4;

/// Filters an answer piece by piece.
#[derive(Debug)]
pub(super) struct Marks {
    /// Numbers of the passages in the prompt.
    read: Vec<usize>,
    /// The end of the text that may be part of a mark, with the blanks before it.
    held: String,
    /// The text given out so far.
    text: String,
}

impl Marks {
    pub(super) fn new(read: Vec<usize>) -> Self {
        Self { read, held: String::new(), text: String::new() }
    }

    /// Takes a piece; returns the text that may be shown now.
    pub(super) fn push(&mut self, piece: &str) -> String {
        self.held.push_str(piece);
        let mut out = String::new();
        while let Some(open) = self.held.find('[') {
            let blanks = self.held[..open].trim_end_matches(' ').len();
            out.extend(self.held.drain(..blanks));
            let open = open - blanks;
            let inside = &self.held[open + 1..];
            let digits = inside.bytes().take_while(u8::is_ascii_digit).count();
            match inside.as_bytes().get(digits) {
                // The mark is incomplete.
                None if digits <= DIGITS => return self.give(out),
                Some(b']') if (1..=DIGITS).contains(&digits) => {
                    let end = open + 1 + digits + 1;
                    let named = inside[..digits].parse().is_ok_and(|n: usize| self.read.contains(&n));
                    let mark: String = self.held.drain(..end).collect();
                    if named {
                        out.push_str(&mark);
                    }
                }
                _ => out.extend(self.held.drain(..=open)),
            }
        }
        // Blanks at the end may precede a mark that will be removed.
        let upto = self.held.trim_end_matches(' ').len();
        out.extend(self.held.drain(..upto));
        self.give(out)
    }

    /// The held text, at the end of the answer.
    pub(super) fn finish(&mut self) -> String {
        let rest = std::mem::take(&mut self.held);
        // Drop half a mark, where the answer was cut off.
        let digits = rest.trim_start().strip_prefix('[').unwrap_or("x");
        let half = digits.len() <= DIGITS && digits.bytes().all(|b| b.is_ascii_digit());
        self.give(if half { String::new() } else { rest })
    }

    /// The text given out so far.
    pub(super) fn text(&self) -> &str {
        &self.text
    }

    fn give(&mut self, out: String) -> String {
        let out = if self.text.is_empty() { out.trim_start().to_owned() } else { out };
        self.text.push_str(&out);
        out
    }
}

/// Whether a text contains nothing but marks.
pub(super) fn are_all(text: &str) -> bool {
    text.split_whitespace().all(|word| is_mark(word) || word.bytes().all(|b| b.is_ascii_punctuation()))
}

fn is_mark(word: &str) -> bool {
    let inside = word.strip_prefix('[').and_then(|rest| rest.trim_end_matches(['.', ',']).strip_suffix(']'));
    inside.is_some_and(|digits| !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit()))
}

#[cfg(test)]
mod tests {
    use super::{Marks, are_all};

    #[test]
    fn an_answer_of_marks_alone_says_nothing() {
        for nothing in ["", "[1]", "[1], [2].", " \n", "..."] {
            assert!(are_all(nothing), "{nothing:?}");
        }
        for something in ["5", "[1] yes", "2 A", "[x]", "é"] {
            assert!(!are_all(something), "{something:?}");
        }
    }

    fn filtered(text: &str, read: &[usize], size: usize) -> String {
        let mut marks = Marks::new(read.to_vec());
        let chars: Vec<char> = text.chars().collect();
        let mut out: String = chars.chunks(size).map(|piece| marks.push(&piece.iter().collect::<String>())).collect();
        out += &marks.finish();
        assert_eq!(out, marks.text());
        out
    }

    #[test]
    fn marks_to_nowhere_go_however_the_text_is_cut() {
        for size in 1..8 {
            assert_eq!(filtered("Press reset [2]. See [7] and [x] [ 1 ].", &[1, 2], size), "Press reset [2]. See and [x] [ 1 ].");
            assert_eq!(filtered("[0][1] a[3", &[1], size), "[1] a");
            assert_eq!(filtered("[2] E-7 is [12345] hot  [", &[1], size), "E-7 is [12345] hot");
            assert_eq!(filtered("no marks ", &[], size), "no marks ");
        }
    }
}
