use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
};

use super::*;

const S: Duration = Duration::from_secs(1);
/// Longer than any answer on loopback takes.
const LONG: Duration = Duration::from_secs(20);

fn probe(target: Target, timeout: Duration) -> Box<dyn Probe> {
    let thresholds = Thresholds { fail_after: 1, pass_after: 1, grace: Duration::ZERO };
    open(&Settings { name: "p".into(), role: Role::Plant, target, every: S, timeout, thresholds })
}

#[expect(clippy::disallowed_methods, reason = "the test itself is what is asked")]
async fn listener() -> (TcpListener, Place) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let port = listener.local_addr().expect("an address").port();
    (listener, Place { host: "127.0.0.1".into(), port })
}

/// Answers every connection with these bytes, or says nothing and holds it if there are none.
#[expect(clippy::disallowed_methods, reason = "the other side of a test")]
async fn serving(answer: &'static [u8]) -> Place {
    let (listener, place) = listener().await;
    tokio::spawn(async move {
        let mut held = Vec::new();
        while let Ok((mut stream, _)) = listener.accept().await {
            if answer.is_empty() {
                held.push(stream);
                continue;
            }
            let mut request = [0; 1024];
            let _ = stream.read(&mut request).await;
            let _ = stream.write_all(answer).await;
        }
    });
    place
}

fn http(place: Place) -> Target {
    let authority = format!("{}:{}", place.host, place.port);
    Target::Http { place, authority, path: "/ready".into() }
}

#[tokio::test]
async fn a_port_answers_until_its_listener_is_gone() {
    let (listener, place) = listener().await;
    let mut by_name = probe(Target::Tcp(Place { host: "localhost".into(), ..place.clone() }), LONG);
    let mut probe = probe(Target::Tcp(place), LONG);
    assert_eq!((probe.ask().await, by_name.ask().await), (Ok(()), Ok(())));
    drop(listener);
    assert!(probe.ask().await.is_err_and(|why| why.contains("refused")));
    assert!(by_name.ask().await.is_err());
}

#[tokio::test]
async fn a_web_server_is_judged_by_its_code() {
    for (answer, right) in [
        (&b"HTTP/1.1 204 No Content\r\n\r\n"[..], true),
        (b"HTTP/1.1 302 Found\r\nLocation: /\r\n\r\n", true),
        (b"HTTP/1.1 503 Service Unavailable\r\n\r\n", false),
        (b"220 mail ESMTP\r\n", false),
        (&[b'x'; 100_000], false),
    ] {
        let answer = probe(http(serving(answer).await), LONG).ask().await;
        assert_eq!(answer.is_ok(), right, "{answer:?}");
    }
}

#[tokio::test]
async fn who_accepts_and_says_nothing_can_be_left_and_asked_again() {
    let place = serving(b"").await;
    let service = String::new();
    for target in [http(place.clone()), Target::Grpc { place, service }] {
        let mut probe = probe(target, S / 5);
        for _ in 0..3 {
            let asked = tokio::time::timeout(S, probe.ask()).await;
            assert!(!matches!(asked, Ok(Ok(()))), "{asked:?}");
        }
    }
}

#[tokio::test]
#[expect(clippy::disallowed_methods, reason = "the other side of a test")]
async fn a_health_service_is_believed() {
    let (listener, place) = listener().await;
    let (reporter, service) = tonic_health::server::health_reporter();
    let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
    tokio::spawn(tonic::transport::Server::builder().add_service(service).serve_with_incoming(incoming));
    let target = |service: &str| Target::Grpc { place: place.clone(), service: service.into() };
    let mut plant = probe(target("plant"), LONG);
    assert!(plant.ask().await.is_err_and(|why| why.contains("NotFound")));
    reporter.set_service_status("plant", tonic_health::ServingStatus::Serving).await;
    assert_eq!(plant.ask().await, Ok(()));
    reporter.set_service_status("plant", tonic_health::ServingStatus::NotServing).await;
    assert_eq!(plant.ask().await, Err("it says NOT_SERVING".into()));
    assert_eq!(probe(target(""), LONG).ask().await, Ok(()), "the whole server");
}

#[tokio::test]
async fn a_heartbeat_is_a_file_that_keeps_changing() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("beat");
    let mut probe = probe(Target::Heartbeat(path.clone()), LONG);
    assert!(probe.ask().await.is_err_and(|why| why.contains("beat")));
    std::fs::write(&path, "1").expect("writes");
    assert!(probe.ask().await.is_err(), "once is no beat");
    assert!(probe.ask().await.is_err());
    std::fs::write(&path, "12").expect("writes");
    assert_eq!(probe.ask().await, Ok(()));
    assert!(probe.ask().await.is_err_and(|why| why.contains("not touched")));
}

#[tokio::test]
async fn a_command_that_fails_or_hangs() {
    let shell = |script: &str| Target::Exec(["/bin/sh", "-c", script].map(str::to_owned).into());
    assert_eq!(probe(shell("exit 0"), LONG).ask().await, Ok(()));
    assert!(probe(shell("exit 7"), LONG).ask().await.is_err_and(|why| why.contains("exited with 7")));
    let hangs = probe(shell("sleep 100"), S / 10).ask().await;
    assert!(hangs.is_err_and(|why| why.contains("did not end within 100 ms")));
}

/// However often is asked, what stands still stands still once; and then it is asked anew.
#[tokio::test]
async fn work_that_blocks_is_there_once_at_most() {
    static BEGUN: AtomicUsize = AtomicUsize::new(0);
    let (release, held) = std::sync::mpsc::channel::<()>();
    let held = Arc::new(std::sync::Mutex::new(held));
    let mut alone = Alone::default();
    let work = || {
        let held = held.clone();
        move || {
            BEGUN.fetch_add(1, Ordering::Relaxed);
            held.lock().expect("nobody panics").recv().is_ok()
        }
    };
    for _ in 0..20 {
        assert!(tokio::time::timeout(Duration::from_millis(5), alone.run(work())).await.is_err());
    }
    release.send(()).expect("it waits");
    assert_eq!(alone.run(work()).await, Ok(true));
    assert_eq!(BEGUN.load(Ordering::Relaxed), 1);
    release.send(()).expect("it will wait");
    assert_eq!(alone.run(work()).await, Ok(true));
    assert_eq!(BEGUN.load(Ordering::Relaxed), 2);
}
