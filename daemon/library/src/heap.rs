//! The heap of this process.
#![allow(unsafe_code, reason = "malloc_trim has no safe wrapper")]

/// Gives freed memory back to the system. glibc keeps it after many small pieces.
pub(crate) fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: the call takes a number and touches free memory only.
    unsafe {
        libc::malloc_trim(0);
    }
}
