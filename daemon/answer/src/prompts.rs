//! Prompts as data: one file for a group of models (`config/prompts/*.toml`). The owner's files go before the built-in ones.

use crate::Strategy;
use crate::languages::{Kind, Languages};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::io::Read as _;
use std::path::{Path, PathBuf};

/// The built-in prompts, in the order in which they are tried.
const BUILT_IN: [(&str, &str); 3] = [
    ("chat", include_str!("../../../config/prompts/chat.toml")),
    ("small", include_str!("../../../config/prompts/small.toml")),
    ("base", include_str!("../../../config/prompts/base.toml")),
];

/// The built-in words of languages.
pub(super) const LANGUAGES: &str = include_str!("../../../config/prompts/languages.toml");

/// The file of the owner's words of languages.
const LANGUAGES_FILE: &str = "languages.toml";

/// Longest prompt file in bytes.
const MAX_BYTES: u64 = 1 << 20;

/// The reason why a prompt file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum PromptError {
    /// The file or the folder cannot be read.
    #[error("{}: {source}; correct answer.prompts, or leave it empty for the built-in prompts", path.display())]
    Read {
        /// The file or folder.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// The file breaks the format.
    #[error("{}: {reason}; docs/models.md describes prompt files", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// Its fault.
        reason: String,
    },
}

/// The models that a prompt file is for.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct Models {
    #[serde(default)]
    architectures: Vec<String>,
    #[serde(default)]
    least_parameters: u64,
    #[serde(default = "any")]
    most_parameters: u64,
    chat_template: Option<bool>,
}

fn any() -> u64 {
    u64::MAX
}

/// The texts around passages and question. `{heading}`, `{text}`, `{question}` and `{language}` are filled in.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct Frame {
    strategy: Strategy,
    #[serde(default)]
    quoted: Vec<Kind>,
    #[serde(default)]
    narrow: Vec<Kind>,
    #[serde(default)]
    copied: Vec<Kind>,
    system: String,
    passage: String,
    question: String,
    #[serde(default)]
    answer_in: String,
}

/// The first words of an answer that agrees or denies.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Verdict {
    /// Least weights of a model that is asked; smaller ones quote.
    #[serde(default)]
    least_parameters: u64,
    /// Words that agree.
    pub yes: Vec<String>,
    /// Words that deny.
    pub no: Vec<String>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    model: Models,
    prompt: Frame,
    tasks: BTreeMap<Kind, String>,
    verdict: Option<Verdict>,
}

/// The prompt of one model, with the words of all languages.
#[derive(Debug, Clone)]
pub struct Prompts {
    /// The file's name without its ending.
    pub name: String,
    /// The words of all languages.
    pub languages: Languages,
    file: File,
}

/// The facts about a model that choose its prompt.
#[derive(Debug, Clone, Copy)]
pub struct ModelFacts<'a> {
    /// `general.architecture` of its file.
    pub architecture: &'a str,
    /// Number of its weights.
    pub parameters: u64,
    /// Whether it has a chat template.
    pub chat_template: bool,
}

impl Prompts {
    /// The prompt for a model: the first file that fits of the owner's `folder`, if there is one, then of the built-in ones.
    ///
    /// # Errors
    /// The folder cannot be read, or one of its files breaks the format.
    pub fn load(folder: Option<&Path>, model: ModelFacts<'_>) -> Result<Self, PromptError> {
        let built_in = |reason: String| PromptError::Format { path: "built-in prompts".into(), reason };
        let mut languages = Languages::parse(LANGUAGES).map_err(built_in)?;
        let mut files: Vec<(String, File)> = Vec::new();
        for path in folder.map(toml_files).transpose()?.unwrap_or_default() {
            let text = read(&path)?;
            let format = |reason: String| PromptError::Format { path: path.clone(), reason };
            if path.file_name().is_some_and(|name| name == LANGUAGES_FILE) {
                languages.replace(&text, LANGUAGES).map_err(format)?;
                continue;
            }
            let file = toml::from_str(&text).map_err(|e| format(e.to_string()))?;
            files.push((path.file_stem().unwrap_or_default().to_string_lossy().into_owned(), file));
        }
        for (name, text) in BUILT_IN {
            files.push((name.to_owned(), toml::from_str(text).map_err(|e| built_in(e.to_string()))?));
        }
        let fits = |file: &File| file.model.fits(model);
        // The built-in files fit every model.
        let found = files.iter().position(|(_, file)| fits(file)).unwrap_or(files.len() - 1);
        let (name, mut file) = files.swap_remove(found);
        if file.verdict.as_ref().is_some_and(|verdict| model.parameters < verdict.least_parameters) {
            file.verdict = None;
            file.prompt.quoted.push(Kind::YesNo);
        }
        Ok(Self { name, languages, file })
    }

