//! The report: tables as Markdown, everything as JSON, three plots.

use crate::Options;
use crate::corpus::Corpus;
use crate::dense::{Dense, FOCUS, Latency, RECALL};
use crate::library::Library;
use crate::vectors::{Kind, Set};
use serde_json::{Value, json};
use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use vademecum_benches::Result;
use vademecum_benches::plot::{Axis, Line, Scale, svg};
use vademecum_benches::report::grid;

const OURS: &str = "vademecum";
const MILLION: usize = 1_000_000;

/// Writes `retrieval.md`, `retrieval.json` and the plots, and prints the tables.
pub(crate) fn write(
    options: &Options,
    conditions: &Value,
    corpus: &Corpus,
    text: &Set,
    dense: &Dense,
    library: &Library,
) -> Result<()> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("results");
    fs::create_dir_all(&folder)?;
    let goals = goals(dense, library);
    let mut out = String::from("# retrieval\n\n");
    for (key, value) in conditions.as_object().into_iter().flatten() {
        let _ = writeln!(out, "- {key}: {}", value.as_str().map_or_else(|| value.to_string(), str::to_owned));
    }
    let mut versions: Vec<&str> = dense.versions.iter().map(|(_, version)| version.as_str()).collect();
    versions.extend(library.words.iter().map(|words| words.version.as_str()));
    versions.sort_unstable();
    versions.dedup();
    let _ = writeln!(out, "- versions: {}", versions.join(", "));
    let _ = writeln!(out, "- text: {} chunks of {}", corpus.chunks, corpus.packages.join(", "));
    let skipped: Vec<&String> = dense.skipped.iter().chain(&library.skipped).collect();
    if options.python.is_none() {
        out.push_str("- skipped: every peer\n");
    }
    for skipped in &skipped {
        let _ = writeln!(out, "- skipped: {skipped}");
    }
    section(&mut out, "Goals", "", &goals_table(&goals));
    vectors(&mut out, options, text, dense)?;
    updates(&mut out, options, dense, library);
    words(&mut out, library);
    let whole = json!({
        "benchmark": "retrieval", "conditions": conditions, "packages": corpus.packages, "rounds": options.rounds,
        "goals": goals.iter().map(|goal| json!({ "goal": goal.what, "measured": goal.measured, "met": goal.met })).collect::<Vec<_>>(),
        "vectors": dense, "library": library, "skipped": skipped,
    });
    fs::write(folder.join("retrieval.json"), format!("{whole:#}\n"))?;
    fs::write(folder.join("retrieval.md"), &out)?;
    plots(&folder, options, dense)?;
    print!("{out}");
    println!("\nwritten to {}/retrieval.md, .json and retrieval-*.svg", folder.display());
    Ok(())
}

/// Something to reach, and what was found.
struct Goal {
    what: String,
    measured: String,
    /// `None` when it was not measured in this run.
    met: Option<bool>,
}

