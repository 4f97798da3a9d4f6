//! Writes the extra files of a package: manual pages, shell completions, and the licences of all linked crates.
//!
//! ```text
//! cargo run --release --example packaging -- OUT [TARGET]
//! ```
//!
//! `OUT` gets `man/`, `completions/` and `copyright`. `TARGET` is the target platform; the default is this one.

use clap::ValueEnum;
use clap_complete::Shell;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::error::Error;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

type Outcome<T> = Result<T, Box<dyn Error>>;

fn main() -> Outcome<()> {
    let mut arguments = std::env::args().skip(1);
    let out = PathBuf::from(arguments.next().ok_or("usage: packaging OUT [TARGET]")?);
    let target = arguments.next().unwrap_or_else(|| format!("{}-unknown-linux-gnu", std::env::consts::ARCH));
    let (man, completions) = (out.join("man"), out.join("completions"));
    std::fs::create_dir_all(&man)?;
    std::fs::create_dir_all(&completions)?;
    clap_mangen::generate_to(vademecum::cli::command(), &man)?;
    for shell in Shell::value_variants() {
        clap_complete::generate_to(*shell, &mut vademecum::cli::command(), "vademecum", &completions)?;
    }
    std::fs::write(out.join("copyright"), copyright(&linked(&target)?)?)?;
    Ok(())
}

/// A crate linked into the program.
struct Linked {
    name: String,
    version: String,
    licence: String,
    dir: PathBuf,
}

/// The linked crates: all dependencies except build-time ones.
fn linked(target: &str) -> Outcome<Vec<Linked>> {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml");
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command.args(["metadata", "--format-version", "1", "--locked", "--filter-platform", target, "--manifest-path"]).arg(manifest);
    let output = command.output()?;
    if !output.status.success() {
        return Err(format!("cargo metadata: {}", String::from_utf8_lossy(&output.stderr)).into());
    }
    let metadata: Value = serde_json::from_slice(&output.stdout)?;
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let packages: BTreeMap<String, Value> =
        list(&metadata["packages"]).into_iter().map(|package| (text(&package["id"]), package)).collect();
    let nodes: BTreeMap<String, Value> =
        list(&metadata["resolve"]["nodes"]).into_iter().map(|node| (text(&node["id"]), node)).collect();
    let is_macro =
        |id: &str| list(&packages[id]["targets"]).iter().any(|target| list(&target["kind"]).contains(&"proc-macro".into()));
    let own = packages.iter().find(|(_, package)| package["name"] == "vademecum").ok_or("vademecum is not in the workspace")?.0;
    let (mut seen, mut open) = (BTreeSet::new(), vec![own.clone()]);
    while let Some(id) = open.pop() {
        if is_macro(&id) || !seen.insert(id.clone()) {
            continue;
        }
        let normal = |dep: &&Value| list(&dep["dep_kinds"]).iter().any(|kind| kind["kind"].is_null());
        open.extend(list(&nodes[&id]["deps"]).iter().filter(normal).map(|dep| text(&dep["pkg"])));
    }
    let found = |id: &String| {
        let package = &packages[id];
        let dir = PathBuf::from(text(&package["manifest_path"])).parent().map(Path::to_owned).unwrap_or_default();
        Linked { name: text(&package["name"]), version: text(&package["version"]), licence: text(&package["license"]), dir }
    };
    let mut linked: Vec<Linked> = seen.iter().map(found).filter(|one| !is_ours(&one.name)).collect();
    linked.sort_by(|a, b| (&a.name, &a.version).cmp(&(&b.name, &b.version)));
    Ok(linked)
}

/// The program and its rooms: their licence heads the file.
fn is_ours(name: &str) -> bool {
    name == "vademecum" || name.starts_with("vademecum-")
}

/// A licence's text without its copyright notices.
struct Terms {
    text: String,
    /// The crates under this licence, each with its notices.
    holders: BTreeMap<String, BTreeSet<String>>,
}

