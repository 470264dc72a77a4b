//! Alert rules and dashboard in deploy/ against the product: every metric, label and condition that they name exists, and an alarm
//! that must sound does. The last by Prometheus' own `promtool`, where it is installed (Debian: prometheus).

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use quorate::condition::{Condition, Severity};

use super::{
    docs::{metrics, text},
    process::not_tested,
};

const RULES: &str = "deploy/prometheus-rules.yml";
const DASHBOARD: &str = "deploy/grafana.json";

/// What `document` names that begins like a metric of ours, without what a histogram adds to it.
fn named(document: &str) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for (at, _) in document.match_indices("quorate_") {
        let rest = &document[at..];
        let end = rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(rest.len());
        names.insert(rest[..end].to_owned());
    }
    names
}

/// Samples by the name of their metric, such as `quorate_fsync_seconds_bucket`.
fn samples() -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for (name, kind) in metrics() {
        if kind == "histogram" {
            names.extend(["bucket", "sum", "count"].map(|end| format!("{name}_{end}")));
        } else {
            names.insert(name);
        }
    }
    names
}

#[test]
fn every_metric_that_is_watched_exists() {
    let samples = samples();
    for file in [RULES, DASHBOARD] {
        let named = named(&text(file));
        assert!(named.len() > 7, "{file} names only {named:?}");
        let unknown: Vec<_> = named.difference(&samples).collect();
        assert!(unknown.is_empty(), "{file} names metrics that do not exist: {unknown:?}");
    }
}

/// The names in `name=~"a[.]b|c"`.
fn conditions(rules: &str, operator: &str) -> BTreeSet<String> {
    let (_, rest) = rules.split_once(&format!("quorate_condition{{name{operator}\"")).expect("the rule");
    let (list, _) = rest.split_once('"').expect("its end");
    list.split('|').map(|name| name.replace("[.]", ".")).collect()
}

#[test]
fn every_condition_sounds_an_alarm_as_loud_as_it_is() {
    let rules = text(RULES);
    let names = |severity| -> BTreeSet<String> {
        let of = Condition::ALL.iter().filter(|c| c.severity() == severity);
        of.map(|c| c.name().to_owned()).collect()
    };
    let own: BTreeSet<String> = ["no.owner", "quorum.lost"].map(str::to_owned).into();
    let critical = names(Severity::Critical);
    let expected: BTreeSet<_> = critical.difference(&own).cloned().collect();
    assert_eq!(conditions(&rules, "=~"), expected, "those that are critical and have no rule of their own");
    let warned: BTreeSet<_> = critical.iter().cloned().chain(["no.spare".to_owned()]).collect();
    assert_eq!(conditions(&rules, "!~"), warned, "all that another rule is about");
    for line in rules.lines().filter_map(|l| l.trim().strip_prefix("runbook: \"deploy/README.md, ")) {
        let place = line.trim_end_matches('"');
        let known = place == "Runbook"
            || place.contains("$labels.name")
            || Condition::ALL.iter().any(|c| c.name() == place);
        assert!(known, "{place}");
    }
}

#[test]
fn the_dashboard_is_whole() {
    let dashboard: serde_json::Value = serde_json::from_str(&text(DASHBOARD)).expect("JSON");
    let panels = dashboard["panels"].as_array().expect("panels");
    assert!(panels.len() > 15);
    let mut places = BTreeMap::new();
    for panel in panels {
        let title = panel["title"].as_str().expect("a title");
        let at = |key: &str| panel["gridPos"][key].as_u64().expect("a place");
        assert!(at("x") + at("w") <= 24, "{title} is too wide");
        for x in at("x")..at("x") + at("w") {
            for y in at("y")..at("y") + at("h") {
                let other = places.insert((x, y), title);
                assert_eq!(other, None, "{title} lies on another panel");
            }
        }
        let targets = panel["targets"].as_array().expect("targets");
        let asks = |t: &serde_json::Value| t["expr"].as_str().is_some_and(|e| e.contains("quorate_"));
        assert!(!targets.is_empty() && targets.iter().all(asks), "{title} shows nothing");
    }
    // Whoever loads it chooses the data source: none is written down.
    assert!(!text(DASHBOARD).contains("\"uid\": \"P"));
}

#[expect(clippy::disallowed_methods, reason = "tests start Prometheus' own tool")]
fn promtool(arguments: &[&str], file: &Path) -> Option<Output> {
    match Command::new("promtool").args(arguments).arg(file).output() {
        Ok(output) => Some(output),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            not_tested("promtool is not installed (Debian: prometheus)");
            None
        }
        Err(e) => panic!("promtool: {e}"),
    }
}

