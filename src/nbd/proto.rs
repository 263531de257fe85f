//! The NBD codec: bytes to values and back, for both sides. No I/O, no allocation from unchecked lengths.
//!
//! All integers are big endian. The layout of each message stands at its type.

use bytes::{BufMut, Bytes, BytesMut};

/// Most payload bytes of one request, the size that clients may assume without asking.
pub const PAYLOAD_BYTES_MAX: u32 = 32 << 20;
/// Requests of this size and alignment are served best.
pub const BLOCK_BYTES_PREFERRED: u32 = 4096;
/// Requests may have any alignment.
pub const BLOCK_BYTES_MIN: u32 = 1;
/// Most bytes of one option: the longest name and its queries fit many times.
pub const OPTION_BYTES_MAX: u32 = 16 << 10;
/// Most options of one handshake; the usual client sends four.
pub const OPTIONS_MAX: u32 = 128;
/// Longest string of the protocol: export names, context queries, error texts.
pub const STRING_BYTES_MAX: usize = 4096;
/// Most runs of one block status reply: 64 KiB on the wire.
pub const STATUS_RUNS_MAX: usize = 8192;
/// The step in which the data of a read is looked through for zeroes. Smaller ones cost more chunks than they save.
pub const HOLE_BYTES_MIN: usize = 64 << 10;

const _: () = assert!(OPTION_BYTES_MAX as usize > 2 * STRING_BYTES_MAX, "an option holds a name and a query");

/// First bytes of the server's greeting.
pub const GREETING_MAGIC: u64 = 0x4e42_444d_4147_4943;
/// Starts the second half of the greeting and every option.
pub const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054;
/// Starts every reply to an option.
pub const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
/// Starts every request.
pub const REQUEST_MAGIC: u32 = 0x2560_9513;
/// Starts a simple reply.
pub const SIMPLE_REPLY_MAGIC: u32 = 0x6744_6698;
/// Starts a chunk of a structured reply.
pub const CHUNK_MAGIC: u32 = 0x668e_33ef;

/// Size of the greeting: two magics and the handshake flags.
pub const GREETING_BYTES: usize = 18;
/// Size of the head of an option.
pub const OPTION_HEAD_BYTES: usize = 16;
/// Size of the head of an option's reply.
pub const OPTION_REPLY_HEAD_BYTES: usize = 20;
/// Size of a request without its payload.
pub const REQUEST_BYTES: usize = 28;
/// Size of a simple reply without its payload.
pub const SIMPLE_REPLY_BYTES: usize = 16;
/// Size of the head of a chunk.
pub const CHUNK_HEAD_BYTES: usize = 20;

/// Handshake flags, of server and client alike.
pub mod handshake_flags {
    /// Fixed newstyle: unknown options are answered, not fatal.
    pub const FIXED_NEWSTYLE: u32 = 1;
    /// No 124 zeroes after the answer to EXPORT_NAME.
    pub const NO_ZEROES: u32 = 2;
}

/// Option numbers.
pub mod option {
    /// Choose an export and go on without an option reply.
    pub const EXPORT_NAME: u32 = 1;
    /// End the session.
    pub const ABORT: u32 = 2;
    /// List the exports.
    pub const LIST: u32 = 3;
    /// Encrypt.
    pub const STARTTLS: u32 = 5;
    /// Describe an export.
    pub const INFO: u32 = 6;
    /// Describe an export and go on to requests.
    pub const GO: u32 = 7;
    /// Use structured replies.
    pub const STRUCTURED_REPLY: u32 = 8;
    /// List metadata contexts.
    pub const LIST_META_CONTEXT: u32 = 9;
    /// Choose metadata contexts.
    pub const SET_META_CONTEXT: u32 = 10;
}

