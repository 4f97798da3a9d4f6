//! The sentences of a passage that answer best: for quotes, and for the prompts of small models.
//!
//! A sentence's score is the cosine of its vector with the question's, plus the share of the question's terms that it holds; rare
//! terms weigh more. Vectors come with the passages. Libraries of an older version or of another kind of encoder have none. Those
//! sentences are encoded here, and their vectors kept for the next question: people ask about the same pages.

use crate::languages::{Kind, codes_of, words_of};
use crate::support::without_list_mark;
use library::retrieve::{Passage, Statement};
use library::store::terms::{self, Language};
use llm::embed::{EmbedError, Embedder};
use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};

/// Most computed vectors kept: 1.5 kB each at 384 dimensions.
const KEPT_VECTORS: usize = 2048;

/// Weight of the term share beside the cosine; flat from 0.3 to 0.6 (`benches/results/evidence.md`).
const COVERAGE_WEIGHT: f32 = 0.45;

/// Weight of the share of the question's terms that the headings above a sentence hold: a step belongs to its procedure.
/// Token F1 with 0, 0.3, 0.6 and 1: 0.454, 0.465, 0.471, 0.468 on tv-manual, 0.337, 0.357, 0.355, 0.377 on the demo manual.
/// A value stands in any sentence of a section, mostly in another one: there headings weigh nothing (0.316 and 0.332 on its 15 values).
const HEADING_WEIGHT: f32 = 0.6;

/// Weights where the question names a code: of sentences that do not hold it, and of those that begin with it, as the rows of a
/// table of codes do.
const OTHER_CODE: f32 = 0.3;
const OWN_ROW: f32 = 1.5;

/// Weight of a sentence that asks: an FAQ holds every question word for word.
const QUESTION_WEIGHT: f32 = 0.4;

/// One sentence of a passage.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Scored {
    /// Its offset in the passage, in bytes.
    pub(super) at: usize,
    /// The sentence.
    pub(super) text: String,
    /// How well the sentence answers.
    pub(super) score: f32,
    /// The beginning of its section in the passage, in bytes.
    pub(super) section: usize,
}

/// Chooses sentences; cheap to clone.
#[derive(Clone)]
pub(super) struct Selector {
    embedder: Embedder,
    kept: Arc<Mutex<Kept>>,
}

/// Vectors of recent sentences, by text.
#[derive(Default)]
struct Kept {
    vectors: HashMap<String, Arc<[f32]>>,
    /// Oldest first.
    order: VecDeque<String>,
}

impl Kept {
    fn insert(&mut self, text: &str, vector: Arc<[f32]>) {
        if self.vectors.insert(text.to_owned(), vector).is_none() {
            self.order.push_back(text.to_owned());
        }
        while self.order.len() > KEPT_VECTORS {
            if let Some(oldest) = self.order.pop_front() {
                self.vectors.remove(&oldest);
            }
        }
    }
}

impl Selector {
    pub(super) fn new(embedder: Embedder) -> Self {
        Self { embedder, kept: Arc::default() }
    }

