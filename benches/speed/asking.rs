//! Questions to every program in turn: how soon the first word comes, what it costs, and what is said.

use crate::contenders::{Contender, DEFAULT, LEAN, Running, Site};
use crate::set::{Query, Set};
use answer::eval::{contains_answer, token_f1};
use serde_json::{Value, json};
use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use vademecum_benches::Result;
use vademecum_benches::client::Asked;
use vademecum_benches::process::Memory;
use vademecum_benches::progress::Stage;

/// Between two questions: what the first one leaves to be done is done.
pub(crate) const PAUSE: Duration = Duration::from_millis(100);

/// Whether the program has read the passages of a question for another question before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Seen {
    New,
    Before,
    /// Some of them only: such questions count in neither column.
    Partly,
}

/// One question to one program.
#[derive(Debug)]
pub(crate) struct Answered {
    pub(crate) contender: Contender,
    pub(crate) question: String,
    pub(crate) seen: Seen,
    pub(crate) asked: Asked,
    /// Milliseconds of processor time, with what is done after the answer.
    pub(crate) cpu_ms: f64,
    /// An accepted answer stands in the answer; in the answer or a quote; token F1.
    pub(crate) contains: bool,
    pub(crate) contains_or_quoted: bool,
    pub(crate) f1: f64,
}

/// Memory of the programs while they were asked.
#[derive(Debug)]
pub(crate) struct Sample {
    pub(crate) seconds: f64,
    pub(crate) memory: Vec<(Contender, Memory)>,
}

/// What was found.
#[derive(Debug, Default)]
pub(crate) struct Questions {
    pub(crate) answered: Vec<Answered>,
    pub(crate) memory: Vec<Sample>,
}

impl Questions {
    /// Of a program, where its passages were new or seen.
    pub(crate) fn of(&self, contender: Contender, seen: Seen) -> impl Iterator<Item = &Answered> {
        self.answered.iter().filter(move |answered| answered.contender == contender && answered.seen == seen)
    }

    /// The lean peer's answer to the same question.
    pub(crate) fn of_lean(&self, question: &str) -> Option<&Answered> {
        self.answered.iter().find(|answered| answered.contender == LEAN && answered.question == question)
    }
}

/// Asks the first question of every pair, then something else about the passages of the second, then the second. All programs run
/// all the time, and every question goes to one after the other, so that what disturbs the machine disturbs all.
pub(crate) fn measure(site: &Site, set: &Set, contenders: &[Contender]) -> Result<Questions> {
    let mut programs: Vec<Program> =
        contenders.iter().map(|contender| Program::start(site, *contender)).collect::<Result<_>>()?;
    std::thread::sleep(Duration::from_secs(1));
    let processes: Vec<(Contender, Vec<u32>)> =
        programs.iter().map(|program| (program.running.contender, program.running.processes())).collect();
    let done = AtomicBool::new(false);
    let (answered, memory) = std::thread::scope(|scope| {
        let watch = scope.spawn(|| watch(&processes, &done));
        let answered = ask_all(site, &mut programs, set);
        done.store(true, Ordering::Relaxed);
        (answered, watch.join().unwrap_or_default())
    });
    let answered = answered?;
    for program in programs {
        program.running.stop()?;
    }
    Ok(Questions { answered, memory })
}

/// What the default reader says and what the lean peer says, to questions chosen for nothing but their answers.
pub(crate) fn judge(site: &Site, set: &Set, contenders: &[Contender]) -> Result<Vec<Answered>> {
    let stage = Stage::begin("answers");
    let mut programs: Vec<Program> = [DEFAULT, LEAN]
        .into_iter()
        .filter(|c| *c == DEFAULT || contenders.contains(c))
        .map(|c| Program::start(site, c))
        .collect::<Result<_>>()?;
    let mut answered = Vec::new();
    for (i, query) in set.questions.iter().enumerate() {
        stage.step(i, set.questions.len());
        for program in &mut programs {
            answered.push(program.ask(site, query, false)?);
        }
    }
    for program in programs {
        program.running.stop()?;
    }
    Ok(answered)
}

/// A running program and the passages that its model has read.
struct Program {
    running: Running,
    seen: HashSet<String>,
}

