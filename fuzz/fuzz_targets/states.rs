//! Files of the kv cache: llama.cpp gets the bytes that were written under a key, and only under that key.
#![no_main]

use llm::engine::state_file::{self, HEAD};

/// The file that the writer makes of a state.
fn written(state: &[u8], key: &[u8; 32]) -> Vec<u8> {
    let mut file = [&[0; HEAD], state].concat();
    state_file::seal(&mut file, key);
    file
}

/// A file is taken if the writer would have written it, to the last byte.
fn look_at(file: &[u8], key: &[u8; 32]) -> bool {
    let ours = file.len() > HEAD && written(&file[HEAD..], key) == file;
    assert_eq!(state_file::is_whole(file, key), ours);
    ours
}

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let [at, cut, bit, state @ ..] = bytes else { return };
    let mut key = [0; 32];
    key.iter_mut().zip(state.iter().skip(8)).for_each(|(key, byte)| *key = *byte);
    // Any bytes, and a right head whose checksum alone can be wrong.
    look_at(state, &key);
    if state.len() > HEAD {
        let mut file = state.to_vec();
        let ours = written(b"", &key);
        file[..40].copy_from_slice(&ours[..40]);
        look_at(&file, &key);
    }

    let file = written(state, &key);
    assert_eq!(look_at(&file, &key), !state.is_empty());
    // Cut short, too long, with a piece missing, with one bit changed, under the key of another state.
    let at = usize::from(*at) * file.len() / 256;
    let end = (at + usize::from(*cut)).min(file.len());
    look_at(&file[..at], &key);
    look_at(&[&file[..], &state[..state.len().min(end)]].concat(), &key);
    look_at(&[&file[..at], &file[end..]].concat(), &key);
    let mut changed = file.clone();
    changed[at] ^= 1 << (bit % 8);
    assert!(!look_at(&changed, &key));
    key[usize::from(bit % 32)] ^= 1 << (cut % 8);
    assert!(!look_at(&file, &key));
});
