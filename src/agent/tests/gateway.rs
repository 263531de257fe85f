//! A gateway in memory behind the real wire: keeps every epoch's records, forks as the vault would, forgets on demand.

use std::collections::BTreeMap;
use std::mem::ManuallyDrop;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::runtime::{Builder, Runtime};

use super::support::until;
use crate::flow::{Clock, Drain, DrainTrigger, Pace, SystemClock, Watermark, watch};
use crate::restore::touched::{self, Runs};
use crate::types::{
    BarrierKind, Chain, DiskId, Epoch, Extent, Id128, Micros, PointId, RecordHead, RecordKind, RecordView, Seq,
};
use crate::wire::endpoint::{Listener, Tuning};
use crate::wire::pki::{self, IssueOptions, Issued};
use crate::wire::{
    AgentIdentity, Code, DiskRefusal, ForkReason, HelloInfo, Host, OpenDisk, OpenedDisk, RecordSink, ServerLimits,
    TlsFiles, Want, serve,
};
use crate::wire::{Net, PROTOCOL_MAX};

pub const VAULT: Id128 = Id128([0xa1; 16]);

struct FakeEpoch {
    epoch: Epoch,
    /// Chain before its first record.
    chain: Chain,
    /// How many of the epoch before belong to its history.
    forked_after: u64,
    nonce: Id128,
    reason: ForkReason,
    records: Vec<Vec<u8>>,
    journaled: Arc<Watermark>,
    vaulted: Arc<Watermark>,
    fenced: watch::Sender<Option<Epoch>>,
}

impl FakeEpoch {
    fn head(&self, seq: u64) -> Option<RecordHead> {
        let index = usize::try_from(seq.checked_sub(1)?).ok()?;
        Some(RecordView::split(&self.records[index]).expect("record").0.head)
    }

    fn chain_after(&self, seq: u64) -> Chain {
        self.head(seq).map_or(self.chain, |head| head.chain)
    }
}

/// One disk at the gateway in memory.
#[derive(Default)]
pub struct FakeDisk {
    epochs: Mutex<Vec<FakeEpoch>>,
    pub opens: Mutex<Vec<OpenDisk>>,
    /// The next fork is done, but its answer is lost.
    pub lose_answer: AtomicBool,
}

/// The gateway.
pub struct FakeGateway {
    pub disks: BTreeMap<DiskId, Arc<FakeDisk>>,
    /// Whether taking a record is vaulting it.
    pub vaults: Arc<AtomicBool>,
    pub window: watch::Sender<u64>,
}

impl FakeGateway {
    pub fn new(disks: &[&str]) -> Arc<Self> {
        let disks = disks.iter().map(|name| (DiskId::new(name).expect("name"), Arc::default())).collect();
        Arc::new(Self { disks, vaults: Arc::new(AtomicBool::new(true)), window: watch::Sender::new(64 << 20) })
    }

    pub fn disk(&self, name: &str) -> &FakeDisk {
        &self.disks[&DiskId::new(name).expect("name")]
    }

    /// From now on records are only journaled, or vaulted too, with all that came before.
    pub fn vault(&self, vaults: bool) {
        self.vaults.store(vaults, Ordering::SeqCst);
        for disk in self.disks.values().filter(|_| vaults) {
            if let Some(newest) = disk.epochs.lock().last() {
                newest.vaulted.advance(newest.records.len() as u64);
            }
        }
    }

    /// The gateway's disk is lost: what was not vaulted is gone.
    pub fn lose_journal(&self) {
        for disk in self.disks.values() {
            if let Some(newest) = disk.epochs.lock().last_mut() {
                let vaulted = newest.vaulted.get();
                newest.records.truncate(vaulted as usize);
                newest.journaled = Arc::new(Watermark::new(vaulted));
            }
        }
    }
}

impl FakeDisk {
    /// Epochs and the reasons they were begun for.
    pub fn epochs(&self) -> Vec<(u64, ForkReason)> {
        self.epochs.lock().iter().map(|epoch| (epoch.epoch.0, epoch.reason)).collect()
    }

