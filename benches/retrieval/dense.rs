//! Vector search: latency over rows and threads, recall, memory, filters, rows that come and go.

use crate::Options;
use crate::engine::{ENGINES, Engine, Method, Worker};
use crate::vectors::{EXTRA, Kind, Set, Truth};
use serde::Serialize;
use serde_json::{Value, json};
use std::fs;
use std::path::PathBuf;
use std::process::Command;
use vademecum_benches::Result;

/// At this many rows everything is looked at, not only latency.
pub(crate) const FOCUS: usize = 100_000;
/// What a peer's setting has to reach to be compared.
pub(crate) const RECALL: f64 = 0.99;
/// An index of so many rows has nothing to search: what remains is the call.
const CALL_ROWS: usize = 16;
/// The filter that is measured: rows whose number ends in this digit.
const BUCKET: u32 = 3;

/// Times of one engine with one setting.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Latency {
    pub(crate) engine: &'static str,
    pub(crate) label: &'static str,
    pub(crate) set: Kind,
    pub(crate) rows: usize,
    pub(crate) threads: usize,
    pub(crate) effort: Option<u32>,
    pub(crate) filtered: bool,
    /// Milliseconds per query over all rounds.
    pub(crate) p50: f64,
    pub(crate) p90: f64,
    pub(crate) queries: usize,
    pub(crate) recall: f64,
    /// The one of its settings that is shown where only one is.
    pub(crate) chosen: bool,
}

/// What an index takes.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Footprint {
    pub(crate) engine: &'static str,
    pub(crate) label: &'static str,
    pub(crate) rows: usize,
    pub(crate) build_s: f64,
    /// Built in an earlier run and kept.
    pub(crate) kept: bool,
    pub(crate) open_ms: f64,
    pub(crate) disk_mb: f64,
    /// After all queries, beyond interpreter and libraries.
    pub(crate) anonymous_mb: f64,
    pub(crate) file_mb: f64,
}

/// Our file at the largest size when the kernel has forgotten it, after all queries.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Cold {
    pub(crate) rows: usize,
    pub(crate) disk_mb: f64,
    pub(crate) hot_mb: f64,
    pub(crate) resident_mb: f64,
    pub(crate) queries: usize,
    pub(crate) p50: f64,
    pub(crate) p90: f64,
}

/// Rows added and removed one by one at [`FOCUS`] rows, and whether a search followed.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Update {
    pub(crate) label: String,
    pub(crate) add_ms: f64,
    pub(crate) delete_ms: f64,
    pub(crate) found_after_add: Option<f64>,
    pub(crate) found_after_delete: Option<f64>,
}

/// Many queries in one call.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Batch {
    pub(crate) label: &'static str,
    pub(crate) threads: usize,
    pub(crate) ms_per_query: f64,
}

