//! The topics of IoT Hub, both ways, and the bags of properties in them.
//!
//! Pure: texts in, values out. A topic that is not the hub's gives `None`; what becomes of its sender is decided by the link.

use std::collections::BTreeMap;

use percent_encoding::{percent_decode_str, utf8_percent_encode};

use crate::hub::{sas::UNRESERVED, store::Target};

/// Where answers about twins arrive.
const TWIN_ANSWERS: &str = "$iothub/twin/res/";
/// Where changes of the desired properties arrive.
const DESIRED: &str = "$iothub/twin/PATCH/properties/desired/";
/// Where direct methods arrive.
const METHODS: &str = "$iothub/methods/POST/";

/// Properties of a message, decoded.
pub(in crate::emulator) type Bag = BTreeMap<String, String>;

/// What a client may publish.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Sent {
    /// Asks for its twin.
    Get { rid: String },
    /// Reports properties.
    Report { rid: String },
    /// Answers a method.
    MethodReply { status: i64, rid: String },
    /// Sends a message.
    Event { properties: Bag },
}

impl Sent {
    /// Reads the topic of a message from `from`; `None` if it is none that `from` may publish to.
    pub(super) fn parse(topic: &str, from: &Target) -> Option<Sent> {
        if let Some(bag) = topic.strip_prefix("$iothub/twin/GET/?") {
            return Some(Sent::Get { rid: rid(bag)? });
        }
        if let Some(bag) = topic.strip_prefix("$iothub/twin/PATCH/properties/reported/?") {
            return Some(Sent::Report { rid: rid(bag)? });
        }
        if let Some(rest) = topic.strip_prefix("$iothub/methods/res/") {
            let (status, bag) = rest.split_once("/?")?;
            return Some(Sent::MethodReply { status: status.parse().ok()?, rid: rid(bag)? });
        }
        let bag = below(topic, from, &["messages", "events"])?;
        Some(Sent::Event { properties: bag_of(bag) })
    }
}

/// Whether `who` may subscribe to this filter.
pub(super) fn may_subscribe(filter: &str, who: &Target) -> bool {
    let Some(base) = filter.strip_suffix('#') else { return false };
    if [TWIN_ANSWERS, DESIRED, METHODS].contains(&base) {
        return true;
    }
    let parts: &[&[&str]] = match who.module {
        None => &[&["messages", "devicebound"]],
        Some(_) => &[&["inputs"], &[]],
    };
    parts.iter().any(|part| below(base, who, part) == Some(""))
}

/// Whether a message to `topic` is for who subscribed to `filter`, one that [`may_subscribe`] lets pass.
pub(super) fn matches(filter: &str, topic: &str) -> bool {
    filter.strip_suffix('#').is_some_and(|base| topic.starts_with(base))
}

/// The answer to a request about a twin.
pub(in crate::emulator) fn twin_answer(status: u16, rid: &str, version: Option<u64>) -> String {
    let version = version.map(|version| format!("&$version={version}")).unwrap_or_default();
    format!("{TWIN_ANSWERS}{status}/?$rid={rid}{version}")
}

/// A change of the desired properties.
pub(in crate::emulator) fn desired(version: u64) -> String {
    format!("{DESIRED}?$version={version}")
}

/// A direct method.
pub(super) fn method(name: &str, rid: &str) -> String {
    format!("{METHODS}{name}/?$rid={rid}")
}

/// A message for a module's input.
pub(in crate::emulator) fn input(to: &Target, input: &str, properties: &Bag) -> String {
    let module = to.module.as_deref().unwrap_or_default();
    let bag: Vec<String> = properties
        .iter()
        .map(|(key, value)| {
            format!("{}={}", utf8_percent_encode(key, UNRESERVED), utf8_percent_encode(value, UNRESERVED))
        })
        .collect();
    format!("devices/{}/modules/{module}/inputs/{input}/{}", to.device, bag.join("&"))
}

/// What of `topic` comes below `devices/{device}[/modules/{module}]/` and `part`. The ids may be percent-encoded.
fn below<'a>(topic: &'a str, who: &Target, part: &[&str]) -> Option<&'a str> {
    let mut rest = topic;
    let module = who.module.as_deref().map(|module| ["modules", module]);
    let head = ["devices", who.device.as_str()];
    for wanted in head.iter().chain(module.iter().flatten()).chain(part) {
        let (segment, after) = rest.split_once('/')?;
        if percent_decode_str(segment).decode_utf8().ok()? != *wanted {
            return None;
        }
        rest = after;
    }
    Some(rest)
}

/// Keys and values, percent-decoded. Some clients end a bag with a slash.
fn bag_of(text: &str) -> Bag {
    let decode = |part: &str| percent_decode_str(part).decode_utf8_lossy().into_owned();
    text.trim_end_matches('/')
        .split('&')
        .filter(|pair| !pair.is_empty())
        .map(|pair| {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            (decode(key), decode(value))
        })
        .collect()
}

