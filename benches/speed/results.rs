//! Tables, goals, plots and raw figures of a run.

use crate::asking::{Answered, Questions, Seen};
use crate::contenders::{Contender, DEFAULT, LANGCHAIN, LEAN, OURS, SERVER};
use crate::evidence::Evidence;
use crate::passages::Series;
use crate::plain::{self, Plain};
use crate::starts::Ready;
use crate::throughput::Throughput;
use serde_json::{Value, json};
use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use vademecum_benches::Result;
use vademecum_benches::plot::{self, Axis, Line, Scale};
use vademecum_benches::process::Memory;
use vademecum_benches::report::{self, Spread, grid, number};

/// Everything that a run found.
pub(crate) struct Findings {
    pub(crate) plain: plain::Findings,
    pub(crate) ready: Ready,
    pub(crate) asked: Questions,
    pub(crate) judged: Vec<Answered>,
    pub(crate) evidence: Evidence,
    pub(crate) throughput: Vec<Throughput>,
    pub(crate) passages: Vec<Series>,
}

/// Writes `<name>.md`, `<name>.json` and `<name>-*.svg`; returns the text for the terminal.
pub(crate) fn write(folder: &Path, name: &str, conditions: &Value, found: &Findings) -> Result<String> {
    fs::create_dir_all(folder)?;
    let text = found.text(name, conditions);
    fs::write(folder.join(format!("{name}.md")), &text)?;
    fs::write(folder.join(format!("{name}.json")), format!("{:#}\n", found.json(conditions)))?;
    for (plot, picture) in found.plots() {
        fs::write(folder.join(format!("{name}-{plot}.svg")), picture)?;
    }
    Ok(text)
}

fn spread(values: impl IntoIterator<Item = f64>) -> Option<Spread> {
    Spread::of(values)
}

fn cell(values: impl IntoIterator<Item = f64>) -> String {
    spread(values).map_or("-".into(), |spread| spread.to_string())
}

fn median(values: impl IntoIterator<Item = f64>) -> Option<f64> {
    Some(spread(values)?.median)
}

fn mib(kb: u64) -> f64 {
    kb as f64 / 1024.0
}

/// One figure or none.
fn mean(values: impl Iterator<Item = f64>) -> Vec<f64> {
    let values: Vec<f64> = values.collect();
    if values.is_empty() { vec![] } else { vec![values.iter().sum::<f64>() / values.len() as f64] }
}

fn share(yes: bool) -> f64 {
    f64::from(u8::from(yes))
}

fn row<const N: usize>(cells: [&str; N]) -> Vec<String> {
    cells.map(str::to_owned).to_vec()
}

/// What is compared between a question's answers.
type Figure = fn(&Answered) -> Option<f64>;

const FIGURES: [(&str, Figure); 4] = [
    ("first token, ms", |a| Some(a.asked.first?.wall_ms)),
    ("CPU until then, ms", |a| Some(a.asked.first?.cpu_ms)),
    ("whole answer, ms", |a| Some(a.asked.total_ms)),
    ("CPU per question, ms", |a| Some(a.cpu_ms)),
];

/// What a figure is to reach.
#[derive(Clone, Copy)]
enum Bound {
    AtMost(f64),
    AtLeast(f64),
}
use Bound::{AtLeast, AtMost};

/// A goal with what was measured, run by run.
struct Goal {
    what: String,
    ours: Vec<f64>,
    /// The other program; empty where there is none.
    beside: Vec<f64>,
    /// What the bound is for; where there is none, that is `ours`.
    ratios: Option<Vec<f64>>,
    bound: Bound,
}

impl Goal {
    /// A bound of our figure itself.
    fn alone(what: String, ours: Vec<f64>, bound: Bound) -> Self {
        Self { what, ours, beside: vec![], ratios: None, bound }
    }

    /// A bound of the ratio of the medians.
    fn beside(what: &str, ours: Vec<f64>, beside: Vec<f64>, bound: Bound) -> Self {
        let ratio = median(ours.iter().copied()).zip(median(beside.iter().copied())).map(|(ours, beside)| ours / beside);
        Self { what: what.into(), ours, beside, ratios: Some(ratio.into_iter().collect()), bound }
    }

    /// `None` where it was not measured.
    fn reached(&self) -> Option<bool> {
        let series = self.ratios.as_ref().unwrap_or(&self.ours);
        let median = median(series.iter().copied())?;
        Some(match self.bound {
            AtMost(most) => median <= most,
            AtLeast(least) => median >= least,
        })
    }
}

