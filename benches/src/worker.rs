//! A process that takes one JSON object a line and answers each with one.

use crate::Result;
use serde_json::Value;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

/// A worker that runs; it is ended when this is dropped.
#[derive(Debug)]
pub struct Worker {
    child: Child,
    requests: ChildStdin,
    answers: BufReader<ChildStdout>,
    name: String,
    log: PathBuf,
}

impl Worker {
    /// Starts `command` with its words in `log`; `name` is for messages.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn start(command: &mut Command, name: &str, log: &Path) -> Result<Self> {
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(File::create(log)?);
        let mut child = command.spawn().map_err(|e| format!("cannot start the worker of {name}: {e}"))?;
        let (Some(requests), Some(answers)) = (child.stdin.take(), child.stdout.take()) else {
            return Err(format!("the worker of {name} has no pipes").into());
        };
        Ok(Self { child, requests, answers: BufReader::new(answers), name: name.to_owned(), log: log.to_owned() })
    }

    /// Sends a request and waits for the answer.
    ///
    /// # Errors
    /// The worker has ended, or says that the request failed.
    pub fn call(&mut self, ask: &Value) -> Result<Value> {
        let said = |log: &Path| fs::read_to_string(log).unwrap_or_default();
        writeln!(self.requests, "{ask}")
            .map_err(|e| format!("the worker of {} has ended ({e}): {}", self.name, said(&self.log)))?;
        let mut line = String::new();
        self.answers.read_line(&mut line)?;
        if line.is_empty() {
            return Err(format!("the worker of {} has ended at {ask}: {}", self.name, said(&self.log)).into());
        }
        let answer: Value = serde_json::from_str(&line)?;
        match answer["error"].as_str() {
            Some(error) => Err(format!("{}: {ask} fails: {error}", self.name).into()),
            None => Ok(answer),
        }
    }

    /// Its process.
    pub fn id(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
