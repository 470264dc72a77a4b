//! Stands at the door of the member port: who does not belong here is refused before anything of its message is read.
//!
//! A caller must belong to this site, mean this very device, have been given the same members and timing, and come with
//! the store that it was known by. It is not asked to prove any of it: peers must be trusted until they are authenticated.

use std::sync::{Arc, atomic::Ordering};

use tonic::{Request, Status, service::Interceptor};

use super::{Roster, transport};
use crate::{
    id::{DeviceId, NodeId},
    timing::Timing,
};

/// What a caller says of itself is cut to this many bytes; names have at most 128.
const NAME_MAX: usize = 129;
const ANOTHER_STORE: &str =
    "came back with another store, so what it voted and promised is lost; see 'A damaged store'";
const REPLACED_STORE: &str = "came back with a store that was replaced by a newer one, such as an old copy of its data folder; \
                              empty that folder and start it again";
/// Where a refusal says which store of the caller's device is known here.
pub(super) const KNOWN_STORE: &str = "quorate-known-store";

/// Which member is calling.
#[derive(Debug, Clone, Copy)]
struct Caller(NodeId);

/// Which member has sent this, as the porter has noted.
///
/// # Errors
/// Nobody stood at the door.
pub(super) fn caller<T>(request: &Request<T>) -> Result<NodeId, Status> {
    let admitted = request.extensions().get::<Caller>();
    admitted.map(|caller| caller.0).ok_or_else(|| Status::internal("nobody looked at who is calling"))
}

/// Stands at the door.
#[derive(Clone)]
pub(crate) struct Porter(Arc<Roster>);

impl Interceptor for Porter {
    /// Lets a member in, and notes which one it is.
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        let node = self.recognise(&request)?;
        if let Some(from) = request.extensions().get::<transport::From>() {
            from.recognised.store(true, Ordering::Relaxed);
        }
        request.extensions_mut().insert(Caller(node));
        Ok(request)
    }
}

impl Porter {
    /// A porter who knows what the roster knows.
    pub(super) fn new(roster: Arc<Roster>) -> Porter {
        Porter(roster)
    }

    /// Checks that the caller belongs here, and says which member it is.
    fn recognise(&self, request: &Request<()>) -> Result<NodeId, Status> {
        let roster = &self.0;
        let said = |key| {
            let text = request.metadata().get(key).and_then(|v| v.to_str().ok()).unwrap_or_default();
            // Whatever it is, it is kept and shown: no name is longer.
            text.get(..NAME_MAX).unwrap_or(text)
        };
        let (site, device, digest) = (said("quorate-site"), said("quorate-device"), said("quorate-digest"));
        let own = &roster.site;
        let known = DeviceId::new(device).ok().filter(|d| own.member(d).is_some());
        let mut another_store = None;
        let reason = match known {
            _ if site.is_empty() && device.is_empty() => {
                "it does not introduce itself as a sidecar".to_owned()
            }
            _ if site != own.id.as_str() => format!("it belongs to site {site:?}, this is site {}", own.id),
            None => format!("{device:?} is not in the member list of this site"),
            Some(_) if device == roster.me.as_str() => {
                format!("it calls itself {device}, which is this device")
            }
            Some(_) if digest != format!("{:016x}", own.digest()) => {
                let there = request.metadata().get("quorate-timing").and_then(|v| v.to_str().ok());
                let differences = there
                    .and_then(|json| serde_json::from_str::<Timing>(json).ok())
                    .map(|there| own.timing.differences(&there))
                    .unwrap_or_default();
                match differences.is_empty() {
                    true => format!("{device} was given another member list or other timing"),
                    false => format!("{device} was given other timing: {}", differences.join(", ")),
                }
            }
            Some(_) if !["", roster.me.as_str()].contains(&said("quorate-to-device")) => format!(
                "{device} takes this device, {}, for {}: device.id is wrong here, or an address in its site.members",
                roster.me,
                said("quorate-to-device"),
            ),
            Some(known) => match self.stores_fit(&known, &said) {
                Ok(node) => {
                    roster.heard(node, &known, None);
                    return Ok(node);
                }
                Err((reason, another)) => {
                    another_store = another;
                    format!("{device} {reason}")
                }
            },
        };
        let from = request.extensions().get::<transport::From>().map_or("unknown", |f| f.address.as_str());
        roster.refused(device, from, reason.clone());
        let mut status = Status::failed_precondition(format!("refused by {}: {reason}", roster.me));
        if let Some(known) = another_store.and_then(|store| format!("{store:016x}").parse().ok()) {
            status.metadata_mut().insert(KNOWN_STORE, known);
        }
        Err(status)
    }

