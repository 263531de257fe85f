//! Since when a disk writes otherwise than it always did, and which point comes before that: what an operator goes back by.
//!
//! The anomaly of [`super::packed`] says that a disk's writes pack no more. It says so some tens of MiB late, and knows no begin. So
//! each message is held against what the disk's writes usually save as well:
//!
//! ```text
//!  loss      = (usual − saving of the message) ÷ usual          at least −1
//!  evidence  = max(0, evidence + (loss − ¼) · plaintext)        at most 64 MiB
//! ```
//!
//! - The change begins with the first message since the evidence was last nothing. What is usual is as it was then: what came since
//!   does not count as usual, or slow encryption would make itself so.
//! - The point before it is the newest that the disk had before that message. A point within it may have some of the change already.
//! - A change is an *event* once the anomaly is above 0.7. The event is over when the anomaly is below 0.3; it is kept, with
//!   the three before it, for as long as this gateway lives.
//! - Before the disk has a point there is nothing to go back to, and a first copy meets whatever the disk holds: no change begins.
//!
//! Pure bookkeeping by what indexes say, so that [`replay`] finds the same events in a vault's indexes that a gateway found live:
//! what a gateway knew is lost with its process, and the vault has it still.
//!
//! What it does not own: telling of events and keeping their points (`events`), the alert (`deploy/prometheus`).

use std::collections::VecDeque;
use std::fmt::Write as _;

use serde::Serialize;

use super::packed::Packed;
use crate::config::show_size;
use crate::types::{BarrierKind, DiskId, Epoch, Micros, PointId, RecordKind, Seq};
use crate::vault::index::MessageMeta;

/// Anomaly above which a change is an event: what the alert looks at.
const EVENT_ANOMALY: f64 = 0.7;
/// Anomaly below which an event is over: far enough below that nothing flickers.
const OVER_ANOMALY: f64 = 0.3;
/// Loss that is no evidence: contents differ from message to message.
const SLACK: f64 = 0.25;
/// What a message costs however little it holds, seal and heads: a disk with few small writes is no other disk.
const SMALL_COST_BYTES: f64 = 256.0;
/// Most evidence: so much of what is usual ends any change.
const EVIDENCE_BYTES_MAX: f64 = (64 << 20) as f64;
/// Events kept of a disk: somebody who encrypts in several goes is seen from the first on, and a disk takes less than a KiB.
const EVENTS_MAX: usize = 4;
/// Time over which the usual rate fades: a day has its quiet and its busy hours.
const PACE_SECONDS: f64 = 86_400.0;
/// Nothing is said of a rate before it is known for so long.
const PACE_SECONDS_MIN: f64 = 60.0;

/// How fast a disk's writes come, fading over a day.
#[derive(Debug, Clone, Copy, Default)]
struct Pace {
    bytes: f64,
    seconds: f64,
    at: Micros,
}

impl Pace {
    fn until(self, now: Micros) -> Self {
        let passed = now.0.saturating_sub(self.at.0) as f64 / 1e6;
        // The first message begins the time.
        let kept = if self.at == Micros(0) { 1.0 } else { (-passed / PACE_SECONDS).exp() };
        let seconds = self.seconds * kept + PACE_SECONDS * (1.0 - kept);
        Self { bytes: self.bytes * kept, seconds, at: self.at.max(now) }
    }

    fn per_second(self) -> Option<f64> {
        (self.seconds >= PACE_SECONDS_MIN && self.bytes > 0.0).then(|| self.bytes / self.seconds)
    }
}

/// A point that a disk had.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Had {
    /// Its id.
    pub(crate) id: PointId,
    /// Its label time.
    pub(crate) label: Micros,
}

/// A change of what a disk writes: perhaps an event.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Event {
    /// When it began: label time of the first record of the first message.
    pub(crate) since: Micros,
    /// When it was over; none while it goes on.
    pub(crate) over: Option<Micros>,
    /// The last point before it, if this gateway saw one.
    pub(crate) point: Option<Had>,
    /// Until when the keeper was asked to keep that point.
    pub(crate) held_until: Option<Micros>,
    /// Whether it was told.
    told: bool,
    usual_saving: f64,
    usual_per_second: Option<f64>,
    plain_bytes: f64,
    stored_bytes: f64,
    received_first: Micros,
    received_last: Micros,
}

impl Event {
    fn take(&mut self, message: &MessageMeta) {
        self.plain_bytes += f64::from(message.plain_bytes);
        self.stored_bytes += f64::from(message.stored_bytes);
        self.received_last = self.received_last.max(message.received_last);
    }