/// Types of replies to options.
pub mod option_reply {
    /// Done.
    pub const ACK: u32 = 1;
    /// An export's name.
    pub const SERVER: u32 = 2;
    /// Information on an export.
    pub const INFO: u32 = 3;
    /// A metadata context.
    pub const META_CONTEXT: u32 = 4;
    /// Set in every error.
    pub const ERROR_BIT: u32 = 1 << 31;
    /// The option is not known.
    pub const ERR_UNSUP: u32 = ERROR_BIT | 1;
    /// The option's data is wrong.
    pub const ERR_INVALID: u32 = ERROR_BIT | 3;
    /// Nothing is answered before the connection is encrypted.
    pub const ERR_TLS_REQD: u32 = ERROR_BIT | 5;
    /// There is no such export.
    pub const ERR_UNKNOWN: u32 = ERROR_BIT | 6;
    /// The server stops.
    pub const ERR_SHUTDOWN: u32 = ERROR_BIT | 7;
    /// The option is too long.
    pub const ERR_TOO_BIG: u32 = ERROR_BIT | 9;
}

/// Kinds of information on an export.
pub mod info {
    /// Size and transmission flags.
    pub const EXPORT: u16 = 0;
    /// Its name.
    pub const NAME: u16 = 1;
    /// Smallest, preferred and largest request.
    pub const BLOCK_SIZE: u16 = 3;
}

/// What an export can do.
pub mod transmission_flags {
    /// Always set.
    pub const HAS_FLAGS: u16 = 1;
    /// Writes are refused.
    pub const READ_ONLY: u16 = 1 << 1;
    /// FLUSH works.
    pub const SEND_FLUSH: u16 = 1 << 2;
    /// The flag FUA works.
    pub const SEND_FUA: u16 = 1 << 3;
    /// TRIM works.
    pub const SEND_TRIM: u16 = 1 << 5;
    /// WRITE_ZEROES works.
    pub const SEND_WRITE_ZEROES: u16 = 1 << 6;
    /// The flag DF works.
    pub const SEND_DF: u16 = 1 << 7;
    /// FLUSH covers all connections.
    pub const CAN_MULTI_CONN: u16 = 1 << 8;
    /// The flag FAST_ZERO works.
    pub const SEND_FAST_ZERO: u16 = 1 << 11;
}

/// Flags of a request.
pub mod command_flags {
    /// Durable before the reply.
    pub const FUA: u16 = 1;
    /// Zeroes stay allocated.
    pub const NO_HOLE: u16 = 1 << 1;
    /// Do not fragment the reply.
    pub const DF: u16 = 1 << 2;
    /// One run of block status only.
    pub const REQ_ONE: u16 = 1 << 3;
    /// Fail if zeroing is slow.
    pub const FAST_ZERO: u16 = 1 << 4;
}

/// Chunk types of a structured reply, and its flag.
pub mod chunk {
    /// Flag: the last chunk.
    pub const DONE: u16 = 1;
    /// Nothing.
    pub const NONE: u16 = 0;
    /// Offset and data.
    pub const OFFSET_DATA: u16 = 1;
    /// Offset and length of zeroes.
    pub const OFFSET_HOLE: u16 = 2;
    /// Runs of block status.
    pub const BLOCK_STATUS: u16 = 5;
    /// Set in every error.
    pub const ERROR_BIT: u16 = 1 << 15;
    /// Error code and text.
    pub const ERROR: u16 = ERROR_BIT | 1;
}

/// The one metadata context that is offered.
pub const CONTEXT_ALLOCATION: &str = "base:allocation";
/// The number by which replies name it.
pub const CONTEXT_ALLOCATION_ID: u32 = 1;
/// Bits of a run of `base:allocation`.
pub mod allocation {
    /// Not allocated.
    pub const HOLE: u32 = 1;
    /// Reads as zeroes.
    pub const ZERO: u32 = 2;
}

