//! Marks such as `[2]`, which name the passage behind a sentence. The marks in an answer are ours: those that a model writes are
//! removed, since small models cite by chance.

use wire::marks::MAX_DIGITS;

/// A text without marks and the blanks before them.
pub(super) fn removed(text: &str) -> String {
    wire::marks::without(text, |_| true).trim().to_owned()
}

/// Removes the marks of an answer piece by piece.
#[derive(Debug, Default)]
pub(super) struct MarkFilter {
    /// The end of the text that may be part of a mark, with the blanks before it.
    held: String,
    /// The text given out so far.
    text: String,
}

impl MarkFilter {
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
                None if digits <= MAX_DIGITS => return self.give(out),
                Some(b']') if (1..=MAX_DIGITS).contains(&digits) => {
                    let end = open + 1 + digits + 1;
                    self.held.drain(..end);
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
        let half = digits.len() <= MAX_DIGITS && digits.bytes().all(|b| b.is_ascii_digit());
        self.give(if half { String::new() } else { rest })
    }

    fn give(&mut self, out: String) -> String {
        let out = if self.text.is_empty() { out.trim_start().to_owned() } else { out };
        self.text.push_str(&out);
        out
    }
}

#[cfg(test)]
mod tests {
    use super::{MarkFilter, removed};

    #[test]
    fn marks_go_and_brackets_stay() {
        assert_eq!(removed("Press reset [2]. See [7] and [x] [ 1 ]."), "Press reset. See and [x] [ 1 ].");
        assert_eq!(removed("[0][1] a"), "a");
        assert_eq!(removed("E-7 is [12345] hot ["), "E-7 is [12345] hot [");
        assert_eq!(removed("[1]"), "");
    }

    #[test]
    fn marks_go_however_the_text_is_cut() {
        for size in 1..8 {
            for (text, left) in [
                ("Press [2]. See [7] and [x] [ 1 ]. ", "Press. See and [x] [ 1 ]."),
                (" [0][1] a[3", "a"),
                ("no marks ", "no marks"),
            ] {
                let mut filter = MarkFilter::default();
                let chars: Vec<char> = text.chars().collect();
                let mut out: String = chars.chunks(size).map(|piece| filter.push(&piece.iter().collect::<String>())).collect();
                out += filter.finish().trim_end();
                assert_eq!(out, left, "{size}");
            }
        }
    }
}