    /// The sentences of each passage, best first, for a question, its kind and its vector.
    pub(super) fn rank(
        &self,
        question: &str,
        kind: Kind,
        asked: &[f32],
        passages: &[Passage],
    ) -> Result<Vec<Vec<Scored>>, EmbedError> {
        let heading_weight = if kind == Kind::Value { 0.0 } else { HEADING_WEIGHT };
        let without = passages.iter().flat_map(|passage| &passage.statements).filter(|statement| statement.vector.is_none());
        let computed = self.vectors(without.map(|statement| statement.text.as_str()))?;
        let codes = codes_of(question);
        let names =
            |passage: &Passage, statement: &Statement| words_with_heading(passage, statement).any(|word| codes.contains(&word));
        let any_names = |passage: &Passage| passage.statements.iter().any(|statement| names(passage, statement));
        let coded = !codes.is_empty() && passages.iter().any(any_names);
        let begins = |statement: &Statement| words_of(&statement.shown).next().is_some_and(|word| codes.contains(&word));
        let code_weight = |passage: &Passage, statement: &Statement| {
            if coded && begins(statement) {
                OWN_ROW
            } else if coded && !names(passage, statement) {
                OTHER_CODE
            } else {
                1.0
            }
        };
        let score = |passage: &Passage, statement: &Statement, heading: f32| {
            let vector = statement.vector.as_deref().or_else(|| computed.get(statement.text.as_str()).map(AsRef::as_ref));
            let cosine = vector.map_or(0.0, |vector| asked.iter().zip(vector).map(|(a, b)| a * b).sum::<f32>());
            let score =
                (cosine + COVERAGE_WEIGHT * statement.coverage + heading_weight * heading) * code_weight(passage, statement);
            // A question is no answer, however alike it is to the one that was asked.
            if statement.text.trim_end().ends_with(['?', '？', '؟']) { QUESTION_WEIGHT * score } else { score }
        };
        let rank = |passage: &Passage| {
            let terms = terms::analyze(question, passage.language).terms.into_iter().collect();
            // Of each section once: its statements share the headings.
            let mut headings: HashMap<usize, f32> = HashMap::new();
            let scored = |statement: &Statement| {
                let section = passage.section_at(statement.at);
                let heading = *headings.entry(section).or_insert_with(|| {
                    share(&terms, &format!("{} {}", passage.title, passage.heading_at(statement.at)), passage.language)
                });
                Scored { at: statement.at, text: statement.shown.clone(), score: score(passage, statement, heading), section }
            };
            let mut ranked: Vec<Scored> = passage.statements.iter().map(scored).collect();
            ranked.sort_by(|a, b| b.score.total_cmp(&a.score));
            ranked
        };
        Ok(passages.iter().map(rank).collect())
    }

    /// Vectors of the sentences; computes the missing ones in one call.
    fn vectors<'a>(&self, sentences: impl Iterator<Item = &'a str>) -> Result<HashMap<&'a str, Arc<[f32]>>, EmbedError> {
        let mut found = HashMap::new();
        let mut missing = Vec::new();
        {
            let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
            let unique: BTreeSet<&str> = sentences.collect();
            for sentence in unique {
                match kept.vectors.get(sentence) {
                    Some(vector) => {
                        found.insert(sentence, Arc::clone(vector));
                    }
                    None => missing.push(sentence),
                }
            }
        }
        if missing.is_empty() {
            return Ok(found);
        }
        let texts: Vec<String> = missing.iter().map(|sentence| (*sentence).to_owned()).collect();
        let embeddings = self.embedder.embed(&texts)?;
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        for (sentence, embedding) in missing.into_iter().zip(embeddings) {
            let vector: Arc<[f32]> = embedding.vector.into();
            kept.insert(sentence, Arc::clone(&vector));
            found.insert(sentence, vector);
        }
        Ok(found)
    }
}

/// The words of a statement and of the heading above it. The heading speaks for its sentences: a manual may have one error per page.
fn words_with_heading<'a>(passage: &'a Passage, statement: &'a Statement) -> impl Iterator<Item = String> + 'a {
    words_of(&statement.text).chain(words_of(passage.heading_at(statement.at)))
}

/// Whether one statement of the passages, with its heading, holds every code that a question names; false without codes.
pub(super) fn hold_codes(question: &str, passages: &[Passage]) -> bool {
    let codes = codes_of(question);
    let holds = |passage: &Passage, statement: &Statement| {
        let words: HashSet<String> = words_with_heading(passage, statement).collect();
        codes.iter().all(|code| words.contains(code))
    };
    let any_holds = |passage: &Passage| passage.statements.iter().any(|statement| holds(passage, statement));
    !codes.is_empty() && passages.iter().any(any_holds)
}

/// Share of a question's terms that a text holds, 0 to 1.
fn share(asked: &HashSet<String>, text: &str, language: Language) -> f32 {
    let held: HashSet<String> = terms::analyze(text, language).terms.into_iter().collect();
    asked.iter().filter(|term| held.contains(*term)).count() as f32 / asked.len().max(1) as f32
}

