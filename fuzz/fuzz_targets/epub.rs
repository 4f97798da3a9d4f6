//! Whole EPUB files, and by the same way the small readers of ZIP and XML.
#![no_main]

use read::formats::EPUB;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let _ = EPUB.parse(bytes.to_vec());
});