/// The goals for a device of this size, at 384 dimensions and top ten.
fn goals(dense: &Dense, library: &Library) -> Vec<Goal> {
    let mut goals = Vec::new();
    let mut goal = |what: String, found: Option<(String, bool)>| {
        let (measured, met) = found.map_or(("not measured".to_owned(), None), |(measured, met)| (measured, Some(met)));
        goals.push(Goal { what, measured, met });
    };
    let at = |rows: usize, threads: usize, names: &[&str]| {
        let fits = |latency: &&Latency| {
            let what = latency.rows == rows && latency.threads == threads && latency.set == Kind::Text;
            what && latency.chosen && !latency.filtered && names.contains(&latency.engine)
        };
        dense.latencies.iter().filter(fits).min_by(|a, b| a.p50.total_cmp(&b.p50))
    };
    let ours = |rows, threads| at(rows, threads, &[OURS]);
    goal("100,000 rows: p50 < 2 ms".into(), ours(FOCUS, 1).map(|own| (format!("{:.2} ms", own.p50), own.p50 < 2.0)));
    for threads in [1, 2] {
        let flat = at(FOCUS, threads, &["faiss-flat", "faiss-flat-sharded"]);
        let found = ours(FOCUS, threads).zip(flat).map(|(own, flat)| {
            let times = flat.p50 / own.p50;
            (format!("{times:.1}x ({:.2} against {:.2} ms)", own.p50, flat.p50), times >= 4.0)
        });
        goal(format!("100,000 rows: 4x as fast as FAISS IndexFlatIP, {threads} thread(s)"), found);
    }
    for (program, names) in [("usearch", ["usearch-f32", "usearch-i8"]), ("qdrant-edge", ["qdrant-edge", "qdrant-edge-int8"])] {
        let reaching: Vec<&str> =
            names.into_iter().filter(|name| at(FOCUS, 1, &[name]).is_some_and(|latency| latency.recall >= RECALL)).collect();
        let found = ours(FOCUS, 1).and_then(|own| {
            // A graph that does not reach the recall is no match to be lost.
            at(FOCUS, 1, &names)?;
            Some(match at(FOCUS, 1, &reaching) {
                Some(peer) => (
                    format!("{:.2} against {:.2} ms ({})", own.p50, peer.p50, peer.label),
                    own.p50 <= peer.p50 && own.recall >= RECALL,
                ),
                None => (format!("{program} does not reach that recall"), own.recall >= RECALL),
            })
        });
        goal(format!("100,000 rows: not slower than {program} at recall@10 >= {RECALL}"), found);
    }
    goal("100,000 rows: recall@10 >= 0.99".into(), ours(FOCUS, 1).map(|own| (format!("{:.4}", own.recall), own.recall >= 0.99)));
    let footprint = |rows| dense.footprints.iter().find(|footprint| footprint.engine == OURS && footprint.rows == rows);
    goal(
        "100,000 rows: at most 52 MB resident".into(),
        footprint(FOCUS).map(|own| {
            let resident = own.anonymous_mb + own.file_mb;
            (format!("{resident:.1} MB, {:.1} of them anonymous", own.anonymous_mb), resident <= 52.0)
        }),
    );
    goal("1,000,000 rows: p50 < 15 ms".into(), ours(MILLION, 1).map(|own| (format!("{:.2} ms", own.p50), own.p50 < 15.0)));
    let cold = dense.cold.iter().find(|cold| cold.rows == MILLION);
    goal(
        "1,000,000 rows: file of at most 500 MB".into(),
        cold.map(|cold| (format!("{:.0} MB", cold.disk_mb), cold.disk_mb <= 500.0)),
    );
    goal(
        "1,000,000 rows: only the 48 MB of signs have to stay in memory".into(),
        cold.map(|cold| (format!("{:.1} MB are read by every search", cold.hot_mb), cold.hot_mb <= 48.0)),
    );
    let words = library.words.iter().filter(|words| words.label == OURS && library.chunks >= FOCUS);
    let slowest = words.map(|words| words.p50).max_by(f64::total_cmp);
    goal("BM25 over 100,000 chunks: p50 < 5 ms".into(), slowest.map(|p50| (format!("{p50:.2} ms"), p50 < 5.0)));
    goals
}

fn goals_table(goals: &[Goal]) -> String {
    let verdict = |met| match met {
        Some(true) => "met",
        Some(false) => "not met",
        None => "-",
    };
    let lines = goals.iter().map(|goal| vec![goal.what.clone(), goal.measured.clone(), verdict(goal.met).to_owned()]);
    table(&["goal", "measured", ""], lines)
}

