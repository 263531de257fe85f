//! What carries the agent's connection. Pure: answers and times come in as arguments.
//!
//! ```text
//!            QUIC is silent, TCP answers ─────────────────────────────┐
//!            QUIC comes about and soon falls silent, again and again ─┤
//!                                                                     ▼
//!   QUIC ◄──────────────────── so many probes of QUIC in a row ───── TCP
//! ```
//!
//! - QUIC is what an agent wants: one connection for all disks, and no disk's lost packet holds up another's.
//! - A network that lets no UDP through, or some of it, shows as silence. A refusal is an answer, and changes nothing.
//! - TCP is kept until QUIC has answered several times in a row, so a network that flutters moves nobody. A return costs
//!   a new connection, and a disk's records in flight are sent again.
//! - One silence may be chance: QUIC is tried again soon after it, and less and less often only from then on.
//! - Who returned and had to fall back again tries later each time; a long stay with QUIC forgets that.

use std::time::Duration;

use crate::wire::Transport;

/// What may carry the connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Choice {
    /// QUIC where it gets through, else TCP.
    Auto,
    /// Nothing else.
    Only(Transport),
}

/// Probes in a row that QUIC must answer before it is returned to.
const ANSWERS_TO_RETURN: u32 = 3;
/// Pause between those probes, and before the first one, if the pause between tries is not shorter.
const CONFIRM_PAUSE: Duration = Duration::from_secs(10);
/// The pause between tries doubles up to so many times its first.
const PAUSE_GROWTH_MAX: u32 = 16;
/// A connection over QUIC that fell silent sooner is one that the network did not carry.
const SHORT_STAY: Duration = Duration::from_secs(30);
/// So many of them in a row, and TCP is asked first.
const SHORT_STAYS_MAX: u32 = 3;
/// A stay with QUIC that proves the network.
const PROVEN_STAY: Duration = Duration::from_secs(600);

/// A stay with TCP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Fallback {
    probe_at: Duration,
    answers: u32,
}

/// What carries the connection, and what will be tried.
#[derive(Debug)]
pub struct Carrier {
    choice: Choice,
    retry: Duration,
    /// The present pause, as a multiple of `retry`.
    growth: u32,
    fallback: Option<Fallback>,
    /// Since when QUIC carries the connection, or since when it last did.
    quic_since: Option<Duration>,
    /// When the connection last returned to QUIC from TCP.
    returned: Option<Duration>,
    short_stays: u32,
}

impl Carrier {
    /// Nothing is known of the network yet. `retry` is the first pause before QUIC is tried again.
    #[must_use]
    pub const fn new(choice: Choice, retry: Duration) -> Self {
        Self { choice, retry, growth: 1, fallback: None, quic_since: None, returned: None, short_stays: 0 }
    }

    /// What is to be tried first, and whether the other may be tried after it.
    #[must_use]
    pub const fn wanted(&self) -> (Transport, bool) {
        match (self.choice, self.fallback) {
            (Choice::Only(transport), _) => (transport, false),
            (Choice::Auto, None) => (Transport::Quic, true),
            (Choice::Auto, Some(_)) => (Transport::Tcp, true),
        }
    }

    /// Whether TCP carries the connection because QUIC did not.
    #[must_use]
    pub const fn fell_back(&self) -> bool {
        self.fallback.is_some()
    }

    /// When QUIC is to be tried again.
    #[must_use]
    pub const fn probe_at(&self) -> Option<Duration> {
        match self.fallback {
            Some(fallback) => Some(fallback.probe_at),
            None => None,
        }
    }

    /// A connection came about over `transport`. Whether this is a fallback that began just now.
    pub fn connected(&mut self, transport: Transport, now: Duration) -> bool {
        if self.choice != Choice::Auto {
            return false;
        }
        match transport {
            Transport::Quic => {
                if self.fallback.take().is_some() {
                    self.returned = Some(now);
                }
                self.quic_since = Some(now);
                false
            }
            Transport::Tcp if self.fallback.is_some() => false,
            Transport::Tcp => {
                self.fall_back(now);
                true
            }
        }
    }

    /// The connection over `transport` is lost; `silent` if nobody said why. Whether TCP is asked first from now on.
    pub fn lost(&mut self, transport: Transport, silent: bool, now: Duration) -> bool {
        if self.choice != Choice::Auto || transport != Transport::Quic {
            return false;
        }
        let stay = now.saturating_sub(self.quic_since.unwrap_or(now));
        if !silent || stay >= SHORT_STAY {
            self.short_stays = 0;
            return false;
        }
        self.short_stays += 1;
        let tcp_first = self.short_stays >= SHORT_STAYS_MAX;
        if tcp_first {
            self.fall_back(now);
        }
        tcp_first
    }

    fn fall_back(&mut self, now: Duration) {
        let relapsed = self.returned.take().is_some_and(|returned| now.saturating_sub(returned) < PROVEN_STAY);
        self.short_stays = 0;
        let pause = if relapsed {
            self.grow();
            self.pause()
        } else {
            self.growth = 1;
            self.confirm_pause()
        };
        self.fallback = Some(Fallback { probe_at: now + pause, answers: 0 });
    }

