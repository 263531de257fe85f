//! What a drill found, for people and for programs.

use std::fmt::Write as _;
use std::time::Duration;

use serde::Serialize;

use super::check::{Looked, Verdict};
use crate::config::show_size;

/// Lines of the console that the page has: a screen of it.
const CONSOLE_LINES: usize = 25;

/// One disk of a drill.
#[derive(Debug, Clone, Serialize)]
pub struct DiskReport {
    /// The disk.
    pub disk: String,
    /// The point.
    pub point: String,
    /// Its label time.
    pub time: String,
    /// What it promises.
    pub kind: String,
    /// What would be lost: from the point to the moment that was asked for.
    pub rpo_seconds: f64,
    /// Seconds of the restore; none if the disk was served from the vault.
    pub restore_seconds: Option<f64>,
    /// Seconds of looking at its file systems; none if nobody did.
    pub check_seconds: Option<f64>,
    /// Size of the disk.
    pub disk_bytes: u64,
    /// Bytes read from the vault.
    pub read_bytes: u64,
    /// Its volumes.
    pub volumes: Vec<Looked>,
}

/// The user's program.
#[derive(Debug, Clone, Serialize)]
pub struct ProgramReport {
    /// What was run.
    pub program: String,
    /// Whether it ended well.
    pub passed: bool,
    /// How it ended, and its last words.
    pub said: String,
    /// How long it took.
    pub seconds: f64,
}

/// A machine that booted from the vault.
#[derive(Debug, Clone, Default, Serialize)]
pub struct BootReport {
    /// What it was.
    pub machine: String,
    /// What its console was to say.
    pub until: String,
    /// What went wrong; nothing if it came up.
    pub failure: Option<String>,
    /// From switching it on until its console had said that, or until it was given up.
    pub seconds: f64,
    /// The end of what its console said.
    pub said: String,
    /// The picture of its screen.
    pub screenshot: Option<String>,
    /// Bytes of the disks that it read.
    pub guest_read_bytes: u64,
    /// Requests of the vault for them.
    pub vault_requests: u64,
    /// Reads that failed.
    pub failed_reads: u64,
    /// Bytes that it wrote, which are gone.
    pub written_bytes: u64,
}

/// A whole drill.
#[derive(Debug, Clone, Serialize)]
pub struct DrillReport {
    /// When it began.
    pub began: String,
    /// The vault.
    pub vault: String,
    /// Its disks.
    pub disks: Vec<DiskReport>,
    /// The user's program, if there was one.
    pub program: Option<ProgramReport>,
    /// The machine, if one was booted.
    pub boot: Option<BootReport>,
    /// The oldest point's age: what would be lost.
    pub rpo_seconds: f64,
    /// Until everything was restored and looked at, or the machine was up.
    pub rto_seconds: f64,
    /// What is not as it should be; nothing if the drill passed.
    pub failures: Vec<String>,
    /// What a person should know besides.
    pub warnings: Vec<String>,
}

impl DrillReport {
    /// One that nothing stands in yet.
    #[must_use]
    pub const fn new(began: String, vault: String) -> Self {
        Self {
            began,
            vault,
            disks: Vec::new(),
            program: None,
            boot: None,
            rpo_seconds: 0.0,
            rto_seconds: 0.0,
            failures: Vec::new(),
            warnings: Vec::new(),
        }
    }

    /// Sums up the disks, and names what failed. `objectives` are what RPO and RTO should be at most.
    pub fn judge(&mut self, objectives: (Option<Duration>, Option<Duration>)) {
        self.rpo_seconds = self.disks.iter().map(|disk| disk.rpo_seconds).fold(0.0, f64::max);
        for disk in &self.disks {
            for volume in &disk.volumes {
                let place = format!("disk {}, {} at byte {}", disk.disk, volume.kind.as_str(), volume.offset_bytes);
                match &volume.verdict {
                    Verdict::Whole => {}
                    Verdict::Broken(said) => self.failures.push(format!("{place}: not whole: {said}")),
                    Verdict::NotLookedAt(why) => self.warnings.push(format!("{place}: {why}")),
                }
            }
        }
        if let Some(program) = self.program.as_ref().filter(|program| !program.passed) {
            self.failures.push(format!("{}: {}", program.program, program.said));
        }
        if let Some(boot) = &self.boot {
            self.failures.extend(boot.failure.clone());
            if boot.failed_reads > 0 {
                let why = "the vault is damaged or was away, and the log says which";
                self.failures.push(format!("{} reads of the machine's disks failed: {why}", boot.failed_reads));
            }
        }
        let (rpo, rto) = objectives;
        for (what, found, most) in [("RPO", self.rpo_seconds, rpo), ("RTO", self.rto_seconds, rto)] {
            if let Some(most) = most.map(|most| most.as_secs_f64()).filter(|most| found > *most) {
                self.failures.push(format!("{what} is {found:.1} s, and should be {most:.1} s at most"));
            }
        }
    }

    /// Whether everything was as it should be.
    #[must_use]
    pub const fn passed(&self) -> bool {
        self.failures.is_empty()
    }

