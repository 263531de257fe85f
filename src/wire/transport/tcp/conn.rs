//! One TLS connection on one TCP socket: large reads, and writes in their order.
//!
//! A read and a write may go on at the same time, by two tasks; what TLS shares between both directions is locked only
//! while bytes are encrypted or decrypted, never over a wait. Nothing is lost when a future is dropped, but for
//! [`Conn::write_all`], of whose pieces the begin may be on its way.

use std::cell::RefCell;
use std::io;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use parking_lot::Mutex;
use rustls::pki_types::CertificateDer;
use socket2::{SockRef, TcpKeepalive};
use tokio::net::TcpStream;
use tokio::sync::OwnedSemaphorePermit;
use tokio::task::coop;

use super::tls::{Phase, TAIL_BYTES_MAX, Tls};
use crate::wire::transport::SessionEnd;

/// Ciphertext that one read takes at most: a quarter of a processor's second-level cache.
const READ_BYTES_MAX: usize = 256 << 10;
/// The least that one read takes at most: a TLS record.
const READ_BYTES_MIN: usize = 17 << 10;
/// Ciphertext that waits for the socket before more is encrypted.
const UNSENT_BYTES_MAX: usize = 64 << 10;
/// Plaintext that is kept for a reader that is busy elsewhere, before the socket is left alone.
const EARLY_BYTES_MAX: usize = 64 << 10;
/// Probes without an answer after which the kernel gives a silent network up.
const KEEP_ALIVE_PROBES: u32 = 5;

thread_local! {
    /// Where ciphertext is read to and decrypted; nothing stays in it between two reads.
    static SCRATCH: RefCell<Vec<u8>> = RefCell::new(vec![0; TAIL_BYTES_MAX + READ_BYTES_MAX]);
}

/// Why a connection is of no use any more.
#[derive(Debug, thiserror::Error)]
pub(super) enum Broken {
    /// TLS found something wrong, or the other side's TLS did.
    #[error("TLS: {0}")]
    Tls(#[from] rustls::Error),
    /// The network, or the other side's kernel.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// The end came without TLS's word for it.
    #[error("the connection was cut off")]
    Cut,
}

impl From<Broken> for SessionEnd {
    fn from(broken: Broken) -> Self {
        match broken {
            Broken::Tls(rustls::Error::AlertReceived(alert)) => Self::Alert(alert.into()),
            Broken::Tls(
                error @ (rustls::Error::InvalidCertificate(_)
                | rustls::Error::NoCertificatesPresented
                | rustls::Error::NoApplicationProtocol),
            ) => Self::Refused(error.to_string()),
            // Among it whatever is no TLS at all.
            other => Self::Lost(other.to_string()),
        }
    }
}

/// What one look at the socket brought.
enum Look {
    /// Bytes; plaintext among them waits in the state.
    Some,
    /// Nothing is there.
    Blocked,
    /// The other side has ended its direction in order.
    End,
}

pub(super) struct Conn {
    socket: TcpStream,
    state: Mutex<State>,
    /// A gateway's connections are counted.
    _place: Option<OwnedSemaphorePermit>,
}

struct State {
    tls: Tls,
    /// What nobody has taken yet.
    plain: BytesMut,
}

/// Sets what a socket of this protocol needs: small frames go out at once, and a network that is silent for
/// `idle_timeout` is noticed, whether or not something was sent.
pub(super) fn tune(socket: &TcpStream, idle_timeout: Duration) -> io::Result<()> {
    socket.set_nodelay(true)?;
    let socket = SockRef::from(socket);
    // The kernel counts these in whole seconds.
    let probe = (idle_timeout / (KEEP_ALIVE_PROBES + 1)).max(Duration::from_secs(1));
    let keep_alive = TcpKeepalive::new().with_time(probe).with_interval(probe).with_retries(KEEP_ALIVE_PROBES);
    socket.set_tcp_keepalive(&keep_alive)?;
    #[cfg(target_os = "linux")]
    socket.set_tcp_user_timeout(Some(idle_timeout))?;
    Ok(())
}

/// Lets the kernel keep about so many bytes of `socket` that were not read here. To be bounded by it is no need, so that an
/// error is none.
pub(super) fn bound_unread(socket: &TcpStream, bytes_max: usize) {
    let _ = SockRef::from(socket).set_recv_buffer_size(bytes_max);
}

impl Conn {
    /// Does the handshake on a new connection.
    ///
    /// # Errors
    /// [`SessionEnd::Busy`] if the other side hung up without a word, else what was wrong.
    pub(super) async fn handshake(
        socket: TcpStream,
        tls: Tls,
        place: Option<OwnedSemaphorePermit>,
    ) -> Result<Self, SessionEnd> {
        let conn = Self { socket, state: Mutex::new(State { tls, plain: BytesMut::new() }), _place: place };
        let mut heard = false;
        match conn.shake_hands(&mut heard).await {
            Ok(()) => Ok(conn),
            Err(Broken::Cut | Broken::Io(_)) if !heard => Err(SessionEnd::Busy),
            Err(broken) => {
                // The alert, if it finds room at once.
                let _ = conn.push();
                Err(broken.into())
            }
        }
    }

    async fn shake_hands(&self, heard: &mut bool) -> Result<(), Broken> {
        {
            // A client speaks first.
            let State { tls, plain } = &mut *self.state.lock();
            tls.take(&mut [], plain)?;
        }
        loop {
            self.flush().await?;
            if self.state.lock().tls.phase() != Phase::Handshake {
                return Ok(());
            }
            match self.look(READ_BYTES_MIN)? {
                Look::Some => *heard = true,
                Look::Blocked => self.socket.readable().await?,
                Look::End => return Err(Broken::Cut),
            }
        }
    }

