//! A small blocking client: one request at a time. For demonstrations, tests and tools, not for speed.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use bytes::BufMut;

use super::proto::{
    self, Command, Fields, OptionHead, OptionReplyHead, ProtoError, ReplyHead, Request, chunk, command_flags,
    handshake_flags, info, option, option_reply, transmission_flags,
};
use super::{Listen, StatusExtent, ZeroFlags};
use crate::fault::{Classify, Fault};

/// Longest range of one zeroing, trimming or block status request: a length has 32 bits, and this one keeps alignment.
const RANGE_BYTES_MAX: u64 = 1 << 30;
/// Most replies to one option that are read: a server that lists more is not ours.
const OPTION_REPLIES_MAX: usize = 4096;
/// Largest data chunk besides the payload itself.
const CHUNK_FIELDS_BYTES: usize = 8;

/// Why a request of the client failed.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens, or it cannot be reached.
    #[error("cannot connect to {listen}")]
    Connect {
        /// The address.
        listen: Listen,
        /// What the system said.
        source: io::Error,
    },
    /// The connection broke or timed out.
    #[error("the NBD connection failed")]
    Io(#[from] io::Error),
    /// The server sends something else than NBD.
    #[error("the NBD server broke the protocol")]
    Proto(#[from] ProtoError),
    /// The server has no such export or does not want this client.
    #[error("the NBD server refused export {export:?}: {text} (code {code:#x})")]
    Refused {
        /// The export asked for.
        export: String,
        /// The code of the reply.
        code: u32,
        /// The server's words.
        text: String,
    },
    /// A request failed at the server.
    #[error("NBD {command} at offset {offset} failed with error {code}: {text}")]
    Request {
        /// What was asked.
        command: &'static str,
        /// Where.
        offset: u64,
        /// The error number of the protocol: 1 not permitted, 5 I/O, 22 invalid, 28 no space, 95 not supported.
        code: u32,
        /// The server's words, empty if it gave none.
        text: String,
    },
}

impl Classify for ClientError {
    fn fault(&self) -> Fault {
        match self {
            Self::Connect { .. } | Self::Io(_) => Fault::Retry,
            Self::Proto(_) | Self::Refused { .. } | Self::Request { .. } => Fault::Reject,
        }
    }
}

enum Stream {
    Unix(UnixStream),
    Tcp(TcpStream),
}

impl Stream {
    fn connect(listen: &Listen) -> io::Result<Self> {
        Ok(match listen {
            Listen::Unix(path) => Self::Unix(UnixStream::connect(path)?),
            Listen::Tcp(address) => {
                let stream = TcpStream::connect(address)?;
                stream.set_nodelay(true)?;
                Self::Tcp(stream)
            }
        })
    }

    fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Self::Unix(stream) => stream.write_all(bytes),
            Self::Tcp(stream) => stream.write_all(bytes),
        }
    }

    fn receive(&mut self, buf: &mut [u8]) -> io::Result<()> {
        match self {
            Self::Unix(stream) => stream.read_exact(buf),
            Self::Tcp(stream) => stream.read_exact(buf),
        }
    }

    fn array<const N: usize>(&mut self) -> io::Result<[u8; N]> {
        let mut bytes = [0; N];
        self.receive(&mut bytes)?;
        Ok(bytes)
    }
}

/// A connection to one export.
pub struct Client {
    stream: Stream,
    size_bytes: u64,
    flags: u16,
    structured: bool,
    allocation: bool,
    cookie: u64,
}

