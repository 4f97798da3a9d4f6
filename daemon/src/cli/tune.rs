//! `vademecum tune`

use super::{Common, Outcome, print_json, print_line};
use crate::config::Config;
use crate::tune::Topology;
use std::process::ExitCode;

pub(super) fn run(config: &Config, common: &Common) -> Outcome {
    let topology = Topology::detect();
    let threads = topology.threads(config.model.threads, config.model.batch_threads);
    let embedding = topology.threads(config.embedder.threads, config.embedder.threads).batch;
    if common.json {
        print_json(&serde_json::json!({
            "topology": topology, "usable": topology.usable(), "threads": threads, "embedder_threads": embedding,
        }))?;
        return Ok(ExitCode::SUCCESS);
    }
    let list = |cpus: &[usize]| cpus.iter().map(usize::to_string).collect::<Vec<_>>().join(",");
    print_line(&format!("allowed CPUs       {}", list(&topology.allowed)));
    print_line(&format!("fast cores         {}", list(&topology.cores)));
    print_line(&format!("CPU quota          {}", topology.quota.map_or("none".to_owned(), |q| format!("{q:.2} cores"))));
    print_line(&format!("usable cores       {}", topology.usable()));
    print_line(&format!("decode threads     {}", threads.decode));
    print_line(&format!("batch threads      {}", threads.batch));
    print_line(&format!("embedder threads   {embedding}"));
    Ok(ExitCode::SUCCESS)
}
