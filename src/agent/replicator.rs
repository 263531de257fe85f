//! One disk's way to the gateway: opens its stream, sends records, takes acks, copies what is marked.
//!
//! ```text
//!           ┌──────────────── Plan::Resume ───────────────┐
//!  wait for │                                             ▼
//!  a link ──┴─ Plan::Fork ─► ask ─► remember epoch ─► session: send ∥ acks ∥ copy ──► lost ──► wait for a link
//!                             │                           │
//!                             └───── fenced ──────────────┴──► stop, alarm; the guest goes on
//! ```
//!
//! When the agent moves to another gateway, a session sends nothing more, waits until all that it sent is vaulted, and
//! ends; the next one resumes the epoch over there. If the vault takes too long for that, the session goes on for a while,
//! and it goes on as if nothing was when the other gateway is lost meanwhile.
//!
//! A session is three loops on one task; the first that ends, ends it. Nothing in a session is cancelled half-way in a
//! way that matters: a record whose sending was dropped is sent again, because it is held until it is journaled; a copy
//! that was read is queued even if the session is gone meanwhile.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;
use tracing::field::Empty;
use tracing::{Span, info_span};

use super::disk::{COPY_CHUNKS, Disk, Plan};
use super::link::{Backoff, Link, connected, other_lost, replaced};
use super::queue::{Next, Outgoing, Signing};
use super::state::StateError;
use super::tracker::{CopyNext, EpochStart, Mode};
use crate::config::show_size;
use crate::fault::chain_text;
use crate::flow::{BudgetGuard, blocking, blocking_in};
use crate::limits::CHUNK_BYTES;
use crate::mutants::{self, Mutant};
use crate::signed::Signer;
use crate::telemetry::traces::within;
use crate::types::{Epoch, Id128, PointId, Seq};
use crate::wire::{
    Client, Code, DiskEvent, DiskEvents, DiskSender, ForkReason, OpenDisk, OpenDiskError, OpenedInfo, Want, WireRecord,
};

/// Longest pause after the gateway refused the disk: the reason is mended by people.
const REFUSED_PAUSE_MAX: Duration = Duration::from_secs(30);
/// How often a copier without room looks again: memory is also given back by other disks, which do not wake it.
const COPY_PAUSE: Duration = Duration::from_millis(50);
/// Pause after a read of the disk failed.
const READ_FAILED_PAUSE: Duration = Duration::from_secs(1);

/// How long a session that is to move waits, sending nothing, until all is vaulted: a few batches and their uploads.
const MOVE_PATIENCE: Duration = Duration::from_secs(10);
/// How long it then goes on where it is, before it tries again to move.
const MOVE_PAUSE: Duration = Duration::from_secs(20);

/// How copying is paced.
#[derive(Clone, Copy, Debug)]
pub struct CopyPace {
    /// Reads in flight.
    pub parallel: usize,
    /// Bytes per second; 0 for no limit.
    pub rate_bytes: u64,
}

/// How a session ended.
#[derive(Debug)]
enum End {
    /// The connection or the stream is gone; the epoch goes on.
    Lost(String),
    /// The epoch cannot go on.
    Fork(ForkReason, String),
    /// As `Fork`, and what the gateway has is not what this agent sent: everything must be compared.
    Diverged(String),
    /// Another epoch took over.
    Fenced(Epoch),
    /// The gateway does not want the disk.
    Refused(String),
    /// The gateway stops, and all that was sent is vaulted: the epoch goes on elsewhere.
    Stopping(String),
    /// The agent is at another gateway now, and all that was sent here is vaulted.
    Moved,
    /// The agent stops.
    Stopped,
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Lost(text)
            | Self::Fork(_, text)
            | Self::Diverged(text)
            | Self::Refused(text)
            | Self::Stopping(text) => f.write_str(text),
            Self::Fenced(newest) => write!(f, "fenced: epoch {newest} took over"),
            Self::Moved => f.write_str("moved to another gateway"),
            Self::Stopped => f.write_str("the agent stops"),
        }
    }
}

impl From<StateError> for End {
    fn from(error: StateError) -> Self {
        Self::Refused(chain_text(&error))
    }
}

