//! One site of the lab: devices on a network, a sequence of faults that happens to them, and the notes that are taken.
//!
//! All of it runs on one thread, which is the supervisor of every device as well; the network runs on the lab's
//! runtime. Who owns is read from the tick records, which need no answer of anybody. What the sidecars tell of the past is
//! asked after each step.

use std::{
    collections::BTreeMap,
    fs, io,
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener},
    path::Path,
    time::Duration,
};

use hyper_util::rt::TokioIo;
use quorate::{
    clock::Moment,
    control::proto::{GetStatusRequest, TransferRequest, control_client::ControlClient},
    dice::Dice,
    status::report::Report,
    workload::ticks::Tick,
};
use tokio::{net::UnixStream, runtime::Handle};
use tonic::transport::{Channel, Endpoint, Uri};

use super::{
    cards,
    device::{Boot, Device, Holder, now, program, starvation},
    faults::{Fault, Step, Strike},
    history::{Entry, Evidence, Freeze, LIMIT, Trouble},
    lan::Lan,
    proxies,
};

/// How often processes and files are looked at: they cannot be awaited.
const LOOK: Duration = Duration::from_millis(10);
/// What a sidecar that is well needs to answer.
const ANSWER: Duration = Duration::from_millis(500);
/// How long an owner that has just been cut off may still tick, by the lab's own timing.
const STALE: Duration = Duration::from_millis(1000);

/// The site as it is to be.
#[derive(Debug, Clone)]
pub(super) struct Plan {
    pub(super) name: String,
    pub(super) devices: usize,
    /// Network namespaces, else loopback.
    pub(super) namespaces: bool,
    /// A boot clock of its own for every device, another one after each power cut.
    pub(super) clocks: bool,
    /// The site's timing, as TOML.
    pub(super) timing: String,
    pub(super) dice: Dice,
    pub(super) steps: Vec<Step>,
}

pub(super) struct Site {
    devices: Vec<Device>,
    lan: Lan,
    dice: Dice,
    clocks: bool,
    runtime: Handle,
    flapping: Vec<usize>,
    /// Not all agreed on an owner at the end.
    restless: bool,
    pub(super) evidence: Evidence,
    /// What happened, for people.
    pub(super) notes: Vec<String>,
}

/// Addresses that no other site of this or a neighbouring run uses.
fn loopback(site: u8, n: usize) -> io::Result<SocketAddr> {
    let run = u8::try_from(std::process::id() % 250 + 2).expect("small");
    let ip = IpAddr::V4(Ipv4Addr::new(127, run, 200 + site, u8::try_from(n + 1).expect("few devices")));
    TcpListener::bind((ip, 0))?.local_addr()
}

impl Site {
    /// Sets up devices and their network; nothing runs yet.
    pub(super) fn new(plan: &mut Plan, number: u8, folder: &Path, runtime: &Handle) -> io::Result<Site> {
        let lan = Lan::new(plan.devices);
        let mut devices = Vec::new();
        for n in 0..plan.devices {
            let (holder, peer) = if plan.namespaces {
                (Some(Holder::new()?), SocketAddr::new(IpAddr::V4(cards::address(n)), 7600))
            } else {
                (None, loopback(number, n)?)
            };
            let device = Device::new(folder, n, peer, holder);
            let data = device.home.join("data");
            fs::create_dir_all(&data)?;
            if let Some(holder) = &device.holder {
                holder.mount(&data)?;
            }
            devices.push(device);
        }
        let real: Vec<SocketAddr> = devices.iter().map(|d| d.peer).collect();
        let reached = if plan.namespaces {
            let holders: Vec<u32> = devices.iter().filter_map(|d| Some(d.holder.as_ref()?.pid())).collect();
            cards::connect(&holders, &lan.watch(), &mut plan.dice, runtime)?;
            vec![real; plan.devices]
        } else {
            proxies::connect(&real, &lan.watch(), &mut plan.dice, runtime)?
        };
        for (n, device) in devices.iter().enumerate() {
            let mut addresses = reached[n].clone();
            addresses[n] = device.peer;
            fs::write(device.home.join("quorate.toml"), configuration(&devices, &addresses, &plan.timing))?;
        }
        Ok(Site {
            devices,
            lan,
            dice: plan.dice.split(),
            clocks: plan.clocks,
            runtime: runtime.clone(),
            flapping: Vec::new(),
            restless: false,
            evidence: Evidence::default(),
            notes: Vec::new(),
        })
    }

