//! Our own workers: the same requests as the peers' `worker.py` takes, answered by the library.

use crate::corpus::Piece;
use crate::vectors::{BUCKETS, DIMENSIONS, EXTRA, K, read_rows};
use library::retrieve::{Query, Retriever, rank_lexical};
use library::store::dense::DenseIndex;
use library::store::{Chunk, Document, EmbedderId, Store, StoreOptions, sha256_hex};
use llm::embed::{EmbedOptions, Embedder};
use roaring::RoaringBitmap;
use serde_json::{Value, json};
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};
use vademecum_benches::Result;

const COLLECTION: &str = "bench";

/// Answers the requests on standard input until it ends.
pub(crate) fn serve(kind: &str) -> Result<()> {
    let (mut dense, mut library) = (Dense::default(), Library::default());
    let mut out = std::io::stdout();
    for line in std::io::stdin().lock().lines() {
        let ask: Value = serde_json::from_str(&line?)?;
        let answer = if ask["do"] == "hello" {
            json!({ "version": format!("vademecum {}", env!("CARGO_PKG_VERSION")) })
        } else {
            let answer = if kind == "dense" { dense.answer(&ask) } else { library.answer(&ask) };
            answer.unwrap_or_else(|error| json!({ "error": error.to_string() }))
        };
        writeln!(out, "{answer}")?;
        out.flush()?;
    }
    Ok(())
}

/// The index on bare vectors.
#[derive(Default)]
struct Dense {
    index: Option<DenseIndex>,
}

impl Dense {
    fn answer(&mut self, ask: &Value) -> Result<Value> {
        match text(ask, "do")? {
            "build" => {
                let rows = read_rows(text(ask, "vectors")?.as_ref(), 0, number(ask, "rows")?)?;
                fs::create_dir_all(text(ask, "dir")?)?;
                let begun = Instant::now();
                DenseIndex::build(&path(ask)?, DIMENSIONS, rows.chunks_exact(DIMENSIONS))?;
                Ok(json!({ "build_s": begun.elapsed().as_secs_f64() }))
            }
            "open" => {
                let begun = Instant::now();
                let index = DenseIndex::open(&path(ask)?).map_err(|unusable| format!("{unusable:?}"))?;
                let open_ms = milliseconds(begun);
                let answer = json!({ "open_ms": open_ms, "bytes": index.file_bytes(), "hot_bytes": index.hot_bytes() });
                self.index = Some(index);
                Ok(answer)
            }
            "evict" => {
                // The kernel is asked to forget the file's pages, as if the machine had just started.
                self.index = None;
                let file = path(ask)?;
                let status = Command::new("dd")
                    .args(["oflag=nocache", "conv=notrunc,fdatasync", "count=0", "status=none"])
                    .arg(format!("of={}", file.display()))
                    .status()?;
                if status.success() { Ok(json!({})) } else { Err("dd cannot drop the file's pages".into()) }
            }
            "search" => self.search(ask),
            other => Err(format!("no {other}").into()),
        }
    }

    fn search(&self, ask: &Value) -> Result<Value> {
        let index = self.index.as_ref().ok_or("no index is open")?;
        let (threads, asked) = (number(ask, "threads")?, ask["effort"].as_u64().map_or(K, |effort| effort as usize));
        let rows = ask["bucket"].as_u64().map(|bucket| (bucket as u32..index.rows() as u32).step_by(BUCKETS as usize));
        let rows: Option<RoaringBitmap> = rows.map(Iterator::collect);
        let queries = read_rows(text(ask, "queries")?.as_ref(), 0, usize::MAX)?;
        let queries: Vec<&[f32]> = queries.chunks_exact(DIMENSIONS).collect();
        let search = |query: &&[f32]| index.search(query, asked, rows.as_ref(), threads);
        timed(&queries[..2.min(queries.len())], ask, search)?;
        let (ms, found) = timed(&queries, ask, search)?;
        let ids: Vec<Vec<u32>> = found.into_iter().map(|rows| rows.into_iter().take(K).map(|(row, _)| row).collect()).collect();
        Ok(json!({ "ms": ms, "ids": ids }))
    }
}

