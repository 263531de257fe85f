//! Reading configuration files so that every mistake is reported at once.
//!
//! serde stops at the first error; an operator wants the whole list. [`Reader`] walks a parsed TOML table, takes each
//! key with its default and bounds, collects what is wrong, and at the end adds every key that nobody asked for.

use std::collections::BTreeSet;
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::fault::{Classify, Fault};

/// All mistakes of one configuration file.
#[derive(Debug, thiserror::Error)]
pub struct ConfigError {
    /// The file.
    pub path: PathBuf,
    /// One line per mistake: key, what is wrong, what is expected.
    pub mistakes: Vec<String>,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let plural = if self.mistakes.len() == 1 { "mistake" } else { "mistakes" };
        write!(f, "{}: {} {plural}", self.path.display(), self.mistakes.len())?;
        self.mistakes.iter().try_for_each(|mistake| write!(f, "\n  {mistake}"))
    }
}

impl Classify for ConfigError {
    fn fault(&self) -> Fault {
        Fault::Reject
    }
}

/// One table of a configuration file while it is read.
pub struct Reader {
    prefix: String,
    table: toml::Table,
    asked: BTreeSet<String>,
    mistakes: Vec<String>,
    base: PathBuf,
}

impl Reader {
    /// Parses `text` as read from `path`; relative paths inside are taken from the file's folder.
    ///
    /// # Errors
    /// [`ConfigError`] with the line and column if it is not TOML.
    pub fn parse(path: &Path, text: &str) -> Result<Self, ConfigError> {
        let table = text.parse::<toml::Table>().map_err(|error| ConfigError {
            path: path.to_owned(),
            mistakes: vec![error.to_string().trim().to_owned()],
        })?;
        let base = path.parent().map(Path::to_owned).unwrap_or_default();
        Ok(Self { prefix: String::new(), table, asked: BTreeSet::new(), mistakes: Vec::new(), base })
    }