    /// Starts everything, lets it all happen, and waits for peace at the end.
    pub(super) fn run(&mut self, steps: &[Step]) {
        let begun = now();
        // The first boot: nothing has run yet.
        (0..self.devices.len()).for_each(|n| self.power_cut(n));
        self.make_good();
        self.demand(|site| site.at_peace().is_some());
        self.trouble("start".into(), begun);
        for (n, step) in steps.iter().enumerate() {
            self.step(n, step);
        }
        if !self.demand(|site| site.at_peace().is_some()) {
            let reports = self.reports();
            self.notes.push(format!("no peace at the end: {reports:#?}"));
            self.restless = true;
        }
        self.remember();
        for device in &self.devices {
            self.evidence.ticks.extend(device.all_ticks());
        }
    }

    /// What the devices' supervisors saw, and what stands in the logs, that must not be.
    pub(super) fn oddities(&self) -> Vec<String> {
        let mut odd: Vec<String> = self.devices.iter().flat_map(|d| d.odd_ends.clone()).collect();
        if self.restless {
            odd.push("all was good again, and yet not all came to agree on an owner that works".into());
        }
        for device in &self.devices {
            let log = fs::read_to_string(device.log()).unwrap_or_default();
            let panics = log.lines().filter(|line| line.contains("panicked"));
            odd.extend(panics.map(|line| format!("{}: {line}", device.id)));
        }
        odd
    }

    fn step(&mut self, n: usize, step: &Step) {
        let begun = now();
        let struck: Vec<String> = step.strikes.iter().map(|strike| self.strike(n, strike)).collect();
        let what = if struck.len() > 1 { "several at once".to_owned() } else { struck.concat() };
        self.pass(step.lasts);
        if step.patient && self.majority_is_well() {
            let epoch = self.newest().map(|t| t.epoch);
            self.demand(|site| {
                let new = site.newest().filter(|t| t.at > begun + STALE || Some(t.epoch) > epoch);
                new.is_some() || !site.majority_is_well()
            });
        }
        self.make_good();
        if step.rests {
            let good = now();
            self.demand(|site| site.newest().is_some_and(|t| t.at > good + LOOK));
            self.remember();
        }
        self.pass(step.pause);
        self.trouble(what, begun);
    }

    fn trouble(&mut self, what: String, from: Moment) {
        self.evidence.troubles.push(Trouble { what, from, until: now() });
    }

