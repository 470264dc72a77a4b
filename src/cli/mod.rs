//! The command line: one file per command, one exit code for one meaning.
//!
//! Answers go to stdout; everything else goes to stderr as one readable line and a hint. 0: done. 1: the answer is no.
//! 2: cannot be reached, or refused. 64: the command line is wrong. 78: the configuration is wrong, so a restart will
//! not help. A reader that goes away early (`quorate status | head`) is no error.

mod asked;
mod bundle;
mod check;
mod check_workload;
mod client;
#[cfg(feature = "emulator")]
mod demo;
#[cfg(feature = "emulator")]
mod emulate;
mod events;
mod fleet;
mod leader;
mod log;
mod order;
mod plan;
mod run;
mod status;
mod transfer;
mod update;
mod when;
mod why;

use std::{
    ffi::OsString,
    io::{self, IsTerminal as _, Write as _},
};

use clap::{Parser, Subcommand};

use self::client::Trouble;
use crate::config::Environment;

/// Done.
pub const DONE: u8 = 0;
/// The answer is no.
pub const NO: u8 = 1;
/// Cannot be reached, or refused; also any failure without a code of its own.
pub const REFUSED: u8 = 2;
/// The command line is wrong (sysexits.h: EX_USAGE).
pub const USAGE: u8 = 64;
/// The configuration is wrong (sysexits.h: EX_CONFIG).
pub const CONFIG: u8 = 78;

/// Makes the Azure IoT Edge devices of one site behave as one highly available device.
#[derive(Debug, Parser)]
#[command(
    name = "quorate",
    version,
    max_term_width = 100,
    disable_help_subcommand = true,
    after_help = "Exit codes: 0 done, 1 the answer is no, 2 cannot reach or refused, 64 usage, 78 configuration.\n\
                  `quorate COMMAND --help` shows examples."
)]
struct Line {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    #[cfg(feature = "emulator")]
    Demo(demo::Args),
    Run(run::Args),
    Check(check::Args),
    CheckWorkload(check_workload::Args),
    Status(status::Args),
    Leader(leader::Args),
    Why(why::Args),
    Plan(plan::Args),
    Events(events::Args),
    SupportBundle(bundle::Args),
    Transfer(transfer::Args),
    Update(Box<update::Args>),
    Pause(order::Pause),
    Resume(order::Resume),
    Drain(order::Drain),
    Undrain(order::Undrain),
    Prefer(order::Prefer),
    Fleet(fleet::Args),
    #[cfg(feature = "emulator")]
    Emulate(Box<emulate::EmulateArgs>),
}

/// Runs one command line and returns its exit code. `arguments` begins with the program's name.
pub fn main(arguments: impl IntoIterator<Item = OsString>, environment: &Environment) -> u8 {
    let line = match Line::try_parse_from(arguments) {
        Ok(line) => line,
        Err(e) if e.use_stderr() => {
            tell(&e.to_string());
            return USAGE;
        }
        Err(help) => return say(&help.to_string()).err().unwrap_or(DONE),
    };
    // One thread: a second one would only be woken by the first, twice for every message.
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(e) => {
            tell(&format!("quorate: cannot start: {e}\n  hint: look for limits on threads and open files"));
            return REFUSED;
        }
    };
    let outcome = runtime.block_on(async {
        match line.command {
            #[cfg(feature = "emulator")]
            Command::Demo(args) => demo::run(args, environment).await,
            Command::Run(args) => run::run(args, environment).await,
            Command::Check(args) => check::run(args, environment).await,
            Command::CheckWorkload(args) => check_workload::run(args, environment).await,
            Command::Status(args) => status::run(args, environment).await,
            Command::Leader(args) => leader::run(args, environment).await,
            Command::Why(args) => why::run(args, environment).await,
            Command::Plan(args) => plan::run(args, environment).await,
            Command::Events(args) => events::run(args, environment).await,
            Command::SupportBundle(args) => bundle::run(args, environment).await,
            Command::Transfer(args) => transfer::run(args, environment).await,
            Command::Update(args) => Box::pin(update::run(*args, environment)).await,
            Command::Pause(args) => order::run(order::Order::Pause(args), environment).await,
            Command::Resume(args) => order::run(order::Order::Resume(args), environment).await,
            Command::Drain(args) => order::run(order::Order::Drain(args), environment).await,
            Command::Undrain(args) => order::run(order::Order::Undrain(args), environment).await,
            Command::Prefer(args) => order::run(order::Order::Prefer(args), environment).await,
            Command::Fleet(args) => fleet::run(args, environment).await,
            #[cfg(feature = "emulator")]
            Command::Emulate(args) => Ok(emulate::run(*args).await),
        }
    });
    match outcome {
        Ok(code) => code,
        Err(Stop::Code(code)) => code,
        Err(Stop::Trouble(trouble)) => {
            tell(&trouble.to_string());
            trouble.code
        }
    }
}

