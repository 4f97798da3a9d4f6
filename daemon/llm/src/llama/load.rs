//! Loads a generator and decides whether its weights stay pages of the file.

use super::{GpuLayers, Memory};
use crate::gguf::Gguf;
use llama_cpp_2::LlamaModelLoadError;
use llama_cpp_2::llama_backend::LlamaBackend;
use llama_cpp_2::model::LlamaModel;
use llama_cpp_sys_2 as sys;
use std::ffi::CString;
use std::path::Path;
use std::ptr::NonNull;

/// Whether weights may be repacked: copied into anonymous memory in the fastest order. Prompts are then read faster with 4-bit
/// types (`benches/results/weights.md`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Repack {
    /// If there is memory to spare.
    Auto,
    /// Always.
    On,
    /// Never: every page of the weights belongs to the file.
    Off,
}

/// Memory that `auto` leaves to other programs and the page cache.
const SPARE: u64 = 512 << 20;

/// The decision about repacking.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Repacking {
    /// Whether weights are repacked.
    pub on: bool,
    /// Bytes of own memory that the copy takes, or would take.
    pub bytes: u64,
    /// The reason, for people.
    pub why: String,
}

impl Repack {
    /// Whether to repack on this processor. `needed`: bytes that the context will take.
    pub fn decide(self, gguf: &Gguf, needed: u64, memory: &Memory) -> Repacking {
        self.decide_for(repackable_bytes(gguf, super::build()), needed, memory)
    }

    fn decide_for(self, bytes: u64, needed: u64, memory: &Memory) -> Repacking {
        let mega = |bytes: u64| format!("{} MB", bytes / 1_000_000);
        let left = memory.available.saturating_sub(needed);
        let spare = SPARE.max(memory.total / 8);
        let (on, why) = match self {
            Self::Off => (false, "off, as configured".into()),
            _ if bytes == 0 => (false, "off: no weights that can be repacked on this processor".into()),
            Self::On => (true, "on, as configured".into()),
            Self::Auto if left >= bytes + spare => (true, format!("on: {} of {} free memory", mega(bytes), mega(left))),
            Self::Auto => {
                let (needs, left, spare) = (mega(bytes), mega(left), mega(spare));
                (false, format!("off: it needs {needs}, and of {left} free memory {spare} are left to others"))
            }
        };
        Repacking { on, bytes, why }
    }
}

/// The memory locked by this process, for people. llama.cpp reports a failure only in its log.
pub fn locked() -> String {
    let kib = crate::resources::status_kb(["VmLck"]).map_or(0, |[kib]| kib);
    match kib {
        0 => "no: the system does not allow it (LimitMEMLOCK= of the unit, `ulimit -l`)".into(),
        kib => format!("{} MB", kib * 1024 / 1_000_000),
    }
}

/// Bytes of the matrices that llama.cpp repacks with this build on this processor (`build`: [`super::build`]).
fn repackable_bytes(gguf: &Gguf, build: &str) -> u64 {
    // Tied models compute their output with the embedding table.
    let is_tied = gguf.tensor("output.weight").is_none();
    let computes = |name: &str| is_tied || name != "token_embd.weight";
    let tensors = gguf.tensors().iter().filter(|tensor| tensor.dims.len() >= 2 && computes(&tensor.name));
    tensors.filter(|tensor| is_repacked(tensor.tensor_type.name, build)).map(|tensor| tensor.bytes).sum()
}

/// Whether llama.cpp has code for repacked weights of a type (`ggml_repack_get_optimal_repack_type`). The processor of a
/// Raspberry Pi 3 or 4 has none, that of a Pi 5 has it.
fn is_repacked(tensor_type: &str, build: &str) -> bool {
    let has = |feature: &str| build.contains(&format!("{feature} = 1"));
    match tensor_type {
        "Q4_0" | "Q4_K" | "IQ4_NL" | "MXFP4" => has("AVX2") || has("DOTPROD"),
        "Q5_K" | "Q6_K" | "Q8_0" => has("DOTPROD"),
        "Q2_K" => has("AVX512"),
        _ => false,
    }
}

/// The configured placement of weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Weights {
    /// Whether they may be repacked.
    pub repack: Repack,
    /// Whether their pages are locked in memory.
    pub mlock: bool,
    /// Layers on a graphics processor.
    pub gpu_layers: GpuLayers,
}

impl Weights {
    /// Decides for a model whose context will take `needed` bytes. llama.cpp must be initialised.
    pub fn place(&self, gguf: &Gguf, needed: u64) -> Placed {
        let Repacking { on, bytes, why } = self.repack.decide(gguf, needed, &super::available_memory());
        let (gpu_layers, gpu) = self.gpu_layers.place(gguf, needed);
        let placement = Placement { repack: on, mlock: self.mlock, gpu_layers };
        Placed { placement, repack: why, repacked_bytes: if on { bytes } else { 0 }, gpu }
    }
}