/// Replicates one disk. Ends when it is fenced; else only by being dropped.
pub async fn run(disk: Arc<Disk>, mut link: Link, pace: CopyPace) {
    let mut backoff = Backoff::up_to(REFUSED_PAUSE_MAX);
    let mut reported = String::new();
    loop {
        if let Plan::Fenced(newest) = disk.plan() {
            alarm_fenced(&disk, newest);
            return;
        }
        let Some(client) = connected(&mut link).await else { return };
        let started = disk.shared.clock.monotonic();
        let end = attempt(&disk, &client, &mut link.clone(), pace).await;
        if matches!(end, End::Stopping(_)) {
            // Nobody listens there any more; the next attempt waits until the agent is elsewhere.
            client.note_stopping();
        }
        drop(client);
        disk.note(|condition| condition.gateway = None);
        // A session that held for a while was a success, however it ended.
        if disk.shared.clock.monotonic().saturating_sub(started) > Duration::from_secs(10) {
            backoff.reset();
        }
        let text = match end {
            End::Stopped => return,
            End::Moved => {
                backoff.reset();
                continue;
            }
            End::Lost(text) | End::Stopping(text) => {
                backoff.reset();
                text
            }
            End::Refused(text) => text,
            End::Fork(reason, text) => {
                disk.abandon(reason);
                text
            }
            End::Diverged(text) => {
                tracing::error!(disk = %disk.id, error = text, "the vault's history is not this agent's: whole disk is compared");
                // Remembered first: after a crash in between, this would look like any unclean stop.
                match mark_all(&disk).await {
                    Ok(_) => {
                        disk.abandon(ForkReason::DiskChanged);
                        text
                    }
                    Err(error) => format!("{text}; {error}"),
                }
            }
            End::Fenced(newest) => {
                fence(&disk, newest).await;
                continue;
            }
        };
        if reported != text {
            tracing::warn!(disk = %disk.id, error = text, "not replicating at present");
            reported.clone_from(&text);
        }
        disk.note(|condition| condition.last_error = Some(text));
        tokio::time::sleep(backoff.next_pause()).await;
    }
}

fn alarm_fenced(disk: &Disk, newest: Epoch) {
    let text = format!(
        "epoch {newest} of disk {} was begun by another agent: this one does not replicate it any more; \
         if this machine is the right one, start the agent with --take-over {}",
        disk.id, disk.id
    );
    tracing::error!(disk = %disk.id, %newest, "{text}");
    disk.note(|condition| condition.last_error = Some(text));
}

async fn fence(disk: &Arc<Disk>, newest: Epoch) {
    let shared = Arc::clone(disk);
    let stored = blocking(move || shared.fence(newest)).await;
    if let Ok(Err(error)) = stored {
        tracing::error!(disk = %disk.id, error = chain_text(&error), "the fence could not be remembered");
    }
}

/// Marks runs of chunks, durably. Returns how many chunks were not marked before.
async fn mark(disk: &Arc<Disk>, runs: Vec<Range<u32>>) -> std::io::Result<u64> {
    let shared = Arc::clone(disk);
    blocking(move || shared.mark_touched(&runs)).await.unwrap_or_else(|stopped| Err(stopped.into()))
}

async fn mark_all(disk: &Arc<Disk>) -> std::io::Result<u64> {
    let chunks = disk.tracker().dirty().must_send().limit() as u32;
    mark(disk, Vec::from([Range { start: 0, end: chunks }])).await
}

/// Opens the disk's stream as planned and runs a session on it.
async fn attempt(disk: &Arc<Disk>, client: &Arc<Client>, link: &mut Link, pace: CopyPace) -> End {
    let gateway = client.gateway().gateway.as_str();
    let span = info_span!("open disk", disk = %disk.id, gateway, want = Empty, epoch = Empty);
    let (sender, events, info) = match within(span, open(disk, client, link)).await {
        Ok(opened) => opened,
        Err(end) => return end,
    };
    disk.note(|condition| {
        condition.gateway = Some(client.gateway().gateway.clone());
        condition.last_error = None;
    });
    tracing::info!(disk = %disk.id, epoch = %info.epoch, next = %info.next_seq, journaled = %info.journaled, "replicating");
    // What the gateway has from earlier sessions counts at once.
    disk.acked(info.epoch, info.journaled, info.vaulted);
    let outbox = Outbox { sender, held: None, signer: client.signer() };
    carry(disk, outbox, receive(disk, events, info.epoch), (link, client), pace).await
}

