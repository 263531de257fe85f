//! One disk of one agent: writes when they are due, and listens to what the gateway acks.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tidegate::flow::{Clock as _, SystemClock, Watermark};
use tidegate::types::{BarrierKind, DiskId, PointId};
use tidegate::wire::{Client, DiskEvent, DiskEvents, DiskSender, OpenedInfo, WireRecord};
use tokio::sync::Notify;
use tokio::time::timeout;

use super::book::Book;
use super::pace::Pace;
use super::profile::{Pattern, Profile};
use super::tally::Tally;
use super::writer::{Image, Stamp, Writer};
use crate::payload::Pool;

/// Records of one disk that may be neither vaulted nor failed. Beyond it the disk waits, as an agent whose queue is full;
/// the time counts, for what is due stays due.
const UNDER_WAY_MAX: usize = 16 << 10;

/// What all disks share.
#[derive(Debug)]
pub struct Common {
    /// Payload.
    pub pool: Pool,
    /// Sums.
    pub tally: Tally,
    /// Bytes that all disks together may still write; of no account if there is no such bound.
    pub left_bytes: AtomicU64,
    /// Whether [`Common::left_bytes`] bounds the run.
    pub bounded: bool,
    /// No write is due later than this.
    pub duration: Option<Duration>,
    /// How long the last records may take to be vaulted.
    pub patience: Duration,
    /// Set by the first disk that fails: the others need not go on.
    pub stop: AtomicBool,
    /// The clock of all times in the run.
    pub clock: SystemClock,
}

impl Common {
    /// Takes the bytes of the next write from what is left; `false` if that was all.
    fn claim(&self, bytes: u64) -> bool {
        if !self.bounded {
            return true;
        }
        let less = |left: u64| (left > 0).then(|| left.saturating_sub(bytes));
        self.left_bytes.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less).is_ok()
    }
}

/// What both halves of a disk know.
#[derive(Debug)]
pub struct State {
    number: usize,
    common: Arc<Common>,
    book: Mutex<Book>,
    /// Room in the book again.
    room: Notify,
    /// How far the epoch is vaulted, or the largest number if the stream has failed.
    vaulted: Watermark,
    failure: Mutex<Option<String>>,
    /// Begin of what is measured, on the common clock.
    started: Mutex<Option<Duration>>,
}

impl State {
    fn fail(&self, text: String) {
        self.failure.lock().get_or_insert(text);
        self.common.stop.store(true, Ordering::Relaxed);
        self.vaulted.advance(u64::MAX);
        self.room.notify_one();
    }

    /// How old the oldest record is that is not vaulted.
    pub fn oldest(&self) -> Option<Duration> {
        let due = self.book.lock().oldest_due()?;
        Some(self.since_start().saturating_sub(due))
    }

    fn since_start(&self) -> Duration {
        let started = (*self.started.lock()).unwrap_or_default();
        self.common.clock.monotonic().saturating_sub(started)
    }
}

/// A disk whose stream is open.
pub struct Disk {
    /// Its name.
    pub id: DiskId,
    client: Arc<Client>,
    sender: DiskSender,
    writer: Writer,
    profile: Profile,
    pattern: Pattern,
    pace: Pace,
    image: Option<Image>,
    state: Arc<State>,
    ear: tokio::task::JoinHandle<()>,
}

/// How a disk ended.
pub struct Ended {
    /// Its name.
    pub id: DiskId,
    /// The last record, which is a recovery point.
    pub point: PointId,
    /// What it must hold, if that was kept.
    pub image: Option<Image>,
    /// Why it did not come to its end.
    pub failure: Option<String>,
}

/// What a disk is to do.
pub struct Orders {
    /// Its number among all disks.
    pub number: usize,
    /// The kind of load.
    pub profile: Profile,
    /// Which writes come.
    pub pattern: Pattern,
    /// When.
    pub pace: Pace,
    /// What it will hold, if that is wanted.
    pub image: Option<Image>,
}

impl Disk {
    /// Takes over a stream that was just opened.
    #[must_use]
    pub fn new(
        id: DiskId,
        client: Arc<Client>,
        stream: (DiskSender, DiskEvents, OpenedInfo),
        orders: Orders,
        common: &Arc<Common>,
    ) -> Self {
        let (sender, events, opened) = stream;
        let writer = Writer::new(&opened);
        let state = Arc::new(State {
            number: orders.number,
            common: Arc::clone(common),
            book: Mutex::new(Book::new(writer.last())),
            room: Notify::new(),
            vaulted: Watermark::new(writer.last().0),
            failure: Mutex::default(),
            started: Mutex::default(),
        });
        let ear = tokio::spawn(listen(events, Arc::clone(&state)));
        let Orders { profile, pattern, pace, image, .. } = orders;
        Self { id, client, sender, writer, profile, pattern, pace, image, state, ear }
    }

    /// What both halves know.
    #[must_use]
    pub fn state(&self) -> Arc<State> {
        Arc::clone(&self.state)
    }

    /// The span in which a new disk is copied: for all but a copy it is over at once, as for an empty disk.
    ///
    /// # Errors
    /// Why the stream ended.
    pub async fn begin(&mut self) -> Result<(), String> {
        self.barrier(BarrierKind::SyncBegin).await?;
        if self.profile != Profile::Copy {
            self.barrier(BarrierKind::SyncEnd).await?;
        }
        self.all_vaulted().await
    }

