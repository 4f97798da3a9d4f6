//! From paths on a command line to documents: files, folders, standard input.

use std::{
    collections::{BTreeMap, HashSet},
    fmt,
    fs::{File, Metadata},
    io::Read,
    path::{Path, PathBuf},
    time::UNIX_EPOCH,
};

use globset::{GlobBuilder, GlobSet, GlobSetBuilder};
use serde::Serialize;
use walkdir::{DirEntry, WalkDir};

use super::{IngestError, Source, check_id};

/// Globs of the files taken from a folder when none are given.
pub fn default_globs() -> Vec<String> {
    let extensions = read::formats::FORMATS.iter().flat_map(|format| format.extensions);
    extensions.flat_map(|extension| [format!("*.{extension}"), format!("*.{extension}.gz")]).collect()
}

/// Most endings that are counted apart, and most files that are named.
const MAX_ENDINGS: usize = 50;
const MAX_NAMES: usize = 20;

/// Most endings and names in a message.
const MAX_TOLD_ENDINGS: usize = 8;
const MAX_TOLD_NAMES: usize = 5;

/// Files in folders that are not taken, because their names match none of the globs. Hidden and excluded files do not count.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct PassedOver {
    /// Number of files.
    pub count: u64,
    /// Files by the ending of their names, in small letters; empty for a name without one. At most 50, the rest is under `…`.
    pub endings: BTreeMap<String, u64>,
    /// Paths below their folder; the first 20.
    pub names: Vec<String>,
}

impl PassedOver {
    fn add(&mut self, id: &str) {
        let name = id.rsplit('/').next().unwrap_or(id);
        let ending = name
            .rsplit_once('.')
            .filter(|(stem, _)| !stem.is_empty())
            .map_or_else(String::new, |(_, ending)| ending.to_lowercase());
        let known = self.endings.contains_key(&ending) || self.endings.len() < MAX_ENDINGS;
        *self.endings.entry(if known { ending } else { "…".into() }).or_default() += 1;
        self.count += 1;
        if self.names.len() < MAX_NAMES {
            self.names.push(id.to_owned());
        }
    }
}

impl fmt::Display for PassedOver {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut endings: Vec<(&String, &u64)> = self.endings.iter().collect();
        endings.sort_by_key(|(_, count)| std::cmp::Reverse(**count));
        let ending = |(ending, count): &(&String, &u64)| match ending.as_str() {
            "" => format!("{count} without an ending"),
            "…" => format!("{count} others"),
            ending => format!("{count} .{ending}"),
        };
        let mut told: Vec<String> = endings.iter().take(MAX_TOLD_ENDINGS).map(ending).collect();
        let rest: u64 = endings.iter().skip(MAX_TOLD_ENDINGS).map(|(_, count)| **count).sum();
        if rest > 0 {
            told.push(format!("{rest} others"));
        }
        let names = self.names.iter().take(MAX_TOLD_NAMES).map(String::as_str).collect::<Vec<_>>().join(", ");
        let more = self.count - self.names.len().min(MAX_TOLD_NAMES) as u64;
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        write!(out, "{} passed over ({}): {names}{more}", super::counted(self.count, "file"), told.join(", "))
    }
}

/// The path that stands for standard input.
const STDIN: &str = "-";

/// One document found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FoundFile {
    /// Its path; `-` is standard input.
    pub path: PathBuf,
    /// Its id: the path below the folder given, parted by `/`, or the name of the file given.
    pub id: String,
    /// Size in bytes at that time; 0 for standard input.
    pub bytes: u64,
    /// Time of the last change, in milliseconds since 1970; 0 for standard input.
    pub modified_ms: u64,
}

/// The result of a walk.
#[derive(Debug, Default)]
pub struct Walk {
    /// Documents, by folder in the order of their names.
    pub entries: Vec<FoundFile>,
    /// Paths that cannot be read or would have the id of another: path and reason.
    pub failed: Vec<(String, String)>,
    /// Folders that were searched.
    pub folders: Vec<PathBuf>,
    /// Files that no glob takes.
    pub passed_over: PassedOver,
}

/// Globs that tell which files of a folder are documents.
#[derive(Debug, Clone)]
pub(super) struct Wanted {
    include: GlobSet,
    exclude: GlobSet,
}

