//! Reading `[bandwidth]`: limits outside the calendar, entries, and whose clock they mean.

use jiff::tz::TimeZone;

use super::calendar::{Calendar, DAY_MINUTES, Entry, Setting, Settings, What};
use crate::config::{Reader, parse_rate, show_rate};

/// Slowest limit: the largest record within 18 s, a batch within minutes.
pub const RATE_MIN: u64 = 64 << 10;
/// Fastest one: beyond it there is none worth the name.
pub const RATE_MAX: u64 = 1 << 40;
/// Most entries of a calendar: each is looked at every second.
pub const ENTRIES_MAX: usize = 200;

const DAYS: [&str; 7] = ["mon", "tue", "wed", "thu", "fri", "sat", "sun"];
const ALL_DAYS: u8 = 0b111_1111;

/// Reads a limit: `"50 MiB/s"`, `"400 Mbit/s"`, `"none"`.
///
/// # Errors
/// What is wrong, for people.
pub fn setting(text: &str) -> Result<Setting, String> {
    if text == "none" {
        return Ok(Setting::Free);
    }
    let rate =
        parse_rate(text).ok_or_else(|| format!("{text:?} is no rate: write for example \"50 MiB/s\", or \"none\""))?;
    if (RATE_MIN..=RATE_MAX).contains(&rate) {
        return Ok(Setting::BytesPerSecond(rate));
    }
    Err(format!("{text} is outside {} to {}", show_rate(RATE_MIN), show_rate(RATE_MAX)))
}

/// Reads the section.
pub fn read(bandwidth: &mut Reader) -> Calendar {
    let base = read_settings(bandwidth);
    let zone = bandwidth.parsed("time_zone", zone).unwrap_or(TimeZone::UTC);
    let entries = bandwidth.sections("calendar", read_entry);
    if entries.len() > ENTRIES_MAX {
        bandwidth.mistake("calendar", format_args!("{} entries: write at most {ENTRIES_MAX}", entries.len()));
    }
    Calendar { base, entries, zone }
}

fn read_settings(reader: &mut Reader) -> Settings {
    What::ALL.map(|what| reader.parsed(what.key(), setting).unwrap_or_default())
}

fn zone(text: &str) -> Result<TimeZone, String> {
    match text {
        "UTC" => Ok(TimeZone::UTC),
        "local" => TimeZone::try_system().map_err(|error| format!("this machine's time zone is not known: {error}")),
        name => TimeZone::get(name).map_err(|_| {
            format!(
                "{name:?} is no time zone that this machine knows: write one such as \"Europe/Berlin\" (package tzdata), \
                 \"local\", or \"UTC\""
            )
        }),
    }
}

fn read_entry(entry: &mut Reader) -> Entry {
    let mut days = 0;
    for text in entry.texts("days") {
        match days_of(&text) {
            Some(some) => days |= some,
            None => entry.mistake(
                "days",
                format_args!("{text:?} is no day: write mon, tue, wed, thu, fri, sat, sun, or mon-fri"),
            ),
        }
    }
    let from = entry.parsed("from", minute).unwrap_or(0);
    let to = entry.parsed("to", minute).unwrap_or(DAY_MINUTES);
    if from == DAY_MINUTES {
        entry.mistake("from", "24:00 is the next day's 00:00");
    }
    if from == to {
        entry.mistake("to", "is the same as from: leave both out for whole days");
    }
    let settings = read_settings(entry);
    if settings == Settings::default() {
        let keys = What::ALL.map(What::key).join(", ");
        entry.mistake("days", format_args!("an entry says nothing without one of {keys}"));
    }
    Entry { days: if days == 0 { ALL_DAYS } else { days }, from, to, settings }
}

/// `mon`, or `fri-mon`, which goes over the weekend.
fn days_of(text: &str) -> Option<u8> {
    let day = |name: &str| DAYS.iter().position(|day| *day == name);
    let (first, last) = match text.split_once('-') {
        Some((first, last)) => (day(first)?, day(last)?),
        None => (day(text)?, day(text)?),
    };
    let count = (last + 7 - first) % 7;
    Some((0..=count).fold(0, |days, at| days | 1 << ((first + at) % 7)))
}