    /// The strategy that `auto` means with this model.
    pub fn strategy(&self) -> Strategy {
        self.file.prompt.strategy
    }

    /// The system prompt.
    pub fn system(&self) -> &str {
        &self.file.prompt.system
    }

    /// A passage in its frame.
    pub fn passage(&self, heading: &str, text: &str) -> String {
        fill(&self.file.prompt.passage, &[("heading", heading.trim()), ("text", text.trim())])
    }

    /// The question in its frame.
    pub fn question(&self, question: &str) -> String {
        fill(&self.file.prompt.question, &[("question", question.trim())])
    }

    /// The task of a kind of question, to be answered in a language; `None`: English, which goes without saying.
    pub fn task(&self, kind: Kind, language: Option<&str>) -> String {
        let task = self.file.tasks.get(&kind).cloned().unwrap_or_default();
        let answer_in = language.map(|name| fill(&self.file.prompt.answer_in, &[("language", name)]));
        task + &answer_in.unwrap_or_default()
    }

    /// Whether questions of this kind are answered in the words of the text.
    pub fn is_quoted(&self, kind: Kind) -> bool {
        self.file.prompt.quoted.contains(&kind)
    }

    /// Whether the best few sentences are enough for questions of this kind.
    pub fn is_narrow(&self, kind: Kind) -> bool {
        self.file.prompt.narrow.contains(&kind)
    }

    /// Whether the model answers questions of this kind with a run of words of the text.
    pub fn is_copied(&self, kind: Kind) -> bool {
        self.file.prompt.copied.contains(&kind)
    }

    /// The first words of answers to yes-or-no questions, if the model is asked for these alone.
    pub fn verdict(&self) -> Option<&Verdict> {
        self.file.verdict.as_ref()
    }
}

impl Models {
    fn fits(&self, model: ModelFacts<'_>) -> bool {
        (self.architectures.is_empty() || self.architectures.iter().any(|name| name == model.architecture))
            && (self.least_parameters..=self.most_parameters).contains(&model.parameters)
            && self.chat_template.is_none_or(|wanted| wanted == model.chat_template)
    }
}

/// The `.toml` files of a folder, by name.
fn toml_files(folder: &Path) -> Result<Vec<PathBuf>, PromptError> {
    let failed = |source| PromptError::Read { path: folder.to_owned(), source };
    let entries = std::fs::read_dir(folder).map_err(failed)?.collect::<Result<Vec<_>, _>>().map_err(failed)?;
    let mut files: Vec<PathBuf> = entries.into_iter().map(|entry| entry.path()).collect();
    files.retain(|path| path.extension().is_some_and(|extension| extension == "toml"));
    files.sort();
    Ok(files)
}

fn read(path: &Path) -> Result<String, PromptError> {
    let failed = |source| PromptError::Read { path: path.to_owned(), source };
    let format = |reason: &str| PromptError::Format { path: path.to_owned(), reason: reason.to_owned() };
    // A device or a pipe would be read without end.
    if !std::fs::metadata(path).map_err(failed)?.is_file() {
        return Err(format("it is not a plain file"));
    }
    let mut text = String::new();
    std::fs::File::open(path).map_err(failed)?.take(MAX_BYTES + 1).read_to_string(&mut text).map_err(failed)?;
    if text.len() as u64 > MAX_BYTES { Err(format("more than 1 MiB is too much for a prompt")) } else { Ok(text) }
}

