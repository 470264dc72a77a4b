//! Probes of real sidecars: a plant that a device does not see any more, a workload that says that it is not well, and commands
//! that leave processes behind.

use std::{
    net::{SocketAddr, TcpListener},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use super::site::{Site, http, now, processes_with, until};

/// Somebody who accepts connections, until dropped.
struct Plc {
    address: SocketAddr,
    off: Arc<AtomicBool>,
    accepts: Option<JoinHandle<()>>,
}

impl Plc {
    fn new() -> Plc {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        listener.set_nonblocking(true).expect("is ours");
        let (address, off) = (listener.local_addr().expect("an address"), Arc::new(AtomicBool::new(false)));
        let told = off.clone();
        let accepts = std::thread::spawn(move || {
            while !told.load(Ordering::Relaxed) {
                drop(listener.accept());
                std::thread::sleep(Duration::from_millis(5));
            }
        });
        Plc { address, off, accepts: Some(accepts) }
    }

    fn probe(&self) -> String {
        format!("{{ name = \"plc\", kind = \"tcp\", target = \"{}\", every = \"200ms\" }}", self.address)
    }
}

impl Drop for Plc {
    fn drop(&mut self) {
        self.off.store(true, Ordering::Relaxed);
        if let Some(accepts) = self.accepts.take() {
            let _ = accepts.join();
        }
    }
}

fn passes(site: &Site, n: usize, name: &str, wanted: bool) {
    site.reports(n, &format!("{name} passes: {wanted}"), |r| {
        r.probes.iter().any(|p| p.name == name && p.up == Some(wanted))
    });
}

#[test]
fn the_owner_that_sees_the_plant_no_more_hands_over_once() {
    let mut site = Site::new();
    let mut plcs: Vec<Option<Plc>> = (0..3).map(|_| Some(Plc::new())).collect();
    for (n, plc) in plcs.iter().flatten().enumerate() {
        site.tell(n, "QUORATE_SITE__PROBES", format!("[{}]", plc.probe()));
        site.tell(n, "QUORATE_SITE__BETTER_FOR", "1s");
    }
    site.start_all();
    let (owner, epoch) = site.owner(0);
    (0..3).for_each(|n| passes(&site, n, "plc", true));
    plcs[owner] = None;
    assert!(site.condition(owner, "plant.unseen").contains("plc: 127.0.0.1:"));
    let (next, after) = site.owner(epoch);
    assert!(next != owner && after == epoch + 1, "from {owner} under {epoch} to {next} under {after}");
    let report = site.report(next).expect("it is up");
    assert_eq!(report.history[0].cause, "handed_over");
    let (_, metrics) = http(site.devices[owner].http, "/metrics").expect("it is up");
    assert!(metrics.contains("quorate_probe_up{name=\"plc\"} 0"), "{metrics}");
    assert!(
        String::from_utf8_lossy(&site.ask(owner, &["status"]).stdout).contains("plc (tcp, plant): FAILS")
    );

    // Now nobody sees it, so nobody is better off.
    plcs.iter_mut().for_each(|plc| *plc = None);
    (0..3).for_each(|n| passes(&site, n, "plc", false));
    let patience = now() + Duration::from_secs(4);
    until("some seconds", || (now() > patience).then_some(()));
    assert_eq!(site.owner(0), (next, after));
    site.runs_without_overlap();
}

#[test]
fn a_workload_that_says_that_it_is_not_well_goes_to_another_device() {
    let mut site = Site::new();
    let sick = |site: &Site, n: usize| site.file(&format!("sick-{n}"));
    for n in 0..3 {
        let words = serde_json::json!(["/bin/sh", "-c", "test ! -e \"$0\"", sick(&site, n)]);
        let probe = format!(
            "{{ name = \"well\", kind = \"exec\", role = \"workload\", target = {words}, every = \"200ms\", timeout = \"10s\" }}"
        );
        site.tell(n, "QUORATE_SITE__PROBES", format!("[{probe}]"));
    }
    site.start_all();
    let (owner, epoch) = site.owner(0);
    passes(&site, owner, "well", true);
    let standby = site.report((owner + 1) % 3).expect("it is up");
    assert_eq!(standby.probes[0].up, None, "nothing runs there that could be asked");
    std::fs::write(sick(&site, owner), "").expect("writes");
    let (next, after) = site.owner(epoch);
    assert!(next != owner && after == epoch + 1);
    assert!(site.condition(owner, "workload.unhealthy").contains("probe well: /bin/sh exited with 1"));
    let refused = site.ask(next, &["transfer", "--to", &site.devices[owner].id]);
    assert_eq!(refused.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("fails the probe well"), "{refused:?}");
    site.runs_without_overlap();
}

/// Each answer leaves a process behind in a session of its own. They do not pile up.
#[test]
fn what_a_command_leaves_behind_is_ended() {
    let mut site = Site::new();
    let mark = site.file("left-behind");
    let script = "setsid /bin/sh -c 'sleep 1000; :' \"$0\" & exit 0";
    let words = serde_json::json!(["/bin/sh", "-c", script, mark]);
    let probe = format!(
        "{{ name = \"forks\", kind = \"exec\", target = {words}, every = \"100ms\", timeout = \"10s\" }}"
    );
    site.tell(0, "QUORATE_SITE__PROBES", format!("[{probe}]"));
    site.start_all();
    passes(&site, 0, "forks", true);
    let mut most = 0;
    until("some of them to be ended", || {
        let count = processes_with(&mark).len();
        most = most.max(count);
        (most > 3 && count < most / 2).then_some(())
    });
    site.owner(0);
    assert!(site.runs(0) && most < 200, "{most} at once");
}
