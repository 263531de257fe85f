//! The store's clock, read off its answers: every response has a `date` of whole seconds.
//!
//! Requests carry the time of this machine, and Azure refuses those of a clock that is a quarter of an hour off. So a
//! wrong clock is told long before.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use async_trait::async_trait;
use jiff::fmt::rfc2822;
use object_store::client::{
    ClientOptions, HttpClient, HttpConnector, HttpError, HttpRequest, HttpResponse, HttpService, ReqwestConnector,
    SpawnedReqwestConnector,
};
use tokio::runtime::Handle;

use crate::flow::{Clock, SystemClock};
use crate::telemetry::names;
use crate::types::Micros;

/// A date says the second only, and the answer was some time on its way.
const APART_MICROS: u64 = 5_000_000;

/// Makes the clients of a store; each of their answers is looked at.
#[derive(Debug, Clone)]
pub(super) struct DatedConnector {
    told: Arc<Told>,
    /// Where requests run, and with them the connections that they open and leave to the next ones; none for whoever asks.
    runtime: Option<Handle>,
}

impl DatedConnector {
    /// Its requests run on `runtime`, or on that of whoever asks.
    pub(super) fn on(runtime: Option<&Handle>) -> Self {
        Self { told: Arc::default(), runtime: runtime.cloned() }
    }
}

/// Whether the clocks were apart when they were last compared.
#[derive(Debug, Default)]
struct Told(AtomicBool);

impl HttpConnector for DatedConnector {
    fn connect(&self, options: &ClientOptions) -> object_store::Result<HttpClient> {
        let inner = match &self.runtime {
            Some(runtime) => SpawnedReqwestConnector::new(runtime.clone()).connect(options)?,
            None => ReqwestConnector::default().connect(options)?,
        };
        Ok(HttpClient::new(Dated { inner, clock: SystemClock::new(), told: Arc::clone(&self.told) }))
    }
}

#[derive(Debug)]
struct Dated {
    inner: HttpClient,
    clock: SystemClock,
    told: Arc<Told>,
}

#[async_trait]
impl HttpService for Dated {
    async fn call(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        let response = self.inner.execute(request).await?;
        let date = response.headers().get("date").and_then(|date| date.to_str().ok());
        if let Some(ahead_micros) = date.and_then(|date| store_ahead(date, self.clock.wall())) {
            self.told.take(ahead_micros);
        }
        Ok(response)
    }
}

/// The store's clock minus this machine's, in microseconds: zero while the date's second has not ended.
pub(crate) fn store_ahead(date: &str, wall: Micros) -> Option<i64> {
    let start = rfc2822::parse(date).ok()?.timestamp().as_microsecond();
    let wall = i64::try_from(wall.0).ok()?;
    let behind = wall.saturating_sub(start);
    Some(if behind < 0 { -behind } else { -(behind - 1_000_000).max(0) })
}

impl Told {
    /// Says it once when the clocks are apart, and once when they are not any more.
    fn take(&self, ahead_micros: i64) {
        let ahead_seconds = ahead_micros as f64 / 1e6;
        metrics::gauge!(names::STORE_CLOCK_AHEAD_SECONDS).set(ahead_seconds);
        let apart = ahead_micros.unsigned_abs() > APART_MICROS;
        if self.0.swap(apart, Ordering::Relaxed) == apart {
            return;
        }
        if apart {
            tracing::warn!(
                ahead_seconds,
                "the store's clock is not this machine's: look at the time service here; above 900 s every request is refused"
            );
        } else {
            tracing::info!(ahead_seconds, "the store's clock is this machine's again");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_store_is_ahead_or_behind_by_what_its_date_says_to_the_second() {
        let date = "Sun, 06 Nov 1994 08:49:37 GMT";
        let second = 784_111_777_000_000;
        for (wall, ahead) in [
            (second, 0),
            (second + 999_999, 0),
            (second + 1_000_000, 0),
            (second + 61_000_000, -60_000_000),
            (second - 60_000_000, 60_000_000),
        ] {
            assert_eq!(store_ahead(date, Micros(wall)), Some(ahead), "{wall}");
        }
        assert_eq!(store_ahead("soon", Micros(second)), None);
        assert_eq!(store_ahead(date, Micros(u64::MAX)), None);
    }

    #[test]
    fn clocks_count_as_apart_above_the_limit_and_until_they_meet_again() {
        let told = Told::default();
        for (ahead_micros, apart) in [(5_000_000, false), (-5_000_001, true), (6_000_000, true), (0, false)] {
            told.take(ahead_micros);
            assert_eq!(told.0.load(Ordering::Relaxed), apart, "{ahead_micros}");
        }
    }
}
