//! `vademecum tune`: the cores that this process may use, and the best thread counts for the generator.

use super::{Common, Failure, Outcome, print_json, print_line};
use crate::config::Config;
use llm::engine::BATCH;
use llm::engine::Lookup;
use llm::gguf::Gguf;
use llm::llama;
use llm::tune::{CALIBRATION, Drafts, Origin, Plan, Saved, Topology, WorkKind, calibrate, verify};
use std::process::ExitCode;
use std::time::{Duration, Instant};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Measure again, even if the last measurement still holds
    #[arg(long)]
    force: bool,
    /// Show the cores only; measure nothing
    #[arg(long, conflicts_with = "force")]
    no_measure: bool,
    /// Longest time to measure
    #[arg(long, value_name = "SECONDS", default_value_t = CALIBRATION.as_secs(), value_parser = clap::value_parser!(u64).range(1..=600))]
    seconds: u64,
}

pub(super) fn run(config: &Config, common: &Common, args: &Args) -> Outcome {
    let topology = Topology::detect();
    let embedding = topology.threads(config.embedder.threads, config.embedder.threads).batch;
    let path = config.generator_path();
    let mut note = String::new();
    let mut calibration = None;
    let mut no_lookup = (config.model.lookup == Lookup::Off).then_some("off: model.lookup");
    // Without a model, the cores can still be shown. A model that was named must exist.
    if path.exists() || !config.model.generator.as_os_str().is_empty() {
        let gguf = Gguf::open(&path).map_err(|error| Failure::Other(error.to_string()))?;
        if gguf.has_sliding_window() {
            no_lookup = Some("off: it is not done with models that have a sliding window");
        }
        llama::backend().map_err(|error| Failure::Other(error.to_string()))?;
        let needed = llama::context_bytes(&gguf, config.model.context, BATCH as u32);
        let placement = crate::assemble::weights(config).place(&gguf, needed).placement;
        let key = topology.key(&gguf.fingerprint(), &placement.to_string(), llama::build());
        let saved = Saved::in_dir(&config.data_dir());
        calibration = saved.find(&key).filter(|_| !args.force);
        // Measured even if all is configured: the table shows the cost of that.
        if calibration.is_none() && !args.no_measure {
            let started = Instant::now();
            let limit = Duration::from_secs(args.seconds);
            let measured = llama::with_model(&path, placement, |bench| {
                let elapsed = || started.elapsed();
                let mut found = calibrate(&topology.candidates(), limit, elapsed, |kind, threads| bench.measure(kind, threads))?;
                if let Some(found) = &mut found {
                    found.verify = verify(limit, elapsed, |tokens| bench.verify(tokens, found.best))?;
                }
                Ok(found)
            });
            calibration = measured.map_err(|error| Failure::Other(error.to_string()))?;
            if let Some(calibration) = &calibration {
                match saved.keep(&key, calibration) {
                    Ok(()) => {}
                    Err(_) if !config.data_dir().exists() => note = "not saved: there is no data directory yet".into(),
                    Err(error) => note = format!("not saved in {}: {error}", config.data_dir().display()),
                }
            }
        }
    } else {
        note = "nothing measured: no generator; name one with --generator FILE".into();
    }
    let plan = Plan::new(&topology, calibration, config.model.threads, config.model.batch_threads);
    let drafts =
        plan.calibration.as_ref().filter(|_| no_lookup.is_none()).and_then(|calibration| Drafts::of(&calibration.verify));
    if common.json {
        print_json(&serde_json::json!({
            "topology": topology, "usable": topology.usable(), "candidates": plan.candidates, "threads": plan.threads,
            "decode_origin": plan.decode_origin, "batch_origin": plan.batch_origin, "calibration": plan.calibration,
            "lookup": drafts.map(|drafts| serde_json::json!({ "tokens": drafts.tokens, "gain": drafts.gain, "gains": drafts.gains() })),
            "embedder_threads": embedding, "note": note,
        }))?;
        return Ok(ExitCode::SUCCESS);
    }
    for line in cores(&topology).into_iter().chain(table(&plan)) {
        print_line(&line);
    }
    if let Some(words) = no_lookup.map(str::to_owned).or_else(|| drafts.map(|drafts| drafts.to_string())) {
        print_line(&format!("lookup     {words}"));
    }
    print_line(&format!("embedder   {embedding} threads"));
    if !note.is_empty() {
        print_line(&note);
    }
    Ok(ExitCode::SUCCESS)
}

fn cores(topology: &Topology) -> Vec<String> {
    let list = |cpus: &[usize]| cpus.iter().map(usize::to_string).collect::<Vec<_>>().join(",");
    let quota = topology.quota.map_or("none".to_owned(), |quota| format!("{quota:.2} cores"));
    let mut lines = vec![
        format!("processor  {}", topology.cpu),
        format!("CPUs       {} (affinity mask and cpuset)", list(&topology.allowed)),
        format!("quota      {quota}"),
        format!("usable     {} of {} cores", topology.usable(), topology.cores.len()),
        String::new(),
        format!("{:<7}{:<16}{:>9}{:>9}  kind", "core", "CPUs", "capacity", "MHz"),
    ];
    let or_dash = |value: Option<u64>| value.map_or("-".to_owned(), |value| value.to_string());
    lines.extend(topology.cores.iter().map(|core| {
        let (capacity, mhz) = (or_dash(core.capacity), or_dash(core.max_khz.map(|khz| khz / 1000)));
        let kind = if core.fast { "fast" } else { "slow" };
        format!("{:<7}{:<16}{capacity:>9}{mhz:>9}  {kind}", core.cpu, list(&core.siblings))
    }));
    lines.push(String::new());
    lines
}

/// The measurements, and the choice among them.
fn table(plan: &Plan) -> Vec<String> {
    let origin = |origin: Origin| match origin {
        Origin::Configured => "configured",
        Origin::Measured => "measured",
        Origin::Cores => "one per usable core",
    };
    let mut lines = Vec::new();
    if let Some(calibration) = &plan.calibration {
        lines.push(format!(
            "{:<9}{:>7}{:>9}{:>9}{:>9}{:>6}   tokens/s, measured in {:.1} s",
            "", "threads", "median", "min", "max", "runs", calibration.seconds
        ));
        for (kind, name, chosen) in
            [(WorkKind::Decode, "decode", plan.threads.decode), (WorkKind::Batch, "batch", plan.threads.batch)]
        {
            for row in calibration.rows(kind) {
                let mark = if row.threads == chosen { "   <-" } else { "" };
                let figures = format!("{:>9.1}{:>9.1}{:>9.1}{:>6}", row.median, row.min, row.max, row.samples);
                lines.push(format!("{name:<9}{:>7}{figures}{mark}", row.threads));
            }
        }
        let passes = calibration.verify.iter().map(|pass| format!("{}: {:.1} ms", pass.tokens, pass.ms)).collect::<Vec<_>>();
        if !passes.is_empty() {
            lines.push(format!("{:<9}tokens in one pass {}", "verify", passes.join(", ")));
        }
        lines.push(String::new());
    }
    lines.push(format!("decode     {} threads ({})", plan.threads.decode, origin(plan.decode_origin)));
    lines.push(format!("batch      {} threads ({})", plan.threads.batch, origin(plan.batch_origin)));
    lines
}
