//! A few megabytes of reserved disk. Opening a database writes, and a disk that others have filled must not keep a daemon from
//! starting and answering.

use std::fs::File;
use std::path::Path;

const FILE: &str = "reserve";
/// Ample room for opening database, inbox and outbox.
const BYTES: u64 = 4 << 20;
/// Least free space for making the reserve.
const ENOUGH: u64 = 16 * BYTES;

/// Removes the reserve when the disk is full.
pub(super) fn release_if_full(dir: &Path) {
    if wire::free_bytes(dir).is_some_and(|free| free < BYTES) && std::fs::remove_file(dir.join(FILE)).is_ok() {
        log::warn!(
            "{}: the disk is full; {} MB set aside for this are given back; free some space",
            dir.display(),
            BYTES / 1_000_000
        );
    }
}

/// Makes the reserve if there is enough space. A file system that cannot allocate goes without.
pub(super) fn set_aside(dir: &Path) {
    let path = dir.join(FILE);
    if path.exists() || wire::free_bytes(dir).is_none_or(|free| free < ENOUGH) {
        return;
    }
    let made =
        File::create_new(&path).and_then(|file| Ok(rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, BYTES)?));
    if let Err(error) = made {
        log::debug!("nothing is set aside in {}: {error}", path.display());
        let _ = std::fs::remove_file(&path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_takes_its_blocks_and_stays() {
        use std::os::unix::fs::MetadataExt;
        let dir = tempfile::tempdir().expect("a folder");
        for _ in 0..2 {
            set_aside(dir.path());
            let about = std::fs::metadata(dir.path().join(FILE)).expect("there");
            assert_eq!((about.len(), about.blocks() * 512 >= BYTES), (BYTES, true));
            // The tests' disk is not full.
            release_if_full(dir.path());
        }
    }
}
