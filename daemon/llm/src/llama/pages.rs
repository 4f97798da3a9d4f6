//! The KV cache takes memory only for cells in use.
//!
//! llama.cpp fills a new KV cache with zeros, so every page of it takes memory: 47 MB for 2,048 tokens of a 135M model. A
//! question uses a fifth of that. Pages of private memory that hold only zeros can be given back: they read as zeros all the
//! same.

use llama_cpp_sys_2 as sys;
use std::ffi::{CStr, c_void};

/// The largest page size of the supported boards.
const PAGE: usize = 65_536;

/// User data of [`give_back_zeros`], one for each context.
#[derive(Debug)]
pub(super) struct Fresh {
    /// Set until the context has computed something.
    pub(super) wanted: bool,
    /// Buffers that were searched already.
    seen: Vec<*mut c_void>,
}

impl Fresh {
    pub(super) fn new() -> Self {
        Self { wanted: true, seen: vec![] }
    }
}

/// llama.cpp's callback for each node of a graph, called before the graph is computed. No other public interface reaches the
/// cache's buffers. It never asks for a node's result, so graphs are computed in one piece.
///
/// # Safety
/// `data` is the [`Fresh`] of the computing context, and `tensor` a node of its graph. Nothing else uses the context's memory:
/// the computing thread makes the call while its team waits.
pub(super) unsafe extern "C" fn give_back_zeros(tensor: *mut sys::ggml_tensor, _ask: bool, data: *mut c_void) -> bool {
    // SAFETY: see above.
    unsafe {
        let fresh = &mut *data.cast::<Fresh>();
        if !fresh.wanted {
            return false;
        }
        // A node that writes keys or values is a view of the cache's tensor.
        let cache = (*tensor).view_src;
        if cache.is_null() || (*cache).buffer.is_null() || !is_cache(&(*cache).name) {
            return false;
        }
        let buffer = (*cache).buffer;
        let base = sys::ggml_backend_buffer_get_base(buffer);
        // Memory of a device has other rules.
        let plain = sys::ggml_backend_buffer_get_type(buffer) == sys::ggml_backend_cpu_buffer_type();
        if plain && !fresh.seen.contains(&base) {
            fresh.seen.push(base);
            give_back(std::slice::from_raw_parts(base.cast::<u8>(), sys::ggml_backend_buffer_get_size(buffer)));
        }
    }
    false
}

/// Whether a tensor belongs to the KV cache.
fn is_cache(name: &[std::ffi::c_char; 64]) -> bool {
    // SAFETY: a C string within 64 bytes; ggml ends it.
    let name = unsafe { CStr::from_ptr(name.as_ptr()) };
    name.to_bytes().starts_with(b"cache_k_l") || name.to_bytes().starts_with(b"cache_v_l")
}

/// Drops the pages of private memory that hold zeros only.
///
/// # Safety
/// The memory is private and anonymous, and nothing writes to it meanwhile.
unsafe fn give_back(memory: &[u8]) {
    let begin = memory.as_ptr() as usize;
    let (first, last) = (begin.next_multiple_of(PAGE), (begin + memory.len()) / PAGE * PAGE);
    if first >= last {
        return;
    }
    let zeros = |page: usize| memory[page - begin..page - begin + PAGE].chunks_exact(64).all(|line| line == [0; 64]);
    let mut at = first;
    while at < last {
        let run = (at..last).step_by(PAGE).take_while(|page| zeros(*page)).count() * PAGE;
        if run > 0 {
            // SAFETY: whole pages within the memory; dropped pages read as zeros, as before. Small pages, so that one token does
            // not bring back two megabytes.
            unsafe {
                libc::madvise(at as *mut c_void, run, libc::MADV_NOHUGEPAGE);
                libc::madvise(at as *mut c_void, run, libc::MADV_DONTNEED);
            }
        }
        at += run + PAGE;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resident(memory: &[u8]) -> usize {
        let text = std::fs::read_to_string("/proc/self/smaps").expect("smaps");
        let memory = memory.as_ptr() as usize..memory.as_ptr() as usize + memory.len();
        let (mut ours, mut total) = (false, 0);
        for line in text.lines() {
            let range = line.split_once(' ').and_then(|(range, _)| range.split_once('-'));
            let hex = |text: &str| usize::from_str_radix(text, 16);
            if let Some((Ok(from), Ok(to))) = range.map(|(from, to)| (hex(from), hex(to))) {
                ours = from < memory.end && memory.start < to;
            } else if ours && let Some(kb) = line.strip_prefix("Anonymous:") {
                total += kb.trim().trim_end_matches(" kB").parse::<usize>().expect("a number") * 1024;
            }
        }
        total
    }

    #[test]
    fn only_pages_of_zeros_are_given_back() {
        let mut map = memmap2::MmapMut::map_anon(64 * PAGE).expect("memory");
        map.fill(0);
        map[20 * PAGE + 7] = 1;
        map[40 * PAGE..41 * PAGE].fill(2);
        assert!(resident(&map) >= 60 * PAGE);
        // SAFETY: a private anonymous mapping that this test alone knows.
        unsafe { give_back(&map) };
        let kept = resident(&map);
        assert!((PAGE..8 * PAGE).contains(&kept), "{kept} bytes, neighbours in the mapping included");
        assert!(map[20 * PAGE + 7] == 1 && map[40 * PAGE..41 * PAGE].iter().all(|byte| *byte == 2));
        assert!(map.iter().filter(|byte| **byte != 0).count() == PAGE + 1);
    }
}
