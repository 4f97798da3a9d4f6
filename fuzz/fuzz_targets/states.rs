//! The files with states of passages: what is given to llama.cpp is what was written, under the key that it was written for.
#![no_main]
#![allow(dead_code)]

#[path = "../../daemon/src/engine/state_file.rs"]
mod state_file;

use state_file::HEAD;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let mut key = [0; 32];
    key.iter_mut().zip(bytes).for_each(|(key, byte)| *key = *byte);
    // Whatever stands in a file.
    let mut foreign = bytes.to_vec();
    let taken = state_file::is_whole(&foreign, &key);
    assert!(!taken || foreign.len() > HEAD);
    // With a head of ours, so that the rest is looked at, too.
    if foreign.len() > HEAD {
        foreign[..8].copy_from_slice(b"VADEMKV1");
        foreign[8..40].copy_from_slice(&key);
        let sum = u32::from_le_bytes(foreign[40..HEAD].try_into().expect("four bytes"));
        assert_eq!(state_file::is_whole(&foreign, &key), sum == crc32fast::hash(&foreign[HEAD..]));
    }

    // Kept whole it is taken, for its key alone; cut short or with a bit changed it is not.
    let mut whole = [&[0; HEAD], bytes, b"."].concat();
    state_file::seal(&mut whole, &key);
    assert!(state_file::is_whole(&whole, &key));
    let at = bytes.iter().fold(0_usize, |sum, byte| sum.wrapping_mul(31).wrapping_add((*byte).into())) % whole.len();
    assert!(!state_file::is_whole(&whole[..at], &key));
    let mut other = key;
    other[at % 32] ^= 1;
    assert!(!state_file::is_whole(&whole, &other));
    whole[at] ^= 1 << (at % 8);
    assert!(!state_file::is_whole(&whole, &key));
});
