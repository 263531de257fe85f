//! How far an agent's clock is from the gateway's, as the agent measures it with its pings.
//!
//! Labels are corrected by the agent, so nothing is lost with a wrong clock. But one of the two is wrong, and which one
//! matters: all agents apart at once means that it is the gateway's, whose requests a store refuses at a quarter of an hour.

use super::Gauged;
use crate::telemetry::names;
use crate::wire::messages::Ping;

/// Beyond what a healthy time service leaves, and a second is the step of recovery points.
const APART_MICROS: u64 = 2_000_000;

/// What one session's pings said so far.
pub(super) struct Skew {
    agent: String,
    apart: Option<Gauged>,
}

impl Skew {
    pub(super) const fn new(agent: String) -> Self {
        Self { agent, apart: None }
    }

    /// Takes what a ping says: told once when the clocks are apart, and once when they are not any more.
    pub(super) fn take(&mut self, ping: Ping) {
        let apart = ping.offset_micros.unsigned_abs().saturating_sub(u64::from(ping.uncertainty_micros)) > APART_MICROS;
        if apart == self.apart.is_some() {
            return;
        }
        let agent = &self.agent;
        let ahead_seconds = ping.offset_micros.saturating_neg() as f64 / 1e6;
        if apart {
            tracing::warn!(
                agent,
                ahead_seconds,
                "the agent's clock is not this gateway's: look at the time service of both; labels are in the gateway's time"
            );
            self.apart = Some(Gauged::new(names::AGENTS_SKEWED));
        } else {
            tracing::info!(agent, ahead_seconds, "the agent's clock is this gateway's again");
            self.apart = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(pings: &[(i64, u32)]) -> bool {
        let mut skew = Skew::new("a1".into());
        for (offset_micros, uncertainty_micros) in pings {
            skew.take(Ping { token: 0, offset_micros: *offset_micros, uncertainty_micros: *uncertainty_micros });
        }
        skew.apart.is_some()
    }

    #[test]
    fn clocks_are_apart_when_more_than_the_uncertainty_and_two_seconds_lie_between_them() {
        assert!(!after(&[(0, u32::MAX)]), "nothing is known before the first answer");
        assert!(!after(&[(2_000_000, 0)]));
        assert!(after(&[(2_000_001, 0)]));
        assert!(after(&[(-3_600_000_000, 50_000)]));
        assert!(!after(&[(-2_040_000, 50_000)]));
        assert!(after(&[(i64::MIN, 0)]));
        assert!(!after(&[(5_000_000, 0), (1_000, 0)]), "it is right again");
    }
}
