//! `quorate fleet`: all sites of a hub, from anywhere with rights on it.
//!
//! It reads and never writes, and stays inside a share of what the hub allows, so that it can be left running beside the sites. It talks
//! to no sidecar: what a site's own sidecars know is `quorate status`.

mod gather;
mod judge;
mod show;

use std::{path::PathBuf, sync::Arc, time::Duration};

use self::{
    gather::{Read, Reader},
    judge::Site,
};
use super::{DONE, NO, REFUSED, Stop, client::Trouble, colour, say};
use crate::{
    clock::{BootClock, Clock as _},
    config::Environment,
    hub::{self, FlagPath, rest::RestHub},
};

/// The least time between two readings with `--watch`.
const WATCH: Duration = Duration::from_secs(30);

/// Show all sites of an IoT Hub: owner, epoch, age, and what is wrong
///
/// Reads the twins through the hub's query, and those of sites that look wrong one by one,
/// because the query may lag. Needs a connection string with the right ServiceConnect.
/// Exit code 1 if any site has no owner, or two, or shows an epoch that is in doubt.
#[derive(Debug, clap::Args)]
#[command(
    verbatim_doc_comment,
    after_help = "Examples:\n  quorate fleet --connection-string-file hub.txt\n  \
                  quorate fleet --connection-string-file hub.txt --site plant-7 --json\n  \
                  quorate fleet --connection-string-file hub.txt --watch\n\n\
                  Remarks, worst first: two-owners, no-owner, ahead, stale, behind, disabled, missing,\n\
                  drifted, paused, drained, no-spare, certificate, conditions.\n\n\
                  Device twins name no members: where they alone are mirrored, a standby that was deleted\n\
                  from the hub cannot be missed. With hub.mirror = \"both\" it is."
)]
pub(super) struct Args {
    /// The file that holds the hub's connection string
    ///
    /// Also from QUORATE_HUB__CONNECTION_STRING_FILE, or its text from
    /// QUORATE_HUB__CONNECTION_STRING.
    #[arg(long, value_name = "FILE", verbatim_doc_comment)]
    connection_string_file: Option<PathBuf>,
    /// A PEM file with further certificate authorities to trust
    ///
    /// Also from QUORATE_HUB__CA_FILE.
    #[arg(long, value_name = "FILE")]
    ca_file: Option<PathBuf>,
    /// Only this site
    #[arg(long)]
    site: Option<String>,
    /// Where the flag stands in device twins, if configured otherwise
    #[arg(long, value_name = "PATH", default_value = "quorate", value_parser = flag)]
    flag: FlagPath,
    /// A site that has said nothing for so long is stale
    #[arg(long, value_name = "DURATION", default_value = "2h", value_parser = duration)]
    stale: Duration,
    /// Use at most this many percent of what the hub allows
    #[arg(long, value_name = "PERCENT", default_value_t = 25, value_parser = clap::value_parser!(u8).range(1..=100))]
    share: u8,
    /// Read it again and again, until Ctrl-C
    #[arg(long)]
    watch: bool,
    /// Print an array of sites; with --watch, one line each time
    #[arg(long)]
    json: bool,
}

fn flag(text: &str) -> Result<FlagPath, String> {
    FlagPath::try_from(text.to_owned())
}

fn duration(text: &str) -> Result<Duration, String> {
    crate::config::parse_duration(text).ok_or_else(|| "write 90s, 30m or 2h".into())
}

