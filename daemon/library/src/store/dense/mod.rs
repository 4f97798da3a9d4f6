//! Vectors in a mapped file: int8 rows for exact scores, and sign bits that choose the rows to score.
//!
//! Up to [`EXACT_ROWS`] rows are all scored. Beyond that a first pass reads one bit per dimension, an eighth of the bytes. The
//! mean of all rows is subtracted, and the rest reduced to its signs. The rows with the highest sums of query values by sign
//! are then scored exactly. RaBitQ (Gao and Long, 2024) makes such a sum an unbiased estimate with a factor for each row. These
//! vectors all have the same length, so their factors are nearly alike, and a few more rows scored exactly make up for them.
//!
//! The file is also of use without a store:
//!
//! ```no_run
//! # use vademecum_library::store::dense::DenseIndex;
//! # let (path, vectors, query) = (std::path::Path::new("x"), vec![vec![0.0f32; 384]], vec![0.0f32; 384]);
//! DenseIndex::build(path, 384, vectors.iter().map(Vec::as_slice))?;
//! let index = DenseIndex::open(path)?;
//! for (row, cosine) in index.search(&query, 10, None, 1) {}
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod kernel;

use std::io;
use std::ops::Range;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use roaring::RoaringBitmap;

use super::row::quantize;
use super::sections::{SectionKind, Sections, Writer};
pub(super) use kernel::BLOCK;
use kernel::{Codes, Kernel};

pub use super::sections::Unusable;

/// Up to so many rows, every row is scored exactly: a first pass would save less than a millisecond.
pub const EXACT_ROWS: u64 = 32_768;
/// Rows that the first pass hands on: at least so many, one in so many of all, and so many per row asked for.
const CANDIDATES: usize = 256;
const ROWS_PER_CANDIDATE: usize = 2000;
const CANDIDATES_PER_ROW: usize = 2;
/// Rows that are worth a thread of their own in the first pass. Starting one costs some 30 microseconds.
const ROWS_PER_THREAD: usize = 1 << 17;
/// Number of rows by which a candidate's codes are prefetched.
const ROWS_AHEAD: usize = 8;

/// A question's vector, prepared for the scan.
#[derive(Clone, Debug)]
pub struct Query {
    codes: Codes,
    scale: f32,
    tables: Vec<u8>,
}

impl Query {
    /// Prepares a vector.
    pub fn new(vector: &[f32]) -> Query {
        let largest = vector.iter().fold(0.0f32, |largest, value| largest.max(value.abs()));
        let scale = largest / kernel::QUERY_MAX;
        let code = |value: &f32| if largest > 0.0 { (value / scale).round() as i16 } else { 0 };
        let (tables, _) = kernel::sign_tables(vector);
        Query { codes: Codes::new(vector.iter().map(code).collect()), scale, tables }
    }

    /// Numbers in the vector.
    pub fn dimensions(&self) -> usize {
        self.codes.len()
    }
}

/// The rows with the highest scores out of those offered.
#[derive(Clone, Debug)]
pub(super) struct Best {
    count: usize,
    /// The score that a row has to exceed: the `count`-th best at the last selection.
    threshold: f32,
    found: Vec<(u32, f32)>,
}

impl Best {
    pub(super) fn new(count: usize) -> Best {
        Best { count, threshold: f32::NEG_INFINITY, found: Vec::new() }
    }

    /// Offers a row. The first of equals stays, so rows are offered in ascending order.
    #[inline]
    pub(super) fn offer(&mut self, row: u32, score: f32) {
        if score > self.threshold {
            self.found.push((row, score));
            if self.found.len() >= 2 * self.count + 64 {
                self.shrink();
            }
        }
    }

    fn shrink(&mut self) {
        if self.found.len() > self.count {
            self.found.select_nth_unstable_by(self.count.saturating_sub(1), best_first);
            self.found.truncate(self.count);
            self.threshold = self.found.last().map_or(f32::INFINITY, |(_, score)| *score);
        }
    }

    /// The rows, best first; the lower of equals first.
    pub(super) fn into_sorted(mut self) -> Vec<(u32, f32)> {
        self.shrink();
        self.found.sort_unstable_by(best_first);
        self.found
    }
}

/// The order of rows and scores. Sorting calls the function with references.
#[allow(clippy::trivially_copy_pass_by_ref)]
fn best_first(a: &(u32, f32), b: &(u32, f32)) -> std::cmp::Ordering {
    b.1.total_cmp(&a.1).then(a.0.cmp(&b.0))
}

/// Exact scores of int8 rows.
#[derive(Clone, Copy, Debug)]
pub(super) struct Scorer<'a> {
    kernel: Kernel,
    query: &'a Query,
}

