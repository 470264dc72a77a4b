//! Microsoft's own service SDK for Python against the emulator: what it accepts, tools for the real hub accept.
//!
//! `QUORATE_TEST_PYTHON` names a Python that has all of [`PACKAGES`]. Without it, a virtual environment is made once beside
//! the test's own build and filled by pip. `QUORATE_SKIP_PYTHON=1` leaves these tests out.

use std::{
    path::{Path, PathBuf},
    process::{Command, Output},
    sync::OnceLock,
};

use super::hub::Site;

/// All of Microsoft's packages that tests use, and what they forget to ask for.
const PACKAGES: [&str; 5] =
    ["azure-iot-hub==2.7.0", "six", "azure-identity==1.27.0", "azure-iot-device==2.14.0", "paho-mqtt<2"];
const TRIAL: &str = "import azure.iot.hub, azure.identity, azure.iot.device";

#[expect(clippy::disallowed_methods, reason = "a test runs Python")]
fn run(program: &Path, arguments: &[&str]) -> Result<Output, String> {
    Command::new(program)
        .args(arguments)
        .env_remove("HTTPS_PROXY")
        .env_remove("https_proxy")
        .env("PYTHONWARNINGS", "ignore")
        .output()
        .map_err(|why| format!("{} cannot be started: {why}", program.display()))
}

fn must(program: &Path, arguments: &[&str]) -> Result<(), String> {
    let output = run(program, arguments)?;
    if output.status.success() {
        return Ok(());
    }
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    Err(format!("{} {}: {text}", program.display(), arguments.join(" ")))
}

/// A Python with the SDKs: the one named, or one of our own.
fn prepared(named: Option<PathBuf>) -> Result<PathBuf, String> {
    if let Some(named) = named {
        return must(&named, &["-c", TRIAL]).map(|()| named);
    }
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("python-sdk");
    let python = folder.join("bin/python");
    if must(&python, &["-c", TRIAL]).is_ok() {
        return Ok(python);
    }
    // Whatever is there is half made, or lacks what is new.
    must(Path::new("python3"), &["-m", "venv", "--clear", &folder.to_string_lossy()])?;
    let install = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check"];
    must(&python, &[&install[..], &PACKAGES].concat()).map(|()| python)
}

/// A Python to run scripts with.
pub(super) struct Script;

impl Script {
    /// The Python; `None` if these tests are left out.
    #[expect(
        clippy::disallowed_methods,
        clippy::print_stdout,
        reason = "a test reads its own two switches, and says so"
    )]
    pub(super) fn python() -> Option<&'static Path> {
        static PYTHON: OnceLock<Result<PathBuf, String>> = OnceLock::new();
        if std::env::var("QUORATE_SKIP_PYTHON").is_ok_and(|skip| skip == "1") {
            println!("left out: QUORATE_SKIP_PYTHON=1");
            return None;
        }
        let named = || std::env::var_os("QUORATE_TEST_PYTHON").map(PathBuf::from);
        match PYTHON.get_or_init(|| prepared(named())) {
            Ok(python) => Some(python),
            Err(why) => panic!(
                "{why}\nThis test needs Python 3 with {}. Make a virtual environment, install these with pip, and name \
                 its python in QUORATE_TEST_PYTHON; or leave the test out with QUORATE_SKIP_PYTHON=1.",
                PACKAGES.join(" and ")
            ),
        }
    }
}

/// Runs a script of this folder to its end, and returns all that it said. Panics if it failed.
pub(super) async fn script(python: &'static Path, name: &str, arguments: &[String]) -> String {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/conformance").join(name);
    let all: Vec<String> = [&[file.to_string_lossy().into_owned()], arguments].concat();
    let output =
        tokio::task::spawn_blocking(move || run(python, &all.iter().map(String::as_str).collect::<Vec<_>>()));
    let output = output.await.expect("runs").expect("starts");
    let told =
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{name}: {told}");
    told
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn azure_iot_hub_for_python_reads_patches_and_queries() {
    let Some(python) = Script::python() else { return };
    let site = Site::start(&["edge-1"]);
    let arguments = [
        site.emulator.owner_connection_string(),
        site.emulator.service_connection_string(),
        site.ca_file().to_string_lossy().into_owned(),
    ];
    let told = script(python, "python_sdk.py", &arguments).await;
    assert!(told.contains("the SDK is content"), "{told}");
    site.emulator.stop().await;
}
