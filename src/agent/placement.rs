//! Which gateway an agent goes to. Pure: the list, answers and times come in as arguments.
//!
//! ```text
//!            rank: weighted rendezvous of agent and address          redirect, after the shortest stay
//!  list ───► best · second · third ──► arrived ──► stays ──────────────────────────► hinted, others, this one last
//!                 ▲                                 │  │ lost
//!                 │ a better one answered           │  └────► this one, then by rank
//!                 └── for `return_after`, unbroken ─┘
//! ```
//!
//! - Every agent ranks by itself, so no gateway or table is asked, and a gateway that goes or comes moves only the agents
//!   whose first choice it is. A weight of 2 draws twice as many agents as a weight of 1.
//! - An agent stays where it is. Nothing but a loss, a redirect, or a better choice that has proven itself moves it, so
//!   load figures and short absences cause no wandering.
//! - After a loss the same gateway is asked first: one that is back has its journal, and then the epoch goes on.
//! - A gateway that asks to leave again and again is returned to later each time.

use std::collections::BTreeMap;
use std::time::Duration;

use ring::digest::{SHA256, digest};

/// Most gateways in a list: more choice does not help an agent that asks one after the other.
pub const GATEWAYS_MAX: usize = 16;
/// Largest weight: shares of a thousandth.
pub const WEIGHT_MAX: u32 = 1000;
/// How often the wait before a return may double.
const DOUBLINGS_MAX: u32 = 5;
/// A stay of so many waits proves a gateway able: what it asked before is forgotten.
const PROVEN_STAYS: u32 = 10;

/// A gateway of the list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gateway {
    /// Where it is, `host:port`.
    pub address: String,
    /// Its share of agents, relative to the others'.
    pub weight: u32,
}

impl Gateway {
    /// A gateway of weight 1.
    #[must_use]
    pub fn new(address: impl Into<String>) -> Self {
        Self { address: address.into(), weight: 1 }
    }
}

/// The addresses, best for this agent first.
#[must_use]
pub fn rank(agent: &str, gateways: &[Gateway]) -> Vec<String> {
    let mut scored: Vec<(f64, &str)> =
        gateways.iter().map(|gateway| (score(agent, gateway), gateway.address.as_str())).collect();
    scored.sort_by(|(a, one), (b, other)| b.total_cmp(a).then_with(|| one.cmp(other)));
    scored.into_iter().map(|(_, address)| address.to_owned()).collect()
}

/// With u drawn evenly from (0, 1) by the hash, `−weight ÷ ln u` is highest for each with the chance of its weight.
fn score(agent: &str, gateway: &Gateway) -> f64 {
    let hash = digest(&SHA256, format!("{agent}\n{}", gateway.address).as_bytes());
    let bits = hash.as_ref().iter().take(8).fold(0_u64, |bits, &byte| bits << 8 | u64::from(byte)) >> 11;
    // 53 bits are what a double holds; the half keeps u off 0 and 1.
    let u = (bits as f64 + 0.5) / (1_u64 << 53) as f64;
    -f64::from(gateway.weight) / u.ln()
}

/// Why the agent is where it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Why {
    /// It is the best of the list.
    FirstChoice,
    /// Better ones did not answer.
    FailOver,
    /// Another gateway asked it to leave.
    Redirected,
}

impl Why {
    /// For people.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::FirstChoice => "its first choice",
            Self::FailOver => "better choices did not answer",
            Self::Redirected => "a gateway asked it to leave",
        }
    }
}

/// A stay at a gateway.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stay {
    /// Where.
    pub address: String,
    /// Since when, on the agent's monotonic clock.
    pub since: Duration,
    /// Why there.
    pub why: Why,
}

/// Where the agent is, was, and may go.
#[derive(Debug)]
pub struct Placement {
    ranked: Vec<String>,
    return_after: Duration,
    /// The present stay, or the last one.
    stay: Option<Stay>,
    connected: bool,
    /// What the gateway that asked to leave named, best first.
    hinted: Vec<String>,
    /// Who asked to leave: the last choice.
    left: Option<String>,
    /// How often a gateway asked to leave.
    asked: BTreeMap<String, u32>,
    /// Since when better ones have answered every probe.
    answering: BTreeMap<String, Duration>,
}

impl Placement {
    /// An agent that is nowhere yet. It returns to a better gateway when that has answered for `return_after`, and stays
    /// at any for as long, whatever that one asks.
    #[must_use]
    pub fn new(agent: &str, gateways: &[Gateway], return_after: Duration) -> Self {
        Self {
            ranked: rank(agent, gateways),
            return_after,
            stay: None,
            connected: false,
            hinted: Vec::new(),
            left: None,
            asked: BTreeMap::new(),
            answering: BTreeMap::new(),
        }
    }

    /// The list, best first.
    #[must_use]
    pub fn ranked(&self) -> &[String] {
        &self.ranked
    }

