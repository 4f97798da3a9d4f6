//! Merges the layers. Unknown keys and bad values are refused, with the place they came from.

use super::{Config, ConfigError, ConfigKey, KEYS, SECTIONS, SYSTEM_CONFIG, flat, typed};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use toml::{Table, Value};

/// The origin of settings by flags.
pub(super) const COMMAND_LINE: &str = "command line";

/// Settings given as command-line flags: dotted key and its text.
pub type Flags = Vec<(String, String)>;

/// The effective configuration, and the origin of each changed key.
#[derive(Debug, Clone)]
pub struct Loaded {
    /// The typed tree.
    pub config: Config,
    /// Dotted key to the file, variable or flag that set it; keys at their default are absent.
    pub origins: BTreeMap<String, String>,
    /// The file that was read, if any.
    pub file: Option<PathBuf>,
    /// Hints for people: the new names of keys that were set by their old ones.
    pub hints: Vec<String>,
}

impl Loaded {
    /// Whether a flag or the environment has set a key, rather than the file.
    pub fn is_named(&self, key: &str) -> bool {
        let file = self.file.as_ref().map(|file| file.display().to_string());
        self.origins.get(key).is_some_and(|origin| Some(origin) != file.as_ref())
    }

    /// Logs the hints.
    pub fn log_hints(&self) {
        for hint in &self.hints {
            log::warn!("{hint}");
        }
    }
}

/// Reads the configuration: defaults, then `file` (or the system's, if it exists), environment, flags.
///
/// # Errors
/// [`ConfigError`] with the place, the key and the remedy.
pub fn load(file: Option<&Path>, env: impl Iterator<Item = (String, String)>, flags: &Flags) -> Result<Loaded, ConfigError> {
    let mut layers = Layers::new();
    let system = Path::new(SYSTEM_CONFIG);
    let file = file.or_else(|| system.exists().then_some(system));
    if let Some(path) = file {
        layers.take_file(path)?;
    }
    layers.take_environment(env)?;
    for (name, text) in flags {
        layers.set(name, Given::Text(text), COMMAND_LINE)?;
    }
    layers.check_bounds()?;

    let Layers { values, origins, hints, .. } = layers;
    let bad = |key: &str, problem: String| ConfigError::BadValue {
        origin: origins.get(key).cloned().unwrap_or_else(|| "default".into()),
        key: key.into(),
        problem,
    };
    let config = typed(values).map_err(|error| bad("", error.message().to_owned()))?;
    config.validate().map_err(|(key, problem)| bad(key, problem))?;
    Ok(Loaded { config, origins, file: file.map(Path::to_owned), hints })
}

/// A value from a layer.
enum Given<'a> {
    Toml(Value),
    Text(&'a str),
}

/// The values set so far.
struct Layers {
    defaults: BTreeMap<String, Value>,
    values: BTreeMap<String, Value>,
    origins: BTreeMap<String, String>,
    hints: Vec<String>,
}

impl Layers {
    fn new() -> Self {
        let defaults = flat(&Config::default());
        Self { values: defaults.clone(), defaults, origins: BTreeMap::new(), hints: vec![] }
    }

    fn take_file(&mut self, path: &Path) -> Result<(), ConfigError> {
        let shown = path.display().to_string();
        let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Read { path: shown.clone(), source })?;
        let table: Table = text.parse().map_err(|e: toml::de::Error| ConfigError::Syntax {
            path: shown.clone(),
            message: e.to_string().trim_end().to_owned(),
        })?;
        let mut found: Vec<(String, Value)> = vec![];
        for (name, value) in table {
            match value {
                Value::Table(section) if is_section(&name) => {
                    found.extend(section.into_iter().map(|(leaf, value)| (format!("{name}.{leaf}"), value)));
                }
                value if is_section(&name) => {
                    let problem = format!("is {value}, a {}; it must be a section", type_name(&value));
                    return Err(ConfigError::BadValue { origin: shown, key: name, problem });
                }
                value => found.push((name, value)),
            }
        }
        old_names_first(&mut found);
        found.into_iter().try_for_each(|(name, value)| self.set(&name, Given::Toml(value), &shown))
    }

    fn take_environment(&mut self, env: impl Iterator<Item = (String, String)>) -> Result<(), ConfigError> {
        let mut found: Vec<(String, (String, String))> = vec![];
        for (variable, text) in env {
            if let Some(name) = key_of_variable(&variable)? {
                found.push((name, (variable, text)));
            }
        }
        old_names_first(&mut found);
        found.into_iter().try_for_each(|(name, (variable, text))| self.set(&name, Given::Text(&text), &variable))
    }

    /// Sets a key by its present or its earlier name.
    fn set(&mut self, name: &str, given: Given, origin: &str) -> Result<(), ConfigError> {
        let unknown = || ConfigError::UnknownKey { origin: origin.into(), key: name.into(), remedy: remedy_for(name) };
        let key = ConfigKey::named(name).ok_or_else(unknown)?;
        if key.name != name {
            self.hints.push(format!(
                "{origin}: `{name}` is now called `{}`; rename it, for the next version knows only the new name",
                key.name
            ));
        }
        let default = self.defaults.get(key.name).ok_or_else(unknown)?;
        let value = match given {
            Given::Toml(value) => Ok(value),
            Given::Text(text) => parsed(default, text),
        };
        let value = value.and_then(|value| coerced(default, value)).map_err(|problem| ConfigError::BadValue {
            origin: origin.into(),
            key: name.into(),
            problem,
        })?;
        self.values.insert(key.name.into(), value);
        self.origins.insert(key.name.into(), origin.into());
        Ok(())
    }

    /// Refuses values outside the bounds of their keys, in plain words. The typed configuration would refuse them in serde's.
    fn check_bounds(&self) -> Result<(), ConfigError> {
        for (name, origin) in &self.origins {
            if let (Some(key), Some(value)) = (ConfigKey::named(name), self.values.get(name)) {
                key.bounds.check(value).map_err(|problem| ConfigError::BadValue {
                    origin: origin.clone(),
                    key: name.clone(),
                    problem,
                })?;
            }
        }
        Ok(())
    }
}

