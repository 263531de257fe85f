//! The seam between the wire and the gateway: what a server asks of whoever takes the records.

use std::net::SocketAddr;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;

use super::code::Code;
use super::identity::AgentIdentity;
use super::messages::{OpenDisk, Report};
use super::transport::Transport;
use crate::fault::{Classify, Fault};
use crate::flow::{Pace, Watermark, watch};
use crate::types::{Chain, Epoch, Id128, Micros, RecordHead, Seq};

/// Who this gateway is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HelloInfo {
    /// The gateway's id.
    pub gateway: String,
    /// The vault that it writes.
    pub vault: Id128,
}

/// Implemented by the gateway: decides about disks and takes their records.
pub trait Host: Send + Sync + 'static {
    /// Where the records of one disk go.
    type Sink: RecordSink;

    /// Who this gateway is. Asked once per connection.
    fn hello(&self) -> HelloInfo;

    /// Gateways that an agent may try when this one drains, `host:port`, best first; empty for "the next of your list".
    fn peers(&self) -> Vec<String> {
        Vec::new()
    }

    /// How many ways records go from the wire: what stalls one of them stalls no other.
    fn ways(&self) -> usize {
        1
    }

    /// Returns when one agent, the caller's, had better go to another gateway: one call returns for each agent that is
    /// to go. A hint, which the agent follows when it has stayed for a while and another gateway takes it.
    fn leave_turn(&self) -> impl Future<Output = ()> + Send {
        std::future::pending()
    }

    /// Returns when nothing more of what was taken will ever be acknowledged, so that a drain need not wait for it. Asked
    /// during a drain only.
    fn broken(&self) -> impl Future<Output = ()> + Send {
        std::future::pending()
    }

    /// Takes what an agent says of one of its disks.
    fn report(&self, agent: &AgentIdentity, report: Report) {
        let _ = (agent, report);
    }

    /// An agent has a seat, from `address` over `transport`. One agent has one at a time.
    fn arrived(&self, agent: &AgentIdentity, address: SocketAddr, transport: Transport) {
        let _ = (agent, address, transport);
    }

    /// An agent that is about to have a seat, and that may sign barriers, showed these certificates, its own first: to be kept
    /// in the vault before a record of it is.
    fn shown(&self, agent: &AgentIdentity, certificates: Vec<Vec<u8>>) {
        let _ = (agent, certificates);
    }

    /// The agent has left its seat.
    fn left(&self, agent: &AgentIdentity) {
        let _ = agent;
    }

    /// Decides about a disk stream. The wire has already checked that `agent` may write the disk.
    ///
    /// May take long (a fork waits for the vault); dropped when the connection is lost meanwhile. If the disk is
    /// open on another stream, the host decides which of the two goes on.
    fn open_disk(
        &self,
        agent: &AgentIdentity,
        open: OpenDisk,
    ) -> impl Future<Output = Result<OpenedDisk<Self::Sink>, DiskRefusal>> + Send;
}

/// A disk stream to which the host agreed.
pub struct OpenedDisk<S> {
    /// The epoch that records must carry.
    pub epoch: Epoch,
    /// The first seq wanted.
    pub next_seq: Seq,
    /// Chain before `next_seq`: always known for a new epoch, for a resumed one if something of it is at hand. If
    /// known, the first record is checked against it; later records are always checked against the one before.
    pub chain: Option<Chain>,
    /// Of a new epoch: the chunks that the agent is to compare, because records hold them of which its state may not
    /// know. Ascending, with gaps between the runs, at most [`crate::limits::TOUCHED_RUNS_MAX`].
    pub touched: Vec<Range<u32>>,
    /// Highest seq of this epoch that is journaled.
    pub journaled: Arc<Watermark>,
    /// Highest seq of this epoch that is vaulted.
    pub vaulted: Arc<Watermark>,
    /// Record bytes that may be leased for the disk while there is plenty of memory, beside the base and what its next
    /// record needs. It may shrink, and 0 stops the agent.
    pub window: watch::Receiver<u64>,
    /// Limits of bandwidth that its records keep to: it gets no credit while one of them is shut.
    pub pace: Pace,
    /// Which of the [`Host::ways`] its records go.
    pub way: usize,
    /// Set to the newest epoch when another one took over.
    pub fenced: watch::Receiver<Option<Epoch>>,
    /// Set to the reason when the epoch cannot go on here, whether or not the agent sends anything.
    pub must_fork: watch::Receiver<Option<String>>,
    /// Takes the records. Dropped when the stream ends, however it ends.
    pub sink: S,
}

/// Takes the records of one disk, in order.
pub trait RecordSink: Send + 'static {
    /// Takes one record; `chunks` are its bytes (head, table, payload), `body_crc` the CRC-32C over them.
    ///
    /// Returning gives the agent new credit, so wait here for room. The future may be dropped while it waits, when
    /// the connection is lost; the record then counts as not taken.
    fn record(
        &mut self,
        head: RecordHead,
        body_crc: u32,
        chunks: Vec<Bytes>,
        received: Micros,
    ) -> impl Future<Output = Result<(), DiskRefusal>> + Send;
}

/// Why a disk stream is refused or ended by the gateway.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DiskRefusal {
    /// The epoch cannot be continued here.
    #[error("{text}")]
    MustFork {
        /// Why, for people.
        text: String,
    },
    /// Another epoch took over.
    #[error("fenced: epoch {newest} took over")]
    Fenced {
        /// The newest epoch known.
        newest: Epoch,
    },
    /// Anything else.
    #[error("{code}: {text}")]
    Refused {
        /// The reason as a number.
        code: Code,
        /// What is wrong and what to do, for people.
        text: String,
    },
}

impl DiskRefusal {
    /// A refusal with a code and a text.
    pub fn refused(code: Code, text: impl Into<String>) -> Self {
        Self::Refused { code, text: text.into() }
    }

    /// The reason as a number.
    #[must_use]
    pub const fn code(&self) -> Code {
        match self {
            Self::MustFork { .. } => Code::MustFork,
            Self::Fenced { .. } => Code::Fenced,
            Self::Refused { code, .. } => *code,
        }
    }
}

impl Classify for DiskRefusal {
    fn fault(&self) -> Fault {
        self.code().fault()
    }
}
