//! One frame from what was seen and what was chosen. Pure but for the rows that fit, which it notes for paging.
//!
//! What does not fit is left out from the least important on: columns to the right, then the path. Text that comes from
//! elsewhere is shown without control characters, which a terminal would obey.

use std::collections::VecDeque;
use std::time::Duration;

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Margin, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Cell, Clear, Paragraph, Row, Table, Wrap};

use super::super::seen::{Seen, SeenStatus};
use super::super::status::time;
use super::view::{HISTORY_MAX, Order, Tab, View};
use crate::config::show_size;
use crate::gateway::findings::Severity;
use crate::gateway::stages::Stages;

/// Below this nothing that helps can be shown.
const SMALLEST: (u16, u16) = (24, 4);
/// From this height on the path has room.
const PATH_FROM_HEIGHT: u16 = 16;
/// From this width on the small graphs have room.
const GRAPH_FROM_WIDTH: u16 = 100;
/// An answer older than this is not "now" any more.
const STALE: Duration = Duration::from_secs(7);
/// Bytes per second: points of disks that stand still are less.
const IDLE_BELOW: f64 = 1024.0;
/// Rows for what is to be known first.
const WORD_ROWS_MAX: usize = 4;
const BAR_CELLS: usize = 16;

const DIM: Style = Style::new().add_modifier(Modifier::DIM);
const BOLD: Style = Style::new().add_modifier(Modifier::BOLD);

/// Draws the whole.
pub fn draw(frame: &mut Frame<'_>, view: &mut View, now: Duration) {
    let area = frame.area();
    if area.width < SMALLEST.0 || area.height < SMALLEST.1 {
        return frame.render_widget(Paragraph::new("window too small").wrap(Wrap { trim: true }), area);
    }
    let path_rows = if area.height >= PATH_FROM_HEIGHT { 7 } else { 0 };
    let words = word_lines(view, now);
    let word_rows = if area.height >= PATH_FROM_HEIGHT { wrapped_rows(&words, area.width) } else { 1 };
    let [head, word, figures, path, tabs, table, foot] = Layout::vertical([
        Constraint::Length(1),
        Constraint::Length(word_rows),
        Constraint::Length(1),
        Constraint::Length(path_rows),
        Constraint::Length(1),
        Constraint::Min(0),
        Constraint::Length(1),
    ])
    .areas(area);
    view.page_rows = usize::from(table.height.saturating_sub(1)).max(1);
    frame.render_widget(Paragraph::new(head_line(view, now)), head);
    frame.render_widget(Paragraph::new(words).wrap(Wrap { trim: false }), word);
    if let Some(seen) = &view.seen {
        frame.render_widget(Paragraph::new(figure_line(&seen.status)), figures);
        let lines = path_lines(&seen.status, &view.history, area.width);
        frame.render_widget(Paragraph::new(lines), path.inner(Margin::new(0, path_rows.min(1))));
    }
    frame.render_widget(Paragraph::new(tab_line(view)), tabs);
    match view.tab {
        Tab::Disks => disk_table(frame, view, table),
        Tab::Agents => agent_table(frame, view, table),
        Tab::Findings => finding_list(frame, view, table),
    }
    frame.render_widget(Paragraph::new(foot_line(view)), foot);
    if view.help {
        help(frame, area);
    }
}

/// Rows that lines need in a window of this width, within what leaves room for the rest.
fn wrapped_rows(lines: &[Line<'_>], width: u16) -> u16 {
    let rows: usize = lines.iter().map(|line| line.width().div_ceil(usize::from(width)).max(1)).sum();
    rows.clamp(2, WORD_ROWS_MAX) as u16
}

/// Without what a terminal would obey.
fn clean(text: &str) -> String {
    text.chars().map(|letter| if letter.is_control() { '\u{fffd}' } else { letter }).collect()
}

const fn tone(severity: Severity) -> Color {
    match severity {
        Severity::Ok => Color::Green,
        Severity::Note => Color::Cyan,
        Severity::Warning => Color::Yellow,
        Severity::Critical => Color::Red,
    }
}

const fn name(severity: Severity) -> &'static str {
    match severity {
        Severity::Ok => "all well",
        Severity::Note => "note",
        Severity::Warning => "warning",
        Severity::Critical => "critical",
    }
}

fn is_stale(view: &View, now: Duration) -> bool {
    !view.trouble.is_empty() || now.saturating_sub(view.seen_at) > STALE
}

