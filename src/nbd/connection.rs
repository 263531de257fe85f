//! One connection: handshake, then a reader that hands requests to the workers, which send the replies.
//!
//! A request takes a place of its connection and claims its bytes from two budgets, first the connection's, then the
//! export's; both travel with it through the workers and are given back when the reply is sent. A client
//! that does not read its replies therefore stops its own requests, not the memory of the server.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout};

use super::Export;
use super::execute::{self, Bounds, Failure, ReplyBytes};
use super::handshake::{Agreed, Handshake, Security, Step, greeting};
use super::outlet::{Outlet, OutletOwner, Replies};
use super::proto::{self, Command, ErrorCode, OptionHead, ProtoError, Request};
use super::server::ServerLimits;
use super::tls::{ServerTls, TlsRefusal};
use super::workers::{Job, WorkQueue};
use crate::fault::{Classify, Fault};
use crate::flow::{Budget, BudgetGuard, Drain};
use crate::telemetry::names;

/// Bytes that one read of the socket takes at most: some hundred small requests.
const INPUT_BYTES: usize = 64 << 10;
/// Requests that are handed to the workers together at most.
const REQUEST_BATCH: usize = 16;

/// Why a connection ended before the client ended it.
#[derive(Debug, thiserror::Error)]
pub(super) enum ConnectionError {
    #[error("the connection failed")]
    Io(#[from] io::Error),
    #[error("the client broke the protocol")]
    Proto(#[from] ProtoError),
    #[error("the client asked for handshake flags {0:#x}, which were not offered")]
    Flags(u32),
    #[error("the client did not finish the handshake in time")]
    HandshakeTimeout,
    #[error("the client sent something between asking for TLS and its begin")]
    BeforeTls,
    #[error(transparent)]
    Tls(#[from] TlsRefusal),
    #[error("the client stopped in the middle of a request, or did not take its replies")]
    Stalled,
}

impl Classify for ConnectionError {
    fn fault(&self) -> Fault {
        match self {
            Self::Io(_) => Fault::Retry,
            _ => Fault::Reject,
        }
    }
}

/// What the connections of a server share.
pub(super) struct Shared {
    pub(super) exports: Vec<Arc<dyn Export>>,
    /// One per export.
    pub(super) queues: Vec<WorkQueue>,
    /// One per export.
    pub(super) budgets: Vec<Budget>,
    pub(super) limits: ServerLimits,
    /// Without it nothing is encrypted; with it everything.
    pub(super) tls: Option<ServerTls>,
}

/// A request's place and bytes.
pub(super) struct Held {
    _place: OwnedSemaphorePermit,
    _connection: BudgetGuard,
    _export: BudgetGuard,
}

#[cfg(test)]
impl Held {
    /// A place and no bytes.
    pub(super) async fn place() -> Self {
        let place = Arc::new(Semaphore::new(1)).acquire_owned().await.expect("open");
        let nothing = Budget::new(1 << 20);
        Self { _place: place, _connection: nothing.claim(0).await, _export: nothing.claim(0).await }
    }
}

/// What a handshake, or the part of it before TLS, came to.
enum Shaken {
    /// The client left, or the server drains.
    Left,
    Agreed(Agreed),
    /// Encryption begins; these were the client's flags.
    StartTls(u32),
}

/// Serves one client from the greeting to the end.
pub(super) async fn serve<R, W>(shared: &Shared, read: R, mut write: W, mut drain: Drain) -> Result<(), ConnectionError>
where
    R: AsyncRead + Send + Unpin + 'static,
    W: AsyncWrite + Send + Unpin + 'static,
{
    let mut input = Input::new(read);
    let security = if shared.tls.is_some() { Security::TlsDue } else { Security::Open };
    match in_time(shared, &mut drain, greet(shared, &mut input, &mut write, security)).await? {
        Shaken::Left => Ok(write.shutdown().await?),
        Shaken::Agreed(agreed) => transmit(shared, input, write, agreed, drain).await,
        Shaken::StartTls(flags) => serve_tls(shared, input, write, flags, drain).await,
    }
}

/// The same from the begin of TLS.
async fn serve_tls<R, W>(
    shared: &Shared,
    input: Input<R>,
    write: W,
    flags: u32,
    mut drain: Drain,
) -> Result<(), ConnectionError>
where
    R: AsyncRead + Send + Unpin + 'static,
    W: AsyncWrite + Send + Unpin + 'static,
{
    // Whoever stands between could otherwise put in what counts as the client's later.
    if !input.buf.is_empty() {
        return Err(ConnectionError::BeforeTls);
    }
    let Some(tls) = &shared.tls else { unreachable!("TLS begins only where it is due") };
    let accepted = timeout(shared.limits.handshake_timeout, tls.accept(input.stream, write, &shared.exports)).await;
    let (read, mut write) = tokio::io::split(accepted.map_err(|_| ConnectionError::HandshakeTimeout)??);
    let mut input = Input::new(read);
    let shaking = shake_hands(shared, &mut input, &mut write, flags, Security::Tls);
    match in_time(shared, &mut drain, shaking).await? {
        Shaken::Agreed(agreed) => transmit(shared, input, write, agreed, drain).await,
        Shaken::Left | Shaken::StartTls(_) => Ok(write.shutdown().await?),
    }
}

/// A part of the handshake, within its time and until the drain.
async fn in_time(
    shared: &Shared,
    drain: &mut Drain,
    part: impl Future<Output = Result<Shaken, ConnectionError>>,
) -> Result<Shaken, ConnectionError> {
    tokio::select! {
        biased;
        () = drain.wait() => Ok(Shaken::Left),
        shaken = timeout(shared.limits.handshake_timeout, part) => {
            shaken.map_err(|_| ConnectionError::HandshakeTimeout)?
        }
    }
}

/// Serves the requests of a client to the end.
async fn transmit<R, W>(
    shared: &Shared,
    mut input: Input<R>,
    write: W,
    agreed: Agreed,
    mut drain: Drain,
) -> Result<(), ConnectionError>
where
    R: AsyncRead + Send + Unpin,
    W: AsyncWrite + Send + Unpin + 'static,
{
    let places = shared.limits.requests_per_connection_max.max(1);
    let owner = OutletOwner(Arc::new(Outlet::new(write)));
    let outlet = &owner.0;
    let requests = Requests::new(shared, agreed, places, Arc::clone(outlet) as Arc<dyn Replies>);
    let all_places = Arc::clone(&requests.places);
    let ended = tokio::select! {
        biased;
        ended = requests.read(&mut input, &mut drain) => ended,
        failed = outlet.drain() => return Err(failed.into()),
    };
    let all_answered = async {
        tokio::select! {
            biased;
            // A request keeps its place until its reply is sent.
            _ = all_places.acquire_many(places as u32) => outlet.shutdown().await,
            failed = outlet.drain() => Err(failed),
        }
    };
    let written = timeout(shared.limits.stall_timeout, all_answered).await;
    ended.and(written.map_err(|_| ConnectionError::Stalled)?.map_err(ConnectionError::Io))
}

/// The greeting, and the handshake behind it.
async fn greet<R, W>(
    shared: &Shared,
    input: &mut Input<R>,
    write: &mut W,
    security: Security,
) -> Result<Shaken, ConnectionError>
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    write.write_all(&greeting()).await?;
    if !input.fill(4).await? {
        return Ok(Shaken::Left);
    }
    let flags = input.buf.get_u32();
    shake_hands(shared, input, write, flags, security).await
}

/// Options, up to requests, TLS or the end.
async fn shake_hands<R, W>(
    shared: &Shared,
    input: &mut Input<R>,
    write: &mut W,
    flags: u32,
    security: Security,
) -> Result<Shaken, ConnectionError>
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let mut state = Handshake::start(&shared.exports, flags, security).ok_or(ConnectionError::Flags(flags))?;
    let mut out = Vec::new();
    loop {
        if !input.fill(proto::OPTION_HEAD_BYTES).await? {
            return Ok(Shaken::Left);
        }
        let head = OptionHead::decode(&input.buf.split_to(proto::OPTION_HEAD_BYTES))?;
        if head.data_bytes > proto::OPTION_BYTES_MAX {
            proto::encode_option_reply(
                &mut out,
                head.option,
                proto::option_reply::ERR_TOO_BIG,
                b"the option is too long",
            );
            send(write, &out).await?;
            let (found, limit) = (head.data_bytes.into(), proto::OPTION_BYTES_MAX.into());
            return Err(ProtoError::TooLong { what: "option", found, limit }.into());
        }
        let data_bytes = head.data_bytes as usize;
        if data_bytes > 0 && !input.fill(data_bytes).await? {
            return Err(ConnectionError::Io(io::ErrorKind::UnexpectedEof.into()));
        }
        let step = state.answer(head.option, &input.buf.split_to(data_bytes), &mut out);
        send(write, &out).await?;
        out.clear();
        match step {
            Step::Continue => {}
            Step::Transmit(agreed) => return Ok(Shaken::Agreed(agreed)),
            Step::StartTls => return Ok(Shaken::StartTls(flags)),
            Step::Close => return Ok(Shaken::Left),
        }
    }
}

/// An answer of the handshake, out of whatever gathers or encrypts it.
async fn send<W: AsyncWrite + Unpin>(write: &mut W, bytes: &[u8]) -> io::Result<()> {
    write.write_all(bytes).await?;
    write.flush().await
}

/// The reading half of the socket and what was read ahead.
struct Input<R> {
    stream: R,
    buf: BytesMut,
}

impl<R: AsyncRead + Unpin> Input<R> {
    fn new(stream: R) -> Self {
        Self { stream, buf: BytesMut::with_capacity(INPUT_BYTES) }
    }

