//! A blob endpoint that costs little: Azure's wire format over memory, or over nothing.
//!
//! ```text
//!  gateway ──HTTP──► gate ──► signature ──► weather ──► blobs (names, sizes, conditions; bodies if kept)
//!                    away?                  latency,
//!                                           bandwidth, 503        control ◄──HTTP── whoever turns the knobs
//! ```
//!
//! Figures of a gateway must not hold the cost of a store that was written to be correct and not to be quick, and a
//! fault must come when it is asked for. So this speaks what a vault needs of the Blob service: create and delete a
//! container, Put Blob with conditions, Put Block and its list, Get with ranges, Head, Delete, alone and in batches, List with
//! prefix, delimiter and marker. Requests are signed with a shared key, which is checked: a gateway that signs nothing would be measured too cheap.
//!
//! What holds:
//!
//! - A body counts as stored when it came whole; names appear at once and for everybody, as in the service.
//! - Memory is bounded by [`Limits`]: when it is full, puts are refused, and nothing that was stored is dropped.
//! - Bodies above [`Limits::discard_above_bytes`] are counted and thrown away; a Get of one is an error, never zeroes.
//! - Weather changes at once, for requests that are under way too.
//!
//! It does not own durability (it has none), blocks of a blob that is there already, metadata, leases, snapshots or SAS
//! tokens: requests for them are answered as not implemented. A date in the past is not refused.
//!
//! One thread serves all: a gateway on two cores uploads less than a core can take.

mod batch;
mod blobs;
mod control;
mod gate;
mod http;
mod listing;
mod sign;
mod weather;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use serde::Serialize;
use tidegate::flow::{Clock as _, SystemClock};
use tokio::net::TcpListener;

pub use sign::{ACCOUNT_DEFAULT, Account, BadKeyError, KEY_DEFAULT};
pub use weather::Weather;

use crate::thread::Worker;
use blobs::Blobs;
use weather::Sky;

/// Memory for bodies unless told otherwise.
pub const MEMORY_BYTES_DEFAULT: u64 = 4 << 30;

/// Names in one page of a listing, as Azure Blob has it.
pub const PAGE_NAMES_MAX_DEFAULT: usize = 5000;

/// What a sink keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of bodies beyond which puts are refused.
    pub memory_bytes: u64,
    /// Longer bodies are thrown away once they came whole.
    pub discard_above_bytes: u64,
    /// Names in one page of a listing, whatever is asked for: a service may always give fewer.
    pub page_names_max: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            memory_bytes: MEMORY_BYTES_DEFAULT,
            discard_above_bytes: u64::MAX,
            page_names_max: PAGE_NAMES_MAX_DEFAULT,
        }
    }
}

/// What a sink has seen so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct SinkCounts {
    /// Put Blob, Put Block and Put Block List, whatever became of them.
    pub puts: u64,
    /// Get Blob.
    pub gets: u64,
    /// Get Blob Properties.
    pub heads: u64,
    /// List Blobs.
    pub lists: u64,
    /// Delete Blob.
    pub deletes: u64,
    /// Requests about containers, and those that are not understood.
    pub others: u64,
    /// Refused because they were not signed with the key.
    pub refused: u64,
    /// Answered `503 Server Busy`.
    pub busy: u64,
    /// Connections that were broken because the store was away.
    pub broken: u64,
    /// Bytes of bodies that came.
    pub received_bytes: u64,
    /// Bytes of bodies that went out.
    pub sent_bytes: u64,
    /// Blobs that are there.
    pub blobs: u64,
    /// Bytes of their bodies, those thrown away included.
    pub stored_bytes: u64,
}

impl SinkCounts {
    /// All requests.
    #[must_use]
    pub const fn requests(&self) -> u64 {
        self.puts + self.gets + self.heads + self.lists + self.deletes + self.others
    }
}

struct Shared {
    account: Account,
    limits: Limits,
    sky: Sky,
    counts: parking_lot::Mutex<SinkCounts>,
    blobs: Blobs,
    clock: SystemClock,
}

impl Shared {
    fn count(&self, each: impl FnOnce(&mut SinkCounts)) {
        each(&mut self.counts.lock());
    }

    fn counts(&self) -> SinkCounts {
        let (blobs, stored_bytes) = self.blobs.size();
        SinkCounts { blobs, stored_bytes, broken: self.sky.broken(), ..*self.counts.lock() }
    }

    fn now_seconds(&self) -> i64 {
        (self.clock.wall().0 / 1_000_000) as i64
    }
}

/// A running sink. Dropped, it ends.
pub struct Sink {
    address: SocketAddr,
    control: Option<SocketAddr>,
    shared: Arc<Shared>,
    _worker: Worker,
}

impl Sink {
    /// Listens on `listen`, and on `control` for those who change the weather (`GET /` tells it and the counts, `PUT /`
    /// with a JSON object sets what the object names).
    ///
    /// # Errors
    /// If an address cannot be bound.
    pub fn start(
        listen: SocketAddr,
        control: Option<SocketAddr>,
        account: Account,
        limits: Limits,
        weather: Weather,
    ) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            account,
            limits,
            sky: Sky::new(weather),
            counts: parking_lot::Mutex::default(),
            blobs: Blobs::default(),
            clock: SystemClock::new(),
        });
        let of_worker = Arc::clone(&shared);
        let (worker, (address, control)) = Worker::start("sink", move || {
            let bind = |address: SocketAddr| {
                let listener = std::net::TcpListener::bind(address)?;
                listener.set_nonblocking(true)?;
                TcpListener::from_std(listener)
            };
            let listener = bind(listen)?;
            let control = control.map(bind).transpose()?;
            let address = listener.local_addr()?;
            let control_address = control.as_ref().map(TcpListener::local_addr).transpose()?;
            Ok(((address, control_address), serve(listener, control, of_worker)))
        })?;
        Ok(Self { address, control, shared, _worker: worker })
    }

    /// Where it listens.
    #[must_use]
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Where its control listens.
    #[must_use]
    pub const fn control(&self) -> Option<SocketAddr> {
        self.control
    }

    /// URL of a vault in a container of this name; `tidegate vault init` creates the container.
    #[must_use]
    pub fn vault_url(&self, container: &str) -> String {
        format!("http://{}/{}/{container}", self.address, self.shared.account.name())
    }

    /// From now on requests meet this.
    pub fn set(&self, weather: Weather) {
        self.shared.sky.set(weather);
    }

    /// What requests meet now.
    #[must_use]
    pub fn weather(&self) -> Weather {
        self.shared.sky.weather()
    }

    /// What it has seen so far.
    #[must_use]
    pub fn counts(&self) -> SinkCounts {
        self.shared.counts()
    }
}

async fn serve(listener: TcpListener, control: Option<TcpListener>, shared: Arc<Shared>) {
    let data = http::serve(gate::Gate::new(listener, Arc::clone(&shared)), Arc::clone(&shared));
    match control {
        None => data.await,
        Some(control) => {
            tokio::join!(data, control::serve(control, shared));
        }
    }
}

#[cfg(test)]
mod tests;
