//! The Python environments of the peers, in the cache.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Where the peers' programs stand.
pub fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("peers")
}

/// The interpreter of the environment of `name` in `cache`, with the versions of `peers/<name>.txt`; it is made when it is not there.
/// `None`, with the reason said, when that is not possible: then ours is measured alone.
pub fn python(cache: &Path, name: &str) -> Option<PathBuf> {
    let requirements = folder().join(format!("{name}.txt"));
    let environment = cache.join(format!("peers-{name}"));
    let python = environment.join("bin/python");
    let installed = fs::read(environment.join("installed.txt")).ok();
    if python.exists() && installed.is_some() && installed == fs::read(&requirements).ok() {
        return Some(python);
    }
    let made = Command::new(folder().join("install.sh")).arg(requirements).arg(environment).status();
    made.is_ok_and(|status| status.success()).then_some(python)
}
