//! One disk stream: consent of the host, then records in, acks and credit out.
//!
//! Both directions run in one task, side by side: a sink that waits for room does not hold up acks, and an agent that
//! does not read its acks does not hold up its records for longer than the window of the other direction.
//!
//! Limits of bandwidth are kept to by credit: one disk after the other is granted some, little at once, and it counts when it
//! is granted. So under a limit a stream has no credit before it has asked for some: thousands of streams that open at once
//! would else bring their first records at once, or keep credit of which nothing comes. A record that has begun is let through
//! whatever the limits say. What an agent has in hand comes as fast as it comes.
//!
//! A record that needs memory waits for the limits first, because memory that waits for a limit is of use to nobody; and for the
//! limits once more if it then had to wait for memory, because what let it through the first time was for others meanwhile.

use std::ops::Range;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::Notify;
use tokio::time::timeout;

use super::memory::{Account, Lease, Signs};
use super::{Gauged, Server, count_refused};
use crate::flow::{Clock, Drain, Hold, Toll, Watermark, watch};
use crate::limits::RECORD_BYTES_MAX;
use crate::telemetry::names;
use crate::telemetry::waits::{Guard, Waiters};
use crate::types::{DiskId, Epoch, Seq};
use crate::wire::CREDIT_BASE_BYTES;
use crate::wire::code::Code;
use crate::wire::frame::{Due, Kind};
use crate::wire::host::{DiskRefusal, Host, OpenedDisk, RecordSink};
use crate::wire::identity::AgentIdentity;
use crate::wire::inbound::{Grants, Inbound};
use crate::wire::messages::{
    Ack, Ask, Credit, DiskOpened, Fenced, Message, OpenDisk, Refused, TOUCHED_RUNS_PER_FRAME, Touched,
};
use crate::wire::stream::{FrameReader, ReadFrameError, Room, write_message};
use crate::wire::transport::{RecvHalf, SendHalf, Session, StreamEnd};

/// How long the other side has to take the last frame of a stream.
const LAST_FRAME_PATIENCE: Duration = Duration::from_secs(5);
/// A disk to which another grant is due within this time is given a larger window than it asked for.
const BRISK: Duration = Duration::from_millis(250);
/// Less is not worth giving back.
const GIVE_BACK_BYTES_MIN: u64 = 64 << 10;

/// A disk stream and the connection it belongs to.
pub(super) struct Stream {
    send: SendHalf,
    reader: FrameReader,
    session: Session,
    account: Arc<Account>,
}

impl Stream {
    pub(super) fn new(send: SendHalf, recv: RecvHalf, session: Session, account: Arc<Account>) -> Self {
        Self { send, reader: FrameReader::new(recv), session, account }
    }
}

/// How a disk stream ends.
enum End {
    /// Nothing more to say: the agent closed, or the connection is gone.
    Quiet,
    /// The gateway drains, and everything that was taken is vaulted.
    Drained,
    /// The agent is told why.
    Refused(DiskRefusal),
}

impl From<DiskRefusal> for End {
    fn from(refusal: DiskRefusal) -> Self {
        Self::Refused(refusal)
    }
}

/// Runs one disk stream to its end. `full` says that the connection has as many as it may.
pub(super) async fn run<H: Host>(server: Arc<Server<H>>, agent: Arc<AgentIdentity>, mut stream: Stream, full: bool) {
    let mut disk = None;
    let end = match full {
        true => {
            let text = format!("this connection has {} disks open already", server.limits.disks_max);
            DiskRefusal::refused(Code::Busy, text).into()
        }
        false => carry(&server, &agent, &mut stream, &mut disk).await,
    };
    let (code, last) = match end {
        End::Quiet => (Code::Done, None),
        End::Drained => {
            let text = "the gateway stops; all that it took is vaulted".to_owned();
            (Code::Draining, Some(Message::DiskRefused(Refused { code: Code::Draining, text })))
        }
        End::Refused(refusal) => {
            let code = refusal.code();
            let disk = disk.as_ref().map_or("?", DiskId::as_str);
            tracing::warn!(agent = agent.agent, disk, %code, "disk stream ended by this gateway: {refusal}");
            count_refused(code);
            (code, Some(refusal_message(refusal)))
        }
    };
    stream.reader.stop(code);
    if let Some(last) = last {
        // A peer that opens no window for it must not keep this task.
        let sent = timeout(LAST_FRAME_PATIENCE, write_message(&mut stream.send, &last)).await;
        if !matches!(sent, Ok(Ok(()))) {
            return;
        }
    }
    if stream.send.finish().is_ok() {
        // Waits for the agent to have it, because closing the connection would throw it away.
        let _ = timeout(LAST_FRAME_PATIENCE, stream.send.stopped()).await;
    }
}

