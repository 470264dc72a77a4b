//! Disks that fail and disks that are full, below real sidecars.
//!
//! Errors are injected into the running sidecar's system calls by strace; full disks are small file systems of their own.
//! Both need rights that not every machine gives; where they are missing, that is said and nothing is tested.

use std::{
    fs,
    io::{Read as _, Write as _},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use rustix::process::Signal;

use super::site::{Plan, Site, quorate, until};

/// From now on every fdatasync of this sidecar fails with EIO. Detached when dropped.
struct Failing(Child);

impl Failing {
    fn attach(pid: u32) -> Option<Failing> {
        let mut child = Command::new("strace")
            .args(["-f", "-o", "/dev/null", "-e", "trace=fdatasync,fsync"])
            .args(["-e", "inject=fdatasync,fsync:error=EIO", "-p", &pid.to_string()])
            .stderr(Stdio::piped())
            .spawn()
            .expect("this test needs the program strace (Debian: apt-get install strace)");
        // It says so when it is in place.
        let mut said = Vec::new();
        let mut stderr = child.stderr.take().expect("is piped");
        while !said.ends_with(b"attached") {
            let mut byte = [0];
            if stderr.read(&mut byte).expect("reads") == 0 {
                super::not_tested(&format!("strace may not attach here: {}", String::from_utf8_lossy(&said)));
                let _ = child.wait();
                return None;
            }
            said.push(byte[0]);
        }
        // What it goes on saying must not block it.
        std::thread::spawn(move || stderr.read_to_end(&mut said));
        Some(Failing(child))
    }
}

impl Drop for Failing {
    fn drop(&mut self) {
        super::site::send(self.0.id(), Signal::INT);
        let _ = self.0.wait();
    }
}

#[test]
fn an_owner_whose_disk_fails_stops_and_another_takes_over() {
    let (mut site, owner, epoch) = Site::running(Plan::default());
    let Some(failing) = Failing::attach(site.pid(owner)) else { return };
    // Nothing is written while nothing changes, so nothing has happened yet.
    assert!(site.report(owner).is_some());
    let to = site.devices[(owner + 1) % 3].id.clone();
    until("a write that fails", || {
        // Refused as long as the other device may not own yet.
        site.ask(owner, &["transfer", "--to", &to]);
        let report = site.report(owner)?;
        report.conditions.iter().any(|c| c.name == "disk.failed").then_some(())
    });
    let others: Vec<usize> = (0..3).filter(|n| *n != owner).collect();
    let (_, later) = site.owner_among(&others, epoch);
    assert!(later > epoch);
    // It stays to be seen, and the others see it too.
    let shown = site.condition(owner, "disk.failed");
    assert!(shown.contains("os error 5") || shown.to_lowercase().contains("input/output"), "{shown}");
    let name = site.devices[owner].id.clone();
    site.reports(others[0], "its unfitness", |r| {
        r.members
            .iter()
            .any(|m| m.device == name && m.unfit_reason.as_ref().is_some_and(|u| u.contains("disk")))
    });
    assert!(site.runs(owner));
    site.signal(owner, Signal::TERM);
    assert_eq!(site.left(owner).code(), Some(2), "{}", site.log(owner));
    drop(failing);
    // A fresh start checks what is really there.
    site.start(owner);
    site.up(owner);
    site.reports(owner, "a healthy standby", |r| {
        r.owner.known && !r.conditions.iter().any(|c| c.name == "disk.failed")
    });
    assert!(!site.log(owner).contains("quarantine-"), "{}", site.log(owner));
    site.runs_without_overlap();
}

/// Small file systems, one for each device.
struct Disks(tempfile::TempDir);

impl Disks {
    fn mount(count: usize, size: &str) -> Option<Disks> {
        let disks = Disks(tempfile::Builder::new().prefix("quorate-disks-").tempdir().expect("a folder"));
        for n in 0..count {
            fs::create_dir(disks.path(n)).expect("makes");
            let mounted = Command::new("mount")
                .args(["-t", "tmpfs", "-o", &format!("size={size}"), "tmpfs"])
                .arg(disks.path(n))
                .output();
            if !mounted.as_ref().is_ok_and(|m| m.status.success()) {
                super::not_tested(&format!("no file system can be mounted here: {mounted:?}"));
                return None;
            }
        }
        Some(disks)
    }

    fn path(&self, n: usize) -> PathBuf {
        self.0.path().join(n.to_string())
    }
}

impl Drop for Disks {
    fn drop(&mut self) {
        for n in fs::read_dir(self.0.path()).into_iter().flatten().flatten() {
            let _ = Command::new("umount").arg("-l").arg(n.path()).stderr(Stdio::null()).status();
        }
    }
}

/// Takes every byte that is left.
fn fill(folder: &Path) {
    let mut file = fs::File::options().create(true).append(true).open(folder.join("fill")).expect("opens");
    for size in [1 << 20, 4096, 1] {
        while file.write_all(&vec![7; size]).is_ok() {}
    }
}

#[test]
fn a_support_bundle_leaves_no_half_of_itself_on_a_full_disk() {
    let Some(disks) = Disks::mount(1, "4k") else { return };
    let site = Site::new();
    let file = disks.path(0).join("edge-1.tar");
    let output = quorate()
        .arg("support-bundle")
        .arg(&file)
        .args(["--endpoint", "unix:/nobody/is/there.sock"])
        .envs(site.environment(0))
        .output()
        .expect("starts");
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{said}");
    let folder = disks.path(0).display().to_string();
    let hint = said.lines().find(|line| line.starts_with("  hint: ")).expect("a hint");
    assert!(hint.contains(&folder) && hint.contains("quorate support-bundle /"), "{said}");
    assert!(!file.exists(), "half a file helps nobody");
}

#[test]
fn takeover_handover_and_restart_work_on_full_disks() {
    // Room for three stores, and above the limit below which a person is told.
    let Some(disks) = Disks::mount(3, "24m") else { return };
    let mut site = Site::new();
    for n in 0..3 {
        site.tell(n, "QUORATE_STORAGE__PATH", disks.path(n).display().to_string());
    }
    site.start_all();
    let (mut owner, mut epoch) = site.owner(0);
    assert!(site.report(owner).is_some_and(|r| r.conditions.iter().all(|c| c.name != "disk.full")));
    for n in 0..3 {
        fill(&disks.path(n));
        site.condition(n, "disk.full");
    }
    for round in 0..4 {
        // A takeover, and the old owner's start on a full disk.
        site.signal(owner, Signal::KILL);
        site.left(owner);
        let others: Vec<usize> = (0..3).filter(|n| *n != owner).collect();
        let (next, later) = site.owner_among(&others, epoch);
        assert!(later > epoch);
        fill(&disks.path(owner));
        site.start(owner);
        site.up(owner);
        fill(&disks.path(owner));
        site.owner(epoch);
        // A handover back.
        let to = site.devices[owner].id.clone();
        until("a device that may own again", || {
            let answer = site.ask(next, &["transfer", "--to", &to]);
            (answer.status.code() == Some(0)).then_some(())
        });
        let (back, last) = site.owner(later);
        assert!(back == owner && last > later, "round {round}");
        (owner, epoch) = ((owner + 1) % 3, last);
        let to = site.devices[owner].id.clone();
        until("a device that may own again", || {
            let answer = site.ask(back, &["transfer", "--to", &to]);
            (answer.status.code() == Some(0)).then_some(())
        });
        (owner, epoch) = site.owner(epoch);
    }
    for n in 0..3 {
        let shown = site.condition(n, "disk.full");
        assert!(shown.starts_with("0 KiB are free"), "{shown}");
        let report = site.report(n).expect("answers");
        assert!(
            report
                .conditions
                .iter()
                .all(|c| !["disk.failed", "store.quarantined"].contains(&c.name.as_str()))
        );
        fs::remove_file(disks.path(n).join("fill")).expect("removes");
        site.reports(n, "room", |r| r.conditions.iter().all(|c| c.name != "disk.full"));
        until("the reserve to be taken again", || disks.path(n).join("reserve").exists().then_some(()));
    }
    site.runs_without_overlap();
    drop(site);
}
