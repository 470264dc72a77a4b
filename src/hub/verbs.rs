//! What the cloud may ask of a site, verb by verb.
//!
//! Whoever holds a hub's service rights can call any method of any module, so a site says for itself what it takes from
//! there. Without a word of it only questions are answered. What a verb does is not known here.

use std::{collections::BTreeSet, fmt, str::FromStr};

/// Something that the cloud may ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Verb {
    /// What this sidecar knows about its site.
    Status,
    /// The last decision and the last ownerships.
    Why,
    /// A planned handover.
    Transfer,
    /// Nobody takes over of its own accord any more.
    Pause,
    /// Everybody may take over again.
    Resume,
    /// A device shall not own.
    Drain,
    /// It may again.
    Undrain,
    /// A device comes first where one is chosen.
    Prefer,
    /// The timing gets no narrower than this.
    Timing,
}

impl Verb {
    /// All of them.
    pub const ALL: [Verb; 9] = [
        Verb::Status,
        Verb::Why,
        Verb::Transfer,
        Verb::Pause,
        Verb::Resume,
        Verb::Drain,
        Verb::Undrain,
        Verb::Prefer,
        Verb::Timing,
    ];

    /// The name in `hub.commands`, of the direct method, and in the twin.
    pub fn name(self) -> &'static str {
        match self {
            Verb::Status => "status",
            Verb::Why => "why",
            Verb::Transfer => "transfer",
            Verb::Pause => "pause",
            Verb::Resume => "resume",
            Verb::Drain => "drain",
            Verb::Undrain => "undrain",
            Verb::Prefer => "prefer",
            Verb::Timing => "timing",
        }
    }

    /// Whether it only asks and changes nothing.
    pub fn asks(self) -> bool {
        matches!(self, Verb::Status | Verb::Why)
    }
}

impl fmt::Display for Verb {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The text is no verb.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("is none of status, why, transfer, pause, resume, drain, undrain, prefer and timing")]
pub struct NoVerb;

impl FromStr for Verb {
    type Err = NoVerb;

    fn from_str(text: &str) -> Result<Verb, NoVerb> {
        Verb::ALL.into_iter().find(|verb| verb.name() == text).ok_or(NoVerb)
    }
}

/// The verbs that a site takes from the cloud.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Allowed(BTreeSet<Verb>);

impl Default for Allowed {
    /// Questions only.
    fn default() -> Allowed {
        Allowed(Verb::ALL.into_iter().filter(|verb| verb.asks()).collect())
    }
}

impl Allowed {
    /// Reads `hub.commands`: verbs, or one word, `all` or `none`.
    ///
    /// # Errors
    /// [`NoVerb`] if one of the texts is none.
    pub fn read(texts: &[impl AsRef<str>]) -> Result<Allowed, NoVerb> {
        match texts {
            [word] if word.as_ref() == "all" => Ok(Allowed(Verb::ALL.into())),
            [word] if word.as_ref() == "none" => Ok(Allowed(BTreeSet::new())),
            verbs => verbs.iter().map(|verb| verb.as_ref().parse()).collect::<Result<_, _>>().map(Allowed),
        }
    }

    /// Whether the cloud may ask for it.
    pub fn allows(&self, verb: Verb) -> bool {
        self.0.contains(&verb)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_named_is_allowed() {
        let allowed = |texts: &[&str]| {
            let allowed = Allowed::read(texts)?;
            Ok(Verb::ALL.into_iter().filter(|verb| allowed.allows(*verb)).map(Verb::name).collect::<Vec<_>>())
        };
        assert_eq!(allowed(&["drain", "status", "drain"]), Ok(vec!["status", "drain"]));
        assert_eq!(allowed(&["all"]).map(|verbs| verbs.len()), Ok(9));
        assert_eq!(allowed(&["none"]), Ok(vec![]));
        assert_eq!(allowed(&[]), Ok(vec![]));
        for texts in [&["all", "pause"][..], &["none", "pause"], &["Pause"], &["*"], &[""]] {
            assert_eq!(allowed(texts), Err(NoVerb), "{texts:?}");
        }
        assert_eq!(Allowed::read(&["status", "why"]), Ok(Allowed::default()));
    }

    #[test]
    fn every_verb_reads_its_own_name() {
        for verb in Verb::ALL {
            assert_eq!(verb.name().parse(), Ok(verb));
        }
    }
}
