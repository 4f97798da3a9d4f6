//! The `vademecum` command.

use std::process::ExitCode;

fn main() -> ExitCode {
    vademecum::cli::main()
}
