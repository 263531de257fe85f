//! How full the journal is: one figure per shard, and the level that senders follow.

use crate::flow::watch;
use metrics::gauge;
use parking_lot::Mutex;

use super::model::{Level, Space};
use crate::telemetry::names;

/// When the level changes, pure.
#[derive(Debug, Clone, Copy)]
pub struct LevelRule {
    /// All bytes that may be used.
    pub capacity_bytes: u64,
    /// Above these senders slow down.
    pub high_bytes: u64,
    /// Below these they speed up again.
    pub low_bytes: u64,
}

impl LevelRule {
    /// The rule for water marks in percent.
    #[must_use]
    pub fn new(capacity_bytes: u64, high_percent: u8, low_percent: u8) -> Self {
        let part = |percent: u8| (u128::from(capacity_bytes) * u128::from(percent) / 100) as u64;
        Self { capacity_bytes, high_bytes: part(high_percent), low_bytes: part(low_percent) }
    }

    /// The level that follows `now`.
    #[must_use]
    pub const fn next(&self, now: Level, used_bytes: u64, starved: bool) -> Level {
        if starved {
            Level::Full
        } else if used_bytes >= self.high_bytes || (!matches!(now, Level::Low) && used_bytes >= self.low_bytes) {
            Level::High
        } else {
            Level::Low
        }
    }
}

#[derive(Debug)]
struct Figures {
    used_bytes: Vec<u64>,
    starved: Vec<bool>,
}

/// The figures of all shards.
#[derive(Debug)]
pub struct SpaceBoard {
    rule: LevelRule,
    figures: Mutex<Figures>,
    level: watch::Sender<Level>,
}

impl SpaceBoard {
    /// A board for `shards` empty shards.
    #[must_use]
    pub fn new(rule: LevelRule, shards: u16) -> Self {
        let shards = usize::from(shards);
        gauge!(names::JOURNAL_CAPACITY_BYTES).set(rule.capacity_bytes as f64);
        let figures = Figures { used_bytes: vec![0; shards], starved: vec![false; shards] };
        Self { rule, figures: Mutex::new(figures), level: watch::Sender::new(Level::Low) }
    }

    fn publish(&self, figures: &Figures) {
        let used_bytes = figures.used_bytes.iter().sum();
        let starved = figures.starved.contains(&true);
        gauge!(names::JOURNAL_USED_BYTES).set(used_bytes as f64);
        self.level.send_if_modified(|level| {
            let next = self.rule.next(*level, used_bytes, starved);
            std::mem::replace(level, next) != next
        });
    }

    /// Sets what a shard uses.
    pub fn set_used(&self, shard: u16, used_bytes: u64) {
        let mut figures = self.figures.lock();
        figures.used_bytes[usize::from(shard)] = used_bytes;
        self.publish(&figures);
    }

    /// Says whether a shard waits for a segment that is not to be had.
    pub fn set_starved(&self, shard: u16, starved: bool) {
        let mut figures = self.figures.lock();
        if figures.starved[usize::from(shard)] != starved {
            figures.starved[usize::from(shard)] = starved;
            self.publish(&figures);
        }
    }

    /// Whether a shard waits for a segment that is not to be had.
    #[must_use]
    pub fn is_starved(&self, shard: u16) -> bool {
        self.figures.lock().starved[usize::from(shard)]
    }

    /// The figures now.
    #[must_use]
    pub fn space(&self) -> Space {
        let used_bytes = self.figures.lock().used_bytes.iter().sum();
        Space { used_bytes, capacity_bytes: self.rule.capacity_bytes, level: *self.level.borrow() }
    }

    /// The level and its changes.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<Level> {
        self.level.subscribe()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_level_falls_only_below_the_low_water_mark() {
        let rule = LevelRule::new(1000, 80, 60);
        use Level::{Full, High, Low};
        let mut level = Low;
        let mut seen = Vec::new();
        for used in [0, 799, 800, 700, 600, 599, 700, 900] {
            level = rule.next(level, used, false);
            seen.push(level);
        }
        assert_eq!(seen, [Low, Low, High, High, High, Low, Low, High]);
        assert_eq!(rule.next(High, 990, true), Full);
        assert_eq!(rule.next(Full, 700, false), High, "from full it comes down through high");
        assert_eq!(rule.next(Full, 100, false), Low);
    }

    #[test]
    fn one_starved_shard_makes_the_journal_full() {
        let board = SpaceBoard::new(LevelRule::new(1000, 80, 60), 2);
        board.set_used(0, 300);
        board.set_starved(1, true);
        assert_eq!(board.space(), Space { used_bytes: 300, capacity_bytes: 1000, level: Level::Full });
        board.set_starved(1, false);
        assert_eq!(*board.changes().borrow(), Level::Low);
    }
}
