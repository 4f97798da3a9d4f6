//! Whole files: objects, filters and fonts with damage.
#![no_main]

use read::formats::PDF;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let _ = PDF.parse(bytes.to_vec());
});
