//! The keeper's configuration file: where the vault is, how to work, and the policy of each disk.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::policy::{Held, Policy, TERMS, Term};
use crate::config::{ConfigError, Reader, parse_duration};
use crate::limits::BATCH_BYTES_TARGET;
use crate::restore::pin::PIN_EVERY;
use crate::telemetry::traces::settings::Settings;
use crate::types::{DiskId, Id128, Micros};

/// The file with every key, its default and its meaning.
pub const DEFAULT_FILE: &str = include_str!("../../deploy/keeper.toml");

/// Least time between mark and deletion. A restore that began before any keeper worked looks once an hour whether it must pin its point.
pub const DELETE_AFTER_MIN: Duration = Duration::from_secs(2 * 3600);
const _: () = assert!(DELETE_AFTER_MIN.as_secs() >= 2 * PIN_EVERY.as_secs(), "the pin comes first");

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
    /// Whether what is needed is moved out of sparse batches.
    pub moves: bool,
    /// Of a sparse batch less than so many hundredths are needed.
    pub sparse: u64,
    /// Sealed bytes of a batch of moved messages, before it is closed. No key of the file: tests have small vaults.
    pub batch_bytes: usize,
    /// Whether indexes of ended lanes are folded, disk by disk.
    pub fold: bool,
}

/// A gateway acks nothing into a lane that was sealed so long ago, whatever it waited for.
const SEAL_GRACE: Duration = Duration::from_secs(600);
/// A run that works longer on one lane costs another one double work, no more.
const CLAIM_STALE: Duration = Duration::from_secs(600);
/// Longer than any fork lies between its look at the vault's head and its epoch.
const FORK_WINDOW: Duration = Duration::from_secs(3600);

/// What stays is at most a third more than what is needed, and each byte is moved some three times in its life.
const SPARSE: u64 = 75;

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
            moves: false,
            sparse: SPARSE,
            batch_bytes: BATCH_BYTES_TARGET,
            fold: true,
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

    /// A digest of everything that decides what goes, and how soon: keepers that have the same agree.
    #[must_use]
    pub fn digest(&self, work: &Work) -> Id128 {
        let mut hasher = blake3::Hasher::new_derive_key("tidegate 1 keeper policies");
        for grace in [work.delete_after, work.seal_grace, work.fork_window] {
            hasher.update(&grace.as_micros().to_le_bytes());
        }
        let named = self.disks.iter().map(|(disk, policy)| (disk.as_str(), policy));
        for (name, policy) in [("", &self.default)].into_iter().chain(named) {
            let mut line = format!("{name} {}", policy.hold);
            for term in policy.terms() {
                match term {
                    Term::Forever => line.push_str(" forever"),
                    Term::For(term) => line.push_str(&format!(" {}", term.as_nanos())),
                }
            }
            for held in &policy.holds {
                line.push_str(&format!(" {}/{}", held.from.0, held.until.0));
            }
            line.push('\n');
            hasher.update(line.as_bytes());
        }
        let mut digest = [0; 16];
        digest.copy_from_slice(&hasher.finalize().as_bytes()[..16]);
        Id128(digest)
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
    /// Where traces go, and which.
    pub traces: Settings,
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
        let (mut default, written) = reader.section("policy", |section| {
            let written = writes_terms(section);
            let unwritten = Policy { hold: false, ..Policy::everything() };
            (read_policy(section, &if written { Policy::default() } else { unwritten }), written)
        });
        // What nobody has written keeps everything; a disk may still have one of its own.
        let named = reader.sections("disk", |section| {
            let name = section.parsed("name", |text| DiskId::new(text).map_err(|error| error.to_string()));
            let mut policy = read_policy(section, &default);
            policy.hold = policy.hold || !(written || writes_terms(section));
            (section.required("name", name), policy)
        });
        default.hold = default.hold || !written;
        if work.moves && default.hold && named.iter().all(|(_, policy)| policy.hold) {
            reader.mistake("keeper.move", "nothing would be saved: the file has no policy by which anything goes");
        }
        let mut disks = BTreeMap::new();
        for (name, policy) in named {
            let Some(name) = name else { continue };
            if disks.insert(name.clone(), policy).is_some() {
                reader.mistake("disk", format_args!("{name} has two sections"));
            }
        }
        let traces = Settings::read(&mut reader);
        reader.finish(path)?;
        let missing = || ConfigError { path: path.to_owned(), mistakes: vec!["a required value is missing".into()] };
        let (vault_url, catalog_key) = vault.ok_or_else(missing)?;
        Ok(Self { vault_url, catalog_key, work, policies: Policies { default, disks }, traces })
    }
}

fn read_work(reader: &mut Reader) -> Work {
    let default = Work::default();
    let seconds = Duration::from_secs;
    let day = seconds(24 * 3600);
    let moves = reader.flag("move", default.moves);
    if reader.has("sparse") && !moves {
        reader.mistake("sparse", "says which batches are emptied, and none is: set move = true beside it");
    }
    Work {
        moves,
        sparse: reader.number("sparse", default.sparse, 10..=90),
        every: reader.duration("every", default.every, seconds(10)..=day),
        delete_after: reader.duration("delete_after", default.delete_after, DELETE_AFTER_MIN..=30 * day),
        seal_after: reader.duration("seal_after", default.seal_after, seconds(3600)..=365 * day),
        requests: reader.number("requests", default.requests, 10..=100_000_000),
        bytes: reader.size("bytes", default.bytes, 1 << 20..=1 << 50),
        disks_at_once: reader.number("disks_at_once", default.disks_at_once as u64, 1..=100_000) as usize,
        fold: reader.flag("fold", default.fold),
        ..default
    }
}