    /// Writes until the end, waits until all of it is vaulted, and closes the stream.
    pub async fn run(mut self, started: Duration) -> Ended {
        *self.state.started.lock() = Some(started);
        let outcome = self.write_all(started).await;
        let (point, failure) = (PointId { epoch: self.writer.epoch(), seq: self.writer.last() }, outcome.err());
        // The gateway has everything; what it says to the end of the stream changes nothing.
        self.ear.abort();
        if failure.is_none() {
            let _ = self.sender.finish().await;
        }
        Ended { id: self.id, point, image: self.image, failure }
    }

    async fn write_all(&mut self, started: Duration) -> Result<(), String> {
        let mut written_bytes = 0;
        while !self.state.common.stop.load(Ordering::Relaxed) && !self.pattern.ended() {
            let due = self.pattern.next_at().or_else(|| self.pace.due(written_bytes));
            let due = match due {
                Some(due) => {
                    if self.state.common.duration.is_some_and(|end| due >= end) {
                        break;
                    }
                    self.wait_until(due, started).await
                }
                None => {
                    let now = self.state.since_start();
                    if self.state.common.duration.is_some_and(|end| now >= end) {
                        break;
                    }
                    now
                }
            };
            let write = self.pattern.next_write();
            if !self.state.common.claim(u64::from(write.length_bytes)) {
                break;
            }
            self.wait_for_room().await;
            let number = self.pattern.number();
            let (block, payload) = self.state.common.pool.slice(number, write.length_bytes as usize);
            let record = self.writer.write(&write, payload, self.stamp());
            self.send(record, due, if write.zero { 0 } else { write.length_bytes }).await?;
            written_bytes += u64::from(write.length_bytes);
            if let Some(image) = &mut self.image {
                image.write(&write, block);
            }
        }
        if self.profile == Profile::Copy {
            self.barrier(BarrierKind::SyncEnd).await?;
        }
        self.all_vaulted().await
    }

    /// Waits for a moment that is to come and returns when it was over. By how much a timer is late is this program's
    /// own fault: it is told apart, and no part of a latency. A write that is late because the one before was not taken is
    /// not waited for, and counts from when it was due.
    async fn wait_until(&self, due: Duration, started: Duration) -> Duration {
        let now = self.state.since_start();
        if due <= now {
            return due;
        }
        tokio::time::sleep((started + due).saturating_sub(self.state.common.clock.monotonic())).await;
        let woken = self.state.since_start().max(due);
        let late = (woken - due).as_micros() as u64;
        self.state.common.tally.late_micros_max.fetch_max(late, Ordering::Relaxed);
        woken
    }

    async fn wait_for_room(&self) {
        while self.state.book.lock().under_way() >= UNDER_WAY_MAX && self.state.failure.lock().is_none() {
            self.state.room.notified().await;
        }
    }

    fn stamp(&self) -> Stamp {
        Stamp::new(self.state.common.clock.wall(), self.client.clock())
    }

    async fn barrier(&mut self, kind: BarrierKind) -> Result<(), String> {
        let record = self.writer.barrier(kind, self.stamp());
        let now = self.state.since_start();
        self.send(record, now, 0).await
    }

    async fn send(&mut self, record: WireRecord, due: Duration, payload_bytes: u32) -> Result<(), String> {
        // Noted before it goes out, for the ack may be quicker than the return of `send`.
        self.state.book.lock().sent(due, payload_bytes);
        if let Err(error) = self.sender.send(record).await {
            return Err(self.reason(&error.to_string()).await);
        }
        self.state.common.tally.sent_bytes.fetch_add(u64::from(payload_bytes), Ordering::Relaxed);
        self.state.common.tally.sent_records.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    /// Why the stream ended: what the gateway said, if it said something.
    async fn reason(&self, error: &str) -> String {
        // Its words come on the other half; a moment later, if at all.
        let _ = timeout(Duration::from_secs(5), self.state.vaulted.beyond(u64::MAX - 1)).await;
        self.state.failure.lock().clone().unwrap_or_else(|| error.to_owned())
    }

    async fn all_vaulted(&self) -> Result<(), String> {
        let last = self.state.book.lock().last_sent();
        let waited = timeout(self.state.common.patience, self.state.vaulted.beyond(last.0.saturating_sub(1))).await;
        if let Some(failure) = self.state.failure.lock().clone() {
            return Err(failure);
        }
        waited.map(drop).map_err(|_| {
            let vaulted = self.state.book.lock().vaulted();
            format!("of {last} records only {vaulted} are vaulted after {:?}", self.state.common.patience)
        })
    }
}

/// Takes what the gateway says, until it says the last word.
async fn listen(mut events: DiskEvents, state: Arc<State>) {
    loop {
        match events.next().await {
            DiskEvent::Ack { journaled, vaulted } => {
                let (now, measured) = (state.since_start(), state.started.lock().is_some());
                let mut book = state.book.lock();
                let mut adding = state.common.tally.part(state.number);
                let acked = book.acked(journaled, vaulted, |level, due, bytes| {
                    // Barriers before the start are no load.
                    if measured && bytes > 0 {
                        adding.add(level, now.saturating_sub(due), bytes);
                    }
                });
                drop((adding, book));
                match acked {
                    Ok(()) => {
                        state.vaulted.advance(vaulted.0);
                        state.room.notify_one();
                    }
                    Err(error) => return state.fail(format!("a false ack: {error}")),
                }
            }
            DiskEvent::Redirect { .. } => {}
            DiskEvent::Fenced { newest } => return state.fail(format!("fenced by epoch {newest}")),
            DiskEvent::Refused { code, text } => return state.fail(format!("the gateway ended it: {code:?} {text}")),
            DiskEvent::Closed(lost) => return state.fail(lost.to_string()),
        }
    }
}
