use ratatui::Terminal;
use ratatui::backend::TestBackend;
use ratatui::crossterm::event::KeyCode;
use serde_json::json;

use super::*;

/// A gateway of which the vault is away, as its admin port says it.
fn seen() -> Seen {
    let status = json!({
        "gateway": "gw1", "vault": "9f", "version": "0.1.0", "ready": true, "reason": "", "trouble": "", "up_seconds": 3600.0,
        "agents": 2, "disks": [["protected", 2], ["copying", 1], ["away", 1]], "worst": ["ledger", 95.0],
        "dirty_bytes": 3 << 20, "unvaulted_bytes": 5 << 20, "journal_used_bytes": 72, "journal_capacity_bytes": 100,
        "journal_level": "low", "journal_heading": { "growth_bytes_per_second": 1.0, "full_seconds": 300.0, "drained_seconds": null },
        "journal_backend": "ring: preferred",
        "stages": { "seconds": 10.0, "wire": { "bytes_per_second": 3_145_728.0, "records_per_second": 40.0, "streams": 3.0 },
            "journal": { "bytes_per_second": 2_097_152.0, "commit_seconds": 0.002 }, "vault": { "queue_batches": 4.0 } },
        "findings": [
            { "severity": "critical", "stage": "vault", "text": "Nothing reached the vault in the last 10 s.", "next": "See the store.",
              "runbook": "TidegateStoreFails" },
            { "severity": "warning", "stage": "journal", "text": "The journal is 72 % full.", "next": "", "runbook": "TidegateJournalFills" },
        ],
    });
    let disk = |name: &str, rpo_seconds: f64| {
        json!({ "disk": name, "agent": "host-1", "condition": "protected", "epoch": 2, "journaled_seq": 9, "vaulted_seq": 8,
            "rpo_seconds": rpo_seconds, "dirty_bytes": 0, "unvaulted_bytes": 5 << 20 })
    };
    let disks = json!([disk("mail", 0.4), disk("ledger", 95.0), { "disk": "old", "condition": "away" }]);
    let agents = json!([{ "agent": "host-1", "address": "10.0.0.7:4000", "transport": "quic", "connected_seconds": 60.0,
        "disks": ["mail", "ledger"], "rpo_seconds": 95.0 }]);
    Seen::of(status, disks, agents).expect("understood")
}

fn view() -> View {
    let mut view = View::new("127.0.0.1:9444".into());
    view.take(Ok(Box::new(seen())), Duration::from_secs(10));
    view
}

/// The frame as text, one line per row.
fn frame(view: &mut View, (width, height): (u16, u16), now_seconds: u64) -> String {
    let mut terminal = Terminal::new(TestBackend::new(width, height)).expect("a terminal in memory");
    terminal.draw(|frame| draw(frame, view, Duration::from_secs(now_seconds))).expect("drawn");
    let buffer = terminal.backend().buffer();
    let row = |y| (0..width).map(|x| buffer[(x, y)].symbol()).collect::<String>();
    (0..height).map(|y| row(y).trim_end().to_owned() + "\n").collect()
}

fn assert_shows(text: &str, wanted: &[&str]) {
    for part in wanted {
        assert!(text.contains(part), "{part:?} is not in\n{text}");
    }
}

#[test]
fn a_frame_says_first_what_is_wrong_and_what_to_do() {
    let text = frame(&mut view(), (120, 30), 11);
    let lines: Vec<&str> = text.lines().collect();
    assert!(lines[0].starts_with("tidegate gw1  ready  0.1.0 for 60 min, journal on ring"), "{text}");
    assert_eq!(lines[1], "critical  Nothing reached the vault in the last 10 s.");
    assert_eq!(lines[2].trim(), "See the store. (docs/RUNBOOK.md, TidegateStoreFails)  1 more: 3");
    assert_shows(
        lines[3],
        &["protected 2 of 3", "behind 95 s (ledger)", "backlog 8 MiB", "72 % of 100 B, full in 5 min"],
    );
    assert_shows(
        &text,
        &[
            "agents   here",
            "wire     flows          3 MiB/s",
            "journal  warning        2 MiB/s",
            "vault    critical",
            "commit 2.0 ms",
        ],
    );
    let first = lines.iter().position(|line| line.starts_with("DISK")).expect("a head") + 1;
    let names: Vec<_> = lines[first..first + 3].iter().map(|line| line.split(' ').next().unwrap_or_default()).collect();
    assert_eq!(names, ["ledger", "mail", "old"], "{text}");
    assert_shows(lines[first], &["protected", "95 s", "5 MiB", "host-1", "e2: 8 of 9"]);
    assert_shows(lines[first + 2], &["away", "?"]);
    assert_shows(lines[29], &["q quit", "? help"]);
}

