//! What holds this gateway up, and what to do about it: the rules that an experienced operator would go through, in order.
//!
//! Pure: figures in, sentences out. The first finding is the bottleneck; with nothing to find it says that all is well. The
//! thresholds are those of the alert rules in `deploy/prometheus/`, without their waiting times: an alert calls somebody,
//! a finding tells who looks. Each names its section of the runbook.

use serde::{Deserialize, Serialize};

use super::board::Status;
use super::stages::Stages;
use crate::config::show_size;
use crate::types::Micros;

/// How much a finding matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Points are missing or will be: somebody has to act now.
    Critical,
    /// It becomes critical, or may.
    Warning,
    /// Ends by itself.
    Note,
    /// All is well.
    Ok,
}

/// One thing that is to be known.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// How much it matters.
    pub severity: Severity,
    /// Where on the path: `agents`, `wire`, `journal`, `pipeline` or `vault`; empty for the whole gateway.
    pub stage: &'static str,
    /// What is so.
    pub text: String,
    /// What to do; empty if nothing is.
    pub next: &'static str,
    /// The section of `docs/RUNBOOK.md` with the rest; empty if there is none.
    pub runbook: &'static str,
}

/// Everything that the rules look at.
pub struct Scene<'a> {
    /// The whole, of disks and journal.
    pub status: &'a Status,
    /// What passes each stage; none in the first seconds.
    pub stages: Option<&'a Stages>,
    /// Why nothing is wrapped to the vault's recipients; empty if it is.
    pub unpinned: &'a str,
    /// The time.
    pub now: Micros,
}

/// Behind so long that somebody should know, and so long that somebody must act.
const BEHIND_SECONDS: (f64, f64) = (60.0, 900.0);
/// Journal in use, in parts of its capacity.
const JOURNAL_USED: (f64, f64) = (0.70, 0.75);
/// A journal that is full so soon.
const FULL_SECONDS: f64 = 600.0;
/// A backlog that lasts so long.
const DRAIN_SECONDS: (f64, f64) = (1800.0, 2700.0);
/// Processors or memory in use.
const USED: (f64, f64) = (0.80, 0.95);
/// Requests to the store that fail.
const FAILED: f64 = 0.2;
/// Nothing vaulted for so long is no chance.
const STALL_SECONDS: f64 = 8.0;
/// How long an event is shown that is over: somebody has looked by then, or looks at the log.
const EVENT_SHOWN_SECONDS: f64 = 7.0 * 86_400.0;
/// Days until the certificate ends.
const CERTIFICATE_DAYS: (f64, f64) = (14.0, 3.0);

/// All findings, the gravest first and among equals in the path's order from its end: what is stuck last is why what is
/// before it waits.
#[must_use]
pub fn find(scene: &Scene<'_>) -> Vec<Finding> {
    let mut all = Vec::new();
    whole(scene, &mut all);
    events(scene, &mut all);
    vault(scene, &mut all);
    machine(scene, &mut all);
    journal(scene.status, &mut all);
    agents(scene, &mut all);
    all.sort_by_key(|finding| finding.severity);
    if all.iter().all(|finding| finding.severity >= Severity::Note) {
        all.insert(0, well(scene.status));
    }
    all
}

/// How grave a value is that should stay below both bounds.
fn above(value: f64, (warning, critical): (f64, f64)) -> Option<Severity> {
    match value {
        value if value > critical => Some(Severity::Critical),
        value if value > warning => Some(Severity::Warning),
        _ => None,
    }
}

fn whole(scene: &Scene<'_>, all: &mut Vec<Finding>) {
    let status = scene.status;
    if !status.ready {
        all.push(Finding {
            severity: Severity::Warning,
            stage: "",
            text: format!("This gateway takes no agents: {}.", status.reason),
            next: "Agents with another gateway in their list are there; with none they mark what changes.",
            runbook: "TidegateGatewayDown",
        });
    }
    let Some(process) = scene.stages.map(|stages| &stages.process) else { return };
    if process.conflicts > 0.0 {
        all.push(Finding {
            severity: Severity::Critical,
            stage: "agents",
            text: format!("Two accounts of one record were seen {:.0} times since the start.", process.conflicts),
            next: "Two machines write one disk: find the second one and stop it.",
            runbook: "TidegateConflict",
        });
    }
    if process.reload_refused {
        all.push(Finding {
            severity: Severity::Warning,
            stage: "",
            text: "The configuration or certificates that were to be read again are refused; what ran runs on.".into(),
            next: "The log names every mistake. Mend them and reload: a restart would fail.",
            runbook: "TidegateReloadRefused",
        });
    }
    let days = (process.certificate_ends_seconds - scene.now.0 as f64 / 1e6) / 86_400.0;
    if process.certificate_ends_seconds > 0.0 && days < CERTIFICATE_DAYS.0 {
        all.push(Finding {
            severity: if days < CERTIFICATE_DAYS.1 { Severity::Critical } else { Severity::Warning },
            stage: "wire",
            text: format!("The gateway's certificate ends in {:.0} days.", days.max(0.0)),
            next: "Make a new one with `tidegate pki issue gateway`.",
            runbook: "TidegateCertificateEnds",
        });
    }
}

