//! `quorate update`: runs a command once for each device, in an order that the site can bear.
//!
//! What is due is [`next_step`]'s to say, from one sidecar's status at a time; this file looks, does it and tells. Nothing is
//! remembered between two calls: which devices are updated is read from the builds that they run.

mod child;
mod sidecars;
mod tell;

use std::{collections::BTreeSet, time::Duration};

use clap::builder::NonEmptyStringValueParser;
use tokio::signal::unix::{Signal, SignalKind, signal};

use self::{child::Ended, sidecars::Sidecars, tell::Teller};
use super::{DONE, NO, REFUSED, Stop, USAGE, client::Trouble};
use crate::{
    clock::{BootClock, Clock as _, Moment},
    config::{Environment, parse_duration},
    id::DeviceId,
    status::{
        report::Report,
        update::{Expect, Goal, Memory, Step, next_step, outline},
    },
};

/// How often the site is looked at.
const LOOK: Duration = Duration::from_millis(250);
/// Between two tries of a handover that was refused.
const AGAIN: Duration = Duration::from_secs(1);

/// Run a command for each device, standbys first, then hand over, then the old owner
///
/// One device at a time, and each only while the site can bear to lose it: a majority
/// without it, an owner, no pause. {device} in the command is replaced, and QUORATE_DEVICE
/// is set. After the command the device has to be back with what is expected; after the
/// last standby the ownership moves once. Stops at the first failure and says how to go on.
#[derive(Debug, clap::Args)]
#[command(
    verbatim_doc_comment,
    after_help = "Examples:\n  quorate update -- ./update-one.sh {device}\n  \
                        quorate update --expect 0.2.0 -- ./update-one.sh {device}\n  \
                        quorate update --expect restarted --only edge-2,edge-3 -- ssh {device} reboot\n  \
                        quorate update --dry-run\n\n\
                        Exit codes: 0 all devices are updated, 1 not all are, 2 refused or cannot be reached."
)]
pub(super) struct Args {
    /// Only these devices, separated by commas [default: all that may own]
    #[arg(long, value_name = "DEVICE", value_delimiter = ',', value_parser = NonEmptyStringValueParser::new())]
    only: Vec<String>,
    /// What tells that a device is updated
    ///
    /// changed: it runs another build than before. restarted: its sidecar has started again.
    /// any: the command's word is enough. Else a build, as `quorate status` shows it, or only
    /// its version or fingerprint; devices that run it already are left out.
    #[arg(long, value_name = "WHAT", default_value = "changed", value_parser = expect, verbatim_doc_comment)]
    expect: Expect,
    /// How long a device has to be well before the next one's turn; 3s and a takeover at least
    #[arg(long, value_name = "DURATION", default_value = "5s", value_parser = duration)]
    settle: Duration,
    /// How long each step may take: waiting for the site, the command, and the device's return
    #[arg(long, value_name = "DURATION", default_value = "10m", value_parser = duration)]
    timeout: Duration,
    /// Only say what would be done, and whether it could begin now
    #[arg(long)]
    dry_run: bool,
    /// Print one object for each step, and one at the end
    #[arg(long)]
    json: bool,
    /// A sidecar to ask; repeat it, so that another is asked while one is updated
    ///
    /// unix:/path/to/socket or http://host:port. Without this option as for `quorate status`.
    #[arg(long, value_name = "ENDPOINT", verbatim_doc_comment)]
    endpoint: Vec<String>,
    /// The command and its arguments; its output goes to stderr
    #[arg(last = true, value_name = "COMMAND", required_unless_present = "dry_run")]
    command: Vec<String>,
}

fn expect(text: &str) -> Result<Expect, String> {
    Ok(match text {
        "" => return Err("write changed, restarted, any, or a build".into()),
        "changed" => Expect::Changed,
        "restarted" => Expect::Restarted,
        "any" => Expect::Any,
        build => Expect::Build(build.to_owned()),
    })
}

fn duration(text: &str) -> Result<Duration, String> {
    parse_duration(text)
        .filter(|d| *d <= Duration::from_secs(7 * 24 * 3600))
        .ok_or_else(|| "write a number and a unit, at most 7d, such as 30s".into())
}

/// Ctrl-C and a supervisor's or pipeline's TERM.
struct Interrupts {
    interrupt: Signal,
    terminate: Signal,
}

impl Interrupts {
    fn new() -> Result<Interrupts, Trouble> {
        let on = |kind| {
            signal(kind).map_err(|e| Trouble {
                message: format!("cannot listen for signals: {e}"),
                hint: "look for limits on open files".into(),
                code: REFUSED,
            })
        };
        Ok(Interrupts { interrupt: on(SignalKind::interrupt())?, terminate: on(SignalKind::terminate())? })
    }

    /// Cancel-safe.
    async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}

/// One update under way.
struct Conductor<'a> {
    args: &'a Args,
    goal: Goal,
    memory: Memory,
    sidecars: Sidecars,
    tell: Teller,
    interrupts: Interrupts,
    /// When something was last achieved.
    since: Moment,
    /// Who shall give up the ownership since it was asked to, until it has.
    leaving: Option<String>,
    /// Why the last try of a handover failed.
    refusal: String,
    seen: Option<Report>,
}

