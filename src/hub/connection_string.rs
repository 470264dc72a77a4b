//! Connection strings as the Azure portal shows them: `HostName=…;SharedAccessKey=…` and so on, in any order.
//!
//! Whoever pastes one is told what is wrong with it, and the text itself is never quoted: it holds a key.

use base64::{Engine, engine::general_purpose::STANDARD};
use ring::hmac;

/// Why a text is not the connection string that is needed. Never quotes the text.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// A part without which it is none.
    #[error("has no {0}")]
    Missing(&'static str),
    /// A part that is there twice.
    #[error("names {0} twice")]
    Twice(&'static str),
    /// The key is not base64.
    #[error("holds a SharedAccessKey that is not base64")]
    Key,
    /// A host is not a host name, with or without a port.
    #[error("holds a {0} that is not a host name")]
    Host(&'static str),
    /// It belongs to a device or module; a service policy's is needed.
    #[error("is a device's (it names a DeviceId); the service policy's is needed")]
    DeviceScoped,
    /// It belongs to a shared access policy.
    #[error("is a service policy's (it names a SharedAccessKeyName); a module's is needed")]
    Policy,
}

/// The parts of a text that are asked for.
pub(super) struct Parts<const N: usize>([(&'static str, Option<String>); N]);

impl<const N: usize> Parts<N> {
    /// Takes the text apart. Names count in any case, space around parts and the text does not (files end with a newline), parts
    /// with other names are ignored, and those `foreign` to this kind of string refuse it.
    ///
    /// # Errors
    /// [`Malformed`]: a part is there twice, or a foreign one.
    pub(super) fn of(
        text: &str,
        names: [&'static str; N],
        foreign: &[(&str, Malformed)],
    ) -> Result<Parts<N>, Malformed> {
        let mut parts = names.map(|name| (name, None));
        for part in text.trim().split(';') {
            let Some((name, value)) = part.split_once('=') else { continue };
            let name = name.trim();
            if let Some((_, why)) = foreign.iter().find(|(other, _)| name.eq_ignore_ascii_case(other)) {
                return Err(why.clone());
            }
            let Some(slot) = parts.iter_mut().find(|(known, _)| name.eq_ignore_ascii_case(known)) else {
                continue;
            };
            if slot.1.replace(value.trim().to_owned()).is_some() {
                return Err(Malformed::Twice(slot.0));
            }
        }
        Ok(Parts(parts))
    }

    /// A part that may be missing. An empty one counts as missing.
    pub(super) fn optional(&mut self, name: &'static str) -> Option<String> {
        let slot = self.0.iter_mut().find(|(known, _)| *known == name)?;
        slot.1.take().filter(|value| !value.is_empty())
    }

    /// # Errors
    /// [`Malformed::Missing`].
    pub(super) fn required(&mut self, name: &'static str) -> Result<String, Malformed> {
        self.optional(name).ok_or(Malformed::Missing(name))
    }

    /// # Errors
    /// [`Malformed::Missing`] or [`Malformed::Key`].
    pub(super) fn key(&mut self) -> Result<hmac::Key, Malformed> {
        let key = STANDARD.decode(self.required("SharedAccessKey")?).map_err(|_| Malformed::Key)?;
        if key.is_empty() {
            return Err(Malformed::Key);
        }
        Ok(hmac::Key::new(hmac::HMAC_SHA256, &key))
    }
}

/// # Errors
/// [`Malformed::Host`] with this name.
pub(super) fn host(text: String, name: &'static str) -> Result<String, Malformed> {
    if is_host(&text) { Ok(text) } else { Err(Malformed::Host(name)) }
}

/// A host name or address, with or without a port.
pub(super) fn is_host(text: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || ".-:[]_".contains(c);
    !text.is_empty() && text.chars().all(plain) && text.parse::<http::uri::Authority>().is_ok()
}