/// Error codes of replies.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub enum ErrorCode {
    /// Not permitted: read-only.
    Perm = 1,
    /// I/O error.
    Io = 5,
    /// Out of memory.
    NoMemory = 12,
    /// Wrong request.
    Invalid = 22,
    /// No space, or beyond the end.
    NoSpace = 28,
    /// Too large.
    Overflow = 75,
    /// Not supported.
    NotSupported = 95,
    /// The server stops.
    Shutdown = 108,
}

/// What a request asks for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Command {
    /// Read.
    Read,
    /// Write; the payload follows.
    Write,
    /// End the session; has no reply.
    Disconnect,
    /// Make completed writes durable.
    Flush,
    /// Give a range up.
    Trim,
    /// Zero a range.
    WriteZeroes,
    /// Ask what is allocated.
    BlockStatus,
    /// Any other number.
    Other(u16),
}

impl Command {
    fn from_number(number: u16) -> Self {
        match number {
            0 => Self::Read,
            1 => Self::Write,
            2 => Self::Disconnect,
            3 => Self::Flush,
            4 => Self::Trim,
            6 => Self::WriteZeroes,
            7 => Self::BlockStatus,
            other => Self::Other(other),
        }
    }

    fn number(self) -> u16 {
        match self {
            Self::Read => 0,
            Self::Write => 1,
            Self::Disconnect => 2,
            Self::Flush => 3,
            Self::Trim => 4,
            Self::WriteZeroes => 6,
            Self::BlockStatus => 7,
            Self::Other(number) => number,
        }
    }

    /// The word for logs and metric labels.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::Disconnect => "disconnect",
            Self::Flush => "flush",
            Self::Trim => "trim",
            Self::WriteZeroes => "write-zeroes",
            Self::BlockStatus => "block-status",
            Self::Other(_) => "other",
        }
    }
}

/// Bytes that are not what the protocol wants at this place. The connection cannot go on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProtoError {
    /// Another magic number.
    #[error("{what} starts with {found:#x}")]
    Magic {
        /// What was expected.
        what: &'static str,
        /// The number found.
        found: u64,
    },
    /// A length beyond its limit.
    #[error("{what} of {found} bytes, at most {limit} are taken")]
    TooLong {
        /// What is too long.
        what: &'static str,
        /// Its length.
        found: u64,
        /// Its limit.
        limit: u64,
    },
    /// A message that ends early, or has more than it should.
    #[error("{what} is malformed")]
    Malformed {
        /// Which message.
        what: &'static str,
    },
}

/// Reads fields off the front of a message.
#[derive(Clone, Copy, Debug)]
pub struct Fields<'a>(pub &'a [u8]);

impl<'a> Fields<'a> {
    /// The next `count` bytes.
    pub fn bytes(&mut self, count: usize) -> Option<&'a [u8]> {
        let (head, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(head)
    }

    /// The next two bytes as a number.
    pub fn u16(&mut self) -> Option<u16> {
        Some(u16::from_be_bytes(self.bytes(2)?.try_into().ok()?))
    }

    /// The next four bytes as a number.
    pub fn u32(&mut self) -> Option<u32> {
        Some(u32::from_be_bytes(self.bytes(4)?.try_into().ok()?))
    }

    /// The next eight bytes as a number.
    pub fn u64(&mut self) -> Option<u64> {
        Some(u64::from_be_bytes(self.bytes(8)?.try_into().ok()?))
    }

    /// A string with its length before it, of at most [`STRING_BYTES_MAX`].
    pub fn string(&mut self) -> Option<&'a str> {
        let length = self.u32()? as usize;
        if length > STRING_BYTES_MAX {
            return None;
        }
        std::str::from_utf8(self.bytes(length)?).ok()
    }
}

/// The head of an option: magic u64 · option u32 · data length u32.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct OptionHead {
    /// Which option.
    pub option: u32,
    /// Bytes of data that follow.
    pub data_bytes: u32,
}

