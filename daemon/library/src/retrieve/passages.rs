//! From ranked chunks to passages: neighbours in a document become one passage, and repeated words are shown once.

use std::collections::HashSet;
use std::ops::Range;

use super::Statement;
use super::statements::{self, statements_of_chunk};
use crate::store::{Chunk, StatementVectors};

/// Most embedder tokens of a passage that grows by its neighbours.
pub(super) const MAX_TOKENS: u32 = 512;
/// Longest overlap between neighbouring chunks that is looked for, in bytes.
const MAX_OVERLAP_BYTES: usize = 2048;

/// Ranked neighbours of one document version, best first in `chunks[best]`.
#[derive(Debug)]
pub(super) struct Run {
    /// Consecutive chunks in document order.
    pub(super) chunks: Vec<Chunk>,
    /// Index of the highest ranked.
    pub(super) best: usize,
    /// Rank of that chunk among the candidates.
    pub(super) rank: usize,
    /// The document version's number.
    pub(super) number: u64,
}

/// Groups candidates, best first, into at most `count` runs. A chunk next to a run joins it while the run stays within
/// [`MAX_TOKENS`]. Candidates after the start of the last run change nothing. A chunk with the same words as a better one is
/// left out, as in two editions of a manual. A chunk that differs in a single word or number stays: the reader has to see which
/// of the two holds.
pub(super) fn group(candidates: impl Iterator<Item = (u64, Chunk)>, count: usize) -> Vec<Run> {
    let mut runs: Vec<Run> = Vec::new();
    let mut seen: HashSet<String> = HashSet::new();
    for (rank, (number, chunk)) in candidates.enumerate() {
        if !seen.insert(words(&chunk.text)) {
            continue;
        }
        if let Some(run) = runs.iter_mut().find(|run| run.takes(number, &chunk)) {
            run.add(chunk);
        } else if runs.len() < count {
            runs.push(Run { chunks: vec![chunk], best: 0, rank, number });
        }
        if runs.len() >= count {
            break;
        }
    }
    runs
}

/// The words of a text without case, spacing and punctuation around them.
fn words(text: &str) -> String {
    let words = text.split_whitespace().map(|word| word.trim_matches(|c: char| !c.is_alphanumeric()));
    words.filter(|word| !word.is_empty()).collect::<Vec<_>>().join(" ").to_lowercase()
}

impl Run {
    /// Its length in encoder tokens.
    pub(super) fn tokens(&self) -> u32 {
        self.chunks.iter().map(|chunk| chunk.tokens).sum()
    }

    fn takes(&self, number: u64, chunk: &Chunk) -> bool {
        let (Some(first), Some(last)) = (self.chunks.first(), self.chunks.last()) else { return false };
        self.number == number
            && (chunk.ordinal + 1 == first.ordinal || chunk.ordinal == last.ordinal + 1)
            && self.tokens().saturating_add(chunk.tokens) <= MAX_TOKENS
    }

    /// A run of one chunk of a document version.
    pub(super) fn of(number: u64, chunk: Chunk) -> Run {
        Run { chunks: vec![chunk], best: 0, rank: 0, number }
    }

    /// Adds the chunk before the first one or after the last one.
    pub(super) fn add(&mut self, chunk: Chunk) {
        if self.chunks.first().is_some_and(|first| chunk.ordinal < first.ordinal) {
            self.chunks.insert(0, chunk);
            self.best += 1;
        } else {
            self.chunks.push(chunk);
        }
    }

    /// The run as one text. Words that a chunk repeats from the one before appear once.
    pub(super) fn joined(&self) -> Joined {
        let mut joined = Joined::default();
        for chunk in &self.chunks {
            let shared = overlap(&joined.text, &chunk.text);
            if shared == 0 && !joined.text.is_empty() {
                joined.text.push('\n');
            }
            let begins = joined.text.len();
            joined.text.push_str(&chunk.text[shared..]);
            joined.chunks.push((begins, shared));
            let own = [(0, &chunk.heading)].into_iter();
            let inner = chunk.sections.iter().map(|inner| (inner.at as usize, &inner.heading));
            let placed = own.chain(inner).map(|(at, heading)| (begins + at.saturating_sub(shared), heading.join(" > ")));
            for (at, heading) in placed {
                if joined.headings.last().is_none_or(|(_, before)| *before != heading) {
                    joined.headings.push((at, heading));
                }
            }
            if let Some(first) = chunk.page {
                let places = [0].into_iter().chain(chunk.breaks.iter().map(|at| *at as usize));
                joined.pages.extend(places.map(|at| begins + at.saturating_sub(shared)).zip(first..));
            }
        }
        joined
    }
}