    /// The present stay.
    #[must_use]
    pub fn stay(&self) -> Option<&Stay> {
        self.stay.as_ref().filter(|_| self.connected)
    }

    /// Whom to ask, in this order: after a loss, or to leave the present one, which is then not among them.
    #[must_use]
    pub fn candidates(&self) -> Vec<String> {
        let last = self.stay.as_ref().map(|stay| &stay.address).filter(|_| !self.connected);
        let all = self.hinted.iter().chain(last).chain(&self.ranked);
        let here = self.stay().map(|stay| &stay.address);
        let mut out: Vec<String> = Vec::new();
        for address in all {
            if Some(address) != here && self.left.as_ref() != Some(address) && !out.contains(address) {
                out.push(address.clone());
            }
        }
        out.extend(self.left.clone().filter(|left| Some(left) != here));
        out
    }

    /// Learns that it is connected to a gateway.
    pub fn arrived(&mut self, address: &str, now: Duration) {
        let why = if self.ranked.first().is_some_and(|first| first == address) {
            Why::FirstChoice
        } else if self.left.is_some() {
            Why::Redirected
        } else {
            Why::FailOver
        };
        // Back where it was, after a short loss: the stay goes on, and so does its reason.
        let same = self.stay.as_ref().is_some_and(|stay| stay.address == address);
        if !same {
            self.stay = Some(Stay { address: address.to_owned(), since: now, why });
            self.answering.clear();
        }
        self.connected = true;
        self.hinted.clear();
        self.left = None;
    }

    /// Learns that the connection is lost.
    pub fn lost(&mut self) {
        self.connected = false;
    }

    /// Learns that the present gateway asks it to leave, for one of `hinted`. Returns when it may: a gateway that stops
    /// ends the connection by itself before.
    pub fn redirected(&mut self, hinted: Vec<String>, now: Duration) -> Duration {
        let Some(stay) = self.stay.as_ref().filter(|_| self.connected) else { return now };
        if self.left.as_ref() != Some(&stay.address) {
            let proven = now.saturating_sub(stay.since) >= self.return_after * PROVEN_STAYS;
            let asked = self.asked.entry(stay.address.clone()).or_default();
            *asked = if proven { 1 } else { asked.saturating_add(1) };
        }
        self.left = Some(stay.address.clone());
        self.hinted = hinted.into_iter().filter(|address| *address != stay.address).take(GATEWAYS_MAX).collect();
        (stay.since + self.return_after).max(now)
    }

    /// Better choices than the present one, best first: those to probe.
    #[must_use]
    pub fn better(&self) -> Vec<String> {
        let Some(stay) = self.stay() else { return Vec::new() };
        self.ranked.iter().take_while(|address| **address != stay.address).cloned().collect()
    }

    /// Takes the outcome of a probe. Returns whether to go there now.
    pub fn probed(&mut self, address: &str, answered: bool, now: Duration) -> bool {
        if !answered {
            self.answering.remove(address);
            return false;
        }
        let since = *self.answering.entry(address.to_owned()).or_insert(now);
        let doublings = self.asked.get(address).map_or(0, |asked| asked.saturating_sub(1).min(DOUBLINGS_MAX));
        let stayed = self.stay().map_or(Duration::ZERO, |stay| now.saturating_sub(stay.since));
        now.saturating_sub(since).min(stayed) >= self.return_after * (1 << doublings)
    }

