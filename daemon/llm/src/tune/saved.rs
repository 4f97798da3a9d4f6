//! The measurements, kept in a small JSON file in the data directory.

use std::io::Read;
use std::path::{Path, PathBuf};

use super::Calibration;

/// File name in the data directory.
const FILE: &str = "threads.json";
/// The version of the file.
const VERSION: u32 = 3;
/// Most measurements in the file, the latest first, and most bytes that are read.
const MOST: usize = 16;
const MOST_BYTES: u64 = 256 * 1024;

/// The conditions of a measurement. Any other model, placement of weights, processor, set of cores, quota or llama.cpp needs a
/// new one.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct CalibrationKey {
    /// Fingerprint of the model file.
    pub model: String,
    /// Placement of its weights: mapped or repacked, and layers on a GPU.
    pub weights: String,
    /// Processor or board.
    pub cpu: String,
    /// The usable cores, fastest first: hardware threads and, where known, speed of each.
    pub cores: String,
    /// CPU quota in percent of a core.
    pub quota_percent: Option<u64>,
    /// Version of llama.cpp.
    pub build: String,
}

#[derive(serde::Serialize, serde::Deserialize)]
struct Entry {
    #[serde(flatten)]
    key: CalibrationKey,
    #[serde(flatten)]
    calibration: Calibration,
}

#[derive(serde::Serialize, serde::Deserialize)]
struct File {
    version: u32,
    measured: Vec<Entry>,
}

/// The measurements kept in a data directory.
#[derive(Debug, Clone)]
pub struct Saved {
    path: PathBuf,
}

impl Saved {
    /// The measurements of this data directory, which need not exist.
    pub fn in_dir(data_dir: &Path) -> Self {
        Self { path: data_dir.join(FILE) }
    }

    /// The measurement under the same conditions. A damaged or foreign file holds none.
    pub fn find(&self, key: &CalibrationKey) -> Option<Calibration> {
        self.read().into_iter().find(|entry| entry.key == *key).map(|entry| entry.calibration)
    }

    /// Keeps a measurement in place of the one under the same conditions. The file is written aside and renamed.
    ///
    /// # Errors
    /// The file cannot be written; only time is lost.
    pub fn keep(&self, key: &CalibrationKey, calibration: &Calibration) -> std::io::Result<()> {
        let mut measured = self.read();
        measured.retain(|entry| entry.key != *key);
        measured.insert(0, Entry { key: key.clone(), calibration: calibration.clone() });
        measured.truncate(MOST);
        let text = serde_json::to_string_pretty(&File { version: VERSION, measured })?;
        // Another process may write the file at the same time.
        let aside = self.path.with_extension(format!("json.{}", std::process::id()));
        let written = std::fs::write(&aside, text + "\n").and_then(|()| std::fs::rename(&aside, &self.path));
        if written.is_err() {
            let _ = std::fs::remove_file(&aside);
        }
        written
    }

    fn read(&self) -> Vec<Entry> {
        let mut text = String::new();
        let read = std::fs::File::open(&self.path).and_then(|file| file.take(MOST_BYTES).read_to_string(&mut text));
        let file = read.ok().and_then(|_| serde_json::from_str::<File>(&text).ok());
        let entries = file.filter(|file| file.version == VERSION).map(|file| file.measured).unwrap_or_default();
        entries.into_iter().filter(|entry| entry.calibration.is_sound()).take(MOST).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tune::{ThreadSpeed, Threads};

    fn measured(threads: usize) -> Calibration {
        let row = ThreadSpeed { threads, median: 2.0, min: 1.0, max: 3.0, samples: 5 };
        Calibration {
            best: Threads { decode: threads, batch: threads },
            decode: vec![row.clone()],
            batch: vec![row],
            verify: vec![],
            seconds: 1.5,
        }
    }

    fn key(model: &str) -> CalibrationKey {
        let text = |text: &str| text.to_owned();
        CalibrationKey {
            model: text(model),
            weights: text("mapped"),
            cpu: text("board"),
            cores: text("1,1"),
            quota_percent: None,
            build: text("b"),
        }
    }

    #[test]
    fn it_holds_for_the_same_conditions_only() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let saved = Saved::in_dir(dir.path());
        assert_eq!(saved.find(&key("a")), None);
        saved.keep(&key("a"), &measured(2)).expect("written");
        saved.keep(&key("b"), &measured(3)).expect("written");
        assert_eq!(saved.find(&key("a")), Some(measured(2)));
        for other in [
            CalibrationKey { weights: "repacked".into(), ..key("a") },
            CalibrationKey { cpu: "other".into(), ..key("a") },
            CalibrationKey { cores: "1".into(), ..key("a") },
            CalibrationKey { quota_percent: Some(150), ..key("a") },
            CalibrationKey { build: "c".into(), ..key("a") },
        ] {
            assert_eq!(saved.find(&other), None);
        }
        saved.keep(&key("a"), &measured(4)).expect("written");
        assert_eq!((saved.find(&key("a")), saved.find(&key("b"))), (Some(measured(4)), Some(measured(3))));
        for i in 0..40 {
            saved.keep(&key(&i.to_string()), &measured(1)).expect("written");
        }
        assert_eq!(saved.read().len(), MOST);
        assert_eq!(std::fs::read_dir(dir.path()).expect("directory").count(), 1);
    }

    #[test]
    fn damaged_and_foreign_files_are_replaced() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let saved = Saved::in_dir(dir.path());
        saved.keep(&key("a"), &measured(2)).expect("written");
        let good = std::fs::read_to_string(&saved.path).expect("text");
        let bad = [
            good[..good.len() / 2].to_owned(),
            good.replace("\"version\": 3", "\"version\": 2"),
            good.replace("\"median\": 2.0", "\"median\": -2.0"),
            good.replace("\"decode\": 2", "\"decode\": 0"),
            "\u{0}\u{1}".to_owned(),
            " ".repeat(MOST_BYTES as usize) + &good,
        ];
        for text in bad {
            std::fs::write(&saved.path, &text).expect("written");
            assert_eq!(saved.find(&key("a")), None, "{}", text.trim());
            saved.keep(&key("a"), &measured(3)).expect("written");
            assert_eq!(saved.find(&key("a")), Some(measured(3)));
        }
    }
}