fn head_line(view: &View, now: Duration) -> Line<'static> {
    let mut spans = vec![Span::styled("tidegate ", BOLD)];
    let Some(seen) = &view.seen else {
        spans.push(Span::raw(format!("at {}", view.admin)));
        return Line::from(spans);
    };
    let status = &seen.status;
    let (word, color) = match (is_stale(view, now), status.ready) {
        (true, _) => ("no answer".to_owned(), Color::Red),
        (false, true) => ("ready".to_owned(), Color::Green),
        (false, false) => (format!("not ready: {}", clean(&status.reason)), Color::Yellow),
    };
    spans.push(Span::styled(clean(&status.gateway), BOLD));
    spans.push(Span::styled(format!("  {word}"), Style::new().fg(color).add_modifier(Modifier::BOLD)));
    let backend = status.journal_backend.split([' ', ':']).next().unwrap_or_default();
    spans.push(Span::styled(
        format!(
            "  {} for {}, journal on {}, vault {}",
            clean(&status.version),
            time(status.up_seconds),
            clean(backend),
            clean(&status.vault)
        ),
        DIM,
    ));
    Line::from(spans)
}

/// What is to be known first, and what to do.
fn word_lines(view: &View, now: Duration) -> Vec<Line<'static>> {
    let red = Style::new().fg(Color::Red).add_modifier(Modifier::BOLD);
    let Some(seen) = &view.seen else {
        let (word, text) =
            if view.trouble.is_empty() { ("asking", String::new()) } else { ("no answer", clean(&view.trouble)) };
        return vec![Line::from(vec![Span::styled(format!("{word:<10}"), red), Span::raw(text)])];
    };
    if is_stale(view, now) {
        let age = time(now.saturating_sub(view.seen_at).as_secs_f64());
        let text = format!("what is shown is {age} old");
        return vec![
            Line::from(vec![Span::styled(format!("{:<10}", "no answer"), red), Span::styled(text, BOLD)]),
            Line::styled(format!("{:10}{}", "", clean(&view.trouble)), DIM),
        ];
    }
    let findings = &seen.status.findings;
    let Some(first) = findings.first() else { return Vec::new() };
    let style = Style::new().fg(tone(first.severity)).add_modifier(Modifier::BOLD);
    let mut next = clean(&first.next);
    if !first.runbook.is_empty() {
        next = format!("{next} (docs/RUNBOOK.md, {})", clean(&first.runbook));
    }
    if findings.len() > 1 {
        next = format!("{next}{}{} more: 3", if next.is_empty() { "" } else { "  " }, findings.len() - 1);
    }
    vec![
        Line::from(vec![
            Span::styled(format!("{:<10}", name(first.severity)), style),
            Span::styled(clean(&first.text), BOLD),
        ]),
        Line::styled(format!("{:10}{next}", ""), DIM),
    ]
}

fn figure_line(status: &SeenStatus) -> Line<'static> {
    let count = |word: &str| status.disks.iter().find(|(known, _)| known == word).map_or(0, |(_, count)| *count);
    let told = status.disks.iter().filter(|(word, _)| word != "away").map(|(_, count)| count).sum::<usize>();
    let worst = match &status.worst {
        Some((disk, seconds)) if *seconds > 0.0 => format!("{} ({})", time(*seconds), clean(disk)),
        Some(_) => "0 s".into(),
        None => "-".into(),
    };
    let backlog_bytes = status.dirty_bytes.saturating_add(status.unvaulted_bytes);
    let gone = status.stages.as_ref().and_then(|stages| stages.backlog_heading?.drained_seconds);
    let gone =
        gone.filter(|_| backlog_bytes > 0).map_or(String::new(), |seconds| format!(", gone in {}", time(seconds)));
    let used = status.journal_used_bytes as f64 / status.journal_capacity_bytes.max(1) as f64;
    let end = match status.journal_heading {
        Some(heading) if heading.full_seconds.is_some() => {
            format!(", full in {}", time(heading.full_seconds.unwrap_or_default()))
        }
        Some(heading) if heading.drained_seconds.is_some() => {
            format!(", empty in {}", time(heading.drained_seconds.unwrap_or_default()))
        }
        _ => String::new(),
    };
    let label = |text: &'static str| Span::styled(text, DIM);
    let mut spans = vec![label("protected "), Span::styled(format!("{} of {told}", count("protected")), BOLD)];
    spans.extend([label("   behind "), Span::styled(worst, BOLD)]);
    spans.extend([label("   backlog "), Span::styled(show_size(backlog_bytes), BOLD), Span::raw(gone)]);
    spans.push(label("   journal "));
    spans.extend(bar(used));
    spans.push(Span::styled(format!(" {:.0} %", 100.0 * used), BOLD));
    spans.push(Span::raw(format!(" of {}{end}", show_size(status.journal_capacity_bytes))));
    Line::from(spans)
}

