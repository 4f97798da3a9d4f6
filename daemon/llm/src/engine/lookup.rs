//! Guesses the next tokens by looking them up in the prompt: answers quote it.
//!
//! Prompt lookup decoding (Saxena 2023, <https://github.com/apoorvumang/prompt-lookup-decoding>): if the last tokens occur
//! earlier in the sequence, the tokens that followed there are guessed to follow here. The guesses are computed in one batch with
//! the token before them and kept as far as the model agrees. So the answer is the same as without guessing, up to rounding,
//! which depends on the size of a batch.

/// Lengths of the run of tokens that is looked up.
const RUN: std::ops::RangeInclusive<usize> = 2..=3;

/// At most `most` tokens that may follow `held` and `next`. The last matching place wins.
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
    fn the_continuation_of_a_known_run_is_guessed() {
        let held = [1, 2, 3, 4, 5, 9, 2, 3, 7, 8, 1, 2];
        // The run 1 2 3 is preferred to 2 3: the longer one tells more.
        assert_eq!(draft(&held, 3, 2), [4, 5]);
        assert_eq!(draft(&held[..11], 2, 8), [3, 4, 5, 9, 2, 3, 7, 8]);
        // The last of two places wins.
        assert_eq!(draft(&[2, 3, 4, 0, 2, 3, 7, 2], 3, 1), [7]);
        assert_eq!(draft(&held, 8, 4), [0; 0], "never seen");
        assert_eq!(draft(&held, 3, 0), [0; 0]);
        assert_eq!(draft(&[], 3, 4), [0; 0]);
        assert_eq!(draft(&[5, 5], 5, 4), [0; 0], "nothing follows");
        assert_eq!(draft(&[5, 5, 5, 5], 5, 4), [5]);
    }
}