fn refusal_message(refusal: DiskRefusal) -> Message {
    match refusal {
        DiskRefusal::MustFork { text } => Message::DiskRefused(Refused { code: Code::MustFork, text }),
        DiskRefusal::Fenced { newest } => Message::Fenced(Fenced { newest }),
        DiskRefusal::Refused { code, text } => Message::DiskRefused(Refused { code, text }),
    }
}

/// What a failed read means for the stream.
fn end_of(error: ReadFrameError) -> End {
    match error {
        ReadFrameError::Frame(crate::wire::frame::FrameError::Cut)
        | ReadFrameError::Stream(_)
        | ReadFrameError::End => End::Quiet,
        ReadFrameError::Frame(frame) => DiskRefusal::refused(Code::Frame, frame.to_string()).into(),
        ReadFrameError::Message(message) => DiskRefusal::refused(Code::Message, message.to_string()).into(),
        credit @ ReadFrameError::Credit { .. } => DiskRefusal::refused(Code::Credit, credit.to_string()).into(),
    }
}

async fn carry<H: Host>(
    server: &Server<H>,
    agent: &AgentIdentity,
    stream: &mut Stream,
    disk: &mut Option<DiskId>,
) -> End {
    // On the heap, and gone when the disk is open: thousands of streams then carry nothing for as long as they live that
    // only their opening needs.
    let opening = Box::pin(async {
        let open = read_open(server, agent, &mut stream.reader).await?;
        *disk = Some(open.disk.clone());
        let size_bytes = open.size_bytes;
        Ok((size_bytes, open_on_host(server, agent, stream, open).await?))
    });
    let (size_bytes, opened) = match opening.await {
        Ok(opened) => opened,
        Err(end) => return end,
    };
    let _gauge = Gauged::new(names::DISK_STREAMS);
    let OpenedDisk { epoch, next_seq, chain, touched, journaled, vaulted, window, pace, way, fenced, must_fork, sink } =
        opened;
    let lease = stream.account.lease(way);
    let flow = Flow::new(Arc::clone(lease.signs()), Toll::new(pace.clone()));
    let mut outlet = Outlet {
        epoch,
        journaled,
        vaulted,
        window,
        hold: pace.hold(),
        opens_in: None,
        along: false,
        fenced,
        must_fork,
        grants: Grants::default(),
        granted_at: server.clock.monotonic(),
        lease,
        waits: Waiters::none(Guard::RecordMemory),
        clock: Arc::clone(&server.clock),
        sent: Ack { journaled: Seq::NONE, vaulted: Seq::NONE },
    };
    if tell_touched(&mut stream.send, touched).await.is_err() {
        return End::Quiet;
    }
    let (sent, credit_bytes) = outlet.first(&flow);
    let answer = DiskOpened { epoch, next_seq, chain, journaled: sent.journaled, vaulted: sent.vaulted, credit_bytes };
    if write_message(&mut stream.send, &Message::DiskOpened(answer)).await.is_err() {
        return End::Quiet;
    }
    let inlet = Inlet {
        inbound: Inbound::new(epoch, next_seq, chain, size_bytes),
        sink,
        drain: server.drain.clone(),
        clock: Arc::clone(&server.clock),
    };
    let mut received = pin!(inlet.run(&mut stream.reader, &flow));
    let mut sent = pin!(outlet.run(&mut stream.send, &flow));
    let stop = tokio::select! {
        // Acks before more records.
        biased;
        end = &mut sent => return end,
        stop = &mut received => stop,
    };
    match stop {
        Ok(stop) => {
            flow.stop(stop);
            sent.await
        }
        Err(end) => end,
    }
}

