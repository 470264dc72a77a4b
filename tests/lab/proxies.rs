//! The network of a site without any rights: loopback, and a proxy for each ordered pair of devices.
//!
//! Each device is told other addresses for its neighbours than these listen on, so who dials whom is known. Bytes wait
//! in a proxy while the link is cut and go on afterwards, as TCP would send them again. A loss is a pause of 200 ms, the
//! shortest time-out of a sender in Linux. Nothing is doubled and nothing overtakes: TCP would hide both.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use quorate::dice::Dice;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    runtime::Handle,
    sync::watch,
};

use super::lan::{Link, Links};

/// The shortest retransmission time-out of Linux.
const RETRANSMISSION: Duration = Duration::from_millis(200);

type Watched = watch::Receiver<Links>;

/// Opens a proxy for each ordered pair: `[from][to]` is where `from` reaches `to`.
pub(super) fn connect(
    real: &[SocketAddr],
    links: &Watched,
    dice: &mut Dice,
    runtime: &Handle,
) -> io::Result<Vec<Vec<SocketAddr>>> {
    let mut addresses = Vec::new();
    for from in 0..real.len() {
        let mut row = Vec::new();
        for (to, target) in real.iter().enumerate() {
            let ip = IpAddr::V4(Ipv4Addr::LOCALHOST);
            let listener = runtime.block_on(TcpListener::bind((ip, 0)))?;
            row.push(listener.local_addr()?);
            let proxy = Proxy { from, to, target: *target, links: links.clone() };
            runtime.spawn(Arc::new(proxy).serve(listener, dice.split()));
        }
        addresses.push(row);
    }
    Ok(addresses)
}

struct Proxy {
    from: usize,
    to: usize,
    target: SocketAddr,
    links: Watched,
}

impl Proxy {
    async fn serve(self: Arc<Self>, listener: TcpListener, mut dice: Dice) {
        loop {
            let Ok((near, _)) = listener.accept().await else { continue };
            tokio::spawn(self.clone().carry(near, dice.split()));
        }
    }

    async fn carry(self: Arc<Self>, near: TcpStream, mut dice: Dice) {
        // A connection is made when both ways are open.
        let mut links = self.links.clone();
        let both = |l: &Links| l.get(self.from, self.to).open && l.get(self.to, self.from).open;
        if links.wait_for(both).await.is_err() {
            return;
        }
        let Ok(far) = TcpStream::connect(self.target).await else { return };
        let _ = (near.set_nodelay(true), far.set_nodelay(true));
        let ((near_in, near_out), (far_in, far_out)) = (near.into_split(), far.into_split());
        let there = pump(near_in, far_out, (self.from, self.to), self.links.clone(), dice.split());
        let back = pump(far_in, near_out, (self.to, self.from), self.links.clone(), dice.split());
        tokio::join!(there, back);
    }
}

/// Carries one way until the end, and passes the end on.
async fn pump(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    way: (usize, usize),
    mut links: Watched,
    mut dice: Dice,
) {
    let mut buffer = vec![0; 16 << 10];
    loop {
        let length = from.read(&mut buffer).await.unwrap_or(0);
        let link: Link = links.borrow().get(way.0, way.1);
        let lost = dice.throw() % 100 < link.loss;
        let takes = link.delay + dice.up_to(link.jitter) + if lost { RETRANSMISSION } else { Duration::ZERO };
        if takes > Duration::ZERO {
            tokio::time::sleep(takes).await;
        }
        if links.wait_for(|l| l.get(way.0, way.1).open).await.is_err() {
            return;
        }
        if length == 0 || to.write_all(&buffer[..length]).await.is_err() {
            let _ = to.shutdown().await;
            return;
        }
    }
}
