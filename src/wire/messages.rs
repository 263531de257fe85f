//! Every frame but the record as a type, with its binary layout.
//!
//! Control frames are small fixed binary, not a text format: acks and credit are on the hot path, and a decoder that
//! knows every length can be tested to its last byte. Integers are little endian; a text is a u16 length and UTF-8; a
//! list is a u16 count and its items; an option is a byte 0 or 1 and its value. A body must end where its last field
//! ends. The layouts stand in `docs/PROTOCOL.md`.

mod report;

use std::ops::Range;

use bytes::{BufMut, Bytes, BytesMut};

pub use self::report::{Condition, Report};
use super::code::Code;
use super::frame::{self, Frame, Kind};
use crate::fault::{Classify, Fault};
use crate::limits;
use crate::types::{Chain, DiskId, Epoch, Id128, Micros, PointId, Seq};

/// Longest text in a frame that people read (refusals, software names), in bytes.
pub const TEXT_BYTES_MAX: usize = 1024;
/// Most gateways in a redirect: more choice does not help an agent that tries one after the other.
pub const REDIRECT_GATEWAYS_MAX: usize = 16;
/// Most runs of chunks in one frame: they fill it.
pub const TOUCHED_RUNS_PER_FRAME: usize = 2000;
const _: () = assert!(2 + 8 * TOUCHED_RUNS_PER_FRAME <= limits::CONTROL_BODY_BYTES_MAX, "they fit a control frame");

/// The agent introduces itself; first frame of the control stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hello {
    /// Lowest protocol version it speaks.
    pub protocol_min: u16,
    /// Highest protocol version it speaks.
    pub protocol_max: u16,
    /// The vault it protects into; must be that of its certificate and of the gateway.
    pub vault: Id128,
    /// Its id; must be that of its certificate.
    pub agent: String,
    /// Name and version of the software, for the log.
    pub software: String,
}

/// The gateway's consent to the connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HelloOk {
    /// The protocol version that both use from here on.
    pub protocol: u16,
    /// The gateway's vault.
    pub vault: Id128,
    /// The gateway's id.
    pub gateway: String,
    /// Name and version of the software, for the log.
    pub software: String,
}

/// A refusal with its reason, of the connection or of one disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    /// The reason as a number.
    pub code: Code,
    /// What is wrong and what to do, for people.
    pub text: String,
}

/// The agent asks for the gateway's clock, and says how far it found it from its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ping {
    /// Returned as it is; the agent's own monotonic clock in microseconds.
    pub token: u64,
    /// Gateway's wall clock minus the agent's, in microseconds.
    pub offset_micros: i64,
    /// How far that may be off; the largest number before the first answer.
    pub uncertainty_micros: u32,
}

/// The gateway's clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pong {
    /// From the ping.
    pub token: u64,
    /// Gateway's wall clock when the ping was read.
    pub received: Micros,
    /// Gateway's wall clock when the pong was written.
    pub sent: Micros,
}

/// The gateway asks the agent to leave; reserved for drains and overload.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Redirect {
    /// Gateways to try instead, `host:port`, best first; empty if the gateway knows none.
    pub gateways: Vec<String>,
}

/// What a connection over TCP is to be.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(u8)]
pub enum JoinAs {
    /// The control stream of a new session.
    Control = 1,
    /// A further stream of a session that is there.
    Stream = 2,
}

/// Says what a connection over TCP is; its first frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Join {
    /// Name of the session: random, chosen by the agent, and worth something only with the agent's certificate.
    pub session: Id128,
    /// Whether it begins the session.
    pub join_as: JoinAs,
}

/// Why an agent forks a new epoch.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
#[repr(u8)]
pub enum ForkReason {
    /// The disk has no epoch yet.
    NewDisk = 1,
    /// The agent's state was lost or is not trusted after an unclean stop.
    UncleanStart = 2,
    /// The gateway cannot continue the epoch: it lacks records that the agent no longer holds.
    GatewayLost = 3,
    /// The disk was rolled back, replaced or written while the agent was away.
    DiskChanged = 4,
    /// An operator asked for it.
    Operator = 5,
}