/// Store, retriever and encoder, as the daemon has them.
#[derive(Default)]
struct Library {
    store: Option<Store>,
    retriever: Option<Retriever>,
}

impl Library {
    fn answer(&mut self, ask: &Value) -> Result<Value> {
        match text(ask, "do")? {
            "build" => build(ask),
            "open" => {
                let begun = Instant::now();
                let store = Store::open(text(ask, "dir")?.as_ref(), &StoreOptions::default())?;
                let opened = milliseconds(begun);
                rank_lexical(&store, COLLECTION, "first", K)?;
                self.store = Some(store);
                Ok(json!({ "open_ms": opened, "first_search_ms": milliseconds(begun) - opened }))
            }
            "embedder" => {
                let options = EmbedOptions { threads: number(ask, "threads")?, ..EmbedOptions::default() };
                let embedder = Embedder::load(text(ask, "model")?.as_ref(), &options)?;
                self.retriever = Some(Retriever::new(self.store()?.clone(), std::sync::Arc::new(answer::Encoder(embedder))));
                Ok(json!({}))
            }
            "lexical" => {
                let store = self.store()?;
                let texts = texts(ask);
                let search = |text: &String| rank_lexical(store, COLLECTION, text, K);
                timed(&texts[..5.min(texts.len())], ask, search)?;
                let (ms, found) = timed(&texts, ask, search)?;
                let found = found.into_iter().collect::<std::result::Result<Vec<_>, _>>()?;
                let ids: Vec<Vec<String>> = found.into_iter().map(|rows| rows.into_iter().map(|(id, _)| id).collect()).collect();
                Ok(json!({ "ms": ms, "ids": ids }))
            }
            "search" => {
                let retriever = self.retriever.as_ref().ok_or("no embedder is loaded")?;
                let query =
                    |text: &String| Query { text: text.clone(), collection: COLLECTION.to_owned(), top_k: 3, ..Query::default() };
                let texts = texts(ask);
                timed(&texts[..5.min(texts.len())], ask, |text| retriever.search(&query(text)))?;
                let (ms, found) = timed(&texts, ask, |text| retriever.search(&query(text)))?;
                let found = found.into_iter().collect::<std::result::Result<Vec<_>, _>>()?;
                let of = |part: fn(&library::retrieve::Retrieval) -> f64| found.iter().map(part).collect::<Vec<f64>>();
                Ok(json!({ "ms": ms, "embed_ms": of(|found| found.embed_ms), "search_ms": of(|found| found.search_ms) }))
            }
            "update" => self.update(ask),
            other => Err(format!("no {other}").into()),
        }
    }

    /// Documents of ten chunks come and go, each synced to the disk before the next.
    fn update(&self, ask: &Value) -> Result<Value> {
        let rows = read_rows(text(ask, "vectors")?.as_ref(), 0, EXTRA)?;
        let rows: Vec<Vec<f32>> = rows.chunks_exact(DIMENSIONS).map(<[f32]>::to_vec).collect();
        let store = self.store()?;
        let words = "a chunk that is added while the index is in use, of some twenty words as a short paragraph has them";
        let (mut add, mut delete) = (Vec::new(), Vec::new());
        for (i, vectors) in rows.chunks(10).enumerate() {
            let (document, source, chunks) =
                document(&format!("extra-{i}"), "extra", &vec![(Vec::new(), words.to_owned(), 20); vectors.len()]);
            let begun = Instant::now();
            store.put(&document, source.as_bytes(), &chunks, vectors)?;
            add.push(milliseconds(begun));
        }
        for i in 0..add.len() {
            let begun = Instant::now();
            store.delete(COLLECTION, &format!("extra-{i}"))?;
            delete.push(milliseconds(begun));
        }
        Ok(json!({ "add_ms": add, "delete_ms": delete, "chunks": 10 }))
    }

    fn store(&self) -> Result<&Store> {
        self.store.as_ref().ok_or_else(|| "no store is open".into())
    }
}

/// Heading, text and tokens of a chunk.
type Part = (Vec<String>, String, u32);