    /// Reads and parses a file.
    ///
    /// # Errors
    /// [`ConfigError`] if the file cannot be read or is not TOML.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path).map_err(|error| ConfigError {
            path: path.to_owned(),
            mistakes: vec![format!("cannot be read: {error}")],
        })?;
        Self::parse(path, &text)
    }

    fn key(&self, key: &str) -> String {
        if self.prefix.is_empty() { key.to_owned() } else { format!("{}.{key}", self.prefix) }
    }

    /// Notes a mistake of `key`.
    pub fn mistake(&mut self, key: &str, what: impl fmt::Display) {
        let key = self.key(key);
        self.mistakes.push(format!("{key}: {what}"));
    }

    fn take(&mut self, key: &str) -> Option<toml::Value> {
        self.asked.insert(key.to_owned());
        self.table.get(key).cloned()
    }

    /// Whether the key is there.
    #[must_use]
    pub fn has(&self, key: &str) -> bool {
        self.table.contains_key(key)
    }

    /// A value given as text that `parse` understands, if the key is there.
    pub fn parsed<T>(&mut self, key: &str, parse: impl FnOnce(&str) -> Result<T, String>) -> Option<T> {
        match self.take(key)? {
            toml::Value::String(text) => match parse(&text) {
                Ok(value) => Some(value),
                Err(what) => {
                    self.mistake(key, what);
                    None
                }
            },
            other => {
                self.mistake(key, format_args!("expected text in quotes, found {}", other.type_str()));
                None
            }
        }
    }

    /// Text, if the key is there.
    pub fn text(&mut self, key: &str) -> Option<String> {
        self.parsed(key, |text| Ok(text.to_owned()))
    }

    /// Notes a mistake if a required value did not come; a value of the wrong form has its own mistake already.
    pub fn required<T>(&mut self, key: &str, value: Option<T>) -> Option<T> {
        if value.is_none() && !self.has(key) {
            self.mistake(key, "is missing");
        }
        value
    }

    /// Required text.
    pub fn required_text(&mut self, key: &str) -> Option<String> {
        let value = self.text(key);
        self.required(key, value)
    }

    /// A path, relative to the file's folder, if the key is there.
    pub fn path(&mut self, key: &str) -> Option<PathBuf> {
        let base = self.base.clone();
        self.parsed(key, |text| if text.is_empty() { Err("is empty".into()) } else { Ok(base.join(text)) })
    }

    /// A required path.
    pub fn required_path(&mut self, key: &str) -> Option<PathBuf> {
        let value = self.path(key);
        self.required(key, value)
    }

    /// A whole number within bounds.
    pub fn number(&mut self, key: &str, default: u64, bounds: std::ops::RangeInclusive<u64>) -> u64 {
        let value = match self.take(key) {
            None => return default,
            Some(toml::Value::Integer(value)) => u64::try_from(value).ok().filter(|value| bounds.contains(value)),
            Some(_) => None,
        };
        value.unwrap_or_else(|| {
            self.mistake(key, format_args!("expected a whole number from {} to {}", bounds.start(), bounds.end()));
            default
        })
    }

    /// A number with or without decimals, if the key is there.
    pub fn decimal(&mut self, key: &str) -> Option<f64> {
        match self.take(key)? {
            toml::Value::Float(value) => Some(value),
            toml::Value::Integer(value) => Some(value as f64),
            _ => {
                self.mistake(key, "expected a number");
                None
            }
        }
    }

    /// True or false.
    pub fn flag(&mut self, key: &str, default: bool) -> bool {
        match self.take(key) {
            None => default,
            Some(toml::Value::Boolean(value)) => value,
            Some(_) => {
                self.mistake(key, "expected true or false");
                default
            }
        }
    }

    /// A size such as `"64 MiB"` within bounds, in bytes.
    pub fn size(&mut self, key: &str, default: u64, bounds: std::ops::RangeInclusive<u64>) -> u64 {
        let parsed = self.parsed(key, |text| {
            let bytes = parse_size(text).ok_or_else(|| format!("{text:?} is no size: write for example \"64 MiB\""))?;
            if bounds.contains(&bytes) {
                Ok(bytes)
            } else {
                Err(format!("{text} is outside {} to {}", show_size(*bounds.start()), show_size(*bounds.end())))
            }
        });
        parsed.unwrap_or(default)
    }

    /// A duration such as `"500 ms"` within bounds.
    pub fn duration(&mut self, key: &str, default: Duration, bounds: std::ops::RangeInclusive<Duration>) -> Duration {
        let parsed = self.parsed(key, |text| {
            let duration =
                parse_duration(text).ok_or_else(|| format!("{text:?} is no duration: write for example \"5 s\""))?;
            if bounds.contains(&duration) {
                Ok(duration)
            } else {
                Err(format!("{text} is outside {:?} to {:?}", bounds.start(), bounds.end()))
            }
        });
        parsed.unwrap_or(default)
    }

    /// A list of texts; empty if the key is not there.
    pub fn texts(&mut self, key: &str) -> Vec<String> {
        match self.take(key) {
            None => Vec::new(),
            Some(toml::Value::Array(items)) if items.iter().all(toml::Value::is_str) => {
                items.iter().filter_map(toml::Value::as_str).map(str::to_owned).collect()
            }
            Some(_) => {
                self.mistake(key, "expected a list of texts");
                Vec::new()
            }
        }
    }

    /// Reads the sub-table `key` (empty if not there) with `read`; its mistakes join this table's.
    pub fn section<T>(&mut self, key: &str, read: impl FnOnce(&mut Self) -> T) -> T {
        let table = match self.take(key) {
            None => toml::Table::new(),
            Some(toml::Value::Table(table)) => table,
            Some(_) => {
                self.mistake(key, format_args!("expected a section [{key}]"));
                toml::Table::new()
            }
        };
        self.nested(self.key(key), table, read)
    }

    /// Reads each table of the list `[[key]]` with `read`.
    pub fn sections<T>(&mut self, key: &str, mut read: impl FnMut(&mut Self) -> T) -> Vec<T> {
        let items = match self.take(key) {
            None => Vec::new(),
            Some(toml::Value::Array(items)) => items,
            Some(_) => {
                self.mistake(key, format_args!("expected a list of sections [[{key}]]"));
                Vec::new()
            }
        };
        let mut out = Vec::new();
        for (number, item) in items.into_iter().enumerate() {
            match item {
                toml::Value::Table(table) => {
                    out.push(self.nested(format!("{}[{number}]", self.key(key)), table, &mut read));
                }
                _ => self.mistake(key, format_args!("item {number} is no section")),
            }
        }
        out
    }

    /// Reads each item of the list `key` with `read`: a table as it is, a text as the table that has it as its `as_key`.
    pub fn sections_or_texts<T>(&mut self, key: &str, as_key: &str, mut read: impl FnMut(&mut Self) -> T) -> Vec<T> {
        let items = match self.take(key) {
            None => Vec::new(),
            Some(toml::Value::Array(items)) => items,
            Some(_) => {
                self.mistake(key, "expected a list");
                Vec::new()
            }
        };
        let mut out = Vec::new();
        for (number, item) in items.into_iter().enumerate() {
            let table = match item {
                toml::Value::Table(table) => table,
                toml::Value::String(text) => toml::Table::from_iter([(as_key.to_owned(), toml::Value::String(text))]),
                _ => {
                    self.mistake(key, format_args!("item {number} is neither text nor table"));
                    continue;
                }
            };
            out.push(self.nested(format!("{}[{number}]", self.key(key)), table, &mut read));
        }
        out
    }

    fn nested<T>(&mut self, prefix: String, table: toml::Table, read: impl FnOnce(&mut Self) -> T) -> T {
        let mut inner = Self { prefix, table, asked: BTreeSet::new(), mistakes: Vec::new(), base: self.base.clone() };
        let value = read(&mut inner);
        inner.note_unknown();
        self.mistakes.append(&mut inner.mistakes);
        value
    }

    fn note_unknown(&mut self) {
        let unknown: Vec<String> = self.table.keys().filter(|key| !self.asked.contains(*key)).cloned().collect();
        for key in unknown {
            let near = self.asked.iter().find(|known| near(known, &key)).cloned();
            match near {
                Some(known) => self.mistake(&key, format_args!("is not known; did you mean {known}?")),
                None => self.mistake(&key, "is not known"),
            }
        }
    }

    /// Ends reading.
    ///
    /// # Errors
    /// [`ConfigError`] with every mistake noted, unknown keys included.
    pub fn finish(mut self, path: &Path) -> Result<(), ConfigError> {
        self.note_unknown();
        if self.mistakes.is_empty() {
            Ok(())
        } else {
            Err(ConfigError { path: path.to_owned(), mistakes: self.mistakes })
        }
    }
}

