//! `site.probes` and the other settings of `site` that say how willingly the ownership moves.

use std::{collections::BTreeSet, ops::RangeInclusive, path::PathBuf, time::Duration};

use super::{
    Where,
    listeners::absolute,
    section::{Notes, Section, Spot},
    site::address,
};
use crate::{
    ownership::{
        moves::{Policy, Window},
        probe::Thresholds,
        record::BuildPolicy,
    },
    probe::{Place, Role, Settings, Target},
};

const PROBES_MAX: usize = 32;
const PROBES_ADVICE: &str = "write [[site.probes]] for each, with name, kind and target";
const NAME_ADVICE: &str = "write a short name such as \"plc-1\": letters, digits, dots, dashes, underscores";
const KIND_ADVICE: &str = "write \"tcp\", \"http\", \"grpc\", \"exec\" or \"heartbeat\"";
const EVERY: RangeInclusive<Duration> = Duration::from_millis(100)..=Duration::from_secs(3600);
const TIMEOUT: RangeInclusive<Duration> = Duration::from_millis(10)..=Duration::from_secs(60);
const GRACE: RangeInclusive<Duration> = Duration::ZERO..=Duration::from_secs(3600);
const BETTER_FOR: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(3600);
const FAILBACK_AFTER: RangeInclusive<Duration> = Duration::from_secs(10)..=Duration::from_secs(24 * 3600);
const IN_A_ROW: RangeInclusive<u32> = 1..=1000;
const CHANGES: RangeInclusive<u32> = 0..=60;

/// `site.better_for`, `site.changes_per_hour`, `site.failback` and `site.failback_after`.
pub(super) fn policy(site: &mut Section, notes: &mut Notes) -> Policy {
    let usual = Policy::default();
    let better_for = time(site, "better_for", usual.better_for, &BETTER_FOR, notes);
    let changes_per_hour = count(site, "changes_per_hour", usual.changes_per_hour, &CHANGES, notes);
    let advice = "write \"off\", or a time of the day by UTC such as \"02:00-04:00\"";
    let parse = |text: &str| match text {
        "off" => Ok(None),
        text => window(text).map(Some).ok_or_else(|| format!("{text:?} is not a time of the day")),
    };
    let failback = site.parsed("failback", notes, parse, advice).and_then(|spot| spot.value);
    let failback_after = time(site, "failback_after", usual.failback_after, &FAILBACK_AFTER, notes);
    Policy { better_for, changes_per_hour, failback, failback_after }
}

/// `site.differing_builds`.
pub(super) fn differing_builds(site: &mut Section, notes: &mut Notes) -> BuildPolicy {
    let advice = "write \"block\", \"warn\" or \"allow\"";
    let policy = |text: &str| match text {
        "block" => Ok(BuildPolicy::Block),
        "warn" => Ok(BuildPolicy::Warn),
        "allow" => Ok(BuildPolicy::Allow),
        other => Err(format!("{other:?} is no such policy")),
    };
    site.parsed("differing_builds", notes, policy, advice).map(|spot| spot.value).unwrap_or_default()
}

/// `02:00-04:00`.
fn window(text: &str) -> Option<Window> {
    let minute = |text: &str| {
        let (hour, minute) = text.split_once(':')?;
        let two = |text: &str| text.len() == 2 && text.bytes().all(|b| b.is_ascii_digit());
        let digits = |text: &str| text.parse::<u8>().ok().filter(|_| two(text));
        let (hour, minute) = (digits(hour)?, digits(minute)?);
        (hour < 24 && minute < 60).then(|| u64::from(hour) * 60 + u64::from(minute))
    };
    let (from, to) = text.split_once('-')?;
    Window::new(minute(from)?, minute(to)?)
}

/// `site.probes`.
pub(super) fn probes(site: &mut Section, notes: &mut Notes) -> Vec<Settings> {
    let key = site.full("probes");
    let Some(list) = site.list("probes", notes, PROBES_ADVICE) else { return Vec::new() };
    if list.value.len() > PROBES_MAX {
        let problem = format!("has {} probes; at most {PROBES_MAX} are asked", list.value.len());
        notes.fault(&list.at, &key, problem, "leave out what says the same as another");
    }
    let (mut probes, mut names) = (Vec::new(), BTreeSet::new());
    for (i, node) in list.value.into_iter().enumerate() {
        let at = node.at.clone();
        let section = Section::new(&format!("{key}[{i}]"), node, notes);
        let Some(probe) = probe(section, notes) else { continue };
        if !names.insert(probe.name.clone()) {
            let problem = format!("{} is the name of another probe already", probe.name);
            notes.fault(&at, &format!("{key}[{i}].name"), problem, "give each probe its own name");
        }
        probes.push(probe);
    }
    probes
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Tcp,
    Http,
    Grpc,
    Exec,
    Heartbeat,
}

