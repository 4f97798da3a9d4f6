//! Real text: Debian's documentation packages, cut into chunks by our own reader and chunker, once.

use library::ingest::{self, DEFAULT_MAX_DOCUMENT_BYTES, DEFAULT_MAX_TOKENS, Source};
use llm::embed::Embedder;
use serde::{Deserialize, Serialize};
use std::fs::{self, File};
use std::io::{BufRead, BufReader, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use vademecum_benches::Result;

/// English manuals in HTML, some 130 MB of packages: system administration, programming, databases, mathematics.
const PACKAGES: [&str; 16] = [
    "apache2-doc",
    "debian-faq",
    "debian-handbook",
    "debian-policy",
    "debian-reference-en",
    "developers-reference",
    "git-doc",
    "gnuplot-doc",
    "kicad-doc-en",
    "linux-doc-6.1",
    "maxima-doc",
    "octave-doc",
    "postgresql-doc-15",
    "python3.11-doc",
    "sqlite3-doc",
    "gimp-help-en",
];

/// Enough chunks for the largest library that is measured.
const WANTED: usize = 100_000;

/// Of the translations that lie beside the English pages.
const LANGUAGES: [&str; 24] = [
    "ar", "ca", "cs", "da", "de", "el", "es", "fa", "fr", "hr", "id", "it", "ja", "ko", "nb", "nl", "pl", "pt", "ro", "ru", "sv",
    "tr", "vi", "zh",
];

/// Changes when what is in the file changes, so that an old file is not taken for a new one.
const RECIPE: u32 = 1;

/// A chunk as it stands in the file, one JSON object a line.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Piece {
    pub(crate) document: String,
    pub(crate) title: String,
    pub(crate) heading: Vec<String>,
    pub(crate) page: Option<u32>,
    pub(crate) text: String,
    pub(crate) tokens: u32,
    /// Title, headings and text: what an index without fields gets.
    pub(crate) all: String,
}

/// Where the chunks are and where they come from.
#[derive(Debug)]
pub(crate) struct Corpus {
    pub(crate) file: PathBuf,
    pub(crate) chunks: usize,
    pub(crate) packages: Vec<String>,
}

impl Corpus {
    /// Fetches, unpacks and chunks what is not in the cache yet.
    pub(crate) fn prepare(cache: &Path, embedder: &Embedder) -> Result<Self> {
        let file = cache.join(format!("chunks-{RECIPE}.jsonl"));
        let folder = cache.join("packages");
        if !file.exists() {
            let roots = fetch(&folder)?;
            eprintln!("bench: chunking the documents");
            let partial = cache.join(format!("chunks-{RECIPE}.partial"));
            write(&documents(&roots)?, embedder, WANTED, &partial)?;
            fs::rename(&partial, &file)?;
        }
        let chunks = BufReader::new(File::open(&file)?).lines().count();
        Ok(Self { file, chunks, packages: versions(&folder)? })
    }

    /// The first `count` chunks.
    pub(crate) fn read(&self, count: usize) -> Result<Vec<Piece>> {
        let lines = BufReader::new(File::open(&self.file)?).lines().take(count);
        lines.map(|line| Ok(serde_json::from_str(&line?)?)).collect()
    }
}

/// Downloads and unpacks the packages; nothing is installed and no right is needed. Packages this Debian does not have are
/// left out.
fn fetch(folder: &Path) -> Result<Vec<PathBuf>> {
    fs::create_dir_all(folder)?;
    let mut roots = Vec::new();
    for package in PACKAGES {
        let root = folder.join(package);
        if !root.exists() {
            eprintln!("bench: fetching {package}");
            let fetched = Command::new("apt-get").args(["download", "--quiet", package]).current_dir(folder).output();
            let fetched = fetched.map_err(|e| format!("apt-get does not run ({e}): the corpus is made on a Debian system"))?;
            let deb = deb(folder, package)?;
            let (true, Some(deb)) = (fetched.status.success(), deb) else {
                eprintln!("bench: {package} is left out: {}", String::from_utf8_lossy(&fetched.stderr).trim());
                continue;
            };
            let partial = folder.join(format!("{package}.partial"));
            if !Command::new("dpkg").arg("-x").arg(&deb).arg(&partial).status()?.success() {
                return Err(format!("dpkg cannot unpack {}; remove it and start again", deb.display()).into());
            }
            fs::rename(&partial, &root)?;
        }
        roots.push(root);
    }
    if roots.is_empty() {
        return Err("no documentation package could be fetched; `apt-get update` and a network are needed once".into());
    }
    Ok(roots)
}

