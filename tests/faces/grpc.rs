//! gRPC: vouched answers, streams that speak before they lapse, health, reflection, and rude clients.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use quorate::control::{
    proto::{
        DeviceRequest, GetLeaderRequest, GetStatusRequest, OrderRequest, TransferRequest, WatchLeaderRequest,
        WatchOwnershipRequest, WhyRequest, control_client::ControlClient, ownership_client::OwnershipClient,
    },
    server::{Error, Listeners, serve},
    socket::Socket,
};
use quorate::reconcile::commands::Order;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};
use tokio_stream::StreamExt as _;
use tokio_util::sync::CancellationToken;
use tonic::{
    Code,
    transport::{Channel, Endpoint},
};
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};

use super::{Puppet, skip, soon};

pub(super) struct Grpc {
    pub(super) puppet: Arc<Puppet>,
    pub(super) address: SocketAddr,
    pub(super) folder: tempfile::TempDir,
    stop: CancellationToken,
    serving: JoinHandle<Result<(), Error>>,
}

impl Grpc {
    #[expect(
        clippy::disallowed_methods,
        reason = "the test is the environment that hands in listener and task"
    )]
    pub(super) async fn start() -> Grpc {
        let puppet = Puppet::new();
        let folder = tempfile::tempdir().expect("folder");
        let tcp = TcpListener::bind("127.0.0.1:0").await.expect("binds");
        let address = tcp.local_addr().expect("an address");
        let socket = Socket::bind(&folder.path().join("control.sock")).await.expect("binds");
        let stop = CancellationToken::new();
        let listeners = Listeners { tcp: Some(tcp), socket: Some(socket) };
        let serving = tokio::spawn(serve(listeners, puppet.clone(), stop.clone()));
        Grpc { puppet, address, folder, stop, serving }
    }

    async fn channel(&self) -> Channel {
        let endpoint = Endpoint::from_shared(format!("http://{}", self.address)).expect("an endpoint");
        endpoint.connect().await.expect("connects")
    }

    #[expect(clippy::disallowed_methods, reason = "a client of the test's own")]
    async fn raw(&self) -> TcpStream {
        TcpStream::connect(self.address).await.expect("connects")
    }
}

#[tokio::test]
async fn a_leader_is_named_only_while_it_is_vouched_for() {
    let grpc = Grpc::start().await;
    let mut client = ControlClient::new(grpc.channel().await);
    let status = client.get_leader(GetLeaderRequest {}).await.expect_err("unknown");
    assert_eq!((status.code(), status.message()), (Code::Unavailable, "no majority has answered yet"));

    grpc.puppet.vouch(Some("edge-2"), 17, Duration::from_secs(3600));
    let leader = client.get_leader(GetLeaderRequest {}).await.expect("known").into_inner();
    assert_eq!((leader.known, leader.device.as_str(), leader.epoch), (true, "edge-2", 17));
    assert!((3_000_000..=3_600_000).contains(&leader.valid_for_ms), "{leader:?}");

    grpc.puppet.vouch(None, 17, Duration::from_secs(3600));
    let leader = client.get_leader(GetLeaderRequest {}).await.expect("known").into_inner();
    assert_eq!((leader.known, leader.device.as_str()), (true, ""));

    grpc.puppet.vouch(Some("edge-2"), 17, Duration::ZERO);
    let status = client.get_leader(GetLeaderRequest {}).await.expect_err("lapsed");
    assert_eq!(status.code(), Code::Unavailable);
}

