//! The kernel's reports of touched paths: inotify(7) over the folders that hold documents.

use std::{
    collections::HashMap,
    ffi::OsStr,
    mem::MaybeUninit,
    os::{fd::OwnedFd, unix::ffi::OsStrExt},
    path::{Path, PathBuf},
};

use rustix::{
    fs::inotify::{CreateFlags, ReadFlags, Reader, WatchFlags, add_watch, init, remove_watch},
    io::Errno,
};

/// Room for some hundred events at a time.
const BUFFER_BYTES: usize = 16 * 1024;

/// A report of the kernel.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Touched {
    /// A file or folder was made, written, moved or removed.
    Path(PathBuf),
    /// Reports were lost: the kernel's queue has overflowed.
    Anything,
}

/// The watches on folders. Reading and opening files wakes nobody.
pub(super) struct Watches {
    fd: OwnedFd,
    paths: HashMap<i32, PathBuf>,
    numbers: HashMap<PathBuf, i32>,
}

impl Watches {
    pub(super) fn new() -> Result<Self, Errno> {
        let fd = init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
        Ok(Self { fd, paths: HashMap::new(), numbers: HashMap::new() })
    }

    /// Readable when there are reports.
    pub(super) fn fd(&self) -> &OwnedFd {
        &self.fd
    }

    /// Watches a folder, without its subfolders; `false` when it was watched already.
    pub(super) fn add(&mut self, folder: &Path) -> Result<bool, Errno> {
        if self.numbers.contains_key(folder) {
            return Ok(false);
        }
        let written = WatchFlags::CREATE | WatchFlags::MODIFY | WatchFlags::CLOSE_WRITE | WatchFlags::ATTRIB;
        let moved = WatchFlags::MOVED_FROM | WatchFlags::MOVED_TO | WatchFlags::DELETE;
        let own = WatchFlags::DELETE_SELF | WatchFlags::MOVE_SELF | WatchFlags::ONLYDIR | WatchFlags::EXCL_UNLINK;
        let number = add_watch(&self.fd, folder, written | moved | own)?;
        // A folder that has moved keeps its number.
        if let Some(before) = self.paths.insert(number, folder.to_owned()) {
            self.numbers.remove(&before);
        }
        self.numbers.insert(folder.to_owned(), number);
        Ok(true)
    }

    /// Ends the watches at or below a path.
    pub(super) fn remove(&mut self, below: &Path) {
        let gone: Vec<i32> = self.paths.iter().filter(|(_, path)| path.starts_with(below)).map(|(number, _)| *number).collect();
        for number in gone {
            // The kernel may have dropped the watch already, with the folder.
            let _ = remove_watch(&self.fd, number);
            self.forget(number);
        }
    }

    fn forget(&mut self, number: i32) {
        if let Some(path) = self.paths.remove(&number) {
            self.numbers.remove(&path);
        }
    }

    /// The reports since the last call.
    pub(super) fn touched(&mut self) -> Vec<Touched> {
        let mut touched = Vec::new();
        let mut moved = Vec::new();
        let mut ended = Vec::new();
        let mut buffer = [MaybeUninit::uninit(); BUFFER_BYTES];
        let mut reader = Reader::new(&self.fd, &mut buffer);
        while let Ok(event) = reader.next() {
            let flags = event.events();
            if flags.contains(ReadFlags::QUEUE_OVERFLOW) {
                touched.push(Touched::Anything);
            }
            if flags.contains(ReadFlags::IGNORED) {
                ended.push(event.wd());
            }
            let Some(folder) = self.paths.get(&event.wd()) else { continue };
            let path = match event.file_name() {
                Some(name) => folder.join(OsStr::from_bytes(name.to_bytes())),
                None => folder.clone(),
            };
            if flags.contains(ReadFlags::MOVED_FROM | ReadFlags::ISDIR) {
                moved.push(path.clone());
            }
            touched.push(Touched::Path(path));
        }
        for path in moved {
            // Its watches would go on under the old name.
            self.remove(&path);
        }
        for number in ended {
            self.forget(number);
        }
        touched
    }
}
