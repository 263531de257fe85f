//! What this gateway can say of itself: the answers of `/v1/status`, `/v1/disks` and `/v1/agents`, and the metrics that
//! have a disk in their label.
//!
//! How far a disk is behind is known to its agent only, which tells it every few seconds ([`crate::wire::Report`]); what
//! is shown is the age that it told and the time since, so it is never too small. Labels are bounded: only the disks that
//! are furthest behind have lines of their own, sums are over all of them, and `/v1/disks` has every one.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use dashmap::DashMap;
use parking_lot::Mutex;
use serde::Serialize;

use super::bandwidth::{Bandwidth, LimitView};
use super::disks::Disks;
use super::habit::EventView;
use super::outlook::{Heading, Outlook};
use super::runs::DiskSlot;
use crate::flow::{Clock, Drain};
use crate::journal::{Journal, Level};
use crate::telemetry::{names, text};
use crate::types::{DiskId, Id128, Micros};
use crate::wire::{AgentIdentity, Condition, Report, Transport};

/// How often the journal's fill level is noted.
const LOOK: Duration = Duration::from_secs(5);
/// Events that are told in one answer. There are none as long as nothing is wrong, and a hundred say enough.
const EVENT_LINES_MAX: usize = 100;

/// Agents at this gateway, and what they told of their disks. Bounded by the agents and disks that certificates name.
#[derive(Debug, Default)]
pub struct Roll {
    agents: DashMap<String, Seat>,
    shown: DashMap<String, Arc<Vec<Vec<u8>>>>,
}

#[derive(Debug)]
struct Seat {
    address: SocketAddr,
    transport: Transport,
    since: Duration,
    told: Vec<(Duration, Report)>,
}

impl Roll {
    /// An agent has come.
    pub fn arrived(&self, agent: &AgentIdentity, address: SocketAddr, transport: Transport, now: Duration) {
        self.agents.insert(agent.agent.clone(), Seat { address, transport, since: now, told: Vec::new() });
    }

    /// It has gone, and what it told with it: another gateway may know better by now.
    pub fn left(&self, agent: &AgentIdentity) {
        self.agents.remove(&agent.agent);
        self.shown.remove(&agent.agent);
    }

    /// It showed these certificates.
    pub fn shown(&self, agent: &AgentIdentity, certificates: Vec<Vec<u8>>) {
        self.shown.insert(agent.agent.clone(), Arc::new(certificates));
    }

    /// The certificates that it showed, if it may sign barriers.
    #[must_use]
    pub fn certificates(&self, agent: &AgentIdentity) -> Option<Arc<Vec<Vec<u8>>>> {
        self.shown.get(&agent.agent).map(|shown| Arc::clone(&shown))
    }

    /// It tells how a disk stands.
    pub fn report(&self, agent: &AgentIdentity, report: Report, now: Duration) {
        let Some(mut seat) = self.agents.get_mut(&agent.agent) else { return };
        match seat.told.iter_mut().find(|(_, told)| told.disk == report.disk) {
            Some(told) => *told = (now, report),
            None => seat.told.push((now, report)),
        }
    }
}

/// One disk, as `/v1/disks` has it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct DiskView {
    /// The disk.
    pub disk: DiskId,
    /// The agent that carries it here; none while none does.
    pub agent: Option<String>,
    /// What its replication does, in the agent's words; `away` without an agent here.
    pub condition: &'static str,
    /// Its newest epoch that passed here.
    pub epoch: Option<u64>,
    /// Newest record of that epoch journaled here.
    pub journaled_seq: u64,
    /// Newest record of that epoch in the vault, with all before it.
    pub vaulted_seq: u64,
    /// Age of the oldest write that no recovery point in the vault has, at most; none if nobody told.
    pub rpo_seconds: Option<f64>,
    /// Bytes that its agent has still to copy.
    pub dirty_bytes: u64,
    /// Bytes that its agent has sent and that are not vaulted.
    pub unvaulted_bytes: u64,
    /// Plaintext over stored bytes of late; none before anything was packed here.
    pub packed_ratio: Option<f64>,
    /// The share of the usual saving by packing that is gone of late: 0 as ever, 1 nothing packs any more.
    pub anomaly: f64,
    /// Since when the disk wrote otherwise than ever, as far as this gateway saw it; the newest last.
    pub events: Vec<EventView>,
}

impl DiskView {
    /// The event that goes on.
    fn event(&self) -> Option<&EventView> {
        self.events.last().filter(|event| event.over.is_none())
    }
}

/// One agent, as `/v1/agents` has it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct AgentView {
    /// Its id.
    pub agent: String,
    /// Where it comes from.
    pub address: String,
    /// `quic` or `tcp`.
    pub transport: &'static str,
    /// For how long it has been here.
    pub connected_seconds: f64,
    /// Its disks that it told of.
    pub disks: Vec<DiskId>,
    /// The most that one of them is behind.
    pub rpo_seconds: f64,
}

