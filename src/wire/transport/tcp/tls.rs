//! TLS over a byte stream, without I/O: ciphertext in and out, plaintext in and out.
//!
//! TLS's own buffered interface takes ciphertext by 4 KiB and copies it once more. This one decrypts what a large read
//! brought where it lies.
//!
//! - Ciphertext that is no whole TLS record yet waits in `tail`; an idle connection holds none.
//! - What is to be sent collects in `out`, in the order in which it was made; whoever adds more waits first until
//!   little is left of it.
//! - Whatever is asked of the connection, it sees the same tail: it remembers places in it, and panics where they are not.
//!   After an error it is not asked again.

use bytes::{Bytes, BytesMut};
use rustls::Error;
use rustls::client::UnbufferedClientConnection;
use rustls::server::UnbufferedServerConnection;
use rustls::unbuffered::{ConnectionState, EncodeError, EncodeTlsData, EncryptError, UnbufferedStatus, WriteTraffic};

/// Most plaintext of one TLS record.
const RECORD_BYTES: usize = 16 << 10;
/// Header, content type and tag of one TLS record are 22 bytes; an alert has two more.
const RECORD_OVERHEAD_BYTES: usize = 32;
/// Ciphertext that may wait for its rest. The largest is a handshake message, which TLS itself bounds by this.
pub(super) const TAIL_BYTES_MAX: usize = 64 << 10;
/// Pieces that are shorter share a TLS record with their neighbours, at the price of a copy.
const SMALL_BYTES: usize = 4 << 10;

enum Side {
    Client(UnbufferedClientConnection),
    Server(UnbufferedServerConnection),
}

/// How far a connection is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// The handshake needs more from the other side.
    Handshake,
    /// Plaintext may be sent, and may come.
    Open,
    /// The other side has said that nothing more comes; plaintext may be sent.
    HalfOpen,
}

/// What is to be encrypted.
#[derive(Clone, Copy)]
enum Outgoing<'a> {
    Plain(&'a [u8]),
    End,
}

/// One TLS connection.
pub(super) struct Tls {
    side: Side,
    phase: Phase,
    failed: Option<Error>,
    tail: Vec<u8>,
    out: Vec<u8>,
    /// Bytes at the begin of `out` that are sent.
    sent_bytes: usize,
    /// Pieces shorter than [`SMALL_BYTES`], put together; kept for its allocation.
    small: Vec<u8>,
}

impl Tls {
    pub(super) fn client(connection: UnbufferedClientConnection) -> Self {
        Self::new(Side::Client(connection))
    }

    pub(super) fn server(connection: UnbufferedServerConnection) -> Self {
        Self::new(Side::Server(connection))
    }

    const fn new(side: Side) -> Self {
        Self {
            side,
            phase: Phase::Handshake,
            failed: None,
            tail: Vec::new(),
            out: Vec::new(),
            sent_bytes: 0,
            small: Vec::new(),
        }
    }

    pub(super) const fn phase(&self) -> Phase {
        self.phase
    }

    /// What TLS knows of the other side.
    pub(super) fn peer(&self) -> &rustls::CommonState {
        match &self.side {
            Side::Client(connection) => connection,
            Side::Server(connection) => connection,
        }
    }

    /// Puts what waits for its rest at the begin of `incoming` and says how long it is: new bytes go behind it.
    pub(super) fn put_tail(&self, incoming: &mut [u8]) -> usize {
        incoming[..self.tail.len()].copy_from_slice(&self.tail);
        self.tail.len()
    }

    /// Takes ciphertext, of which [`Tls::put_tail`] made the begin. Its plaintext goes to the end of `plain`. Answers of
    /// the handshake, and the alert that says what was wrong, are to be sent then.
    ///
    /// # Errors
    /// What TLS finds wrong; the connection is of no use any more.
    pub(super) fn take(&mut self, incoming: &mut [u8], plain: &mut BytesMut) -> Result<(), Error> {
        let mut used_bytes = 0;
        self.turn(incoming, &mut used_bytes, plain, None)?;
        let rest = &incoming[used_bytes..];
        if rest.len() > TAIL_BYTES_MAX {
            return Err(self.fail(Error::General("a TLS message is larger than any that is needed here".to_owned())));
        }
        if rest.is_empty() {
            self.tail = Vec::new();
        } else {
            self.tail.clear();
            self.tail.extend_from_slice(rest);
        }
        Ok(())
    }

