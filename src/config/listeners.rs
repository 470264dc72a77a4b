//! The sections `peer`, `control`, `http` and `storage`: where the sidecar listens, and where it keeps its data.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::{Path, PathBuf},
};

use super::{
    Control, Http, Peer, Storage,
    fault::Where,
    section::{Notes, Section, Spot},
    source::Environment,
};
use crate::site::Member;

/// Default of `http.listen`: the port that IoT Edge's metrics collector expects.
pub(super) const HTTP: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 9600);
/// Default of `control.listen`: this device only.
pub(super) const CONTROL: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 7601);
/// Default of `storage.path`.
pub(super) const STORAGE: &str = "/var/lib/quorate";
/// The port that the examples give to members.
const PEER_PORT: u16 = 7600;
/// `sun_path` of Linux holds 108 bytes with the closing zero (unix(7)).
pub(super) const SOCKET_PATH_MAX: usize = 107;

const LISTEN_ADVICE: &str = "write ip:port, such as \"0.0.0.0:9600\" or \"[::]:9600\"";

/// A listener's address and where it was written, to find two at one address.
type Named = (String, SocketAddr, Where);

fn listen(section: &mut Section, notes: &mut Notes, default: SocketAddr) -> Named {
    let parse = |text: &str| text.parse::<SocketAddr>().map_err(|_| format!("{text:?} is not ip:port"));
    let spot = section.parsed("listen", notes, parse, LISTEN_ADVICE);
    let at = spot.as_ref().map_or_else(|| section.file(), |s| s.at.clone());
    (section.full("listen"), spot.map_or(default, |s| s.value), at)
}

/// The four sections. Ports of 0 let the system choose, for tests and demonstrations.
pub(super) fn all(
    root: &mut Section,
    me: Option<&Member>,
    environment: &Environment,
    notes: &mut Notes,
) -> (Peer, Control, Http, Storage) {
    let mut section = root.section("peer", notes);
    let peer = listen(&mut section, notes, peer_default(me));
    section.not_yet("advertise", notes, "the others dial the address that stands in site.members");
    section.not_yet("tls", notes, "members talk in clear: keep the peer port inside the site's own network");
    section.done(notes);

    let mut section = root.section("http", notes);
    let http = listen(&mut section, notes, HTTP);
    section.done(notes);

    let mut section = root.section("storage", notes);
    let folder = section.parsed(
        "path",
        notes,
        |t| absolute(t, 4000),
        "write an absolute path, such as \"/var/lib/quorate\"",
    );
    let storage = Storage { path: folder.map_or_else(|| PathBuf::from(STORAGE), |s| s.value) };
    section.done(notes);

    let mut section = root.section("control", notes);
    let control_listen = control_listen(&mut section, notes);
    let socket = socket(&mut section, &storage.path, environment, notes);
    section.not_yet("tls", notes, "leave it out; reach the control port through the socket or loopback");
    section.not_yet("tokens", notes, "leave it out; whoever reaches the control port or socket may use it");
    section.done(notes);

    let mut named = vec![peer.clone(), http.clone()];
    named.extend(control_listen.clone());
    collisions(&named, notes);
    let control = Control { listen: control_listen.map(|(_, address, _)| address), socket };
    (Peer { listen: peer.1 }, control, Http { listen: http.1 }, storage)
}

/// All interfaces, on the port that the others were told to dial.
fn peer_default(me: Option<&Member>) -> SocketAddr {
    let address = me.map_or("", |m| m.address.as_str());
    let port = address.rsplit_once(':').and_then(|(_, port)| port.parse().ok()).unwrap_or(PEER_PORT);
    let ip = if address.starts_with('[') {
        IpAddr::V6(Ipv6Addr::UNSPECIFIED)
    } else {
        IpAddr::V4(Ipv4Addr::UNSPECIFIED)
    };
    SocketAddr::new(ip, port)
}

fn control_listen(section: &mut Section, notes: &mut Notes) -> Option<Named> {
    let parse = |text: &str| match text {
        "off" => Ok(None),
        text => text.parse().map(Some).map_err(|_| format!("{text:?} is not ip:port")),
    };
    let advice = "write ip:port, such as \"127.0.0.1:7601\", or \"off\"";
    let spot = section.parsed("listen", notes, parse, advice);
    let at = spot.as_ref().map_or_else(|| section.file(), |s| s.at.clone());
    let address = spot.map_or(Some(CONTROL), |s| s.value)?;
    Some((section.full("listen"), address, at))
}

/// `control.socket`. By default in the folder for running services, if there is one that this user may use; else
/// beside the data, which always exists.
fn socket(
    section: &mut Section,
    storage: &Path,
    environment: &Environment,
    notes: &mut Notes,
) -> Option<PathBuf> {
    let parse = |text: &str| match text {
        "off" => Ok(None),
        text => absolute(text, SOCKET_PATH_MAX).map(Some),
    };
    let advice =
        "write an absolute path of at most 107 bytes, such as \"/run/quorate/control.sock\", or \"off\"";
    let before = notes.faults.len();
    if let Some(Spot { value, .. }) = section.parsed("socket", notes, parse, advice) {
        return value;
    }
    if notes.faults.len() > before {
        return None;
    }
    let usable =
        |folder: &Path| folder.is_dir() && rustix::fs::access(folder, rustix::fs::Access::WRITE_OK).is_ok();
    let run = environment.run_dir.join("quorate");
    let folder = if usable(&run) || (!run.exists() && usable(&environment.run_dir)) { &run } else { storage };
    let path = folder.join("control.sock");
    if path.as_os_str().len() > SOCKET_PATH_MAX {
        notes.fault(
            &section.file(),
            &section.full("socket"),
            format!("would be {}, which is longer than {SOCKET_PATH_MAX} bytes", path.display()),
            advice,
        );
        return None;
    }
    Some(path)
}

pub(super) fn absolute(text: &str, max_bytes: usize) -> Result<PathBuf, String> {
    if !text.starts_with('/') {
        return Err(format!("{text:?} is not an absolute path"));
    }
    if text.len() > max_bytes {
        return Err(format!("is {} bytes long; at most {max_bytes} are possible", text.len()));
    }
    if text.contains('\0') {
        return Err(format!("{text:?} holds a zero byte"));
    }
    Ok(PathBuf::from(text))
}

fn collisions(named: &[Named], notes: &mut Notes) {
    for (i, (key, address, at)) in named.iter().enumerate() {
        for (other_key, other, _) in &named[..i] {
            let overlap =
                address.ip() == other.ip() || address.ip().is_unspecified() || other.ip().is_unspecified();
            if address.port() == other.port() && address.port() != 0 && overlap {
                notes.fault(
                    at,
                    key,
                    format!("{address} is taken by {other_key} ({other})"),
                    "give each listener its own port",
                );
                break;
            }
        }
    }
}
