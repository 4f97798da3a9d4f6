//! Guessing the next tokens by looking them up in what has been read: answers quote.
//!
//! Prompt lookup decoding (Saxena 2023, <https://github.com/apoorvumang/prompt-lookup-decoding>): where the last tokens stand
//! earlier in the sequence, those that follow there are guessed to follow here. The guesses are computed together with the token
//! before them and kept as far as they are what the model says then; so the answer is the one without guessing, up to the rounding,
//! which depends on how many tokens a batch has.

/// Longest and shortest run of tokens that is looked for.
const RUN: std::ops::RangeInclusive<usize> = 2..=3;

/// At most `most` tokens that may follow `held` and `next`; of several places the last counts.
pub(super) fn draft<T: Copy + PartialEq>(held: &[T], next: T, most: usize) -> Vec<T> {
    if most == 0 {
        return vec![];
    }
    for length in RUN.rev() {
        let Some(before) = held.len().checked_sub(length - 1) else { continue };
        let run = &held[before..];
        let is_there = |end: &usize| held[*end] == next && held[end + 1 - length..*end] == *run;
        if let Some(end) = (length - 1..held.len().saturating_sub(1)).rev().find(is_there) {
            return held[end + 1..].iter().copied().take(most).collect();
        }
    }
    vec![]
}

#[cfg(test)]
mod tests {
    use super::draft;

    #[test]
    fn what_followed_the_same_tokens_is_guessed() {
        let held = [1, 2, 3, 4, 5, 9, 2, 3, 7, 8, 1, 2];
        // 1 2 3 before 2 3: the longer run tells more.
        assert_eq!(draft(&held, 3, 2), [4, 5]);
        assert_eq!(draft(&held[..11], 2, 8), [3, 4, 5, 9, 2, 3, 7, 8]);
        // Of two places the last.
        assert_eq!(draft(&[2, 3, 4, 0, 2, 3, 7, 2], 3, 1), [7]);
        assert_eq!(draft(&held, 8, 4), [0; 0], "never seen");
        assert_eq!(draft(&held, 3, 0), [0; 0]);
        assert_eq!(draft(&[], 3, 4), [0; 0]);
        assert_eq!(draft(&[5, 5], 5, 4), [0; 0], "nothing follows");
        assert_eq!(draft(&[5, 5, 5, 5], 5, 4), [5]);
    }
}
