//! The site's IoT Hub in the simulation: one hub in memory, and a line of its own for every device.
//!
//! A line takes time in both directions, so that a twin can change between being compared and being written, and a
//! write can be applied although its sender died before the answer.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use quorate::{
    clock::Clock,
    dice::Dice,
    hub::{
        BoxFuture, Change, Error, Flag, FlagPath, Hub, Published, Target, Twin,
        flag::Seen,
        memory::{Line, MemoryHub},
        memory_link::MemoryModule,
    },
    id::DeviceId,
    site::Site,
};
use tokio::sync::watch;

use super::{calls::Calls, module::SimModule};

/// The longest that a message takes in one direction.
const LONGEST: Duration = Duration::from_millis(40);

/// One device's line: cut or not, and writes held back or not.
#[derive(Clone)]
pub struct SimLine {
    line: Line,
    dice: Arc<Mutex<Dice>>,
    /// Writes wait at the device's end of the line while this is set.
    held: Arc<watch::Sender<bool>>,
    waiting: Arc<AtomicU64>,
    asked: Arc<AtomicU64>,
    overtaken: Arc<AtomicU64>,
    /// What this device's mirror has under way.
    pub calls: Calls,
}

impl SimLine {
    pub fn cut(&self, cut: bool) {
        self.line.cut(cut);
    }

    /// Writes wait on their way to the hub from now on, or go on.
    pub fn hold_writes(&self, hold: bool) {
        self.held.send_replace(hold);
    }

    /// How many writes are waiting.
    pub fn waiting(&self) -> u64 {
        self.waiting.load(Ordering::SeqCst)
    }

    /// How many writes were refused because the twin had changed since it was read.
    pub fn overtaken(&self) -> u64 {
        self.overtaken.load(Ordering::SeqCst)
    }

    /// How many calls have been answered by the hub, whatever the answer.
    pub fn asked(&self) -> u64 {
        self.asked.load(Ordering::SeqCst)
    }

    async fn travel(&self) {
        let takes = self.dice.lock().unwrap_or_else(PoisonError::into_inner).up_to(LONGEST);
        tokio::time::sleep(takes).await;
    }

    async fn call<T>(&self, call: BoxFuture<'_, Result<T, Error>>) -> Result<T, Error> {
        self.travel().await;
        let answer = call.await;
        if matches!(answer, Err(Error::Changed)) {
            self.overtaken.fetch_add(1, Ordering::SeqCst);
        }
        self.asked.fetch_add(u64::from(!matches!(answer, Err(Error::Unreachable(_)))), Ordering::SeqCst);
        self.travel().await;
        answer
    }
}

impl Hub for SimLine {
    fn name(&self) -> &str {
        self.line.name()
    }

    fn knock(&self) -> BoxFuture<'_, Result<(), Error>> {
        self.line.knock()
    }

    fn get_twin<'a>(&'a self, target: &'a Target) -> BoxFuture<'a, Result<Twin, Error>> {
        Box::pin(async move {
            let _call = self.calls.begin(None);
            self.call(self.line.get_twin(target)).await
        })
    }

    fn patch_twin<'a>(
        &'a self,
        target: &'a Target,
        change: &'a Change,
        if_match: Option<&'a str>,
    ) -> BoxFuture<'a, Result<Twin, Error>> {
        Box::pin(async move {
            let told = change.desired.as_ref().map_or(0, |desired| FlagPath::default().read(desired).epoch);
            let _call = self.calls.begin(Some(told));
            self.waiting.fetch_add(1, Ordering::SeqCst);
            let _ = self.held.subscribe().wait_for(|held| !held).await;
            self.waiting.fetch_sub(1, Ordering::SeqCst);
            self.call(self.line.patch_twin(target, change, if_match)).await
        })
    }
}

/// The hub, the devices' lines to it, and what the twins have shown so far.
pub struct SiteHub {
    pub memory: MemoryHub,
    pub lines: Vec<SimLine>,
    /// Each sidecar's own module, straight at the hub or through an edgeHub.
    pub modules: Vec<SimModule>,
    devices: Vec<DeviceId>,
    /// Whose twins the mirror writes: a witness never owns.
    mirrored: Vec<DeviceId>,
}

impl SiteHub {
    pub fn new(clock: Arc<dyn Clock>, site: &Site, edge: bool, dice: &mut Dice) -> SiteHub {
        let devices: Vec<DeviceId> = site.members.iter().map(|m| m.device.clone()).collect();
        let mirrored = site.members.iter().filter(|m| m.role.may_own()).map(|m| m.device.clone()).collect();
        let memory = MemoryHub::new(clock);
        let lines: Vec<SimLine> = devices
            .iter()
            .map(|device| {
                memory.create(device);
                SimLine {
                    line: memory.line(),
                    dice: Arc::new(Mutex::new(dice.split())),
                    held: Arc::new(watch::Sender::new(false)),
                    waiting: Arc::default(),
                    asked: Arc::default(),
                    overtaken: Arc::default(),
                    calls: Calls::default(),
                }
            })
            .collect();
        let module = |device: &DeviceId| {
            let target = Target::module(device.as_str(), "quorate");
            memory.create_module(&target);
            SimModule { line: MemoryModule::new(memory.clone(), target, edge), reports: Calls::default() }
        };
        let modules = devices.iter().map(module).collect();
        SiteHub { memory, lines, modules, devices, mirrored }
    }

    pub fn devices(&self) -> &[DeviceId] {
        &self.devices
    }

    /// What stands in a device's twin.
    pub fn seen(&self, device: &DeviceId) -> Seen {
        let twin = self.memory.twin(device).expect("every device of the site has a twin");
        FlagPath::default().read(&twin.desired.values)
    }

    /// What stands in the twin of a device's own sidecar.
    pub fn said(&self, device: &DeviceId) -> Seen {
        let target = Target::module(device.as_str(), "quorate");
        let twin = self.memory.module_twin(&target).expect("every device has its module");
        FlagPath::default().read(&twin.reported.values)
    }

    /// Whether the twin of every device that may own shows exactly this.
    pub fn shows(&self, published: &Published) -> bool {
        let right = |device: &DeviceId| self.seen(device).flag == Some(Flag::wanted(published, device));
        self.mirrored.iter().all(right)
    }
}