    /// Every barrier so far, as bytes.
    pub fn barriers(&self) -> Vec<Vec<u8>> {
        let epochs = self.epochs.lock();
        let records = epochs.iter().flat_map(|epoch| &epoch.records);
        let barrier = |record: &&Vec<u8>| matches!(view(record).head.kind, RecordKind::Barrier(_));
        records.filter(barrier).cloned().collect()
    }

    pub fn newest_records(&self) -> u64 {
        self.epochs.lock().last().map_or(0, |epoch| epoch.records.len() as u64)
    }

    /// Another agent takes the disk over.
    pub fn take_over(&self) {
        let mut epochs = self.epochs.lock();
        let newest = epochs.last().expect("an epoch");
        let (epoch, at) = (Epoch(newest.epoch.0 + 1), newest.records.len() as u64);
        let chain = newest.chain_after(at).fork(epoch);
        newest.fenced.send_replace(Some(epoch));
        epochs.push(new_epoch(epoch, chain, at, Id128([0xee; 16]), ForkReason::Operator));
    }

    /// The records of the history that leads to `to`, or to the newest record.
    fn history(&self, to: Option<PointId>) -> Vec<Vec<u8>> {
        let epochs = self.epochs.lock();
        let to = to.unwrap_or_else(|| {
            let newest = epochs.last().expect("an epoch");
            PointId { epoch: newest.epoch, seq: Seq(newest.records.len() as u64) }
        });
        let mut records = Vec::new();
        for (at, epoch) in epochs.iter().enumerate() {
            let end = if epoch.epoch == to.epoch { to.seq.0 } else { epochs[at + 1].forked_after };
            records.extend_from_slice(&epoch.records[..end as usize]);
            if epoch.epoch == to.epoch {
                break;
            }
        }
        records
    }

    /// Bytes that records of the newest epoch have copied from the disk.
    pub fn copied_bytes(&self, size_bytes: u64) -> u64 {
        let epochs = self.epochs.lock();
        let records = &epochs.last().expect("an epoch").records;
        let copies =
            records.iter().filter(|record| RecordView::split(record).expect("record").0.head.kind == RecordKind::Copy);
        copies.flat_map(|record| extents_of(record, size_bytes)).map(|extent| u64::from(extent.length_bytes)).sum()
    }

    /// The image at a point, or after the newest record.
    pub fn image(&self, size_bytes: usize, to: Option<PointId>) -> Vec<u8> {
        let mut image = vec![0; size_bytes];
        self.history(to).iter().for_each(|record| super::support::apply(&mut image, record));
        image
    }

    /// Barriers of the newest history that are offered as points: outside of sync spans.
    pub fn points(&self) -> Vec<(PointId, BarrierKind, String, Id128)> {
        let mut span = false;
        let mut points = Vec::new();
        for record in self.history(None) {
            let (view, _) = RecordView::split(&record).expect("record");
            let RecordKind::Barrier(kind) = view.head.kind else { continue };
            span = kind == BarrierKind::SyncBegin || span && kind != BarrierKind::SyncEnd;
            if !span {
                let name = view.barrier_name().unwrap_or_default().to_owned();
                points.push((view.head.point(), kind, name, view.head.group));
            }
        }
        points
    }
}

fn new_epoch(epoch: Epoch, chain: Chain, forked_after: u64, nonce: Id128, reason: ForkReason) -> FakeEpoch {
    FakeEpoch {
        epoch,
        chain,
        forked_after,
        nonce,
        reason,
        records: Vec::new(),
        journaled: Arc::default(),
        vaulted: Arc::default(),
        fenced: watch::Sender::new(None),
    }
}

/// The chunks that records set between the agent's floor and the newest epoch's fork, as a gateway tells them.
fn touched(epochs: &[FakeEpoch], floor: Option<(PointId, Chain)>, size_bytes: u64) -> Runs {
    let [.., before, newest] = epochs else { return touched::whole(size_bytes) };
    let Some((floor, _)) = floor.filter(|(point, _)| point.epoch == before.epoch) else {
        return touched::whole(size_bytes);
    };
    let records = &before.records[floor.seq.0 as usize..newest.forked_after as usize];
    let extents: Vec<Extent> = records.iter().flat_map(|record| extents_of(record, size_bytes)).collect();
    touched::chunks(extents.iter())
}