/// Whether two keys differ by a slip: same letters in another order or up to two edits at one place.
fn near(known: &str, given: &str) -> bool {
    let prefix = known.bytes().zip(given.bytes()).take_while(|(a, b)| a == b).count();
    let suffix = known.bytes().rev().zip(given.bytes().rev()).take_while(|(a, b)| a == b).count();
    let longest = known.len().max(given.len());
    prefix + suffix + 2 >= longest
}

const SIZE_UNITS: [(&str, u64); 9] = [
    ("tib", 1 << 40),
    ("gib", 1 << 30),
    ("mib", 1 << 20),
    ("kib", 1 << 10),
    ("tb", 1_000_000_000_000),
    ("gb", 1_000_000_000),
    ("mb", 1_000_000),
    ("kb", 1_000),
    ("b", 1),
];

/// Reads `"64 MiB"`, `"2GB"`, `"4096"`.
#[must_use]
pub fn parse_size(text: &str) -> Option<u64> {
    let lower = text.trim().to_ascii_lowercase();
    let (number, unit) = SIZE_UNITS
        .iter()
        .find_map(|(name, unit)| lower.strip_suffix(name).map(|number| (number.trim().to_owned(), *unit)))
        .unwrap_or((lower, 1));
    number.parse::<u64>().ok()?.checked_mul(unit)
}