impl ForkReason {
    /// Every reason.
    pub const ALL: [Self; 5] =
        [Self::NewDisk, Self::UncleanStart, Self::GatewayLost, Self::DiskChanged, Self::Operator];

    /// The word used in objects and output.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::NewDisk => "new-disk",
            Self::UncleanStart => "unclean-start",
            Self::GatewayLost => "gateway-lost",
            Self::DiskChanged => "disk-changed",
            Self::Operator => "operator",
        }
    }
}

/// How the agent wants to go on with a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Want {
    /// Continue an epoch.
    Resume {
        /// The epoch.
        epoch: Epoch,
        /// Highest seq that the agent knows to be vaulted, or [`Seq::NONE`].
        floor: Seq,
        /// Chain after `floor` (after the fork, if `floor` is [`Seq::NONE`]).
        floor_chain: Chain,
        /// Lowest seq that the agent can still send; one more than its last if it holds nothing.
        first_held: Seq,
    },
    /// Begin a new epoch.
    Fork {
        /// Why.
        reason: ForkReason,
        /// Highest point that the agent knows to be vaulted, with the chain after it.
        floor: Option<(PointId, Chain)>,
    },
}

/// The agent opens a disk; first frame of a disk stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OpenDisk {
    /// The disk; must be one of the agent's certificate.
    pub disk: DiskId,
    /// Its size.
    pub size_bytes: u64,
    /// Random for every agent state: tells a clone from its original.
    pub nonce: Id128,
    /// Resume or fork.
    pub want: Want,
}

/// The gateway's consent to a disk stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DiskOpened {
    /// The epoch that the records must carry.
    pub epoch: Epoch,
    /// The first record that the gateway wants.
    pub next_seq: Seq,
    /// Chain before `next_seq`, if the gateway knows it; always there for a new epoch.
    pub chain: Option<Chain>,
    /// Highest seq of this epoch that is journaled.
    pub journaled: Seq,
    /// Highest seq of this epoch that is vaulted.
    pub vaulted: Seq,
    /// First credit: record bytes that may be sent in all on this stream.
    pub credit_bytes: u64,
}

/// Chunks that records hold of which the agent's state may not know: whoever has a new epoch compares them. Comes before
/// [`DiskOpened`], in as many frames as it takes; if none comes there are no such chunks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Touched {
    /// Numbers of chunks, ascending, with a gap between any two runs, also over the frames of one answer.
    pub runs: Vec<Range<u32>>,
}

/// Credit, which takes the place of what was granted before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Credit {
    /// Record bytes (bodies of record frames) that may be sent in all on this stream. Less than before only after a pause
    /// in which what is missing has lapsed.
    pub granted_bytes: u64,
}

/// How far the gateway has come. Both only grow; `journaled ≥ vaulted`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ack {
    /// Every record up to this one is durable on the gateway's disk or in the vault.
    pub journaled: Seq,
    /// Every record up to this one is durable in the vault.
    pub vaulted: Seq,
}

/// Another epoch took over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fenced {
    /// The newest epoch that the gateway knows of.
    pub newest: Epoch,
}

/// The agent sends no more on this disk stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CloseDisk {
    /// The last seq that was sent, or the one before the first wanted.
    pub last: Seq,
}

/// The agent waits for credit, and sends nothing more before it has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ask {
    /// Record bytes that it must be allowed to send in all on this stream for its next record.
    pub wanted_bytes: u64,
}

/// Why the body of a frame is no message.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MessageError {
    /// The body ends before its fields do.
    #[error("{kind:?} frame is cut short in field {field}")]
    Short {
        /// What the frame is.
        kind: Kind,
        /// The field that is not whole.
        field: &'static str,
    },
    /// Bytes after the last field.
    #[error("{kind:?} frame has {extra_bytes} bytes too many")]
    Long {
        /// What the frame is.
        kind: Kind,
        /// Bytes left over.
        extra_bytes: usize,
    },
    /// A field out of its range.
    #[error("{kind:?} frame: field {field} is out of range")]
    Field {
        /// What the frame is.
        kind: Kind,
        /// Which one.
        field: &'static str,
    },
    /// Another frame than the one that may come here.
    #[error("{found:?} frame came where {expected} belongs")]
    Unexpected {
        /// What came.
        found: Kind,
        /// What may come.
        expected: &'static str,
    },
}