fn copyright(linked: &[Linked]) -> Outcome<String> {
    let mut out = String::from(
        "vademecum: https://crates.io/crates/vademecum\n\n\
         Copyright: 2026 The Vademecum contributors\n\
         License: Apache-2.0 or MIT, as you like. On Debian the Apache License stands in\n\
         /usr/share/common-licenses/Apache-2.0, the MIT license below.\n\n\
         The program and its libraries hold the Rust standard library (MIT or Apache-2.0,\n\
         The Rust Project Contributors), LLVM's libc++, libc++abi and libunwind (Apache-2.0\n\
         with LLVM exceptions, the LLVM contributors), llama.cpp (in llama-cpp-sys-2) and\n\
         these crates, each under the licences named:\n\n",
    );
    let mut all: BTreeMap<String, Terms> = BTreeMap::new();
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).ok_or("no workspace")?;
    let mit = root.join("LICENSE-MIT");
    add(&mut all, "vademecum", &mit);
    for one in linked {
        let name = format!("{} {}", one.name, one.version);
        writeln!(out, "  {name}: {}", one.licence)?;
        let mut files = Vec::new();
        licence_files(&one.dir, 0, &mut files);
        for file in files {
            add(&mut all, &name, &file);
        }
    }
    let mut terms: Vec<Terms> = all.into_values().collect();
    terms.sort_by_key(|terms| std::cmp::Reverse(terms.holders.len()));
    for Terms { text, holders } in terms {
        out.push_str("\n------------------------------------------------------------------------\n\n");
        for (name, notices) in holders {
            writeln!(out, "{name}")?;
            for notice in notices {
                writeln!(out, "    {notice}")?;
            }
        }
        writeln!(out, "\n{text}")?;
    }
    Ok(out)
}

fn add(all: &mut BTreeMap<String, Terms>, name: &str, file: &Path) {
    let Ok(bytes) = std::fs::read(file) else { return };
    let whole = String::from_utf8_lossy(&bytes);
    let is_notice = |line: &&str| {
        let line = line.trim().to_lowercase();
        (line.starts_with("copyright") || line.starts_with("(c)") || line.starts_with('©'))
            && line.contains(|c: char| c.is_ascii_digit() || c == '©')
    };
    let notices = whole.lines().filter(is_notice).map(|line| line.trim().to_owned());
    let text: Vec<&str> = whole.lines().filter(|line| !is_notice(line)).collect();
    let (key, text) = if whole.contains("Apache License") && whole.contains("Version 2.0, January 2004") && whole.len() > 8000 {
        ("apache".to_owned(), "Apache License, Version 2.0: see /usr/share/common-licenses/Apache-2.0".to_owned())
    } else if whole.contains("Mozilla Public License Version 2.0") && whole.len() > 8000 {
        ("mpl".to_owned(), "Mozilla Public License, Version 2.0: see /usr/share/common-licenses/MPL-2.0".to_owned())
    } else {
        let words: Vec<&str> = text.iter().flat_map(|line| line.split_whitespace()).collect();
        (words.join(" ").to_lowercase(), text.join("\n").trim().to_owned())
    };
    let terms = all.entry(key).or_insert_with(|| Terms { text, holders: BTreeMap::new() });
    terms.holders.entry(name.to_owned()).or_default().extend(notices);
}

/// The files with licences and notices in a crate, including its bundled sources.
fn licence_files(dir: &Path, depth: usize, found: &mut Vec<PathBuf>) {
    let Ok(entries) = std::fs::read_dir(dir) else { return };
    let mut entries: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    entries.sort();
    for path in entries {
        let name = path.file_name().unwrap_or_default().to_string_lossy().to_lowercase();
        let skipped = [
            "tests",
            "test",
            "test_data",
            "testdata",
            "examples",
            "benches",
            "docs",
            "target",
            "models",
            ".git",
            "gguf-py",
            "scripts",
            "tools",
        ];
        if path.is_dir() && depth < 4 && !skipped.contains(&name.as_str()) {
            licence_files(&path, depth + 1, found);
        } else if path.is_file()
            && ["license", "licence", "copying", "notice", "unlicense", "copyright"].iter().any(|word| name.starts_with(word))
            && path.extension().is_none_or(|ending| ending != "rs" && ending != "hbs")
        {
            found.push(path);
        }
    }
}
