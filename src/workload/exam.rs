//! What a workload is worth under the fencer: it is run as it would be on the owner, and watched.
//!
//! It asks the questions that matter at the worst moment: does it start, stay, end when it is told to, end at a deadline that nobody
//! moves (as when the sidecar is frozen), and leave nothing behind. Nothing is simulated: the same door, the same fencer.

use std::time::Duration;

use serde::Serialize;

use super::{Context, Grant, Observed, ProcessWorkload, Ready, Settings, Workload as _, link, orphans};
use crate::{
    clock::{Clock, Moment, sleep_until},
    epoch::Epoch,
};

/// Until a fencer is ready.
const READY: Duration = Duration::from_secs(30);
/// How often the processes are looked at while the workload ends.
const LOOK: Duration = Duration::from_millis(5);
/// What is left so long after the main process has ended was left behind.
const BEHIND: Duration = Duration::from_millis(50);

/// One question and its answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Grade {
    /// The question, in a word or two: `keeps its limits`, `starts`, `says it is ready`, `passes its probes`, `stays`, `stops when told`, `leaves nothing`, `stops at its deadline`.
    pub what: &'static str,
    /// Whether it does.
    pub passed: bool,
    /// How it did, and what to do if it did not.
    pub how: String,
}

impl Grade {
    /// The answer, and how it came about or what is wrong.
    pub fn new(what: &'static str, how: Result<String, String>) -> Grade {
        let passed = how.is_ok();
        Grade { what, passed, how: how.unwrap_or_else(|how| how) }
    }
}

/// Runs the workload that `settings` describe, twice: for `run_for` under a lease that is renewed until it is told to stop, then until its deadline.
/// `ask` asks it, once it is ready, whatever else is to be graded; `tell` hears what is going on. Nothing of it runs when this returns.
///
/// # Errors
/// Why it could not be tried at all.
pub async fn examine(
    settings: &Settings,
    context: Context,
    run_for: Duration,
    ask: impl Future<Output = Option<Grade>>,
    tell: impl Fn(&str),
) -> Result<Vec<Grade>, String> {
    let (clock, timing) = (context.clock.clone(), context.timing);
    let (hold, grace) = (timing.hold(), timing.stop_grace());
    let kill_after = settings.kill_after(&timing);
    let mark = link::mark(&context.data).map_err(|e| format!("{}: {e}", context.data.display()))?;
    let workload = ProcessWorkload::new(settings, context);
    workload.ensure_none_running(clock.now() + READY).await.map_err(|e| e.to_string())?;
    let mut grades = Vec::new();
    if !settings.limits.is_empty() {
        grades.push(Grade::new("keeps its limits", settings.limits.ways(settings.user)));
    }

    tell("starting it");
    let begun = clock.now();
    let first = Grant { epoch: epoch(1), until: begun + hold };
    let started = workload.start(first).await;
    let took = clock.now().since(begun);
    let starts = started.map(|()| format!("its program runs after {} ms", took.as_millis()));
    let runs = starts.is_ok();
    grades.push(Grade::new("starts", starts.map_err(|e| e.to_string())));
    if !runs {
        let _ = workload.stop().await;
        return Ok(grades);
    }

    let (ready, asked) = {
        let keep = keep(&workload, &*clock, hold);
        tokio::pin!(keep);
        tokio::select! {
            biased;
            answers = async {
                let ready = says_so(&workload, settings).await;
                let asked = if ready.is_ok() { ask.await } else { None };
                (ready, asked)
            } => answers,
            () = &mut keep => (Err("it could not be asked".into()), None),
        }
    };
    grades.push(Grade::new("says it is ready", ready));
    grades.extend(asked);

    tell(&format!("letting it run for {} s", run_for.as_secs()));
    grades.push(Grade::new("stays", stays(&workload, &*clock, hold, run_for).await));

    tell("telling it to stop");
    let pid = match *workload.observe().borrow() {
        Observed::Running { pid, .. } => pid,
        _ => None,
    };
    let begun = clock.now();
    let (ended, behind) = {
        let stop = workload.stop();
        let keep = keep(&workload, &*clock, hold);
        let watch = left_behind(&mark, pid);
        tokio::pin!(watch);
        let mut behind = None;
        tokio::pin!(stop, keep);
        let ended = loop {
            tokio::select! {
                biased;
                ended = &mut stop => break ended,
                found = &mut watch, if behind.is_none() => behind = Some(found),
                () = &mut keep => {}
            }
        };
        (ended, behind.unwrap_or_default())
    };
    let took = clock.now().since(begun);
    let patience = settings.stop_timeout;
    grades.push(Grade::new(
        "stops when told",
        match ended {
            Err(e) => Err(e.to_string()),
            Ok(()) if took >= patience => Err(format!(
                "it had to be killed after {} ms; let it end on TERM within workload.stop_timeout",
                patience.as_millis()
            )),
            Ok(()) => Ok(format!("it ended {} ms after TERM", took.as_millis())),
        },
    ));
    // Where something else is started and stopped, the processes here are our own.
    let behind = if settings.undo.is_empty() { behind } else { Vec::new() };
    grades.push(Grade::new(
        "leaves nothing",
        match behind.as_slice() {
            [] => Ok("no process was left when its main process had ended".into()),
            left => Err(format!(
                "{} of its processes outlived the main one and had to be killed: {}",
                left.len(),
                left.join(", ")
            )),
        },
    ));

    tell("letting its deadline pass");
    let until = clock.now() + hold;
    let silent = workload.start(Grant { epoch: epoch(2), until }).await;
    let deadline = match silent {
        Err(e) => Err(e.to_string()),
        Ok(()) => {
            let mut observed = workload.observe();
            let give_up = until + grace * 4 + READY;
            tokio::select! {
                _ = observed.wait_for(|o| *o == Observed::Stopped) => {}
                () = sleep_until(&*clock, give_up) => {}
            }
            let late = clock.now().since(until);
            let (late_ms, kill_ms, grace_ms) = (late.as_millis(), kill_after.as_millis(), grace.as_millis());
            if late < kill_after {
                Ok(format!("it ended {late_ms} ms after its deadline, without being killed"))
            } else if late < grace {
                Err(format!(
                    "it had to be killed {kill_ms} ms after its deadline: let it end on TERM sooner, or make workload.stop_grace longer"
                ))
            } else {
                Err(format!(
                    "it ran for {late_ms} ms after its deadline, and workload.stop_grace is {grace_ms} ms"
                ))
            }
        }
    };
    grades.push(Grade::new("stops at its deadline", deadline));
    let _ = workload.stop().await;
    Ok(grades)
}