impl<'a> Scorer<'a> {
    pub(super) fn new(query: &'a Query) -> Scorer<'a> {
        Scorer { kernel: Kernel::detect(), query }
    }

    /// The products of up to 32 rows of codes with the query; `scales` has one number per row.
    pub(super) fn block(self, codes: &[i8], scales: &[f32], out: &mut [f32]) {
        let mut sums = [0; BLOCK];
        let sums = &mut sums[..scales.len()];
        self.kernel.dots(codes, &self.query.codes, sums);
        for ((out, sum), scale) in out.iter_mut().zip(sums).zip(scales) {
            *out = *sum as f32 * scale * self.query.scale;
        }
    }

    /// The product of one row.
    pub(super) fn one(self, codes: &[i8], scale: f32) -> f32 {
        let mut score = [0.0];
        self.block(codes, &[scale], &mut score);
        score[0]
    }
}

/// The vectors of an index file.
#[derive(Debug)]
pub struct DenseIndex {
    file: Sections,
    dimensions: usize,
    rows: usize,
    /// One bit per block of codes whose checksum was right.
    checked: Vec<AtomicU64>,
    damaged: AtomicBool,
}

impl DenseIndex {
    /// Writes a file of unit vectors of `dimensions` numbers each, in place of an older one.
    pub fn build<'a>(path: &Path, dimensions: usize, vectors: impl Iterator<Item = &'a [f32]>) -> io::Result<()> {
        let (mut codes, mut scales) = (Vec::new(), Vec::new());
        for vector in vectors {
            if vector.len() != dimensions {
                return Err(io::Error::new(io::ErrorKind::InvalidInput, "a vector is of another length"));
            }
            let (scale, row) = quantize(vector);
            scales.push(scale);
            codes.extend_from_slice(&row);
        }
        let mut writer = Writer::create(path)?;
        write(&mut writer, dimensions, || codes.chunks_exact(dimensions.max(1)).zip(scales.iter().copied()))?;
        writer.finish()
    }

    /// Opens a file. Everything but the codes is checked now; each block of codes is checked when it is first read.
    pub fn open(path: &Path) -> Result<DenseIndex, Unusable> {
        DenseIndex::of(Sections::open(path)?)
    }

    pub(super) fn of(file: Sections) -> Result<DenseIndex, Unusable> {
        let &[rows, dimensions] = file.get::<u32>(SectionKind::Shape) else {
            return Err(Unusable::Unfit("its shape is missing"));
        };
        let (rows, dimensions) = (rows as usize, dimensions as usize);
        let blocks = rows.div_ceil(BLOCK);
        let fits = dimensions > 0
            && file.get::<i8>(SectionKind::Codes).len() == rows * dimensions
            && file.get::<f32>(SectionKind::Scales).len() == rows
            && file.get::<u8>(SectionKind::Signs).len() == blocks * kernel::block_bytes(dimensions)
            && file.get::<u32>(SectionKind::CodeSums).len() == blocks;
        if !fits {
            return Err(Unusable::Unfit("its sections do not fit together"));
        }
        if rows as u64 > EXACT_ROWS {
            file.read_at_random(SectionKind::Codes);
        }
        let checked = (0..blocks.div_ceil(64)).map(|_| AtomicU64::new(0)).collect();
        Ok(DenseIndex { file, dimensions, rows, checked, damaged: AtomicBool::new(false) })
    }

    /// Rows in the file.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Numbers per vector.
    pub fn dimensions(&self) -> usize {
        self.dimensions
    }

    /// Length of the file in bytes, all of it file-backed memory that the kernel may drop.
    pub fn file_bytes(&self) -> usize {
        self.file.file_bytes()
    }

    /// Bytes that every search reads: the signs above [`EXACT_ROWS`] rows, else the codes and scales.
    pub fn hot_bytes(&self) -> usize {
        let hot: &[SectionKind] =
            if self.rows as u64 > EXACT_ROWS { &[SectionKind::Signs] } else { &[SectionKind::Codes, SectionKind::Scales] };
        hot.iter().map(|&kind| self.file.get::<u8>(kind).len()).sum()
    }

    pub(super) fn file(&self) -> &Sections {
        &self.file
    }

    /// Whether a block of codes was found damaged; its rows have the score 0.
    pub(super) fn is_damaged(&self) -> bool {
        self.damaged.load(Ordering::Relaxed)
    }

    /// The `count` rows nearest to a vector with their products, best first, out of `rows` or of all. A vector of another
    /// length finds nothing. At most `threads` threads work on it.
    pub fn search(&self, vector: &[f32], count: usize, rows: Option<&RoaringBitmap>, threads: usize) -> Vec<(u32, f32)> {
        if vector.len() != self.dimensions {
            return Vec::new();
        }
        let all;
        let rows = match rows {
            Some(rows) => rows,
            None => {
                let mut every = RoaringBitmap::new();
                every.insert_range(0..self.rows as u32);
                all = every;
                &all
            }
        };
        let mut best = Best::new(count);
        self.nearest(&Query::new(vector), rows, threads, &mut best);
        best.into_sorted()
    }