/// The whole, as `/v1/status` has it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Status {
    /// This gateway.
    pub gateway: String,
    /// The vault that it writes.
    pub vault: Id128,
    /// Its software.
    pub version: &'static str,
    /// Whether agents may come.
    pub ready: bool,
    /// Why they may not.
    pub reason: String,
    /// What waits for somebody to help; empty if nothing does.
    pub trouble: String,
    /// Seconds since it was ready for the first time.
    pub up_seconds: f64,
    /// Agents connected.
    pub agents: usize,
    /// Disks by what their replication does.
    pub disks: Vec<(&'static str, usize)>,
    /// The disk furthest behind, and how far.
    pub worst: Option<(DiskId, f64)>,
    /// Bytes that agents have still to copy.
    pub dirty_bytes: u64,
    /// Bytes that agents have sent and that are not vaulted.
    pub unvaulted_bytes: u64,
    /// Journal bytes in use.
    pub journal_used_bytes: u64,
    /// Journal bytes allowed.
    pub journal_capacity_bytes: u64,
    /// `low`, `high` or `full`.
    pub journal_level: &'static str,
    /// Where the journal is heading; none before enough is known.
    pub journal_heading: Option<Heading>,
    /// Limits of bandwidth, and whether they are what holds things up.
    pub bandwidth: Vec<LimitView>,
    /// The newest event of each disk that has one: those that go on, the oldest first, and then those that are over.
    pub events: Vec<EventView>,
}

/// Everything that is asked when somebody looks.
pub struct Board {
    /// This gateway's name.
    pub gateway: String,
    /// The vault's.
    pub vault: Id128,
    /// Disks that passed here.
    pub disks: Arc<Disks>,
    /// Agents that are here.
    pub roll: Arc<Roll>,
    /// The journal.
    pub journal: Journal,
    /// Limits of bandwidth.
    pub bandwidth: Arc<Bandwidth>,
    /// The time.
    pub clock: Arc<dyn Clock>,
    /// Disks that have lines of their own in the metrics.
    pub lines_max: usize,
    started: Duration,
    outlook: Mutex<Outlook>,
}

impl Board {
    /// A board that knows nothing of the past yet.
    #[must_use]
    pub fn new(
        (gateway, vault): (String, Id128),
        disks: Arc<Disks>,
        roll: Arc<Roll>,
        journal: Journal,
        bandwidth: Arc<Bandwidth>,
        clock: Arc<dyn Clock>,
        lines_max: usize,
    ) -> Self {
        let started = clock.monotonic();
        Self { gateway, vault, disks, roll, journal, bandwidth, clock, lines_max, started, outlook: Mutex::default() }
    }

    /// Notes the journal's fill level now and then, until `drain`.
    pub async fn run(self: Arc<Self>, mut drain: Drain) {
        loop {
            self.look();
            tokio::select! {
                biased;
                () = drain.wait() => return,
                () = tokio::time::sleep(LOOK) => {}
            }
        }
    }

    fn look(&self) {
        let space = self.journal.space();
        let mut outlook = self.outlook.lock();
        outlook.take(self.clock.monotonic(), space.used_bytes);
        let heading = outlook.heading(space);
        // What does not come is infinitely far away.
        let seconds = |of: fn(&Heading) -> Option<f64>| heading.as_ref().and_then(of).unwrap_or(f64::INFINITY);
        metrics::gauge!(names::JOURNAL_FULL_IN_SECONDS).set(seconds(|heading| heading.full_seconds));
        metrics::gauge!(names::JOURNAL_DRAINED_IN_SECONDS).set(seconds(|heading| heading.drained_seconds));
    }

    /// Every disk that is or was here, by name.
    #[must_use]
    pub fn disks(&self) -> Vec<DiskView> {
        let now = self.clock.monotonic();
        let mut views = self.disks.all().iter().map(|slot| passed(slot)).collect();
        for seat in &self.roll.agents {
            for (at, report) in &seat.told {
                put_report(&mut views, seat.key(), report, now.saturating_sub(*at));
            }
        }
        views
    }

    /// What agents have still to copy, and what they have sent and is not vaulted.
    #[must_use]
    pub fn backlog_bytes(&self) -> u64 {
        // What agents say is not to be added up unchecked.
        let add =
            |sum: u64, report: &Report| sum.saturating_add(report.dirty_bytes).saturating_add(report.unvaulted_bytes);
        self.roll.agents.iter().fold(0, |sum, seat| seat.told.iter().map(|(_, report)| report).fold(sum, add))
    }

