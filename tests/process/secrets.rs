//! The hub's key stays where it was put: in its file, in the sidecar's memory, and in what is signed with it.
//!
//! Everything that a person, a program or another user of the device can get to see is searched: logs of all levels, errors, status,
//! metrics, the page, command lines, environments, what the workload is given, and all files of the site but the key's own.

use std::{fs, path::Path, process::Output};

use quorate::hub::trouble::Trouble;
use rustix::process::Signal;

use super::{
    hub::Hub,
    site::{Plan, Site, http, processes_with, until},
};

/// The key in the forms in which it could leak.
fn needles(connection_string: &str) -> Vec<Vec<u8>> {
    let (_, key) = connection_string.split_once("SharedAccessKey=").expect("a key");
    let encoded: String =
        percent_encoding::utf8_percent_encode(key, percent_encoding::NON_ALPHANUMERIC).collect();
    let plain = key.trim_end_matches('=');
    // A token is as good as the key while it lasts.
    [key, &encoded, plain, "SharedAccessSignature", "sig="].map(|text| text.as_bytes().to_vec()).into()
}

fn holds(bytes: &[u8], needles: &[Vec<u8>]) -> Option<String> {
    let found =
        needles.iter().find(|needle| bytes.windows(needle.len()).any(|part| part == needle.as_slice()));
    found.map(|needle| String::from_utf8_lossy(needle).into_owned())
}

/// Every file below a folder, the key's own left out.
fn files(folder: &Path, found: &mut Vec<std::path::PathBuf>) {
    for entry in fs::read_dir(folder).expect("a folder").flatten() {
        let kind = entry.file_type().expect("a kind");
        if kind.is_dir() {
            files(&entry.path(), found);
        } else if kind.is_file() {
            found.push(entry.path());
        }
    }
}

#[test]
fn the_hubs_key_is_found_nowhere_but_in_its_file() {
    let hub = Hub::start(1);
    let key = hub.emulator.service_connection_string();
    let file = hub.folder.path().join("connection-string");
    // First a key that the hub refuses, so that its errors are heard as well.
    let wrong = "HostName=".to_owned()
        + &key
            .split_once('=')
            .expect("a string")
            .1
            .replace("SharedAccessKey=", "SharedAccessKey=d3Jvbmd3cm9uZ3dyb25n");
    fs::write(&file, &wrong).expect("writes");
    let more = format!("{}[log]\nlevel = \"debug\"\n", hub.section());
    let (mut site, owner, _) = Site::running(Plan { more, ..Plan::default() });
    site.condition(owner, "hub.unauthorized");
    fs::write(&file, &key).expect("writes");
    site.reports(owner, "the mended key to be used", |r| r.hub.in_sync);
    for trouble in [Trouble::TokensExpired, Trouble::Failing { status: 500 }, Trouble::Unreachable] {
        hub.emulator.trouble(trouble);
        site.reports(owner, "the trouble", |r| r.conditions.iter().any(|c| c.name.starts_with("hub.")));
    }
    // One device has the string in its environment, where its own user and root can read it anyway, and nobody else.
    let other = (owner + 1) % 3;
    site.signal(other, Signal::TERM);
    site.left(other);
    site.tell(other, "QUORATE_HUB__CONNECTION_STRING", key.clone());
    site.start(other);
    site.up(other);
    hub.emulator.trouble(Trouble::None);
    until("the device with the string in its environment to own", || {
        let to = &site.devices[other].id;
        (site.ask(other, &["transfer", "--to", to]).status.code() == Some(0)).then_some(())
    });
    site.reports(other, "it to mirror", |r| r.hub.in_sync);

    let mut needles = needles(&key);
    needles.extend(self::needles(&wrong));
    searched(&site, &needles, Some((site.pid(other), b"QUORATE_HUB__CONNECTION_STRING=")));
}