pub(super) async fn run(args: Args, environment: &Environment) -> Result<u8, Stop> {
    let goal = Goal {
        expect: args.expect.clone(),
        only: args.only.iter().cloned().collect::<BTreeSet<_>>(),
        settle: args.settle,
    };
    if args.command.first().is_some_and(|program| program.trim().is_empty()) {
        return Err(Stop::Trouble(Trouble {
            message: "the command's first word is empty".into(),
            hint: "see `quorate update --help` for examples".into(),
            code: USAGE,
        }));
    }
    let mut sidecars = Sidecars::new(&args.endpoint, environment);
    let report = sidecars.report().await?;
    if let Some(stranger) = goal.strangers(&report).first() {
        let known: Vec<&str> = report.members.iter().map(|m| m.device.as_str()).collect();
        return Err(Stop::Trouble(Trouble {
            message: format!("{stranger} is not a member of this site ({})", known.join(", ")),
            hint: "name devices as `quorate status` does".into(),
            code: REFUSED,
        }));
    }
    let mut memory = Memory::default();
    memory.note(&report, &goal, BootClock.now());
    let tell = Teller::new(args.json);
    tell.outline(&report, &outline(&report, &goal, &memory), &goal)?;
    if args.dry_run {
        return Ok(match next_step(&report, &goal, &memory) {
            Step::Wait(why) | Step::Stop(why) => {
                tell.not_now(&why)?;
                NO
            }
            Step::Update(_) | Step::HandOver { .. } | Step::Done => DONE,
        });
    }
    let conductor = Conductor {
        args: &args,
        goal,
        memory,
        sidecars,
        tell,
        interrupts: Interrupts::new()?,
        since: BootClock.now(),
        leaving: None,
        refusal: String::new(),
        seen: Some(report),
    };
    conductor.conduct().await
}

impl Conductor<'_> {
    async fn conduct(mut self) -> Result<u8, Stop> {
        loop {
            let step = match self.look().await? {
                Some(step) => step,
                None => return self.stop("interrupted"),
            };
            let settle = self.seen.as_ref().map_or(self.args.settle, |report| self.goal.settles_in(report));
            let late = BootClock.now().since(self.since) > self.args.timeout + settle;
            match step {
                Step::Done => {
                    self.tell.done(&self.memory, &self.goal, self.seen.as_ref())?;
                    return Ok(DONE);
                }
                Step::Stop(why) => return self.stop(&why),
                Step::Wait(why) => {
                    if late {
                        return self.stop(&format!("waited in vain: {why}"));
                    }
                    self.tell.waiting(&why);
                    if !self.pause(LOOK).await {
                        return self.stop("interrupted");
                    }
                }
                Step::Update(device) => {
                    if let Some(why) = self.update(&device).await? {
                        return self.stop(&why);
                    }
                }
                Step::HandOver { .. } if late => {
                    let why = format!("the handover was refused: {}", self.refusal);
                    return self.stop(&why);
                }
                Step::HandOver { from, to } => {
                    if !self.hand_over(from, &to).await? {
                        return self.stop(&format!(
                            "interrupted while {to} was to take over, which may still happen"
                        ));
                    }
                }
            }
        }
    }

    /// Looks at the site once; `None` if interrupted.
    async fn look(&mut self) -> Result<Option<Step>, u8> {
        let report = tokio::select! {
            biased;
            () = self.interrupts.next() => return Ok(None),
            report = self.sidecars.report() => report,
        };
        let now = BootClock.now();
        let report = match report {
            Ok(report) => report,
            Err(trouble) => {
                self.memory.blind();
                return Ok(Some(Step::Wait(trouble.message)));
            }
        };
        // Also where the answer to the handover was lost.
        let owner = report.owner.device.as_ref().filter(|_| report.owner.known);
        if self.leaving.as_ref().zip(owner).is_some_and(|(from, owner)| from != owner) {
            self.memory.handed_over();
            self.since = now;
            self.leaving = None;
        }
        let open = !self.memory.is_settled();
        self.memory.note(&report, &self.goal, now);
        if open && self.memory.is_settled() {
            self.since = now;
            self.tell.achieved(&report, &self.memory)?;
        }
        let step = next_step(&report, &self.goal, &self.memory);
        self.seen = Some(report);
        Ok(Some(step))
    }

    /// Runs the command for one device; why it ends the update, if it does.
    async fn update(&mut self, device: &str) -> Result<Option<String>, u8> {
        // The name goes into a command line: it shall be one, and no option.
        if DeviceId::new(device).is_err() || device.starts_with('-') {
            return Ok(Some(format!("{device:?} is not put into a command line")));
        }
        let words: Vec<String> = self.args.command.iter().map(|w| w.replace("{device}", device)).collect();
        self.memory.touches(device);
        self.tell.begins(device, &words)?;
        let ended = child::run(&words, device, self.args.timeout, &mut self.interrupts).await;
        self.since = BootClock.now();
        Ok(match ended {
            Ended::Well => None,
            Ended::Badly(how) => Some(format!("the command for {device} failed: {how}")),
            Ended::Late => Some(format!("the command for {device} took too long, and was ended")),
            Ended::Interrupted => Some(format!("interrupted: the command for {device} was ended")),
        })
    }

    /// False if interrupted.
    async fn hand_over(&mut self, from: String, to: &str) -> Result<bool, u8> {
        self.tell.hands_over(&from, to)?;
        self.leaving = Some(from);
        let result = tokio::select! {
            biased;
            () = self.interrupts.next() => return Ok(false),
            result = self.sidecars.transfer(to) => result,
        };
        let Err(trouble) = result else { return Ok(true) };
        self.tell.waiting(&format!("the handover to {to} is tried again: {}", trouble.message));
        self.refusal = trouble.message;
        Ok(self.pause(AGAIN).await)
    }

    /// False if interrupted.
    async fn pause(&mut self, pause: Duration) -> bool {
        tokio::select! {
            () = self.interrupts.next() => false,
            () = tokio::time::sleep(pause) => true,
        }
    }

    fn stop(&self, why: &str) -> Result<u8, Stop> {
        self.tell.stopped(why, self.args, &self.memory, &self.goal, self.seen.as_ref())?;
        Ok(NO)
    }
}