impl Classify for MessageError {
    fn fault(&self) -> Fault {
        Fault::Reject
    }
}

/// Any frame but a record, decoded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Message {
    /// See [`Hello`].
    Hello(Hello),
    /// See [`HelloOk`].
    HelloOk(HelloOk),
    /// See [`Refused`]; refuses the connection.
    Refused(Refused),
    /// See [`Ping`].
    Ping(Ping),
    /// See [`Pong`].
    Pong(Pong),
    /// See [`Redirect`].
    Redirect(Redirect),
    /// See [`Join`].
    Join(Join),
    /// See [`Refused`]; ends the session, over TCP.
    Close(Refused),
    /// See [`Report`].
    Report(Report),
    /// See [`OpenDisk`].
    OpenDisk(OpenDisk),
    /// See [`DiskOpened`].
    DiskOpened(DiskOpened),
    /// See [`Refused`]; refuses one disk.
    DiskRefused(Refused),
    /// See [`Credit`].
    Credit(Credit),
    /// See [`Ack`].
    Ack(Ack),
    /// See [`Fenced`].
    Fenced(Fenced),
    /// See [`CloseDisk`].
    CloseDisk(CloseDisk),
    /// See [`Touched`].
    Touched(Touched),
    /// See [`Ask`].
    Ask(Ask),
}

impl Message {
    /// What frame it makes.
    #[must_use]
    pub const fn kind(&self) -> Kind {
        match self {
            Self::Hello(_) => Kind::Hello,
            Self::HelloOk(_) => Kind::HelloOk,
            Self::Refused(_) => Kind::Refused,
            Self::Ping(_) => Kind::Ping,
            Self::Pong(_) => Kind::Pong,
            Self::Redirect(_) => Kind::Redirect,
            Self::Join(_) => Kind::Join,
            Self::Close(_) => Kind::Close,
            Self::Report(_) => Kind::Report,
            Self::OpenDisk(_) => Kind::OpenDisk,
            Self::DiskOpened(_) => Kind::DiskOpened,
            Self::DiskRefused(_) => Kind::DiskRefused,
            Self::Credit(_) => Kind::Credit,
            Self::Ack(_) => Kind::Ack,
            Self::Fenced(_) => Kind::Fenced,
            Self::CloseDisk(_) => Kind::CloseDisk,
            Self::Touched(_) => Kind::Touched,
            Self::Ask(_) => Kind::Ask,
        }
    }

