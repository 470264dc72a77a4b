//! `quorate transfer`: planned handover.

use std::time::Duration;

use super::{DONE, Stop, asked, client::Target, of_site, say};
use crate::{
    config::Environment,
    control::proto::{TransferReply, TransferRequest},
};

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
                        Exit codes: 0 the new owner has claimed, or owned already, 2 refused or cannot be reached."
)]
pub(super) struct Args {
    /// The device that shall own next [default: the site chooses]
    #[arg(long, value_name = "DEVICE", value_parser = clap::builder::NonEmptyStringValueParser::new())]
    to: Option<String>,
    /// Kept in the history: why
    #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true)]
    reason: String,
    /// Print {"site", "device", "epoch", "already"}; already: it owned before, nothing was moved
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    target: Target,
}

pub(super) async fn run(args: Args, environment: &Environment) -> Result<u8, Stop> {
    asked::reason(&args.reason)?;
    args.to.as_deref().map_or(Ok(()), asked::device)?;
    let mut client = args.target.connect(environment, TRANSFER_TIME).await?;
    let actor = asked::actor(environment);
    let request = TransferRequest { to: args.to.unwrap_or_default(), reason: args.reason, actor };
    let reply = client.stub.transfer(request).await.map_err(|status| client.trouble(&status))?.into_inner();
    let TransferReply { device, epoch, site, already } = reply;
    if args.json {
        let answer = serde_json::json!({
            "site": site, "device": device, "epoch": epoch, "already": already
        });
        say(&answer.to_string())?;
    } else {
        let since = if already { "already" } else { "now" };
        say(&of_site(&site, &format!("{device} owns {since}, epoch {epoch}")))?;
    }
    Ok(DONE)
}
