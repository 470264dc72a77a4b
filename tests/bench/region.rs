//! The sites of one hub after it was away for all of them: each site's real mirror loop, one hub in memory with a tier's limits, on
//! tokio's paused clock.
//!
//! What a site decides (when it knocks, when its turn is, what it writes, how long it keeps away after a refusal) is the product's
//! own loop; simulated are the hub, the line to it, which takes no time, and the record. The ownership of a site moves while the hub
//! is away as it does on a real one: the old owner's mirror falls silent, the new owner's begins with what the site has noted. The
//! same seed gives the same run.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use quorate::{
    clock::{Clock, Moment},
    dice::Dice,
    hub::{
        Confirmed, FlagPath, Published, Settings,
        memory::{MemoryHub, Trouble},
        throttle::{Count, Operation, Plan, Tier},
    },
    id::{DeviceId, SiteId},
    reconcile::mirror::{Mirror, MirrorState},
};
use tokio::{sync::watch, time::Instant};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// Devices of a site.
const DEVICES: usize = 3;
/// The sites have been at rest for so long before: their slow timers have drifted apart.
const REST: Duration = Duration::from_secs(1200);
/// Where waiting for the last site is given up.
const PATIENCE: Duration = Duration::from_secs(6 * 3600);
/// An S1 hub's twin updates in a second.
const UPDATES_PER_SECOND: u32 = 50;

/// What happens.
#[derive(Debug, Clone, Copy)]
pub(super) struct Region {
    /// How many sites share the hub.
    pub(super) sites: u32,
    /// How long the hub is away; zero: it is not, and the ownerships move within one second.
    pub(super) away: Duration,
    /// It answers all the time, but only that it cannot.
    pub(super) failing: bool,
    /// Of so many sites in a hundred the ownership moves meanwhile.
    pub(super) moved: u32,
    /// Where chance comes from.
    pub(super) seed: u64,
}

/// What came of it.
#[derive(Debug)]
pub(super) struct Came {
    /// The least time in which the hub can take all updates.
    pub(super) least: Duration,
    /// From the hub's return to the last right flag of each site that had something to say, sorted.
    pub(super) took: Vec<Duration>,
    /// Twin reads and updates that the hub was asked for since its return.
    pub(super) asked: u64,
    /// How many of them it refused.
    pub(super) refused: u64,
    /// The most refusals that one site met.
    pub(super) most_refused: u64,
}

impl Came {
    /// Until the last site's last flag was right.
    pub(super) fn all(&self) -> Duration {
        self.took.last().copied().unwrap_or_default()
    }

    /// Which part of the requests was refused.
    pub(super) fn refused_part(&self) -> f64 {
        self.refused as f64 / self.asked.max(1) as f64
    }
}

/// Boot and wall clock over tokio's paused time.
#[derive(Debug)]
struct PausedClock(Instant);

impl Clock for PausedClock {
    fn now(&self) -> Moment {
        Moment::from_nanos(1) + self.0.elapsed()
    }
    fn wall_ms(&self) -> u64 {
        1_800_000_000_000 + u64::try_from(self.0.elapsed().as_millis()).unwrap_or(0)
    }
}

/// One site: its record, as far as the mirror knows it, and how the mirror fares.
struct Site {
    published: Published,
    publish: watch::Sender<Option<Published>>,
    confirm: watch::Sender<Option<Confirmed>>,
    state: watch::Receiver<MirrorState>,
}

impl Site {
    fn new(n: u32) -> Result<Site, &'static str> {
        let device = |d: usize| DeviceId::new(format!("site-{n}-edge-{d}")).map_err(|_| "a name");
        let published = Published {
            site: SiteId::new(format!("site-{n}")).map_err(|_| "a name")?,
            devices: (1..=DEVICES).map(device).collect::<Result<_, _>>()?,
            owner: Some(device(1)?),
            epoch: 1,
            since_unix_ms: 1_800_000_000_000,
            reason: "first start".into(),
        };
        // Nobody listens yet.
        let (publish, confirm) = (watch::Sender::new(Some(published.clone())), watch::Sender::new(None));
        Ok(Site { published, publish, confirm, state: watch::channel(MirrorState::default()).1 })
    }

    /// What the site notes once its twins follow.
    fn note(&self) -> bool {
        let settled = self.state.borrow().settled.clone();
        let Some(settled) = settled else { return false };
        let confirmed = Confirmed { shown: self.published.clone(), etags: settled.etags };
        self.confirm.send_replace(Some(confirmed));
        true
    }

    /// Waits until all twins are known to show this epoch.
    async fn settles(&mut self) -> bool {
        let epoch = self.published.epoch;
        let right = |state: &MirrorState| state.settled.as_ref().is_some_and(|it| it.epoch == epoch);
        let settles = self.state.wait_for(right);
        tokio::time::timeout(PATIENCE, settles).await.is_ok_and(|waited| waited.is_ok())
    }

    fn shown(&self, hub: &MemoryHub) -> bool {
        self.published.devices.iter().all(|device| {
            let Some(twin) = hub.twin(device) else { return false };
            let seen = FlagPath::default().read(&twin.desired.values);
            (seen.epoch, seen.active) == (self.published.epoch, self.published.owner.as_ref() == Some(device))
        })
    }
}

