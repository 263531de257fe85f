//! The plaintext of an index: variable-length integers and differences.
//!
//! ```text
//!  version u8 · lane 16 · n · confirmed_through · [origins · origin …] · disks
//!    origin:  lane 16 · n · put by                                          version 2 alone: at least one
//!    disk:    name length u8 · name · messages
//!    message: epoch · first · records · offset · stored bytes · plain bytes · codec u8
//!             chain before: u8 0 unknown | 1 given, 32 bytes follow | 2 the last chain of the message before
//!             chain last 32 · received first ± · received last - first ±
//!             [origin: 0 this very batch, else the number of one from 1]       version 2 alone
//!    record:  kind u8 · label ± · uncertainty ± · [group 16] · [name length u8 · name] · extents
//!             kind: bits 0 to 4: 0 write, 1 copy, 2 + barrier kind; bit 6 a group follows; bit 7 a name follows
//!    extent:  offset - end of the extent before ± · length × 2 + (1 if zero)
//! ```
//!
//! Integers without a width are LEB128, shortest form only; ± marks a difference to the row before in the same disk, by
//! zigzag. Shortest forms and the fixed order make the encoding canonical: equal indexes, equal bytes. So an index has version 2
//! exactly if a message of it was sealed elsewhere, and origins stand in the order in which messages first name them.

use std::collections::{HashMap, HashSet};

use super::{
    BATCH_RECORDS_MAX, BatchIndex, DiskPart, INDEX_PLAIN_BYTES_MAX, IndexError, MESSAGE_STORED_BYTES_MIN, MessageMeta,
    Origin, RecordMeta,
};
use crate::limits;
use crate::pipeline::codec::Codec;
use crate::types::{
    BarrierKind, Chain, DiskId, Epoch, Extent, ExtentKind, Id128, Micros, RECORD_HEAD_BYTES, RecordKind, Seq,
};

const VERSION: u8 = 1;
const VERSION_WITH_ORIGINS: u8 = 2;
const KIND_BITS: u8 = 0x1f;
const GROUP_FOLLOWS: u8 = 0x40;
const NAME_FOLLOWS: u8 = 0x80;

const CHAIN_UNKNOWN: u8 = 0;
const CHAIN_GIVEN: u8 = 1;
const CHAIN_CONTINUED: u8 = 2;

/// Fewest bytes of one row, by which claimed counts are bounded before anything is allocated.
const RECORD_ROW_BYTES_MIN: usize = 4;
const EXTENT_ROW_BYTES_MIN: usize = 2;
const MESSAGE_ROW_BYTES_MIN: usize = 46;
const DISK_ROW_BYTES_MIN: usize = 3;
const ORIGIN_ROW_BYTES_MIN: usize = 18;

/// What the next row is a difference to.
#[derive(Default)]
struct Before {
    label: u64,
    uncertainty: u64,
    received: u64,
    extent_end: u64,
    chain: Option<Chain>,
}

fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// The difference on the circle of u64, so that any two values have one.
fn put_difference(out: &mut Vec<u8>, value: u64, before: &mut u64) {
    let difference = value.wrapping_sub(*before) as i64;
    put_varint(out, (difference << 1 ^ difference >> 63) as u64);
    *before = value;
}

fn put_text(out: &mut Vec<u8>, text: &str) {
    debug_assert!(u8::try_from(text.len()).is_ok(), "names are at most 128 bytes");
    out.push(text.len() as u8);
    out.extend_from_slice(text.as_bytes());
}

/// The batches in which messages were sealed, by the numbers that messages give them.
#[derive(Default)]
struct Origins {
    all: Vec<Origin>,
    numbers: HashMap<Origin, u64>,
    /// How many the messages so far have named.
    named: usize,
}

impl Origins {
    fn of(index: &BatchIndex) -> Self {
        let mut origins = Self::default();
        for origin in index.disks.iter().flat_map(|part| &part.messages).filter_map(|message| message.origin) {
            let next = origins.all.len() as u64 + 1;
            if *origins.numbers.entry(origin).or_insert(next) == next {
                origins.all.push(origin);
            }
        }
        origins
    }

