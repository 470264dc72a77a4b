//! Reads what all sites of a hub show, within a share of what the hub allows.
//!
//! Two questions to the hub's index, page by page; then the twins of those sites that look wrong are read one by one, because the
//! index may lag. Everything read is somebody else's text: what is not a flag is left out, and never stops the rest.

use std::{collections::BTreeMap, time::Duration};

use serde_json::Value;
use tokio::time::Instant;

use super::judge::{Device, Remark, Shown, Site, judge};
use crate::hub::{
    Error, FlagPath, Hub as _, Target, Twin,
    error::QUOTA,
    reported::{KEY, Reported},
    rest::RestHub,
    wall,
};

/// The hub's smallest allowance, per second (IoT Hub quotas and throttling, tiers F1 to S2): questions, and reads of twins.
const QUESTIONS: f64 = 20.0 / 60.0;
const READS: f64 = 100.0;
/// The largest page, and the smallest that is tried when one is too long to read.
const PAGE: u16 = 1000;
const PAGE_LEAST: u16 = 10;
/// For so long in a row the hub may ask to be left alone: whoever asked waits.
const PATIENCE: Duration = Duration::from_secs(60);
/// A change of the ownership is written to all twins of a site within this time, if nothing is wrong.
const SETTLES: Duration = Duration::from_secs(5);

/// What the twins show, by site and device.
pub(super) type Sites = BTreeMap<String, BTreeMap<String, Device>>;

/// What a reading came to.
pub(super) struct Read {
    /// The sites that were asked for, worst first.
    pub sites: Vec<Site>,
    /// The names of the others.
    pub others: Vec<String>,
    /// How many questions it took.
    pub questions: u32,
}

/// Where the twins stand and how fast they may be read.
pub(super) struct Reader {
    pub hub: RestHub,
    /// The flag's path in device twins.
    pub path: FlagPath,
    /// Only this site.
    pub site: Option<String>,
    /// The share of the hub's allowance, above 0 and at most 1.
    pub share: f64,
    next_question: Option<Instant>,
    next_read: Option<Instant>,
}

/// How far it has come, for a person who waits.
pub(super) type Progress<'a> = &'a mut (dyn FnMut(String) + Send);

impl Reader {
    pub(super) fn new(hub: RestHub, path: FlagPath, site: Option<String>, share: f64) -> Reader {
        Reader { hub, path, site, share, next_question: None, next_read: None }
    }

    /// How long `questions` take at this share.
    pub(super) fn costs(&self, questions: u32) -> Duration {
        Duration::from_secs_f64(f64::from(questions) / (QUESTIONS * self.share))
    }

    /// Reads all sites and judges them.
    ///
    /// # Errors
    /// [`Error`]: without an answer to its questions there is nothing to show.
    pub(super) async fn sites(
        &mut self,
        now_ms: u64,
        stale_ms: u64,
        progress: Progress<'_>,
    ) -> Result<Read, Error> {
        let (mut sites, mut unplaced) = (Sites::new(), Vec::new());
        let own = "SELECT * FROM devices.modules WHERE is_defined(properties.reported.quorate)".to_owned();
        let devices = format!("SELECT * FROM devices WHERE is_defined(properties.desired.{})", self.path);
        let tags = format!("SELECT * FROM devices WHERE is_defined(tags.{})", self.path);
        let mut questions = 0;
        for question in [own, devices, tags] {
            questions += self.ask(&question, &mut sites, &mut unplaced, progress).await?;
        }
        place(unplaced, &mut sites);
        let mut others = Vec::new();
        if let Some(only) = &self.site {
            others = sites.keys().filter(|site| *site != only).cloned().collect();
            sites.retain(|site, _| site == only);
        }
        let mut judged = Vec::new();
        for (name, devices) in &mut sites {
            let mut site = judge(name, devices, now_ms, stale_ms);
            if site.remarks.iter().any(|remark| remark.may_be_lag()) {
                progress(format!("reading the twins of {name} themselves"));
                self.read_again(name, devices, &site).await?;
                site = judge(name, devices, now_ms, stale_ms);
            }
            judged.push(site);
        }
        let doubtful = |site: &&mut Site| site.remarks.contains(&Remark::Ahead);
        if judged.iter_mut().any(|site| doubtful(&site)) {
            progress("waiting for changes that are being written".into());
            tokio::time::sleep(SETTLES).await;
        }
        for site in judged.iter_mut().filter(doubtful) {
            let Some(devices) = sites.get_mut(&site.site) else { continue };
            progress(format!("reading the twins of {} once more", site.site));
            self.read_again(&site.site, devices, site).await?;
            *site = judge(&site.site, devices, now_ms, stale_ms);
        }
        judged.sort_by_key(|site| {
            (
                site.remarks.first().copied().map_or((1, Remark::Conditions), |worst| (0, worst)),
                site.site.clone(),
            )
        });
        Ok(Read { sites: judged, others, questions })
    }

