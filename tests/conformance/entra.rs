//! Entra ID end to end: the sidecar's token sources and Microsoft's own, against the emulated services and hub.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpListener},
    sync::Arc,
    time::Duration,
};

use quorate::{
    clock::{BootClock, Clock},
    condition::Condition,
    emulator::{Options, Role},
    hub::{
        Error, Hub, Settings, Target,
        entra::{Entra, TokenSource},
        memory::Trouble,
        rest::RestHub,
    },
};

use super::{
    http::{https, plain},
    hub::{Hands, Site, change, loopback},
    python_sdk::{Script, script},
};

const PATH: &str = "/metadata/identity/oauth2/token";
const PATIENCE: Duration = Duration::from_secs(20);

fn arc(address: SocketAddr, folder: &std::path::Path, clock: Arc<dyn Clock>) -> TokenSource {
    let endpoint = format!("http://{address}{PATH}");
    TokenSource::Entra(Entra::arc(Some(&endpoint), Some(folder), PATIENCE, clock).expect("is here"))
}

fn imds(address: SocketAddr, clock: Arc<dyn Clock>) -> TokenSource {
    let endpoint = format!("http://{address}{PATH}");
    TokenSource::Entra(Entra::imds(Some(&endpoint), None, PATIENCE, clock).expect("is here"))
}

async fn told(source: &TokenSource) -> String {
    source.authorization(&BootClock).await.expect("a token").reveal().to_owned()
}