#[test]
fn every_table_and_the_help_are_a_key_away() {
    let mut view = view();
    view.press(KeyCode::Char('2').into());
    assert_shows(&frame(&mut view, (120, 30), 11), &["TRANSPORT", "host-1", "quic", "10.0.0.7:4000"]);
    view.press(KeyCode::Char('3').into());
    assert_shows(
        &frame(&mut view, (120, 30), 11),
        &["The journal is 72 % full.", "docs/RUNBOOK.md, TidegateJournalFills"],
    );
    view.press(KeyCode::Char('?').into());
    assert_shows(&frame(&mut view, (120, 30), 11), &["keys", "closes this help"]);
    view.press(KeyCode::Char('x').into());
    view.press(KeyCode::Char('1').into());
    for letter in "/mai".chars() {
        view.press(KeyCode::Char(letter).into());
    }
    let text = frame(&mut view, (120, 30), 11);
    assert_shows(&text, &["search: mai", "mail"]);
    assert!(!text.contains("ledger  "), "{text}");
}

#[test]
fn silence_is_told_with_the_age_of_what_is_shown() {
    let mut view = view();
    view.take(Err("no gateway answers".into()), Duration::from_secs(12));
    let text = frame(&mut view, (120, 30), 40);
    assert_shows(&text, &["gw1  no answer", "no answer what is shown is 30 s old", "no gateway answers", "ledger"]);
    let mut never = View::new("127.0.0.1:9444".into());
    assert_shows(&frame(&mut never, (80, 24), 0), &["at 127.0.0.1:9444", "asking"]);
    never.take(Err("no gateway answers".into()), Duration::ZERO);
    assert_shows(&frame(&mut never, (80, 24), 0), &["no answer no gateway answers"]);
}

#[test]
fn every_size_of_window_is_drawn_with_what_matters_most() {
    for width in [1, 2, 10, 24, 40, 60, 80, 100, 250] {
        for height in [1, 2, 4, 5, 8, 15, 16, 24, 80] {
            for keys in ["1", "2", "3", "1?", "1/x"] {
                let mut view = view();
                for letter in keys.chars() {
                    view.press(KeyCode::Char(letter).into());
                }
                frame(&mut view, (width, height), 11);
            }
        }
    }
    let narrow = frame(&mut view(), (40, 30), 11);
    assert_shows(&narrow, &["Nothing reached the vault in", "TidegateStoreFails"]);
    let text = frame(&mut view(), (60, 12), 11);
    assert_shows(&text, &["critical  Nothing reached the vault", "ledger", "95 s"]);
    assert!(!text.contains("AGENT") && !text.contains("pipeline"), "no room for these: {text}");
}

#[test]
fn names_cannot_speak_to_the_terminal() {
    let mut hostile = seen();
    hostile.disks[0].disk = "\u{1b}[2J\u{7}evil".into();
    hostile.status.gateway = "\u{1b}]0;title\u{7}".into();
    let mut view = View::new("a".into());
    view.take(Ok(Box::new(hostile)), Duration::ZERO);
    let text = frame(&mut view, (120, 30), 1);
    assert!(!text.contains(|letter: char| letter.is_control() && letter != '\n'), "{text:?}");
    assert_shows(&text, &["evil"]);
}
