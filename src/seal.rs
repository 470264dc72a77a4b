//! The seal on an ownership, and the receipt that breaks it: how a dead sidecar's fencer proves that it has stopped.
//!
//! Whoever claims draws a secret and puts only its digest, the seal, into the claim. The secret goes to the fencer with
//! the start, and to nobody else. So who shows the secret of the present owner is that owner's fencer, and a fencer
//! shows it only after its sidecar was lost and nothing of the workload is left (`workload/receipt.rs`).
//!
//! This file knows the words and the one line of text. Who believes them is `raft/attest.rs`.

use std::fmt;

use ring::{
    digest,
    rand::{SecureRandom as _, SystemRandom},
};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::epoch::Epoch;

/// The first bytes of a receipt's line. HTTP/2 begins with another letter.
pub const MAGIC: &[u8] = b"QUORATE-STOPPED ";
/// The longest line of a receipt in bytes, without its end.
pub const LINE_MAX: usize = 128;

/// A number that only its owner and its owner's fencer know, until the fencer shows it. Never printed by `{:?}`.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Secret([u8; 32]);

/// The digest of a [`Secret`]: says nothing of it, and fits to no other.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Seal([u8; 32]);

impl Secret {
    /// A new one, from the system's random numbers.
    ///
    /// # Errors
    /// If the system has none.
    pub fn draw() -> Result<Secret, ring::error::Unspecified> {
        let mut bytes = [0; 32];
        SystemRandom::new().fill(&mut bytes).map(|()| Secret(bytes))
    }

    /// One made of these bytes.
    pub fn from_bytes(bytes: [u8; 32]) -> Secret {
        Secret(bytes)
    }

    /// Its bytes, for a message between members.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Its digest (SHA-256).
    pub fn seal(&self) -> Seal {
        let mut seal = [0; 32];
        seal.copy_from_slice(digest::digest(&digest::SHA256, &self.0).as_ref());
        Seal(seal)
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

impl fmt::Debug for Seal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Seal({})", hex(&self.0))
    }
}

fn hex(bytes: &[u8; 32]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

fn unhex(text: &str) -> Option<[u8; 32]> {
    let (mut bytes, text) = ([0; 32], text.as_bytes());
    if text.len() != 64 {
        return None;
    }
    for (byte, digits) in bytes.iter_mut().zip(text.chunks(2)) {
        let digit = |c: u8| char::from(c).to_digit(16).filter(|_| !c.is_ascii_uppercase());
        let (high, low) = (digit(*digits.first()?)?, digit(*digits.last()?)?);
        *byte = u8::try_from(high * 16 + low).ok()?;
    }
    Some(bytes)
}

macro_rules! as_hex {
    ($word:ident) => {
        impl $word {
            /// Reads 64 hexadecimal digits in lower case.
            pub fn parse(text: &str) -> Option<$word> {
                unhex(text).map($word)
            }

            /// The 64 digits that [`Self::parse`] reads.
            pub fn to_hex(&self) -> String {
                hex(&self.0)
            }
        }

        impl Serialize for $word {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(&self.to_hex())
            }
        }

        impl<'de> Deserialize<'de> for $word {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<$word, D::Error> {
                let text = String::deserialize(deserializer)?;
                $word::parse(&text).ok_or_else(|| de::Error::custom("not 64 hexadecimal digits"))
            }
        }
    };
}
as_hex!(Secret);
as_hex!(Seal);

/// A fencer's word that nothing of the workload runs under `epoch`, and nothing ever will.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Receipt {
    /// The ownership that ended.
    pub epoch: Epoch,
    /// What proves that its fencer says so.
    pub secret: Secret,
}

impl Receipt {
    /// The line that a fencer sends to the members of the site with this digest, without its end.
    pub fn line(&self, site: u64) -> String {
        let magic = String::from_utf8_lossy(MAGIC);
        format!("{magic}{site:016x} {} {}", self.epoch, self.secret.to_hex())
    }

    /// Reads such a line; `None` if it is not exactly one, or of another site.
    pub fn parse(line: &[u8], site: u64) -> Option<Receipt> {
        let text = std::str::from_utf8(line.strip_prefix(MAGIC)?).ok()?;
        let mut words = text.split(' ');
        let (digest, epoch, secret) = (words.next()?, words.next()?, words.next()?);
        let fits = words.next().is_none() && digest == format!("{site:016x}");
        let number = fits && epoch.bytes().all(|b| b.is_ascii_digit());
        let epoch = Epoch::new(number.then(|| epoch.parse().ok())??)?;
        Some(Receipt { epoch, secret: Secret::parse(secret)? })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_seal_fits_its_own_secret_only() {
        let (one, other) = (Secret::draw().expect("random"), Secret::draw().expect("random"));
        assert_eq!(one.seal(), Secret::from_bytes(one.0).seal());
        assert_ne!(one.seal(), other.seal());
        let zero = Secret::from_bytes([0; 32]).seal().to_hex();
        assert_eq!(zero, "66687aadf862bd776c8fc18b8e9f8e20089714856ee233b3902a591d0d5f2925");
        assert_eq!(format!("{one:?}"), "Secret(..)", "no log shows it");
    }

    #[test]
    fn a_receipt_is_for_its_own_site() {
        let receipt = Receipt { epoch: Epoch::MAX, secret: Secret::from_bytes([0xab; 32]) };
        let line = receipt.line(u64::MAX);
        assert!(line.len() <= LINE_MAX, "{}", line.len());
        assert_eq!(Receipt::parse(line.as_bytes(), u64::MAX), Some(receipt));
        assert_eq!(Receipt::parse(line.as_bytes(), 1), None);
    }

    proptest! {
        /// Any change to the line makes it another's or nobody's, never this one's.
        #[test]
        fn a_changed_line_is_not_the_same_receipt(at in 0usize..110, to in any::<u8>(), e in 0u64..1000) {
            let receipt = Receipt { epoch: Epoch::new(e).expect("small"), secret: Secret::from_bytes([7; 32]) };
            let mut line = receipt.line(5).into_bytes();
            let at = at % line.len();
            prop_assume!(line[at] != to);
            line[at] = to;
            prop_assert_ne!(Receipt::parse(&line, 5), Some(receipt));
        }

        #[test]
        fn whatever_is_said_is_read_or_refused(line in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = Receipt::parse(&line, 0);
        }
    }
}