    /// The whole frame: header and body. Texts and lists above their limit are cut.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let mut out = BytesMut::with_capacity(128);
        out.put_bytes(0, frame::HEADER_BYTES);
        self.put_body(&mut out);
        let body = &out[frame::HEADER_BYTES..];
        let header = frame::encode_header(self.kind(), body.len() as u32, frame::crc32c([body]));
        out[..frame::HEADER_BYTES].copy_from_slice(&header);
        out.freeze()
    }

    fn put_body(&self, out: &mut BytesMut) {
        match self {
            Self::Hello(hello) => {
                out.put_u16_le(hello.protocol_min);
                out.put_u16_le(hello.protocol_max);
                out.put_slice(&hello.vault.0);
                put_text(out, &hello.agent);
                put_text(out, &hello.software);
            }
            Self::HelloOk(ok) => {
                out.put_u16_le(ok.protocol);
                out.put_slice(&ok.vault.0);
                put_text(out, &ok.gateway);
                put_text(out, &ok.software);
            }
            Self::Refused(refused) | Self::DiskRefused(refused) | Self::Close(refused) => {
                out.put_u32_le(refused.code.number());
                put_text(out, &refused.text);
            }
            Self::Ping(ping) => {
                out.put_u64_le(ping.token);
                out.put_i64_le(ping.offset_micros);
                out.put_u32_le(ping.uncertainty_micros);
            }
            Self::Pong(pong) => {
                out.put_u64_le(pong.token);
                out.put_u64_le(pong.received.0);
                out.put_u64_le(pong.sent.0);
            }
            Self::Redirect(redirect) => {
                let gateways = &redirect.gateways[..redirect.gateways.len().min(REDIRECT_GATEWAYS_MAX)];
                out.put_u16_le(gateways.len() as u16);
                gateways.iter().for_each(|gateway| put_text(out, gateway));
            }
            Self::Join(join) => {
                out.put_slice(&join.session.0);
                out.put_u8(join.join_as as u8);
            }
            Self::Report(told) => report::put(out, told),
            Self::OpenDisk(open) => put_open_disk(out, open),
            Self::DiskOpened(opened) => {
                out.put_u64_le(opened.epoch.0);
                out.put_u64_le(opened.next_seq.0);
                out.put_u64_le(opened.journaled.0);
                out.put_u64_le(opened.vaulted.0);
                out.put_u64_le(opened.credit_bytes);
                out.put_u8(u8::from(opened.chain.is_some()));
                opened.chain.iter().for_each(|chain| out.put_slice(&chain.0));
            }
            Self::Credit(credit) => out.put_u64_le(credit.granted_bytes),
            Self::Ack(ack) => {
                out.put_u64_le(ack.journaled.0);
                out.put_u64_le(ack.vaulted.0);
            }
            Self::Fenced(fenced) => out.put_u64_le(fenced.newest.0),
            Self::CloseDisk(close) => out.put_u64_le(close.last.0),
            Self::Touched(touched) => put_touched(out, touched),
            Self::Ask(ask) => out.put_u64_le(ask.wanted_bytes),
        }
    }

    /// Decodes any frame but a record.
    ///
    /// # Errors
    /// [`MessageError`] names the frame and the field.
    pub fn decode(frame: Frame) -> Result<Self, MessageError> {
        let kind = frame.kind;
        let body = frame.contiguous();
        let mut fields = Fields { kind, rest: &body };
        let message = match kind {
            Kind::Hello => Self::Hello(Hello {
                protocol_min: fields.u16("lowest protocol")?,
                protocol_max: fields.u16("highest protocol")?,
                vault: Id128(fields.array("vault")?),
                agent: fields.text("agent", limits::NAME_BYTES_MAX)?,
                software: fields.text("software", TEXT_BYTES_MAX)?,
            }),
            Kind::HelloOk => Self::HelloOk(HelloOk {
                protocol: fields.u16("protocol")?,
                vault: Id128(fields.array("vault")?),
                gateway: fields.text("gateway", limits::NAME_BYTES_MAX)?,
                software: fields.text("software", TEXT_BYTES_MAX)?,
            }),
            Kind::Refused => Self::Refused(fields.refused()?),
            Kind::DiskRefused => Self::DiskRefused(fields.refused()?),
            Kind::Ping => Self::Ping(Ping {
                token: fields.u64("token")?,
                offset_micros: fields.u64("offset")?.cast_signed(),
                uncertainty_micros: fields.u32("uncertainty")?,
            }),
            Kind::Pong => Self::Pong(Pong {
                token: fields.u64("token")?,
                received: Micros(fields.u64("received")?),
                sent: Micros(fields.u64("sent")?),
            }),
            Kind::Redirect => {
                let count = fields.u16("gateways")?;
                if usize::from(count) > REDIRECT_GATEWAYS_MAX {
                    return Err(fields.out_of_range("gateways"));
                }
                let gateways = (0..count).map(|_| fields.text("gateway", TEXT_BYTES_MAX)).collect::<Result<_, _>>()?;
                Self::Redirect(Redirect { gateways })
            }
            Kind::Join => Self::Join(Join {
                session: Id128(fields.array("session")?),
                join_as: match fields.u8("join as")? {
                    1 => JoinAs::Control,
                    2 => JoinAs::Stream,
                    _ => return Err(fields.out_of_range("join as")),
                },
            }),
            Kind::Close => Self::Close(fields.refused()?),
            Kind::Report => Self::Report(report::take(&mut fields)?),
            Kind::OpenDisk => Self::OpenDisk(fields.open_disk()?),
            Kind::DiskOpened => Self::DiskOpened(DiskOpened {
                epoch: Epoch(fields.u64("epoch")?),
                next_seq: Seq(fields.u64("next seq")?),
                journaled: Seq(fields.u64("journaled")?),
                vaulted: Seq(fields.u64("vaulted")?),
                credit_bytes: fields.u64("credit")?,
                chain: fields.option("chain")?.then(|| fields.array("chain").map(Chain)).transpose()?,
            }),
            Kind::Credit => Self::Credit(Credit { granted_bytes: fields.u64("granted")? }),
            Kind::Ack => Self::Ack(fields.ack()?),
            Kind::Fenced => Self::Fenced(Fenced { newest: Epoch(fields.u64("newest epoch")?) }),
            Kind::CloseDisk => Self::CloseDisk(CloseDisk { last: Seq(fields.u64("last seq")?) }),
            Kind::Touched => Self::Touched(fields.touched()?),
            Kind::Ask => Self::Ask(Ask { wanted_bytes: fields.u64("wanted")? }),
            Kind::Record => return Err(MessageError::Unexpected { found: kind, expected: "a control frame" }),
        };
        fields.end()?;
        Ok(message)
    }
}

