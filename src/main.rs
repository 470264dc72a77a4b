//! Hands the command line and the environment to `cli/`, and its exit code to the system.

use std::process::ExitCode;

fn main() -> ExitCode {
    ExitCode::from(quorate::cli::main(std::env::args_os(), &quorate::config::Environment::real()))
}
