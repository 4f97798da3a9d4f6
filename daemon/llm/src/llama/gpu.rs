//! Layers of the generator on a graphics processor (features `cuda` and `vulkan`).
//!
//! Both processors of a board share one memory: the device takes its part from everything else. The file's pages can be dropped
//! once the weights are copied. So `auto` asks the device for its free memory and leaves some of it.

use llama_cpp_sys_2 as sys;

use super::Memory;
use crate::gguf::Gguf;

/// Layers that go to a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GpuLayers {
    /// As many as fit into the device's free memory.
    Auto,
    /// This number; 0 for none.
    Exactly(u32),
}

/// Memory of a device that is left free.
const SPARE: u64 = 256 << 20;

/// Whether this program has code for GPUs.
pub(super) const BUILT: bool = cfg!(any(feature = "cuda", feature = "vulkan"));

/// A graphics processor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Device {
    name: String,
    /// Its free and total memory.
    memory: Memory,
}

/// The first graphics processor that llama.cpp finds.
pub(super) fn device() -> Option<Device> {
    let text = |text: *const std::ffi::c_char| {
        // SAFETY: ggml returns strings of the device, which lives as long as the process.
        unsafe { std::ffi::CStr::from_ptr(text) }.to_string_lossy().into_owned()
    };
    for kind in [sys::GGML_BACKEND_DEVICE_TYPE_GPU, sys::GGML_BACKEND_DEVICE_TYPE_IGPU] {
        // SAFETY: reads ggml's list of devices; the pointers are written before the call returns.
        unsafe {
            let device = sys::ggml_backend_dev_by_type(kind);
            if !device.is_null() {
                let (mut free, mut total) = (0, 0);
                sys::ggml_backend_dev_memory(device, &raw mut free, &raw mut total);
                let memory = Memory { total: total as u64, available: free as u64 };
                return Some(Device { name: text(sys::ggml_backend_dev_description(device)), memory });
            }
        }
    }
    None
}

impl GpuLayers {
    /// The number of layers for this machine's device, and the reason for people, which is logged.
    pub fn place(self, gguf: &Gguf, needed: u64) -> (u32, Option<String>) {
        let (layers, why) = self.decide(gguf, needed, device().as_ref());
        match &why {
            Some(why) if layers == 0 && self != Self::Exactly(0) => log::warn!("GPU {why}"),
            Some(why) => log::info!("GPU: {why}"),
            None => {}
        }
        (layers, why)
    }

    /// The number of layers for `device`, and the reason for people. `None` where neither build nor configuration mentions GPUs.
    ///
    /// `needed`: bytes of the context, which lie beside the layers.
    pub(super) fn decide(self, gguf: &Gguf, needed: u64, device: Option<&Device>) -> (u32, Option<String>) {
        // The output layer counts as one.
        let all = gguf.layers().unwrap_or(0) as u32 + 1;
        match (self, device) {
            (Self::Exactly(0), _) => (0, BUILT.then(|| "off, as configured".into())),
            (Self::Auto, None) if !BUILT => (0, None),
            (_, None) if !BUILT => (
                0,
                Some("off: this program is built without code for GPUs (features cuda, vulkan); the processor computes".into()),
            ),
            (_, None) => (0, Some("off: no GPU was found; the processor computes".into())),
            (Self::Exactly(layers), Some(device)) => {
                (layers.min(all), Some(format!("{} of {all} layers on {}, as configured", layers.min(all), device.name)))
            }
            (Self::Auto, Some(device)) => {
                let room = device.memory.available.saturating_sub(SPARE);
                let whole = gguf.file_bytes().saturating_add(needed).max(1);
                let layers = (u128::from(room) * u128::from(all) / u128::from(whole)).min(u128::from(all)) as u32;
                let why =
                    format!("{layers} of {all} layers on {} ({} MB free)", device.name, device.memory.available / 1_000_000);
                (layers, Some(why))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gguf::test_model as model;

    #[test]
    fn as_many_layers_as_fit_go_to_the_device() {
        let gguf = Gguf::open(&model("generator.gguf")).expect("opens");
        let of = |available: u64| Device { name: "G".into(), memory: Memory { total: 4 << 30, available } };
        let decide = |layers: GpuLayers, available: u64| layers.decide(&gguf, 50 << 20, Some(&of(available)));
        assert_eq!(decide(GpuLayers::Auto, 2 << 30).0, 31);
        assert_eq!(decide(GpuLayers::Auto, 100 << 20).0, 0);
        let half = decide(GpuLayers::Auto, SPARE + u64::midpoint(gguf.file_bytes(), 50 << 20)).0;
        assert!((14..=16).contains(&half), "{half}");
        assert_eq!(decide(GpuLayers::Exactly(7), 0), (7, Some("7 of 31 layers on G, as configured".into())));
        assert_eq!(decide(GpuLayers::Exactly(99), 0).0, 31);
        assert_eq!(decide(GpuLayers::Exactly(0), 2 << 30).0, 0);
    }

    #[test]
    fn without_a_device_the_processor_computes() {
        let gguf = Gguf::open(&model("generator.gguf")).expect("opens");
        let (layers, why) = GpuLayers::Exactly(10).decide(&gguf, 0, None);
        let why = why.expect("a reason");
        assert!(layers == 0 && why.starts_with("off: ") && why.ends_with("the processor computes"), "{why}");
        assert_eq!(GpuLayers::Auto.decide(&gguf, 0, None).1.is_some(), BUILT);
    }
}