impl OptionHead {
    /// Reads it.
    ///
    /// # Errors
    /// For another magic or fewer bytes. The length is not judged here.
    pub fn decode(bytes: &[u8]) -> Result<Self, ProtoError> {
        let what = "option";
        let mut fields = Fields(bytes);
        let mut read = || Some((fields.u64()?, fields.u32()?, fields.u32()?));
        let (magic, option, data_bytes) = read().ok_or(ProtoError::Malformed { what })?;
        if magic != OPTION_MAGIC {
            return Err(ProtoError::Magic { what, found: magic });
        }
        Ok(Self { option, data_bytes })
    }

    /// Appends it.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.put_u64(OPTION_MAGIC);
        out.put_u32(self.option);
        out.put_u32(self.data_bytes);
    }
}

/// The head of a reply to an option: magic u64 · option u32 · reply type u32 · data length u32.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct OptionReplyHead {
    /// The option that it answers.
    pub option: u32,
    /// One of [`option_reply`].
    pub reply: u32,
    /// Bytes of data that follow.
    pub data_bytes: u32,
}

impl OptionReplyHead {
    /// Reads it.
    ///
    /// # Errors
    /// For another magic, fewer bytes, or data longer than [`OPTION_BYTES_MAX`].
    pub fn decode(bytes: &[u8]) -> Result<Self, ProtoError> {
        let what = "option reply";
        let mut fields = Fields(bytes);
        let mut read = || Some((fields.u64()?, fields.u32()?, fields.u32()?, fields.u32()?));
        let (magic, option, reply, data_bytes) = read().ok_or(ProtoError::Malformed { what })?;
        if magic != OPTION_REPLY_MAGIC {
            return Err(ProtoError::Magic { what, found: magic });
        }
        if data_bytes > OPTION_BYTES_MAX {
            return Err(ProtoError::TooLong { what, found: data_bytes.into(), limit: OPTION_BYTES_MAX.into() });
        }
        Ok(Self { option, reply, data_bytes })
    }
}

/// Appends a whole reply to an option.
pub fn encode_option_reply(out: &mut Vec<u8>, option: u32, reply: u32, data: &[u8]) {
    out.put_u64(OPTION_REPLY_MAGIC);
    out.put_u32(option);
    out.put_u32(reply);
    out.put_u32(data.len() as u32);
    out.put_slice(data);
}

/// Appends a string with its length before it.
pub fn encode_string(out: &mut Vec<u8>, text: &str) {
    out.put_u32(text.len() as u32);
    out.put_slice(text.as_bytes());
}

/// A request: magic u32 · flags u16 · command u16 · cookie u64 · offset u64 · length u32.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Request {
    /// Bits of [`command_flags`].
    pub flags: u16,
    /// What to do.
    pub command: Command,
    /// The client's name for it, repeated in the reply.
    pub cookie: u64,
    /// First byte.
    pub offset: u64,
    /// Bytes.
    pub length: u32,
}

impl Request {
    /// Reads it.
    ///
    /// # Errors
    /// For another magic or fewer bytes; what it asks for is not judged here.
    pub fn decode(bytes: &[u8]) -> Result<Self, ProtoError> {
        let what = "request";
        let mut fields = Fields(bytes);
        let mut read =
            || Some((fields.u32()?, fields.u16()?, fields.u16()?, fields.u64()?, fields.u64()?, fields.u32()?));
        let (magic, flags, number, cookie, offset, length) = read().ok_or(ProtoError::Malformed { what })?;
        if magic != REQUEST_MAGIC {
            return Err(ProtoError::Magic { what, found: magic.into() });
        }
        Ok(Self { flags, command: Command::from_number(number), cookie, offset, length })
    }

    /// Its bytes.
    #[must_use]
    pub fn encode(&self) -> [u8; REQUEST_BYTES] {
        let mut bytes = [0; REQUEST_BYTES];
        let mut out = &mut bytes[..];
        out.put_u32(REQUEST_MAGIC);
        out.put_u16(self.flags);
        out.put_u16(self.command.number());
        out.put_u64(self.cookie);
        out.put_u64(self.offset);
        out.put_u32(self.length);
        bytes
    }