/// Opens the disk's stream as planned, and begins or goes on with the epoch that the gateway names.
async fn open(
    disk: &Arc<Disk>,
    client: &Arc<Client>,
    link: &mut Link,
) -> Result<(DiskSender, DiskEvents, OpenedInfo), End> {
    let nonce = disk.nonce().map_err(|error| End::Refused(error.to_string()))?;
    let want = want(disk);
    let span = Span::current();
    span.record("want", if matches!(want, Want::Resume { .. }) { "resume" } else { "fork" });
    let open = OpenDisk { disk: disk.id.clone(), size_bytes: disk.source.size_bytes(), nonce, want };
    let opened = tokio::select! {
        biased;
        opened = within(info_span!("ask gateway"), client.open_disk(open)) => opened,
        // Whoever does not answer need not be waited for.
        () = replaced(link, client) => return Err(End::Moved),
    };
    let (sender, events, mut info) = opened.map_err(|error| match error {
        OpenDiskError::MustFork { text } => End::Fork(ForkReason::GatewayLost, text),
        OpenDiskError::Fenced { newest } => End::Fenced(newest),
        OpenDiskError::Refused { code, text } => refused(code, &text),
        OpenDiskError::Connection(lost) => End::Lost(lost.to_string()),
    })?;
    span.record("epoch", info.epoch.0);
    let touched = std::mem::take(&mut info.touched);
    match want {
        Want::Resume { floor, floor_chain, .. } => resume(
            disk,
            (&info, client.takes_signed()),
            EpochStart { epoch: info.epoch, next_seq: floor.next(), chain: floor_chain, from_zero: false },
        )?,
        Want::Fork { .. } => within(info_span!("begin epoch"), fork(disk, &info, touched, nonce)).await?,
    }
    Ok((sender, events, info))
}

/// A session, until it ends or has moved.
async fn carry(
    disk: &Arc<Disk>,
    mut outbox: Outbox,
    received: impl Future<Output = End>,
    (link, client): (&mut Link, &Arc<Client>),
    pace: CopyPace,
) -> End {
    tokio::pin!(received);
    let mut pause = Duration::ZERO;
    loop {
        let until = async {
            tokio::time::sleep(pause).await;
            replaced(link, client).await;
        };
        tokio::select! {
            biased;
            end = &mut received => return end,
            ended = outbox.send(disk, until) => if let Some(end) = ended {
                return end;
            },
            end = copy(disk, pace) => return end,
        }
        tokio::select! {
            biased;
            end = &mut received => return end,
            // There is nowhere to go any more.
            () = other_lost(link, client) => pause = Duration::ZERO,
            () = vaulted(disk, outbox.sender.last()) => {
                tracing::info!(disk = %disk.id, "all that was sent is vaulted: moving to the other gateway");
                return End::Moved;
            }
            () = tokio::time::sleep(MOVE_PATIENCE) => {
                tracing::info!(disk = %disk.id, "the vault takes long: staying at the gateway for now");
                pause = MOVE_PAUSE;
            }
        }
    }
}

/// Waits until a record of the present epoch is vaulted.
async fn vaulted(disk: &Disk, seq: Seq) {
    let mut progress = disk.progress.subscribe();
    while disk.tracker().vaulted_seq() < seq {
        if progress.changed().await.is_err() {
            return;
        }
    }
}

fn want(disk: &Disk) -> Want {
    let floor = disk.floor();
    match (disk.plan(), floor) {
        (Plan::Resume, Some((epoch, floor))) => {
            let tracker = disk.tracker();
            let first_held =
                if tracker.mode() == Mode::Detached { floor.seq.next() } else { tracker.queue().first_held() };
            Want::Resume { epoch, floor: floor.seq, floor_chain: floor.chain, first_held }
        }
        (Plan::Fork(reason), floor) => {
            let floor = floor.map(|(epoch, floor)| (PointId { epoch, seq: floor.seq }, floor.chain));
            Want::Fork { reason, floor }
        }
        // A resume without an epoch does not happen; a fork is right whatever happened.
        _ => Want::Fork { reason: ForkReason::UncleanStart, floor: None },
    }
}

