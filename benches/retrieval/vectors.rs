//! Vectors to search: embeddings of real text, as many more like them as are wanted, and Gaussian noise as the worst case.
//!
//! A file is rows of [`DIMENSIONS`] little-endian f32 of unit length. Any first part of it is a set of its own.

use crate::corpus::Corpus;
use crate::random::Random;
use llm::embed::Embedder;
use serde::{Deserialize, Serialize};
use std::collections::{HashMap, HashSet};
use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use vademecum_benches::Result;

/// Of the test embedder, all-MiniLM-L6-v2.
pub(crate) const DIMENSIONS: usize = 384;
/// Neighbours looked for.
pub(crate) const K: usize = 10;
/// A filter accepts one of so many rows.
pub(crate) const BUCKETS: u32 = 10;
/// Queries of a set.
pub(crate) const QUERIES: usize = 200;
/// Rows beside the set, to be added while an index is in use.
pub(crate) const EXTRA: usize = 200;
/// Rows that are embeddings: one sentence of each chunk, in the corpus' order.
const EMBEDDED: usize = 100_000;
/// Longest sentence embedded, in bytes: whole chunks would take ten times as long.
const SENTENCE: usize = 120;

/// A made-up row lies between an embedded one and another at most so many rows further, of the same manual mostly ...
const NEARBY: usize = 8;
/// ... plus noise of this length, before it is brought to unit length.
const NOISE: f32 = 0.4;

/// Changes when what is in the files changes, so that an old file is not taken for a new one.
const RECIPE: u32 = 2;

/// Rows read or written at once.
const BLOCK: usize = 10_000;

/// How rows are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Kind {
    /// Embedded sentences, then rows between them.
    Text,
    /// Uniform on the sphere: no row is near any other, every sign is a coin's.
    Gauss,
}

/// A set of vectors with its queries.
#[derive(Debug)]
pub(crate) struct Set {
    pub(crate) kind: Kind,
    pub(crate) file: PathBuf,
    pub(crate) queries: PathBuf,
    pub(crate) extra: PathBuf,
    folder: PathBuf,
    name: String,
}

/// The exact neighbours of each query, by f32 inner product.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Truth {
    ids: Vec<Vec<u32>>,
    /// Score of the last of them.
    last: Vec<f32>,
}

impl Set {
    /// Makes what is not in the cache yet.
    pub(crate) fn prepare(kind: Kind, cache: &Path, corpus: &Corpus, embedders: &[Embedder], rows: usize) -> Result<Self> {
        let folder = cache.join("vectors");
        fs::create_dir_all(&folder)?;
        let name = match kind {
            Kind::Text => format!(
                "text{RECIPE}-{}",
                embedders.first().ok_or("no embedder")?.fingerprint().chars().take(12).collect::<String>()
            ),
            Kind::Gauss => format!("gauss{RECIPE}"),
        };
        let path = |part: &str| folder.join(format!("{name}-{part}.f32"));
        let set = Self {
            kind,
            file: path("rows"),
            queries: path("queries"),
            extra: path("extra"),
            folder: folder.clone(),
            name: name.clone(),
        };
        set.extend(corpus, embedders, rows)?;
        Ok(set)
    }

    /// Appends rows until there are enough: embeddings first, then rows made from them.
    fn extend(&self, corpus: &Corpus, embedders: &[Embedder], rows: usize) -> Result<()> {
        let mut have = self.length()?;
        let embedded = if self.kind == Kind::Text { EMBEDDED } else { 0 };
        if have < rows.min(embedded) || !self.queries.exists() || !self.extra.exists() {
            self.embed(corpus, embedders, rows.min(embedded))?;
            have = self.length()?;
        }
        if have >= rows {
            return Ok(());
        }
        let maker = Maker { real: read_rows(&self.file, 0, embedded)? };
        let mut out = BufWriter::new(File::options().create(true).append(true).open(&self.file)?);
        for begin in (have..rows).step_by(BLOCK) {
            write_rows(&mut out, &maker.rows(begin as u64, BLOCK.min(rows - begin)))?;
            eprint!("\rbench: making {rows} vectors of {}: {begin}", self.name);
        }
        eprintln!();
        Ok(out.flush()?)
    }

