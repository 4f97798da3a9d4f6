//! The file of inbox and outbox: any bytes, and records inside the text of a question.
#![no_main]

use mqtt::mailbox::journal;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let _ = journal::read(bytes);

    // A whole record gives its body back; a record that was cut or changed gives nothing.
    let whole = [b"VADMAIL2", journal::record(bytes).as_slice()].concat();
    assert_eq!(journal::read(&whole).bodies, [bytes]);
    let at = 8 + bytes.first().map_or(0, |byte| usize::from(*byte)) % (whole.len() - 8);
    assert!(journal::read(&whole[..at]).bodies.is_empty());
    let mut changed = whole;
    changed[at] ^= 0x40;
    // A change can make the magic number's first byte by chance; nobody can ask for it.
    assert!(changed[at] == 0xF5 || journal::read(&changed).bodies.is_empty());
});