    /// Makes one fault; its name, for the figures.
    fn strike(&mut self, step: usize, strike: &Strike) -> String {
        let owner = self.owner();
        let n = strike.whom.unwrap_or(owner);
        let other = (n + strike.other) % self.devices.len();
        let share = |least: u64, most: u64| least + (most - least) * strike.degree / 99;
        let (device, lan) = (&mut self.devices[n], &self.lan);
        self.notes.push(format!("{} step {step}: {} of {}", now(), strike.fault, device.id));
        match strike.fault {
            Fault::SidecarCrash => device.kill(|process| process == 0),
            Fault::SidecarDead => {
                device.kept_down = true;
                device.kill(|process| process == 0);
            }
            Fault::FencerDead => device.kill(|process| process == 1),
            Fault::WorkloadDead => device.kill(|process| process == 2),
            Fault::PowerCut => self.power_cut(n),
            Fault::PowerCutEverywhere => (0..self.devices.len()).for_each(|n| self.power_cut(n)),
            Fault::SidecarFrozen => device.freeze(false),
            Fault::DeviceFrozen => {
                lan.unplug(n);
                device.freeze(true);
            }
            Fault::SidecarStarved => device.starve(),
            Fault::Unplugged => lan.unplug(n),
            Fault::Flapping => self.flapping.push(n),
            Fault::Deaf => lan.towards(n, |link| link.open = false),
            Fault::Mute => lan.out_of(n, |link| link.open = false),
            Fault::OneWay => lan.one_way(n, other, |link| link.open = false),
            Fault::LinkCut => {
                lan.one_way(n, other, |link| link.open = false);
                lan.one_way(other, n, |link| link.open = false);
            }
            Fault::Loss => self.everywhere(|link| link.loss = share(5, 30)),
            Fault::Slow => self.everywhere(|link| {
                link.delay = Duration::from_millis(share(5, 60));
                link.jitter = link.delay / 3;
            }),
            Fault::Disorder => self.everywhere(|link| {
                link.jitter = Duration::from_millis(share(2, 30));
                link.doubled = share(10, 50);
            }),
            Fault::DiskStalls => device.stall(Duration::from_millis(share(50, 800))),
            Fault::DiskFull => device.fill(),
            Fault::Transfer => {
                let to = self.devices[other].id.clone();
                self.transfer(n, to);
            }
            Fault::Leave => {
                device.kept_down = true;
                device.terminate();
            }
        }
        if n == owner || strike.fault.is_everywhere() {
            strike.fault.to_string()
        } else {
            "one device, not the owner's".to_owned()
        }
    }

    /// Silent first, as a dead device is, then nothing runs any more. Its next boot has another clock.
    fn power_cut(&mut self, n: usize) {
        self.lan.unplug(n);
        let next = self.clocks.then(|| Boot::new(&mut self.dice).expect("worked before"));
        self.devices[n].power_cut(next);
    }

    fn everywhere(&self, change: impl Fn(&mut super::lan::Link)) {
        (0..self.devices.len()).for_each(|n| self.lan.out_of(n, &change));
    }

    fn make_good(&mut self) {
        self.flapping.clear();
        self.lan.heal();
        for device in &mut self.devices {
            if let Some((from, until)) = device.make_good() {
                self.evidence.freezes.push(Freeze { device: device.id.clone(), from, until });
            }
        }
    }

    /// The supervisors' turn, and that of faults that come and go.
    fn tend(&mut self) {
        for device in &mut self.devices {
            device.tend();
            device.breathe(!self.dice.throw().is_multiple_of(3));
        }
        for n in self.flapping.clone() {
            if self.dice.throw().is_multiple_of(8) {
                let open = self.dice.throw().is_multiple_of(2);
                self.lan.out_of(n, |link| link.open = open);
                self.lan.towards(n, |link| link.open = open);
            }
        }
        std::thread::sleep(LOOK);
    }

    fn pass(&mut self, time: Duration) {
        let end = now() + time;
        while now() < end {
            self.tend();
        }
    }

    /// Waits until something is so, and notes that from now until then there was no excuse for having no owner.
    /// False if it was not, though the machine had time for it.
    fn demand(&mut self, is: impl Fn(&Site) -> bool) -> bool {
        let (begun, waited) = (now(), starvation());
        let mut so = is(self);
        while !so && now().since(begun) <= LIMIT + LOOK {
            self.tend();
            so = is(self);
        }
        let until = now();
        if starvation().saturating_sub(waited) > until.since(begun) * 95 / 100 {
            self.evidence.starved.push(until.since(begun));
            true
        } else {
            self.evidence.demands.push((begun, until));
            so
        }
    }

    fn newest(&self) -> Option<Tick> {
        self.devices.iter().filter_map(Device::last_tick).max_by_key(|t| t.at)
    }