    /// All pages of one question.
    async fn ask(
        &mut self,
        question: &str,
        sites: &mut Sites,
        unplaced: &mut Vec<Twin>,
        progress: Progress<'_>,
    ) -> Result<u32, Error> {
        let (mut after, mut size, mut pages, mut rows) = (None, PAGE, 0, 0);
        let mut waited = Duration::ZERO;
        loop {
            let gap = Duration::from_secs_f64(1.0 / (QUESTIONS * self.share));
            // The first few are within the burst that every hub absorbs.
            let burst = gap * 3;
            self.next_question = Some(pace(self.next_question, gap, burst).await);
            pages += 1;
            match self.hub.query(question, after.as_deref(), size).await {
                Ok(page) => {
                    waited = Duration::ZERO;
                    rows += page.rows.len();
                    page.rows.iter().for_each(|row| take(row, &self.path, sites, unplaced));
                    progress(format!("{rows} twins read"));
                    after = page.next;
                    if after.is_none() {
                        return Ok(pages);
                    }
                }
                Err(Error::NotTheHub(why)) if size > PAGE_LEAST && why.contains("longer than") => size /= 10,
                // A used-up quota lasts until midnight.
                Err(Error::Throttled { status, retry_after }) if status != QUOTA && waited < PATIENCE => {
                    let wait = retry_after.unwrap_or(gap * 2).min(Duration::from_secs(60));
                    progress(format!("the hub asks us to slow down; again in {} s", wait.as_secs().max(1)));
                    tokio::time::sleep(wait).await;
                    waited += wait;
                }
                Err(other) => return Err(other),
            }
        }
    }

    /// Reads each twin of a site itself. One that cannot be read stays as the index had it; one that is not there is not.
    async fn read_again(
        &mut self,
        site: &str,
        devices: &mut BTreeMap<String, Device>,
        judged: &Site,
    ) -> Result<(), Error> {
        let mut names: Vec<String> = judged.devices.clone();
        names.extend(
            devices
                .values()
                .filter_map(|d| d.reported.as_ref())
                .flat_map(|(r, _)| r.members.iter().map(|m| m.device.clone())),
        );
        names.sort_unstable();
        names.dedup();
        let module = devices.values().find_map(|d| d.module.clone());
        for name in names {
            for target in [Some(Target::device(&name)), module.as_ref().map(|m| Target::module(&name, m))]
                .into_iter()
                .flatten()
            {
                let gap = Duration::from_secs_f64(1.0 / (READS * self.share));
                self.next_read = Some(pace(self.next_read, gap, Duration::from_secs(1)).await);
                match self.hub.get_twin(&target).await {
                    Ok(twin) => take_twin(&twin, &self.path, site, devices),
                    Err(Error::DeviceMissing { .. }) => {
                        let device = devices.entry(name.clone()).or_default();
                        match &target.module {
                            None => *device = Device { gone: true, ..Device::default() },
                            Some(_) if device.module == target.module => device.reported = None,
                            Some(_) => {}
                        }
                    }
                    Err(Error::Throttled { .. } | Error::Rejected { .. }) => {}
                    Err(other) => return Err(other),
                }
            }
        }
        Ok(())
    }
}