fn view(record: &[u8]) -> RecordView<'_> {
    RecordView::split(record).expect("record").0
}

fn extents_of(record: &[u8], size_bytes: u64) -> Vec<Extent> {
    let (view, _) = RecordView::split(record).expect("record");
    view.head.decode_extents(view.table, size_bytes).expect("extents")
}

/// Appends the epoch that a fork makes; what was journaled is vaulted before, as a gateway with its journal does.
fn fork(epochs: &mut Vec<FakeEpoch>, open: &OpenDisk, reason: ForkReason, floor: Option<(PointId, Chain)>) {
    if epochs.last().is_some_and(|newest| newest.nonce == open.nonce && newest.records.is_empty()) {
        return;
    }
    let Some(newest) = epochs.last() else {
        epochs.push(new_epoch(Epoch(1), Chain::GENESIS.fork(Epoch(1)), 0, open.nonce, reason));
        return;
    };
    let at = newest.records.len() as u64;
    if let Some((point, chain)) = floor.filter(|(point, _)| point.epoch == newest.epoch) {
        assert!(point.seq.0 <= at, "the floor {point} is in the vault");
        assert_eq!(newest.chain_after(point.seq.0), chain, "chain at the floor {point}");
    }
    let epoch = Epoch(newest.epoch.0 + 1);
    let chain = newest.chain_after(at).fork(epoch);
    epochs.push(new_epoch(epoch, chain, at, open.nonce, reason));
}

impl Host for FakeGateway {
    type Sink = FakeSink;

    fn hello(&self) -> HelloInfo {
        HelloInfo { gateway: "g1".into(), vault: VAULT }
    }

    async fn open_disk(&self, _agent: &AgentIdentity, open: OpenDisk) -> Result<OpenedDisk<FakeSink>, DiskRefusal> {
        let unknown = || DiskRefusal::refused(Code::UnknownDisk, "no such disk");
        let disk = Arc::clone(self.disks.get(&open.disk).ok_or_else(unknown)?);
        disk.opens.lock().push(open.clone());
        let mut epochs = disk.epochs.lock();
        match open.want {
            Want::Fork { reason, floor } => fork(&mut epochs, &open, reason, floor),
            Want::Resume { epoch, first_held, floor, floor_chain } => {
                let must_fork = |text: &str| DiskRefusal::MustFork { text: text.into() };
                let newest = epochs.last().ok_or_else(|| must_fork("no such epoch"))?;
                if newest.epoch > epoch {
                    return Err(DiskRefusal::Fenced { newest: newest.epoch });
                }
                if newest.epoch != epoch || first_held.0 > newest.records.len() as u64 + 1 {
                    return Err(must_fork("records are missing here"));
                }
                assert_eq!(newest.chain_after(floor.0), floor_chain, "chain at the floor");
            }
        }
        if disk.lose_answer.swap(false, Ordering::SeqCst) {
            return Err(DiskRefusal::refused(Code::Unavailable, "the answer is lost"));
        }
        let newest = epochs.last().expect("an epoch");
        let last = newest.records.len() as u64;
        let touched = match open.want {
            Want::Fork { floor, .. } => touched(&epochs, floor, open.size_bytes),
            Want::Resume { .. } => Runs::new(),
        };
        Ok(OpenedDisk {
            epoch: newest.epoch,
            next_seq: Seq(last + 1),
            chain: Some(newest.chain_after(last)),
            touched,
            journaled: Arc::clone(&newest.journaled),
            vaulted: Arc::clone(&newest.vaulted),
            way: 0,
            window: self.window.subscribe(),
            pace: Pace::default(),
            fenced: newest.fenced.subscribe(),
            must_fork: watch::channel(None).1,
            sink: FakeSink { disk: Arc::clone(&disk), epoch: newest.epoch, vaults: Arc::clone(&self.vaults) },
        })
    }
}

