//! How threads wait for each other, and how many there are: decoding and reading prompts on this machine as it is, and with as
//! many busy processes beside it as it has cores.
//!
//! `make bench-threads` runs it, two to three minutes. What always spins and what always sleeps are the two fixed ways that OpenMP's
//! libraries offer (`OMP_WAIT_POLICY=active` and `passive`); beside them stands what the program does. See `README.md`.

use llm::llama::{Bench, Placement, Waiting, set_waiting, with_model};
use llm::tune::{Governor, Topology, WorkKind};
use serde_json::json;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
// OpenMP's symbols are the program's.
use vademecum as _;
use vademecum_benches::Result;
use vademecum_benches::report::{self, Column, Rows, Spread};

/// Time for each of the two conditions, unless `--seconds` says otherwise.
const SECONDS: u64 = 65;
/// One run of decoding: until so much time has passed, but at least two tokens.
const RUN: Duration = Duration::from_millis(300);
/// One run under the governor: it needs a few tokens to follow what has changed.
const GOVERNED_RUN: Duration = Duration::from_millis(600);

const ROWS: &Rows = &[
    ("one", "decode, 1 thread", "tokens/s"),
    ("spin", "decode, all cores, always spinning", "tokens/s"),
    ("sleep", "decode, all cores, always sleeping", "tokens/s"),
    ("follow", "decode, all cores, waiting as the load has it", "tokens/s"),
    ("governed", "decode, the governor's number of threads", "tokens/s"),
    ("follow_ratio", "waiting as the load has it / the better of spinning and sleeping", ""),
    ("governed_ratio", "the governor's / the better of spinning and sleeping", ""),
    ("batch_one", "batch of 32, 1 thread", "tokens/s"),
    ("batch_spin", "batch of 32, all cores, always spinning", "tokens/s"),
    ("batch_sleep", "batch of 32, all cores, always sleeping", "tokens/s"),
    ("batch_follow", "batch of 32, all cores, waiting as the load has it", "tokens/s"),
    ("batch_ratio", "batch: waiting as the load has it / the better of spinning and sleeping", ""),
];

fn main() {
    if let Err(error) = run() {
        eprintln!("bench: {error}");
        std::process::exit(1);
    }
}

fn run() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    let seconds = match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [] => SECONDS,
        ["--busy"] => busy(),
        ["--seconds", n] => n.parse().ok().filter(|n| *n > 0).ok_or_else(|| format!("--seconds {n}: give a number above 0"))?,
        _ => return Err("usage: make bench-threads [ARGS=\"-- --seconds N\"]".into()),
    };
    let topology = Topology::detect();
    let cores = topology.usable();
    if cores < 2 {
        return Err("one core only: its thread waits for nobody".into());
    }
    let model = vademecum_benches::cache()?.join("models/generator.gguf");
    let (load_before, limit) = (report::load()?, Duration::from_secs(seconds));
    let columns = with_columns(&model, &topology, limit)?;
    let mut conditions = report::machine()?;
    conditions["load_before_and_after"] = json!([load_before, report::load()?]);
    conditions["threads"] = json!(cores);
    let results = Path::new(env!("CARGO_MANIFEST_DIR")).join("results");
    report::write(&results, "threads", &conditions, ROWS, &columns)?;
    print!("{}", report::table(ROWS, &columns));
    println!("\nmedian (min to max) of runs in turn; written to {}/threads.json and .md", results.display());
    if load_before > 0.5 {
        println!("The machine was busy before this began (load {load_before}): the quiet column was not quiet.");
    }
    Ok(())
}

fn with_columns(model: &Path, topology: &Topology, limit: Duration) -> Result<Vec<Column>> {
    let mut failure = None;
    let columns = with_model(model, Placement::PROCESSOR, |bench| {
        let mut columns = Vec::new();
        for shared in [false, true] {
            let processes = if shared { topology.usable() } else { 0 };
            let name = if shared { format!("{processes} busy processes beside it") } else { "as it is".into() };
            eprintln!("bench: {name}");
            let _busy = match (0..processes).map(|_| Busy::start()).collect::<Result<Vec<_>>>() {
                Ok(busy) => busy,
                Err(error) => {
                    failure = Some(error);
                    break;
                }
            };
            columns.push(Column { program: name, ..measure(bench, topology, limit)? });
        }
        Ok(columns)
    })?;
    failure.map_or(Ok(columns), Err)
}

