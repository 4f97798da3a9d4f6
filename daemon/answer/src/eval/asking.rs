//! Asks the questions of a labelled set, as they are and with the documents hidden that answer them.

use super::answering::Scores;
use super::beir::{Dataset, LabelledQuery, Verdict};
use super::{EvalError, calibrate};
use crate::Answerer;
use library::retrieve::{Features, Query};
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::{Duration, Instant};
use wire::{Answer, Cancel, Mode, Question, Sampling, Shape};

/// Time allowed for one question; a slow generator is no failure of a measurement.
const ALLOWED: Duration = Duration::from_secs(600);

/// The questions to ask, and how.
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
    /// Answers are wanted and scored. Otherwise the evidence alone is, which takes milliseconds.
    pub answers: bool,
    /// Each question is asked once more with its documents hidden.
    pub near: bool,
}

/// A reply, with the inputs of its confidence if they were wanted.
#[derive(Clone, Debug, Serialize)]
pub struct Reply {
    /// The answer.
    #[serde(flatten)]
    pub answer: Answer,
    /// The inputs of its confidence.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub features: Option<Features>,
}

/// A question of the set and the replies to it.
#[derive(Clone, Debug, Serialize)]
pub struct Asked {
    /// The question's id.
    pub id: String,
    /// Its kind, if the set has kinds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    /// Earlier questions of the same conversation, oldest first.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub previous: Vec<String>,
    /// The question.
    pub question: String,
    /// Accepted answers.
    pub gold: Vec<String>,
    /// The right verdict, if there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub verdict: Option<Verdict>,
    /// Words that a right answer holds.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub words: Vec<String>,
    /// Ids of the documents that answer.
    pub documents: BTreeSet<String>,
    /// The reply.
    pub reply: Reply,
    /// The reply with those documents hidden, if it was wanted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub near: Option<Reply>,
    /// The scores of the answer, if answers were wanted and there is one to compare with.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scores: Option<Scores>,
}

/// The questions that `asking` chooses from a set, in their order: those that it can measure, evenly spread.
pub fn chosen<'a>(dataset: &'a Dataset, asking: &Asking) -> Vec<&'a LabelledQuery> {
    let measured = |query: &&LabelledQuery| {
        let by_answer = asking.answers && (!query.answers.is_empty() || !query.is_answerable());
        by_answer || (asking.near && !query.relevant().is_empty())
    };
    spread(dataset.queries.iter().filter(measured).collect(), asking.limit)
}

/// At most `limit` of the items, evenly spread; 0: all.
fn spread<T: Copy>(all: Vec<T>, limit: usize) -> Vec<T> {
    if limit == 0 || limit >= all.len() {
        return all;
    }
    let step = all.len() as f64 / limit as f64;
    (0..limit).filter_map(|i| all.get((i as f64 * step) as usize).copied()).collect()
}

/// Asks the chosen questions one after the other, and calls `each` for every one.
///
/// # Errors
/// A question cannot be answered at all.
pub async fn ask(
    dataset: &Dataset,
    answerer: &Answerer,
    asking: &Asking,
    each: &mut (dyn FnMut(&Asked) + Send),
) -> Result<Vec<Asked>, EvalError> {
    let texts: HashMap<&str, &str> =
        dataset.documents.iter().map(|document| (document.id.as_str(), document.text.as_str())).collect();
    let mut all = Vec::new();
    for query in chosen(dataset, asking) {
        let documents = query.relevant();
        let reply = converse(answerer, asking, query, &BTreeSet::new()).await?;
        let hides = asking.near && !documents.is_empty();
        let near = if hides { Some(converse(answerer, asking, query, &documents).await?) } else { None };
        let scored = asking.answers && !query.answers.is_empty();
        let asked = Asked {
            id: query.id.clone(),
            kind: query.kind.clone(),
            previous: query.previous.clone(),
            question: query.text.clone(),
            gold: query.answers.clone(),
            verdict: query.verdict,
            words: query.words.clone(),
            documents,
            scores: scored.then(|| Scores::of(query, &reply.answer, &texts)),
            reply,
            near,
        };
        each(&asked);
        all.push(asked);
    }
    Ok(all)
}

