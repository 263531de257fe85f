//! What requests meet: latency, bandwidth, refusals, outages.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tidegate::cli::quickstart::load::Numbers;
use tokio::time::Instant;

use crate::chance::Share;
use crate::line::Line;

/// What is done to requests. As JSON: one object with these names.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Weather {
    /// How much longer each request takes, in milliseconds.
    pub latency_ms: f64,
    /// What all bodies together may carry per second; zero for no bound.
    pub bytes_per_second: u64,
    /// Requests that are answered `503 Server Busy`, in percent.
    pub busy_percent: f64,
    /// Every connection is broken: the store is away.
    pub away: bool,
    /// The store is away for so long from the moment that this is set, and then back. In seconds.
    pub away_seconds: f64,
    /// Every request is answered `403`, as after the account's key was changed.
    pub refusing: bool,
    /// How far the store's clock, which its answers tell, is ahead of this machine's; negative if it is behind. In seconds.
    pub clock_ahead_seconds: f64,
}

impl Weather {
    /// Longest latency, outage or difference of clocks that can be asked for, in seconds: a day.
    const SECONDS_MAX: f64 = 86_400.0;

    /// What is wrong with it, if anything.
    #[must_use]
    pub fn mistake(&self) -> Option<&'static str> {
        let within = |value: f64, max: f64| (0.0..=max).contains(&value);
        if !within(self.latency_ms, Self::SECONDS_MAX * 1000.0) {
            return Some("latency_ms is not between 0 and a day");
        }
        if !within(self.busy_percent, 100.0) {
            return Some("busy_percent is not between 0 and 100");
        }
        if !within(self.away_seconds, Self::SECONDS_MAX) {
            return Some("away_seconds is not between 0 and a day");
        }
        let clocks_meet = within(self.clock_ahead_seconds.abs(), Self::SECONDS_MAX);
        (!clocks_meet).then_some("clock_ahead_seconds is more than a day")
    }

    pub(super) fn latency(&self) -> Duration {
        Duration::from_secs_f64(self.latency_ms / 1000.0)
    }
}

/// The weather, and what follows from it.
pub(super) struct Sky {
    weather: Mutex<(Weather, Option<Instant>)>,
    numbers: Mutex<Numbers>,
    line: Line,
    broken: AtomicU64,
}

impl Sky {
    pub(super) fn new(weather: Weather) -> Self {
        let sky = Self {
            weather: Mutex::default(),
            numbers: Mutex::new(Numbers::new(1)),
            line: Line::default(),
            broken: AtomicU64::new(0),
        };
        sky.set(weather);
        sky
    }

    pub(super) fn set(&self, weather: Weather) {
        let back_at =
            (weather.away_seconds > 0.0).then(|| Instant::now() + Duration::from_secs_f64(weather.away_seconds));
        *self.weather.lock() = (weather, back_at);
    }

    pub(super) fn weather(&self) -> Weather {
        let (weather, back_at) = *self.weather.lock();
        match back_at {
            None => weather,
            Some(at) => {
                let left = at.saturating_duration_since(Instant::now());
                Weather { away: weather.away || !left.is_zero(), away_seconds: left.as_secs_f64(), ..weather }
            }
        }
    }

    /// Whether a connection must break now; counted if so.
    pub(super) fn breaks(&self) -> bool {
        let away = self.weather().away;
        self.broken.fetch_add(u64::from(away), Ordering::Relaxed);
        away
    }

    pub(super) fn broken(&self) -> u64 {
        self.broken.load(Ordering::Relaxed)
    }

    /// Whether this request is answered `503`.
    pub(super) fn refuses(&self) -> bool {
        let share = Share::percent(self.weather().busy_percent);
        share > Share::NONE && share.hits(&mut self.numbers.lock())
    }

    pub(super) async fn take_turn(&self, bytes: usize) {
        let per_second = self.weather().bytes_per_second;
        self.line.take_turn(bytes, per_second).await;
    }
}
