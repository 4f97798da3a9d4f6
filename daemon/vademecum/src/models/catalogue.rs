//! The known models. `config/models.toml` is compiled in; files of the same form in `models.d` add to it.

use super::room;
use llm::llama::Memory;
use serde::{Deserialize, Serialize};
use std::io::Read;
use std::path::{Path, PathBuf};

const SHIPPED: &str = include_str!("../../../../config/models.toml");

/// Largest file in `models.d`.
const MAX_FILE_BYTES: u64 = 1 << 20;
/// Most files in `models.d`.
const MAX_FILES: usize = 100;

/// A fault of a catalogue file, with the remedy.
#[derive(Debug, thiserror::Error)]
#[error("{path}: {problem}; config/models.toml of the sources describes the form", path = path.display())]
pub struct CatalogueError {
    /// The file.
    pub path: PathBuf,
    /// The fault.
    pub problem: String,
}

/// The purpose of a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Writes text.
    Generator,
    /// Turns text into vectors.
    Encoder,
}

/// A known model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Model {
    /// The name on the command line.
    pub name: String,
    /// Its purpose.
    pub kind: Kind,
    /// The repository on the hub: `owner/name`.
    pub repository: String,
    /// Name of the GGUF file.
    pub file: String,
    /// Files of the repository that `file` is made from; empty: the repository holds `file`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub convert: Vec<String>,
    /// Bytes of the download.
    pub bytes: u64,
    /// SHA-256 of `file`, or of `model.safetensors` when it is converted. `None`: not known for certain.
    pub sha256: Option<String>,
    /// Licence of the weights.
    pub licence: String,
    /// Memory that answers need, in MB (10^6 bytes).
    pub memory_mb: u64,
    /// Languages, for people.
    pub languages: String,
    /// Boards, for people.
    pub boards: String,
    /// The encoder that belongs to a generator.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub encoder: Option<String>,
    /// Memory of a machine in MB from which on this generator is recommended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recommended_from_mb: Option<u64>,
}

impl Model {
    /// Whether the model fits the memory.
    pub fn fits(&self, memory: &Memory) -> bool {
        self.memory_mb.saturating_mul(1_000_000) <= room::room(memory)
    }

    /// The fault of this entry, if it has one.
    fn problem(&self) -> Option<String> {
        let plain = |text: &str| {
            let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
            !text.is_empty() && text.len() <= 200 && !text.starts_with('.') && text.chars().all(allowed)
        };
        let path = |text: &str| text.split('/').count() <= 4 && text.split('/').all(plain);
        let what = match self {
            Self { name, .. } if !plain(name) || name.chars().any(char::is_uppercase) => {
                "name: letters a to z, digits, dots and hyphens only"
            }
            Self { repository, .. } if repository.split('/').count() != 2 || !path(repository) => "repository: write owner/name",
            Self { file, .. } if !plain(file) || !is_gguf(file) => "file: a plain name that ends in .gguf",
            Self { convert, .. } if convert.len() > 50 || !convert.iter().all(|part| path(part)) => {
                "convert: plain paths inside the repository"
            }
            Self { sha256: Some(sum), .. } if !is_sha256(sum) => "sha256: 64 lower-case hexadecimal digits",
            Self { bytes: 0, .. } | Self { memory_mb: 0, .. } => "bytes and memory_mb: numbers above 0",
            _ => return None,
        };
        Some(format!("model `{}` has a wrong {what}", self.name.escape_debug()))
    }
}

/// Whether a file name has the ending of a model file.
pub fn is_gguf(name: &str) -> bool {
    Path::new(name).extension().is_some_and(|ending| ending.eq_ignore_ascii_case("gguf"))
}

/// Whether a text is a SHA-256 in lower-case hexadecimal digits.
pub fn is_sha256(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

/// The form of a catalogue file.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    #[serde(default)]
    model: Vec<Model>,
}

/// The known models, in the order of their files.
#[derive(Debug, Clone)]
pub struct Catalogue {
    models: Vec<Model>,
}

