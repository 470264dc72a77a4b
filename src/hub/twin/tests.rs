//! The merge by properties, the hub's limits by example.

use proptest::prelude::*;

use super::*;

fn object(json: Value) -> Properties {
    match json {
        Value::Object(map) => map,
        other => panic!("not an object: {other}"),
    }
}

fn leaf() -> impl Strategy<Value = Value> {
    prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::Bool),
        (-1000_i64..1000).prop_map(Value::from),
        "[a-z]{0,4}".prop_map(Value::String),
        proptest::collection::vec(0_u8..9, 0..3).prop_map(|v| json!(v)),
    ]
}

fn tree() -> impl Strategy<Value = Properties> {
    let value = leaf().prop_recursive(4, 32, 4, |inner| {
        proptest::collection::btree_map("[a-d]", inner, 0..4)
            .prop_map(|m| Value::Object(m.into_iter().collect()))
    });
    proptest::collection::btree_map("[a-d]", value, 0..5).prop_map(|m| m.into_iter().collect())
}

fn holds_null(map: &Properties) -> bool {
    map.values().any(|v| match v {
        Value::Null => true,
        Value::Object(inner) => holds_null(inner),
        _ => false,
    })
}

/// A merge of nothing but values: what a twin can hold.
fn plain() -> impl Strategy<Value = Properties> {
    tree().prop_map(|t| {
        let mut plain = Properties::new();
        merge(&mut plain, &t);
        plain
    })
}

/// Every merged object has its `$metadata`, and nothing else has.
fn same_shape(values: &Properties, metadata: &Properties) -> bool {
    metadata.contains_key("$lastUpdated")
        && metadata.keys().filter(|k| !k.starts_with('$')).eq(values.keys())
        && values.iter().all(|(key, value)| match (value, &metadata[key]) {
            (Value::Object(inner), Value::Object(below)) => same_shape(inner, below),
            (_, Value::Object(below)) => below.keys().all(|k| k.starts_with('$')),
            _ => false,
        })
}

proptest! {
    #[test]
    fn merging_twice_is_merging_once(target in plain(), patch in tree()) {
        let mut once = target;
        merge(&mut once, &patch);
        let mut twice = once.clone();
        merge(&mut twice, &patch);
        prop_assert_eq!(once, twice);
    }

    #[test]
    fn absent_keys_are_untouched_and_nulls_delete(target in plain(), patch in tree()) {
        let mut merged = target.clone();
        merge(&mut merged, &patch);
        for (key, value) in &target {
            if !patch.contains_key(key) {
                prop_assert_eq!(merged.get(key), Some(value));
            }
        }
        for (key, value) in &patch {
            match value {
                Value::Null => prop_assert!(!merged.contains_key(key)),
                Value::Object(inner) => {
                    let mut expected = target.get(key).and_then(Value::as_object).cloned().unwrap_or_default();
                    merge(&mut expected, inner);
                    prop_assert_eq!(merged.get(key), Some(&Value::Object(expected)));
                }
                other => prop_assert_eq!(merged.get(key), Some(other)),
            }
        }
        prop_assert!(!holds_null(&merged));
    }

    #[test]
    fn metadata_follows_the_values(first in tree(), second in tree(), replace in any::<bool>()) {
        let mut twin = Twin::new("d", None, "e".into(), "t0");
        let change = |p: &Properties| Change { desired: Some(p.clone()), tags: None };
        twin.change(&change(&first), Manner::Merge, "t1").expect("small");
        let manner = if replace { Manner::Replace } else { Manner::Merge };
        twin.change(&change(&second), manner, "t2").expect("small");
        prop_assert!(same_shape(&twin.desired.values, &twin.desired.metadata), "{:#?}", twin.desired);
        prop_assert_eq!(twin.desired.version, 3);
        prop_assert_eq!(twin.version, 4);
        prop_assert_eq!(twin.reported.version, 1);
        let back = Twin::from_json(&twin.to_json()).expect("a twin");
        prop_assert_eq!(back, twin);
    }
}

