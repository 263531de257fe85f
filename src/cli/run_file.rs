//! What a run of `restore`, `export`, `verify`, `drill` or `keeper` leaves for Prometheus: a file that node-exporter's textfile collector
//! reads, for jobs that no scrape would meet while they run.
//!
//! The file is written when the run has ended, however it ended, and replaces the one before as a whole. The time of the last
//! success is taken over from there by a run that fails. Every line has the file's name as its label `run`, because the
//! collector reads all files of its folder as one page. An export, which runs for as long as it is used, writes it now and then.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::telemetry::{names, text};
use crate::types::{DiskId, Micros};

/// The collector reads files of this name only.
const ENDING: &str = "prom";
/// More is no file of ours.
const FILE_BYTES_MAX: u64 = 64 << 10;

/// The names of one verb's figures.
struct Names {
    last_success: &'static str,
    last_run: &'static str,
    seconds: &'static str,
}

const RESTORE: Names = Names {
    last_success: names::RESTORE_LAST_SUCCESS_SECONDS,
    last_run: names::RESTORE_LAST_RUN_SECONDS,
    seconds: names::RESTORE_RUN_SECONDS,
};

const VERIFY: Names = Names {
    last_success: names::VERIFY_LAST_SUCCESS_SECONDS,
    last_run: names::VERIFY_LAST_RUN_SECONDS,
    seconds: names::VERIFY_RUN_SECONDS,
};

const KEEPER: Names = Names {
    last_success: names::KEEPER_LAST_SUCCESS_SECONDS,
    last_run: names::KEEPER_LAST_RUN_SECONDS,
    seconds: names::KEEPER_RUN_SECONDS,
};

/// What a run has found out, as far as it came.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Figures {
    /// Bytes read from the vault, or looked at.
    pub(super) bytes: u64,
    /// Findings that are damage.
    pub(super) damage: u64,
}

/// What a verification has found, as far as it came.
#[derive(Debug, Clone, PartialEq, Default)]
pub(super) struct VerifyFigures {
    /// Bytes of the objects that it looked at.
    pub(super) bytes: u64,
    /// Findings that are damage.
    pub(super) damage: u64,
    /// Of them those of one disk alone.
    pub(super) disks: Vec<(DiskId, u64)>,
    /// How far runs that take turns have come.
    pub(super) round: Option<VerifyRound>,
}

/// A round of verifications that open everything together.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct VerifyRound {
    /// When it began.
    pub(super) began: Micros,
    /// Share of the messages that it has opened.
    pub(super) seen_ratio: f64,
}

/// Disks that have lines of their own, those with damage first: a file has few lines, and the sum is over all.
const DISK_LINES_MAX: usize = 200;

/// What a run of the keeper has found and done, as far as it came.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct KeeperFigures {
    /// Bytes of batches that it deleted.
    pub(super) deleted_bytes: u64,
    /// Bytes of batches that are marked.
    pub(super) marked_bytes: u64,
    /// Bytes of all batches.
    pub(super) stored_bytes: u64,
    /// Bytes of the messages that are needed.
    pub(super) needed_bytes: u64,
    /// Bytes of batches that it wrote with what it moved.
    pub(super) moved_bytes: u64,
    /// Bytes that moving what sparse batches hold would free.
    pub(super) saving_bytes: u64,
    /// Disks and lanes of which nothing goes because something is damaged.
    pub(super) held_back: u64,
}

/// The file of one run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct RunFile(PathBuf);

impl std::str::FromStr for RunFile {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let path = PathBuf::from(text);
        let named = path.extension().is_some_and(|ending| ending == ENDING) && path.file_stem().is_some();
        if !named {
            return Err(format!("the collector reads files that end in .{ENDING}, such as restore-web.{ENDING}"));
        }
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        match folder.is_dir() {
            true => Ok(Self(path)),
            false => Err(format!("there is no folder {}", folder.display())),
        }
    }
}