impl Wanted {
    /// Files of a folder that [`walk`] takes with these globs.
    ///
    /// # Errors
    /// [`IngestError::BadGlob`].
    pub(super) fn new(include: &[String], exclude: &[String]) -> Result<Self, IngestError> {
        let include = if include.is_empty() { globs(&default_globs()) } else { globs(include) }?;
        Ok(Self { include, exclude: globs(exclude)? })
    }

    /// Finds the documents at or below `from`, a path in the folder `root`, on the folder's own file system.
    pub(super) fn below(&self, root: &Path, from: &Path) -> Walk {
        let mut walk = Walk::default();
        let passed = |path: &Path| path == root || self.passes(root, path);
        // A missing path is no failure. Files in an excluded folder are excluded too.
        if from.symlink_metadata().is_ok() && from.ancestors().take_while(|path| path.starts_with(root)).all(passed) {
            let tree = WalkDir::new(from).same_file_system(true).follow_root_links(from == root);
            walk.add_folder(tree, root, self, &mut HashSet::new());
        }
        walk
    }

    /// Whether neither the last part of the path is hidden nor the path excluded.
    fn passes(&self, root: &Path, path: &Path) -> bool {
        let hidden = path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
        !hidden && !self.exclude.is_match(below(root, path))
    }
}

/// Finds documents. A named file is taken whatever its name. A folder is searched with all below it for files that match
/// `include` ([`default_globs`] when empty) and not `exclude`. A glob without `/` matches names at any depth, one with `/` the
/// path below the folder. Case is ignored. Hidden files, links to folders and links that lead out of the folder are left out:
/// the caller did not name their targets.
///
/// # Errors
/// [`IngestError::BadGlob`]. A path that cannot be read is in [`Walk::failed`].
pub fn walk(paths: &[PathBuf], include: &[String], exclude: &[String]) -> Result<Walk, IngestError> {
    let wanted = Wanted::new(include, exclude)?;
    let mut walk = Walk::default();
    let mut ids = HashSet::new();
    for path in paths {
        if path.as_os_str() == STDIN {
            walk.add(FoundFile { path: path.clone(), id: "stdin".into(), bytes: 0, modified_ms: 0 }, &mut ids);
            continue;
        }
        match std::fs::metadata(path) {
            Ok(metadata) if metadata.is_dir() => {
                walk.add_folder(WalkDir::new(path), path, &wanted, &mut ids);
            }
            Ok(metadata) => {
                let id = path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned();
                walk.add(entry(path.clone(), id, &metadata), &mut ids);
            }
            Err(error) => {
                let reason = format!("{error}; check that it exists and may be read");
                walk.failed.push((path.display().to_string(), reason));
            }
        }
    }
    Ok(walk)
}

impl Walk {
    fn add(&mut self, entry: FoundFile, ids: &mut HashSet<String>) {
        if let Err(error) = check_id(&entry.id) {
            self.failed.push((entry.path.display().to_string(), error.to_string()));
        } else if ids.insert(entry.id.clone()) {
            self.entries.push(entry);
        } else {
            let reason = format!("another document here is called {:?} too; ingest it on its own or rename it", entry.id);
            self.failed.push((entry.path.display().to_string(), reason));
        }
    }

    /// Adds the documents in `tree`, a part of the folder `root`.
    fn add_folder(&mut self, tree: WalkDir, root: &Path, wanted: &Wanted, ids: &mut HashSet<String>) {
        let passes = |found: &DirEntry| found.depth() == 0 || wanted.passes(root, found.path());
        for found in tree.sort_by_file_name().into_iter().filter_entry(passes) {
            match found {
                Ok(found) if found.file_type().is_dir() => self.folders.push(found.into_path()),
                Ok(found) => {
                    let id = below(root, found.path());
                    // Follow a link to a file. A pipe or a device would block.
                    if let Ok(metadata) = std::fs::metadata(found.path())
                        && metadata.is_file()
                        && (!found.path_is_symlink() || leads_inside(root, found.path()))
                    {
                        if wanted.include.is_match(&id) {
                            self.add(entry(found.into_path(), id, &metadata), ids);
                        } else {
                            self.passed_over.add(&id);
                        }
                    }
                }
                Err(error) => {
                    let path = error.path().unwrap_or(root).display().to_string();
                    self.failed.push((path, error.to_string()));
                }
            }
        }
    }
}