pub struct FakeSink {
    disk: Arc<FakeDisk>,
    epoch: Epoch,
    vaults: Arc<AtomicBool>,
}

impl RecordSink for FakeSink {
    async fn record(&mut self, head: RecordHead, _: u32, chunks: Vec<Bytes>, _: Micros) -> Result<(), DiskRefusal> {
        let mut epochs = self.disk.epochs.lock();
        let newest = epochs.last_mut().expect("an epoch");
        if newest.epoch != self.epoch || head.seq.0 != newest.records.len() as u64 + 1 {
            return Err(DiskRefusal::refused(Code::Unavailable, "an old stream"));
        }
        assert_eq!(head.chain_after(newest.chain_after(head.seq.0 - 1)), head.chain, "chain of {}", head.point());
        newest.records.push(chunks.concat());
        newest.journaled.advance(head.seq.0);
        if self.vaults.load(Ordering::SeqCst) {
            newest.vaulted.advance(head.seq.0);
        }
        Ok(())
    }
}

/// A folder with an authority and the certificates of one gateway and one agent. [`another_gateway`] makes one more.
pub fn certificates(dir: &Path, disks: &[&str]) -> (TlsFiles, TlsFiles) {
    let options = IssueOptions { now: SystemClock::new().wall(), days: 30, force: false, keep_key: false };
    let files =
        |issued: &Issued| TlsFiles { ca: issued.ca.clone(), cert: issued.cert.clone(), key: issued.key.clone() };
    let disks: Vec<DiskId> = disks.iter().map(|name| DiskId::new(name).expect("name")).collect();
    pki::init(dir, VAULT, options).expect("authority");
    let gateway = pki::issue_gateway(dir, "g1", &["127.0.0.1".into()], options).expect("gateway");
    let agent = pki::issue_agent(dir, "a1", &disks, options).expect("agent");
    (files(&gateway), files(&agent))
}

/// The certificate of one more gateway.
pub fn another_gateway(dir: &Path, id: &str) -> TlsFiles {
    let options = IssueOptions { now: SystemClock::new().wall(), days: 30, force: false, keep_key: false };
    let issued = pki::issue_gateway(dir, id, &["127.0.0.1".into()], options).expect("gateway");
    TlsFiles { ca: issued.ca, cert: issued.cert, key: issued.key }
}

/// A gateway process: the in-memory host behind a listener, on a runtime of its own that can be killed.
pub struct Serving {
    pub address: SocketAddr,
    runtime: Option<Runtime>,
    /// One that is dropped starts a drain.
    _drain: ManuallyDrop<DrainTrigger>,
}

impl Serving {
    pub async fn start(host: &Arc<FakeGateway>, tls: &TlsFiles, address: SocketAddr) -> Self {
        Self::start_speaking(host, tls, address, PROTOCOL_MAX).await
    }

    /// One of a release that speaks the protocol up to a version.
    pub async fn start_speaking(
        host: &Arc<FakeGateway>,
        tls: &TlsFiles,
        address: SocketAddr,
        protocol_max: u16,
    ) -> Self {
        let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
        let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("runtime");
        let mut listener = None;
        // The socket of the one that was killed goes with its last task.
        until("a free address", || {
            let _inside = runtime.enter();
            listener = Listener::bind(address, tls, &Tuning::default(), &clock, &Net::system()).ok();
            listener.is_some()
        })
        .await;
        let listener = listener.expect("listening");
        let address = listener.local_addr();
        let (drain, signal): (_, Drain) = DrainTrigger::new();
        let limits = ServerLimits { protocol_max, ..ServerLimits::default() };
        runtime.spawn(serve(listener, Arc::clone(host), limits, clock, signal));
        Self { address, runtime: Some(runtime), _drain: ManuallyDrop::new(drain) }
    }
}

/// Kills it; the agents are not told.
impl Drop for Serving {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}
