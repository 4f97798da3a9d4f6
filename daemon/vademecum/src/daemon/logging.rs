//! Logs: to the journal with structured fields if stderr is connected to it, else to stderr for people.

use crate::config::Config;
use log::{Level, LevelFilter, Log, Metadata, Record};
use std::borrow::Cow;
use std::io::Write;
use std::time::{SystemTime, UNIX_EPOCH};

/// Starts logging at `level`.
pub fn start(level: LevelFilter) {
    let journal = if systemd_journal_logger::connected_to_journal() {
        systemd_journal_logger::JournalLog::new().ok().map(|journal| journal.with_syslog_identifier("vademecum".into()))
    } else {
        None
    };
    // A second start (in tests) keeps the first logger.
    let _ = match journal {
        Some(journal) => log::set_boxed_logger(Box::new(Journal(journal))),
        None => log::set_boxed_logger(Box::new(Stderr)),
    };
    log::set_max_level(level);
}

/// Sets the level that the configuration names.
pub fn set_level(config: &Config) {
    if let Ok(level) = config.log.level.parse() {
        log::set_max_level(level);
    }
}

fn is_wanted(metadata: &Metadata) -> bool {
    is_wanted_at(log::max_level(), metadata.target(), metadata.level())
}

/// Libraries log warnings and errors only, at `trace` their debug messages too (tokenizers traces every character of a document).
/// llama.cpp and our own crates log at the level set.
fn is_wanted_at(most: LevelFilter, target: &str, level: Level) -> bool {
    let ours = target.starts_with("vademecum") || target.starts_with("llama.cpp");
    ours || level <= if most == LevelFilter::Trace { Level::Debug } else { Level::Warn }
}

/// The room of a message: its crate, or a module of the program's own crate.
fn room(target: &str) -> &str {
    let mut parts = target.split("::");
    match parts.next().unwrap_or_default() {
        "vademecum" => parts.next().unwrap_or("vademecum"),
        first => first.strip_prefix("vademecum_").unwrap_or(first),
    }
}

struct Journal(systemd_journal_logger::JournalLog);

impl Log for Journal {
    fn enabled(&self, metadata: &Metadata) -> bool {
        is_wanted(metadata)
    }

    fn log(&self, record: &Record) {
        if self.enabled(record.metadata()) {
            self.0.log(record);
        }
    }

    fn flush(&self) {
        self.0.flush();
    }
}

struct Stderr;

impl Log for Stderr {
    fn enabled(&self, metadata: &Metadata) -> bool {
        is_wanted(metadata)
    }

    fn log(&self, record: &Record) {
        if self.enabled(record.metadata()) {
            let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
            let target = room(record.target());
            // A lost stderr must not stop the daemon.
            let _ = writeln!(
                std::io::stderr().lock(),
                "{} {:<5} {target}: {}",
                timestamp(now.as_secs(), now.subsec_millis()),
                record.level(),
                on_one_line(&record.args().to_string())
            );
        }
    }

    fn flush(&self) {}
}

/// Escapes characters that would begin a new line or steer a terminal: names of files and topics come from outside.
fn on_one_line(text: &str) -> Cow<'_, str> {
    let steers = |c: char| c.is_control() && c != '\t';
    if !text.contains(steers) {
        return text.into();
    }
    let mut line = String::with_capacity(text.len());
    for c in text.chars() {
        if steers(c) {
            line.extend(c.escape_default());
        } else {
            line.push(c);
        }
    }
    line.into()
}

/// UTC as in RFC 3339, after Howard Hinnant's `civil_from_days`.
fn timestamp(unix: u64, millis: u32) -> String {
    let (days, second) = (unix / 86_400, unix % 86_400);
    let z = days + 719_468;
    let (era, day_of_era) = (z / 146_097, z % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}.{millis:03}Z", second / 3600, second / 60 % 60, second % 60)
}

#[cfg(test)]
mod tests {
    use super::{is_wanted_at, on_one_line, room, timestamp};
    use log::{Level, LevelFilter};

    #[test]
    fn lines_name_their_room() {
        let rooms =
            ["vademecum_mqtt::connection", "vademecum::daemon::reload", "vademecum", "llama.cpp", "rumqttc::v5"].map(room);
        assert_eq!(rooms, ["mqtt", "daemon", "vademecum", "llama.cpp", "rumqttc"]);
    }

    #[test]
    fn libraries_trace_nothing() {
        assert!(is_wanted_at(LevelFilter::Trace, "vademecum::mqtt", Level::Trace));
        assert!(is_wanted_at(LevelFilter::Trace, "rumqttc::v5", Level::Debug));
        assert!(!is_wanted_at(LevelFilter::Trace, "tokenizers::tokenizer", Level::Trace));
        assert!(!is_wanted_at(LevelFilter::Debug, "rumqttc::v5", Level::Debug));
        assert!(is_wanted_at(LevelFilter::Info, "sled::pagecache", Level::Warn));
    }

    #[test]
    fn foreign_text_steers_nothing() {
        assert_eq!(on_one_line("a\tname, ü"), "a\tname, ü");
        assert_eq!(on_one_line("x\n2026 ERROR \u{1b}[31m\u{7}\u{9b}ü"), "x\\n2026 ERROR \\u{1b}[31m\\u{7}\\u{9b}ü");
    }

    #[test]
    fn timestamps_are_utc() {
        assert_eq!(timestamp(0, 0), "1970-01-01T00:00:00.000Z");
        assert_eq!(timestamp(951_782_400, 7), "2000-02-29T00:00:00.007Z");
        assert_eq!(timestamp(1_795_385_565, 999), "2026-11-22T22:12:45.999Z");
    }
}