    fn fail(&mut self, error: Error) -> Error {
        self.failed = Some(error.clone());
        error
    }

    /// Encrypts the begin of `pieces` until `unsent_bytes_max` are to be sent, and takes it off them. Whether anything is
    /// left of them.
    ///
    /// # Errors
    /// As [`Tls::take`].
    pub(super) fn write(&mut self, pieces: &mut &mut [Bytes], unsent_bytes_max: usize) -> Result<bool, Error> {
        loop {
            let empty = pieces.iter().take_while(|piece| piece.is_empty()).count();
            *pieces = &mut std::mem::take(pieces)[empty..];
            let Some(first) = pieces.first_mut() else { return Ok(false) };
            if self.unsent().len() >= unsent_bytes_max {
                return Ok(true);
            }
            if first.len() >= SMALL_BYTES {
                let piece = first.split_to(first.len().min(unsent_bytes_max));
                self.send(Outgoing::Plain(&piece))?;
                continue;
            }
            let mut small = std::mem::take(&mut self.small);
            small.clear();
            for piece in pieces.iter_mut() {
                if piece.len() >= SMALL_BYTES || small.len() + piece.len() > RECORD_BYTES {
                    break;
                }
                small.extend_from_slice(&std::mem::take(piece));
            }
            let sent = self.send(Outgoing::Plain(&small));
            self.small = small;
            sent?;
        }
    }

    /// Says that nothing more comes.
    ///
    /// # Errors
    /// As [`Tls::take`].
    pub(super) fn write_end(&mut self) -> Result<(), Error> {
        self.send(Outgoing::End)
    }

    fn send(&mut self, outgoing: Outgoing<'_>) -> Result<(), Error> {
        let mut tail = std::mem::take(&mut self.tail);
        let (mut used_bytes, mut plain) = (0, BytesMut::new());
        let turned = self.turn(&mut tail, &mut used_bytes, &mut plain, Some(outgoing));
        // Every whole record of it was taken when it came.
        debug_assert!(plain.is_empty(), "plaintext waited in the tail");
        tail.drain(..used_bytes);
        self.tail = tail;
        turned
    }

    /// Lets the connection do all that it can, and then send. `used_bytes` of `incoming` are used up.
    fn turn(
        &mut self,
        incoming: &mut [u8],
        used_bytes: &mut usize,
        plain: &mut BytesMut,
        outgoing: Option<Outgoing<'_>>,
    ) -> Result<(), Error> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        loop {
            match self.step(incoming, used_bytes, plain, outgoing) {
                Ok(Step::Again) => {}
                Ok(Step::PeerEnded) => self.phase = Phase::HalfOpen,
                Ok(Step::Open) => {
                    if self.phase == Phase::Handshake {
                        self.phase = Phase::Open;
                    }
                    return Ok(());
                }
                Ok(Step::Blocked) => return Ok(()),
                Err(error) => {
                    // An alert, if there is one, comes before anything else is looked at.
                    let _ = self.step(incoming, used_bytes, plain, None);
                    return Err(self.fail(error));
                }
            }
        }
    }

    fn step(
        &mut self,
        incoming: &mut [u8],
        used_bytes: &mut usize,
        plain: &mut BytesMut,
        outgoing: Option<Outgoing<'_>>,
    ) -> Result<Step, Error> {
        let (rest, out) = (&mut incoming[*used_bytes..], &mut self.out);
        let (discard_bytes, step) = match &mut self.side {
            Side::Client(connection) => step(connection.process_tls_records(rest), plain, out, outgoing),
            Side::Server(connection) => step(connection.process_tls_records(rest), plain, out, outgoing),
        };
        *used_bytes += discard_bytes;
        step
    }

    /// What is to be sent.
    pub(super) fn unsent(&self) -> &[u8] {
        &self.out[self.sent_bytes..]
    }

    /// Notes that the first `bytes` of it are sent.
    pub(super) fn sent(&mut self, bytes: usize) {
        self.sent_bytes += bytes;
        if self.sent_bytes == self.out.len() {
            self.sent_bytes = 0;
            self.out.clear();
        }
    }
}

