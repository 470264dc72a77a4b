//! Who may act: the safety argument, in pure functions.
//!
//! Four words for four facts, never mixed: `leader` is a Raft role, a rumour that may be stale; `owner` is a committed
//! fact `(device, epoch)` in the [`record::Record`]; the [`lease::Lease`] is permission to act until a moment;
//! `running` is what was observed of the workload. The workload runs only where all four agree, and
//! [`decide::decide`] is the one place that compares them.
//!
//! Why two workloads never overlap:
//! 1. An owner acts only until `asked + hold`, where `asked` is read *before* a quorum was asked ([`lease`]).
//! 2. Each member of that quorum promised, after `asked`, to vote for nobody during `refusal`.
//! 3. A rival needs votes from a quorum, and two quorums share a member, so the rival is elected only after that
//!    member's promise ended, or after a committed stop receipt for exactly the promised epoch lifted it.
//! 4. `(hold + stop_grace) * (1 + drift) < refusal` ([`crate::timing::Timing`]), so by then the old workload is gone.
//! 5. Winning starts nothing. A committed claim of this very process does, under a lease of its own.
//!
//! This room uses nothing but `std` and `serde`, so that every rule can be tested without a runtime. It deliberately
//! does not know Raft, disks, sockets or the hub.

pub mod command;
pub mod decide;
pub mod lease;
pub mod moves;
pub mod pace;
pub mod probe;
pub mod record;
pub mod told;
pub mod view;
pub mod vitals;