/// What may be somebody who encrypts a disk.
fn events(scene: &Scene<'_>, all: &mut Vec<Finding>) {
    for event in &scene.status.events {
        let goes_on = event.over.is_none();
        if !goes_on && scene.now.0 as f64 / 1e6 - event.since_seconds > EVENT_SHOWN_SECONDS {
            continue;
        }
        all.push(Finding {
            severity: if goes_on { Severity::Critical } else { Severity::Note },
            stage: "agents",
            text: format!("{}.", event.words),
            next: if goes_on { "If nobody knows why, cut the machine off its network." } else { "" },
            runbook: "TidegateAnomaly",
        });
    }
}

fn vault(scene: &Scene<'_>, all: &mut Vec<Finding>) {
    if !scene.unpinned.is_empty() {
        all.push(Finding {
            severity: Severity::Critical,
            stage: "vault",
            text: format!("The vault's recipients have changed: {}.", scene.unpinned),
            next: "A lane that is open goes on for the rest of its day; then the journal keeps what comes.",
            runbook: "TidegateRecipientsChanged",
        });
    }
    if !scene.status.trouble.is_empty() {
        all.push(Finding {
            severity: Severity::Critical,
            stage: "vault",
            text: format!("Uploads wait for somebody to help: {}", scene.status.trouble),
            next: "Mend the credential or the container; uploads go on by themselves.",
            runbook: "TidegateUploadsParked",
        });
        return;
    }
    for limit in scene.status.bandwidth.iter().filter(|limit| limit.holds) {
        let stage = if limit.limit == "upload" { "vault" } else { "wire" };
        all.push(Finding {
            severity: Severity::Note,
            stage,
            text: format!("A limit of bandwidth is the bottleneck: {}.", limit.words),
            next: "If it lasts too long: `tidegate bandwidth set` lifts it for a while.",
            runbook: "TidegateJournalFills",
        });
    }
    let Some(stages) = scene.stages else { return };
    let vault = &stages.vault;
    let failing = vault.failed_per_second > FAILED * vault.requests_per_second;
    // A low limit lets no batch through for a while, and that is no fault of the store.
    let limited = scene.status.bandwidth.iter().any(|limit| limit.limit == "upload" && limit.holds);
    let stalled =
        !limited && vault.queue_batches > 0.0 && vault.bytes_per_second <= 0.0 && stages.seconds >= STALL_SECONDS;
    let waiting = format!("{:.0} batches ({}) wait", vault.queue_batches, show_size(vault.queue_bytes as u64));
    if failing || stalled {
        let text = if stalled {
            format!("Nothing reached the vault in the last {:.0} s, and {waiting}.", stages.seconds)
        } else {
            let percent = 100.0 * vault.failed_per_second / vault.requests_per_second;
            format!("{percent:.0} % of the requests to the store fail and are tried again; {waiting}.")
        };
        all.push(Finding {
            severity: if stalled { Severity::Critical } else { Severity::Warning },
            stage: "vault",
            text,
            next: "See whether the store can be reached; the journal keeps everything meanwhile.",
            runbook: "TidegateStoreFails",
        });
    } else if vault.queue_batches > vault.window_batches && vault.window_batches > 0.0 {
        all.push(Finding {
            severity: Severity::Note,
            stage: "vault",
            text: format!("The way to the vault is the bottleneck: {waiting} for it."),
            next: "If it lasts: a faster uplink, or a codec that packs harder.",
            runbook: "TidegateJournalFills",
        });
    }
}