/// What a refusal with a code means.
fn refused(code: Code, text: &str) -> End {
    let text = format!("gateway refused the disk ({code}): {text}");
    match code {
        Code::MustFork | Code::Seq | Code::Epoch => End::Fork(ForkReason::GatewayLost, text),
        Code::Conflict | Code::Chain => End::Diverged(text),
        // All that it took is vaulted: the epoch goes on elsewhere.
        Code::Draining => End::Stopping(text),
        _ => End::Refused(text),
    }
}

/// Goes on with an epoch at a gateway that takes signed barriers, or does not; `clean` is where a clean stop left it.
fn resume(disk: &Disk, (info, takes_signed): (&OpenedInfo, bool), clean: EpochStart) -> Result<(), End> {
    if disk.tracker().mode() == Mode::Detached {
        let known = info.chain.is_none_or(|chain| chain == clean.chain);
        if info.next_seq != clean.next_seq || !known {
            return Err(End::Diverged(format!(
                "epoch {} goes on at {} in the vault, but this agent stopped before {}: its state is older, as after a restore from a backup",
                info.epoch, info.next_seq, clean.next_seq
            )));
        }
        disk.continue_epoch(clean);
        return Ok(());
    }
    let mut tracker = disk.tracker();
    let floor = tracker.dirty().floor();
    if info.next_seq == floor.seq.next() && info.chain.is_some_and(|chain| chain != floor.chain) {
        return Err(End::Diverged(format!("chain after e{}-s{} is another one at the gateway", info.epoch, floor.seq)));
    }
    if !takes_signed && tracker.queue().holds_signed(info.next_seq) {
        // They have one form, and this gateway would refuse it again and again.
        let text =
            format!("barriers from record {} on are signed, which this older gateway does not take", info.next_seq);
        return Err(End::Fork(ForkReason::GatewayLost, text));
    }
    if tracker.resume(info.next_seq) {
        Ok(())
    } else {
        Err(End::Fork(ForkReason::GatewayLost, format!("record {} is no longer held", info.next_seq)))
    }
}

/// Begins the epoch that the gateway has opened.
async fn fork(disk: &Arc<Disk>, info: &OpenedInfo, touched: Vec<Range<u32>>, nonce: Id128) -> Result<(), End> {
    let Some(chain) = info.chain else {
        return Err(End::Refused(format!("gateway opened epoch {} without its chain", info.epoch)));
    };
    if info.next_seq.0 == 0 {
        return Err(End::Refused(format!("gateway opened epoch {} at record 0", info.epoch)));
    }
    if !mutants::on(Mutant::CloneRegionsForgotten) {
        // Remembered before the epoch is: a crash in between asks for another epoch, and is told the same again.
        let added = mark(disk, touched).await.map_err(|error| End::Refused(error.to_string()))?;
        if added > 0 {
            tracing::warn!(
                disk = %disk.id, epoch = %info.epoch, more = show_size(added * CHUNK_BYTES),
                "the vault has records that this state does not know: this machine is a copy, was set back, or another \
                 carried the disk in between; what they wrote is compared too"
            );
        }
    }
    let start = EpochStart { epoch: info.epoch, next_seq: info.next_seq, chain, from_zero: info.epoch == Epoch(1) };
    let shared = Arc::clone(disk);
    match blocking(move || shared.start_epoch(start, nonce)).await {
        Ok(outcome) => Ok(outcome?),
        Err(_) => Err(End::Stopped),
    }
}

/// The way out of a session.
struct Outbox {
    sender: DiskSender,
    /// Taken from the queue and not sent yet: the session may pause while it waits for credit.
    held: Option<WireRecord>,
    /// Signs the barriers, if the gateway takes such.
    signer: Option<Arc<Signer>>,
}

