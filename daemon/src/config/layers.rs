//! Merging the layers and refusing what does not fit, with the place it came from.

use super::{Config, ConfigError, SYSTEM_CONFIG};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use toml::{Table, Value};

/// The origin of what flags set.
pub(super) const COMMAND_LINE: &str = "command line";

/// Settings given as command-line flags: dotted key and its text.
pub type Flags = Vec<(String, String)>;

/// The effective configuration and where each changed key came from.
#[derive(Debug, Clone)]
pub struct Loaded {
    /// The typed tree.
    pub config: Config,
    /// Dotted key to the file, variable or flag that set it; keys at their default are absent.
    pub origins: BTreeMap<String, String>,
    /// The file that was read, if one was.
    pub file: Option<PathBuf>,
}

/// Reads the configuration: defaults, then `file` (or the system's, when it exists), environment, flags.
///
/// # Errors
/// [`ConfigError`] with the place, the key and the remedy.
pub fn load(file: Option<&Path>, env: impl Iterator<Item = (String, String)>, flags: &Flags) -> Result<Loaded, ConfigError> {
    let defaults = default_table();
    let mut merged = defaults.clone();
    let mut origins = BTreeMap::new();

    let system = Path::new(SYSTEM_CONFIG);
    let file = file.or_else(|| system.exists().then_some(system));
    if let Some(path) = file {
        let shown = path.display().to_string();
        let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Read { path: shown.clone(), source })?;
        let table: Table = text.parse().map_err(|e: toml::de::Error| ConfigError::Syntax {
            path: shown.clone(),
            message: e.to_string().trim_end().to_owned(),
        })?;
        merge_file(&mut merged, &defaults, &table, "", &shown, &mut origins)?;
    }
    for (name, value) in env {
        if let Some(key) = key_of_variable(&defaults, &name)? {
            set_from_text(&mut merged, &defaults, &key, &value, &name, &mut origins)?;
        }
    }
    for (key, value) in flags {
        set_from_text(&mut merged, &defaults, key, value, COMMAND_LINE, &mut origins)?;
    }

    let config: Config = Value::Table(merged).try_into().map_err(|e: toml::de::Error| misfit(&e, &origins))?;
    config.validate().map_err(|(key, problem)| ConfigError::BadValue {
        origin: origins.get(key).cloned().unwrap_or_else(|| "default".into()),
        key: key.into(),
        problem,
    })?;
    Ok(Loaded { config, origins, file: file.map(Path::to_owned) })
}

/// A value of the right type that is none of those there are. The TOML crate names its key at the end of its message only.
fn misfit(error: &toml::de::Error, origins: &BTreeMap<String, String>) -> ConfigError {
    let text = error.to_string();
    let place = text.rsplit_once("in `").and_then(|(_, rest)| rest.split_once('`'));
    let key = place.map_or("", |(key, _)| key);
    ConfigError::BadValue {
        origin: origins.get(key).cloned().unwrap_or_else(|| "configuration".into()),
        key: key.into(),
        problem: error.message().to_owned(),
    }
}

/// Every key with its default: the schema that the layers are held against.
pub(super) fn default_table() -> Table {
    Table::try_from(Config::default()).unwrap_or_default()
}

/// Every dotted key of the tree.
pub(super) fn leaves(table: &Table) -> Vec<String> {
    table
        .iter()
        .flat_map(|(key, value)| match value {
            Value::Table(inner) => leaves(inner).into_iter().map(|leaf| format!("{key}.{leaf}")).collect(),
            _ => vec![key.clone()],
        })
        .collect()
}

fn merge_file(
    into: &mut Table,
    schema: &Table,
    from: &Table,
    prefix: &str,
    origin: &str,
    origins: &mut BTreeMap<String, String>,
) -> Result<(), ConfigError> {
    for (key, value) in from {
        let dotted = if prefix.is_empty() { key.clone() } else { format!("{prefix}.{key}") };
        match (schema.get(key), value) {
            (None, _) => {
                let remedy = remedy_for(&dotted);
                return Err(ConfigError::UnknownKey { origin: origin.into(), key: dotted, remedy });
            }
            (Some(Value::Table(inner_schema)), Value::Table(inner)) => {
                if let Some(Value::Table(target)) = into.get_mut(key) {
                    merge_file(target, inner_schema, inner, &dotted, origin, origins)?;
                }
            }
            (Some(known), value) => {
                let value = coerce(known, value.clone()).map_err(|problem| ConfigError::BadValue {
                    origin: origin.into(),
                    key: dotted.clone(),
                    problem,
                })?;
                into.insert(key.clone(), value);
                origins.insert(dotted, origin.into());
            }
        }
    }
    Ok(())
}

