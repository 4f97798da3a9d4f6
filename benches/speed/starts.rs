//! Ingest, start to ready, and memory at ready.

use crate::contenders::{Contender, DEFAULT, OURS, PEERS, Running, Site};
use crate::set::Set;
use serde_json::Value;
use std::fs;
use std::time::Duration;
use vademecum_benches::Result;
use vademecum_benches::process::Memory;
use vademecum_benches::progress::Stage;

/// How long a program may go on warming up after it is ready, before its memory is read.
const SETTLE: Duration = Duration::from_secs(1);

/// What was found.
#[derive(Debug, Default)]
pub(crate) struct Ready {
    /// Those that run here, ours by reader.
    pub(crate) contenders: Vec<Contender>,
    /// Peers that do not, with the reason.
    pub(crate) not_run: Vec<(Contender, String)>,
    pub(crate) versions: Vec<String>,
    /// Chunks per second of wall time, and of the daemon's processor time.
    pub(crate) ingest: (f64, f64),
    /// Ours is one program, whatever its reader.
    pub(crate) starts: Vec<Starts>,
}

/// Starts of one program.
#[derive(Debug)]
pub(crate) struct Starts {
    pub(crate) contender: Contender,
    /// Milliseconds to ready.
    pub(crate) ms: Vec<f64>,
    /// When ready.
    pub(crate) memory: Vec<Memory>,
}

/// Fills the libraries, and starts every program in turn, round after round.
pub(crate) fn measure(site: &Site, set: &Set, rounds: usize) -> Result<Ready> {
    let mut ready = Ready { versions: site.versions(), ..Ready::default() };
    ready.ingest = ingest(site, set)?;
    ready.contenders.extend(OURS);
    let mut started = vec![DEFAULT];
    if site.python.is_some() {
        let stage = Stage::begin("the peers' indexes");
        for (i, peer) in PEERS.into_iter().enumerate() {
            stage.step(i, PEERS.len());
            // The first start also shows whether it runs at all.
            match site.build_index(peer, set).and_then(|()| answers(site, peer, &set.pairs[0].first.text)) {
                Ok(()) => {
                    ready.contenders.push(peer);
                    started.push(peer);
                }
                Err(error) => ready.not_run.push((peer, error.to_string())),
            }
        }
    } else {
        ready.not_run.extend(PEERS.map(|peer| (peer, "not asked for, or no Python environment can be made".to_owned())));
    }
    ready.starts = started.into_iter().map(|contender| Starts { contender, ms: vec![], memory: vec![] }).collect();
    let stage = Stage::begin("starts");
    for round in 0..rounds {
        stage.step(round, rounds);
        for starts in &mut ready.starts {
            let (running, milliseconds) = site.start(starts.contender)?;
            starts.ms.push(milliseconds);
            // Its warming up is not to reach into the next start.
            std::thread::sleep(SETTLE);
            starts.memory.push(running.memory()?);
            running.stop()?;
        }
    }
    Ok(ready)
}

fn answers(site: &Site, peer: Contender, question: &str) -> Result<()> {
    let (mut running, _): (Running, f64) = site.start(peer)?;
    running.ask(site.question(question))?;
    running.stop()
}

/// The documents through the running daemon, whose processor time is counted; then a copy of the library for each reader.
fn ingest(site: &Site, set: &Set) -> Result<(f64, f64)> {
    let _stage = Stage::begin("ingest");
    let first = OURS[0];
    let node = first.node();
    fs::create_dir_all(site.data_dir(&node))?;
    let (daemon, _) = site.start(first)?;
    std::thread::sleep(SETTLE);
    let before = daemon.cpu()?;
    let output = site.daemon("ingest", &node).arg("--json").arg(&set.documents).output()?;
    if !output.status.success() {
        return Err(format!("ingest failed: {}", String::from_utf8_lossy(&output.stderr)).into());
    }
    let summary: Value = serde_json::from_slice(&output.stdout)?;
    let (Some(chunks), Some(seconds)) = (summary["chunks"].as_f64(), summary["seconds"].as_f64()) else {
        return Err(format!("ingest gives no chunks and seconds: {summary}").into());
    };
    if chunks as usize != set.count {
        return Err(format!("the daemon cut {chunks} passages, the peers are given {}", set.count).into());
    }
    let cpu = daemon.cpu()? - before;
    daemon.stop()?;
    for other in OURS[1..].iter().chain([&DEFAULT]) {
        site.copy_library(&node, &other.node())?;
    }
    Ok((chunks / seconds, chunks / cpu))
}
