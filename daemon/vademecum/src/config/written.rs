//! The written configuration: effective values, the commented file, the reference. All three follow from the table.

use super::{Config, ConfigKey, KEYS, Loaded, SECTIONS, flat};
use std::fmt::Write;
use toml::Value;

/// Columns of a line in the commented file.
const WIDTH: usize = 120;

const ABOUT_FILE: &str = "\
# Vademecum: configuration, with every key at its default.
#
# The daemon reads --config FILE, else /etc/vademecum/vademecum.toml. Environment variables win over the file:
# VADEMECUM_MQTT_BROKER sets mqtt.broker, and commas part the items of a list. Flags win over both: --set KEY=VALUE sets
# any key. Unknown keys are refused. `vademecum config` prints the values in effect and the origin of each changed one.
#
# A change takes effect at the next start. A reload (SIGHUP, `systemctl reload vademecum`) takes over the keys marked
# \"reload\". `vademecum config --template` prints this file.
";

const ABOUT_REFERENCE: &str = "\
# Configuration

<!-- Written by `make config-files` from the table of keys in the daemon's sources (config/keys.rs): edit it there. -->

A key has its default, unless the file, the environment or a flag sets it; the later of them wins.

- The file is `--config FILE`, else `/etc/vademecum/vademecum.toml` if it exists. [vademecum.toml](../config/vademecum.toml) holds
  every key, commented out at its default.
- The environment sets `mqtt.broker` with `VADEMECUM_MQTT_BROKER`, and every other key likewise. Commas part the items of a list.
- The flag `--set mqtt.broker=URL` sets any key. Common keys have flags of their own, which the tables name.

Unknown keys and bad values are refused; the message names the place, the key and the remedy. `vademecum config` prints the values
in effect and the origin of each changed one.

A change takes effect at the next start. Keys with a \u{2713} under \"reload\" are taken over by a reload: SIGHUP, or
`systemctl reload vademecum`. The log tells which keys were taken over and which wait for a restart.
";

/// `vademecum config`: every value in effect, with the origin of those that are not at their default.
pub fn effective(loaded: &Loaded) -> String {
    let (values, config) = (flat(&loaded.config), &loaded.config);
    let mut out = format!("# node in use: {}\n", config.node_name());
    for (name, path) in
        [("data directory", config.data_dir()), ("generator", config.generator_path()), ("embedder", config.embedder_path())]
    {
        let _ = writeln!(out, "# {name} in use: {}", path.display());
    }
    for (section, _, keys) in sections() {
        out.push_str(&heading(section));
        for key in keys {
            let value = values.get(key.name).map(shown).unwrap_or_default();
            let origin = loaded.origins.get(key.name).map(|origin| format!("  # {origin}")).unwrap_or_default();
            let _ = writeln!(out, "{} = {value}{origin}", key.parts().1);
        }
    }
    out
}

/// `config/vademecum.toml`: every key with its documentation, commented out at its default.
pub fn template() -> String {
    let defaults = flat(&Config::default());
    let mut out = ABOUT_FILE.to_owned();
    for (section, about, keys) in sections() {
        out.push_str(&heading(section));
        comment(&mut out, "# ", about);
        for (index, key) in keys.enumerate() {
            if index > 0 || !about.is_empty() || section.is_empty() {
                out.push('\n');
            }
            comment(&mut out, "# ", key.help());
            comment(&mut out, "# ", &key.more());
            let width = key.words().iter().map(|(word, _)| word.len()).max().unwrap_or_default();
            for (word, meaning) in key.words() {
                comment(&mut out, &format!("#   {word:width$}  "), meaning);
            }
            let mut facts = if key.words().is_empty() { vec![key.values()] } else { vec![] };
            facts.extend(key.live.then(|| "reload".to_owned()));
            facts.retain(|fact| !fact.is_empty());
            if !facts.is_empty() {
                comment(&mut out, "# ", &format!("({})", facts.join("; ")));
            }
            let value = defaults.get(key.name).map(shown).unwrap_or_default();
            let _ = writeln!(out, "#{} = {value}", key.parts().1);
        }
    }
    out
}

