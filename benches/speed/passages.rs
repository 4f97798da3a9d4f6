//! First token by the number of passages.

use crate::contenders::{Contender, LEAN, Site};
use crate::set::Set;
use vademecum_benches::Result;
use vademecum_benches::client::Question;
use vademecum_benches::progress::Stage;

/// Only the first token is looked at.
const MAX_TOKENS: usize = 8;

/// One program, passages new to it or seen before.
#[derive(Debug)]
pub(crate) struct Series {
    pub(crate) contender: Contender,
    pub(crate) seen: bool,
    /// Passages, and milliseconds to the first token, of each question.
    pub(crate) points: Vec<(usize, f64)>,
}

/// A new question for every number of passages, asked of freshly started programs in turn; then, of those that keep passages, the same
/// in other words.
pub(crate) fn measure(site: &Site, set: &Set, contenders: &[Contender], quick: bool) -> Result<Vec<Series>> {
    let several = ["read"].map(Contender::Ours).into_iter().chain([LEAN]);
    let contenders: Vec<Contender> = several.filter(|contender| contenders.contains(contender)).collect();
    let (rounds, counts) = if quick { (1, vec![1, 3]) } else { (2, vec![1, 2, 3, 4, 5]) };
    // Every question once where there are enough.
    let mut questions = set.pairs.iter().map(|pair| &pair.first.text).cycle();
    let stage = Stage::begin("numbers of passages");
    let mut all: Vec<Series> = Vec::new();
    // What an earlier part of the run has kept of passages would not be new.
    for contender in contenders.iter().filter(|contender| contender.is_ours()) {
        let kept = site.data_dir(&contender.node()).join("passages");
        if kept.exists() {
            std::fs::remove_dir_all(kept)?;
        }
    }
    let mut programs = contenders.iter().map(|contender| Ok(site.start(*contender)?.0)).collect::<Result<Vec<_>>>()?;
    for round in 0..rounds {
        stage.step(round, rounds);
        for (count, question) in counts.iter().copied().zip(&mut questions) {
            for program in &mut programs {
                for seen in if program.contender.keeps_passages() { &[false, true][..] } else { &[false] } {
                    let text = if *seen { format!("In a few words, please. {question}") } else { question.clone() };
                    let Some(first) = program.ask(Question { text: &text, top_k: count, max_tokens: MAX_TOKENS })?.first else {
                        continue;
                    };
                    let point = (count, first.wall_ms);
                    match all.iter_mut().find(|series| series.contender == program.contender && series.seen == *seen) {
                        Some(series) => series.points.push(point),
                        None => all.push(Series { contender: program.contender, seen: *seen, points: vec![point] }),
                    }
                }
            }
        }
    }
    for program in programs {
        program.stop()?;
    }
    Ok(all)
}
