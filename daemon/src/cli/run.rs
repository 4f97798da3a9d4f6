//! `vademecum run`

use super::{Failure, Outcome, runtime};
use crate::config::Loaded;
use std::process::ExitCode;

pub(super) fn run(loaded: Loaded) -> Outcome {
    let runtime = runtime()?;
    let result = runtime.block_on(crate::service::run(loaded));
    // Nothing may hold the exit up: what has to be finished is finished by now.
    runtime.shutdown_timeout(std::time::Duration::from_millis(200));
    result.map_err(Failure::from)?;
    Ok(ExitCode::SUCCESS)
}
