//! What a run proved, as `report.json` and as a page for people.

use std::fmt::Write as _;
use std::path::PathBuf;

use crate::config::show_size;
use crate::types::Digest;

/// One point: what the disk was then, and what came back.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Point {
    /// Id by which `restore --point` finds it.
    pub id: String,
    /// Its name.
    pub name: String,
    /// Its label time, RFC 3339.
    pub time: String,
    /// SHA-256 of the whole disk at that moment.
    pub sha256: Digest,
    /// SHA-256 of what the vault gave back.
    pub restored_sha256: Option<Digest>,
    /// The first byte in which the two differ.
    pub first_difference: Option<u64>,
    /// Seconds from making the point until it was vaulted.
    pub vaulted_after_seconds: f64,
}

impl Point {
    /// Whether the restored disk is the disk of that moment.
    #[must_use]
    pub fn identical(&self) -> bool {
        self.restored_sha256 == Some(self.sha256) && self.first_difference.is_none()
    }
}

/// One process that was killed with SIGKILL.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Kill {
    /// `gateway` or `agent`.
    pub what: &'static str,
    /// When, RFC 3339.
    pub when: String,
    /// Bytes that the workload had written by then.
    pub written_bytes: u64,
    /// Seconds until it served again.
    pub back_after_seconds: f64,
}

/// How long the workload's writes took.
#[derive(Clone, Debug, Default, serde::Serialize)]
pub struct Writes {
    /// How many.
    pub count: u64,
    /// Median, microseconds.
    pub p50_micros: u64,
    /// 99th percentile, microseconds.
    pub p99_micros: u64,
    /// The slowest, microseconds.
    pub max_micros: u64,
}

/// Where things are.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Paths {
    /// The work directory.
    pub dir: PathBuf,
    /// URL of the vault.
    pub vault: String,
    /// The recovery identity.
    pub identity: PathBuf,
    /// The protected disk.
    pub disk: PathBuf,
    /// Logs of gateway, agent and commands.
    pub logs: PathBuf,
}

/// The whole.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Report {
    /// Version of this program.
    pub version: &'static str,
    /// Name of the disk.
    pub disk: String,
    /// Its size.
    pub size_bytes: u64,
    /// The points, in the order in which they were made.
    pub points: Vec<Point>,
    /// Bytes that the workload wrote.
    pub written_bytes: u64,
    /// Record bytes that the gateway received.
    pub received_bytes: u64,
    /// Bytes in the vault.
    pub stored_bytes: u64,
    /// `received_bytes` over `stored_bytes`.
    pub ratio: f64,
    /// Age of the oldest write that no recovery point in the vault had: the median of many looks under load.
    pub rpo_seconds: f64,
    /// The oldest ever, with both kills and the copies after them.
    pub rpo_seconds_max: f64,
    /// What was killed when.
    pub kills: Vec<Kill>,
    /// The workload's writes.
    pub writes: Writes,
    /// How the journal wrote: `ring` or `std`.
    pub journal_backend: String,
    /// Seconds of the whole run.
    pub seconds: f64,
    /// Where things are.
    pub paths: Paths,
}

impl Report {
    /// Whether everything came back as it was.
    #[must_use]
    pub fn proven(&self) -> bool {
        !self.points.is_empty() && self.points.iter().all(Point::identical)
    }

    /// The page for people.
    #[must_use]
    pub fn page(&self) -> String {
        let mut page = String::new();
        // Writing to a string cannot fail.
        let _ = self.write_page(&mut page);
        page
    }

    fn write_page(&self, page: &mut String) -> std::fmt::Result {
        let mark = |good: bool| if good { '✓' } else { '✗' };
        writeln!(page)?;
        for point in &self.points {
            write!(page, "  {} {:<8} {:<10} {}", mark(point.identical()), point.name, point.id, point.time)?;
            match point.first_difference {
                None => writeln!(page, "  restored identical, sha256 {}…", &point.sha256.to_string()[..16])?,
                Some(at) => writeln!(page, "  DIFFERS from byte {at} on")?,
            }
        }
        for kill in &self.kills {
            writeln!(
                page,
                "  {} {} killed with SIGKILL at {}, served again after {:.1} s, nothing lost",
                mark(self.proven()),
                kill.what,
                kill.when,
                kill.back_after_seconds
            )?;
        }
        let writes = &self.writes;
        writeln!(page)?;
        writeln!(page, "  disk          {} of {}", self.disk, show_size(self.size_bytes))?;
        writeln!(
            page,
            "  written       {} by {} writes; p50 {} µs, p99 {} µs, slowest {} ms",
            mib(self.written_bytes),
            writes.count,
            writes.p50_micros,
            writes.p99_micros,
            writes.max_micros.div_ceil(1000)
        )?;
        writeln!(
            page,
            "  received      {}, in the vault {} (ratio {:.1})",
            mib(self.received_bytes),
            mib(self.stored_bytes),
            self.ratio
        )?;
        writeln!(
            page,
            "  RPO           {:.1} s in the middle, {:.1} s at worst, with all kills",
            self.rpo_seconds, self.rpo_seconds_max
        )?;
        writeln!(page, "  journal       by {}", self.journal_backend)?;
        writeln!(page, "  took          {:.0} s", self.seconds)?;
        writeln!(page)?;
        writeln!(page, "  vault         {}", self.paths.vault)?;
        writeln!(page, "  recovery key  {}", self.paths.identity.display())?;
        writeln!(page, "  logs          {}", self.paths.logs.display())?;
        writeln!(page, "  report        {}", self.paths.dir.join("report.json").display())
    }
}

fn mib(bytes: u64) -> String {
    format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(restored: Option<Digest>, first_difference: Option<u64>) -> Report {
        let point = Point {
            id: "e1-s9".into(),
            name: "one".into(),
            time: "2026-01-01T00:00:00Z".into(),
            sha256: Digest([1; 32]),
            restored_sha256: restored,
            first_difference,
            vaulted_after_seconds: 1.0,
        };
        let paths = Paths {
            dir: "/d".into(),
            vault: "file:///d/vault".into(),
            identity: "/d/recovery.key".into(),
            disk: "/d/disk.img".into(),
            logs: "/d/logs".into(),
        };
        Report {
            version: "0",
            disk: "demo".into(),
            size_bytes: 1 << 29,
            points: vec![point],
            written_bytes: 1,
            received_bytes: 2,
            stored_bytes: 1,
            ratio: 2.0,
            rpo_seconds: 1.0,
            rpo_seconds_max: 9.0,
            kills: Vec::new(),
            writes: Writes::default(),
            journal_backend: "ring".into(),
            seconds: 1.0,
            paths,
        }
    }

    #[test]
    fn only_an_identical_restore_is_a_proof() {
        assert!(report(Some(Digest([1; 32])), None).proven());
        assert!(!report(None, None).proven());
        assert!(!report(Some(Digest([2; 32])), Some(7)).proven());
        assert!(report(Some(Digest([2; 32])), Some(7)).page().contains("DIFFERS from byte 7"));
        let none = Report { points: Vec::new(), ..report(None, None) };
        assert!(!none.proven());
    }

    #[test]
    fn the_file_has_the_keys_that_scripts_rely_on() {
        let value = serde_json::to_value(report(Some(Digest([1; 32])), None)).unwrap();
        for key in ["disk", "size_bytes", "points", "received_bytes", "stored_bytes", "rpo_seconds", "kills"] {
            assert!(value.get(key).is_some(), "{key}");
        }
        for key in ["id", "time", "sha256"] {
            assert!(value["points"][0].get(key).is_some(), "{key}");
        }
    }
}