impl Client {
    /// Connects and chooses an export; the empty name stands for the server's default.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn connect(listen: &Listen, export: &str) -> Result<Self, ClientError> {
        Self::choose(Handshake::start(listen)?, export)
    }

    /// The same over a socket that is connected already.
    #[cfg(any(test, feature = "fuzzing"))]
    pub(crate) fn over(stream: UnixStream, export: &str) -> Result<Self, ClientError> {
        Self::choose(Handshake::greet(Stream::Unix(stream))?, export)
    }

    fn choose(mut handshake: Handshake, export: &str) -> Result<Self, ClientError> {
        let (structured, _) = handshake.ask(option::STRUCTURED_REPLY, &[])?;
        let mut allocation = false;
        if structured {
            let mut data = Vec::new();
            proto::encode_string(&mut data, export);
            data.put_u32(1);
            proto::encode_string(&mut data, proto::CONTEXT_ALLOCATION);
            let (known, replies) = handshake.ask(option::SET_META_CONTEXT, &data)?;
            allocation = known && replies.iter().any(|(reply, _)| *reply == option_reply::META_CONTEXT);
        }
        let mut data = Vec::new();
        proto::encode_string(&mut data, export);
        data.put_u16(0);
        let (gone, replies) = handshake.ask(option::GO, &data)?;
        if !gone {
            let (code, text) = replies.last().cloned().unwrap_or_default();
            let text = String::from_utf8_lossy(&text).into_owned();
            return Err(ClientError::Refused { export: export.to_owned(), code, text });
        }
        let (size_bytes, flags) = replies
            .iter()
            .filter(|(reply, _)| *reply == option_reply::INFO)
            .find_map(|(_, data)| {
                let mut fields = Fields(data);
                (fields.u16()? == info::EXPORT).then_some((fields.u64()?, fields.u16()?))
            })
            .ok_or(ProtoError::Malformed { what: "answer to GO" })?;
        Ok(Self { stream: handshake.stream, size_bytes, flags, structured, allocation, cookie: 0 })
    }

    /// The names of a server's exports.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn list(listen: &Listen) -> Result<Vec<String>, ClientError> {
        let mut handshake = Handshake::start(listen)?;
        let (listed, replies) = handshake.ask(option::LIST, &[])?;
        let malformed = ClientError::Proto(ProtoError::Malformed { what: "answer to LIST" });
        if !listed {
            return Err(malformed);
        }
        let name = |data: &Vec<u8>| Fields(data).string().map(str::to_owned);
        let servers = replies.iter().filter(|(reply, _)| *reply == option_reply::SERVER);
        let names = servers.map(|(_, data)| name(data)).collect::<Option<Vec<_>>>().ok_or(malformed)?;
        handshake.ask(option::ABORT, &[])?;
        Ok(names)
    }

    /// Size of the export in bytes.
    #[must_use]
    pub fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// Whether the export refuses writes.
    #[must_use]
    pub fn read_only(&self) -> bool {
        self.flags & transmission_flags::READ_ONLY != 0
    }

    /// Whether several connections see each other's completed and flushed writes.
    #[must_use]
    pub fn multi_conn(&self) -> bool {
        self.flags & transmission_flags::CAN_MULTI_CONN != 0
    }

    /// Bounds every later wait for the server; `None` waits for ever.
    ///
    /// # Errors
    /// If the socket refuses it.
    pub fn set_timeout(&self, limit: Option<Duration>) -> io::Result<()> {
        match &self.stream {
            Stream::Unix(stream) => stream.set_read_timeout(limit).and(stream.set_write_timeout(limit)),
            Stream::Tcp(stream) => stream.set_read_timeout(limit).and(stream.set_write_timeout(limit)),
        }
    }

    /// Fills `buf` from `offset`.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn read(&mut self, offset: u64, buf: &mut [u8]) -> Result<(), ClientError> {
        let mut at = offset;
        for piece in buf.chunks_mut(proto::PAYLOAD_BYTES_MAX as usize) {
            let request = self.send(Command::Read, 0, at, piece.len() as u32, &[])?;
            self.reply(&request, Some(piece))?;
            at += piece.len() as u64;
        }
        Ok(())
    }

    /// Writes `data`; with `fua` durable before it returns.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn write(&mut self, offset: u64, data: &[u8], fua: bool) -> Result<(), ClientError> {
        let mut at = offset;
        for piece in data.chunks(proto::PAYLOAD_BYTES_MAX as usize) {
            let request = self.send(Command::Write, fua_flag(fua), at, piece.len() as u32, piece)?;
            self.reply(&request, None)?;
            at += piece.len() as u64;
        }
        Ok(())
    }

    /// Makes every write that returned before durable.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn flush(&mut self) -> Result<(), ClientError> {
        let request = self.send(Command::Flush, 0, 0, 0, &[])?;
        self.reply(&request, None).map(drop)
    }

    /// Gives a range up.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn trim(&mut self, offset: u64, length: u64, fua: bool) -> Result<(), ClientError> {
        self.over_range(Command::Trim, fua_flag(fua), offset, length)
    }

    /// Makes a range read as zeroes.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn write_zeroes(&mut self, offset: u64, length: u64, flags: ZeroFlags) -> Result<(), ClientError> {
        let no_hole = if flags.no_hole { command_flags::NO_HOLE } else { 0 };
        let fast = if flags.fast { command_flags::FAST_ZERO } else { 0 };
        self.over_range(Command::WriteZeroes, fua_flag(flags.fua) | no_hole | fast, offset, length)
    }

    fn over_range(&mut self, command: Command, flags: u16, offset: u64, length: u64) -> Result<(), ClientError> {
        let mut at = offset;
        let mut left = length;
        while left > 0 {
            let piece = left.min(RANGE_BYTES_MAX);
            let request = self.send(command, flags, at, piece as u32, &[])?;
            self.reply(&request, None)?;
            at += piece;
            left -= piece;
        }
        Ok(())
    }

    /// What is allocated and what is zero in a range, as far as the server tells in one answer.
    ///
    /// # Errors
    /// [`ClientError`]; also if the server has no block status.
    pub fn block_status(&mut self, offset: u64, length: u64) -> Result<Vec<StatusExtent>, ClientError> {
        if !self.allocation {
            let text = "the server offers no block status".to_owned();
            return Err(ClientError::Request { command: Command::BlockStatus.as_str(), offset, code: 95, text });
        }
        let request = self.send(Command::BlockStatus, 0, offset, length.min(RANGE_BYTES_MAX) as u32, &[])?;
        self.reply(&request, None)
    }

    /// Ends the session in order.
    ///
    /// # Errors
    /// If the farewell cannot be sent.
    pub fn disconnect(mut self) -> Result<(), ClientError> {
        self.send(Command::Disconnect, 0, 0, 0, &[]).map(drop)
    }

    fn send(
        &mut self,
        command: Command,
        flags: u16,
        offset: u64,
        length: u32,
        data: &[u8],
    ) -> Result<Request, ClientError> {
        self.cookie += 1;
        let request = Request { flags, command, cookie: self.cookie, offset, length };
        self.stream.send(&request.encode())?;
        self.stream.send(data)?;
        Ok(request)
    }

    /// Reads the whole reply: data into `into`, block status as the result.
    fn reply(&mut self, request: &Request, mut into: Option<&mut [u8]>) -> Result<Vec<StatusExtent>, ClientError> {
        let mut failed: Option<(u32, String)> = None;
        let mut extents = Vec::new();
        let mut filled = 0;
        loop {
            let (cookie, last) = match self.reply_head()? {
                ReplyHead::Simple { error, cookie } => {
                    if error != 0 {
                        failed = Some((error, String::new()));
                    } else if let Some(buf) = into.as_deref_mut() {
                        if self.structured {
                            return Err(ProtoError::Malformed { what: "reply to a read" }.into());
                        }
                        self.stream.receive(buf)?;
                        filled = buf.len();
                    }
                    (cookie, true)
                }
                ReplyHead::Chunk { flags, kind, cookie, data_bytes } => {
                    let data_bytes = data_bytes as usize;
                    match (kind, into.as_deref_mut()) {
                        (chunk::OFFSET_DATA | chunk::OFFSET_HOLE, Some(buf)) => {
                            filled += self.read_chunk(kind, data_bytes, request.offset, buf)?;
                        }
                        _ => self.other_chunk(kind, data_bytes, &mut extents, &mut failed)?,
                    }
                    (cookie, flags & chunk::DONE != 0)
                }
            };
            if cookie != request.cookie {
                return Err(ProtoError::Malformed { what: "cookie of a reply" }.into());
            }
            if last {
                break;
            }
        }
        if let Some((code, text)) = failed {
            let (command, offset) = (request.command.as_str(), request.offset);
            return Err(ClientError::Request { command, offset, code, text });
        }
        if into.is_some_and(|buf| buf.len() != filled) {
            return Err(ProtoError::Malformed { what: "reply to a read" }.into());
        }
        Ok(extents)
    }

    fn reply_head(&mut self) -> Result<ReplyHead, ClientError> {
        let magic = self.stream.array::<4>()?;
        let mut head = [0; proto::CHUNK_HEAD_BYTES];
        let bytes = ReplyHead::bytes(u32::from_be_bytes(magic))?;
        head[..4].copy_from_slice(&magic);
        self.stream.receive(&mut head[4..bytes])?;
        Ok(ReplyHead::decode(&head[..bytes])?)
    }

    /// Data or a hole into its place in `buf`; returns how much of it that fills.
    fn read_chunk(&mut self, kind: u16, bytes: usize, offset: u64, buf: &mut [u8]) -> Result<usize, ClientError> {
        let malformed = || ProtoError::Malformed { what: "chunk of a read" };
        let at = |field: u64| usize::try_from(field.checked_sub(offset)?).ok();
        if bytes < CHUNK_FIELDS_BYTES {
            return Err(malformed().into());
        }
        let start = at(u64::from_be_bytes(self.stream.array()?)).ok_or_else(malformed)?;
        let hole = kind == chunk::OFFSET_HOLE;
        let length = if hole { u32::from_be_bytes(self.stream.array()?) as usize } else { bytes - CHUNK_FIELDS_BYTES };
        let end = start.checked_add(length).ok_or_else(malformed)?;
        let place = buf.get_mut(start..end).ok_or_else(malformed)?;
        if hole {
            place.fill(0);
        } else {
            self.stream.receive(place)?;
        }
        Ok(length)
    }

    fn other_chunk(
        &mut self,
        kind: u16,
        bytes: usize,
        extents: &mut Vec<StatusExtent>,
        failed: &mut Option<(u32, String)>,
    ) -> Result<(), ClientError> {
        let mut data = vec![0; bytes];
        self.stream.receive(&mut data)?;
        let mut fields = Fields(&data);
        if kind & chunk::ERROR_BIT != 0 {
            let mut read = || {
                let code = fields.u32()?;
                let length = fields.u16()?;
                Some((code, String::from_utf8_lossy(fields.bytes(length.into())?).into_owned()))
            };
            *failed = Some(read().ok_or(ProtoError::Malformed { what: "error chunk" })?);
        } else if kind == chunk::BLOCK_STATUS {
            let _context = fields.u32();
            while let (Some(length), Some(bits)) = (fields.u32(), fields.u32()) {
                extents.push(StatusExtent {
                    length: length.into(),
                    hole: bits & proto::allocation::HOLE != 0,
                    zero: bits & proto::allocation::ZERO != 0,
                });
            }
        }
        Ok(())
    }
}

