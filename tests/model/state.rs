//! One moment of the modelled site, small enough to keep millions of them.
//!
//! Times are ticks from now, ballots are ranks among those that still matter, and epochs have one owner each, so the same
//! situation later, in a higher term, or with the devices' names exchanged is the same state.

use std::fmt;

use crate::{guard::Seen, product::Owned};

/// A state in four words, exactly.
pub type Packed = [u64; 4];

/// Where a device stands in the group.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Role {
    /// It follows.
    #[default]
    Follower,
    /// It has asked for votes.
    Candidate,
    /// Another has voted for it, and the answer is under way.
    Elected,
    /// It leads.
    Leader,
}

/// A claim that was proposed and may still be committed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Proposed {
    /// None.
    #[default]
    Nothing,
    /// By the present life of the sidecar.
    Now,
    /// By an earlier life.
    Before,
}

/// One device.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Node {
    /// What Raft voted for last, which survives a restart: a rank.
    pub ballot: u8,
    /// The highest ballot that its guard has seen: a rank, not below `ballot`.
    pub highest: u8,
    /// Its role.
    pub role: Role,
    /// Its guard.
    pub guard: Seen,
    /// The ballot that it is deciding a vote for; [`OWN`] for its own candidacy.
    pub voting: u8,
    /// Up to which record it has the log: twice the epoch, less one until its receipt.
    pub key: u8,
    /// It must not run its present epoch again.
    pub burned: bool,
    /// The ages of the newest questions that each member promised for, from 1; 0 is none.
    pub lease: [u8; 3],
    /// For how many ticks its workload runs, this one included.
    pub runs: u8,
    /// Under which epoch.
    pub runs_under: u8,
    /// Its claim under way.
    pub claim: Proposed,
    /// It has proposed a receipt for the newest ownership, which is its.
    pub receipt: bool,
    /// It knows the site to be paused.
    pub paused: bool,
}

/// [`Node::voting`]: for itself.
pub const OWN: u8 = 15;

/// A renewal under way.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Message {
    /// The ballot of who asked: a rank.
    pub ballot: u8,
    /// The epoch asked for; 0 marks a free slot.
    pub epoch: u8,
    /// Ticks since it was asked, at most [`crate::product::STALE`].
    pub age: u8,
    /// Whether this is the promise, on its way back.
    pub answer: bool,
    /// Who asked.
    pub from: u8,
    /// Who was asked.
    pub to: u8,
}

/// The site.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct State {
    /// The devices.
    pub nodes: [Node; 3],
    /// Renewals under way.
    pub messages: [Message; 3],
    /// Who claimed epochs 1 to 3, and whether in the present life of its sidecar. 3: nobody, or of no matter any more.
    pub claimed: [(u8, bool); 3],
    /// Whether epochs 1 to 3 ended by receipt.
    pub released: [bool; 3],
    /// The newest committed record, as [`Node::key`].
    pub top: u8,
    /// The newest epoch that a workload was started under.
    pub started: u8,
    /// Which epochs' fencers have given a receipt: bits 1 to 3.
    pub attested: u8,
    /// 0: never paused; 1: paused; 2: resumed.
    pub pause: u8,
}

/// Writes fields into words, lowest bits first.
struct Bits(u64, u32);

impl Bits {
    fn put(&mut self, value: u8, width: u32) {
        self.0 |= u64::from(value) << self.1;
        self.1 += width;
    }
    fn take(&mut self, width: u32) -> u8 {
        let value = self.0 & ((1 << width) - 1);
        self.0 >>= width;
        value as u8
    }
}

impl Node {
    fn pack(&self) -> u64 {
        let mut bits = Bits(u64::from(self.guard.pack()), 12);
        bits.put(self.ballot, 4);
        bits.put(self.highest, 4);
        bits.put(self.role as u8, 2);
        bits.put(self.voting, 4);
        bits.put(self.key, 3);
        bits.put(u8::from(self.burned), 1);
        bits.put(self.runs, 3);
        bits.put(self.runs_under, 2);
        bits.put(self.claim as u8, 2);
        bits.put(u8::from(self.receipt), 1);
        bits.put(u8::from(self.paused), 1);
        bits.put(self.lease[0] | self.lease[1] << 2 | self.lease[2] << 4, 6);
        bits.0
    }

    fn unpack(word: u64) -> Node {
        let mut bits = Bits(word >> 12, 0);
        Node {
            guard: Seen::unpack((word & 0xfff) as u16),
            ballot: bits.take(4),
            highest: bits.take(4),
            role: [Role::Follower, Role::Candidate, Role::Elected, Role::Leader][usize::from(bits.take(2))],
            voting: bits.take(4),
            key: bits.take(3),
            burned: bits.take(1) == 1,
            runs: bits.take(3),
            runs_under: bits.take(2),
            claim: [Proposed::Nothing, Proposed::Now, Proposed::Before][usize::from(bits.take(2))],
            receipt: bits.take(1) == 1,
            paused: bits.take(1) == 1,
            lease: [bits.take(2), bits.take(2), bits.take(2)],
        }
    }
}

const ORDERS: [[usize; 3]; 6] = [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]];

impl State {
    /// Three settled devices, and nobody has ever owned.
    pub fn initial() -> State {
        State { claimed: [(3, false); 3], ..State::default() }
    }