fn entry(path: PathBuf, id: String, metadata: &Metadata) -> FoundFile {
    FoundFile { path, id, bytes: metadata.len(), modified_ms: modified_ms(metadata) }
}

/// Whether a link's target lies in the folder.
fn leads_inside(root: &Path, link: &Path) -> bool {
    matches!((root.canonicalize(), link.canonicalize()), (Ok(root), Ok(target)) if target.starts_with(&root))
}

/// Time of a file's last change, in milliseconds since 1970.
pub(super) fn modified_ms(metadata: &Metadata) -> u64 {
    let since = metadata.modified().ok().and_then(|time| time.duration_since(UNIX_EPOCH).ok());
    since.map_or(0, |since| since.as_millis() as u64)
}

/// Reads one document, at most `max_bytes` of it.
///
/// # Errors
/// [`IngestError::Io`], [`IngestError::TooLarge`].
pub fn load(entry: &FoundFile, max_bytes: u64) -> Result<Source, IngestError> {
    let io = |source| IngestError::Io { path: entry.path.clone(), source };
    let mut bytes = Vec::new();
    let from_stdin = entry.path.as_os_str() == STDIN;
    let read = if from_stdin {
        std::io::stdin().lock().take(max_bytes + 1).read_to_end(&mut bytes)
    } else {
        File::open(&entry.path).and_then(|file| file.take(max_bytes + 1).read_to_end(&mut bytes))
    };
    if read.map_err(io)? as u64 > max_bytes {
        return Err(IngestError::TooLarge { id: entry.id.clone(), limit: max_bytes });
    }
    let name = if from_stdin { String::new() } else { entry.id.clone() };
    Ok(Source { id: entry.id.clone(), name, bytes, ..Source::default() })
}

/// `path` below `root`, parted by `/`.
fn below(root: &Path, path: &Path) -> String {
    let relative = path.strip_prefix(root).unwrap_or(path);
    relative.iter().map(|part| part.to_string_lossy()).collect::<Vec<_>>().join("/")
}

/// Checks the syntax of a glob.
///
/// # Errors
/// The fault.
pub fn check_glob(glob: &str) -> Result<String, String> {
    match globs(&[glob.to_owned()]) {
        Ok(_) => Ok(glob.to_owned()),
        Err(error) => Err(error.to_string()),
    }
}