    /// How many times as many bytes are stored as usual for as much plaintext.
    pub(crate) fn worse_times(&self) -> f64 {
        let usual_stored = self.plain_bytes * (1.0 - self.usual_saving);
        if usual_stored > 0.0 { self.stored_bytes / usual_stored } else { 1.0 }
    }

    /// How many times the usual rate it writes; none if too little is known.
    pub(crate) fn rate_times(&self) -> Option<f64> {
        let seconds = self.received_last.0.saturating_sub(self.received_first.0) as f64 / 1e6;
        Some(self.plain_bytes / seconds.max(1.0) / self.usual_per_second?)
    }

    /// What happened, in a sentence for an operator, with what to do.
    pub(crate) fn words(&self, disk: &DiskId) -> String {
        let mut out = format!("{disk} packs {:.1} times worse than usual", self.worse_times());
        // Writing to a string never fails.
        if let Some(times) = self.rate_times() {
            let _ = write!(out, " and writes {} its usual rate", rate_words(times));
        }
        let until = self.over.map(|over| format!(" until {over}")).unwrap_or_default();
        let _ = write!(out, " since {}{until}, {} in all; ", self.since, show_size(self.plain_bytes as u64));
        match self.point {
            Some(Had { id, label }) => {
                let _ = write!(out, "last point before: {id} of {label}");
                if let Some(until) = self.held_until {
                    let _ = write!(out, ", kept until {until} at least");
                }
                let _ = write!(
                    out,
                    "; to restore it: tidegate restore --disk {disk} --point {id} --to FILE; to keep it longer: tidegate \
                     vault hold --disk {disk} --point {id}"
                );
            }
            None => {
                let _ = write!(
                    out,
                    "no point before it passed this gateway; to find it: tidegate points --disk {disk} --near {}",
                    self.since
                );
            }
        }
        out
    }

    /// As `/v1/disks` has it.
    pub(crate) fn view(&self, disk: &DiskId) -> EventView {
        EventView {
            since: self.since.to_string(),
            over: self.over.map(|over| over.to_string()),
            point: self.point.map(|point| point.id.to_string()),
            point_time: self.point.map(|point| point.label.to_string()),
            held_until: self.held_until.map(|until| until.to_string()),
            written_bytes: self.plain_bytes as u64,
            worse_times: self.worse_times(),
            rate_times: self.rate_times(),
            words: self.words(disk),
            since_seconds: self.since.0 as f64 / 1e6,
        }
    }
}

fn rate_words(times: f64) -> String {
    match times {
        times if times >= 10.0 => format!("{times:.0} times"),
        times => format!("{times:.1} times"),
    }
}

/// One event of a disk, as `/v1/disks` has it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct EventView {
    /// When it began.
    pub since: String,
    /// When it was over; none while it goes on.
    pub over: Option<String>,
    /// The last point before it.
    pub point: Option<String>,
    /// Its label time.
    pub point_time: Option<String>,
    /// Until when the keeper was asked to keep the point.
    pub held_until: Option<String>,
    /// Plaintext written in it.
    pub written_bytes: u64,
    /// How many times as many bytes were stored as usual for as much plaintext.
    pub worse_times: f64,
    /// How many times the usual rate was written; none if too little is known.
    pub rate_times: Option<f64>,
    /// All of it in a sentence, with what to do.
    pub words: String,
    #[serde(skip)]
    pub(crate) since_seconds: f64,
}

/// What is usual of one disk, and what is not.
#[derive(Debug, Clone, Default)]
pub struct Habit {
    /// How small its writes become.
    pub packed: Packed,
    pace: Pace,
    /// The last record that was learned of.
    seen: Option<PointId>,
    in_sync: bool,
    newest: Option<Had>,
    evidence_bytes: f64,
    change: Option<Box<Event>>,
    events: VecDeque<Event>,
}

impl Habit {
    /// Learns of a message, in the order of the disk's records.
    pub(crate) fn note(&mut self, message: &MessageMeta) {
        let last = PointId { epoch: message.epoch, seq: message.last };
        // What a lane did not get to the vault is packed again for the next one.
        if self.seen.is_some_and(|seen| last <= seen) {
            return;
        }
        if self.seen.is_none_or(|seen| seen.epoch != message.epoch) {
            // An epoch begins in a sync. In the midst of one, barriers are made outside of syncs only.
            self.in_sync = message.first == Seq(1);
        }
        self.pace = self.pace.until(message.received_first);
        self.weigh(message);
        self.packed.note(message.plain_bytes.into(), message.stored_bytes.into());
        if !self.in_sync {
            self.pace.bytes += f64::from(message.plain_bytes);
        }
        self.judge(message);
        self.take_barriers(message);
        self.seen = Some(last);
    }

