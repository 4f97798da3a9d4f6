//! The usual places of model files.

use std::path::{Path, PathBuf};

/// Folders that are searched for models: `$VADEMECUM_MODELS`, the data directory, the system's folder, the cache that `make
/// setup` fills.
pub fn places(data_dir: Option<&Path>) -> Vec<PathBuf> {
    let mut places: Vec<PathBuf> = std::env::var_os("VADEMECUM_MODELS").map(PathBuf::from).into_iter().collect();
    places.extend(data_dir.map(|dir| dir.join("models")));
    places.push(PathBuf::from("/usr/share/vademecum/models"));
    places.extend(cache());
    places
}

fn cache() -> Option<PathBuf> {
    let base = std::env::var_os("VADEMECUM_CACHE").map(PathBuf::from).or_else(|| {
        let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
        cache.or_else(|| std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache"))).map(|dir| dir.join("vademecum"))
    });
    base.map(|dir| dir.join("models"))
}

/// A model for the tests of this and other rooms.
///
/// # Panics
/// The model is missing; the tests need `make setup`.
#[doc(hidden)]
pub fn test_model(name: &str) -> PathBuf {
    let path = places(None).into_iter().map(|dir| dir.join(name)).find(|path| path.exists());
    path.unwrap_or_else(|| panic!("{name} is missing: run `make setup`"))
}
