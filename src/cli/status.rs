//! `tidegate status`: how a gateway and its disks stand, from its admin port.

use std::fmt::Write as _;
use std::io::Write as _;
use std::net::SocketAddr;
use std::time::Duration;

use serde_json::Value;

use super::admin::{AdminArgs, PATIENCE};
use super::seen::{SeenDisk, SeenFinding, SeenStatus};
use super::{Failure, Outcome};
use crate::config::show_size;
use crate::fault::{chain_text, exit};
use crate::gateway::findings::Severity;
use crate::gateway::outlook::Heading;

/// Between two looks with `--watch`.
const WATCH_EVERY: Duration = Duration::from_secs(2);
/// Disks that the text shows unless all are asked for: those furthest behind.
const DISKS_SHOWN: usize = 20;

/// Options of `tidegate status`.
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    admin: AdminArgs,
    /// Show every disk; otherwise those furthest behind. JSON always has all.
    #[arg(long)]
    all: bool,
    /// Look again every two seconds, until interrupted.
    #[arg(long)]
    watch: bool,
    /// Print the result as JSON, one object per look.
    #[arg(long)]
    json: bool,
}

/// Runs the verb. Exit code 0 if the gateway takes agents and nothing waits for help, 75 if it is not ready yet, else 1.
pub fn run(args: &Args) -> Outcome {
    let admin = args.admin.address()?;
    // The client wants one, also where nothing is encrypted.
    crate::vault::url::install_crypto();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let client = reqwest::Client::builder().timeout(PATIENCE).no_proxy().build()?;
        loop {
            let code = look(&client, admin, args).await?;
            if !args.watch {
                return Ok(code);
            }
            tokio::time::sleep(WATCH_EVERY).await;
        }
    })
}

async fn look(client: &reqwest::Client, admin: SocketAddr, args: &Args) -> Outcome {
    let (status, disks) = (get(client, admin, "status").await?, get(client, admin, "disks").await?);
    let mut out = std::io::stdout().lock();
    if args.json {
        writeln!(out, "{}", serde_json::json!({ "status": status, "disks": disks }))?;
    } else {
        let seen = serde_json::from_value::<SeenStatus>(status.clone());
        // A gateway that is not ready yet has a reason in place of disks.
        let disks = serde_json::from_value::<Vec<SeenDisk>>(disks);
        let text = match (seen, disks) {
            (Ok(seen), Ok(disks)) => text(&seen, disks, if args.all { usize::MAX } else { DISKS_SHOWN }),
            _ => format!("not ready: {}\n", status["reason"].as_str().unwrap_or("the answer is not understood")),
        };
        if args.watch {
            // From the top of a cleared screen.
            write!(out, "\x1b[2J\x1b[H")?;
        }
        write!(out, "{text}")?;
    }
    out.flush()?;
    Ok(match (status["ready"].as_bool(), status["trouble"].as_str()) {
        (Some(true), Some("")) => exit::OK,
        (Some(true), _) => exit::ERROR,
        _ => exit::TRY_AGAIN,
    })
}

pub(super) async fn get(client: &reqwest::Client, admin: SocketAddr, what: &str) -> Result<Value, Failure> {
    let url = format!("http://{admin}/v1/{what}");
    let body = async { client.get(&url).send().await?.bytes().await };
    let body = body.await.map_err(|error| {
        let text = chain_text(&error.without_url());
        Failure::error(format!(
            "no gateway answers at {url}: {text}; is it running, and is this its admin_listen? (--admin, --config)"
        ))
    })?;
    serde_json::from_slice(&body).map_err(|error| Failure::error(format!("{url} is no gateway's admin port: {error}")))
}

/// A length of time as people say it.
pub(super) fn time(seconds: f64) -> String {
    match seconds {
        s if s < 120.0 => format!("{s:.0} s"),
        s if s < 7200.0 => format!("{:.0} min", s / 60.0),
        s if s < 172_800.0 => format!("{:.1} h", s / 3600.0),
        s => format!("{:.1} days", s / 86_400.0),
    }
}

