//! Listeners that are taken, and listeners that strangers play with while the site works.

use std::{
    io::{ErrorKind, Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    os::unix::net::{UnixListener, UnixStream},
    time::Duration,
};

use quorate::dice::Dice;

use super::site::{Plan, Site, ended, http, now, quorate, until};

/// Runs device 0's sidecar until it ends by itself; what it said and its exit code.
fn run(site: &Site) -> (Option<i32>, String) {
    let mut child = quorate()
        .arg("run")
        .envs(site.environment(0))
        .stderr(std::process::Stdio::piped())
        .spawn()
        .expect("starts");
    ended(&mut child);
    let output = child.wait_with_output().expect("has ended");
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

#[test]
fn a_taken_port_is_named_with_its_key() {
    let mut site = Site::new();
    let device = &site.devices[0];
    let addresses =
        [("peer.listen", device.peer), ("control.listen", device.control), ("http.listen", device.http)];
    let socket = site.environment(0)["QUORATE_CONTROL__SOCKET"].clone();
    for (key, address) in addresses {
        let _taken = TcpListener::bind(address).expect("binds");
        let (code, said) = run(&site);
        assert_eq!(code, Some(2), "a restart may help: {said}");
        let wanted = format!("{key}: cannot listen on {address}");
        assert!(said.contains(&wanted) && said.contains("another program"), "{wanted:?} in {said}");
        assert!(!said.contains("panicked") && !said.contains("reach this one"), "{said}");
        assert!(!std::path::Path::new(&socket).exists(), "the socket is taken away again");
    }
    let _taken = UnixListener::bind(&socket).expect("binds");
    let (code, said) = run(&site);
    assert_eq!(code, Some(2), "{said}");
    assert!(said.contains("control.socket") && said.contains("in use by another sidecar"), "{said}");
    assert!(std::path::Path::new(&socket).exists(), "it is not taken from the other");
    drop(_taken);

    // All that are taken are named at once, and nothing but that was wrong with the folder.
    let held = addresses.map(|(_, address)| TcpListener::bind(address).expect("binds"));
    let (code, said) = run(&site);
    assert_eq!(code, Some(2));
    assert!(addresses.iter().all(|(key, _)| said.contains(&format!("{key}: cannot listen"))), "{said}");
    drop(held);
    site.start(0);
    site.up(0);
}

#[test]
fn an_address_of_another_machine_is_no_address() {
    let site = Site::new();
    let mut child = quorate()
        .arg("run")
        .envs(site.environment(0))
        .env("QUORATE_HTTP__LISTEN", "192.0.2.1:9600")
        .stderr(std::process::Stdio::piped())
        .spawn()
        .expect("starts");
    ended(&mut child);
    let output = child.wait_with_output().expect("has ended");
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(said.contains("http.listen") && said.contains("this device has no such address"), "{said}");
}

/// Sends what it can, and says nothing if it is cut off: that is the other side's right.
fn throw(stream: &mut impl std::io::Write, bytes: &[u8]) {
    let _ = stream.write_all(bytes);
}

fn connect(address: SocketAddr) -> Option<TcpStream> {
    let stream = TcpStream::connect_timeout(&address, Duration::from_secs(5)).ok()?;
    stream.set_write_timeout(Some(Duration::from_secs(2))).expect("sets");
    Some(stream)
}

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Everything rude that one connection can say at once.
fn rude(dice: &mut Dice) -> Vec<Vec<u8>> {
    let mut noise = |length: usize| -> Vec<u8> { (0..length).map(|_| dice.throw() as u8).collect() };
    let frame = |length: u32, kind: u8, flags: u8, stream: u32, body: &[u8]| {
        let mut frame = length.to_be_bytes()[1..].to_vec();
        frame.extend([kind, flags]);
        frame.extend(stream.to_be_bytes());
        frame.extend(body);
        frame
    };
    let with_preface = |rest: &[u8]| [PREFACE, &frame(0, 4, 0, 0, &[]), rest].concat();
    vec![
        noise(64),
        noise(64 << 10),
        vec![0; 64 << 10],
        b"GET / HTTP/1.1\r\n\r\n".to_vec(),
        b"POST /quorate.peer.v1.Peer/Renew HTTP/1.1\r\nContent-Length: 99999999999\r\n\r\n".to_vec(),
        [b"GET /owner HTTP/1.1\r\n".as_slice(), &b"X-Long: ".repeat(20_000)].concat(),
        [b"GET /".as_slice(), &vec![b'a'; 200_000], b" HTTP/1.1\r\n\r\n"].concat(),
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".to_vec(),
        with_preface(&noise(4096)),
        // A frame that says it is 16 MiB, headers that are none, a window of nothing, a flood of pings and resets.
        with_preface(&frame(0xff_ffff, 0, 0, 1, &[0; 1000])),
        with_preface(&frame(200, 1, 4, 1, &noise(200))),
        with_preface(&frame(4, 8, 0, 0, &[0; 4])),
        with_preface(&frame(8, 6, 0, 0, &[1; 8]).repeat(5000)),
        with_preface(
            &(0..5000_u32)
                .flat_map(|n| {
                    [frame(1, 1, 4, n * 2 + 1, &[0x82]), frame(4, 3, 0, n * 2 + 1, &[0, 0, 0, 8])].concat()
                })
                .collect::<Vec<u8>>(),
        ),
    ]
}

#[test]
fn garbage_on_every_listener_changes_nothing() {
    let (mut site, owner, epoch) = Site::running(Plan::default());
    let mut dice = Dice::new(99);
    let mut open = Vec::new();
    let mut sockets = Vec::new();
    for _ in 0..3 {
        for bytes in rude(&mut dice) {
            for n in 0..3 {
                let device = &site.devices[n];
                for address in [device.peer, device.control, device.http] {
                    let Some(mut stream) = connect(address) else { continue };
                    throw(&mut stream, &bytes);
                    open.push(stream);
                }
                let path = site.environment(n)["QUORATE_CONTROL__SOCKET"].clone();
                if let Ok(mut stream) = UnixStream::connect(path) {
                    stream.set_write_timeout(Some(Duration::from_secs(2))).expect("sets");
                    throw(&mut stream, &bytes);
                    sockets.push(stream);
                }
            }
        }
        // Half of them hang up, the others hold on.
        open.truncate(open.len() / 2);
        sockets.truncate(sockets.len() / 2);
    }
    assert!(!open.is_empty());
    drop((open, sockets));
    for n in 0..3 {
        assert!(site.runs(n), "{}", site.log(n));
        assert!(!site.log(n).contains("panicked"), "{}", site.log(n));
        until("the faces to answer again", || {
            http(site.devices[n].http, "/health/ready").filter(|r| r.0 == 200)
        });
        until("the command line to answer again", || {
            (site.ask(n, &["leader"]).status.code() == Some(0)).then_some(())
        });
    }
    assert_eq!(site.owner(0), (owner, epoch), "the ownership did not change");
    assert!(site.report(0).expect("answers").knocks.len() <= 16);
    site.runs_without_overlap();
}

#[test]
fn half_open_connections_are_sent_away_and_members_still_get_in() {
    let (mut site, owner, epoch) = Site::running(Plan::default());
    let standby = (owner + 1) % 3;
    let mut open = Vec::new();
    for device in &site.devices {
        for address in [device.peer, device.control, device.http] {
            for n in 0..100 {
                let Some(mut stream) = connect(address) else { continue };
                // Nothing, half a greeting, or a greeting and silence.
                throw(&mut stream, [&b""[..], &PREFACE[..10], PREFACE][n % 3]);
                open.push((address, stream));
            }
        }
    }
    // A member that comes while they hang there finds a place, and the others find it.
    site.signal(standby, rustix::process::Signal::KILL);
    site.left(standby);
    site.start(standby);
    until("the member to be back", || {
        let report = site.report(owner)?;
        let back = report.members.iter().find(|m| m.device == site.devices[standby].id)?;
        (back.reachable && back.fit && report.members.iter().all(|m| m.reachable)).then_some(())
    });
    assert_eq!(site.owner(0), (owner, epoch), "the ownership did not change");

    // Whoever connected to the door for members and never proved to be one is gone by now or soon.
    let peers: Vec<SocketAddr> = site.devices.iter().map(|d| d.peer).collect();
    let begun = now();
    for (_, stream) in open.iter_mut().filter(|(address, _)| peers.contains(address)) {
        stream.set_read_timeout(Some(Duration::from_secs(30))).expect("sets");
        let mut said = Vec::new();
        match stream.read_to_end(&mut said) {
            Ok(_) => {}
            Err(e) => assert!(
                !matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut),
                "still open after {:?}",
                now().since(begun)
            ),
        }
    }
    assert_eq!(site.owner(0), (owner, epoch));
    site.runs_without_overlap();
    drop(open);
    let mut ask = TcpStream::connect(site.devices[owner].http).expect("connects");
    write!(ask, "GET /owner HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").expect("sends");
    let mut answer = String::new();
    ask.read_to_string(&mut answer).expect("answers");
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
}