#[tokio::test]
async fn both_sources_open_the_hub_as_far_as_the_role_goes() {
    let site = Site::start(&["edge-1"]);
    let folder = site.folder.path().canonicalize().expect("a folder").join("tokens");
    let address = site.emulator.serve_identity(loopback(), &folder).expect("serves");
    let twin = "/twins/edge-1?api-version=2021-04-12";
    for source in [arc(address, &folder, Arc::new(BootClock)), imds(address, Arc::new(BootClock))] {
        let token = told(&source).await;
        let bearer = [("authorization", token.as_str())];
        site.emulator.assign(&[Role::TwinContributor], Duration::from_secs(3600));
        assert_eq!(https(&site, "GET", twin, &bearer, "").await.status, 200);
        assert_eq!(https(&site, "PATCH", twin, &bearer, r#"{"tags":{"a":1}}"#).await.status, 200);
        let refused = https(&site, "GET", "/devices/edge-1?api-version=2021-04-12", &bearer, "").await;
        assert!(refused.status == 401 && refused.body.contains("IotHubs/devices/read"), "{refused:?}");
        // The role is taken away while the token lives.
        site.emulator.assign(&[Role::DataReader], Duration::from_secs(3600));
        assert_eq!(https(&site, "GET", twin, &bearer, "").await.status, 200);
        let refused = https(&site, "PATCH", twin, &bearer, r#"{"tags":{"a":2}}"#).await;
        assert!(refused.status == 401 && refused.body.contains("IotHubs/twins/write"), "{refused:?}");
    }
    // Proofs are used up.
    assert_eq!(std::fs::read_dir(&folder).expect("a folder").count(), 0);
    site.emulator.stop().await;
}

#[tokio::test]
async fn a_token_is_kept_renewed_early_and_outlives_its_service() {
    let clock = Arc::new(Hands::default());
    let site = Site::start_with(&Options::default(), clock.clone());
    let address = site.emulator.serve_identity(loopback(), site.folder.path()).expect("serves");
    site.emulator.assign(&[Role::TwinContributor], Duration::from_secs(600));
    let source = imds(address, clock.clone());
    let first = told(&source).await;
    clock.forward(499);
    assert_eq!(told(&source).await, first);
    clock.forward(1);
    let second = told(&source).await;
    assert_ne!(second, first);
    site.emulator.stop().await;
    // Due for renewal, but nobody answers: the old one is used to its end and not a second longer.
    clock.forward(550);
    assert_eq!(told(&source).await, second);
    clock.forward(49);
    assert_eq!(told(&source).await, second);
    clock.forward(1);
    let error = source.authorization(&BootClock).await.expect_err("has ended");
    assert!(matches!(&error, Error::NoToken(why) if why.contains("the metadata service")), "{error}");
    assert_eq!(error.condition(), Some(Condition::HubUnauthorized));
}

#[tokio::test]
async fn the_rest_client_lives_on_tokens_of_this_machine() {
    let site = Site::start(&["edge-1"]);
    let folder = site.folder.path().canonicalize().expect("a folder").join("tokens");
    let address = site.emulator.serve_identity(loopback(), &folder).expect("serves");
    let source = arc(address, &folder, Arc::new(BootClock));
    let host = format!("localhost:{}", site.emulator.address().port());
    let settings = Settings { connection_string: None, ..site.settings() };
    let hub = RestHub::with_tokens(host, source, &settings, Arc::new(BootClock)).expect("opens");
    let target = Target::device("edge-1");
    let twin = hub.get_twin(&target).await.expect("reads");
    let change = change(serde_json::json!({"tags": {"a": 1}}));
    hub.patch_twin(&target, &change, Some(&twin.etag)).await.expect("patches");
    site.emulator.assign(&[Role::DataReader], Duration::from_secs(3600));
    let error = hub.patch_twin(&target, &change, None).await.expect_err("may only read");
    assert!(
        matches!(&error, Error::Unauthorized { detail, .. } if detail.contains("twins/write")),
        "{error}"
    );
    // A refused token is thrown away, and the next one asked for at once.
    site.emulator.assign(&[Role::TwinContributor], Duration::from_secs(3600));
    hub.patch_twin(&target, &change, None).await.expect("patches");
    let text = format!("{hub:?}");
    assert!(text.contains("Azure Arc's agent") && !text.contains("Bearer"), "{text}");
    // Without the service there is no token once the one in hand is refused, and the error names it.
    site.emulator.trouble(Trouble::TokensExpired);
    hub.get_twin(&target).await.expect_err("is refused");
    std::fs::remove_dir_all(&folder).expect("is there");
    let error = hub.get_twin(&target).await.expect_err("has no token");
    assert!(matches!(&error, Error::NoToken(why) if why.contains("Azure Arc's agent")), "{error}");
    site.emulator.stop().await;
}

/// Something that answers each connection with the next text, then hangs up.
fn stranger(answers: Vec<String>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("an address");
    std::thread::spawn(move || {
        for answer in answers {
            let Ok((mut stream, _)) = listener.accept() else { return };
            let _read = stream.read(&mut [0; 4096]).is_ok();
            let _written = stream.write_all(answer.as_bytes()).is_ok();
        }
    });
    address
}

fn answer(status: &str, headers: &str, body: &str) -> String {
    format!("HTTP/1.1 {status}\r\n{headers}content-length: {}\r\nconnection: close\r\n\r\n{body}", body.len())
}

#[tokio::test]
async fn whatever_answers_instead_gets_no_file_and_gives_no_token() {
    let outer = tempfile::tempdir().expect("a folder");
    let root = outer.path().canonicalize().expect("a folder");
    let folder = root.join("tokens");
    std::fs::create_dir(&folder).expect("a folder");
    std::fs::write(root.join("secret.key"), "host-secret").expect("writes");
    std::fs::write(folder.join("mine.key"), "own-secret").expect("writes");
    let realm = |path: &str| format!("www-authenticate: Basic realm={path}\r\n");
    let good = answer("200 OK", "", r#"{"access_token":"ey","expires_in":"60"}"#);
    let ask = answer("401 Unauthorized", &realm(&folder.join("mine.key").to_string_lossy()), "");
    let outside = |path: &str| vec![answer("401 Unauthorized", &realm(path), ""), good.clone()];
    for (answers, word) in [
        (vec![good.clone()], "where it should ask for proof"),
        (outside(&root.join("secret.key").to_string_lossy()), "not a .key file directly in"),
        (outside(&folder.join("../secret.key").to_string_lossy()), "not a .key file directly in"),
        (outside("/etc/shadow"), "not a .key file directly in"),
        (vec![answer("401 Unauthorized", "www-authenticate: Bearer\r\n", "")], "does not say which file"),
        (vec![answer("302 Found", "location: http://127.0.0.1:1/\r\n", "")], "answers 302"),
        (vec![ask.clone(), answer("200 OK", "", "<html>")], "not JSON"),
        (vec![ask.clone(), answer("200 OK", "", &"x".repeat(100_000))], "longer than"),
        (vec![ask.clone(), answer("200 OK", "", r#"{"access_token":"ey"}"#)], "how long"),
        (
            vec![ask.clone(), answer("403 Forbidden", "", r#"{"error_description":"not you"}"#)],
            "403: not you",
        ),
        (vec![ask.clone(), String::new()], "cannot be asked"),
    ] {
        let source = arc(stranger(answers), &folder, Arc::new(BootClock));
        let error = source.authorization(&BootClock).await.expect_err("is not the agent");
        assert!(matches!(&error, Error::NoToken(why) if why.contains(word)), "{word}: {error}");
        let shown = format!("{error} {error:?} {source:?}");
        assert!(!shown.contains("own-secret") && !shown.contains("host-secret"), "{shown}");
    }
    let source = arc(stranger(vec![ask, good]), &folder, Arc::new(BootClock));
    assert_eq!(told(&source).await, "Bearer ey");
}

#[tokio::test]
async fn the_services_refuse_what_the_real_ones_refuse() {
    let site = Site::start(&[]);
    let address = site.emulator.serve_identity(loopback(), site.folder.path()).expect("serves");
    let metadata = [("metadata", "true")];
    let hubs = "resource=https://iothubs.azure.net";
    for (query, headers, status) in [
        (format!("api-version=2018-02-01&{hubs}"), &[][..], 400),
        (format!("api-version=1999-01-01&{hubs}"), &metadata[..], 400),
        ("api-version=2018-02-01&resource=https://vault.azure.net".into(), &metadata[..], 400),
        (format!("api-version=2018-02-01&{hubs}"), &metadata[..], 200),
        (format!("api-version=2020-06-01&{hubs}"), &metadata[..], 401),
        (
            format!("api-version=2020-06-01&{hubs}"),
            &[("metadata", "true"), ("authorization", "Basic guess")][..],
            403,
        ),
    ] {
        let answer = plain(address, "GET", &format!("{PATH}?{query}"), headers, "").await;
        assert_eq!(answer.status, status, "{query} {answer:?}");
    }
    site.emulator.stop().await;
}

/// Microsoft's clients insist on the agent's own folder. Where a test may not write there, they are told another one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn azure_identity_for_python_gets_tokens_that_azure_iot_hub_uses() {
    let Some(python) = Script::python() else { return };
    let site = Site::start(&["edge-1"]);
    let agents = std::path::Path::new("/var/opt/azcmagent/tokens");
    let own = site.folder.path().canonicalize().expect("a folder").join("tokens");
    // One run of the suite at a time in that folder.
    let turn = tokio::task::spawn_blocking(|| {
        let file = std::fs::File::create(std::env::temp_dir().join("quorate-test-azcmagent.lock"));
        file.and_then(|file| file.lock().map(|()| file))
    });
    let turn = turn.await.expect("runs");
    let existed = agents.exists();
    let may = turn.is_ok() && std::fs::create_dir_all(agents).is_ok();
    let folder = if may { agents } else { own.as_path() };
    let address = site.emulator.serve_identity(loopback(), folder).expect("serves");
    let hub = format!("localhost:{}", site.emulator.address().port());
    let arguments = [
        format!("http://{address}"),
        hub,
        site.ca_file().to_string_lossy().into_owned(),
        folder.to_string_lossy().into_owned(),
    ];
    let told = script(python, "entra_sdk.py", &arguments).await;
    if !existed && folder == agents {
        let _removed = std::fs::remove_dir(agents).is_ok();
        let _removed = std::fs::remove_dir("/var/opt/azcmagent").is_ok();
    }
    drop(turn);
    assert!(told.contains("both identities are let in"), "{told}");
    site.emulator.stop().await;
}
