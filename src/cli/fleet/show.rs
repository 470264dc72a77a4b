//! The sites as a table for people: one line each, what is wrong below it.

use std::{
    fmt::Write as _,
    io::{self, IsTerminal as _, Write as _},
};

use super::{
    super::{when::span, wrap},
    judge::{Remark, Site},
};

/// So many names are offered in place of one that is not there.
const NEAR: usize = 5;

/// Whether to colour. What colour says, words say as well.
#[derive(Debug, Clone, Copy)]
pub(super) struct Paint(pub(super) bool);

/// The table, worst sites first.
pub(super) fn table(sites: &[Site], now_ms: u64, paint: Paint) -> String {
    if sites.is_empty() {
        return "no site shows anything in this hub".into();
    }
    let width =
        |least: usize, of: &dyn Fn(&Site) -> usize| sites.iter().map(of).max().unwrap_or(0).clamp(least, 32);
    let (site, owner) = (width(4, &|s| s.site.chars().count()), width(5, &|s| name(s).chars().count()));
    let mut out = format!(
        "{:<site$}  {:<owner$}  {:>7}  {:>7}  {:>7}  {:>7}\n",
        "SITE", "OWNER", "EPOCH", "FOR", "HEARD", "DEVICES"
    );
    let ago = |at: Option<u64>| at.map_or("-".into(), |at| span(now_ms.saturating_sub(at)));
    for one in sites {
        let line = format!(
            "{:<site$}  {:<owner$}  {:>7}  {:>7}  {:>7}  {:>7}",
            cut(&one.site, site),
            cut(name(one), owner),
            one.epoch,
            ago(one.since_unix_ms),
            ago(one.heard_unix_ms),
            one.devices.len(),
        );
        let alarming = one.remarks.iter().any(|r| r.alarming());
        let _ = writeln!(out, "{}", if alarming { paint.loud(&line) } else { line });
        for detail in &one.details {
            for line in wrap(&printable(detail), 74) {
                let _ = writeln!(out, "    {line}");
            }
        }
    }
    let with =
        |of: &dyn Fn(Remark) -> bool| sites.iter().filter(|s| s.remarks.iter().any(|r| of(*r))).count();
    let _ = write!(out, "{} sites; {} without exactly one owner", sites.len(), with(&Remark::ownerless));
    let doubtful = with(&|remark| remark == Remark::Ahead);
    if doubtful > 0 {
        let _ = write!(out, "; {doubtful} with an epoch in doubt");
    }
    let _ = write!(out, "; {} with remarks", with(&|_| true));
    out
}

/// The answer to a question for a site that is not there, with the names that somebody may have meant.
pub(super) fn nowhere(wanted: &str, others: &[String]) -> String {
    let wanted_printable = printable(wanted);
    let near = near(wanted, others).into_iter().map(printable).collect::<Vec<_>>().join(", ");
    match (others.len(), near.is_empty()) {
        (0, _) => format!("no site {wanted_printable}: no site shows anything in this hub"),
        (1, true) => {
            format!("no site {wanted_printable} in this hub; the only one is {}", printable(&others[0]))
        }
        (n, true) => {
            format!("no site {wanted_printable} in this hub; none of its {n} sites has a name like it")
        }
        (_, false) => format!("no site {wanted_printable} in this hub; near names: {near}"),
    }
}

/// The names most like this one, best first.
fn near<'a>(wanted: &str, names: &'a [String]) -> Vec<&'a str> {
    let wanted = wanted.to_lowercase();
    let allowed = (wanted.chars().count() / 3).max(2);
    let mut near: Vec<(usize, &str)> = names
        .iter()
        .filter_map(|name| {
            let lower = name.to_lowercase();
            let apart = edits(&wanted, &lower);
            let holds = lower.contains(&wanted) || wanted.contains(&lower);
            (apart <= allowed || holds).then_some((apart, name.as_str()))
        })
        .collect();
    near.sort_unstable();
    near.into_iter().take(NEAR).map(|(_, name)| name).collect()
}

