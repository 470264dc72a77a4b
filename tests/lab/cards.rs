//! The network of a site with namespaces: every device has a network card of its own, and the test is the switch.
//!
//! A card is a TUN device that is made inside the device's network namespace: what the device's kernel sends, this file
//! reads as whole IP packets, and forwards by what the link says. So it needs no emulation in the kernel (`netem` is
//! missing in many), only the right to make namespaces, and /dev/net/tun.

use std::{fs::File, io, net::Ipv4Addr, os::fd::AsFd as _, sync::Arc, time::Duration};

use quorate::dice::Dice;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use tokio::{runtime::Handle, sync::watch};
use tokio_tun::Tun;

use super::lan::Links;

const MTU: usize = 1500;

/// The address of a device on the site's network.
pub(super) fn address(n: usize) -> Ipv4Addr {
    Ipv4Addr::new(10, 77, 0, u8::try_from(n + 1).expect("few devices"))
}

/// Puts a card into the network namespace of each of these processes, and forwards between them for as long as the
/// runtime lives.
pub(super) fn connect(
    holders: &[u32],
    links: &watch::Receiver<Links>,
    dice: &mut Dice,
    runtime: &Handle,
) -> io::Result<()> {
    let cards: io::Result<Vec<Arc<Tun>>> =
        holders.iter().enumerate().map(|(n, holder)| Ok(Arc::new(card(*holder, n, runtime)?))).collect();
    let cards = Arc::new(cards?);
    for from in 0..holders.len() {
        runtime.spawn(forward(from, cards.clone(), links.clone(), dice.split()));
    }
    Ok(())
}

/// Only a thread that has moved there makes its card there.
fn card(holder: u32, n: usize, runtime: &Handle) -> io::Result<Tun> {
    std::thread::scope(|scope| {
        let made = scope.spawn(|| {
            let _inside = runtime.enter();
            let namespace = File::open(format!("/proc/{holder}/ns/net"))?;
            move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))?;
            let built = Tun::builder()
                .name("lan0")
                .address(address(n))
                .netmask(Ipv4Addr::new(255, 255, 255, 0))
                .mtu(i32::try_from(MTU).expect("small"))
                .up()
                .build();
            let mut cards = built.map_err(|e| io::Error::other(format!("no network card: {e:?}")))?;
            cards.pop().ok_or_else(|| io::Error::other("no network card"))
        });
        made.join().expect("does not panic")
    })
}

/// The number of the device that an IPv4 packet is for.
fn receiver(packet: &[u8], devices: usize) -> Option<usize> {
    let to: [u8; 4] = packet.get(16..20)?.try_into().ok()?;
    (packet[0] >> 4 == 4).then(|| (0..devices).find(|n| address(*n).octets() == to))?
}

async fn forward(from: usize, cards: Arc<Vec<Arc<Tun>>>, links: watch::Receiver<Links>, mut dice: Dice) {
    let mut buffer = [0; MTU];
    loop {
        let Ok(length) = cards[from].recv(&mut buffer).await else { return };
        let packet = &buffer[..length];
        let Some(to) = receiver(packet, cards.len()) else { continue };
        let link = links.borrow().get(from, to);
        if !link.open || dice.throw() % 100 < link.loss {
            continue;
        }
        let copies = 1 + u8::from(dice.throw() % 100 < link.doubled);
        for _ in 0..copies {
            let takes = link.delay + dice.up_to(link.jitter);
            if takes == Duration::ZERO {
                // A full queue loses packets, as in any switch.
                let _ = cards[to].try_send(packet);
                continue;
            }
            let (card, packet) = (cards[to].clone(), packet.to_vec());
            tokio::spawn(async move {
                tokio::time::sleep(takes).await;
                let _ = card.try_send(&packet);
            });
        }
    }
}