/// Reads `"50 MiB/s"` and `"400 Mbit/s"`, as bytes per second.
#[must_use]
pub fn parse_rate(text: &str) -> Option<u64> {
    let amount = text.trim().strip_suffix("/s")?.trim_end();
    let lower = amount.to_ascii_lowercase();
    let Some(bits) = lower.strip_suffix("bit") else {
        // A bare number could be either.
        return amount.ends_with(['b', 'B']).then(|| parse_size(amount)).flatten();
    };
    let units = [("k", 1_000), ("m", 1_000_000), ("g", 1_000_000_000)];
    let scaled = units.iter().find_map(|(name, unit)| Some((bits.strip_suffix(name)?, *unit)));
    let (number, unit) = scaled.unwrap_or((bits, 1_u64));
    Some(number.trim().parse::<u64>().ok()?.checked_mul(unit)? / 8)
}

/// Shows a rate as [`show_size`] shows a size.
#[must_use]
pub fn show_rate(bytes_per_second: u64) -> String {
    format!("{}/s", show_size(bytes_per_second))
}

/// Shows a size in the largest unit that keeps it readable.
#[must_use]
pub fn show_size(bytes: u64) -> String {
    for (name, unit) in [("TiB", 1_u64 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)] {
        if bytes >= unit {
            let value = bytes as f64 / unit as f64;
            return if bytes.is_multiple_of(unit) {
                format!("{value:.0} {name}")
            } else {
                format!("{value:.1} {name}")
            };
        }
    }
    format!("{bytes} B")
}

/// Reads `"500 ms"`, `"5s"`, `"2 min"`, `"1 h"`, `"1 d"`.
#[must_use]
pub fn parse_duration(text: &str) -> Option<Duration> {
    let lower = text.trim().to_ascii_lowercase();
    let split = lower.find(|c: char| !c.is_ascii_digit())?;
    let number: u64 = lower[..split].parse().ok()?;
    let unit_ms = match lower[split..].trim() {
        "ms" => 1,
        "s" => 1000,
        "min" | "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return None,
    };
    number.checked_mul(unit_ms).map(Duration::from_millis)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_mistakes_are_reported_at_once() {
        let path = Path::new("gateway.toml");
        let text = "lisen = 'x'\n[journal]\ncapacity = '5 parsecs'\nshards = 900\n[[peer]]\nname = 3\n";
        let mut reader = Reader::parse(path, text).expect("TOML");
        reader.text("listen");
        reader.required_text("vault");
        reader.section("journal", |journal| {
            assert_eq!(journal.size("capacity", 7, 0..=100), 7);
            assert_eq!(journal.number("shards", 1, 1..=64), 1);
        });
        reader.sections("peer", |peer| peer.text("name"));
        let error = reader.finish(path).expect_err("mistakes");
        assert_eq!(error.mistakes.len(), 5, "{error}");
        assert!(error.to_string().contains("did you mean listen?"), "{error}");
    }

    #[test]
    fn sizes_and_durations_are_read_in_the_usual_forms() {
        assert_eq!(parse_size("64 MiB"), Some(64 << 20));
        assert_eq!(parse_size("2gb"), Some(2_000_000_000));
        assert_eq!(parse_size("4096"), Some(4096));
        assert_eq!(parse_size("x"), None);
        for (text, rate) in [
            ("50 MiB/s", Some(50 << 20)),
            ("400 Mbit/s", Some(50_000_000)),
            ("1GB/s", Some(1_000_000_000)),
            ("9 bit/s", Some(1)),
            ("50 MiB", None),
            ("50/s", None),
            ("/s", None),
            ("-1 B/s", None),
        ] {
            assert_eq!(parse_rate(text), rate, "{text}");
        }
        assert_eq!(show_rate(50 << 20), "50 MiB/s");
        assert_eq!(parse_duration("500 ms"), Some(Duration::from_millis(500)));
        assert_eq!(parse_duration("2min"), Some(Duration::from_secs(120)));
        assert_eq!(parse_duration("5"), None);
        assert_eq!(show_size(64 << 20), "64 MiB");
    }
}
