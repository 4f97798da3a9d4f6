//! Pages of HTML, with their decoding and their titles.
#![no_main]

use read::{Original, read};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let _ = read(Original { id: "page", media_type: Some("text/html"), bytes, ..Original::default() });
});
