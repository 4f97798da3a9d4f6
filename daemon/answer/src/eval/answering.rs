//! Answer quality: scores of single answers, and their means over a set.

use super::answers::{contains_answer, exact_match, gold_recall, rouge_l, token_f1};
use super::asking::Asked;
use super::beir::LabelledQuery;
use super::claims::{Source, contradicts_negation, contradicts_number, supported};
use super::steps::{in_order, steps_of};
use super::verdict::{Judgement, is_outright, judge};
use super::words::without_marks;
use serde::Serialize;
use std::collections::{BTreeMap, HashMap};
use wire::{Answer, AnsweredBy};

/// The scores of one answer. Citation marks do not count as words.
#[allow(clippy::struct_excessive_bools, reason = "each is a judgement of its own")]
#[derive(Clone, Debug, Serialize)]
pub struct Scores {
    /// The answer equals an accepted one, after normalisation.
    exact_match: bool,
    /// Best token F1 against the accepted answers.
    token_f1: f64,
    /// Best ROUGE-L against the accepted answers.
    rouge_l: f64,
    /// Share of an accepted answer's words in the answer, the best.
    gold_recall: f64,
    /// The answer contains an accepted one.
    contains: bool,
    /// The answer or a quote contains an accepted one.
    contains_or_quoted: bool,
    /// Sentences of the answer that can be judged, and those that the quotes or the cited documents support.
    sentences: usize,
    supported: usize,
    /// A sentence negates what the gold answer or a cited document does not, or the other way round.
    contradicts_negation: bool,
    /// A sentence has another number than the gold answer or the cited document.
    contradicts_number: bool,
    /// Share of the gold steps given in order; `None` if no accepted answer numbers its steps.
    #[serde(skip_serializing_if = "Option::is_none")]
    steps_in_order: Option<f64>,
    /// `None` if the question has no verdict.
    #[serde(skip_serializing_if = "Option::is_none")]
    verdict: Option<Judgement>,
    /// The answer begins with yes, no or the condition; `None` as above.
    #[serde(skip_serializing_if = "Option::is_none")]
    verdict_outright: Option<bool>,
    /// Share of the wanted words that the answer holds; `None` if none are wanted.
    #[serde(skip_serializing_if = "Option::is_none")]
    words_held: Option<f64>,
}

impl Scores {
    /// Scores an answer. `texts` are the set's documents by id. A reply that the library holds no answer has no sentences, and
    /// contradicts nothing.
    pub(super) fn of(query: &LabelledQuery, answer: &Answer, texts: &HashMap<&str, &str>) -> Scores {
        let said = without_marks(&answer.answer);
        let accepted = &query.answers;
        let quotes = answer.citations.iter().map(|citation| citation.quote.as_str());
        let quoted = std::iter::once(said.as_str()).chain(quotes.clone()).collect::<Vec<_>>().join(" ");
        let cited = answer.citations.iter().filter_map(|citation| texts.get(citation.document.as_str()).copied());
        let mut sources: Vec<Source> = quotes.map(Source::of_lines).chain(cited.map(Source::of)).collect();
        let claimed = if answer.found { said.as_str() } else { "" };
        let (supported, sentences) = supported(claimed, &sources);
        sources.extend(accepted.iter().map(|gold| Source::of_lines(gold)));
        let steps = |gold: &String| Some(steps_of(gold)).filter(|steps| !steps.is_empty()).map(|steps| in_order(&said, &steps));
        let holds = |words: &String| {
            let any: Vec<String> = words.split('|').map(str::to_owned).collect();
            f64::from(u8::from(contains_answer(&said, &any)))
        };
        let words = query.words.len();
        Scores {
            exact_match: exact_match(&said, accepted),
            token_f1: token_f1(&said, accepted),
            rouge_l: rouge_l(&said, accepted),
            gold_recall: gold_recall(&said, accepted),
            contains: contains_answer(&said, accepted),
            contains_or_quoted: contains_answer(&quoted, accepted),
            sentences,
            supported,
            contradicts_negation: contradicts_negation(claimed, &sources),
            contradicts_number: contradicts_number(claimed, &sources),
            steps_in_order: accepted.iter().filter_map(steps).reduce(f64::max),
            verdict: query.verdict.map(|verdict| if answer.found { judge(&said, verdict, accepted) } else { Judgement::Unclear }),
            verdict_outright: query.verdict.map(|_| answer.found && is_outright(&said)),
            words_held: (words > 0).then(|| query.words.iter().map(holds).sum::<f64>() / words as f64),
        }
    }
}

