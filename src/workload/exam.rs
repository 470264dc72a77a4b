//! What a workload is worth under the fencer: it is run as it would be on the owner, and watched.
//!
//! It asks the questions that matter at the worst moment: does it start, stay, end when it is told to, end at a deadline that nobody
//! moves (as when the sidecar is frozen), and leave nothing behind. Nothing is simulated: the same door, the same fencer.

use std::time::Duration;

use serde::Serialize;
use tokio::sync::watch;

use super::{
    Context, Grant, Observed, ProcessWorkload, Ready, Settings, Workload as _, fencer::LEFT, link, orphans,
};
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
    let running = main(&workload.observe().borrow());
    let begun = clock.now();
    let (stopped, end) = {
        let stop = workload.stop();
        let keep = keep(&workload, &*clock, hold);
        let watch = end_of(&mark, running.as_ref().copied().ok().flatten(), &*clock);
        tokio::pin!(stop, keep, watch);
        let mut end = None;
        let stopped = loop {
            tokio::select! {
                biased;
                stopped = &mut stop => break stopped,
                seen = &mut watch, if end.is_none() => end = Some(seen),
                () = &mut keep => {}
            }
        };
        (stopped, end)
    };
    // Where something else is started and stopped, the processes here are our own.
    let end = end.unwrap_or_default().filter(|_| settings.undo.is_empty());
    let took = clock.now().since(begun);
    let told = Ended { what: "TERM", took, limit: settings.stop_timeout, main: end.as_ref(), since: begun };
    grades.push(Grade::new(
        "stops when told",
        match (stopped, &running) {
            (Err(e), _) => Err(e.to_string()),
            (Ok(()), Err(how)) => Err(unseen(how)),
            (Ok(()), Ok(_)) => told.grade("let it end on TERM within workload.stop_timeout"),
        },
    ));
    let left = match &running {
        Ok(_) => end.map(|end| end.left.join(", ")).filter(|left| !left.is_empty()),
        Err(how) => how.split_once(LEFT).map(|(_, left)| left.to_owned()),
    };
    grades.push(Grade::new(
        "leaves nothing",
        match left {
            None => Ok("no process was left when its main process had ended".into()),
            Some(left) => Err(format!("these outlived its main process and had to be killed: {left}")),
        },
    ));

    tell("letting its deadline pass");
    let until = clock.now() + hold;
    let silent = workload.start(Grant { epoch: epoch(2), until }).await;
    let deadline = match silent {
        Err(e) => Err(e.to_string()),
        Ok(()) => {
            let mut observed = workload.observe();
            let running = sleep_or_end(&mut observed, &*clock, until).await;
            let watch = end_of(&mark, running.as_ref().copied().ok().flatten(), &*clock);
            tokio::pin!(watch);
            let give_up = until + grace * 4 + READY;
            let mut end = None;
            loop {
                tokio::select! {
                    biased;
                    _ = observed.wait_for(|o| *o == Observed::Stopped) => break,
                    seen = &mut watch, if end.is_none() => end = Some(seen),
                    () = sleep_until(&*clock, give_up) => break,
                }
            }
            let end = end.unwrap_or_default().filter(|_| settings.undo.is_empty());
            let late = clock.now().since(until);
            let passed = Ended {
                what: "its deadline",
                took: late,
                limit: kill_after,
                main: end.as_ref(),
                since: until,
            };
            match running {
                Err(how) => Err(unseen(&how)),
                Ok(_) if late < grace => {
                    passed.grade("let it end on TERM sooner, or make workload.stop_grace longer")
                }
                Ok(_) => Err(format!(
                    "it ran for {} ms after its deadline, and workload.stop_grace is {} ms",
                    late.as_millis(),
                    grace.as_millis()
                )),
            }
        }
    };
    grades.push(Grade::new("stops at its deadline", deadline));
    let _ = workload.stop().await;
    Ok(grades)
}

/// How a run came to its end.
struct Ended<'a> {
    /// What ended it.
    what: &'static str,
    since: Moment,
    /// Until nothing of it was left.
    took: Duration,
    /// After so long it is killed.
    limit: Duration,
    /// The end of the main process, if that was seen before the end of all.
    main: Option<&'a End>,
}

impl Ended<'_> {
    fn grade(&self, advice: &str) -> Result<String, String> {
        let Ended { what, took, limit, .. } = self;
        if took < limit {
            return Ok(format!("it ended {} ms after {what}, without being killed", took.as_millis()));
        }
        let killed = format!("had to be killed {} ms after {what}", limit.as_millis());
        match self.main {
            Some(End { at, left }) if !left.is_empty() => Err(format!(
                "its main process ended {} ms after {what}, but what it had started did not and {killed}: {}; let the main \
                 process end that first",
                at.since(self.since).as_millis(),
                left.join(", ")
            )),
            _ => Err(format!("it {killed}: {advice}")),
        }
    }
}

/// The end of a main process.
#[derive(Debug)]
struct End {
    at: Moment,
    /// What was still there a moment later.
    left: Vec<String>,
}

/// The main process of a workload that runs, as far as its door knows it.
///
/// # Errors
/// How it ended, if it ended by itself.
fn main(observed: &Observed) -> Result<Option<u32>, String> {
    match observed {
        Observed::Running { pid, .. } => Ok(*pid),
        Observed::BackingOff { last, .. } => Err(last.clone()),
        Observed::Stopped | Observed::Stopping { .. } => Err("its fencer had stopped it".into()),
    }
}

/// Waits for the deadline; who runs then.
///
/// # Errors
/// How it ended, if that was before.
async fn sleep_or_end(
    observed: &mut watch::Receiver<Observed>,
    clock: &dyn Clock,
    until: Moment,
) -> Result<Option<u32>, String> {
    let mut running = Ok(None);
    loop {
        match &*observed.borrow_and_update() {
            Observed::Running { pid, .. } => running = Ok(*pid),
            Observed::BackingOff { last, .. } => return Err(last.clone()),
            Observed::Stopped | Observed::Stopping { .. } => return running,
        }
        tokio::select! {
            () = sleep_until(clock, until) => return running,
            changed = observed.changed() => if changed.is_err() { return running },
        }
    }
}

fn unseen(how: &str) -> String {
    format!("this could not be seen, for it had ended by itself: {how}")
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
            Observed::BackingOff { last, .. } if last.contains(LEFT) => {
                return Err(format!(
                    "it ended by itself: {last}; let the main process stay, in the foreground: what it leaves is killed"
                ));
            }
            Observed::BackingOff { last, .. } => return Err(format!("it ended by itself: {last}")),
            Observed::Stopped | Observed::Stopping { .. } => {
                return Err("its fencer stopped it: this device is too busy to keep a lease".into());
            }
        }
        tokio::time::sleep((hold / 4).min(end.since(clock.now()))).await;
    }
    Ok(format!("it ran for {} s", run_for.as_secs()))
}

/// When the main process has ended, and what is still there a moment later. Nobody knows it if there is no main process.
async fn end_of(mark: &str, main: Option<u32>, clock: &dyn Clock) -> Option<End> {
    let main = main?;
    while orphans::lives(main) {
        tokio::time::sleep(LOOK).await;
    }
    let at = clock.now();
    tokio::time::sleep(BEHIND).await;
    Some(End { at, left: orphans::marked(mark) })
}