/// Weight of a passage's score beside its sentence's: the best passage wins between equal sentences.
const PASSAGE_WEIGHT: f32 = 0.3;

/// Quoted sentences for each passage, on average.
const QUOTED: usize = 2;
/// Most quoted sentences from one passage.
const MOST_QUOTED: usize = 4;

/// Share of the score of its passage's best sentence that a further sentence needs: rows of other codes have less.
const WORTH_QUOTING: f32 = 0.25;

/// Share of the best score that a sentence of another passage needs to appear in an answer. Sentences of the best passage need
/// none: they continue the same subject.
const ELSEWHERE: f32 = 0.75;

/// A sentence's score combined with its passage's.
fn weighted(passage_scores: &[f32], passage: usize, sentence: &Scored) -> f32 {
    sentence.score + PASSAGE_WEIGHT * passage_scores.get(passage).copied().unwrap_or(0.0)
}

/// The sentences of all passages, best first, each with its passage.
pub(super) fn in_order<'a>(ranked: &'a [Vec<Scored>], passage_scores: &[f32]) -> Vec<(usize, &'a Scored)> {
    let weighted = |passage: usize, sentence: &Scored| weighted(passage_scores, passage, sentence);
    let mut all: Vec<(usize, &Scored)> =
        ranked.iter().enumerate().flat_map(|(i, sentences)| sentences.iter().map(move |s| (i, s))).collect();
    all.sort_by(|a, b| weighted(b.0, b.1).total_cmp(&weighted(a.0, a.1)));
    all
}

/// The chosen sentences by passage, in reading order.
fn by_passage<'a>(chosen: &[(usize, &'a Scored)], passages: usize) -> Vec<Vec<&'a Scored>> {
    let of = |passage: usize| {
        let mut own: Vec<&Scored> = chosen.iter().filter(|(i, _)| *i == passage).map(|(_, sentence)| *sentence).collect();
        own.sort_by_key(|sentence| sentence.at);
        own
    };
    (0..passages).map(of).collect()
}

/// Sentences as one text.
pub(super) fn text(sentences: &[&Scored]) -> String {
    sentences.iter().map(|sentence| sentence.text.as_str()).collect::<Vec<_>>().join("\n")
}

/// The `count` best sentences of all passages, by passage, without sentences of other passages that are far from the best. They
/// are the prompt, or the answer itself. A passage may have none.
pub(super) fn best_of_all<'a>(ranked: &'a [Vec<Scored>], passage_scores: &[f32], count: usize) -> Vec<Vec<&'a Scored>> {
    let mut all = in_order(ranked, passage_scores);
    all.truncate(count);
    if let Some(&(first, best)) = all.first() {
        let least = ELSEWHERE * weighted(passage_scores, first, best);
        let worth = WORTH_QUOTING * best.score;
        all.retain(
            |&(passage, sentence)| {
                if passage == first { sentence.score >= worth } else { weighted(passage_scores, passage, sentence) >= least }
            },
        );
    }
    by_passage(&all, ranked.len())
}

/// Share of the best score that a sentence needs to be worth its place in a run. A lower share tells more: on a manual's
/// how-to questions 0.3 to 0.5 give token F1 0.48, 0.47, 0.45 with 94, 82, 58 words (`benches/results/answers.md`).
const ENOUGH: f32 = 0.4;

/// The run of neighbouring sentences that answers best, in the passage of the best sentence; the other passages have none.
pub(super) fn best_run<'a>(ranked: &'a [Vec<Scored>], passage_scores: &[f32]) -> Vec<Vec<&'a Scored>> {
    let first = in_order(ranked, passage_scores).first().map(|(passage, _)| *passage);
    let run = |(i, sentences): (usize, &'a Vec<Scored>)| if Some(i) == first { run(sentences) } else { vec![] };
    ranked.iter().enumerate().map(run).collect()
}

