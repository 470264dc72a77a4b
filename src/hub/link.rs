//! A module's own link to the hub: its twin, the calls that reach it, the messages it sends and is sent.
//!
//! One link per identity: whoever connects anew ends the link before. Nothing on it is a heartbeat, and nothing on site waits for
//! it. A link never decides what to say; it tells apart only what the hub has taken from what nobody knows.

use std::sync::Arc;

use serde_json::Value;
use tokio::sync::mpsc;

use super::{BoxFuture, Error, Target, twin::Properties};

/// A module's line to the hub, or to the edgeHub of its device: connects, again and again, as its user asks.
pub trait Module: Send + Sync + 'static {
    /// Where it connects to, to show.
    fn name(&self) -> &str;

    /// Whose twin it is.
    fn target(&self) -> &Target;

    /// Whether an edgeHub is between: what it takes it has stored, and whether the cloud has it is not known.
    fn stores_and_forwards(&self) -> bool;

    /// Whether anything answers where it connects to; far cheaper than a connection, and not counted by the hub.
    ///
    /// # Errors
    /// [`Error::Unreachable`] or [`Error::TimedOut`].
    fn knock(&self) -> BoxFuture<'_, Result<(), Error>>;

    /// Connects once and subscribes. What was pushed while nobody was connected is lost, so read the twin next.
    ///
    /// Dropping the future gives the attempt up.
    ///
    /// # Errors
    /// [`Error`]; it knows its condition and whether and when to try again.
    fn connect(&self) -> BoxFuture<'_, Result<Connected, Error>>;
}

/// A link that stands.
pub struct Connected {
    /// For what is asked and said. When the last clone is dropped, the link ends in good order.
    pub link: Handle,
    /// What comes in, oldest first. Bounded: a link whose events are not taken ends, rather than that memory grows.
    pub events: mpsc::Receiver<Event>,
    /// The link's own work: nothing moves unless it is polled, so that whoever has the link decides in which task. Ends
    /// when the link ends: without an error when it was dropped, or when its token is about to expire and it is time to
    /// connect anew. Dropping it cuts the link at once.
    pub runs: BoxFuture<'static, Result<(), Error>>,
}

/// A link that several may use at once.
pub type Handle = Arc<dyn Link>;

/// One link. Every call ends within the implementation's own deadline; after an error the link is to be dropped.
pub trait Link: Send + Sync {
    /// Reads the module's own twin.
    ///
    /// # Errors
    /// [`Error`].
    fn get_twin(&self) -> BoxFuture<'_, Result<OwnTwin, Error>>;

    /// Merges `patch` into the reported properties; `null` deletes. Returns their new version, which an edgeHub does not
    /// tell.
    ///
    /// # Errors
    /// [`Error`]. After [`Error::TimedOut`] and [`Error::Unreachable`] the change may have been applied.
    fn report<'a>(&'a self, patch: &'a Properties) -> BoxFuture<'a, Result<Option<u64>, Error>>;

    /// Answers a [`Event::Call`].
    ///
    /// # Errors
    /// [`Error`].
    fn answer<'a>(
        &'a self,
        call: &'a str,
        status: u16,
        payload: &'a Value,
    ) -> BoxFuture<'a, Result<(), Error>>;

    /// Sends a message to one of the module's outputs, and returns once it is taken.
    ///
    /// # Errors
    /// [`Error`].
    fn send<'a>(&'a self, output: &'a str, message: &'a Message) -> BoxFuture<'a, Result<(), Error>>;

    /// Says that an [`Event::Input`] is dealt with, so that it is not sent again.
    ///
    /// # Errors
    /// [`Error`].
    fn settle(&self, input: u64) -> BoxFuture<'_, Result<(), Error>>;
}

/// What a module sees of its own twin. Tags are the cloud's alone.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct OwnTwin {
    /// What the cloud wants.
    pub desired: Properties,
    /// Which version of it.
    pub desired_version: u64,
    /// What the module has reported.
    pub reported: Properties,
    /// Which version of it.
    pub reported_version: u64,
}

/// A message of telemetry.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Message {
    /// The application's properties, names as they are.
    pub properties: Vec<(String, String)>,
    /// The system's properties by their short names: `$.ct`, `$.ce`, `$.mid`, `$.cid` and so on.
    pub system: Vec<(String, String)>,
    /// The message itself.
    pub body: bytes::Bytes,
}

/// What comes in on a link.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// The desired properties have changed by this patch and have this version now.
    Desired {
        /// `null` means gone.
        patch: Properties,
        /// Read the twin if it is not one more than the version before.
        version: u64,
    },
    /// A direct method is called; answer it under its id.
    Call {
        /// The id of this call, the hub's own.
        id: String,
        /// The method's name.
        method: String,
        /// What was sent along; `null` if it is not JSON.
        payload: Value,
    },
    /// A message was routed to one of the module's inputs; settle it under its number.
    Input {
        /// Unique on this link.
        number: u64,
        /// The input's name.
        input: String,
        /// The message.
        message: Message,
    },
}

/// A direct method, and the link to answer it on.
pub struct Call {
    /// The link.
    pub link: Handle,
    /// The id to answer under.
    pub id: String,
    /// Which method.
    pub method: String,
    /// What was sent along.
    pub payload: Value,
}

/// A message for an input, and the link to settle it on.
pub struct Input {
    /// The link.
    pub link: Handle,
    /// The number to settle.
    pub number: u64,
    /// Which input.
    pub input: String,
    /// The message.
    pub message: Message,
}