impl Catalogue {
    /// The shipped models and those of `*.toml` in `dir`, by name. An entry of `dir` replaces a shipped one of its name.
    ///
    /// # Errors
    /// A file cannot be read or has a wrong form.
    pub fn load(dir: &Path) -> Result<Self, CatalogueError> {
        let mut catalogue = Self { models: Vec::new() };
        catalogue.add(Path::new("config/models.toml"), SHIPPED)?;
        let mut files: Vec<PathBuf> = std::fs::read_dir(dir)
            .map(|found| found.flatten().map(|entry| entry.path()).filter(|path| path.extension().is_some_and(|e| e == "toml")))
            .map(Iterator::collect)
            .unwrap_or_default();
        files.sort();
        for path in files.iter().take(MAX_FILES) {
            let fails = |problem: String| CatalogueError { path: path.clone(), problem };
            let file = std::fs::File::open(path).map_err(|error| fails(error.to_string()))?;
            let mut text = String::new();
            file.take(MAX_FILE_BYTES + 1).read_to_string(&mut text).map_err(|error| fails(error.to_string()))?;
            if text.len() as u64 > MAX_FILE_BYTES {
                return Err(fails(format!("it has more than {MAX_FILE_BYTES} bytes")));
            }
            catalogue.add(path, &text)?;
        }
        for model in &catalogue.models {
            if let Some(encoder) =
                model.encoder.as_deref().filter(|name| catalogue.get(name).is_none_or(|m| m.kind != Kind::Encoder))
            {
                let problem = format!("model `{}` names the encoder `{encoder}`, which no entry describes", model.name);
                return Err(CatalogueError { path: dir.to_owned(), problem });
            }
        }
        Ok(catalogue)
    }

    fn add(&mut self, path: &Path, text: &str) -> Result<(), CatalogueError> {
        let fails = |problem: String| CatalogueError { path: path.to_owned(), problem };
        let written: Written = toml::from_str(text).map_err(|error| fails(error.to_string()))?;
        for model in written.model {
            if let Some(problem) = model.problem() {
                return Err(fails(problem));
            }
            match self.models.iter_mut().find(|known| known.name == model.name) {
                Some(known) => *known = model,
                None => self.models.push(model),
            }
        }
        Ok(())
    }

    /// All models, generators first.
    pub fn models(&self) -> impl Iterator<Item = &Model> {
        let of = |kind| self.models.iter().filter(move |model| model.kind == kind);
        of(Kind::Generator).chain(of(Kind::Encoder))
    }

    /// The model of this name.
    pub fn get(&self, name: &str) -> Option<&Model> {
        self.models.iter().find(|model| model.name == name)
    }

    /// The generator to take on a machine with this memory: of those that fit, the one recommended from the most memory on.
    pub fn recommended(&self, memory: &Memory) -> Option<&Model> {
        let from = |model: &&Model| model.recommended_from_mb.filter(|from| memory.total / 1_000_000 >= *from);
        let fitting = self.models.iter().filter(|model| model.kind == Kind::Generator && model.fits(memory));
        fitting.filter(|model| from(model).is_some()).max_by_key(from)
    }

