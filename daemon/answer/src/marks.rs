//! Marks such as `[2]`, which name the passage behind a sentence. The marks in an answer are ours: those that a model writes are
//! removed, since small models cite by chance.

/// A text without marks and the blanks before them.
pub(super) fn removed(text: &str) -> String {
    wire::marks::without(text, |_| true).trim().to_owned()
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
