//! Microsoft's own service SDK for Python against the emulator: what it accepts, tools for the real hub accept.
//!
//! `QUORATE_TEST_PYTHON` names a Python that has `azure-iot-hub==2.7.0` and `six`. Without it, a virtual environment is
//! made once beside the test's own build and filled by pip. `QUORATE_SKIP_PYTHON=1` leaves this test out.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use super::hub::Site;

const PACKAGES: [&str; 2] = ["azure-iot-hub==2.7.0", "six"];

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

/// A Python with the SDK: the one named, or one of our own.
fn python(named: Option<PathBuf>) -> Result<PathBuf, String> {
    if let Some(named) = named {
        return must(&named, &["-c", "import azure.iot.hub"]).map(|()| named);
    }
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("python-sdk");
    let python = folder.join("bin/python");
    if must(&python, &["-c", "import azure.iot.hub"]).is_ok() {
        return Ok(python);
    }
    // Whatever is there is half made.
    let _removed = fs::remove_dir_all(&folder).is_ok();
    must(Path::new("python3"), &["-m", "venv", &folder.to_string_lossy()])?;
    let install =
        ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", PACKAGES[0], PACKAGES[1]];
    must(&python, &install).map(|()| python)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[expect(clippy::disallowed_methods, reason = "a test reads its own two switches")]
async fn azure_iot_hub_for_python_reads_patches_and_queries() {
    if std::env::var("QUORATE_SKIP_PYTHON").is_ok_and(|skip| skip == "1") {
        println!("left out: QUORATE_SKIP_PYTHON=1");
        return;
    }
    let named = std::env::var_os("QUORATE_TEST_PYTHON").map(PathBuf::from);
    let python = python(named).unwrap_or_else(|why| {
        panic!(
            "{why}\nThis test needs Python 3 with {}. Make a virtual environment, install these with pip, and name its \
             python in QUORATE_TEST_PYTHON; or leave the test out with QUORATE_SKIP_PYTHON=1.",
            PACKAGES.join(" and ")
        )
    });
    let site = Site::start(&["edge-1"]);
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/conformance/python_sdk.py");
    let (owner, service) =
        (site.emulator.owner_connection_string(), site.emulator.service_connection_string());
    let ca = site.ca_file();
    let output = tokio::task::spawn_blocking(move || {
        run(&python, &[&script.to_string_lossy(), &owner, &service, &ca.to_string_lossy()])
    })
    .await
    .expect("runs")
    .expect("starts");
    let told =
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && told.contains("the SDK is content"), "{told}");
    site.emulator.stop().await;
}
