//! Marks such as `[2]` in a text: each names the citation with this number.

/// Longest number in a mark, in digits.
pub const MAX_DIGITS: usize = 4;

/// The mark at the beginning of a text: its number, and its length in bytes.
pub fn at_start(text: &str) -> Option<(usize, usize)> {
    let inside = text.strip_prefix('[')?;
    let digits = inside.bytes().take_while(u8::is_ascii_digit).count();
    if !(1..=MAX_DIGITS).contains(&digits) || inside.as_bytes().get(digits) != Some(&b']') {
        return None;
    }
    Some((inside[..digits].parse().ok()?, digits + 2))
}

/// The numbers that a text marks, each once, in their order.
pub fn numbers(text: &str) -> Vec<usize> {
    let mut numbers = Vec::new();
    for (at, _) in text.match_indices('[') {
        if let Some((n, _)) = at_start(&text[at..])
            && !numbers.contains(&n)
        {
            numbers.push(n);
        }
    }
    numbers
}

/// A text without the marks that `gone` chooses, and without the blanks before them.
#[must_use]
pub fn without(text: &str, gone: impl Fn(usize) -> bool) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(open) = rest.find('[') {
        let (before, from) = rest.split_at(open);
        match at_start(from) {
            Some((n, length)) if gone(n) => {
                out.push_str(before.trim_end_matches(' '));
                rest = &from[length..];
            }
            _ => {
                out.push_str(before);
                out.push('[');
                rest = &from[1..];
            }
        }
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_is_a_short_number_in_brackets() {
        for (text, mark) in [("[1]", Some((1, 3))), ("[0012] x", Some((12, 6))), ("[1234]", Some((1234, 6)))] {
            assert_eq!(at_start(text), mark, "{text}");
        }
        for text in ["", "[", "[]", "[x]", "[1", "[ 1 ]", "[12345]", "1]", " [1]", "[1ä]"] {
            assert_eq!(at_start(text), None, "{text}");
        }
    }

    #[test]
    fn numbers_come_once_and_in_order() {
        assert_eq!(numbers("Press [3][1]. Then [x] wait [3]."), [3, 1]);
        assert!(numbers("none [").is_empty());
    }

    #[test]
    fn a_mark_goes_with_the_blanks_before_it() {
        let text = "Press reset [1][2]. See  [2], [x] and a[0]\n[1]";
        assert_eq!(without(text, |n| n == 1), "Press reset[2]. See  [2], [x] and a[0]\n");
        assert_eq!(without(text, |n| n == 2), "Press reset [1]. See, [x] and a[0]\n[1]");
        assert_eq!(without(text, |_| false), text);
        assert_eq!(without("größer [7] als [", |_| true), "größer als ["); // typos: ignore
    }
}
