//! One suite per door, run against each implementation of it.

#[cfg(feature = "emulator")]
mod check;
#[cfg(feature = "emulator")]
mod device_sdk;
#[cfg(feature = "emulator")]
mod edge;
#[cfg(feature = "emulator")]
mod edge_http;
#[cfg(feature = "emulator")]
mod edge_runtime;
#[cfg(feature = "emulator")]
mod entra;
#[cfg(feature = "emulator")]
mod entra_client;
#[cfg(feature = "emulator")]
mod fleet;
#[cfg(feature = "emulator")]
mod hostile_twins;
#[cfg(feature = "emulator")]
pub(super) mod http;
#[cfg(feature = "emulator")]
mod hub;
#[cfg(feature = "emulator")]
mod hub_rest;
#[cfg(feature = "emulator")]
mod hub_strangers;
#[cfg(feature = "emulator")]
mod hub_trouble;
#[cfg(feature = "emulator")]
mod mirror_over_rest;
#[cfg(feature = "emulator")]
mod module_link;
mod mqtt;
#[cfg(feature = "emulator")]
mod mqtt_client;
#[cfg(feature = "emulator")]
mod python_sdk;
