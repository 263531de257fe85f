//! The load's side of the floor: the writes of a run, each followed by its reply.

use std::collections::VecDeque;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::{Buf as _, Bytes};
use hdrhistogram::Histogram;
use parking_lot::Mutex;
use tidegate::flow::{Clock as _, SystemClock, Watermark};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

use super::{MICROS_MAX, TRAIL};
use crate::limit::network::Failure;
use crate::payload::Pool;
use crate::run::disk::Orders;

/// Where records go out.
pub(super) trait Outbound: Send {
    /// A record behind its length.
    fn record(&mut self, length: Bytes, payload: Bytes) -> impl Future<Output = Result<(), Failure>> + Send;
}

impl Outbound for quinn::SendStream {
    async fn record(&mut self, length: Bytes, payload: Bytes) -> Result<(), Failure> {
        Ok(self.write_all_chunks(&mut [length, payload]).await?)
    }
}

/// TLS over TCP.
pub(super) struct Tls<W>(pub(super) W);

impl<W: AsyncWrite + Unpin + Send> Outbound for Tls<W> {
    async fn record(&mut self, length: Bytes, payload: Bytes) -> Result<(), Failure> {
        self.0.write_all_buf(&mut length.chain(payload)).await?;
        Ok(self.0.flush().await?)
    }
}

/// One disk at the load's side.
pub(super) struct Disk {
    pub(super) pool: Pool,
    pub(super) clock: Arc<SystemClock>,
    /// Of all disks together.
    pub(super) left_bytes: Arc<AtomicU64>,
    /// When the records were due whose replies are still to come.
    pub(super) due: Mutex<VecDeque<Duration>>,
}

impl Disk {
    /// Returns the bytes that it wrote.
    pub(super) async fn run(
        self,
        mut send: impl Outbound,
        mut recv: impl AsyncRead + Unpin + Send,
        orders: Orders,
        duration: Duration,
        micros: Arc<Mutex<Histogram<u64>>>,
    ) -> Result<u64, Failure> {
        let (last, written) = (Watermark::default(), Watermark::default());
        let writes = async {
            let (sent, bytes) = self.write_all(&mut send, orders, duration).await?;
            written.advance(bytes);
            last.advance(sent);
            Ok::<_, Failure>(sent)
        };
        let replies = async {
            let (mut told, mut bytes) = (0, [0; 8]);
            loop {
                recv.read_exact(&mut bytes).await?;
                let (now, number) = (self.clock.monotonic(), u64::from_le_bytes(bytes));
                let mut due = self.due.lock();
                let mut micros = micros.lock();
                while told < number
                    && let Some(due) = due.pop_front()
                {
                    told += 1;
                    micros.saturating_record((now.saturating_sub(due).as_micros() as u64).clamp(1, MICROS_MAX));
                }
                drop((due, micros));
                if told == last.get() && told > 0 {
                    return Ok::<_, Failure>(());
                }
            }
        };
        tokio::pin!(replies);
        let early = tokio::select! {
            sent = writes => sent? == 0,
            ended = &mut replies => return ended.map(|()| written.get()),
        };
        if !early && !self.due.lock().is_empty() {
            tokio::time::timeout(TRAIL, replies).await??;
        }
        Ok(written.get())
    }

    /// Returns how many there were, and their bytes.
    async fn write_all(
        &self,
        send: &mut impl Outbound,
        orders: Orders,
        duration: Duration,
    ) -> Result<(u64, u64), Failure> {
        let Orders { mut pattern, pace, .. } = orders;
        let (mut written_bytes, mut number) = (0, 0);
        loop {
            let now = self.clock.monotonic();
            let due = pace.due(written_bytes).unwrap_or(now);
            if due >= duration {
                break;
            }
            // As in a run: that a timer is late is this program's own fault, and no part of a latency.
            let due = if due > now {
                tokio::time::sleep(due - now).await;
                self.clock.monotonic().max(due)
            } else {
                due
            };
            let write = pattern.next_write();
            let taken = |left: u64| left.checked_sub(u64::from(write.length_bytes));
            if self.left_bytes.fetch_update(Ordering::AcqRel, Ordering::Acquire, taken).is_err() {
                break;
            }
            let (_, payload) = self.pool.slice(pattern.number(), write.length_bytes as usize);
            self.due.lock().push_back(due);
            let length = Bytes::copy_from_slice(&(payload.len() as u32).to_le_bytes());
            send.record(length, payload).await?;
            written_bytes += u64::from(write.length_bytes);
            number += 1;
        }
        Ok((number, written_bytes))
    }
}
