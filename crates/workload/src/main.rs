//! The workload's command line.

use std::process::ExitCode;

fn main() -> ExitCode {
    workload::cli::main()
}
