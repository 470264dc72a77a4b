//! Does a site that is left alone stay as it is? `cargo bench --bench idle`.
//!
//! Three real sidecars on loopback with a timing preset, a ticking workload on the owner, no hub. Counted are the
//! elections that the devices began and the changes of owner while nobody asked for any; both shall be 0.
//!
//! `QUORATE_BENCH_IDLE_S` (default 60), `QUORATE_BENCH_TIMING` (`default`, `fast`, `fastest` or `all`),
//! `QUORATE_BENCH_LOAD`: `none` (default), or busy processes for `half` or `full` of the machine's cores;
//! `QUORATE_BENCH_PROGRAM`. Ends with 1 if anything happened.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a benchmark prints")]
#![expect(clippy::disallowed_methods, reason = "real processes, set up by the environment")]

#[path = "../../src/cli/demo/processes.rs"]
mod processes;
mod site;

use std::{
    io::{Read as _, Write as _},
    net::TcpStream,
    process::{Child, Command, ExitCode, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use quorate::timing::Preset;

use self::site::{Site, Told};

fn main() -> ExitCode {
    if !std::env::args().any(|a| a == "--bench") {
        println!("this benchmark runs by `cargo bench --bench idle`");
        return ExitCode::SUCCESS;
    }
    let measured = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(anyhow::Error::from)
        .and_then(|runtime| {
            let mut quiet = true;
            for timing in site::timings()? {
                quiet &= runtime.block_on(measure(timing))?;
            }
            Ok(quiet)
        });
    match measured {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(e) => {
            eprintln!("the benchmark failed: {e:#}");
            ExitCode::FAILURE
        }
    }
}

/// Processes that only take time from the others; they die with the benchmark.
struct Load(Vec<Child>);

impl Load {
    fn named(name: &str) -> Result<Load> {
        let cores = std::thread::available_parallelism()?.get();
        let busy = match name {
            "none" => 0,
            "half" => cores.div_ceil(2),
            "full" => cores,
            other => bail!("QUORATE_BENCH_LOAD={other:?}: write none, half or full"),
        };
        let program = site::program();
        let spawn = |_| {
            let tied = processes::tied(&program);
            // The last word names what is run by the helper that dies with its parent.
            Command::new(&program)
                .args(&tied[..3])
                .args(["/bin/sh", "-c", "while :; do :; done"])
                .stdin(Stdio::null())
                .spawn()
                .context("cannot start a busy process")
        };
        (0..busy).map(spawn).collect::<Result<_>>().map(Load)
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        for child in &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// A counter that a device tells.
fn metric(site: &Site, n: usize, name: &str) -> Result<u64> {
    let device = site.devices.get(n).context("there are three devices")?;
    let mut stream = TcpStream::connect(("127.0.0.1", device.http))?;
    stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: bench\r\nConnection: close\r\n\r\n")?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.and_then(|value| value.trim().parse().ok()).with_context(|| format!("{} tells no {name}", device.id))
}

async fn measure(timing: Preset) -> Result<bool> {
    let seconds = match std::env::var("QUORATE_BENCH_IDLE_S") {
        Ok(text) => text.parse().with_context(|| format!("QUORATE_BENCH_IDLE_S={text:?} is not a number"))?,
        Err(_) => 60,
    };
    let load = std::env::var("QUORATE_BENCH_LOAD").unwrap_or_else(|_| "none".into());
    let program = site::program().display().to_string();
    let site = Site::start(&[&program, "tick-workload", "--file", "ticks"], timing, Told::default())?;
    site.settled().await?;
    let busy = Load::named(&load)?;
    // The first moments under load belong to nobody.
    tokio::time::sleep(Duration::from_secs(2)).await;
    let elections =
        || (0..site.devices.len()).map(|n| metric(&site, n, "quorate_elections_total")).sum::<Result<u64>>();
    let ((_, epoch), before) = (site.settled().await?, elections()?);
    eprintln!("idle for {seconds} s, timing {}, load {load}", timing.name());
    tokio::time::sleep(Duration::from_secs(seconds)).await;
    let after = elections()?;
    drop(busy);
    let (_, epoch_after) = site.settled().await?;
    let (begun, changes) = (after - before, epoch_after - epoch);
    println!(
        "timing {}, load {load}, {seconds} s: {begun} elections, {changes} changes of owner; load average {}",
        timing.name(),
        std::fs::read_to_string("/proc/loadavg").unwrap_or_default().trim(),
    );
    if begun + changes > 0 {
        eprintln!("{}", site.last_words());
    }
    Ok(begun + changes == 0)
}
