//! The week's plan: which limit is in force at a moment, and until when. Pure.
//!
//! Entries say days and times of day of one time zone. Of several entries that cover a moment the first one that says
//! something of a limit counts for it; where none does, what is said outside the calendar. A time of day that a clock change
//! skips or repeats is what the clocks on the wall show; in UTC there is none.

use std::fmt;

use jiff::civil::Date;
use jiff::tz::TimeZone;
use jiff::{Timestamp, ToSpan, Zoned};

use crate::types::Micros;

/// What can be limited.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum What {
    /// What batches send to the vault.
    Upload,
    /// Records that come from all agents together.
    Receive,
    /// Records of one disk.
    Disk,
}

impl What {
    /// All of them, as their settings are listed.
    pub const ALL: [Self; 3] = [Self::Upload, Self::Receive, Self::Disk];

    /// Its name in metrics, JSON and options.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Upload => "upload",
            Self::Receive => "receive",
            Self::Disk => "disk",
        }
    }

    /// Its key in the configuration.
    #[must_use]
    pub const fn key(self) -> &'static str {
        match self {
            Self::Upload => "upload_max",
            Self::Receive => "receive_max",
            Self::Disk => "disk_max",
        }
    }

    /// Whom it holds, for people.
    #[must_use]
    pub const fn words(self) -> &'static str {
        match self {
            Self::Upload => "uploads",
            Self::Receive => "all agents together",
            Self::Disk => "each disk",
        }
    }
}

/// What is said of one limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Setting {
    /// Nothing: what is said elsewhere counts.
    #[default]
    Unsaid,
    /// There is none.
    Free,
    /// So many bytes per second.
    BytesPerSecond(u64),
}

impl Setting {
    /// The limit, if there is one.
    #[must_use]
    pub const fn limit(self) -> Option<u64> {
        match self {
            Self::BytesPerSecond(bytes) => Some(bytes),
            Self::Unsaid | Self::Free => None,
        }
    }
}

/// A setting of each of [`What::ALL`].
pub type Settings = [Setting; 3];

/// Minutes of a day.
pub const DAY_MINUTES: u16 = 24 * 60;

/// One entry of the plan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The days on which it begins; Monday is the lowest bit.
    pub days: u8,
    /// The minute of the day from which it counts.
    pub from: u16,
    /// The minute of the day at which it ends: on the next day, if it does not lie behind `from`.
    pub to: u16,
    /// What it says.
    pub settings: Settings,
}

impl Entry {
    fn covers(&self, day: u8, minute: u16) -> bool {
        let on = |day: u8| self.days & (1 << (day % 7)) != 0;
        if self.from < self.to {
            return on(day) && (self.from..self.to).contains(&minute);
        }
        on(day) && minute >= self.from || on(day + 6) && minute < self.to
    }
}

/// The whole plan.
#[derive(Clone, PartialEq)]
pub struct Calendar {
    /// What is said outside the entries.
    pub base: Settings,
    /// The entries, in their order.
    pub entries: Vec<Entry>,
    /// Whose days and times they mean.
    pub zone: TimeZone,
}

impl Default for Calendar {
    fn default() -> Self {
        Self { base: Settings::default(), entries: Vec::new(), zone: TimeZone::UTC }
    }
}

impl fmt::Debug for Calendar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let zone = self.zone.iana_name().unwrap_or("local");
        write!(f, "Calendar({:?}, {:?}, {zone})", self.base, self.entries)
    }
}

/// Days ahead in which the next change of a limit is looked for: whatever comes, comes within a week.
const AHEAD_DAYS: i64 = 8;

impl Calendar {
    /// What is in force of `what` at `at`, and whether an entry says so.
    #[must_use]
    pub fn at(&self, what: What, at: Micros) -> (Setting, bool) {
        let Some(there) = self.zoned(at) else { return (self.base[what as usize], false) };
        let day = there.weekday().to_monday_zero_offset().unsigned_abs();
        let minute = u16::from(there.hour().unsigned_abs()) * 60 + u16::from(there.minute().unsigned_abs());
        let covering = self.entries.iter().filter(|entry| entry.covers(day, minute));
        let said = covering.map(|entry| entry.settings[what as usize]).find(|setting| *setting != Setting::Unsaid);
        said.map_or((self.base[what as usize], false), |setting| (setting, true))
    }

