//! Changes single keys of a configuration file, and keeps its comments.

use super::{ConfigError, load};
use std::fs;
use std::io::Write;
use std::os::unix::fs::{MetadataExt, chown};
use std::path::Path;
use toml_edit::{DocumentMut, Item, Table, Value};

/// Sets dotted keys to texts in the file, or removes them (`None`). The file is made if it does not exist.
///
/// The new file takes the place of the old one at once, with its owner and permissions.
///
/// # Errors
/// The file cannot be read or written, or is no valid configuration.
pub fn write_keys(path: &Path, keys: &[(&str, Option<String>)]) -> Result<(), ConfigError> {
    // A link stays, and the file that it names is written.
    let path = &path.canonicalize().unwrap_or_else(|_| path.to_owned());
    let fails = |source: std::io::Error| ConfigError::Write { path: path.display().to_string(), source };
    let old = match fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
        Err(source) => return Err(ConfigError::Read { path: path.display().to_string(), source }),
    };
    let syntax = |message: String| ConfigError::Syntax { path: path.display().to_string(), message };
    let mut document: DocumentMut = old.parse().map_err(|error: toml_edit::TomlError| syntax(error.to_string()))?;
    for (key, value) in keys {
        change(&mut document, key, value.as_deref()).map_err(syntax)?;
    }
    let dir = path.parent().unwrap_or(Path::new("/"));
    fs::create_dir_all(dir).map_err(fails)?;
    let mut part = path.as_os_str().to_owned();
    part.push(format!(".{}", std::process::id()));
    let part = Path::new(&part);
    let written = (|| {
        let mut file = fs::File::create_new(part)?;
        file.write_all(document.to_string().as_bytes())?;
        if let Ok(about) = fs::metadata(path) {
            file.set_permissions(about.permissions())?;
            chown(part, Some(about.uid()), Some(about.gid()))?;
        }
        file.sync_all()
    })();
    let result = written.map_err(fails).and_then(|()| {
        load(Some(part), std::iter::empty(), &Vec::new())?;
        fs::rename(part, path).map_err(fails)
    });
    if result.is_err() {
        // The caller needs the first error.
        let _ = fs::remove_file(part);
    }
    result
}

fn change(document: &mut DocumentMut, key: &str, value: Option<&str>) -> Result<(), String> {
    let (section, leaf) = key.split_once('.').unwrap_or(("", key));
    let table = match (section, value) {
        ("", _) => document.as_table_mut() as &mut dyn toml_edit::TableLike,
        (_, None) => match document.get_mut(section).and_then(Item::as_table_like_mut) {
            Some(table) => table,
            None => return Ok(()),
        },
        _ => {
            let item = document.entry(section).or_insert_with(|| Item::Table(Table::new()));
            item.as_table_like_mut().ok_or_else(|| format!("`{section}` is no section"))?
        }
    };
    let Some(text) = value else {
        table.remove(leaf);
        return Ok(());
    };
    let mut new = Value::from(text);
    match table.get_mut(leaf) {
        // Changed in its place: remarks above and behind stay.
        Some(item) => {
            if let Some(old) = item.as_value() {
                *new.decor_mut() = old.decor().clone();
            }
            *item = Item::Value(new);
        }
        None => drop(table.insert(leaf, Item::Value(new))),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::template;
    use std::os::unix::fs::PermissionsExt;

    fn written(old: Option<&str>, keys: &[(&str, Option<&str>)]) -> Result<String, ConfigError> {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("sub/vademecum.toml");
        if let Some(old) = old {
            fs::create_dir(dir.path().join("sub")).expect("made");
            fs::write(&path, old).expect("written");
            fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).expect("set");
        }
        let keys: Vec<_> = keys.iter().map(|(key, value)| (*key, value.map(str::to_owned))).collect();
        let result = write_keys(&path, &keys);
        let text = fs::read_to_string(&path).unwrap_or_default();
        let left = fs::read_dir(dir.path().join("sub")).map_or(0, Iterator::count);
        assert!(left <= 1, "a part is left");
        if old.is_some() {
            assert_eq!(fs::metadata(&path).expect("there").permissions().mode() & 0o777, 0o640);
            assert!(result.is_ok() || Some(text.as_str()) == old, "a refused change leaves the file as it was");
        }
        result.map(|()| text)
    }

    #[test]
    fn comments_and_other_keys_stay() {
        let old =
            "# mine\nnode = \"pi\" # the kitchen\n\n[model]\n# the old one\ngenerator = \"/a.gguf\" # tried\ncontext = 1024\n";
        let new = written(Some(old), &[("model.generator", Some("/b \"c\".gguf")), ("embedder.path", Some("/e.gguf"))])
            .expect("written");
        let expected = old.replace("\"/a.gguf\"", "'/b \"c\".gguf'") + "\n[embedder]\npath = \"/e.gguf\"\n";
        assert_eq!(new, expected);
    }

    #[test]
    fn the_template_keeps_every_line() {
        let old = template();
        let new = written(Some(&old), &[("model.generator", Some("/a.gguf"))]).expect("written");
        assert!(new.contains("[model]\ngenerator = \"/a.gguf\"\n"), "{new}");
        assert_eq!(new.replace("generator = \"/a.gguf\"\n", "").replace("#\n", "#"), old.replace("#\n", "#"));
    }

    #[test]
    fn keys_are_removed_and_files_made() {
        let old = "[embedder]\npath = \"/e.gguf\"\ntokenizer = \"/t.json\"\n";
        let new = written(Some(old), &[("embedder.tokenizer", None), ("model.generator", None)]).expect("written");
        assert_eq!(new, "[embedder]\npath = \"/e.gguf\"\n");
        assert_eq!(written(None, &[("model.generator", Some("/a.gguf"))]).expect("made"), "[model]\ngenerator = \"/a.gguf\"\n");
    }

    #[test]
    fn a_wrong_file_stays_as_it_is() {
        for old in ["model = 3\n", "[model\n", "[model]\ncolour = 1\n"] {
            assert!(written(Some(old), &[("model.generator", Some("/a.gguf"))]).is_err(), "{old}");
        }
    }
}
