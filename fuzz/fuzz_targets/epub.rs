//! Whole EPUB files, and by the same way the small readers of ZIP and XML.
#![no_main]
#![allow(dead_code)]

#[path = "../../daemon/src/ingest/formats/mod.rs"]
mod formats;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let _ = formats::parse(formats::Format::Epub, bytes.to_vec());
});
