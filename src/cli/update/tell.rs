//! What an update says: each step on stdout, as a line or as an object; what it waits for, and why it stopped, on stderr.

use std::{cell::RefCell, time::Duration};

use serde_json::{Value, json};

use super::{
    super::{DONE, say, tell},
    Args,
};
use crate::{
    clock::{BootClock, Clock as _, Moment, millis},
    config::show_duration,
    status::{
        report::Report,
        update::{Expect, Goal, Memory, Step},
    },
};

/// Whoever looks shall not wonder for longer.
const SILENT: Duration = Duration::from_secs(2);
/// What lasts is said again.
const REMIND: Duration = Duration::from_secs(30);

/// A step under way.
enum Now {
    Update(String),
    HandOver(String),
}

pub(super) struct Teller {
    json: bool,
    state: RefCell<State>,
}

#[derive(Default)]
struct State {
    now: Option<(Now, Moment)>,
    /// What is waited for, since when, and when that was last said.
    waiting: Option<(String, Moment, Option<Moment>)>,
}

fn seconds(since: Moment) -> String {
    format!("{:.1} s", BootClock.now().since(since).as_secs_f64())
}

fn plain(text: &str) -> String {
    // Names and reasons are others' texts: a control code in them must not reach the terminal.
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

fn build_of<'a>(report: &'a Report, device: &str) -> &'a str {
    report.members.iter().find(|m| m.device == device).map_or("", |m| &m.build)
}

impl Teller {
    pub(super) fn new(json: bool) -> Teller {
        Teller { json, state: RefCell::default() }
    }

    fn line(&self, text: &str, object: &Value) -> Result<(), u8> {
        self.state.borrow_mut().waiting = None;
        let said = if self.json { say(&object.to_string()) } else { say(&plain(text)) };
        // That nobody reads on is no reason to leave a site half updated.
        said.or_else(|code| if code == DONE { Ok(()) } else { Err(code) })
    }

    /// What will be done, if nothing comes between.
    pub(super) fn outline(&self, report: &Report, steps: &[Step], goal: &Goal) -> Result<(), u8> {
        let mut order: Vec<String> = Vec::new();
        let mut objects = Vec::new();
        for step in steps {
            match step {
                Step::Update(device) => {
                    order.push(device.clone());
                    objects.push(json!({ "update": device }));
                }
                Step::HandOver { from, to } => {
                    order.push(format!("a handover from {from} to {to}"));
                    objects.push(json!({ "hand_over": to, "from": from }));
                }
                Step::Wait(_) | Step::Stop(_) | Step::Done => {}
            }
        }
        let out: Vec<Value> = report
            .members
            .iter()
            .filter(|m| !steps.iter().any(|s| matches!(s, Step::Update(device) if *device == m.device)))
            .map(|m| {
                let scope = goal.scope(report).any(|s| s.device == m.device);
                let why = match scope {
                    true => format!("it runs {} already", m.build),
                    false if goal.only.is_empty() => "it is a witness: name it with --only".into(),
                    false => "it is not named".to_owned(),
                };
                json!({ "device": m.device, "why": why })
            })
            .collect();
        let object = json!({ "step": "plan", "site": report.site, "order": objects, "left_out": out });
        let order = if order.is_empty() { "nothing to do".to_owned() } else { order.join(", then ") };
        let mut text = format!("{}: {order}", report.site);
        for left in &out {
            let word = |key: &str| left[key].as_str().unwrap_or_default().to_owned();
            text = format!("{text}\n{} is left out: {}", word("device"), word("why"));
        }
        match self.json {
            true => self.line("", &object),
            false => text.lines().try_for_each(|line| self.line(line, &Value::Null)),
        }
    }

    pub(super) fn not_now(&self, why: &str) -> Result<(), u8> {
        let object = json!({ "step": "end", "ok": false, "why": why });
        self.line(&format!("it could not begin now: {why}"), &object)
    }

    pub(super) fn begins(&self, device: &str, words: &[String]) -> Result<(), u8> {
        self.state.borrow_mut().now = Some((Now::Update(device.to_owned()), BootClock.now()));
        match self.json {
            true => Ok(()),
            false => self.line(&format!("{device}: {}", quoted(words)), &Value::Null),
        }
    }

    pub(super) fn hands_over(&self, from: &str, to: &str) -> Result<(), u8> {
        let again = matches!(&self.state.borrow().now, Some((Now::HandOver(_), _)));
        if again {
            return Ok(());
        }
        self.state.borrow_mut().now = Some((Now::HandOver(from.to_owned()), BootClock.now()));
        match self.json {
            true => Ok(()),
            false => self.line(&format!("{from} hands over to {to}"), &Value::Null),
        }
    }

    /// The step under way has held for long enough.
    pub(super) fn achieved(&self, report: &Report, memory: &Memory) -> Result<(), u8> {
        let Some((now, since)) = self.state.borrow_mut().now.take() else { return Ok(()) };
        let took_ms = millis(BootClock.now().since(since));
        let took = seconds(since);
        match now {
            Now::Update(device) => {
                let (before, build) = (memory.before(&device), build_of(report, &device));
                let object = json!({ "step": "update", "device": device, "before": before, "build": build, "took_ms": took_ms });
                let text = match before == build {
                    true => format!("{device} is well and runs {build}, as before ({took})"),
                    false => format!("{device} is well and runs {build}, before it ran {before} ({took})"),
                };
                self.line(&text, &object)
            }
            Now::HandOver(from) => {
                let owner = report.owner.device.as_deref().unwrap_or_default();
                let epoch = report.owner.epoch;
                let object = json!({ "step": "hand_over", "device": owner, "from": from, "epoch": epoch, "took_ms": took_ms });
                self.line(&format!("{owner} owns, epoch {epoch} ({took})"), &object)
            }
        }
    }

