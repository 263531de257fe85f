//! Replies on their way to the client. The thread that finishes a request writes its reply itself, as long as the socket
//! takes it at once: nobody is woken for it. What the socket does not take waits for [`Outlet::drain`], in order.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};

use parking_lot::Mutex;
use tokio::io::AsyncWrite;

use super::connection::Held;
use super::execute::ReplyBytes;

/// Replies that one write to the socket gathers at most.
const REPLY_BATCH: usize = 64;

/// A finished request, with what it holds until its reply is sent.
struct Reply {
    bytes: ReplyBytes,
    _held: Held,
}

/// Where finished requests leave their replies.
pub(super) trait Replies: Send + Sync {
    /// Sends a reply, or leaves it for whoever drains.
    fn reply(&self, bytes: ReplyBytes, held: Held);
}

/// The writing half of a connection. The number of replies in it is bounded by the places of the connection.
pub(super) struct Outlet<W>(Mutex<State<W>>);

struct State<W> {
    /// None once nothing can be sent any more.
    stream: Option<W>,
    waiting: VecDeque<Reply>,
    /// Bytes of the first one that are sent already.
    sent_bytes: usize,
    drainer: Option<Waker>,
}

impl<W: AsyncWrite + Send + Unpin> Outlet<W> {
    pub(super) fn new(stream: W) -> Self {
        let waiting = VecDeque::new();
        Self(Mutex::new(State { stream: Some(stream), waiting, sent_bytes: 0, drainer: None }))
    }

    /// Sends what waits, now and later. Ends only if the socket fails.
    pub(super) async fn drain(&self) -> io::Error {
        poll_fn(|context| {
            let mut state = self.0.lock();
            // Also where the socket is to wake this task: a socket remembers one waker, and a stream that encrypts may hold bytes
            // back while no reply waits, so that the next reply asks the socket, in vain, in this task's place.
            state.drainer = Some(context.waker().clone());
            match ready!(state.poll_send(context)) {
                Err(error) => Poll::Ready(error),
                Ok(()) => Poll::Pending,
            }
        })
        .await
    }

    /// Tells the client that nothing more comes.
    pub(super) async fn shutdown(&self) -> io::Result<()> {
        poll_fn(|context| match &mut self.0.lock().stream {
            Some(stream) => Pin::new(stream).poll_shutdown(context),
            None => Poll::Ready(Ok(())),
        })
        .await
    }
}

/// The connection's own hold of its outlet. Dropped, the socket is closed, though a request that hangs may hold the rest.
pub(super) struct OutletOwner<W>(pub(super) Arc<Outlet<W>>);

impl<W> Drop for OutletOwner<W> {
    fn drop(&mut self) {
        let mut state = self.0.0.lock();
        state.stream = None;
        // Nobody is to be told any more: what waits gives back what it holds.
        state.waiting.clear();
    }
}

impl<W: AsyncWrite + Send + Unpin> Replies for Outlet<W> {
    fn reply(&self, bytes: ReplyBytes, held: Held) {
        let mut state = self.0.lock();
        if state.stream.is_none() {
            return;
        }
        let first = state.waiting.is_empty();
        state.waiting.push_back(Reply { bytes, _held: held });
        // Behind others it is sent with them. An error is found again by whoever drains, who can end the connection.
        if first && !matches!(state.poll_send(&mut Context::from_waker(Waker::noop())), Poll::Ready(Ok(()))) {
            let drainer = state.drainer.take();
            drop(state);
            drainer.into_iter().for_each(Waker::wake);
        }
    }
}

impl<W: AsyncWrite + Unpin> State<W> {
    /// Sends until nothing waits.
    fn poll_send(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.waiting.is_empty() {
            let mut slices = Vec::with_capacity(self.waiting.len().min(REPLY_BATCH));
            self.waiting.iter().take(REPLY_BATCH).for_each(|reply| reply.slices(&mut slices));
            let mut left = &mut slices[..];
            IoSlice::advance_slices(&mut left, self.sent_bytes);
            let Some(stream) = &mut self.stream else { return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())) };
            let wrote = ready!(Pin::new(stream).poll_write_vectored(context, left))?;
            if wrote == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.sent_bytes += wrote;
            while let Some(bytes) = self.waiting.front().map(Reply::bytes).filter(|bytes| *bytes <= self.sent_bytes) {
                self.sent_bytes -= bytes;
                self.waiting.pop_front();
            }
        }
        // A stream that encrypts may hold back what it took.
        if let Some(stream) = &mut self.stream {
            ready!(Pin::new(stream).poll_flush(context))?;
        }
        Poll::Ready(Ok(()))
    }
}

impl Reply {
    fn slices<'a>(&'a self, into: &mut Vec<IoSlice<'a>>) {
        match &self.bytes {
            ReplyBytes::Simple(bytes) => into.push(IoSlice::new(bytes)),
            ReplyBytes::Whole(bytes) => into.push(IoSlice::new(bytes)),
            ReplyBytes::Pieces(pieces) => into.extend(pieces.iter().map(|piece| IoSlice::new(piece))),
        }
    }

    fn bytes(&self) -> usize {
        match &self.bytes {
            ReplyBytes::Simple(bytes) => bytes.len(),
            ReplyBytes::Whole(bytes) => bytes.len(),
            ReplyBytes::Pieces(pieces) => pieces.iter().map(bytes::Bytes::len).sum(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::time::Duration;

    use super::*;

    /// A stream that encrypts, before a socket: it takes whatever is written, and gives it on when it is flushed and the socket has
    /// room. As a socket's, the last waker that asked is the one that is woken.
    #[derive(Default)]
    struct Encrypted {
        has_room: AtomicBool,
        asked: Mutex<Option<Waker>>,
        taken_bytes: Mutex<usize>,
        sent_bytes: Mutex<usize>,
    }

    #[derive(Clone, Default)]
    struct Stream(Arc<Encrypted>);

    impl AsyncWrite for Stream {
        fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
            *self.0.taken_bytes.lock() += bytes.len();
            Poll::Ready(Ok(bytes.len()))
        }

        fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
            if !self.0.has_room.load(Ordering::SeqCst) {
                *self.0.asked.lock() = Some(context.waker().clone());
                return Poll::Pending;
            }
            *self.0.sent_bytes.lock() = *self.0.taken_bytes.lock();
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    #[tokio::test]
    async fn a_reply_that_finds_the_socket_full_does_not_keep_it_from_waking_whoever_drains() {
        let stream = Stream::default();
        let outlet = Arc::new(Outlet::new(stream.clone()));
        let draining = tokio::spawn({
            let outlet = Arc::clone(&outlet);
            async move { outlet.drain().await }
        });
        for _ in 0..3 {
            outlet.reply(ReplyBytes::Simple(Default::default()), Held::place().await);
            // The drainer looks, finds the socket full, and waits for it.
            for _ in 0..3 {
                tokio::task::yield_now().await;
            }
        }
        // Nobody looks any more but whom the socket wakes.
        outlet.reply(ReplyBytes::Simple(Default::default()), Held::place().await);
        for _ in 0..3 {
            tokio::task::yield_now().await;
        }
        stream.0.has_room.store(true, Ordering::SeqCst);
        stream.0.asked.lock().take().expect("somebody waits").wake();
        tokio::time::sleep(Duration::from_millis(1)).await;
        assert_eq!(*stream.0.sent_bytes.lock(), 4 * crate::nbd::proto::SIMPLE_REPLY_BYTES);
        draining.abort();
    }
}