#[test]
fn the_applications_secret_is_found_nowhere_but_in_its_file() {
    let hub = Hub::start(1);
    let more = format!("{}[log]\nlevel = \"debug\"\n", hub.application_section());
    let first = hub.emulator.application().secret;
    // First a secret that the directory refuses, so that its errors are heard as well.
    hub.write_secret("wrongwrongwrong+/wrong");
    let (site, owner, _) = Site::running(Plan { more, ..Plan::default() });
    until("the refusal", || {
        Some(site.condition(owner, "hub.unauthorized")).filter(|detail| detail.contains("AADSTS7000215"))
    });
    hub.write_secret(first.reveal());
    site.reports(owner, "the mended secret to be used", |r| r.hub.in_sync);
    for trouble in [Trouble::TokensExpired, Trouble::Unreachable, Trouble::None] {
        hub.emulator.trouble(trouble);
        site.reports(owner, "the trouble", |r| {
            r.conditions.iter().any(|c| c.name.starts_with("hub.")) == (trouble != Trouble::None)
        });
    }
    let encode = |text: &str| -> String {
        percent_encoding::utf8_percent_encode(text, percent_encoding::NON_ALPHANUMERIC).collect()
    };
    let mut needles = Vec::new();
    for secret in [first.reveal(), "wrongwrongwrong+/wrong"] {
        needles.extend([secret.as_bytes().to_vec(), encode(secret).into_bytes()]);
    }
    // A token is as good as the secret while it lasts: the head of one, as the emulated directory makes them.
    needles.extend([b"Bearer ey".to_vec(), b"eyJhbGciOiJIUzI1NiIs".to_vec()]);
    searched(&site, &needles, None);
}

/// Searches everything that can be seen of a site. `told`: whose environment may hold a variable of this name, and it alone.
fn searched(site: &Site, needles: &[Vec<u8>], told: Option<(u32, &[u8])>) {
    let clean = |what: &str, bytes: &[u8]| {
        if let Some(found) = holds(bytes, needles) {
            panic!("{what} holds {found:?}");
        }
    };
    for n in 0..3 {
        for path in [
            "/",
            "/owner",
            "/standby",
            "/health/ready",
            "/v1/status",
            "/v1/history",
            "/v1/ownership",
            "/metrics",
            "/nowhere",
        ] {
            let (_, body) = http(site.devices[n].http, path).expect("answers");
            clean(path, body.as_bytes());
        }
        for command in [vec!["status"], vec!["status", "--json"], vec!["why"], vec!["leader"]] {
            let Output { stdout, stderr, .. } = site.ask(n, &command);
            clean(command[0], &[stdout, stderr].concat());
        }
        // `check` reads the same settings and files as the sidecar.
        let mut check = super::site::quorate();
        check.arg("check").envs(site.environment(n));
        let Output { stdout, stderr, .. } = check.output().expect("starts");
        assert!(!stdout.is_empty());
        clean("check", &[stdout, stderr].concat());
    }
    let processes = processes_with(site.folder.path());
    assert!(processes.len() >= 3 + 3, "three sidecars, their fencers, a workload: {processes:?}");
    for pid in processes {
        let of = |file: &str| fs::read(format!("/proc/{pid}/{file}")).unwrap_or_default();
        clean("a command line", &of("cmdline"));
        let environment = of("environ");
        let has = |name: &[u8]| environment.split(|b| *b == 0).any(|v| v.starts_with(name));
        // That one, and its short-lived parent that became it.
        let knows = told.is_some_and(|(_, name)| has(name));
        assert!(
            !knows || told.is_some_and(|(who, _)| who == pid),
            "{pid} was told: {:?}",
            String::from_utf8_lossy(&of("cmdline"))
        );
        if !knows {
            clean("an environment", &environment);
        }
    }
    let mut all = Vec::new();
    files(site.folder.path(), &mut all);
    assert!(all.iter().any(|f| f.ends_with("edge-1.log")) && all.len() > 10, "{all:?}");
    for file in all {
        clean(&file.display().to_string(), &fs::read(&file).unwrap_or_default());
    }
}