/// Names chunks to compare. They are not kept for the life of the stream.
async fn tell_touched(send: &mut SendHalf, touched: Vec<Range<u32>>) -> Result<(), StreamEnd> {
    for runs in touched.chunks(TOUCHED_RUNS_PER_FRAME) {
        write_message(send, &Message::Touched(Touched { runs: runs.to_vec() })).await?;
    }
    Ok(())
}

/// Asks the host, in turn: see [`super::admission::Pace`].
async fn open_on_host<H: Host>(
    server: &Server<H>,
    agent: &AgentIdentity,
    stream: &mut Stream,
    open: OpenDisk,
) -> Result<OpenedDisk<H::Sink>, End> {
    let mut drain = server.drain.clone();
    let asked = async {
        let mut told = false;
        while let Some(pause) = server.pace.turn(&open.disk, server.clock.monotonic()) {
            if !told {
                tracing::info!(disk = %open.disk, "the disk was opened too often of late: this opening waits");
                told = true;
            }
            tokio::time::sleep(pause).await;
        }
        server.host.open_disk(agent, open).await
    };
    tokio::select! {
        biased;
        _ = stream.session.closed() => Err(End::Quiet),
        // The agent has taken the request back: it may be elsewhere by now, where an epoch begun here would fence it.
        () = stream.send.stopped() => Err(End::Quiet),
        // No epoch is begun here any more.
        () = drain.wait() => Err(End::Drained),
        opened = asked => opened.map_err(End::from),
    }
}

async fn read_open<H>(server: &Server<H>, agent: &AgentIdentity, reader: &mut FrameReader) -> Result<OpenDisk, End> {
    let Ok(message) = timeout(server.limits.step_timeout, reader.next_message()).await else {
        return Err(DiskRefusal::refused(Code::Timeout, "no open-disk frame came in time").into());
    };
    let open = match message.map_err(end_of)? {
        Message::OpenDisk(open) => open,
        other => {
            let text = format!("{:?} frame came instead of open-disk", other.kind());
            return Err(DiskRefusal::refused(Code::Message, text).into());
        }
    };
    if agent.may_write(&open.disk) {
        return Ok(open);
    }
    let named = agent.disks.iter().map(DiskId::as_str).collect::<Vec<_>>().join(", ");
    let text = format!(
        "the certificate of agent {} does not name disk {} (it names: {named}); issue one with `tidegate pki issue … \
         agent --id {} --disk {}`",
        agent.agent, open.disk, agent.agent, open.disk
    );
    Err(DiskRefusal::refused(Code::NotAuthorised, text).into())
}

/// What the two directions of a stream tell each other.
struct Flow {
    /// Record bytes that the sink has taken.
    taken_bytes: Watermark,
    /// Record bytes in all for which there is memory.
    granted_bytes: AtomicU64,
    /// The most that was ever granted.
    most_bytes: AtomicU64,
    /// More was granted.
    granted: Notify,
    /// Record bytes in all that the next record needs and that are not granted; 0 if there is no such record.
    wanted_bytes: AtomicU64,
    wanted: Notify,
    signs: Arc<Signs>,
    toll: Toll,
    stop: watch::Sender<Option<Stop>>,
}

/// Reading is over; what acks are still owed.
#[derive(Clone, Copy)]
enum Stop {
    /// The gateway drains: acks go on until this record is vaulted, so that the epoch can go on at another gateway.
    Drain(Seq),
    /// The agent closed: acks go on until this record is vaulted.
    Closed(Seq),
}

impl Flow {
    fn new(signs: Arc<Signs>, toll: Toll) -> Self {
        Self {
            taken_bytes: Watermark::default(),
            granted_bytes: AtomicU64::new(0),
            most_bytes: AtomicU64::new(0),
            granted: Notify::new(),
            wanted_bytes: AtomicU64::new(0),
            wanted: Notify::new(),
            signs,
            toll,
            stop: watch::Sender::new(None),
        }
    }