    /// Names that resemble `name`, for a hint.
    pub fn similar(&self, name: &str) -> Vec<&str> {
        let name = name.to_ascii_lowercase();
        let head = name.split(['-', '_', ':']).next().unwrap_or_default();
        self.models.iter().map(|model| model.name.as_str()).filter(|known| !head.is_empty() && known.contains(head)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shipped() -> Catalogue {
        Catalogue::load(Path::new("/nonexistent")).expect("the shipped catalogue is right")
    }

    fn memory(mib: u64) -> Memory {
        Memory { total: mib << 20, available: mib << 20 }
    }

    #[test]
    fn shipped_entries_are_whole() {
        let written: Written = toml::from_str(SHIPPED).expect("TOML");
        let mut names: Vec<&str> = written.model.iter().map(|model| model.name.as_str()).collect();
        let mut files: Vec<&str> = written.model.iter().map(|model| model.file.as_str()).collect();
        for list in [&mut names, &mut files] {
            let count = list.len();
            list.sort_unstable();
            list.dedup();
            assert_eq!(list.len(), count, "twice in the catalogue: {list:?}");
        }
        for model in shipped().models() {
            assert_eq!(model.problem(), None);
            // Weights are mapped: the memory holds the file and more. An encoder is quantised when it is converted.
            assert!(!model.convert.is_empty() || model.memory_mb * 1_000_000 > model.bytes + 100_000_000, "{}", model.name);
            assert!(model.kind == Kind::Encoder || model.encoder.is_some(), "{} belongs to an encoder", model.name);
        }
        assert!(written.model.iter().filter(|model| model.sha256.is_some()).count() >= 8);
    }

    #[test]
    fn sums_are_those_of_the_setup_script() {
        let setup = include_str!("../../../../config/setup/setup.sh");
        let artifacts = include_str!("../../../../config/setup/artifacts.txt");
        for name in ["qwen2.5-coder-0.5b", "qwen2.5-coder-1.5b"] {
            let sum = shipped().get(name).and_then(|model| model.sha256.clone()).expect("a sum");
            assert!(setup.contains(&format!("\"{name} {sum}\"")), "{name}");
        }
        for name in ["smollm2-135m", "all-minilm-l6-v2"] {
            let sum = shipped().get(name).and_then(|model| model.sha256.clone()).expect("a sum");
            assert!(artifacts.contains(&sum), "{name}");
        }
    }

    #[test]
    fn the_recommendation_follows_the_memory() {
        let catalogue = shipped();
        let name = |mib| catalogue.recommended(&memory(mib)).map(|model| model.name.as_str());
        // Memory as boards of 512 MB, 1, 2, 4 and 8 GB report it.
        assert_eq!(
            [425, 905, 1849, 3792, 7935].map(name),
            [
                Some("smollm2-135m"),
                Some("smollm2-135m"),
                Some("qwen2.5-coder-0.5b"),
                Some("qwen2.5-coder-1.5b"),
                Some("qwen2.5-coder-1.5b"),
            ]
        );
        assert_eq!(name(200), None);
        let large = catalogue.get("qwen2.5-3b").expect("listed");
        assert!(!large.fits(&memory(1849)) && large.fits(&memory(3792)));
    }

    #[test]
    fn a_folder_adds_and_replaces() {
        let dir = tempfile::tempdir().expect("a folder");
        let entry = |name: &str, more: &str| {
            format!(
                "[[model]]\nname = \"{name}\"\nkind = \"generator\"\nrepository = \"o/r\"\nfile = \"a.gguf\"\nbytes = 1\n\
                 licence = \"MIT\"\nmemory_mb = 7\nlanguages = \"English\"\nboards = \"mine\"\n{more}"
            )
        };
        let file = dir.path().join("own.toml");
        std::fs::write(&file, entry("own", "") + &entry("qwen2.5-0.5b", "")).expect("written");
        std::fs::write(dir.path().join("notes.txt"), "no catalogue").expect("written");
        let catalogue = Catalogue::load(dir.path()).expect("loads");
        assert_eq!(catalogue.models().count(), shipped().models().count() + 1);
        assert_eq!(catalogue.get("qwen2.5-0.5b").map(|model| model.memory_mb), Some(7));
        for (text, expected) in [
            (entry("own", "colour = \"red\"\n"), "unknown field `colour`"),
            (entry("own", "sha256 = \"abc\"\n"), "64 lower-case hexadecimal digits"),
            (entry("../own", ""), "letters a to z"),
            (entry("own", "encoder = \"none\"\n"), "names the encoder `none`"),
            (entry("own", "convert = [\"../secret\"]\n"), "plain paths"),
        ] {
            std::fs::write(&file, text).expect("written");
            let error = Catalogue::load(dir.path()).expect_err(expected).to_string();
            assert!(error.contains(expected) && error.contains(&dir.path().display().to_string()), "{error}");
        }
    }

    #[test]
    fn a_wrong_name_is_answered_with_similar_ones() {
        assert!(shipped().similar("qwen2.5:1.5b").contains(&"qwen2.5-1.5b"));
        assert!(shipped().similar("").is_empty());
    }
}
