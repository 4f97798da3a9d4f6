//! `DocBook`, recognised or not.
#![no_main]
#![allow(dead_code)]

#[path = "../../daemon/src/ingest/formats/mod.rs"]
mod formats;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let (text, _) = formats::decode(bytes);
    let _ = formats::docbook::is_docbook(&text);
    let _ = formats::docbook::to_markdown(&text);
});
