//! Takes settings out of one section by name and type, and notes every fault on the way.
//!
//! What nobody asked for by the end is an unknown key, reported with the nearest name that exists. A value of the wrong
//! type counts as asked for, as wrong and as absent, so that one slip makes one fault.

use std::{collections::BTreeMap, time::Duration};

use super::{
    duration,
    fault::{Fault, Where, nearest},
    source::{Node, Value},
};

/// A setting's value and where it was written.
#[derive(Debug, Clone)]
pub(super) struct Spot<T> {
    pub(super) value: T,
    pub(super) at: Where,
}

impl<T> Spot<T> {
    fn map<U>(self, f: impl FnOnce(T) -> U) -> Spot<U> {
        Spot { value: f(self.value), at: self.at }
    }
}

/// All faults and all names asked for so far.
#[derive(Debug, Default)]
pub(super) struct Notes {
    pub(super) faults: Vec<Fault>,
    /// Full names of settings, for variables written with too few underscores.
    pub(super) known: Vec<String>,
}

impl Notes {
    pub(super) fn fault(
        &mut self,
        at: &Where,
        key: &str,
        problem: impl Into<String>,
        advice: impl Into<String>,
    ) {
        self.faults.push(Fault::new(at.clone(), key, problem, advice));
    }

    /// Something that must be there is not; unless what is there has a fault of its own.
    pub(super) fn missing(&mut self, at: &Where, key: &str, advice: &str) {
        if !self.faults.iter().any(|f| f.key.as_deref() == Some(key)) {
            self.fault(at, key, "is missing", advice);
        }
    }
}

/// One section, partly taken apart.
#[derive(Debug)]
pub(super) struct Section {
    /// Full name, such as `site.timing`; empty for the whole file.
    name: String,
    /// Where the section begins, or the file where it is absent.
    pub(super) at: Where,
    entries: BTreeMap<String, Node>,
    asked: Vec<&'static str>,
    /// It was written as something else, which is a fault already; nothing in it is missing.
    pub(super) broken: bool,
}

impl Section {
    /// The section that `node` holds. `name` may be empty for the root.
    pub(super) fn new(name: &str, node: Node, notes: &mut Notes) -> Section {
        let mut broken = false;
        let entries = match node.value {
            Value::Table(entries) => entries,
            other => {
                notes.fault(
                    &node.at,
                    name,
                    format!("is {}, not a section", other.kind()),
                    match name.contains('[') {
                        true => "write { key = \"value\" } for each item".to_owned(),
                        false => format!("write [{name}] on a line of its own, and its keys below"),
                    },
                );
                broken = true;
                BTreeMap::new()
            }
        };
        Section { name: name.to_owned(), at: node.at, entries, asked: Vec::new(), broken }
    }

    /// The full name of a key in here; of the section itself for an empty one.
    pub(super) fn full(&self, key: &str) -> String {
        if key.is_empty() {
            return self.name.clone();
        }
        if self.name.is_empty() { key.to_owned() } else { format!("{}.{key}", self.name) }
    }

    /// The whole file, without a line: where something absent should have been.
    pub(super) fn file(&self) -> Where {
        match &self.at {
            Where::File { path, .. } => Where::File { path: path.clone(), line: None },
            at => at.clone(),
        }
    }

    fn take(&mut self, key: &'static str, notes: &mut Notes) -> Option<Node> {
        self.asked.push(key);
        notes.known.push(self.full(key));
        self.entries.remove(key)
    }

    /// A section inside; an absent one is empty.
    pub(super) fn section(&mut self, key: &'static str, notes: &mut Notes) -> Section {
        let full = self.full(key);
        self.asked.push(key);
        match self.entries.remove(key) {
            Some(node) => Section::new(&full, node, notes),
            None => Section {
                name: full,
                at: self.file(),
                entries: BTreeMap::new(),
                asked: Vec::new(),
                broken: self.broken,
            },
        }
    }

    /// A section that may also be written as one text, which then stands in it under `preset`.
    pub(super) fn section_or_preset(&mut self, key: &'static str, notes: &mut Notes) -> Section {
        notes.known.push(self.full(key));
        if let Some(node) = self.entries.get_mut(key) {
            node.text_as_preset();
        }
        self.section(key, notes)
    }

    /// A text.
    pub(super) fn text(&mut self, key: &'static str, notes: &mut Notes) -> Option<Spot<String>> {
        let node = self.take(key, notes)?;
        match node.value {
            Value::Text(value) => Some(Spot { value, at: node.at }),
            other => {
                let (full, kind) = (self.full(key), other.kind());
                notes.fault(&node.at, &full, format!("is {kind}, not a text"), "write it in double quotes");
                None
            }
        }
    }

    /// A text that `parse` understands, or a fault with `problem(text)` and `advice`.
    pub(super) fn parsed<T>(
        &mut self,
        key: &'static str,
        notes: &mut Notes,
        parse: impl FnOnce(&str) -> Result<T, String>,
        advice: &str,
    ) -> Option<Spot<T>> {
        let spot = self.text(key, notes)?;
        match parse(&spot.value) {
            Ok(value) => Some(Spot { value, at: spot.at }),
            Err(problem) => {
                notes.fault(&spot.at, &self.full(key), problem, advice);
                None
            }
        }
    }