    fn grow(&mut self) {
        self.growth = (self.growth * 2).min(PAUSE_GROWTH_MAX);
    }

    fn pause(&self) -> Duration {
        self.retry * self.growth
    }

    fn confirm_pause(&self) -> Duration {
        CONFIRM_PAUSE.min(self.retry)
    }

    /// QUIC was tried beside a connection over TCP. Whether to return to it now.
    pub fn probed(&mut self, answered: bool, now: Duration) -> bool {
        let confirm = self.confirm_pause();
        let Some(fallback) = &mut self.fallback else { return false };
        if answered {
            fallback.answers += 1;
            fallback.probe_at = now + confirm;
            let back = fallback.answers >= ANSWERS_TO_RETURN;
            if back {
                self.fallback = None;
                self.returned = Some(now);
            }
            return back;
        }
        // Pauses grow only while QUIC has not answered at all: one that flutters is not one that is blocked.
        let fluttered = fallback.answers > 0;
        fallback.answers = 0;
        let at = now + self.pause();
        if !fluttered {
            self.grow();
        }
        if let Some(fallback) = &mut self.fallback {
            fallback.probe_at = at;
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RETRY: Duration = Duration::from_secs(60);

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn auto() -> Carrier {
        Carrier::new(Choice::Auto, RETRY)
    }

    #[test]
    fn a_fixed_choice_is_never_left() {
        for transport in Transport::ALL {
            let mut carrier = Carrier::new(Choice::Only(transport), RETRY);
            assert!(!carrier.connected(transport, at(1)));
            for second in 2..20 {
                assert!(!carrier.lost(transport, true, at(second)));
            }
            assert_eq!((carrier.wanted(), carrier.probe_at()), ((transport, false), None));
        }
    }

    #[test]
    fn tcp_is_kept_until_quic_has_answered_several_times_in_a_row() {
        let mut carrier = auto();
        assert!(carrier.connected(Transport::Tcp, at(5)), "that is worth a line");
        assert!(!carrier.connected(Transport::Tcp, at(6)), "and only one");
        assert_eq!((carrier.wanted(), carrier.probe_at()), ((Transport::Tcp, true), Some(at(15))));
        assert!(!carrier.probed(true, at(15)) && !carrier.probed(true, at(25)));
        assert!(!carrier.probed(false, at(35)), "it flutters");
        assert_eq!(carrier.probe_at(), Some(at(95)));
        assert!(!carrier.probed(true, at(95)) && !carrier.probed(true, at(105)));
        assert!(carrier.probed(true, at(115)));
        assert_eq!((carrier.wanted(), carrier.probe_at()), ((Transport::Quic, true), None));
    }

    #[test]
    fn a_network_that_blocks_udp_is_asked_less_and_less_often() {
        let mut carrier = auto();
        carrier.connected(Transport::Tcp, at(0));
        assert_eq!(carrier.probe_at(), Some(at(10)), "one silence may be chance");
        let mut pauses = Vec::new();
        for _ in 0..8 {
            let now = carrier.probe_at().expect("later");
            carrier.probed(false, now);
            pauses.push((carrier.probe_at().expect("later") - now).as_secs() / 60);
        }
        assert_eq!(pauses, [1, 2, 4, 8, 16, 16, 16, 16]);
    }

    #[test]
    fn who_falls_back_again_soon_returns_later_and_a_long_stay_forgets_it() {
        let mut carrier = auto();
        carrier.connected(Transport::Quic, at(0));
        assert!(carrier.connected(Transport::Tcp, at(100)));
        assert_eq!(carrier.probe_at(), Some(at(100 + 10)));
        carrier.connected(Transport::Quic, at(300));
        assert!(carrier.connected(Transport::Tcp, at(400)));
        assert_eq!(carrier.probe_at(), Some(at(400 + 120)));
        carrier.connected(Transport::Quic, at(600));
        assert!(carrier.connected(Transport::Tcp, at(600 + 601)));
        assert_eq!(carrier.probe_at(), Some(at(1201 + 10)));
    }

    #[test]
    fn connections_that_come_about_and_fall_silent_at_once_make_it_ask_tcp_first() {
        let mut carrier = auto();
        for second in [10, 20] {
            carrier.connected(Transport::Quic, at(second));
            assert!(!carrier.lost(Transport::Quic, true, at(second + 5)));
        }
        carrier.connected(Transport::Quic, at(30));
        assert!(carrier.lost(Transport::Quic, true, at(35)));
        assert_eq!(carrier.wanted(), (Transport::Tcp, true));
        // If TCP is silent and QUIC is not, QUIC is what works.
        carrier.connected(Transport::Quic, at(40));
        assert_eq!(carrier.wanted(), (Transport::Quic, true));
    }

    #[test]
    fn a_gateway_that_says_goodbye_or_was_there_for_long_says_nothing_of_the_network() {
        let mut carrier = auto();
        for second in (0..1000).step_by(100) {
            carrier.connected(Transport::Quic, at(second));
            assert!(!carrier.lost(
                Transport::Quic,
                second % 200 == 0,
                at(second + if second % 200 == 0 { 50 } else { 5 })
            ));
        }
    }
}
