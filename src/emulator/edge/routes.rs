//! The routes of an edgeHub: which message goes where.
//!
//! Pure. As much of the language as routes between modules and to the hub need: a source, conditions `name = 'value'` on
//! the application's properties joined by `AND`, and a sink. Other conditions are refused rather than misread.

use super::super::mqtt::Bag;

/// Where a message goes.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Sink {
    /// To the hub.
    Upstream,
    /// To a module of the same device.
    Input { module: String, input: String },
}

/// One route.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Route {
    /// The source's parts; a star at the end stands for anything.
    source: Vec<String>,
    conditions: Vec<(String, String)>,
    pub(super) sink: Sink,
}

impl Route {
    /// Reads `FROM source [WHERE conditions] INTO sink`.
    ///
    /// # Errors
    /// One sentence about what cannot be read.
    pub(super) fn parse(text: &str) -> Result<Route, String> {
        let wrong = |what: &str| format!("the route {text:?} {what}");
        let upper = text.to_ascii_uppercase();
        let from = upper.find("FROM ").filter(|at| upper[..*at].trim().is_empty());
        let from = from.ok_or_else(|| wrong("does not begin with FROM"))?;
        let into = upper.rfind(" INTO ").ok_or_else(|| wrong("has no INTO"))?;
        if into < from + 5 {
            return Err(wrong("has no source"));
        }
        let (middle, sink) = (&text[from + 5..into], text[into + 6..].trim());
        let (source, conditions) = match upper[from + 5..into].find(" WHERE ") {
            Some(at) => (
                &middle[..at],
                conditions(&middle[at + 7..]).ok_or_else(|| {
                    wrong("has a condition other than name = 'value', which the emulator does not know")
                })?,
            ),
            None => (middle, Vec::new()),
        };
        let source: Vec<String> =
            source.trim().trim_start_matches('/').split('/').map(str::to_owned).collect();
        let known = match source.iter().map(String::as_str).collect::<Vec<_>>()[..] {
            ["*"] | ["messages", "*"] | ["messages", "modules", "*"] => true,
            ["messages", "modules", module, "*"] => module != "*",
            ["messages", "modules", module, "outputs", output] => module != "*" && !output.is_empty(),
            _ => false,
        };
        if !known {
            return Err(wrong("has an unknown source"));
        }
        Ok(Route { source, conditions, sink: self::sink(sink).ok_or_else(|| wrong("has an unknown sink"))? })
    }

    /// Whether a message of `module` with these properties takes this route.
    pub(super) fn takes(&self, module: &str, properties: &Bag) -> bool {
        let output = properties.get("$.on").map(String::as_str);
        let path: Vec<&str> = match output {
            Some(output) => vec!["messages", "modules", module, "outputs", output],
            None => vec!["messages", "modules", module],
        };
        let all = self.source.last().is_some_and(|last| last == "*");
        let fixed = self.source.len() - usize::from(all);
        let begins = path.len() >= fixed && self.source.iter().zip(&path).take(fixed).all(|(a, b)| a == b);
        begins
            && (all || path.len() == fixed)
            && self.conditions.iter().all(|(name, value)| properties.get(name) == Some(value))
    }
}

fn conditions(text: &str) -> Option<Vec<(String, String)>> {
    let mut found = Vec::new();
    let mut rest = text.trim();
    loop {
        let (name, after) = rest.split_once('=')?;
        let name = name.trim();
        let after = after.trim_start().strip_prefix('\'')?;
        let (value, after) = after.split_once('\'')?;
        if name.is_empty() || !name.chars().all(|c| c.is_ascii_alphanumeric() || "_-.".contains(c)) {
            return None;
        }
        found.push((name.to_owned(), value.to_owned()));
        rest = after.trim();
        if rest.is_empty() {
            return Some(found);
        }
        let (and, after) = rest.split_at_checked(4)?;
        if !and.eq_ignore_ascii_case("AND ") {
            return None;
        }
        rest = after.trim_start();
    }
}

fn sink(text: &str) -> Option<Sink> {
    if text.eq_ignore_ascii_case("$upstream") {
        return Some(Sink::Upstream);
    }
    let inner = text.strip_prefix("BrokeredEndpoint(")?.trim().strip_suffix(')')?.trim();
    let path = inner.trim_matches(|c| c == '"' || c == '\'');
    match path.trim_start_matches('/').split('/').collect::<Vec<_>>()[..] {
        ["modules", module, "inputs", input] if !module.is_empty() && !input.is_empty() => {
            Some(Sink::Input { module: module.to_owned(), input: input.to_owned() })
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn bag(pairs: &[(&str, &str)]) -> Bag {
        pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    }

    #[test]
    fn routes_as_deployments_have_them() {
        let route = |text: &str| Route::parse(text).expect("a route");
        let takes = |text: &str, module: &str, pairs: &[(&str, &str)]| route(text).takes(module, &bag(pairs));
        for all in [
            "FROM /* INTO $upstream",
            "from /messages/* into $upstream",
            "FROM /messages/modules/* INTO $UPSTREAM",
        ] {
            assert!(takes(all, "work", &[]) && takes(all, "ha", &[("$.on", "o")]), "{all}");
            assert_eq!(route(all).sink, Sink::Upstream);
        }
        let one = "FROM /messages/modules/work/outputs/o1 INTO BrokeredEndpoint(\"/modules/ha/inputs/in1\")";
        assert!(takes(one, "work", &[("$.on", "o1")]));
        assert!(!takes(one, "work", &[("$.on", "o2")]) && !takes(one, "work", &[]));
        assert!(!takes(one, "other", &[("$.on", "o1")]));
        assert_eq!(route(one).sink, Sink::Input { module: "ha".into(), input: "in1".into() });
        let outputs = "FROM /messages/modules/work/outputs/* INTO $upstream";
        assert!(takes(outputs, "work", &[("$.on", "x")]) && !takes(outputs, "work", &[]));
        assert!(takes("FROM /messages/modules/work/* INTO $upstream", "work", &[]));
        let gated =
            "FROM /messages/modules/work/outputs/* WHERE ha_active = 'true' AND site='s 1' INTO $upstream";
        assert!(takes(gated, "work", &[("$.on", "x"), ("ha_active", "true"), ("site", "s 1")]));
        assert!(!takes(gated, "work", &[("$.on", "x"), ("ha_active", "true")]));
        assert!(!takes(gated, "work", &[("$.on", "x"), ("ha_active", "false"), ("site", "s 1")]));
    }

    #[test]
    fn what_cannot_be_read_is_refused() {
        for text in [
            "",
            "FROM",
            "FROM /messages/*",
            "INTO $upstream",
            "FROM INTO $upstream",
            "FROM /twinChangeNotifications INTO $upstream",
            "FROM /messages/modules/*/outputs/o INTO $upstream",
            "FROM /messages/* INTO nowhere",
            "FROM /messages/* INTO BrokeredEndpoint(\"/modules/ha\")",
            "FROM /messages/* WHERE $body.a > 5 INTO $upstream",
            "FROM /messages/* WHERE a = 'b' OR c = 'd' INTO $upstream",
        ] {
            assert!(Route::parse(text).is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn no_text_upsets_the_parser(text in "\\PC{0,60}", middle in "[a-zA-Z/*='$ ]{0,40}") {
            let _ = Route::parse(&text);
            let _ = Route::parse(&format!("FROM /{middle} WHERE {text} INTO {middle}"));
        }
    }
}
