//! Something other than a hub where a module's link leads: it is named for what it is, it costs no memory, and it moves nothing.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::{TcpListener, TcpStream},
    path::PathBuf,
    sync::{Arc, Mutex},
    thread,
    time::Duration,
};

use bytes::BytesMut;
use quorate::{
    clock::BootClock,
    hub::{
        Error,
        edge::Identity,
        link::Module as _,
        mqtt::{
            client::{Client, Line},
            packet::{Accepted, Packet, Publish},
        },
    },
};
use rustls::{
    ServerConfig, ServerConnection, StreamOwned,
    pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer},
};

use super::site::{Plan, Site, until};

/// What the broker does with a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    Refuses(u8),
    /// Bytes that are no packet.
    Garbage,
    /// A length of five bytes, which the standard forbids.
    Overlong,
    /// A message of 256 MB, sent for ever.
    Oversized,
    /// Half a packet, and the end.
    Truncated,
    /// Nothing at all.
    Silent,
    /// A long packet, byte by byte.
    Slow,
    /// No TLS.
    Plain,
    /// Welcomes, and acknowledges what nobody has asked for.
    WrongIds,
    /// Welcomes, and sends messages without end.
    Flood,
}

const MODES: [Mode; 14] = [
    Mode::Refuses(1),
    Mode::Refuses(2),
    Mode::Refuses(3),
    Mode::Refuses(4),
    Mode::Refuses(5),
    Mode::Garbage,
    Mode::Overlong,
    Mode::Oversized,
    Mode::Truncated,
    Mode::Silent,
    Mode::Slow,
    Mode::Plain,
    Mode::WrongIds,
    Mode::Flood,
];

struct Broker {
    folder: tempfile::TempDir,
    port: u16,
    /// Asked for each connection.
    mode: Arc<Mutex<Mode>>,
    /// How many connections there were in each mode.
    met: Arc<Mutex<Vec<Mode>>>,
}

type Tls = StreamOwned<ServerConnection, TcpStream>;

impl Broker {
    fn start() -> Broker {
        let key = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).expect("a certificate");
        let tls = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_no_client_auth()
            .with_single_cert(
                vec![key.cert.der().clone()],
                PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.signing_key.serialize_der())),
            )
            .expect("a configuration");
        let tls = Arc::new(tls);
        let folder = tempfile::tempdir().expect("a folder");
        fs::write(folder.path().join("ca.pem"), key.cert.pem()).expect("writes");
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let port = listener.local_addr().expect("an address").port();
        let mode = Arc::new(Mutex::new(Mode::Silent));
        let met = Arc::new(Mutex::new(Vec::new()));
        let (now, seen) = (mode.clone(), met.clone());
        thread::spawn(move || {
            for tcp in listener.incoming().flatten() {
                let (tls, mode, seen) = (tls.clone(), *now.lock().expect("no panic"), seen.clone());
                thread::spawn(move || {
                    // Whoever hangs up ends this thread, and so does the end of a test that nobody hangs up in.
                    let _ = tcp.set_read_timeout(Some(Duration::from_secs(30)));
                    let _ = tcp.set_write_timeout(Some(Duration::from_secs(30)));
                    let _ended = treat(tcp, tls, mode, &seen);
                });
            }
        });
        Broker { folder, port, mode, met }
    }

    fn is(&self, mode: Mode) {
        *self.mode.lock().expect("no panic") = mode;
    }

    fn met(&self, mode: Mode) -> usize {
        self.met.lock().expect("no panic").iter().filter(|met| **met == mode).count()
    }

    /// The connection string of a device's module, with a key that opens nothing.
    fn string(&self, device: &str) -> String {
        format!(
            "HostName=localhost:{};DeviceId={device};ModuleId=quorate;SharedAccessKey=c2VjcmV0",
            self.port
        )
    }

    fn ca_file(&self) -> PathBuf {
        self.folder.path().join("ca.pem")
    }
}