    /// Embeds queries, rows beside the set, and the rows up to `rows`; goes on where an interrupted run stopped.
    fn embed(&self, corpus: &Corpus, embedders: &[Embedder], rows: usize) -> Result<()> {
        if self.kind == Kind::Gauss {
            let maker = Maker { real: Vec::new() };
            write_new(&self.queries, |out| write_rows(out, &maker.rows(1 << 40, QUERIES)))?;
            return write_new(&self.extra, |out| write_rows(out, &maker.rows(1 << 41, EXTRA)));
        }
        let vectors = |texts: &[String]| -> Result<Vec<f32>> {
            let share = texts.len().div_ceil(embedders.len()).max(1);
            let parts: Vec<_> = std::thread::scope(|scope| {
                let begun: Vec<_> =
                    texts.chunks(share).zip(embedders).map(|(texts, embedder)| scope.spawn(|| embedder.embed(texts))).collect();
                begun.into_iter().map(std::thread::ScopedJoinHandle::join).collect()
            });
            let mut rows = Vec::with_capacity(texts.len() * DIMENSIONS);
            for part in parts {
                let part = part.map_err(|_| "a thread that embeds has panicked")??;
                rows.extend(part.into_iter().flat_map(|embedding| embedding.vector));
            }
            Ok(rows)
        };
        let texts = corpus.read(EMBEDDED + EXTRA)?;
        let own: Vec<String> = texts.iter().map(|text| sentence(&text.text, 0)).collect();
        if !self.queries.exists() || !self.extra.exists() {
            // Other sentences of chunks within any size that is measured, so that a query has something to find.
            let among = texts.len().min(10_000);
            let asked: Vec<String> = texts[..among].iter().map(|text| sentence(&text.text, 1)).collect();
            let fresh =
                asked.iter().zip(&own).filter(|(asked, own)| asked != own && asked.len() > 40).map(|(asked, _)| asked.clone());
            let fresh: Vec<String> = fresh.collect();
            let step = (fresh.len() / QUERIES).max(1);
            let queries: Vec<String> = fresh.into_iter().step_by(step).take(QUERIES).collect();
            let queries = vectors(&queries)?;
            write_new(&self.queries, |out| write_rows(out, &queries))?;
            let extra = vectors(&own[own.len().saturating_sub(EXTRA)..])?;
            write_new(&self.extra, |out| write_rows(out, &extra))?;
        }
        let mut have = self.length()?;
        let mut out = File::options().create(true).append(true).open(&self.file)?;
        let end = rows.min(own.len());
        for part in own[have.min(end)..end].chunks(256) {
            write_rows(&mut out, &vectors(part)?)?;
            have += part.len();
            eprint!("\rbench: {have} of {end} sentences embedded, once");
        }
        eprintln!();
        Ok(())
    }

    /// Rows in the file; what an interrupted run left of one is cut off.
    fn length(&self) -> Result<usize> {
        let file = File::options().create(true).append(true).open(&self.file)?;
        let rows = file.metadata()?.len() as usize / (DIMENSIONS * 4);
        file.set_len((rows * DIMENSIONS * 4) as u64)?;
        Ok(rows)
    }

    /// Its name, part of the names of files made from it.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// The queries, row after row.
    pub(crate) fn queries(&self) -> Result<Vec<f32>> {
        read_rows(&self.queries, 0, usize::MAX)
    }

    /// The exact neighbours within the first rows, for each of `sizes`; computed once, then read. With `bucket`, only rows
    /// whose number has that remainder by [`BUCKETS`] count.
    pub(crate) fn truths(&self, sizes: &[usize], bucket: Option<u32>) -> Result<Vec<Truth>> {
        let of_bucket = bucket.map(|bucket| format!("-bucket{bucket}")).unwrap_or_default();
        let path = |size: usize| self.folder.join(format!("{}-truth-{size}{of_bucket}.json", self.name));
        let missing: Vec<usize> = sizes.iter().copied().filter(|size| !path(*size).exists()).collect();
        if let Some(most) = missing.iter().max() {
            eprintln!("bench: exact neighbours among {most} rows of {}, once", self.name);
            for (size, truth) in missing.iter().zip(self.scan(&missing, bucket)?) {
                write_new(&path(*size), |out| Ok(serde_json::to_writer(out, &truth)?))?;
            }
        }
        sizes.iter().map(|size| Ok(serde_json::from_slice(&fs::read(path(*size))?)?)).collect()
    }

