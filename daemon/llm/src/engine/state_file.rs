//! The file of a state: magic (8 bytes), key (32 bytes), CRC-32 of the state (4 bytes, little endian), the state as llama.cpp
//! writes it. Key and checksum are verified first, because llama.cpp's parser trusts its input.

const MAGIC: [u8; 8] = *b"VADEMKV1";
/// Bytes before the state.
pub const HEAD: usize = MAGIC.len() + 32 + 4;

/// Fills in the head of a file: `bytes` are [`HEAD`] bytes, then the state.
pub fn seal(bytes: &mut [u8], key: &[u8; 32]) {
    let sum = crc32fast::hash(&bytes[HEAD..]);
    bytes[..8].copy_from_slice(&MAGIC);
    bytes[8..40].copy_from_slice(key);
    bytes[40..HEAD].copy_from_slice(&sum.to_le_bytes());
}

/// Whether a file is undamaged and holds the state of this key.
pub fn is_whole(bytes: &[u8], key: &[u8; 32]) -> bool {
    bytes.len() > HEAD
        && bytes[..8] == MAGIC
        && bytes[8..40] == *key
        && bytes[40..HEAD] == crc32fast::hash(&bytes[HEAD..]).to_le_bytes()
}
