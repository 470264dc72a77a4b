//! The documents against the product: what they name exists, and what exists is named.
//!
//! Settings, conditions, metrics, the timing's numbers and the command lines of README.md, the examples in deploy/, the
//! runbook's headings, and the files and tests that the map in src/README.md points to. Texts are read as they lie in
//! the repository; nothing is started but `--help`.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use quorate::{
    condition::{Condition, Severity},
    config::{Config, Environment, Faults, load},
    reconcile::commands,
    status::{
        metrics::Metrics,
        report::{self, Member, Owner, Probe, Report},
    },
    timing::{Settings, Timing},
};

const BASE: &str =
    "[site]\nid = \"plant-7\"\nmembers = [{ device = \"edge-1\", address = \"10.0.0.11:7600\" }]\n";

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

pub(super) fn text(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|e| panic!("{path}: {e}"))
}

/// The part of a document below a heading, up to the next heading of the same or a higher level.
fn part<'a>(document: &'a str, heading: &str) -> &'a str {
    let start = document.find(&format!("\n{heading}\n")).unwrap_or_else(|| panic!("no {heading:?}")) + 1;
    let level = heading.split(' ').next().map_or(0, str::len);
    let body = &document[start + heading.len()..];
    let end = (1..=level).filter_map(|n| body.find(&format!("\n{} ", "#".repeat(n)))).min();
    &body[..end.unwrap_or(body.len())]
}

/// The cells of a table's rows, without its head.
fn rows(part: &str) -> Vec<Vec<&str>> {
    part.lines()
        .filter(|l| l.starts_with("| "))
        .skip(1)
        .map(|l| l.trim_matches('|').split(" | ").map(str::trim).collect())
        .collect()
}

/// The text of a cell that is one piece of code; empty for anything else.
fn code(cell: &str) -> &str {
    let inner = cell.strip_prefix('`').and_then(|c| c.strip_suffix('`'));
    inner.filter(|c| !c.contains('`')).unwrap_or("")
}

/// What `file` and `variables` make on device edge-1 with an empty `/run`.
fn loaded(file: &str, variables: &[(&str, &str)]) -> Result<Config, Faults> {
    let folder = tempfile::tempdir().expect("folder");
    let path = folder.path().join("quorate.toml");
    fs::write(&path, file).expect("writes");
    let secret = folder.path().join("hub-connection-string");
    fs::write(&secret, "HostName=h.example;SharedAccessKeyName=n;SharedAccessKey=a2V5").expect("writes");
    let place = folder.path().display().to_string();
    let mut all: BTreeMap<String, String> =
        variables.iter().map(|(n, v)| ((*n).to_owned(), v.replace("/etc/quorate", &place))).collect();
    all.insert("IOTEDGE_DEVICEID".into(), "edge-1".into());
    fs::write(&path, file.replace("/etc/quorate", &place)).expect("writes");
    let environment = Environment { variables: all, run_dir: "/nowhere/run".into() };
    // The places of the files differ from run to run.
    load(Some(&path), &environment).map(|mut config| {
        if let Some(file) = &mut config.hub.connection_string_file {
            *file = PathBuf::new();
        }
        Config { file: PathBuf::new(), ..config }
    })
}

/// The keys of `section` as the product tells them to somebody who wrote a wrong one.
fn keys_of(section: &str) -> Vec<String> {
    const WRONG: &str = "qqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqq";
    let file = match section {
        "" => format!("{WRONG} = 1\n{BASE}"),
        "site" => BASE.replace("id =", &format!("{WRONG} = 1\nid =")),
        "site.members[]" => BASE.replace("{ device", &format!("{{ {WRONG} = 1, device")),
        "site.probes[]" => format!("{BASE}probes = [{{ {WRONG} = 1 }}]\n"),
        other => format!("{BASE}[{other}]\n{WRONG} = 1\n"),
    };
    let faults = loaded(&file, &[]).expect_err("the key is wrong");
    let fault = faults.0.iter().find(|f| f.key.as_deref().is_some_and(|k| k.ends_with(WRONG)));
    let advice = &fault.unwrap_or_else(|| panic!("{faults}")).advice;
    let (_, keys) = advice.split_once("there are: ").unwrap_or_else(|| panic!("{advice}"));
    keys.split(", ").map(str::to_owned).collect()
}

/// Whether the key is only there to say that it is not available yet.
fn is_for_later(key: &str) -> bool {
    let (section, name) = key.rsplit_once('.').expect("in a section");
    let faults = loaded(&format!("{BASE}[{section}]\n{name} = 1\n"), &[]).err();
    faults.is_some_and(|f| f.0.iter().any(|f| f.problem.contains("not available in this version")))
}