fn put_text(out: &mut BytesMut, text: &str) {
    let text = cut_text(text, TEXT_BYTES_MAX);
    out.put_u16_le(text.len() as u16);
    out.put_slice(text.as_bytes());
}

/// The longest start of `text` that fits `bytes_max` and ends between characters.
pub(super) fn cut_text(text: &str, bytes_max: usize) -> &str {
    let mut end = text.len().min(bytes_max);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

fn put_open_disk(out: &mut BytesMut, open: &OpenDisk) {
    put_text(out, open.disk.as_str());
    out.put_u64_le(open.size_bytes);
    out.put_slice(&open.nonce.0);
    match &open.want {
        Want::Resume { epoch, floor, floor_chain, first_held } => {
            out.put_u8(1);
            out.put_u64_le(epoch.0);
            out.put_u64_le(floor.0);
            out.put_slice(&floor_chain.0);
            out.put_u64_le(first_held.0);
        }
        Want::Fork { reason, floor } => {
            out.put_u8(2);
            out.put_u8(*reason as u8);
            out.put_u8(u8::from(floor.is_some()));
            if let Some((point, chain)) = floor {
                out.put_u64_le(point.epoch.0);
                out.put_u64_le(point.seq.0);
                out.put_slice(&chain.0);
            }
        }
    }
}

fn put_touched(out: &mut BytesMut, touched: &Touched) {
    out.put_u16_le(touched.runs.len() as u16);
    for run in &touched.runs {
        out.put_u32_le(run.start);
        out.put_u32_le(run.end - run.start);
    }
}

/// Reads fields off the front of a body.
struct Fields<'a> {
    kind: Kind,
    rest: &'a [u8],
}

