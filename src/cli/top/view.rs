//! What the operator looks at, and how keys change it. Pure.

use std::cmp::Reverse;
use std::collections::VecDeque;
use std::time::Duration;

use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};

use super::super::seen::{Seen, SeenAgent, SeenDisk};
use super::Answer;

/// Points of the small graphs: two minutes of looks.
pub const HISTORY_MAX: usize = 60;
/// Longest text that is searched for: longer than any name.
const SEARCH_CHARS_MAX: usize = 80;

/// Which table is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tab {
    /// Every disk.
    Disks,
    /// Every agent.
    Agents,
    /// Everything that is to be known, with what to do.
    Findings,
}

/// The order of the disks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// The one furthest behind first.
    Behind,
    /// The one with most to copy and to vault first.
    Backlog,
    /// By name.
    Name,
}

/// What a key asks of the caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Nothing.
    Stay,
    /// The end.
    Leave,
}

/// What is looked at.
#[derive(Debug)]
pub struct View {
    /// The admin port that is asked.
    pub admin: String,
    /// The newest good answer.
    pub seen: Option<Box<Seen>>,
    /// When it came.
    pub seen_at: Duration,
    /// Why there is no newer one; empty if there is.
    pub trouble: String,
    /// Bytes per second of late by stage: wire, journal, pipeline, vault.
    pub history: [VecDeque<u64>; 4],
    /// Which table.
    pub tab: Tab,
    /// The order of the disks.
    pub order: Order,
    /// The other way round.
    pub reversed: bool,
    /// Whether the help is shown.
    pub help: bool,
    /// Only disks and agents with this in their names.
    pub search: String,
    /// Whether keys go into the search.
    pub searching: bool,
    /// The first row that is shown.
    pub offset: usize,
    /// Rows that fit, as the last frame found.
    pub page_rows: usize,
}

impl View {
    /// Nothing is known yet.
    pub fn new(admin: String) -> Self {
        Self {
            admin,
            seen: None,
            seen_at: Duration::ZERO,
            trouble: String::new(),
            history: Default::default(),
            tab: Tab::Disks,
            order: Order::Behind,
            reversed: false,
            help: false,
            search: String::new(),
            searching: false,
            offset: 0,
            page_rows: 1,
        }
    }

    /// Takes an answer that came at `now`. Without one, the last good one stays, with its age.
    pub fn take(&mut self, answer: Answer, now: Duration) {
        match answer {
            Err(trouble) => self.trouble = trouble,
            Ok(seen) => {
                if let Some(stages) = &seen.status.stages {
                    let rates = [
                        stages.wire.bytes_per_second,
                        stages.journal.bytes_per_second,
                        stages.pipeline.bytes_per_second,
                        stages.vault.bytes_per_second,
                    ];
                    for (history, rate) in self.history.iter_mut().zip(rates) {
                        if history.len() == HISTORY_MAX {
                            history.pop_front();
                        }
                        history.push_back(rate as u64);
                    }
                }
                (self.seen, self.seen_at) = (Some(seen), now);
                self.trouble.clear();
            }
        }
    }

