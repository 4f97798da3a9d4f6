//! The answer as it is written: sentence by sentence, each checked against the passages, with the marks of the passages behind it.

use crate::languages::{Kind, Words};
use crate::marks::{self, MarkFilter};
use crate::sentences::{Sentence, SentenceStream};
use crate::support::{Support, without_list_mark};

/// Least share of the best sentence's words that an answer must hold, for its condition to count as told.
const TOLD: f32 = 0.5;

/// An answer on its way to its asker.
pub(super) struct Written<'a> {
    support_of: Support<'a>,
    kind: Kind,
    words: &'a Words,
    /// Whether sentences are checked; else the text goes out as it comes.
    check: bool,
    /// The passage that is cited when none stands out: the best one.
    first: Option<usize>,
    stream: SentenceStream,
    /// The filter of text that is not checked.
    unmarked: MarkFilter,
    /// The text sent so far.
    pub(super) text: String,
    /// The support of each sentence sent.
    pub(super) support: Vec<f32>,
    /// Sentences that were held back.
    pub(super) withheld: usize,
    /// Whether the model said that the text holds no answer, before it said anything else.
    pub(super) silent: bool,
    /// The passage behind the last sentence, whose mark has not been sent yet.
    cited: Option<usize>,
}

impl<'a> Written<'a> {
    pub(super) fn new(support_of: Support<'a>, kind: Kind, words: &'a Words, first: Option<usize>, check: bool) -> Self {
        Self {
            support_of,
            kind,
            words,
            check,
            first,
            stream: SentenceStream::default(),
            unmarked: MarkFilter::default(),
            text: String::new(),
            support: vec![],
            withheld: 0,
            silent: false,
            cited: None,
        }
    }

    /// Takes a piece of the generated text; returns the text that may be sent now.
    pub(super) fn push(&mut self, piece: &str) -> String {
        if !self.check {
            let out = self.unmarked.push(piece);
            self.text += &out;
            return out;
        }
        let sentences = self.stream.push(piece);
        sentences.into_iter().map(|sentence| self.take(&sentence)).collect()
    }

    /// The rest of the text, at the end of the answer. `best`: the sentence of the passages that answers best. An answer of yes or
    /// no must not leave out its condition, so that sentence stands behind it.
    pub(super) fn finish(&mut self, best: &str) -> String {
        if !self.check {
            let rest = self.unmarked.finish().trim_end().to_owned();
            self.text += &rest;
            self.cited = self.first.filter(|_| self.text.contains(char::is_alphanumeric));
            return rest + &self.mark(None);
        }
        let sentences = self.stream.finish();
        let mut out: String = sentences.into_iter().map(|sentence| self.take(&sentence)).collect();
        if self.kind == Kind::YesNo
            && !self.text.is_empty()
            && self.support_of.is_bound(best)
            && self.support_of.told(best, &self.text) < TOLD
        {
            out += &self.take(&Sentence { new_line: false, text: best.to_owned() });
        }
        out + &self.mark(None)
    }

    /// An answer that is a run of words of the passages, whole. Nothing in it can be unsupported.
    pub(super) fn copied(&mut self, run: &str) -> String {
        let run = marks::removed(run);
        if run.is_empty() {
            return String::new();
        }
        self.support.push(1.0);
        self.cited = self.support_of.check(&run).n.or(self.first);
        self.text.clone_from(&run);
        self.text.clone() + &self.mark(None)
    }

    fn take(&mut self, sentence: &Sentence) -> String {
        let text = marks::removed(&sentence.text);
        if self.silent || !text.contains(char::is_alphanumeric) || without_list_mark(&text).is_empty() {
            return String::new();
        }
        if self.text.is_empty() && self.words.is_silent(&text) {
            self.silent = true;
            return String::new();
        }
        let checked = self.support_of.check(&text);
        log::debug!("support {:.2} of passage {:?}, {:?}: {text}", checked.support, checked.n, checked.fault);
        if checked.fault.is_some() {
            self.withheld += 1;
            return String::new();
        }
        let mut out = self.mark(checked.n.or(self.cited).or(self.first));
        let between = match (self.text.is_empty(), sentence.new_line) {
            (true, _) => "",
            (false, true) => "\n",
            (false, false) => " ",
        };
        self.support.push((checked.support * 100.0).round() / 100.0);
        let said = format!("{between}{text}");
        self.text += &said;
        out += &said;
        out
    }

    /// The mark behind what was said, if the next sentence stands on another passage.
    fn mark(&mut self, next: Option<usize>) -> String {
        let due = self.cited.filter(|cited| Some(*cited) != next);
        self.cited = next;
        let mark = due.map(|n| format!(" [{n}]")).unwrap_or_default();
        self.text += &mark;
        mark
    }
}