fn epoch(n: u64) -> Epoch {
    Epoch::new(n).unwrap_or(Epoch::ZERO)
}

/// Renews the lease for ever.
async fn keep(workload: &ProcessWorkload, clock: &dyn Clock, hold: Duration) {
    loop {
        workload.extend(clock.now() + hold);
        tokio::time::sleep(hold / 4).await;
    }
}

/// Whether it says in time that it is ready, if it has to.
async fn says_so(workload: &ProcessWorkload, settings: &Settings) -> Result<String, String> {
    let (Some(mut words), Some(demand)) = (workload.words(), settings.ready) else {
        return Ok("it is not asked: workload.ready is \"started\"".into());
    };
    let mut observed = workload.observe();
    loop {
        match words.borrow_and_update().ready.clone() {
            Ready::Ready { after } => {
                return Ok(format!("it said so {} ms after its start", after.as_millis()));
            }
            Ready::Fails(why) => {
                return Err(format!(
                    "{why}; let it send READY=1 to NOTIFY_SOCKET, or make workload.ready_within longer than {} ms",
                    demand.within.as_millis()
                ));
            }
            Ready::Absent | Ready::Starting => {}
        }
        if let Observed::BackingOff { last, .. } = &*observed.borrow_and_update() {
            return Err(format!("it ended before it said so: {last}"));
        }
        tokio::select! {
            Ok(()) = words.changed() => {}
            Ok(()) = observed.changed() => {}
            else => return Err("its fencer is gone".into()),
        }
    }
}

/// Whether it runs all the time while its lease is renewed.
async fn stays(
    workload: &ProcessWorkload,
    clock: &dyn Clock,
    hold: Duration,
    run_for: Duration,
) -> Result<String, String> {
    let end: Moment = clock.now() + run_for;
    let mut observed = workload.observe();
    while clock.now() < end {
        workload.extend(clock.now() + hold);
        match &*observed.borrow_and_update() {
            Observed::Running { .. } => {}
            Observed::BackingOff { last, .. } => return Err(format!("it ended by itself: {last}")),
            Observed::Stopped | Observed::Stopping { .. } => {
                return Err("its fencer stopped it: this device is too busy to keep a lease".into());
            }
        }
        tokio::time::sleep((hold / 4).min(end.since(clock.now()))).await;
    }
    Ok(format!("it ran for {} s", run_for.as_secs()))
}

/// The names of the processes that are still there when the main one has ended.
async fn left_behind(mark: &str, main: Option<u32>) -> Vec<String> {
    let Some(main) = main else { return Vec::new() };
    while orphans::lives(main) {
        tokio::time::sleep(LOOK).await;
    }
    tokio::time::sleep(BEHIND).await;
    orphans::marked(mark)
}
