//! `quorate demo`: the whole story on one bare machine.

use super::{Stop, client::Trouble};
use crate::config::Environment;

/// Try it out: a whole site and an IoT Hub emulator on this machine
///
/// Starts real processes on loopback, kills the owner, cuts the hub off and back,
/// hands over, and prints what happens with measured gaps. The exit code is 0 only
/// if no two workloads ever overlapped and the twins converged.
#[derive(Debug, clap::Args)]
#[command(
    verbatim_doc_comment,
    after_help = "Examples:\n  quorate demo\n  quorate demo --devices 5 --keep\n  quorate demo --json"
)]
pub(super) struct Args {
    /// Leave the site running afterwards, to play with, until Ctrl-C
    #[arg(long)]
    pub keep: bool,
    /// How many sidecars
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u8).range(3..=9))]
    pub devices: u8,
    /// Repeat the random choices of an earlier run
    #[arg(long, value_name = "N")]
    pub seed: Option<u64>,
    /// Print one JSON object per event, and a last line with the verdict
    #[arg(long)]
    pub json: bool,
}

pub(super) async fn run(_: Args, _: &Environment) -> Result<u8, Stop> {
    Err(Trouble {
        message: "this build has no demo".into(),
        hint: "use a release".into(),
        code: super::REFUSED,
    }
    .into())
}