/// Puts earlier names first, so that the present name wins if a layer has both.
fn old_names_first<T>(found: &mut [(String, T)]) {
    found.sort_by_key(|(name, _)| KEYS.iter().all(|key| key.formerly != name));
}

fn is_section(name: &str) -> bool {
    !name.is_empty() && SECTIONS.iter().any(|(section, _)| *section == name)
}

/// The key of an environment variable, by its present or its earlier name: `VADEMECUM_MQTT_BROKER` is `mqtt.broker`.
///
/// Refuses variables that begin like a section but name no key of it; ignores other `VADEMECUM_…` variables.
fn key_of_variable(variable: &str) -> Result<Option<String>, ConfigError> {
    let Some(rest) = variable.strip_prefix("VADEMECUM_") else { return Ok(None) };
    let wanted = rest.to_ascii_lowercase();
    let names = KEYS.iter().flat_map(|key| [key.name, key.formerly]).filter(|name| !name.is_empty());
    if let Some(name) = names.into_iter().find(|name| name.replace('.', "_") == wanted) {
        return Ok(Some(name.into()));
    }
    for (section, _) in SECTIONS.iter().filter(|(section, _)| !section.is_empty()) {
        if let Some(leaf) = wanted.strip_prefix(&format!("{section}_")) {
            let key = format!("{section}.{leaf}");
            let remedy = remedy_for(&key);
            return Err(ConfigError::UnknownKey { origin: format!("environment variable {variable}"), key, remedy });
        }
    }
    Ok(None)
}

/// Parses text as a value of the default's type.
fn parsed(default: &Value, text: &str) -> Result<Value, String> {
    Ok(match default {
        Value::Array(_) => {
            Value::Array(text.split(',').map(str::trim).filter(|s| !s.is_empty()).map(|s| Value::String(s.into())).collect())
        }
        Value::Boolean(_) => Value::Boolean(text.parse().map_err(|_| format!("is `{text}`; write true or false"))?),
        Value::Integer(_) => Value::Integer(text.parse().map_err(|_| format!("is `{text}`; write a whole number"))?),
        Value::Float(_) => Value::Float(text.parse().map_err(|_| format!("is `{text}`; write a number"))?),
        _ => Value::String(text.to_owned()),
    })
}

/// Converts `value` to the default's type. The error is a clause that follows the key's name.
fn coerced(default: &Value, value: Value) -> Result<Value, String> {
    match (default, value) {
        (Value::Float(_), Value::Integer(i)) => Ok(Value::Float(i as f64)),
        (Value::Array(_), Value::Array(items)) => {
            if let Some(item) = items.iter().find(|item| !item.is_str()) {
                return Err(format!("holds {item}; every item must be a text in quotes"));
            }
            Ok(Value::Array(items))
        }
        // These keys take a word or a number.
        (Value::String(word), Value::Integer(i)) if word == "auto" && i >= 0 => Ok(Value::String(i.to_string())),
        (Value::Integer(_), Value::Integer(i)) if i < 0 => Err(format!("is {i}; it cannot be negative")),
        (Value::Float(_), Value::Float(f)) if !f.is_finite() => Err(format!("is {f}; write a plain number")),
        (default, value) if default.same_type(&value) => Ok(value),
        (default, value) => Err(format!("is {value}, a {}; it must be a {}", type_name(&value), type_name(default))),
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

fn remedy_for(name: &str) -> String {
    let last = |name: &str| name.rsplit('.').next().unwrap_or(name).to_owned();
    let distance = |known: &str| edit_distance(known, name).min(edit_distance(&last(known), &last(name)) + 1);
    match KEYS.iter().map(|key| (distance(key.name), key.name)).min() {
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
