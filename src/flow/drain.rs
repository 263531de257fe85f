//! The signal to stop: stages stop in data order, each finishing what it took.

use std::sync::Arc;

use super::watch;

/// The side that asks for the drain.
#[derive(Debug, Clone)]
pub struct DrainTrigger(Arc<watch::Sender<bool>>);

/// The side that is asked. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Drain(watch::Receiver<bool>);

impl DrainTrigger {
    /// A trigger and its signal.
    #[must_use]
    pub fn new() -> (Self, Drain) {
        let (sender, receiver) = watch::channel(false);
        (Self(Arc::new(sender)), Drain(receiver))
    }

    /// One more signal of this trigger.
    #[must_use]
    pub fn drain(&self) -> Drain {
        Drain(self.0.subscribe())
    }

    /// Asks for the drain. Asking twice is harmless.
    pub fn start(&self) {
        self.0.send_replace(true);
    }
}

impl Drain {
    /// Whether the drain was asked for.
    #[must_use]
    pub fn started(&self) -> bool {
        *self.0.borrow()
    }

    /// Waits for the drain; also returns when the trigger is gone.
    pub async fn wait(&mut self) {
        // An error means that nobody can ask any more: the owner is gone, which is as good as asking.
        let _ = self.0.wait_for(|&started| started).await;
    }
}
