//! A fast identity for a model file.

use std::fmt::Write;

use sha2::{Digest, Sha256};

/// Blocks sampled from the tensor data.
const SAMPLES: u64 = 64;
/// Size of a sampled block in bytes.
const BLOCK: u64 = 4096;

/// SHA-256, in hex, over: a format tag; the file size (u64, little endian); everything before the tensor data; 64 blocks of 4 KiB
/// of the data. Before the data lie header, metadata with vocabulary and template, and tensor descriptions. The blocks are spread
/// evenly: the first lies at the start of the data, the last at its end. Smaller data are hashed whole.
///
/// The fingerprint tells models, quantisations and conversions apart in milliseconds, whatever their size. It does not protect
/// against forged files: use the SHA-256 of the whole file for that.
pub(super) fn fingerprint(file: &[u8], data_offset: u64) -> String {
    let split = usize::try_from(data_offset).unwrap_or(usize::MAX).min(file.len());
    let (head, data) = file.split_at(split);
    let mut hash = Sha256::new();
    hash.update(b"vademecum gguf 1\n");
    hash.update((file.len() as u64).to_le_bytes());
    hash.update(head);
    let len = data.len() as u64;
    if len <= SAMPLES * BLOCK {
        hash.update(data);
    } else {
        for n in 0..SAMPLES {
            let start = (u128::from(len - BLOCK) * u128::from(n) / u128::from(SAMPLES - 1)) as usize;
            hash.update(&data[start..start + BLOCK as usize]);
        }
    }
    hash.finalize().iter().fold(String::with_capacity(64), |mut hex, byte| {
        let _ = write!(hex, "{byte:02x}");
        hex
    })
}
