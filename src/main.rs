//! The `statecast` command: parse, run, exit code.

use std::process::ExitCode;

fn main() -> ExitCode {
    statecast::cli::main()
}