    /// Every agent that is here, by name.
    #[must_use]
    pub fn agents(&self) -> Vec<AgentView> {
        let now = self.clock.monotonic();
        let view = |agent: &str, seat: &Seat| AgentView {
            agent: agent.to_owned(),
            address: seat.address.to_string(),
            transport: seat.transport.as_str(),
            connected_seconds: now.saturating_sub(seat.since).as_secs_f64(),
            disks: seat.told.iter().map(|(_, report)| report.disk.clone()).collect(),
            rpo_seconds: (seat.told.iter())
                .map(|(at, report)| rpo_seconds(report, now.saturating_sub(*at)))
                .fold(0.0, f64::max),
        };
        let mut agents: Vec<_> = self.roll.agents.iter().map(|seat| view(seat.key(), &seat)).collect();
        agents.sort_by(|a, b| a.agent.cmp(&b.agent));
        agents
    }

    /// The whole.
    #[must_use]
    pub fn status(&self, ready: bool, reason: &str, trouble: &str) -> Status {
        let (disks, space) = (self.disks(), self.journal.space());
        let worst = worst(&furthest_behind(&disks)).map(|(disk, rpo_seconds)| (disk.clone(), rpo_seconds));
        Status {
            gateway: self.gateway.clone(),
            vault: self.vault,
            version: env!("CARGO_PKG_VERSION"),
            ready,
            reason: reason.to_owned(),
            trouble: trouble.to_owned(),
            up_seconds: self.clock.monotonic().saturating_sub(self.started).as_secs_f64(),
            agents: self.roll.agents.len(),
            disks: counts(&disks),
            worst,
            dirty_bytes: disks.iter().map(|view| view.dirty_bytes).sum(),
            unvaulted_bytes: disks.iter().map(|view| view.unvaulted_bytes).sum(),
            journal_used_bytes: space.used_bytes,
            journal_capacity_bytes: space.capacity_bytes,
            journal_level: match space.level {
                Level::Low => "low",
                Level::High => "high",
                Level::Full => "full",
            },
            journal_heading: self.outlook.lock().heading(space),
            bandwidth: self.bandwidth.view(),
            events: newest_events(&disks),
        }
    }

    /// The metrics with a disk in their label, and the sums over all disks, as Prometheus reads them.
    #[must_use]
    pub fn lines(&self) -> String {
        let mut out = lines(&self.disks(), self.lines_max);
        let age = |received: Micros| self.clock.wall().0.saturating_sub(received.0) as f64 / 1e6;
        text::single(&mut out, names::JOURNAL_OLDEST_SECONDS, self.journal.oldest().map_or(0.0, age));
        out
    }
}

fn lines(disks: &[DiskView], lines_max: usize) -> String {
    let behind = furthest_behind(disks);
    let shown = &behind[..behind.len().min(lines_max)];
    let mut out = String::new();
    let mut each = |name: &str, shown: &[&DiskView], of: fn(&DiskView) -> Option<f64>| {
        text::family(&mut out, name, shown.iter().filter_map(|view| Some((label(view), of(view)?))));
    };
    each(names::DISK_RPO_SECONDS, shown, |view| view.rpo_seconds);
    each(names::DISK_DIRTY_BYTES, shown, |view| Some(view.dirty_bytes as f64));
    each(names::DISK_UNVAULTED_BYTES, shown, |view| Some(view.unvaulted_bytes as f64));
    let odd = most_unusual(disks);
    let shown = &odd[..odd.len().min(lines_max)];
    each(names::DISK_PACKED_RATIO, shown, |view| view.packed_ratio);
    each(names::DISK_ANOMALY_RATIO, shown, |view| Some(view.anomaly));
    let goes_on = disks.iter().filter_map(|view| Some((view, view.event()?))).take(EVENT_LINES_MAX);
    let begun = goes_on.map(|(view, event)| {
        let point = event.point.as_deref().unwrap_or("none");
        (text::labels(&[("disk", view.disk.as_str()), ("point", point)]), event.since_seconds)
    });
    text::family(&mut out, names::DISK_ANOMALY_BEGIN_SECONDS, begun);
    let anomaly = odd.first().map_or(0.0, |view| view.anomaly);
    text::single(&mut out, names::DISKS_ANOMALY_MAX_RATIO, anomaly);
    text::single(&mut out, names::DISKS_RPO_MAX_SECONDS, worst(&behind).map_or(0.0, |(_, rpo_seconds)| rpo_seconds));
    let sum = |of: fn(&DiskView) -> u64| disks.iter().map(of).sum::<u64>() as f64;
    text::single(&mut out, names::DISKS_DIRTY_BYTES, sum(|view| view.dirty_bytes));
    text::single(&mut out, names::DISKS_UNVAULTED_BYTES, sum(|view| view.unvaulted_bytes));
    let counted = counts(disks).into_iter();
    let counted = counted.map(|(word, count)| (text::labels(&[("condition", word)]), count as f64));
    text::family(&mut out, names::DISKS, counted);
    out
}

