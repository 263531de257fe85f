//! The frame codec, without I/O: bytes in any cut go in, whole checked frames come out.
//!
//! ```text
//!   0  type         u8      4  body bytes u32     12  CRC-32C of bytes 0..12  u32
//!   1  version      u8      8  CRC-32C of the body u32
//!   2  flags, zero  u16    16  body
//! ```
//!
//! All integers are little endian. Invariants:
//!
//! - nothing of a body is kept before its header was checked, because only the header bounds it;
//! - a body is at most [`Kind::body_bytes_max`] bytes, so one hostile peer cannot make the decoder grow;
//! - a body is handed on as the slices in which it came: no payload byte is copied, except that a body which comes in
//!   crumbs is put together, because each crumb keeps a whole datagram buffer alive;
//! - after the first error the decoder gives nothing but that error: a stream that broke once has lost its boundaries.

use std::collections::VecDeque;

use bytes::{Buf, BufMut, Bytes, BytesMut};

use crate::fault::{Classify, Fault};
use crate::limits;

/// Bytes of a frame header.
pub const HEADER_BYTES: usize = 16;
/// Version of every frame of this protocol.
pub const FRAME_VERSION: u8 = 1;

/// Pieces shorter than this count as crumbs. Ordinary datagrams carry more.
const CRUMB_BYTES: usize = 1024;
/// So many pieces are looked at together when deciding whether they are crumbs.
const CRUMB_RUN: usize = 64;

/// What a frame is. The number is its type byte.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(u8)]
pub enum Kind {
    /// Agent's first frame of the control stream.
    Hello = 1,
    /// Gateway's answer to it.
    HelloOk = 2,
    /// Gateway's refusal of the connection.
    Refused = 3,
    /// Clock question, from the agent.
    Ping = 4,
    /// Clock answer.
    Pong = 5,
    /// The gateway asks the agent to go elsewhere.
    Redirect = 6,
    /// First frame of every connection over TCP, from the agent.
    Join = 7,
    /// Last frame of the control stream over TCP.
    Close = 8,
    /// How a disk stands with its agent.
    Report = 9,
    /// Agent's first frame of a disk stream.
    OpenDisk = 16,
    /// Gateway's consent.
    DiskOpened = 17,
    /// Gateway's refusal of a disk stream, at its start or later.
    DiskRefused = 18,
    /// One record, as its bytes.
    Record = 19,
    /// How many record bytes the agent may send in all.
    Credit = 20,
    /// How far records are journaled and vaulted.
    Ack = 21,
    /// A newer epoch exists: this stream is over.
    Fenced = 22,
    /// Agent's last frame of a disk stream.
    CloseDisk = 23,
    /// Chunks that an agent with a new epoch compares, before the gateway's consent.
    Touched = 24,
    /// The agent waits for credit.
    Ask = 25,
}

impl Kind {
    /// Every kind, in the order of its number.
    pub const ALL: [Self; 19] = [
        Self::Hello,
        Self::HelloOk,
        Self::Refused,
        Self::Ping,
        Self::Pong,
        Self::Redirect,
        Self::Join,
        Self::Close,
        Self::Report,
        Self::OpenDisk,
        Self::DiskOpened,
        Self::DiskRefused,
        Self::Record,
        Self::Credit,
        Self::Ack,
        Self::Fenced,
        Self::CloseDisk,
        Self::Touched,
        Self::Ask,
    ];

    fn from_byte(byte: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| *kind as u8 == byte)
    }

    /// Largest body of such a frame, in bytes.
    #[must_use]
    pub const fn body_bytes_max(self) -> usize {
        match self {
            Self::Record => limits::FRAME_BODY_BYTES_MAX,
            _ => limits::CONTROL_BODY_BYTES_MAX,
        }
    }
}

/// Why bytes are no frame.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// The header does not match its checksum: the stream is not one of frames, or was altered.
    #[error("frame header does not match its CRC-32C")]
    HeaderCrc,
    /// A version that this side does not speak.
    #[error("frame version {found} is not spoken here: this side speaks version {FRAME_VERSION}")]
    Version {
        /// The version byte.
        found: u8,
    },
    /// A type that this version does not have.
    #[error("frame type {found} does not exist in version {FRAME_VERSION}")]
    Type {
        /// The type byte.
        found: u8,
    },
    /// Flags that this version does not have.
    #[error("frame flags {found:#06x} do not exist in version {FRAME_VERSION}")]
    Flags {
        /// The flags.
        found: u16,
    },
    /// A body above the limit of its kind.
    #[error("{kind:?} frame announces {found_bytes} bytes: the limit is {max_bytes}")]
    Oversized {
        /// What the frame is.
        kind: Kind,
        /// The length announced.
        found_bytes: u32,
        /// The limit.
        max_bytes: usize,
    },
    /// The body does not match its checksum.
    #[error("body of a {kind:?} frame does not match its CRC-32C")]
    BodyCrc {
        /// What the frame is.
        kind: Kind,
    },
    /// The stream ended inside a frame.
    #[error("the stream ended inside a frame")]
    Cut,
}

