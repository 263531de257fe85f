//! Certificates of peers, and the words that people and file names give.

use jiff::tz::TimeZone;
use object_store::path::Path;

use crate::agent::control::{Request, Response};
use crate::config::{parse_duration, parse_size, show_size};
use crate::keys::{KeyId, Recipient};
use crate::nbd::Listen;
use crate::restore::ask;
use crate::types::{DiskId, Id128, Micros, PointId};
use crate::vault::{names, url};
use crate::wire::identity::{CertificateFacts, Identity};

/// A certificate in DER; and the same bytes as URI names, one per line.
pub(super) fn certificate(input: &[u8]) {
    if let Ok(facts) = CertificateFacts::read(input) {
        let _ = (facts.shown(), facts.issuer.len(), facts.not_before.to_string(), facts.not_after.to_string());
        if let Ok(identity) = facts.identity {
            named(&identity);
        }
    }
    if let Ok(text) = std::str::from_utf8(input)
        && let Ok(identity) = Identity::from_uris(text.lines())
    {
        named(&identity);
    }
}

fn named(identity: &Identity) {
    let uris = identity.uris();
    assert_eq!(Identity::from_uris(uris.iter().map(String::as_str)).as_ref(), Ok(identity));
}

/// Any text as everything that a person may type.
pub(super) fn words(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    if let Ok(point) = text.parse::<PointId>() {
        assert_eq!(point.to_string(), text, "a point has one name");
    }
    if let Ok(id) = text.parse::<Id128>() {
        assert_eq!(id.to_string(), text.to_ascii_lowercase());
    }
    if let Ok(kid) = text.parse::<KeyId>() {
        assert_eq!(kid.to_string(), text.to_ascii_lowercase());
    }
    if let Ok(disk) = DiskId::new(text) {
        assert_eq!(names::disk(&disk).as_ref(), format!("d/{text}/disk"), "a name changes nothing in a path");
    }
    if let Ok(recipient) = text.parse::<Recipient>() {
        assert_eq!(recipient.to_string().parse(), Ok(recipient));
    }
    if let Ok(listen) = text.parse::<Listen>() {
        assert_eq!(listen.to_string().parse(), Ok(listen));
    }
    if let Some(bytes) = parse_size(text) {
        let _ = show_size(bytes);
    }
    let _ = parse_duration(text);
    let _ = url::parse(text);
    let _ = ask::point(text);
    for now in [0, 1_795_384_805_000_000, u64::MAX] {
        let _ = ask::at(text, Micros(now), &TimeZone::UTC);
        let _ = ask::at(text, Micros(now), &TimeZone::fixed(jiff::tz::offset(-11)));
    }
    object_names(text);
    control(text);
}

fn object_names(text: &str) {
    let path = Path::from(text);
    if let Some(lane) = names::lane_of_batch(&path) {
        let _ = names::batch(lane, names::number(&path).unwrap_or(0));
    }
    let _ = names::lane_of_route(&path);
}

/// A line on the agent's control socket.
fn control(text: &str) {
    if let Ok(request) = serde_json::from_str::<Request>(text) {
        let again = serde_json::to_string(&request).unwrap();
        assert!(serde_json::from_str::<Request>(&again).is_ok());
    }
    let _ = serde_json::from_str::<Response>(text);
}
