//! Whose twin: a device's, or that of a module on a device.

use std::fmt;

use crate::id::DeviceId;

/// The name of a twin: a device, or a module of a device.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Target {
    /// The device.
    pub device: String,
    /// The module, if the twin is a module's.
    pub module: Option<String>,
}

impl Target {
    /// A device's twin.
    pub fn device(device: &str) -> Target {
        Target { device: device.to_owned(), module: None }
    }

    /// A module's twin.
    pub fn module(device: &str, module: &str) -> Target {
        Target { device: device.to_owned(), module: Some(module.to_owned()) }
    }
}

impl From<&DeviceId> for Target {
    fn from(device: &DeviceId) -> Target {
        Target::device(device.as_str())
    }
}

/// `device`, or `device/module`.
impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.module {
            None => f.write_str(&self.device),
            Some(module) => write!(f, "{}/{module}", self.device),
        }
    }
}