fn packet(tls: &mut Tls, read: &mut BytesMut) -> std::io::Result<Packet> {
    loop {
        if let Ok(Some(packet)) = Packet::read(read) {
            return Ok(packet);
        }
        let mut more = [0; 4096];
        match tls.read(&mut more)? {
            0 => return Err(std::io::ErrorKind::UnexpectedEof.into()),
            n => read.extend_from_slice(&more[..n]),
        }
    }
}

fn say(tls: &mut Tls, packet: &Packet) -> std::io::Result<()> {
    let mut bytes = BytesMut::new();
    packet.write(&mut bytes);
    tls.write_all(&bytes)?;
    tls.flush()
}

/// Introduces itself as a hub would, and subscribes the client to what it wants.
fn welcome(tls: &mut Tls, read: &mut BytesMut) -> std::io::Result<()> {
    say(tls, &Packet::ConnAck { session_present: false, accepted: Accepted::Yes })?;
    loop {
        if let Packet::Subscribe(id, filters) = packet(tls, read)? {
            return say(tls, &Packet::SubAck(id, vec![1; filters.len()]));
        }
    }
}

fn treat(
    mut tcp: TcpStream,
    config: Arc<ServerConfig>,
    mode: Mode,
    met: &Mutex<Vec<Mode>>,
) -> std::io::Result<()> {
    let note = || met.lock().expect("no panic").push(mode);
    if mode == Mode::Plain {
        note();
        tcp.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n")?;
        return tcp.read(&mut [0; 1024]).map(drop);
    }
    let mut tls = StreamOwned::new(ServerConnection::new(config).expect("a configuration"), tcp);
    let mut read = BytesMut::new();
    // A knock ends here.
    let Packet::Connect(_) = packet(&mut tls, &mut read)? else { return Ok(()) };
    note();
    match mode {
        Mode::Refuses(code) => {
            say(&mut tls, &Packet::ConnAck { session_present: false, accepted: Accepted::No(code) })
        }
        Mode::Garbage => tls.write_all(&[0xf0; 64]),
        Mode::Overlong => tls.write_all(&[0x30, 0xff, 0xff, 0xff, 0xff, 0x01]),
        Mode::Oversized => {
            tls.write_all(&[0x30, 0xff, 0xff, 0xff, 0x7f])?;
            loop {
                tls.write_all(&[b'x'; 16_384])?;
            }
        }
        Mode::Truncated => tls.write_all(&[0x20, 0x02]),
        Mode::Silent | Mode::Plain => tls.read(&mut [0; 1024]).map(drop),
        Mode::Slow => {
            tls.write_all(&[0x30, 0xff, 0x7f])?;
            loop {
                tls.write_all(b"x")?;
                tls.flush()?;
                // Paced by the client's own silence: there is nothing else to wait for.
                tls.sock.set_read_timeout(Some(Duration::from_millis(20)))?;
                if tls.read(&mut [0; 16]).is_ok_and(|n| n == 0) {
                    return Ok(());
                }
            }
        }
        Mode::WrongIds => {
            welcome(&mut tls, &mut read)?;
            for id in [1_u16, 777, 65_535] {
                say(&mut tls, &Packet::PubAck(id))?;
                say(&mut tls, &Packet::SubAck(id, vec![1]))?;
                say(&mut tls, &Packet::UnsubAck(id))?;
            }
            loop {
                packet(&mut tls, &mut read)?;
            }
        }
        Mode::Flood => {
            welcome(&mut tls, &mut read)?;
            let payload = format!("{{\"$version\":1,\"pad\":\"{}\"}}", "x".repeat(4000)).into();
            let publish = Publish {
                topic: "$iothub/twin/PATCH/properties/desired/?$version=1".into(),
                id: None,
                duplicate: false,
                retain: false,
                payload,
            };
            let mut bytes = BytesMut::new();
            Packet::Publish(publish).write(&mut bytes);
            loop {
                tls.write_all(&bytes)?;
            }
        }
    }
}