/// The decided placement, with the reasons for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Placed {
    /// The placement of weights.
    pub placement: Placement,
    /// Whether they are repacked, and why.
    pub repack: String,
    /// Bytes of own memory that repacked weights take. Layers on a graphics processor take less.
    pub repacked_bytes: u64,
    /// The GPU's part, where build or configuration mentions one.
    pub gpu: Option<String>,
}

/// The placement of weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Placement {
    /// Copied into anonymous memory in the fastest order.
    pub repack: bool,
    /// Locked in memory.
    pub mlock: bool,
    /// Layers on a graphics processor.
    pub gpu_layers: u32,
}

impl Placement {
    /// For the processor: repacked where its code wants that, mapped otherwise.
    pub const PROCESSOR: Self = Self { repack: true, mlock: false, gpu_layers: 0 };
}

/// For people, and part of the keys of states and measurements. Locked pages change neither, so they are left out.
impl std::fmt::Display for Placement {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(if self.repack { "repacked" } else { "mapped" })?;
        match self.gpu_layers {
            0 => Ok(()),
            layers => write!(f, ", {layers} layers on a graphics processor"),
        }
    }
}

/// Loads a model, mapped.
pub fn load(_: &LlamaBackend, path: &Path, placement: Placement) -> Result<LlamaModel, LlamaModelLoadError> {
    let Placement { repack, mlock, gpu_layers } = placement;
    // llama-cpp-2 has no option for repacking, and its override of the buffer type repacks all the same. SAFETY: returns a plain
    // struct.
    let mut params = unsafe { sys::llama_model_default_params() };
    params.n_gpu_layers = gpu_layers as i32;
    // An empty list of devices: without layers on a GPU, nothing else goes there either.
    let mut none = [std::ptr::null_mut()];
    if gpu_layers == 0 {
        params.devices = none.as_mut_ptr();
    }
    params.load_mode = if mlock { sys::LLAMA_LOAD_MODE_MMAP_MLOCK } else { sys::LLAMA_LOAD_MODE_MMAP };
    params.use_extra_bufts = repack;
    let path = CString::new(path.as_os_str().as_encoded_bytes())?;
    // SAFETY: llama.cpp is initialised, and path and list live until the call returns.
    let raw = NonNull::new(unsafe { sys::llama_model_load_from_file(path.as_ptr(), params) });
    Ok(owned(raw.ok_or(LlamaModelLoadError::NullResult)?))
}