#[tokio::test]
async fn status_why_and_transfer() {
    let grpc = Grpc::start().await;
    let mut client = ControlClient::new(grpc.channel().await);
    let status = client.get_status(GetStatusRequest {}).await.expect("always").into_inner();
    let report: quorate::status::report::Report = serde_json::from_str(&status.json).expect("JSON");
    assert_eq!(report, super::report());
    assert_eq!(status.leader.expect("a leader").device, "edge-1");
    let why = client.why(WhyRequest {}).await.expect("always").into_inner();
    assert_eq!((why.decision.as_str(), why.changes[0].epoch), ("keeps the workload running", 17));

    let transfer = |to: &str, reason: &str, actor: &str| TransferRequest {
        to: to.into(),
        reason: reason.into(),
        actor: actor.into(),
    };
    let done = client.transfer(transfer("edge-2", "disk swap", "")).await.expect("done").into_inner();
    assert_eq!((done.device.as_str(), done.epoch), ("edge-2", 18));
    assert_eq!(grpc.puppet.asked.lock().expect("no panic")[0].actor, "unknown");
    let refused = client.transfer(transfer("edge-3", "", "ann")).await.expect_err("refused");
    assert_eq!(
        (refused.code(), refused.message()),
        (Code::FailedPrecondition, "edge-3 is a witness and never owns")
    );
    assert_eq!(
        client.transfer(transfer("edge-9", "", "")).await.expect_err("unknown").code(),
        Code::NotFound
    );
    let asked = grpc.puppet.asked.lock().expect("no panic").len();
    for wrong in [
        transfer("not a device", "", ""),
        transfer("edge-2", &"x".repeat(257), ""),
        transfer("edge-2", "two\nlines", ""),
        transfer("edge-2", "", "\u{1b}[2J"),
    ] {
        assert_eq!(client.transfer(wrong).await.expect_err("wrong").code(), Code::InvalidArgument);
    }
    assert_eq!(grpc.puppet.asked.lock().expect("no panic").len(), asked, "the node was not bothered");
}

/// The node renews each 100 ms for 400 ms. The workload must never be told less than it has, and must be told the end.
#[tokio::test]
async fn orders_reach_the_node_as_they_were_given() {
    let grpc = Grpc::start().await;
    let mut client = ControlClient::new(grpc.channel().await);
    let order = |reason: &str| OrderRequest { reason: reason.into(), actor: "ann".into(), for_ms: 0 };
    let about = |device: &str| DeviceRequest { device: device.into(), ..DeviceRequest::default() };
    let done = client.pause(order("new switch")).await.expect("done").into_inner();
    assert_eq!((done.epoch, done.owner.as_str()), (18, ""));
    client.resume(order("")).await.expect("done");
    client.drain(about("edge-2")).await.expect("done");
    client.undrain(about("edge-2")).await.expect("done");
    client.prefer(about("edge-2")).await.expect("done");
    client.prefer(about("")).await.expect("done");
    let edge_2 = super::device("edge-2");
    let asked = grpc.puppet.asked.lock().expect("no panic").clone();
    let orders: Vec<Order> = asked.iter().map(|wish| wish.order.clone()).collect();
    let (drain, undrain) = (Order::Drain(edge_2.clone()), Order::Undrain(edge_2.clone()));
    let prefer = Order::Prefer(Some(edge_2));
    assert_eq!(orders, [Order::Pause(None), Order::Resume, drain, undrain, prefer, Order::Prefer(None)]);
    assert_eq!((asked[0].actor.as_str(), asked[0].reason.as_str()), ("ann", "new switch"));
    client.pause(OrderRequest { for_ms: 1_800_000, ..order("") }).await.expect("done");
    let last = || grpc.puppet.asked.lock().expect("no panic").last().expect("one").order.clone();
    assert_eq!(last(), Order::Pause(Some(Duration::from_secs(1800))));
    for for_ms in [999, 31_622_400_001, u64::MAX] {
        let refused = client.pause(OrderRequest { for_ms, ..order("") }).await.expect_err("not so long");
        assert_eq!(refused.code(), Code::InvalidArgument);
    }
    let refused =
        client.resume(OrderRequest { for_ms: 1_000, ..order("") }).await.expect_err("no such thing");
    assert_eq!(refused.code(), Code::InvalidArgument);
    assert!(asked.iter().all(|wish| wish.id.is_none() && wish.base.is_none()));
    assert_eq!(asked[2].actor, "unknown");
    let refused = client.drain(about("edge-3")).await.expect_err("refused");
    assert_eq!(refused.code(), Code::FailedPrecondition);
    for wrong in ["", "not a device"] {
        assert_eq!(client.drain(about(wrong)).await.expect_err("wrong").code(), Code::InvalidArgument);
        assert_eq!(client.undrain(about(wrong)).await.expect_err("wrong").code(), Code::InvalidArgument);
    }
    let long = client.pause(order(&"x".repeat(257))).await.expect_err("too long");
    assert_eq!(long.code(), Code::InvalidArgument);
    assert_eq!(grpc.puppet.asked.lock().expect("no panic").len(), 8, "the node was not bothered");
}

