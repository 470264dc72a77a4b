//! Connections on probation: whoever connects must prove soon that it belongs here, and takes one of a fixed number of
//! places until it ends.
//!
//! What counts as proof differs between listeners: to have spoken HTTP/2 at all, or to have been recognised by the
//! service behind it. Until then a connection may cost its place for a few seconds and nothing else. Places are also
//! limited for each address, so that one machine gone mad leaves places for the others. What is said on a connection is not
//! looked at here, but for its first bytes: a listener may have one short line that is said instead of HTTP/2.

use std::{
    collections::BTreeMap,
    io,
    net::IpAddr,
    pin::Pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::Sleep,
};

/// The client's side of HTTP/2 begins with a fixed text of this many bytes (RFC 9113, 3.4).
pub const HTTP2_PREFACE: usize = 24;
/// How long a connection may go without its proof.
pub const PATIENCE: Duration = Duration::from_secs(5);

/// The places of one listener. Clones share them.
#[derive(Debug, Clone)]
pub struct Places {
    taken: Arc<Mutex<BTreeMap<IpAddr, usize>>>,
    all: usize,
    each: usize,
}

/// A taken place, free again when dropped.
#[derive(Debug)]
pub struct Place {
    of: Places,
    from: IpAddr,
}

impl Places {
    /// `all` places, of which at most `each` for one address.
    pub fn new(all: usize, each: usize) -> Places {
        Places { taken: Arc::default(), all, each }
    }

    /// Takes a place for a connection from `from`. `None` if there is none.
    pub fn take(&self, from: IpAddr) -> Option<Place> {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let theirs = taken.get(&from).copied().unwrap_or(0);
        if taken.values().sum::<usize>() >= self.all || theirs >= self.each {
            return None;
        }
        taken.insert(from, theirs + 1);
        Some(Place { of: self.clone(), from })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.of.taken.lock().unwrap_or_else(PoisonError::into_inner);
        match taken.get_mut(&self.from) {
            Some(theirs) if *theirs > 1 => *theirs -= 1,
            _ => drop(taken.remove(&self.from)),
        }
    }
}

/// What a connection must show.
#[derive(Debug, Clone)]
pub enum Proof {
    /// That it has sent this many bytes.
    Bytes(usize),
    /// That somebody has set this.
    Recognised(Arc<AtomicBool>),
    /// Nothing.
    None,
}

/// What to do with the line that somebody says instead of HTTP/2; without its end, and perhaps cut off.
pub type Heed = Arc<dyn Fn(&[u8]) + Send + Sync>;

/// The longest such line in bytes; what is longer is cut, and fits nothing.
const LINE_MAX: usize = 200;

/// A connection whose first bytes may be a line.
struct Opening {
    magic: &'static [u8],
    heed: Heed,
    said: Vec<u8>,
    heeded: bool,
}

enum Said {
    Line,
    More,
    Other,
}

impl Opening {
    /// More was read; nothing at the connection's end.
    fn hear(&mut self, bytes: &[u8]) -> Said {
        let first = self.said.first().or(bytes.first());
        if first.is_none() || first != self.magic.first() {
            return Said::Other;
        }
        self.said.extend(bytes.iter().take(LINE_MAX + 1 - self.said.len()));
        let end = self.said.iter().position(|b| *b == b'\n');
        if end.is_none() && !bytes.is_empty() && self.said.len() <= LINE_MAX {
            return Said::More;
        }
        self.said.truncate(end.unwrap_or(self.said.len()));
        (self.heed)(&self.said);
        self.heeded = true;
        Said::Line
    }
}

/// A connection that ends with a time-out unless its proof comes in time.
pub struct OnProbation<W, P> {
    wire: W,
    proof: Proof,
    heard: usize,
    patience: Option<Pin<Box<Sleep>>>,
    opening: Option<Opening>,
    place: P,
}

impl<W, P> OnProbation<W, P> {
    /// The time begins now. Whatever `place` is, it is dropped with the connection.
    pub fn new(wire: W, proof: Proof, place: P) -> OnProbation<W, P> {
        OnProbation {
            wire,
            patience: (!matches!(proof, Proof::None)).then(|| Box::pin(tokio::time::sleep(PATIENCE))),
            proof,
            heard: 0,
            opening: None,
            place,
        }
    }

    /// The same connection, on which a line that begins with the first byte of `magic` is heeded; the connection ends
    /// behind it. HTTP/2 begins with a `P`.
    #[must_use]
    pub fn heeding(self, magic: &'static [u8], heed: Heed) -> OnProbation<W, P> {
        OnProbation { opening: Some(Opening { magic, heed, said: Vec::new(), heeded: false }), ..self }
    }

    /// Whatever was dropped in as its place.
    pub fn place(&self) -> &P {
        &self.place
    }

    fn proven(&self) -> bool {
        match &self.proof {
            Proof::Bytes(needed) => self.heard >= *needed,
            Proof::Recognised(flag) => flag.load(Ordering::Relaxed),
            Proof::None => true,
        }
    }
}

impl<W: AsyncRead + Unpin, P> OnProbation<W, P> {
    /// Reads from the wire, but keeps a line that is heeded to itself.
    fn read_wire(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        loop {
            if self.opening.as_ref().is_some_and(|opening| opening.heeded) {
                return Poll::Ready(Ok(()));
            }
            let before = buf.filled().len();
            let read = ready!(Pin::new(&mut self.wire).poll_read(cx, buf));
            let (Some(opening), Ok(())) = (&mut self.opening, &read) else { return Poll::Ready(read) };
            match opening.hear(buf.filled().get(before..).unwrap_or_default()) {
                Said::Other => {
                    self.opening = None;
                    return Poll::Ready(read);
                }
                Said::Line | Said::More => buf.set_filled(before),
            }
        }
    }
}