fn fua_flag(fua: bool) -> u16 {
    if fua { command_flags::FUA } else { 0 }
}

struct Handshake {
    stream: Stream,
}

impl Handshake {
    fn start(listen: &Listen) -> Result<Self, ClientError> {
        let connect_error = |source| ClientError::Connect { listen: listen.clone(), source };
        Self::greet(Stream::connect(listen).map_err(connect_error)?)
    }

    fn greet(mut stream: Stream) -> Result<Self, ClientError> {
        let greeting: [u8; proto::GREETING_BYTES] = stream.array()?;
        let mut fields = Fields(&greeting);
        let what = "greeting";
        let mut read = || Some((fields.u64()?, fields.u64()?, u32::from(fields.u16()?)));
        let (magic, option_magic, offered) = read().ok_or(ProtoError::Malformed { what })?;
        if magic != proto::GREETING_MAGIC || option_magic != proto::OPTION_MAGIC {
            return Err(ProtoError::Magic { what, found: magic }.into());
        }
        let wanted = handshake_flags::FIXED_NEWSTYLE | handshake_flags::NO_ZEROES;
        if offered & handshake_flags::FIXED_NEWSTYLE == 0 {
            return Err(ProtoError::Malformed { what }.into());
        }
        stream.send(&(offered & wanted).to_be_bytes())?;
        Ok(Self { stream })
    }

