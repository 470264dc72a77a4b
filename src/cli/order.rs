//! `quorate pause`, `resume`, `drain`, `undrain` and `prefer`: orders that stay in force until another lifts them.

use std::time::Duration;

use clap::builder::NonEmptyStringValueParser;
use tonic::{Response, Status};

use super::{
    DONE, Stop, asked,
    client::{Client, Target},
    of_site, say,
};
use crate::{
    clock::millis,
    config::{Environment, parse_duration, show_duration},
    control::proto::{DeviceRequest, OrderReply, OrderRequest},
    reconcile::commands::PAUSE_MS,
};

/// A little longer than the sidecar itself waits, so that its reason arrives.
const ORDER_TIME: Duration = Duration::from_secs(80);

/// A duration that a pause may last.
fn lasts(text: &str) -> Result<Duration, String> {
    let lasts = parse_duration(text).filter(|lasts| PAUSE_MS.contains(&millis(*lasts)));
    lasts.ok_or_else(|| "write a number and a unit, from 1s to 366d, such as 30m".into())
}

/// What all orders have in common.
#[derive(Debug, clap::Args)]
struct Common {
    /// Kept with the order and shown: why
    #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true)]
    reason: String,
    /// Print {"site", "epoch", "owner"}; the owner is null where the order was not about it
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    target: Target,
}

/// Keep the workload where it is: if its device is lost, no other takes over
///
/// The device that owns goes on, and its restarted sidecar too. `quorate transfer` still
/// moves the workload. The pause outlives restarts; `quorate resume` ends it, and with
/// --for it ends by itself, by the clock of the device that leads the group then. Of two
/// pauses the one that ends last counts.
#[derive(Debug, clap::Args)]
#[command(
    verbatim_doc_comment,
    after_help = "Examples:\n  quorate pause --reason \"switch replacement\"\n  quorate pause --for 30m\n\n\
                        Exit codes: 0 done, 2 refused or cannot be reached."
)]
pub(super) struct Pause {
    /// End it after so long: 90s, 30m, 8h, 2d
    #[arg(long = "for", value_name = "DURATION", value_parser = lasts)]
    lasts: Option<Duration>,
    #[command(flatten)]
    common: Common,
}

/// End a pause: if nobody owns, the next device takes over at once
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  quorate resume\n\n\
                        Exit codes: 0 done, 2 refused or cannot be reached.")]
pub(super) struct Resume {
    #[command(flatten)]
    common: Common,
}

/// Keep a device from owning; if it owns, it hands over first
///
/// Returns when another device owns, so that the drained one can be taken down. If no
/// other device could own, it is refused. In a paused site a drained owner stays until
/// the pause ends. The drain outlives restarts; `quorate undrain` ends it.
#[derive(Debug, clap::Args)]
#[command(
    verbatim_doc_comment,
    after_help = "Examples:\n  quorate drain edge-2 --reason \"new disk\" && ssh edge-2 poweroff\n\n\
                        Exit codes: 0 done, 2 refused or cannot be reached."
)]
pub(super) struct Drain {
    /// The device
    #[arg(value_name = "DEVICE", value_parser = NonEmptyStringValueParser::new())]
    device: String,
    #[command(flatten)]
    common: Common,
}

/// Let a drained device own again; nothing moves by this
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  quorate undrain edge-2\n\n\
                        Exit codes: 0 done, 2 refused or cannot be reached.")]
pub(super) struct Undrain {
    /// The device
    #[arg(value_name = "DEVICE", value_parser = NonEmptyStringValueParser::new())]
    device: String,
    #[command(flatten)]
    common: Common,
}