    /// A duration such as `400ms`. The second value is true if something was written that is not one.
    pub(super) fn duration(
        &mut self,
        key: &'static str,
        notes: &mut Notes,
    ) -> (Option<Spot<Duration>>, bool) {
        let written = self.entries.contains_key(key);
        let parse = |text: &str| duration::parse(text).ok_or_else(|| format!("{text:?} is not a duration"));
        let spot =
            self.parsed(key, notes, parse, "write a number and a unit, such as \"400ms\", \"2s\" or \"10m\"");
        let broken = written && spot.is_none();
        (spot, broken)
    }

    /// A whole number from 0 to 4294967295. From the environment it comes as text.
    pub(super) fn number(&mut self, key: &'static str, notes: &mut Notes) -> (Option<Spot<u32>>, bool) {
        let Some(node) = self.take(key, notes) else { return (None, false) };
        let number = match (&node.value, &node.at) {
            (Value::Integer(number), _) => u32::try_from(*number).ok(),
            (Value::Text(text), Where::Environment(_)) => text.trim().parse().ok(),
            _ => None,
        };
        match number {
            Some(value) => (Some(Spot { value, at: node.at }), false),
            None => {
                let full = self.full(key);
                notes.fault(&node.at, &full, "is not a whole number", "write digits only, without quotes");
                (None, true)
            }
        }
    }

    /// A list. The items are as written.
    pub(super) fn list(
        &mut self,
        key: &'static str,
        notes: &mut Notes,
        advice: &str,
    ) -> Option<Spot<Vec<Node>>> {
        let node = self.take(key, notes)?;
        match node.value {
            Value::List(value) => Some(Spot { value, at: node.at }),
            other => {
                notes.fault(&node.at, &self.full(key), format!("is {}, not a list", other.kind()), advice);
                None
            }
        }
    }

    /// A list of texts; each item that is none is a fault of its own.
    pub(super) fn texts(
        &mut self,
        key: &'static str,
        notes: &mut Notes,
        advice: &str,
    ) -> Option<Spot<Vec<String>>> {
        let full = self.full(key);
        let list = self.list(key, notes, advice)?;
        let mut wrong = false;
        let spot = list.map(|items| {
            let mut texts = Vec::new();
            for (i, item) in items.into_iter().enumerate() {
                match item.value {
                    Value::Text(text) => texts.push(text),
                    other => {
                        wrong = true;
                        let name = format!("{full}[{i}]");
                        notes.fault(&item.at, &name, format!("is {}, not a text", other.kind()), advice);
                    }
                }
            }
            texts
        });
        (!wrong).then_some(spot)
    }

    /// A list of texts, or one word in its place.
    pub(super) fn word_or_texts(
        &mut self,
        key: &'static str,
        notes: &mut Notes,
        advice: &str,
    ) -> Option<Spot<Vec<String>>> {
        match self.entries.get(key).map(|node| &node.value) {
            Some(Value::Text(_)) => self.text(key, notes).map(|spot| spot.map(|word| vec![word])),
            _ => self.texts(key, notes, advice),
        }
    }

    /// All entries of a section whose names are free, as texts. Numbers and booleans are taken as they are written.
    pub(super) fn free_texts(mut self, notes: &mut Notes) -> BTreeMap<String, Spot<String>> {
        let mut texts = BTreeMap::new();
        for (key, node) in std::mem::take(&mut self.entries) {
            let text = match node.value {
                Value::Text(text) => text,
                Value::Integer(number) => number.to_string(),
                Value::Boolean(flag) => flag.to_string(),
                other => {
                    notes.fault(
                        &node.at,
                        &self.full(&key),
                        format!("is {}, not a text", other.kind()),
                        "write the value in double quotes",
                    );
                    continue;
                }
            };
            texts.insert(key, Spot { value: text, at: node.at });
        }
        texts
    }

    /// A key that the contract knows and this version does not serve yet.
    pub(super) fn not_yet(&mut self, key: &'static str, notes: &mut Notes, advice: &str) {
        self.asked.push(key);
        if let Some(node) = self.entries.remove(key) {
            notes.fault(&node.at, &self.full(key), "is not available in this version", advice);
        }
    }

    /// The end: whatever is left was not asked for.
    pub(super) fn done(self, notes: &mut Notes) {
        for (key, node) in &self.entries {
            let advice = match nearest(key, self.asked.iter().copied()) {
                Some(near) => format!("did you mean {}?", self.full(near)),
                None if self.name.is_empty() => format!("there are: {}", self.asked.join(", ")),
                None => format!("in [{}] there are: {}", self.name, self.asked.join(", ")),
            };
            notes.fault(&node.at, &self.full(key), "is not a setting", advice);
        }
    }
}