/// A gauge of which a part is filled.
fn bar(part: f64) -> [Span<'static>; 2] {
    let filled = ((part.clamp(0.0, 1.0) * BAR_CELLS as f64).round() as usize).min(BAR_CELLS);
    let color = match part {
        part if part > 0.75 => Color::Red,
        part if part > 0.70 => Color::Yellow,
        _ => Color::Green,
    };
    [Span::styled("━".repeat(filled), Style::new().fg(color)), Span::styled("─".repeat(BAR_CELLS - filled), DIM)]
}

/// The last values, the highest of them as a full cell.
fn graph(values: &VecDeque<u64>) -> String {
    const CELLS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
    let highest = values.iter().copied().max().unwrap_or(0).max(1);
    let cell = |value: &u64| CELLS[((*value as f64 / highest as f64 * 7.0).round() as usize).min(7)];
    let drawn: String = values.iter().skip(values.len().saturating_sub(HISTORY_MAX / 2)).map(cell).collect();
    format!("{drawn:>30}")
}

/// A stage's name, its figure, what flows, and what else is to be known of it.
type StageRow = (&'static str, String, f64, String);

fn stage_rows(status: &SeenStatus) -> [StageRow; 5] {
    let Stages { wire, journal, pipeline, vault, process, .. } = status.stages.unwrap_or_default();
    let rate = |bytes_per_second: f64| format!("{}/s", show_size(bytes_per_second as u64));
    let packed = match 100.0 * pipeline.sealed_bytes_per_second / pipeline.bytes_per_second {
        percent if percent.is_finite() => format!("packed to {percent:.0} %"),
        _ => "nothing to pack".to_owned(),
    };
    let commit = journal.commit_seconds.map_or(String::new(), |seconds| format!(", commit {:.1} ms", 1000.0 * seconds));
    let failed =
        if vault.failed_per_second > 0.0 { format!(", {:.1} fail", vault.failed_per_second) } else { String::new() };
    let busy = 100.0 * process.processors_busy;
    [
        (
            "agents",
            format!("{} here", status.agents),
            status.agents as f64,
            format!("{} to copy, {} not vaulted", show_size(status.dirty_bytes), show_size(status.unvaulted_bytes)),
        ),
        (
            "wire",
            rate(wire.bytes_per_second),
            wire.bytes_per_second,
            format!(
                "{:.0} records/s, {:.0} streams, {:.0} wait",
                wire.records_per_second, wire.streams, wire.waiting_disks
            ),
        ),
        (
            "journal",
            rate(journal.bytes_per_second),
            journal.bytes_per_second,
            format!("{}{commit}", clean(&status.journal_level)),
        ),
        (
            "pipeline",
            rate(pipeline.bytes_per_second),
            pipeline.bytes_per_second,
            format!("{packed}, {} wait, processors {busy:.0} %", show_size(pipeline.queue_bytes as u64)),
        ),
        (
            "vault",
            rate(vault.bytes_per_second),
            vault.bytes_per_second,
            format!(
                "{:.0} batches ({}) wait, {:.1} requests/s{failed}",
                vault.queue_batches,
                show_size(vault.queue_bytes as u64),
                vault.requests_per_second
            ),
        ),
    ]
}

/// The stages of the path with what passes, what waits, and how each stands.
fn path_lines(status: &SeenStatus, history: &[VecDeque<u64>; 4], width: u16) -> Vec<Line<'static>> {
    let lines = stage_rows(status).into_iter().enumerate().map(|(at, (stage, big, flow, detail))| {
        let grave = status.findings.iter().find(|finding| finding.stage == stage).map(|finding| finding.severity);
        let idle_below = if at == 0 { 1.0 } else { IDLE_BELOW };
        let (word, color) = match (grave, flow >= idle_below) {
            (Some(severity), _) => (name(severity), tone(severity)),
            (None, true) => (if at == 0 { "here" } else { "flows" }, Color::Green),
            (None, false) => (if at == 0 { "none" } else { "idle" }, Color::Reset),
        };
        let arrow = if at == 0 { "  " } else { "► " };
        let mut spans = vec![
            Span::styled(arrow, DIM),
            Span::styled(format!("{stage:<9}"), BOLD),
            Span::styled(format!("{word:<9}"), Style::new().fg(color)),
            Span::styled(format!("{big:>13}  "), BOLD),
        ];
        if width >= GRAPH_FROM_WIDTH {
            let drawn = at.checked_sub(1).map_or_else(|| " ".repeat(30), |at| graph(&history[at]));
            spans.push(Span::styled(format!("{drawn}  "), Style::new().fg(color)));
        }
        spans.push(Span::styled(detail, DIM));
        Line::from(spans)
    });
    lines.collect()
}