    /// How long to wait between two rounds of probes.
    #[must_use]
    pub fn probe_every(&self) -> Duration {
        // So many that one lost probe delays a return by a fraction of the wait.
        (self.return_after / 6).max(Duration::from_millis(100))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const WAIT: Duration = Duration::from_secs(60);

    fn list(weights: &[u32]) -> Vec<Gateway> {
        let gateway = |(at, &weight): (usize, &u32)| Gateway { address: format!("g{at}:9443"), weight };
        weights.iter().enumerate().map(gateway).collect()
    }

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn at_best() -> (Placement, Vec<String>) {
        let mut placement = Placement::new("a1", &list(&[1, 1, 1]), WAIT);
        let ranked = placement.ranked().to_vec();
        placement.arrived(&ranked[0], seconds(0));
        (placement, ranked)
    }

    #[test]
    fn agents_spread_by_weight() {
        let gateways = list(&[1, 2, 5]);
        let mut first = BTreeMap::new();
        for agent in 0..8000 {
            *first.entry(rank(&format!("agent-{agent}"), &gateways)[0].clone()).or_insert(0_i64) += 1;
        }
        for (gateway, expected) in gateways.iter().zip([1000, 2000, 5000]) {
            let found = first[&gateway.address];
            assert!((found - expected).abs() < expected / 5, "{}: {found} of {expected}", gateway.address);
        }
    }

    #[test]
    fn a_gateway_that_goes_moves_only_the_agents_that_were_there() {
        let all = list(&[1, 1, 3, 1]);
        let rest: Vec<Gateway> = all.iter().filter(|gateway| gateway.address != "g2:9443").cloned().collect();
        for agent in 0..500 {
            let agent = format!("agent-{agent}");
            let mut before = rank(&agent, &all);
            before.retain(|address| address != "g2:9443");
            assert_eq!(before, rank(&agent, &rest));
        }
    }

    #[test]
    fn after_a_loss_the_same_one_is_asked_first_and_then_by_rank() {
        let (mut placement, ranked) = at_best();
        placement.lost();
        assert_eq!(placement.candidates(), ranked);
        placement.arrived(&ranked[1], seconds(10));
        assert_eq!(placement.stay().map(|stay| stay.why), Some(Why::FailOver));
        placement.lost();
        assert_eq!(placement.candidates(), [&*ranked[1], &*ranked[0], &*ranked[2]]);
    }

    #[test]
    fn it_returns_only_to_one_that_answered_for_the_whole_wait() {
        let (mut placement, ranked) = at_best();
        placement.lost();
        placement.arrived(&ranked[2], seconds(0));
        assert_eq!(placement.better(), ranked[..2]);
        for at in (10..70).step_by(10) {
            assert!(!placement.probed(&ranked[0], at != 40, seconds(at)), "{at} s");
        }
        // Unbroken since 50.
        assert!(!placement.probed(&ranked[0], true, seconds(100)));
        assert!(placement.probed(&ranked[0], true, seconds(110)));
        placement.arrived(&ranked[0], seconds(110));
        assert_eq!(placement.stay().map(|stay| stay.why), Some(Why::FirstChoice));
        assert!(placement.better().is_empty());
    }

    #[test]
    fn a_redirect_is_followed_after_the_shortest_stay_to_the_hinted_ones_first() {
        let (mut placement, ranked) = at_best();
        assert_eq!(placement.redirected(vec![ranked[2].clone(), "other:1".into()], seconds(20)), WAIT);
        assert_eq!(placement.candidates(), [&*ranked[2], "other:1", &*ranked[1]]);
        // The gateway ended before that: it is asked last.
        placement.lost();
        assert_eq!(placement.candidates(), [&*ranked[2], "other:1", &*ranked[1], &*ranked[0]]);
        placement.arrived(&ranked[2], seconds(21));
        assert_eq!(placement.stay().map(|stay| stay.why), Some(Why::Redirected));
        assert_eq!(placement.redirected(vec![], seconds(100)), seconds(100), "it has stayed long enough");
    }

    #[test]
    fn one_that_asks_to_leave_each_time_is_returned_to_later_and_later() {
        let (mut placement, ranked) = at_best();
        let mut now = seconds(0);
        let mut waits = Vec::new();
        for _ in 0..8 {
            now = placement.redirected(vec![], now + seconds(1));
            placement.arrived(&ranked[1], now);
            let left = now;
            while !placement.probed(&ranked[0], true, now) {
                now += seconds(10);
            }
            waits.push((now - left).as_secs());
            placement.arrived(&ranked[0], now);
        }
        assert_eq!(waits, [60, 120, 240, 480, 960, 1920, 1920, 1920]);
        // A long good stay makes it forget.
        now += WAIT * PROVEN_STAYS;
        placement.redirected(vec![], now);
        placement.arrived(&ranked[1], now);
        placement.probed(&ranked[0], true, now);
        assert!(placement.probed(&ranked[0], true, now + WAIT));
    }

    #[test]
    fn a_short_loss_does_not_begin_a_new_stay() {
        let (mut placement, ranked) = at_best();
        placement.lost();
        placement.arrived(&ranked[1], seconds(5));
        placement.probed(&ranked[0], true, seconds(10));
        placement.lost();
        placement.arrived(&ranked[1], seconds(12));
        assert_eq!(placement.stay().map(|stay| stay.since), Some(seconds(5)));
        assert!(placement.probed(&ranked[0], true, seconds(70)));
    }

    proptest! {
        #[test]
        fn everyone_of_the_list_is_a_candidate_once_unless_it_is_there(
            count in 1_usize..6, steps in proptest::collection::vec((0_u8..4, any::<prop::sample::Index>()), 0..40),
        ) {
            let mut placement = Placement::new("a", &list(&vec![1; count]), WAIT);
            let ranked = placement.ranked().to_vec();
            for (at, (step, pick)) in steps.into_iter().enumerate() {
                let now = seconds(at as u64 * 7);
                let some = ranked[pick.index(count)].clone();
                match step {
                    0 => placement.arrived(&some, now),
                    1 => placement.lost(),
                    2 => drop(placement.redirected(vec![some], now)),
                    _ => drop(placement.probed(&some, true, now)),
                }
                let mut found = placement.candidates();
                let here = placement.stay().map(|stay| stay.address.clone());
                prop_assert!(here.as_ref().is_none_or(|here| !found.contains(here)));
                found.extend(here);
                found.sort();
                let mut expected = ranked.clone();
                expected.sort();
                prop_assert_eq!(found, expected);
            }
        }
    }
}