impl Findings {
    fn text(&self, name: &str, conditions: &Value) -> String {
        let mut text = format!("# {name}\n\n{}\n", report::list(conditions));
        for (peer, why) in &self.ready.not_run {
            let _ = writeln!(text, "- not run: {}: {why}", peer.name());
        }
        let waiting = if self.plain.passive_wins() { "asleep" } else { "spinning first" };
        let _ = write!(
            text,
            "\nA cell is `median (min to max)`. \"x lean\" is the median, over the questions, of the ratio to {} at the same question. The peers' \
             threads waited {waiting}, which wrote faster in this run.\n",
            LEAN.name()
        );
        let sections = [
            ("Goals", self.goals_table()),
            ("Start and memory", self.ready_table()),
            ("Questions", self.questions_table()),
            ("Answers", self.answers_table()),
            ("Question to evidence", self.evidence_table()),
            ("Clients at once", self.throughput_table()),
            ("Plain reading and writing", self.plain_table()),
        ];
        for (title, body) in sections {
            let _ = write!(text, "\n## {title}\n\n{body}");
        }
        text
    }

    /// The ratios to the lean peer at the same question.
    fn ratios(&self, contender: Contender, seen: Seen, figure: Figure) -> Vec<f64> {
        let ratio = |a: &Answered| Some(figure(a)? / figure(self.asked.of_lean(&a.question)?)?);
        self.asked.of(contender, seen).filter_map(ratio).collect()
    }

    fn goals(&self) -> Vec<Goal> {
        let mut goals = self.first_token_goals();
        for (broker, series) in [("mosquitto", &self.evidence.mosquitto), ("the daemon's broker", &self.evidence.embedded)] {
            goals.push(Goal::alone(format!("question to evidence, ms: through {broker}"), series.clone(), AtMost(25.0)));
        }
        for ours in OURS {
            let own = self.of_both(ours).filter_map(own_time).collect();
            goals.push(Goal::alone(format!("own time, ms: {}", ours.name()), own, AtMost(3.0)));
        }
        goals.extend(self.start_goals());
        goals.extend(self.answer_goals());
        goals.extend(self.plain_goals());
        goals
    }

    fn first_token_goals(&self) -> Vec<Goal> {
        let states = [("read", Seen::Before, 0.25), ("read", Seen::New, 0.80)];
        let mut goals = Vec::new();
        for (reader, seen, most) in states {
            let ours = Contender::Ours(reader);
            for (label, figure) in &FIGURES[..2] {
                let lean = self.asked.of(ours, seen).filter_map(|a| figure(self.asked.of_lean(&a.question)?)).collect();
                goals.push(Goal {
                    what: format!("{label}: {reader}, passages {}", state(seen)),
                    ours: self.asked.of(ours, seen).filter_map(figure).collect(),
                    beside: lean,
                    ratios: Some(self.ratios(ours, seen, *figure)),
                    bound: AtMost(most),
                });
            }
        }
        goals
    }

    fn start_goals(&self) -> Vec<Goal> {
        let of = |contender| self.ready.starts.iter().find(|starts| starts.contender == contender);
        let ms = |contender| of(contender).map_or(vec![], |starts| starts.ms.clone());
        let memory = |contender, kb: fn(Memory) -> u64| {
            of(contender).map_or(vec![], |starts| starts.memory.iter().map(|memory| mib(kb(*memory))).collect::<Vec<_>>())
        };
        let own = || memory(DEFAULT, |memory| memory.anonymous_kb);
        let all = memory(LANGCHAIN, Memory::resident_kb);
        vec![
            Goal::beside("start to ready, ms", ms(DEFAULT), ms(LEAN), AtMost(0.4)),
            Goal::beside("memory of its own when ready, MiB", own(), memory(LEAN, |memory| memory.anonymous_kb), AtMost(0.5)),
            Goal::beside("the same beside all memory of LangChain + Chroma, MiB", own(), all, AtMost(0.1)),
        ]
    }

