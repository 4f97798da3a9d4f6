//! The disk below a data directory: free bytes, and the remedy for its errors.

use std::path::Path;

/// Bytes that an ordinary user may still write to the file system of `path`, which must exist.
pub fn free_bytes(path: &Path) -> Option<u64> {
    let about = rustix::fs::statvfs(path).ok()?;
    Some(about.f_bavail.saturating_mul(about.f_frsize))
}

/// The remedy for an error of the file system below the data directory, for use after the error's own text.
pub fn storage_remedy(error: &std::io::Error) -> &'static str {
    use std::io::ErrorKind;
    match error.kind() {
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => "; free some space or move the data directory",
        ErrorKind::PermissionDenied => "; give the user that runs vademecum write access to the data directory",
        // The data is at fault, not the disk.
        ErrorKind::InvalidData | ErrorKind::AlreadyExists => "",
        ErrorKind::ReadOnlyFilesystem => "; the file system is mounted read-only: check the card or disk for errors",
        _ => "; check the disk and the data directory",
    }
}