impl Fields<'_> {
    fn out_of_range(&self, field: &'static str) -> MessageError {
        MessageError::Field { kind: self.kind, field }
    }

    fn take(&mut self, field: &'static str, bytes: usize) -> Result<&[u8], MessageError> {
        let (taken, rest) = self.rest.split_at_checked(bytes).ok_or(MessageError::Short { kind: self.kind, field })?;
        self.rest = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self, field: &'static str) -> Result<[u8; N], MessageError> {
        let mut out = [0; N];
        out.copy_from_slice(self.take(field, N)?);
        Ok(out)
    }

    fn u8(&mut self, field: &'static str) -> Result<u8, MessageError> {
        Ok(self.array::<1>(field)?[0])
    }

    fn u16(&mut self, field: &'static str) -> Result<u16, MessageError> {
        self.array(field).map(u16::from_le_bytes)
    }

    fn u32(&mut self, field: &'static str) -> Result<u32, MessageError> {
        self.array(field).map(u32::from_le_bytes)
    }

    fn u64(&mut self, field: &'static str) -> Result<u64, MessageError> {
        self.array(field).map(u64::from_le_bytes)
    }

    fn option(&mut self, field: &'static str) -> Result<bool, MessageError> {
        match self.u8(field)? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(self.out_of_range(field)),
        }
    }

    fn text(&mut self, field: &'static str, bytes_max: usize) -> Result<String, MessageError> {
        let bytes = usize::from(self.u16(field)?);
        if bytes > bytes_max {
            return Err(self.out_of_range(field));
        }
        let kind = self.kind;
        let text = std::str::from_utf8(self.take(field, bytes)?);
        text.map(str::to_owned).map_err(|_| MessageError::Field { kind, field })
    }

    fn refused(&mut self) -> Result<Refused, MessageError> {
        Ok(Refused { code: Code::from_number(self.u32("code")?), text: self.text("text", TEXT_BYTES_MAX)? })
    }

    fn ack(&mut self) -> Result<Ack, MessageError> {
        let ack = Ack { journaled: Seq(self.u64("journaled")?), vaulted: Seq(self.u64("vaulted")?) };
        if ack.journaled < ack.vaulted { Err(self.out_of_range("vaulted")) } else { Ok(ack) }
    }

    fn touched(&mut self) -> Result<Touched, MessageError> {
        let count = usize::from(self.u16("runs")?);
        if count == 0 || count > TOUCHED_RUNS_PER_FRAME {
            return Err(self.out_of_range("runs"));
        }
        let mut runs: Vec<Range<u32>> = Vec::with_capacity(count);
        for _ in 0..count {
            let (start, length) = (self.u32("first chunk")?, self.u32("chunks")?);
            let end =
                start.checked_add(length).filter(|end| u64::from(*end) <= limits::DISK_BYTES_MAX / limits::CHUNK_BYTES);
            let apart = runs.last().is_none_or(|last| last.end < start);
            match end.filter(|_| length > 0 && apart) {
                Some(end) => runs.push(start..end),
                None => return Err(self.out_of_range("chunks")),
            }
        }
        Ok(Touched { runs })
    }

    fn open_disk(&mut self) -> Result<OpenDisk, MessageError> {
        let name = self.text("disk", limits::NAME_BYTES_MAX)?;
        let disk = DiskId::new(&name).map_err(|_| self.out_of_range("disk"))?;
        let size_bytes = self.u64("size")?;
        if size_bytes == 0 || size_bytes > limits::DISK_BYTES_MAX {
            return Err(self.out_of_range("size"));
        }
        let nonce = Id128(self.array("nonce")?);
        let want = match self.u8("want")? {
            1 => Want::Resume {
                epoch: Epoch(self.u64("epoch")?),
                floor: Seq(self.u64("floor")?),
                floor_chain: Chain(self.array("floor chain")?),
                first_held: Seq(self.u64("first held")?),
            },
            2 => {
                let number = self.u8("reason")?;
                let reason = ForkReason::ALL.into_iter().find(|reason| *reason as u8 == number);
                let reason = reason.ok_or_else(|| self.out_of_range("reason"))?;
                let floor = if self.option("floor")? {
                    let point = PointId { epoch: Epoch(self.u64("floor epoch")?), seq: Seq(self.u64("floor seq")?) };
                    Some((point, Chain(self.array("floor chain")?)))
                } else {
                    None
                };
                Want::Fork { reason, floor }
            }
            _ => return Err(self.out_of_range("want")),
        };
        if let Want::Resume { epoch, floor, first_held, .. } = want
            && (epoch.0 == 0 || floor.0 == u64::MAX || first_held.0 == 0)
        {
            return Err(self.out_of_range("want"));
        }
        Ok(OpenDisk { disk, size_bytes, nonce, want })
    }

    fn end(&self) -> Result<(), MessageError> {
        match self.rest.len() {
            0 => Ok(()),
            extra_bytes => Err(MessageError::Long { kind: self.kind, extra_bytes }),
        }
    }
}

#[cfg(test)]
mod tests;