/// A figure by its name.
type Named = (&'static str, f64);
/// One line of each figure: its labels beside that of the run, and the figures, of the same names in each line.
type Line<'a> = (Vec<(&'a str, &'a str)>, Vec<Named>);
/// What stands in a line, by its labels and figures.
type Value<'a> = &'a dyn Fn(&str, &[Named]) -> f64;

impl RunFile {
    /// Tells of a restore of one or several disks that ended at `now`: well if all of them did.
    pub(super) fn tell_restore(&self, disks: &[(DiskId, Figures)], now: Micros, took: Duration, success: bool) {
        let more = |figures: &Figures| {
            vec![(names::RESTORE_RUN_BYTES, figures.bytes as f64), (names::RESTORE_RUN_DAMAGE, figures.damage as f64)]
        };
        let lines = disks.iter().map(|(disk, figures)| (vec![("disk", disk.as_str())], more(figures))).collect();
        self.tell(&RESTORE, lines, now, took, success);
    }

    /// Tells of a verification that ended at `now`.
    pub(super) fn tell_verify(&self, now: Micros, took: Duration, success: bool, figures: &VerifyFigures) {
        let mut more =
            vec![(names::VERIFY_RUN_BYTES, figures.bytes as f64), (names::VERIFY_RUN_DAMAGE, figures.damage as f64)];
        if let Some(VerifyRound { began, seen_ratio }) = figures.round {
            let began_seconds = began.0 as f64 / 1e6;
            more.extend([(names::VERIFY_ROUND_BEGIN_SECONDS, began_seconds), (names::VERIFY_ROUND_RATIO, seen_ratio)]);
        }
        let mut out = self.page(&VERIFY, vec![(Vec::new(), more)], now, took, success);
        let mut disks: Vec<&(DiskId, u64)> = figures.disks.iter().collect();
        disks.sort_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
        let line = |(disk, damage): &&(DiskId, u64)| (self.labels(&[("disk", disk.as_str())]), *damage as f64);
        text::family(&mut out, names::VERIFY_DISK_DAMAGE, disks.iter().take(DISK_LINES_MAX).map(line));
        self.tell_page(&out);
    }

    /// Tells metrics and their values, with these labels beside that of the run.
    pub(super) fn tell_values(&self, labels: &[(&str, &str)], values: &[(&str, f64)]) {
        let labels = self.labels(labels);
        let mut out = String::new();
        for (name, value) in values {
            text::family(&mut out, name, [(labels.clone(), *value)]);
        }
        if let Err(error) = self.replace(&out) {
            eprintln!("tidegate: warning: {} was not written: {error}", self.0.display());
        }
    }

    /// What the file says of a metric without labels beside that of the run; 0 if nothing.
    pub(super) fn earlier(&self, name: &str) -> f64 {
        let (before, start) = (self.before(), format!("{name}{} ", self.labels(&[])));
        let value = before.lines().find_map(|line| line.strip_prefix(&start)?.parse().ok());
        value.unwrap_or(0.0)
    }

    fn labels(&self, more: &[(&str, &str)]) -> String {
        let run = self.0.file_stem().unwrap_or_default().to_string_lossy();
        let labels: Vec<(&str, &str)> = [("run", &*run)].into_iter().chain(more.iter().copied()).collect();
        text::labels(&labels)
    }

    /// Tells of a run of the keeper that ended at `now`. Of one that failed only that: what it did not find out is not zero.
    pub(super) fn tell_keeper(&self, now: Micros, took: Duration, success: bool, figures: Option<KeeperFigures>) {
        let more = figures.map(|figures| {
            vec![
                (names::KEEPER_RUN_DELETED_BYTES, figures.deleted_bytes as f64),
                (names::KEEPER_MARKED_BYTES, figures.marked_bytes as f64),
                (names::KEEPER_STORED_BYTES, figures.stored_bytes as f64),
                (names::KEEPER_NEEDED_BYTES, figures.needed_bytes as f64),
                (names::KEEPER_RUN_MOVED_BYTES, figures.moved_bytes as f64),
                (names::KEEPER_SAVING_BYTES, figures.saving_bytes as f64),
                (names::KEEPER_HELD_BACK, figures.held_back as f64),
            ]
        });
        self.tell(&KEEPER, vec![(Vec::new(), more.unwrap_or_default())], now, took, success);
    }

    fn tell(&self, names: &Names, lines: Vec<Line<'_>>, now: Micros, took: Duration, success: bool) {
        self.tell_page(&self.page(names, lines, now, took, success));
    }

    fn tell_page(&self, page: &str) {
        if let Err(error) = self.replace(page) {
            eprintln!("tidegate: warning: {} was not written, so alerts will miss this run: {error}", self.0.display());
        }
    }

    fn page(&self, names: &Names, lines: Vec<Line<'_>>, now: Micros, took: Duration, success: bool) -> String {
        let labelled = |(labels, more): Line<'_>| (self.labels(&labels), more);
        let lines: Vec<(String, Vec<Named>)> = lines.into_iter().map(labelled).collect();
        let now_seconds = now.0 as f64 / 1e6;
        let before = self.before();
        // Never is long ago.
        let succeeded = |labels: &str| match success {
            true => now_seconds,
            false => last_success(&before, names, labels).unwrap_or(0.0),
        };
        let mut out = String::new();
        let mut all = |name: &str, value: Value<'_>| {
            text::family(&mut out, name, lines.iter().map(|(labels, more)| (labels.clone(), value(labels, more))));
        };
        all(names.last_success, &|labels, _| succeeded(labels));
        all(names.last_run, &|_, _| now_seconds);
        all(names.seconds, &|_, _| took.as_secs_f64());
        for (at, (name, _)) in lines.first().into_iter().flat_map(|(_, more)| more).enumerate() {
            all(name, &|_, more| more[at].1);
        }
        out
    }

    fn before(&self) -> String {
        let mut before = String::new();
        if let Ok(file) = std::fs::File::open(&self.0) {
            // What cannot be read is no file of ours, and says nothing.
            let _ = file.take(FILE_BYTES_MAX).read_to_string(&mut before);
        }
        before
    }

    /// The collector finds the old file or the new one.
    fn replace(&self, content: &str) -> std::io::Result<()> {
        let new = self.0.with_extension("new");
        std::fs::write(&new, content)?;
        std::fs::rename(&new, &self.0)
    }
}