#[test]
fn every_setting_is_in_the_readme_and_the_other_way_round() {
    let mut expected = BTreeSet::new();
    for section in keys_of("") {
        for key in keys_of(&section) {
            match (&*section, &*key) {
                ("site", "members") => {
                    expected.extend(keys_of("site.members[]").iter().map(|k| format!("site.members[].{k}")));
                }
                ("site", "probes") => {
                    expected.extend(keys_of("site.probes[]").iter().map(|k| format!("site.probes[].{k}")));
                }
                ("site", "timing") => {
                    expected.insert("site.timing".to_owned());
                    expected.extend(keys_of("site.timing").iter().map(|k| format!("site.timing.{k}")));
                }
                ("hub", "gate") => {
                    expected.extend(keys_of("hub.gate").iter().map(|k| format!("hub.gate.{k}")));
                }
                ("workload", "limits") => {
                    expected
                        .extend(keys_of("workload.limits").iter().map(|k| format!("workload.limits.{k}")));
                }
                ("workload", "env") => {
                    expected.insert("workload.env.NAME".to_owned());
                }
                _ => {
                    let key = format!("{section}.{key}");
                    if section == "site" || !is_for_later(&key) {
                        expected.insert(key);
                    }
                }
            }
        }
    }
    let readme = text("README.md");
    let told: BTreeSet<String> =
        rows(part(&readme, "## Settings")).iter().map(|row| code(row[0]).to_owned()).collect();
    assert_eq!(told, expected);
}

#[test]
fn every_default_in_the_readme_is_the_default() {
    let base = format!("{BASE}[control]\nsocket = \"off\"\n");
    let plain = loaded(&base, &[]).expect("is right");
    let mut checked = 0;
    let readme = text("README.md");
    for row in rows(part(&readme, "## Settings")) {
        let (key, default) = (code(row[0]), code(row[1]));
        // The socket's default depends on the machine, and a member's role has no variable of its own.
        if default.is_empty() || key == "control.socket" || key.contains("[]") {
            continue;
        }
        let variable = format!("QUORATE_{}", key.to_uppercase().replace('.', "__"));
        let said = loaded(&base, &[(&variable, default)]).unwrap_or_else(|e| panic!("{key}: {e}"));
        assert_eq!(said, plain, "{key} = {default} changes something");
        checked += 1;
    }
    assert!(checked > 12, "only {checked} defaults were found");
    let said = loaded(&base.replace(" }]", ", role = \"voter\" }]"), &[]).expect("is right");
    assert_eq!(said, plain);
    // Nor have a probe's.
    let probe = |role: &str, more: &str| {
        let must = "name = \"p\"\nkind = \"tcp\"\ntarget = \"plc:502\"";
        loaded(&format!("{base}[[site.probes]]\n{must}\n{role}\n{more}"), &[]).expect("is right")
    };
    for (key, default) in rows(part(&readme, "## Settings")).iter().map(|row| (code(row[0]), code(row[1]))) {
        let Some(key) = key.strip_prefix("site.probes[].").filter(|_| !default.is_empty()) else { continue };
        let role = if key == "grace" { "role = \"workload\"" } else { "" };
        let value = default.parse::<u32>().map_or_else(|_| format!("{default:?}"), |n| n.to_string());
        assert_eq!(probe(role, &format!("{key} = {value}")), probe(role, ""), "{key}");
        checked += 1;
    }
    assert!(checked > 18, "only {checked} defaults were found");
}

#[test]
fn the_example_configuration_is_right_and_shows_the_defaults() {
    let example = text("deploy/quorate.toml");
    // The default socket depends on the machine.
    let fixed = [("QUORATE_CONTROL__SOCKET", "off")];
    let plain = loaded(&example, &fixed).unwrap_or_else(|e| panic!("{e}"));
    let mut shown = 0;
    let open: Vec<String> = example
        .lines()
        .map(|line| match line.strip_prefix("# ") {
            Some(setting) if setting.starts_with('[') || setting.split(' ').nth(1) == Some("=") => {
                let mine = ["working_dir", "LOG_LEVEL", "ca_file"];
                if mine.iter().any(|name| setting.starts_with(name)) {
                    return line.to_owned();
                }
                shown += 1;
                setting.to_owned()
            }
            _ => line.to_owned(),
        })
        .collect();
    assert!(shown > 15, "only {shown} settings are shown");
    let opened = loaded(&open.join("\n"), &fixed).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(opened, plain, "what is commented out is not the default");
}

