//! `vademecum ask`: a question to the running daemon, streamed to the terminal.
//!
//! The question goes over the control socket if a daemon runs on the data directory, else to the node on the broker.
//! `--broker` and `--node` choose the broker.

use super::{
    Common, Failure, NOT_FOUND, Outcome, filter, is_usage, pair, positive, print_json, print_line, question, runtime, top_k,
    visible,
};
use crate::config::{Config, Loaded};
use http::{Client, ClientError, Event};
use mqtt::connection::{Connection, Notice, Outgoing, Properties, Sender};
use serde::Deserialize;
use std::io::Write;
use std::process::ExitCode;
use std::time::Duration;
use wire::Encoding;
use wire::new_id;
use wire::{Answer, Citation, Mode};

/// How long to wait for the node's `online`.
const PRESENCE: Duration = Duration::from_secs(3);

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The question
    #[arg(value_parser = question)]
    question: String,
    /// Evidence alone, without a generated answer
    #[arg(long)]
    evidence: bool,
    /// Passages to retrieve, 1 to 20
    #[arg(long, value_name = "N", value_parser = top_k())]
    top_k: Option<usize>,
    /// Longest answer in tokens
    #[arg(long, value_name = "N", value_parser = positive())]
    max_tokens: Option<usize>,
    /// Only documents with this tag (repeatable; values of one key are alternatives)
    #[arg(long, value_name = "KEY=VALUE", value_parser = pair)]
    filter: Vec<(String, String)>,
    /// Continue the conversation of this name, at most 128 bytes
    #[arg(long, value_name = "NAME")]
    session: Option<String>,
    /// Give up after this many seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 120, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    timeout: u64,
}

pub(super) fn run(loaded: &Loaded, common: &Common, args: &Args) -> Outcome {
    let config = &loaded.config;
    let ask = wire::Ask {
        id: Some(new_id()),
        question: args.question.clone(),
        collection: common.collection.clone(),
        top_k: args.top_k,
        max_tokens: args.max_tokens,
        stream: Some(!common.json),
        mode: args.evidence.then_some(Mode::Evidence),
        deadline_ms: Some(args.timeout * 1000),
        filter: filter(&args.filter),
        session: args.session.clone(),
        ..wire::Ask::default()
    };
    let runtime = runtime()?;
    let asking = Asking { config, json: common.json, patience: Duration::from_secs(args.timeout + 2) };
    let answer = runtime.block_on(async {
        match daemon_here(loaded).await? {
            Some(client) => asking.ask_here(client, &ask).await,
            None => asking.ask(&ask).await,
        }
    });
    runtime.shutdown_background();
    let answer = answer?;
    Ok(if answer.found { ExitCode::SUCCESS } else { ExitCode::from(NOT_FOUND) })
}

/// The daemon on this data directory, unless flags or the environment name a broker or a node, or this user may not use the socket.
async fn daemon_here(loaded: &Loaded) -> Result<Option<Client>, Failure> {
    if loaded.is_named("mqtt.broker") || loaded.is_named("node") {
        return Ok(None);
    }
    match Client::connect(&loaded.config.control_socket()).await {
        Err(ClientError::Refused { message, .. }) => {
            log::warn!("{message}; asking over the broker");
            Ok(None)
        }
        connected => Ok(connected?),
    }
}

/// Asks questions and shows the answers.
pub(super) struct Asking<'a> {
    pub(super) config: &'a Config,
    pub(super) json: bool,
    pub(super) patience: Duration,
}

