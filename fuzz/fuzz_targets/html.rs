//! Pages of HTML.
#![no_main]
#![allow(dead_code)]

#[path = "../../daemon/src/ingest/formats/mod.rs"]
mod formats;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let (text, _) = formats::decode(bytes);
    let _ = formats::html::to_markdown(&text);
});