#[test]
fn the_quick_start_has_a_configuration_that_is_right() {
    let readme = text("README.md");
    let (_, rest) = readme.split_once("cat > quorate.toml <<EOF\n").expect("a file in the quick start");
    let (file, _) = rest.split_once("\nEOF\n").expect("its end");
    let file =
        file.replace("\\$", "$").replace("$PWD/connection-string", "/etc/quorate/hub-connection-string");
    let file: Vec<&str> = file.lines().filter(|l| !l.starts_with("ca_file")).collect();
    loaded(&file.join("\n"), &[]).unwrap_or_else(|e| panic!("{e}"));
}

#[test]
fn every_condition_is_in_the_readme_and_in_the_runbook() {
    let (readme, deploy) = (text("README.md"), text("deploy/README.md"));
    let told = rows(part(&readme, "## Conditions"));
    let expected: Vec<Vec<&str>> = Condition::ALL
        .iter()
        .map(|c| {
            let severity = match c.severity() {
                Severity::Info => "info",
                Severity::Warning => "warning",
                Severity::Critical => "critical",
            };
            vec![c.name(), severity, c.meaning(), c.advice()]
        })
        .collect();
    let told: Vec<Vec<&str>> = told.iter().map(|r| vec![code(r[0]), r[1], r[2], r[3]]).collect();
    assert_eq!(told, expected);
    let runbook = part(&deploy, "## Runbook");
    let headings: Vec<&str> = runbook.lines().filter_map(|l| l.strip_prefix("### ")).map(code).collect();
    assert_eq!(headings, Condition::ALL.iter().map(|c| c.name()).collect::<Vec<_>>());
}

/// All metrics that a sidecar shows, each with its type; the names as samples have them, but for what a histogram adds.
pub(super) fn metrics() -> BTreeMap<String, String> {
    // A family without a member is not shown at all.
    let metrics = Metrics::new();
    metrics.ownership_changed("first_start");
    metrics.peer_rtt("edge-2", Duration::from_millis(1));
    let mut report = Report { members: vec![Member::default()], ..Report::default() };
    report.hub.requests.insert("200".into(), 1);
    report.probes.push(Probe { up: Some(true), ..Probe::default() });
    report.owner = Owner { known: true, device: Some("edge-2".into()), ..Owner::default() };
    report.conditions.push(report::Condition { device: "edge-2".into(), ..report::Condition::default() });
    let counts = std::collections::BTreeMap::from([("200".to_owned(), 1)]);
    let module =
        quorate::status::report::HubModule { requests: counts.clone(), gate: counts, ..Default::default() };
    report.hub.module = Some(module);
    let shown = metrics.render(&report);
    let mut types = BTreeMap::new();
    for line in shown.lines() {
        if let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|l| l.split_once(' ')) {
            let suffix = if kind == "counter" { "_total" } else { "" };
            types.insert(format!("{name}{suffix}"), kind.to_owned());
        }
    }
    types
}

#[test]
fn every_metric_is_in_the_readme_and_the_other_way_round() {
    let readme = text("README.md");
    let told: BTreeSet<String> = rows(part(&readme, "## Metrics"))
        .iter()
        .map(|row| code(row[0]).split('{').next().unwrap_or_default().to_owned())
        .collect();
    assert_eq!(told, metrics().into_keys().collect());
}

#[test]
fn the_numbers_of_the_timing_are_the_printed_ones() {
    let timing = Timing::new(&Settings::default()).expect("defaults hold");
    let readme = text("README.md");
    assert!(readme.contains(&format!("\n{timing}\n")), "README does not print: {timing}");
    let (refusal, bound) = (timing.refusal().as_millis(), timing.takeover_bound().as_millis());
    let sum = format!(
        "{refusal} + {} + {} = {bound} ms",
        timing.stagger().as_millis() * 8,
        timing.heartbeat().as_millis() * 3
    );
    assert!(readme.contains(&sum), "{sum}");
    for told in [format!("rounded up to {refusal} ms"), format!("({bound} ms with default settings)")] {
        assert!(readme.contains(&told), "{told}");
    }
}