    fn stop(&self, stop: Stop) {
        self.stop.send_replace(Some(stop));
    }

    fn want(&self, bytes: u64) {
        self.wanted_bytes.store(bytes, Ordering::Release);
        self.wanted.notify_one();
    }

    fn note(&self, grants: &Grants) {
        self.most_bytes.store(grants.most_bytes(), Ordering::Release);
        self.granted_bytes.store(grants.granted_bytes(), Ordering::Release);
        self.granted.notify_one();
    }
}

impl Room for Flow {
    fn credit_bytes(&self) -> Option<u64> {
        // As it is when a record's header is there: what is granted counts from before the agent can know of it.
        Some(self.most_bytes.load(Ordering::Acquire).saturating_sub(self.taken_bytes.get()))
    }

    fn ahead_bytes(&self) -> u64 {
        self.granted_bytes.load(Ordering::Acquire).saturating_sub(self.taken_bytes.get())
    }

    async fn wait(&self, due: Due) {
        let taken_bytes = self.taken_bytes.get();
        self.signs.begun.store(true, Ordering::Relaxed);
        self.signs.received_bytes.store(taken_bytes + due.have_bytes as u64, Ordering::Relaxed);
        let end_bytes = taken_bytes + due.body_bytes as u64;
        while self.granted_bytes.load(Ordering::Acquire) < end_bytes {
            self.want(end_bytes);
            self.granted.notified().await;
        }
    }
}

/// Records in.
struct Inlet<S> {
    inbound: Inbound,
    sink: S,
    drain: Drain,
    clock: Arc<dyn Clock>,
}

impl<S: RecordSink> Inlet<S> {
    /// Reads until the agent closes, the gateway drains, or something is wrong. The sink goes with it.
    async fn run(mut self, reader: &mut FrameReader, flow: &Flow) -> Result<Stop, End> {
        let received_bytes = metrics::counter!(names::RECEIVED_BYTES);
        let received_records = metrics::counter!(names::RECEIVED_RECORDS);
        let mut taken_bytes = 0;
        loop {
            let frame = tokio::select! {
                biased;
                () = self.drain.wait() => return Ok(Stop::Drain(self.inbound.last())),
                frame = reader.next_frame_within(flow) => frame.map_err(end_of)?,
            };
            let Some(frame) = frame else { return Ok(Stop::Closed(self.inbound.last())) };
            if frame.kind != Kind::Record {
                return match Message::decode(frame) {
                    Ok(Message::CloseDisk(close)) if close.last == self.inbound.last() => Ok(Stop::Closed(close.last)),
                    Ok(Message::Ask(Ask { wanted_bytes })) if wanted_bytes <= taken_bytes + RECORD_BYTES_MAX as u64 => {
                        flow.want(wanted_bytes);
                        continue;
                    }
                    Ok(other) => {
                        let text = format!("{:?} frame does not belong here: {other:?}", other.kind());
                        Err(DiskRefusal::refused(Code::Message, text).into())
                    }
                    Err(error) => Err(DiskRefusal::refused(Code::Message, error.to_string()).into()),
                };
            }
            let received = self.clock.wall();
            let granted_bytes = flow.most_bytes.load(Ordering::Acquire);
            let head = self
                .inbound
                .accept(&frame, granted_bytes)
                .map_err(|violation| DiskRefusal::refused(violation.code(), violation.to_string()))?;
            received_bytes.increment(frame.body_bytes as u64);
            received_records.increment(1);
            taken_bytes += frame.body_bytes as u64;
            flow.toll.used(taken_bytes);
            flow.signs.goes_to_sink(taken_bytes);
            self.sink.record(head, frame.body_crc, frame.body, received).await?;
            flow.signs.at_sink.store(false, Ordering::Relaxed);
            flow.taken_bytes.advance(taken_bytes);
        }
    }
}

