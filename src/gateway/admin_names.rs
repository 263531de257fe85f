//! By which names the admin port may be asked.
//!
//! The admin port has no password, and a browser takes whatever answers under the name of a page for a part of that page. So
//! whoever makes a page can let its name lead to this port, and read what it answers (DNS rebinding). What is asked is
//! therefore answered only under
//! - an address, or a loopback name: nobody can let those lead elsewhere;
//! - a name of the gateway's certificate, the machine's own host name, or one of `admin_names`: those are the operator's. A
//!   wildcard of the certificate (`*.example.org`) stands for one label, as it does in TLS: whoever may have a certificate
//!   for it serves all names below that domain.
//!
//! Who names no host is no browser, and is answered.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use axum::Json;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use parking_lot::Mutex;

use super::live::Live;
use crate::wire::Credentials;

/// Most names that a configuration may list.
pub const NAMES_MAX: usize = 32;
/// Where Linux tells the machine's own name.
const HOST_NAME_FILE: &str = "/proc/sys/kernel/hostname";
/// Characters of an unknown name that the refusal repeats: a DNS name has no more than 253.
const SHOWN_CHARS_MAX: usize = 253;
/// Unknown names that are logged, each once: an operator's own are few, and whoever asks under ever new ones must fill neither
/// the log nor the memory.
const TOLD_MAX: usize = 32;

/// The names that count now: those of certificate and configuration may change by a reload.
pub struct AdminNames {
    machine: Option<String>,
    credentials: Credentials,
    live: Arc<Live>,
    told: Told,
}

/// Unknown names that were logged.
#[derive(Default)]
struct Told(Mutex<BTreeSet<String>>);

/// Whether an unknown name is to be logged.
#[derive(Debug, PartialEq, Eq)]
enum Tell {
    Not,
    Now,
    /// And no other after it.
    Last,
}

impl Told {
    fn tell(&self, name: &str) -> Tell {
        let mut told = self.0.lock();
        if told.len() >= TOLD_MAX || !told.insert(name.to_owned()) {
            return Tell::Not;
        }
        if told.len() == TOLD_MAX { Tell::Last } else { Tell::Now }
    }
}

impl AdminNames {
    /// With the machine's own name, if the system tells it.
    #[must_use]
    pub fn new(credentials: Credentials, live: Arc<Live>) -> Arc<Self> {
        let machine = std::fs::read_to_string(HOST_NAME_FILE).ok();
        let machine = machine.map(|name| plain(name.trim())).filter(|name| !name.is_empty());
        Arc::new(Self { machine, credentials, live, told: Told::default() })
    }

    fn knows(&self, host: &str) -> bool {
        if is_address_or_loopback(host) {
            return true;
        }
        let name = plain(without_port(host));
        self.machine.as_deref() == Some(name.as_str())
            || self.live.admin_names().contains(&name)
            || self.credentials.names().iter().any(|own| names(own, &name))
    }

    /// The host under which `request` asks, if it is none of this gateway's.
    fn unknown(&self, request: &Request) -> Option<String> {
        let hosts = hosts(request.headers());
        let whole = request.uri().authority().map(|authority| authority.as_str());
        let unknown = hosts.chain(whole).find(|host| !self.knows(host))?;
        Some(unknown.chars().take(SHOWN_CHARS_MAX).collect())
    }
}

/// Answers only what is asked under one of the names.
pub async fn check(State(names): State<Arc<AdminNames>>, request: Request, next: Next) -> Response {
    let Some(host) = names.unknown(&request) else {
        return next.run(request).await;
    };
    let text = format!(
        "{host:?} is no name of this gateway: ask by its address, or list the name in admin_names of gateway.toml and \
         reload (docs/OPERATING.md)"
    );
    let tell = names.told.tell(&plain(without_port(&host)));
    if tell != Tell::Not {
        tracing::warn!("the admin port refuses what is asked under a name that it does not know: {text}");
    }
    if tell == Tell::Last {
        tracing::warn!("{TOLD_MAX} such names were logged: further ones are refused without a line each");
    }
    (StatusCode::FORBIDDEN, Json(serde_json::json!({ "error": text }))).into_response()
}

