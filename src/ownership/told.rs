//! What members tell each other of what is wrong with them, for people: whatever device of the site is asked, it shows what the
//! owner's workload does, and what any other device complains of.
//!
//! Names from closed lists, and nothing else: another's free text would have to be bounded and made harmless on every face.
//! Nothing decides by it.

use crate::condition::{Raised, Severity};

/// The most conditions that a member tells of itself, and that are kept of what another tells.
pub const CONDITIONS_MAX: usize = 16;
/// The longest name that is kept.
const NAME_MAX: usize = 40;

/// What a member observes of its workload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Work {
    /// Nothing of it runs.
    Stopped,
    /// Its program runs, and has not said yet that it is ready.
    Starting,
    /// It runs, and has said that it is ready if it has to.
    Running,
    /// Its program runs, and does not say in time that it is ready, or that it is still well.
    NotReady,
    /// It has ended by itself, or could not be started, and is tried again.
    BackingOff,
    /// It was told to stop, and parts of it may still run.
    Stopping,
}

impl Work {
    /// Each with its number between members. 0 stands for nothing said.
    const NUMBERED: [(u32, Work); 6] = [
        (1, Work::Stopped),
        (2, Work::Starting),
        (3, Work::Running),
        (4, Work::NotReady),
        (5, Work::BackingOff),
        (6, Work::Stopping),
    ];

    /// Its number between members.
    pub fn number(self) -> u32 {
        Work::NUMBERED.iter().find(|(_, work)| *work == self).map_or(0, |(number, _)| *number)
    }

    /// What a number means; `None` if nothing, or something that only a later version knows.
    pub fn of_number(number: u32) -> Option<Work> {
        Work::NUMBERED.iter().find(|(known, _)| *known == number).map(|(_, work)| *work)
    }

    /// The words for it in the status.
    pub fn name(self) -> &'static str {
        match self {
            Work::Stopped => "stopped",
            Work::Starting => "starting",
            Work::Running => "running",
            Work::NotReady => "not ready",
            Work::BackingOff => "backing off",
            Work::Stopping => "stopping",
        }
    }
}

/// What a member says is wrong with it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Told {
    /// Its workload; `None` if it does not say, or has none of its own.
    pub work: Option<Work>,
    /// The names of the conditions that it raises, the most urgent first.
    pub conditions: Vec<String>,
}

impl Told {
    /// What another said, as far as it is kept: few names, short ones, of the letters that names are made of. One that this
    /// version does not know is kept, because a later one may.
    pub fn heard(work: u32, conditions: Vec<String>) -> Told {
        let mut kept: Vec<String> = Vec::new();
        for name in conditions.into_iter().take(CONDITIONS_MAX) {
            if is_name(&name) && !kept.contains(&name) {
                kept.push(name);
            }
        }
        Told { work: Work::of_number(work), conditions: kept }
    }
}

fn is_name(text: &str) -> bool {
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "._-".contains(c);
    !text.is_empty() && text.len() <= NAME_MAX && text.chars().all(plain)
}

/// The names that the others are told of what is raised here: all that somebody may have to act on, the most urgent first.
pub fn to_tell(raised: &[Raised]) -> Vec<String> {
    let urgent = raised.iter().map(|raised| raised.name).filter(|name| name.severity() > Severity::Info);
    let mut names: Vec<_> = urgent.collect();
    names.sort_by_key(|name| (std::cmp::Reverse(name.severity()), *name));
    names.dedup();
    names.into_iter().take(CONDITIONS_MAX).map(|name| name.name().to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::condition::Condition;

    #[test]
    fn every_state_of_the_workload_travels() {
        for (number, work) in Work::NUMBERED {
            assert_eq!((work.number(), Work::of_number(number)), (number, Some(work)));
        }
        assert_eq!(
            [0, 7, u32::MAX].map(Work::of_number),
            [None; 3],
            "what a later version says is not guessed"
        );
    }

    #[test]
    fn the_most_urgent_is_told_first_and_each_once() {
        let raised = [
            Condition::NoSpare,
            Condition::MemberSilent,
            Condition::WorkloadCrashing,
            Condition::MemberSilent,
        ]
        .map(|name| Raised::new(name, "not told"));
        assert_eq!(to_tell(&raised), ["workload.crashing", "no.spare", "member.silent"]);
        let all: Vec<_> = Condition::ALL.iter().map(|name| Raised::new(*name, "")).collect();
        let told = to_tell(&all);
        assert_eq!(told.len(), CONDITIONS_MAX);
        let critical = |name: &String| {
            Condition::ALL.iter().any(|c| c.name() == name && c.severity() == Severity::Critical)
        };
        assert!(told.is_sorted_by_key(|name| !critical(name)), "{told:?}");
        assert_eq!(Told::heard(0, told.clone()).conditions, told, "whoever hears it keeps all of it");
    }

    #[test]
    fn every_name_of_a_condition_may_be_told() {
        assert!(Condition::ALL.iter().all(|condition| is_name(condition.name())));
        let strange = ["x.later", "\u{1b}[2J", "No.Owner", "", "a b", "<b>", &"x".repeat(NAME_MAX + 1)];
        assert_eq!(Told::heard(3, strange.map(str::to_owned).into()).conditions, ["x.later"]);
    }

    proptest! {
        #[test]
        fn whatever_is_heard_is_little_and_harmless(work: u32, names: Vec<String>) {
            let told = Told::heard(work, names);
            prop_assert!(told.conditions.len() <= CONDITIONS_MAX);
            prop_assert!(told.conditions.iter().all(|name| is_name(name)));
        }
    }
}
