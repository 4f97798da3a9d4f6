//! Stand-ins for systemd: the sockets of sd_notify(3) and of the journal.

use crate::wait_for;
use std::collections::HashMap;
use std::os::unix::net::UnixDatagram;
use std::path::Path;

/// The socket of `NOTIFY_SOCKET`.
pub struct Notified {
    socket: UnixDatagram,
    /// All messages so far, a line for each assignment.
    pub heard: String,
}

impl Notified {
    /// Listens at a path.
    ///
    /// # Panics
    /// It cannot.
    pub fn on(path: &Path) -> Self {
        let socket = UnixDatagram::bind(path).expect("a notification socket");
        socket.set_nonblocking(true).expect("non-blocking");
        Self { socket, heard: String::new() }
    }

    /// All messages until now.
    pub fn so_far(&mut self) -> &str {
        let mut buffer = [0; 4096];
        while let Ok(length) = self.socket.recv(&mut buffer) {
            self.heard += &String::from_utf8_lossy(&buffer[..length]);
            self.heard.push('\n');
        }
        &self.heard
    }

    /// The number of times that these words were said until now.
    pub fn count(&mut self, words: &str) -> usize {
        self.so_far().matches(words).count()
    }

    /// Waits until these words are said.
    pub fn wait(&mut self, words: &str) {
        self.wait_for(words, 1);
    }

    /// Waits until these words were said so often.
    pub fn wait_for(&mut self, words: &str, times: usize) {
        wait_for(words, || (self.count(words) >= times).then_some(()));
    }
}

/// The journal's socket, with its native protocol (<https://systemd.io/JOURNAL_NATIVE_PROTOCOL/>).
pub struct Journal {
    socket: UnixDatagram,
    entries: Vec<HashMap<String, String>>,
}

impl Journal {
    /// Listens at a path.
    ///
    /// # Panics
    /// It cannot.
    pub fn on(path: &Path) -> Self {
        let socket = UnixDatagram::bind(path).expect("a journal socket");
        socket.set_nonblocking(true).expect("non-blocking");
        Self { socket, entries: vec![] }
    }

    /// Waits for an entry whose message contains some words, and returns its fields.
    pub fn wait(&mut self, words: &str) -> HashMap<String, String> {
        wait_for(words, || {
            let mut buffer = vec![0; 1 << 18];
            while let Ok(length) = self.socket.recv(&mut buffer) {
                self.entries.push(fields(&buffer[..length]));
            }
            self.entries.iter().find(|entry| entry.get("MESSAGE").is_some_and(|message| message.contains(words))).cloned()
        })
    }
}

/// `NAME=value\n`, or `NAME\n`, the value's length in eight bytes, the value and `\n`.
fn fields(mut entry: &[u8]) -> HashMap<String, String> {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let mut fields = HashMap::new();
    while let Some(end) = entry.iter().position(|byte| *byte == b'\n') {
        let line = &entry[..end];
        entry = &entry[end + 1..];
        if let Some(sign) = line.iter().position(|byte| *byte == b'=') {
            fields.insert(text(&line[..sign]), text(&line[sign + 1..]));
        } else if let Some((length, rest)) = entry.split_first_chunk::<8>() {
            let (value, rest) = rest.split_at(u64::from_le_bytes(*length) as usize);
            fields.insert(text(line), text(value));
            entry = rest.strip_prefix(b"\n").expect("a line's end");
        }
    }
    fields
}
