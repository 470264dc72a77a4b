//! The site's network as the lab sees it: for each ordered pair of devices, what becomes of what one sends the other.
//!
//! Two things carry it out. `cards.rs`: every device in a network namespace of its own, with a network card whose other
//! end is the test, so whole packets are lost, delayed, doubled and overtaken. `proxies.rs`: everything on loopback, a
//! proxy for each ordered pair, which needs no rights; TCP hides losses there, so they become the pauses that a
//! sender's time-out makes, and nothing can be doubled or overtaken.

use std::time::Duration;

use tokio::sync::watch;

/// What becomes of what one device sends another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Link {
    /// Whether anything arrives.
    pub(super) open: bool,
    /// How many of a hundred are lost.
    pub(super) loss: u64,
    /// How many of a hundred arrive twice.
    pub(super) doubled: u64,
    /// How long each takes.
    pub(super) delay: Duration,
    /// How much longer it may take, at random, so that they overtake each other.
    pub(super) jitter: Duration,
}

/// A switch on one desk.
pub(super) const GOOD: Link =
    Link { open: true, loss: 0, doubled: 0, delay: Duration::ZERO, jitter: Duration::ZERO };

/// All links, by sender and receiver.
#[derive(Debug, Clone)]
pub(super) struct Links(Vec<Vec<Link>>);

impl Links {
    pub(super) fn new(devices: usize) -> Links {
        Links(vec![vec![GOOD; devices]; devices])
    }

    pub(super) fn get(&self, from: usize, to: usize) -> Link {
        self.0[from][to]
    }
}

/// Where faults of the network are made.
#[derive(Debug, Clone)]
pub(super) struct Lan {
    links: watch::Sender<Links>,
    devices: usize,
}

impl Lan {
    pub(super) fn new(devices: usize) -> Lan {
        Lan { links: watch::Sender::new(Links::new(devices)), devices }
    }

    pub(super) fn watch(&self) -> watch::Receiver<Links> {
        self.links.subscribe()
    }

    /// Changes what one device sends another, and nothing the other way.
    pub(super) fn one_way(&self, from: usize, to: usize, change: impl Fn(&mut Link)) {
        self.links.send_modify(|links| change(&mut links.0[from][to]));
    }

    /// Changes everything that a device sends.
    pub(super) fn out_of(&self, device: usize, change: impl Fn(&mut Link)) {
        (0..self.devices).for_each(|other| self.one_way(device, other, &change));
    }

    /// Changes everything that is sent to a device.
    pub(super) fn towards(&self, device: usize, change: impl Fn(&mut Link)) {
        (0..self.devices).for_each(|other| self.one_way(other, device, &change));
    }

    /// As if the device's cable were out.
    pub(super) fn unplug(&self, device: usize) {
        self.out_of(device, |link| link.open = false);
        self.towards(device, |link| link.open = false);
    }

    /// All links are good again.
    pub(super) fn heal(&self) {
        self.links.send_modify(|links| *links = Links::new(self.devices));
    }

    /// Whether two devices hear each other well enough that waiting for an owner is fair.
    pub(super) fn good(&self, a: usize, b: usize) -> bool {
        let links = self.links.borrow();
        a == b || (links.get(a, b) == GOOD && links.get(b, a) == GOOD)
    }
}