    /// Whether all bits of `flag` are set.
    #[must_use]
    pub const fn has(&self, flag: u16) -> bool {
        self.flags & flag == flag
    }
}

/// A simple reply's head: magic u32 · error u32 · cookie u64.
#[must_use]
pub fn encode_simple_reply(cookie: u64, error: Option<ErrorCode>) -> [u8; SIMPLE_REPLY_BYTES] {
    let mut bytes = [0; SIMPLE_REPLY_BYTES];
    let mut out = &mut bytes[..];
    out.put_u32(SIMPLE_REPLY_MAGIC);
    out.put_u32(error.map_or(0, |code| code as u32));
    out.put_u64(cookie);
    bytes
}

/// Appends the head of a chunk: magic u32 · flags u16 · type u16 · cookie u64 · length u32.
fn encode_chunk_head(out: &mut BytesMut, flags: u16, kind: u16, cookie: u64, data_bytes: usize) {
    out.put_u32(CHUNK_MAGIC);
    out.put_u16(flags);
    out.put_u16(kind);
    out.put_u64(cookie);
    out.put_u32(data_bytes as u32);
}

/// A structured error: code u32 · text length u16 · text, cut to the protocol's limit.
#[must_use]
pub fn encode_error_chunk(cookie: u64, code: ErrorCode, text: &str) -> Bytes {
    let mut end = text.len().min(STRING_BYTES_MAX);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    let text = &text[..end];
    let mut out = BytesMut::with_capacity(CHUNK_HEAD_BYTES + 6 + text.len());
    encode_chunk_head(&mut out, chunk::DONE, chunk::ERROR, cookie, 6 + text.len());
    out.put_u32(code as u32);
    out.put_u16(text.len() as u16);
    out.put_slice(text.as_bytes());
    out.freeze()
}

/// A block status chunk: context u32 · runs of (length u32, bits u32).
#[must_use]
pub fn encode_status_chunk(cookie: u64, runs: &[(u32, u32)]) -> Bytes {
    let mut out = BytesMut::with_capacity(CHUNK_HEAD_BYTES + 4 + runs.len() * 8);
    encode_chunk_head(&mut out, chunk::DONE, chunk::BLOCK_STATUS, cookie, 4 + runs.len() * 8);
    out.put_u32(CONTEXT_ALLOCATION_ID);
    for (length, bits) in runs {
        out.put_u32(*length);
        out.put_u32(*bits);
    }
    out.freeze()
}

/// The head of a successful reply to a read of `data_bytes`, in a buffer that has room for the data behind it.
#[must_use]
pub fn encode_read_head(cookie: u64, offset: u64, data_bytes: usize, structured: bool) -> BytesMut {
    let mut out = BytesMut::with_capacity(CHUNK_HEAD_BYTES + 8 + data_bytes);
    if structured {
        encode_chunk_head(&mut out, chunk::DONE, chunk::OFFSET_DATA, cookie, 8 + data_bytes);
        out.put_u64(offset);
    } else {
        out.put_slice(&encode_simple_reply(cookie, None));
    }
    out
}

