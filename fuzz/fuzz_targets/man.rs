//! Manual pages, compressed or not.
#![no_main]
#![allow(dead_code)]

#[path = "../../daemon/src/ingest/formats/mod.rs"]
mod formats;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let _ = formats::man::is_man_page(bytes);
    if let Ok(page) = formats::man::unpack(bytes) {
        let _ = formats::man::to_markdown(&formats::decode(&page).0);
    }
});
