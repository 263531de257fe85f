//! What the benches work on: payload, records and frames as an agent makes them, and an index of a usual batch.

#![allow(dead_code, reason = "each bench uses a part")]

use bytes::Bytes;
use tidegate::pipeline::codec::Codec;
use tidegate::types::{
    Chain, DiskId, Epoch, Extent, ExtentKind, Id128, Micros, RECORD_HEAD_BYTES, RecordHead, RecordKind, Seq,
    encode_extents, record_digest,
};
use tidegate::vault::index::{BatchIndex, DiskPart, MessageMeta, RecordMeta};
use tidegate::wire::frame::{Kind, crc32c, encode_header};

/// Stream bytes of an ordinary datagram.
const DATAGRAM_BYTES: usize = 1380;
/// Size of every disk.
pub const DISK_BYTES: u64 = 1 << 40;

/// A deterministic stream of numbers.
pub fn numbers(seed: u64) -> impl FnMut() -> u64 {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }
}

/// Bytes about as hard to pack as the files of a system: of eight blocks five are prose of a thousand words, two are rows
/// of a table, and one is noise.
pub fn payload(seed: u64, bytes: usize) -> Vec<u8> {
    const BLOCK_BYTES: usize = 4096;
    let mut next = numbers(1);
    let words: Vec<Vec<u8>> = (0..1024)
        .map(|_| (0..2 + next() % 9).map(|_| b"etaoinshrdlucmfwypvbgkjqxz"[(next() % 26) as usize]).collect())
        .collect();
    let mut next = numbers(seed);
    let mut out = Vec::with_capacity(bytes + 2 * BLOCK_BYTES);
    for block in 0.. {
        let end = (block + 1) * BLOCK_BYTES;
        while out.len() < end {
            match block % 8 {
                0..5 => {
                    // Few words are frequent, most are rare.
                    let rank = next() % 1024 * (next() % 1024) / 1024;
                    out.extend_from_slice(&words[rank as usize]);
                    out.push(b' ');
                }
                5..7 => {
                    out.extend_from_slice(&(out.len() as u64).to_le_bytes());
                    out.extend_from_slice(&(next() % 5000).to_le_bytes());
                    out.extend_from_slice(&next().to_le_bytes()[..4]);
                    out.extend_from_slice(&[0; 12]);
                }
                _ => out.extend_from_slice(&next().to_le_bytes()),
            }
        }
        out.truncate(end);
        if end >= bytes {
            break;
        }
    }
    out.truncate(bytes);
    out
}

/// Bytes that nothing can pack.
pub fn noise(seed: u64, bytes: usize) -> Vec<u8> {
    let mut next = numbers(seed);
    (0..bytes.div_ceil(8)).flat_map(|_| next().to_le_bytes()).take(bytes).collect()
}

/// A disk of the benches.
pub fn disk(number: usize) -> DiskId {
    DiskId::new(&format!("bench-{number}")).expect("a valid name")
}

/// One disk's records, in order.
pub struct Writer {
    seq: Seq,
    chain: Chain,
}

/// A record: its head, and all its bytes.
pub struct Record {
    /// Decoded.
    pub head: RecordHead,
    /// As it stands on wire and disk.
    pub bytes: Bytes,
    /// CRC-32C of these.
    pub crc: u32,
}

impl Writer {
    /// A disk without records.
    pub fn new() -> Self {
        Self { seq: Seq::NONE, chain: Chain::GENESIS }
    }

    /// One write of `payload`.
    pub fn write(&mut self, payload: &[u8]) -> Record {
        self.seq = self.seq.next();
        let mut table = Vec::new();
        let offset_bytes = self.seq.0 * payload.len() as u64 % DISK_BYTES;
        encode_extents(
            &[Extent { offset_bytes, length_bytes: payload.len() as u32, kind: ExtentKind::Data }],
            &mut table,
        );
        let head = RecordHead {
            kind: RecordKind::Write,
            extent_count: 1,
            payload_bytes: payload.len() as u32,
            epoch: Epoch(1),
            seq: self.seq,
            label: Micros(1_800_000_000_000_000 + self.seq.0),
            clock_uncertainty_micros: 250,
            group: Id128::NONE,
            digest: record_digest(&table, [payload]),
            chain: Chain::GENESIS,
        }
        .sealed_after(self.chain);
        self.chain = head.chain;
        let bytes = Bytes::from([&head.encode()[..], &table, payload].concat());
        Record { head, crc: crc32c([&bytes[..]]), bytes }
    }

    /// `count` records whose bytes, with head and extent table, are `record_bytes` each.
    pub fn records(&mut self, count: usize, record_bytes: usize) -> Vec<Record> {
        let around_bytes = self.clone_empty().write(&[]).bytes.len();
        let bytes = payload(self.seq.0 + 1, count * record_bytes);
        bytes.chunks(record_bytes).map(|chunk| self.write(&chunk[..record_bytes - around_bytes])).collect()
    }

    fn clone_empty(&self) -> Self {
        Self { seq: self.seq, chain: self.chain }
    }
}

/// Frames of the records, cut as datagrams cut them.
pub fn datagrams(records: &[Record]) -> Vec<Bytes> {
    let mut stream = Vec::new();
    for record in records {
        stream.extend_from_slice(&encode_header(Kind::Record, record.bytes.len() as u32, record.crc));
        stream.extend_from_slice(&record.bytes);
    }
    stream.chunks(DATAGRAM_BYTES).map(Bytes::copy_from_slice).collect()
}

/// The index of a batch of 32 disks with four messages of 64 records each.
pub fn index() -> BatchIndex {
    let mut next = numbers(7);
    let mut message = |number: u64| MessageMeta {
        epoch: Epoch(1),
        first: Seq(number * 64 + 1),
        last: Seq(number * 64 + 64),
        offset_bytes: number * 130_000,
        stored_bytes: 130_000,
        plain_bytes: 64 * (8192 + RECORD_HEAD_BYTES as u32),
        codec: Codec::Lz4,
        chain_before: Some(Chain([number as u8; 32])),
        chain_last: Chain([number as u8 + 1; 32]),
        received_first: Micros(1_800_000_000_000_000),
        received_last: Micros(1_800_000_000_400_000),
        origin: None,
        records: (1..=64)
            .map(|seq| RecordMeta {
                seq: Seq(number * 64 + seq),
                label: Micros(1_800_000_000_000_000 + seq * 1000),
                uncertainty_micros: 250,
                kind: RecordKind::Write,
                group: Id128::NONE,
                name: None,
                extents: vec![Extent {
                    offset_bytes: next() % (DISK_BYTES / 8192) * 8192,
                    length_bytes: 8192,
                    kind: ExtentKind::Data,
                }],
            })
            .collect(),
    };
    let disks = (0..32).map(|number| DiskPart { disk: disk(number), messages: (0..4).map(&mut message).collect() });
    let mut disks: Vec<DiskPart> = disks.collect();
    disks.sort_by(|a, b| a.disk.cmp(&b.disk));
    BatchIndex { lane: Id128([3; 16]), n: 7, confirmed_through: 5, disks }
}