/// Acks and credit out.
struct Outlet {
    epoch: Epoch,
    journaled: Arc<Watermark>,
    vaulted: Arc<Watermark>,
    window: watch::Receiver<u64>,
    hold: Hold,
    /// How long until the limits of bandwidth let something through.
    opens_in: Option<Duration>,
    /// What is looked at goes along with an ack, or did when the limits first held it back: then it is due sooner.
    along: bool,
    fenced: watch::Receiver<Option<Epoch>>,
    must_fork: watch::Receiver<Option<String>>,
    grants: Grants,
    granted_at: Duration,
    lease: Lease,
    /// What its agent waits for, if it does.
    waits: Waiters,
    clock: Arc<dyn Clock>,
    sent: Ack,
}

impl Outlet {
    fn ack(&self) -> Ack {
        let vaulted = Seq(self.vaulted.get());
        // What is in the vault needs no journal any more, so a journal that lost it does not matter.
        Ack { journaled: Seq(self.journaled.get()).max(vaulted), vaulted }
    }

    /// The watermarks and the credit with which the stream opens.
    fn first(&mut self, flow: &Flow) -> (Ack, u64) {
        self.sent = self.ack();
        if *self.window.borrow_and_update() > 0 && !self.hold.is_limited() {
            self.grant(0, flow);
        }
        (self.sent, self.grants.granted_bytes())
    }

    fn grant(&mut self, taken_bytes: u64, flow: &Flow) -> u64 {
        let granted_bytes = self.grants.grant(taken_bytes, self.lease.bytes());
        self.granted_at = self.clock.monotonic();
        flow.signs.grants.fetch_add(1, Ordering::Relaxed);
        // Paid for before another one has its turn.
        let paid_bytes = flow.toll.ahead(granted_bytes);
        self.hold.went(paid_bytes);
        // Valid from before the agent can know of it.
        flow.note(&self.grants);
        granted_bytes
    }

    /// Counts with no more than the base.
    fn lapse(&mut self, taken_bytes: u64, flow: &Flow) {
        self.grants.lapse(taken_bytes);
        flow.toll.back(self.grants.granted_bytes());
        flow.note(&self.grants);
    }

    /// The grant that is due, by itself or `along` with an ack, if one is and it is its turn.
    fn due(&mut self, taken_bytes: u64, along: bool, flow: &Flow) -> Option<u64> {
        self.along |= along;
        let granted = self.decide(taken_bytes, flow);
        if self.opens_in.is_some() {
            return granted;
        }
        self.along = false;
        if granted.is_none() {
            // It does not go: nobody is to wait for it.
            match self.lease.waits() {
                true => self.hold.step_aside(),
                false => self.hold.release(),
            }
        }
        granted
    }

    /// What is to be granted now: see [`super::memory`].
    fn decide(&mut self, taken_bytes: u64, flow: &Flow) -> Option<u64> {
        let window_bytes = self.hold.window(*self.window.borrow_and_update());
        let wanted_bytes = flow.wanted_bytes.load(Ordering::Acquire);
        let ungranted_bytes = wanted_bytes.saturating_sub(self.grants.granted_bytes());
        self.opens_in = None;
        if window_bytes == 0 {
            self.hold.release();
            self.lease.withdraw();
            return None;
        }
        self.lease.look();
        if ungranted_bytes > 0 && self.lease.waits() {
            return None;
        }
        self.opens_in = self.look(taken_bytes, wanted_bytes, flow);
        if self.opens_in.is_some() {
            self.lease.withdraw();
            // What was granted before is paid for, and the agent's credit may have lapsed: it is told again out of turn.
            let answered = wanted_bytes > 0 && ungranted_bytes == 0;
            return answered.then(|| self.tell_again(flow));
        }
        if ungranted_bytes > 0 {
            let need_bytes = wanted_bytes.saturating_sub(taken_bytes + CREDIT_BASE_BYTES);
            if self.lease.bytes() < need_bytes {
                // It waits with nothing in hand, so what is granted and was not enough counts no more.
                self.lapse(taken_bytes, flow);
                self.lease.ask(need_bytes, window_bytes, self.clock.monotonic());
            }
            if self.lease.bytes() < need_bytes {
                return None;
            }
            // Under a limit it gets what it has waited for.
            if !self.hold.is_limited() {
                self.grow_if_brisk(window_bytes);
            }
            return Some(self.grant(taken_bytes, flow));
        }
        // A question that a grant has answered already: the agent's credit may have lapsed before it was used, and this side
        // cannot know. So it is granted again, which costs a frame where the two crossed on the way.
        let asked = flow.wanted_bytes.swap(0, Ordering::AcqRel) > 0;
        let owed_bytes = self.grants.owed_bytes(taken_bytes);
        let kept_bytes = if self.lease.is_tight() { owed_bytes } else { owed_bytes.max(window_bytes) };
        if self.lease.bytes() >= kept_bytes + GIVE_BACK_BYTES_MIN {
            self.lease.shrink_to(kept_bytes);
        }
        if !self.is_due(taken_bytes) && (!asked || self.hold.is_limited()) {
            return asked.then(|| self.tell_again(flow));
        }
        self.grow_if_brisk(window_bytes);
        Some(self.grant(taken_bytes, flow))
    }

