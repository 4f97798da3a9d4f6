//! `vademecum run`
#![allow(unsafe_code, reason = "_exit has no safe wrapper")]

use super::{Common, Failure, Outcome, report, runtime};
use crate::config::Loaded;

pub(super) fn run(loaded: Loaded, common: &Common) -> Outcome {
    let runtime = runtime()?;
    let common_again = common.clone();
    let reread = Box::new(move || common_again.load());
    let result = runtime.block_on(crate::daemon::run(loaded, reread)).map_err(Failure::from);
    // Nothing may delay the exit; all work that must finish has finished by now.
    runtime.shutdown_timeout(std::time::Duration::from_millis(200));
    if let Err(failure) = &result {
        report(failure, common);
    }
    log::logger().flush();
    // SAFETY: `_exit` only ends the process. Everything that must reach the disk has been synced, and stdout is empty. A return
    // from `main` would run the destructors of llama.cpp's static objects while its threads may still generate a token or load a
    // model; now and then that ends in SIGSEGV.
    unsafe { libc::_exit(i32::from(result.is_err())) }
}