impl Outbox {
    /// Sends what the queue gives, until `until`. Returns how the session ended, if it did.
    async fn send(&mut self, disk: &Disk, until: impl Future<Output = ()>) -> Option<End> {
        tokio::pin!(until);
        loop {
            if self.held.is_none() {
                let pause = match disk.next_record() {
                    Next::Record(record) => {
                        self.held = Some(seal(disk, self.signer.as_deref(), *record));
                        None
                    }
                    Next::Linger(pause) => Some(pause),
                    Next::Empty => {
                        disk.recover();
                        Some(Duration::MAX)
                    }
                };
                if let Some(pause) = pause {
                    tokio::select! {
                        biased;
                        () = &mut until => return None,
                        () = disk.to_send.notified(), if pause == Duration::MAX => {}
                        () = tokio::time::sleep(pause), if pause != Duration::MAX => {}
                    }
                    continue;
                }
            }
            let Some(record) = &self.held else { continue };
            let ready = tokio::select! {
                biased;
                () = &mut until => return None,
                ready = self.sender.ready(record) => ready,
            };
            // From here on it must not be dropped: half a record cuts the stream.
            let sent = match (ready, self.held.take()) {
                (Ok(()), Some(record)) => self.sender.send(record).await,
                (ready, _) => ready,
            };
            if let Err(error) = sent {
                // The reason comes as an event, usually just after; it decides what to do.
                tokio::time::sleep(Duration::from_secs(1)).await;
                return Some(End::Lost(error.to_string()));
            }
        }
    }
}

fn seal(disk: &Disk, signer: Option<&Signer>, mut record: Outgoing) -> WireRecord {
    let signer = signer.filter(|_| record.to_sign());
    let sealed = record.seal_signed(signer.map(|signer| Signing { signer, disk: &disk.id, told: disk.told() }));
    disk.sealed(&record);
    let mut rest = Vec::with_capacity(record.pieces.len() + 1);
    rest.push(sealed.table);
    rest.append(&mut record.pieces);
    WireRecord { head: sealed.head, rest }
}

async fn receive(disk: &Disk, mut events: DiskEvents, epoch: Epoch) -> End {
    loop {
        match events.next().await {
            DiskEvent::Ack { journaled, vaulted } => disk.acked(epoch, journaled, vaulted),
            DiskEvent::Fenced { newest } => return End::Fenced(newest),
            DiskEvent::Refused { code, text } => return refused(code, &text),
            // The connection's task decides when and where to; this session follows it.
            DiskEvent::Redirect { .. } => {}
            DiskEvent::Closed(lost) => return End::Lost(lost.to_string()),
        }
    }
}

/// A read for copying that may be dropped before it began, with its session: its room in the queue is given back then.
struct CopyRead {
    disk: Arc<Disk>,
    chunks: Option<Range<u64>>,
    guard: Option<BudgetGuard>,
}

impl CopyRead {
    fn run(mut self) -> std::io::Result<()> {
        let Some(chunks) = self.chunks.take() else { return Ok(()) };
        self.disk.copy(chunks, self.guard.take())
    }
}

impl Drop for CopyRead {
    fn drop(&mut self) {
        if let Some(chunks) = self.chunks.take() {
            self.disk.copy_dropped(&chunks);
        }
    }
}

/// Copies marked chunks while a span is open, and closes the span.
async fn copy(disk: &Arc<Disk>, pace: CopyPace) -> End {
    let mut reads: JoinSet<std::io::Result<()>> = JoinSet::new();
    let mut from = 0;
    let mut failed = false;
    loop {
        let next = if reads.len() < pace.parallel { disk.next_copy(from) } else { (CopyNext::Wait, None) };
        match next {
            (CopyNext::Chunks(chunks), guard) => {
                from = chunks.end;
                let read = CopyRead { disk: Arc::clone(disk), chunks: Some(chunks), guard };
                blocking_in(&mut reads, move || read.run());
                if pace.rate_bytes > 0 {
                    let share = (COPY_CHUNKS * CHUNK_BYTES) as f64 / pace.rate_bytes as f64;
                    tokio::time::sleep(Duration::from_secs_f64(share)).await;
                }
                continue;
            }
            // All that lay ahead is read or being read; what was marked again behind comes in the next round.
            (CopyNext::End, guard) if reads.is_empty() => {
                drop(guard);
                from = 0;
                if std::mem::take(&mut failed) {
                    tokio::time::sleep(READ_FAILED_PAUSE).await;
                } else if disk.finish_span().is_some() || disk.tracker().dirty().must_send().is_empty() {
                    disk.to_copy.notified().await;
                }
                continue;
            }
            (CopyNext::End | CopyNext::Wait, _) => {}
        }
        tokio::select! {
            biased;
            Some(read) = reads.join_next() => {
                if let Ok(Err(error)) = read {
                    failed = true;
                    tracing::error!(disk = %disk.id, %error, "disk cannot be read for copying; trying again");
                    disk.note(|condition| condition.last_error = Some(format!("reading the disk failed: {error}")));
                }
            }
            () = disk.to_copy.notified() => {}
            () = tokio::time::sleep(COPY_PAUSE), if reads.is_empty() => {}
        }
    }
}