/// `docs/configuration.md`.
pub fn reference() -> String {
    let defaults = flat(&Config::default());
    let mut out = ABOUT_REFERENCE.to_owned();
    for (section, about, keys) in sections() {
        let title = if section.is_empty() { "Above all sections".to_owned() } else { format!("[{section}]") };
        let _ = write!(out, "\n## {title}\n\n{about}{}", if about.is_empty() { "" } else { "\n\n" });
        out.push_str("| key | default | values | reload | meaning |\n|---|---|---|---|---|\n");
        let mut explained = String::new();
        for key in keys {
            let value = defaults.get(key.name).map(shown).unwrap_or_default();
            let values = if key.values().is_empty() { key.type_name().to_owned() } else { key.values() };
            let flag = if key.flag.is_empty() { String::new() } else { format!(" Flag: `{}`.", key.flag) };
            let live = if key.live { "\u{2713}" } else { "" };
            let _ = writeln!(out, "| `{}` | `{value}` | {values} | {live} | {}{flag} |", key.parts().1, key.help());
            explained.push_str(&explanation(key));
        }
        out.push_str(&explained);
    }
    out
}

/// The paragraph about a key below its table; empty if the table says it all.
fn explanation(key: &ConfigKey) -> String {
    let mut parts: Vec<String> = vec![key.more()];
    if !key.formerly.is_empty() {
        parts.push(format!("The key was called `{}`; that name is understood until the next version.", key.formerly));
    }
    parts.retain(|part| !part.is_empty());
    let words: String = key.words().iter().fold(String::new(), |all, (word, meaning)| all + &format!("- `{word}`: {meaning}\n"));
    if parts.is_empty() && words.is_empty() {
        return String::new();
    }
    let mut out = String::from("\n");
    let said = if parts.is_empty() { key.help().to_owned() } else { parts.join(" ") };
    comment(&mut out, "", &format!("`{}`: {said}", key.name));
    if !words.is_empty() {
        let _ = write!(out, "\n{words}");
    }
    out
}

/// Sections by name, each with the sentence about it and its keys, in the order of the table.
fn sections() -> impl Iterator<Item = (&'static str, &'static str, impl Iterator<Item = &'static ConfigKey>)> {
    SECTIONS.iter().map(|(name, about)| (*name, *about, KEYS.iter().filter(move |key| key.parts().0 == *name)))
}

fn heading(section: &str) -> String {
    if section.is_empty() { String::new() } else { format!("\n[{section}]\n") }
}

/// A value in TOML. Single-precision numbers do not show their rounding.
fn shown(value: &Value) -> String {
    if let Value::Float(number) = value { format!("{:?}", *number as f32) } else { value.to_string() }
}

/// Writes `text` in lines of at most [`WIDTH`] columns; lines after the first are indented as far as `first` is long. Text
/// between backticks stays on one line.
fn comment(out: &mut String, first: &str, text: &str) {
    let further = if first.is_empty() { String::new() } else { format!("#{:1$}", "", first.len() - 1) };
    // No line breaks at blanks between backticks.
    let mut quoted = false;
    let kept: String = text
        .chars()
        .map(|c| {
            quoted ^= c == '`';
            if quoted && c == ' ' { '\u{a0}' } else { c }
        })
        .collect();
    let mut line = String::new();
    for word in kept.split(' ').filter(|word| !word.is_empty()).map(|word| word.replace('\u{a0}', " ")) {
        if line.is_empty() {
            line = format!("{first}{word}");
        } else if line.len() + 1 + word.len() > WIDTH {
            let _ = writeln!(out, "{line}");
            line = format!("{further}{word}");
        } else {
            let _ = write!(line, " {word}");
        }
    }
    if !line.is_empty() {
        let _ = writeln!(out, "{line}");
    }
}
