//! `quorate check` on the machine of the test: what it measured is its own affair, what it says about it is not.

use std::path::Path;

use super::quorate;

/// A site of three of which only this device is there.
fn configuration(folder: &Path, storage: &Path) -> String {
    let file = folder.join("quorate.toml");
    let members: Vec<String> = (1..=3)
        // Port 9 is "discard": nobody listens.
        .map(|n| format!("{{ device = \"edge-{n}\", address = \"127.0.0.1:{}\" }}", 7 + n))
        .collect();
    let text = format!(
        "[site]\nid = \"plant-7\"\nmembers = [{}]\n[device]\nid = \"edge-1\"\n[storage]\npath = \"{}\"\n",
        members.join(", "),
        storage.display()
    );
    std::fs::write(&file, text).expect("writes");
    file.display().to_string()
}

#[test]
fn it_says_which_timing_this_device_can_keep() {
    let folder = tempfile::tempdir().expect("folder");
    let storage = folder.path().join("data");
    std::fs::create_dir(&storage).expect("makes");
    std::fs::write(storage.join("mark"), "of a sidecar").expect("writes");
    let config = configuration(folder.path(), &storage);
    let output = quorate(&["check", "--seconds", "2", "--json", "--config", &config], &[]);
    let said: serde_json::Value = serde_json::from_slice(&output.stdout).expect("one JSON object");
    let timings = said["timings"].as_array().expect("a list");
    let names: Vec<_> = timings.iter().map(|t| t["timing"].as_str().expect("a name")).collect();
    assert_eq!(names, ["fastest", "fast", "default"]);
    let best = timings.iter().find(|t| t["kept"] == true).map(|t| t["timing"].clone()).unwrap_or_default();
    assert_eq!(said["keeps"], best);
    for timing in timings {
        assert_eq!(timing["kept"] == true, timing["reasons"].as_array().expect("a list").is_empty());
    }
    // The default timing is configured.
    assert_eq!(said["configured"]["kept"], timings[2]["kept"]);
    assert_eq!(output.status.code(), Some(i32::from(said["configured"]["kept"] == false)));
    for what in ["writes", "stalls"] {
        let number = |name: &str| said[what][name].as_u64().expect("a number");
        assert!(
            number("n") > 0 && number("p50_us") <= number("p99_us") && number("p99_us") <= number("max_us")
        );
    }
    assert_eq!(said["network_judged"], false);
    assert!(said["members"][1]["error"].as_str().expect("a reason").contains("refused"), "{said}");
    let left: Vec<_> = std::fs::read_dir(&storage).expect("reads").flatten().map(|e| e.file_name()).collect();
    assert_eq!(left, ["mark"], "nothing is left, and nothing else is touched");
}

#[test]
fn the_same_for_people() {
    let folder = tempfile::tempdir().expect("folder");
    let config = configuration(folder.path(), folder.path());
    let output = quorate(&["check", "--seconds", "1", "--config", &config], &[]);
    let said = String::from_utf8(output.stdout).expect("UTF-8");
    let words = [
        "edge-1 of plant-7",
        "writes ",
        "stalls ",
        "edge-2 at 127.0.0.1:9 does not answer",
        "this device can keep",
    ];
    for word in words {
        assert!(said.contains(word), "{word} in {said}");
    }
    let progress = String::from_utf8(output.stderr).expect("UTF-8");
    assert!(progress.starts_with("measuring for 1 s"), "{progress}");
}

#[test]
fn what_cannot_be_measured_is_named() {
    let folder = tempfile::tempdir().expect("folder");
    let config = configuration(folder.path(), &folder.path().join("nowhere"));
    let output = quorate(&["check", "--seconds", "1", "--config", &config], &[]);
    assert_eq!(output.status.code(), Some(2));
    let said = String::from_utf8(output.stderr).expect("UTF-8");
    assert!(said.contains("cannot write in") && said.contains("nowhere") && said.contains("hint:"), "{said}");
    let output = quorate(&["check", "--config", "/nowhere/quorate.toml"], &[]);
    assert_eq!(output.status.code(), Some(78));
}