impl Asking<'_> {
    /// Asks the daemon on this data directory.
    async fn ask_here(&self, mut client: Client, ask: &wire::Ask) -> Result<Answer, Failure> {
        let mut printer = Printer::default();
        let mut told = |event| {
            if let (Event::Delta(delta), false) = (event, self.json) {
                printer.delta(&delta);
            }
        };
        let asked = client.ask(ask, &mut told);
        let reply = tokio::time::timeout(self.patience, asked).await.map_err(|_| self.too_late())??;
        self.show(&printer, reply)
    }

    fn show(&self, printer: &Printer, reply: wire::AnswerReply) -> Result<Answer, Failure> {
        if self.json {
            print_json(&reply)?;
        } else {
            printer.answer(&reply.answer);
        }
        Ok(reply.answer)
    }

    fn too_late(&self) -> Failure {
        Failure::Other(format!(
            "no answer within {} s; ask with a longer --timeout, or check the daemon's log",
            self.patience.as_secs()
        ))
    }

    /// Asks the node on the broker, shows the replies, and returns the final answer.
    pub(super) async fn ask(&self, ask: &wire::Ask) -> Result<Answer, Failure> {
        let base = self.config.topic_base();
        let id = ask.id.clone().unwrap_or_else(new_id);
        let answers = format!("{base}/answer/{id}");
        let state = format!("{base}/state");
        let mut options = crate::assemble::connection_options(self.config)?;
        options.client_id = format!("vademecum-ask-{id}");
        let (connection, sender) =
            Connection::new(options, vec![answers.clone(), state.clone()]).map_err(|e| Failure::Other(e.to_string()))?;
        let conversation = Conversation { asking: self, connection, sender, base, answers, state };
        match tokio::time::timeout(self.patience, conversation.run(ask)).await {
            Ok(result) => result,
            Err(_) => Err(self.too_late()),
        }
    }
}

struct Conversation<'a> {
    asking: &'a Asking<'a>,
    connection: Connection,
    sender: Sender,
    base: String,
    answers: String,
    state: String,
}

impl Conversation<'_> {
    async fn run(mut self, ask: &wire::Ask) -> Result<Answer, Failure> {
        self.meet().await?;
        let payload = Encoding::Json.encode(ask).map_err(Failure::Other)?;
        let properties = Properties { content_type: Some(Encoding::Json.content_type().into()), ..Properties::default() };
        let message = Outgoing { topic: format!("{}/ask", self.base), payload: payload.into(), retain: false, properties };
        let sender = self.sender.clone();
        tokio::spawn(async move { sender.send(message).await });
        let mut printer = Printer::default();
        loop {
            match self.connection.next().await {
                Notice::Message(message) if message.topic == self.answers => {
                    let value: serde_json::Value = Encoding::Json.decode(&message.payload).map_err(Failure::Other)?;
                    if let Some(error) = value.get("error") {
                        return Err(refusal(error));
                    }
                    if let Some(delta) = value.get("delta").and_then(serde_json::Value::as_str) {
                        printer.delta(delta);
                    } else if value.get("answer").is_some() {
                        let reply: wire::AnswerReply =
                            serde_json::from_value(value).map_err(|e| Failure::Other(e.to_string()))?;
                        let answer = self.asking.show(&printer, reply);
                        self.connection.close(Duration::from_secs(1)).await;
                        return answer;
                    }
                }
                Notice::Message(message) if message.topic == self.state && &message.payload[..] == b"offline" => {
                    return Err(Failure::Other(format!("the node went offline: {} = offline", self.state)));
                }
                Notice::Disconnected(reason) => {
                    return Err(Failure::Other(format!("the connection to the broker is lost: {reason}")));
                }
                _ => {}
            }
        }
    }

    /// Connects and waits for the node's `online`.
    async fn meet(&mut self) -> Result<(), Failure> {
        let broker = self.asking.config.broker_url().map_err(Failure::Other)?;
        let mut refused = 0;
        let online = async {
            loop {
                match self.connection.next().await {
                    Notice::Message(message) if message.topic == self.state => return Ok(&message.payload[..] == b"online"),
                    Notice::SubscriptionRefused => {
                        return Err("the broker refuses the subscription to the reply topic".to_owned());
                    }
                    Notice::Disconnected(reason) => {
                        refused += 1;
                        // The second attempt may use the other version of the protocol.
                        if refused > 1 {
                            return Err(reason);
                        }
                    }
                    _ => {}
                }
            }
        };
        let start =
            format!("start it with `vademecum run --node {}`, or name another with --node", self.asking.config.node_name());
        match tokio::time::timeout(PRESENCE, online).await {
            Ok(Ok(true)) => Ok(()),
            Ok(Ok(false)) => Err(Failure::Other(format!("the node is offline: {} = offline; {start}", self.state))),
            Ok(Err(reason)) if reason.contains("return code") => {
                let remedy = "check mqtt.username and mqtt.password_file, and the broker's rules";
                Err(Failure::Other(format!("the broker on {}:{} refuses us: {reason}; {remedy}", broker.host, broker.port)))
            }
            Ok(Err(reason)) => {
                let remedy = format!("start the daemon (`vademecum run`) or name the broker with --broker; reason: {reason}");
                Err(Failure::Other(format!("no broker answers on {}:{}; {remedy}", broker.host, broker.port)))
            }
            Err(_) => Err(Failure::Other(format!("no node has ever been online under {}; {start}", self.base))),
        }
    }
}