/// Why a command ends before its end.
#[derive(Debug)]
enum Stop {
    /// Everything has been said.
    Code(u8),
    /// To be said.
    Trouble(Trouble),
}

impl From<Trouble> for Stop {
    fn from(trouble: Trouble) -> Stop {
        Stop::Trouble(trouble)
    }
}

impl From<u8> for Stop {
    fn from(code: u8) -> Stop {
        Stop::Code(code)
    }
}

/// An answer that names the site it is of: whoever asks may have several.
fn of_site(site: &str, answer: &str) -> String {
    // A sidecar of an earlier version does not say it.
    if site.is_empty() { answer.to_owned() } else { format!("{site}: {answer}") }
}

/// Writes text to stdout, with one line break at its end.
///
/// # Errors
/// The exit code to end with: 0 if the reader went away, 2 if stdout cannot be written.
fn say(text: &str) -> Result<(), u8> {
    let mut out = io::stdout().lock();
    match writeln!(out, "{}", text.trim_end_matches('\n')).and_then(|()| out.flush()) {
        Ok(()) => Ok(()),
        Err(e) if e.kind() == io::ErrorKind::BrokenPipe => Err(DONE),
        Err(e) => {
            tell(&format!("quorate: cannot write the answer: {e}"));
            Err(REFUSED)
        }
    }
}

/// Writes text to stderr. There is nobody left to tell if that fails.
fn tell(text: &str) {
    let _ = writeln!(io::stderr().lock(), "{}", text.trim_end_matches('\n'));
}

/// Colour only where a person looks at it (no-color.org).
fn colour(environment: &Environment) -> bool {
    io::stdout().is_terminal()
        && environment.get("NO_COLOR").is_none()
        && environment.get("TERM") != Some("dumb")
}

/// Breaks `text` into lines of at most `width` characters, at blanks where possible.
fn wrap(text: &str, width: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split_whitespace() {
        let mut word: Vec<char> = word.chars().collect();
        loop {
            let last = lines.len() - 1;
            let used = lines[last].chars().count();
            let gap = usize::from(used > 0);
            if used + gap + word.len() <= width {
                if gap == 1 {
                    lines[last].push(' ');
                }
                lines[last].extend(&word);
                break;
            }
            if used == 0 {
                let rest = word.split_off(width.max(1));
                lines[last].extend(&word);
                word = rest;
            }
            lines.push(String::new());
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        use clap::CommandFactory as _;
        Line::command().debug_assert();
    }

    #[test]
    fn wraps_at_blanks_and_cuts_what_is_too_long() {
        assert_eq!(wrap("a quorum has confirmed", 10), ["a quorum", "has", "confirmed"]);
        assert_eq!(wrap("0123456789abc d", 10), ["0123456789", "abc d"]);
        assert_eq!(wrap("", 10), [""]);
    }
}
