//! The last thing a fencer does: it tells the other members that its dead sidecar's workload has stopped.
//!
//! Nothing of the workload runs any more when this is called, and the fencer holds neither lock nor socket, so here,
//! unlike in the rest of the fencer, a call may block: one thread for each member, and the process ends when all have
//! been told or the time is over. A member that cannot be told waits out its promise, as if there were no fencer.

use std::{
    io::{self, Read as _, Write as _},
    net::{Shutdown, TcpStream, ToSocketAddrs as _},
    sync::mpsc,
    time::Duration,
};

use crate::{
    clock::{BootClock, Clock},
    seal::Receipt,
};

/// How long is tried. Longer than most promises last.
const PATIENCE: Duration = Duration::from_secs(2);
/// How long one try may take, each of its steps.
const TRY: Duration = Duration::from_millis(500);
/// The pause after a try that failed: a sidecar that starts again needs a moment.
const PAUSE: Duration = Duration::from_millis(20);

/// Tells the members at these addresses (`host:port`), all at once.
pub(super) fn send(receipt: &Receipt, site: u64, members: &[String]) {
    let line = format!("{}\n", receipt.line(site));
    let give_up = BootClock.now() + PATIENCE;
    let (told, all) = mpsc::channel::<()>();
    for member in members {
        let (member, line, told) = (member.clone(), line.clone(), told.clone());
        let telling = move || {
            while tell(&member, &line).is_err() && BootClock.now() < give_up {
                #[expect(clippy::disallowed_methods, reason = "this thread has nothing else to do")]
                std::thread::sleep(PAUSE);
            }
            drop(told);
        };
        // Without threads the others wait out their promises.
        let _ = std::thread::Builder::new().spawn(telling);
    }
    drop(told);
    // Ends with an error when the last thread has dropped its end.
    let _ = all.recv_timeout(PATIENCE);
}

/// One try. That the other end closes, and does not reset, says that it has read the line.
fn tell(member: &str, line: &str) -> io::Result<()> {
    let address = member.to_socket_addrs()?.next().ok_or(io::ErrorKind::NotFound)?;
    let mut stream = TcpStream::connect_timeout(&address, TRY)?;
    stream.set_read_timeout(Some(TRY))?;
    stream.set_write_timeout(Some(TRY))?;
    stream.set_nodelay(true)?;
    stream.write_all(line.as_bytes())?;
    stream.shutdown(Shutdown::Write)?;
    let mut ignored = [0; 256];
    while stream.read(&mut ignored)? > 0 {}
    Ok(())
}