    /// One pass over the rows; what has been found is noted at each of the sizes.
    fn scan(&self, sizes: &[usize], bucket: Option<u32>) -> Result<Vec<Truth>> {
        let queries = self.queries()?;
        let queries: Vec<&[f32]> = queries.chunks_exact(DIMENSIONS).collect();
        let mut nearest: Vec<Vec<(f32, u32)>> = vec![Vec::new(); queries.len()];
        let mut marks: Vec<usize> = sizes.to_vec();
        marks.sort_unstable();
        let (mut begin, mut found) = (0, HashMap::new());
        while let Some(&mark) = marks.first() {
            let block = read_rows(&self.file, begin, BLOCK.min(mark - begin))?;
            let share = queries.len().div_ceil(threads());
            std::thread::scope(|scope| {
                for (queries, nearest) in queries.chunks(share).zip(nearest.chunks_mut(share)) {
                    let block = &block;
                    scope.spawn(move || scan_block(block, begin, bucket, queries, nearest));
                }
            });
            begin += block.len() / DIMENSIONS;
            if begin == mark {
                found.insert(mark, Truth::of(&nearest));
                marks.remove(0);
            }
        }
        sizes.iter().map(|size| found.remove(size).ok_or_else(|| "a size was asked for twice".into())).collect()
    }

    /// Recall@10 of what an engine returned for the first queries: the share of ranks that hold a row as near as the true
    /// tenth neighbour, so that rows exactly alike may stand for each other.
    pub(crate) fn recall(&self, truth: &Truth, returned: &[Vec<u32>]) -> Result<f64> {
        let queries = self.queries()?;
        let file = File::open(&self.file)?;
        let mut hits = 0;
        let wanted: usize = truth.ids.iter().zip(returned).map(|(ids, _)| ids.len()).sum();
        for (i, ids) in returned.iter().enumerate() {
            let distinct: HashSet<u32> = ids.iter().copied().take(K).collect();
            for id in distinct {
                let near = truth.ids[i].contains(&id) || {
                    let row = read_row(&file, id)?;
                    row.len() == DIMENSIONS && dot(&row, &queries[i * DIMENSIONS..][..DIMENSIONS]) >= truth.last[i] - 1e-6
                };
                hits += usize::from(near);
            }
        }
        Ok(hits as f64 / wanted.max(1) as f64)
    }

    /// Mean cosine of the nearest and of the tenth neighbour to the queries, among the first rows.
    pub(crate) fn nearness(&self, size: usize) -> Result<(f64, f64)> {
        let truth = self.truths(&[size], None)?.remove(0);
        let queries = self.queries()?;
        let file = File::open(&self.file)?;
        let mut first = 0.0;
        for (ids, query) in truth.ids.iter().zip(queries.chunks_exact(DIMENSIONS)) {
            first += f64::from(dot(&read_row(&file, ids[0])?, query));
        }
        let mean = |sum: f64| sum / truth.ids.len() as f64;
        Ok((mean(first), mean(truth.last.iter().map(|score| f64::from(*score)).sum())))
    }
}

impl Truth {
    fn of(nearest: &[Vec<(f32, u32)>]) -> Self {
        Self {
            ids: nearest.iter().map(|found| found.iter().map(|(_, id)| *id).collect()).collect(),
            last: nearest.iter().map(|found| found.last().map_or(0.0, |(score, _)| *score)).collect(),
        }
    }
}

/// Keeps the [`K`] nearest rows of each query, best first.
fn scan_block(block: &[f32], begin: usize, bucket: Option<u32>, queries: &[&[f32]], nearest: &mut [Vec<(f32, u32)>]) {
    for (row, id) in block.chunks_exact(DIMENSIONS).zip(begin as u32..) {
        if bucket.is_some_and(|bucket| id % BUCKETS != bucket) {
            continue;
        }
        for (query, found) in queries.iter().zip(nearest.iter_mut()) {
            let score = dot(row, query);
            if found.len() < K || found.last().is_some_and(|(last, _)| score > *last) {
                found.insert(found.partition_point(|(other, _)| *other >= score), (score, id));
                found.truncate(K);
            }
        }
    }
}

/// Makes rows by their number.
struct Maker {
    /// The embedded rows; none for Gaussian rows.
    real: Vec<f32>,
}

