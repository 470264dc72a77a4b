//! Metrics in the OpenMetrics text format, under the names that dashboards and alerts rely on.
//!
//! What is a state comes from the [`Report`] at scrape time; what is an event is counted here as it happens. One
//! registry per process, handed around by hand, so that two nodes in one test do not share figures. No exemplars and
//! no infinite values: IoT Edge's metrics collector refuses both. No metric decides anything.

use std::{
    fmt,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use prometheus_client::{
    encoding::text::encode,
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::Registry,
};

use super::report::{Report, Role};
use crate::condition::Condition;

type Float = Gauge<f64, AtomicU64>;
type Labels = Vec<(&'static str, String)>;
type Histograms = Family<Labels, Histogram, fn() -> Histogram>;

/// All metrics of one sidecar. Cheap to clone.
#[derive(Clone)]
pub struct Metrics {
    inner: Arc<Inner>,
}

struct Inner {
    registry: Registry,
    events: Events,
    /// Scrapes fill these from the report one at a time, so that no answer mixes two.
    states: Mutex<States>,
}

struct Events {
    elections: Counter,
    ownership_changes: Family<Labels, Counter>,
    takeover: Histogram,
    peer_rtt: Histograms,
    fsync: Histogram,
}

#[derive(Default)]
struct States {
    owner: Gauge,
    epoch: Gauge,
    lease_left: Float,
    quorum: Gauge,
    leader: Gauge,
    may_fail: Gauge,
    hub_in_sync: Gauge,
    hub_lag: Float,
    hub_requests: Family<Labels, Counter>,
    hub_rolled_back: Counter,
    hub_confirmed_epoch: Gauge,
    module_connected: Gauge,
    module_in_sync: Gauge,
    module_requests: Family<Labels, Counter>,
    gate_messages: Family<Labels, Counter>,
    workload_up: Gauge,
    workload_failures: Gauge,
    member_reachable: Family<Labels, Gauge>,
    probe_up: Family<Labels, Gauge>,
    refused: Counter,
    uptime: Float,
    stall: Float,
    lease_left_min: Float,
    round_trip: Float,
    unanswered: Float,
    stretch: Float,
    condition: Family<Labels, Gauge>,
    member_condition: Family<Labels, Gauge>,
    owner_workload_up: Family<Labels, Gauge>,
    build: Family<Labels, Gauge>,
}

/// From 1 ms to 8 s, doubling: takeovers and round trips on one scale.
fn times() -> Histogram {
    Histogram::new((0..14).map(|i| 0.001 * f64::from(1u32 << i)))
}

impl Default for Metrics {
    fn default() -> Metrics {
        Metrics::new()
    }
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Metrics")
    }
}

impl Metrics {
    /// An empty set with a registry of its own.
    pub fn new() -> Metrics {
        let events = Events {
            elections: Counter::default(),
            ownership_changes: Family::default(),
            takeover: times(),
            peer_rtt: Family::new_with_constructor(times),
            fsync: times(),
        };
        let states = States::default();
        let mut registry = Registry::with_prefix("quorate");
        let r = &mut registry;
        r.register("owner", "1 if this device owns the workload and can vouch for it", states.owner.clone());
        r.register("epoch", "Epoch of the newest ownership this device knows", states.epoch.clone());
        r.register(
            "lease_seconds_left",
            "How long this device's lease still runs; 0 without one",
            states.lease_left.clone(),
        );
        r.register("quorum", "1 if this device hears from a majority", states.quorum.clone());
        r.register(
            "leader",
            "1 if this device leads the Raft group; says nothing about ownership",
            states.leader.clone(),
        );
        r.register("devices_may_fail", "How many more devices the site can lose", states.may_fail.clone());
        r.register("elections", "Elections that this device began", events.elections.clone());
        r.register(
            "ownership_changes",
            "Ownerships that began, by what began them",
            events.ownership_changes.clone(),
        );
        r.register(
            "takeover_seconds",
            "From the last sign of the old owner to the claim of the new one",
            events.takeover.clone(),
        );
        r.register("peer_rtt_seconds", "Round trips of renewals, by device", events.peer_rtt.clone());
        r.register("fsync_seconds", "How long the disk took to make a write durable", events.fsync.clone());
        r.register("hub_in_sync", "1 if all twins are known to show the record", states.hub_in_sync.clone());
        r.register(
            "hub_lag_seconds",
            "How long the oldest change has been waiting for the hub",
            states.hub_lag.clone(),
        );
        r.register("hub_requests", "Answers of the hub, by code", states.hub_requests.clone());
        r.register("module_connected", "1 if the module's own link stands", states.module_connected.clone());
        r.register(
            "module_in_sync",
            "1 if the module's own twin is known to show what this sidecar has to say",
            states.module_in_sync.clone(),
        );
        r.register(
            "module_requests",
            "Answers on the module's own link, by code",
            states.module_requests.clone(),
        );
        r.register(
            "gate_messages",
            "Messages of the workload at the gate, by what became of them",
            states.gate_messages.clone(),
        );
        r.register(
            "hub_rolled_back",
            "How often a twin was found to show an earlier epoch than before",
            states.hub_rolled_back.clone(),
        );
        r.register(
            "hub_confirmed_epoch",
            "The newest epoch that all twins were confirmed to show",
            states.hub_confirmed_epoch.clone(),
        );
        r.register(
            "workload_up",
            "1 if the workload was observed running on this device, and has said that it is ready if it has to",
            states.workload_up.clone(),
        );
        r.register(
            "workload_failures",
            "How often in a row the workload has ended by itself",
            states.workload_failures.clone(),
        );
        r.register("member_reachable", "1 if the member answers", states.member_reachable.clone());
        r.register("probe_up", "1 if the probe passes on this device", states.probe_up.clone());
        r.register("peers_refused", "Calls of sidecars that do not belong here", states.refused.clone());
        r.register("uptime_seconds", "Since this sidecar started", states.uptime.clone());
        r.register("stall_seconds", "The longest stall of this device in ten seconds", states.stall.clone());
        r.register(
            "lease_seconds_left_min",
            "What the lease had left at renewals, at the least in ten seconds; 0 without one",
            states.lease_left_min.clone(),
        );
        r.register(
            "renewal_seconds_max",
            "The slowest answer to a renewal in ten seconds; 0 on devices that do not own",
            states.round_trip.clone(),
        );
        r.register(
            "renewals_unanswered",
            "Which part of the questions of ten seconds was not answered",
            states.unanswered.clone(),
        );
        r.register(
            "timing_stretch",
            "How many times longer than configured heartbeat and hold are now",
            states.stretch.clone(),
        );
        r.register("condition", "1 while this device raises the condition", states.condition.clone());
        r.register(
            "member_condition",
            "1 while another device says that it raises the condition",
            states.member_condition.clone(),
        );
        r.register(
            "owner_workload_up",
            "1 if nothing is known to be wrong with the workload on the owner, which the label names; absent if no owner is known",
            states.owner_workload_up.clone(),
        );
        r.register("build_info", "Always 1; the labels say what runs", states.build.clone());
        Metrics { inner: Arc::new(Inner { registry, events, states: Mutex::new(states) }) }
    }

    /// This device began an election.
    pub fn election(&self) {
        self.inner.events.elections.inc();
    }

    /// An ownership began. `cause` is one of a small closed set, never free text.
    pub fn ownership_changed(&self, cause: &str) {
        self.inner.events.ownership_changes.get_or_create(&vec![("reason", cause.to_owned())]).inc();
    }

    /// The site was without an owner for this long.
    pub fn takeover(&self, gap: Duration) {
        self.inner.events.takeover.observe(gap.as_secs_f64());
    }

    /// A member answered a renewal after this long.
    pub fn peer_rtt(&self, device: &str, rtt: Duration) {
        self.inner
            .events
            .peer_rtt
            .get_or_create(&vec![("device", device.to_owned())])
            .observe(rtt.as_secs_f64());
    }

    /// A write became durable after this long.
    pub fn fsync(&self, took: Duration) {
        self.inner.events.fsync.observe(took.as_secs_f64());
    }

    /// Everything as text, the states as in `report`.
    pub fn render(&self, report: &Report) -> String {
        let states = self.inner.states.lock().unwrap_or_else(PoisonError::into_inner);
        states.fill(report);
        let mut text = String::new();
        // Writing into a String cannot fail; a broken metric must not end the scrape.
        let _ = encode(&mut text, &self.inner.registry);
        text
    }
}

impl States {
    fn fill(&self, report: &Report) {
        let seconds = |ms: u64| Duration::from_millis(ms).as_secs_f64();
        let number = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
        let owns = report.owner.known && report.owner.device.as_deref() == Some(&report.device);
        self.owner.set(owns.into());
        self.epoch.set(number(report.epoch));
        self.lease_left.set(seconds(report.lease_left_ms.unwrap_or(0)));
        self.quorum.set(report.quorum.into());
        self.leader.set((report.role == Role::Leader).into());
        self.may_fail.set(report.devices_may_fail.into());
        self.hub_in_sync.set(report.hub.in_sync.into());
        self.hub_lag.set(seconds(report.hub.lag_ms));
        self.hub_rolled_back.inner().store(report.hub.rolled_back, Ordering::Relaxed);
        self.hub_confirmed_epoch.set(number(report.hub.confirmed_epoch.unwrap_or(0)));
        for (code, count) in &report.hub.requests {
            let counter = self.hub_requests.get_or_create_owned(&vec![("code", code.clone())]);
            counter.inner().store(*count, Ordering::Relaxed);
        }
        let module = report.hub.module.as_ref();
        self.module_connected.set(module.is_some_and(|m| m.connected).into());
        self.module_in_sync.set(module.is_some_and(|m| m.in_sync).into());
        for (code, count) in module.iter().flat_map(|m| &m.requests) {
            let counter = self.module_requests.get_or_create_owned(&vec![("code", code.clone())]);
            counter.inner().store(*count, Ordering::Relaxed);
        }
        for (outcome, count) in module.iter().flat_map(|m| &m.gate) {
            let counter = self.gate_messages.get_or_create_owned(&vec![("outcome", outcome.clone())]);
            counter.inner().store(*count, Ordering::Relaxed);
        }
        self.workload_up.set((report.workload.observed == "running").into());
        self.workload_failures.set(report.workload.failures.into());
        self.member_reachable.clear();
        for member in &report.members {
            let label = vec![("device", member.device.clone())];
            self.member_reachable.get_or_create_owned(&label).set(member.reachable.into());
        }
        self.probe_up.clear();
        for (name, up) in report.probes.iter().filter_map(|p| Some((p.name.clone(), p.up?))) {
            self.probe_up.get_or_create_owned(&vec![("name", name)]).set(up.into());
        }
        self.refused.inner().store(report.knocks.iter().map(|k| k.count).sum(), Ordering::Relaxed);
        self.uptime.set(seconds(report.uptime_ms));
        let v = &report.vitals;
        self.stall.set(seconds(v.stall_ms));
        self.lease_left_min.set(seconds(v.lease_left_min_ms.unwrap_or(0)));
        self.round_trip.set(seconds(v.round_trip_ms.unwrap_or(0)));
        self.unanswered.set(f64::from(v.unanswered_percent.unwrap_or(0)) / 100.0);
        self.stretch.set(f64::from(v.stretch_percent) / 100.0);
        for condition in Condition::ALL {
            let holds =
                report.conditions.iter().any(|c| c.name == condition.name() && report.is_raised_here(c));
            let label = vec![("name", condition.name().to_owned())];
            self.condition.get_or_create_owned(&label).set(holds.into());
        }
        self.member_condition.clear();
        for c in report.conditions.iter().filter(|c| !report.is_raised_here(c)) {
            let label = vec![("device", c.device.clone()), ("name", c.name.clone())];
            self.member_condition.get_or_create_owned(&label).set(1);
        }
        self.owner_workload_up.clear();
        if let Some(device) = report.owner.device.clone().filter(|_| report.owner.known) {
            let works = report.owner.workload_wrong.is_none();
            self.owner_workload_up.get_or_create_owned(&vec![("device", device)]).set(works.into());
        }
        self.build.clear();
        let labels = [("version", &report.version), ("site", &report.site), ("device", &report.device)];
        let labels: Labels = labels.into_iter().map(|(name, value)| (name, value.clone())).collect();
        self.build.get_or_create_owned(&labels).set(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::report::{self, Owner, Probe, Workload};

    fn report() -> Report {
        let mut report = Report {
            site: "plant-7".into(),
            device: "edge-1".into(),
            version: "1.2.3".into(),
            epoch: 17,
            lease_left_ms: Some(250),
            owner: Owner { known: true, device: Some("edge-1".into()), epoch: 17, ..Owner::default() },
            workload: Workload { observed: "running".into(), ..Workload::default() },
            conditions: vec![(&crate::condition::Raised::new(Condition::NoSpare, "2 of 3")).into()],
            ..Report::default()
        };
        report.hub.requests.insert("204".into(), 9);
        for (name, up) in [("plc-1", Some(true)), ("plc-2", Some(false)), ("ready", None)] {
            report.probes.push(Probe { name: name.into(), up, ..Probe::default() });
        }
        report
    }

    #[test]
    fn every_promised_name_is_there() {
        let metrics = Metrics::new();
        metrics.election();
        metrics.ownership_changed("takeover");
        metrics.takeover(Duration::from_millis(600));
        metrics.peer_rtt("edge-2", Duration::from_micros(300));
        metrics.fsync(Duration::from_millis(3));
        let text = metrics.render(&report());
        for line in [
            "quorate_owner 1",
            "quorate_epoch 17",
            "quorate_lease_seconds_left 0.25",
            "quorate_quorum 0",
            "quorate_devices_may_fail 0",
            "quorate_elections_total 1",
            "quorate_ownership_changes_total{reason=\"takeover\"} 1",
            "quorate_takeover_seconds_count 1",
            "quorate_peer_rtt_seconds_count{device=\"edge-2\"} 1",
            "quorate_fsync_seconds_count 1",
            "quorate_hub_in_sync 0",
            "quorate_hub_lag_seconds 0.0",
            "quorate_hub_requests_total{code=\"204\"} 9",
            "quorate_workload_up 1",
            "quorate_probe_up{name=\"plc-1\"} 1",
            "quorate_probe_up{name=\"plc-2\"} 0",
            "quorate_condition{name=\"no.spare\"} 1",
            "quorate_condition{name=\"no.owner\"} 0",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} is not in:\n{text}");
        }
        assert!(!text.contains("name=\"ready\""), "what is not known is not told: {text}");
        for sample in text.lines().filter(|l| !l.starts_with('#')) {
            let value: f64 = sample.rsplit(' ').next().and_then(|v| v.parse().ok()).expect("a value");
            assert!(value.is_finite(), "{sample}");
            assert!(!sample.contains(" # "), "exemplar: {sample}");
        }
        assert!(text.ends_with("# EOF\n"));
    }

    #[test]
    fn what_others_raise_is_told_under_a_name_of_its_own() {
        let metrics = Metrics::new();
        let mut standby = report();
        standby.owner.device = Some("edge-2".into());
        standby.owner.workload_wrong = Some("backing off".into());
        let crashing = (&crate::condition::Raised::new(Condition::WorkloadCrashing, "")).into();
        standby.conditions.push(report::Condition { device: "edge-2".into(), ..crashing });
        let text = metrics.render(&standby);
        for line in [
            "quorate_condition{name=\"no.spare\"} 1",
            // Or one trouble would sound as many alarms as there are devices.
            "quorate_condition{name=\"workload.crashing\"} 0",
            "quorate_member_condition{device=\"edge-2\",name=\"workload.crashing\"} 1",
            "quorate_owner_workload_up{device=\"edge-2\"} 0",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} is not in:\n{text}");
        }
        (standby.owner.known, standby.owner.workload_wrong) = (false, None);
        standby.conditions.clear();
        let text = metrics.render(&standby);
        assert!(!text.contains("edge-2"), "nothing stays behind: {text}");
    }

    #[test]
    fn states_follow_the_report_and_nothing_stays_behind() {
        let metrics = Metrics::new();
        metrics.render(&report());
        let mut lost = report();
        lost.owner.known = false;
        lost.conditions.clear();
        let text = metrics.render(&lost);
        assert!(text.lines().any(|l| l == "quorate_owner 0"), "{text}");
        assert!(text.lines().any(|l| l == "quorate_condition{name=\"no.spare\"} 0"), "{text}");
    }

    #[test]
    fn two_sets_share_nothing() {
        let (one, two) = (Metrics::new(), Metrics::new());
        one.election();
        assert!(two.render(&report()).contains("quorate_elections_total 0"));
    }
}