impl<W: AsyncRead + Unpin, P: Unpin> AsyncRead for OnProbation<W, P> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let read = self.read_wire(cx, buf);
        self.heard = self.heard.saturating_add(buf.filled().len() - before);
        if self.patience.is_some() && self.proven() {
            self.patience = None;
        }
        // Looked at whether there was something to read or not: chatter is no proof.
        if let Some(patience) = &mut self.patience {
            match patience.as_mut().poll(cx) {
                Poll::Ready(()) => return Poll::Ready(Err(io::ErrorKind::TimedOut.into())),
                Poll::Pending => ready!(read)?,
            }
            return Poll::Ready(Ok(()));
        }
        read
    }
}

impl<W: AsyncWrite + Unpin, P: Unpin> AsyncWrite for OnProbation<W, P> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.wire).poll_write(cx, data)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.wire).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.wire).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.wire).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.wire.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, duplex};

    use super::*;

    fn place() -> Place {
        Places::new(1, 1).take(IpAddr::from([10, 0, 0, 1])).expect("is free")
    }

    #[test]
    fn places_are_limited_in_all_and_for_each_address_and_come_back() {
        let ip = |n: u8| IpAddr::from([10, 0, 0, n]);
        let places = Places::new(3, 2);
        let (a, b) = (places.take(ip(1)), places.take(ip(1)));
        assert!(a.is_some() && b.is_some());
        assert!(places.take(ip(1)).is_none(), "two for one address");
        let c = places.take(ip(2));
        assert!(c.is_some());
        assert!(places.take(ip(3)).is_none(), "three in all");
        drop(a);
        assert!(places.take(ip(1)).is_some());
        drop((b, c));
        assert!(places.taken.lock().expect("not poisoned").is_empty(), "nothing piles up");
    }

    /// What was heeded, and what else could be read, when this was said in pieces of `n` bytes.
    async fn said(words: &[u8], n: usize) -> (Vec<Vec<u8>>, Vec<u8>) {
        let heeded = Arc::<Mutex<Vec<Vec<u8>>>>::default();
        let heard = heeded.clone();
        let heed: Heed = Arc::new(move |line| heard.lock().expect("not poisoned").push(line.to_vec()));
        let (mut other, wire) = duplex(n);
        let mut connection = OnProbation::new(wire, Proof::None, ()).heeding(b"QU", heed);
        let mut read = Vec::new();
        let talk = async {
            // A connection that has ended takes no more.
            let _ = other.write_all(words).await;
            drop(other);
        };
        let listen = async {
            let _ = connection.read_to_end(&mut read).await.expect("reads");
            drop(connection);
        };
        tokio::join!(talk, listen);
        let heeded = heeded.lock().expect("not poisoned").clone();
        (heeded, read)
    }

    #[tokio::test(start_paused = true)]
    async fn a_line_is_heeded_once_and_ends_the_connection_and_nothing_else_is() {
        for n in [1, 3, 500] {
            assert_eq!(said(b"QUIT it\nPRI", n).await, (vec![b"QUIT it".to_vec()], vec![]));
            assert_eq!(said(b"QUIT", n).await, (vec![b"QUIT".to_vec()], vec![]));
            assert_eq!(said(b"PRI * Q\n", n).await, (vec![], b"PRI * Q\n".to_vec()));
            assert_eq!(said(b"", n).await, (vec![], vec![]));
            let (heeded, read) = said(&[b'Q'; 10_000], n).await;
            assert_eq!((heeded.len(), read.len()), (1, 0));
            assert!(heeded[0].len() <= LINE_MAX + 1, "{}", heeded[0].len());
        }
    }

    #[tokio::test(start_paused = true)]
    async fn silence_and_chatter_end_and_the_proven_stay() {
        let (mut other, wire) = duplex(64);
        let mut few = OnProbation::new(wire, Proof::Bytes(3), place());
        other.write_all(b"ab").await.expect("writes");
        let mut bytes = [0; 8];
        assert_eq!(few.read(&mut bytes).await.expect("reads"), 2);
        let error = few.read(&mut bytes).await.expect_err("two bytes are not three");
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);

        let (mut other, wire) = duplex(64);
        let mut enough = OnProbation::new(wire, Proof::Bytes(3), place());
        other.write_all(b"abc").await.expect("writes");
        assert_eq!(enough.read(&mut bytes).await.expect("reads"), 3);
        tokio::time::sleep(PATIENCE * 2).await;
        other.write_all(b"d").await.expect("writes");
        assert_eq!(enough.read(&mut bytes).await.expect("reads"), 1);

        let flag = Arc::new(AtomicBool::new(false));
        let (mut other, wire) = duplex(64);
        let mut chatter = OnProbation::new(wire, Proof::Recognised(flag.clone()), place());
        other.write_all(&[0; 64]).await.expect("writes");
        tokio::time::sleep(PATIENCE * 2).await;
        assert!(chatter.read(&mut bytes).await.is_err(), "much was said, nobody was recognised");

        let (mut other, wire) = duplex(64);
        let mut known = OnProbation::new(wire, Proof::Recognised(flag.clone()), place());
        flag.store(true, Ordering::Relaxed);
        tokio::time::sleep(PATIENCE * 2).await;
        other.write_all(b"x").await.expect("writes");
        assert_eq!(known.read(&mut bytes).await.expect("reads"), 1);
    }
}