fn machine(scene: &Scene<'_>, all: &mut Vec<Finding>) {
    let Some(stages) = scene.stages else { return };
    let process = &stages.process;
    if let Some(severity) = above(process.processors_busy, USED) {
        all.push(Finding {
            severity,
            stage: "pipeline",
            text: format!(
                "Processors are the bottleneck: {:.0} % of {:.0} are busy.",
                100.0 * process.processors_busy,
                process.processors
            ),
            next: "A cheaper codec, or one more gateway in the agents' lists.",
            runbook: "TidegateProcessorsBusy",
        });
    }
    let held = process.resident_bytes / process.memory_limit_bytes.max(1.0);
    if let Some(severity) = above(held, USED).filter(|_| process.memory_limit_bytes > 0.0) {
        all.push(Finding {
            severity,
            stage: "wire",
            text: format!("The process holds {:.0} % of the memory that it should.", 100.0 * held),
            next: "Raise `memory`, or lower `agents_max`.",
            runbook: "TidegateMemoryHigh",
        });
    }
    if stages.wire.waiting_disks > 0.0 {
        all.push(Finding {
            severity: Severity::Note,
            stage: "wire",
            text: format!("{:.0} disks wait for memory before they may send.", stages.wire.waiting_disks),
            next: "If it lasts: raise `memory`.",
            runbook: "TidegateMemoryHigh",
        });
    }
    if stages.wire.overloaded {
        all.push(Finding {
            severity: Severity::Warning,
            stage: "wire",
            text: "This gateway has more than it can carry and asks agents to go elsewhere.".into(),
            next: "Add a gateway to the agents' lists.",
            runbook: "TidegateOverloaded",
        });
    }
}

fn journal(status: &Status, all: &mut Vec<Finding>) {
    let used = status.journal_used_bytes as f64 / status.journal_capacity_bytes.max(1) as f64;
    let full_seconds = status.journal_heading.as_ref().and_then(|heading| heading.full_seconds);
    let drained_seconds = status.journal_heading.as_ref().and_then(|heading| heading.drained_seconds);
    let soon = full_seconds.filter(|seconds| *seconds < FULL_SECONDS);
    let severity = above(used, JOURNAL_USED).or_else(|| soon.map(|_| Severity::Critical));
    if let Some(severity) = severity {
        let end = match (status.journal_level, full_seconds, drained_seconds) {
            ("full", ..) => ": agents mark what changes instead of sending it".to_owned(),
            (_, Some(seconds), _) => format!(" and full in {}", time(seconds)),
            (_, _, Some(seconds)) => format!(" and empty in {}", time(seconds)),
            _ => String::new(),
        };
        all.push(Finding {
            // What drains is on the mend.
            severity: if drained_seconds.is_some() { Severity::Warning } else { severity },
            stage: "journal",
            text: format!("The journal is {:.0} % full{end}.", 100.0 * used),
            next: "More comes than is uploaded: look at store and uplink.",
            runbook: "TidegateJournalFills",
        });
    }
    let slow = drained_seconds.and_then(|seconds| Some((above(seconds, DRAIN_SECONDS)?, seconds)));
    if let Some((severity, seconds)) = slow {
        all.push(Finding {
            severity,
            stage: "journal",
            text: format!("The journal's backlog needs {} to drain.", time(seconds)),
            next: "Look at store and uplink.",
            runbook: "TidegateDrainsSlowly",
        });
    }
}

fn agents(scene: &Scene<'_>, all: &mut Vec<Finding>) {
    let status = scene.status;
    let count = |word: &str| status.disks.iter().find(|(known, _)| *known == word).map_or(0, |(_, count)| *count);
    let mut of_disks = |word: &str, severity, text: &str, next, runbook| {
        let disks = match count(word) {
            0 => return,
            1 => "1 disk".to_owned(),
            more => format!("{more} disks"),
        };
        all.push(Finding { severity, stage: "agents", text: format!("{disks}: {text}"), next, runbook });
    };
    of_disks(
        "fenced",
        Severity::Critical,
        "taken over by another agent; nothing of them is protected where they are written.",
        "Decide which machine counts, and stop the other one's agent.",
        "TidegateFenced",
    );
    of_disks("waiting", Severity::Warning, "no gateway takes them.", "The agent's log says why.", "TidegateBehind");
    of_disks(
        "overflowed",
        Severity::Warning,
        "they change faster than they are sent, so changes are only marked.",
        "Mend what is in the way behind them, or give them a larger `queue`.",
        "TidegateOverflowed",
    );
    let copying = format!("being copied, {} to go; no new point before it is over.", show_size(status.dirty_bytes));
    of_disks("copying", Severity::Note, &copying, "It ends by itself.", "TidegateBehind");
    let worst = status.worst.as_ref();
    if let Some((severity, (disk, seconds))) = worst.and_then(|worst| Some((above(worst.1, BEHIND_SECONDS)?, worst))) {
        all.push(Finding {
            severity,
            stage: "agents",
            text: format!("{disk} is {} behind: a restore of it gives an older moment.", time(*seconds)),
            next: "See its state below; one disk alone is its machine's matter, many are the gateway's.",
            runbook: "TidegateBehind",
        });
    }
    let skewed = scene.stages.map_or(0.0, |stages| stages.wire.skewed_agents);
    if skewed > 0.0 {
        all.push(Finding {
            severity: Severity::Warning,
            stage: "agents",
            text: format!("{skewed:.0} agents' clocks are more than two seconds off."),
            next: "Mend their time service; with many at once, the gateway's own.",
            runbook: "TidegateClockApart",
        });
    }
}