fn set_from_text(
    into: &mut Table,
    schema: &Table,
    dotted: &str,
    text: &str,
    origin: &str,
    origins: &mut BTreeMap<String, String>,
) -> Result<(), ConfigError> {
    let bad = |problem: String| ConfigError::BadValue { origin: origin.into(), key: dotted.into(), problem };
    let (section, leaf) = dotted.split_once('.').map_or((None, dotted), |(section, leaf)| (Some(section), leaf));
    let known = match section {
        Some(section) => schema.get(section).and_then(|s| s.get(leaf)),
        None => schema.get(leaf),
    };
    let known =
        known.ok_or_else(|| ConfigError::UnknownKey { origin: origin.into(), key: dotted.into(), remedy: remedy_for(dotted) })?;
    let parsed = match known {
        Value::String(_) => Value::String(text.to_owned()),
        Value::Array(_) => {
            Value::Array(text.split(',').map(str::trim).filter(|s| !s.is_empty()).map(|s| Value::String(s.into())).collect())
        }
        Value::Boolean(_) => Value::Boolean(text.parse().map_err(|_| bad(format!("is `{text}`; write true or false")))?),
        Value::Integer(_) => Value::Integer(text.parse().map_err(|_| bad(format!("is `{text}`; write a whole number")))?),
        Value::Float(_) => Value::Float(text.parse().map_err(|_| bad(format!("is `{text}`; write a number")))?),
        _ => return Err(bad("cannot be set here".into())),
    };
    let parsed = coerce(known, parsed).map_err(bad)?;
    let target = match section {
        Some(section) => into.get_mut(section).and_then(Value::as_table_mut),
        None => Some(into),
    };
    if let Some(target) = target {
        target.insert(leaf.to_owned(), parsed);
        origins.insert(dotted.to_owned(), origin.to_owned());
    }
    Ok(())
}

/// The key that an environment variable sets: `VADEMECUM_MQTT_BROKER` is `mqtt.broker`.
///
/// Variables that begin like a section but name no key of it are refused; other `VADEMECUM_…` names are left alone.
fn key_of_variable(schema: &Table, name: &str) -> Result<Option<String>, ConfigError> {
    let Some(rest) = name.strip_prefix("VADEMECUM_") else { return Ok(None) };
    let wanted = rest.to_ascii_lowercase();
    if let Some(key) = leaves(schema).into_iter().find(|key| key.replace('.', "_") == wanted) {
        return Ok(Some(key));
    }
    let sections = schema.iter().filter(|(_, value)| value.is_table()).map(|(key, _)| key);
    for section in sections {
        if let Some(leaf) = wanted.strip_prefix(&format!("{section}_")) {
            let key = format!("{section}.{leaf}");
            let remedy = remedy_for(&key);
            return Err(ConfigError::UnknownKey { origin: format!("environment variable {name}"), key, remedy });
        }
    }
    Ok(None)
}

/// Turns `value` into the type that `known` has, or says what is wrong.
fn coerce(known: &Value, value: Value) -> Result<Value, String> {
    match (known, value) {
        (Value::Float(_), Value::Integer(i)) => Ok(Value::Float(i as f64)),
        (Value::Array(_), Value::Array(items)) => {
            if let Some(item) = items.iter().find(|item| !item.is_str()) {
                return Err(format!("holds {item}; every item must be a text in quotes"));
            }
            Ok(Value::Array(items))
        }
        // A word or a number.
        (Value::String(word), Value::Integer(i)) if word == "auto" && i >= 0 => Ok(Value::String(i.to_string())),
        (Value::Integer(_), Value::Integer(i)) if i < 0 => Err(format!("is {i}; it cannot be negative")),
        (Value::Float(_), Value::Float(f)) if !f.is_finite() => Err(format!("is {f}; write a plain number")),
        (known, value) if known.same_type(&value) => Ok(value),
        (known, value) => Err(format!("is {value}, a {}; it must be a {}", type_name(&value), type_name(known))),
    }
}

fn type_name(value: &Value) -> &'static str {
    match value {
        Value::String(_) => "text in quotes",
        Value::Integer(_) => "whole number",
        Value::Float(_) => "number",
        Value::Boolean(_) => "true or false",
        Value::Array(_) => "list of texts",
        Value::Table(_) => "section",
        Value::Datetime(_) => "date",
    }
}

fn remedy_for(key: &str) -> String {
    let all = leaves(&default_table());
    let last = key.rsplit('.').next().unwrap_or(key);
    let near = all
        .iter()
        .map(|known| {
            let known_last = known.rsplit('.').next().unwrap_or(known);
            (edit_distance(known, key).min(edit_distance(known_last, last) + 1), known)
        })
        .min();
    match near {
        Some((distance, known)) if distance <= 3 => format!("did you mean `{known}`?"),
        _ => "`vademecum config` lists every key".into(),
    }
}

/// Levenshtein distance in characters.
fn edit_distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, ca) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, cb) in b.iter().enumerate() {
            let substitution = diagonal + usize::from(ca != *cb);
            diagonal = row[j + 1];
            row[j + 1] = substitution.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}