/// Means over the questions with accepted answers; shares unless said otherwise.
#[derive(Clone, Debug, Serialize)]
pub struct Figures {
    /// Questions with accepted answers.
    pub asked: usize,
    /// Answers equal to an accepted one, after normalisation.
    pub exact_match: f64,
    /// Mean of the best token F1 against the accepted answers.
    pub token_f1: f64,
    /// Mean of the best ROUGE-L against the accepted answers.
    pub rouge_l: f64,
    /// Mean share of an accepted answer's words in the answer.
    pub gold_recall: f64,
    /// Answers that contain an accepted one.
    pub contains: f64,
    /// Questions whose answer or quotes contain an accepted answer.
    pub contains_or_quoted: f64,
    /// Answers in the generator's own words; the others are quotes.
    pub by_model: f64,
    /// Sentences, over all answers, that the quotes or the cited documents support.
    pub supported: Option<f64>,
    /// Mean support that the answers themselves name for their sentences ([`Answer::support`]).
    pub own_support: Option<f64>,
    /// Answers with a sentence that turns a negation round.
    pub contradicts_negation: f64,
    /// Answers with a sentence that exchanges a number.
    pub contradicts_number: f64,
    /// Mean share of the gold steps given in order, over the procedures.
    pub steps_in_order: Option<f64>,
    /// Answers with the right verdict and every wanted word, over the questions with a verdict.
    pub verdict_right: Option<f64>,
    /// Answers that say the opposite, or leave the condition out, over the same.
    pub verdict_opposite: Option<f64>,
    /// Answers that begin with yes, no or the condition, over the same: a quote may be right without.
    pub verdict_outright: Option<f64>,
    /// Mean share of the wanted words held, over the questions with some.
    pub words_held: Option<f64>,
    /// Answerable questions refused.
    pub abstained: f64,
}

/// Figures of a set's answers.
#[derive(Clone, Debug, Serialize)]
pub struct AnswerReport {
    /// The answers to the questions with accepted ones.
    #[serde(flatten)]
    pub figures: Figures,
    /// Questions that the library cannot answer: those of the set, and with `near` all whose documents were hidden.
    pub unanswerable: usize,
    /// Share of them that were refused; `None` without such questions.
    pub abstained_right: Option<f64>,
    /// Median milliseconds to the evidence.
    pub evidence_ms_p50: f64,
    /// Median milliseconds to the first token, over the questions that have one.
    pub ttft_ms_p50: f64,
    /// Median milliseconds to the whole answer.
    pub total_ms_p50: f64,
    /// Median tokens of the prompt.
    pub prompt_tokens_p50: f64,
    /// The figures of each kind of question, for sets with kinds.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub kinds: BTreeMap<String, Figures>,
}

