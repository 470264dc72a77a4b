//! One suite per door, run against each implementation of it.

#[cfg(feature = "emulator")]
mod hub;
#[cfg(feature = "emulator")]
mod hub_strangers;
#[cfg(feature = "emulator")]
mod mirror_over_rest;
#[cfg(feature = "emulator")]
mod python_sdk;