    /// Sends an option and collects its replies. Whether it was acknowledged; if not, the last reply is the error.
    #[expect(clippy::type_complexity, reason = "(reply type, data) pairs, used in this file only")]
    fn ask(&mut self, option: u32, data: &[u8]) -> Result<(bool, Vec<(u32, Vec<u8>)>), ClientError> {
        let mut out = Vec::new();
        OptionHead { option, data_bytes: data.len() as u32 }.encode(&mut out);
        out.extend_from_slice(data);
        self.stream.send(&out)?;
        let mut replies = Vec::new();
        while replies.len() < OPTION_REPLIES_MAX {
            let head = OptionReplyHead::decode(&self.stream.array::<{ proto::OPTION_REPLY_HEAD_BYTES }>()?)?;
            let mut data = vec![0; head.data_bytes as usize];
            self.stream.receive(&mut data)?;
            if head.option != option {
                return Err(ProtoError::Malformed { what: "option reply" }.into());
            }
            if head.reply == option_reply::ACK {
                return Ok((true, replies));
            }
            replies.push((head.reply, data));
            if head.reply & option_reply::ERROR_BIT != 0 {
                return Ok((false, replies));
            }
        }
        let (found, limit) = (OPTION_REPLIES_MAX as u64 + 1, OPTION_REPLIES_MAX as u64);
        Err(ProtoError::TooLong { what: "list of option replies", found, limit }.into())
    }
}