/// The run of neighbouring sentences whose scores, less a share of the best score each, have the largest sum (Kadane's
/// algorithm). A procedure is told whole that way, and the sentences that lead away from the question are not.
fn run(ranked: &[Scored]) -> Vec<&Scored> {
    let section = ranked.first().map(|best| best.section);
    let mut in_order: Vec<&Scored> = ranked.iter().filter(|sentence| Some(sentence.section) == section).collect();
    in_order.sort_by_key(|sentence| sentence.at);
    let least = ranked.first().map_or(0.0, |best| ENOUGH * best.score);
    let (mut best, mut best_sum) = (0..0, f32::NEG_INFINITY);
    let (mut start, mut sum) = (0, 0.0);
    for (i, sentence) in in_order.iter().enumerate() {
        sum += sentence.score - least;
        if sum > best_sum {
            (best, best_sum) = (start..i + 1, sum);
        }
        if sum <= 0.0 {
            (start, sum) = (i + 1, 0.0);
        }
    }
    let end = with_list(&in_order, best.end);
    in_order[best.start..end].to_vec()
}

/// The end of a run, with the list that its last sentence announces.
fn with_list(in_order: &[&Scored], end: usize) -> usize {
    let announces =
        end.checked_sub(1).and_then(|last| in_order.get(last)).is_some_and(|last| last.text.trim_end().ends_with(':'));
    let is_item = |sentence: &&&Scored| without_list_mark(&sentence.text) != sentence.text.trim();
    let items = in_order[end..].iter().take_while(is_item).count();
    if announces { end + items.max(1).min(in_order.len() - end) } else { end }
}

/// The quotes of each passage: its best sentence, and the best others of all passages, [`QUOTED`] for each passage on average.
/// The passage that answers is quoted at more length than those that only come close.
pub(super) fn quotes<'a>(ranked: &'a [Vec<Scored>], passage_scores: &[f32]) -> Vec<Vec<&'a Scored>> {
    let mut quoted = vec![0; ranked.len()];
    let is_best = |&(passage, sentence): &(usize, &Scored)| ranked[passage].first() == Some(sentence);
    let (mut chosen, others): (Vec<_>, Vec<_>) = in_order(ranked, passage_scores).into_iter().partition(is_best);
    for (passage, _) in &chosen {
        quoted[*passage] += 1;
    }
    for (passage, sentence) in others {
        let best = ranked[passage].first().map_or(0.0, |best| best.score);
        if chosen.len() < QUOTED * ranked.len() && quoted[passage] < MOST_QUOTED && sentence.score >= WORTH_QUOTING * best {
            quoted[passage] += 1;
            chosen.push((passage, sentence));
        }
    }
    by_passage(&chosen, ranked.len())
}

#[cfg(test)]
mod tests {
    use super::*;
    use llm::embed::EmbedOptions;

    fn scored(at: usize, text: &str, score: f32) -> Scored {
        Scored { at, text: text.to_owned(), score, section: 0 }
    }

    fn best_of_all(ranked: &[Vec<Scored>], scores: &[f32], count: usize) -> Vec<String> {
        super::best_of_all(ranked, scores, count).iter().map(|chosen| text(chosen)).collect()
    }

    fn quotes(ranked: &[Vec<Scored>], scores: &[f32]) -> Vec<String> {
        super::quotes(ranked, scores).iter().map(|chosen| text(chosen)).collect()
    }

    #[test]
    fn the_best_sentences_come_in_reading_order() {
        let ranked = [vec![scored(2, "c.", 0.9), scored(0, "a.", 0.5), scored(1, "b.", 0.1)], vec![scored(0, "d.", 0.7)], vec![]];
        assert_eq!(best_of_all(&ranked, &[1.0, 0.9, 0.8], 3), ["a.\nc.", "d.", ""]);
        assert_eq!(best_of_all(&ranked, &[1.0, 0.0, 0.0], 2), ["a.\nc.", "", ""]);
        assert_eq!(best_of_all(&[], &[], 2), [""; 0]);
        // A sentence of another passage, far from the best, though it is second.
        let ranked = [vec![scored(2, "c.", 0.9), scored(0, "a.", 0.3), scored(1, "b.", 0.1)], vec![scored(0, "d.", 0.4)]];
        assert_eq!(best_of_all(&ranked, &[1.0; 2], 2), ["c.", ""]);
        assert_eq!(best_of_all(&ranked, &[1.0; 2], 3), ["a.\nc.", ""]);
    }