impl Figures {
    /// The means over scored answers.
    fn over(asked: &[&Asked]) -> Figures {
        let scored: Vec<(&Asked, &Scores)> = asked.iter().filter_map(|asked| Some((*asked, asked.scores.as_ref()?))).collect();
        let mean = |score: &dyn Fn(&Scores) -> f64| {
            scored.iter().map(|(_, scores)| score(scores)).sum::<f64>() / scored.len().max(1) as f64
        };
        let share = |is: &dyn Fn(&Scores) -> bool| mean(&|scores| f64::from(u8::from(is(scores))));
        let over_some = |score: &dyn Fn(&Scores) -> Option<f64>| {
            let some: Vec<f64> = scored.iter().filter_map(|(_, scores)| score(scores)).collect();
            (!some.is_empty()).then(|| some.iter().sum::<f64>() / some.len() as f64)
        };
        let judged =
            |scores: &Scores, is: &dyn Fn(Judgement) -> bool| scores.verdict.map(|judgement| f64::from(u8::from(is(judgement))));
        let sentences: usize = scored.iter().map(|(_, scores)| scores.sentences).sum();
        let supported: usize = scored.iter().map(|(_, scores)| scores.supported).sum();
        let count = |is: &dyn Fn(&Answer) -> bool| scored.iter().filter(|(asked, _)| is(&asked.reply.answer)).count() as f64;
        let own: Vec<f64> =
            scored.iter().flat_map(|(asked, _)| &asked.reply.answer.support).map(|share| f64::from(*share)).collect();
        Figures {
            asked: scored.len(),
            exact_match: share(&|scores| scores.exact_match),
            token_f1: mean(&|scores| scores.token_f1),
            rouge_l: mean(&|scores| scores.rouge_l),
            gold_recall: mean(&|scores| scores.gold_recall),
            contains: share(&|scores| scores.contains),
            contains_or_quoted: share(&|scores| scores.contains_or_quoted),
            by_model: count(&|answer| answer.found && answer.by == AnsweredBy::Model) / scored.len().max(1) as f64,
            own_support: (!own.is_empty()).then(|| own.iter().sum::<f64>() / own.len() as f64),
            supported: (sentences > 0).then(|| supported as f64 / sentences as f64),
            contradicts_negation: share(&|scores| scores.contradicts_negation),
            contradicts_number: share(&|scores| scores.contradicts_number),
            steps_in_order: over_some(&|scores| scores.steps_in_order),
            verdict_right: over_some(&|scores| {
                let words = scores.words_held.is_none_or(|held| held >= 1.0);
                judged(scores, &|judgement| judgement == Judgement::Right && words)
            }),
            verdict_opposite: over_some(&|scores| judged(scores, &|judgement| judgement == Judgement::Opposite)),
            verdict_outright: over_some(&|scores| scores.verdict_outright.map(|outright| f64::from(u8::from(outright)))),
            words_held: over_some(&|scores| scores.words_held),
            abstained: count(&|answer| !answer.found) / scored.len().max(1) as f64,
        }
    }
}