fn tab_line(view: &View) -> Line<'static> {
    let seen = view.seen.as_deref();
    let counts = |of: fn(&Seen) -> usize| seen.map_or(0, of);
    let mut spans = Vec::new();
    for (tab, text) in [
        (Tab::Disks, format!(" 1 disks {} ", counts(|seen| seen.disks.len()))),
        (Tab::Agents, format!(" 2 agents {} ", counts(|seen| seen.agents.len()))),
        (Tab::Findings, format!(" 3 findings {} ", counts(|seen| seen.status.findings.len()))),
    ] {
        let style = if tab == view.tab { BOLD.add_modifier(Modifier::REVERSED) } else { DIM };
        spans.extend([Span::styled(text, style), Span::raw(" ")]);
    }
    if view.searching || !view.search.is_empty() {
        let cursor = if view.searching { "▏" } else { "" };
        spans.push(Span::raw(format!(" search: {}{cursor}", clean(&view.search))));
    }
    let first = view.offset + 1;
    if view.rows() > view.page_rows {
        spans.push(Span::styled(format!(" from {first} of {}", view.rows()), DIM));
    }
    Line::from(spans)
}

/// A table's head; the columns of numbers stand to the right, as these do.
fn header(cells: Vec<String>, numbers: &[usize]) -> Row<'static> {
    let cells = cells.into_iter().enumerate().map(|(at, text)| {
        let line = Line::from(text);
        Cell::from(if numbers.contains(&at) { line.right_aligned() } else { line })
    });
    Row::new(cells).style(BOLD)
}

/// The colour of how far behind something is.
fn lateness(seconds: Option<f64>) -> Style {
    match seconds {
        Some(seconds) if seconds > 900.0 => Style::new().fg(Color::Red),
        Some(seconds) if seconds > 60.0 => Style::new().fg(Color::Yellow),
        _ => Style::new(),
    }
}

fn disk_table(frame: &mut Frame<'_>, view: &View, area: Rect) {
    let mark = |order, text: &str| {
        let arrow = if view.reversed { "▲" } else { "▼" };
        if view.order == order { format!("{text} {arrow}") } else { text.to_owned() }
    };
    let right = |text: String| Cell::from(Line::from(text).right_aligned());
    let rows = view.disks().into_iter().skip(view.offset).take(view.page_rows).map(|disk| {
        let color = match disk.condition.as_str() {
            "protected" => Color::Green,
            "copying" => Color::Cyan,
            "overflowed" | "waiting" => Color::Yellow,
            "fenced" => Color::Red,
            _ => Color::Reset,
        };
        let seqs = disk
            .epoch
            .map_or(String::new(), |epoch| format!("e{epoch}: {} of {}", disk.vaulted_seq, disk.journaled_seq));
        Row::new(vec![
            Cell::from(clean(&disk.disk)),
            Cell::from(clean(&disk.condition)).style(Style::new().fg(color)),
            right(disk.rpo_seconds.map_or("?".into(), time)).style(lateness(disk.rpo_seconds)),
            right(show_size(disk.dirty_bytes)),
            right(show_size(disk.unvaulted_bytes)),
            Cell::from(disk.agent.as_deref().map_or("-".into(), clean)),
            Cell::from(seqs),
        ])
    });
    let head = vec![
        mark(Order::Name, "DISK"),
        "STATE".into(),
        mark(Order::Behind, "BEHIND"),
        mark(Order::Backlog, "TO COPY"),
        "TO VAULT".into(),
        "AGENT".into(),
        "VAULTED".into(),
    ];
    // Columns that have no room are left out from the right.
    let widths = [24, 11, 10, 11, 11, 20, 24];
    let shown = fitting(&widths, area.width);
    let table = Table::new(rows, columns(&widths[..shown]));
    frame.render_widget(table.header(header(head, &[2, 3, 4])).column_spacing(1), area);
    if view.rows() == 0 && area.height > 1 {
        let text = if view.search.is_empty() { "no disk has passed here yet" } else { "no disk matches" };
        frame.render_widget(Paragraph::new(Line::styled(text, DIM)), Rect { y: area.y + 1, height: 1, ..area });
    }
}

