//! Sources of model files: the hub or a mirror of its layout, or a folder.

use super::web::{Answer, Environment, Web, WebError};
use std::io::{Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The hub.
pub const HUB: &str = "https://huggingface.co";

/// A source of model files.
pub enum Source {
    /// The hub or a mirror: files at `<base>/<repository>/resolve/main/<file>`.
    Hub {
        /// Address without a slash at the end.
        base: String,
        /// The client.
        web: Box<Web>,
    },
    /// A folder with the files.
    Folder(PathBuf),
}

impl Source {
    /// The source that was asked for: `from` (an address or a folder), else `HF_ENDPOINT`, else the hub.
    ///
    /// # Errors
    /// The fault of the address, the folder or a proxy variable.
    pub fn new(from: Option<&str>, silence: Duration) -> Result<Self, String> {
        let endpoint = std::env::var("HF_ENDPOINT").ok().filter(|text| !text.trim().is_empty());
        let given = from.map(str::to_owned).or(endpoint).unwrap_or_else(|| HUB.into());
        if !given.contains("://") {
            let folder = PathBuf::from(&given);
            let remedy = "name a folder, or an address (https://…)";
            return if folder.is_dir() { Ok(Self::Folder(folder)) } else { Err(format!("{given} is no folder; {remedy}")) };
        }
        let base = given.trim_end_matches('/').to_owned();
        let web = Web::new(&Environment::read(), &base, silence)?;
        Ok(Self::Hub { base, web: Box::new(web) })
    }

    /// The place of a repository's file.
    pub fn place(&self, repository: &str, file: &str) -> Place {
        match self {
            Self::Hub { base, .. } => Place::Address(format!("{base}/{repository}/resolve/main/{file}")),
            Self::Folder(folder) => {
                // A folder holds GGUF files side by side, and what is converted in a folder of the model's name.
                let name = repository.rsplit('/').next().unwrap_or(repository);
                let own = folder.join(name).join(file);
                Place::File(if own.exists() { own } else { folder.join(file) })
            }
        }
    }

    /// Opens a place from byte `from` on.
    ///
    /// # Errors
    /// It is not there, or the transfer failed.
    pub fn open(&self, place: &Place, from: u64, etag: Option<&str>) -> Result<Answer, WebError> {
        match (self, place) {
            (Self::Hub { web, .. }, Place::Address(url)) => web.get(url, from, etag),
            (_, Place::File(path)) => open_file(path, from),
            (Self::Folder(folder), Place::Address(url)) => {
                Err(WebError::Refused(format!("{url} is not in the folder {}; leave --from out", folder.display())))
            }
        }
    }
}

/// The place of one file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// On the web.
    Address(String),
    /// On this machine.
    File(PathBuf),
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            // A query may hold a signature.
            Self::Address(url) => f.write_str(url.split('?').next().unwrap_or_default()),
            Self::File(path) => path.display().fmt(f),
        }
    }
}

fn open_file(path: &Path, from: u64) -> Result<Answer, WebError> {
    let fails = |error: std::io::Error| WebError::Refused(format!("{}: {error}; check the folder", path.display()));
    let mut file = std::fs::File::open(path).map_err(fails)?;
    let about = file.metadata().map_err(fails)?;
    if !about.is_file() {
        return Err(WebError::Refused(format!("{} is no file; check the folder", path.display())));
    }
    if from > about.len() {
        return Err(WebError::BadRange);
    }
    file.seek(SeekFrom::Start(from)).map_err(fails)?;
    Ok(Answer { body: Box::new(file), start: from, total: Some(about.len()), etag: None, sha256: None })
}

/// The name and the address of a file that was given as an address. The hub's page of a file becomes the file itself.
///
/// # Errors
/// The address names no GGUF file.
pub fn file_of(url: &str) -> Result<(String, String), String> {
    let path = url.split(['?', '#']).next().unwrap_or_default();
    let name = path.rsplit('/').next().unwrap_or_default();
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
    if !super::catalogue::is_gguf(name) || name.starts_with('.') || name.len() > 200 || !name.chars().all(allowed) {
        return Err(format!("`{path}` names no GGUF file; give the address of the .gguf file itself"));
    }
    let url = if url.starts_with(HUB) { url.replacen("/blob/", "/resolve/", 1) } else { url.to_owned() };
    Ok((name.to_owned(), url))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_names_its_file() {
        let page = "https://huggingface.co/o/r/blob/main/a-Q4_K_M.gguf?download=true";
        let (name, url) = file_of(page).expect("a file");
        assert_eq!(
            (name.as_str(), url.as_str()),
            ("a-Q4_K_M.gguf", "https://huggingface.co/o/r/resolve/main/a-Q4_K_M.gguf?download=true")
        );
        for wrong in
            ["https://h/o/r", "https://h/..gguf", "https://h/a%2f.gguf", "https://h/a.gguf/", "https://h/model.safetensors"]
        {
            assert!(file_of(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_folder_holds_files_side_by_side_or_by_model() {
        let dir = tempfile::tempdir().expect("a folder");
        std::fs::create_dir(dir.path().join("minilm")).expect("made");
        std::fs::write(dir.path().join("minilm/config.json"), "{}").expect("written");
        let source = Source::new(dir.path().to_str(), Duration::from_secs(1)).expect("a folder");
        assert_eq!(source.place("o/minilm", "config.json"), Place::File(dir.path().join("minilm/config.json")));
        assert_eq!(source.place("o/r", "a.gguf"), Place::File(dir.path().join("a.gguf")));
        let error = Source::new(Some("/no/such/folder"), Duration::from_secs(1)).err().expect("no folder");
        assert!(error.contains("is no folder"), "{error}");
    }
}