    /// Lets the kernel keep about so many bytes that were not read here.
    pub(super) fn bound_unread(&self, bytes_max: usize) {
        bound_unread(&self.socket, bytes_max);
    }

    /// The verified chain of the other side.
    pub(super) fn peer_certificates(&self) -> Vec<CertificateDer<'static>> {
        let state = self.state.lock();
        state.tls.peer().peer_certificates().unwrap_or_default().iter().map(|one| one.clone().into_owned()).collect()
    }

    /// Takes once what the socket has, of it about `bytes_max` at the most.
    fn look(&self, bytes_max: usize) -> Result<Look, Broken> {
        let bytes_max = bytes_max.clamp(READ_BYTES_MIN, READ_BYTES_MAX);
        SCRATCH.with_borrow_mut(|scratch| {
            let State { tls, plain } = &mut *self.state.lock();
            if tls.phase() == Phase::HalfOpen {
                return Ok(Look::End);
            }
            let tail_bytes = tls.put_tail(scratch);
            let read_bytes = match self.socket.try_read(&mut scratch[tail_bytes..tail_bytes + bytes_max]) {
                Ok(0) => return Err(Broken::Cut),
                Ok(bytes) => bytes,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(Look::Blocked),
                Err(error) => return Err(error.into()),
            };
            plain.reserve(read_bytes);
            tls.take(&mut scratch[..tail_bytes + read_bytes], plain)?;
            Ok(Look::Some)
        })
    }

    /// The next plaintext, about `bytes_max` at the most; `None` at the orderly end.
    pub(super) async fn read(&self, bytes_max: usize) -> Result<Option<Bytes>, Broken> {
        loop {
            // Bytes that are always there must not keep a thread from its other tasks.
            coop::consume_budget().await;
            {
                let mut state = self.state.lock();
                if !state.plain.is_empty() {
                    return Ok(Some(std::mem::take(&mut state.plain).freeze()));
                }
            }
            match self.look(bytes_max)? {
                Look::Some => self.push().map(drop)?,
                Look::Blocked => self.socket.readable().await?,
                Look::End if self.state.lock().plain.is_empty() => return Ok(None),
                Look::End => {}
            }
        }
    }

    /// Waits until the other side has closed its direction, in order or not. What comes until then is kept for
    /// [`Conn::read`], as far as there is room for it, or thrown away.
    pub(super) async fn peer_ended(&self, keep: bool) {
        loop {
            coop::consume_budget().await;
            if self.early_is_full(keep) {
                return std::future::pending().await;
            }
            match self.look(READ_BYTES_MIN) {
                Ok(Look::Some) => {}
                Ok(Look::Blocked) if self.socket.readable().await.is_ok() => {}
                Ok(Look::Blocked | Look::End) | Err(_) => return,
            }
        }
    }

    /// Whether there is no room for more plaintext that nobody takes.
    fn early_is_full(&self, keep: bool) -> bool {
        let plain = &mut self.state.lock().plain;
        if !keep {
            plain.clear();
        }
        plain.len() >= EARLY_BYTES_MAX
    }

    /// Writes these pieces and takes them out of their places.
    pub(super) async fn write_all(&self, mut pieces: &mut [Bytes]) -> Result<(), Broken> {
        loop {
            let more = self.state.lock().tls.write(&mut pieces, UNSENT_BYTES_MAX)?;
            self.flush().await?;
            if !more {
                return Ok(());
            }
        }
    }

    /// Writes one small frame behind everything that was written; it goes out with what is written next.
    pub(super) fn write_later(&self, frame: Bytes) -> Result<(), Broken> {
        self.state.lock().tls.write(&mut &mut [frame][..], usize::MAX)?;
        Ok(())
    }

    /// Says that nothing more comes, behind everything that was written, and sends of it what finds room at once.
    pub(super) fn write_end(&self) -> Result<(), Broken> {
        self.state.lock().tls.write_end()?;
        Ok(self.push().map(drop)?)
    }

    /// Writes one small frame and the end. As [`Conn::write_end`].
    pub(super) fn write_last(&self, frame: Bytes) -> Result<(), Broken> {
        self.write_later(frame)?;
        self.write_end()
    }

    /// After the end was written: sends everything, and waits until the other side has ended its direction too. A socket
    /// that is closed with something unread in it takes back what it has not sent.
    pub(super) async fn linger(&self) {
        if self.flush().await.is_ok() {
            self.peer_ended(false).await;
        }
    }

    /// Ends this side's direction so that it does not look like an orderly end.
    pub(super) fn cut(&self) {
        // A socket that is gone is cut already.
        let _ = SockRef::from(&self.socket).shutdown(std::net::Shutdown::Write);
    }

    /// Puts plaintext back that was read too far.
    pub(super) fn unread(&self, rest: BytesMut) {
        let plain = &mut self.state.lock().plain;
        let later = std::mem::replace(plain, rest);
        plain.extend_from_slice(&later);
    }

    /// Sends what was written.
    pub(super) async fn flush(&self) -> io::Result<()> {
        while !self.push()? {
            self.socket.writable().await?;
        }
        Ok(())
    }

    /// Sends what finds room at once; whether that is all.
    fn push(&self) -> io::Result<bool> {
        let State { tls, .. } = &mut *self.state.lock();
        while !tls.unsent().is_empty() {
            match self.socket.try_write(tls.unsent()) {
                Ok(bytes) => tls.sent(bytes),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }
}