    fn encode(&self, out: &mut Vec<u8>) {
        if self.all.is_empty() {
            return;
        }
        put_varint(out, self.all.len() as u64);
        for origin in &self.all {
            out.extend_from_slice(&origin.lane.0);
            put_varint(out, origin.n);
            put_varint(out, origin.put_by.0);
        }
    }

    fn encode_one(&self, out: &mut Vec<u8>, message: &MessageMeta) {
        if !self.all.is_empty() {
            put_varint(out, message.origin.and_then(|origin| self.numbers.get(&origin)).copied().unwrap_or(0));
        }
    }

    /// The origins of the batch `here`.
    fn decode(input: &mut Input<'_>, here: (Id128, u64)) -> Result<Self, IndexError> {
        let count = input.count(BATCH_RECORDS_MAX, ORIGIN_ROW_BYTES_MIN, "origin count")?;
        if count == 0 {
            return input.wrong("origin count");
        }
        let (mut all, mut known) = (Vec::with_capacity(count), HashSet::from([here]));
        for _ in 0..count {
            let lane = Id128(input.array("origin")?);
            let (n, put_by) = (input.varint("origin")?, Micros(input.varint("origin")?));
            if n == 0 || !known.insert((lane, n)) {
                return input.wrong("origin");
            }
            all.push(Origin { lane, n, put_by });
        }
        Ok(Self { all, ..Self::default() })
    }

    fn decode_one(&mut self, input: &mut Input<'_>) -> Result<Option<Origin>, IndexError> {
        if self.all.is_empty() {
            return Ok(None);
        }
        let number = input.varint_within(self.all.len().min(self.named + 1) as u64, "origin of a message")? as usize;
        self.named = self.named.max(number);
        Ok(number.checked_sub(1).map(|at| self.all[at]))
    }
}

pub(super) fn encode(index: &BatchIndex) -> Vec<u8> {
    let mut out = Vec::with_capacity(256);
    let origins = Origins::of(index);
    out.push(if origins.all.is_empty() { VERSION } else { VERSION_WITH_ORIGINS });
    out.extend_from_slice(&index.lane.0);
    put_varint(&mut out, index.n);
    put_varint(&mut out, index.confirmed_through);
    origins.encode(&mut out);
    put_varint(&mut out, index.disks.len() as u64);
    for part in &index.disks {
        put_text(&mut out, part.disk.as_str());
        put_varint(&mut out, part.messages.len() as u64);
        let mut before = Before::default();
        for message in &part.messages {
            encode_message(&mut out, message, &mut before, &origins);
        }
    }
    out
}

fn encode_message(out: &mut Vec<u8>, message: &MessageMeta, before: &mut Before, origins: &Origins) {
    put_varint(out, message.epoch.0);
    put_varint(out, message.first.0);
    put_varint(out, message.records.len() as u64);
    put_varint(out, message.offset_bytes);
    put_varint(out, u64::from(message.stored_bytes));
    put_varint(out, u64::from(message.plain_bytes));
    out.push(message.codec as u8);
    match message.chain_before {
        None => out.push(CHAIN_UNKNOWN),
        Some(chain) if before.chain == Some(chain) => out.push(CHAIN_CONTINUED),
        Some(chain) => {
            out.push(CHAIN_GIVEN);
            out.extend_from_slice(&chain.0);
        }
    }
    out.extend_from_slice(&message.chain_last.0);
    before.chain = Some(message.chain_last);
    put_difference(out, message.received_first.0, &mut before.received);
    put_difference(out, message.received_last.0, &mut before.received);
    origins.encode_one(out, message);
    for record in &message.records {
        encode_record(out, record, before);
    }
}

