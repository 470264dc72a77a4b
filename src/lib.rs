#![doc = include_str!("README.md")]

// Floor 0: words.
pub mod clock;
pub mod condition;
pub mod epoch;
pub mod id;
pub mod timing;

// Floor 1: decisions.
pub mod ownership;

// Floor 2: doors.
pub mod hub;
pub mod workload;

// Floor 3: loops.
pub mod reconcile;

// Floor 4: faces.
#[cfg(feature = "emulator")]
pub mod emulator;
