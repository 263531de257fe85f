//! What the admin port says, as far as `status` and `top` show it. Fields that a gateway of another version lacks count as nothing.

use serde::Deserialize;
use serde_json::Value;

use super::Failure;
use crate::gateway::findings::Severity;
use crate::gateway::outlook::Heading;
use crate::gateway::stages::Stages;

/// One look at a gateway.
#[derive(Debug, Clone, Default)]
pub struct Seen {
    /// The whole.
    pub status: SeenStatus,
    /// Every disk.
    pub disks: Vec<SeenDisk>,
    /// Every agent.
    pub agents: Vec<SeenAgent>,
}

/// Of `/v1/status`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct SeenStatus {
    pub gateway: String,
    pub vault: String,
    pub version: String,
    pub ready: bool,
    pub reason: String,
    pub trouble: String,
    pub up_seconds: f64,
    pub agents: usize,
    pub disks: Vec<(String, usize)>,
    pub worst: Option<(String, f64)>,
    pub dirty_bytes: u64,
    pub unvaulted_bytes: u64,
    pub journal_used_bytes: u64,
    pub journal_capacity_bytes: u64,
    pub journal_level: String,
    pub journal_heading: Option<Heading>,
    pub journal_backend: String,
    pub stages: Option<Stages>,
    pub findings: Vec<SeenFinding>,
    pub bandwidth: Vec<SeenLimit>,
}

/// One limit of bandwidth.
#[derive(Debug, Clone, Deserialize)]
pub struct SeenLimit {
    pub holds: bool,
    pub words: String,
}

/// One finding, the gravest first.
#[derive(Debug, Clone, Deserialize)]
pub struct SeenFinding {
    pub severity: Severity,
    pub stage: String,
    pub text: String,
    pub next: String,
    pub runbook: String,
}

/// Of `/v1/disks`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct SeenDisk {
    pub disk: String,
    pub agent: Option<String>,
    pub condition: String,
    pub epoch: Option<u64>,
    pub journaled_seq: u64,
    pub vaulted_seq: u64,
    pub rpo_seconds: Option<f64>,
    pub dirty_bytes: u64,
    pub unvaulted_bytes: u64,
}

impl SeenDisk {
    /// Bytes to copy and to vault.
    pub const fn backlog_bytes(&self) -> u64 {
        self.dirty_bytes.saturating_add(self.unvaulted_bytes)
    }
}

/// Of `/v1/agents`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct SeenAgent {
    pub agent: String,
    pub address: String,
    pub transport: String,
    pub connected_seconds: f64,
    pub disks: Vec<String>,
    pub rpo_seconds: f64,
}

impl Seen {
    /// From the three answers. A gateway that is not ready yet answers all with its reason, and has no disks.
    ///
    /// # Errors
    /// [`Failure`] if the answers are no gateway's.
    pub fn of(status: Value, disks: Value, agents: Value) -> Result<Self, Failure> {
        let foreign = |error: serde_json::Error| Failure::error(format!("the answer is no gateway's: {error}"));
        let mut seen = Self { status: serde_json::from_value(status).map_err(foreign)?, ..Self::default() };
        if seen.status.findings.is_empty() {
            seen.status.findings.push(SeenFinding {
                severity: if seen.status.ready { Severity::Ok } else { Severity::Warning },
                stage: String::new(),
                text: if seen.status.ready {
                    "This gateway, of another version, names no findings.".to_owned()
                } else {
                    format!("This gateway takes no agents yet: {}.", seen.status.reason)
                },
                next: String::new(),
                runbook: String::new(),
            });
        }
        if disks.is_array() {
            seen.disks = serde_json::from_value(disks).map_err(foreign)?;
        }
        if agents.is_array() {
            seen.agents = serde_json::from_value(agents).map_err(foreign)?;
        }
        Ok(seen)
    }
}