    /// Offers the best of the file's rows in `rows` to `best`; `rows` may hold others.
    pub(super) fn nearest(&self, query: &Query, rows: &RoaringBitmap, threads: usize, best: &mut Best) {
        let scorer = Scorer::new(query);
        let own = rows.range_cardinality(0..self.rows as u32);
        if own <= EXACT_ROWS {
            self.scan(scorer, rows.range(0..self.rows as u32), best);
            return;
        }
        let count = CANDIDATES.max(self.rows / ROWS_PER_CANDIDATE).max(best.count * CANDIDATES_PER_ROW);
        let mut candidates: Vec<u32> = self.first_pass(query, rows, count, threads).found.iter().map(|(row, _)| *row).collect();
        candidates.sort_unstable();
        let ahead = |at: usize| candidates.get(at + ROWS_AHEAD).into_iter().for_each(|&row| self.prefetch(row));
        self.scan(scorer, candidates.iter().enumerate().map(|(at, &row)| (ahead(at), row).1), best);
    }

    /// Prefetches the codes and the scale of a row.
    fn prefetch(&self, row: u32) {
        let row = row as usize;
        kernel::prefetch(self.file.get::<f32>(SectionKind::Scales)[row..].as_ptr().cast(), 1);
        kernel::prefetch(self.file.get::<u8>(SectionKind::Codes)[row * self.dimensions..].as_ptr(), self.dimensions);
    }

    /// Scores rows exactly, given in ascending order.
    fn scan(&self, scorer: Scorer<'_>, rows: impl Iterator<Item = u32>, best: &mut Best) {
        let mut rows = rows.peekable();
        while let Some(&row) = rows.peek() {
            let block = row as usize / BLOCK;
            let mut wanted = 0u32;
            while let Some(row) = rows.next_if(|&row| row as usize / BLOCK == block) {
                wanted |= 1 << (row as usize % BLOCK);
            }
            self.scan_block(scorer, block, wanted, best);
        }
    }

    /// Scores those rows of a block whose bit is set in `wanted`.
    fn scan_block(&self, scorer: Scorer<'_>, block: usize, wanted: u32, best: &mut Best) {
        let first = block * BLOCK;
        let range = first..(first + BLOCK).min(self.rows);
        let scales = &self.file.get::<f32>(SectionKind::Scales)[range.clone()];
        let Some(codes) = self.block_codes(block) else {
            range.for_each(|row| best.offer(row as u32, 0.0));
            return;
        };
        let mut scores = [0.0; BLOCK];
        if wanted.count_ones() as usize == scales.len() {
            scorer.block(codes, scales, &mut scores);
        }
        for at in (0..scales.len()).filter(|at| wanted >> at & 1 == 1) {
            if (wanted.count_ones() as usize) < scales.len() {
                scores[at] = scorer.one(&codes[at * self.dimensions..][..self.dimensions], scales[at]);
            }
            best.offer((first + at) as u32, scores[at]);
        }
    }

    /// Exact score of one row; 0 when it is damaged.
    pub(super) fn score(&self, scorer: Scorer<'_>, row: u32) -> f32 {
        let codes = self.codes(row).unwrap_or_default();
        if codes.is_empty() { 0.0 } else { scorer.one(codes, self.scale(row)) }
    }

    /// A row's codes; `None` if they are damaged.
    pub(super) fn codes(&self, row: u32) -> Option<&[i8]> {
        let codes = self.block_codes(row as usize / BLOCK)?;
        codes.get(row as usize % BLOCK * self.dimensions..)?.get(..self.dimensions)
    }

    /// A row's scale.
    pub(super) fn scale(&self, row: u32) -> f32 {
        self.file.get::<f32>(SectionKind::Scales)[row as usize]
    }

    /// Whether every block of codes is as it was written.
    pub(super) fn check(&self) -> bool {
        (0..self.rows.div_ceil(BLOCK)).all(|block| self.block_codes(block).is_some())
    }

    /// The codes of a block of rows; their checksum is checked the first time.
    fn block_codes(&self, block: usize) -> Option<&[i8]> {
        let bytes = block_range(block, self.rows, self.dimensions);
        let codes = self.file.get::<i8>(SectionKind::Codes).get(bytes)?;
        let (word, bit) = (&self.checked[block / 64], 1 << (block % 64));
        if word.load(Ordering::Relaxed) & bit == 0 {
            if crc32fast::hash(bytemuck::cast_slice(codes)) != self.file.get::<u32>(SectionKind::CodeSums)[block] {
                self.damaged.store(true, Ordering::Relaxed);
                return None;
            }
            word.fetch_or(bit, Ordering::Relaxed);
        }
        Some(codes)
    }

