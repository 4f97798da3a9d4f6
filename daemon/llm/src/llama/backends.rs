//! llama.cpp's code for this processor, chosen at the start (feature `dynamic-backends`). One library for each kind of processor
//! lies beside the program. ggml keeps the best one that this processor can run.
//!
//! Libraries are searched in `../lib/vademecum` as seen from the program, then in the program's own folder, and nowhere else:
//! they run with the daemon's rights.

use llama_cpp_sys_2 as sys;

/// The chosen variant (`armv8.2_2`, `haswell`), by the name of its library; `None` where llama.cpp is part of the program.
#[cfg(not(feature = "dynamic-backends"))]
pub fn variant() -> Option<&'static str> {
    None
}

#[cfg(feature = "dynamic-backends")]
pub use dynamic::variant;

/// Loads the code for this processor. There is nothing to load where llama.cpp is part of the program.
pub(super) fn load() -> Result<(), String> {
    #[cfg(feature = "dynamic-backends")]
    dynamic::load()?;
    // SAFETY: reads ggml's list of devices, which has its own lock.
    let cpu = unsafe { sys::ggml_backend_dev_by_type(sys::GGML_BACKEND_DEVICE_TYPE_CPU) };
    if cpu.is_null() { Err("it has no code for a processor".into()) } else { Ok(()) }
}

#[cfg(feature = "dynamic-backends")]
mod dynamic {
    use std::ffi::CString;
    use std::path::{Path, PathBuf};
    use std::sync::OnceLock;

    use llama_cpp_sys_2 as sys;

    /// Beginning of the file name of a variant's library.
    const PREFIX: &str = "libggml-cpu-";

    pub(super) fn load() -> Result<(), String> {
        super::super::team::offer();
        let program = std::env::current_exe().map_err(|error| format!("the program cannot find itself: {error}"))?;
        let places = places(&program);
        let Some(folder) = places.iter().find(|place| !variants(place).is_empty()) else {
            let places: Vec<_> = places.iter().map(|place| place.display().to_string()).collect();
            return Err(format!(
                "no {PREFIX}*.so in {}; install the package whole, or put its lib/vademecum beside the program's folder",
                places.join(" or ")
            ));
        };
        let path = CString::new(folder.as_os_str().as_encoded_bytes()).map_err(|error| error.to_string())?;
        // SAFETY: a path that lives until the call returns; the libraries are the installation's own.
        unsafe { sys::ggml_backend_load_all_from_path(path.as_ptr()) };
        match variant() {
            Some(_) => Ok(()),
            None => Err(format!(
                "none of {} in {} runs here; install the package for this machine ({})",
                variants(folder).join(", "),
                folder.display(),
                std::env::consts::ARCH
            )),
        }
    }

    /// Folders of libraries, the preferred one first.
    fn places(program: &Path) -> Vec<PathBuf> {
        let own = program.parent().unwrap_or(Path::new("/"));
        let beside = own.parent().map(|prefix| prefix.join("lib/vademecum"));
        // The folder of a program that was built, not installed; cargo puts tests one folder deeper.
        beside.into_iter().chain([own.to_path_buf()]).collect()
    }

    /// Names of the variants in a folder, in order.
    fn variants(folder: &Path) -> Vec<String> {
        let files = std::fs::read_dir(folder).into_iter().flatten().flatten();
        let mut names: Vec<_> = files.filter_map(|file| name(&file.file_name().to_string_lossy())).collect();
        names.sort();
        names
    }

    /// `haswell` of `libggml-cpu-haswell.so`.
    fn name(file: &str) -> Option<String> {
        file.strip_prefix(PREFIX)?.strip_suffix(".so").map(str::to_owned)
    }

    /// The chosen variant, by the name of its library; `None` before the choice.
    ///
    /// ggml does not tell. It leaves the chosen library in memory and unloads the others.
    pub fn variant() -> Option<&'static str> {
        static CHOSEN: OnceLock<String> = OnceLock::new();
        if let Some(chosen) = CHOSEN.get() {
            return Some(chosen);
        }
        let maps = std::fs::read_to_string("/proc/self/maps").ok()?;
        let chosen = maps.lines().find_map(|line| name(line.rsplit('/').next()?))?;
        Some(CHOSEN.get_or_init(|| chosen))
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn libraries_lie_beside_the_program_only() {
            let found = places(Path::new("/opt/v/bin/vademecum"));
            assert_eq!(found, [Path::new("/opt/v/lib/vademecum"), Path::new("/opt/v/bin")]);
            let folder = tempfile::tempdir().expect("a folder");
            for file in ["libggml-cpu-b.so", "libggml-cpu-a.so", "libggml-base.so", "libggml-cpu-c.so.0"] {
                std::fs::write(folder.path().join(file), "").expect("written");
            }
            assert_eq!(variants(folder.path()), ["a", "b"]);
        }
    }
}
