//! The topics of IoT Hub's MQTT dialect, as a module uses them: what an incoming one means, and how an outgoing one is
//! written.
//!
//! Pure and total. The hub writes everything into topics: status, correlation, versions, and the properties of a message as
//! a query text. Microsoft's clients and hubs differ in a trailing slash and in whether `$` is encoded, so both are read.

use percent_encoding::{percent_decode_str, utf8_percent_encode};

use crate::hub::{link::Message, sas::UNRESERVED, target::Target};

/// Answers to requests about the own twin.
pub const ANSWERS: &str = "$iothub/twin/res/#";
/// Changes of the desired properties.
pub const DESIRED: &str = "$iothub/twin/PATCH/properties/desired/#";
/// Calls of direct methods.
pub const CALLS: &str = "$iothub/methods/POST/#";

/// What an incoming topic says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Topic {
    /// The answer to a request of ours.
    Answer {
        /// As in HTTP.
        status: u16,
        /// The request's id.
        rid: String,
        /// The twin section's new version, if told.
        version: Option<u64>,
    },
    /// The desired properties have changed.
    Desired {
        /// Their new version, if told here; the body tells it as well.
        version: Option<u64>,
    },
    /// A direct method is called.
    Call {
        /// Which.
        method: String,
        /// Under which id it is to be answered.
        rid: String,
    },
    /// A message for an input.
    Input {
        /// Which.
        input: String,
        /// The application's properties.
        properties: Vec<(String, String)>,
        /// The system's, by their short names.
        system: Vec<(String, String)>,
    },
    /// None of these.
    Other,
}

/// Reads an incoming topic of the module `target`.
pub fn read(topic: &str, target: &Target) -> Topic {
    known(topic, target).unwrap_or(Topic::Other)
}

fn known(topic: &str, target: &Target) -> Option<Topic> {
    if let Some(rest) = topic.strip_prefix("$iothub/twin/res/") {
        let (status, query) = rest.split_once('/')?;
        let query = pairs(query);
        return Some(Topic::Answer {
            status: status.parse().ok()?,
            rid: value(&query, "$rid")?,
            version: value(&query, "$version").and_then(|version| version.parse().ok()),
        });
    }
    if let Some(rest) = topic.strip_prefix("$iothub/twin/PATCH/properties/desired/") {
        let version = value(&pairs(rest), "$version").and_then(|version| version.parse().ok());
        return Some(Topic::Desired { version });
    }
    if let Some(rest) = topic.strip_prefix("$iothub/methods/POST/") {
        let (method, query) = rest.split_once('/')?;
        let method = percent_decode_str(method).decode_utf8().ok()?.into_owned();
        return Some(Topic::Call { method, rid: value(&pairs(query), "$rid")? });
    }
    let rest = topic.strip_prefix(&inputs(target)?.replace('#', ""))?;
    let (input, bag) = rest.split_once('/').unwrap_or((rest, ""));
    let (system, properties) = pairs(bag).into_iter().partition(|(name, _)| name.starts_with("$."));
    Some(Topic::Input { input: input.to_owned(), properties, system })
}

/// `a=b&c=d`, decoded, with or without a question mark before it or a slash behind it. A name without a value has an empty
/// one; what is not UTF-8 is left out.
fn pairs(query: &str) -> Vec<(String, String)> {
    let query = query.strip_prefix('?').unwrap_or(query);
    let query = query.strip_suffix('/').unwrap_or(query);
    let text = |part: &str| percent_decode_str(part).decode_utf8().map(|text| text.into_owned()).ok();
    let pair = |part: &str| {
        let (name, value) = part.split_once('=').unwrap_or((part, ""));
        Some((text(name)?, text(value)?))
    };
    query.split('&').filter(|part| !part.is_empty()).filter_map(pair).collect()
}

fn value(pairs: &[(String, String)], name: &str) -> Option<String> {
    pairs.iter().find(|(other, _)| other == name).map(|(_, value)| value.clone())
}

/// Asks for the own twin.
pub fn get_twin(rid: &str) -> String {
    format!("$iothub/twin/GET/?$rid={rid}")
}

/// Changes the reported properties.
pub fn report(rid: &str) -> String {
    format!("$iothub/twin/PATCH/properties/reported/?$rid={rid}")
}

/// Answers a direct method.
pub fn answer(status: u16, rid: &str) -> String {
    format!("$iothub/methods/res/{status}/?$rid={rid}")
}