fn text(seen: &SeenStatus, mut disks: Vec<SeenDisk>, shown: usize) -> String {
    let mut out = String::new();
    // Writing to a string never fails.
    let state = if seen.ready { "ready".to_owned() } else { format!("not ready: {}", seen.reason) };
    let _ = writeln!(out, "gateway {} {} of vault {}: {state}", seen.gateway, seen.version, seen.vault);
    if !seen.trouble.is_empty() {
        let _ = writeln!(out, "TROUBLE {}", seen.trouble);
    }
    for finding in &seen.findings {
        let word = match finding.severity {
            // Said above.
            _ if finding.runbook == "TidegateUploadsParked" => continue,
            Severity::Critical => "CRITICAL",
            Severity::Warning => "WARNING",
            Severity::Note => "note",
            Severity::Ok => continue,
        };
        let SeenFinding { text, next, runbook, .. } = finding;
        let _ = writeln!(out, "{word} {text} {next} (docs/RUNBOOK.md, {runbook})");
    }
    let percent = 100.0 * seen.journal_used_bytes as f64 / seen.journal_capacity_bytes.max(1) as f64;
    let heading = match &seen.journal_heading {
        Some(Heading { full_seconds: Some(seconds), .. }) => format!(", full in {}", time(*seconds)),
        Some(Heading { drained_seconds: Some(seconds), .. }) => format!(", empty in {}", time(*seconds)),
        _ => String::new(),
    };
    let (capacity, level) = (show_size(seen.journal_capacity_bytes), &seen.journal_level);
    let _ = writeln!(out, "journal {percent:.0} % of {capacity}, {level}{heading}");
    for limit in seen.bandwidth.iter().filter(|limit| limit.holds) {
        let _ = writeln!(out, "limit   {} (tidegate bandwidth)", limit.words);
    }
    let (dirty, unvaulted) = (show_size(seen.dirty_bytes), show_size(seen.unvaulted_bytes));
    let _ = writeln!(out, "agents  {}; to copy {dirty}, to vault {unvaulted}", seen.agents);
    let counts: Vec<_> = seen.disks.iter().filter(|(_, count)| *count > 0).collect();
    let counts: Vec<_> = counts.into_iter().map(|(word, count)| format!("{count} {word}")).collect();
    let _ = writeln!(out, "disks   {}", if counts.is_empty() { "none yet".to_owned() } else { counts.join(", ") });
    disks.sort_by(|a, b| b.rpo_seconds.unwrap_or(-1.0).total_cmp(&a.rpo_seconds.unwrap_or(-1.0)));
    if !disks.is_empty() {
        let _ = writeln!(
            out,
            "\n{:<32} {:<24} {:<11} {:>9} {:>10} {:>10}",
            "DISK", "AGENT", "STATE", "BEHIND", "TO COPY", "TO VAULT"
        );
    }
    for disk in disks.iter().take(shown) {
        let (behind, agent) = (disk.rpo_seconds.map_or("?".to_owned(), time), disk.agent.as_deref().unwrap_or("-"));
        let (dirty, unvaulted) = (show_size(disk.dirty_bytes), show_size(disk.unvaulted_bytes));
        let _ = writeln!(
            out,
            "{:<32} {agent:<24} {:<11} {behind:>9} {dirty:>10} {unvaulted:>10}",
            disk.disk, disk.condition
        );
    }
    if disks.len() > shown {
        let _ = writeln!(out, "and {} more (--all)", disks.len() - shown);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::super::seen::SeenLimit;
    use super::*;

    fn seen() -> SeenStatus {
        let heading = Heading { growth_bytes_per_second: 5e6, full_seconds: Some(600.0), drained_seconds: None };
        SeenStatus {
            gateway: "gw1".into(),
            version: "0.1.0".into(),
            ready: true,
            trouble: "the credential is refused".into(),
            agents: 2,
            disks: vec![("protected".into(), 2), ("away".into(), 0)],
            unvaulted_bytes: 1 << 20,
            journal_used_bytes: 1 << 30,
            journal_capacity_bytes: 4 << 30,
            journal_level: "low".into(),
            journal_heading: Some(heading),
            bandwidth: vec![
                SeenLimit { holds: false, words: "each disk not limited".into() },
                SeenLimit { holds: true, words: "uploads held to 50 MiB/s by the calendar until 18:00 UTC".into() },
            ],
            ..SeenStatus::default()
        }
    }

    fn disk(name: &str, rpo_seconds: Option<f64>) -> SeenDisk {
        SeenDisk { disk: name.into(), condition: "protected".into(), rpo_seconds, ..SeenDisk::default() }
    }

    #[test]
    fn what_holds_the_gateway_up_is_named_once_with_what_to_do() {
        let finding = |severity, text: &str, runbook: &str| SeenFinding {
            severity,
            stage: String::new(),
            text: text.into(),
            next: "Do this.".into(),
            runbook: runbook.into(),
        };
        let findings = vec![
            finding(Severity::Critical, "Uploads wait.", "TidegateUploadsParked"),
            finding(Severity::Warning, "The journal is 72 % full.", "TidegateJournalFills"),
            finding(Severity::Ok, "All well.", ""),
        ];
        let text = text(&SeenStatus { findings, ..seen() }, Vec::new(), 2);
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines[1], "TROUBLE the credential is refused");
        assert_eq!(lines[2], "WARNING The journal is 72 % full. Do this. (docs/RUNBOOK.md, TidegateJournalFills)");
        assert!(lines[3].starts_with("journal 25 %"), "{text}");
    }

    #[test]
    fn the_disk_furthest_behind_comes_first_and_trouble_is_not_to_be_missed() {
        let text = text(&seen(), vec![disk("fine", Some(0.4)), disk("gone", None), disk("late", Some(7000.0))], 2);
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines[1], "TROUBLE the credential is refused");
        assert_eq!(lines[2], "journal 25 % of 4 GiB, low, full in 10 min");
        assert_eq!(lines[3], "limit   uploads held to 50 MiB/s by the calendar until 18:00 UTC (tidegate bandwidth)");
        assert!(text.contains("disks   2 protected\n"), "{text}");
        let rows: Vec<_> = lines[8..].iter().map(|line| line.split_whitespace().next().unwrap_or_default()).collect();
        assert_eq!(rows, ["late", "fine", "and"], "{text}");
        assert!(lines[8].contains("117 min"), "{text}");
    }
}
