//! `vademecum documents`

use super::{Common, Failure, Outcome, document_id, print_json, print_line, runtime, visible};
use crate::config::Config;
use http::Client;
use library::ingest::counted;
use library::ingest::watch::Watched;
use std::process::ExitCode;
use wire::{FileState, Listed};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    action: Option<Action>,
}

#[derive(Debug, clap::Subcommand)]
enum Action {
    /// List documents (of one collection with --collection)
    List,
    /// Delete documents by id, and forget those that failed
    Delete {
        /// Ids as `documents list` shows them
        #[arg(required = true, value_parser = document_id)]
        ids: Vec<String>,
    },
}

pub(super) fn run(config: &Config, common: &Common, args: &Args) -> Outcome {
    match &args.action {
        None | Some(Action::List) => list(config, common),
        Some(Action::Delete { ids }) => delete(config, common, ids),
    }
}

fn list(config: &Config, common: &Common) -> Outcome {
    let documents = runtime()?.block_on(fetch(config, common.collection.as_deref()))?;
    let documents = match documents {
        Some(documents) => documents,
        None => {
            super::need_library(config)?;
            let store = crate::assemble::open_store(config)?;
            Watched::default().list(&store, common.collection.as_deref()).map_err(crate::assemble::ServiceError::from)?
        }
    };
    if common.json {
        print_json(&documents)?;
        return Ok(ExitCode::SUCCESS);
    }
    for listed in &documents {
        let Listed { collection, id, title, .. } = listed;
        let (chunks, bytes) = (counted(u64::from(listed.chunks), "chunk"), counted(listed.bytes, "byte"));
        let line = format!("{collection}\t{id}\t{chunks}\t{bytes}\t{title}\t{}", state(listed));
        print_line(&visible(&line));
    }
    if documents.is_empty() {
        eprintln!("no documents; add some with `vademecum ingest FILE…`");
    }
    Ok(ExitCode::SUCCESS)
}

/// The document's state, its source file, and its problem.
fn state(listed: &Listed) -> String {
    let word = match listed.state {
        FileState::Ok => "ok",
        FileState::Pending => "pending",
        FileState::Failed => "failed",
    };
    let from = listed.origin.as_ref().map(|origin| format!(" from {}", origin.path));
    let reason = listed.reason.as_ref().map(|reason| format!(": {reason}"));
    let note = listed.note.as_ref().map(|note| format!("; note: {note}"));
    [Some(word.to_owned()), from, reason, note].into_iter().flatten().collect()
}

/// Every page of the running daemon's list; `None` if no daemon runs.
pub(super) async fn fetch(config: &Config, collection: Option<&str>) -> Result<Option<Vec<Listed>>, Failure> {
    let Some(mut client) = Client::connect(&config.control_socket()).await? else { return Ok(None) };
    let mut documents = Vec::new();
    loop {
        let request =
            wire::List { collection: collection.map(str::to_owned), skip: Some(documents.len()), ..wire::List::default() };
        let page: wire::ListReply = client.post("documents/list", &request).await?;
        let (total, got) = (page.total, page.documents.len());
        documents.extend(page.documents);
        if got == 0 || documents.len() >= total {
            return Ok(Some(documents));
        }
    }
}

fn delete(config: &Config, common: &Common, ids: &[String]) -> Outcome {
    let request = |id: &String| wire::Delete {
        document: id.clone(),
        collection: Some(config.collection.clone()),
        ..wire::Delete::default()
    };
    let over_socket = runtime()?.block_on(async {
        let Some(mut client) = Client::connect(&config.control_socket()).await? else { return Ok::<_, Failure>(None) };
        let mut deleted = Vec::new();
        for id in ids {
            let reply: wire::DeleteReply = client.post("documents/delete", &request(id)).await?;
            deleted.push(reply.deleted);
        }
        Ok(Some(deleted))
    })?;
    let deleted = match over_socket {
        Some(deleted) => deleted,
        None => {
            super::need_library(config)?;
            let store = crate::assemble::open_store(config)?;
            let delete = |id: &String| store.delete(&config.collection, id);
            ids.iter().map(delete).collect::<Result<_, _>>().map_err(crate::assemble::ServiceError::from)?
        }
    };
    if common.json {
        let list: Vec<_> = ids
            .iter()
            .zip(&deleted)
            .map(|(document, deleted)| serde_json::json!({ "document": document, "deleted": deleted }))
            .collect();
        print_json(&list)?;
    }
    let missing: Vec<&str> = ids.iter().zip(&deleted).filter(|(_, deleted)| !**deleted).map(|(id, _)| id.as_str()).collect();
    if !common.json {
        for (id, _) in ids.iter().zip(&deleted).filter(|(_, deleted)| **deleted) {
            print_line(&format!("deleted {id}"));
        }
    }
    if missing.is_empty() {
        return Ok(ExitCode::SUCCESS);
    }
    Err(Failure::Other(format!(
        "no document {} in collection {}; `vademecum documents list` shows the ids",
        missing.join(", "),
        config.collection
    )))
}
