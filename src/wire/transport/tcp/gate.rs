//! The gateway's side: connections come in, and find the session that they belong to.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use bytes::BytesMut;
use parking_lot::Mutex;
use rustls::pki_types::CertificateDer;
use rustls::server::UnbufferedServerConnection;
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio::time::timeout;

use super::conn::{Broken, Conn, bound_unread, tune};
use super::tls::Tls;
use super::{Ending, Inner, Kind, LAST_FRAME_PATIENCE, Open, Session, SessionEnd, Side, Stream};
use crate::types::Id128;
use crate::wire::frame::{Decoder, FrameError, HEADER_BYTES};
use crate::wire::messages::{Join, Message, MessageError};
use crate::wire::net::TCP_UNREAD_BYTES_MAX;

/// Connections that may wait to be accepted by their session, which accepts at once.
const ARRIVALS_MAX: usize = 64;
/// Bytes of a control connection, or of one that has not said what it is, that the kernel may keep unread: its frames are
/// small.
const UNREAD_BYTES_MIN: usize = 32 << 10;
/// A join frame, whole.
const JOIN_FRAME_BYTES: usize = HEADER_BYTES + 17;

/// Why a connection joined no session.
#[derive(Debug, thiserror::Error)]
pub(in crate::wire) enum JoinError {
    /// What came first is no frame.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// What came first is no join frame.
    #[error(transparent)]
    Message(#[from] MessageError),
    /// What came first is another frame, or none.
    #[error("another frame than join came first")]
    First,
    /// It left.
    #[error("{0}")]
    Left(String),
    /// The session's name is taken.
    #[error("a session of this name exists already")]
    Taken,
    /// There is no such session of this agent.
    #[error("this gateway has no such session of this agent: connect anew")]
    Unknown,
    /// The session has as many streams as it may.
    #[error("this session has as many connections as it may")]
    Full,
}

impl From<Broken> for JoinError {
    fn from(broken: Broken) -> Self {
        Self::Left(broken.to_string())
    }
}

/// A session's certificate and its name.
type Key = (CertificateDer<'static>, Id128);

/// The sessions over TCP that a gateway has.
#[derive(Default)]
pub(in crate::wire) struct Sessions(Mutex<HashMap<Key, Weak<Inner>>>);

/// Where the further connections of one session come in.
pub(super) struct Gate {
    arrivals: tokio::sync::Mutex<mpsc::Receiver<Arc<Stream>>>,
    doorway: mpsc::Sender<Arc<Stream>>,
    /// Further connections that there may be.
    open_max: AtomicUsize,
    /// Bytes of each of them that the kernel may keep unread.
    unread_bytes_max: AtomicUsize,
    open: Arc<AtomicUsize>,
    sessions: Weak<Sessions>,
    key: Key,
}

impl Gate {
    pub(super) async fn arrival(&self) -> Arc<Stream> {
        match self.arrivals.lock().await.recv().await {
            Some(stream) => stream,
            // Never: this holds a sender.
            None => std::future::pending().await,
        }
    }

    pub(super) fn widen(&self, streams_max: usize, window_bytes: usize) {
        self.unread_bytes_max.store(unread_bytes_max(streams_max, window_bytes), Ordering::Release);
        self.open_max.store(streams_max.saturating_sub(1), Ordering::Release);
    }

    /// A place for one more.
    fn place(&self) -> Option<(Open, mpsc::Permit<'_, Arc<Stream>>)> {
        // Counted first, so that two at once do not both find the last place.
        let before = self.open.fetch_add(1, Ordering::AcqRel);
        let open = Open(Arc::clone(&self.open));
        let permit = self.doorway.try_reserve().ok()?;
        (before < self.open_max.load(Ordering::Acquire)).then_some((open, permit))
    }
}

/// The part that one of an agent's connections has in what the agent may leave unread.
fn unread_bytes_max(streams_max: usize, window_bytes: usize) -> usize {
    (window_bytes / streams_max.max(1)).clamp(UNREAD_BYTES_MIN, TCP_UNREAD_BYTES_MAX)
}

impl Drop for Gate {
    fn drop(&mut self) {
        if let Some(sessions) = self.sessions.upgrade() {
            sessions.0.lock().remove(&self.key);
        }
    }
}

/// A connection whose handshake is done, and which has not said yet what it is.
pub(in crate::wire) struct Arrival(Conn);

impl Arrival {
    /// Does the handshake.
    pub(in crate::wire) async fn handshake(
        socket: TcpStream,
        config: Arc<rustls::ServerConfig>,
        idle_timeout: Duration,
        place: OwnedSemaphorePermit,
    ) -> Result<Self, SessionEnd> {
        bound_unread(&socket, UNREAD_BYTES_MIN);
        tune(&socket, idle_timeout).map_err(|error| SessionEnd::Lost(error.to_string()))?;
        let connection = UnbufferedServerConnection::new(config);
        let connection = connection.map_err(|error| SessionEnd::Lost(error.to_string()))?;
        Ok(Self(Conn::handshake(socket, Tls::server(connection), Some(place)).await?))
    }

    /// The verified chain of the other side.
    pub(in crate::wire) fn peer_certificates(&self) -> Vec<CertificateDer<'static>> {
        self.0.peer_certificates()
    }

    /// Reads what it is.
    pub(in crate::wire) async fn join(&self) -> Result<Join, JoinError> {
        let mut frame = BytesMut::new();
        while frame.len() < JOIN_FRAME_BYTES {
            match self.0.read(JOIN_FRAME_BYTES).await? {
                Some(bytes) => frame.extend_from_slice(&bytes),
                None => return Err(JoinError::Left("it ended without a frame".to_owned())),
            }
        }
        // The first frame of the stream comes right behind it.
        self.0.unread(frame.split_off(JOIN_FRAME_BYTES));
        let mut decoder = Decoder::new();
        decoder.push(frame.freeze());
        match decoder.next_frame()?.map(Message::decode).transpose()? {
            Some(Message::Join(join)) => Ok(join),
            _ => Err(JoinError::First),
        }
    }

    /// Tells the other side why it may not stay.
    pub(in crate::wire) async fn refuse(self, last: &Message) {
        if self.0.write_last(last.encode()).is_ok() {
            let _ = timeout(LAST_FRAME_PATIENCE, self.0.linger()).await;
        }
    }
}

impl Sessions {
    /// Begins a session with its control connection.
    pub(in crate::wire) fn begin(
        self: &Arc<Self>,
        arrival: Arrival,
        name: Id128,
        idle_timeout: Duration,
    ) -> Result<Session, Box<(JoinError, Arrival)>> {
        let Some(certificate) = arrival.peer_certificates().into_iter().next() else {
            return Err(Box::new((JoinError::Unknown, arrival)));
        };
        let key = (certificate, name);
        let mut sessions = self.0.lock();
        let Entry::Vacant(free) = sessions.entry(key.clone()) else {
            return Err(Box::new((JoinError::Taken, arrival)));
        };
        let (doorway, arrivals) = mpsc::channel(ARRIVALS_MAX);
        let gate = Gate {
            arrivals: tokio::sync::Mutex::new(arrivals),
            doorway,
            open_max: AtomicUsize::new(0),
            unread_bytes_max: AtomicUsize::new(UNREAD_BYTES_MIN),
            open: Arc::default(),
            sessions: Arc::downgrade(self),
            key,
        };
        let session = Session::new(arrival.0, Ending::new(), idle_timeout, Side::Gateway(gate));
        free.insert(Arc::downgrade(&session.0));
        Ok(session)
    }

    /// Hands a further connection to the session that it belongs to.
    pub(in crate::wire) fn attach(&self, arrival: Arrival, name: Id128) -> Result<(), Box<(JoinError, Arrival)>> {
        let certificate = arrival.peer_certificates().into_iter().next();
        let session = certificate.and_then(|certificate| self.0.lock().get(&(certificate, name))?.upgrade());
        let Some(session) = session else { return Err(Box::new((JoinError::Unknown, arrival))) };
        let Side::Gateway(gate) = &session.side else { return Err(Box::new((JoinError::Unknown, arrival))) };
        let Some((open, permit)) = gate.place() else { return Err(Box::new((JoinError::Full, arrival))) };
        arrival.0.bound_unread(gate.unread_bytes_max.load(Ordering::Acquire));
        let ending = Arc::clone(&session.ending);
        permit.send(Arc::new(Stream { conn: arrival.0, ending, kind: Kind::OfGateway, _open: Some(open) }));
        Ok(())
    }
}