/// Nothing is in anybody's way.
fn well(status: &Status) -> Finding {
    let told: usize = status.disks.iter().filter(|(word, _)| *word != "away").map(|(_, count)| count).sum();
    let protected = status.disks.iter().find(|(word, _)| *word == "protected").map_or(0, |(_, count)| *count);
    let text = match (told, &status.worst) {
        (0, _) => "No agent is here; ready for them.".to_owned(),
        (told, _) if protected < told => format!("{protected} of {told} disks are protected."),
        (1, Some((disk, seconds))) if *seconds < 1.0 => format!("{disk} is protected, and up to date."),
        (told, Some((_, seconds))) if *seconds < 1.0 => format!("All {told} disks are protected, and up to date."),
        (1, Some((disk, seconds))) => format!("{disk} is protected, at most {} behind.", time(*seconds)),
        (told, Some((_, seconds))) => format!("All {told} disks are protected, at most {} behind.", time(*seconds)),
        (told, None) => format!("All {told} disks are protected."),
    };
    Finding { severity: Severity::Ok, stage: "", text, next: "", runbook: "" }
}

/// A length of time as people say it.
fn time(seconds: f64) -> String {
    match seconds {
        s if s < 120.0 => format!("{s:.0} s"),
        s if s < 7200.0 => format!("{:.0} min", s / 60.0),
        s if s < 172_800.0 => format!("{:.1} h", s / 3600.0),
        s => format!("{:.1} days", s / 86_400.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gateway::outlook::Heading;
    use crate::gateway::stages::VaultStage;
    use crate::types::{DiskId, Id128};

    const RUNBOOK: &str = include_str!("../../docs/RUNBOOK.md");

    fn status() -> Status {
        Status {
            gateway: "gw1".into(),
            vault: Id128([1; 16]),
            version: "0",
            ready: true,
            reason: String::new(),
            trouble: String::new(),
            up_seconds: 100.0,
            agents: 1,
            disks: vec![("protected", 2), ("copying", 0), ("fenced", 0), ("away", 1)],
            worst: Some((DiskId::new("d").expect("a name"), 3.0)),
            dirty_bytes: 0,
            unvaulted_bytes: 0,
            journal_used_bytes: 10,
            journal_capacity_bytes: 100,
            journal_level: "low",
            journal_heading: None,
            bandwidth: Vec::new(),
            events: Vec::new(),
        }
    }

    fn found(status: &Status, stages: Option<&Stages>) -> Vec<(Severity, &'static str, String)> {
        let all = find(&Scene { status, stages, unpinned: "", now: Micros(0) });
        for finding in all.iter().filter(|finding| !finding.runbook.is_empty()) {
            assert!(RUNBOOK.contains(&format!("\n## {}\n", finding.runbook)), "{} is no section", finding.runbook);
        }
        all.into_iter().map(|finding| (finding.severity, finding.runbook, finding.text)).collect()
    }

    #[test]
    fn a_limit_that_holds_is_named_as_the_bottleneck_and_one_that_does_not_is_not() {
        let limit = |limit, holds| crate::gateway::bandwidth::LimitView {
            limit,
            bytes_per_second: Some(50 << 20),
            by: "calendar",
            until: None,
            held_bytes: 0,
            holds,
            words: format!("{limit} held to 50 MiB/s"),
        };
        let all = found(&Status { bandwidth: vec![limit("upload", true), limit("receive", false)], ..status() }, None);
        let notes: Vec<_> =
            all.iter().filter(|(severity, ..)| *severity == Severity::Note).map(|(.., text)| text).collect();
        assert_eq!(notes, ["A limit of bandwidth is the bottleneck: upload held to 50 MiB/s."]);
        // A low limit lets nothing through for a while: not the store's fault.
        let mut stages = Stages { seconds: 10.0, ..Stages::default() };
        stages.vault.queue_batches = 1.0;
        let held = Status { bandwidth: vec![limit("upload", true)], ..status() };
        assert!(found(&held, Some(&stages)).iter().all(|(severity, ..)| *severity >= Severity::Note));
        assert_eq!(found(&status(), Some(&stages))[0].0, Severity::Critical);
    }

    #[test]
    fn nothing_in_the_way_is_said_too() {
        let all = found(&status(), Some(&Stages::default()));
        assert_eq!(all, [(Severity::Ok, "", "All 2 disks are protected, at most 3 s behind.".to_owned())]);
        let none = Status { disks: vec![("protected", 0), ("away", 4)], worst: None, ..status() };
        assert_eq!(found(&none, None)[0].2, "No agent is here; ready for them.");
    }

    #[test]
    fn a_vault_that_takes_nothing_comes_before_the_journal_that_fills_because_of_it() {
        let heading = Heading { growth_bytes_per_second: 1.0, full_seconds: Some(90.0), drained_seconds: None };
        let status = Status { journal_used_bytes: 72, journal_heading: Some(heading), ..status() };
        let vault =
            VaultStage { queue_batches: 4.0, queue_bytes: 4e6, requests_per_second: 1.0, ..VaultStage::default() };
        let stages = Stages { seconds: 10.0, vault, ..Stages::default() };
        let all = found(&status, Some(&stages));
        assert_eq!(all[0].1, "TidegateStoreFails", "{all:?}");
        assert_eq!(all[1].1, "TidegateJournalFills", "{all:?}");
        assert!(all[1].2.contains("72 % full and full in 90 s"), "{all:?}");
        let parked = Status { trouble: "the credential ended".into(), ..status };
        let all = found(&parked, Some(&stages));
        assert_eq!((all[0].0, all[0].1), (Severity::Critical, "TidegateUploadsParked"), "{all:?}");
        assert!(all.iter().all(|finding| finding.1 != "TidegateStoreFails"), "one reason is enough: {all:?}");
    }

    #[test]
    fn a_copy_is_a_note_and_a_fence_is_not() {
        let copying = Status { disks: vec![("protected", 1), ("copying", 1)], dirty_bytes: 5 << 20, ..status() };
        let all = found(&copying, None);
        assert_eq!((all[0].0, all[1].0), (Severity::Ok, Severity::Note), "{all:?}");
        assert_eq!(all[0].2, "1 of 2 disks are protected.");
        let fenced = Status { disks: vec![("protected", 1), ("fenced", 1)], ..status() };
        let all = found(&fenced, None);
        assert_eq!((all[0].0, all[0].1, all.len()), (Severity::Critical, "TidegateFenced", 1), "{all:?}");
    }

    #[test]
    fn a_disk_that_may_be_being_encrypted_comes_first_with_the_way_back() {
        let (habit, point) = crate::gateway::habit::tests::encrypted();
        let disk = DiskId::new("web.sda").expect("a name");
        let event = habit.events().next().expect("an event").view(&disk);
        let all = found(&Status { events: vec![event.clone()], ..status() }, None);
        assert_eq!((all[0].0, all[0].1), (Severity::Critical, "TidegateAnomaly"), "{all:?}");
        assert!(all[0].2.contains(&format!("tidegate restore --disk web.sda --point {point}")), "{all:?}");
        let over = crate::gateway::habit::EventView { over: Some("now".into()), ..event };
        let all = found(&Status { events: vec![over], ..status() }, None);
        assert_eq!((all[0].0, all[1].0), (Severity::Ok, Severity::Note), "{all:?}");
    }

    #[test]
    fn every_rule_has_its_section_in_the_runbook() {
        let mut stages = Stages { seconds: 10.0, ..Stages::default() };
        stages.process.processors = 2.0;
        stages.process.processors_busy = 0.97;
        (stages.process.resident_bytes, stages.process.memory_limit_bytes) = (90.0, 100.0);
        (stages.process.certificate_ends_seconds, stages.process.conflicts) = (86_400.0, 1.0);
        stages.process.reload_refused = true;
        (stages.wire.waiting_disks, stages.wire.skewed_agents, stages.wire.overloaded) = (1.0, 1.0, true);
        (stages.vault.queue_batches, stages.vault.window_batches, stages.vault.bytes_per_second) = (5.0, 2.0, 1.0);
        let heading = Heading { growth_bytes_per_second: -1.0, full_seconds: None, drained_seconds: Some(2000.0) };
        let status = Status {
            ready: false,
            reason: "draining".into(),
            disks: vec![("fenced", 1), ("waiting", 2), ("overflowed", 1), ("copying", 1)],
            worst: Some((DiskId::new("d").expect("a name"), 1000.0)),
            journal_used_bytes: 90,
            journal_heading: Some(heading),
            ..status()
        };
        let all = found(&status, Some(&stages));
        assert_eq!(all.len(), 17, "{all:#?}");
        assert!(all.windows(2).all(|pair| pair[0].0 <= pair[1].0), "the gravest first: {all:#?}");
    }
}