    /// A key was pressed.
    pub fn press(&mut self, key: KeyEvent) -> Step {
        if key.modifiers.contains(KeyModifiers::CONTROL) && matches!(key.code, KeyCode::Char('c')) {
            return Step::Leave;
        }
        if self.searching {
            self.type_search(key.code);
            return Step::Stay;
        }
        if self.help {
            self.help = false;
            return Step::Stay;
        }
        let last = self.rows().saturating_sub(1);
        match key.code {
            KeyCode::Char('q') => return Step::Leave,
            KeyCode::Esc if self.search.is_empty() => return Step::Leave,
            KeyCode::Esc => self.search.clear(),
            KeyCode::Char('?' | 'h') | KeyCode::F(1) => self.help = true,
            KeyCode::Char('/') => self.searching = true,
            KeyCode::Char('1') => self.show(Tab::Disks),
            KeyCode::Char('2') => self.show(Tab::Agents),
            KeyCode::Char('3') => self.show(Tab::Findings),
            KeyCode::Tab | KeyCode::Right => self.show(match self.tab {
                Tab::Disks => Tab::Agents,
                Tab::Agents => Tab::Findings,
                Tab::Findings => Tab::Disks,
            }),
            KeyCode::BackTab | KeyCode::Left => self.show(match self.tab {
                Tab::Disks => Tab::Findings,
                Tab::Agents => Tab::Disks,
                Tab::Findings => Tab::Agents,
            }),
            KeyCode::Char('b') => self.sort(Order::Behind),
            KeyCode::Char('l') => self.sort(Order::Backlog),
            KeyCode::Char('n') => self.sort(Order::Name),
            KeyCode::Char('r') => (self.reversed, self.offset) = (!self.reversed, 0),
            KeyCode::Down | KeyCode::Char('j') => self.offset = self.offset.saturating_add(1).min(last),
            KeyCode::Up | KeyCode::Char('k') => self.offset = self.offset.saturating_sub(1),
            KeyCode::PageDown | KeyCode::Char(' ') => self.offset = (self.offset + self.page_rows).min(last),
            KeyCode::PageUp => self.offset = self.offset.saturating_sub(self.page_rows),
            KeyCode::Home | KeyCode::Char('g') => self.offset = 0,
            KeyCode::End | KeyCode::Char('G') => self.offset = last,
            _ => {}
        }
        Step::Stay
    }

    fn type_search(&mut self, code: KeyCode) {
        match code {
            KeyCode::Enter => self.searching = false,
            KeyCode::Esc => {
                self.searching = false;
                self.search.clear();
            }
            KeyCode::Backspace => drop(self.search.pop()),
            KeyCode::Char(letter) if self.search.chars().count() < SEARCH_CHARS_MAX => self.search.push(letter),
            _ => {}
        }
        self.offset = 0;
    }

    const fn show(&mut self, tab: Tab) {
        (self.tab, self.offset) = (tab, 0);
    }

    /// The same order again turns it round.
    fn sort(&mut self, order: Order) {
        self.reversed = self.order == order && !self.reversed;
        (self.order, self.tab, self.offset) = (order, Tab::Disks, 0);
    }

    fn wanted(&self, names: [&str; 2]) -> bool {
        let search = self.search.to_lowercase();
        names.iter().any(|name| name.to_lowercase().contains(&search))
    }

    /// The disks as chosen.
    pub fn disks(&self) -> Vec<&SeenDisk> {
        let all = self.seen.iter().flat_map(|seen| &seen.disks);
        let mut disks: Vec<_> =
            all.filter(|disk| self.wanted([&disk.disk, disk.agent.as_deref().unwrap_or_default()])).collect();
        disks.sort_by(|a, b| a.disk.cmp(&b.disk));
        match self.order {
            Order::Name => {}
            // Of whom nobody tells comes last.
            Order::Behind => {
                disks.sort_by(|a, b| b.rpo_seconds.unwrap_or(-1.0).total_cmp(&a.rpo_seconds.unwrap_or(-1.0)));
            }
            Order::Backlog => disks.sort_by_key(|disk| Reverse(disk.backlog_bytes())),
        }
        if self.reversed {
            disks.reverse();
        }
        disks
    }

    /// The agents, the one with the disk furthest behind first.
    pub fn agents(&self) -> Vec<&SeenAgent> {
        let all = self.seen.iter().flat_map(|seen| &seen.agents);
        let mut agents: Vec<_> = all.filter(|agent| self.wanted([&agent.agent, &agent.address])).collect();
        agents.sort_by(|a, b| b.rpo_seconds.total_cmp(&a.rpo_seconds).then_with(|| a.agent.cmp(&b.agent)));
        agents
    }

