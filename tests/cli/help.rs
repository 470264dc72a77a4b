//! Help texts, and what happens to a command line that is wrong.

use super::{golden, quorate};

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).expect("UTF-8")
}

#[test]
fn help_texts() {
    let mut commands = vec!["run", "check", "check-workload", "status", "leader", "why", "plan", "events"];
    commands.extend(["support-bundle", "transfer", "update", "fleet"]);
    commands.extend(["pause", "resume", "drain", "undrain", "prefer"]);
    if cfg!(feature = "emulator") {
        commands.push("demo");
        let top = quorate(&["--help"], &[]);
        assert_eq!(top.status.code(), Some(0));
        golden("help/quorate", &text(&top.stdout));
        let hub = quorate(&["emulate", "hub", "--help"], &[]);
        assert_eq!(hub.status.code(), Some(0));
        golden("help/emulate-hub", &text(&hub.stdout));
    }
    for command in commands {
        let help = quorate(&[command, "--help"], &[]);
        assert_eq!(help.status.code(), Some(0), "{command}");
        let help = text(&help.stdout);
        assert!(help.lines().all(|line| line.chars().count() <= 100), "{command} has long lines");
        golden(&format!("help/{command}"), &help);
    }
    let version = quorate(&["--version"], &[]);
    assert_eq!(text(&version.stdout), format!("quorate {}\n", env!("CARGO_PKG_VERSION")));
}

#[test]
fn a_wrong_command_line_exits_64() {
    for wrong in [
        vec![],
        vec!["statos"],
        vec!["status", "--wotch"],
        vec!["transfer", "--to"],
        vec!["drain"],
        vec!["undrain", ""],
        vec!["prefer"],
        vec!["prefer", "edge-1", "--none"],
        vec!["pause", "edge-1"],
        vec!["pause", "--for"],
        vec!["pause", "--for", "30"],
        vec!["pause", "--for", "10ms"],
        vec!["resume", "--for", "30m"],
        vec!["update"],
        vec!["update", "--", ""],
        vec!["update", "--expect", "", "--", "true"],
        vec!["update", "--settle", "5", "--", "true"],
        vec!["update", "--timeout", "8d", "--", "true"],
        vec!["leader", "extra"],
        vec!["emulate", "hub", "--edge", "edge-1"],
        vec!["emulate", "hub", "--edge", "edge-1=f", "--module", "a/b"],
        vec!["leader", "--endpoint", "https://10.0.0.1:7601"],
    ] {
        let output = quorate(&wrong, &[]);
        assert_eq!(output.status.code(), Some(64), "{wrong:?}");
        assert!(output.stdout.is_empty() && !output.stderr.is_empty(), "{wrong:?}");
    }
}

#[test]
fn a_sidecar_that_is_not_there_is_said_in_one_line_and_a_hint() {
    let folder = tempfile::tempdir().expect("folder");
    let endpoint = format!("unix:{}/control.sock", folder.path().display());
    for command in ["status", "leader", "why", "plan", "events", "transfer", "pause", "resume", "update"] {
        let dry = if command == "update" { vec!["--dry-run"] } else { vec![] };
        let output = quorate(&[vec![command, "--endpoint", &endpoint], dry].concat(), &[]);
        assert_eq!(output.status.code(), Some(2), "{command}");
        let said = text(&output.stderr).replace(&endpoint, "ENDPOINT");
        golden("unreachable", &said);
    }
}
