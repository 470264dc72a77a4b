//! The hub's part of a trial: random trouble of the hub, of the lines to it and of the modules' links, drawn from dice of its own, so
//! that whoever turns it off leaves everything else as it was.

use std::time::Duration;

use quorate::{
    dice::Dice,
    hub::{
        memory::Trouble,
        trouble::{Rule, Scope},
    },
};

use crate::stage::Stage;

const S: Duration = Duration::from_secs(1);
const MS: Duration = Duration::from_millis(1);
/// A link looks this often whether it still stands: a cut that is shorter would not be one.
const NOTICED: Duration = Duration::from_millis(600);

/// What ends by itself.
enum Over {
    Trouble(u64),
    Line(usize),
    Cloud(usize),
    Link(usize),
}

/// The hub's trouble, now and to come.
pub struct HubTrouble {
    dice: Dice,
    next: Duration,
    later: Vec<(Duration, Over)>,
    /// How often the hub went back.
    pub rollbacks: usize,
}

fn pick<T: Copy>(dice: &mut Dice, of: &[T]) -> T {
    of[usize::try_from(dice.throw() % of.len() as u64).expect("small")]
}

impl HubTrouble {
    pub fn new(seed: u64) -> HubTrouble {
        let dice = Dice::new(seed ^ 0x0068_7562_7472_6f75);
        HubTrouble { dice, next: Duration::ZERO, later: Vec::new(), rollbacks: 0 }
    }

    /// When something begins or ends next.
    pub fn due(&self) -> Duration {
        self.later.iter().map(|(at, _)| *at).fold(self.next, Duration::min)
    }

    /// Does what is due, and says what it was.
    pub fn act(&mut self, stage: &Stage) -> String {
        let now = stage.sim.elapsed();
        if let Some(over) = self.later.iter().position(|(at, _)| *at <= now) {
            return end(stage, &self.later.swap_remove(over).1);
        }
        let longest = pick(&mut self.dice, &[S / 5, S, S * 4]);
        self.next = now + self.dice.up_to(longest) + MS;
        let n = usize::try_from(self.dice.throw() % stage.devices.len() as u64).expect("small");
        let longest = pick(&mut self.dice, &[S / 2, S * 2, S * 5, S * 12]);
        let lasts = self.dice.up_to(longest) + NOTICED;
        let (over, what) = match self.dice.throw() % 20 {
            0..=8 => return self.trouble(stage, lasts),
            9..=11 => return self.roll_back(stage),
            12..=14 => {
                stage.hub.lines[n].cut(true);
                (Over::Line(n), "line of {n} to the hub is cut")
            }
            15..=16 => {
                stage.hub.modules[n].line.cut(true);
                (Over::Link(n), "module link of {n} is dropped")
            }
            _ => {
                stage.hub.lines[n].cut(true);
                stage.hub.modules[n].line.cut_off_the_cloud(true);
                self.later.push((now + lasts, Over::Line(n)));
                (Over::Cloud(n), "internet of {n} is cut")
            }
        };
        self.later.push((now + lasts, over));
        format!("hub: the {} for {lasts:?}", what.replace("{n}", &n.to_string()))
    }

    /// One of the troubles that may be on beside others.
    fn trouble(&mut self, stage: &Stage, lasts: Duration) -> String {
        let dice = &mut self.dice;
        let trouble = match dice.throw() % 10 {
            0..=1 => Trouble::Unreachable,
            2 => Trouble::Slow { delay_ms: pick(dice, &[100, 700, 3000, 12_000]) },
            3..=4 => Trouble::Throttled { retry_after_s: pick(dice, &[None, Some(1), Some(2), Some(8)]) },
            5..=6 => Trouble::Failing { status: pick(dice, &[500, 502, 503, 504]) },
            7 => Trouble::DropAnswer,
            8 => Trouble::TokensExpired,
            _ => Trouble::Quota,
        };
        let whole = trouble == Trouble::Unreachable;
        let probability = if whole { 1.0 } else { pick(dice, &[1.0, 0.5, 0.1]) };
        let some = pick(dice, &[false, false, false, true]);
        let device = stage.devices
            [usize::try_from(dice.throw() % stage.devices.len() as u64).expect("small")]
        .id
        .to_string();
        let devices = if some && !whole { vec![device] } else { vec![] };
        let scope = Scope { devices, ..Scope::default() };
        let text = format!("hub: {trouble:?} for {lasts:?}, hits {probability} of {:?}", scope.devices);
        let rule = Rule { trouble, scope, probability, for_s: None };
        let id = stage.hub.memory.add_trouble(rule).expect("a trouble");
        self.later.push((stage.sim.elapsed() + lasts, Over::Trouble(id)));
        text
    }

    fn roll_back(&mut self, stage: &Stage) -> String {
        let longest = pick(&mut self.dice, &[S / 5, S * 2, S * 10, S * 60]);
        let by = self.dice.up_to(longest);
        self.rollbacks += 1;
        format!("hub: goes back by {by:?} and loses {} changes", stage.hub.memory.rollback(by).lost)
    }

    /// All of it ends.
    pub fn end(&mut self, stage: &Stage) {
        self.later.clear();
        self.next = Duration::MAX;
        stage.hub.memory.trouble(Trouble::None);
        for (line, module) in stage.hub.lines.iter().zip(&stage.hub.modules) {
            line.cut(false);
            module.line.cut_off_the_cloud(false);
            module.line.cut(false);
        }
    }
}

fn end(stage: &Stage, over: &Over) -> String {
    match over {
        Over::Trouble(id) => {
            stage.hub.memory.end_trouble(*id);
            format!("hub: trouble {id} is over")
        }
        Over::Line(n) => {
            stage.hub.lines[*n].cut(false);
            format!("hub: the line of {n} is mended")
        }
        Over::Cloud(n) => {
            stage.hub.modules[*n].line.cut_off_the_cloud(false);
            format!("hub: the internet of {n} is mended")
        }
        Over::Link(n) => {
            stage.hub.modules[*n].line.cut(false);
            format!("hub: the module of {n} may connect")
        }
    }
}
