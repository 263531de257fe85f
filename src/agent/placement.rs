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
//! - A gateway that asks to leave again and again is returned to later each time, and an agent that is asked again and
//!   again stays longer each time: where all have too much, moving helps nobody.
//! - A gateway that stops is left at once. Two names may be one gateway: a name that leads back to it is no other choice.

use std::collections::{BTreeMap, BTreeSet};
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
/// Probes of a better choice within the time that it has to answer: one that is lost delays a return by a fraction.
const PROBES_PER_WAIT: u32 = 6;
/// Shortest pause between two probes.
const PROBE_PAUSE_MIN: Duration = Duration::from_millis(100);

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
    /// Whether the present gateway stops.
    stopping: bool,
    /// Which gateways asked to leave. Bounded by time, and by the gateways that this agent has been at.
    asked: BTreeMap<String, Asked>,
    /// How often any gateway asked, since the last that was proven able.
    redirects: u32,
    /// Since when better ones have answered every probe.
    answering: BTreeMap<String, Duration>,
    /// When better ones are to be probed again.
    probe_at: BTreeMap<String, Duration>,
    /// Other names of the present gateway.
    same: BTreeSet<String>,
}

/// What a gateway asked.
#[derive(Debug, Clone, Copy)]
struct Asked {
    times: u32,
    last: Duration,
}

