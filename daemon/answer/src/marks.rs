//! Marks such as `[2]`, which name the passage behind a sentence. The marks in an answer are ours: those that a model writes are
//! removed, since small models cite by chance.

/// Longest number in a mark, in digits.
const DIGITS: usize = 4;

/// A text without marks and the blanks before them.
pub(super) fn removed(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(open) = rest.find('[') {
        let inside = &rest[open + 1..];
        let digits = inside.bytes().take_while(u8::is_ascii_digit).count();
        let is_mark = (1..=DIGITS).contains(&digits) && inside[digits..].starts_with(']');
        if is_mark {
            out.push_str(rest[..open].trim_end());
            rest = &inside[digits + 1..];
        } else {
            out.push_str(&rest[..=open]);
            rest = inside;
        }
    }
    (out + rest).trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::removed;

    #[test]
    fn marks_go_and_brackets_stay() {
        assert_eq!(removed("Press reset [2]. See [7] and [x] [ 1 ]."), "Press reset. See and [x] [ 1 ].");
        assert_eq!(removed("[0][1] a"), "a");
        assert_eq!(removed("E-7 is [12345] hot ["), "E-7 is [12345] hot [");
        assert_eq!(removed("[1]"), "");
    }
}