/// The chunks of a run as one text.
#[derive(Debug, Default)]
pub(super) struct Joined {
    pub(super) text: String,
    /// Offsets in the text, in bytes, at which pages begin.
    pub(super) pages: Vec<(usize, u32)>,
    /// Offsets in the text, in bytes, at which headings begin to hold, with the headings joined by ` > `.
    pub(super) headings: Vec<(usize, String)>,
    /// For each chunk its offset in the text, and the number of its first bytes that earlier chunks hold.
    chunks: Vec<(usize, usize)>,
}

impl Joined {
    /// The place of a chunk of the run in the text, in bytes, with the words that it shares with earlier chunks.
    pub(super) fn place_of(&self, run: &Run, chunk: usize) -> Range<usize> {
        let (begins, shared) = self.chunks[chunk];
        begins - shared..begins - shared + run.chunks[chunk].text.len()
    }

    /// The statements of the run in reading order, without the headings between them. `kept` gives the vectors kept with the
    /// run's chunks, in their order; `coverage` the share of the question that a statement holds.
    pub(super) fn statements(
        &self,
        run: &Run,
        kept: Vec<Option<StatementVectors>>,
        coverage: &dyn Fn(&str) -> f32,
    ) -> Vec<Statement> {
        let mut all = Vec::new();
        for ((chunk, kept), (begins, shared)) in run.chunks.iter().zip(kept).zip(&self.chunks) {
            let said = statements_of_chunk(&chunk.text);
            let kept = kept.filter(|kept| kept.version == statements::VERSION && kept.vectors.len() == said.len());
            let vectors = kept.map_or_else(|| vec![None; said.len()], |kept| kept.vectors.into_iter().map(Some).collect());
            let is_heading = |at: usize| chunk.sections.iter().any(|inner| (inner.at..inner.body).contains(&(at as u32)));
            let new = said.into_iter().zip(vectors);
            let new = new.filter(|(said, _)| said.place.end > *shared && !is_heading(said.place.start));
            all.extend(new.map(|(said, vector)| Statement {
                at: begins + said.place.start.saturating_sub(*shared),
                coverage: coverage(&said.text),
                text: said.text,
                shown: said.shown,
                vector,
            }));
        }
        all
    }
}

