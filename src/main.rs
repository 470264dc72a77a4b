//! Parses the command line, hands over to the command, and turns its result into the exit code.

use std::process::ExitCode;

fn main() -> ExitCode {
    if let Some(code) = quorate::workload::internal_command() {
        return code;
    }
    ExitCode::SUCCESS
}
