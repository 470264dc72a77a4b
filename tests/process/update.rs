//! A rolling update of real sidecars by the real command: `quorate update` runs a script that the test answers for, which stops
//! and starts the device's sidecar. Who really ran is read from the tick records.

use std::{
    fs::File,
    io::{Read as _, Write as _},
    process::{Child, Stdio},
};

use rustix::{
    fs::{CWD, FileType, Mode, OFlags, mknodat, open},
    process::Signal,
};
use serde_json::Value;

use super::site::{Plan, Site, quorate, send, until};

/// Part of what a device runs, and so of its build.
pub(super) const MODEL: &str = "QUORATE_WORKLOAD__ENV__MODEL";

/// `quorate update` under way. Its command waits for the test's answer, and ends with it.
pub(super) struct Update {
    child: Child,
    asked: File,
    answer: File,
    heard: String,
}

/// How it ended.
pub(super) struct Ended {
    pub(super) code: Option<i32>,
    pub(super) said: String,
    pub(super) told: String,
}

impl Drop for Update {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Update {
    /// Asks all sidecars in turn.
    pub(super) fn start(site: &Site, arguments: &[&str]) -> Update {
        let pipe = |name: &str| {
            let path = site.file(name);
            if !path.exists() {
                mknodat(CWD, &path, FileType::Fifo, Mode::RWXU, 0).expect("a pipe");
            }
            // Read and written, so that neither end waits for the other.
            File::from(open(&path, OFlags::RDWR | OFlags::NONBLOCK, Mode::empty()).expect("opens"))
        };
        let (asked, answer) = (pipe("asked"), pipe("answer"));
        let script = "[ ! -e \"$1/forks\" ] || { (sleep 1000; true) > /dev/null 2>&1 & echo $! > \"$1/forked\"; };\
                      echo \"$2 $QUORATE_DEVICE\" > \"$1/asked\"; read code < \"$1/answer\"; exit \"$code\"";
        let folder = site.folder.path().display().to_string();
        let mut command = quorate();
        command.args(["update", "--settle", "100ms"]);
        for device in &site.devices {
            command.args(["--endpoint", &format!("http://{}", device.control)]);
        }
        command.args(arguments).args(["--", "/bin/sh", "-c", script, "sh", &folder, "{device}"]);
        let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("starts");
        Update { child, asked, answer, heard: String::new() }
    }

    /// The next device for which the command runs; `None` once all is over.
    #[track_caller]
    pub(super) fn next(&mut self, site: &Site) -> Option<usize> {
        let device = until("a command or the end", || {
            let mut bytes = [0; 64];
            // Nothing to read is an error like any other: it is looked at again.
            let read = self.asked.read(&mut bytes).unwrap_or(0);
            self.heard.push_str(std::str::from_utf8(&bytes[..read]).expect("ASCII"));
            if let Some((line, rest)) = self.heard.split_once('\n') {
                let line = line.to_owned();
                self.heard = rest.to_owned();
                return Some(Some(line));
            }
            self.child.try_wait().expect("is ours").map(|_| None)
        })?;
        let (argument, variable) = device.split_once(' ').expect("both");
        assert_eq!(argument, variable, "the argument and the environment name the same device");
        Some(site.devices.iter().position(|d| d.id == argument).expect("a member"))
    }

    /// The command ends with this code.
    pub(super) fn answer(&mut self, code: u8) {
        writeln!(self.answer, "{code}").expect("is read");
    }

    pub(super) fn interrupt(&self) {
        send(self.child.id(), Signal::INT);
    }

    #[track_caller]
    pub(super) fn ended(mut self) -> Ended {
        let status = until("the end of the update", || self.child.try_wait().expect("is ours"));
        let read = |pipe: &mut dyn std::io::Read| {
            let mut text = String::new();
            pipe.read_to_string(&mut text).expect("UTF-8");
            text
        };
        let said = read(self.child.stdout.as_mut().expect("is piped"));
        let told = read(self.child.stderr.as_mut().expect("is piped"));
        Ended { code: status.code(), said, told }
    }
}

impl Ended {
    #[track_caller]
    fn is(&self, code: i32, told: &[&str]) {
        let all = format!("{}\n{}", self.said, self.told);
        assert_eq!(self.code, Some(code), "{all}");
        for told in told {
            assert!(all.contains(told), "{told:?} in {all}");
        }
    }

