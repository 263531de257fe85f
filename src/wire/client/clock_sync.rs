//! The offset between the gateway's clock and this machine's, from pings.

/// How far the gateway's wall clock is ahead of this machine's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClockOffset {
    /// Gateway's time minus this machine's, in microseconds.
    pub offset_micros: i64,
    /// How far that may be off, in microseconds: half the round trip of the best sample, and drift since.
    pub uncertainty_micros: u32,
}
