//! Consensus among the members of a site: what is committed, who may be elected, what a promise is worth.
//!
//! openraft 0.9 (the stable line) replicates the record. Everything timed is ours and openraft's own timers are off:
//! the lease is a promise answered from memory ([`vote_guard`]), elections are begun by `reconcile/candidacy.rs` through
//! [`Group::campaign`], handover is a stop receipt in the record. Only this room knows which consensus library it
//! is; only `log/` knows which store.
//!
//! First start: every member writes the same first log entry, made from the member list that all were given, so no
//! device is the seed. Why not openraft's `initialize()`: it campaigns at once, around the guard, also on a device that
//! comes an hour later than the others.
//!
//! # Ahead of the own disk
//!
//! In a takeover most time that is not waiting goes into durable writes, one after the other. So a candidate asks for
//! votes, and a leader sends its entries, while its own disk still writes (`log/ahead.rs`). Raft needs of a member's copy
//! that whoever counts it can rely on it, not that it is there before the others': an own vote or entry counts towards
//! a quorum only when it is durable, as openraft's conclusions wait until then. What a crash in between takes away is
//! a question to which no answer was used. The restarted member may vote for another in the term in which it asked: it led
//! nobody in that term. It may lack an entry that others hold: no quorum was counted with its copy, and nobody was told that
//! the entry is committed, so that entry stays or goes as Raft has it for any that a lost leader left behind. For the same
//! reason a restarted leader does not go on in its term, as openraft would let it: a new entry of it could get the name,
//! term and index, of another one that it has lost and others hold. It stands for election again, in a later term.
//!
//! # A lost store
//!
//! A device whose store is lost may have voted in this term and acknowledged what it has forgotten; counting on it as if
//! nothing had happened could elect two leaders. So **a later store is another Raft node** (`id.rs`): the old node never
//! speaks again, which Raft allows any node, and the new one joins by a change of the membership. What remains to be
//! argued is the lease, whose promises Raft knows nothing of:
//!
//! - A node whose store is known otherwise is refused everything (`peer/porter.rs`). Its number is pinned in memory
//!   when it is first shown, and noted in the membership by the leader soon after, so that a restart of whoever knew it
//!   does not make the forgetful one welcome.
//! - A device that a member tells of another store, and that has never used its own, *doubts*: it gives no votes and
//!   promises nothing ([`vote_guard`]). So two emptied devices do not become a majority that knows nothing, as long as one
//!   that knows better can be heard. It starts over as a later store only when so many others have said so that they are
//!   a majority without it: those can take it in. What an unused store has promised, from memory, is kept, for its node
//!   never votes any more; a used one is never thrown away.
//! - The leader exchanges old for new by a joint configuration (`reconcile/members.rs`), one device at a time. It has heard
//!   nothing from the old node for two refusal windows, of the widest timing that a promise which still counts may have been
//!   asked with, so no lease that can still run counts a promise of it: the
//!   promises come from a majority `m` of the `n` voters without it. Whoever is elected after the exchange has at least
//!   `m - 1` votes of the same `n - 1` nodes, and `m + (m - 1) > n - 1`: one of them promised, and refuses. From then on
//!   the argument of the map holds with the new voters; the next exchange begins a refusal window later, when no lease
//!   under the voters before can run any more.
//! - Two live devices of one name never replace each other for ever: a node that was heard lately is not replaced, and the
//!   one that loses has a used store, which it keeps; it stays out and is named.

mod attest;
mod campaign;
mod deference;
mod group;
pub mod log;
mod machine;
pub mod members;
pub mod peer;
mod role;
mod types;
pub mod vote_guard;
mod vouch;
mod widest;
mod wire;
mod words;

pub use campaign::{Campaign, Courtesy};
pub(crate) use group::Proposer;
pub use group::{Group, Parts, ProposeError, Question, Renewed};
pub use machine::Applied;
pub use role::Role;
pub use vouch::{Echo, Vouched};
