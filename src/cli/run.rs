//! `quorate run`: the sidecar.
//!
//! Reads the configuration, says all that is wrong with it at once and ends with 78; else sets up the log and hands
//! over to the node.

use std::{path::PathBuf, sync::Arc};

use super::{CONFIG, DONE, REFUSED, Stop, log, tell};
use crate::{
    clock::BootClock,
    config::{self, Environment},
    node::{self, run::Failure},
};

/// Run the sidecar
///
/// The configuration is one TOML file that serves all devices of the site. Each key
/// may also come from the environment as QUORATE_SECTION__KEY, which wins. A device
/// finds itself by IOTEDGE_DEVICEID, or by device.id.
#[derive(Debug, clap::Args)]
#[command(
    verbatim_doc_comment,
    after_help = "Examples:\n  quorate run\n  quorate run --config /etc/quorate/plant-7.toml\n  \
                        QUORATE_DEVICE__ID=edge-1 QUORATE_LOG__LEVEL=debug quorate run --config site.toml\n\n\
                        Exit codes: 0 after SIGTERM or Ctrl-C, 2 it could not run, 78 the configuration is wrong."
)]
pub(super) struct Args {
    /// The configuration file [default: QUORATE_CONFIG, then /etc/quorate/quorate.toml]
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
}

pub(super) async fn run(args: Args, environment: &Environment) -> Result<u8, Stop> {
    let config = config::load(args.config.as_deref(), environment).map_err(|faults| {
        tell(&format!("quorate: {faults}"));
        CONFIG
    })?;
    let subscriber = log::subscriber(config.log, Arc::new(BootClock), std::io::stderr);
    if tracing::subscriber::set_global_default(subscriber).is_err() {
        tell("quorate: the log was set up twice");
        return Ok(REFUSED);
    }
    tracing::info!("quorate {} starts on {} of {}", env!("CARGO_PKG_VERSION"), config.me, config.site.id);
    tracing::info!("timing: {}", config.site.timing);
    for warning in config.warnings() {
        tracing::warn!("{warning}");
    }
    match node::run::run(config).await {
        Ok(()) => Ok(DONE),
        Err(failure) => {
            failure.to_string().lines().for_each(|line| tracing::error!("{line}"));
            Ok(if matches!(failure, Failure::Setup(_)) { CONFIG } else { REFUSED })
        }
    }
}