    /// In four words.
    pub fn pack(&self) -> Packed {
        let mut bits = Bits(0, 0);
        for message in &self.messages {
            bits.put(message.ballot, 4);
            bits.put(message.epoch, 2);
            bits.put(message.age, 2);
            bits.put(u8::from(message.answer), 1);
            bits.put(message.from, 2);
            bits.put(message.to, 2);
        }
        for epoch in 0..3 {
            bits.put(self.claimed[epoch].0, 2);
            bits.put(u8::from(self.claimed[epoch].1), 1);
            bits.put(u8::from(self.released[epoch]), 1);
        }
        bits.put(self.top, 3);
        bits.put(self.started, 2);
        bits.put(self.attested >> 1, 3);
        bits.put(self.pause, 2);
        [self.nodes[0].pack(), self.nodes[1].pack(), self.nodes[2].pack(), bits.0]
    }

    /// The reverse of [`State::pack`].
    pub fn unpack(words: &Packed) -> State {
        let mut bits = Bits(words[3], 0);
        let mut state = State::default();
        for message in &mut state.messages {
            *message = Message {
                ballot: bits.take(4),
                epoch: bits.take(2),
                age: bits.take(2),
                answer: bits.take(1) == 1,
                from: bits.take(2),
                to: bits.take(2),
            };
        }
        for epoch in 0..3 {
            state.claimed[epoch] = (bits.take(2), bits.take(1) == 1);
            state.released[epoch] = bits.take(1) == 1;
        }
        state.top = bits.take(3);
        state.started = bits.take(2);
        state.attested = bits.take(3) << 1;
        state.pause = bits.take(2);
        for (node, word) in state.nodes.iter_mut().zip(words) {
            *node = Node::unpack(*word);
        }
        state
    }

    /// The record that this key stands for.
    pub fn owned(&self, key: u8) -> Owned {
        let epoch = key.div_ceil(2);
        let owner = if key % 2 == 1 {
            let (node, present) = self.claimed[usize::from(epoch - 1)];
            (node < 3).then_some((usize::from(node), present))
        } else {
            None
        };
        Owned { epoch, owner, paused: false }
    }

    /// The epoch that this device owns in its present life, as far as it knows; 0 if none.
    pub fn owns(&self, node: usize) -> u8 {
        let owned = self.owned(self.nodes[node].key);
        if owned.owner == Some((node, true)) { owned.epoch } else { 0 }
    }

    /// The same site with its devices in an order that does not depend on their names.
    pub fn canonical(&self) -> State {
        let sign = |node: usize| {
            let plain = Node { lease: [0; 3], ..self.nodes[node] }.pack();
            let mut claims = 0;
            for (claimer, _) in self.claimed {
                claims = claims << 1 | u64::from(usize::from(claimer) == node);
            }
            plain << 3 | claims
        };
        let signs = [sign(0), sign(1), sign(2)];
        let mut best: Option<(Packed, State)> = None;
        for order in &ORDERS {
            if signs[order[0]] <= signs[order[1]] && signs[order[1]] <= signs[order[2]] {
                let state = self.reordered(order);
                let packed = state.pack();
                if best.as_ref().is_none_or(|(least, _)| packed < *least) {
                    best = Some((packed, state));
                }
            }
        }
        best.expect("some order is ascending").1
    }

    /// Puts device `order[i]` in place `i`.
    fn reordered(&self, order: &[usize; 3]) -> State {
        let mut place = [0u8; 4];
        for (at, node) in order.iter().enumerate() {
            place[*node] = at as u8;
        }
        place[3] = 3;
        let mut state = *self;
        for (at, node) in order.iter().enumerate() {
            state.nodes[at] = self.nodes[*node];
            for (age, to) in self.nodes[*node].lease.iter().zip(place) {
                state.nodes[at].lease[usize::from(to)] = *age;
            }
        }
        for epoch in 0..3 {
            state.claimed[epoch].0 = place[usize::from(self.claimed[epoch].0)];
        }
        for message in state.messages.iter_mut().filter(|m| m.epoch > 0) {
            message.from = place[usize::from(message.from)];
            message.to = place[usize::from(message.to)];
        }
        state.sort_messages();
        state
    }

    /// What can be seen in this state that the model would prove nothing without.
    pub fn sights(&self) -> u32 {
        let mut sights = 0;
        for node in &self.nodes {
            if node.runs == 0 {
                continue;
            }
            sights |= 1 << node.runs_under;
            let before = usize::from(node.runs_under).saturating_sub(2);
            if node.runs_under > 1 && self.released[before] {
                sights |= 1 << 4;
            }
            if self.attested & 1 << (node.runs_under - 1) & !1 != 0 {
                sights |= 1 << 5;
            }
            if self.pause == 1 {
                sights |= 1 << 6;
            }
        }
        sights
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, n) in self.nodes.iter().enumerate() {
            write!(f, "    {name}: ballot {} seen {} {:?} log {}", n.ballot, n.highest, n.role, n.key)?;
            let g = n.guard;
            if g.boot > 0 {
                write!(f, ", booting {}", g.boot)?;
            }
            if g.left > 0 {
                write!(f, ", promised epoch {} for {}", g.epoch, g.boot + g.left)?;
            }
            if g.lifted > 0 {
                write!(f, ", lifted {}", g.lifted)?;
            }
            if n.runs > 0 {
                write!(f, ", RUNS epoch {} for {}", n.runs_under, n.runs - 1)?;
            }
            if n.burned {
                write!(f, ", burned")?;
            }
            writeln!(f)?;
        }
        Ok(())
    }
}
