//! One request against one export: is it allowed, do it, encode the reply.

use std::io;
use std::ops::Range;

use bytes::{Bytes, BytesMut};

use super::handshake::Agreed;
use super::proto::{self, Command, ErrorCode, Request, allocation, command_flags as flag};
use super::{Export, StatusExtent, ZeroFlags};
use crate::fault::chain_text;

/// A reply as bytes to be sent.
#[derive(Debug)]
pub(crate) enum ReplyBytes {
    /// A simple reply without payload, the most frequent one: no allocation.
    Simple([u8; proto::SIMPLE_REPLY_BYTES]),
    /// One piece.
    Whole(Bytes),
    /// Pieces, one after the other.
    Pieces(Vec<Bytes>),
}

/// A request that failed.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) code: ErrorCode,
    pub(crate) text: String,
}

impl Failure {
    pub(crate) fn new(code: ErrorCode, text: impl Into<String>) -> Self {
        Self { code, text: text.into() }
    }

    fn of(error: &io::Error) -> Self {
        Self::new(code_of(error), chain_text(error))
    }

    /// The reply that tells it.
    pub(crate) fn reply(&self, request: &Request, agreed: Agreed) -> ReplyBytes {
        if agreed.structured {
            ReplyBytes::Whole(proto::encode_error_chunk(request.cookie, self.code, &self.text))
        } else {
            ReplyBytes::Simple(proto::encode_simple_reply(request.cookie, Some(self.code)))
        }
    }
}

/// The NBD error for an error of an export.
fn code_of(error: &io::Error) -> ErrorCode {
    match error.kind() {
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => ErrorCode::Perm,
        io::ErrorKind::OutOfMemory => ErrorCode::NoMemory,
        io::ErrorKind::InvalidInput => ErrorCode::Invalid,
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => ErrorCode::NoSpace,
        io::ErrorKind::Unsupported => ErrorCode::NotSupported,
        _ => ErrorCode::Io,
    }
}

/// What an export allows, looked up once per connection.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bounds {
    pub(crate) size_bytes: u64,
    pub(crate) read_only: bool,
    pub(crate) fast_zero: bool,
    pub(crate) agreed: Agreed,
}

/// Checks a request against the export and the protocol, before anything is allocated for it.
pub(crate) fn check(request: &Request, bounds: &Bounds) -> Result<(), Failure> {
    let invalid = |text: &str| Err(Failure::new(ErrorCode::Invalid, text));
    let (allowed, writes) = match request.command {
        Command::Read if bounds.agreed.structured => (flag::FUA | flag::DF, false),
        Command::Read | Command::Flush => (flag::FUA, false),
        Command::Write | Command::Trim => (flag::FUA, true),
        Command::WriteZeroes if bounds.fast_zero => (flag::FUA | flag::NO_HOLE | flag::FAST_ZERO, true),
        Command::WriteZeroes => (flag::FUA | flag::NO_HOLE, true),
        Command::BlockStatus if bounds.agreed.allocation => (flag::FUA | flag::REQ_ONE, false),
        Command::BlockStatus => return invalid("block status was not negotiated"),
        Command::Disconnect | Command::Other(_) => return invalid("this command is not known"),
    };
    if request.flags & !allowed != 0 {
        return invalid("the command has flags that it cannot have");
    }
    if writes && bounds.read_only {
        return Err(Failure::new(ErrorCode::Perm, "the export is read-only"));
    }
    if request.command == Command::Flush {
        return if request.length == 0 && request.offset == 0 { Ok(()) } else { invalid("FLUSH has no range") };
    }
    if request.command == Command::Read && request.length > proto::PAYLOAD_BYTES_MAX {
        return Err(Failure::new(ErrorCode::Overflow, "the read is larger than the largest request"));
    }
    if request.command == Command::BlockStatus && request.length == 0 {
        return invalid("block status of nothing");
    }
    match request.offset.checked_add(request.length.into()) {
        Some(end) if end <= bounds.size_bytes => Ok(()),
        _ if matches!(request.command, Command::Write | Command::WriteZeroes) => {
            Err(Failure::new(ErrorCode::NoSpace, "the range ends beyond the end of the export"))
        }
        _ => invalid("the range ends beyond the end of the export"),
    }
}