/// The request's id. It goes back as it came, so it is not decoded.
fn rid(bag: &str) -> Option<String> {
    bag.trim_end_matches('/').split('&').find_map(|pair| pair.strip_prefix("$rid=")).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn module() -> Target {
        Target::module("edge-a", "ha")
    }

    #[test]
    fn topics_as_microsofts_clients_send_them() {
        let sent = |topic: &str| Sent::parse(topic, &module());
        let rid = || "0c1f-4".to_owned();
        assert_eq!(sent("$iothub/twin/GET/?$rid=0c1f-4"), Some(Sent::Get { rid: rid() }));
        let report = "$iothub/twin/PATCH/properties/reported/?$rid=0c1f-4";
        assert_eq!(sent(report), Some(Sent::Report { rid: rid() }));
        let reply = Some(Sent::MethodReply { status: 200, rid: "7".into() });
        assert_eq!(sent("$iothub/methods/res/200/?$rid=7"), reply);
        let bag = "%24.on=out1&%24.mid=m-1&%24.ct=application%2Fjson&ha_active=true&mark";
        let base = "devices/edge-a/modules/ha/messages/events/";
        let Some(Sent::Event { properties }) = sent(&format!("{base}{bag}")) else { panic!("no event") };
        assert_eq!(properties["$.on"], "out1");
        assert_eq!(properties["$.ct"], "application/json");
        assert_eq!((properties["ha_active"].as_str(), properties["mark"].as_str()), ("true", ""));
        // The client for Node ends the same with a slash.
        assert_eq!(sent(&format!("{base}{bag}/")), Some(Sent::Event { properties }));
        assert_eq!(sent(base), Some(Sent::Event { properties: Bag::new() }));
    }

    #[test]
    fn nobody_publishes_as_somebody_else() {
        let sent = |topic: &str, who: &Target| Sent::parse(topic, who);
        for topic in [
            "devices/edge-b/modules/ha/messages/events/",
            "devices/edge-a/modules/other/messages/events/",
            "devices/edge-a/messages/events/",
            "$iothub/methods/res/many/?$rid=7",
            "$iothub/twin/GET/",
            "$iothub/twin/GET/?rid=7",
            "$SYS/broker",
            "",
        ] {
            assert_eq!(sent(topic, &module()), None, "{topic}");
        }
        assert!(sent("devices/edge-a/messages/events/", &Target::device("edge-a")).is_some());
        assert!(sent("devices/a%23b/messages/events/", &Target::device("a#b")).is_some());
    }

    #[test]
    fn only_the_own_topics_can_be_subscribed_to() {
        for filter in [
            "$iothub/twin/res/#",
            "$iothub/twin/PATCH/properties/desired/#",
            "$iothub/methods/POST/#",
            "devices/edge-a/modules/ha/inputs/#",
            "devices/edge-a/modules/ha/#",
        ] {
            assert!(may_subscribe(filter, &module()), "{filter}");
        }
        for filter in ["#", "+/#", "$iothub/#", "devices/#", "devices/edge-a/modules/other/inputs/#", "", "/"]
        {
            assert!(!may_subscribe(filter, &module()), "{filter}");
        }
        let device = Target::device("edge-a");
        assert!(may_subscribe("devices/edge-a/messages/devicebound/#", &device));
        assert!(!may_subscribe("devices/edge-a/messages/devicebound/#", &module()));
    }

    #[test]
    fn what_is_pushed_reaches_who_subscribed() {
        assert_eq!(twin_answer(204, "7", Some(3)), "$iothub/twin/res/204/?$rid=7&$version=3");
        assert!(matches("$iothub/twin/res/#", &twin_answer(200, "7", None)));
        assert!(matches("$iothub/methods/POST/#", &method("ping", "a")));
        assert!(!matches("$iothub/twin/res/#", &method("ping", "a")));
        let bag = Bag::from([("$.cmid".to_owned(), "a b".to_owned())]);
        let topic = input(&module(), "in1", &bag);
        assert_eq!(topic, "devices/edge-a/modules/ha/inputs/in1/%24.cmid=a%20b");
        assert!(matches("devices/edge-a/modules/ha/#", &topic));
    }

    proptest! {
        #[test]
        fn no_topic_upsets_the_parser(topic in "\\PC{0,80}", tail in "[$/?&=%a-z.0-9#+]{0,60}") {
            for text in [topic, format!("devices/edge-a/modules/ha/{tail}"), format!("$iothub/{tail}")] {
                let _ = Sent::parse(&text, &module());
                let _ = may_subscribe(&text, &module());
            }
        }
    }
}
