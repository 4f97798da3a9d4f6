//! Vectors to search: embeddings of real text, as many more like them as are wanted, and Gaussian noise as the worst case.
//!
//! A file is rows of [`DIMENSIONS`] little-endian f32 of unit length. Any first part of it is a set of its own.

use crate::corpus::{Corpus, RECIPE};
use crate::random::Random;
use serde::{Deserialize, Serialize};
use std::collections::{HashMap, HashSet};
use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use vademecum::embed::Embedder;
use vademecum::ingest::embedded_text;
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
/// Chunks that are really embedded.
const EMBEDDED: usize = 3_000;

/// A made-up row lies between an embedded chunk and one of its so many nearest neighbours ...
const NEIGHBOURS: usize = 16;
/// ... plus noise of this length, before it is brought to unit length. Of as many rows of either kind, 3,000, the nearest
/// and the tenth neighbour of a query have the cosines 0.51 and 0.39 among embedded chunks, 0.46 and 0.37 among rows made
/// so; a row's own tenth neighbour has 0.50 in both. More noise makes them rarer, less makes copies.
const NOISE: f32 = 0.4;

/// Rows written at once.
const BLOCK: usize = 10_000;

/// How rows are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Kind {
    /// Embedded chunks, then rows between them.
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
    pub(crate) fn prepare(kind: Kind, cache: &Path, corpus: &Corpus, embedder: &Embedder, rows: usize) -> Result<Self> {
        let folder = cache.join("vectors");
        fs::create_dir_all(&folder)?;
        let name = match kind {
            Kind::Text => format!("text{RECIPE}-{}", embedder.fingerprint().chars().take(12).collect::<String>()),
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
        if kind == Kind::Gauss && !set.queries.exists() {
            write_new(&set.queries, |out| write_rows(out, &Maker::new(Vec::new()).rows(1 << 40, QUERIES)))?;
        }
        let real = if kind == Kind::Text { set.embed(corpus, embedder)? } else { Vec::new() };
        set.extend(real, rows)?;
        Ok(set)
    }

    /// Embeds evenly spaced chunks, and a sentence each of other chunks as the queries; returns the former.
    fn embed(&self, corpus: &Corpus, embedder: &Embedder) -> Result<Vec<f32>> {
        let path = self.folder.join(format!("{}-embedded.f32", self.name));
        if !path.exists() || !self.queries.exists() {
            let texts = corpus.read(usize::MAX)?;
            let step = (texts.len() / (EMBEDDED + QUERIES)).max(1);
            let chosen: Vec<_> = texts.iter().step_by(step).take(EMBEDDED + QUERIES).collect();
            // One of so many is asked for and not in the set.
            let held_out = |i: &usize| i.is_multiple_of(EMBEDDED / QUERIES + 1);
            let (asked, kept): (Vec<usize>, Vec<usize>) = (0..chosen.len()).partition(held_out);
            let questions: Vec<String> = asked.iter().map(|i| sentence(&chosen[*i].text)).collect();
            let kept: Vec<String> =
                kept.iter().map(|i| embedded_text(&chosen[*i].title, &chosen[*i].heading, &chosen[*i].text)).collect();
            let questions: Vec<f32> = embedder.embed(&questions)?.into_iter().flat_map(|embedding| embedding.vector).collect();
            write_new(&self.queries, |out| write_rows(out, &questions))?;
            embed_to(&path, &kept, embedder)?;
        }
        read_rows(&path, 0, usize::MAX)
    }

    /// Appends rows until there are enough.
    fn extend(&self, real: Vec<f32>, rows: usize) -> Result<()> {
        let file = File::options().create(true).append(true).open(&self.file)?;
        let have = file.metadata()?.len() as usize / (DIMENSIONS * 4);
        // What an interrupted run left of a row.
        file.set_len((have * DIMENSIONS * 4) as u64)?;
        if have >= rows && self.extra.exists() {
            return Ok(());
        }
        let maker = Maker::new(real);
        if !self.extra.exists() {
            write_new(&self.extra, |out| write_rows(out, &maker.rows(1 << 41, EXTRA)))?;
        }
        let mut out = BufWriter::new(file);
        for begin in (have..rows).step_by(BLOCK) {
            write_rows(&mut out, &maker.rows(begin as u64, BLOCK.min(rows - begin)))?;
            eprint!("\rbench: making {rows} vectors of {}: {begin}", self.name);
        }
        eprintln!();
        Ok(out.flush()?)
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

/// Embeds the texts into a file; goes on where an interrupted run stopped.
fn embed_to(path: &Path, texts: &[String], embedder: &Embedder) -> Result<()> {
    let partial = path.with_extension("partial");
    let mut out = File::options().create(true).append(true).open(&partial)?;
    let mut have = out.metadata()?.len() as usize / (DIMENSIONS * 4);
    out.set_len((have * DIMENSIONS * 4) as u64)?;
    for part in texts[have.min(texts.len())..].chunks(64) {
        let rows: Vec<f32> = embedder.embed(part)?.into_iter().flat_map(|embedding| embedding.vector).collect();
        write_rows(&mut out, &rows)?;
        have += part.len();
        eprint!("\rbench: {have} of {} chunks embedded, once", texts.len());
    }
    eprintln!();
    Ok(fs::rename(partial, path)?)
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
    real: Vec<f32>,
    /// The nearest embedded rows of each; empty for Gaussian rows.
    neighbours: Vec<Vec<u32>>,
}

impl Maker {
    fn new(real: Vec<f32>) -> Self {
        let rows: Vec<&[f32]> = real.chunks_exact(DIMENSIONS).collect();
        let nearest = |row: &&[f32]| {
            let mut scored: Vec<(f32, u32)> = rows.iter().zip(0..).map(|(other, id)| (dot(row, other), id)).collect();
            scored.select_nth_unstable_by(NEIGHBOURS, |a, b| b.0.total_cmp(&a.0));
            scored.into_iter().take(NEIGHBOURS).map(|(_, id)| id).collect()
        };
        let neighbours = rows.iter().map(nearest).collect();
        Self { real, neighbours }
    }

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
        let real = |row: usize| &self.real[row * DIMENSIONS..][..DIMENSIONS];
        if self.neighbours.is_empty() {
            return unit(noise(&mut Random::new(number), 1.0));
        }
        if let Ok(row) = usize::try_from(number)
            && row < self.neighbours.len()
        {
            return real(row).to_vec();
        }
        let mut random = Random::new(number);
        let row = random.below(self.neighbours.len());
        let neighbour = self.neighbours[row][random.below(NEIGHBOURS)] as usize;
        let share = random.unit() / 2.0;
        let mut made = noise(&mut random, NOISE);
        for ((value, a), b) in made.iter_mut().zip(real(row)).zip(real(neighbour)) {
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

/// The longest sentence of up to 160 bytes, for a question; else the beginning.
fn sentence(text: &str) -> String {
    let fits = vademecum::retrieve::sentences(text).into_iter().filter(|sentence| sentence.len() <= 160).max_by_key(|s| s.len());
    fits.map_or_else(|| text.chars().take(160).collect(), str::to_owned)
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
    let mut bytes = vec![0; rows * DIMENSIONS * 4];
    file.read_exact_at(&mut bytes, (first * DIMENSIONS * 4) as u64)?;
    Ok(values(&bytes))
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