    /// Reads until `count` bytes are there. `false` if the stream ended before the first of them. Loses nothing if dropped.
    async fn fill(&mut self, count: usize) -> io::Result<bool> {
        while self.buf.len() < count {
            self.buf.reserve(INPUT_BYTES);
            if self.stream.read_buf(&mut self.buf).await? == 0 {
                return if self.buf.is_empty() { Ok(false) } else { Err(io::ErrorKind::UnexpectedEof.into()) };
            }
        }
        Ok(true)
    }

    /// Takes a payload: what was read ahead is copied, the rest goes from the socket to its place.
    async fn payload(&mut self, count: usize, limits: &ServerLimits) -> Result<Bytes, ConnectionError> {
        if count <= self.buf.len() {
            return Ok(Bytes::copy_from_slice(&self.buf.split_to(count)));
        }
        let mut payload = BytesMut::with_capacity(count);
        payload.put(self.buf.split());
        while payload.len() < count {
            let left = count - payload.len();
            let mut room = (&mut payload).limit(left);
            let read = timeout(limits.stall_timeout, self.stream.read_buf(&mut room)).await;
            if read.map_err(|_| ConnectionError::Stalled)?? == 0 {
                return Err(ConnectionError::Io(io::ErrorKind::UnexpectedEof.into()));
            }
        }
        Ok(payload.freeze())
    }