/// The downloaded file of a package.
fn deb(folder: &Path, package: &str) -> Result<Option<PathBuf>> {
    let prefix = format!("{package}_");
    let mut found = None;
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(&prefix)) {
            found = Some(path);
        }
    }
    Ok(found)
}

/// Names and versions of the packages in the cache.
fn versions(folder: &Path) -> Result<Vec<String>> {
    let mut versions = Vec::new();
    for package in PACKAGES {
        if let Some(path) = deb(folder, package)? {
            let name = path.file_name().unwrap_or_default().to_string_lossy().replace("%3a", ":");
            versions.push(name.split('_').take(2).collect::<Vec<_>>().join(" "));
        }
    }
    Ok(versions)
}

/// The files that are documents, shuffled by their path's hash so that any first part of the corpus is a mixture.
fn documents(roots: &[PathBuf]) -> Result<Vec<ingest::FoundFile>> {
    let include = ["**/*.html".to_owned()];
    // Lists of names, and what nobody asks a manual.
    let exclude = ["**/genindex*", "**/*crossref*", "**/requirements.html", "**/whatsnew/**"].map(str::to_owned);
    let mut entries = Vec::new();
    for root in roots {
        let found = ingest::walk(std::slice::from_ref(root), &include, &exclude)?;
        let package = root.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let english = found.entries.into_iter().filter(|entry| is_english(&entry.id));
        entries.extend(english.map(|entry| ingest::FoundFile { id: format!("{package}/{}", entry.id), ..entry }));
    }
    // FNV-1a.
    let hash = |id: &str| id.bytes().fold(0xcbf2_9ce4_8422_2325u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3));
    entries.sort_by_key(|entry| (hash(&entry.id), entry.id.clone()));
    Ok(entries)
}

/// Whether no folder on the way to the file, nor the end of its name, is another language's.
fn is_english(id: &str) -> bool {
    let foreign = |part: &str| {
        let language = part.split(['-', '_']).next().unwrap_or_default();
        LANGUAGES.contains(&language) && (part.len() == 2 || part.len() == 5)
    };
    !id.split(['/', '.']).any(foreign)
}

/// Reads and chunks documents in parallel until there are `wanted` chunks, and writes them in the documents' order.
fn write(entries: &[ingest::FoundFile], embedder: &Embedder, wanted: usize, file: &Path) -> Result<()> {
    let mut out = BufWriter::new(File::create(file)?);
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let mut written = 0;
    for batch in entries.chunks(threads * 64) {
        let next = AtomicUsize::new(0);
        let done = Mutex::new(Vec::new());
        std::thread::scope(|scope| {
            for _ in 0..threads {
                scope.spawn(|| {
                    while let Some(entry) = batch.get(next.fetch_add(1, Ordering::Relaxed)) {
                        let texts = texts(entry, embedder);
                        done.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push((entry.id.clone(), texts));
                    }
                });
            }
        });
        let mut done = done.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
        done.sort_by(|a, b| a.0.cmp(&b.0));
        for text in done.into_iter().flat_map(|(_, texts)| texts) {
            serde_json::to_writer(&mut out, &text)?;
            out.write_all(b"\n")?;
            written += 1;
        }
        eprint!("\rbench: {written} of {wanted} chunks");
        if written >= wanted {
            break;
        }
    }
    eprintln!();
    Ok(out.flush()?)
}

/// The chunks of a document; none when it cannot be read.
fn texts(entry: &ingest::FoundFile, embedder: &Embedder) -> Vec<Piece> {
    let Ok(source) = ingest::load(entry, DEFAULT_MAX_DOCUMENT_BYTES) else { return Vec::new() };
    let Ok(reading) = read::read(Source { id: entry.id.clone(), ..source }.original()) else { return Vec::new() };
    let count = |text: &str| embedder.count_tokens(text);
    let text = |chunk: ingest::TextChunk| Piece {
        all: [std::slice::from_ref(&reading.title), &chunk.heading, std::slice::from_ref(&chunk.text)].concat().join("\n"),
        document: entry.id.clone(),
        title: reading.title.clone(),
        heading: chunk.heading,
        page: chunk.page,
        text: chunk.text,
        tokens: chunk.tokens,
    };
    ingest::chunk(&reading, DEFAULT_MAX_TOKENS, &count).map(text).collect()
}