/// Whether a section says for how long anything is kept.
fn writes_terms(reader: &Reader) -> bool {
    TERMS.iter().any(|term| reader.has(term))
}

/// A policy that takes from `default` what it does not say. Holds of both count.
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
        hold: reader.flag("hold", false) || default.hold,
        holds: default.holds.clone(),
    };
    let mut holds = policy.holds.clone();
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
        let short = parse(
            "[vault]\nurl = 'file:///var/lib/tidegate/vault'\ncatalog_key = 'catalog.key'\n[policy]\nevery = '24 h'\n",
        );
        let short = short.expect("short");
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
        assert_eq!((disk("b").every, disk("b").hold, disk("b").holds.len()), (hours(1), true, 1), "holds of all hold");
        assert_eq!(disk("c"), &policies.default);
    }

    #[test]
    fn where_nobody_wrote_a_policy_everything_is_kept() {
        let vault = "[vault]\nurl='file:///v'\ncatalog_key='k'\n";
        for nothing in ["", "[policy]\n", "[policy]\nhold=false\n", "[[disk]]\nname='a'\n", "[keeper]\nevery='1 h'\n"] {
            let policies = parse(&format!("{vault}{nothing}")).expect("right").policies;
            for disk in ["a", "b"] {
                let policy = policies.of(&DiskId::new(disk).expect("valid"));
                assert_eq!(policy, &Policy::everything(), "{disk} with {nothing:?}");
            }
        }
        let one = parse(&format!("{vault}[[disk]]\nname='a'\nevery='1 h'\n")).expect("right").policies;
        let disk = |name| one.of(&DiskId::new(name).expect("valid"));
        assert!(disk("b").hold && !disk("a").hold, "one who writes a disk's policy means it");
        assert_eq!((disk("a").every, disk("a").days), (Term::For(Duration::from_secs(3600)), Term::Forever));
        let held = parse(&format!("{vault}[policy]\nhold=true\n[[disk]]\nname='a'\nevery='1 h'\nhold=false\n"));
        let held = held.expect("right").policies;
        assert!(held.of(&DiskId::new("a").expect("valid")).hold, "a hold of all is no disk's to lift");
    }

    #[test]
    fn moving_is_asked_for_and_refused_where_it_could_save_nothing() {
        let vault = "[vault]\nurl='file:///v'\ncatalog_key='k'\n";
        let work = |text: &str| parse(&format!("{vault}{text}")).map(|config| (config.work.moves, config.work.sparse));
        let policy = "[policy]\nevery='1 h'\n";
        assert_eq!(work(policy).expect("right"), (false, SPARSE));
        assert_eq!(work(&format!("[keeper]\nmove=true\n{policy}")).expect("right"), (true, SPARSE));
        assert_eq!(work(&format!("[keeper]\nmove=true\nsparse=60\n{policy}")).expect("right"), (true, 60));
        assert!(work("[keeper]\nmove=true\n[[disk]]\nname='a'\nevery='1 h'\n").is_ok(), "something of a goes");
        for (wrong, why) in [
            (format!("[keeper]\nsparse=60\n{policy}"), "set move = true beside it"),
            (format!("[keeper]\nmove=false\nsparse=60\n{policy}"), "set move = true beside it"),
            (format!("[keeper]\nmove=true\nsparse=95\n{policy}"), "from 10 to 90"),
            ("[keeper]\nmove=true\n".to_owned(), "nothing would be saved"),
            (
                "[keeper]\nmove=true\n[policy]\nhold=true\n[[disk]]\nname='a'\nevery='1 h'\n".to_owned(),
                "nothing would be saved",
            ),
        ] {
            let error = work(&wrong).expect_err("refused").to_string();
            assert!(error.contains(why), "{wrong}: {error}");
        }
    }

    #[test]
    fn policies_have_one_digest_as_long_as_they_say_the_same() {
        let vault = "[vault]\nurl='file:///v'\ncatalog_key='k'\n";
        let digest = |text: &str| {
            let config = parse(&format!("{vault}{text}")).expect("right");
            config.policies.digest(&config.work)
        };
        let one = digest("[policy]\nevery='24 h'\ndays='forever'\n[[disk]]\nname='a'\nhold=true\n");
        assert_eq!(one, digest("[policy]\ndays='forever'\nevery='1 d'\n[[disk]]\nhold=true\nname='a'\n"));
        for other in [
            "[policy]\nevery='25 h'\ndays='forever'\n[[disk]]\nname='a'\nhold=true\n",
            "[policy]\nevery='24 h'\ndays='1 d'\n[[disk]]\nname='a'\nhold=true\n",
            "[policy]\nevery='24 h'\ndays='forever'\n[[disk]]\nname='b'\nhold=true\n",
            "[policy]\nevery='24 h'\ndays='forever'\n",
            "[keeper]\ndelete_after='7 h'\n[policy]\nevery='24 h'\ndays='forever'\n[[disk]]\nname='a'\nhold=true\n",
            "[policy]\nevery='24 h'\ndays='forever'\nholds=['2026-11-01T00:00:00Z/2026-11-02T00:00:00Z']\n",
        ] {
            assert_ne!(one, digest(other), "{other}");
        }
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