#[test]
fn what_is_not_a_twin_is_named() {
    let twin = Twin::new("d", Some("m"), "AAA=".into(), "t").to_json();
    assert!(Twin::from_json(&twin).is_ok());
    for part in ["deviceId", "etag", "version", "properties"] {
        let mut broken = object(twin.clone());
        broken.remove(part);
        assert_eq!(Twin::from_json(&Value::Object(broken)), Err(Malformed::Part(part)));
    }
    assert!(Twin::from_json(&json!([1, 2])).is_err());
    assert!(Twin::from_json(&json!("<html>")).is_err());
}

fn desired(json: Value) -> Result<Twin, Malformed> {
    let mut twin = Twin::new("d", None, "e".into(), "t");
    let before = twin.clone();
    let result = twin.change(&Change { desired: Some(object(json)), tags: None }, Manner::Merge, "t");
    if result.is_err() {
        assert_eq!(twin, before, "a refused change changes nothing");
    }
    result.map(|()| twin)
}

fn nested(levels: usize) -> Value {
    (0..levels).fold(json!(1), |inner, _| json!({ "k": inner }))
}

#[test]
fn limits_are_the_hubs() {
    assert!(desired(json!({ "n": INTEGER_MAX })).is_ok());
    assert!(desired(json!({ "n": -INTEGER_MAX - 1 })).is_ok());
    assert!(desired(json!({ "n": INTEGER_MAX + 1 })).is_err());
    assert!(desired(json!({ "n": u64::MAX })).is_err());
    assert!(desired(json!({ "n": 1.5 })).is_ok());
    assert!(desired(json!({ "s": "x".repeat(TEXT_MAX) })).is_ok());
    assert!(desired(json!({ "s": "x".repeat(TEXT_MAX + 1) })).is_err());
    assert!(desired(json!({ "a": ["x".repeat(TEXT_MAX + 1)] })).is_err());
    assert!(desired(nested(DEPTH_MAX)).is_ok());
    assert!(desired(nested(DEPTH_MAX + 2)).is_err());
    let arrays = (0..40).fold(json!(1), |inner, _| json!([inner]));
    assert!(desired(json!({ "a": arrays })).is_err());
    for key in ["a.b", "$x", "a b", "a\u{7}", "", &"k".repeat(KEY_MAX + 1)] {
        assert!(desired(json!({ "in": { key: 1 } })).is_err(), "{key:?}");
    }
    let wide: Properties = (0..9).map(|n| (format!("k{n}"), json!("x".repeat(TEXT_MAX)))).collect();
    assert!(desired(Value::Object(wide)).is_err());
    let mut twin = Twin::new("d", None, "e".into(), "t");
    let tags = object(json!({ "a": "x".repeat(TEXT_MAX), "b": "x".repeat(TEXT_MAX) }));
    assert!(twin.change(&Change { tags: Some(tags), desired: None }, Manner::Merge, "t").is_err());
}

#[test]
fn a_section_may_be_sent_back_as_it_was_read() {
    let twin = desired(json!({ "a": 1 })).expect("fits");
    let back = object(twin.to_json()["properties"]["desired"].clone());
    let mut again = twin.clone();
    again.change(&Change { desired: Some(back), tags: None }, Manner::Merge, "t").expect("accepted");
    assert_eq!(again.desired.values, twin.desired.values);
    assert_eq!(again.desired.version, twin.desired.version + 1);
}

#[test]
fn the_cloud_cannot_write_what_the_device_reports() {
    let body = json!({ "etag": "x", "deviceId": "y", "properties": { "reported": { "a": 1 }, "desired": { "b": 2 } } });
    let change = Change::from_json(&body).expect("a change");
    let mut twin = Twin::new("d", None, "e".into(), "t");
    twin.change(&change, Manner::Merge, "t").expect("fits");
    assert!(twin.reported.values.is_empty());
    assert_eq!((twin.device.as_str(), twin.etag.as_str()), ("d", "e"));
    assert_eq!(change.to_json(), json!({ "properties": { "desired": { "b": 2 } } }));
    assert!(Change::from_json(&json!({ "tags": 3 })).is_err());
    assert!(Change::from_json(&json!([])).is_err());
}
