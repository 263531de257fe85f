//! What a daemon tells the service manager that started it: that it is ready, that it still turns, that it stops, and in
//! one line what it is busy with (`systemctl status` shows it).
//!
//! The manager listens on the datagram socket that `NOTIFY_SOCKET` names. Without one, as in a terminal or a container,
//! nothing is sent.
//!
//! - *Ready* is said once, when the daemon serves; what depends on it starts after that.
//! - *Alive* is said a few times within the manager's limit, and only while the daemon finds itself alive, by the same
//!   rule as `/healthz`. A runtime that hangs says nothing either, as this task runs on it.
//! - *Stopping* is said once, with the time that the stop may take, because only the daemon's configuration knows it.
//! - *Reloading* is said while a configuration is read again, and *ready* after it.
//!
//! A manager that does not listen harms nobody: the first failure is logged and the daemon goes on.

use std::time::Duration;

use sd_notify::NotifyState;

use crate::flow::Drain;

/// How often the daemon's condition is looked at: what an operator who waits for `systemctl start` does not notice.
const LOOK: Duration = Duration::from_millis(200);
/// Signs of life within the manager's limit, so that two late ones are forgiven.
const ALIVE_PER_LIMIT: u32 = 3;
/// What a stop may take beyond the drain's grace: disks and connections that are closed after it.
pub const STOP_MARGIN: Duration = Duration::from_secs(30);

/// A daemon as its manager should see it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DaemonState {
    /// It serves.
    pub ready: bool,
    /// It was asked to stop.
    pub stopping: bool,
    /// Its loops turn.
    pub alive: bool,
    /// What it is busy with.
    pub words: String,
}

/// What was said already, and how long a stop may take.
#[derive(Debug)]
struct Book {
    said: DaemonState,
    stop_limit: Duration,
}

impl Book {
    fn new(stop_limit: Duration) -> Self {
        Self { said: DaemonState::default(), stop_limit }
    }

    /// What is to be said now. `due` asks for a sign of life.
    fn next<'a>(&mut self, now: &'a DaemonState, due: bool) -> Vec<NotifyState<'a>> {
        let mut messages = Vec::new();
        if now.ready && !self.said.ready && !now.stopping {
            messages.push(NotifyState::Ready);
            self.said.ready = true;
        }
        if now.stopping && !self.said.stopping {
            let micros = u32::try_from(self.stop_limit.as_micros()).unwrap_or(u32::MAX);
            messages.extend([NotifyState::Stopping, NotifyState::ExtendTimeoutUsec(micros)]);
            self.said.stopping = true;
        }
        if now.words != self.said.words {
            messages.push(NotifyState::Status(&now.words));
            self.said.words.clone_from(&now.words);
        }
        if due && now.alive {
            messages.push(NotifyState::Watchdog);
        }
        messages
    }
}

/// A configuration is being read again, and the manager knows it.
pub struct Reloading {
    told: bool,
}

impl Reloading {
    /// Says so, if the manager was told of a daemon that serves: another one is not ready after it either.
    #[must_use]
    pub fn begin(serving: bool) -> Self {
        let told = serving && std::env::var_os("NOTIFY_SOCKET").is_some();
        if told {
            // From version 253 on a manager that asked for it wants to know when it began.
            let since = NotifyState::monotonic_usec_now();
            say(&[NotifyState::Reloading].into_iter().chain(since).collect::<Vec<_>>());
        }
        Self { told }
    }

    /// It is over, and the daemon serves as before or with what is new.
    pub fn end(self) {
        if self.told {
            say(&[NotifyState::Ready]);
        }
    }
}

fn say(messages: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(messages) {
        tracing::warn!(%error, "the service manager at NOTIFY_SOCKET cannot be told of a reload");
    }
}

/// Tells the manager how the daemon is, for as long as the daemon's runtime lives. Returns at once if there is none.
/// `drain_grace` is how long the daemon may drain once `drain` has begun, which `state` is told of.
pub async fn tell(drain_grace: Duration, mut drain: Drain, state: impl Fn(bool) -> DaemonState + Send) {
    if std::env::var_os("NOTIFY_SOCKET").is_none() {
        return;
    }
    let alive_every = sd_notify::watchdog_enabled().map(|limit| limit / ALIVE_PER_LIMIT);
    let mut book = Book::new(drain_grace + STOP_MARGIN);
    let mut alive_at = tokio::time::Instant::now();
    let mut deaf = false;
    loop {
        let due = alive_every.is_some_and(|every| alive_at.elapsed() >= every);
        if due {
            alive_at = tokio::time::Instant::now();
        }
        let mut now = state(drain.started());
        // The manager takes each line for a message of its own.
        now.words = now.words.replace('\n', " ");
        let messages = book.next(&now, due);
        if !messages.is_empty() {
            match sd_notify::notify(&messages) {
                Ok(()) => deaf = false,
                Err(error) if !deaf => {
                    deaf = true;
                    tracing::warn!(%error, "the service manager at NOTIFY_SOCKET cannot be told how this daemon is");
                }
                Err(_) => {}
            }
        }
        let look = alive_every.map_or(LOOK, |every| every.min(LOOK));
        tokio::select! {
            biased;
            // At once, as a stop may be over before the next look.
            () = drain.wait(), if !now.stopping => {}
            () = tokio::time::sleep(look) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(book: &mut Book, now: &DaemonState, due: bool) -> Vec<String> {
        book.next(now, due).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn each_change_is_said_once_and_life_only_while_it_is_due_and_true() {
        let mut book = Book::new(Duration::from_secs(60));
        let mut now = DaemonState { alive: true, words: "replaying the journal".into(), ..DaemonState::default() };
        assert_eq!(shown(&mut book, &now, false), ["STATUS=replaying the journal"]);
        assert_eq!(shown(&mut book, &now, true), ["WATCHDOG=1"]);
        (now.ready, now.words) = (true, "ready for agents".into());
        assert_eq!(shown(&mut book, &now, false), ["READY=1", "STATUS=ready for agents"]);
        assert!(shown(&mut book, &now, false).is_empty());
        now.alive = false;
        assert!(shown(&mut book, &now, true).is_empty(), "a hung daemon must not say that it lives");
        (now.alive, now.stopping, now.words) = (true, true, "draining".into());
        let stop = ["STOPPING=1", "EXTEND_TIMEOUT_USEC=60000000", "STATUS=draining"];
        assert_eq!(shown(&mut book, &now, false), stop);
        assert!(shown(&mut book, &now, false).is_empty());
    }

    #[test]
    fn a_daemon_that_is_stopped_before_it_was_ready_never_says_ready() {
        let mut book = Book::new(Duration::from_secs(1));
        let now = DaemonState { ready: true, stopping: true, alive: true, words: String::new() };
        assert_eq!(shown(&mut book, &now, false), ["STOPPING=1", "EXTEND_TIMEOUT_USEC=1000000"]);
    }

    #[test]
    fn the_longest_drain_fits_into_what_the_manager_is_told() {
        let limit = Duration::from_secs(3600) + STOP_MARGIN;
        assert!(u32::try_from(limit.as_micros()).is_ok());
    }
}
