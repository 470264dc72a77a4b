//! One thing that is wrong with the configuration: where it stands, what is wrong, what to write instead.
//!
//! Faults are collected, never thrown one by one: a person mends a file once, not once per run. The texts are held by
//! golden tests, because people search for them. No fault ever repeats a secret.

use std::fmt;

/// Where a setting was written, or should have been.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Where {
    /// In a file; the line counts from 1 and is absent when the fault is something that is not there.
    File {
        /// The file as it was named.
        path: String,
        /// The line.
        line: Option<usize>,
    },
    /// In an environment variable of this name.
    Environment(String),
}

impl fmt::Display for Where {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Where::File { path, line: Some(line) } => write!(f, "{path}:{line}"),
            Where::File { path, line: None } => write!(f, "{path}"),
            Where::Environment(name) => write!(f, "environment variable {name}"),
        }
    }
}

/// One fault.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// The file and line, or the environment variable.
    pub at: Where,
    /// The setting's full name, such as `site.timing.hold`; absent when the fault is about a whole file.
    pub key: Option<String>,
    /// What is wrong, in one line.
    pub problem: String,
    /// What to write instead, in one line.
    pub advice: String,
}

impl Fault {
    pub(super) fn new(
        at: Where,
        key: impl Into<String>,
        problem: impl Into<String>,
        advice: impl Into<String>,
    ) -> Fault {
        let key = Some(key.into()).filter(|k: &String| !k.is_empty());
        Fault { at, key, problem: one_line(&problem.into()), advice: one_line(&advice.into()) }
    }
}

/// Text from outside may hold line breaks and terminal control codes; a fault is one plain line.
fn one_line(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.at)?;
        if let Some(key) = &self.key {
            write!(f, "{key}: ")?;
        }
        write!(f, "{}\n    {}", self.problem, self.advice)
    }
}

/// Everything that is wrong, in the order of the file. Never empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Faults(pub Vec<Fault>);

impl fmt::Display for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.len() {
            1 => writeln!(f, "the configuration has 1 fault:")?,
            n => writeln!(f, "the configuration has {n} faults:")?,
        }
        for fault in &self.0 {
            writeln!(f, "  {}", fault.to_string().replace('\n', "\n  "))?;
        }
        Ok(())
    }
}

impl std::error::Error for Faults {}

/// The candidate that looks most like `wrong`, if any is close enough to have been meant.
pub(super) fn nearest<'a>(wrong: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let wrong = wrong.to_lowercase();
    candidates
        .into_iter()
        .map(|c| (distance(&wrong, &c.to_lowercase()), c))
        .filter(|(d, c)| *d <= 1 + c.chars().count() / 3)
        .min()
        .map(|(_, c)| c)
}

/// Levenshtein's edit distance, over characters.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().take(200).collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, ca) in a.chars().take(200).enumerate() {
        let mut diagonal = i;
        row[0] = i + 1;
        for (j, cb) in b.iter().enumerate() {
            let substitute = diagonal + usize::from(ca != *cb);
            diagonal = row[j + 1];
            row[j + 1] = substitute.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nearest_finds_slips_and_nothing_far() {
        assert_eq!(distance("kitten", "sitting"), 3);
        assert_eq!(distance("", "abc"), 3);
        assert_eq!(nearest("heartbeet", ["hold", "heartbeat"]), Some("heartbeat"));
        assert_eq!(nearest("Edge-1", ["edge-1", "edge-2"]), Some("edge-1"));
        assert_eq!(nearest("colour", ["hold", "heartbeat"]), None);
    }

    #[test]
    fn control_codes_do_not_reach_the_terminal() {
        let at = Where::Environment("QUORATE_SITE__ID".into());
        let fault = Fault::new(at, "site.id", "holds \u{1b}[2J\nx", "y");
        assert!(!fault.problem.contains(char::is_control));
    }
}
