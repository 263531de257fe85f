//! The records of one disk that are under way, and whether each ack is one that may come. Pure.

use std::collections::VecDeque;
use std::time::Duration;

use tidegate::types::Seq;

/// An ack that a gateway must not send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FalseAck {
    /// For a record that was not sent.
    Unsent {
        /// The record.
        acked: Seq,
        /// The last that was sent.
        sent: Seq,
    },
    /// Less than was acked before.
    Backward {
        /// What was acked before.
        before: Seq,
        /// And now.
        now: Seq,
    },
    /// Vaulted, but not journaled.
    Order {
        /// How far it is said to be journaled.
        journaled: Seq,
        /// How far it is said to be vaulted.
        vaulted: Seq,
    },
}

impl std::fmt::Display for FalseAck {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Unsent { acked, sent } => write!(f, "record {acked} was acked, but only {sent} were sent"),
            Self::Backward { before, now } => write!(f, "an ack went back from record {before} to {now}"),
            Self::Order { journaled, vaulted } => {
                write!(f, "record {vaulted} was acked as vaulted, but only {journaled} as journaled")
            }
        }
    }
}

/// How durable a record is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    /// On the gateway's disk.
    Journaled,
    /// In the vault.
    Vaulted,
}

#[derive(Clone, Copy, Debug)]
struct Sent {
    due: Duration,
    payload_bytes: u32,
}

/// What is under way: everything after the last vaulted record, in order.
#[derive(Debug)]
pub struct Book {
    under_way: VecDeque<Sent>,
    sent: Seq,
    journaled: Seq,
    vaulted: Seq,
}

impl Book {
    /// An empty book; the next record has the number after `last`.
    #[must_use]
    pub const fn new(last: Seq) -> Self {
        Self { under_way: VecDeque::new(), sent: last, journaled: last, vaulted: last }
    }

    /// The next record goes out; it was due at `due`.
    pub fn sent(&mut self, due: Duration, payload_bytes: u32) {
        self.sent = self.sent.next();
        self.under_way.push_back(Sent { due, payload_bytes });
    }

    /// Takes an ack; `each` is told level, due time and bytes of every record that it reaches for the first time.
    ///
    /// # Errors
    /// [`FalseAck`]; the book is as before.
    pub fn acked(
        &mut self,
        journaled: Seq,
        vaulted: Seq,
        mut each: impl FnMut(Level, Duration, u32),
    ) -> Result<(), FalseAck> {
        if journaled > self.sent {
            return Err(FalseAck::Unsent { acked: journaled, sent: self.sent });
        }
        if vaulted > journaled {
            return Err(FalseAck::Order { journaled, vaulted });
        }
        for (before, now) in [(self.journaled, journaled), (self.vaulted, vaulted)] {
            if now < before {
                return Err(FalseAck::Backward { before, now });
            }
        }
        let from = (self.journaled.0 - self.vaulted.0) as usize;
        let until = (journaled.0 - self.vaulted.0) as usize;
        for sent in self.under_way.range(from..until) {
            each(Level::Journaled, sent.due, sent.payload_bytes);
        }
        for sent in self.under_way.drain(..(vaulted.0 - self.vaulted.0) as usize) {
            each(Level::Vaulted, sent.due, sent.payload_bytes);
        }
        self.journaled = journaled;
        self.vaulted = vaulted;
        Ok(())
    }

    /// Records that are not vaulted.
    #[must_use]
    pub fn under_way(&self) -> usize {
        self.under_way.len()
    }

    /// When the oldest record was due that is not vaulted.
    #[must_use]
    pub fn oldest_due(&self) -> Option<Duration> {
        self.under_way.front().map(|sent| sent.due)
    }

    /// The last record that was sent.
    #[must_use]
    pub const fn last_sent(&self) -> Seq {
        self.sent
    }

    /// How far the records are vaulted.
    #[must_use]
    pub const fn vaulted(&self) -> Seq {
        self.vaulted
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn book(count: u64) -> Book {
        let mut book = Book::new(Seq(10));
        (1..=count).for_each(|number| book.sent(Duration::from_secs(number), number as u32));
        book
    }

    #[test]
    fn every_record_is_told_once_for_each_level() {
        let mut book = book(5);
        let mut told = Vec::new();
        for (journaled, vaulted) in [(12, 10), (12, 11), (15, 11), (15, 11), (15, 15)] {
            book.acked(Seq(journaled), Seq(vaulted), |level, _, bytes| told.push((level == Level::Vaulted, bytes)))
                .expect("a true ack");
        }
        let of = |vaulted| told.iter().filter(|one| one.0 == vaulted).map(|one| one.1).collect::<Vec<_>>();
        assert_eq!((of(false), of(true)), (vec![1, 2, 3, 4, 5], vec![1, 2, 3, 4, 5]));
        assert_eq!((book.under_way(), book.oldest_due()), (0, None));
    }

    #[test]
    fn false_acks_are_seen_and_change_nothing() {
        let mut book = book(5);
        let mut ack = |journaled, vaulted| book.acked(Seq(journaled), Seq(vaulted), |_, _, _| ());
        ack(14, 12).expect("a true ack");
        assert_eq!(ack(16, 12), Err(FalseAck::Unsent { acked: Seq(16), sent: Seq(15) }));
        assert_eq!(ack(14, 15), Err(FalseAck::Order { journaled: Seq(14), vaulted: Seq(15) }));
        assert_eq!(ack(13, 12), Err(FalseAck::Backward { before: Seq(14), now: Seq(13) }));
        assert_eq!(ack(14, 11), Err(FalseAck::Backward { before: Seq(12), now: Seq(11) }));
        ack(15, 15).expect("a true ack");
    }
}
