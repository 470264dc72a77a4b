//! Consensus among the members of a site: what is committed, who may be elected, what a promise is worth.
//!
//! openraft 0.9 (the stable line) replicates the record. Everything timed is ours and openraft's own timers are off:
//! the lease is a promise answered from memory ([`vote_guard`]), elections are begun by `reconcile/candidacy.rs` through
//! [`group::Group::campaign`], handover is a stop receipt in the record. Only this room knows which consensus library it
//! is; only `log/` knows which store.
//!
//! First start: every member writes the same first log entry, made from the member list that all were given, so no
//! device is the seed. Why not openraft's `initialize()`: it campaigns at once, around the guard, also on a device that
//! comes an hour later than the others.

mod deference;
mod group;
pub mod log;
mod machine;
pub mod peer;
mod types;
pub mod vote_guard;
mod vouch;
mod wire;

pub(crate) use group::Proposer;
pub use group::{Campaign, Group, Parts, ProposeError, Question, Renewed, Role};
pub use machine::Applied;
pub use vouch::Vouched;