/// Everything about vector search.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Dense {
    pub(crate) latencies: Vec<Latency>,
    pub(crate) footprints: Vec<Footprint>,
    pub(crate) cold: Vec<Cold>,
    pub(crate) updates: Vec<Update>,
    pub(crate) batches: Vec<Batch>,
    /// Name and milliseconds of a call that finds nothing to do.
    pub(crate) calls: Vec<(&'static str, f64)>,
    /// Program with version, of each engine.
    pub(crate) versions: Vec<(&'static str, String)>,
    pub(crate) skipped: Vec<String>,
}

/// An engine with an index open.
struct Open {
    engine: Engine,
    worker: Worker,
    dir: PathBuf,
    build_s: f64,
    kept: bool,
    opened: Value,
}

/// One series of a measurement: an engine by its place among those open, and a setting.
struct Series {
    at: usize,
    effort: Option<u32>,
    bucket: Option<u32>,
    ms: Vec<f64>,
    ids: Vec<Vec<u32>>,
}

impl Dense {
    /// Measures every size.
    pub(crate) fn measure(options: &Options, text: &Set, gauss: &Set) -> Result<Self> {
        let mut dense = Dense::default();
        dense.size(options, text, CALL_ROWS)?;
        for &rows in &options.rows {
            dense.size(options, text, rows)?;
            if rows == options.focus() {
                dense.size(options, gauss, rows)?;
            }
        }
        Ok(dense)
    }

    fn size(&mut self, options: &Options, set: &Set, rows: usize) -> Result<()> {
        eprintln!("bench: {rows} rows of {:?}", set.kind);
        let mut open = self.open_all(options, set, rows);
        if rows == CALL_ROWS {
            for open in &mut open {
                let answer = search(options, open, set, 1, open.engine.efforts.first().copied(), None)?;
                self.calls.push((open.engine.label, quantile(&floats(&answer["ms"]), 0.5)));
                self.versions.push((open.engine.label, open.worker.version.clone()));
            }
            return Ok(());
        }
        let truth = set.truths(&[rows], None)?.remove(0);
        let all: Vec<Series> = (0..open.len()).flat_map(|at| series_of(&open[at].engine, at)).collect();
        let swept = self.rounds(options, set, &truth, &mut open, all, 1, rows)?;
        for &threads in options.threads.iter().filter(|threads| **threads != 1) {
            let parallel = |latency: &&Latency| latency.chosen && engine_of(latency).parallel;
            let again = swept.iter().filter(parallel).filter_map(|latency| {
                let at = open.iter().position(|open| open.engine.name == latency.engine)?;
                Some(Series { at, effort: latency.effort, bucket: None, ms: Vec::new(), ids: Vec::new() })
            });
            let again = again.collect();
            self.rounds(options, set, &truth, &mut open, again, threads, rows)?;
        }
        if set.kind == Kind::Text {
            self.footprints(&open, rows)?;
            if rows == options.focus() {
                self.focus(options, set, &mut open, &swept, rows)?;
            }
            if options.rows.iter().max() == Some(&rows) {
                self.cold(options, set, &mut open[0], rows)?;
            }
        }
        for open in open {
            if !open.engine.kept {
                let _ = fs::remove_dir_all(&open.dir);
            }
        }
        Ok(())
    }

    /// Builds and opens what takes part; an engine that fails is named and left out.
    fn open_all(&mut self, options: &Options, set: &Set, rows: usize) -> Vec<Open> {
        let takes_part = |engine: &&Engine| {
            let fits = rows <= engine.most_rows && (set.kind == Kind::Text || engine.gauss);
            fits && (options.python.is_some() || engine.name == "vademecum")
        };
        let mut all = Vec::new();
        for engine in ENGINES.iter().filter(takes_part) {
            match open(options, set, engine, rows) {
                Ok(open) => all.push(open),
                Err(error) => {
                    eprintln!("bench: {} is skipped: {error}", engine.label);
                    let first = error.to_string().lines().last().unwrap_or_default().to_owned();
                    self.skipped.push(format!("{} at {rows} rows: {first}", engine.label));
                }
            }
        }
        all
    }

    /// Every series once per round, one after the other, so that what disturbs the machine disturbs all alike.
    #[allow(clippy::too_many_arguments)]
    fn rounds(
        &mut self,
        options: &Options,
        set: &Set,
        truth: &Truth,
        open: &mut [Open],
        mut all: Vec<Series>,
        threads: usize,
        rows: usize,
    ) -> Result<Vec<Latency>> {
        for _ in 0..options.rounds {
            for series in &mut all {
                let answer = search(options, &mut open[series.at], set, threads, series.effort, series.bucket);
                match answer {
                    Ok(answer) => {
                        series.ms.extend(floats(&answer["ms"]));
                        let ids: Vec<Vec<u32>> = serde_json::from_value(answer["ids"].clone())?;
                        // A slow engine's time may be up before the last query.
                        if ids.len() > series.ids.len() {
                            series.ids = ids;
                        }
                    }
                    Err(error) if series.bucket.is_some() => eprintln!("bench: {error}"),
                    Err(error) => return Err(error),
                }
            }
        }
        let mut latencies = Vec::new();
        for series in all.iter().filter(|series| !series.ms.is_empty()) {
            let engine = open[series.at].engine;
            latencies.push(Latency {
                engine: engine.name,
                label: engine.label,
                set: set.kind,
                rows,
                threads,
                effort: series.effort,
                filtered: series.bucket.is_some(),
                p50: quantile(&series.ms, 0.5),
                p90: quantile(&series.ms, 0.9),
                queries: series.ms.len(),
                recall: set.recall(truth, &series.ids)?,
                chosen: false,
            });
        }
        choose(&mut latencies);
        self.latencies.extend(latencies.clone());
        Ok(latencies)
    }

    fn footprints(&mut self, open: &[Open], rows: usize) -> Result<()> {
        // The shards are the same index twice.
        for open in open.iter().filter(|open| open.engine.name != "faiss-flat-sharded") {
            let memory = open.worker.memory()?;
            self.footprints.push(Footprint {
                engine: open.engine.name,
                label: open.engine.label,
                rows,
                build_s: open.build_s,
                kept: open.kept,
                open_ms: open.opened["open_ms"].as_f64().unwrap_or_default(),
                disk_mb: open.opened["bytes"].as_f64().unwrap_or_default() / 1e6,
                anonymous_mb: memory.anonymous_kb as f64 * 1024.0 / 1e6,
                file_mb: memory.file_kb as f64 * 1024.0 / 1e6,
            });
        }
        Ok(())
    }

    /// Filters, batches, and rows that come and go.
    fn focus(&mut self, options: &Options, set: &Set, open: &mut [Open], swept: &[Latency], rows: usize) -> Result<()> {
        let chosen = |open: &Open| swept.iter().find(|latency| latency.chosen && latency.engine == open.engine.name);
        let efforts: Vec<Option<u32>> = open.iter().map(|open| chosen(open).and_then(|latency| latency.effort)).collect();
        let filtered = |(at, effort): (usize, &Option<u32>)| Series {
            at,
            effort: *effort,
            bucket: Some(BUCKET),
            ms: Vec::new(),
            ids: Vec::new(),
        };
        let truth = set.truths(&[rows], Some(BUCKET))?.remove(0);
        self.rounds(options, set, &truth, open, efforts.iter().enumerate().map(filtered).collect(), 1, rows)?;
        for (open, effort) in open.iter_mut().zip(efforts) {
            for &threads in &options.threads {
                let ask = &json!({ "do": "batch", "queries": set.queries, "threads": threads, "effort": effort });
                if let Some(ms_per_query) = open.worker.call(ask).ok().and_then(|answer| answer["ms_per_query"].as_f64()) {
                    self.batches.push(Batch { label: open.engine.label, threads, ms_per_query });
                }
            }
            if let Some(update) = update(options, set, open, effort, rows)? {
                self.updates.push(update);
            }
        }
        Ok(())
    }

    /// Our index as after a start, when only what is needed has been read.
    fn cold(&mut self, options: &Options, set: &Set, ours: &mut Open, rows: usize) -> Result<()> {
        ours.worker.call(&json!({ "do": "evict", "dir": ours.dir }))?;
        ours.opened = ours.worker.call(&json!({ "do": "open", "dir": ours.dir, "rows": rows, "threads": 1 }))?;
        let answer = search(options, ours, set, 1, ours.engine.efforts.first().copied(), None)?;
        let ms = floats(&answer["ms"]);
        let mb = |key: &str| ours.opened[key].as_f64().unwrap_or_default() / 1e6;
        let memory = ours.worker.memory()?;
        self.cold.push(Cold {
            rows,
            disk_mb: mb("bytes"),
            hot_mb: mb("hot_bytes"),
            resident_mb: memory.file_kb as f64 * 1024.0 / 1e6,
            queries: ms.len(),
            p50: quantile(&ms, 0.5),
            p90: quantile(&ms, 0.9),
        });
        Ok(())
    }
}

/// Builds the index in a process that ends, and opens it in another, whose memory is then the index's alone.
fn open(options: &Options, set: &Set, engine: &Engine, rows: usize) -> Result<Open> {
    let parent = if engine.kept { options.cache.join("indexes") } else { options.scratch.clone() };
    let mut builder = Worker::start(options, "dense", engine.name)?;
    let version = builder.version.replace(' ', "-");
    let name = format!("{version}-{}-{}-{rows}", engine.name, set.name());
    let (dir, stamp) = (parent.join(&name), parent.join(name + ".built"));
    let kept = engine.kept && stamp.exists();
    if !kept {
        eprintln!("bench: building {} of {rows} rows", engine.label);
        let _ = fs::remove_dir_all(&dir);
        let threads = options.threads.iter().max();
        let built = builder.call(&json!({ "do": "build", "vectors": set.file, "rows": rows, "dir": dir, "threads": threads }))?;
        fs::write(&stamp, built["build_s"].to_string())?;
    }
    drop(builder);
    let build_s = fs::read_to_string(&stamp)?.parse().unwrap_or(0.0);
    let mut worker = Worker::start(options, "dense", engine.name)?;
    let answer = worker.call(&json!({ "do": "open", "dir": dir, "rows": rows, "threads": 1 }))?;
    Ok(Open { engine: *engine, worker, dir, build_s, kept, opened: answer })
}

/// One pass over the queries.
fn search(
    options: &Options,
    open: &mut Open,
    set: &Set,
    threads: usize,
    effort: Option<u32>,
    bucket: Option<u32>,
) -> Result<Value> {
    let seconds = options.seconds;
    open.worker.call(&json!({
        "do": "search", "queries": set.queries, "threads": threads, "effort": effort, "bucket": bucket, "seconds": seconds,
    }))
}

/// Adds and removes rows in a copy of the files, as some engines write at once. `None` when the engine cannot.
fn update(options: &Options, set: &Set, open: &Open, effort: Option<u32>, rows: usize) -> Result<Option<Update>> {
    if open.engine.name == "vademecum" {
        // Rows come with documents: see `library`.
        return Ok(None);
    }
    let copy = options.scratch.join("copy");
    let _ = fs::remove_dir_all(&copy);
    if !Command::new("cp").args(["-a", "--reflink=auto"]).arg(&open.dir).arg(&copy).status()?.success() {
        return Err(format!("cannot copy {}", open.dir.display()).into());
    }
    let mut worker = Worker::start(options, "dense", open.engine.name)?;
    worker.call(&json!({ "do": "open", "dir": copy, "rows": rows, "threads": 1 }))?;
    let ask = &json!({ "do": "update", "vectors": set.extra, "rows": rows, "count": EXTRA, "effort": effort });
    let answer = worker.call(ask);
    drop(worker);
    fs::remove_dir_all(&copy)?;
    let Ok(answer) = answer else { return Ok(None) };
    Ok(Some(Update {
        label: open.engine.label.to_owned(),
        add_ms: quantile(&floats(&answer["add_ms"]), 0.5),
        delete_ms: quantile(&floats(&answer["delete_ms"]), 0.5),
        found_after_add: answer["found_after_add"].as_f64(),
        found_after_delete: answer["found_after_delete"].as_f64(),
    }))
}

/// All settings of an engine.
fn series_of(engine: &Engine, at: usize) -> Vec<Series> {
    let series = |effort| Series { at, effort, bucket: None, ms: Vec::new(), ids: Vec::new() };
    if engine.efforts.is_empty() {
        vec![series(None)]
    } else {
        engine.efforts.iter().map(|effort| series(Some(*effort))).collect()
    }
}

/// Marks one setting of each engine: the default where there is one, else the fastest that reaches [`RECALL`], else the
/// one with the highest recall.
fn choose(latencies: &mut [Latency]) {
    for engine in ENGINES {
        let mut own: Vec<&mut Latency> = latencies.iter_mut().filter(|latency| latency.engine == engine.name).collect();
        let fastest = |a: &usize, b: &usize, own: &[&mut Latency]| own[*a].p50.total_cmp(&own[*b].p50);
        let best = if engine.method == Method::Graph {
            let reaching = (0..own.len()).filter(|i| own[*i].recall >= RECALL).min_by(|a, b| fastest(a, b, &own));
            reaching.or_else(|| (0..own.len()).max_by(|a, b| own[*a].recall.total_cmp(&own[*b].recall)))
        } else {
            (!own.is_empty()).then_some(0)
        };
        if let Some(best) = best {
            own[best].chosen = true;
        }
    }
}

fn engine_of(latency: &Latency) -> Engine {
    ENGINES.into_iter().find(|engine| engine.name == latency.engine).unwrap_or(ENGINES[0])
}

/// The numbers of a JSON array.
pub(crate) fn floats(value: &Value) -> Vec<f64> {
    value.as_array().into_iter().flatten().filter_map(Value::as_f64).collect()
}

/// The value that a share of the others does not exceed; 0 of none.
pub(crate) fn quantile(values: &[f64], share: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let at = (sorted.len() as f64 * share).ceil() as usize;
    sorted.get(at.saturating_sub(1)).copied().unwrap_or(0.0)
}
