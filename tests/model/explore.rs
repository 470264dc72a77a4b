//! Breadth first through every state that can be reached, each visited once, and the shortest way to a bad one.
//!
//! States are kept whole, packed into four words, not as fingerprints: two that differ are never taken for one. The table
//! is our own because the product's lints forbid hash maps, and because it is twice as fast without optimisation.

use std::time::{Duration, Instant};

use crate::{
    rules::Scope,
    state::{Packed, State},
    steps::{Step, successors},
};

/// What an exploration came to.
pub struct Found {
    /// How many states were visited.
    pub states: usize,
    /// The longest of the shortest ways to them, in steps.
    pub depth: usize,
    /// How long it took.
    pub took: Duration,
    /// Whether every reachable state was visited.
    pub complete: bool,
    /// The shortest way to a state that must not be, with what is wrong there.
    pub bad: Option<(Vec<(Step, State)>, &'static str)>,
    /// Bits of [`State::sights`] seen anywhere.
    pub sights: u32,
}

/// Open addressing over the indexes of `states`; 0 is free.
struct Table {
    slots: Vec<u32>,
    used: usize,
}

fn hash(key: &Packed) -> usize {
    let mut h = key[0];
    h = (h ^ (h >> 29)).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ key[1];
    h = (h ^ (h >> 29)).wrapping_mul(0xbf58_476d_1ce4_e5b9) ^ key[2];
    h = (h ^ (h >> 29)).wrapping_mul(0x94d0_49bb_1331_11eb) ^ key[3];
    h = (h ^ (h >> 29)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (h ^ (h >> 32)) as usize
}

impl Table {
    fn new() -> Table {
        Table { slots: vec![0; 1 << 16], used: 0 }
    }

    /// Adds the key, unless it is known. Says whether it is new.
    fn insert(&mut self, key: &Packed, states: &mut Vec<Packed>) -> bool {
        let mask = self.slots.len() - 1;
        let mut at = hash(key) & mask;
        loop {
            match self.slots[at] {
                0 => break,
                index if states[index as usize - 1] == *key => return false,
                _ => at = (at + 1) & mask,
            }
        }
        states.push(*key);
        self.slots[at] = u32::try_from(states.len()).expect("fewer than four thousand million");
        self.used += 1;
        if self.used * 2 > self.slots.len() {
            self.grow(states);
        }
        true
    }

    fn grow(&mut self, states: &[Packed]) {
        let mask = self.slots.len() * 2 - 1;
        self.slots = vec![0; mask + 1];
        for (index, key) in states.iter().enumerate() {
            let mut at = hash(key) & mask;
            while self.slots[at] != 0 {
                at = (at + 1) & mask;
            }
            self.slots[at] = u32::try_from(index + 1).expect("as before");
        }
    }
}

/// Explores everything that the scope allows, until something is wrong or `limit` states have been seen.
pub fn explore(scope: &Scope, limit: usize) -> Found {
    let begun = Instant::now();
    let (mut table, mut states, mut parents) = (Table::new(), Vec::new(), vec![0u32]);
    table.insert(&State::initial().pack(), &mut states);
    let (mut at, mut layer_end, mut depth, mut sights) = (0, 1, 0, 0);
    let mut next = Vec::new();
    let mut bad = None;
    'all: while at < states.len() && states.len() < limit {
        if at == layer_end {
            depth += 1;
            layer_end = states.len();
        }
        let state = State::unpack(&states[at]);
        successors(&state, scope, &mut next);
        for (_, after, wrong) in &next {
            if table.insert(&after.canonical().pack(), &mut states) {
                parents.push(u32::try_from(at).expect("as above"));
                sights |= after.sights();
                if let Some(wrong) = wrong {
                    bad = Some(*wrong);
                    break 'all;
                }
            }
        }
        at += 1;
    }
    let complete = bad.is_none() && at == states.len();
    let bad = bad.map(|wrong| (way(scope, &states, &parents), wrong));
    let depth = bad.as_ref().map_or(depth, |(way, _)| way.len());
    Found { states: states.len(), depth, took: begun.elapsed(), complete, bad, sights }
}

/// The way to the last state, with the devices' names kept from step to step: what was visited is the same up to
/// renaming the devices.
fn way(scope: &Scope, states: &[Packed], parents: &[u32]) -> Vec<(Step, State)> {
    let mut indexes = vec![states.len() - 1];
    while let Some(last) = indexes.last().copied().filter(|i| *i != 0) {
        indexes.push(parents[last] as usize);
    }
    let mut state = State::initial();
    let (mut way, mut next) = (Vec::new(), Vec::new());
    for index in indexes.into_iter().rev().skip(1) {
        successors(&state, scope, &mut next);
        let (step, after, _) = next
            .iter()
            .find(|(_, after, _)| after.canonical().pack() == states[index])
            .expect("it was found");
        state = *after;
        way.push((*step, state));
    }
    way
}