/// How many columns of these widths there is room for; the first three always count.
fn fitting(widths: &[u16], width: u16) -> usize {
    let ends = widths.iter().scan(0_u16, |end, column| {
        *end += column + 1;
        Some(*end - 1)
    });
    ends.filter(|end| *end <= width).count().max(3)
}

/// Columns of these widths; the first one, of names, has what is left.
fn columns(widths: &[u16]) -> impl Iterator<Item = Constraint> {
    let as_constraint =
        |(at, width): (usize, &u16)| if at == 0 { Constraint::Min(*width) } else { Constraint::Length(*width) };
    widths.iter().enumerate().map(as_constraint)
}

fn agent_table(frame: &mut Frame<'_>, view: &View, area: Rect) {
    let right = |text: String| Cell::from(Line::from(text).right_aligned());
    let rows = view.agents().into_iter().skip(view.offset).take(view.page_rows).map(|agent| {
        Row::new(vec![
            Cell::from(clean(&agent.agent)),
            right(agent.disks.len().to_string()),
            right(time(agent.rpo_seconds)).style(lateness(Some(agent.rpo_seconds))),
            Cell::from(clean(&agent.transport)),
            right(time(agent.connected_seconds)),
            Cell::from(clean(&agent.address)),
        ])
    });
    let head = ["AGENT", "DISKS", "BEHIND", "TRANSPORT", "HERE FOR", "ADDRESS"].map(str::to_owned).to_vec();
    let widths = [28, 7, 10, 10, 10, 46];
    let shown = fitting(&widths, area.width);
    let table = Table::new(rows, columns(&widths[..shown]));
    frame.render_widget(table.header(header(head, &[1, 2, 4])).column_spacing(1), area);
    if view.rows() == 0 && area.height > 1 {
        let text = if view.search.is_empty() { "no agent is connected" } else { "no agent matches" };
        frame.render_widget(Paragraph::new(Line::styled(text, DIM)), Rect { y: area.y + 1, height: 1, ..area });
    }
}

fn finding_list(frame: &mut Frame<'_>, view: &View, area: Rect) {
    let mut lines = Vec::new();
    for finding in view.seen.iter().flat_map(|seen| &seen.status.findings).skip(view.offset) {
        let style = Style::new().fg(tone(finding.severity)).add_modifier(Modifier::BOLD);
        let word = Span::styled(format!("{:<10}", name(finding.severity)), style);
        lines.push(Line::from(vec![word, Span::raw(clean(&finding.text))]));
        if !finding.next.is_empty() {
            lines.push(Line::from(format!("{:10}{}", "", clean(&finding.next))));
        }
        if !finding.runbook.is_empty() {
            lines.push(Line::styled(format!("{:10}docs/RUNBOOK.md, {}", "", clean(&finding.runbook)), DIM));
        }
        lines.push(Line::default());
    }
    frame.render_widget(Paragraph::new(lines).wrap(Wrap { trim: false }), area);
}

fn foot_line(view: &View) -> Line<'static> {
    let text = if view.searching {
        "type a part of a disk's or agent's name   Enter keep   Esc clear"
    } else {
        "q quit   ? help   Tab next table   b behind  l backlog  n name  r reverse   / search   ↑↓ PgUp PgDn scroll"
    };
    Line::styled(text, DIM)
}

const HELP: [(&str, &str); 10] = [
    ("q  Esc  Ctrl-C", "leave"),
    ("1 2 3  Tab", "disks, agents, findings"),
    ("b", "disks by how far they are behind; again turns it round"),
    ("l", "disks by backlog: bytes to copy and to vault"),
    ("n", "disks by name"),
    ("r", "turn the order round"),
    ("/", "only names with this text; Esc clears it"),
    ("↑ ↓  j k  PgUp PgDn", "scroll; Home and End, g and G"),
    ("behind", "age of the oldest write that no recovery point in the vault has"),
    ("any key", "closes this help"),
];

fn help(frame: &mut Frame<'_>, area: Rect) {
    let (width, height) = (area.width.min(88), area.height.min(HELP.len() as u16 + 2));
    let place = Rect { x: area.x + (area.width - width) / 2, y: area.y + (area.height - height) / 2, width, height };
    let lines: Vec<Line<'_>> = (HELP.iter())
        .map(|(key, text)| Line::from(vec![Span::styled(format!(" {key:<21}"), BOLD), Span::raw(*text)]))
        .collect();
    frame.render_widget(Clear, place);
    frame.render_widget(Paragraph::new(lines).block(Block::bordered().title(" keys ")), place);
}

#[cfg(test)]
mod tests;