/// The filter for the module's inputs; `None` for a device, which has none.
pub fn inputs(target: &Target) -> Option<String> {
    Some(format!("devices/{}/modules/{}/inputs/#", target.device, target.module.as_ref()?))
}

/// A message to one of the own outputs, with its properties.
pub fn message(target: &Target, output: &str, message: &Message) -> String {
    let module = target.module.as_ref().map_or_else(String::new, |module| format!("/modules/{module}"));
    let mut topic = format!("devices/{}{module}/messages/events/", target.device);
    let output = ("$.on".to_owned(), output.to_owned());
    let all = std::iter::once(&output).chain(&message.system).chain(&message.properties);
    for (n, (name, value)) in all.enumerate() {
        if n > 0 {
            topic.push('&');
        }
        topic.extend(utf8_percent_encode(name, UNRESERVED));
        topic.push('=');
        topic.extend(utf8_percent_encode(value, UNRESERVED));
    }
    topic
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn me() -> Target {
        Target::module("edge-a", "ha")
    }

    #[test]
    fn topics_as_the_hub_writes_them() {
        let answer = |status, rid: &str, version| Topic::Answer { status, rid: rid.into(), version };
        assert_eq!(read("$iothub/twin/res/200/?$rid=7", &me()), answer(200, "7", None));
        assert_eq!(read("$iothub/twin/res/204/?$rid=a-b&$version=9", &me()), answer(204, "a-b", Some(9)));
        assert_eq!(read("$iothub/twin/res/204/?%24rid=7&%24version=9", &me()), answer(204, "7", Some(9)));
        assert_eq!(
            read("$iothub/twin/PATCH/properties/desired/?$version=4", &me()),
            Topic::Desired { version: Some(4) }
        );
        assert_eq!(
            read("$iothub/methods/POST/why/?$rid=1f", &me()),
            Topic::Call { method: "why".into(), rid: "1f".into() }
        );
        let input =
            read("devices/edge-a/modules/ha/inputs/gate/%24.cdid=edge-a&%24.cmid=work&a%20b=c%2Fd", &me());
        assert_eq!(
            input,
            Topic::Input {
                input: "gate".into(),
                properties: vec![("a b".into(), "c/d".into())],
                system: vec![("$.cdid".into(), "edge-a".into()), ("$.cmid".into(), "work".into())],
            }
        );
        for other in [
            "",
            "$iothub/twin/res/x/?$rid=1",
            "$iothub/twin/res/200/",
            "$iothub/methods/POST/why",
            "devices/edge-a/modules/other/inputs/gate/",
            "devices/edge-b/modules/ha/inputs/gate/",
        ] {
            assert_eq!(read(other, &me()), Topic::Other, "{other}");
        }
    }

    #[test]
    fn a_message_is_written_as_the_sdk_writes_it() {
        let system = [("$.mid", "m-1"), ("$.ct", "application/json"), ("$.ce", "utf-8")];
        let owned = |pairs: &[(&str, &str)]| {
            pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect::<Vec<_>>()
        };
        let sent = Message {
            properties: owned(&[("ha_active", "true")]),
            system: owned(&system),
            ..Message::default()
        };
        assert_eq!(
            message(&me(), "out1", &sent),
            "devices/edge-a/modules/ha/messages/events/%24.on=out1&%24.mid=m-1&%24.ct=application%2Fjson&%24.ce=utf-8&ha_active=true"
        );
    }

    proptest! {
        #[test]
        fn no_topic_upsets_the_reader(topic in "\\PC{0,60}", tail in "[a-z%$&=?/0-9]{0,40}") {
            read(&topic, &me());
            for head in ["$iothub/twin/res/", "$iothub/methods/POST/", "devices/edge-a/modules/ha/inputs/"] {
                read(&format!("{head}{tail}"), &me());
            }
        }

        #[test]
        fn properties_arrive_as_they_were(
            properties in proptest::collection::vec(("[^$]\\PC{0,8}", "\\PC{0,12}"), 0..5),
        ) {
            let sent = Message { properties: properties.clone(), ..Message::default() };
            let topic = message(&me(), "o", &sent);
            let (_, bag) = topic.rsplit_once('/').expect("a bag");
            let got = read(&format!("devices/edge-a/modules/ha/inputs/in/{bag}/"), &me());
            let Topic::Input { properties: got, .. } = got else { panic!("{got:?}") };
            prop_assert_eq!(got, properties);
        }
    }
}