    /// The bounds are those of factoid questions over paragraphs.
    fn answer_goals(&self) -> Vec<Goal> {
        let of =
            |contender, figure: fn(&Answered) -> f64| mean(self.judged.iter().filter(|a| a.contender == contender).map(figure));
        let gold = |contender| of(contender, |a| share(a.contains));
        let quoted = of(DEFAULT, |a| share(a.contains_or_quoted));
        let f1 = |contender| of(contender, |a| a.f1);
        vec![
            Goal {
                beside: gold(LEAN),
                ..Goal::alone("gold in the answer, default reader, share".into(), gold(DEFAULT), AtLeast(0.55))
            },
            Goal::alone("gold in the answer or a quote, default reader, share".into(), quoted, AtLeast(0.90)),
            Goal::beside("token F1, default reader", f1(DEFAULT), f1(LEAN), AtLeast(1.0)),
        ]
    }

    fn plain_goals(&self) -> Vec<Goal> {
        let Some(row) = self.plain.rows.last() else { return vec![] };
        let better = |default: &[f64], passive: &[f64]| {
            let median = |series: &[f64]| median(series.iter().copied());
            if median(default) >= median(passive) { default.to_vec() } else { passive.to_vec() }
        };
        let Plain { engine, default, passive, .. } = row;
        let writing = better(&default.generate, &passive.generate);
        let reading = better(&default.prompt, &passive.prompt);
        vec![
            Goal::beside("writing beside llama-bench's loop, tokens/s", engine.generate.clone(), writing, AtLeast(0.97)),
            Goal::beside("reading beside llama-bench's loop, tokens/s", engine.prompt.clone(), reading, AtLeast(0.97)),
        ]
    }

    fn goals_table(&self) -> String {
        let mut lines = vec![row(["what", "ours", "beside it", "ratio", "goal", "reached"])];
        for goal in self.goals() {
            let cells =
                [&goal.ours, &goal.beside, goal.ratios.as_ref().unwrap_or(&vec![])].map(|series| cell(series.iter().copied()));
            let reached = goal.reached().map_or("-", |reached| if reached { "yes" } else { "no" });
            let bound = match goal.bound {
                AtMost(most) => format!("<= {most}"),
                AtLeast(least) => format!(">= {least}"),
            };
            lines.push([goal.what.clone()].into_iter().chain(cells).chain([bound, reached.into()]).collect());
        }
        grid(&lines)
    }

    fn ready_table(&self) -> String {
        let mut lines = vec![row(["", "start to ready, ms", "own memory when ready, MiB", "mapped files, MiB"])];
        for starts in &self.ready.starts {
            let name = if starts.contender.is_ours() { "vademecum" } else { starts.contender.name() };
            let memory = |kb: fn(&Memory) -> u64| cell(starts.memory.iter().map(|memory| mib(kb(memory))));
            lines.push(vec![
                name.into(),
                cell(starts.ms.iter().copied()),
                memory(|memory| memory.anonymous_kb),
                memory(|memory| memory.file_kb),
            ]);
        }
        let mut after = vec![row(["after the questions", "own memory, MiB", "mapped files, MiB"])];
        for (contender, memory) in self.asked.memory.last().map_or(&[][..], |sample| &sample.memory) {
            after.push(vec![contender.name().into(), number(mib(memory.anonymous_kb)), number(mib(memory.file_kb))]);
        }
        let (per_s, per_cpu_s) = self.ready.ingest;
        let ingest = format!("Ingest: {} passages per second, {} per CPU-second.", number(per_s), number(per_cpu_s));
        format!("{}\n{}\n{ingest}\n", grid(&lines), grid(&after))
    }

