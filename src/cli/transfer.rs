//! `quorate transfer`: planned handover.

use std::time::Duration;

use super::{DONE, Stop, client::Target, say};
use crate::{config::Environment, control::proto::TransferRequest};

/// A little longer than the sidecar itself waits, so that its reason arrives.
const TRANSFER_TIME: Duration = Duration::from_secs(80);

/// Hand the workload over to another device, without a gap in its protection
///
/// The old owner stops the workload first; then the new one starts it. A target that
/// may not own is refused, with the reason.
#[derive(Debug, clap::Args)]
#[command(
    verbatim_doc_comment,
    after_help = "Examples:\n  quorate transfer\n  quorate transfer --to edge-2 --reason \"disk swap on edge-1\"\n\n\
                        Exit codes: 0 the new owner has claimed, 2 refused or cannot be reached."
)]
pub(super) struct Args {
    /// The device that shall own next [default: the site chooses]
    #[arg(long, value_name = "DEVICE", value_parser = clap::builder::NonEmptyStringValueParser::new())]
    to: Option<String>,
    /// Kept in the history: why
    #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true)]
    reason: String,
    /// Print {"device", "epoch"}
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    target: Target,
}

pub(super) async fn run(args: Args, environment: &Environment) -> Result<u8, Stop> {
    let mut client = args.target.connect(environment, TRANSFER_TIME).await?;
    let actor = environment.get("USER").or_else(|| environment.get("LOGNAME")).unwrap_or("quorate transfer");
    let request =
        TransferRequest { to: args.to.unwrap_or_default(), reason: args.reason, actor: actor.to_owned() };
    let reply = client.stub.transfer(request).await.map_err(|status| client.trouble(&status))?.into_inner();
    if args.json {
        say(&serde_json::json!({ "device": reply.device, "epoch": reply.epoch }).to_string())?;
    } else {
        say(&format!("{} owns now, epoch {}", reply.device, reply.epoch))?;
    }
    Ok(DONE)
}