/// Waits for the next turn, `gap` after the one before; turns not taken add up to `burst`.
async fn pace(next: Option<Instant>, gap: Duration, burst: Duration) -> Instant {
    let now = Instant::now();
    let earliest = now.checked_sub(burst).unwrap_or(now);
    let turn = next.unwrap_or(earliest).max(earliest);
    tokio::time::sleep_until(turn).await;
    turn + gap
}

/// Takes one row in, if it shows anything of ours. What a sidecar says that does not say its site yet is `unplaced`.
fn take(row: &Value, path: &FlagPath, sites: &mut Sites, unplaced: &mut Vec<Twin>) {
    let Ok(twin) = Twin::from_json(row) else { return };
    let site = site_of(&twin, path);
    if site.is_none() && twin.module.is_some() {
        unplaced.push(twin);
    } else if let Some(site) = site {
        take_twin(&twin, path, &site, sites.entry(site.clone()).or_default());
        // The status stands beside the twin, not in it.
        let disabled = row.get("status").and_then(Value::as_str) == Some("disabled");
        if disabled && let Some(device) = sites.get_mut(&site).and_then(|s| s.get_mut(&twin.device)) {
            device.disabled = true;
        }
    }
}

/// Puts the sidecars that have said no site yet where the others say that they belong.
fn place(unplaced: Vec<Twin>, sites: &mut Sites) {
    for twin in unplaced {
        let names = |device: &Device| {
            let members = device.reported.iter().flat_map(|(said, _)| &said.members);
            members.into_iter().any(|member| member.device == twin.device)
        };
        let its = sites
            .values_mut()
            .find(|devices| devices.contains_key(&twin.device) || devices.values().any(names));
        if let Some(devices) = its {
            hear(&twin, devices);
        }
    }
}

/// Takes in what a sidecar says of itself.
fn hear(twin: &Twin, devices: &mut BTreeMap<String, Device>) {
    if let Some(reported) = twin.reported.values.get(KEY).and_then(Reported::read) {
        let device = devices.entry(twin.device.clone()).or_default();
        device.reported = Some((reported, heard(twin)));
        device.module.clone_from(&twin.module);
    }
}

fn site_of(twin: &Twin, path: &FlagPath) -> Option<String> {
    let flag =
        |at: &Value| at.get("site").and_then(Value::as_str).filter(|s| !s.is_empty()).map(str::to_owned);
    match twin.module {
        Some(_) => flag(twin.reported.values.get(KEY)?),
        None => {
            path.find(&twin.desired.values).and_then(flag).or_else(|| path.find(&twin.tags).and_then(flag))
        }
    }
}

/// Takes what a twin shows of this site in.
fn take_twin(twin: &Twin, path: &FlagPath, site: &str, devices: &mut BTreeMap<String, Device>) {
    let of = site_of(twin, path);
    // A module that says no site yet was asked for as one of this site's.
    if of.as_deref() != Some(site) && !(of.is_none() && twin.module.is_some()) {
        return;
    }
    if twin.module.is_some() {
        return hear(twin, devices);
    }
    let device = devices.entry(twin.device.clone()).or_default();
    let seen = [&twin.desired.values, &twin.tags].map(|part| (path.find(part), path.read(part)));
    let Some((Some(value), seen)) =
        seen.into_iter().filter(|(value, _)| value.is_some()).max_by_key(|(_, seen)| seen.epoch)
    else {
        return;
    };
    let text = |name: &str| value.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
    device.flag = Some(Shown {
        active: seen.active,
        leader: text("leader"),
        epoch: seen.epoch,
        since_unix_ms: wall::from_rfc3339(&text("since")),
    });
}

/// When the hub was last told something by the module, as the hub's own clock had it.
fn heard(twin: &Twin) -> Option<u64> {
    let metadata = &twin.reported.metadata;
    let own = metadata.get(KEY).and_then(|own| own.get("$lastUpdated"));
    wall::from_rfc3339(own.or(metadata.get("$lastUpdated"))?.as_str()?)
}