/// Everything about vectors.
fn vectors(out: &mut String, options: &Options, text: &Set, dense: &Dense) -> Result<()> {
    let rows: Vec<usize> = options.rows.clone();
    let heads: Vec<String> =
        std::iter::once("ms, p50 (p90)".to_owned()).chain(rows.iter().map(|rows| thousands(*rows))).collect();
    for &threads in &options.threads {
        let all: Vec<&Latency> = dense
            .latencies
            .iter()
            .filter(|latency| latency.threads == threads && latency.chosen && !latency.filtered && latency.set == Kind::Text)
            .collect();
        let lines = names(&all).into_iter().map(|name| {
            let cell = |rows: &usize| {
                let found = all.iter().find(|latency| latency.engine == name && latency.rows == *rows);
                found.map_or("-".to_owned(), |latency| {
                    let short = if latency.recall < RECALL { format!(", recall {:.2}", latency.recall) } else { String::new() };
                    format!("{} ({}){short}", ms(latency.p50), ms(latency.p90))
                })
            };
            let label = all.iter().find(|latency| latency.engine == name).map_or(name, |latency| latency.label);
            std::iter::once(label.to_owned()).chain(rows.iter().map(cell)).collect()
        });
        let title = format!("Latency over rows, {threads} thread(s)");
        let note = if threads == 1 {
            "One query, ten neighbours, vectors of text. HNSW with the smallest beam that reaches a recall@10 of 0.99, or with \
             the best tried, which is then given (see the table of settings)."
        } else {
            "Only what can use more than one thread for one query."
        };
        section(out, &title, note, &table(&refs(&heads), lines));
    }
    let focus = options.focus();
    for (set, title) in [(Kind::Text, "vectors of text"), (Kind::Gauss, "Gaussian vectors, the worst case")] {
        let at = |latency: &&Latency| latency.rows == focus && latency.threads == 1 && !latency.filtered && latency.set == set;
        let lines = dense.latencies.iter().filter(at).map(|latency| {
            let chosen = if latency.chosen { "*" } else { "" };
            let effort = latency.effort.map_or("-".to_owned(), |effort| format!("{effort}{chosen}"));
            vec![latency.label.to_owned(), effort, format!("{:.4}", latency.recall), ms(latency.p50), ms(latency.p90)]
        });
        let note = if set == Kind::Text {
            "The setting is the beam of an HNSW search (`efSearch`, `expansion_search`, `hnsw_ef`), and for vademecum how many \
             rows are asked for, of which the number rescored follows. * is what the other tables use."
        } else {
            ""
        };
        let heads = ["", "setting", "recall@10", "p50, ms", "p90, ms"];
        section(out, &format!("Recall and latency at {} rows: {title}", thousands(focus)), note, &table(&heads, lines));
    }
    memory(out, options, dense);
    let at = |latency: &&Latency| latency.filtered;
    let lines = dense
        .latencies
        .iter()
        .filter(at)
        .map(|latency| vec![latency.label.to_owned(), format!("{:.4}", latency.recall), ms(latency.p50), ms(latency.p90)]);
    let note = "The filter accepts one row in ten. Engines that are not listed have no filter there.";
    section(
        out,
        &format!("Filtered search at {} rows", thousands(focus)),
        note,
        &table(&["", "recall@10", "p50, ms", "p90, ms"], lines),
    );
    let lines = dense.batches.iter().map(|batch| vec![batch.label.to_owned(), batch.threads.to_string(), ms(batch.ms_per_query)]);
    let note = "All 200 queries in one call: what remains of the time above when neither the language nor the call counts, and \
                when rows are shared by queries.";
    section(out, "Batches", note, &table(&["", "threads", "ms per query"], lines));
    let lines = dense.calls.iter().map(|(label, call)| vec![(*label).to_owned(), format!("{call:.4}")]);
    let note = "The same call on an index of 16 rows: what language and call cost in each of the figures above.";
    section(out, "What a call costs", note, &table(&["", "p50, ms"], lines));
    let (first, tenth) = text.nearness(focus)?;
    let _ = writeln!(
        out,
        "\nMean cosine of the queries with their nearest and tenth neighbour: {first:.3} and {tenth:.3} among {} rows.",
        thousands(focus)
    );
    Ok(())
}

fn memory(out: &mut String, options: &Options, dense: &Dense) {
    let sizes = [options.focus(), options.rows.iter().copied().max().unwrap_or(0)];
    let lines = dense.footprints.iter().filter(|footprint| sizes.contains(&footprint.rows)).map(|footprint| {
        let kept = if footprint.kept { " (kept)" } else { "" };
        vec![
            footprint.label.to_owned(),
            thousands(footprint.rows),
            format!("{:.1}", footprint.disk_mb),
            format!("{:.1}", footprint.anonymous_mb),
            format!("{:.1}", footprint.file_mb),
            format!("{:.1}{kept}", footprint.build_s),
            format!("{:.1}", footprint.open_ms),
        ]
    });
    let note = "Resident after all queries, beyond what the process held before it opened the index. Mapped pages can be dropped \
                by the kernel and read again; anonymous ones cannot. A build marked as kept was timed in an earlier run.";
    let heads = ["", "rows", "disk, MB", "anonymous, MB", "mapped, MB", "build, s", "open, ms"];
    section(out, "Memory and files", note, &table(&heads, lines));
    for cold in &dense.cold {
        let _ = writeln!(
            out,
            "\nvademecum at {} rows after the kernel was made to forget the file ({:.0} MB): {} queries later {:.1} MB are resident; \
             {:.1} MB are read by every search. p50 {} ms, p90 {} ms over these queries.",
            thousands(cold.rows),
            cold.disk_mb,
            cold.queries,
            cold.resident_mb,
            cold.hot_mb,
            ms(cold.p50),
            ms(cold.p90)
        );
    }
}