/// Wraps the model in an owner that frees it.
fn owned(raw: NonNull<sys::llama_model>) -> LlamaModel {
    const { assert!(size_of::<LlamaModel>() == size_of::<NonNull<sys::llama_model>>()) };
    // SAFETY: `LlamaModel` is a transparent wrapper of that pointer (the version is pinned, the size checked), and this owner
    // alone frees it.
    unsafe { std::mem::transmute::<NonNull<sys::llama_model>, LlamaModel>(raw) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gguf::test_model as model;
    use crate::llama::{Bench, backend};
    use crate::tune::WorkKind;
    use std::path::PathBuf;

    /// The generator in Q4_0, made once by llama.cpp's own quantiser and kept beside the models.
    fn q4_0() -> PathBuf {
        let from = model("generator.gguf");
        let folder = from.parent().and_then(Path::parent).expect("a cache").join("tests");
        let path = folder.join("generator-q4_0.gguf");
        if !path.exists() {
            backend().expect("initialises");
            std::fs::create_dir_all(&folder).expect("a folder");
            let part = folder.join(format!("{}.part", std::process::id()));
            let c = |path: &Path| CString::new(path.as_os_str().as_encoded_bytes()).expect("no zero byte");
            // SAFETY: paths that live until the call returns, and a plain struct.
            let result = unsafe {
                let mut params = sys::llama_model_quantize_default_params();
                params.ftype = sys::LLAMA_FTYPE_MOSTLY_Q4_0;
                params.allow_requantize = true;
                sys::llama_model_quantize(c(&from).as_ptr(), c(&part).as_ptr(), &raw const params)
            };
            assert_eq!(result, 0, "it can be quantised");
            std::fs::rename(&part, &path).expect("its name");
        }
        path
    }

    fn anonymous() -> u64 {
        let text = std::fs::read_to_string("/proc/self/smaps_rollup").expect("smaps_rollup");
        let line = text.lines().find_map(|line| line.strip_prefix("Anonymous:")).expect("a line");
        line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") * 1024
    }

    /// Anonymous memory that a load adds, and tokens per second of a batch and of decoding.
    fn measured(path: &Path, repack: bool, rounds: usize) -> (u64, Vec<f64>, Vec<f64>) {
        let backend = backend().expect("initialises");
        let before = anonymous();
        let model = load(backend, path, Placement { repack, ..Placement::PROCESSOR }).expect("loads");
        let more = anonymous() - before;
        let mut bench = Bench::of(&model, path, super::super::Pulse::default()).expect("a context");
        let of = |kind, bench: &mut Bench<'_>| (0..rounds).map(|_| bench.measure(kind, 1).expect("runs")).collect();
        let batch = of(WorkKind::Batch, &mut bench);
        (more, batch, of(WorkKind::Decode, &mut bench))
    }

    fn median(mut values: Vec<f64>) -> f64 {
        values.sort_by(f64::total_cmp);
        values[values.len() / 2]
    }

    #[test]
    fn only_repacked_weights_are_anonymous_memory() {
        let path = q4_0();
        let gguf = Gguf::open(&path).expect("opens");
        let bytes = repackable_bytes(&gguf, crate::llama::build());
        // Both figures include the vocabulary.
        let (off, ..) = measured(&path, false, 0);
        let (on, ..) = measured(&path, true, 0);
        println!("anonymous: {} MB more repacked, {} MB not; {} MB can be", on / 1_000_000, off / 1_000_000, bytes / 1_000_000);
        assert!(off < 30_000_000, "{off}");
        assert!(on >= bytes * 9 / 10 && on < bytes + 30_000_000, "{on}");
    }

    #[test]
    fn the_decision_says_why() {
        let decide = |repack: Repack, bytes: u64, available: u64| {
            let decision = repack.decide_for(bytes, 60 << 20, &Memory { total: 4 << 30, available });
            assert_eq!(decision.bytes, bytes);
            (decision.on, decision.why)
        };
        // The 1.5B model in Q4_K_M.
        let bytes = 690_000_000;
        let (on, why) = decide(Repack::Auto, bytes, 2 << 30);
        assert!(on && why.starts_with("on: 690 MB of ") && why.ends_with("free memory"), "{why}");
        let (on, why) = decide(Repack::Auto, bytes, 1 << 30);
        assert!(!on && why.starts_with("off: it needs 690 MB") && why.contains("left to others"), "{why}");
        let none = (false, "off: no weights that can be repacked on this processor".to_owned());
        assert_eq!(decide(Repack::Auto, 0, 2 << 30), none);
        assert_eq!(decide(Repack::On, 0, 2 << 30), none);
        assert_eq!(decide(Repack::On, bytes, 0), (true, "on, as configured".into()));
        assert_eq!(decide(Repack::Off, bytes, 2 << 30), (false, "off, as configured".into()));
    }

    #[test]
    fn the_processor_decides_which_weights_are_repacked() {
        let (q4_0, q4_1) = (Gguf::open(&q4_0()).expect("opens"), Gguf::open(&model("generator.gguf")).expect("opens"));
        let (pc, pi4, pi5) = ("AVX2 = 1 | FMA = 1", "NEON = 1 | LLAMAFILE = 1", "NEON = 1 | DOTPROD = 1");
        assert!((50_000_000..80_000_000).contains(&repackable_bytes(&q4_0, pc)));
        assert_eq!(repackable_bytes(&q4_0, pi4), 0);
        assert!(repackable_bytes(&q4_0, pi5) >= repackable_bytes(&q4_0, pc));
        assert_eq!(repackable_bytes(&q4_1, pc), 0);
        for (tensor_type, expected) in [("Q4_K", [true, false, true]), ("Q6_K", [false, false, true]), ("Q4_1", [false; 3])] {
            assert_eq!([pc, pi4, pi5].map(|build| is_repacked(tensor_type, build)), expected, "{tensor_type}");
        }
    }

    /// Prints the table of `benches/results/weights.md`. Run by hand, on a quiet machine.
    #[test]
    #[ignore = "a measurement"]
    fn what_repacking_brings() {
        let (path, q4_1) = (q4_0(), model("generator.gguf"));
        let rows = [("Q4_1", q4_1.as_path(), false), ("Q4_0, mapped", &path, false), ("Q4_0, repacked", &path, true)];
        let mut figures = [(); 3].map(|()| (vec![], vec![], 0));
        for round in 0..5 {
            for (row, figure) in rows.iter().zip(&mut figures) {
                let (more, batch, decode) = measured(row.1, row.2, 4);
                figure.0.extend(batch);
                figure.1.extend(decode);
                if round == 0 {
                    figure.2 = more;
                }
            }
        }
        for (row, (batch, decode, more)) in rows.iter().zip(figures) {
            println!("{}: batch {:.1}, decode {:.1} tokens/s, {} MB", row.0, median(batch), median(decode), more / 1_000_000);
        }
    }
}
