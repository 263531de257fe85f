//! From what a person types to what is asked for: `latest`, a point's id or name, a time in several forms. Pure.

use jiff::civil::DateTime;
use jiff::tz::TimeZone;
use jiff::{Span, Timestamp};

use super::points::Ask;
use crate::types::Micros;

/// A time that is none of the known forms.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{text:?} is not a time: use 2026-11-22T21:00:05Z, \"2026-11-22 21:00:05\" (local time), now, \"-10 min\" or latest"
)]
pub struct InvalidTimeError {
    /// The refused text.
    pub text: String,
}

/// Reads the value of `--at`.
///
/// # Errors
/// [`InvalidTimeError`].
pub fn at(text: &str, now: Micros, zone: &TimeZone) -> Result<Ask, InvalidTimeError> {
    let text = text.trim();
    match text.to_ascii_lowercase().as_str() {
        "latest" => return Ok(Ask::Latest),
        "now" => return Ok(Ask::At(now)),
        _ => {}
    }
    let time = absolute(text, zone).or_else(|| relative(text, now, zone));
    let micros = time.and_then(|time| u64::try_from(time.as_microsecond()).ok());
    micros.map(|micros| Ask::At(Micros(micros))).ok_or_else(|| InvalidTimeError { text: text.to_owned() })
}

/// Reads the value of `--point`. A name that looks like an id is taken for the id.
#[must_use]
pub fn point(text: &str) -> Ask {
    match text.parse() {
        Ok(id) => Ask::Id(id),
        Err(_) if text == "latest" => Ask::Latest,
        Err(_) => Ask::Name(text.to_owned()),
    }
}

fn absolute(text: &str, zone: &TimeZone) -> Option<Timestamp> {
    if let Ok(time) = text.parse::<Timestamp>() {
        return Some(time);
    }
    let local: DateTime = text.parse().ok()?;
    // An hour that the change to winter time repeats is taken the first time.
    local.to_zoned(zone.clone()).ok().map(|time| time.timestamp())
}

/// `-10 min`, `10 min ago`: always into the past; a time to come is no point yet.
fn relative(text: &str, now: Micros, zone: &TimeZone) -> Option<Timestamp> {
    let (text, signed) = match text.strip_prefix('-') {
        Some(rest) => (rest.trim_start(), true),
        None => (text, false),
    };
    let back = text.strip_suffix("ago").map(str::trim_end);
    if signed == back.is_some() {
        return None;
    }
    let span: Span = back.unwrap_or(text).parse().ok()?;
    if span.is_negative() {
        return None;
    }
    let now = Timestamp::from_microsecond(i64::try_from(now.0).ok()?).ok()?;
    // In the zone, or a day would not be a day across a change of the clocks.
    now.to_zoned(zone.clone()).checked_sub(span).ok().map(|time| time.timestamp())
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Micros = Micros(1_795_384_805_000_000); // 2026-11-22T22:00:05Z

    fn read(text: &str) -> Option<String> {
        let zone = TimeZone::fixed(jiff::tz::offset(1));
        match at(text, NOW, &zone) {
            Ok(Ask::At(time)) => Some(time.to_string()),
            Ok(Ask::Latest) => Some("latest".into()),
            _ => None,
        }
    }

    #[test]
    fn every_form_of_a_time_is_understood() {
        let expect = |text: &str, time: &str| assert_eq!(read(text).as_deref(), Some(time), "{text}");
        expect("2026-11-22T21:00:05Z", "2026-11-22T21:00:05.000000Z");
        expect("2026-11-22T21:00:05.123456Z", "2026-11-22T21:00:05.123456Z");
        expect("2026-11-22T21:00:05+02:00", "2026-11-22T19:00:05.000000Z");
        expect("2026-11-22 21:00:05", "2026-11-22T20:00:05.000000Z");
        expect("2026-11-22", "2026-11-21T23:00:00.000000Z");
        expect("now", "2026-11-22T22:00:05.000000Z");
        expect("-10 min", "2026-11-22T21:50:05.000000Z");
        expect("-90s", "2026-11-22T21:58:35.000000Z");
        expect("2 hours ago", "2026-11-22T20:00:05.000000Z");
        expect("-1 day", "2026-11-21T22:00:05.000000Z");
        expect("latest", "latest");
    }

    #[test]
    fn anything_else_is_refused() {
        for text in ["", "soon", "10 min", "-10 min ago", "2026-13-01", "--5s", "-"] {
            assert_eq!(read(text), None, "{text}");
        }
    }

    #[test]
    fn a_point_is_an_id_a_name_or_the_latest() {
        assert_eq!(point("latest"), Ask::Latest);
        assert_eq!(point("e2-s7"), Ask::Id("e2-s7".parse().unwrap()));
        assert_eq!(point("before upgrade"), Ask::Name("before upgrade".into()));
    }
}
