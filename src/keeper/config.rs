//! The keeper's configuration file: where the vault is, how to work, and the policy of each disk.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::policy::{Held, Policy, Term};
use crate::config::{ConfigError, Reader, parse_duration};
use crate::types::{DiskId, Micros};

/// The file with every key, its default and its meaning.
pub const DEFAULT_FILE: &str = include_str!("../../deploy/keeper.toml");

/// Least time between mark and deletion: a gateway's or reader's look at a vault is shorter.
pub const DELETE_AFTER_MIN: Duration = Duration::from_secs(600);

/// How the keeper works.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Work {
    /// Pause between two runs.
    pub every: Duration,
    /// Between mark and deletion.
    pub delete_after: Duration,
    /// Age from which a lane without an end is sealed.
    pub seal_after: Duration,
    /// Between the seal of a lane and the first mark in it.
    pub seal_grace: Duration,
    /// From when on a claim is taken for left behind.
    pub claim_stale: Duration,
    /// What is younger may lie above a fork that is under way.
    pub fork_window: Duration,
    /// Most requests of one run, without those that read indexes to judge by.
    pub requests: u64,
    /// Most bytes that these requests read.
    pub bytes: u64,
    /// Disks that are judged together.
    pub disks_at_once: usize,
}

/// A gateway acks nothing into a lane that was sealed so long ago, whatever it waited for.
const SEAL_GRACE: Duration = Duration::from_secs(600);
/// A run that works longer on one lane costs another one double work, no more.
const CLAIM_STALE: Duration = Duration::from_secs(600);
/// Longer than any fork lies between its look at the vault's head and its epoch.
const FORK_WINDOW: Duration = Duration::from_secs(3600);

impl Default for Work {
    fn default() -> Self {
        Self {
            every: Duration::from_secs(15 * 60),
            delete_after: Duration::from_secs(6 * 3600),
            seal_after: Duration::from_secs(26 * 3600),
            seal_grace: SEAL_GRACE,
            claim_stale: CLAIM_STALE,
            fork_window: FORK_WINDOW,
            requests: 20_000,
            bytes: 4 << 30,
            disks_at_once: 64,
        }
    }
}

/// What is kept of which disk.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Policies {
    /// Of every disk that is not named.
    pub default: Policy,
    /// Of the others.
    pub disks: BTreeMap<DiskId, Policy>,
}

impl Policies {
    /// The policy of a disk.
    #[must_use]
    pub fn of(&self, disk: &DiskId) -> &Policy {
        self.disks.get(disk).unwrap_or(&self.default)
    }
}

/// A checked configuration file.
#[derive(Clone, Debug)]
pub struct KeeperConfig {
    /// Where the vault is.
    pub vault_url: String,
    /// File with its catalog key.
    pub catalog_key: PathBuf,
    /// How to work.
    pub work: Work,
    /// What is kept.
    pub policies: Policies,
}

impl KeeperConfig {
    /// Reads and checks a configuration file.
    ///
    /// # Errors
    /// [`ConfigError`] lists every mistake.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        Self::read(Reader::load(path)?, path)
    }

    /// Reads a configuration from text; `path` names it and is what relative paths start from.
    ///
    /// # Errors
    /// As [`KeeperConfig::load`].
    pub fn parse(path: &Path, text: &str) -> Result<Self, ConfigError> {
        Self::read(Reader::parse(path, text)?, path)
    }

    fn read(mut reader: Reader, path: &Path) -> Result<Self, ConfigError> {
        let vault = reader.section("vault", |vault| {
            let (url, key) = (vault.required_text("url"), vault.required_path("catalog_key"));
            Some((url?, key?))
        });
        let work = reader.section("keeper", read_work);
        let default = reader.section("policy", |section| read_policy(section, &Policy::default()));
        let named = reader.sections("disk", |section| {
            let name = section.parsed("name", |text| DiskId::new(text).map_err(|error| error.to_string()));
            (section.required("name", name), read_policy(section, &default))
        });
        let mut disks = BTreeMap::new();
        for (name, policy) in named {
            let Some(name) = name else { continue };
            if disks.insert(name.clone(), policy).is_some() {
                reader.mistake("disk", format_args!("{name} has two sections"));
            }
        }
        reader.finish(path)?;
        let missing = || ConfigError { path: path.to_owned(), mistakes: vec!["a required value is missing".into()] };
        let (vault_url, catalog_key) = vault.ok_or_else(missing)?;
        Ok(Self { vault_url, catalog_key, work, policies: Policies { default, disks } })
    }
}