/// The daemon's error instead of an answer.
fn refusal(error: &serde_json::Value) -> Failure {
    let text = |key| error.get(key).and_then(serde_json::Value::as_str).unwrap_or_default();
    let words = format!("{} ({})", text("message"), text("code"));
    let code = error.get("code").and_then(|code| wire::ErrorCode::deserialize(code).ok());
    if code.is_some_and(is_usage) { Failure::Usage(words) } else { Failure::Other(words) }
}

/// Writes an answer to the terminal as it arrives.
#[derive(Default)]
struct Printer {
    streamed: String,
}

impl Printer {
    fn delta(&mut self, delta: &str) {
        self.streamed.push_str(delta);
        let mut out = std::io::stdout().lock();
        if write!(out, "{}", visible(delta)).and_then(|()| out.flush()).is_err() {
            std::process::exit(0);
        }
    }

    fn answer(&self, answer: &Answer) {
        if self.streamed.is_empty() {
            print_line(&visible(&answer.answer));
        } else {
            print_line("");
            if !answer.found {
                print_line(&visible(&answer.answer));
            }
        }
        for citation in &answer.citations {
            print_line(&cited(citation));
        }
        print_line(&timings(answer));
    }
}

/// A citation in two lines: its place and its quote.
fn cited(citation: &Citation) -> String {
    let numbers: Vec<String> = citation.pages.iter().map(u32::to_string).collect();
    let page = match citation.page {
        Some(_) if numbers.len() > 1 => format!(", pages {}", numbers.join(" and ")),
        Some(page) => format!(", page {page}"),
        None => String::new(),
    };
    let heading = if citation.heading.is_empty() { citation.title.clone() } else { citation.heading.clone() };
    let place = format!("{heading}{page} ({}, score {:.2})", citation.document, citation.score);
    let quote = citation.quote.split_whitespace().collect::<Vec<_>>().join(" ");
    format!("  [{}] {}\n      \"{}\"", citation.n, visible(&place), visible(&quote))
}

fn timings(answer: &Answer) -> String {
    let t = &answer.timings;
    let mut parts = vec![format!("evidence {:.0} ms", t.evidence_ms)];
    if answer.usage.answer_tokens > 0 {
        parts.push(format!("first token {:.0} ms", t.ttft_ms));
        parts.push(format!("{:.0} tokens/s", t.tokens_per_s));
    }
    parts.push(format!("total {:.0} ms", t.total_ms));
    format!("  ({}; confidence {:.2})", parts.join(", "), answer.confidence)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::Cli;
    use clap::Parser;

    async fn finds_daemon(dir: &std::path::Path, flags: &[&str]) -> bool {
        let data_dir = format!("data_dir={}", dir.display());
        let given =
            ["vademecum", "--config", "/dev/null", "ask", "why", "--set", &data_dir].into_iter().chain(flags.iter().copied());
        let loaded = Cli::try_parse_from(given).expect("flags").common.load().expect("a configuration");
        daemon_here(&loaded).await.expect("a usable socket").is_some()
    }

    #[tokio::test]
    async fn the_socket_goes_before_the_broker() {
        let dir = tempfile::tempdir().expect("a directory");
        assert!(!finds_daemon(dir.path(), &[]).await, "no daemon runs here");
        let _listener = http::bind(&dir.path().join("control.sock")).expect("the socket");
        assert!(finds_daemon(dir.path(), &[]).await);
        assert!(finds_daemon(dir.path(), &["--collection", "kitchen"]).await);
        for named in [["--broker", "mqtt://h"], ["--node", "other"], ["--set", "mqtt.broker=mqtt://h"], ["--set", "node=other"]] {
            assert!(!finds_daemon(dir.path(), &named).await, "{named:?}");
        }
    }

    #[test]
    fn refusals_tell_usage_from_failure() {
        let refused = |code: &str| refusal(&serde_json::json!({ "code": code, "message": "no" }));
        assert!(matches!(refused("bad_request"), Failure::Usage(words) if words == "no (bad_request)"));
        assert!(matches!(refused("queue_full"), Failure::Other(words) if words == "no (queue_full)"));
    }
}
