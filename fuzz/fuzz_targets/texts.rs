//! Text formats with a syntax of their own, mails, and data. The first byte chooses the reader.
#![no_main]

use read::formats::{ASCIIDOC, JSON, MAIL, MARKDOWN, NOTEBOOK, PLAIN, RST, SUBTITLES};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let Some((&choice, rest)) = bytes.split_first() else { return };
    let formats = [&RST, &ASCIIDOC, &MAIL, &JSON, &NOTEBOOK, &SUBTITLES, &MARKDOWN, &PLAIN];
    let _ = formats[usize::from(choice) % formats.len()].parse(rest.to_vec());
});