/// How many characters have to be put in, taken out or changed to make one of the other.
fn edits(one: &str, other: &str) -> usize {
    let other: Vec<char> = other.chars().collect();
    let mut row: Vec<usize> = (0..=other.len()).collect();
    for (i, a) in one.chars().enumerate() {
        let mut diagonal = i;
        let mut left = i + 1;
        for (cell, b) in row.iter_mut().skip(1).zip(&other) {
            let changed = diagonal + usize::from(a != *b);
            diagonal = *cell;
            left = changed.min(diagonal + 1).min(left + 1);
            *cell = left;
        }
        row[0] = i + 1;
    }
    row.last().copied().unwrap_or(0)
}

fn name(site: &Site) -> &str {
    site.owner.as_deref().unwrap_or("-")
}

/// Anybody can write into a twin: nothing of it may reach a terminal as a control sequence.
fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

fn cut(text: &str, width: usize) -> String {
    let text = printable(text);
    if text.chars().count() <= width {
        return text;
    }
    text.chars().take(width.saturating_sub(1)).chain(['…']).collect()
}

impl Paint {
    fn loud(self, text: &str) -> String {
        if self.0 { format!("\x1b[1m{text}\x1b[0m") } else { text.to_owned() }
    }
}

/// A line on a terminal's stderr that says how far a long reading is, and is gone afterwards.
pub(super) struct Waiting {
    shown: bool,
    allowed: bool,
}

impl Waiting {
    pub(super) fn new(wanted: bool) -> Waiting {
        Waiting { shown: false, allowed: wanted && io::stderr().is_terminal() }
    }

    pub(super) fn tell(&mut self, what: &str) {
        if self.allowed {
            self.shown = true;
            let _ = write!(io::stderr(), "\r\x1b[K{}", cut(what, 78));
        }
    }

    pub(super) fn end(&mut self) {
        if std::mem::take(&mut self.shown) {
            let _ = write!(io::stderr(), "\r\x1b[K");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn site(name: &str, owner: Option<&str>) -> Site {
        let remarks = if owner.is_some() { vec![] } else { vec![Remark::NoOwner] };
        Site {
            site: name.into(),
            owner: owner.map(str::to_owned),
            epoch: 17,
            since_unix_ms: Some(0),
            heard_unix_ms: None,
            devices: vec!["a".into()],
            builds: vec![],
            certificate_unix_ms: None,
            paused: None,
            details: remarks.iter().map(|_| "no-owner: \x1b[31m nobody".into()).collect(),
            remarks,
        }
    }

    #[test]
    fn a_site_that_is_not_there_is_answered_with_near_names() {
        assert_eq!((edits("", "abc"), edits("kitten", "sitting"), edits("same", "same")), (3, 3, 0));
        let others = ["Plant-7", "plant-17", "depot", "plant\u{1b}-8"].map(str::to_owned);
        let said = nowhere("plant7", &others);
        assert!(said.starts_with("no site plant7 in this hub; near names: Plant-7, plant-17"), "{said}");
        assert!(!said.contains("depot"), "{said}");
        let said = nowhere("plant-8", &others);
        assert!(said.contains("plant\u{fffd}-8") && !said.contains('\u{1b}'), "{said}");
        assert!(nowhere("zzzzzzzzzz", &others).contains("none of its 4 sites"));
        assert!(nowhere("zzzzzzzzzz", &others[2..3]).contains("the only one is depot"));
        assert!(nowhere("x", &[]).contains("no site shows anything"));
    }

    #[test]
    fn a_table_of_80_columns_without_anybodys_control_sequences() {
        let long = "x".repeat(128);
        let text = table(&[site("plant-8", None), site(&long, Some(&long))], 7_200_000, Paint(false));
        assert!(text.lines().next().is_some_and(|l| l.starts_with("SITE")));
        assert!(text.lines().all(|l| l.chars().count() <= 104 && !l.contains('\x1b')), "{text}");
        assert!(text.ends_with("2 sites; 1 without exactly one owner; 1 with remarks"), "{text}");
        assert!(table(&[site("p", None)], 0, Paint(true)).contains("\x1b[1m"));
    }
}
