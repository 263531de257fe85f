//! The primitives that a gateway is made of, each alone, with the payload of a run and on the machine of that run.
//!
//! ```text
//!  receive ─► CRC ─► copy into the commit ─► write + sync      of every byte
//!                └─► LZ4 ─►                                     of every byte
//!                          seal ─► upload                       of what LZ4 leaves
//! ```
//!
//! Absolute figures drift by machine and hour; what is worth keeping is a gateway's cost over the sum of these, measured
//! in the same minutes. Time is that of the thread that does the work, by the kernel's account: what the other side of a
//! connection uses runs on another thread and does not count.
//!
//! Left out, as they cost less than the sum is exact: the chain over record heads, the index, metrics.

pub mod codecs;
pub(crate) mod disk;
mod memory;
pub(crate) mod network;
pub(crate) mod restore;
mod upload;

use std::path::PathBuf;
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};
use serde::Serialize;
use tidegate::flow::{Clock as _, SystemClock};

use crate::payload::Pool;

/// Commit that is assumed when none was seen.
pub const COMMIT_BYTES_DEFAULT: u64 = 1 << 20;
/// Bytes that each primitive handles: a second of the dearest, in which a neighbour's bursts are a small part.
pub const BYTES_DEFAULT: u64 = 1 << 30;
const GIB: f64 = (1_u64 << 30) as f64;

/// What is to be measured.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Payload.
    pub pool: Pool,
    /// Bytes of payload that each primitive handles.
    pub bytes: u64,
    /// Bytes of a record.
    pub record_bytes: usize,
    /// Bytes of one write and sync of the journal.
    pub commit_bytes: u64,
    /// Folder on the disk of the journal.
    pub folder: PathBuf,
    /// Largest UDP payload that path discovery may try.
    pub mtu_max_bytes: u16,
}

/// A primitive could not be measured.
#[derive(Debug)]
pub struct LimitError {
    what: &'static str,
    source: Box<dyn std::error::Error + Send + Sync>,
}

impl LimitError {
    fn of<E: Into<Box<dyn std::error::Error + Send + Sync>>>(what: &'static str) -> impl Fn(E) -> Self {
        move |source| Self { what, source: source.into() }
    }
}

impl std::fmt::Display for LimitError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} could not be measured", self.what)
    }
}

impl std::error::Error for LimitError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&*self.source)
    }
}

/// One primitive alone.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Primitive {
    /// What it is.
    pub name: &'static str,
    /// Processor time per GiB that it handles itself.
    pub cpu_seconds_per_gib: f64,
    /// How fast one thread was.
    pub bytes_per_second: f64,
    /// Bytes that it handles for each byte of payload.
    pub share: f64,
}

impl Primitive {
    /// Processor time per GiB of payload.
    #[must_use]
    pub fn of_payload(&self) -> f64 {
        self.cpu_seconds_per_gib * self.share
    }
}

/// All of them.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Limits {
    /// One by one.
    pub primitives: Vec<Primitive>,
    /// How much smaller LZ4 makes the payload.
    pub payload_ratio: f64,
    /// Bytes of a record.
    pub record_bytes: usize,
    /// Bytes of a commit.
    pub commit_bytes: u64,
    /// Processor time per GiB of payload, received by QUIC.
    pub sum_quic: f64,
    /// The same, received by TLS over TCP.
    pub sum_tcp: f64,
    /// One write and sync, half of them not longer than this. Seconds.
    pub commit_seconds_p50: f64,
    /// 99 of 100.
    pub commit_seconds_p99: f64,
}

/// Work that was done.
#[derive(Clone, Copy, Debug)]
struct Work {
    bytes: u64,
    cpu: Duration,
    wall: Duration,
}

/// Measures one thread.
struct Watch {
    clock: SystemClock,
    cpu: Duration,
}

impl Watch {
    fn start() -> Self {
        Self { clock: SystemClock::new(), cpu: thread_cpu() }
    }

    fn stop(&self, bytes: u64) -> Work {
        Work { bytes, cpu: thread_cpu().saturating_sub(self.cpu), wall: self.clock.monotonic() }
    }
}

