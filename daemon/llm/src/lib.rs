//! llama.cpp behind one border: model files, threads, the generator and the encoder. No other room calls C.
//!
//! | module | one job |
//! |---|---|
//! | [`engine`] | the generator: one thread owns the llama.cpp context |
//! | [`embed`] | text to unit vectors |
//! | [`llama`] | the boundary to llama.cpp that `engine` and `embed` share |
//! | [`gguf`] | the model file: reading, checking, converting |
//! | [`tune`] | which cores, how many threads |
//! | [`resources`] | memory of this process |
pub mod embed;
pub mod engine;
pub mod gguf;
pub mod llama;
pub mod resources;
pub mod tune;

#[cfg(all(test, feature = "openmp", not(feature = "dynamic-backends")))]
define_openmp!();

/// Whether a character belongs to a script that puts no spaces between words.
pub(crate) fn has_no_spaces(c: char) -> bool {
    matches!(u32::from(c),
        0x0E00..=0x0EFF | 0x1000..=0x109F | 0x1780..=0x17FF | 0x3040..=0x30FF | 0x3400..=0x9FFF | 0xF900..=0xFAFF | 0x20000..=0x3FFFF)
}