/// Rows that come and go.
fn updates(out: &mut String, options: &Options, dense: &Dense, library: &Library) {
    let share = |found: Option<f64>| found.map_or("-".to_owned(), |share| format!("{:.0} %", share * 100.0));
    let lines = dense.updates.iter().chain(&library.updates).map(|update| {
        let times = [format!("{:.4}", update.add_ms), format!("{:.4}", update.delete_ms)];
        let found = [share(update.found_after_add), share(update.found_after_delete)];
        std::iter::once(update.label.clone()).chain(times).chain(found).collect()
    });
    let note = "Rows one by one, each then searched for. The vector indexes change memory, or files without syncing; vademecum's \
                store also indexes the words, keeps the source and has synced all of it when it answers. FAISS takes the last row off.";
    let heads = ["", "add, ms per row", "delete, ms per row", "found after adding", "found after deleting"];
    section(out, &format!("Rows added and removed at {} rows", thousands(options.focus())), note, &table(&heads, lines));
}

/// Everything about words and the library as a whole.
fn words(out: &mut String, library: &Library) {
    let lines = library.words.iter().map(|words| {
        let quality = [format!("{:.3}", words.mrr), format!("{:.2}", words.overlap)];
        let times = [ms(words.p50), ms(words.p90), format!("{:.1}", words.build_s)];
        [words.label.clone(), words.queries.to_owned()].into_iter().chain(times).chain(quality).collect()
    });
    let note = "Known-item queries: headings that stand over one section only, and sentences of single chunks. MRR@10 says that \
                each index does its work, not which is better: the words asked for are in the text. vademecum's build is the \
                whole store (chunks, vectors, words, sources, synced to disk after each document).";
    let heads = ["", "queries", "p50, ms", "p90, ms", "build, s", "MRR@10", "of its ten, also ours"];
    section(out, &format!("BM25 over {} chunks", thousands(library.chunks)), note, &table(&heads, lines));
    let lines = library.whole.iter().map(|whole| {
        vec![
            format!("{} in {} documents", thousands(whole.chunks), thousands(whole.documents)),
            ms(whole.embed_p50),
            format!("{} ({})", ms(whole.search_p50), ms(whole.search_p90)),
            format!("{} ({})", ms(whole.total_p50), ms(whole.total_p90)),
            format!("{:.1} + {:.1}", whole.store_anonymous_mb, whole.store_file_mb),
            format!("{:.1} + {:.1}", whole.anonymous_mb, whole.file_mb),
            format!("{:.0}", whole.disk_mb),
            format!("{:.0} + {:.0}", whole.open_ms, whole.first_search_ms),
        ]
    });
    let note = "A question through the library as the daemon has it, top three passages. Memory is anonymous + mapped. Vectors are \
                those of the sets above, not of these chunks: times and sizes hold, the passages mean nothing.";
    let heads = [
        "chunks",
        "embed, ms",
        "search, ms, p50 (p90)",
        "whole, ms, p50 (p90)",
        "store and index, MB",
        "with encoder, MB",
        "disk, MB",
        "open + first search, ms",
    ];
    section(out, "A question through the library", note, &table(&heads, lines));
}

/// Appends a section unless its table has no lines.
fn section(out: &mut String, title: &str, note: &str, table: &str) {
    if table.lines().count() > 2 {
        let note = if note.is_empty() { String::new() } else { format!("{note}\n\n") };
        let _ = write!(out, "\n## {title}\n\n{note}{table}");
    }
}