    /// As a page for people.
    #[must_use]
    pub fn markdown(&self) -> String {
        let mut out = String::new();
        let verdict = if self.passed() { "passed" } else { "failed" };
        // Writing to a string never fails.
        let _ = writeln!(out, "# Recovery drill: {verdict}\n\nBegan {} from {}.\n", self.began, self.vault);
        let reached = if self.boot.is_some() { "the machine was up, from the vault" } else { "restored and looked at" };
        let _ = writeln!(
            out,
            "| what | found |\n|---|---|\n| RPO: age of the oldest point | {:.1} s |\n| RTO: {reached} | {:.1} s |\n",
            self.rpo_seconds, self.rto_seconds
        );
        let _ = writeln!(
            out,
            "| disk | point | time | age | restore | check | file systems |\n|---|---|---|---|---|---|---|"
        );
        for disk in &self.disks {
            let volumes: Vec<String> = disk.volumes.iter().map(volume_text).collect();
            let _ = writeln!(
                out,
                "| {} | {} {} | {} | {:.1} s | {} | {} | {} |",
                disk.disk,
                disk.point,
                disk.kind,
                disk.time,
                disk.rpo_seconds,
                took(disk.restore_seconds),
                took(disk.check_seconds),
                volumes.join("; ")
            );
        }
        if let Some(boot) = &self.boot {
            boot.markdown(&mut out);
        }
        if let Some(program) = &self.program {
            let ended = if program.passed { "passed" } else { "failed" };
            let _ = writeln!(out, "\n`{}` {ended} after {:.1} s.", program.program, program.seconds);
        }
        for (title, lines) in [("Failures", &self.failures), ("To know", &self.warnings)] {
            if !lines.is_empty() {
                let _ = writeln!(out, "\n## {title}\n");
                lines.iter().for_each(|line| {
                    let _ = writeln!(out, "- {}", line.replace('\n', "\n  "));
                });
            }
        }
        out
    }
}

impl BootReport {
    fn markdown(&self, out: &mut String) {
        let ended = if self.failure.is_none() { "was up" } else { "was given up" };
        // Writing to a string never fails.
        let _ = writeln!(out, "\nA machine ({}) {ended} {:.1} s after it was switched on.", self.machine, self.seconds);
        let _ = writeln!(
            out,
            "It read {} of its disks, in {} requests of the vault, and wrote {}.",
            show_size(self.guest_read_bytes),
            self.vault_requests,
            show_size(self.written_bytes)
        );
        if let Some(screenshot) = &self.screenshot {
            let _ = writeln!(out, "\n![its screen](<{screenshot}>)");
        }
        let lines: Vec<&str> = self.said.lines().collect();
        let last = &lines[lines.len().saturating_sub(CONSOLE_LINES)..];
        let _ = writeln!(out, "\nThe end of what its console said:\n\n~~~text\n{}\n~~~", last.join("\n"));
    }
}

fn took(seconds: Option<f64>) -> String {
    seconds.map_or_else(|| "none".to_owned(), |seconds| format!("{seconds:.1} s"))
}

fn volume_text(volume: &Looked) -> String {
    let found = match volume.verdict {
        Verdict::Whole => "whole",
        Verdict::Broken(_) => "NOT WHOLE",
        Verdict::NotLookedAt(_) => "not looked at",
    };
    format!("{} {found}", volume.kind.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::drill::volumes::Kind;

    fn report(verdict: Verdict) -> DrillReport {
        let volume = Looked { offset_bytes: 0, length_bytes: 4096, kind: Kind::Ext, verdict };
        let disk = DiskReport {
            disk: "sda".into(),
            point: "e1-s9".into(),
            time: "2026-11-22T21:00:05Z".into(),
            kind: "crash".into(),
            rpo_seconds: 2.5,
            restore_seconds: Some(10.0),
            check_seconds: Some(1.0),
            disk_bytes: 4096,
            read_bytes: 100,
            volumes: vec![volume],
        };
        let blank = DrillReport::new("2026-11-22T21:00:07Z".into(), "file:///v".into());
        DrillReport { disks: vec![disk], rto_seconds: 11.5, ..blank }
    }

    #[test]
    fn a_drill_fails_by_a_broken_file_system_a_program_or_an_objective_and_by_nothing_else() {
        let mut sound = report(Verdict::Whole);
        sound.judge((Some(Duration::from_secs(3)), Some(Duration::from_secs(12))));
        assert!(sound.passed() && sound.warnings.is_empty());
        assert!(sound.markdown().contains("# Recovery drill: passed") && sound.markdown().contains("ext whole"));
        let mut unknown = report(Verdict::NotLookedAt("no checker".into()));
        unknown.judge((None, None));
        assert!(unknown.passed() && unknown.warnings.len() == 1, "told, and no failure");
        let mut broken = report(Verdict::Broken("bad".into()));
        broken.judge((None, None));
        assert!(!broken.passed() && broken.markdown().contains("NOT WHOLE"));
        let mut slow = report(Verdict::Whole);
        slow.judge((Some(Duration::from_secs(2)), Some(Duration::from_secs(11))));
        assert_eq!(slow.failures.len(), 2, "{:?}", slow.failures);
        let mut refused = report(Verdict::Whole);
        refused.program =
            Some(ProgramReport { program: "./look".into(), passed: false, said: "no".into(), seconds: 1.0 });
        refused.judge((None, None));
        assert_eq!(refused.failures, ["./look: no"]);
    }

    #[test]
    fn a_machine_that_does_not_come_up_or_whose_reads_fail_is_a_failure() {
        let boot = BootReport { until: "login:".into(), said: "GRUB\nlogin:".into(), ..BootReport::default() };
        let mut up = report(Verdict::Whole);
        up.disks[0].restore_seconds = None;
        up.boot = Some(boot.clone());
        up.judge((None, None));
        assert!(up.passed() && up.markdown().contains("RTO: the machine was up, from the vault"), "{}", up.markdown());
        assert!(up.markdown().contains("~~~text\nGRUB\nlogin:\n~~~"), "{}", up.markdown());
        let mut down = report(Verdict::Whole);
        down.boot = Some(BootReport { failure: Some("it did not come up".into()), failed_reads: 2, ..boot });
        down.judge((None, None));
        assert_eq!(down.failures.len(), 2, "{:?}", down.failures);
        assert!(down.markdown().contains("was given up"));
    }
}