    /// The rows with the highest sums by sign.
    fn first_pass(&self, query: &Query, rows: &RoaringBitmap, count: usize, threads: usize) -> Best {
        let blocks = self.rows.div_ceil(BLOCK);
        let threads = threads.min(self.rows / ROWS_PER_THREAD).max(1);
        let share = blocks.div_ceil(threads);
        let part = |number: usize| {
            let blocks = (number * share).min(blocks)..((number + 1) * share).min(blocks);
            self.sum_signs(query, rows, blocks, Best::new(count))
        };
        let part = &part;
        std::thread::scope(|scope| {
            let others: Vec<_> = (1..threads)
                .map(|number| (number, std::thread::Builder::new().spawn_scoped(scope, move || part(number))))
                .collect();
            let mut found = part(0);
            for (number, other) in others {
                // If no thread can be started, the work is done here.
                let best = other.ok().and_then(|other| other.join().ok()).unwrap_or_else(|| part(number));
                best.found.into_iter().for_each(|(row, sum)| found.offer(row, sum));
            }
            found.shrink();
            found
        })
    }

    /// Offers the rows of some blocks to `best`, with their sums by sign.
    fn sum_signs(&self, query: &Query, rows: &RoaringBitmap, blocks: Range<usize>, mut best: Best) -> Best {
        let kernel = Kernel::detect();
        let bytes = kernel::block_bytes(self.dimensions);
        let signs = self.file.get::<u8>(SectionKind::Signs);
        for block in blocks {
            let (sums, highest) = kernel.sign_sums(&signs[block * bytes..][..bytes], &query.tables);
            if f32::from(highest) <= best.threshold {
                continue;
            }
            for (row, sum) in (block * BLOCK..).zip(sums) {
                let (row, sum) = (row as u32, f32::from(sum));
                if sum > best.threshold && rows.contains(row) {
                    best.offer(row, sum);
                }
            }
        }
        best
    }
}

/// The place of a block's codes.
fn block_range(block: usize, rows: usize, dimensions: usize) -> Range<usize> {
    block * BLOCK * dimensions..((block + 1) * BLOCK).min(rows) * dimensions
}

/// Writes the sections of the vectors. Each call of `rows` gives the codes and scales of all rows.
pub(super) fn write<'a, I>(writer: &mut Writer, dimensions: usize, rows: impl Fn() -> I) -> io::Result<()>
where
    I: Iterator<Item = (&'a [i8], f32)>,
{
    let scales: Vec<f32> = rows().map(|(_, scale)| scale).collect();
    writer.whole(SectionKind::Shape, &[scales.len() as u32, dimensions as u32])?;
    writer.whole(SectionKind::Scales, &scales)?;
    let mut sums = Vec::with_capacity(scales.len().div_ceil(BLOCK));
    let mut totals = vec![0.0f64; dimensions];
    writer.section(SectionKind::Codes, |section| {
        let mut block = crc32fast::Hasher::new();
        for (at, (codes, scale)) in rows().enumerate() {
            if at > 0 && at % BLOCK == 0 {
                sums.push(std::mem::take(&mut block).finalize());
            }
            block.update(bytemuck::cast_slice(codes));
            section.push(codes)?;
            totals.iter_mut().zip(codes).for_each(|(total, code)| *total += f64::from(f32::from(*code) * scale));
        }
        if !scales.is_empty() {
            sums.push(block.finalize());
        }
        Ok(())
    })?;
    writer.whole(SectionKind::CodeSums, &sums)?;
    let mean: Vec<f32> = totals.iter().map(|total| (total / scales.len().max(1) as f64) as f32).collect();
    write_signs(writer, &mean, rows())
}

fn write_signs<'a>(writer: &mut Writer, mean: &[f32], rows: impl Iterator<Item = (&'a [i8], f32)>) -> io::Result<()> {
    writer.section(SectionKind::Signs, |section| {
        let mut block = vec![0u8; kernel::block_bytes(mean.len())];
        let mut filled = 0;
        for (codes, scale) in rows {
            if filled == BLOCK {
                section.push(&block)?;
                block.fill(0);
                filled = 0;
            }
            for (dimension, (code, mean)) in codes.iter().zip(mean).enumerate() {
                if f32::from(*code) * scale > *mean {
                    kernel::set_sign(&mut block, filled, dimension);
                }
            }
            filled += 1;
        }
        if filled == 0 { Ok(()) } else { section.push(&block) }
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