    #[test]
    fn every_passage_is_quoted_the_best_at_length() {
        let said = |scores: &[f32]| -> Vec<Scored> {
            scores.iter().enumerate().map(|(i, score)| scored(9 - i, &format!("{score}"), *score)).collect()
        };
        let good = said(&[0.9, 0.8, 0.7, 0.6, 0.5]);
        let (fair, poor) = (said(&[0.55, 0.2]), said(&[0.1, 0.05]));
        let all = [good.clone(), fair.clone(), poor.clone()];
        assert_eq!(quotes(&all, &[1.0; 3]), ["0.6\n0.7\n0.8\n0.9", "0.55", "0.1"]);
        assert_eq!(quotes(&[good.clone(), said(&[]), poor.clone()], &[1.0; 3]), ["0.6\n0.7\n0.8\n0.9", "", "0.05\n0.1"]);
        assert_eq!(quotes(&[fair, poor], &[1.0; 2]), ["0.2\n0.55", "0.05\n0.1"]);
        assert_eq!(quotes(&[good], &[1.0]), ["0.8\n0.9"]);
        assert!(quotes(&[], &[]).is_empty());
    }

    #[test]
    fn a_procedure_is_told_whole() {
        let ranked = [
            vec![
                scored(20, "Press it.", 0.9),
                scored(10, "Open it.", 0.6),
                scored(30, "Wait.", 0.5),
                scored(40, "Not this.", 0.1),
            ],
            vec![scored(0, "Elsewhere.", 0.8)],
        ];
        let told = |ranked: &[Vec<Scored>]| best_run(ranked, &[1.0, 0.5]).iter().map(|run| text(run)).collect::<Vec<_>>();
        assert_eq!(told(&ranked), ["Open it.\nPress it.\nWait.", ""]);
        assert_eq!(told(&[vec![scored(0, "Alone.", -0.1)]]), ["Alone."], "the best there is");
        assert_eq!(told(&[]), [""; 0]);
        let list = [vec![
            scored(0, "Check these points:", 0.9),
            scored(20, "- The filter.", 0.1),
            scored(30, "- The pump.", 0.1),
            scored(40, "Then start.", 0.1),
        ]];
        assert_eq!(told(&list), ["Check these points:\n- The filter.\n- The pump."], "the list that is announced");
        let table = [vec![scored(0, "These are the fuses:", 0.9), scored(20, "F1: 2 A.", 0.1), scored(30, "Other.", 0.1)]];
        assert_eq!(told(&table), ["These are the fuses:\nF1: 2 A."], "no list: what follows");
        assert_eq!(told(&[vec![scored(0, "Nothing follows:", 0.9)]]), ["Nothing follows:"]);
        let next = Scored { section: 10, ..scored(10, "Another section.", 0.8) };
        assert_eq!(told(&[vec![scored(0, "Press it.", 0.9), next]]), ["Press it."]);
    }

    #[test]
    fn codes_and_headings_count() {
        let embedder = Embedder::load(&llm::gguf::test_model("embedder.gguf"), &EmbedOptions::default()).expect("loads");
        let said = |at: usize, text: &str| Statement {
            at,
            text: text.into(),
            shown: text.into(),
            coverage: 0.2,
            vector: Some(vec![1.0, 0.0]),
        };
        let passage = Passage {
            headings: vec![(0, "Display".into()), (100, "Refilling the water".into())],
            statements: vec![
                said(0, "Topic with codes such as `E-17`."),
                said(20, "E-16: Hot."),
                said(40, "E-17: Cold."),
                said(100, "Open it."),
            ],
            ..Passage::default()
        };
        let best = |question: &str| {
            let ranked = Selector::new(embedder.clone())
                .rank(question, Kind::Steps, &[1.0, 0.0], std::slice::from_ref(&passage))
                .expect("ranks");
            ranked[0].iter().map(|scored| scored.text.clone()).collect::<Vec<_>>()
        };
        assert_eq!(best("What does e-17 mean?")[..2], ["E-17: Cold.", "Topic with codes such as `E-17`."]);
        assert_eq!(best("How do I refill the water?")[0], "Open it.");
        let value =
            Selector::new(embedder.clone()).rank("Refill the water?", Kind::Value, &[1.0, 0.0], std::slice::from_ref(&passage));
        assert_ne!(value.expect("ranks")[0][0].text, "Open it.", "headings do not make a value");
        assert_eq!(best("What does E-99 mean?").len(), 4, "a code that nothing holds changes nothing");
        let held = |question: &str| hold_codes(question, std::slice::from_ref(&passage));
        assert!(held("What does e-17 mean?") && !held("What does E-99 mean?") && !held("E-16 and E-17?") && !held("Why?"));
    }