/// What a request calls the host. What is no text is no name.
pub(super) fn hosts(headers: &HeaderMap) -> impl Iterator<Item = &str> {
    headers.get_all(header::HOST).iter().map(|host| host.to_str().unwrap_or("?"))
}

/// Whether `host`, with a port or without, cannot be led elsewhere by whoever serves its name.
pub(super) fn is_address_or_loopback(host: &str) -> bool {
    let is_address = host.parse::<SocketAddr>().is_ok() || host.trim_matches(['[', ']']).parse::<IpAddr>().is_ok();
    let name = plain(without_port(host));
    is_address || name == "localhost" || name.ends_with(".localhost")
}

fn without_port(host: &str) -> &str {
    host.rsplit_once(':').map_or(host, |(name, _)| name)
}

/// Whether `own`, a name of the certificate, names `name`.
fn names(own: &str, name: &str) -> bool {
    let own = plain(own);
    let below = own.strip_prefix("*.").filter(|domain| !domain.is_empty());
    below.map_or(own == name, |domain| {
        name.split_once('.').is_some_and(|(label, rest)| !label.is_empty() && rest == domain)
    })
}

/// A name as it is compared.
fn plain(name: &str) -> String {
    name.trim_end_matches('.').to_ascii_lowercase()
}

/// Reads a name of the configuration.
///
/// # Errors
/// What is wrong, for people.
pub fn read(text: &str) -> Result<String, String> {
    let name = plain(text);
    let fits = |c: char| c.is_ascii_alphanumeric() || "-._".contains(c);
    if name.is_empty() || name.len() > SHOWN_CHARS_MAX || !name.chars().all(fits) {
        return Err(format!("{text:?} is no host name: write for example \"gateway-a.example\", without a port"));
    }
    Ok(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_and_loopback_names_are_safe_and_no_name_that_only_looks_like_one() {
        for host in [
            "127.0.0.1:9444",
            "10.1.2.3",
            "[::1]:9444",
            "[fe80::1]",
            "::1",
            "localhost:9444",
            "LocalHost.",
            "a.localhost",
        ] {
            assert!(is_address_or_loopback(host), "{host}");
        }
        for host in
            ["rebound.example:9444", "localhost.example", "127.0.0.1.example:9444", "notlocalhost", "", "?", "10.1.2"]
        {
            assert!(!is_address_or_loopback(host), "{host}");
        }
    }

    #[test]
    fn names_are_read_without_port_and_compared_without_case() {
        assert_eq!(read("Gateway-A.Example."), Ok("gateway-a.example".into()));
        for wrong in ["", ".", "gateway:9444", "http://gateway", "*", "a b"] {
            assert!(read(wrong).is_err(), "{wrong}");
        }
        assert_eq!(plain(without_port("Gateway-A.example:9444")), "gateway-a.example");
    }

    #[test]
    fn a_wildcard_of_the_certificate_stands_for_one_label() {
        for name in ["gw1.example.org", "x.example.org"] {
            assert!(names("*.Example.org.", name), "{name}");
        }
        for name in ["example.org", ".example.org", "a.b.example.org", "gw1.example.com", "gw1example.org", "*", ""] {
            assert!(!names("*.example.org", name), "{name}");
        }
        for own in ["*", "*.", "gw*.example.org", "a.*.org", "**.example.org"] {
            assert!(!names(own, "gw1.example.org"), "{own}");
        }
        assert!(names("GW1.example.org", "gw1.example.org") && !names("gw1.example.org", "gw2.example.org"));
    }

    #[test]
    fn each_unknown_name_is_logged_once_and_only_so_many_of_them() {
        let told = Told::default();
        assert_eq!((told.tell("a"), told.tell("b"), told.tell("a")), (Tell::Now, Tell::Now, Tell::Not));
        let tells: Vec<Tell> = (0..1000).map(|number| told.tell(&format!("n{number}"))).collect();
        let count = |wanted: Tell| tells.iter().filter(|tell| **tell == wanted).count();
        assert_eq!((count(Tell::Now), count(Tell::Last), told.0.lock().len()), (TOLD_MAX - 3, 1, TOLD_MAX));
    }
}
