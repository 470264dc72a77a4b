//! Hands the command line and the environment to `cli/`, and its exit code to the system.

use std::process::ExitCode;

fn main() -> ExitCode {
    // The fencer and its kin are this binary too, and know nothing of the command line below.
    if let Some(code) = quorate::workload::internal_command() {
        return code;
    }
    ExitCode::from(quorate::cli::main(std::env::args_os(), &quorate::config::Environment::real()))
}