fn probe(mut section: Section, notes: &mut Notes) -> Option<Settings> {
    let at = section.at.clone();
    if section.broken {
        return None;
    }
    let name = section.parsed("name", notes, name, NAME_ADVICE);
    let kind = section.parsed("kind", notes, kind, KIND_ADVICE);
    for (key, absent, advice) in
        [("name", name.is_none(), NAME_ADVICE), ("kind", kind.is_none(), KIND_ADVICE)]
    {
        if absent {
            notes.missing(&at, &section.full(key), advice);
        }
    }
    let target = target(&mut section, kind.as_ref(), &at, notes);
    let beats = kind.as_ref().is_some_and(|kind| kind.value == Kind::Heartbeat);
    let role = role(&mut section, beats, notes);
    let every = time(&mut section, "every", Duration::from_secs(1), &EVERY, notes);
    let timeout = time(&mut section, "timeout", Duration::from_millis(500), &TIMEOUT, notes);
    let fail_after = count(&mut section, "fail_after", 3, &IN_A_ROW, notes);
    let pass_after = count(&mut section, "pass_after", 2, &IN_A_ROW, notes);
    let (grace, _) = section.duration("grace", notes);
    let grace = match (grace, role) {
        (Some(spot), Role::Plant) => {
            let advice = "remove it: what is not seen yet is not seen";
            notes.fault(&spot.at, &section.full("grace"), "is for role = \"workload\"", advice);
            Duration::ZERO
        }
        (Some(spot), Role::Workload) => in_range(&section, "grace", &spot, &GRACE, notes),
        (None, Role::Plant) => Duration::ZERO,
        (None, Role::Workload) => Duration::from_secs(30),
    };
    section.done(notes);
    let thresholds = Thresholds { fail_after, pass_after, grace };
    Some(Settings { name: name?.value, role, target: target?, every, timeout, thresholds })
}

fn name(text: &str) -> Result<String, String> {
    let plain = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    match !text.is_empty() && text.len() <= 64 && text.chars().all(plain) {
        // What the workload says itself is shown under this name.
        true if text == "workload.ready" => Err(format!("{text:?} is a name of Quorate's own")),
        true => Ok(text.to_owned()),
        false => Err(format!("{text:?} is not a name")),
    }
}

fn kind(text: &str) -> Result<Kind, String> {
    match text {
        "tcp" => Ok(Kind::Tcp),
        "http" => Ok(Kind::Http),
        "grpc" => Ok(Kind::Grpc),
        "exec" => Ok(Kind::Exec),
        "heartbeat" => Ok(Kind::Heartbeat),
        other => Err(format!("{other:?} is not a kind of probe")),
    }
}

fn role(section: &mut Section, beats: bool, notes: &mut Notes) -> Role {
    let parse = |text: &str| match text {
        "plant" => Ok(Role::Plant),
        "workload" => Ok(Role::Workload),
        other => Err(format!("{other:?} is not a role")),
    };
    let advice = "write \"plant\" (what every device sees) or \"workload\" (asked where it runs)";
    let spot = section.parsed("role", notes, parse, advice);
    match spot {
        Some(spot) if beats && spot.value == Role::Plant => {
            let problem = "is \"plant\", and only the workload's own heart beats";
            notes.fault(&spot.at, &section.full("role"), problem, "leave it out, or choose another kind");
            Role::Workload
        }
        Some(spot) => spot.value,
        None if beats => Role::Workload,
        None => Role::Plant,
    }
}

fn target(section: &mut Section, kind: Option<&Spot<Kind>>, at: &Where, notes: &mut Notes) -> Option<Target> {
    let advice = match kind.map(|kind| kind.value) {
        Some(Kind::Tcp) => "write host:port, such as \"192.168.7.20:502\"",
        Some(Kind::Http) => {
            "write an address such as \"http://127.0.0.1:8080/ready\"; https is not available"
        }
        Some(Kind::Grpc) => {
            "write host:port, or host:port/service, such as \"127.0.0.1:50051/plant.v1.Pump\""
        }
        Some(Kind::Exec) => {
            "write a list: the program, then its arguments, such as [\"/usr/bin/ask-plc\", \"-q\"]"
        }
        Some(Kind::Heartbeat) => "write the absolute path of the file that the workload touches",
        None => "write what is to be asked",
    };
    let before = notes.faults.len();
    let words = section.word_or_texts("target", notes, advice);
    let key = section.full("target");
    let Some(Spot { value: words, at: written }) = words else {
        if notes.faults.len() == before {
            notes.missing(at, &key, advice);
        }
        return None;
    };
    let kind = kind?.value;
    let parsed = match (kind, words.as_slice()) {
        (Kind::Exec, [program, ..]) if program.trim().is_empty() => Err("names no program".to_owned()),
        (Kind::Exec, words) if words.iter().any(|word| word.contains('\0')) => {
            Err("holds a zero byte".to_owned())
        }
        (Kind::Exec, [_, ..]) => Ok(Target::Exec(words)),
        (Kind::Tcp, [word]) => place(word).map(Target::Tcp),
        (Kind::Http, [word]) => http(word),
        (Kind::Grpc, [word]) => {
            let (authority, service) = word.split_once('/').unwrap_or((word, ""));
            place(authority).map(|place| Target::Grpc { place, service: service.to_owned() })
        }
        (Kind::Heartbeat, [word]) => absolute(word, 4000).map(|path: PathBuf| Target::Heartbeat(path)),
        (_, words) => Err(format!("is a list of {}, not one text", words.len())),
    };
    parsed.map_err(|problem| notes.fault(&written, &key, problem, advice)).ok()
}

