//! The readings of a question: from whole sections down to a few sentences. The generator takes the first one that it reads within
//! the asker's patience; text whose state is kept costs no time.

use crate::evidence::{self, Scored};
use crate::prompts::Prompts;
use crate::support::ReadPassage;
use library::retrieve::{Passage, RetrieveError, Retriever, Section};
use llm::engine::PromptPassage;

/// Longest section, in encoder tokens.
pub(super) const SECTION_TOKENS: u32 = 512;

/// Share of the best passage's score that another passage needs to be read beside it.
const BESIDE: f32 = 0.6;

/// One reading.
#[derive(Debug)]
pub(super) struct Reading {
    /// Its name in the reply.
    pub(super) name: &'static str,
    /// The passages as the model sees them.
    pub(super) prompt: Vec<PromptPassage>,
    /// The same passages as the answer is checked against them.
    pub(super) passages: Vec<ReadPassage>,
}

impl Reading {
    fn of(name: &'static str, prompts: &Prompts, parts: Vec<(Option<u64>, ReadPassage)>) -> Self {
        let framed = |(document, read): &(Option<u64>, ReadPassage)| PromptPassage {
            document: *document,
            text: prompts.passage(&read.heading, &read.text),
        };
        Self { name, prompt: parts.iter().map(framed).collect(), passages: parts.into_iter().map(|(_, read)| read).collect() }
    }
}

/// Sentences of the narrowest reading.
const SENTENCES: usize = 4;

/// The readings for some passages, best first. `ranked`: the sentences of each passage, best first. `narrow`: the section, which
/// may have been read before, or else the best few sentences.
///
/// # Errors
/// The store cannot be read.
pub(super) fn readings(
    prompts: &Prompts,
    retriever: &Retriever,
    passages: &[Passage],
    ranked: &[Vec<Scored>],
    narrow: bool,
) -> Result<Vec<Reading>, RetrieveError> {
    let Some(first) = passages.first() else { return Ok(vec![]) };
    let scores: Vec<f32> = passages.iter().map(|passage| passage.score).collect();
    let best = evidence::best_of_all(ranked, &scores, SENTENCES);
    let said = passages.iter().zip(best).enumerate().filter(|(_, (_, chosen))| !chosen.is_empty());
    let said = said.map(|(i, (passage, chosen))| (None, ReadPassage { text: evidence::text(&chosen), ..chunk(i + 1, passage) }));
    let sentences = Reading::of("sentences", prompts, said.collect());
    let section = retriever.section(first.number, first.ordinal, SECTION_TOKENS)?;
    let whole = |passage: &Passage, n: usize| (Some(passage.number), chunk(n, passage));
    let mut all = Vec::new();
    if let Some(section) = &section {
        let read = || (Some(section.number), of_section(1, &first.title, section));
        let beside = passages
            .iter()
            .enumerate()
            .skip(1)
            .find(|(_, passage)| passage.score >= BESIDE * first.score && !section.text.contains(passage.best_chunk()));
        if let Some((i, passage)) = beside.filter(|_| !narrow) {
            all.push(Reading::of("section and chunk", prompts, vec![read(), whole(passage, i + 1)]));
        }
        all.push(Reading::of("section", prompts, vec![read()]));
    }
    if !narrow && section.is_none_or(|section| section.text != first.best_chunk()) {
        all.push(Reading::of("chunk", prompts, vec![whole(first, 1)]));
    }
    all.push(sentences);
    Ok(all)
}

/// The section around a chunk, for precomputing.
pub(super) fn section_prompt(prompts: &Prompts, title: &str, section: &Section) -> PromptPassage {
    let read = of_section(1, title, section);
    PromptPassage { document: Some(section.number), text: prompts.passage(&read.heading, &read.text) }
}

fn of_section(n: usize, title: &str, section: &Section) -> ReadPassage {
    ReadPassage { n, heading: heading(title, &section.heading.join(" > "), section.page), text: section.text.clone() }
}

/// The best chunk of a passage. The passage's neighbouring chunks vary from question to question. The chunk has always the same
/// words, so the KV cache holds its state.
fn chunk(n: usize, passage: &Passage) -> ReadPassage {
    let at = passage.best.start;
    let heading = heading(&passage.title, passage.heading_at(at), passage.page_at(at));
    ReadPassage { n, heading, text: passage.best_chunk().to_owned() }
}

/// Title, headings and page in one line.
fn heading(title: &str, headings: &str, page: Option<u32>) -> String {
    let mut line = match (title.is_empty(), headings.is_empty()) {
        (false, false) if headings == title || headings.starts_with(&format!("{title} > ")) => headings.to_owned(),
        (false, false) => format!("{title} > {headings}"),
        (false, true) => title.to_owned(),
        (true, _) => headings.to_owned(),
    };
    if let Some(page) = page {
        line = format!("{line} (page {page})");
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_heading_names_title_sections_and_page() {
        assert_eq!(heading("Manual", "Care > Filter", Some(3)), "Manual > Care > Filter (page 3)");
        assert_eq!(heading("Care", "Care > Filter", None), "Care > Filter");
        assert_eq!(heading("Manual", "", None), "Manual");
        assert_eq!(heading("", "Care", None), "Care");
        assert_eq!(heading("", "", None), "");
    }
}