fn read_work(reader: &mut Reader) -> Work {
    let default = Work::default();
    let seconds = Duration::from_secs;
    let day = seconds(24 * 3600);
    Work {
        every: reader.duration("every", default.every, seconds(10)..=day),
        delete_after: reader.duration("delete_after", default.delete_after, DELETE_AFTER_MIN..=30 * day),
        seal_after: reader.duration("seal_after", default.seal_after, seconds(3600)..=365 * day),
        requests: reader.number("requests", default.requests, 10..=100_000_000),
        bytes: reader.size("bytes", default.bytes, 1 << 20..=1 << 50),
        disks_at_once: reader.number("disks_at_once", default.disks_at_once as u64, 1..=100_000) as usize,
        ..default
    }
}

fn read_policy(reader: &mut Reader, default: &Policy) -> Policy {
    let mut term = |key: &str, default: Term| {
        let parsed = reader.parsed(key, |text| match text.trim() {
            "forever" => Ok(Term::Forever),
            text => parse_duration(text)
                .map(Term::For)
                .ok_or_else(|| format!("{text:?} is no term: write for example \"24 h\", \"90 d\" or \"forever\"")),
        });
        parsed.unwrap_or(default)
    };
    let policy = Policy {
        every: term("every", default.every),
        minutes: term("minutes", default.minutes),
        hours: term("hours", default.hours),
        days: term("days", default.days),
        months: term("months", default.months),
        app: term("app", default.app),
        named: term("named", default.named),
        hold: reader.flag("hold", default.hold),
        holds: default.holds.clone(),
    };
    if !reader.has("holds") {
        return policy;
    }
    let mut holds = Vec::new();
    for text in reader.texts("holds") {
        match held(&text) {
            Some(held) => holds.push(held),
            None => reader.mistake(
                "holds",
                format_args!("{text:?} is no span: write \"FROM/UNTIL\", each as 2026-11-22T21:00:05Z"),
            ),
        }
    }
    Policy { holds, ..policy }
}

fn held(text: &str) -> Option<Held> {
    let (from, until) = text.split_once('/')?;
    let time = |text: &str| {
        let time: jiff::Timestamp = text.trim().parse().ok()?;
        u64::try_from(time.as_microsecond()).ok().map(Micros)
    };
    let held = Held { from: time(from)?, until: time(until)? };
    (held.from <= held.until).then_some(held)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<KeeperConfig, ConfigError> {
        KeeperConfig::parse(Path::new("/etc/tidegate/keeper.toml"), text)
    }

    #[test]
    fn the_file_that_is_shown_holds_the_defaults() {
        let shown = parse(DEFAULT_FILE).expect("the shown file is right");
        let short =
            parse("[vault]\nurl = 'file:///var/lib/tidegate/vault'\ncatalog_key = 'catalog.key'\n").expect("short");
        assert_eq!(shown.work, short.work);
        assert_eq!(shown.policies, short.policies);
        assert_eq!(shown.work, Work::default());
        assert_eq!(shown.policies.default, Policy::default());
        assert_eq!(shown.catalog_key, Path::new("/etc/tidegate/catalog.key"));
    }

    #[test]
    fn a_disk_takes_from_the_default_policy_what_it_does_not_say() {
        let text = "[vault]\nurl='file:///v'\ncatalog_key='k'\n[policy]\nevery='1 h'\ndays='forever'\n\
                    holds=['2026-11-01T00:00:00Z/2026-11-02T00:00:00Z']\n\
                    [[disk]]\nname='a'\nevery='48 h'\n[[disk]]\nname='b'\nhold=true\nholds=[]\n";
        let policies = parse(text).expect("right").policies;
        let disk = |name| policies.of(&DiskId::new(name).expect("valid"));
        let hours = |hours: u64| Term::For(Duration::from_secs(hours * 3600));
        assert_eq!((disk("a").every, disk("a").days, disk("a").holds.len()), (hours(48), Term::Forever, 1));
        assert_eq!((disk("b").every, disk("b").hold, disk("b").holds.len()), (hours(1), true, 0));
        assert_eq!(disk("c"), &policies.default);
    }

    #[test]
    fn all_mistakes_are_told_at_once() {
        let text = "[vault]\nurl='file:///v'\n[keeper]\ndelete_after='1 s'\n[policy]\nevery='a while'\nholds=['x']\nmonth='1 d'\n\
                    [[disk]]\nname='a'\n[[disk]]\nname='a'\n[[disk]]\nhold=3\n";
        let error = parse(text).expect_err("wrong").to_string();
        for part in [
            "catalog_key: is missing",
            "keeper.delete_after",
            "policy.every",
            "policy.holds",
            "did you mean months",
            "two sections",
            "disk[2].name: is missing",
            "disk[2].hold",
        ] {
            assert!(error.contains(part), "{part} is not in {error}");
        }
    }
}