pub(super) async fn run(args: Args, environment: &Environment) -> Result<u8, Stop> {
    let hub = open(&args, environment)?;
    let paint = show::Paint(colour(environment) && !args.json);
    let stale_ms = u64::try_from(args.stale.as_millis()).unwrap_or(u64::MAX);
    let mut reader = Reader::new(hub, args.flag.clone(), args.site.clone(), f64::from(args.share) / 100.0);
    loop {
        let mut waiting = show::Waiting::new(!args.json);
        let mut tell = |what: String| waiting.tell(&what);
        let outcome = reader.sites(BootClock.wall_ms(), stale_ms, &mut tell).await;
        waiting.end();
        let pause = match outcome {
            Ok(Read { sites, others, questions }) => {
                if args.watch && paint.0 {
                    say("\x1b[H\x1b[J")?;
                }
                let nowhere = args.site.as_ref().filter(|_| sites.is_empty());
                let nowhere = nowhere.map(|site| show::nowhere(site, &others));
                say(&match (&nowhere, args.json) {
                    (_, true) => json(&sites)?,
                    (Some(nowhere), false) => nowhere.clone(),
                    (None, false) => show::table(&sites, BootClock.wall_ms(), paint),
                })?;
                if let Some(nowhere) = nowhere.filter(|_| args.json) {
                    super::tell(&nowhere);
                }
                if !args.watch {
                    return Ok(verdict(&args, &sites));
                }
                WATCH.max(reader.costs(questions))
            }
            Err(why) if args.watch => {
                super::tell(&format!("quorate: {why}"));
                WATCH
            }
            Err(why) => return Err(trouble(&why).into()),
        };
        tokio::select! {
            _ = tokio::signal::ctrl_c() => return Ok(DONE),
            () = tokio::time::sleep(pause) => {}
        }
    }
}

/// Whether the answer is yes. A site asked for by name that is not there has no owner.
fn verdict(args: &Args, sites: &[Site]) -> u8 {
    let alarming = sites.iter().flat_map(|site| &site.remarks).any(|remark| remark.alarming());
    if alarming || (args.site.is_some() && sites.is_empty()) { NO } else { DONE }
}

fn json(sites: &[Site]) -> Result<String, Stop> {
    serde_json::to_string(sites).map_err(|why| refused(why.to_string(), "report this as a defect").into())
}

fn trouble(why: &hub::Error) -> Trouble {
    let hint = match why {
        hub::Error::Unauthorized { .. } => {
            "the policy needs the right ServiceConnect; compare the connection string with the portal's, and this clock with the time"
        }
        hub::Error::Throttled { status: hub::error::QUOTA, .. } => {
            "wait until then, or give the hub more units"
        }
        hub::Error::Throttled { .. } => "others use the hub as well: give it a smaller --share",
        hub::Error::Unavailable { .. } => "it is the hub's own trouble: try again later",
        hub::Error::Untrusted(_) => "name the authority's certificate with --ca-file",
        _ => "check the host in the connection string and this machine's way to it",
    };
    refused(why.to_string(), hint)
}

fn refused(message: String, hint: &str) -> Trouble {
    Trouble { message, hint: hint.to_owned(), code: REFUSED }
}

fn open(args: &Args, environment: &Environment) -> Result<RestHub, Stop> {
    let named = |given: &Option<PathBuf>, name: &str| {
        given.clone().or_else(|| environment.get(name).map(PathBuf::from))
    };
    let file = named(&args.connection_string_file, "QUORATE_HUB__CONNECTION_STRING_FILE");
    let text =
        environment.get("QUORATE_HUB__CONNECTION_STRING").filter(|_| args.connection_string_file.is_none());
    let settings = hub::Settings {
        connection_string: text.map(|text| text.to_owned().into()),
        connection_string_file: file,
        ca_file: named(&args.ca_file, "QUORATE_HUB__CA_FILE"),
        timeout: Duration::from_secs(30),
        ..hub::Settings::default()
    };
    RestHub::open(&settings, Arc::new(BootClock)).map_err(|faults| {
        let first = faults.first();
        let problem =
            first.map_or_else(String::new, |f| format!("{}: {}", f.setting.replace('_', "-"), f.problem));
        let advice = first.map_or_else(String::new, |f| f.advice.clone());
        refused(problem, &advice).into()
    })
}