    /// A line for each program and state of its passages, as far as there were such questions.
    fn states(&self) -> impl Iterator<Item = (Contender, Seen)> + '_ {
        let both = self.ready.contenders.iter().flat_map(|contender| [Seen::New, Seen::Before].map(|seen| (*contender, seen)));
        both.filter(|(contender, seen)| self.asked.of(*contender, *seen).next().is_some())
    }

    fn questions_table(&self) -> String {
        let head = FIGURES.iter().flat_map(|(label, _)| [(*label).to_owned(), "x lean".to_owned()]);
        let mut lines = vec![row(["", "passages", "questions"]).into_iter().chain(head).collect::<Vec<_>>()];
        for (contender, seen) in self.states() {
            let count = self.asked.of(contender, seen).count();
            let mut line = vec![contender.name().to_owned(), state(seen).to_owned(), count.to_string()];
            for (_, figure) in FIGURES {
                line.push(cell(self.asked.of(contender, seen).filter_map(figure)));
                line.push(cell(self.ratios(contender, seen, figure)));
            }
            lines.push(line);
        }
        let partly = self.asked.answered.iter().filter(|answered| answered.seen == Seen::Partly).count();
        grid(&lines) + &format!("\n{partly} questions found some passages seen and some new; they are in neither line.\n")
    }

    /// First the questions that are there for their answers, then those that were timed.
    fn answers_table(&self) -> String {
        let mut lines = vec![row([
            "",
            "questions",
            "answered",
            "gold in the answer",
            "or in a quote",
            "token F1",
            "prompt, tokens",
            "answer, tokens",
            "own time, ms",
            "to the client and back, ms",
        ])];
        for contender in [DEFAULT, LEAN] {
            lines.extend(answers(contender, &self.judged.iter().filter(|a| a.contender == contender).collect::<Vec<_>>()));
        }
        lines.push(row(["the timed questions:", "", "", "", "", "", "", "", "", ""]));
        for contender in &self.ready.contenders {
            lines.extend(answers(*contender, &self.of_both(*contender).collect::<Vec<_>>()));
        }
        let note = "Own time is what goes neither to embedding, search, reading nor writing; for the peers it is not known.";
        format!("{}\n{note}\n", grid(&lines))
    }

    fn evidence_table(&self) -> String {
        let mut lines = vec![row(["through", "questions", "evidence at the client, ms", "95th percentile"])];
        for (broker, series) in [("mosquitto", &self.evidence.mosquitto), ("its own broker", &self.evidence.embedded)] {
            let mut sorted = series.clone();
            sorted.sort_by(f64::total_cmp);
            let late = sorted.get((sorted.len() * 95).div_ceil(100).saturating_sub(1)).copied();
            lines.push(vec![
                broker.into(),
                series.len().to_string(),
                cell(series.iter().copied()),
                late.map_or("-".into(), number),
            ]);
        }
        grid(&lines)
    }

    fn throughput_table(&self) -> String {
        let mut lines = vec![row(["", "clients", "questions/s", "x one client", "tokens/s", "x one client"])];
        for t in &self.throughput {
            let one = self.throughput.iter().find(|other| other.contender == t.contender && other.clients == 1);
            let times = |of: fn(&Throughput) -> &[f64]| {
                let ratio = median(of(t).iter().copied()).zip(one.and_then(|one| median(of(one).iter().copied())));
                ratio.map_or("-".into(), |(several, one)| number(several / one))
            };
            lines.push(vec![
                t.contender.name().into(),
                t.clients.to_string(),
                cell(t.questions_per_s.iter().copied()),
                times(|t| &t.questions_per_s),
                cell(t.tokens_per_s.iter().copied()),
                times(|t| &t.tokens_per_s),
            ]);
        }
        format!("{}\nPassages were seen before.\n", grid(&lines))
    }

    fn plain_table(&self) -> String {
        let mut lines = vec![row([
            "threads",
            "",
            "reading, tokens/s",
            "x llama-bench's",
            "writing, tokens/s",
            "x llama-bench's",
            "of the memory's limit",
        ])];
        for plain in &self.plain.rows {
            let Plain { threads, engine, default, passive, bandwidth } = plain;
            let limit = bandwidth / self.plain.bytes_per_token as f64;
            let programs = [
                ("the daemon's engine", engine),
                ("llama-bench's loop, spinning first", default),
                ("llama-bench's loop, asleep", passive),
            ];
            for (name, speeds) in programs {
                let best = |of: fn(&plain::Speeds) -> &Vec<f64>| {
                    [default, passive].into_iter().filter_map(|speeds| median(of(speeds).iter().copied())).reduce(f64::max)
                };
                let over = |series: &[f64], best: Option<f64>| {
                    median(series.iter().copied()).zip(best).map_or("-".into(), |(ours, best)| number(ours / best))
                };
                lines.push(vec![
                    threads.to_string(),
                    name.into(),
                    cell(speeds.prompt.iter().copied()),
                    over(&speeds.prompt, best(|speeds| &speeds.prompt)),
                    cell(speeds.generate.iter().copied()),
                    over(&speeds.generate, best(|speeds| &speeds.generate)),
                    over(&speeds.generate, Some(limit)),
                ]);
            }
        }
        let memory: Vec<String> =
            self.plain.rows.iter().map(|row| format!("{} GB/s with {}", number(row.bandwidth / 1e9), row.threads)).collect();
        grid(&lines)
            + &format!(
                "\nA prompt of {} tokens, then {} more. Memory was read at {} threads; a token reads {} MB of weights.\n",
                self.plain.prompt,
                self.plain.generated,
                memory.join(", "),
                number(self.plain.bytes_per_token as f64 / 1e6)
            )
    }

    fn of_both(&self, contender: Contender) -> impl Iterator<Item = &Answered> {
        self.asked.answered.iter().filter(move |answered| answered.contender == contender)
    }

    fn plots(&self) -> Vec<(&'static str, String)> {
        let axis = |label, scale| Axis { label, scale };
        let line = |name: String, points: Vec<(f64, f64)>| Line { name, points, reference: false };
        // The column "seen" differs only where states are kept.
        let first = self.states().filter(|(contender, seen)| *seen == Seen::New || contender.keeps_passages());
        let first = first.map(|(contender, seen)| {
            let mut times: Vec<f64> = self.asked.of(contender, seen).filter_map(|a| Some(a.asked.first?.wall_ms)).collect();
            times.sort_by(f64::total_cmp);
            let count = times.len() as f64;
            let points = times.iter().enumerate().map(|(i, ms)| (*ms, 100.0 * (i + 1) as f64 / count)).collect();
            line(format!("{}, {}", contender.name(), state(seen)), points)
        });
        let passages = self.passages.iter().map(|series| {
            let at =
                |count| Some((count as f64, median(series.points.iter().filter(|point| point.0 == count).map(|point| point.1))?));
            let seen = if series.seen { Seen::Before } else { Seen::New };
            line(format!("{}, {}", series.contender.name(), state(seen)), (1..=5).filter_map(at).collect())
        });
        let memory = [Contender::Ours("read"), LEAN, SERVER].into_iter().flat_map(|contender| {
            let of = |which: fn(Memory) -> u64| -> Vec<(f64, f64)> {
                let at = |sample: &crate::asking::Sample| {
                    let memory = sample.memory.iter().find(|(c, _)| *c == contender)?.1;
                    Some((sample.seconds, mib(which(memory))))
                };
                self.asked.memory.iter().filter_map(at).collect()
            };
            let name = if contender.is_ours() { "vademecum" } else { contender.name() };
            [line(format!("{name}, own"), of(|m| m.anonymous_kb)), line(format!("{name}, files"), of(|m| m.file_kb))]
        });
        let threads = |name: &str, of: fn(&Plain) -> &Vec<f64>| {
            let points = self.plain.rows.iter().filter_map(|row| Some((row.threads as f64, median(of(row).iter().copied())?)));
            line(name.to_owned(), points.collect())
        };
        let limit = |row: &Plain| (row.threads as f64, row.bandwidth / self.plain.bytes_per_token as f64);
        let limit = Line {
            name: "the memory's limit of writing".into(),
            points: self.plain.rows.iter().map(limit).collect(),
            reference: true,
        };
        let threads = [
            threads("engine, writing", |row| &row.engine.generate),
            threads("llama-bench, spinning, writing", |row| &row.default.generate),
            threads("llama-bench, asleep, writing", |row| &row.passive.generate),
            threads("engine, reading", |row| &row.engine.prompt),
            threads("llama-bench, reading", |row| &row.default.prompt),
            limit,
        ];
        vec![
            (
                "first-token",
                plot::svg(
                    "Questions whose first token has come",
                    axis("milliseconds after the question", Scale::Logarithmic),
                    axis("share of questions, %", Scale::Linear),
                    &first.collect::<Vec<_>>(),
                ),
            ),
            (
                "passages",
                plot::svg(
                    "First token by passages",
                    axis("passages", Scale::Linear),
                    axis("first token, ms", Scale::Logarithmic),
                    &passages.collect::<Vec<_>>(),
                ),
            ),
            (
                "memory",
                plot::svg(
                    "Memory while questions are asked",
                    axis("seconds", Scale::Linear),
                    axis("MiB", Scale::Linear),
                    &memory.filter(|line| !line.points.is_empty()).collect::<Vec<_>>(),
                ),
            ),
            (
                "threads",
                plot::svg(
                    "Plain reading and writing",
                    axis("threads", Scale::Linear),
                    axis("tokens per second", Scale::Logarithmic),
                    &threads,
                ),
            ),
        ]
    }

    fn json(&self, conditions: &Value) -> Value {
        let goals = self.goals().into_iter().map(|goal| {
            let (kind, bound) = match goal.bound {
                AtMost(most) => ("at_most", most),
                AtLeast(least) => ("at_least", least),
            };
            let figures = [&goal.ours, &goal.beside, goal.ratios.as_ref().unwrap_or(&vec![])]
                .map(|series| spread(series.iter().copied()).map(|s| json!({ "median": s.median, "min": s.min, "max": s.max })));
            json!({
                "what": goal.what, "ours": figures[0], "beside": figures[1], "ratio": figures[2], kind: bound, "reached": goal.reached(),
            })
        });
        let memory = |memory: &Memory| json!({ "anonymous_kb": memory.anonymous_kb, "file_kb": memory.file_kb });
        let speeds = |speeds: &plain::Speeds| json!({ "prompt_per_s": speeds.prompt, "generate_per_s": speeds.generate });
        json!({
            "benchmark": "speed",
            "conditions": conditions,
            "not_run": self.ready.not_run.iter().map(|(peer, why)| json!({ "program": peer.node(), "why": why })).collect::<Vec<_>>(),
            "goals": goals.collect::<Vec<_>>(),
            "starts": self.ready.starts.iter().map(|starts| json!({
                "program": starts.contender.node(), "ms": starts.ms, "memory": starts.memory.iter().map(memory).collect::<Vec<_>>(),
            })).collect::<Vec<_>>(),
            "ingest": { "chunks_per_s": self.ready.ingest.0, "chunks_per_cpu_s": self.ready.ingest.1 },
            "questions": self.asked.answered.iter().map(Answered::detail).collect::<Vec<_>>(),
            "judged": self.judged.iter().map(Answered::detail).collect::<Vec<_>>(),
            "memory_during_questions": self.asked.memory.iter().map(|sample| json!({
                "seconds": sample.seconds,
                "programs": sample.memory.iter().map(|(c, m)| json!({ "program": c.node(), "memory": memory(m) })).collect::<Vec<_>>(),
            })).collect::<Vec<_>>(),
            "evidence_ms": { "mosquitto": self.evidence.mosquitto, "embedded": self.evidence.embedded },
            "throughput": self.throughput.iter().map(|t| json!({
                "program": t.contender.node(), "clients": t.clients, "questions_per_s": t.questions_per_s, "tokens_per_s": t.tokens_per_s,
            })).collect::<Vec<_>>(),
            "passages": self.passages.iter().map(|s| json!({
                "program": s.contender.node(), "seen": s.seen, "first_token_ms": s.points,
            })).collect::<Vec<_>>(),
            "plain": self.plain.rows.iter().map(|row| json!({
                "threads": row.threads, "bandwidth": row.bandwidth, "engine": speeds(&row.engine),
                "llama_bench": speeds(&row.default), "llama_bench_passive": speeds(&row.passive),
            })).collect::<Vec<_>>(),
            "bytes_per_token": self.plain.bytes_per_token,
        })
    }
}