    /// Rows of the table that is shown.
    pub fn rows(&self) -> usize {
        match self.tab {
            Tab::Disks => self.disks().len(),
            Tab::Agents => self.agents().len(),
            Tab::Findings => self.seen.as_ref().map_or(0, |seen| seen.status.findings.len()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn view() -> View {
        let disk = |name: &str, rpo_seconds, unvaulted_bytes| SeenDisk {
            disk: name.into(),
            rpo_seconds,
            unvaulted_bytes,
            ..SeenDisk::default()
        };
        let disks = vec![disk("a", Some(1.0), 50), disk("b", None, 0), disk("c", Some(9.0), 10)];
        let mut view = View::new("127.0.0.1:9444".into());
        view.take(Ok(Box::new(Seen { disks, ..Seen::default() })), Duration::ZERO);
        view
    }

    fn press(view: &mut View, keys: &str) {
        for letter in keys.chars() {
            assert_eq!(view.press(KeyCode::Char(letter).into()), Step::Stay, "{letter}");
        }
    }

    fn names(view: &View) -> String {
        view.disks().iter().map(|disk| disk.disk.as_str()).collect()
    }

    #[test]
    fn disks_are_sorted_by_what_matters_most_and_the_same_key_turns_them_round() {
        let mut view = view();
        assert_eq!(names(&view), "cab", "furthest behind first, untold last");
        press(&mut view, "l");
        assert_eq!(names(&view), "acb");
        press(&mut view, "n");
        assert_eq!(names(&view), "abc");
        press(&mut view, "n");
        assert_eq!(names(&view), "cba");
        press(&mut view, "b");
        assert_eq!(names(&view), "cab", "another order begins from its top");
    }

    #[test]
    fn a_search_takes_every_key_until_it_ends_and_escape_first_clears_it() {
        let mut view = view();
        press(&mut view, "/C");
        assert_eq!(names(&view), "c");
        press(&mut view, "q");
        assert_eq!(names(&view), "", "q is a letter here");
        view.press(KeyCode::Backspace.into());
        view.press(KeyCode::Enter.into());
        assert_eq!(names(&view), "c");
        assert_eq!(view.press(KeyCode::Esc.into()), Step::Stay);
        assert_eq!(names(&view), "cab");
        assert_eq!(view.press(KeyCode::Esc.into()), Step::Leave);
        press(&mut view, "/");
        for _ in 0..1000 {
            press(&mut view, "x");
        }
        assert_eq!(view.search.len(), SEARCH_CHARS_MAX);
    }

    #[test]
    fn one_cannot_scroll_beyond_the_last_row() {
        let mut view = view();
        press(&mut view, "jjjjjjj");
        assert_eq!(view.offset, 2);
        view.press(KeyCode::PageUp.into());
        view.press(KeyCode::PageUp.into());
        assert_eq!(view.offset, 0);
        press(&mut view, "G2");
        assert_eq!((view.offset, view.rows()), (0, 0));
        press(&mut view, "jG");
        assert_eq!(view.offset, 0);
    }

    #[test]
    fn a_gateway_that_falls_silent_leaves_what_was_seen_with_its_age() {
        let mut view = view();
        view.take(Err("refused".into()), Duration::from_secs(9));
        assert_eq!((view.trouble.as_str(), view.seen_at, view.rows()), ("refused", Duration::ZERO, 3));
        for second in 0..500 {
            let mut seen = Seen::default();
            seen.status.stages = Some(crate::gateway::stages::Stages::default());
            view.take(Ok(Box::new(seen)), Duration::from_secs(second));
        }
        assert!(view.trouble.is_empty() && view.history.iter().all(|history| history.len() == HISTORY_MAX));
    }

    #[test]
    fn the_interrupt_key_ends_it_whatever_is_shown() {
        for keys in ["", "?", "/abc"] {
            let mut view = view();
            press(&mut view, keys);
            let key = KeyEvent::new(KeyCode::Char('c'), KeyModifiers::CONTROL);
            assert_eq!(view.press(key), Step::Leave, "{keys}");
        }
    }
}
