//! The configuration file: any text is a configuration or an error in words.
#![no_main]

libfuzzer_sys::fuzz_target!(|text: &str| {
    let path = std::env::temp_dir().join(format!("vademecum-fuzz-{}", std::process::id()));
    std::fs::write(&path, text).expect("a temporary file");
    if let Ok(loaded) = vademecum::config::load(Some(&path), std::iter::empty(), &Vec::new()) {
        let _ = (loaded.config.broker_url(), loaded.config.watched_folders());
    }
});