/// `08:00` as the minute of the day.
fn minute(text: &str) -> Result<u16, String> {
    let wrong =
        || format!("{text:?} is no time of day: write for example \"08:00\", or \"24:00\" for the end of the day");
    let (hours, minutes) = text.split_once(':').ok_or_else(wrong)?;
    let number = |text: &str, most: u16| {
        let digits = text.len() == 2 && text.bytes().all(|byte| byte.is_ascii_digit());
        text.parse::<u16>().ok().filter(|number| digits && *number <= most).ok_or_else(wrong)
    };
    let minute = number(hours, 24)? * 60 + number(minutes, 59)?;
    if minute <= DAY_MINUTES { Ok(minute) } else { Err(wrong()) }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config::ConfigError;

    const MIB: u64 = 1 << 20;

    fn read_text(text: &str) -> Result<Calendar, ConfigError> {
        let path = Path::new("gateway.toml");
        let mut reader = Reader::parse(path, text)?;
        let calendar = reader.section("bandwidth", read);
        reader.finish(path).map(|()| calendar)
    }

    #[test]
    fn limits_days_and_times_are_read_in_the_usual_forms() {
        let calendar = read_text(
            "[bandwidth]\nupload_max = '200 MiB/s'\ndisk_max = '80 Mbit/s'\n\
             [[bandwidth.calendar]]\ndays = ['mon-fri']\nfrom = '08:00'\nto = '18:00'\nupload_max = '50MiB/s'\n\
             [[bandwidth.calendar]]\ndays = ['sat', 'sun-mon']\nupload_max = 'none'\nreceive_max = '1 GB/s'\n",
        )
        .expect("valid");
        let (limit, unsaid) = (Setting::BytesPerSecond, Setting::Unsaid);
        assert_eq!(calendar.base, [limit(200 * MIB), unsaid, limit(10_000_000)]);
        let office = Entry { days: 0b001_1111, from: 480, to: 1080, settings: [limit(50 * MIB), unsaid, unsaid] };
        let weekend = [Setting::Free, limit(1_000_000_000), unsaid];
        assert_eq!(calendar.entries, [office, Entry { days: 0b110_0001, from: 0, to: 1440, settings: weekend }]);
        assert_eq!((calendar.zone, read_text("").expect("valid")), (TimeZone::UTC, Calendar::default()));
    }

    #[test]
    fn every_mistake_is_named_with_its_entry() {
        let error = read_text(
            "[bandwidth]\nupload_max = '50 MiB'\nreceive_max = '1 B/s'\ntime_zone = 'Mars/Olympus'\nupload = 3\n\
             [[bandwidth.calendar]]\ndays = ['monday']\nfrom = '8:00'\nto = '24:01'\n\
             [[bandwidth.calendar]]\nfrom = '24:00'\nto = '24:00'\ndisk_max = 'none'\n",
        )
        .expect_err("mistakes")
        .to_string();
        for part in [
            "bandwidth.upload_max: \"50 MiB\" is no rate",
            "bandwidth.receive_max: 1 B/s is outside 64 KiB/s",
            "bandwidth.time_zone: \"Mars/Olympus\" is no time zone",
            "bandwidth.upload: is not known",
            "bandwidth.calendar[0].days: \"monday\" is no day",
            "bandwidth.calendar[0].from: \"8:00\" is no time of day",
            "bandwidth.calendar[0].to: \"24:01\" is no time of day",
            "bandwidth.calendar[0].days: an entry says nothing",
            "bandwidth.calendar[1].from: 24:00 is the next day's 00:00",
            "bandwidth.calendar[1].to: is the same as from",
        ] {
            assert!(error.contains(part), "{part} is not named in: {error}");
        }
    }
}