/// Name the device that comes first where one is chosen; nothing moves by this
///
/// It takes over first when the owner is lost, and is handed to first when the owner
/// leaves, is drained or is strained. It does not take the workload from a device that
/// owns: `quorate transfer` does.
#[derive(Debug, clap::Args)]
#[command(
    verbatim_doc_comment,
    after_help = "Examples:\n  quorate prefer edge-1\n  quorate prefer --none\n\n\
                        Exit codes: 0 done, 2 refused or cannot be reached."
)]
pub(super) struct Prefer {
    /// The device
    #[arg(
        value_name = "DEVICE",
        value_parser = NonEmptyStringValueParser::new(),
        required_unless_present = "none",
        conflicts_with = "none"
    )]
    device: Option<String>,
    /// Prefer no device any more
    #[arg(long)]
    none: bool,
    #[command(flatten)]
    common: Common,
}

/// One of the orders, as it was typed.
pub(super) enum Order {
    Pause(Pause),
    Resume(Resume),
    Drain(Drain),
    Undrain(Undrain),
    Prefer(Prefer),
}

pub(super) async fn run(order: Order, environment: &Environment) -> Result<u8, Stop> {
    let actor = asked::actor(environment);
    let (device, common) = match &order {
        Order::Pause(Pause { common, .. }) | Order::Resume(Resume { common }) => (None, common),
        Order::Drain(Drain { device, common }) | Order::Undrain(Undrain { device, common }) => {
            (Some(device.clone()), common)
        }
        Order::Prefer(Prefer { device, common, .. }) => (Some(device.clone().unwrap_or_default()), common),
    };
    asked::reason(&common.reason)?;
    device.as_deref().filter(|device| !device.is_empty()).map_or(Ok(()), asked::device)?;
    let mut client = common.target.connect(environment, ORDER_TIME).await?;
    let reply = send(&mut client, &order, device.clone(), common.reason.clone(), actor).await;
    let OrderReply { epoch, owner, site } = reply.map_err(|status| client.trouble(&status))?.into_inner();
    let owner = Some(owner).filter(|owner| !owner.is_empty());
    if common.json {
        say(&serde_json::json!({ "site": site, "epoch": epoch, "owner": owner }).to_string())?;
        return Ok(DONE);
    }
    let device = device.unwrap_or_default();
    let then = match owner {
        None => String::new(),
        Some(owner) if owner == device => "; by the record it still owns, and the site is paused: \
             `quorate resume` moves the workload, and while it answers `quorate transfer`"
            .to_owned(),
        Some(owner) => format!("; {owner} owns, epoch {epoch}"),
    };
    let answer = match order {
        Order::Pause(Pause { lasts: None, .. }) => {
            "paused: no device takes over until `quorate resume`".to_owned()
        }
        Order::Pause(Pause { lasts: Some(lasts), .. }) => format!(
            "paused for {}, or until the end of a longer pause: no device takes over meanwhile",
            show_duration(lasts)
        ),
        Order::Resume(_) => "resumed: any fit device may take over again".to_owned(),
        Order::Drain(_) => format!("{device} is drained{then}"),
        Order::Undrain(_) => format!("{device} may own again"),
        Order::Prefer(_) if device.is_empty() => "no device is preferred".to_owned(),
        Order::Prefer(_) => format!("{device} is preferred"),
    };
    say(&of_site(&site, &answer))?;
    Ok(DONE)
}

async fn send(
    client: &mut Client,
    order: &Order,
    device: Option<String>,
    reason: String,
    actor: String,
) -> Result<Response<OrderReply>, Status> {
    let device = device.unwrap_or_default();
    match order {
        Order::Pause(Pause { lasts, .. }) => {
            let for_ms = lasts.map_or(0, millis);
            client.stub.pause(OrderRequest { reason, actor, for_ms }).await
        }
        Order::Resume(_) => client.stub.resume(OrderRequest { reason, actor, for_ms: 0 }).await,
        Order::Drain(_) => client.stub.drain(DeviceRequest { device, reason, actor }).await,
        Order::Undrain(_) => client.stub.undrain(DeviceRequest { device, reason, actor }).await,
        Order::Prefer(_) => client.stub.prefer(DeviceRequest { device, reason, actor }).await,
    }
}
