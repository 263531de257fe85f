//! Stand-in for the index rows.
use crate::types::{Chain, Epoch, Extent, Id128, Micros, RecordKind, Seq};

/// One record as an index names it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RecordMeta {
    pub seq: Seq,
    pub label: Micros,
    pub clock_uncertainty_micros: u32,
    pub kind: RecordKind,
    pub group: Id128,
    pub name: Option<String>,
    pub extents: Vec<Extent>,
}

/// One message as an index names it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MessageMeta {
    pub epoch: Epoch,
    pub first: Seq,
    pub last: Seq,
    pub offset_bytes: u64,
    pub stored_bytes: u32,
    pub plain_bytes: u32,
    pub chain_before: Option<Chain>,
    pub chain_last: Chain,
    pub records: Vec<RecordMeta>,
}