/// Waits until everything of the disk is vaulted.
pub async fn all_vaulted(disk: &Disk) {
    let mut progress = disk.progress.subscribe();
    while !disk.all_vaulted() {
        if progress.changed().await.is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::tests::support::{MemSource, Replica, open};
    use crate::signed::testing::AgentKey;
    use crate::types::Chain;

    #[test]
    fn what_is_signed_and_not_journaled_begins_a_new_epoch_at_a_gateway_that_takes_no_signatures() {
        let folder = tempfile::tempdir().expect("folder");
        let disk = open(&Arc::new(MemSource::new("d1", 1 << 20)), folder.path());
        Replica::begin(&disk);
        let (now, pki) = (crate::flow::Clock::wall(&crate::flow::SystemClock::new()), folder.path().join("pki"));
        let key = AgentKey::issue_at(now, &pki, Id128([0xa1; 16]), "a1", &["d1"]);
        let Next::Record(record) = disk.next_record() else { panic!("the barrier of the epoch's begin") };
        let sent = seal(&disk, Some(&key.signer), *record);
        assert_eq!(sent.head[..4], crate::types::SIGNED_RECORD_MAGIC);
        let at = |next: u64, takes_signed: bool| {
            let (epoch, next_seq) = (Epoch(1), Seq(next));
            let info = OpenedInfo {
                epoch,
                next_seq,
                chain: None,
                journaled: Seq(next - 1),
                vaulted: Seq::NONE,
                credit_bytes: 0,
                touched: Vec::new(),
            };
            let chain = Chain::GENESIS.fork(epoch);
            resume(&disk, (&info, takes_signed), EpochStart { epoch, next_seq, chain, from_zero: false })
        };
        at(1, true).expect("sent again as it is");
        assert!(matches!(at(1, false), Err(End::Fork(ForkReason::GatewayLost, text)) if text.contains("signed")));
        at(2, false).expect("that gateway has it, from a newer one's journal");
    }

    #[test]
    fn copies_that_never_ran_give_their_room_back() {
        let folder = tempfile::tempdir().expect("folder");
        let disk = open(&Arc::new(MemSource::new("d1", 64 << 20)), folder.path());
        Replica::begin(&disk);
        let take_all = || {
            let mut reads = Vec::new();
            let mut from = 0;
            while let (CopyNext::Chunks(chunks), guard) = disk.next_copy(from) {
                from = chunks.end;
                reads.push(CopyRead { disk: Arc::clone(&disk), chunks: Some(chunks), guard });
            }
            assert_eq!(disk.next_copy(from).0, CopyNext::Wait, "no room, though there is more");
            reads
        };
        let first = take_all();
        assert!(first.len() > 1);
        let runtime = tokio::runtime::Builder::new_current_thread().max_blocking_threads(1).build().expect("runtime");
        runtime.block_on(async {
            // The only thread is busy, so that no read begins.
            let (free, busy) = std::sync::mpsc::sync_channel::<()>(1);
            let holder = tokio::task::spawn_blocking(move || busy.recv());
            let mut reads = JoinSet::new();
            let count = first.len();
            first.into_iter().for_each(|read| drop(reads.spawn_blocking(move || read.run())));
            drop(reads);
            drop(free);
            holder.await.expect("joined").expect_err("freed");
            // Runs after all that was queued.
            tokio::task::spawn_blocking(|| {}).await.expect("joined");
            assert_eq!(take_all().len(), count);
        });
    }
}