impl AnswerReport {
    /// The figures of asked questions.
    pub fn of(asked: &[Asked]) -> AnswerReport {
        let all: Vec<&Asked> = asked.iter().collect();
        let mut by_kind: BTreeMap<&str, Vec<&Asked>> = BTreeMap::new();
        for asked in all.iter().filter(|asked| asked.scores.is_some()) {
            by_kind.entry(asked.kind.as_deref().unwrap_or_default()).or_default().push(asked);
        }
        by_kind.remove("");
        let unanswerable: Vec<bool> = asked
            .iter()
            .filter(|asked| asked.verdict == Some(super::Verdict::NoAnswer))
            .map(|asked| asked.reply.answer.found)
            .chain(asked.iter().filter_map(|asked| asked.near.as_ref()).map(|near| near.answer.found))
            .collect();
        let refused = unanswerable.iter().filter(|found| !**found).count();
        let scored: Vec<&Answer> = all.iter().filter(|asked| asked.scores.is_some()).map(|asked| &asked.reply.answer).collect();
        let median = |value: &dyn Fn(&Answer) -> f64| {
            let mut values: Vec<f64> = scored.iter().map(|answer| value(answer)).filter(|v| *v > 0.0).collect();
            values.sort_unstable_by(f64::total_cmp);
            values.get(values.len() / 2).copied().unwrap_or(0.0)
        };
        AnswerReport {
            figures: Figures::over(&all),
            unanswerable: unanswerable.len(),
            abstained_right: (!unanswerable.is_empty()).then(|| refused as f64 / unanswerable.len() as f64),
            evidence_ms_p50: median(&|a| a.timings.evidence_ms),
            ttft_ms_p50: median(&|a| a.timings.ttft_ms),
            total_ms_p50: median(&|a| a.timings.total_ms),
            prompt_tokens_p50: median(&|a| a.usage.prompt_tokens as f64),
            kinds: by_kind.into_iter().map(|(kind, asked)| (kind.to_owned(), Figures::over(&asked))).collect(),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::super::asking::Reply;
    use super::super::beir::Verdict;
    use super::*;
    use std::collections::BTreeSet;
    use wire::{Citation, Timings};

    fn answer(text: &str, found: bool) -> Answer {
        Answer {
            answer: text.into(),
            found,
            citations: vec![Citation {
                n: 1,
                document: "d".into(),
                title: String::new(),
                heading: String::new(),
                page: None,
                pages: vec![],
                chunk: "d#0".into(),
                score: 1.0,
                quote: "Close the valve.".into(),
            }],
            timings: Timings { evidence_ms: 2.0, ..Timings::default() },
            ..Answer::default()
        }
    }

    fn asked(query: &LabelledQuery, answer: Answer) -> Asked {
        let texts = HashMap::from([("d", "Close the valve. Rinse the sieve. Do not use solvents. Fill it to 1.5 bar.")]);
        Asked {
            id: query.id.clone(),
            kind: query.kind.clone(),
            previous: vec![],
            question: query.text.clone(),
            gold: query.answers.clone(),
            verdict: query.verdict,
            words: query.words.clone(),
            documents: BTreeSet::new(),
            scores: (!query.answers.is_empty()).then(|| Scores::of(query, &answer, &texts)),
            reply: Reply { answer, features: None },
            near: None,
        }
    }

    #[test]
    fn the_scores_of_an_answer_by_hand() {
        let query = LabelledQuery { answers: vec!["1. Close the valve. 2. Rinse the sieve.".into()], ..LabelledQuery::default() };
        let good = asked(&query, answer("1. Close the valve. [1]\n2. Rinse the sieve. [1]", true)).scores.unwrap();
        assert!(good.exact_match && good.contains && (good.rouge_l - 1.0).abs() < 1e-9);
        assert_eq!((good.sentences, good.supported, good.steps_in_order), (2, 2, Some(1.0)));
        let bad = asked(&query, answer("Use solvents for the valve. Fill it to 2.5 bar. Call a friend tomorrow.", true))
            .scores
            .unwrap();
        assert_eq!((bad.sentences, bad.supported, bad.steps_in_order), (3, 0, Some(0.0)));
        assert!(bad.contradicts_number);
        // Only the quote holds it, and a refusal claims nothing.
        let short = LabelledQuery { answers: vec!["close the valve".into()], ..LabelledQuery::default() };
        let refused = asked(&short, answer("I do not use solvents to fill it to 9 bar.", false)).scores.unwrap();
        assert!(!refused.contains && refused.contains_or_quoted && !refused.contradicts_number);
        assert_eq!((refused.sentences, refused.steps_in_order), (0, None));
    }

    #[test]
    fn a_report_by_hand() {
        let may = LabelledQuery {
            kind: Some("yes-no".into()),
            answers: vec!["No. Do not use solvents.".into()],
            verdict: Some(Verdict::No),
            words: vec!["solvents|sprays".into()],
            ..LabelledQuery::default()
        };
        let none = LabelledQuery { verdict: Some(Verdict::NoAnswer), ..LabelledQuery::default() };
        let mut hidden = asked(&may, answer("No solvents.", true));
        hidden.near = Some(Reply { answer: answer("", true), features: None });
        let all = [
            hidden,
            asked(&may, answer("No.", true)),
            asked(&may, answer("Yes, use solvents.", true)),
            asked(&may, answer("Not found.", false)),
            asked(&none, answer("", false)),
        ];
        let report = AnswerReport::of(&all);
        let figures = &report.figures;
        assert_eq!((figures.asked, report.unanswerable, report.abstained_right), (4, 2, Some(0.5)));
        assert_eq!((figures.verdict_right, figures.verdict_opposite, figures.words_held), (Some(0.25), Some(0.25), Some(0.5)));
        assert_eq!(figures.verdict_outright, Some(0.75), "all but the refusal");
        assert!((figures.abstained - 0.25).abs() < 1e-9 && (figures.contradicts_negation - 0.25).abs() < 1e-9, "{figures:?}");
        assert!((report.evidence_ms_p50 - 2.0).abs() < 1e-9 && figures.steps_in_order.is_none());
        assert_eq!(report.kinds.keys().collect::<Vec<_>>(), ["yes-no"]);
        let nothing = AnswerReport::of(&[]);
        assert_eq!((nothing.figures.asked, nothing.figures.supported, nothing.abstained_right), (0, None, None));
    }
}
