//! `/v1/bandwidth` of the admin port: everybody may look, and whoever is on this machine may set limits for a while.
//!
//! The admin port has no password. So what changes something is taken only
//! - from this machine: from a loopback address, or from the very address that the port listens at;
//! - not by way of a proxy that tells so in its headers; one that does not makes anybody a local caller, so that docs/OPERATING.md
//!   names what a proxy may pass;
//! - as JSON, by a `Host` that is an address or `localhost`: so no page in a browser on this machine can send it.
//!
//! Whoever has an account on the gateway's machine may thus slow it down for a while, and nothing else.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{ConnectInfo, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use serde::{Deserialize, Serialize};

use super::Bandwidth;
use super::calendar::{Setting, What};
use super::settings::setting;
use crate::gateway::admin_names::{hosts, is_address_or_loopback};

/// Longest time for which a limit can be set by hand: what is to stay belongs into the configuration.
pub const TIME_MAX: Duration = Duration::from_secs(7 * 24 * 3600);

/// What is to be set by hand.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Wish {
    /// As in the configuration: `"50 MiB/s"`, or `"none"`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub upload: Option<String>,
    /// The same for all agents together.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub receive: Option<String>,
    /// The same for each disk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk: Option<String>,
    /// For how long.
    pub seconds: u64,
}

#[derive(Clone)]
struct Door {
    bandwidth: Arc<Bandwidth>,
    /// Where the port listens.
    own: IpAddr,
}

/// The route, for a port that listens at `own`. It wants to be told whence each connection comes.
pub fn routes(bandwidth: Arc<Bandwidth>, own: IpAddr) -> Router {
    let methods = get(show).post(set).delete(reset);
    Router::new().route("/v1/bandwidth", methods).with_state(Door { bandwidth, own })
}

async fn show(State(door): State<Door>) -> Response {
    Json(door.bandwidth.view()).into_response()
}

async fn set(
    State(door): State<Door>,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    headers: HeaderMap,
    Json(wish): Json<Wish>,
) -> Response {
    if let Err(text) = may_change(peer.ip(), door.own, &headers) {
        return refused(StatusCode::FORBIDDEN, text);
    }
    match read(&wish) {
        Ok((settings, time)) => {
            door.bandwidth.set(settings, time);
            Json(door.bandwidth.view()).into_response()
        }
        Err(text) => refused(StatusCode::BAD_REQUEST, &text),
    }
}

async fn reset(State(door): State<Door>, ConnectInfo(peer): ConnectInfo<SocketAddr>, headers: HeaderMap) -> Response {
    if let Err(text) = may_change(peer.ip(), door.own, &headers) {
        return refused(StatusCode::FORBIDDEN, text);
    }
    door.bandwidth.reset();
    Json(door.bandwidth.view()).into_response()
}

fn refused(code: StatusCode, text: &str) -> Response {
    (code, Json(serde_json::json!({ "error": text }))).into_response()
}

fn read(wish: &Wish) -> Result<([Setting; 3], Duration), String> {
    let time = Duration::from_secs(wish.seconds);
    if time.is_zero() || time > TIME_MAX {
        return Err(format!(
            "seconds: expected 1 to {}: what is to stay belongs into the configuration",
            TIME_MAX.as_secs()
        ));
    }
    let mut settings = [Setting::Unsaid; 3];
    for (what, text) in What::ALL.into_iter().zip([&wish.upload, &wish.receive, &wish.disk]) {
        if let Some(text) = text {
            settings[what as usize] = setting(text).map_err(|wrong| format!("{}: {wrong}", what.as_str()))?;
        }
    }
    if settings == [Setting::Unsaid; 3] {
        return Err("nothing is to be set: give upload, receive or disk".into());
    }
    Ok((settings, time))
}

/// Whether a call from `peer` to the port at `own` may change something.
fn may_change(peer: IpAddr, own: IpAddr, headers: &HeaderMap) -> Result<(), &'static str> {
    let peer = peer.to_canonical();
    if !peer.is_loopback() && peer != own.to_canonical() {
        return Err("limits can be set only from the gateway's own machine");
    }
    if headers.contains_key("forwarded") || headers.contains_key("x-forwarded-for") || headers.contains_key(header::VIA)
    {
        return Err("limits can be set only directly, and not by way of a proxy");
    }
    // Stricter than what may look: a name that is the gateway's own may be somebody else's in another network.
    let named = hosts(headers).next().is_some() && hosts(headers).all(is_address_or_loopback);
    if headers.contains_key(header::ORIGIN) || !named {
        return Err("limits can be set only by a call to the port's address, and from no page");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(given: &[(&'static str, &str)]) -> HeaderMap {
        given.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect::<HeaderMap>()
    }

    fn may(peer: &str, own: &str, given: &[(&'static str, &str)]) -> bool {
        may_change(peer.parse().unwrap(), own.parse().unwrap(), &headers(given)).is_ok()
    }

    #[test]
    fn limits_are_set_from_this_machine_only_and_by_no_proxy_and_no_page() {
        let host = ("host", "127.0.0.1:9444");
        assert!(may("127.0.0.1", "127.0.0.1", &[host]) && may("::ffff:127.0.0.1", "::", &[("host", "[::1]:9444")]));
        assert!(may("127.0.0.1", "0.0.0.0", &[("host", "localhost:9444")]));
        assert!(may("10.1.2.3", "10.1.2.3", &[("host", "10.1.2.3:9444")]), "its own address in the management network");
        assert!(!may("10.1.2.4", "10.1.2.3", &[("host", "10.1.2.3:9444")]) && !may("10.1.2.4", "0.0.0.0", &[host]));
        assert!(!may("127.0.0.1", "127.0.0.1", &[host, ("x-forwarded-for", "10.1.2.4")]));
        assert!(!may("127.0.0.1", "127.0.0.1", &[host, ("origin", "http://127.0.0.1:9444")]));
        assert!(!may("127.0.0.1", "127.0.0.1", &[("host", "rebound.example:9444")]));
        assert!(!may("127.0.0.1", "127.0.0.1", &[]));
    }

    #[test]
    fn a_wish_is_checked_before_anything_of_it_counts() {
        let wish = |upload: &str, seconds| Wish { upload: Some(upload.into()), seconds, ..Wish::default() };
        let (settings, time) = read(&wish("1 MiB/s", 60)).expect("good");
        assert_eq!(settings, [Setting::BytesPerSecond(1 << 20), Setting::Unsaid, Setting::Unsaid]);
        assert_eq!(time, Duration::from_secs(60));
        for (wish, word) in [
            (wish("fast", 60), "upload: \"fast\" is no rate"),
            (wish("none", 0), "seconds"),
            (wish("none", u64::MAX), "seconds"),
            (Wish { seconds: 5, ..Wish::default() }, "nothing is to be set"),
        ] {
            assert!(read(&wish).expect_err("refused").contains(word), "{wish:?}");
        }
    }
}