fn encode_record(out: &mut Vec<u8>, record: &RecordMeta, before: &mut Before) {
    let mut kind = match record.kind {
        RecordKind::Write => 0,
        RecordKind::Copy => 1,
        RecordKind::Barrier(barrier) => 2 + barrier as u8,
    };
    let group = record.group != Id128::NONE;
    kind |= if group { GROUP_FOLLOWS } else { 0 };
    kind |= if record.name.is_some() { NAME_FOLLOWS } else { 0 };
    out.push(kind);
    put_difference(out, record.label.0, &mut before.label);
    put_difference(out, u64::from(record.uncertainty_micros), &mut before.uncertainty);
    if group {
        out.extend_from_slice(&record.group.0);
    }
    if let Some(name) = &record.name {
        put_text(out, name);
    }
    put_varint(out, record.extents.len() as u64);
    for extent in &record.extents {
        put_difference(out, extent.offset_bytes, &mut before.extent_end);
        let zero = u64::from(extent.kind == ExtentKind::Zero);
        put_varint(out, u64::from(extent.length_bytes) << 1 | zero);
        before.extent_end = extent.end_bytes();
    }
}

struct Input<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Input<'a> {
    fn wrong<T>(&self, what: &'static str) -> Result<T, IndexError> {
        Err(IndexError::Encoding { at: self.at, what })
    }

    fn left(&self) -> usize {
        self.bytes.len() - self.at
    }

    fn take(&mut self, count: usize, what: &'static str) -> Result<&'a [u8], IndexError> {
        if self.left() < count {
            return self.wrong(what);
        }
        let taken = &self.bytes[self.at..self.at + count];
        self.at += count;
        Ok(taken)
    }

    fn byte(&mut self, what: &'static str) -> Result<u8, IndexError> {
        Ok(self.take(1, what)?[0])
    }

    fn array<const N: usize>(&mut self, what: &'static str) -> Result<[u8; N], IndexError> {
        let mut out = [0; N];
        out.copy_from_slice(self.take(N, what)?);
        Ok(out)
    }

    fn varint(&mut self, what: &'static str) -> Result<u64, IndexError> {
        let mut value = 0_u64;
        for shift in (0..64).step_by(7) {
            let byte = self.byte(what)?;
            let low = u64::from(byte & 0x7f);
            if low << shift >> shift != low || (byte == 0 && shift > 0) {
                return self.wrong(what);
            }
            value |= low << shift;
            if byte < 0x80 {
                return Ok(value);
            }
        }
        self.wrong(what)
    }

    fn varint_within(&mut self, max: u64, what: &'static str) -> Result<u64, IndexError> {
        let value = self.varint(what)?;
        if value > max { self.wrong(what) } else { Ok(value) }
    }

    fn difference(&mut self, before: &mut u64, what: &'static str) -> Result<u64, IndexError> {
        let zigzag = self.varint(what)?;
        *before = before.wrapping_add(zigzag >> 1 ^ (zigzag & 1).wrapping_neg());
        Ok(*before)
    }

    /// A count of rows that the bytes left could hold.
    fn count(&mut self, max: usize, row_bytes_min: usize, what: &'static str) -> Result<usize, IndexError> {
        let count = self.varint_within(max as u64, what)? as usize;
        if count * row_bytes_min > self.left() { self.wrong(what) } else { Ok(count) }
    }

    fn text(&mut self, max: usize, what: &'static str) -> Result<&'a str, IndexError> {
        let length = usize::from(self.byte(what)?);
        if length > max {
            return self.wrong(what);
        }
        let bytes = self.take(length, what)?;
        std::str::from_utf8(bytes).or_else(|_| self.wrong(what))
    }
}

pub(super) fn decode(plain: &[u8]) -> Result<BatchIndex, IndexError> {
    if plain.len() > INDEX_PLAIN_BYTES_MAX {
        return Err(IndexError::TooLarge { plain_bytes: plain.len() as u64 });
    }
    let mut input = Input { bytes: plain, at: 0 };
    let version = input.byte("version")?;
    if version == 0 {
        return input.wrong("version");
    }
    if version > VERSION_WITH_ORIGINS {
        return Err(IndexError::Version { found: version, newest: VERSION_WITH_ORIGINS });
    }
    let lane = Id128(input.array("lane")?);
    let n = input.varint("batch number")?;
    if n == 0 {
        return input.wrong("batch number");
    }
    let confirmed_through = input.varint_within(n - 1, "confirmed through")?;
    let mut origins = match version {
        VERSION => Origins::default(),
        _ => Origins::decode(&mut input, (lane, n))?,
    };
    let disk_count = input.count(BATCH_RECORDS_MAX, DISK_ROW_BYTES_MIN, "disk count")?;
    let mut records_left = BATCH_RECORDS_MAX;
    let mut disks: Vec<DiskPart> = Vec::with_capacity(disk_count);
    for _ in 0..disk_count {
        let part = decode_part(&mut input, &mut records_left, &mut origins)?;
        if disks.last().is_some_and(|before| before.disk >= part.disk) {
            return input.wrong("disk order");
        }
        disks.push(part);
    }
    if input.left() > 0 {
        return input.wrong("end");
    }
    if origins.named < origins.all.len() {
        return input.wrong("origin that no message has");
    }
    Ok(BatchIndex { lane, n, confirmed_through, disks })
}

fn decode_part(input: &mut Input<'_>, records_left: &mut usize, origins: &mut Origins) -> Result<DiskPart, IndexError> {
    let name = input.text(limits::NAME_BYTES_MAX, "disk name")?;
    let disk = DiskId::new(name).or_else(|_| input.wrong("disk name"))?;
    let message_count = input.count(BATCH_RECORDS_MAX, MESSAGE_ROW_BYTES_MIN, "message count")?;
    if message_count == 0 {
        return input.wrong("message count");
    }
    let mut before = Before::default();
    let mut messages: Vec<MessageMeta> = Vec::with_capacity(message_count);
    for _ in 0..message_count {
        let message = decode_message(input, &mut before, records_left, origins)?;
        if messages.last().is_some_and(|last| last.offset_bytes >= message.offset_bytes) {
            return input.wrong("message order");
        }
        messages.push(message);
    }
    Ok(DiskPart { disk, messages })
}

fn decode_message(
    input: &mut Input<'_>,
    before: &mut Before,
    records_left: &mut usize,
    origins: &mut Origins,
) -> Result<MessageMeta, IndexError> {
    let epoch = Epoch(input.varint("epoch")?);
    let first = Seq(input.varint("first seq")?);
    if epoch.0 == 0 || first.0 == 0 {
        return input.wrong("epoch or first seq");
    }
    let records_max = (limits::MESSAGE_BYTES_MAX / RECORD_HEAD_BYTES).min(*records_left);
    let record_count = input.count(records_max, RECORD_ROW_BYTES_MIN, "record count")?;
    let last = first.0.checked_add(record_count as u64).map(|end| Seq(end - 1));
    let Some(last) = last.filter(|last| record_count > 0 && last.0 < u64::MAX) else {
        return input.wrong("record count");
    };
    *records_left -= record_count;
    let offset_bytes = input.varint_within(u64::from(u32::MAX), "message offset")?;
    let stored_bytes = input.varint_within(STORED_BYTES_MAX, "stored bytes")? as u32;
    if (stored_bytes as usize) < MESSAGE_STORED_BYTES_MIN {
        return input.wrong("stored bytes");
    }
    let plain_bytes = input.varint_within(limits::MESSAGE_BYTES_MAX as u64, "plain bytes")? as u32;
    let Some(codec) = Codec::from_byte(input.byte("codec")?) else {
        return input.wrong("codec");
    };
    let chain_word = input.byte("chain before")?;
    let chain_before = match chain_word {
        CHAIN_UNKNOWN => None,
        CHAIN_GIVEN => Some(Chain(input.array("chain before")?)).filter(|&chain| before.chain != Some(chain)),
        CHAIN_CONTINUED => before.chain,
        _ => return input.wrong("chain before"),
    };
    if chain_before.is_none() && chain_word != CHAIN_UNKNOWN {
        return input.wrong("chain before");
    }
    let chain_last = Chain(input.array("chain last")?);
    before.chain = Some(chain_last);
    let received_first = Micros(input.difference(&mut before.received, "received")?);
    let received_last = Micros(input.difference(&mut before.received, "received")?);
    let origin = origins.decode_one(input)?;
    let mut records = Vec::with_capacity(record_count);
    for number in 0..record_count as u64 {
        records.push(decode_record(input, before, Seq(first.0 + number))?);
    }
    Ok(MessageMeta {
        epoch,
        first,
        last,
        offset_bytes,
        stored_bytes,
        plain_bytes,
        codec,
        chain_before,
        chain_last,
        received_first,
        received_last,
        origin,
        records,
    })
}

/// Sealing adds a little, and a raw message is stored whole.
const STORED_BYTES_MAX: u64 = (limits::MESSAGE_BYTES_MAX + super::SEAL_OVERHEAD_BYTES) as u64;

fn decode_record(input: &mut Input<'_>, before: &mut Before, seq: Seq) -> Result<RecordMeta, IndexError> {
    let byte = input.byte("record kind")?;
    let kind = match byte & KIND_BITS {
        0 => RecordKind::Write,
        1 => RecordKind::Copy,
        barrier => match barrier_kind(barrier - 2) {
            Some(barrier) => RecordKind::Barrier(barrier),
            None => return input.wrong("record kind"),
        },
    };
    if byte & !(KIND_BITS | GROUP_FOLLOWS | NAME_FOLLOWS) != 0 {
        return input.wrong("record kind");
    }
    let label = Micros(input.difference(&mut before.label, "label")?);
    let uncertainty = input.difference(&mut before.uncertainty, "clock uncertainty")?;
    let Ok(uncertainty_micros) = u32::try_from(uncertainty) else {
        return input.wrong("clock uncertainty");
    };
    let group = if byte & GROUP_FOLLOWS == 0 { Id128::NONE } else { Id128(input.array("group")?) };
    if byte & GROUP_FOLLOWS != 0 && group == Id128::NONE {
        return input.wrong("group");
    }
    let name = match byte & NAME_FOLLOWS {
        0 => None,
        _ => Some(input.text(limits::POINT_NAME_BYTES_MAX, "name")?.to_owned()),
    };
    let extent_count = input.count(limits::RECORD_EXTENTS_MAX, EXTENT_ROW_BYTES_MIN, "extent count")?;
    let mut extents = Vec::with_capacity(extent_count);
    for _ in 0..extent_count {
        extents.push(decode_extent(input, before)?);
    }
    Ok(RecordMeta { seq, label, uncertainty_micros, kind, group, name, extents })
}

fn decode_extent(input: &mut Input<'_>, before: &mut Before) -> Result<Extent, IndexError> {
    let offset_bytes = input.difference(&mut before.extent_end, "extent offset")?;
    let word = input.varint_within(u64::from(u32::MAX) << 1 | 1, "extent length")?;
    let length_bytes = (word >> 1) as u32;
    let end = offset_bytes.checked_add(u64::from(length_bytes));
    let Some(end) = end.filter(|&end| length_bytes > 0 && end <= limits::DISK_BYTES_MAX) else {
        return input.wrong("extent range");
    };
    before.extent_end = end;
    let kind = if word & 1 == 1 { ExtentKind::Zero } else { ExtentKind::Data };
    Ok(Extent { offset_bytes, length_bytes, kind })
}

const fn barrier_kind(byte: u8) -> Option<BarrierKind> {
    Some(match byte {
        1 => BarrierKind::Crash,
        2 => BarrierKind::Fs,
        3 => BarrierKind::App,
        4 => BarrierKind::SyncBegin,
        5 => BarrierKind::SyncEnd,
        _ => return None,
    })
}
