//! A checked question, on its way from the desk to the rooms that answer it.

use crate::{Citation, Shape};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::Notify;

/// A question within its bounds.
#[derive(Debug, Clone)]
pub struct Question {
    /// Its text.
    pub text: String,
    /// The client, as its door tells clients apart; empty for the clients that share one reply address.
    pub client: String,
    /// The client's name for the conversation that the question belongs to.
    pub session: Option<String>,
    /// The collection to search.
    pub collection: String,
    /// Tags that passages must have: keys are AND-ed, values OR-ed.
    pub filter: BTreeMap<String, Vec<String>>,
    /// Ids of documents that are hidden from this question. No request can set it; `vademecum eval` measures with it.
    pub without: BTreeSet<String>,
    /// Passages to retrieve.
    pub top_k: usize,
    /// Longest answer in tokens.
    pub max_tokens: usize,
    /// The work to do.
    pub mode: Mode,
    /// How tokens are chosen.
    pub sampling: Sampling,
    /// The shape of the reply.
    pub shape: Shape,
    /// Time of arrival.
    pub asked: Instant,
    /// Time allowed since the arrival.
    pub allowed: Duration,
}

/// The work to do for a question.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// Evidence and a generated answer.
    #[default]
    Answer,
    /// Evidence alone, in milliseconds.
    Evidence,
}

/// How tokens are chosen.
#[derive(Debug, Clone, PartialEq)]
pub struct Sampling {
    /// 0: greedy, the likeliest token.
    pub temperature: f32,
    /// Smallest set of tokens with this probability mass (nucleus sampling, Holtzman et al. 2020).
    pub top_p: f32,
    /// Drops tokens less likely than this share of the likeliest.
    pub min_p: f32,
    /// Random seed.
    pub seed: u32,
}

/// An event on the way to an answer.
#[derive(Debug)]
pub enum Progress {
    /// The question waits for documents that the library still lacks, and needs no worker meanwhile. For the desk alone.
    Waiting,
    /// The evidence, before any token is generated; empty if the library holds no answer.
    Evidence(Vec<Citation>),
    /// A piece of the answer's text.
    Delta(String),
}

/// A handle that cancels a running or waiting request.
#[derive(Debug, Clone, Default)]
pub struct Cancel(Arc<(AtomicBool, Notify)>);

impl Cancel {
    /// Ends the request, at the latest at the next token.
    pub fn cancel(&self) {
        self.0.0.store(true, Ordering::Release);
        self.0.1.notify_waiters();
    }

    /// Whether the request was cancelled.
    pub fn is_cancelled(&self) -> bool {
        self.0.0.load(Ordering::Acquire)
    }

    /// Waits until the request is cancelled.
    pub async fn cancelled(&self) {
        loop {
            let notified = self.0.1.notified();
            if self.is_cancelled() {
                return;
            }
            notified.await;
        }
    }
}
