//! How far a benchmark is: on a terminal one line for each stage, written over; elsewhere nothing.

use std::io::{IsTerminal as _, Write as _};

/// A stage of the work, finished when this is dropped.
#[derive(Debug)]
pub struct Stage {
    name: String,
    terminal: bool,
}

impl Stage {
    /// Begins one.
    pub fn begin(name: &str) -> Self {
        let stage = Self { name: name.to_owned(), terminal: std::io::stderr().is_terminal() };
        if stage.terminal {
            eprint!("bench: {name}");
        }
        stage
    }

    /// Tells that `done` of `all` are done.
    pub fn step(&self, done: usize, all: usize) {
        if self.terminal {
            eprint!("\r\x1b[Kbench: {}: {done} of {all}", self.name);
            let _ = std::io::stderr().flush();
        }
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        if self.terminal {
            eprintln!("\r\x1b[Kbench: {}: done", self.name);
        }
    }
}
