//! `vademecum search`: passages from the running daemon, or straight from the library.

use super::{Common, Failure, NOT_FOUND, Outcome, filter, pair, print_json, print_line, question, runtime, top_k, visible};
use crate::config::Config;
use http::Client;
use library::retrieve::Query;
use std::process::ExitCode;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The text to look for
    #[arg(value_parser = question)]
    query: String,
    /// Passages to show, 1 to 20
    #[arg(long, short = 'k', value_name = "N", default_value_t = 5, value_parser = top_k())]
    top_k: usize,
    /// Only documents with this tag (repeatable; values of one key are alternatives)
    #[arg(long, value_name = "KEY=VALUE", value_parser = pair)]
    filter: Vec<(String, String)>,
}

pub(super) fn run(config: &Config, common: &Common, args: &Args) -> Outcome {
    let filter = filter(&args.filter);
    let ask = wire::Ask {
        question: args.query.clone(),
        collection: Some(config.collection.clone()),
        top_k: Some(args.top_k),
        filter: filter.clone(),
        ..wire::Ask::default()
    };
    let over_socket = runtime()?.block_on(async {
        match Client::connect(&config.control_socket()).await? {
            Some(mut client) => client.post::<_, wire::SearchReply>("search", &ask).await.map(Some),
            None => Ok(None),
        }
    })?;
    let reply = match over_socket {
        Some(reply) => reply,
        None => {
            super::need_library(config)?;
            let rooms = super::rooms(config)?;
            let (text, collection) = (args.query.clone(), config.collection.clone());
            let query = Query { text, collection, filter, top_k: args.top_k, ..Query::default() };
            let retrieval = rooms.retriever.search(&query).map_err(|e| Failure::Other(e.to_string()))?;
            crate::assemble::found(String::new(), retrieval, config.answer.threshold)
        }
    };
    if common.json {
        print_json(&reply)?;
    } else {
        for passage in &reply.passages {
            let heading = if passage.heading.is_empty() { &passage.title } else { &passage.heading };
            let page = passage.page.map(|page| format!(", page {page}")).unwrap_or_default();
            print_line(&visible(&format!("[{}] {heading}{page} ({}, score {:.2})", passage.n, passage.chunk, passage.score)));
            for line in passage.text.trim().lines() {
                print_line(&visible(&format!("    {line}")));
            }
        }
        let verdict = match (reply.found, reply.library) {
            (true, _) => "holds an answer",
            (false, None) => "does not hold an answer",
            (false, Some(_)) => "does not hold an answer yet, for it is still being read",
        };
        print_line(&format!(
            "({:.1} ms; the library probably {verdict}: confidence {:.2})",
            reply.embed_ms + reply.search_ms,
            reply.confidence
        ));
    }
    Ok(if reply.found { ExitCode::SUCCESS } else { ExitCode::from(NOT_FOUND) })
}