    /// When something else will be in force of `what` than at `at`; `None` if that never comes.
    #[must_use]
    pub fn until(&self, what: What, at: Micros) -> Option<Micros> {
        let (now, today) = (self.at(what, at), self.zoned(at)?.date());
        let mut edges: Vec<Micros> = (-1..=AHEAD_DAYS)
            .filter_map(|days| today.checked_add(days.days()).ok())
            .flat_map(|date| self.entries.iter().flat_map(move |entry| [(date, entry.from), (date, entry.to)]))
            .filter_map(|(date, minute)| self.moment(date, minute))
            .collect();
        // Where the clocks are changed, an edge may be skipped.
        let changes = self.zone.following(Timestamp::from_microsecond(at.0 as i64).ok()?).take(2);
        edges.extend(changes.map(|change| Micros(change.timestamp().as_microsecond().unsigned_abs())));
        edges.sort_unstable();
        edges.into_iter().filter(|edge| *edge > at).find(|edge| self.at(what, *edge) != now)
    }

    /// The time of day there, for people: `18:00 UTC`, with the date if it is not within a day.
    #[must_use]
    pub fn shown(&self, moment: Micros, now: Micros) -> String {
        let near = moment.0.saturating_sub(now.0) < 24 * 3600 * 1_000_000;
        let form = if near { "%H:%M %Z" } else { "%Y-%m-%d %H:%M %Z" };
        self.zoned(moment).map_or_else(|| moment.to_string(), |there| there.strftime(form).to_string())
    }

    fn zoned(&self, at: Micros) -> Option<Zoned> {
        Some(Timestamp::from_microsecond(i64::try_from(at.0).ok()?).ok()?.to_zoned(self.zone.clone()))
    }