/// Every way in turn, round after round, so that what disturbs the machine disturbs all.
fn measure(bench: &mut Bench<'_>, topology: &Topology, limit: Duration) -> std::result::Result<Column, llm::llama::LlamaError> {
    let cores = topology.usable();
    let ways = [
        ("sleep", cores, Waiting::Sleep),
        ("follow", cores, Waiting::Follow),
        ("one", 1, Waiting::Follow),
        ("spin", cores, Waiting::Spin),
    ];
    let mut governor = Governor::among(topology.candidates(), cores);
    let mut series: Vec<(&'static str, Vec<f64>)> = Vec::new();
    let mut note = |key, speed| match series.iter_mut().find(|(other, _)| *other == key) {
        Some((_, speeds)) => speeds.push(speed),
        None => series.push((key, vec![speed])),
    };
    let (started, mut rounds, mut chosen) = (Instant::now(), 0, vec![0_u64; cores + 1]);
    while rounds < 2 || started.elapsed() < limit {
        for (key, threads, waiting) in ways {
            set_waiting(waiting);
            note(key, decode(bench, RUN, || threads, |_, _| ())?);
            settle(bench, threads)?;
        }
        set_waiting(Waiting::Follow);
        let governor = std::cell::RefCell::new(&mut governor);
        let threads = || governor.borrow().decode_threads();
        let speed = decode(bench, GOVERNED_RUN, threads, |threads, took| {
            governor.borrow_mut().observe(threads, 1, took);
            chosen[threads] += 1;
        })?;
        note("governed", speed);
        for (key, (_, threads, waiting)) in ["batch_sleep", "batch_follow", "batch_one", "batch_spin"].into_iter().zip(ways) {
            set_waiting(waiting);
            note(key, bench.measure(WorkKind::Batch, threads)?);
            settle(bench, threads)?;
        }
        rounds += 1;
    }
    set_waiting(Waiting::Follow);
    let mut values: Vec<(&'static str, Spread)> =
        series.into_iter().filter_map(|(key, speeds)| Some((key, Spread::of(speeds)?))).collect();
    for (key, ours, fixed) in [
        ("follow_ratio", "follow", ["spin", "sleep"]),
        ("governed_ratio", "governed", ["spin", "sleep"]),
        ("batch_ratio", "batch_follow", ["batch_spin", "batch_sleep"]),
    ] {
        let median = |key| values.iter().find(|(other, _)| *other == key).map_or(f64::NAN, |(_, spread)| spread.median);
        values.extend(Spread::of([median(ours) / fixed.map(median).into_iter().fold(0.0, f64::max)]).map(|ratio| (key, ratio)));
    }
    let details = json!({ "rounds": rounds, "governed_tokens_by_threads": chosen });
    Ok(Column { program: String::new(), values, details })
}

/// Tokens per second of one run.
fn decode(
    bench: &mut Bench<'_>,
    run: Duration,
    threads: impl Fn() -> usize,
    mut told: impl FnMut(usize, Duration),
) -> std::result::Result<f64, llm::llama::LlamaError> {
    // The first token wakes the threads.
    bench.decode(threads())?;
    let (mut tokens, mut took) = (0, Duration::ZERO);
    while tokens < 2 || took < run {
        let threads = threads();
        let token = bench.decode(threads)?;
        told(threads, token);
        took += token;
        tokens += 1;
    }
    Ok(f64::from(tokens) / took.as_secs_f64())
}

/// Isolates one way from the next. A pass that sleeps ends threads that spin for ever between two passes, and
/// what the scheduler holds against a process that spun is forgiven while it rests.
fn settle(bench: &mut Bench<'_>, threads: usize) -> std::result::Result<(), llm::llama::LlamaError> {
    set_waiting(Waiting::Sleep);
    bench.decode(threads)?;
    std::thread::sleep(Duration::from_millis(30));
    Ok(())
}

/// A process that keeps a core busy until this is dropped.
struct Busy(Child);

impl Busy {
    fn start() -> Result<Self> {
        let child = Command::new(std::env::current_exe()?).arg("--busy").stdin(Stdio::piped()).spawn()?;
        Ok(Self(child))
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Works for nothing, and ends when whoever started it does.
fn busy() -> ! {
    std::thread::spawn(|| {
        let _ = std::io::Read::read(&mut std::io::stdin(), &mut [0]);
        std::process::exit(0);
    });
    loop {
        std::hint::black_box(0);
    }
}
