//! The program `outbox-relay`.

use std::process::ExitCode;

fn main() -> ExitCode {
    outbox_relay::cli::main()
}