    fn objects(&self) -> Vec<Value> {
        self.said.lines().map(|line| serde_json::from_str(line).expect(line)).collect()
    }
}

/// The device's sidecar ends, and comes back with another build.
fn renew(site: &mut Site, n: usize) {
    site.signal(n, Signal::TERM);
    site.left(n);
    site.tell(n, MODEL, "two");
    site.start(n);
    site.up(n);
}

/// All three, the owner last.
fn order(owner: usize) -> Vec<usize> {
    (0..3).filter(|n| *n != owner).chain([owner]).collect()
}

fn build(site: &Site, n: usize) -> String {
    site.report(n).expect("answers").members[n].build.clone()
}

#[test]
fn a_site_is_updated_with_one_handover() {
    // Also where devices that differ do not take over: the update names the one that shall.
    let mut site = Site::with(Plan::default());
    (0..3).for_each(|n| site.tell(n, "QUORATE_SITE__DIFFERING_BUILDS", "block"));
    site.start_all();
    let (owner, epoch) = site.owner(0);
    let before = site.reports(owner, "the fingerprint", |r| r.members[owner].build.contains('+'));
    let before = before.members[owner].build.clone();
    let mut update = Update::start(&site, &["--json"]);
    let mut touched = Vec::new();
    while let Some(n) = update.next(&site) {
        let now = site.report(n).expect("answers").owner.device;
        assert_ne!(now, Some(site.devices[n].id.clone()), "the owner is not touched");
        renew(&mut site, n);
        touched.push(n);
        update.answer(0);
    }
    let ended = update.ended();
    ended.is(0, &[]);
    assert_eq!(touched, order(owner));
    let (next, later) = site.owner(epoch);
    assert_eq!((next, later), (touched[0], epoch + 1));
    let change = &site.report(next).expect("answers").history[0];
    assert_eq!(
        (change.cause.as_str(), change.reason.contains("update")),
        ("handed_over", true),
        "{change:?}"
    );
    assert_eq!(site.runs_without_overlap().len(), 2, "one change of the owner");
    let objects = ended.objects();
    let steps: Vec<&str> = objects.iter().filter_map(|o| o["step"].as_str()).collect();
    assert_eq!(steps, ["plan", "update", "update", "hand_over", "update", "end"]);
    let after = build(&site, next);
    assert_eq!(
        (&objects[1]["before"], &objects[1]["build"]),
        (&before.as_str().into(), &after.as_str().into())
    );
    assert_ne!(before, after);
    assert_eq!(objects[3]["device"], site.devices[next].id.as_str());
    let end = &objects[5];
    assert!(
        end["ok"] == true
            && end["build"] == after.as_str()
            && end["updated"].as_array().is_some_and(|u| u.len() == 3),
        "{end}"
    );
}

#[test]
fn a_device_that_does_not_come_back_stops_it_and_it_goes_on_later() {
    let (mut site, owner, epoch) = Site::running(Plan::default());
    let all = order(owner);
    let mut update = Update::start(&site, &["--timeout", "4s"]);
    let first = update.next(&site).expect("a standby");
    assert_eq!(first, all[0]);
    site.signal(first, Signal::KILL);
    site.left(first);
    update.answer(0);
    assert_eq!(update.next(&site), None, "nothing else is touched");
    let name = |n: usize| site.devices[n].id.clone();
    let (lost, owns) = (name(first), format!("{} owns, epoch {epoch}", name(owner)));
    update.ended().is(
        1,
        &[
            "waited in vain",
            &format!("{lost} is not back: it is not heard"),
            &owns,
            "go on with: quorate update",
        ],
    );
    let others: Vec<usize> = all[1..].to_vec();
    assert_eq!(site.owner_among(&others, 0), (owner, epoch), "the site goes on");
    // It comes back with what was wanted: which of the builds is the new one, somebody has to say.
    site.tell(first, MODEL, "two");
    site.start(first);
    site.up(first);
    site.condition(owner, "build.differs");
    let update = Update::start(&site, &[]);
    update.ended().is(1, &["name the one that all shall run, with --expect"]);
    let wanted = site.reports(first, "the fingerprint", |r| r.members[first].build.contains('+'));
    let wanted = wanted.members[first].build.clone();
    let mut update = Update::start(&site, &["--expect", &wanted]);
    let mut touched = Vec::new();
    while let Some(n) = update.next(&site) {
        renew(&mut site, n);
        touched.push(n);
        update.answer(0);
    }
    update.ended().is(0, &[&format!("{lost} is left out: it runs {wanted} already"), "all are updated"]);
    assert_eq!(touched, others);
    assert_eq!(site.owner(epoch), (first, epoch + 1));
    site.runs_without_overlap();
}

#[test]
fn what_goes_wrong_touches_no_other_device() {
    let (site, owner, epoch) = Site::running(Plan::default());
    let first = order(owner)[0];
    let name = site.devices[first].id.clone();
    // The command fails.
    let mut update = Update::start(&site, &[]);
    assert_eq!(update.next(&site), Some(first));
    update.answer(3);
    assert_eq!(update.next(&site), None);
    update.ended().is(1, &[&format!("the command for {name} failed: exit status: 3"), "not yet: edge-"]);
    // What it should change does not change.
    let mut update = Update::start(&site, &["--timeout", "1s", "--json"]);
    assert_eq!(update.next(&site), Some(first));
    update.answer(0);
    assert_eq!(update.next(&site), None);
    let ended = update.ended();
    ended.is(1, &["what it runs has not changed"]);
    let end = ended.objects().pop().expect("the end");
    assert!(
        end["ok"] == false && end["go_on"].as_str().is_some_and(|g| g.starts_with("quorate update")),
        "{end}"
    );
    // Somebody ends it, and with it the command and what that has started.
    std::fs::write(site.file("forks"), "").expect("writes");
    let mut update = Update::start(&site, &[]);
    assert_eq!(update.next(&site), Some(first));
    update.interrupt();
    assert_eq!(update.next(&site), None);
    update.ended().is(1, &[&format!("interrupted: the command for {name} was ended")]);
    std::fs::remove_file(site.file("forks")).expect("removes");
    let forked = std::fs::read_to_string(site.file("forked")).expect("its number");
    let words = std::fs::read(format!("/proc/{}/cmdline", forked.trim())).unwrap_or_default();
    assert!(words.is_empty(), "{} still runs", String::from_utf8_lossy(&words));
    // The site is paused.
    let paused = site.ask(owner, &["pause", "--reason", "crane"]);
    assert!(paused.status.success());
    site.condition(first, "site.paused");
    let mut update = Update::start(&site, &["--timeout", "100ms"]);
    assert_eq!(update.next(&site), None);
    update.ended().is(1, &["the site is paused by", "crane"]);
    let update = Update::start(&site, &["--dry-run"]);
    update.ended().is(1, &["it could not begin now: the site is paused", "a handover from"]);
    assert!(site.ask(owner, &["resume"]).status.success());
    for n in 0..3 {
        site.reports(n, "the end of the pause", |r| r.orders.paused.is_none());
    }
    Update::start(&site, &["--dry-run"]).ended().is(0, &["a handover from"]);
    Update::start(&site, &["--only", "edge-9"]).ended().is(2, &["edge-9 is not a member of this site"]);
    assert_eq!(site.owner(0), (owner, epoch), "nothing has moved");
    assert_eq!(site.runs_without_overlap().len(), 1);
}

#[test]
fn an_owner_that_dies_in_the_middle_is_updated_too() {
    let (mut site, owner, epoch) = Site::running(Plan::default());
    let mut update = Update::start(&site, &[]);
    let first = update.next(&site).expect("a standby");
    renew(&mut site, first);
    update.answer(0);
    let second = update.next(&site).expect("the other standby");
    renew(&mut site, second);
    // The old owner is lost while the command runs, and comes back as it was.
    site.signal(owner, Signal::KILL);
    site.left(owner);
    let (next, later) = site.owner_among(&[first, second], epoch);
    site.start(owner);
    site.up(owner);
    update.answer(0);
    assert_eq!(update.next(&site), Some(owner), "no handover is needed any more");
    renew(&mut site, owner);
    update.answer(0);
    assert_eq!(update.next(&site), None);
    update.ended().is(0, &["all are updated"]);
    assert_eq!(site.owner(epoch), (next, later));
    assert_eq!(build(&site, owner), build(&site, next));
    assert_eq!(site.runs_without_overlap().len(), 2);
}

/// Where devices that differ do not own, a new version that cannot work is noticed at the first device, as anywhere else.
#[test]
fn a_broken_version_is_stopped_at_the_first_device_also_where_differing_ones_do_not_own() {
    for policy in ["warn", "block"] {
        let leases =
            tempfile::Builder::new().prefix("quorate-test-").tempdir_in("/dev/shm").expect("a tmpfs");
        let workload =
            format!("kind = \"gate\"\nlease_file = \"{}\"", leases.path().join("lease.json").display());
        let mut site = Site::with(Plan { workload: Some(workload), ..Plan::default() });
        for n in 0..3 {
            site.tell(n, "QUORATE_SITE__DIFFERING_BUILDS", policy);
            site.tell(
                n,
                "QUORATE_WORKLOAD__LEASE_FILE",
                leases.path().join(format!("lease-{n}.json")).display().to_string(),
            );
        }
        site.start_all();
        let (owner, _) = site.owner(0);
        for n in 0..3 {
            site.reports(n, "the fingerprints", |r| r.members.iter().all(|m| m.build.contains('+')));
        }
        let mut update = Update::start(&site, &["--timeout", "8s"]);
        let first = update.next(&site).expect("a standby");
        // The new version has another model, and a lease file that cannot be written.
        let model = site.file("model");
        std::fs::write(&model, "two").expect("writes");
        site.tell(first, "QUORATE_WORKLOAD__FINGERPRINT_FILES", format!("[\"{}\"]", model.display()));
        site.tell(first, "QUORATE_WORKLOAD__LEASE_FILE", "/no/such/folder/lease.json");
        site.signal(first, Signal::TERM);
        site.left(first);
        site.start(first);
        site.up(first);
        update.answer(0);
        let next = update.next(&site);
        let seen = site.report(owner).expect("answers").members[first].clone();
        let own = site.report(first).expect("answers");
        let own: Vec<_> =
            own.conditions.iter().map(|c| (c.name.clone(), c.device.clone(), c.detail.clone())).collect();
        eprintln!(
            "{policy}: first {first}, next {next:?}; the owner says of it {:?} {:?} blocks {}; it says itself {own:?}",
            seen.fit, seen.unfit_reason, seen.build_blocks
        );
        assert_eq!(next, None, "{policy}: a second device is touched although the first cannot work");
    }
}