/// The structured reply to a read, as pieces to be sent one after the other. Unless `whole`, zero parts become holes.
#[must_use]
pub fn encode_structured_read(cookie: u64, offset: u64, data: &Bytes, whole: bool) -> Vec<Bytes> {
    let mut pieces = Vec::new();
    if data.is_empty() {
        let mut out = BytesMut::with_capacity(CHUNK_HEAD_BYTES);
        encode_chunk_head(&mut out, chunk::DONE, chunk::NONE, cookie, 0);
        pieces.push(out.freeze());
        return pieces;
    }
    let mut at = 0;
    while at < data.len() {
        let (end, zero) = if whole { (data.len(), false) } else { next_run(data, at) };
        let done = if end == data.len() { chunk::DONE } else { 0 };
        let mut out = BytesMut::with_capacity(CHUNK_HEAD_BYTES + 12);
        if zero {
            encode_chunk_head(&mut out, done, chunk::OFFSET_HOLE, cookie, 12);
            out.put_u64(offset + at as u64);
            out.put_u32((end - at) as u32);
            pieces.push(out.freeze());
        } else {
            encode_chunk_head(&mut out, done, chunk::OFFSET_DATA, cookie, 8 + end - at);
            out.put_u64(offset + at as u64);
            pieces.push(out.freeze());
            pieces.push(data.slice(at..end));
        }
        at = end;
    }
    pieces
}

/// The end of the run that starts at `at`, and whether it is all zero; looked for in steps of [`HOLE_BYTES_MIN`].
fn next_run(data: &[u8], at: usize) -> (usize, bool) {
    let step = |from: usize| (from + HOLE_BYTES_MIN).min(data.len());
    // A short tail is not worth a chunk of its own.
    let zero_at = |from: usize| step(from) - from == HOLE_BYTES_MIN && is_zero(&data[from..step(from)]);
    let zero = zero_at(at);
    let mut end = step(at);
    while end < data.len() && zero_at(end) == zero {
        end = step(end);
    }
    (end, zero)
}

/// Whether all bytes are zero; stops at the first block that is not.
#[must_use]
pub fn is_zero(data: &[u8]) -> bool {
    data.chunks(256).all(|block| block.iter().fold(0, |seen, byte| seen | byte) == 0)
}

/// The head of a reply, as a client reads it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ReplyHead {
    /// A simple reply; the data of a read follows if there is no error.
    Simple {
        /// Zero or an error code.
        error: u32,
        /// Which request it answers.
        cookie: u64,
    },
    /// A chunk; `data_bytes` follow.
    Chunk {
        /// Bits, [`chunk::DONE`].
        flags: u16,
        /// One of [`chunk`].
        kind: u16,
        /// Which request it answers.
        cookie: u64,
        /// Bytes that follow.
        data_bytes: u32,
    },
}

impl ReplyHead {
    /// Size of the head that starts with `magic`.
    ///
    /// # Errors
    /// If no reply starts like this.
    pub fn bytes(magic: u32) -> Result<usize, ProtoError> {
        match magic {
            SIMPLE_REPLY_MAGIC => Ok(SIMPLE_REPLY_BYTES),
            CHUNK_MAGIC => Ok(CHUNK_HEAD_BYTES),
            other => Err(ProtoError::Magic { what: "reply", found: other.into() }),
        }
    }

    /// Reads it.
    ///
    /// # Errors
    /// For another magic, fewer bytes, or a chunk longer than the largest payload and its fields.
    pub fn decode(bytes: &[u8]) -> Result<Self, ProtoError> {
        let what = "reply";
        let malformed = ProtoError::Malformed { what };
        let mut fields = Fields(bytes);
        let magic = fields.u32().ok_or_else(|| malformed.clone())?;
        if bytes.len() < Self::bytes(magic)? {
            return Err(malformed);
        }
        if magic == SIMPLE_REPLY_MAGIC {
            let mut read = || Some(Self::Simple { error: fields.u32()?, cookie: fields.u64()? });
            return read().ok_or(malformed);
        }
        let mut read = || Some((fields.u16()?, fields.u16()?, fields.u64()?, fields.u32()?));
        let (flags, kind, cookie, data_bytes) = read().ok_or(malformed)?;
        let limit = PAYLOAD_BYTES_MAX + OPTION_BYTES_MAX;
        if data_bytes > limit {
            return Err(ProtoError::TooLong { what: "chunk", found: data_bytes.into(), limit: limit.into() });
        }
        Ok(Self::Chunk { flags, kind, cookie, data_bytes })
    }
}
