//! How the connections over QUIC fare: loss, round trip times and congestion, over all of them together. An agent has no
//! label of its own here; whose connection is bad, the agent's own page says.

use std::collections::HashMap;
use std::time::Duration;

use super::Server;
use crate::telemetry::names;
use crate::wire::transport::{PathFigures, Session};

/// How often all connections are looked at: a look costs about a microsecond for each.
const LOOK: Duration = Duration::from_secs(5);
/// Connections that are looked at before others have their turn.
const AT_ONCE: usize = 64;
/// The shares of connections that a gauge has a line for.
const SHARES: [(&str, f64); 4] = [("0.5", 0.5), ("0.9", 0.9), ("0.99", 0.99), ("1", 1.0)];

/// Looks now and then, for ever.
pub(super) async fn watch<H>(server: &Server<H>) {
    let mut counts = Counts::default();
    loop {
        tokio::time::sleep(LOOK).await;
        let sessions = server.seats.sessions();
        let mut figures = Vec::with_capacity(sessions.len());
        for some in sessions.chunks(AT_ONCE) {
            figures.extend(some.iter().filter_map(|(number, session)| Some((*number, session.path_figures()?))));
            tokio::task::yield_now().await;
        }
        show(&counts.since(&figures), &figures);
    }
}

impl super::Seats {
    fn sessions(&self) -> Vec<(u64, Session)> {
        self.taken.lock().values().map(|entry| (entry.number, entry.session.clone())).collect()
    }
}

/// What the connections of the last look had counted. Bounded by the seats.
#[derive(Default)]
struct Counts(HashMap<u64, [u64; 3]>);

impl Counts {
    /// What was counted since the last look: sent, lost, congested.
    fn since(&mut self, figures: &[(u64, PathFigures)]) -> [u64; 3] {
        let mut sum = [0; 3];
        let mut now = HashMap::with_capacity(figures.len());
        for (number, path) in figures {
            let counted = [path.sent, path.lost, path.congestion_events];
            let before = self.0.get(number).copied().unwrap_or_default();
            for (at, sum) in sum.iter_mut().enumerate() {
                *sum += counted[at].saturating_sub(before[at]);
            }
            now.insert(*number, counted);
        }
        self.0 = now;
        sum
    }
}

fn show(since: &[u64; 3], figures: &[(u64, PathFigures)]) {
    for (name, count) in [names::QUIC_SENT, names::QUIC_LOST, names::QUIC_CONGESTION].into_iter().zip(since) {
        metrics::counter!(name).increment(*count);
    }
    let sorted = |of: fn(&PathFigures) -> f64| {
        let mut all: Vec<f64> = figures.iter().map(|(_, path)| of(path)).collect();
        all.sort_by(f64::total_cmp);
        all
    };
    let (rtts, windows) = (sorted(|path| path.rtt.as_secs_f64()), sorted(|path| path.window_bytes as f64));
    for (label, share) in SHARES {
        metrics::gauge!(names::QUIC_RTT_SECONDS, "quantile" => label).set(at_share(&rtts, share));
        metrics::gauge!(names::QUIC_WINDOW_BYTES, "quantile" => label).set(at_share(&windows, share));
    }
}

/// The value that this share of the sorted ones does not exceed; 0 of none.
fn at_share(sorted: &[f64], share: f64) -> f64 {
    let rank = (share * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.saturating_sub(1)).copied().unwrap_or(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(sent: u64, lost: u64) -> PathFigures {
        PathFigures { rtt: Duration::ZERO, window_bytes: 0, sent, lost, congestion_events: lost }
    }

    #[test]
    fn counts_go_on_when_connections_come_and_go() {
        let mut counts = Counts::default();
        assert_eq!(counts.since(&[(1, path(10, 1)), (2, path(5, 0))]), [15, 1, 1]);
        assert_eq!(counts.since(&[(1, path(12, 1)), (3, path(7, 2))]), [9, 2, 2]);
        assert_eq!(counts.since(&[]), [0; 3]);
        assert!(counts.0.is_empty(), "who has gone is forgotten");
    }

    #[test]
    fn shares_are_of_the_connections_that_there_are() {
        let hundred: Vec<f64> = (1..=100).map(f64::from).collect();
        assert_eq!(SHARES.map(|(_, share)| at_share(&hundred, share)), [50.0, 90.0, 99.0, 100.0]);
        assert_eq!(SHARES.map(|(_, share)| at_share(&[7.0], share)), [7.0; 4]);
        assert_eq!(at_share(&[], 0.5), 0.0);
    }
}