/// A disk of which no agent here tells.
fn away(disk: DiskId) -> DiskView {
    DiskView {
        disk,
        agent: None,
        condition: AWAY,
        epoch: None,
        journaled_seq: 0,
        vaulted_seq: 0,
        rpo_seconds: None,
        dirty_bytes: 0,
        unvaulted_bytes: 0,
        packed_ratio: None,
        anomaly: 0.0,
        events: Vec::new(),
    }
}

/// What passed here of a disk.
fn passed(slot: &DiskSlot) -> DiskView {
    let (packed, events) = {
        let habit = slot.habit.lock();
        (habit.packed, habit.events().map(|event| event.view(&slot.disk)).collect())
    };
    let view = DiskView { packed_ratio: packed.ratio(), anomaly: packed.anomaly(), events, ..away(slot.disk.clone()) };
    let Some(run) = slot.runs().pop() else { return view };
    let (journaled_seq, vaulted_seq) = (run.journaled.get(), run.vaulted.get());
    DiskView { epoch: Some(run.epoch.0), journaled_seq, vaulted_seq, ..view }
}

/// Adds what `agent` told so long ago; `views` are sorted by disk.
fn put_report(views: &mut Vec<DiskView>, agent: &str, report: &Report, since: Duration) {
    let place = views.binary_search_by(|view| view.disk.cmp(&report.disk)).unwrap_or_else(|place| {
        views.insert(place, away(report.disk.clone()));
        place
    });
    let view = &mut views[place];
    view.agent = Some(agent.to_owned());
    view.condition = report.condition.as_str();
    view.rpo_seconds = Some(rpo_seconds(report, since));
    (view.dirty_bytes, view.unvaulted_bytes) = (report.dirty_bytes, report.unvaulted_bytes);
}

/// What the condition of a disk is called whose agent is not here.
const AWAY: &str = "away";

/// What the agent told, and the time since if anything was behind.
fn rpo_seconds(report: &Report, since: Duration) -> f64 {
    match report.rpo_micros {
        0 => 0.0,
        micros => Duration::from_micros(micros).saturating_add(since).as_secs_f64(),
    }
}

/// Disks that somebody tells of, the one furthest behind first.
fn furthest_behind(disks: &[DiskView]) -> Vec<&DiskView> {
    let mut behind: Vec<&DiskView> = disks.iter().filter(|view| view.rpo_seconds.is_some()).collect();
    let rpo = |view: &DiskView| view.rpo_seconds.unwrap_or(0.0);
    behind.sort_by(|a, b| rpo(b).total_cmp(&rpo(a)).then_with(|| a.disk.cmp(&b.disk)));
    behind
}

/// The one furthest behind of disks in that order, and how far.
fn worst<'a>(behind: &[&'a DiskView]) -> Option<(&'a DiskId, f64)> {
    let first = behind.first()?;
    Some((&first.disk, first.rpo_seconds?))
}

/// How many disks are in each condition; every condition is there.
fn counts(disks: &[DiskView]) -> Vec<(&'static str, usize)> {
    let words = Condition::ALL.map(Condition::as_str).into_iter().chain([AWAY]);
    words.map(|word| (word, disks.iter().filter(|view| view.condition == word).count())).collect()
}

/// Disks of which something was packed here, the one with the largest anomaly first.
fn most_unusual(disks: &[DiskView]) -> Vec<&DiskView> {
    let mut packed: Vec<&DiskView> = disks.iter().filter(|view| view.packed_ratio.is_some()).collect();
    packed.sort_by(|a, b| b.anomaly.total_cmp(&a.anomaly).then_with(|| a.disk.cmp(&b.disk)));
    packed
}

/// The newest event of each disk: those that go on, the oldest first, and then those that are over, the newest first.
fn newest_events(disks: &[DiskView]) -> Vec<EventView> {
    let mut events: Vec<&EventView> = disks.iter().filter_map(|view| view.events.last()).collect();
    events.sort_by(|a, b| match (&a.over, &b.over) {
        (None, None) => a.since_seconds.total_cmp(&b.since_seconds),
        (Some(_), Some(_)) => b.since_seconds.total_cmp(&a.since_seconds),
        (over, _) => over.is_some().cmp(&b.over.is_some()),
    });
    events.into_iter().take(EVENT_LINES_MAX).cloned().collect()
}

fn label(view: &DiskView) -> String {
    text::labels(&[("disk", view.disk.as_str())])
}

#[cfg(test)]
mod tests;
