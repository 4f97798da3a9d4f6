//! Loading a generator: whether its weights stay pages of the file.

use super::Memory;
use crate::gguf::Gguf;
use llama_cpp_2::LlamaModelLoadError;
use llama_cpp_2::llama_backend::LlamaBackend;
use llama_cpp_2::model::LlamaModel;
use llama_cpp_2::model::params::LlamaModelParams;
use std::path::Path;
use std::pin::pin;

/// Whether weights may be repacked: copied into anonymous memory in the order that is quickest to compute with. For 4-bit
/// types prompts are then read about twice as fast.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Repack {
    /// Where there is memory to spare.
    Auto,
    /// Always.
    On,
    /// Never: every page of the weights is one of the file.
    Off,
}

/// Memory that is left to others and to the page cache when weights are repacked of our own accord.
const SPARE: u64 = 512 << 20;

impl Repack {
    /// Whether to repack, and the reason for people. `needed`: bytes that the context will take.
    pub fn decide(self, gguf: &Gguf, needed: u64, memory: &Memory) -> (bool, String) {
        let bytes = repackable_bytes(gguf);
        let mega = |bytes: u64| format!("{} MB", bytes / 1_000_000);
        match self {
            Self::On => (true, "on, as configured".into()),
            Self::Off => (false, "off, as configured".into()),
            Self::Auto if bytes == 0 => (false, "off: it holds no weights that could be".into()),
            Self::Auto => {
                let left = memory.available.saturating_sub(needed);
                let spare = SPARE.max(memory.total / 8);
                if left >= bytes + spare {
                    (true, format!("on: {} of {} free memory", mega(bytes), mega(left)))
                } else {
                    (
                        false,
                        format!(
                            "off: it needs {}, and of {} free memory {} are left to others",
                            mega(bytes),
                            mega(left),
                            mega(spare)
                        ),
                    )
                }
            }
        }
    }
}

/// Bytes of the matrices whose type llama.cpp repacks on some processor.
fn repackable_bytes(gguf: &Gguf) -> u64 {
    let repackable = |name: &str| matches!(name, "Q4_0" | "Q4_K" | "Q2_K" | "Q5_K" | "Q6_K" | "IQ4_NL" | "MXFP4");
    let tensors = gguf.tensors().iter().filter(|tensor| tensor.dims.len() >= 2 && tensor.name != "token_embd.weight");
    tensors.filter(|tensor| repackable(tensor.tensor_type.name)).map(|tensor| tensor.bytes).sum()
}

/// Loads a model for the CPU.
pub fn load(backend: &LlamaBackend, path: &Path, repack: bool, mlock: bool) -> Result<LlamaModel, LlamaModelLoadError> {
    let mut params = pin!(LlamaModelParams::default().with_n_gpu_layers(0).with_use_mlock(mlock));
    if !repack {
        // The plain buffer type for all tensors: the one whose pages can be those of the file.
        params.as_mut().add_cpu_buft_override(c".*");
    }
    LlamaModel::load_from_file(backend, path, &params)
}
