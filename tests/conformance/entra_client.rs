//! A registered application with a secret in a file: the sidecar's client and Microsoft's own, against the emulated directory.

use std::{
    io::{Read as _, Write as _},
    net::SocketAddr,
    os::unix::fs::PermissionsExt as _,
    path::PathBuf,
    sync::Arc,
};

use quorate::{
    clock::BootClock,
    condition::Condition,
    hub::{
        Error, Hub as _, Settings, Target,
        memory::Trouble,
        rest::RestHub,
        settings::{Identity, Registration},
    },
};

use super::{
    hub::{Site, loopback},
    python_sdk::{Script, script},
};

fn write(file: &PathBuf, text: &str, mode: u32) {
    std::fs::write(file, text).expect("writes");
    std::fs::set_permissions(file, std::fs::Permissions::from_mode(mode)).expect("is ours");
}

/// An emulator with its directory, and the application's secret in a file.
struct Bench {
    site: Site,
    authority: SocketAddr,
    file: PathBuf,
}

impl Bench {
    fn start() -> Bench {
        let site = Site::start(&["edge-1"]);
        let authority = site.emulator.serve_authority(loopback()).expect("serves");
        let file = site.folder.path().join("client-secret");
        write(&file, site.emulator.application().secret.reveal(), 0o600);
        Bench { site, authority, file }
    }

    fn registration(&self) -> Registration {
        let application = self.site.emulator.application();
        Registration {
            tenant: application.tenant,
            client_id: application.client_id,
            secret_file: self.file.clone(),
            authority: format!("https://localhost:{}", self.authority.port()),
        }
    }

    fn settings(&self, registration: Registration) -> Settings {
        Settings {
            connection_string: None,
            identity: Some(Identity::Client(registration)),
            host: Some(format!("localhost:{}", self.site.emulator.address().port())),
            ..self.site.settings()
        }
    }

    fn hub(&self, registration: Registration) -> RestHub {
        RestHub::open(&self.settings(registration), Arc::new(BootClock)).expect("opens")
    }
}

async fn refused(hub: &RestHub) -> Error {
    let error = hub.get_twin(&Target::device("edge-1")).await.expect_err("is refused");
    assert!(!error.to_string().contains("~"), "the secret is shown: {error}");
    error
}

#[tokio::test]
async fn the_rest_client_lives_on_tokens_of_an_application() {
    let bench = Bench::start();
    let hub = bench.hub(bench.registration());
    let target = Target::device("edge-1");
    let twin = hub.get_twin(&target).await.expect("reads");
    let change = super::hub::change(serde_json::json!({"tags": {"a": 1}}));
    hub.patch_twin(&target, &change, Some(&twin.etag)).await.expect("patches");
    let shown = format!("{hub:?} {:?}", bench.settings(bench.registration()));
    assert!(!shown.contains(bench.site.emulator.application().secret.reveal()), "{shown}");
    // A new secret is found by itself as soon as the old token no longer does.
    let new = bench.site.emulator.rotate_secret();
    bench.site.emulator.trouble(Trouble::TokensExpired);
    refused(&hub).await;
    bench.site.emulator.trouble(Trouble::None);
    let error = refused(&hub).await;
    assert!(
        error.to_string().contains("AADSTS7000215") && error.to_string().contains("client-secret"),
        "{error}"
    );
    write(&bench.file, new.secret.reveal(), 0o640);
    hub.get_twin(&target).await.expect("reads");
    bench.site.emulator.stop().await;
}

#[tokio::test]
async fn every_refusal_says_what_to_mend() {
    let bench = Bench::start();
    let right = bench.registration();
    let unknown = "72f988bf-86f1-41af-91ab-2d7cd011db47".to_owned();
    for (registration, words) in [
        (Registration { tenant: unknown.clone(), ..right.clone() }, ["AADSTS90002", "hub.tenant"]),
        (Registration { client_id: unknown, ..right.clone() }, ["AADSTS700016", "hub.client_id"]),
    ] {
        let error = refused(&bench.hub(registration)).await;
        assert_eq!(error.condition(), Some(Condition::HubUnauthorized));
        assert!(words.iter().all(|word| error.to_string().contains(word)), "{error}");
    }
    let hub = bench.hub(right.clone());
    for (text, mode, word) in [("", 0o600, "one line"), ("a\nb", 0o600, "one line"), ("a", 0o644, "mode 644")]
    {
        write(&bench.file, text, mode);
        let error = refused(&hub).await;
        assert!(matches!(&error, Error::NoToken(why) if why.contains(word)), "{error}");
    }
    std::fs::remove_file(&bench.file).expect("is there");
    let error = refused(&hub).await;
    assert!(error.to_string().contains("cannot be read"), "{error}");
    write(&bench.file, bench.site.emulator.application().secret.reveal(), 0o600);
    bench.site.emulator.expire_secret();
    let error = refused(&hub).await;
    assert!(matches!(&error, Error::NoToken(why) if why.contains("has expired (AADSTS7000222)")), "{error}");
    // Whom nobody vouches for is told nothing.
    let settings = Settings { ca_file: None, ..bench.settings(right.clone()) };
    let error = refused(&RestHub::open(&settings, Arc::new(BootClock)).expect("opens")).await;
    assert!(matches!(&error, Error::Untrusted(why) if why.contains("the token service")), "{error}");
    // Nobody there at all is the network's fault and no wrong credentials.
    let nobody = loopback().local_addr().expect("an address");
    let authority = format!("https://localhost:{}", nobody.port());
    let error = refused(&bench.hub(Registration { authority, ..right })).await;
    assert!(matches!(&error, Error::Unreachable(why) if why.contains("the token service")), "{error}");
    assert_eq!(error.condition(), Some(Condition::HubUnreachable));
    bench.site.emulator.stop().await;
}

/// Something with the right certificate's name that speaks no TLS at all must not get the secret, whatever it says first.
#[tokio::test]
async fn the_secret_leaves_over_tls_alone() {
    let bench = Bench::start();
    let listener = loopback();
    let address = listener.local_addr().expect("an address");
    let heard = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("a client");
        stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n{}").expect("is sent");
        let mut heard = Vec::new();
        // A reset is an end like any other.
        let _ended = stream.read_to_end(&mut heard).is_ok();
        heard
    });
    let authority = format!("https://localhost:{}", address.port());
    let error = refused(&bench.hub(Registration { authority, ..bench.registration() })).await;
    assert!(matches!(&error, Error::NotTheHub(_)), "{error}");
    let heard = heard.join().expect("ends");
    let secret = bench.site.emulator.application().secret;
    assert!(!heard.windows(9).any(|part| part == &secret.reveal().as_bytes()[..9]));
    bench.site.emulator.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn azure_identity_for_python_gets_tokens_with_a_secret() {
    let Some(python) = Script::python() else { return };
    let bench = Bench::start();
    let application = bench.site.emulator.application();
    let arguments = [
        format!("localhost:{}", bench.authority.port()),
        application.tenant,
        application.client_id,
        bench.file.to_string_lossy().into_owned(),
        format!("localhost:{}", bench.site.emulator.address().port()),
        bench.site.ca_file().to_string_lossy().into_owned(),
    ];
    let told = script(python, "entra_client_sdk.py", &arguments).await;
    assert!(told.contains("the application is let in"), "{told}");
    bench.site.emulator.stop().await;
}