fn state(seen: Seen) -> &'static str {
    match seen {
        Seen::New => "new",
        Seen::Before => "seen",
        Seen::Partly => "partly seen",
    }
}

/// Milliseconds inside the daemon that go neither to embedding nor search, nor to reading the prompt or writing the answer.
fn own_time(answered: &Answered) -> Option<f64> {
    let reply = &answered.asked.answer;
    let timing = |key: &str| reply["timings"][key].as_f64();
    let written = reply["usage"]["answer_tokens"].as_f64()? - 1.0;
    let decode = timing("tokens_per_s").filter(|speed| *speed > 0.0).map_or(0.0, |speed| written / speed * 1e3);
    Some(timing("total_ms")? - timing("embed_ms")? - timing("search_ms")? - timing("prefill_ms")? - decode)
}

/// A line of the table of answers, or none.
fn answers(contender: Contender, all: &[&Answered]) -> Option<Vec<String>> {
    let mean = |figure: fn(&Answered) -> f64| mean(all.iter().map(|a| figure(a))).first().copied().map(number);
    let tokens = |key: &str| cell(all.iter().filter_map(|a| a.asked.answer["usage"][key].as_f64()).filter(|n| *n > 0.0));
    Some(vec![
        contender.name().to_owned(),
        all.len().to_string(),
        mean(|a| share(a.asked.answer["found"] == true))?,
        mean(|a| share(a.contains))?,
        mean(|a| share(a.contains_or_quoted))?,
        mean(|a| a.f1)?,
        tokens("prompt_tokens"),
        tokens("answer_tokens"),
        if contender.is_ours() { cell(all.iter().filter_map(|a| own_time(a))) } else { "-".into() },
        cell(all.iter().filter_map(|a| Some(a.asked.total_ms - a.asked.answer["timings"]["total_ms"].as_f64()?))),
    ])
}