    /// Leases the whole window where the last grant did not last for long.
    fn grow_if_brisk(&mut self, window_bytes: u64) {
        let now = self.clock.monotonic();
        if self.lease.bytes() < window_bytes && !self.lease.is_tight() && now < self.granted_at + BRISK {
            self.lease.grow(window_bytes, now);
        }
    }

    /// How long the limits of bandwidth hold back a grant that is due, if one is.
    fn look(&mut self, taken_bytes: u64, wanted_bytes: u64, flow: &Flow) -> Option<Duration> {
        let (granted_bytes, lease_bytes) = (self.grants.granted_bytes(), self.lease.bytes());
        let ungranted_bytes = wanted_bytes.saturating_sub(granted_bytes);
        // A record that has begun and whose credit has lapsed since holds memory, and is let through. One that has begun on
        // credit that still counts needs nothing: over a network there is nearly always one.
        let let_through = flow.signs.begun.load(Ordering::Relaxed) && ungranted_bytes > 0;
        if let_through || ungranted_bytes == 0 && !self.is_due(taken_bytes) {
            self.hold.release();
            return None;
        }
        let takes_bytes = ungranted_bytes.max(self.grants.more_bytes(taken_bytes, lease_bytes));
        self.hold.look(ungranted_bytes, takes_bytes)
    }

    /// Whether a grant is due that nobody asked for. Under a limit a stream's first credit is what it asks for.
    fn is_due(&self, taken_bytes: u64) -> bool {
        let has_begun = self.grants.granted_bytes() > 0 || !self.hold.is_limited();
        has_begun && self.grants.is_due(taken_bytes, self.lease.bytes(), self.along)
    }

    /// Grants what is granted once more, which costs nothing.
    fn tell_again(&self, flow: &Flow) -> u64 {
        flow.wanted_bytes.store(0, Ordering::Release);
        flow.signs.grants.fetch_add(1, Ordering::Relaxed);
        self.grants.granted_bytes()
    }

    /// What keeps the agent's next record waiting, if something here does.
    fn waits_for(&self, flow: &Flow) -> Option<Guard> {
        if flow.wanted_bytes.load(Ordering::Acquire) <= self.grants.granted_bytes() {
            return None;
        }
        if self.opens_in.is_some() {
            return Some(Guard::Bandwidth);
        }
        match (*self.window.borrow(), self.lease.waits()) {
            (0, _) => Some(Guard::JournalFull),
            (_, true) => Some(Guard::RecordMemory),
            (_, false) => None,
        }
    }

    /// Told that others need what is leased here, and that nothing comes of it.
    fn give_way(&mut self, flow: &Flow) -> Option<End> {
        let blamed = flow.signs.is_blamed();
        if flow.signs.at_sink.load(Ordering::Relaxed) {
            return None;
        }
        if !flow.signs.begun.load(Ordering::Relaxed) {
            self.lease.shrink_to(0);
            self.lapse(flow.taken_bytes.get(), flow);
            return None;
        }
        let text = format!(
            "{} bytes of memory were held for a record that comes too slowly, and others need them; send it again",
            self.lease.bytes()
        );
        blamed.then(|| DiskRefusal::refused(Code::Busy, text).into())
    }

