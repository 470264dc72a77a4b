//! `quorate leader`: the owner's name, for scripts.

use tonic::Code;

use super::{
    DONE, NO, Stop,
    client::{ANSWER_TIME, Target},
    say, tell,
};
use crate::{config::Environment, control::proto::GetLeaderRequest};

/// Print the device that owns the workload now
///
/// A majority vouches for the answer at the moment of asking. A sidecar that cannot
/// vouch says so, and prints no device.
#[derive(Debug, clap::Args)]
#[command(
    verbatim_doc_comment,
    after_help = "Examples:\n  quorate leader\n  test \"$(quorate leader)\" = edge-1 && echo here\n\n\
                        Exit codes: 0 there is an owner, 1 there is none or it is not known,\n\
                        2 this sidecar cannot be reached."
)]
pub(super) struct Args {
    #[command(flatten)]
    target: Target,
    /// Print {"known", "owner", "epoch", "valid_for_ms", "reason"}
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(args: Args, environment: &Environment) -> Result<u8, Stop> {
    let mut client = args.target.connect(environment, ANSWER_TIME).await?;
    let (known, leader) = match client.stub.get_leader(GetLeaderRequest {}).await {
        Ok(answer) => (true, answer.into_inner()),
        Err(status) => {
            let trouble = client.trouble(&status);
            let from_sidecar = std::error::Error::source(&status).is_none();
            if status.code() != Code::Unavailable || !from_sidecar {
                return Err(trouble.into());
            }
            (false, crate::control::proto::Leader { reason: trouble.message, ..Default::default() })
        }
    };
    let owner = Some(&leader.device).filter(|d| !d.is_empty());
    if args.json {
        let answer = serde_json::json!({
            "known": known,
            "owner": owner,
            "epoch": known.then_some(leader.epoch),
            "valid_for_ms": leader.valid_for_ms,
            "reason": leader.reason,
        });
        say(&answer.to_string())?;
    } else if let Some(owner) = owner {
        say(owner)?;
    } else {
        tell(&format!("quorate: {}: {}", if known { "nobody owns" } else { "unknown" }, leader.reason));
    }
    Ok(if owner.is_some() { DONE } else { NO })
}
