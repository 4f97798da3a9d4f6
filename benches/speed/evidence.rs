//! Question to evidence at the client, through both brokers, with a pause between questions as people make it.

use crate::asking::PAUSE;
use crate::contenders::{OURS, Site};
use crate::set::Set;
use std::time::Duration;
use vademecum_benches::Result;
use vademecum_benches::client::Asker;
use vademecum_benches::process::{Program, free_port};
use vademecum_benches::progress::Stage;

/// How long the daemon may take to open its broker.
const PATIENCE: Duration = Duration::from_secs(20);

/// Milliseconds of each question.
#[derive(Debug, Default)]
pub(crate) struct Evidence {
    /// Through mosquitto with `set_tcp_nodelay true`.
    pub(crate) mosquitto: Vec<f64>,
    /// Through the daemon's own broker.
    pub(crate) embedded: Vec<f64>,
}

/// Both questions of every pair, twice.
pub(crate) fn measure(site: &Site, set: &Set) -> Result<Evidence> {
    let stage = Stage::begin("evidence");
    let mut evidence = Evidence::default();
    let questions = || set.pairs.iter().flat_map(|pair| [&pair.first, &pair.second]);
    let (mut running, _) = site.start(OURS[0])?;
    for query in questions().chain(questions()) {
        std::thread::sleep(PAUSE);
        evidence.mosquitto.push(running.ask(site.question(&query.text))?.evidence_ms);
    }
    running.stop()?;
    stage.step(1, 2);

    let (node, port) = (OURS[0].node(), free_port()?);
    let mut command = site.daemon("run", &node);
    command.args(["--set", &format!("broker.listen=127.0.0.1:{port}"), "--set", "answer.strategy=quote"]);
    let daemon = Program::start(&mut command, &site.log("embedded"))?;
    let deadline = std::time::Instant::now() + PATIENCE;
    while std::net::TcpStream::connect(("127.0.0.1", port)).is_err() {
        if std::time::Instant::now() > deadline {
            return Err(format!("no broker in the daemon: {}", std::fs::read_to_string(site.log("embedded"))?).into());
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    let mut asker = Asker::connect(port, "asks-embedded", &node)?;
    asker.wait_for_state("online")?;
    let mut ask = |text: &str| asker.ask(site.question(text), &|| daemon.cpu());
    for query in questions().chain(questions()) {
        std::thread::sleep(PAUSE);
        evidence.embedded.push(ask(&query.text)?.evidence_ms);
    }
    daemon.stop()?;
    Ok(evidence)
}