#[tokio::test]
async fn ownership_is_renewed_before_it_lapses_and_its_end_is_told() {
    let grpc = Grpc::start().await;
    let mut client = OwnershipClient::new(grpc.channel().await);
    let hold = Duration::from_millis(400);
    let mut stream = client.watch_ownership(WatchOwnershipRequest {}).await.expect("opens").into_inner();
    let first = soon(stream.next()).await.expect("at once").expect("no error");
    assert_eq!((first.active, first.valid_for_ms, first.reason.as_str()), (false, 0, "another device owns"));

    tokio::time::pause();
    grpc.puppet.permit(17, hold);
    let mut told = 0;
    let mut until = None;
    let renewals_end = tokio::time::Instant::now() + Duration::from_secs(5);
    let mut beat = tokio::time::interval(Duration::from_millis(100));
    while tokio::time::Instant::now() < renewals_end {
        tokio::select! {
            _ = beat.tick() => grpc.puppet.permit(17, hold),
            state = stream.next() => {
                let state = state.expect("goes on").expect("no error");
                let now = tokio::time::Instant::now();
                assert!(state.active && state.epoch == 17 && state.valid_for_ms <= 400, "{state:?}");
                assert!(until.is_none_or(|until| now < until), "told only after the last word had lapsed");
                until = Some(now + Duration::from_millis(state.valid_for_ms));
                told += 1;
            }
        }
    }
    // Twice in each hold, not with every renewal of the node.
    assert!((13..=40).contains(&told), "{told} messages in 5 s");

    // Renewals stop: what is left of the last one is told, then its end, and nothing longer than the truth.
    let truth = tokio::time::Instant::now() + hold;
    // Keeps paused time from leaping while a message is on its way through the kernel.
    let mut pace = tokio::time::interval(Duration::from_millis(5));
    let end = loop {
        let state = tokio::select! {
            state = soon(stream.next()) => state.expect("goes on").expect("no error"),
            _ = pace.tick() => continue,
        };
        let now = tokio::time::Instant::now();
        if !state.active {
            break state;
        }
        assert!(now + Duration::from_millis(state.valid_for_ms) <= truth, "{state:?}");
    };
    assert!(tokio::time::Instant::now() <= truth + Duration::from_millis(100));
    assert_eq!((end.epoch, end.valid_for_ms, end.reason.as_str()), (17, 0, "the lease has lapsed"));
}

#[tokio::test]
async fn a_permit_that_is_taken_away_or_shortened_is_told_at_once() {
    let grpc = Grpc::start().await;
    grpc.puppet.permit(17, Duration::from_secs(3600));
    let mut client = OwnershipClient::new(grpc.channel().await);
    let mut stream = client.watch_ownership(WatchOwnershipRequest {}).await.expect("opens").into_inner();
    assert!(soon(stream.next()).await.expect("at once").expect("no error").active);
    grpc.puppet.permit(17, Duration::from_secs(60));
    let shorter = soon(stream.next()).await.expect("goes on").expect("no error");
    assert!(shorter.active && shorter.valid_for_ms <= 60_000, "{shorter:?}");
    grpc.puppet.permits.send_modify(|permit| permit.active = false);
    assert!(!soon(stream.next()).await.expect("goes on").expect("no error").active);
    grpc.puppet.permit(18, Duration::from_secs(3600));
    assert_eq!(soon(stream.next()).await.expect("goes on").expect("no error").epoch, 18);
}