fn table(heads: &[&str], lines: impl Iterator<Item = Vec<String>>) -> String {
    let head = heads.iter().map(|head| (*head).to_owned()).collect();
    grid(&std::iter::once(head).chain(lines).collect::<Vec<_>>())
}

fn refs(texts: &[String]) -> Vec<&str> {
    texts.iter().map(String::as_str).collect()
}

/// Names of the engines in the order they were measured.
fn names<'a>(latencies: &[&'a Latency]) -> Vec<&'a str> {
    let mut names: Vec<&str> = Vec::new();
    for latency in latencies {
        if !names.contains(&latency.engine) {
            names.push(latency.engine);
        }
    }
    names
}

fn ms(value: f64) -> String {
    if value >= 10.0 { format!("{value:.1}") } else { format!("{value:.3}") }
}

fn thousands(number: usize) -> String {
    let digits = number.to_string();
    let groups: Vec<&str> = digits.as_bytes().rchunks(3).rev().filter_map(|group| std::str::from_utf8(group).ok()).collect();
    groups.join(",")
}

/// Latency over rows, recall over latency, memory over rows.
fn plots(folder: &Path, options: &Options, dense: &Dense) -> Result<()> {
    let log = |label| Axis { label, scale: Scale::Logarithmic };
    let shown: Vec<&Latency> =
        dense.latencies.iter().filter(|latency| latency.threads == 1 && !latency.filtered && latency.set == Kind::Text).collect();
    let line = |name: &str, points: Vec<(f64, f64)>| {
        let label = dense.versions.iter().zip(crate::engine::ENGINES).find(|(_, engine)| engine.name == name);
        let label = label.map_or(name, |(_, engine)| engine.label);
        Line { name: label.to_owned(), points, reference: false }
    };
    let of = |name: &str| shown.iter().filter(move |latency| latency.engine == name).copied().collect::<Vec<_>>();

    let mut lines: Vec<Line> = Vec::new();
    for name in names(&shown) {
        let points = of(name).into_iter().filter(|latency| latency.chosen).map(|latency| (latency.rows as f64, latency.p50));
        lines.push(line(name, points.collect()));
    }
    // Measured times grow linearly from the size at which the first pass starts; the scan is drawn beside them.
    let own = of(OURS).into_iter().find(|latency| latency.chosen && latency.rows == options.focus());
    if let (Some(own), Some(&least), Some(&most)) = (own, options.rows.first(), options.rows.last()) {
        let linear = |rows: usize| (rows as f64, own.p50 * rows as f64 / own.rows as f64);
        lines.push(Line { name: "linear in rows".into(), points: vec![linear(least), linear(most)], reference: true });
    }
    let picture = svg("One query, ten neighbours, one thread", log("rows of 384 dimensions"), log("p50, ms"), &lines);
    fs::write(folder.join("retrieval-latency.svg"), picture)?;

    let mut lines: Vec<Line> = Vec::new();
    for name in names(&shown) {
        let points = of(name).into_iter().filter(|latency| latency.rows == options.focus());
        let mut points: Vec<(f64, f64)> = points.map(|latency| (latency.p50, latency.recall)).collect();
        points.sort_by(|a, b| a.0.total_cmp(&b.0));
        if !points.is_empty() {
            lines.push(line(name, points));
        }
    }
    let title = format!("Recall and latency at {} rows, one thread", thousands(options.focus()));
    let recall = Axis { label: "recall@10", scale: Scale::Linear };
    fs::write(folder.join("retrieval-recall.svg"), svg(&title, log("p50, ms"), recall, &lines))?;

    let mut lines: Vec<Line> = Vec::new();
    for name in names(&shown) {
        let own = dense.footprints.iter().filter(|footprint| footprint.engine == name);
        let points = own.map(|footprint| (footprint.rows as f64, footprint.anonymous_mb + footprint.file_mb)).collect();
        lines.push(line(name, points));
    }
    let picture = svg("Resident memory of the index", log("rows of 384 dimensions"), log("MB, anonymous and mapped"), &lines);
    Ok(fs::write(folder.join("retrieval-memory.svg"), picture)?)
}
