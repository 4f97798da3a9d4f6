//! Answer quality: asks every question of a set, and scores the answers as SQuAD does.

use super::answers::{contains_answer, exact_match, token_f1};
use super::{Dataset, EvalError};
use crate::Answerer;
use serde::Serialize;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};
use wire::{Answer, Cancel, Mode, Question, Sampling, Shape};

/// Figures of a set's answers: shares and means over the questions with accepted answers.
#[derive(Clone, Debug, Serialize)]
pub struct AnswerReport {
    /// Questions asked.
    pub asked: usize,
    /// Share of answers equal to an accepted one, after normalisation.
    pub exact_match: f64,
    /// Mean of the best token F1 against the accepted answers.
    pub token_f1: f64,
    /// Share of answers that contain an accepted one.
    pub contains: f64,
    /// Share of questions whose answer or quotes contain an accepted answer.
    pub contains_or_quoted: f64,
    /// Share of questions answered with `found: false`.
    pub abstained: f64,
    /// Median milliseconds to the evidence.
    pub evidence_ms_p50: f64,
    /// Median milliseconds to the first token, over the questions that have one.
    pub ttft_ms_p50: f64,
    /// Median milliseconds to the whole answer.
    pub total_ms_p50: f64,
    /// Median tokens of the prompt.
    pub prompt_tokens_p50: f64,
}

/// Parameters of the questions.
#[derive(Clone, Debug)]
pub struct Asking {
    /// The collection that holds the set's documents.
    pub collection: String,
    /// Passages retrieved.
    pub top_k: usize,
    /// Longest answer in tokens.
    pub max_tokens: usize,
    /// How tokens are chosen.
    pub sampling: Sampling,
    /// Most questions asked, evenly spread over the set; 0: all.
    pub limit: usize,
}

/// Asks the set's questions that have accepted answers, one after the other, and calls `asked` for each.
///
/// # Errors
/// A question cannot be answered at all.
pub async fn answer(
    dataset: &Dataset,
    answerer: &Answerer,
    asking: &Asking,
    asked: &mut (dyn FnMut(&str, &Answer) + Send),
) -> Result<AnswerReport, EvalError> {
    let labelled: Vec<_> = dataset.queries.iter().filter(|query| !query.answers.is_empty()).collect();
    let step = if asking.limit == 0 { 1.0 } else { (labelled.len() as f64 / asking.limit as f64).max(1.0) };
    let chosen: Vec<_> = (0..labelled.len())
        .map(|i| (i as f64 * step) as usize)
        .take_while(|i| *i < labelled.len())
        .map(|i| labelled[i])
        .collect();
    let mut answers = Vec::with_capacity(chosen.len());
    for query in &chosen {
        let question = Question {
            text: query.text.clone(),
            client: String::new(),
            session: None,
            collection: asking.collection.clone(),
            filter: BTreeMap::default(),
            top_k: asking.top_k,
            max_tokens: asking.max_tokens,
            mode: Mode::Answer,
            sampling: asking.sampling.clone(),
            shape: Shape::default(),
            asked: Instant::now(),
            allowed: Duration::from_secs(600),
        };
        let answer = answerer
            .answer(&question, &Cancel::default(), &mut |_| {})
            .await
            .map_err(|e| EvalError::Answer { id: query.id.clone(), reason: e.to_string() })?;
        asked(&query.text, &answer);
        answers.push(answer);
    }
    let mean = |score: &dyn Fn(&Answer, &[String]) -> f64| {
        let total: f64 = chosen.iter().zip(&answers).map(|(query, answer)| score(answer, &query.answers)).sum();
        total / chosen.len().max(1) as f64
    };
    let share = |yes: bool| f64::from(u8::from(yes));
    let quoted = |a: &Answer| {
        std::iter::once(a.answer.as_str()).chain(a.citations.iter().map(|c| c.quote.as_str())).collect::<Vec<_>>().join(" ")
    };
    let median = |value: &dyn Fn(&Answer) -> f64| {
        let mut values: Vec<f64> = answers.iter().map(value).filter(|v| *v > 0.0).collect();
        values.sort_unstable_by(f64::total_cmp);
        values.get(values.len() / 2).copied().unwrap_or(0.0)
    };
    Ok(AnswerReport {
        asked: chosen.len(),
        exact_match: mean(&|answer, accepted| share(exact_match(&answer.answer, accepted))),
        token_f1: mean(&|answer, accepted| token_f1(&answer.answer, accepted)),
        contains: mean(&|answer, accepted| share(contains_answer(&answer.answer, accepted))),
        contains_or_quoted: mean(&|answer, accepted| share(contains_answer(&quoted(answer), accepted))),
        abstained: mean(&|answer, _| share(!answer.found)),
        evidence_ms_p50: median(&|a| a.timings.evidence_ms),
        ttft_ms_p50: median(&|a| a.timings.ttft_ms),
        total_ms_p50: median(&|a| a.timings.total_ms),
        prompt_tokens_p50: median(&|a| a.usage.prompt_tokens as f64),
    })
}