    /// Writes messages in one go, so that they share a datagram. An agent that does not read them keeps no memory by that. Whether
    /// something was given up meanwhile of what the last look decided: then it is to be looked at anew.
    async fn write(&mut self, send: &mut SendHalf, messages: &mut [Bytes], flow: &Flow) -> Result<bool, End> {
        let written = send.write_all(messages);
        tokio::pin!(written);
        let mut gave_up = false;
        loop {
            tokio::select! {
                biased;
                written = &mut written => return written.map(|()| gave_up).map_err(|_| End::Quiet),
                () = self.lease.told() => match self.give_way(flow) {
                    Some(end) => return Err(end),
                    None => gave_up = true,
                },
                // Its turn comes while it cannot go: it takes its place again when it can.
                () = self.hold.opens(self.opens_in), if self.opens_in.is_some() => {
                    self.hold.step_aside();
                    self.opens_in = None;
                    gave_up = true;
                }
            }
        }
    }

    /// Sends whenever something moved; many moves while a frame is on its way become one.
    async fn run(&mut self, send: &mut SendHalf, flow: &Flow) -> End {
        let acks = [
            metrics::counter!(names::ACKS_SENT, "level" => "journaled"),
            metrics::counter!(names::ACKS_SENT, "level" => "vaulted"),
        ];
        let mut stop = flow.stop.subscribe();
        loop {
            let taken_bytes = flow.taken_bytes.get();
            let ack = self.ack();
            let acked = (ack != self.sent).then_some(Message::Ack(ack));
            let credit = self.due(taken_bytes, acked.is_some(), flow);
            let credit = credit.map(|granted_bytes| Message::Credit(Credit { granted_bytes }));
            let mut messages: Vec<Bytes> = acked.iter().chain(&credit).map(Message::encode).collect();
            if !messages.is_empty() {
                let gave_up = match self.write(send, &mut messages, flow).await {
                    Ok(gave_up) => gave_up,
                    Err(end) => return end,
                };
                acks[0].increment(u64::from(ack.journaled != self.sent.journaled));
                acks[1].increment(u64::from(ack.vaulted != self.sent.vaulted));
                self.sent = ack;
                if gave_up {
                    continue;
                }
            }
            self.waits.set_for(self.waits_for(flow));
            let newest = *self.fenced.borrow_and_update();
            if let Some(newest) = newest.filter(|newest| *newest > self.epoch) {
                return DiskRefusal::Fenced { newest }.into();
            }
            let must_fork = self.must_fork.borrow_and_update().clone();
            if let Some(text) = must_fork {
                return DiskRefusal::MustFork { text }.into();
            }
            match *stop.borrow_and_update() {
                Some(Stop::Drain(last)) if self.sent.vaulted >= last => return End::Drained,
                Some(Stop::Closed(last)) if self.sent.vaulted >= last => return End::Quiet,
                _ => {}
            }
            tokio::select! {
                biased;
                () = changed(&mut stop) => {}
                () = changed(&mut self.fenced) => {}
                () = changed(&mut self.must_fork) => {}
                () = changed(&mut self.window) => {}
                _ = self.journaled.beyond(self.sent.journaled.0) => {}
                _ = self.vaulted.beyond(self.sent.vaulted.0) => {}
                _ = flow.taken_bytes.beyond(taken_bytes) => {}
                () = flow.wanted.notified() => {}
                () = self.lease.served(&*self.clock), if self.lease.waits() => {}
                () = self.hold.opens(self.opens_in), if self.opens_in.is_some() => {}
                () = self.lease.told() => if let Some(end) = self.give_way(flow) {
                    return end;
                },
            }
        }
    }
}

/// Waits for a new value; for ever, if nobody can set one any more.
async fn changed<T>(receiver: &mut watch::Receiver<T>) {
    if receiver.changed().await.is_err() {
        std::future::pending::<()>().await;
    }
}
