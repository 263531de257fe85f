//! What the agent's tests share: a disk in memory that can fail, disks opened over it, and records applied to an image.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;

use crate::agent::clock::AgentClock;
use crate::agent::disk::{Disk, Overrides, Shared};
use crate::agent::queue::Next;
use crate::agent::state::StateDir;
use crate::agent::tracker::{CopyNext, EpochStart};
use crate::flow::{Budget, SystemClock};
use crate::nbd::{Export, StatusExtent, ZeroFlags};
use crate::types::{Chain, Epoch, ExtentKind, Id128, RecordView, Seq};

/// Called before a change reaches the disk in memory.
type Watch = Box<dyn Fn(u64) + Send + Sync>;

/// A disk in memory.
pub struct MemSource {
    pub name: String,
    pub bytes: Mutex<Vec<u8>>,
    /// The next write stops half-way with an error.
    pub fail_write: AtomicBool,
    pub fail_flush: AtomicBool,
    /// The next zeroing stops half-way and says that it is not supported.
    pub fail_zero: AtomicBool,
    /// Zeroing is no faster than writing.
    pub slow_zero: bool,
    pub before_write: Mutex<Option<Watch>>,
}

impl MemSource {
    pub fn new(name: &str, size_bytes: usize) -> Self {
        Self {
            name: name.into(),
            bytes: Mutex::new(vec![0; size_bytes]),
            fail_write: AtomicBool::new(false),
            fail_flush: AtomicBool::new(false),
            fail_zero: AtomicBool::new(false),
            slow_zero: false,
            before_write: Mutex::new(None),
        }
    }
}

impl Export for MemSource {
    fn name(&self) -> &str {
        &self.name
    }

    fn size_bytes(&self) -> u64 {
        self.bytes.lock().len() as u64
    }

    fn read_only(&self) -> bool {
        false
    }

    fn multi_conn(&self) -> bool {
        true
    }

    fn read(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        let at = offset as usize;
        buf.copy_from_slice(&self.bytes.lock()[at..at + buf.len()]);
        Ok(())
    }

    fn write(&self, offset: u64, data: Bytes, fua: bool) -> io::Result<()> {
        if let Some(watch) = self.before_write.lock().as_ref() {
            watch(offset);
        }
        let (front, back) = data.split_at(data.len() / 2);
        let middle = offset as usize + front.len();
        self.bytes.lock()[offset as usize..middle].copy_from_slice(front);
        // Two writers of one range would mix here.
        std::thread::yield_now();
        if self.fail_write.swap(false, Ordering::SeqCst) {
            return Err(io::Error::from_raw_os_error(libc::EIO));
        }
        self.bytes.lock()[middle..middle + back.len()].copy_from_slice(back);
        if fua { self.flush() } else { Ok(()) }
    }

    fn zero(&self, offset: u64, length: u64, flags: ZeroFlags) -> io::Result<()> {
        if flags.fast && self.slow_zero {
            return Err(io::ErrorKind::Unsupported.into());
        }
        let whole = !self.fail_zero.swap(false, Ordering::SeqCst);
        let filled = if whole { length } else { length / 2 };
        self.bytes.lock()[offset as usize..(offset + filled) as usize].fill(0);
        if whole { Ok(()) } else { Err(io::ErrorKind::Unsupported.into()) }
    }

    fn trim(&self, offset: u64, length: u64, _fua: bool) -> io::Result<()> {
        // What a device may do that promises nothing.
        self.bytes.lock()[offset as usize..(offset + length) as usize].fill(0xdd);
        Ok(())
    }

    fn flush(&self) -> io::Result<()> {
        if self.fail_flush.load(Ordering::SeqCst) { Err(io::Error::from_raw_os_error(libc::EIO)) } else { Ok(()) }
    }

    fn block_status(&self, _offset: u64, length: u64) -> io::Result<Vec<StatusExtent>> {
        Ok(vec![StatusExtent { length, hole: false, zero: false }])
    }
}

pub fn shared(dir: &Path) -> Shared {
    Shared {
        clock: Arc::new(AgentClock::new(Arc::new(SystemClock::new()))),
        budget: Budget::new(256 << 20),
        dir: Arc::new(StateDir::open(dir).expect("state directory")),
    }
}

/// Opens `source` with its state in `dir`.
pub fn open(source: &Arc<MemSource>, dir: &Path) -> Arc<Disk> {
    let path = Path::new("/dev/null");
    let source: Arc<dyn Export> = Arc::<MemSource>::clone(source);
    Arc::new(Disk::open(source, path, 64 << 20, shared(dir), Overrides::default()).expect("disk"))
}

/// The other end of a disk: applies every record to an image and says that it is vaulted.
pub struct Replica {
    pub image: Vec<u8>,
    pub epoch: Epoch,
    pub last: Seq,
}

impl Replica {
    /// Begins the first epoch of `disk`.
    pub fn begin(disk: &Disk) -> Self {
        let epoch = Epoch(1);
        let start = EpochStart { epoch, next_seq: Seq(1), chain: Chain::GENESIS.fork(epoch), from_zero: true };
        disk.start_epoch(start, Id128([1; 16])).expect("epoch");
        Self { image: vec![0; disk.source.size_bytes() as usize], epoch, last: Seq::NONE }
    }

    /// Takes what is queued.
    pub fn take(&mut self, disk: &Disk) {
        loop {
            match disk.next_record() {
                Next::Record(mut record) => {
                    let sealed = record.seal();
                    disk.sealed(&record);
                    let mut bytes = [&sealed.head[..], &sealed.table].concat();
                    record.pieces.iter().for_each(|piece| bytes.extend_from_slice(piece));
                    apply(&mut self.image, &bytes);
                    self.last = record.head.seq;
                }
                Next::Linger(pause) => std::thread::sleep(pause),
                Next::Empty => break,
            }
        }
        disk.acked(self.epoch, self.last, self.last);
    }

    /// Copies what is marked and takes everything, until all is vaulted.
    pub fn settle(&mut self, disk: &Disk) {
        while !disk.all_vaulted() {
            while let (CopyNext::Chunks(chunks), guard) = disk.next_copy(0) {
                disk.copy(chunks, guard).expect("readable");
                self.take(disk);
            }
            disk.finish_span();
            self.take(disk);
        }
    }
}

/// Applies a record to an image.
pub fn apply(image: &mut [u8], record: &[u8]) {
    let (view, _) = RecordView::split(record).expect("whole record");
    view.check_digest().expect("digest");
    let mut payload = view.payload;
    for extent in view.head.decode_extents(view.table, image.len() as u64).expect("extents") {
        let target = &mut image[extent.offset_bytes as usize..extent.end_bytes() as usize];
        match extent.kind {
            ExtentKind::Zero => target.fill(0),
            ExtentKind::Data => {
                let (taken, rest) = payload.split_at(target.len());
                target.copy_from_slice(taken);
                payload = rest;
            }
        }
    }
}

/// A number that differs from call to call and is the same in every run.
pub struct Dice(pub u64);

impl Dice {
    pub fn roll(&mut self, below: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % below
    }
}

/// Waits until `done`, and fails with `what` if that takes unreasonably long.
pub async fn until(what: &str, mut done: impl FnMut() -> bool) {
    for _ in 0..3000 {
        if done() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("{what} did not come about");
}