#[test]
fn one_link_to_each_of_them_ends_under_its_name() {
    let broker = Broker::start();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    for mode in MODES {
        broker.is(mode);
        let identity = Identity::parse(&broker.string("edge-1")).expect("parses");
        let line = Line {
            identity,
            inputs: false,
            ca_file: Some(broker.ca_file()),
            timeout: Duration::from_secs(2),
        };
        let client = Client::new(line, Arc::new(BootClock));
        let error = runtime.block_on(async {
            match client.connect().await {
                Err(error) => error,
                // Welcomed, it asks for its twin, as a sidecar does, and takes what comes.
                Ok(mut connected) => {
                    let asked = connected.link.get_twin();
                    let takes = async { while connected.events.recv().await.is_some() {} };
                    tokio::select! {
                        ended = &mut connected.runs => ended.expect_err("is no hub"),
                        read = asked => read.expect_err("is no twin"),
                        () = takes => Error::NotTheHub("the events ended".into()),
                    }
                }
            }
        });
        let fits = match mode {
            Mode::Refuses(1 | 2) => matches!(error, Error::Rejected { .. }),
            Mode::Refuses(3) => matches!(error, Error::Unavailable { status: 503, .. }),
            Mode::Refuses(_) => matches!(error, Error::Unauthorized { status: 401, .. }),
            Mode::Garbage | Mode::Overlong | Mode::Oversized | Mode::Plain => {
                matches!(error, Error::NotTheHub(_))
            }
            Mode::Truncated => matches!(error, Error::Unreachable(_)),
            Mode::Silent | Mode::Slow => matches!(error, Error::TimedOut { .. }),
            // More than is taken ends the link; less than that keeps the answer away.
            Mode::Flood => matches!(error, Error::Unreachable(_) | Error::TimedOut { .. }),
            // Either is true of it: the acknowledgements are nobody's, and no twin comes.
            Mode::WrongIds => matches!(error, Error::NotTheHub(_) | Error::TimedOut { .. }),
        };
        assert!(fits, "{mode:?}: {error:?}");
        assert!(error.condition().is_some() && !error.to_string().contains("c2VjcmV0"), "{error}");
        assert!(broker.met(mode) >= 1, "{mode:?}");
    }
}

/// The most memory that a process ever had, in kB.
fn peak_kb(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("lives");
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("is said");
    line.trim().trim_end_matches("kB").trim().parse().expect("a number")
}

#[test]
fn sidecars_that_meet_them_keep_their_owner_and_their_memory() {
    let broker = Broker::start();
    let more = format!(
        "[hub]\nmirror = \"module-twin\"\nrefresh = \"1s\"\ntimeout = \"1s\"\nca_file = \"{}\"\n",
        broker.ca_file().display()
    );
    let mut site = Site::with(Plan { more, ..Plan::default() });
    for n in 0..3 {
        let id = site.devices[n].id.clone();
        let file = broker.folder.path().join(&id);
        fs::write(&file, broker.string(&id)).expect("writes");
        site.tell(n, "QUORATE_HUB__MODULE_CONNECTION_STRING_FILE", file.display().to_string());
    }
    site.start_all();
    let (owner, epoch) = site.owner(0);
    let before: Vec<u64> = (0..3).map(|n| peak_kb(site.pid(n))).collect();
    // Those that could cost something, each until every sidecar must have met it.
    for mode in [Mode::Oversized, Mode::Flood, Mode::Slow, Mode::Garbage] {
        broker.is(mode);
        until("all to meet it", || (broker.met(mode) >= 3).then_some(()));
    }
    for (n, before) in before.into_iter().enumerate() {
        let shown = site.reports(n, "a condition of the hub", |r| {
            r.conditions.iter().any(|c| c.name.starts_with("hub."))
        });
        assert!(!shown.hub.in_sync);
        let grown = peak_kb(site.pid(n)).saturating_sub(before);
        assert!(grown < 32 * 1024, "sidecar {n} grew by {grown} kB");
        assert!(site.runs(n) && !site.log(n).contains("panicked"));
    }
    assert_eq!(site.owner(0), (owner, epoch), "the ownership did not change");
    assert_eq!(site.runs_without_overlap().len(), 1);
}