/// Fills in the places of a text in one pass, so that a filled-in text is never read for places.
fn fill(text: &str, places: &[(&str, &str)]) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(open) = rest.find('{') {
        out.push_str(&rest[..open]);
        let inside = &rest[open + 1..];
        let place = places.iter().find(|(name, _)| inside.strip_prefix(*name).is_some_and(|rest| rest.starts_with('}')));
        match place {
            Some((name, value)) => {
                out.push_str(value);
                rest = &inside[name.len() + 1..];
            }
            None => {
                out.push('{');
                rest = inside;
            }
        }
    }
    out + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(parameters: u64, chat_template: bool) -> ModelFacts<'static> {
        ModelFacts { architecture: "qwen2", parameters, chat_template }
    }

    #[test]
    fn built_in_prompts_fit_every_model() {
        for (parameters, chat_template, name) in [
            (500_000_000, true, "chat"),
            (3_000_000_000, true, "chat"),
            (135_000_000, true, "small"),
            (1_000_000_000, false, "base"),
        ] {
            let prompts = Prompts::load(None, facts(parameters, chat_template)).expect("loads");
            assert_eq!(prompts.name, name);
            assert!(prompts.passage("Head", "Text").contains("Text"));
            assert!(prompts.question("Why?").contains("Why?"));
            let kinds = [Kind::Steps, Kind::Value, Kind::YesNo, Kind::List, Kind::Code, Kind::Explanation];
            assert!(kinds.iter().all(|kind| prompts.file.tasks.contains_key(kind)), "{name}");
        }
        let german = Prompts::load(None, facts(500_000_000, true)).expect("loads").task(Kind::Value, Some("German"));
        assert!(german.ends_with("German."), "{german}");
    }

    #[test]
    fn the_owners_files_go_first() {
        let dir = tempfile::tempdir().expect("a directory");
        let own =
            include_str!("../../../config/prompts/chat.toml").replace("least_parameters = 400_000_000", "least_parameters = 0");
        std::fs::write(dir.path().join("mine.toml"), own.replace("Question: {question}", "Q {question} {text}"))
            .expect("written");
        std::fs::write(dir.path().join("languages.toml"), "[en]\nnot_found = \"No idea.\"\n").expect("written");
        let prompts = Prompts::load(Some(dir.path()), facts(135_000_000, true)).expect("loads");
        assert_eq!(prompts.name, "mine");
        assert_eq!(prompts.question("Why {question}?").trim(), "Q Why {question}? {text}", "places in a question stay");
        let english = prompts.languages.of(library::store::terms::Language::English);
        assert_eq!(english.not_found, "No idea.");
        assert_eq!(english.kind("How do I fill it?"), Kind::Steps, "keys that the file leaves out stay");
        std::fs::write(dir.path().join("a.toml"), "[model]\nunknown = 1\n").expect("written");
        let error = Prompts::load(Some(dir.path()), facts(1, true)).expect_err("refused").to_string();
        assert!(error.contains("a.toml") && error.contains("unknown"), "{error}");
        assert!(Prompts::load(Some(&dir.path().join("nowhere")), facts(1, true)).is_err());
        std::fs::remove_file(dir.path().join("a.toml")).expect("removed");
        std::os::unix::fs::symlink("/dev/zero", dir.path().join("z.toml")).expect("linked");
        let error = Prompts::load(Some(dir.path()), facts(1, true)).expect_err("refused").to_string();
        assert!(error.contains("z.toml") && error.contains("plain file"), "{error}");
    }

    #[test]
    fn small_models_are_not_asked_for_a_verdict() {
        let of = |parameters| Prompts::load(None, facts(parameters, true)).expect("loads");
        assert!(of(500_000_000).verdict().is_none() && of(500_000_000).is_quoted(Kind::YesNo));
        assert!(of(1_500_000_000).verdict().is_some() && !of(1_500_000_000).is_quoted(Kind::YesNo));
    }
}
