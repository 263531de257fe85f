//! What came of a run, in the form in which it is printed, stored and drawn.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};
use tidegate::cli::quickstart::child::{http_get, metric};
use tidegate::telemetry::names;

use super::profile::Profile;
use super::tally::Latency;
use crate::process::Usage;

/// What a gateway has counted so far, or between two looks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Counted {
    /// Records read off the wire.
    pub received_records: u64,
    /// Records that it journaled.
    pub journaled_records: u64,
    /// Records that it vaulted.
    pub vaulted_records: u64,
    /// Requests to the blob store.
    pub blob_requests: u64,
    /// Bytes after compression and sealing.
    pub sealed_bytes: u64,
    /// Bytes before.
    pub plain_bytes: u64,
    /// Commits of its journal.
    pub commits: u64,
    /// Bytes of these commits.
    pub commit_bytes: u64,
    /// Bytes in its journal at this moment.
    pub journal_used_bytes: u64,
}

impl Counted {
    /// Asks a gateway; `None` if it does not answer.
    #[must_use]
    pub fn ask(admin: SocketAddr) -> Option<Self> {
        let (_, page) = http_get(admin, "/metrics").ok().filter(|(status, _)| *status == 200)?;
        let of = |name: &str| metric(&page, name).max(0.0) as u64;
        Some(Self {
            received_records: of(names::RECEIVED_RECORDS),
            journaled_records: of(names::JOURNALED_RECORDS),
            vaulted_records: of(names::VAULTED_RECORDS),
            blob_requests: of(names::BLOB_REQUESTS),
            sealed_bytes: of(names::PIPELINE_SEALED_BYTES),
            plain_bytes: of(names::PIPELINE_PLAIN_BYTES),
            commits: of(&format!("{}_count", names::JOURNAL_COMMIT_BYTES)),
            commit_bytes: of(&format!("{}_sum", names::JOURNAL_COMMIT_BYTES)),
            journal_used_bytes: of(names::JOURNAL_USED_BYTES),
        })
    }

    pub(super) fn since(&self, before: &Self) -> Self {
        Self {
            received_records: self.received_records.saturating_sub(before.received_records),
            journaled_records: self.journaled_records.saturating_sub(before.journaled_records),
            vaulted_records: self.vaulted_records.saturating_sub(before.vaulted_records),
            blob_requests: self.blob_requests.saturating_sub(before.blob_requests),
            sealed_bytes: self.sealed_bytes.saturating_sub(before.sealed_bytes),
            plain_bytes: self.plain_bytes.saturating_sub(before.plain_bytes),
            commits: self.commits.saturating_sub(before.commits),
            commit_bytes: self.commit_bytes.saturating_sub(before.commit_bytes),
            journal_used_bytes: self.journal_used_bytes,
        }
    }

    /// What is less than the `sent` records, in words. It may be more: others may use the gateway too.
    pub(super) fn against(self, sent: u64) -> Vec<String> {
        let all = [
            ("received", self.received_records),
            ("journaled", self.journaled_records),
            ("vaulted", self.vaulted_records),
        ];
        let less = all.into_iter().filter(|(_, count)| *count < sent);
        less.map(|(level, count)| format!("{sent} records were sent, but the gateway counts {count} as {level}"))
            .collect()
    }
}

/// What is known of the gateway of a run.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Gateway {
    /// By its own count.
    pub counted: Option<Counted>,
    /// By the kernel's.
    pub used: Option<Usage>,
}

/// A second of a run. Bytes are sums since the start, latencies those of this second.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Sample {
    /// Since the start.
    pub seconds: f64,
    /// Payload handed to connections.
    pub sent_bytes: u64,
    /// Payload acked as journaled.
    pub journaled_bytes: u64,
    /// Payload acked as vaulted.
    pub vaulted_bytes: u64,
    /// Until journaled.
    pub journaled: Latency,
    /// Until vaulted.
    pub vaulted: Latency,
    /// Age of the oldest record that is not vaulted, of all disks.
    pub oldest_seconds: f64,
    /// Memory of the gateway, if its process is known.
    pub gateway_memory_bytes: Option<u64>,
    /// Processor time that it used so far.
    pub gateway_cpu_seconds: Option<f64>,
    /// Bytes in its journal, if its admin port is known.
    pub journal_used_bytes: Option<u64>,
    /// Requests to the blob store that it made so far, by its own count.
    #[serde(default)]
    pub blob_requests: Option<u64>,
}

/// Whether restored images were what they had to be.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verified {
    /// Images that were restored and compared by hash.
    pub disks: usize,
    /// What was found to differ, in words.
    pub differences: Vec<String>,
}

/// What came of a run.
#[derive(Clone, Debug, Serialize)]
pub struct Outcome {
    /// The kind of load.
    pub profile: Profile,
    /// Agents.
    pub agents: usize,
    /// Disks of each.
    pub disks_each: usize,
    /// The rate of the open loop; zero for a closed one.
    pub offered_bytes_per_second: u64,
    /// How much smaller LZ4 makes the payload.
    pub payload_ratio: f64,
    /// Until every agent was connected and every disk open.
    pub connect_seconds: f64,
    /// From the first write until everything was vaulted.
    pub seconds: f64,
    /// Payload that was sent.
    pub sent_bytes: u64,
    /// Records that were sent, barriers too.
    pub sent_records: u64,
    /// Payload over time, all of it vaulted.
    pub throughput_bytes_per_second: f64,
    /// From when a record was due until it was acked as journaled.
    pub journaled_ack_seconds: Latency,
    /// From when a record was due until it was acked as vaulted.
    pub rpo_seconds: Latency,
    /// By how much this program itself was late at most; above a few milliseconds its machine is too busy to be believed.
    pub late_seconds_max: f64,
    /// The gateway's own account.
    pub gateway: Option<Gateway>,
    /// Its memory when everybody was connected and nothing was written, if its process is known.
    pub gateway_memory_at_start_bytes: Option<u64>,
    /// Restored images.
    pub verified: Option<Verified>,
    /// What went wrong.
    pub failures: Vec<String>,
    /// Second by second.
    pub samples: Vec<Sample>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gateway_that_counts_less_than_was_sent_is_named_by_level() {
        let counted = Counted { received_records: 10, journaled_records: 9, vaulted_records: 12, ..Counted::default() };
        let less = counted.against(10);
        assert_eq!(less.len(), 1, "{less:?}");
        assert!(less[0].contains("journaled"), "{less:?}");
        assert_eq!(counted.since(&counted).received_records, 0);
    }
}
