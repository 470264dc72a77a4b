//! `quorate status`: the site at one glance, in 80 columns.
//!
//! The JSON form is the same document as `GET /v1/status`. The text form is for people and may change.

mod screen;

use std::{fmt::Write as _, io::IsTerminal as _, time::Duration};

use tokio::signal::unix::{SignalKind, signal};

use self::screen::Screen;
use super::{
    DONE, REFUSED, Stop,
    client::{ANSWER_TIME, Target, Trouble, read_report},
    colour, say,
    when::{date_seconds, span},
    wrap,
};
use crate::{
    config::Environment,
    status::report::{Ordered, Report},
};

const WIDTH: usize = 80;
const REDRAW: Duration = Duration::from_secs(1);

/// Show the site: owner, devices, hub, conditions
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  quorate status\n  quorate status --watch\n  \
                        quorate status --json --endpoint http://10.0.0.12:7601")]
pub(super) struct Args {
    #[command(flatten)]
    target: Target,
    /// Draw it again every second, until Ctrl-C
    #[arg(long)]
    watch: bool,
    /// Print the document of GET /v1/status; with --watch, one line each second
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(args: Args, environment: &Environment) -> Result<u8, Stop> {
    let paint = Paint(colour(environment) && !args.json);
    if !args.watch {
        show(&ask(&args, environment).await?, &args, paint)?;
        return Ok(DONE);
    }
    // A terminal is drawn over; what is piped gets one report after another.
    let screen = (std::io::stdout().is_terminal() && !args.json).then(Screen::open);
    let mut term = signal(SignalKind::terminate()).map_err(|_| REFUSED)?;
    let end = async {
        tokio::select! {
            _ = tokio::signal::ctrl_c() => {}
            _ = term.recv() => {}
        }
    };
    tokio::pin!(end);
    loop {
        let looked = async {
            let answer = ask(&args, environment).await;
            match (answer, &screen) {
                (Ok(report), None) => show(&report, &args, paint)?,
                (Ok(report), Some(screen)) => screen.draw(&text(&read_report(&report)?, paint)),
                // It may come back, and then goes on.
                (Err(trouble), None) => super::tell(&trouble.to_string()),
                (Err(trouble), Some(screen)) => screen.draw(&paint.bad(&safe_lines(&trouble.to_string()))),
            }
            tokio::time::sleep(REDRAW).await;
            Ok::<_, Stop>(())
        };
        tokio::select! {
            () = &mut end => return Ok(DONE),
            looked = looked => looked?,
        }
    }
}

/// [`safe`], line by line, in the width of everything else.
fn safe_lines(text: &str) -> String {
    text.lines().flat_map(|line| wrap(&safe(line), WIDTH)).collect::<Vec<_>>().join("\n")
}

async fn ask(args: &Args, environment: &Environment) -> Result<String, Trouble> {
    args.target.connect(environment, ANSWER_TIME).await?.status().await
}

fn show(json: &str, args: &Args, paint: Paint) -> Result<(), Stop> {
    if args.json {
        return Ok(say(json)?);
    }
    Ok(say(&text(&read_report(json)?, paint))?)
}

/// Colours for terminals; plain text elsewhere.
#[derive(Debug, Clone, Copy)]
struct Paint(bool);

impl Paint {
    fn with(self, code: &str, text: &str) -> String {
        if self.0 { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }
    fn good(self, text: &str) -> String {
        self.with("32", text)
    }
    fn warn(self, text: &str) -> String {
        self.with("33", text)
    }
    fn bad(self, text: &str) -> String {
        self.with("31", text)
    }
    fn bold(self, text: &str) -> String {
        self.with("1", text)
    }
}

/// Text from other devices; a control code in it must not reach the terminal.
fn safe(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

fn text(report: &Report, paint: Paint) -> String {
    let mut out = String::new();
    head(&mut out, report, paint);
    members(&mut out, report, paint);
    rest(&mut out, report);
    conditions(&mut out, report, paint);
    out
}

/// A row `name     text`, wrapped; blank name in further lines.
fn row(out: &mut String, name: &str, text: &str) {
    for (i, line) in wrap(&safe(text), WIDTH - 10).iter().enumerate() {
        let _ = writeln!(out, "{:<10}{line}", if i == 0 { name } else { "" });
    }
}

fn head(out: &mut String, r: &Report, paint: Paint) {
    let owner = match (&r.owner.known, &r.owner.device) {
        (true, Some(device)) if r.owner.workload_wrong.is_some() => paint.bad(&paint.bold(&safe(device))),
        (true, Some(device)) => paint.good(&paint.bold(&safe(device))),
        (true, None) => paint.bad("nobody"),
        (false, _) => paint.warn("unknown"),
    };
    let _ = writeln!(out, "{:<10}{owner}", "owner");
    let validity =
        if r.owner.known { format!(", true for {}", span(r.owner.valid_for_ms)) } else { String::new() };
    row(out, "epoch", &format!("{}{validity}", r.epoch));
    row(out, "because", &r.owner.reason);
    let lease = r.lease_left_ms.map_or_else(String::new, |ms| format!(", lease {}", span(ms)));
    row(
        out,
        "site",
        &format!(
            "{} as seen by {}: {}{lease}, up {}, version {}",
            r.site,
            r.device,
            r.role.name(),
            span(r.uptime_ms),
            r.version
        ),
    );
    let quorum = if r.quorum { "a majority is heard" } else { "NO majority is heard" };
    let spare = match r.devices_may_fail {
        0 => "no further device may fail".to_owned(),
        1 => "1 more device may fail".to_owned(),
        n => format!("{n} more devices may fail"),
    };
    let words = format!("{quorum}; {spare}");
    let words = if !r.quorum {
        paint.bad(&words)
    } else if r.devices_may_fail == 0 {
        paint.warn(&words)
    } else {
        words
    };
    let _ = writeln!(out, "{:<10}{words}", "reserve");
    for (n, trouble) in troubles(r).into_iter().enumerate() {
        row(out, if n == 0 { "trouble" } else { "" }, &trouble);
    }
    orders(out, r);
}

/// What is wrong, in few words: what it is about stands at the end, which a small terminal may not show.
fn troubles(r: &Report) -> Vec<String> {
    let wrong = r.owner.device.as_ref().zip(r.owner.workload_wrong.as_ref());
    let wrong = wrong.map(|(owner, wrong)| format!("the workload on {owner}, the owner: {wrong}"));
    let mut names: Vec<String> = Vec::new();
    for c in &r.conditions {
        let name = if r.is_raised_here(c) { c.name.clone() } else { format!("{} on {}", c.name, c.device) };
        if !names.contains(&name) {
            names.push(name);
        }
    }
    let names = (!names.is_empty()).then(|| names.join(", "));
    wrong.into_iter().chain(names).collect()
}

/// What is in force by order, if anything is. Who is drained, by whom and why, stands beside the device.
fn orders(out: &mut String, r: &Report) {
    if let Some(Ordered { actor, reason, since_unix_ms, until_unix_ms }) = &r.orders.paused {
        let why = if reason.is_empty() { String::new() } else { format!(": {reason}") };
        let since = date_seconds(*since_unix_ms);
        let until = until_unix_ms.map_or_else(String::new, |ms| format!(" until {} UTC", date_seconds(ms)));
        row(out, "paused", &format!("since {since} UTC{until} by {actor}{why}; nobody takes over"));
    }
    if !r.orders.drained.is_empty() {
        row(out, "drained", &r.orders.drained.keys().map(String::as_str).collect::<Vec<_>>().join(", "));
    }
    if let Some(device) = &r.orders.preferred {
        row(out, "preferred", device);
    }
    if let Some(least) = r.orders.stretch_percent_min {
        row(out, "at least", &format!("{} times the configured timing", f64::from(least) / 100.0));
    }
}

fn members(out: &mut String, r: &Report, paint: Paint) {
    let cell = |text: &str, width: usize| {
        let text = safe(text);
        if text.chars().count() > width {
            text.chars().take(width - 1).chain(['…']).collect()
        } else {
            text
        }
    };
    // Only where something is asked of the plant. All devices ask the same.
    let asked = r.probes.iter().filter(|p| p.role == "plant").count();
    let plant = asked > 0 || r.members.iter().any(|m| m.plant_seen.is_some());
    let (name, may) = if plant { (20, 9) } else { (24, 13) };
    let sees = |text: &str| if plant { format!("{:<8}", cell(text, 7)) } else { String::new() };
    let _ = writeln!(
        out,
        "\n{:<name$}{:<9}{:<10}{:<12}{:<may$}{}BUILD",
        "DEVICE",
        "ROLE",
        "STATE",
        "LAST HEARD",
        "MAY OWN",
        sees("PLANT"),
    );
    for m in &r.members {
        let here = m.device == r.device;
        let state = format!("{:<10}", if m.reachable { "reachable" } else { "silent" });
        let state = if m.reachable { state } else { paint.bad(&state) };
        let heard = match m.last_heard_ms {
            _ if here => "here".to_owned(),
            Some(ms) => span(ms),
            None => "never".to_owned(),
        };
        let may_own = if m.fit { "yes" } else { "no" };
        let seen = m
            .plant_seen
            .filter(|_| m.reachable)
            .map_or_else(|| "–".to_owned(), |seen| format!("{seen} of {asked}"));
        let _ = writeln!(
            out,
            "{:<name$}{:<9}{state}{heard:<12}{may_own:<may$}{}{}",
            cell(&m.device, name - 1),
            cell(&m.role, 8),
            sees(&seen),
            cell(&m.build, 12),
        );
        if let Some(reason) = m.unfit_reason.as_ref().filter(|_| !m.fit) {
            for line in wrap(&safe(reason), WIDTH - 4) {
                let _ = writeln!(out, "    {line}");
            }
        }
    }
    out.push('\n');
}

/// What the workload does on the owner, where that is another device.
fn elsewhere(r: &Report) -> String {
    let owner = r.owner.device.as_ref().filter(|owner| **owner != r.device);
    match owner.zip(r.owner.workload.as_ref()) {
        Some((owner, state)) => format!("{state} on {owner}, "),
        None => String::new(),
    }
}

fn rest(out: &mut String, r: &Report) {
    let w = &r.workload;
    let mut work = if w.kind == "none" {
        "none".to_owned()
    } else {
        format!("{}, {}{} here", w.kind, elsewhere(r), w.observed)
    };
    if let Some(epoch) = w.epoch {
        let _ = write!(work, ", epoch {epoch}");
    }
    if let Some(pid) = w.pid {
        let _ = write!(work, ", process {pid}");
    }
    if w.failures > 0 {
        let _ = write!(work, ", ended by itself {} times in a row", w.failures);
    }
    if let Some(says) = &w.says {
        let _ = write!(work, ", says: {}", safe(says));
    }
    row(out, "workload", &work);
    let h = &r.hub;
    let hub = match (h.mirror.as_str(), h.last_success_unix_ms) {
        ("off" | "", _) => "not mirrored".to_owned(),
        (_, last) => {
            let elsewhere = h.mirrored_by.as_ref().filter(|by| **by != r.device);
            // Device twins have one writer, and this device is not waiting for the hub.
            let unknown = h.mirrored_by.is_none() && h.mirror != "module-twin" && !h.in_sync && h.lag_ms == 0;
            let sync = match elsewhere {
                Some(by) => format!("mirrored by {}", safe(by)),
                None if unknown => "nobody is known to mirror now".to_owned(),
                None if h.in_sync => "in sync".to_owned(),
                None => format!("behind for {}", span(h.lag_ms)),
            };
            let sync = match h.confirmed_epoch {
                Some(epoch) => format!("{sync}, epoch {epoch} confirmed"),
                None => sync,
            };
            let last = match last {
                Some(ms) => format!(", last success {} UTC", date_seconds(ms)),
                // It has nothing to do there.
                None if elsewhere.is_some() || unknown => String::new(),
                None => ", no success yet".to_owned(),
            };
            format!("{}: {sync}{last}", h.name)
        }
    };
    row(out, "hub", &hub);
    for device in h.devices.iter().filter(|d| d.error.is_some()) {
        row(out, "", &format!("{}: {}", device.device, device.error.as_deref().unwrap_or("")));
    }
    for (n, probe) in r.probes.iter().enumerate() {
        let state = match probe.up {
            Some(true) => "passes".to_owned(),
            Some(false) => format!("FAILS: {}", probe.wrong),
            None => "not known".to_owned(),
        };
        let name = if n == 0 { "probes" } else { "" };
        row(out, name, &format!("{} ({}, {}): {state}", probe.name, probe.kind, probe.role));
    }
    if let Some(decision) = &r.last_decision {
        row(out, "decided", &decision.reason);
    }
    row(out, "timing", &r.timing);
    if let Some(why) = &r.vitals.goes_last {
        row(out, "elections", &format!("this device goes last: {why}"));
    }
    for knock in &r.knocks {
        row(
            out,
            "refused",
            &format!("{} ({}), {} times: {}", knock.address, knock.device, knock.count, knock.reason),
        );
    }
}

fn conditions(out: &mut String, r: &Report, paint: Paint) {
    if troubles(r).is_empty() {
        row(out, "trouble", "none");
    }
    if r.conditions.is_empty() {
        return;
    }
    out.push('\n');
    for c in &r.conditions {
        let name = safe(&c.name);
        let name = match c.severity.as_str() {
            "critical" => paint.bad(&name),
            "warning" => paint.warn(&name),
            _ => name,
        };
        let place = if r.is_raised_here(c) { String::new() } else { format!(" on {}", safe(&c.device)) };
        let _ = writeln!(out, "{} {name}{place}", safe(&c.severity).to_uppercase());
        for line in wrap(&safe(&c.detail), WIDTH - 4).into_iter().chain(wrap(&safe(&c.advice), WIDTH - 4)) {
            if !line.is_empty() {
                let _ = writeln!(out, "    {line}");
            }
        }
    }
}

#[cfg(test)]
mod tests;
