//! What an update has done so far, and how it has seen the devices since.
//!
//! It lives as long as one command. What an earlier one did is read from the builds that the devices run, never remembered.

use std::{collections::BTreeMap, time::Duration};

use super::{Expect, Goal, owner, well};
use crate::{
    clock::Moment,
    status::report::{Member, Report},
};

/// A device as it was seen once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Known {
    pub(super) build: String,
    pub(super) incarnation: String,
}

impl Known {
    fn of(member: &Member) -> Known {
        Known { build: member.build.clone(), incarnation: member.incarnation.clone() }
    }
}

/// Something that was done and has to hold before anything else is.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Deed {
    Updated(String),
    HandedOver,
}

/// What was done and seen.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Memory {
    pub(super) site: Option<String>,
    /// As each device was when it was last seen before the command ran for it.
    before: BTreeMap<String, Known>,
    /// For whom the command ran, in that order.
    pub(super) touched: Vec<String>,
    pub(super) has_handed_over: bool,
    /// What was done last; `None` once that has held for long enough, and before the first deed.
    open: Option<Deed>,
    /// Since when the last deed holds, and how it was then.
    held: Option<(Moment, Known)>,
    /// What the first device that changed has run since.
    changed_to: Option<String>,
}

impl Memory {
    /// Takes in how the site is at `now`.
    pub fn note(&mut self, report: &Report, goal: &Goal, now: Moment) {
        self.site.get_or_insert_with(|| report.site.clone());
        for member in report.members.iter().filter(|m| m.reachable && !m.build.is_empty()) {
            if !self.touched.contains(&member.device) {
                self.before.insert(member.device.clone(), Known::of(member));
            }
        }
        let Some(deed) = &self.open else { return };
        let Ok(state) = self.holds(deed, report, goal) else {
            self.held = None;
            return;
        };
        let since = match &self.held {
            Some((since, was)) if *was == state => *since,
            _ => now,
        };
        if now.since(since) >= goal.settles_in(report) {
            if matches!(deed, Deed::Updated(_)) && goal.expect == Expect::Changed {
                self.changed_to.get_or_insert(state.build);
            }
            (self.open, self.held) = (None, None);
        } else {
            self.held = Some((since, state));
        }
    }

    /// Nothing could be seen: whatever held has to hold anew.
    pub fn blind(&mut self) {
        self.held = None;
    }

    /// The command is run for this device now.
    pub fn touches(&mut self, device: &str) {
        self.touched.push(device.to_owned());
        (self.open, self.held) = (Some(Deed::Updated(device.to_owned())), None);
    }

    /// The workload was handed over.
    pub fn handed_over(&mut self) {
        self.has_handed_over = true;
        (self.open, self.held) = (Some(Deed::HandedOver), None);
    }

    /// The build that a device had before the command ran for it; empty if that was never seen.
    pub fn before(&self, device: &str) -> &str {
        self.before.get(device).map_or("", |known| &known.build)
    }

    /// For whom the command ran, in that order.
    pub fn touched(&self) -> &[String] {
        &self.touched
    }

    /// Whether nothing that was done is still to be seen to hold.
    pub fn is_settled(&self) -> bool {
        self.open.is_none()
    }

    /// The device for which the command ran last, until it is seen to be well.
    pub fn open(&self) -> Option<&str> {
        match self.open.as_ref()? {
            Deed::Updated(device) => Some(device),
            Deed::HandedOver => None,
        }
    }

    /// The build that devices have once they are updated, as far as that is known.
    pub fn wanted(&self, goal: &Goal) -> Option<String> {
        match &goal.expect {
            Expect::Build(build) => Some(build.clone()),
            Expect::Changed => self.changed_to.clone(),
            Expect::Restarted | Expect::Any => None,
        }
    }

    /// The devices whose turn is still to come: those that are heard first, then by name.
    pub fn due(&self, report: &Report, goal: &Goal) -> Vec<String> {
        let mut due: Vec<&Member> = goal
            .scope(report)
            .filter(|m| !self.touched.contains(&m.device))
            .filter(|m| !goal.names(&m.build) && self.changed_to.as_ref() != Some(&m.build))
            .collect();
        due.sort_by_key(|m| (!m.reachable, m.device.clone()));
        due.into_iter().map(|m| m.device.clone()).collect()
    }

    /// What is still missing of the last deed; `None` if there was none, or it has held for long enough.
    pub(super) fn unsettled(&self, report: &Report, goal: &Goal) -> Option<String> {
        let deed = self.open.as_ref()?;
        Some(match (deed, self.holds(deed, report, goal)) {
            (Deed::Updated(device), Err(why)) => format!("{device} is not back: {why}"),
            (Deed::HandedOver, Err(why)) => why,
            (deed, Ok(_)) => {
                let who = match deed {
                    Deed::Updated(device) => device,
                    Deed::HandedOver => "the new owner",
                };
                format!("{who} is well, and is watched for {}", show_duration(goal.settles_in(report)))
            }
        })
    }

    /// Who is to be as it should, and how it is; the same value for as long as nothing has happened to it.
    ///
    /// # Errors
    /// What is missing.
    fn holds(&self, deed: &Deed, report: &Report, goal: &Goal) -> Result<Known, String> {
        if !report.quorum {
            return Err(format!("{} does not hear a majority", report.device));
        }
        let device = match deed {
            Deed::Updated(device) => device,
            Deed::HandedOver => {
                owner(report).ok_or_else(|| format!("nobody is known to own now: {}", report.owner.reason))?
            }
        };
        let member = report.members.iter().find(|m| m.device == *device).ok_or("it is no member any more")?;
        well(report, member)?;
        let mut known = Known::of(member);
        match deed {
            Deed::Updated(_) => match goal.lacks(member, self.before.get(device)) {
                Some(why) => Err(why),
                None => Ok(known),
            },
            // Another ownership is another matter.
            Deed::HandedOver => {
                known.incarnation = format!("{} {}", known.incarnation, report.owner.epoch);
                Ok(known)
            }
        }
    }
}

/// In seconds: longer ones are not usual.
fn show_duration(duration: Duration) -> String {
    format!("{:.1} s", duration.as_secs_f64())
}
