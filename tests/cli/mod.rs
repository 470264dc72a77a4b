//! The real binary's texts and exit codes, held by golden files.
//!
//! `QUORATE_BLESS=1 cargo test` writes the golden files anew; read the difference before you commit it.

mod check;
mod config_faults;
mod help;

use std::{
    path::PathBuf,
    process::{Command, Output},
};

/// The real binary with nothing of our own environment but what is given.
#[expect(clippy::disallowed_methods, reason = "tests start the real binary")]
fn quorate(arguments: &[&str], environment: &[(&str, &str)]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_quorate"))
        .args(arguments)
        .env_clear()
        .envs(environment.iter().copied())
        .output()
        .expect("the binary starts")
}

/// Compares with `tests/cli/golden/NAME.txt`.
#[track_caller]
fn golden(name: &str, actual: &str) {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(format!("tests/cli/golden/{name}.txt"));
    #[expect(clippy::disallowed_methods, reason = "a switch of the test run itself")]
    if std::env::var("QUORATE_BLESS").is_ok_and(|v| v == "1") {
        std::fs::create_dir_all(path.parent().expect("a folder")).expect("makes the folder");
        std::fs::write(&path, actual).expect("writes");
        return;
    }
    let expected = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        expected == actual,
        "{name} differs from its golden file; QUORATE_BLESS=1 writes it anew.\n--- expected\n{expected}\n--- actual\n{actual}"
    );
}