/// Puts the first chunks of the corpus, document by document, each with the vector of its number.
fn build(ask: &Value) -> Result<Value> {
    let (rows, dir) = (number(ask, "rows")?, Path::new(text(ask, "dir")?));
    let store = Store::open(dir, &StoreOptions::default())?;
    let id = EmbedderId { name: "bench".into(), fingerprint: text(ask, "fingerprint")?.to_owned(), dimensions: DIMENSIONS };
    store.bind_embedder(&id)?;
    let vectors = text(ask, "vectors")?;
    let mut lines = BufReader::new(File::open(text(ask, "texts")?)?).lines().take(rows).peekable();
    let (mut first, mut documents, mut spent, mut pending): (usize, usize, Duration, Vec<Piece>) = Default::default();
    while let Some(line) = lines.next() {
        pending.push(serde_json::from_str(&line?)?);
        let next: Option<Piece> = match lines.peek() {
            Some(Ok(line)) => Some(serde_json::from_str(line)?),
            _ => None,
        };
        let Some(last) = pending.last() else { continue };
        if next.is_some_and(|next| next.document == last.document) {
            continue;
        }
        let parts: Vec<Part> = pending.iter().map(|text| (text.heading.clone(), text.text.clone(), text.tokens)).collect();
        let (document, source, chunks) = document(&last.document, &last.title, &parts);
        let vectors: Vec<Vec<f32>> =
            read_rows(vectors.as_ref(), first, pending.len())?.chunks_exact(DIMENSIONS).map(<[f32]>::to_vec).collect();
        let begun = Instant::now();
        store.put(&document, source.as_bytes(), &chunks, &vectors)?;
        spent += begun.elapsed();
        first += pending.len();
        documents += 1;
        pending.clear();
    }
    Ok(json!({ "build_s": spent.as_secs_f64(), "chunks": first, "documents": documents }))
}

fn document(id: &str, title: &str, parts: &[Part]) -> (Document, String, Vec<Chunk>) {
    let mut source = String::new();
    let mut chunks = Vec::new();
    for ((heading, text, tokens), ordinal) in parts.iter().zip(0..) {
        let offset = source.len() as u64;
        chunks.push(Chunk {
            document: id.to_owned(),
            ordinal,
            heading: heading.clone(),
            page: None,
            text: text.clone(),
            breaks: Vec::new(),
            sections: Vec::new(),
            offset,
            tokens: *tokens,
        });
        source.push_str(text);
        source.push('\n');
    }
    let document = Document {
        id: id.to_owned(),
        collection: COLLECTION.to_owned(),
        title: title.to_owned(),
        media_type: "text/plain".into(),
        // Equal texts under two names would share one source.
        hash: sha256_hex(source.as_bytes()),
        ..Document::default()
    };
    (document, source, chunks)
}

/// Calls `call` with each input, at most for the seconds asked for; milliseconds of each and what it returned.
fn timed<T, R>(inputs: &[T], ask: &Value, call: impl Fn(&T) -> R) -> Result<(Vec<f64>, Vec<R>)> {
    let end = Instant::now() + Duration::from_secs_f64(ask["seconds"].as_f64().ok_or("no seconds")?);
    let (mut ms, mut results) = (Vec::new(), Vec::new());
    for input in inputs {
        let begun = Instant::now();
        let result = std::hint::black_box(call(input));
        ms.push(milliseconds(begun));
        results.push(result);
        if Instant::now() > end {
            break;
        }
    }
    Ok((ms, results))
}

fn texts(ask: &Value) -> Vec<String> {
    ask["texts"].as_array().into_iter().flatten().filter_map(|text| text.as_str().map(str::to_owned)).collect()
}

fn text<'a>(ask: &'a Value, key: &str) -> Result<&'a str> {
    ask[key].as_str().ok_or_else(|| format!("the request has no {key}").into())
}

fn number(ask: &Value, key: &str) -> Result<usize> {
    ask[key].as_u64().map(|number| number as usize).ok_or_else(|| format!("the request has no {key}").into())
}

fn path(ask: &Value) -> Result<PathBuf> {
    Ok(Path::new(text(ask, "dir")?).join("index"))
}

fn milliseconds(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1e3
}