fn ask_all(site: &Site, programs: &mut [Program], set: &Set) -> Result<Vec<Answered>> {
    let mut answered = Vec::new();
    let stage = Stage::begin("questions");
    let all = 3 * set.pairs.len();
    for (i, pair) in set.pairs.iter().enumerate() {
        stage.step(i, all);
        for program in &mut *programs {
            answered.push(program.ask(site, &pair.first, false)?);
        }
    }
    for (i, pair) in set.pairs.iter().enumerate() {
        stage.step(set.pairs.len() + i, all);
        for program in programs.iter_mut().filter(|program| program.running.contender.keeps_passages()) {
            let other = Query { text: format!("In a few words, please. {}", pair.second.text), answers: vec![] };
            program.ask(site, &other, true)?;
        }
    }
    for (i, pair) in set.pairs.iter().enumerate() {
        stage.step(2 * set.pairs.len() + i, all);
        for program in &mut *programs {
            answered.push(program.ask(site, &pair.second, true)?);
        }
    }
    Ok(answered)
}

impl Program {
    fn start(site: &Site, contender: Contender) -> Result<Self> {
        Ok(Self { running: site.start(contender)?.0, seen: HashSet::new() })
    }

    /// `before_this`: others were asked about the same passages.
    fn ask(&mut self, site: &Site, query: &Query, before_this: bool) -> Result<Answered> {
        let before = self.running.cpu()?;
        let asked = self.running.ask(site.question(&query.text))?;
        std::thread::sleep(PAUSE);
        let cpu_ms = (self.running.cpu()? - before) * 1e3;
        let texts = |citations: &Value, key: &str| {
            let citations = citations.as_array().into_iter().flatten();
            citations.filter_map(|citation| citation[key].as_str().map(str::to_owned)).collect::<Vec<_>>()
        };
        let answer = asked.answer["answer"].as_str().unwrap_or_default();
        let with_quotes = format!("{answer} {}", texts(&asked.answer["citations"], "quote").join(" "));
        Ok(Answered {
            contender: self.running.contender,
            question: query.text.clone(),
            // Where nothing is said, nothing was read.
            seen: self.note(&if asked.first.is_some() { texts(&asked.evidence, "chunk") } else { vec![] }, before_this),
            contains: contains_answer(answer, &query.answers),
            contains_or_quoted: contains_answer(&with_quotes, &query.answers),
            f1: token_f1(answer, &query.answers),
            cpu_ms,
            asked,
        })
    }

    /// Whether the model has read the passages before; now it has. Of what keeps nothing of single passages the round tells.
    fn note(&mut self, found: &[String], before_this: bool) -> Seen {
        let read = match self.running.contender {
            Contender::Ours("read") if !found.is_empty() => &found[..1],
            _ if before_this => return Seen::Before,
            _ => return Seen::New,
        };
        let known = read.iter().filter(|passage| self.seen.contains(*passage)).count();
        self.seen.extend(read.iter().cloned());
        match known {
            0 => Seen::New,
            n if n == read.len() => Seen::Before,
            _ => Seen::Partly,
        }
    }
}

/// Looks at the memory of all programs every second.
fn watch(programs: &[(Contender, Vec<u32>)], done: &AtomicBool) -> Vec<Sample> {
    let begun = Instant::now();
    let mut samples = Vec::new();
    while !done.load(Ordering::Relaxed) {
        let of = |processes: &[u32]| {
            let all = processes.iter().filter_map(|process| Memory::of_process(*process).ok());
            all.fold(Memory::default(), |sum, memory| sum + memory)
        };
        let memory = programs.iter().map(|(contender, processes)| (*contender, of(processes))).collect();
        samples.push(Sample { seconds: begun.elapsed().as_secs_f64(), memory });
        std::thread::sleep(Duration::from_secs(1));
    }
    samples
}

impl Answered {
    /// For the JSON file.
    pub(crate) fn detail(&self) -> Value {
        json!({
            "program": self.contender.node(),
            "question": self.question,
            "passages": match self.seen { Seen::New => "new", Seen::Before => "seen", Seen::Partly => "partly seen" },
            "answer": self.asked.answer["answer"],
            "gold_in_answer": self.contains,
            "gold_in_answer_or_quotes": self.contains_or_quoted,
            "token_f1": self.f1,
            "found": self.asked.answer["found"],
            "evidence_ms": self.asked.evidence_ms,
            "first_token_ms": self.asked.first.map(|first| first.wall_ms),
            "first_token_cpu_ms": self.asked.first.map(|first| first.cpu_ms),
            "total_ms": self.asked.total_ms,
            "cpu_ms": self.cpu_ms,
            "timings": self.asked.answer["timings"],
            "usage": self.asked.answer["usage"],
        })
    }
}
