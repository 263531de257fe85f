//! A value that one side sets and others watch: the newest counts, values in between may go unseen.
//!
//! As tokio's channel of the same name, but those who wait wake in the order in which they began to wait. Tokio's picks
//! one of several lists by chance, and then a seed could not give the same run again.

use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::{MappedRwLockReadGuard, RwLock, RwLockReadGuard, RwLockWriteGuard};
use tokio::sync::Notify;

/// Nobody can set a value any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("nobody sets this value any more")]
pub struct Closed;

#[derive(Debug)]
struct State<T> {
    value: T,
    version: u64,
    closed: bool,
}

#[derive(Debug)]
struct Shared<T> {
    state: RwLock<State<T>>,
    /// The value changed, or nobody sets it any more.
    news: Notify,
    senders: AtomicUsize,
    receivers: AtomicUsize,
    /// Nobody watches any more.
    unwatched: Notify,
}

/// The side that sets the value.
#[derive(Debug)]
pub struct Sender<T>(Arc<Shared<T>>);

/// The side that watches. A clone has seen what the original has seen.
#[derive(Debug)]
pub struct Receiver<T> {
    shared: Arc<Shared<T>>,
    seen: u64,
}

/// The value; it cannot be set as long as this lives.
#[derive(Debug)]
pub struct Ref<'a, T>(MappedRwLockReadGuard<'a, T>);

impl<'a, T> Ref<'a, T> {
    fn of(state: RwLockReadGuard<'a, State<T>>) -> Self {
        Self(RwLockReadGuard::map(state, |state| &state.value))
    }
}

impl<T> Deref for Ref<'_, T> {
    type Target = T;
    fn deref(&self) -> &T {
        &self.0
    }
}

/// A value and who watches it.
#[must_use]
pub fn channel<T>(value: T) -> (Sender<T>, Receiver<T>) {
    let sender = Sender::new(value);
    let receiver = sender.subscribe();
    (sender, receiver)
}

impl<T> Sender<T> {
    /// A value that nobody watches yet.
    #[must_use]
    pub fn new(value: T) -> Self {
        Self(Arc::new(Shared {
            state: RwLock::new(State { value, version: 0, closed: false }),
            news: Notify::new(),
            senders: AtomicUsize::new(1),
            receivers: AtomicUsize::new(0),
            unwatched: Notify::new(),
        }))
    }

    /// Another watcher, who has seen the present value.
    #[must_use]
    pub fn subscribe(&self) -> Receiver<T> {
        self.0.receivers.fetch_add(1, Ordering::AcqRel);
        Receiver { seen: self.0.state.read().version, shared: Arc::clone(&self.0) }
    }

    /// Sets the value, and returns the one before.
    pub fn send_replace(&self, value: T) -> T {
        let mut state = self.0.state.write();
        let before = std::mem::replace(&mut state.value, value);
        self.announce(state);
        before
    }

    /// Changes the value in its place.
    pub fn send_modify(&self, change: impl FnOnce(&mut T)) {
        let mut state = self.0.state.write();
        change(&mut state.value);
        self.announce(state);
    }

    /// Changes the value in its place; watchers learn of it only if `change` says so.
    pub fn send_if_modified(&self, change: impl FnOnce(&mut T) -> bool) -> bool {
        let mut state = self.0.state.write();
        let changed = change(&mut state.value);
        if changed {
            self.announce(state);
        }
        changed
    }

    fn announce(&self, mut state: RwLockWriteGuard<'_, State<T>>) {
        state.version += 1;
        drop(state);
        self.0.news.notify_waiters();
    }

    /// The value.
    #[must_use]
    pub fn borrow(&self) -> Ref<'_, T> {
        Ref::of(self.0.state.read())
    }

    /// Whether nobody watches.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.0.receivers.load(Ordering::Acquire) == 0
    }

    /// Waits until nobody watches.
    pub async fn closed(&self) {
        loop {
            let unwatched = self.0.unwatched.notified();
            tokio::pin!(unwatched);
            // Registered before the look, or the last one could leave in between.
            unwatched.as_mut().enable();
            if self.is_closed() {
                return;
            }
            unwatched.await;
        }
    }
}

impl<T> Clone for Sender<T> {
    fn clone(&self) -> Self {
        self.0.senders.fetch_add(1, Ordering::AcqRel);
        Self(Arc::clone(&self.0))
    }
}

impl<T> Drop for Sender<T> {
    fn drop(&mut self) {
        if self.0.senders.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.0.state.write().closed = true;
            self.0.news.notify_waiters();
        }
    }
}