    /// Drops the payload of a request that is refused.
    async fn skip(&mut self, count: usize, limits: &ServerLimits) -> Result<(), ConnectionError> {
        let mut left = count;
        loop {
            let here = left.min(self.buf.len());
            self.buf.advance(here);
            left -= here;
            if left == 0 {
                return Ok(());
            }
            self.buf.reserve(INPUT_BYTES);
            let buf = &mut self.buf;
            let read = timeout(limits.stall_timeout, self.stream.read_buf(buf)).await;
            if read.map_err(|_| ConnectionError::Stalled)?? == 0 {
                return Err(ConnectionError::Io(io::ErrorKind::UnexpectedEof.into()));
            }
        }
    }
}

/// The reading side of the request phase.
struct Requests<'a> {
    shared: &'a Shared,
    export: &'a Arc<dyn Export>,
    index: usize,
    bounds: Bounds,
    places: Arc<Semaphore>,
    budget: Budget,
    replies: Arc<dyn Replies>,
    /// Read and not handed to the workers yet. Handed over before anything is waited for, so that nothing waits for them.
    batch: Vec<Job>,
}

impl<'a> Requests<'a> {
    fn new(shared: &'a Shared, agreed: Agreed, places: usize, replies: Arc<dyn Replies>) -> Self {
        let index = agreed.export;
        let export = &shared.exports[index];
        let bounds = Bounds {
            size_bytes: export.size_bytes(),
            read_only: export.read_only(),
            fast_zero: export.fast_zero(),
            agreed,
        };
        let budget = Budget::new(shared.limits.payload_bytes_per_connection_max);
        let (places, batch) = (Arc::new(Semaphore::new(places)), Vec::with_capacity(REQUEST_BATCH));
        Self { shared, export, index, bounds, places, budget, replies, batch }
    }

