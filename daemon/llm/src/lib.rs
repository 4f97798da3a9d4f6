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