#[tokio::test]
async fn watching_the_leader_tells_changes_and_the_unknown() {
    let grpc = Grpc::start().await;
    let mut client = ControlClient::new(grpc.channel().await);
    let mut stream = client.watch_leader(WatchLeaderRequest {}).await.expect("opens").into_inner();
    assert!(!soon(stream.next()).await.expect("at once").expect("no error").known);
    grpc.puppet.vouch(Some("edge-1"), 17, Duration::from_secs(3600));
    assert_eq!(soon(stream.next()).await.expect("goes on").expect("no error").device, "edge-1");
    grpc.puppet.vouch(Some("edge-2"), 18, Duration::from_millis(50));
    assert_eq!(soon(stream.next()).await.expect("goes on").expect("no error").epoch, 18);
    let lapsed = soon(stream.next()).await.expect("goes on").expect("no error");
    assert!(!lapsed.known && lapsed.device.is_empty() && lapsed.reason.contains("lapsed"), "{lapsed:?}");
}

#[tokio::test]
async fn health_serves_the_owner_only_on_the_owner() {
    let grpc = Grpc::start().await;
    let mut client = HealthClient::new(grpc.channel().await);
    let mut check = async |name: &str| {
        let request = HealthCheckRequest { service: name.into() };
        client.check(request).await.map(|r| r.into_inner().status()).map_err(|s| s.code())
    };
    assert_eq!(check("").await, Ok(ServingStatus::Serving));
    assert_eq!(check("quorate.v1.Control").await, Ok(ServingStatus::Serving));
    assert_eq!(check("quorate.owner").await, Ok(ServingStatus::NotServing));
    assert_eq!(check("nothing").await, Err(Code::NotFound));
    grpc.puppet.vouch(Some("edge-1"), 17, Duration::from_secs(3600));
    assert_eq!(check("quorate.owner").await, Ok(ServingStatus::Serving));
    grpc.puppet.vouch(Some("edge-2"), 18, Duration::from_secs(3600));
    assert_eq!(check("quorate.owner").await, Ok(ServingStatus::NotServing));
    grpc.puppet.vouch(Some("edge-1"), 19, Duration::ZERO);
    assert_eq!(check("quorate.owner").await, Ok(ServingStatus::NotServing));

    let request = HealthCheckRequest { service: "quorate.owner".into() };
    let mut stream = client.watch(request).await.expect("opens").into_inner();
    let mut next = async || soon(stream.next()).await.expect("goes on").expect("no error").status();
    assert_eq!(next().await, ServingStatus::NotServing);
    grpc.puppet.vouch(Some("edge-1"), 20, Duration::from_millis(50));
    assert_eq!(next().await, ServingStatus::Serving);
    assert_eq!(next().await, ServingStatus::NotServing);
    let request = HealthCheckRequest { service: "nothing".into() };
    let mut stream = client.watch(request).await.expect("opens").into_inner();
    assert_eq!(
        soon(stream.next()).await.expect("at once").expect("no error").status(),
        ServingStatus::ServiceUnknown
    );
}

#[tokio::test]
async fn reflection_shows_peoples_contract_and_hides_the_members() {
    use tonic_reflection::pb::v1::{
        ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
        server_reflection_request::MessageRequest, server_reflection_response::MessageResponse,
    };
    let grpc = Grpc::start().await;
    let mut client = ServerReflectionClient::new(grpc.channel().await);
    let request = ServerReflectionRequest {
        host: String::new(),
        message_request: Some(MessageRequest::ListServices(String::new())),
    };
    let mut answers =
        client.server_reflection_info(tokio_stream::iter([request])).await.expect("opens").into_inner();
    let answer = answers.next().await.expect("answers").expect("no error").message_response;
    let Some(MessageResponse::ListServicesResponse(list)) = answer else { panic!("{answer:?}") };
    let names: Vec<String> = list.service.into_iter().map(|s| s.name).collect();
    for name in ["quorate.v1.Control", "quorate.v1.Ownership", "grpc.health.v1.Health"] {
        assert!(names.iter().any(|n| n == name), "{names:?}");
    }
    assert!(!names.iter().any(|n| n.contains("peer")), "{names:?}");
}