impl Maker {
    fn rows(&self, first: u64, count: usize) -> Vec<f32> {
        let share = count.div_ceil(threads()) as u64;
        let end = first + count as u64;
        std::thread::scope(|scope| {
            let parts: Vec<_> = (first..end)
                .step_by(share as usize)
                .map(|begin| {
                    scope.spawn(move || (begin..end.min(begin + share)).flat_map(|row| self.row(row)).collect::<Vec<f32>>())
                })
                .collect();
            parts.into_iter().flat_map(|part| part.join().unwrap_or_default()).collect()
        })
    }

    fn row(&self, number: u64) -> Vec<f32> {
        let mut random = Random::new(number);
        let rows = self.real.len() / DIMENSIONS;
        if rows == 0 {
            return unit(noise(&mut random, 1.0));
        }
        let real = |row: usize| &self.real[row * DIMENSIONS..][..DIMENSIONS];
        let row = random.below(rows);
        let nearby = (row + 1 + random.below(NEARBY)) % rows;
        let share = random.unit() / 2.0;
        let mut made = noise(&mut random, NOISE);
        for ((value, a), b) in made.iter_mut().zip(real(row)).zip(real(nearby)) {
            *value += (1.0 - share) * a + share * b;
        }
        unit(made)
    }
}

/// Gaussian noise of that length, in the mean.
fn noise(random: &mut Random, length: f32) -> Vec<f32> {
    let each = length / (DIMENSIONS as f32).sqrt();
    (0..DIMENSIONS / 2).flat_map(|_| random.normal()).map(|value| value * each).collect()
}

fn unit(mut row: Vec<f32>) -> Vec<f32> {
    let length = dot(&row, &row).sqrt();
    for value in &mut row {
        *value /= length;
    }
    row
}

/// Eight sums side by side, which the compiler keeps in vector registers.
fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut sums = [0.0f32; 8];
    for (a, b) in a.chunks_exact(8).zip(b.chunks_exact(8)) {
        for (sum, (a, b)) in sums.iter_mut().zip(a.iter().zip(b)) {
            *sum += a * b;
        }
    }
    sums.iter().sum()
}

/// The longest sentence that is not too long, or the next ones by `rank`; else the beginning of the text.
fn sentence(text: &str, rank: usize) -> String {
    let mut fitting: Vec<&str> = library::retrieve::sentences(text).into_iter().map(|at| &text[at]).collect();
    fitting.retain(|sentence| sentence.len() <= SENTENCE);
    fitting.sort_by_key(|sentence| std::cmp::Reverse(sentence.len()));
    fitting.get(rank).map_or_else(|| text.chars().take(SENTENCE).collect(), |sentence| (*sentence).to_owned())
}

fn threads() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

fn write_rows(out: &mut dyn Write, rows: &[f32]) -> Result<()> {
    let bytes: Vec<u8> = rows.iter().flat_map(|value| value.to_le_bytes()).collect();
    Ok(out.write_all(&bytes)?)
}

/// Writes a file that is there whole or not at all.
fn write_new(path: &Path, write: impl FnOnce(&mut dyn Write) -> Result<()>) -> Result<()> {
    let partial = path.with_extension("partial");
    let mut out = BufWriter::new(File::create(&partial)?);
    write(&mut out)?;
    out.flush()?;
    Ok(fs::rename(partial, path)?)
}

/// Up to `count` rows from `first` on.
pub(crate) fn read_rows(path: &Path, first: usize, count: usize) -> Result<Vec<f32>> {
    let file = File::open(path)?;
    let rows = (file.metadata()?.len() as usize / (DIMENSIONS * 4)).saturating_sub(first).min(count);
    let mut all = Vec::with_capacity(rows * DIMENSIONS);
    // In blocks, so that the bytes of a million rows are not held beside their numbers.
    for begin in (first..first + rows).step_by(BLOCK) {
        let mut bytes = vec![0; BLOCK.min(first + rows - begin) * DIMENSIONS * 4];
        file.read_exact_at(&mut bytes, (begin * DIMENSIONS * 4) as u64)?;
        all.extend(values(&bytes));
    }
    Ok(all)
}

/// A row; empty when there is none of that number.
fn read_row(file: &File, row: u32) -> Result<Vec<f32>> {
    let mut bytes = vec![0; DIMENSIONS * 4];
    match file.read_exact_at(&mut bytes, u64::from(row) * (DIMENSIONS * 4) as u64) {
        Ok(()) => Ok(values(&bytes)),
        Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => Ok(Vec::new()),
        Err(error) => Err(error.into()),
    }
}

fn values(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks().0.iter().map(|four| f32::from_le_bytes(*four)).collect()
}