/// `host:port`.
fn place(text: &str) -> Result<Place, String> {
    let whole = address(text)?;
    let (host, port) = whole.rsplit_once(':').ok_or_else(|| format!("{text:?} has no port"))?;
    let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
    let port = port.parse().map_err(|_| format!("{text:?} has no port from 1 to 65535"))?;
    Ok(Place { host, port })
}

/// `http://host:port/path`, with 80 for a port that is left out.
fn http(text: &str) -> Result<Target, String> {
    let rest = text.strip_prefix("http://").ok_or_else(|| format!("{text:?} does not begin with http://"))?;
    let (authority, path) = match rest.find('/') {
        Some(slash) => rest.split_at(slash),
        None => (rest, "/"),
    };
    if !path.bytes().all(|b| b.is_ascii_graphic()) {
        return Err(format!("{path:?} holds what has to be written with %"));
    }
    let place =
        place(authority).or_else(|why| match authority.ends_with(']') || !authority.contains(':') {
            true => place(&format!("{authority}:80")),
            false => Err(why),
        })?;
    Ok(Target::Http { place, authority: authority.to_owned(), path: path.to_owned() })
}

fn time(
    section: &mut Section,
    key: &'static str,
    usual: Duration,
    range: &RangeInclusive<Duration>,
    notes: &mut Notes,
) -> Duration {
    let (spot, _) = section.duration(key, notes);
    spot.map_or(usual, |spot| in_range(section, key, &spot, range, notes))
}

fn in_range(
    section: &Section,
    key: &str,
    spot: &Spot<Duration>,
    range: &RangeInclusive<Duration>,
    notes: &mut Notes,
) -> Duration {
    if !range.contains(&spot.value) {
        let [from, to] = [range.start(), range.end()].map(|d| super::show_duration(*d));
        let problem = format!("{} is outside {from} to {to}", super::show_duration(spot.value));
        notes.fault(&spot.at, &section.full(key), problem, format!("write {from} to {to}"));
    }
    spot.value
}

fn count(
    section: &mut Section,
    key: &'static str,
    usual: u32,
    range: &RangeInclusive<u32>,
    notes: &mut Notes,
) -> u32 {
    let (spot, _) = section.number(key, notes);
    let Some(spot) = spot else { return usual };
    if !range.contains(&spot.value) {
        let (from, to) = (range.start(), range.end());
        let problem = format!("{} is outside {from} to {to}", spot.value);
        notes.fault(&spot.at, &section.full(key), problem, format!("write {from} to {to}"));
    }
    spot.value
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_and_what_is_none() {
        assert_eq!(window("02:00-04:30").map(|w| w.to_string()).as_deref(), Some("02:00-04:30"));
        assert_eq!(window("22:00-01:00").map(|w| w.to_string()).as_deref(), Some("22:00-01:00"));
        for text in ["", "2:00-4:00", "02:00", "24:00-01:00", "02:60-03:00", "02:00-02:00", "+2:00-03:00"] {
            assert_eq!(window(text), None, "{text}");
        }
    }

    #[test]
    fn addresses_of_web_servers() {
        let shown = |text: &str| match http(text) {
            Ok(Target::Http { place, path, .. }) => format!("{} {} {path}", place.host, place.port),
            other => format!("{other:?}"),
        };
        assert_eq!(shown("http://plc-1"), "plc-1 80 /");
        assert_eq!(shown("http://10.0.0.1:8080/a/b?c=1"), "10.0.0.1 8080 /a/b?c=1");
        assert_eq!(shown("http://[fd00::1]/x"), "fd00::1 80 /x");
        assert_eq!(shown("http://[fd00::1]:81"), "fd00::1 81 /");
        for text in
            ["https://plc-1", "plc-1:80", "http://", "http://a b/", "http://h:0/", "http://h/\r\nX: y"]
        {
            assert!(http(text).is_err(), "{text}");
        }
    }
}