    #[test]
    fn a_heading_with_the_code_speaks_for_its_section() {
        let embedder = Embedder::load(&llm::gguf::test_model("embedder.gguf"), &EmbedOptions::default()).expect("loads");
        let said = |at: usize, text: &str, alike: f32| Statement {
            at,
            text: text.into(),
            shown: text.into(),
            coverage: 0.2,
            vector: Some(vec![alike, 0.0]),
        };
        let passage = Passage {
            title: "Error E-17".into(),
            headings: vec![(0, "Error E-17".into()), (100, "Error E-19".into())],
            statements: vec![said(0, "Meaning: pressure too low.", 0.5), said(100, "Meaning: ignition failed.", 0.9)],
            ..Passage::default()
        };
        let question = "What does error E-17 mean?";
        let ranked = Selector::new(embedder).rank(question, Kind::Code, &[1.0, 0.0], std::slice::from_ref(&passage));
        assert_eq!(ranked.expect("ranks")[0][0].text, "Meaning: pressure too low.");
        assert!(hold_codes(question, std::slice::from_ref(&passage)));
    }

    #[test]
    fn the_oldest_vectors_make_room() {
        let mut kept = Kept::default();
        for i in 0..KEPT_VECTORS + 5 {
            kept.insert(&i.to_string(), vec![0.0].into());
            kept.insert(&i.to_string(), vec![0.0].into());
        }
        assert_eq!(kept.vectors.len(), KEPT_VECTORS);
        assert!(!kept.vectors.contains_key("4") && kept.vectors.contains_key("5"));
    }

    #[test]
    fn passages_of_an_older_library_are_ranked() {
        let embedder = Embedder::load(&llm::gguf::test_model("embedder.gguf"), &EmbedOptions::default()).expect("loads");
        let selector = Selector::new(embedder.clone());
        let asked = embedder.embed_query("How long is the warranty?").expect("embeds").vector;
        let said = ["The pump hums.", "The guarantee covers five years.", "Wear parts are excluded."].map(str::to_owned);
        let vectors = embedder.embed(&said).expect("embeds").into_iter().map(|embedding| embedding.vector);
        let statement = |(text, vector): (&String, Vec<f32>)| Statement {
            text: text.clone(),
            shown: text.clone(),
            vector: Some(vector),
            ..Statement::default()
        };
        let kept = Passage { statements: said.iter().zip(vectors).map(statement).collect(), ..Passage::default() };
        let mut old = kept.clone();
        old.statements.iter_mut().for_each(|statement| statement.vector = None);
        let ranked = selector.rank("", Kind::Steps, &asked, &[old, kept]).expect("ranks");
        assert_eq!(ranked[0][0].text, said[1]);
        for (old, kept) in ranked[0].iter().zip(&ranked[1]) {
            assert_eq!(old.text, kept.text);
            assert!((old.score - kept.score).abs() < 1e-3);
        }
        assert_eq!(selector.kept.lock().expect("sound").vectors.len(), 3, "only what came without vectors is encoded");
        let unlike = Statement { text: said[0].clone(), vector: Some(asked.clone()), ..Statement::default() };
        let ranked =
            selector.rank("", Kind::Steps, &asked, &[Passage { statements: vec![unlike], ..Passage::default() }]).expect("ranks");
        assert!(ranked[0][0].score > 0.99, "what was kept counts, not what would be computed");
    }
}