/// Bytes that a request and its reply hold in memory while it is in flight.
pub(crate) fn memory_bytes(request: &Request) -> u64 {
    match request.command {
        Command::Read | Command::Write => request.length.into(),
        Command::BlockStatus => 8 * proto::STATUS_RUNS_MAX as u64,
        _ => 0,
    }
}

/// Does a checked request.
pub(crate) fn execute(
    export: &dyn Export,
    agreed: Agreed,
    request: &Request,
    data: Bytes,
) -> Result<ReplyBytes, Failure> {
    let cookie = request.cookie;
    let fua = request.has(flag::FUA);
    let (offset, length) = (request.offset, u64::from(request.length));
    let done = match request.command {
        Command::Read => return read(export, agreed, request),
        Command::BlockStatus => return block_status(export, request),
        Command::Flush => export.flush(),
        // Nothing to do, but a FUA that names nothing is still no error.
        _ if length == 0 => Ok(()),
        Command::Write => export.write(offset, data, fua),
        Command::Trim => export.trim(offset, length, fua),
        Command::WriteZeroes => {
            let flags = ZeroFlags { no_hole: request.has(flag::NO_HOLE), fua, fast: request.has(flag::FAST_ZERO) };
            export.zero(offset, length, flags)
        }
        Command::Disconnect | Command::Other(_) => Err(io::ErrorKind::InvalidInput.into()),
    };
    done.map_err(|error| Failure::of(&error))?;
    Ok(ReplyBytes::Simple(proto::encode_simple_reply(cookie, None)))
}

fn read(export: &dyn Export, agreed: Agreed, request: &Request) -> Result<ReplyBytes, Failure> {
    let length = request.length as usize;
    if (1..proto::HOLE_BYTES_MIN).contains(&length) {
        // Small reads are frequent: head and data share one buffer, and there is no hole to look for.
        let mut out = proto::encode_read_head(request.cookie, request.offset, length, agreed.structured);
        let head_bytes = out.len();
        out.resize(head_bytes + length, 0);
        export.read(request.offset, &mut out[head_bytes..]).map_err(|error| Failure::of(&error))?;
        return Ok(ReplyBytes::Whole(out.freeze()));
    }
    let mut buf = BytesMut::zeroed(length);
    if !buf.is_empty() {
        export.read(request.offset, &mut buf).map_err(|error| Failure::of(&error))?;
    }
    let data = buf.freeze();
    if agreed.structured {
        let whole = request.has(flag::DF);
        return Ok(ReplyBytes::Pieces(proto::encode_structured_read(request.cookie, request.offset, &data, whole)));
    }
    let head = Bytes::copy_from_slice(&proto::encode_simple_reply(request.cookie, None));
    Ok(ReplyBytes::Pieces(vec![head, data]))
}

fn block_status(export: &dyn Export, request: &Request) -> Result<ReplyBytes, Failure> {
    let length = u64::from(request.length);
    let extents = export.block_status(request.offset, length).map_err(|error| Failure::of(&error))?;
    let mut runs = status_runs(&extents, 0..length);
    if runs.is_empty() {
        return Err(Failure::new(ErrorCode::Io, "the export does not know its block status"));
    }
    if request.has(flag::REQ_ONE) {
        runs.truncate(1);
    }
    Ok(ReplyBytes::Whole(proto::encode_status_chunk(request.cookie, &runs)))
}

/// Extents as runs of the protocol: equal neighbours joined, cut to the range and to the largest number of runs.
fn status_runs(extents: &[StatusExtent], range: Range<u64>) -> Vec<(u32, u32)> {
    let mut runs: Vec<(u32, u32)> = Vec::new();
    let mut left = range.end - range.start;
    for extent in extents {
        let length = extent.length.min(left) as u32;
        if length == 0 {
            break;
        }
        left -= u64::from(length);
        let bits = if extent.hole { allocation::HOLE } else { 0 } | if extent.zero { allocation::ZERO } else { 0 };
        let full = runs.len() == proto::STATUS_RUNS_MAX;
        match runs.last_mut() {
            // The sum stays within the range, whose length is 32 bits.
            Some((before, same)) if *same == bits => *before += length,
            _ if full => break,
            _ => runs.push((length, bits)),
        }
    }
    runs
}