/// Plays it.
///
/// # Errors
/// What did not come to its end.
pub(super) fn play(region: &Region) -> Result<Came, String> {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    builder.enable_time().start_paused(true);
    #[cfg(tokio_unstable)]
    builder.rng_seed(tokio::runtime::RngSeed::from_bytes(&region.seed.to_le_bytes()));
    let runtime = builder.build().map_err(|why| why.to_string())?;
    runtime.block_on(story(region))
}

async fn story(region: &Region) -> Result<Came, String> {
    let mut dice = Dice::new(region.seed);
    let clock = Arc::new(PausedClock(Instant::now()));
    let hub = MemoryHub::new(clock.clone());
    let settings =
        Settings { sites: region.sites, updates_per_second: UPDATES_PER_SECOND, ..Settings::default() };
    let (stop, tasks) = (CancellationToken::new(), TaskTracker::new());
    let mut sites = Vec::new();
    for n in 0..region.sites {
        let mut site = Site::new(n)?;
        site.published.devices.iter().for_each(|device| hub.create(device));
        let state = watch::Sender::new(MirrorState::default());
        site.state = state.subscribe();
        let mut own = dice.split();
        let mirror = Mirror {
            hub: Arc::new(hub.clone()),
            published: site.publish.subscribe(),
            confirmed: site.confirm.subscribe(),
            state,
            clock: clock.clone(),
            dice: Box::new(move || own.throw()),
            settings: settings.clone(),
        };
        tasks.spawn(mirror.run(stop.clone()));
        sites.push(site);
    }
    for site in &mut sites {
        if !site.settles().await || !site.note() {
            return Err(format!("{} never began", site.published.site));
        }
    }
    // Each has its own past.
    tokio::time::sleep(REST + dice.up_to(REST)).await;

    let (gone, is_away) = (Instant::now(), !region.away.is_zero());
    let plan = Plan::new(Tier::S1, 1, 1.0)?;
    if is_away {
        hub.trouble(if region.failing { Trouble::Failing { status: 503 } } else { Trouble::Unreachable });
    } else {
        hub.limit(Some(plan));
    }
    let within = if is_away { region.away } else { Duration::from_secs(1) };
    let mut moves = Vec::new();
    for n in 0..sites.len() {
        if dice.throw() % 100 < u64::from(region.moved) {
            moves.push((dice.up_to(within), n));
        }
    }
    moves.sort_unstable();
    for (at, n) in &moves {
        tokio::time::sleep_until(gone + *at).await;
        let Some(site) = sites.get_mut(*n) else { continue };
        site.publish.send_replace(None);
        // The old owner's mirror hears of it before the new one's begins.
        tokio::task::yield_now().await;
        site.published.epoch += 1;
        site.published.owner = site.published.devices.get(1).cloned();
        site.published.reason = "its device fell silent".into();
        site.publish.send_replace(Some(site.published.clone()));
    }
    tokio::time::sleep_until(gone + region.away).await;
    let back = if is_away { clock.now() } else { clock.now().before(within) };
    let written = hub.log().len();
    if is_away {
        hub.limit(Some(plan));
        hub.trouble(Trouble::None);
    }
    let mut late = None;
    for site in &mut sites {
        if !site.settles().await || !site.shown(&hub) {
            late.get_or_insert_with(|| {
                format!("the twins of {} were not right in time", site.published.site)
            });
        }
    }
    stop.cancel();
    tasks.close();
    tasks.wait().await;
    if let Some(late) = late {
        return Err(late);
    }

    // A write within the first second of an outage that is none counts too.
    let log = hub.log();
    let since = if is_away { written } else { sites.len() * DEVICES };
    let mut last: BTreeMap<&str, Moment> = BTreeMap::new();
    for write in log.iter().skip(since) {
        let site = write.target.device.rsplit_once("-edge-").map_or("", |(site, _)| site);
        last.insert(site, write.at);
    }
    let mut took: Vec<Duration> = last.values().map(|at| at.since(back)).collect();
    took.sort_unstable();
    let counts = [Operation::TwinRead, Operation::TwinUpdate].map(|operation| hub.count(operation));
    let all = |count: &Count| count.passed + count.delayed + count.refused;
    let refusals = |site: &Site| site.state.borrow().requests.get("429").copied().unwrap_or_default();
    Ok(Came {
        least: Duration::from_secs(1) * u32::try_from(moves.len() * DEVICES).unwrap_or(u32::MAX)
            / UPDATES_PER_SECOND,
        took,
        asked: counts.iter().map(all).sum(),
        refused: counts.iter().map(|count| count.refused).sum(),
        most_refused: sites.iter().map(refusals).max().unwrap_or(0),
    })
}
