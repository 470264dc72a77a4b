use proptest::prelude::*;
use serde_json::json;

use super::*;

fn twins() -> Vec<Value> {
    vec![
        json!({"deviceId": "edge-1", "tags": {"site": "s1"}, "properties": {"desired": {"quorate": {"active": true, "epoch": 3}}}}),
        json!({"deviceId": "edge-2", "tags": {"site": "s2"}, "properties": {"desired": {}}}),
        json!({"deviceId": "edge-2", "moduleId": "ha", "tags": {"site": "it's"}}),
    ]
}

fn rows(text: &str) -> Vec<Value> {
    Query::parse(text).unwrap_or_else(|why| panic!("{text}: {why}")).run(&twins())
}

#[test]
fn finds_what_is_asked_for() {
    for (text, found) in [
        ("SELECT * FROM devices", 2),
        ("SELECT * FROM devices WHERE IS_BOOL(properties.desired.quorate.active)", 1),
        ("SELECT * FROM devices WHERE IS_STRING(properties.desired.quorate.epoch)", 0),
        ("SELECT * FROM devices WHERE NOT IS_OBJECT(properties.desired.quorate)", 1),
        ("select * from devices.modules where moduleId = 'ha'", 1),
        ("SELECT * FROM devices.modules WHERE tags.site = 'it''s'", 1),
        ("SELECT * FROM devices WHERE properties.desired.quorate.active = true", 1),
        ("SELECT * FROM devices WHERE properties.desired.quorate.epoch >= 3.0 AND tags.site != 's2'", 1),
        ("SELECT * FROM devices WHERE properties.desired.quorate.epoch > 3", 0),
        ("SELECT * FROM devices WHERE NOT (tags.site = 's1' OR deviceId = 'edge-9')", 1),
        ("SELECT * FROM devices WHERE deviceId IN ['edge-1', 'edge-2']", 2),
        ("SELECT * FROM devices WHERE deviceId NIN ['edge-1']", 1),
        ("SELECT * FROM devices WHERE IS_DEFINED(properties.desired.quorate)", 1),
        ("SELECT * FROM devices WHERE STARTSWITH(deviceId, 'edge') AND ENDSWITH(deviceId, '2')", 1),
        ("SELECT TOP 1 * FROM devices", 1),
    ] {
        assert_eq!(rows(text).len(), found, "{text}");
    }
    assert_eq!(rows("SELECT COUNT() AS n FROM devices"), [json!({"n": 2})]);
    assert_eq!(
        rows("SELECT deviceId, tags.site AS s FROM devices WHERE deviceId = 'edge-1'"),
        [json!({"deviceId": "edge-1", "s": "s1"})]
    );
}

#[test]
fn what_it_does_not_know_it_refuses() {
    for text in [
        "",
        "SELECT",
        "DELETE FROM devices",
        "SELECT * FROM devices.jobs",
        "SELECT * FROM devices WHERE",
        "SELECT * FROM devices GROUP BY x",
        "SELECT * FROM devices WHERE a = 'b",
        "SELECT * FROM devices WHERE a = -",
        "SELECT * FROM devices WHERE (a = 1",
        "SELECT * FROM devices; x",
    ] {
        assert!(Query::parse(text).is_err(), "{text}");
    }
    let deep = format!("SELECT * FROM devices WHERE {} a = 1", "NOT ".repeat(2000));
    assert!(Query::parse(&deep).is_err());
}

#[test]
fn tokens_belong_to_their_query() {
    assert_eq!(offset(&token(20, "q"), "q"), Some(20));
    assert_eq!(offset(&token(20, "q"), "other"), None);
    assert_eq!(offset("garbage", "q"), None);
}

proptest! {
    #[test]
    fn no_text_upsets_it(tail in "\\PC{0,60}", words in proptest::collection::vec("(SELECT|\\*|FROM|devices|WHERE|NOT|\\(|\\)|a|=|'x'|IN|\\[|,|1)", 0..12)) {
        let _ = Query::parse(&format!("SELECT * FROM devices WHERE {tail}"));
        if let Ok(query) = Query::parse(&words.join(" ")) {
            let _ = query.run(&twins());
        }
    }
}