    fn owner(&self) -> usize {
        let newest = self.newest();
        newest.and_then(|t| self.devices.iter().position(|d| d.id == t.device)).unwrap_or(0)
    }

    /// Whether more than half of all devices are well and hear each other, all of them.
    fn majority_is_well(&self) -> bool {
        let n = self.devices.len();
        let together = |group: u32| {
            let inside: Vec<usize> = (0..n).filter(|i| group >> i & 1 == 1).collect();
            inside.iter().all(|a| self.devices[*a].well() && inside.iter().all(|b| self.lan.good(*a, *b)))
        };
        self.flapping.is_empty() && (0..1_u32 << n).any(|g| g.count_ones() as usize > n / 2 && together(g))
    }

    /// One owner that all sidecars know and that ticks, every device heard.
    fn at_peace(&self) -> Option<()> {
        let reports = self.reports();
        let owner = reports.values().next()?.owner.clone();
        let newest = self.newest().filter(|t| now().since(t.at) < LOOK * 20)?;
        let agree = |r: &Report| {
            let all_heard = r.members.iter().all(|m| m.reachable);
            r.owner.known && r.owner.device == owner.device && r.owner.epoch == owner.epoch && all_heard
        };
        let all = reports.len() == self.devices.len() && reports.values().all(agree);
        (all && Some(newest.device) == owner.device && newest.epoch.get() == owner.epoch).then_some(())
    }

    /// Notes what the sidecars tell of the past.
    fn remember(&mut self) {
        for (told_by, report) in self.reports() {
            self.evidence.record.extend(report.history.into_iter().map(|change| Entry {
                epoch: change.epoch,
                device: change.device,
                cause: change.cause,
                told_by: told_by.clone(),
            }));
        }
    }

    /// What every sidecar reports that answers.
    fn reports(&self) -> BTreeMap<String, Report> {
        let asked: Vec<_> =
            self.devices.iter().map(|d| (d.id.clone(), self.runtime.spawn(report(d.socket())))).collect();
        let answers = asked.into_iter().map(|(id, answer)| Some((id, self.runtime.block_on(answer).ok()??)));
        answers.flatten().collect()
    }

    /// Asks for a handover, and does not wait for it.
    fn transfer(&self, via: usize, to: String) {
        let socket = self.devices[via].socket();
        self.runtime.spawn(async move {
            let wish = TransferRequest { to, reason: "lab".into(), actor: "lab".into() };
            // Refusals are as good as anything else.
            if let Some(channel) = dial(socket).await {
                let _ = ControlClient::new(channel).transfer(wish).await;
            }
        });
    }
}

fn configuration(devices: &[Device], addresses: &[SocketAddr], timing: &str) -> String {
    let members: String = devices
        .iter()
        .zip(addresses)
        .map(|(d, address)| format!("  {{ device = \"{}\", address = \"{address}\" }},\n", d.id))
        .collect();
    // A JSON text is a TOML text.
    let program = serde_json::Value::from(program().display().to_string());
    format!(
        "[site]\nid = \"lab\"\nmembers = [\n{members}]\n{timing}\n[workload]\nkind = \"process\"\n\
         command = [{program}, \"tick-workload\", \"--file\", \"ticks\"]\n"
    )
}

async fn dial(socket: std::path::PathBuf) -> Option<Channel> {
    let connector = tower::service_fn(move |_: Uri| {
        let socket = socket.clone();
        async move { UnixStream::connect(socket).await.map(TokioIo::new) }
    });
    let endpoint = Endpoint::from_static("http://localhost");
    tokio::time::timeout(ANSWER, endpoint.connect_with_connector(connector)).await.ok()?.ok()
}

async fn report(socket: std::path::PathBuf) -> Option<Report> {
    let mut client = ControlClient::new(dial(socket).await?);
    let asked = tokio::time::timeout(ANSWER, client.get_status(GetStatusRequest {})).await.ok()?.ok()?;
    serde_json::from_str(&asked.into_inner().json).ok()
}