enum Step {
    Again,
    /// More is needed from the other side, or nothing comes any more.
    Blocked,
    Open,
    PeerEnded,
}

/// Does what the connection asks for in one state. How many bytes it has used up, and what is next.
fn step<Data>(
    status: UnbufferedStatus<'_, '_, Data>,
    plain: &mut BytesMut,
    out: &mut Vec<u8>,
    outgoing: Option<Outgoing<'_>>,
) -> (usize, Result<Step, Error>) {
    let mut discard_bytes = status.discard;
    let step = match status.state {
        Err(error) => Err(error),
        Ok(ConnectionState::ReadTraffic(mut traffic)) => loop {
            match traffic.next_record() {
                Some(Ok(record)) => {
                    discard_bytes += record.discard;
                    plain.extend_from_slice(record.payload);
                }
                Some(Err(error)) => break Err(error),
                None => break Ok(Step::Again),
            }
        },
        Ok(ConnectionState::EncodeTlsData(message)) => encode(message, out).map(|()| Step::Again),
        Ok(ConnectionState::TransmitTlsData(message)) => {
            // It stands in `out`, before anything that comes later.
            message.done();
            Ok(Step::Again)
        }
        Ok(ConnectionState::PeerClosed) => Ok(Step::PeerEnded),
        Ok(ConnectionState::WriteTraffic(traffic)) => match outgoing {
            Some(outgoing) => encrypt(traffic, outgoing, out).map(|()| Step::Open),
            None => Ok(Step::Open),
        },
        // Blocked, or closed on both sides; early data are never taken.
        Ok(_) if outgoing.is_some() => Err(Error::HandshakeNotComplete),
        Ok(_) => Ok(Step::Blocked),
    };
    (discard_bytes, step)
}

fn encode<Data>(mut message: EncodeTlsData<'_, Data>, out: &mut Vec<u8>) -> Result<(), Error> {
    let start = out.len();
    let required_bytes = match message.encode(&mut []) {
        Err(EncodeError::InsufficientSize(missing)) => missing.required_size,
        Err(error) => return Err(Error::General(error.to_string())),
        Ok(_) => return Ok(()),
    };
    out.resize(start + required_bytes, 0);
    message.encode(&mut out[start..]).map(|_| ()).map_err(|error| Error::General(error.to_string()))
}

fn encrypt<Data>(mut traffic: WriteTraffic<'_, Data>, outgoing: Outgoing<'_>, out: &mut Vec<u8>) -> Result<(), Error> {
    let start = out.len();
    let plain_bytes = if let Outgoing::Plain(plain) = outgoing { plain.len() } else { 0 };
    let mut room_bytes = plain_bytes + (1 + plain_bytes.div_ceil(RECORD_BYTES)) * RECORD_OVERHEAD_BYTES;
    loop {
        out.resize(start + room_bytes, 0);
        let room = &mut out[start..];
        let written = match outgoing {
            Outgoing::Plain(plain) => traffic.encrypt(plain, room),
            Outgoing::End => traffic.queue_close_notify(room),
        };
        out.truncate(start + *written.as_ref().unwrap_or(&0));
        match written {
            Ok(_) => return Ok(()),
            // New keys, say, are announced in front of it.
            Err(EncryptError::InsufficientSize(missing)) if missing.required_size > room_bytes => {
                room_bytes = missing.required_size;
            }
            Err(error) => return Err(Error::General(error.to_string())),
        }
    }
}

#[cfg(test)]
mod tests;