impl Classify for FrameError {
    fn fault(&self) -> Fault {
        match self {
            Self::HeaderCrc | Self::BodyCrc { .. } => Fault::Corrupt,
            Self::Version { .. } | Self::Type { .. } | Self::Flags { .. } | Self::Oversized { .. } => Fault::Reject,
            Self::Cut => Fault::Retry,
        }
    }
}

/// A frame whose header and body were checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// What it is.
    pub kind: Kind,
    /// CRC-32C of the body.
    pub body_crc: u32,
    /// Length of the body.
    pub body_bytes: usize,
    /// The body, in pieces.
    pub body: Vec<Bytes>,
}

impl Frame {
    /// The body in one piece; copies only if it came in several.
    #[must_use]
    pub fn contiguous(self) -> Bytes {
        join(self.body, self.body_bytes)
    }
}

fn join(mut pieces: Vec<Bytes>, bytes: usize) -> Bytes {
    if pieces.len() == 1
        && let Some(piece) = pieces.pop()
    {
        return piece;
    }
    let mut whole = BytesMut::with_capacity(bytes);
    pieces.iter().for_each(|piece| whole.put_slice(piece));
    whole.freeze()
}

/// CRC-32C (Castagnoli) of pieces, as one run of bytes.
#[must_use]
pub fn crc32c<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> u32 {
    let mut crc = crc_fast::Digest::new(crc_fast::CrcAlgorithm::Crc32Iscsi);
    pieces.into_iter().for_each(|piece| crc.update(piece));
    crc.finalize() as u32
}

/// The header of a frame.
#[must_use]
pub fn encode_header(kind: Kind, body_bytes: u32, body_crc: u32) -> [u8; HEADER_BYTES] {
    let mut out = [0; HEADER_BYTES];
    out[0] = kind as u8;
    out[1] = FRAME_VERSION;
    out[4..8].copy_from_slice(&body_bytes.to_le_bytes());
    out[8..12].copy_from_slice(&body_crc.to_le_bytes());
    let header_crc = crc32c([&out[..12]]);
    out[12..16].copy_from_slice(&header_crc.to_le_bytes());
    out
}

/// A header that was checked.
#[derive(Clone, Copy)]
struct Header {
    kind: Kind,
    body_bytes: usize,
    body_crc: u32,
}

fn decode_header(bytes: &[u8; HEADER_BYTES]) -> Result<Header, FrameError> {
    let word = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
    if crc32c([&bytes[..12]]) != word(12) {
        return Err(FrameError::HeaderCrc);
    }
    if bytes[1] != FRAME_VERSION {
        return Err(FrameError::Version { found: bytes[1] });
    }
    let kind = Kind::from_byte(bytes[0]).ok_or(FrameError::Type { found: bytes[0] })?;
    let flags = u16::from_le_bytes([bytes[2], bytes[3]]);
    if flags != 0 {
        return Err(FrameError::Flags { found: flags });
    }
    let (found_bytes, max_bytes) = (word(4), kind.body_bytes_max());
    if found_bytes as usize > max_bytes {
        return Err(FrameError::Oversized { kind, found_bytes, max_bytes });
    }
    Ok(Header { kind, body_bytes: found_bytes as usize, body_crc: word(8) })
}

/// A frame that has begun.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Due {
    /// What it is.
    pub kind: Kind,
    /// Bytes of its body in all.
    pub body_bytes: usize,
    /// Those that have come.
    pub have_bytes: usize,
}

/// A body while it comes in.
struct Body {
    header: Header,
    pieces: Vec<Bytes>,
    have_bytes: usize,
    crc: crc_fast::Digest,
    /// Pieces from this index on were not yet looked at for crumbs.
    run_start: usize,
    run_bytes: usize,
}