/// Replies to questions about other subjects, which the library should refuse; as many as `asking` allows.
///
/// # Errors
/// A question cannot be answered at all.
pub async fn ask_foreign(answerer: &Answerer, asking: &Asking) -> Result<Vec<Answer>, EvalError> {
    let questions = calibrate::foreign_questions();
    let mut answers = Vec::new();
    for text in spread(questions.iter().map(String::as_str).collect(), asking.limit) {
        answers.push(answer(answerer, text, &question(asking, text, &BTreeSet::new())).await?);
    }
    Ok(answers)
}

/// The reply to a question, after those that were asked before it in the same conversation.
async fn converse(
    answerer: &Answerer,
    asking: &Asking,
    query: &LabelledQuery,
    without: &BTreeSet<String>,
) -> Result<Reply, EvalError> {
    // With its documents hidden it is another conversation, which must not remember them.
    let session = (!query.previous.is_empty()).then(|| format!("{}-{}", query.id, without.len()));
    let question = |text: &str| Question { session: session.clone(), ..question(asking, text, without) };
    for before in &query.previous {
        answer(answerer, &query.id, &question(before)).await?;
    }
    let asked = question(&query.text);
    let answer = answer(answerer, &query.id, &asked).await?;
    // The inputs of a follow-up's confidence depend on the conversation.
    let features = if asking.near && query.previous.is_empty() {
        let Question { text, collection, without, .. } = asked;
        answerer.retriever().features(&Query { text, collection, without, ..Query::default() })?
    } else {
        None
    };
    Ok(Reply { answer, features })
}

fn question(asking: &Asking, text: &str, without: &BTreeSet<String>) -> Question {
    Question {
        text: text.to_owned(),
        client: "eval".into(),
        session: None,
        collection: asking.collection.clone(),
        filter: BTreeMap::new(),
        without: without.clone(),
        top_k: asking.top_k,
        max_tokens: asking.max_tokens,
        mode: if asking.answers { Mode::Answer } else { Mode::Evidence },
        sampling: asking.sampling.clone(),
        shape: Shape::default(),
        asked: Instant::now(),
        allowed: ALLOWED,
    }
}

async fn answer(answerer: &Answerer, id: &str, question: &Question) -> Result<Answer, EvalError> {
    let answer = answerer.answer(question, &Cancel::default(), &mut |_| {}).await;
    answer.map_err(|e| EvalError::Answer { id: id.to_owned(), reason: e.to_string() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asking(answers: bool, near: bool, limit: usize) -> Asking {
        Asking {
            collection: "c".into(),
            top_k: 3,
            max_tokens: 8,
            sampling: Sampling { temperature: 0.0, top_p: 1.0, min_p: 0.0, seed: 0 },
            limit,
            answers,
            near,
        }
    }

    #[test]
    fn the_questions_that_can_be_measured_are_asked() {
        let query = |id: &str, answer: Option<&str>, document: Option<&str>, verdict| LabelledQuery {
            id: id.into(),
            answers: answer.map(str::to_owned).into_iter().collect(),
            relevance: document.map(|document| (document.to_owned(), 1)).into_iter().collect(),
            verdict,
            ..LabelledQuery::default()
        };
        let queries = vec![
            query("both", Some("x"), Some("d"), None),
            query("document", None, Some("d"), None),
            query("none", None, None, Some(Verdict::NoAnswer)),
        ];
        let dataset = Dataset { name: "s".into(), documents: vec![], queries };
        let ids = |answers, near, limit| {
            chosen(&dataset, &asking(answers, near, limit)).into_iter().map(|query| query.id.as_str()).collect::<Vec<_>>()
        };
        assert_eq!(ids(true, false, 0), ["both", "none"]);
        assert_eq!(ids(false, true, 0), ["both", "document"]);
        assert_eq!(ids(true, true, 5), ["both", "document", "none"]);
        assert_eq!(ids(true, false, 1), ["both"]);
        assert_eq!(spread((0..10).collect(), 4), [0, 2, 5, 7]);
    }
}