    fn moment(&self, date: Date, minute: u16) -> Option<Micros> {
        let date = if minute >= DAY_MINUTES { date.tomorrow().ok()? } else { date };
        let (hour, minute) = ((minute % DAY_MINUTES / 60) as i8, (minute % 60) as i8);
        let there = date.at(hour, minute, 0, 0).to_zoned(self.zone.clone()).ok()?;
        u64::try_from(there.timestamp().as_microsecond()).ok().map(Micros)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;
    const WORKDAYS: u8 = 0b001_1111;

    fn upload(setting: Setting) -> Settings {
        [setting, Setting::Unsaid, Setting::Unsaid]
    }

    fn entry(days: u8, from: u16, to: u16, limit: Setting) -> Entry {
        Entry { days, from: from / 100 * 60 + from % 100, to: to / 100 * 60 + to % 100, settings: upload(limit) }
    }

    fn at(text: &str) -> Micros {
        Micros(text.parse::<Timestamp>().expect("a time").as_microsecond() as u64)
    }

    fn office(zone: TimeZone) -> Calendar {
        let entries = vec![entry(WORKDAYS, 800, 1800, Setting::BytesPerSecond(50 * MIB))];
        Calendar { base: upload(Setting::BytesPerSecond(200 * MIB)), entries, zone }
    }

    fn limit(calendar: &Calendar, text: &str) -> u64 {
        calendar.at(What::Upload, at(text)).0.limit().unwrap_or(0) / MIB
    }

    #[test]
    fn an_entry_counts_from_its_first_minute_to_before_its_last_on_its_days() {
        let calendar = office(TimeZone::UTC);
        // 2026-11-27 is a Friday.
        for (text, mib) in [
            ("2026-11-27T07:59:59.999999Z", 200),
            ("2026-11-27T08:00:00Z", 50),
            ("2026-11-27T17:59:59.999999Z", 50),
            ("2026-11-27T18:00:00Z", 200),
            ("2026-11-28T12:00:00Z", 200),
            ("2026-11-30T12:00:00Z", 50),
        ] {
            assert_eq!(limit(&calendar, text), mib, "{text}");
        }
        assert_eq!(calendar.at(What::Disk, at("2026-11-27T12:00:00Z")), (Setting::Unsaid, false));
    }

    #[test]
    fn the_end_of_what_is_in_force_is_told_over_the_weekend_too() {
        let calendar = office(TimeZone::UTC);
        let until = |text: &str| calendar.until(What::Upload, at(text));
        assert_eq!(until("2026-11-27T12:00:00Z"), Some(at("2026-11-27T18:00:00Z")));
        assert_eq!(until("2026-11-27T18:00:00Z"), Some(at("2026-11-30T08:00:00Z")));
        assert_eq!(calendar.until(What::Receive, at("2026-11-27T12:00:00Z")), None);
        assert_eq!(Calendar::default().until(What::Upload, at("2026-11-27T12:00:00Z")), None);
        let (noon, end) = (at("2026-11-27T12:00:00Z"), at("2026-11-27T18:00:00Z"));
        assert_eq!(calendar.shown(end, noon), "18:00 UTC");
        assert_eq!(calendar.shown(at("2026-11-30T08:00:00Z"), noon), "2026-11-30 08:00 UTC");
    }

    #[test]
    fn an_entry_may_run_over_midnight_and_belongs_to_the_day_on_which_it_begins() {
        let night = vec![entry(0b001_0000, 2200, 600, Setting::Free)];
        let calendar = Calendar { base: upload(Setting::BytesPerSecond(MIB)), entries: night, zone: TimeZone::UTC };
        for (text, mib) in [
            ("2026-11-27T21:59:00Z", 1),
            ("2026-11-27T22:00:00Z", 0),
            ("2026-11-28T05:59:00Z", 0),
            ("2026-11-28T06:00:00Z", 1),
            ("2026-11-27T05:00:00Z", 1),
            ("2026-11-28T22:30:00Z", 1),
        ] {
            assert_eq!(limit(&calendar, text), mib, "{text}");
        }
        let until = calendar.until(What::Upload, at("2026-11-28T01:00:00Z"));
        assert_eq!(until, Some(at("2026-11-28T06:00:00Z")));
        // The whole day, from Sunday on into Monday.
        let whole = Calendar { entries: vec![entry(0b100_0000, 0, 2400, Setting::Free)], ..calendar };
        assert_eq!(whole.until(What::Upload, at("2026-11-29T10:00:00Z")), Some(at("2026-11-30T00:00:00Z")));
        assert_eq!(limit(&whole, "2026-11-29T00:00:00Z"), 0);
        assert_eq!(limit(&whole, "2026-11-30T00:00:00Z"), 1);
    }

    #[test]
    fn the_first_entry_that_says_something_counts() {
        let disk =
            Entry { settings: [Setting::Unsaid, Setting::Unsaid, Setting::Free], ..entry(127, 0, 2400, Setting::Free) };
        let entries =
            vec![disk, entry(127, 1000, 1200, Setting::Free), entry(127, 0, 2400, Setting::BytesPerSecond(MIB))];
        let calendar = Calendar { entries, ..Calendar::default() };
        assert_eq!(limit(&calendar, "2026-11-27T09:00:00Z"), 1);
        assert_eq!(calendar.at(What::Upload, at("2026-11-27T11:00:00Z")), (Setting::Free, true));
        assert_eq!(calendar.at(What::Disk, at("2026-11-27T11:00:00Z")), (Setting::Free, true));
    }

    #[test]
    fn a_stated_zone_counts_by_its_clocks_and_their_changes() {
        let Ok(zone) = TimeZone::get("Europe/Berlin") else {
            eprintln!("no time zones on this machine: left out");
            return;
        };
        let calendar = office(zone.clone());
        assert_eq!(limit(&calendar, "2026-07-01T06:00:00Z"), 50, "eight in summer");
        assert_eq!(limit(&calendar, "2026-12-01T06:00:00Z"), 200, "seven in winter");
        assert_eq!(calendar.until(What::Upload, at("2026-12-01T06:00:00Z")), Some(at("2026-12-01T07:00:00Z")));
        // 2026-03-29, 02:00 to 03:00 does not exist: an entry from 02:30 on begins where the clocks go on.
        let night = vec![entry(127, 230, 500, Setting::BytesPerSecond(MIB))];
        let calendar = Calendar { entries: night, zone, ..Calendar::default() };
        assert_eq!(calendar.until(What::Upload, at("2026-03-29T00:30:00Z")), Some(at("2026-03-29T01:00:00Z")));
        assert_eq!(limit(&calendar, "2026-03-29T01:00:00Z"), 1);
        // 2026-10-25, 02:00 to 03:00 comes twice, and so does the entry.
        assert_eq!(limit(&calendar, "2026-10-25T00:45:00Z"), 1);
        assert_eq!(limit(&calendar, "2026-10-25T01:15:00Z"), 0);
        assert_eq!(limit(&calendar, "2026-10-25T01:45:00Z"), 1);
    }
}
