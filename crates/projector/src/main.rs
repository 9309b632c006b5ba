//! The projector's command line.

use std::process::ExitCode;

fn main() -> ExitCode {
    projector::cli::main()
}
