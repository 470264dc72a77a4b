//! Names of sites, devices and processes, as values that cannot be malformed.
//!
//! A [`DeviceId`] follows IoT Hub's rules for device identities, because the same name addresses the device's
//! twin. A [`NodeId`] is what Raft calls a member: one store of one device. For a device's first store it is a hash of the
//! device id alone, so that all members can write it down without having met; for every later one also of the store's
//! number, because whoever forgot what it voted is somebody new. No list order, address or restart changes it. An [`Incarnation`] is one life of one sidecar process; a restarted sidecar is somebody
//! new, which is what makes a stop receipt final.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Why a text is not a name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The text was empty.
    #[error("is empty")]
    Empty,
    /// The text was longer than the 128 characters that IoT Hub allows.
    #[error("is longer than 128 characters")]
    TooLong,
    /// The text held a character that IoT Hub does not allow in an identity.
    #[error("holds {0:?}; allowed are ASCII letters, digits and - . + % _ # * ? ! ( ) , = @ ; $ ' :")]
    BadCharacter(char),
}

fn check(text: &str) -> Result<(), Error> {
    if text.is_empty() {
        return Err(Error::Empty);
    }
    if text.chars().count() > 128 {
        return Err(Error::TooLong);
    }
    match text.chars().find(|c| !(c.is_ascii_alphanumeric() || "-.+%_#*?!(),=@;$':".contains(*c))) {
        Some(c) => Err(Error::BadCharacter(c)),
        None => Ok(()),
    }
}

macro_rules! name {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// Checks the text against IoT Hub's rules for identities (1 to 128 characters of a fixed set).
            ///
            /// # Errors
            /// [`Error`] names the first rule broken.
            pub fn new(text: impl Into<String>) -> Result<Self, Error> {
                let text = text.into();
                check(&text)?;
                Ok(Self(text))
            }

            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl TryFrom<String> for $name {
            type Error = Error;
            fn try_from(text: String) -> Result<Self, Error> {
                Self::new(text)
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> String {
                name.0
            }
        }

        impl std::str::FromStr for $name {
            type Err = Error;
            fn from_str(text: &str) -> Result<Self, Error> {
                Self::new(text)
            }
        }
    };
}

name! {
    /// The site: one group of devices that share one owner.
    SiteId
}
name! {
    /// One device of the site; the same text as its IoT Hub device identity.
    DeviceId
}

impl DeviceId {
    /// The number by which Raft knows this device with its first store.
    pub fn first_node(&self) -> NodeId {
        NodeId(fnv1a(self.0.as_bytes()))
    }

    /// The number by which Raft knows this device with a later store, whose number is `store`. No device id holds a
    /// slash, so it is no other device's first.
    pub fn later_node(&self, store: u64) -> NodeId {
        NodeId(fnv1a(format!("{}/{store:016x}", self.0).as_bytes()))
    }
}

/// A member's number inside the Raft group: the 64-bit FNV-1a hash of its device id and, but for its first store, of the
/// store's number.
///
/// `config/` refuses a member list in which two names share a number.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct NodeId(pub u64);

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// Which store of its device a member works with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StoreId {
    /// Drawn at random when the store was made.
    pub number: u64,
    /// Whether the device is known, or says itself, to have lost a store before this one.
    pub later: bool,
}

impl StoreId {
    /// The Raft node that `device` is with this store.
    pub fn node(self, device: &DeviceId) -> NodeId {
        if self.later { device.later_node(self.number) } else { device.first_node() }
    }
}

/// One life of one sidecar process: a random number drawn at its start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Incarnation(pub u64);

impl fmt::Display for Incarnation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// 64-bit FNV-1a (Fowler, Noll, Vo; draft-eastlake-fnv). Stable across builds, which `std`'s hasher is not.
pub fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_follow_the_hub_rules() {
        assert!(DeviceId::new("edge-1").is_ok());
        assert_eq!(DeviceId::new(""), Err(Error::Empty));
        assert_eq!(DeviceId::new("a b"), Err(Error::BadCharacter(' ')));
        assert_eq!(DeviceId::new("é"), Err(Error::BadCharacter('é')));
        assert_eq!(DeviceId::new("x".repeat(129)), Err(Error::TooLong));
    }

    #[test]
    fn node_ids_never_change() {
        let device = DeviceId::new("a").expect("a name");
        assert_eq!(device.first_node(), NodeId(0xaf63_dc4c_8601_ec8c));
        assert_eq!(device.later_node(7), NodeId(fnv1a(b"a/0000000000000007")));
        assert_ne!(device.later_node(7), device.later_node(8));
        assert_eq!(fnv1a(b""), 0xcbf2_9ce4_8422_2325);
        assert_eq!(fnv1a(b"a"), 0xaf63_dc4c_8601_ec8c);
    }
}
