//! Whole files: what objects, filters and fonts do with damage.
#![no_main]
#![allow(dead_code)]

#[path = "../../daemon/src/ingest/formats/mod.rs"]
mod formats;

#[cfg(not(feature = "pdf"))]
compile_error!("without the feature nothing would be fuzzed");

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let _ = formats::parse(formats::Format::Pdf, bytes.to_vec());
});