fn last_success(before: &str, names: &Names, labels: &str) -> Option<f64> {
    let start = format!("{}{labels} ", names.last_success);
    before.lines().find_map(|line| line.strip_prefix(&start))?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(page: &str, start: &str) -> Option<f64> {
        page.lines().find_map(|line| line.strip_prefix(start)?.strip_prefix(' '))?.parse().ok()
    }

    #[test]
    fn a_run_that_fails_keeps_the_time_of_the_last_that_did_not() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("nightly.prom");
        let file: RunFile = path.to_str().expect("text").parse().expect("a name");
        let read = || std::fs::read_to_string(&path).expect("written");
        let took = Duration::from_millis(1500);
        let disks = vec![(DiskId::new("a").expect("a name"), 0), (DiskId::new("b").expect("a name"), 2)];
        let round = Some(VerifyRound { began: Micros(3_000_000), seen_ratio: 0.25 });
        let figures = VerifyFigures { bytes: 7, ..VerifyFigures::default() };
        file.tell_verify(Micros(1_000_000), took, false, &VerifyFigures::default());
        assert_eq!(value(&read(), "tidegate_verify_last_success_timestamp_seconds{run=\"nightly\"}"), Some(0.0));
        file.tell_verify(Micros(5_000_000), took, true, &figures);
        file.tell_verify(Micros(9_000_000), took, false, &VerifyFigures { bytes: 8, damage: 3, disks, round });
        let page = read();
        for (name, expected) in
            [("last_success_timestamp_seconds", 5.0), ("last_run_timestamp_seconds", 9.0), ("run_seconds", 1.5)]
        {
            assert_eq!(value(&page, &format!("tidegate_verify_{name}{{run=\"nightly\"}}")), Some(expected), "{page}");
        }
        assert_eq!(value(&page, "tidegate_verify_run_bytes{run=\"nightly\"}"), Some(8.0), "{page}");
        assert_eq!(value(&page, "tidegate_verify_run_damage{run=\"nightly\"}"), Some(3.0), "{page}");
        assert_eq!(value(&page, "tidegate_verify_disk_damage{run=\"nightly\",disk=\"b\"}"), Some(2.0), "{page}");
        assert_eq!(value(&page, "tidegate_verify_disk_damage{run=\"nightly\",disk=\"a\"}"), Some(0.0), "{page}");
        assert_eq!(value(&page, "tidegate_verify_round_seen_ratio{run=\"nightly\"}"), Some(0.25), "{page}");
        let began = "tidegate_verify_round_begin_timestamp_seconds{run=\"nightly\"}";
        assert_eq!(value(&page, began), Some(3.0), "{page}");
        assert_eq!(std::fs::read_dir(folder.path()).expect("folder").count(), 1, "nothing half-written is left");
    }

    #[test]
    fn the_disk_stands_beside_the_run() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("drill.prom");
        let file: RunFile = path.to_str().expect("text").parse().expect("a name");
        let disk = |name| DiskId::new(name).expect("a name");
        let disks = [
            (disk("web.sda"), Figures { bytes: 4096, damage: 0 }),
            (disk("web.sdb"), Figures { bytes: 512, damage: 0 }),
        ];
        file.tell_restore(&disks, Micros(2_000_000), Duration::ZERO, true);
        let page = std::fs::read_to_string(&path).expect("written");
        assert_eq!(value(&page, "tidegate_restore_run_bytes{run=\"drill\",disk=\"web.sdb\"}"), Some(512.0), "{page}");
        assert_eq!(value(&page, "tidegate_restore_run_bytes{run=\"drill\",disk=\"web.sda\"}"), Some(4096.0), "{page}");
        assert_eq!(page.matches("# TYPE ").count(), 5, "{page}");
    }

    #[test]
    fn a_keeper_that_failed_tells_no_sizes() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("retention.prom");
        let file: RunFile = path.to_str().expect("text").parse().expect("a name");
        let figures = KeeperFigures { stored_bytes: 9000, held_back: 2, ..KeeperFigures::default() };
        file.tell_keeper(Micros(5_000_000), Duration::ZERO, true, Some(figures));
        let page = std::fs::read_to_string(&path).expect("written");
        assert_eq!(value(&page, "tidegate_keeper_stored_bytes{run=\"retention\"}"), Some(9000.0), "{page}");
        assert_eq!(value(&page, "tidegate_keeper_held_back{run=\"retention\"}"), Some(2.0), "{page}");
        file.tell_keeper(Micros(7_000_000), Duration::ZERO, false, None);
        let page = std::fs::read_to_string(&path).expect("written");
        assert_eq!(value(&page, "tidegate_keeper_last_success_timestamp_seconds{run=\"retention\"}"), Some(5.0));
        assert!(!page.contains("stored_bytes"), "{page}");
    }

    #[test]
    fn a_file_that_the_collector_would_not_read_is_refused_before_the_run() {
        assert!("/tmp/restore.txt".parse::<RunFile>().is_err_and(|error| error.contains(".prom")));
        assert!("/nowhere/at/all.prom".parse::<RunFile>().is_err_and(|error| error.contains("/nowhere/at")));
        assert!("here.prom".parse::<RunFile>().is_ok());
    }
}