/// 1, 1, 2, 4 and so on, to a bound.
fn growth(times: u32) -> u32 {
    1 << times.saturating_sub(1).min(DOUBLINGS_MAX)
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
            stopping: false,
            asked: BTreeMap::new(),
            redirects: 0,
            answering: BTreeMap::new(),
            probe_at: BTreeMap::new(),
            same: BTreeSet::new(),
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
            let elsewhere = Some(address) != here && !self.same.contains(address);
            if elsewhere && self.left.as_ref() != Some(address) && !out.contains(address) {
                out.push(address.clone());
            }
        }
        out.extend(self.left.clone().filter(|left| Some(left) != here));
        out
    }

    /// Whom to ask to take over from the present gateway, in this order. One that has too much itself is no help, unless
    /// the present one stops.
    #[must_use]
    pub fn successors(&self, now: Duration) -> Vec<String> {
        let asked_of_late = |address: &String| {
            let asked = self.asked.get(address);
            asked.is_some_and(|asked| now.saturating_sub(asked.last) < self.return_after * growth(asked.times))
        };
        let mut all = self.candidates();
        all.retain(|address| self.stopping || !asked_of_late(address));
        all
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
            self.probe_at.clear();
        }
        self.connected = true;
        self.stopping = false;
        self.hinted.clear();
        self.left = None;
    }

    /// Learns that the connection is lost.
    pub fn lost(&mut self) {
        self.connected = false;
        // What stands behind a name may be another one after a while.
        self.same.clear();
    }

    /// Learns that another name leads to the gateway where it is.
    pub fn is_same(&mut self, address: &str) {
        if self.stay().is_some_and(|stay| stay.address != address) && self.same.len() < GATEWAYS_MAX * 2 {
            self.same.insert(address.to_owned());
        }
    }

    /// Learns that the present gateway stops, which asks to leave as one with too much does, but is to be left now.
    pub fn stopping(&mut self) {
        let Some(stay) = self.stay.as_ref().filter(|_| self.connected) else { return };
        self.stopping = true;
        if self.left.replace(stay.address.clone()).is_some() {
            // It was counted as one that has too much.
            self.redirects = self.redirects.saturating_sub(1);
        }
        self.asked.remove(&stay.address);
    }

    /// Learns that the present gateway asks it to leave, for one of `hinted`. Returns when it may: a gateway that stops
    /// ends the connection by itself before.
    pub fn redirected(&mut self, hinted: Vec<String>, now: Duration) -> Duration {
        let Some(stay) = self.stay.as_ref().filter(|_| self.connected) else { return now };
        if self.left.as_ref() != Some(&stay.address) {
            let proven = now.saturating_sub(stay.since) >= self.return_after * PROVEN_STAYS;
            let before = |times: u32| if proven { 0 } else { times };
            let memory = self.return_after * PROVEN_STAYS * (1 << DOUBLINGS_MAX);
            self.asked.retain(|_, asked| now.saturating_sub(asked.last) < memory);
            let asked = self.asked.entry(stay.address.clone()).or_insert(Asked { times: 0, last: now });
            *asked = Asked { times: before(asked.times).saturating_add(1), last: now };
            self.redirects = before(self.redirects).saturating_add(1);
        }
        self.left = Some(stay.address.clone());
        self.hinted = hinted.into_iter().filter(|address| *address != stay.address).take(GATEWAYS_MAX).collect();
        (stay.since + self.return_after * growth(self.redirects)).max(now)
    }

    /// Better choices than the present one, best first.
    #[must_use]
    pub fn better(&self) -> Vec<String> {
        let Some(stay) = self.stay() else { return Vec::new() };
        let here = |address: &String| *address == stay.address || self.same.contains(address);
        self.ranked.iter().take_while(|address| !here(address)).cloned().collect()
    }

    /// When to probe next, if there is a better choice.
    #[must_use]
    pub fn probe_at(&self) -> Option<Duration> {
        self.better().iter().map(|address| self.probe_of(address)).min()
    }

    /// The better choices to probe now, best first.
    #[must_use]
    pub fn to_probe(&self, now: Duration) -> Vec<String> {
        let mut due = self.better();
        due.retain(|address| self.probe_of(address) <= now);
        due
    }

    fn probe_of(&self, address: &str) -> Duration {
        let first = || self.stay().map_or(Duration::ZERO, |stay| stay.since + self.probe_pause(address) / 2);
        self.probe_at.get(address).copied().unwrap_or_else(first)
    }

    fn probe_pause(&self, address: &str) -> Duration {
        (self.wait_for(address) / PROBES_PER_WAIT).max(PROBE_PAUSE_MIN)
    }

    /// How long a better choice must have answered.
    fn wait_for(&self, address: &str) -> Duration {
        self.return_after * growth(self.asked.get(address).map_or(0, |asked| asked.times))
    }

    /// Takes the outcome of a probe. Returns whether to go there now. `share`, of chance and between 0 and 1, spreads the
    /// probes of many agents.
    pub fn probed(&mut self, address: &str, answered: bool, now: Duration, share: f64) -> bool {
        let pause = self.probe_pause(address).mul_f64(0.5 + share.clamp(0.0, 1.0) / 2.0);
        self.probe_at.insert(address.to_owned(), now + pause);
        if !answered {
            self.answering.remove(address);
            return false;
        }
        let since = *self.answering.entry(address.to_owned()).or_insert(now);
        let stayed = self.stay().map_or(Duration::ZERO, |stay| now.saturating_sub(stay.since));
        now.saturating_sub(since).min(stayed) >= self.wait_for(address)
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
            assert!(!placement.probed(&ranked[0], at != 40, seconds(at), 0.5), "{at} s");
        }
        // Unbroken since 50.
        assert!(!placement.probed(&ranked[0], true, seconds(100), 0.5));
        assert!(placement.probed(&ranked[0], true, seconds(110), 0.5));
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
        assert_eq!(placement.redirected(vec![], seconds(200)), seconds(200), "it has stayed long enough");
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
            while !placement.probed(&ranked[0], true, now, 0.5) {
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
        placement.probed(&ranked[0], true, now, 0.5);
        assert!(placement.probed(&ranked[0], true, now + WAIT, 0.5));
    }

    #[test]
    fn a_short_loss_does_not_begin_a_new_stay() {
        let (mut placement, ranked) = at_best();
        placement.lost();
        placement.arrived(&ranked[1], seconds(5));
        placement.probed(&ranked[0], true, seconds(10), 0.5);
        placement.lost();
        placement.arrived(&ranked[1], seconds(12));
        assert_eq!(placement.stay().map(|stay| stay.since), Some(seconds(5)));
        assert!(placement.probed(&ranked[0], true, seconds(70), 0.5));
    }

    #[test]
    fn where_all_have_too_much_the_agent_moves_less_and_less() {
        let (mut placement, ranked) = at_best();
        let (mut now, mut stays) = (seconds(0), Vec::new());
        for turn in 0..7 {
            let there = &ranked[turn % 3];
            placement.arrived(there, now);
            let leave = placement.redirected(vec![], now + seconds(1));
            stays.push((leave - now).as_secs());
            now = leave;
        }
        assert_eq!(stays, [60, 120, 240, 480, 960, 1920, 1920]);
        // One that serves it for long without asking proves that there is room again.
        placement.arrived(&ranked[1], now);
        let asked = now + WAIT * PROVEN_STAYS;
        placement.redirected(vec![], asked);
        placement.arrived(&ranked[2], asked);
        assert_eq!(placement.redirected(vec![], asked), asked + WAIT * 2);
    }

    #[test]
    fn one_that_asked_to_leave_of_late_is_no_successor_unless_the_present_one_stops() {
        let (mut placement, ranked) = at_best();
        placement.redirected(vec![ranked[1].clone()], seconds(100));
        assert_eq!(placement.successors(seconds(100)), [&*ranked[1], &*ranked[2]]);
        placement.arrived(&ranked[1], seconds(100));
        placement.redirected(vec![ranked[0].clone()], seconds(150));
        assert_eq!(placement.successors(seconds(150)), [&*ranked[2]], "the first one asked 50 s ago");
        assert_eq!(placement.successors(seconds(160)), [&*ranked[0], &*ranked[2]]);
        placement.stopping();
        assert_eq!(placement.successors(seconds(150)), [&*ranked[0], &*ranked[2]]);
    }

    #[test]
    fn one_that_stops_is_not_held_against_it() {
        let (mut placement, ranked) = at_best();
        let mut now = seconds(0);
        for _ in 0..5 {
            placement.redirected(vec![], now);
            placement.stopping();
            placement.lost();
            assert_eq!(placement.candidates(), [&*ranked[1], &*ranked[2], &*ranked[0]]);
            placement.arrived(&ranked[1], now);
            placement.probed(&ranked[0], true, now, 0.5);
            now += WAIT;
            assert!(placement.probed(&ranked[0], true, now, 0.5));
            placement.arrived(&ranked[0], now);
        }
        assert_eq!(placement.redirected(vec![], now), now + WAIT, "the first that counts");
    }

    #[test]
    fn another_name_of_the_present_gateway_is_no_other_choice() {
        let (mut placement, ranked) = at_best();
        placement.lost();
        placement.arrived(&ranked[2], seconds(5));
        placement.is_same(&ranked[1]);
        assert_eq!(placement.better(), [&*ranked[0]]);
        placement.redirected(vec![ranked[1].clone()], seconds(6));
        assert_eq!(placement.candidates(), [&*ranked[0]]);
        placement.is_same(&ranked[0]);
        assert!(placement.better().is_empty() && placement.probe_at().is_none() && placement.candidates().is_empty());
        placement.lost();
        assert_eq!(placement.candidates(), [&*ranked[1], &*ranked[0], &*ranked[2]], "names may lead elsewhere now");
    }

    #[test]
    fn one_that_has_to_answer_for_long_is_probed_seldom_and_holds_up_no_other() {
        let (mut placement, ranked) = at_best();
        let mut now = seconds(0);
        for _ in 0..6 {
            now = placement.redirected(vec![], now);
            placement.arrived(&ranked[2], now);
            placement.arrived(&ranked[0], now);
        }
        now = placement.redirected(vec![], now);
        placement.arrived(&ranked[2], now);
        let (left, mut probes) = (now, [0, 0]);
        while now < left + WAIT * 32 {
            now = placement.probe_at().expect("there are better ones");
            for address in placement.to_probe(now) {
                let at = usize::from(address != ranked[0]);
                probes[at] += 1;
                // The second one never answers, so that nothing ends this.
                assert!(!placement.probed(&address, at == 0, now, 1.0) || now >= left + WAIT * 32);
            }
        }
        assert!((6..=8).contains(&probes[0]), "{probes:?}");
        assert!((190..=194).contains(&probes[1]), "{probes:?}");
    }

    proptest! {
        #[test]
        fn everyone_of_the_list_is_a_candidate_once_unless_it_is_there(
            count in 1_usize..6, steps in proptest::collection::vec((0_u8..5, any::<prop::sample::Index>()), 0..40),
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
                    3 => placement.stopping(),
                    _ => drop(placement.probed(&some, true, now, 0.5)),
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
