#![doc = include_str!("README.md")]

// Floor 0: words.
pub mod clock;
pub mod condition;
pub mod dice;
pub mod epoch;
pub mod id;
pub mod seal;
pub mod site;
pub mod timing;

// Floor 1: decisions.
pub mod ownership;

// Floor 2: doors.
pub mod hub;
pub mod probe;
pub mod raft;
pub mod workload;

// Floor 3: loops.
pub mod reconcile;

// Floor 4: faces.
pub mod config;
pub mod control;
#[cfg(feature = "emulator")]
pub mod emulator;
pub mod status;

// Floor 5: assembly.
pub mod cli;
pub mod node;