/// One thing that is watched: series, and which alarms sound after ten minutes.
fn story(name: &str, series: &[(&str, &str)], alarms: &[&str]) -> String {
    let mut yaml = format!("  - name: {name}\n    interval: 30s\n    input_series:\n");
    let site = [1, 2, 3].map(|n| {
        (
            format!("quorate_build_info{{instance=\"{n}\",site=\"p\",device=\"edge-{n}\",version=\"1\"}}"),
            "1x60",
        )
    });
    let all = site.iter().map(|(series, values)| (series.as_str(), *values)).chain(series.iter().copied());
    for (series, values) in all {
        yaml += &format!("      - series: '{series}'\n        values: '{values}'\n");
    }
    yaml += "    promql_expr_test:\n      - expr: count by (alertname) (ALERTS{alertstate=\"firing\"})\n        eval_time: 14m\n        exp_samples:";
    if alarms.is_empty() {
        yaml += " []";
    }
    for alarm in alarms {
        yaml += &format!("\n          - labels: '{{alertname=\"{alarm}\"}}'\n            value: 1");
    }
    yaml + "\n"
}

#[test]
fn alarms_sound_when_they_must_and_not_otherwise() {
    let rules = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(RULES);
    let Some(checked) = promtool(&["check", "rules"], &rules) else { return };
    assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stderr));
    let well = |owners: &'static [u8]| -> Vec<(String, &'static str)> {
        (1..=3u8)
            .flat_map(|n| {
                let owns = if owners.contains(&n) { "1x60" } else { "0x60" };
                [("owner", owns), ("quorum", "1x60"), ("devices_may_fail", "1x60"), ("epoch", "17x60")]
                    .map(|(name, values)| (format!("quorate_{name}{{instance=\"{n}\"}}"), values))
            })
            .collect()
    };
    let mut stories = String::new();
    let mut tell = |name: &str, owners: &'static [u8], more: &[(&str, &str)], alarms: &[&str]| {
        let well = well(owners);
        let named = |series: &str| series.split('{').next().map(str::to_owned);
        let instance = |series: &str| series.split("instance=\"").nth(1).map(|s| s[..1].to_owned());
        let told = |s: &str| more.iter().any(|(m, _)| named(m) == named(s) && instance(m) == instance(s));
        let rest = well.iter().filter(|(s, _)| !told(s)).map(|(s, values)| (s.as_str(), *values));
        stories += &story(name, &rest.chain(more.iter().copied()).collect::<Vec<_>>(), alarms);
    };
    tell("all is well", &[2], &[], &[]);
    tell("nobody owns", &[], &[], &["QuorateNoOwner"]);
    tell("two own", &[1, 2], &[], &["QuorateTwoOwners"]);
    tell(
        "one is cut off",
        &[2],
        &[("quorate_quorum{instance=\"3\"}", "0x60"), ("quorate_devices_may_fail{instance=\"3\"}", "0x60")],
        &["QuorateQuorumLost"],
    );
    let spare: Vec<(String, &str)> =
        (1..=3).map(|n| (format!("quorate_devices_may_fail{{instance=\"{n}\"}}"), "0x60")).collect();
    let spare: Vec<(&str, &str)> = spare.iter().map(|(s, v)| (s.as_str(), *v)).collect();
    tell("no spare", &[2], &spare, &["QuorateNoSpare"]);
    let condition = |name: &str| format!("quorate_condition{{instance=\"1\",name=\"{name}\"}}");
    tell("a disk fails", &[2], &[(&condition("disk.failed"), "1x60")], &["QuorateCriticalCondition"]);
    tell("the hub is away", &[2], &[(&condition("hub.unreachable"), "1x60")], &["QuorateCondition"]);
    tell(
        "it moves all the time",
        &[2],
        &[("quorate_epoch{instance=\"1\"}", "1+1x60")],
        &["QuorateMovesOften"],
    );
    tell(
        "twins are behind",
        &[2],
        &[("quorate_hub_lag_seconds{instance=\"2\"}", "1000x60")],
        &["QuorateHubBehind"],
    );
    // So it is for a moment before each renewal, also where all is well.
    tell("a lease is short", &[2], &[("quorate_lease_seconds_left_min{instance=\"2\"}", "0.02x60")], &[]);
    tell(
        "a disk is slow",
        &[2],
        &[
            ("quorate_fsync_seconds_bucket{instance=\"1\",le=\"0.5\"}", "0+1x60"),
            ("quorate_fsync_seconds_bucket{instance=\"1\",le=\"2\"}", "0+10x60"),
            ("quorate_fsync_seconds_bucket{instance=\"1\",le=\"+Inf\"}", "0+10x60"),
        ],
        &["QuorateSlowDisk"],
    );
    tell("a sidecar is gone", &[2], &[("up{instance=\"3\"}", "0x60")], &["QuorateSidecarGone"]);
    let folder = tempfile::tempdir().expect("folder");
    let file = folder.path().join("stories.yml");
    let yaml = format!("rule_files: ['{}']\nevaluation_interval: 30s\ntests:\n{stories}", rules.display());
    fs::write(&file, yaml).expect("writes");
    let told = promtool(&["test", "rules"], &file).expect("it was there a moment ago");
    let said = format!("{}{}", String::from_utf8_lossy(&told.stdout), String::from_utf8_lossy(&told.stderr));
    assert!(told.status.success(), "{said}");
}