/// The command lines that a document shows: words after `quorate`, from blocks and from code inside the text.
fn command_lines(document: &str) -> Vec<Vec<String>> {
    let mut lines = Vec::new();
    let mut in_block = false;
    for line in document.lines() {
        if line.starts_with("```") {
            in_block = !in_block && ["```sh", "```console"].contains(&line);
            continue;
        }
        if in_block {
            // An ending backslash goes with the line before; comments, other commands and pipes end a command.
            lines.extend(line.split(['#', ';', '|', '>', '(', ')']).map(str::to_owned));
        } else {
            lines.extend(line.split('`').skip(1).step_by(2).map(str::to_owned));
        }
    }
    lines
        .iter()
        .filter_map(|line| {
            let line = line.trim().trim_start_matches("$ ");
            let mut words = line.split_whitespace().map(str::to_owned);
            (words.next()? == "quorate").then(|| words.collect())
        })
        .collect()
}

#[expect(clippy::disallowed_methods, reason = "tests start the real binary")]
fn help(command: &[&str]) -> Option<String> {
    let output = Command::new(env!("CARGO_BIN_EXE_quorate"))
        .args(command)
        .arg("--help")
        .env_clear()
        .output()
        .expect("the binary starts");
    let said = String::from_utf8(output.stdout).expect("UTF-8");
    output.status.success().then_some(said)
}

#[test]
fn every_command_line_that_is_shown_exists() {
    if !cfg!(feature = "emulator") {
        return;
    }
    let mut helps: BTreeMap<String, String> = BTreeMap::new();
    let mut seen = BTreeSet::new();
    for document in [
        "README.md",
        "deploy/README.md",
        "deploy/CHANGELOG.md",
        "deploy/cloud.md",
        "deploy/gate.md",
        "deploy/routing.md",
        "deploy/updates.md",
        "deploy/workloads.md",
        "src/README.md",
    ] {
        for words in command_lines(&text(document)) {
            let depth = if words.first().is_some_and(|w| w == "emulate") { 2 } else { 1 };
            let command: Vec<&str> = words.iter().take(depth).map(String::as_str).collect();
            let name = command.join(" ");
            let help = helps.entry(name.clone()).or_insert_with(|| {
                help(&command).unwrap_or_else(|| panic!("{document}: there is no `quorate {name}`"))
            });
            // What stands behind `--` is another program's.
            for option in words.iter().take_while(|w| *w != "--").filter(|w| w.starts_with("--")) {
                assert!(
                    help.contains(&format!("{option} ")) || help.contains(&format!("{option}\n")),
                    "{document}: {words:?}"
                );
            }
            seen.insert(name);
        }
    }
    let usual = ["demo", "emulate hub", "leader", "run", "status", "transfer", "why"];
    assert!(usual.iter().all(|c| seen.contains(*c)), "README shows only {seen:?}");
}

/// The updates that deploy/updates.md shows are command lines as they stand there: all that is missing is a sidecar.
#[test]
#[expect(clippy::disallowed_methods, reason = "tests start the real binary")]
fn every_update_that_is_shown_is_understood() {
    let updates = command_lines(&text("deploy/updates.md"))
        .into_iter()
        .filter(|words| words.first().is_some_and(|w| w == "update") && words.len() > 1);
    let folder = tempfile::tempdir().expect("a folder");
    let nobody = format!("unix:{}/control.sock", folder.path().display());
    let mut tried = 0;
    for words in updates {
        // Its own endpoints are somebody's, perhaps.
        let (mut mine, mut rest) = (Vec::new(), words[1..].iter());
        while let Some(word) = rest.next() {
            match word.as_str() {
                "--endpoint" => drop(rest.next()),
                other => mine.push(other),
            }
        }
        let output = Command::new(env!("CARGO_BIN_EXE_quorate"))
            .args(["update", "--endpoint", &nobody])
            .args(&mine)
            .env_clear()
            .output()
            .expect("the binary starts");
        let told = String::from_utf8(output.stderr).expect("UTF-8");
        assert!(output.status.code() == Some(2) && told.contains("cannot reach"), "{words:?}: {told}");
        tried += 1;
    }
    assert!(tried >= 6, "only {tried} were found");
}

/// All files below a folder of the repository.
fn files(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).expect("reads").flatten() {
        let path = entry.path();
        if path.is_dir() { files(&path, found) } else { found.push(path) }
    }
}

