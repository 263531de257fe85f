//! Turning the knobs while requests come in.

use std::sync::Arc;

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use serde::Serialize;
use serde_json::Value;
use tokio::net::TcpListener;

use super::weather::Weather;
use super::{Shared, SinkCounts};

#[derive(Serialize)]
struct Told {
    weather: Weather,
    counts: SinkCounts,
}

pub(super) async fn serve(listener: TcpListener, shared: Arc<Shared>) {
    let router = Router::new().route("/", get(tell).put(change)).with_state(shared);
    // It serves until it is dropped, and has no error of its own.
    let _ = axum::serve(listener, router).await;
}

async fn tell(State(shared): State<Arc<Shared>>) -> Response {
    let told = Told { weather: shared.sky.weather(), counts: shared.counts() };
    let text = serde_json::to_string(&told).unwrap_or_default();
    ([(header::CONTENT_TYPE, "application/json")], text + "\n").into_response()
}

async fn change(State(shared): State<Arc<Shared>>, body: Bytes) -> Response {
    match changed(shared.sky.weather(), &body) {
        Ok(weather) => {
            shared.sky.set(weather);
            tell(State(shared)).await
        }
        Err(text) => (StatusCode::BAD_REQUEST, text + "\n").into_response(),
    }
}

/// The present weather with what the JSON object `body` names.
fn changed(now: Weather, body: &[u8]) -> Result<Weather, String> {
    let given: Value = serde_json::from_slice(body).map_err(|error| format!("no JSON: {error}"))?;
    let Value::Object(given) = given else { return Err("write an object, for example {\"latency_ms\": 40}".into()) };
    // An outage that was asked for with a length ends when a new weather is asked for without one.
    let now = Weather { away: now.away && now.away_seconds == 0.0, away_seconds: 0.0, ..now };
    let mut all = serde_json::to_value(now).map_err(|error| error.to_string())?;
    if let Value::Object(all) = &mut all {
        all.extend(given);
    }
    let weather: Weather = serde_json::from_value(all).map_err(|error| error.to_string())?;
    weather.mistake().map_or(Ok(weather), |mistake| Err(mistake.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_named_stays_and_mistakes_change_nothing() {
        let now = Weather { latency_ms: 3.0, busy_percent: 5.0, ..Weather::default() };
        let next = changed(now, br#"{"latency_ms": 40, "away_seconds": 2}"#).expect("understood");
        assert_eq!(next, Weather { latency_ms: 40.0, busy_percent: 5.0, away_seconds: 2.0, ..Weather::default() });
        for wrong in [
            "",
            "[]",
            "{\"latency\": 1}",
            "{\"latency_ms\": -1}",
            "{\"busy_percent\": 101}",
            "{\"clock_ahead_seconds\": -1e6}",
        ] {
            assert!(changed(now, wrong.as_bytes()).is_err(), "{wrong}");
        }
    }
}