    /// What is waited for, once it lasts.
    pub(super) fn waiting(&self, why: &str) {
        let now = BootClock.now();
        let mut state = self.state.borrow_mut();
        let same = state.waiting.take().filter(|(what, ..)| what == why);
        let (_, since, said) = same.unwrap_or_else(|| (why.to_owned(), now, None));
        let due = now.since(since) >= SILENT && said.is_none_or(|said| now.since(said) >= REMIND);
        if due {
            tell(&format!("waiting ({}): {}", seconds(since), plain(why)));
        }
        state.waiting = Some((why.to_owned(), since, if due { Some(now) } else { said }));
    }

    pub(super) fn done(&self, memory: &Memory, goal: &Goal, seen: Option<&Report>) -> Result<(), u8> {
        let object = end(true, "", memory, goal, seen, None);
        let text = match memory.touched() {
            [] => "every device is updated already".to_owned(),
            devices => format!("all are updated: {}", devices.join(", ")),
        };
        self.line(&text, &object)
    }

    pub(super) fn stopped(
        &self,
        why: &str,
        args: &Args,
        memory: &Memory,
        goal: &Goal,
        seen: Option<&Report>,
    ) -> Result<(), u8> {
        let go_on = go_on(args, memory, goal, seen);
        if self.json {
            self.line("", &end(false, why, memory, goal, seen, Some(&go_on)))?;
        }
        tell(&format!("quorate: stopped: {}", plain(why)));
        if let Some(report) = seen {
            let owner = match &report.owner.device {
                Some(owner) if report.owner.known => format!("{owner} owns, epoch {}", report.owner.epoch),
                _ => "nobody is known to own".to_owned(),
            };
            let may_fail = report.devices_may_fail;
            tell(&plain(&format!("  the site: {owner}; {may_fail} more may fail; nothing more is touched")));
            let (updated, open) = sorted(memory, goal, report);
            let list =
                |names: Vec<String>| if names.is_empty() { "none".to_owned() } else { names.join(", ") };
            tell(&plain(&format!("  updated: {}; not yet: {}", list(updated), list(open))));
        }
        tell(&plain(&format!("  hint: see `quorate status`; then go on with: {go_on}")));
        Ok(())
    }
}

/// The command line that goes on from here.
fn go_on(args: &Args, memory: &Memory, goal: &Goal, seen: Option<&Report>) -> String {
    let mut words = vec!["quorate".to_owned(), "update".to_owned()];
    let mut option = |name: &str, value: String| words.extend([name.to_owned(), value]);
    let mut only: Vec<String> = goal.only.iter().cloned().collect();
    match (&goal.expect, memory.wanted(goal)) {
        (_, Some(build)) => option("--expect", build),
        (Expect::Changed, None) => {}
        (expect, _) => {
            option("--expect", if *expect == Expect::Any { "any" } else { "restarted" }.to_owned());
            if let Some(report) = seen {
                only = sorted(memory, goal, report).1;
            }
        }
    }
    if !only.is_empty() {
        option("--only", only.join(","));
    }
    if args.settle != Duration::from_secs(5) {
        option("--settle", show_duration(args.settle));
    }
    if args.timeout != Duration::from_secs(600) {
        option("--timeout", show_duration(args.timeout));
    }
    args.endpoint.iter().for_each(|endpoint| option("--endpoint", endpoint.clone()));
    if args.json {
        words.push("--json".to_owned());
    }
    words.push("--".to_owned());
    words.extend(args.command.iter().cloned());
    quoted(&words)
}

/// The devices that are updated, and those that are not, or not known to be.
fn sorted(memory: &Memory, goal: &Goal, report: &Report) -> (Vec<String>, Vec<String>) {
    let mut due = memory.due(report, goal);
    if let Some(last) = memory.open().filter(|last| !due.iter().any(|d| d == last)) {
        due.insert(0, last.to_owned());
    }
    let updated = goal.scope(report).map(|m| m.device.clone()).filter(|device| !due.contains(device));
    (updated.collect(), due)
}

fn end(
    ok: bool,
    why: &str,
    memory: &Memory,
    goal: &Goal,
    seen: Option<&Report>,
    go_on: Option<&str>,
) -> Value {
    let (updated, open) = seen.map(|report| sorted(memory, goal, report)).unwrap_or_default();
    let mut end = json!({
        "step": "end", "ok": ok, "updated": updated, "not_updated": open, "build": memory.wanted(goal),
        "owner": seen.and_then(|r| r.owner.device.clone().filter(|_| r.owner.known)),
    });
    if let Some(go_on) = go_on {
        end["why"] = json!(why);
        end["go_on"] = json!(go_on);
    }
    end
}

/// As it could be typed into a shell.
fn quoted(words: &[String]) -> String {
    let bare = |c: char| c.is_ascii_alphanumeric() || "_./:=@%+,{}-".contains(c);
    let word = |word: &String| match !word.is_empty() && word.chars().all(bare) {
        true => word.clone(),
        false => format!("'{}'", word.replace('\'', "'\\''")),
    };
    words.iter().map(word).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_quoted_for_a_shell() {
        let words = ["ssh", "{device}", "echo 'a b' > c", "", "x=1"].map(str::to_owned);
        assert_eq!(quoted(&words), r"ssh {device} 'echo '\''a b'\'' > c' '' x=1");
    }
}