    /// Learns that an epoch was forked at `fork_seq`: points above it are none any more.
    pub(crate) fn forked(&mut self, epoch: Epoch, fork_seq: Seq) {
        let gone = |had: &mut Had| had.id.epoch == epoch && had.id.seq > fork_seq;
        self.newest.take_if(gone);
        let change = self.change.as_deref_mut().into_iter();
        change.chain(&mut self.events).for_each(|event| {
            event.point.take_if(gone);
        });
    }

    /// Events, the oldest first.
    pub(crate) fn events(&self) -> impl DoubleEndedIterator<Item = &Event> {
        self.events.iter()
    }

    /// Events that were not told yet, which count as told from now on.
    pub(crate) fn take_untold(&mut self) -> Vec<Event> {
        let untold = self.events.iter_mut().filter(|event| !event.told);
        untold
            .map(|event| {
                event.told = true;
                event.clone()
            })
            .collect()
    }

    /// Points before events that nobody keeps, as far as is known.
    pub(crate) fn unheld(&self) -> Vec<(Micros, Had)> {
        let unheld = self.events.iter().filter(|event| event.held_until.is_none());
        unheld.filter_map(|event| Some((event.since, event.point?))).collect()
    }

    /// Learns that the point before the event that began at `since` is kept.
    pub(crate) fn held(&mut self, since: Micros, until: Micros) {
        let event = self.events.iter_mut().find(|event| event.since == since);
        if let Some(event) = event {
            event.held_until = Some(until);
        }
    }

    /// Holds the message against what is usual.
    fn weigh(&mut self, message: &MessageMeta) {
        let usual = match &self.change {
            Some(change) => Some(change.usual_saving),
            None => self.packed.usual_saving().filter(|_| self.newest.is_some() || !self.in_sync),
        };
        // A barrier alone packs as badly as noise, and changes nothing on the disk.
        let has_data = message.records.iter().any(|record| !matches!(record.kind, RecordKind::Barrier(_)));
        let (Some(usual), true) = (usual, has_data && message.plain_bytes > 0) else { return };
        let stored_bytes = (f64::from(message.stored_bytes) - SMALL_COST_BYTES).max(0.0);
        let saving = 1.0 - stored_bytes / f64::from(message.plain_bytes);
        let loss = ((usual - saving) / usual).max(-1.0);
        let weighed = self.evidence_bytes + (loss - SLACK) * f64::from(message.plain_bytes);
        self.evidence_bytes = weighed.clamp(0.0, EVIDENCE_BYTES_MAX);
        if self.evidence_bytes <= 0.0 {
            self.change = None;
            return;
        }
        let (point, usual_per_second) = (self.newest, self.pace.per_second());
        let change = self.change.get_or_insert_with(|| {
            Box::new(Event {
                since: message.records.first().map_or(message.received_first, |record| record.label),
                over: None,
                point,
                held_until: None,
                told: false,
                usual_saving: usual,
                usual_per_second,
                plain_bytes: 0.0,
                stored_bytes: 0.0,
                received_first: message.received_first,
                received_last: message.received_last,
            })
        });
        change.take(message);
    }

    /// Whether the change is an event now, or the event is over.
    fn judge(&mut self, message: &MessageMeta) {
        let anomaly = self.packed.anomaly();
        if let Some(event) = self.events.back_mut().filter(|event| event.over.is_none()) {
            event.take(message);
            event.over = (anomaly < OVER_ANOMALY).then_some(event.received_last);
        } else if let Some(change) = self.change.as_deref().filter(|_| anomaly > EVENT_ANOMALY) {
            if self.events.len() == EVENTS_MAX {
                self.events.pop_front();
            }
            self.events.push_back(change.clone());
        }
    }

    fn take_barriers(&mut self, message: &MessageMeta) {
        for record in &message.records {
            let RecordKind::Barrier(kind) = record.kind else { continue };
            match kind {
                BarrierKind::SyncBegin => self.in_sync = true,
                BarrierKind::SyncEnd => self.in_sync = false,
                BarrierKind::Crash | BarrierKind::Fs | BarrierKind::App => {}
            }
            if !self.in_sync {
                self.newest = Some(Had { id: PointId { epoch: message.epoch, seq: record.seq }, label: record.label });
            }
        }
    }
}

/// The events of a disk by the indexes of all its messages, which come in the order of its records.
pub(crate) fn replay<'a>(messages: impl IntoIterator<Item = &'a MessageMeta>) -> Vec<Event> {
    let mut habit = Habit::default();
    messages.into_iter().for_each(|message| habit.note(message));
    habit.events.into()
}

#[cfg(test)]
pub(super) mod tests;