#[tokio::test]
async fn garbage_and_oversized_messages_end_only_themselves() {
    let grpc = Grpc::start().await;
    let mut client = ControlClient::new(grpc.channel().await);
    for garbage in [
        &b"GET /owner HTTP/1.1\r\nhost: x\r\n\r\n"[..],
        &[0u8; 4096],
        b"\x16\x03\x01\x02\x00\x01\x00\x01",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff",
    ] {
        let mut stream = grpc.raw().await;
        let _ = stream.write_all(garbage).await;
        let _ = stream.shutdown().await;
        let mut said = Vec::new();
        let _ = stream.read_to_end(&mut said).await;
    }
    let huge = TransferRequest { to: String::new(), reason: "x".repeat(1 << 20), actor: String::new() };
    let refused = client.transfer(huge).await.expect_err("too large");
    assert_eq!(refused.code(), Code::OutOfRange, "{refused:?}");
    client.get_status(GetStatusRequest {}).await.expect("the same connection still serves");
    ControlClient::new(grpc.channel().await).get_status(GetStatusRequest {}).await.expect("and new ones");
}

#[tokio::test]
async fn mute_connections_are_sent_away_and_nobody_waits_for_them() {
    let grpc = Grpc::start().await;
    let mut mute = Vec::new();
    for i in 0..80 {
        let mut stream = grpc.raw().await;
        if i % 2 == 0 {
            stream.write_all(b"PRI * HTTP/2").await.expect("sends");
        }
        mute.push(stream);
    }
    skip(Duration::from_secs(6)).await;
    let mut client = ControlClient::new(soon(grpc.channel()).await);
    soon(client.get_status(GetStatusRequest {})).await.expect("serves");
    // Those who waited for a place have one now.
    skip(Duration::from_secs(6)).await;
    let mut said = Vec::new();
    for stream in &mut mute {
        let _ = soon(stream.read_to_end(&mut said)).await;
    }
    soon(client.get_status(GetStatusRequest {})).await.expect("still serves");
}

#[tokio::test]
async fn streams_are_counted_and_given_back() {
    let grpc = Grpc::start().await;
    // 32 streams fit one connection, 64 the whole server.
    let mut clients = vec![];
    for _ in 0..3 {
        clients.push(OwnershipClient::new(grpc.channel().await));
    }
    let mut open = Vec::new();
    for i in 0..64 {
        open.push(clients[i / 30].watch_ownership(WatchOwnershipRequest {}).await.expect("opens"));
    }
    let full = clients[2].watch_ownership(WatchOwnershipRequest {}).await.expect_err("full");
    assert_eq!(full.code(), Code::ResourceExhausted);
    open.clear();
    // The server hears of the end a moment later.
    soon(async {
        while clients[2].watch_ownership(WatchOwnershipRequest {}).await.is_err() {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

#[tokio::test]
async fn leaving_ends_streams_and_removes_the_socket() {
    let grpc = Grpc::start().await;
    let socket = grpc.folder.path().join("control.sock");
    assert!(socket.exists());
    let mut client = OwnershipClient::new(grpc.channel().await);
    let mut stream = client.watch_ownership(WatchOwnershipRequest {}).await.expect("opens").into_inner();
    soon(stream.next()).await.expect("at once").expect("no error");
    grpc.stop.cancel();
    soon(grpc.serving).await.expect("no panic").expect("no error");
    assert!(!matches!(soon(stream.next()).await, Some(Ok(_))));
    assert!(!socket.exists());
}

#[tokio::test]
async fn a_control_socket_that_is_removed_is_made_anew() {
    let grpc = Grpc::start().await;
    let socket = grpc.folder.path().join("control.sock");
    let mut client = ControlClient::new(grpc.channel().await);
    grpc.puppet.vouch(Some("edge-2"), 17, Duration::from_secs(3600));
    client.get_leader(GetLeaderRequest {}).await.expect("known");
    std::fs::remove_file(&socket).expect("removes");
    soon(async {
        while tokio::net::UnixStream::connect(&socket).await.is_err() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    // Who was connected has lost nothing.
    client.get_leader(GetLeaderRequest {}).await.expect("known");
}