impl Body {
    fn new(header: Header) -> Self {
        Self {
            header,
            pieces: Vec::new(),
            have_bytes: 0,
            crc: crc_fast::Digest::new(crc_fast::CrcAlgorithm::Crc32Iscsi),
            run_start: 0,
            run_bytes: 0,
        }
    }

    fn push(&mut self, piece: Bytes) {
        // Checked as it comes, while the bytes are still in the processor's cache.
        self.crc.update(&piece);
        self.have_bytes += piece.len();
        self.run_bytes += piece.len();
        self.pieces.push(piece);
        if self.pieces.len() - self.run_start == CRUMB_RUN {
            if self.run_bytes < CRUMB_RUN * CRUMB_BYTES {
                let crumbs = self.pieces.split_off(self.run_start);
                self.pieces.push(join(crumbs, self.run_bytes));
            }
            self.run_start = self.pieces.len();
            self.run_bytes = 0;
        }
    }

    fn finish(self) -> Result<Frame, FrameError> {
        let Header { kind, body_bytes, body_crc } = self.header;
        if self.crc.finalize() as u32 != body_crc {
            return Err(FrameError::BodyCrc { kind });
        }
        Ok(Frame { kind, body_crc, body_bytes, body: self.pieces })
    }
}

/// Turns the chunks of one stream into frames.
#[derive(Default)]
pub struct Decoder {
    chunks: VecDeque<Bytes>,
    queued_bytes: usize,
    body: Option<Body>,
    failed: Option<FrameError>,
}

impl Decoder {
    /// A decoder at the start of a stream.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes the next bytes of the stream. Call [`Decoder::next_frame`] until it gives `None` before pushing more, so
    /// that no more than a chunk waits inside.
    pub fn push(&mut self, chunk: Bytes) {
        if !chunk.is_empty() && self.failed.is_none() {
            self.queued_bytes += chunk.len();
            self.chunks.push_back(chunk);
        }
    }

    /// The next whole frame, or `None` if more bytes are needed.
    ///
    /// # Errors
    /// [`FrameError`], and the same one from then on.
    pub fn next_frame(&mut self) -> Result<Option<Frame>, FrameError> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        self.advance().inspect_err(|error| {
            self.failed = Some(error.clone());
            self.chunks.clear();
            self.queued_bytes = 0;
            self.body = None;
        })
    }

    /// The frame whose header has come and of whose body a part is still to come.
    #[must_use]
    pub fn due(&self) -> Option<Due> {
        let body = self.body.as_ref()?;
        let Header { kind, body_bytes, .. } = body.header;
        Some(Due { kind, body_bytes, have_bytes: body.have_bytes })
    }

    /// To be asked when the stream ended.
    ///
    /// # Errors
    /// [`FrameError::Cut`] if it ended inside a frame, or the error that came before.
    pub fn finish(&self) -> Result<(), FrameError> {
        match &self.failed {
            Some(error) => Err(error.clone()),
            None if self.body.is_some() || self.queued_bytes > 0 => Err(FrameError::Cut),
            None => Ok(()),
        }
    }

    fn advance(&mut self) -> Result<Option<Frame>, FrameError> {
        if self.body.is_none() {
            if self.queued_bytes < HEADER_BYTES {
                return Ok(None);
            }
            let header = decode_header(&self.take_header())?;
            self.body = Some(Body::new(header));
        }
        let Some(body) = &mut self.body else { return Ok(None) };
        while body.have_bytes < body.header.body_bytes {
            let Some(mut chunk) = self.chunks.pop_front() else { return Ok(None) };
            let wanted_bytes = body.header.body_bytes - body.have_bytes;
            if chunk.len() > wanted_bytes {
                let rest = chunk.split_off(wanted_bytes);
                self.chunks.push_front(rest);
            }
            self.queued_bytes -= chunk.len();
            body.push(chunk);
        }
        self.body.take().map(Body::finish).transpose()
    }

    fn take_header(&mut self) -> [u8; HEADER_BYTES] {
        let mut header = [0; HEADER_BYTES];
        let mut filled = 0;
        while filled < HEADER_BYTES {
            let Some(chunk) = self.chunks.front_mut() else { break };
            let bytes = chunk.len().min(HEADER_BYTES - filled);
            chunk.copy_to_slice(&mut header[filled..filled + bytes]);
            filled += bytes;
            if chunk.is_empty() {
                self.chunks.pop_front();
            }
        }
        self.queued_bytes -= filled;
        header
    }
}

#[cfg(test)]
mod tests;