    /// Which node the caller is, if it still has the store that it had, and means the store that this member has. A
    /// member of another version may leave any of it out.
    ///
    /// # Errors
    /// Why not, and the store that is known instead of the caller's.
    fn stores_fit<'a>(
        &self,
        device: &DeviceId,
        said: &impl Fn(&'static str) -> &'a str,
    ) -> Result<NodeId, (&'static str, Option<u64>)> {
        let number = |key| u64::from_str_radix(said(key), 16).ok();
        let its = number("quorate-store");
        let node = number("quorate-node").map_or(device.first_node(), NodeId);
        if node != device.first_node() && its.is_none_or(|store| node != device.later_node(store)) {
            return Err(("names a node that is none of its own", None));
        }
        // A device whose later store is a member never comes back as its first.
        let members = self.0.members();
        let instead = members.voter_of(device).filter(|_| !members.nodes.contains_key(&node));
        if let Some(voter) = instead.filter(|_| node == device.first_node()) {
            let store = members.nodes.get(&voter).and_then(|n| n.store);
            return Err((REPLACED_STORE, Some(store.unwrap_or_default())));
        }
        let known = self.0.known_store(node, its);
        if its.is_some() && known != its {
            return Err((ANOTHER_STORE, known));
        }
        let other_node = number("quorate-to-node").is_some_and(|to| to != self.0.node.0);
        let other_store = number("quorate-to-store").is_some_and(|to| to != self.0.store.number);
        if other_node || other_store {
            return Err(("knows another store of this device, whose data folder was replaced", None));
        }
        Ok(node)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        clock::BootClock,
        id::{Incarnation, SiteId, StoreId},
        site::{Member, Role, Site},
        timing::{Settings, Timing},
    };

    /// The door of edge-2, whose store is number 2, in a site of three.
    fn porter() -> Porter {
        let name = |n: u8| DeviceId::new(format!("edge-{n}")).expect("a name");
        let member =
            |n: u8| Member { device: name(n), address: format!("10.0.0.{n}:7600"), role: Role::Voter };
        let site = Site {
            id: SiteId::new("plant-7").expect("a name"),
            members: vec![member(1), member(2), member(3)],
            timing: Timing::new(&Settings::default()).expect("consistent"),
        };
        Porter::new(Arc::new(Roster::new(
            site,
            name(2),
            Incarnation(1),
            StoreId { number: 2, later: false },
            Arc::new(BootClock),
        )))
    }

    /// A knock of `device`, whose store is number `store`, meant for `to` and its store `to_store`.
    fn knock(porter: &Porter, device: &str, store: &str, to: &str, to_store: &str) -> Result<NodeId, String> {
        let mut request = Request::new(());
        let digest = format!("{:016x}", porter.0.site.digest());
        for (key, value) in [
            ("quorate-site", "plant-7"),
            ("quorate-device", device),
            ("quorate-digest", digest.as_str()),
            ("quorate-store", store),
            ("quorate-to-device", to),
            ("quorate-to-store", to_store),
        ] {
            request.metadata_mut().insert(key, value.parse().expect("ASCII"));
        }
        porter.recognise(&request).map_err(|status| status.message().to_owned())
    }

    #[test]
    fn a_member_is_let_in() {
        let node = knock(&porter(), "edge-1", "7", "edge-2", "2").expect("it belongs here");
        assert_eq!(node, DeviceId::new("edge-1").expect("a name").first_node());
    }

    #[test]
    fn who_answers_is_who_was_meant() {
        // Another device was given this device's name, or this one sits at another's address.
        let refused = knock(&porter(), "edge-1", "7", "edge-3", "").expect_err("it means another");
        assert!(refused.contains("takes this device, edge-2, for edge-3"), "{refused}");
        let refused = knock(&porter(), "edge-1", "7", "edge-2", "9").expect_err("it knows another store");
        assert!(refused.contains("knows another store of this device"), "{refused}");
    }

    #[test]
    fn a_later_store_is_another_node_and_the_first_never_comes_back() {
        let porter = porter();
        let (name, other) = ("edge-1", DeviceId::new("edge-3").expect("a name"));
        let device = DeviceId::new(name).expect("a name");
        let knock = |node: NodeId, store: u64| {
            let (node, store) = (node.to_string(), format!("{store:x}"));
            let said = |key| match key {
                "quorate-node" => node.as_str(),
                "quorate-store" => store.as_str(),
                _ => "",
            };
            porter.stores_fit(&device, &said)
        };
        assert_eq!(knock(device.later_node(7), 7), Ok(device.later_node(7)));
        for foreign in [device.later_node(8), other.first_node()] {
            knock(foreign, 7).expect_err("it is none of its nodes");
        }
        // What the site has noted counts, whatever this sidecar remembers.
        let node = |store| crate::raft::members::Node { device: device.clone(), store: Some(store) };
        let members = |id: NodeId, store| crate::raft::members::Members {
            voters: vec![[id].into()],
            nodes: [(id, node(store))].into(),
        };
        porter.0.now_members(&members(device.first_node(), 1));
        assert_eq!(knock(device.first_node(), 2).map_err(|(_, known)| known), Err(Some(1)));
        assert_eq!(knock(device.first_node(), 1), Ok(device.first_node()));
        porter.0.now_members(&members(device.later_node(7), 7));
        assert_eq!(knock(device.first_node(), 2).map_err(|(_, known)| known), Err(Some(7)));
        assert_eq!(knock(device.first_node(), 1).map_err(|(_, known)| known), Err(Some(7)));
        assert_eq!(knock(device.later_node(7), 7), Ok(device.later_node(7)));
    }

    #[test]
    fn one_name_has_one_store() {
        let porter = porter();
        knock(&porter, "edge-1", "7", "edge-2", "2").expect("the first is taken at its word");
        let refused = knock(&porter, "edge-1", "8", "edge-2", "2").expect_err("another store");
        assert!(refused.contains("came back with another store"), "{refused}");
        knock(&porter, "edge-1", "7", "edge-2", "2").expect("the first is still the one");
        knock(&porter, "edge-3", "8", "edge-2", "2").expect("each has its own");
    }
}
