//! What can go wrong in the lab, and the random sequence that a seed stands for.
//!
//! A sequence is drawn before anything runs, so that it depends on the seed and on what the machine can do, and on
//! nothing that happens. Which device is "the owner" is found out when a fault strikes.

use std::{fmt, time::Duration};

use quorate::dice::Dice;

/// One kind of trouble.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fault {
    /// SIGKILL to the sidecar; its supervisor starts it again at once.
    SidecarCrash,
    /// SIGKILL to the sidecar, and it stays away.
    SidecarDead,
    /// SIGKILL to the fencer.
    FencerDead,
    /// SIGKILL to the workload.
    WorkloadDead,
    /// The cable is dead, then everything is killed at once.
    PowerCut,
    /// All devices at once.
    PowerCutEverywhere,
    /// SIGSTOP to the sidecar alone.
    SidecarFrozen,
    /// SIGSTOP to everything of a device, and the network card stops too: a paused virtual machine.
    DeviceFrozen,
    /// The sidecar runs and stands still by turns, some milliseconds each.
    SidecarStarved,
    /// The cable is out.
    Unplugged,
    /// The cable is out and in by turns.
    Flapping,
    /// It is heard by everybody and hears nobody.
    Deaf,
    /// It hears everybody and is heard by nobody.
    Mute,
    /// One of its links is cut in one direction.
    OneWay,
    /// One of its links is cut.
    LinkCut,
    /// 5 to 30 of a hundred are lost, everywhere.
    Loss,
    /// Everything takes up to 80 ms longer, everywhere.
    Slow,
    /// Packets overtake each other and arrive twice, everywhere.
    Disorder,
    /// Every sync of the disk takes 50 to 800 ms longer.
    DiskStalls,
    /// No room left on the disk.
    DiskFull,
    /// A planned handover to a random device.
    Transfer,
    /// SIGTERM; it comes back later.
    Leave,
}

use Fault::{
    Deaf, DeviceFrozen, DiskFull, DiskStalls, Disorder, FencerDead, Flapping, Leave, LinkCut, Loss, Mute,
    OneWay, PowerCut, PowerCutEverywhere, SidecarCrash, SidecarDead, SidecarFrozen, SidecarStarved, Slow,
    Transfer, Unplugged, WorkloadDead,
};

const ALL: [Fault; 22] = [
    SidecarCrash,
    SidecarDead,
    FencerDead,
    WorkloadDead,
    PowerCut,
    PowerCutEverywhere,
    SidecarFrozen,
    DeviceFrozen,
    SidecarStarved,
    Unplugged,
    Flapping,
    Deaf,
    Mute,
    OneWay,
    LinkCut,
    Loss,
    Slow,
    Disorder,
    DiskStalls,
    DiskFull,
    Transfer,
    Leave,
];

impl Fault {
    /// Whether it hits all devices alike.
    pub(super) fn is_everywhere(self) -> bool {
        matches!(self, PowerCutEverywhere | Loss | Slow | Disorder)
    }
}

impl fmt::Display for Fault {
    /// `SidecarCrash` as `sidecar crash`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, c) in format!("{self:?}").chars().enumerate() {
            let gap = if n > 0 && c.is_ascii_uppercase() { " " } else { "" };
            write!(f, "{gap}{}", c.to_ascii_lowercase())?;
        }
        Ok(())
    }
}

/// What the machine lets the lab do.
#[derive(Debug, Clone, Copy)]
pub(super) struct Can {
    /// Network namespaces with cards: packets can be doubled and overtake, and a disk can be small.
    pub(super) namespaces: bool,
    /// strace may slow down a process's calls.
    pub(super) stall: bool,
}

impl Can {
    fn make(self, fault: Fault) -> bool {
        match fault {
            Disorder | DiskFull => self.namespaces,
            DiskStalls => self.stall,
            _ => true,
        }
    }
}

/// One fault and all that is random about it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Strike {
    pub(super) fault: Fault,
    /// The device; `None`: whoever owns then.
    pub(super) whom: Option<usize>,
    /// The other device, never the same one, counted on from it: 1 to all but one.
    pub(super) other: usize,
    /// How bad, 0 to 99.
    pub(super) degree: u64,
}

/// Faults that last together, and what comes after.
#[derive(Debug, Clone)]
pub(super) struct Step {
    pub(super) strikes: Vec<Strike>,
    /// How long they last.
    pub(super) lasts: Duration,
    /// Whether the site may find an owner before everything is made good.
    pub(super) patient: bool,
    /// Whether the site has an owner again before the next fault.
    pub(super) rests: bool,
    /// Until the next fault.
    pub(super) pause: Duration,
}

/// Steps with `faults` faults altogether.
pub(super) fn sequence(dice: &mut Dice, faults: usize, devices: usize, can: Can) -> Vec<Step> {
    let possible: Vec<Fault> = ALL.into_iter().filter(|f| can.make(*f)).collect();
    let mut one_of = |n: u64| dice.throw() % n;
    let small = |n: u64| usize::try_from(n).expect("small");
    let (mut steps, mut left) = (Vec::new(), faults);
    while left > 0 {
        let together = match one_of(10) {
            0..7 => 1,
            7..9 => 2,
            _ => 3,
        };
        let together = together.min(left);
        left -= together;
        let mut strikes = Vec::new();
        for _ in 0..together {
            strikes.push(Strike {
                fault: possible[small(one_of(possible.len() as u64))],
                whom: (one_of(10) >= 6).then(|| small(one_of(devices as u64))),
                other: 1 + small(one_of(devices as u64 - 1)),
                degree: one_of(100),
            });
        }
        let lasts = if one_of(4) == 0 { one_of(60) } else { 100 + one_of(1500) };
        steps.push(Step {
            strikes,
            lasts: Duration::from_millis(lasts),
            patient: one_of(2) == 0,
            rests: one_of(4) > 0,
            pause: Duration::from_millis(one_of(400)),
        });
    }
    steps
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_is_a_sequence_with_every_fault() {
        let can = Can { namespaces: true, stall: true };
        let draw = |seed, can| sequence(&mut Dice::new(seed), 1000, 3, can);
        assert_eq!(format!("{:?}", draw(5, can)), format!("{:?}", draw(5, can)));
        assert_ne!(format!("{:?}", draw(5, can)), format!("{:?}", draw(6, can)));
        let seen = |can| -> Vec<Fault> {
            let steps = draw(5, can);
            let strikes: Vec<Strike> = steps.into_iter().flat_map(|s| s.strikes).collect();
            assert_eq!(strikes.len(), 1000);
            assert!(strikes.iter().all(|s| (1..3).contains(&s.other) && s.whom.is_none_or(|n| n < 3)));
            ALL.into_iter().filter(|f| strikes.iter().any(|s| s.fault == *f)).collect()
        };
        assert_eq!(seen(can), ALL);
        let without = seen(Can { namespaces: false, stall: false });
        assert!([Disorder, DiskFull, DiskStalls].iter().all(|f| !without.contains(f)));
    }
}