#[test]
fn what_the_map_points_to_exists() {
    let map = text("src/README.md");
    let mut all = Vec::new();
    files(&root().join("src"), &mut all);
    files(&root().join("tests"), &mut all);
    let sources: String = all
        .iter()
        .filter(|p| p.extension().is_some_and(|e| e == "rs"))
        .map(|p| fs::read_to_string(p).expect("reads"))
        .collect();
    let mut pointers = 0;
    let mut room = String::new();
    for pointer in map.split('`').skip(1).step_by(2) {
        let is_file = pointer.rsplit_once('.').is_some_and(|(_, end)| ["rs", "proto", "md"].contains(&end));
        if is_file && !pointer.contains(' ') {
            // Behind `raft/log/mod.rs` a bare `sled.rs` means its neighbour.
            let places = [
                root().join("src").join(pointer),
                root().join(pointer),
                root().join("src").join(&room).join(pointer),
            ];
            assert!(places.iter().any(|p| p.is_file()), "there is no {pointer}");
            if let Some((folder, _)) = pointer.rsplit_once('/') {
                room = folder.to_owned();
            }
            pointers += 1;
        } else if pointer.len() > 18 && pointer.bytes().all(|b| b.is_ascii_lowercase() || b == b'_') {
            assert!(sources.contains(&format!("fn {pointer}(")), "there is no test or function {pointer}");
            pointers += 1;
        }
    }
    assert!(pointers > 60, "only {pointers} pointers were found");
}

#[test]
fn links_inside_the_repository_lead_somewhere() {
    let anchor = |heading: &str| -> String {
        let plain = heading.trim_start_matches('#').trim().to_lowercase();
        plain
            .chars()
            .filter(|c| c.is_alphanumeric() || " -_".contains(*c))
            .map(|c| if c == ' ' { '-' } else { c })
            .collect()
    };
    let mut checked = 0;
    for document in [
        "README.md",
        "src/README.md",
        "deploy/README.md",
        "deploy/CHANGELOG.md",
        "deploy/cloud.md",
        "deploy/comparison.md",
        "deploy/gate.md",
        "deploy/routing.md",
        "deploy/updates.md",
        "deploy/workloads.md",
    ] {
        let content = text(document);
        let folder = root().join(document).parent().expect("a folder").to_owned();
        for link in content.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            if link.starts_with("http") {
                continue;
            }
            let (file, place) = link.split_once('#').map_or((link, None), |(f, a)| (f, Some(a)));
            let path = if file.is_empty() { root().join(document) } else { folder.join(file) };
            assert!(path.is_file(), "{document}: {link}");
            if let Some(place) = place {
                let target = fs::read_to_string(&path).expect("reads");
                let found = target.lines().filter(|l| l.starts_with('#')).any(|l| anchor(l) == place);
                assert!(found, "{document}: {link}");
            }
            checked += 1;
        }
    }
    assert!(checked > 15, "only {checked} links were found");
}

#[test]
fn every_planted_bug_is_in_the_tests_table_and_the_other_way_round() {
    let (script, readme) = (text("tests/planted.py"), text("tests/README.md"));
    let planted: Vec<&str> =
        script.lines().filter_map(|l| l.strip_prefix("    (\"")?.split('"').next()).collect();
    let heading = readme.lines().find(|l| l.starts_with("## Planted")).expect("a part about them");
    let told: Vec<&str> = rows(part(&readme, heading)).iter().map(|r| code(r[1])).collect();
    let sorted = |names: Vec<&str>| names.iter().map(|n| (*n).to_owned()).collect::<BTreeSet<_>>();
    assert!(planted.len() >= 25 && planted.len() == told.len(), "{} and {}", planted.len(), told.len());
    assert_eq!(sorted(told), sorted(planted));
}

/// The examples in deploy/cloud.md are understood as they stand there, and none is missing.
#[test]
fn every_command_of_the_cloud_that_is_shown_is_understood() {
    let document = text("deploy/cloud.md");
    let mut shown = BTreeSet::new();
    for (heading, body) in document.split("```json ").skip(1).filter_map(|rest| rest.split_once('\n')) {
        let json = body.split("```").next().expect("it ends");
        let json: serde_json::Value = serde_json::from_str(json).expect(heading);
        if let Some(name) = heading.strip_prefix("method ") {
            commands::method(name, &json).unwrap_or_else(|why| panic!("{name}: {why:?}"));
            shown.insert(format!("method {name}"));
            continue;
        }
        for request in commands::desired(&json["quorate"]) {
            let request = request.unwrap_or_else(|why| panic!("{heading}: {why:?}"));
            shown.insert(format!("desired {}", request.verb()));
        }
    }
    let methods =
        ["transfer", "pause", "resume", "drain", "undrain", "prefer"].map(|m| format!("method {m}"));
    let desired = ["pause", "prefer", "drain", "transfer", "timing"].map(|d| format!("desired {d}"));
    assert_eq!(shown, methods.into_iter().chain(desired).collect());
}