    /// Reads requests until the client is done, breaks the protocol, or the server drains.
    async fn read<R: AsyncRead + Unpin>(
        mut self,
        input: &mut Input<R>,
        drain: &mut Drain,
    ) -> Result<(), ConnectionError> {
        let mut draining = std::pin::pin!(drain.wait());
        loop {
            if input.buf.len() < proto::REQUEST_BYTES {
                self.hand_over();
            }
            let more = tokio::select! {
                biased;
                () = &mut draining => false,
                more = input.fill(proto::REQUEST_BYTES) => more?,
            };
            if !more {
                return Ok(());
            }
            let request = Request::decode(&input.buf.split_to(proto::REQUEST_BYTES))?;
            if request.command == Command::Disconnect {
                return Ok(());
            }
            self.take(input, request).await?;
        }
    }

    fn hand_over(&mut self) {
        self.shared.queues[self.index].push_all(&mut self.batch);
    }

    async fn take<R: AsyncRead + Unpin>(
        &mut self,
        input: &mut Input<R>,
        request: Request,
    ) -> Result<(), ConnectionError> {
        let started = Instant::now();
        let payload_bytes = if request.command == Command::Write { request.length } else { 0 };
        if payload_bytes > proto::PAYLOAD_BYTES_MAX {
            // Reading on would mean to take more than the limit just to find the next request.
            let (found, limit) = (payload_bytes.into(), proto::PAYLOAD_BYTES_MAX.into());
            return Err(ProtoError::TooLong { what: "write", found, limit }.into());
        }
        let limits = &self.shared.limits;
        if let Err(failure) = execute::check(&request, &self.bounds) {
            self.hand_over();
            input.skip(payload_bytes as usize, limits).await?;
            let held = self.hold(0).await;
            answer(self.export.name(), &request, Err(failure), self.bounds.agreed, started, held, &*self.replies);
            return Ok(());
        }
        let held = self.hold(execute::memory_bytes(&request)).await;
        if input.buf.len() < payload_bytes as usize {
            self.hand_over();
        }
        let data = input.payload(payload_bytes as usize, limits).await?;
        let (export, agreed) = (Arc::clone(self.export), self.bounds.agreed);
        let replies = Arc::clone(&self.replies);
        self.batch.push(Box::new(move || {
            // A panic of an export must take neither the thread nor the client's request with it.
            let done = catch_unwind(AssertUnwindSafe(|| execute::execute(&*export, agreed, &request, data)));
            let done = done.unwrap_or_else(|_| Err(Failure::new(ErrorCode::Io, "the export failed internally")));
            answer(export.name(), &request, done, agreed, started, held, &*replies);
        }));
        if self.batch.len() == REQUEST_BATCH {
            self.hand_over();
        }
        Ok(())
    }

    async fn hold(&mut self, bytes: u64) -> Held {
        if let Some(held) = self.try_hold(bytes) {
            return held;
        }
        self.hand_over();
        let Ok(place) = Arc::clone(&self.places).acquire_owned().await else {
            unreachable!("the semaphore is never closed")
        };
        let connection = self.budget.claim(bytes).await;
        let export = self.shared.budgets[self.index].claim(bytes).await;
        Held { _place: place, _connection: connection, _export: export }
    }

    fn try_hold(&self, bytes: u64) -> Option<Held> {
        Some(Held {
            _place: Arc::clone(&self.places).try_acquire_owned().ok()?,
            _connection: self.budget.try_claim(bytes)?,
            _export: self.shared.budgets[self.index].try_claim(bytes)?,
        })
    }
}

impl Drop for Requests<'_> {
    fn drop(&mut self) {
        // Whatever was read is answered.
        self.hand_over();
    }
}

/// Counts a finished request and sends its reply.
fn answer(
    export: &str,
    request: &Request,
    done: Result<ReplyBytes, Failure>,
    agreed: Agreed,
    started: Instant,
    held: Held,
    replies: &dyn Replies,
) {
    let command = request.command.as_str();
    metrics::counter!(names::NBD_REQUESTS, "command" => command).increment(1);
    metrics::histogram!(names::NBD_REQUEST_SECONDS, "command" => command).record(started.elapsed().as_secs_f64());
    let bytes = done.unwrap_or_else(|failure| {
        metrics::counter!(names::NBD_ERRORS, "command" => command).increment(1);
        let (offset, length) = (request.offset, request.length);
        // The export's own failures are the operator's business, a client's mistakes its own.
        if matches!(failure.code, ErrorCode::Io | ErrorCode::NoMemory) {
            tracing::error!(export, command, offset, length, error = failure.text, "request failed");
        } else {
            tracing::debug!(export, command, offset, length, error = failure.text, "request refused");
        }
        failure.reply(request, agreed)
    });
    replies.reply(bytes, held);
}