fn thread_cpu() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

impl Work {
    fn named(self, name: &'static str, share: f64) -> Primitive {
        Primitive {
            name,
            cpu_seconds_per_gib: self.cpu.as_secs_f64() * GIB / self.bytes.max(1) as f64,
            bytes_per_second: self.bytes as f64 / self.wall.as_secs_f64().max(1e-9),
            share,
        }
    }
}

/// Measures all primitives, one after the other. Blocks.
///
/// # Errors
/// [`LimitError`] names the primitive.
pub fn measure(plan: &Plan) -> Result<Limits, LimitError> {
    let quic = network::quic(plan).map_err(LimitError::of("receiving by QUIC"))?.named("QUIC receive", 1.0);
    let tcp = network::tls(plan).map_err(LimitError::of("receiving by TLS"))?.named("TLS over TCP receive", 1.0);
    let crc = memory::crc(plan).named("CRC-32C", 1.0);
    let copy = memory::copy(plan).named("copy", 1.0);
    let (journal, commits) = disk::write_and_sync(plan).map_err(LimitError::of("writing and syncing"))?;
    let journal = journal.named("O_DIRECT write + sync", 1.0);
    let (lz4, packed_bytes) = memory::lz4(plan);
    let share = packed_bytes as f64 / lz4.bytes as f64;
    let lz4 = lz4.named("LZ4", 1.0);
    let seal = memory::seal(plan, packed_bytes).map_err(LimitError::of("sealing"))?.named("AES-256-GCM", share);
    let upload = upload::put(plan).map_err(LimitError::of("uploading"))?.named("HTTP upload", share);
    let common: f64 = [crc, copy, journal, lz4, seal, upload].iter().map(Primitive::of_payload).sum();
    Ok(Limits {
        primitives: vec![quic, tcp, crc, copy, journal, lz4, seal, upload],
        payload_ratio: 1.0 / share,
        record_bytes: plan.record_bytes,
        commit_bytes: plan.commit_bytes,
        sum_quic: quic.of_payload() + common,
        sum_tcp: tcp.of_payload() + common,
        commit_seconds_p50: commits.0,
        commit_seconds_p99: commits.1,
    })
}

/// The payload in pieces of one record, as often as it takes.
fn records(plan: &Plan) -> impl Iterator<Item = bytes::Bytes> + '_ {
    let size = plan.record_bytes.clamp(1, plan.pool.bytes().len());
    let in_pool = plan.pool.bytes().len() / size;
    let count = (plan.bytes as usize).div_ceil(size);
    (0..count).map(move |number| plan.pool.bytes().slice(number % in_pool * size..(number % in_pool + 1) * size))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::payload::Source;

    #[test]
    fn every_primitive_is_measured_and_the_sums_are_their_sums() {
        let folder = tempfile::tempdir().expect("a folder");
        let pool = Pool::fill(&Source::Ratio(2.0), 4 << 20, 1).expect("made");
        let plan = Plan {
            pool,
            bytes: 16 << 20,
            record_bytes: 64 << 10,
            commit_bytes: 256 << 10,
            folder: folder.path().to_owned(),
            mtu_max_bytes: 1452,
        };
        let limits = measure(&plan).expect("measured");
        assert_eq!(limits.primitives.len(), 8);
        for one in &limits.primitives {
            assert!(one.cpu_seconds_per_gib > 0.0 && one.bytes_per_second > 0.0, "{one:?}");
        }
        assert!((limits.payload_ratio - 2.0).abs() < 0.3, "{}", limits.payload_ratio);
        let all: f64 = limits.primitives.iter().map(Primitive::of_payload).sum();
        let by_name = |name| limits.primitives.iter().find(|one| one.name == name).expect("there").of_payload();
        assert!((limits.sum_quic - (all - by_name("TLS over TCP receive"))).abs() < 1e-9);
        assert!((limits.sum_tcp - (all - by_name("QUIC receive"))).abs() < 1e-9);
        assert!(limits.commit_seconds_p99 >= limits.commit_seconds_p50 && limits.commit_seconds_p50 > 0.0);
    }
}