fn globs(patterns: &[String]) -> Result<GlobSet, IngestError> {
    let bad = |glob: &str, error: &globset::Error| IngestError::BadGlob { glob: glob.into(), reason: error.kind().to_string() };
    let mut set = GlobSetBuilder::new();
    for pattern in patterns {
        let anchored = if pattern.contains('/') { pattern.trim_start_matches('/').to_owned() } else { format!("**/{pattern}") };
        let glob = GlobBuilder::new(&anchored).literal_separator(true).case_insensitive(true).build();
        set.add(glob.map_err(|error| bad(pattern, &error))?);
    }
    set.build().map_err(|error| bad(&patterns.join(" "), &error))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn folder() -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for (path, text) in [
            ("b.md", "b"),
            ("a.TXT", "aa"),
            ("photo.png", "p"),
            ("man1/ls.1", "m"),
            ("book.dbk", "d"),
            (".hidden.md", "h"),
            (".git/x.md", "g"),
            ("deep/er/c.html", "c"),
            ("deep/b.md", "b"),
            ("drafts/d.md", "d"),
        ] {
            let path = folder.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        folder
    }

    fn ids(walk: &Walk) -> Vec<&str> {
        walk.entries.iter().map(|entry| entry.id.as_str()).collect()
    }

    fn strings(list: &[&str]) -> Vec<String> {
        list.iter().map(|&item| item.into()).collect()
    }

    #[test]
    fn folders_are_searched_with_globs() {
        let folder = folder();
        let root = [folder.path().to_path_buf()];
        let found = |include: &[&str], exclude: &[&str]| {
            let walk = walk(&root, &strings(include), &strings(exclude)).unwrap();
            assert!(walk.failed.is_empty());
            ids(&walk).join(" ")
        };
        assert_eq!(found(&[], &[]), "a.TXT b.md deep/b.md deep/er/c.html drafts/d.md");
        assert_eq!(found(&["*.md"], &["drafts"]), "b.md deep/b.md");
        assert_eq!(found(&["deep/*.md"], &[]), "deep/b.md");
        assert_eq!(found(&["deep/**"], &["deep/er/**"]), "deep/b.md");
        assert!(matches!(walk(&root, &strings(&["[a"]), &[]), Err(IngestError::BadGlob { .. })));
    }

    #[cfg(unix)]
    #[test]
    fn only_links_inside_the_folder_are_followed() {
        use std::os::unix::fs::symlink;
        let (folder, elsewhere) = (folder(), tempfile::tempdir().unwrap());
        let secret = elsewhere.path().join("secret.md");
        fs::write(&secret, "secret").unwrap();
        symlink(folder.path(), folder.path().join("loop")).unwrap();
        symlink(folder.path().join("b.md"), folder.path().join("link.md")).unwrap();
        symlink(&secret, folder.path().join("outside.md")).unwrap();
        symlink("nowhere.md", folder.path().join("dangling.md")).unwrap();
        // A named link is followed wherever it leads.
        let named = walk(&[folder.path().join("outside.md")], &[], &[]).unwrap();
        assert_eq!(ids(&named), ["outside.md"]);
        let linked = elsewhere.path().join("linked");
        symlink(folder.path().join("deep"), &linked).unwrap();
        assert_eq!(ids(&walk(&[linked], &strings(&["*.md"]), &[]).unwrap()), ["b.md"]);
        let walk = walk(&[folder.path().to_path_buf()], &strings(&["*.md"]), &[]).unwrap();
        assert_eq!(ids(&walk), ["b.md", "deep/b.md", "drafts/d.md", "link.md"]);
    }

    #[test]
    fn files_that_are_passed_over_are_counted_and_named() {
        let folder = folder();
        let root = [folder.path().to_path_buf()];
        let found = walk(&root, &[], &strings(&["drafts"])).unwrap().passed_over;
        assert_eq!((found.count, found.names.join(" ")), (3, "book.dbk man1/ls.1 photo.png".into()));
        assert_eq!(found.to_string(), "3 files passed over (1 .1, 1 .dbk, 1 .png): book.dbk, man1/ls.1, photo.png");
        assert_eq!(walk(&root, &strings(&["*"]), &[]).unwrap().passed_over, PassedOver::default());
        let mut many = PassedOver::default();
        (0..1000).for_each(|n| many.add(&format!("a.{}", n % 100)));
        (0..7).for_each(|_| many.add("b/README"));
        assert_eq!((many.count, many.endings.len(), many.names.len()), (1007, MAX_ENDINGS + 1, MAX_NAMES));
        assert_eq!(many.endings.values().sum::<u64>(), many.count);
        assert!(many.to_string().ends_with("a.0, a.1, a.2, a.3, a.4 and 1002 more"), "{many}");
    }

    #[test]
    fn files_are_taken_by_name_twins_reported() {
        let folder = folder();
        let paths = [
            folder.path().join("photo.png"),
            folder.path().join("b.md"),
            folder.path().join("deep/b.md"),
            folder.path().join("none"),
        ];
        let walk = walk(&paths, &[], &[]).unwrap();
        assert_eq!(ids(&walk), ["photo.png", "b.md"]);
        assert_eq!(walk.failed.len(), 2);
        assert!(walk.failed[0].1.contains("b.md"));
    }

    #[test]
    fn size_is_bounded() {
        let folder = folder();
        let entry = FoundFile { path: folder.path().join("a.TXT"), id: "a.TXT".into(), bytes: 2, modified_ms: 0 };
        assert_eq!(load(&entry, 2).unwrap().bytes, b"aa");
        assert!(matches!(load(&entry, 1), Err(IngestError::TooLarge { limit: 1, .. })));
        let gone = FoundFile { path: folder.path().join("gone"), ..entry };
        assert!(load(&gone, 1).unwrap_err().to_string().contains("gone"));
    }
}