impl<T> Receiver<T> {
    /// The value.
    #[must_use]
    pub fn borrow(&self) -> Ref<'_, T> {
        Ref::of(self.shared.state.read())
    }

    /// The value, which counts as seen.
    pub fn borrow_and_update(&mut self) -> Ref<'_, T> {
        let state = self.shared.state.read();
        self.seen = state.version;
        Ref::of(state)
    }

    /// Whether there is a value that was not seen.
    #[must_use]
    pub fn has_changed(&self) -> bool {
        self.shared.state.read().version != self.seen
    }

    /// Waits until there is a value that was not seen; it counts as seen then.
    ///
    /// # Errors
    /// [`Closed`] if there is none and never will be.
    pub async fn changed(&mut self) -> Result<(), Closed> {
        loop {
            let news = self.shared.news.notified();
            tokio::pin!(news);
            // Registered before the look, or a change in between would be missed.
            news.as_mut().enable();
            {
                let state = self.shared.state.read();
                if state.version != self.seen {
                    self.seen = state.version;
                    return Ok(());
                }
                if state.closed {
                    return Err(Closed);
                }
            }
            news.await;
        }
    }

    /// Waits until the value is as `wanted` has it, which may be now; it counts as seen then.
    ///
    /// # Errors
    /// [`Closed`] if it is not and nobody can change that any more.
    pub async fn wait_for(&mut self, mut wanted: impl FnMut(&T) -> bool) -> Result<Ref<'_, T>, Closed> {
        loop {
            let news = self.shared.news.notified();
            tokio::pin!(news);
            news.as_mut().enable();
            {
                let state = self.shared.state.read();
                self.seen = state.version;
                if wanted(&state.value) {
                    return Ok(Ref::of(state));
                }
                if state.closed {
                    return Err(Closed);
                }
            }
            news.await;
        }
    }
}

impl<T> Clone for Receiver<T> {
    fn clone(&self) -> Self {
        self.shared.receivers.fetch_add(1, Ordering::AcqRel);
        Self { shared: Arc::clone(&self.shared), seen: self.seen }
    }
}

impl<T> Drop for Receiver<T> {
    fn drop(&mut self) {
        if self.shared.receivers.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.shared.unwatched.notify_waiters();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use parking_lot::Mutex;

    use super::*;

    #[tokio::test]
    async fn watchers_wake_in_the_order_in_which_they_began_to_wait() {
        let (sender, receiver) = channel(0);
        let woken = Arc::new(Mutex::new(Vec::new()));
        let mut tasks = tokio::task::JoinSet::new();
        for number in 0..20 {
            let (mut receiver, woken) = (receiver.clone(), Arc::clone(&woken));
            tasks.spawn(async move {
                receiver.changed().await.expect("a value");
                woken.lock().push(number);
            });
        }
        tokio::task::yield_now().await;
        sender.send_replace(1);
        while tasks.join_next().await.is_some() {}
        assert_eq!(*woken.lock(), (0..20).collect::<Vec<_>>());
    }

    #[tokio::test]
    async fn a_value_is_news_once_and_the_last_one_is_seen_after_the_end() {
        let (sender, mut receiver) = channel(0);
        sender.send_modify(|value| *value += 1);
        sender.send_replace(5);
        receiver.changed().await.expect("news");
        assert_eq!(*receiver.borrow(), 5);
        assert!(!sender.send_if_modified(|_| false));
        tokio::time::timeout(Duration::from_millis(20), receiver.changed()).await.expect_err("no news");
        sender.send_replace(6);
        drop(sender);
        assert_eq!(receiver.changed().await, Ok(()));
        assert_eq!(*receiver.borrow_and_update(), 6);
        assert_eq!(receiver.changed().await, Err(Closed));
        assert_eq!(receiver.wait_for(|value| *value == 6).await.as_deref(), Ok(&6));
        assert_eq!(receiver.wait_for(|value| *value == 7).await.as_deref(), Err(&Closed));
    }

    #[tokio::test]
    async fn senders_learn_that_nobody_watches_and_the_last_sender_ends_it() {
        let (sender, mut receiver) = channel(());
        let other = sender.clone();
        drop(sender);
        tokio::time::timeout(Duration::from_millis(20), receiver.changed()).await.expect_err("one sender is left");
        let waiting = tokio::spawn(async move {
            other.closed().await;
            other.is_closed()
        });
        tokio::task::yield_now().await;
        drop(receiver);
        assert!(waiting.await.expect("ended"));
    }
}
