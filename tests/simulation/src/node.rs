//! A machine: a runtime of its own with a clock of its own, that runs for one window at a time and can be killed,
//! paused and started again at any moment.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use tidegate::flow::Clock;
use tidegate::types::Micros;
use tokio::runtime::Runtime;
use tokio::task::LocalSet;
use tokio::time::Instant;

use crate::trace::{self, Turn};
use crate::{LOOKAHEAD, NodeId};

/// Wall-clock time when the simulation begins, in microseconds since 1970: some day in 2027.
pub const EPOCH_MICROS: u64 = 1_800_000_000_000_000;

/// A machine.
pub struct Node {
    /// Its number.
    pub id: NodeId,
    /// Its name.
    pub name: &'static str,
    /// How far its wall clock is off, in microseconds.
    pub skew: Arc<AtomicI64>,
    life: Option<Life>,
    paused: bool,
}

/// From a start to a kill.
struct Life {
    // Before the runtime: its tasks end while the runtime is still there.
    local: LocalSet,
    runtime: Runtime,
    turn: Turn,
    /// How far it has run.
    at: u64,
}

/// The clocks of a machine. They stand while it is paused and jump when it goes on.
#[derive(Debug, Clone)]
pub struct NodeClock {
    base: Instant,
    born: u64,
    skew: Arc<AtomicI64>,
}

impl Clock for NodeClock {
    fn wall(&self) -> Micros {
        let since = self.born + self.monotonic().as_micros() as u64;
        Micros((EPOCH_MICROS + since).saturating_add_signed(self.skew.load(Ordering::Relaxed)))
    }

    fn monotonic(&self) -> Duration {
        Instant::now().saturating_duration_since(self.base)
    }
}

impl Node {
    /// A machine that is switched off.
    #[must_use]
    pub fn new(id: NodeId, name: &str) -> Self {
        // A run is short and has few nodes.
        let name: &'static str = Box::leak(name.to_owned().into_boxed_str());
        Self { id, name, skew: Arc::default(), life: None, paused: false }
    }

    /// Whether it is switched on.
    #[must_use]
    pub const fn is_up(&self) -> bool {
        self.life.is_some()
    }

    /// Whether it is switched on and paused.
    #[must_use]
    pub const fn is_paused(&self) -> bool {
        self.life.is_some() && self.paused
    }

    /// Switches it on; `start` gives what it does.
    ///
    /// # Errors
    /// If the system gives no runtime.
    pub fn boot<F: Future<Output = ()> + 'static>(
        &mut self,
        now: u64,
        start: impl FnOnce(NodeClock) -> F,
    ) -> std::io::Result<()> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build()?;
        let base = runtime.block_on(async { Instant::now() });
        let turn = Turn { name: self.name, base, born: now };
        let local = LocalSet::new();
        let clock = NodeClock { base, born: now, skew: Arc::clone(&self.skew) };
        let entered = runtime.enter();
        drop(local.spawn_local(start(clock)));
        drop(entered);
        self.life = Some(Life { local, runtime, turn, at: now });
        self.paused = false;
        Ok(())
    }

    /// Starts one more task on it.
    pub fn spawn(&self, work: impl Future<Output = ()> + 'static) {
        if let Some(life) = &self.life {
            let _entered = life.runtime.enter();
            drop(life.local.spawn_local(work));
        }
    }

    /// Runs the window that begins at `now`.
    pub fn run(&mut self, now: u64) {
        let Some(life) = self.life.as_mut().filter(|_| !self.paused) else { return };
        trace::turn(Some(life.turn));
        let until = life.turn.base + Duration::from_micros(now + LOOKAHEAD - life.turn.born);
        life.local.block_on(&life.runtime, async { tokio::time::sleep_until(until).await });
        life.at = now + LOOKAHEAD;
        trace::turn(None);
    }

    /// Stops it where it stands.
    pub const fn pause(&mut self) {
        self.paused = true;
    }

    /// Lets it go on: its clock jumps over the time that it missed, as after SIGSTOP and SIGCONT.
    pub fn go_on(&mut self, now: u64) {
        self.paused = false;
        let Some(life) = &mut self.life else { return };
        let missed = Duration::from_micros(now.saturating_sub(life.at));
        trace::turn(Some(life.turn));
        life.local.block_on(&life.runtime, async { tokio::time::advance(missed).await });
        life.at = now;
        trace::turn(None);
    }

    /// Ends everything on it at once. What it still tries while it goes must find dead disks and no network.
    pub fn kill(&mut self) {
        let Some(Life { local, runtime, turn, .. }) = self.life.take() else { return };
        trace::turn(Some(turn));
        let entered = runtime.enter();
        drop(local);
        drop(entered);
        runtime.shutdown_background();
        trace::turn(None);
        self.paused = false;
    }
}