/// Length of the longest beginning of `next` that `text` ends with. The overlap has at least eight bytes: a single shared word
/// may be chance.
fn overlap(text: &str, next: &str) -> usize {
    let longest = text.len().min(next.len()).min(MAX_OVERLAP_BYTES);
    (8..=longest)
        .rev()
        .find(|&length| next.is_char_boundary(length) && text.as_bytes().ends_with(&next.as_bytes()[..length]))
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Subsection;

    fn chunk(document: &str, ordinal: u32, text: &str, tokens: u32) -> Chunk {
        Chunk {
            document: document.to_owned(),
            ordinal,
            heading: Vec::new(),
            page: None,
            text: text.to_owned(),
            breaks: Vec::new(),
            sections: Vec::new(),
            offset: 0,
            tokens,
        }
    }

    #[test]
    fn joined_neighbours_show_their_overlap_once() {
        let candidates = vec![
            (1, chunk("a", 4, "Open the valve slowly. Wait ten minutes.", 100)),
            (2, chunk("b", 5, "elsewhere", 100)),
            (1, chunk("a", 5, "Wait ten minutes. Close it again.", 100)),
            (1, chunk("a", 3, "Before you begin:", 100)),
            (1, chunk("a", 9, "far away", 100)),
            (1, chunk("a", 2, "too late", 100)),
        ];
        let runs = group(candidates.into_iter(), 3);
        assert_eq!(runs.len(), 3);
        assert_eq!(runs[0].joined().text, "Before you begin:\nOpen the valve slowly. Wait ten minutes. Close it again.");
        assert_eq!((runs[0].chunks[runs[0].best].ordinal, runs[0].rank), (4, 0));
        assert_eq!(runs[2].joined().text, "far away");
        let joined = runs[0].joined();
        for (i, chunk) in runs[0].chunks.iter().enumerate() {
            assert_eq!(joined.text[joined.place_of(&runs[0], i)], chunk.text, "whole, its overlap included");
        }
    }

    #[test]
    fn each_part_of_a_passage_knows_its_page() {
        let paged = |ordinal, text, page, breaks: &[u32]| Chunk {
            page: Some(page),
            breaks: breaks.to_vec(),
            ..chunk("a", ordinal, text, 100)
        };
        let first = paged(0, "one two three four", 4, &[8]);
        let second = paged(1, "three four five six", 5, &[11, 11]);
        let runs = group([(1, first), (1, second)].into_iter(), 2);
        let Joined { text, pages, .. } = runs[0].joined();
        assert_eq!(text, "one two three four five six");
        assert_eq!(pages, [(0, 4), (8, 5), (18, 5), (19, 6), (19, 7)]);
    }

    #[test]
    fn each_part_of_a_passage_knows_its_heading() {
        let inner = |at, body, heading: &str| Subsection { at, body, heading: vec!["Care".into(), heading.into()] };
        let joined = Chunk {
            heading: vec!["Care".into()],
            sections: vec![inner(0, 8, "Filter"), inner(26, 32, "Pump"), inner(41, 41, "Void if opened")],
            ..chunk("a", 0, "Filter\n\nRinse it weekly.\n\nPump\n\nOil it.\n\nVoid if opened", 100)
        };
        let next = Chunk { heading: vec!["Faults".into()], ..chunk("a", 1, "It hums.", 100) };
        let runs = group([(1, joined), (1, next)].into_iter(), 2);
        let joined = runs[0].joined();
        let said = joined.statements(&runs[0], vec![None, None], &|_| 0.0);
        let under =
            |at: usize| joined.headings.iter().rev().find(|(begins, _)| *begins <= at).map(|(_, heading)| heading.as_str());
        let said: Vec<(&str, Option<&str>)> = said.iter().map(|said| (said.text.as_str(), under(said.at))).collect();
        assert_eq!(
            said,
            [
                ("Rinse it weekly.", Some("Care > Filter")),
                ("Oil it.", Some("Care > Pump")),
                ("Void if opened", Some("Care > Void if opened")),
                ("It hums.", Some("Faults"))
            ]
        );
    }

    #[test]
    fn statements_stand_where_their_chunks_say_them() {
        let candidates =
            [(1, chunk("a", 4, "Open the valve. Wait ten minutes.", 9)), (1, chunk("a", 5, "Wait ten minutes. Close it.", 9))];
        let runs = group([candidates[0].clone(), candidates[1].clone(), (2, chunk("b", 1, "Else.", 9))].into_iter(), 2);
        let vectors = |version, count| Some(StatementVectors { version, vectors: vec![vec![1.0]; count] });
        let joined = runs[0].joined();
        let told = |kept| {
            let statements = joined.statements(&runs[0], kept, &|said| if said == "Close it." { 0.5 } else { 0.0 });
            let at_its_place = |s: &Statement| joined.text[s.at..].starts_with(&s.text);
            assert!(statements.iter().all(at_its_place), "{statements:?}");
            assert!(statements[2].coverage > statements[1].coverage);
            statements.into_iter().map(|s| (s.text, s.vector.is_some())).collect::<Vec<_>>()
        };
        let said = |vectors: [bool; 3]| {
            let said = ["Open the valve.", "Wait ten minutes.", "Close it."].map(str::to_owned);
            said.into_iter().zip(vectors).collect::<Vec<_>>()
        };
        let current = statements::VERSION;
        assert_eq!(told(vec![vectors(current, 2), vectors(current, 2)]), said([true; 3]));
        // No vectors, as in older versions; vectors of another version; another number of them.
        assert_eq!(told(vec![None, vectors(current, 2)]), said([false, false, true]));
        assert_eq!(told(vec![vectors(current + 1, 2), vectors(current, 3)]), said([false; 3]));
    }

    #[test]
    fn passages_are_bounded_and_versions_do_not_mix() {
        let long = vec![(1, chunk("a", 0, "x", 400)), (1, chunk("a", 1, "y", 400)), (2, chunk("a", 1, "z", 1))];
        assert_eq!(group(long.into_iter(), 5).len(), 3);
        assert!(group(std::iter::empty(), 5).is_empty());
    }

    #[test]
    fn the_same_words_are_shown_once() {
        let torque = "Tighten the screws\nto 1.2 Nm.";
        let candidates = vec![
            (1, chunk("edition-1", 7, torque, 10)),
            (2, chunk("edition-2", 9, "tighten the **screws** to 1.2 Nm", 10)),
            (3, chunk("edition-3", 9, "Tighten the screws to 1.5 Nm.", 10)),
        ];
        let runs = group(candidates.into_iter(), 5);
        let documents: Vec<&str> = runs.iter().map(|run| run.chunks[0].document.as_str()).collect();
        assert_eq!(documents, ["edition-1", "edition-3"]);
    }

    #[test]
    fn an_overlap_never_cuts_a_character() {
        assert_eq!(overlap("größe ändern", "größe ändern und"), "größe ändern".len());
        assert_eq!(overlap("abc", "abc"), 0, "too short to be sure");
        assert_eq!(overlap("öäöäöä", "\u{e4}öäöäöx"), 10, "the longest beginning that ends a character");
        assert_eq!(overlap("aéééééé", "ééééééb"), 12);
    }
}
