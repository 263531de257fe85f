//! A piece of the gateway that has a thread of its own, with a small runtime. Inside a simulation it is one task among
//! others of the only thread.

use std::future::Future;
use std::io;
use std::thread::JoinHandle;

use super::blocking::{blocking, simulated};

/// What runs beside its owner until it ends by itself.
#[derive(Debug)]
pub struct Strand(Kind);

#[derive(Debug)]
enum Kind {
    Thread(JoinHandle<()>),
    Local(tokio::task::JoinHandle<()>),
}

/// It panicked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Panicked;

impl Strand {
    /// A thread that was started already.
    pub const fn thread(thread: JoinHandle<()>) -> Self {
        Self(Kind::Thread(thread))
    }

    /// Starts `work`, which may block, on a thread `name`; inside a simulation it becomes a task of the surrounding
    /// `LocalSet`.
    ///
    /// # Errors
    /// If there is no thread or no runtime to be had.
    pub fn start<F>(name: &str, work: impl FnOnce() -> F + Send + 'static) -> io::Result<Self>
    where
        F: Future<Output = ()> + 'static,
    {
        if simulated() {
            return Ok(Self(Kind::Local(tokio::task::spawn_local(work()))));
        }
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build()?;
        let thread = std::thread::Builder::new().name(name.into()).spawn(move || runtime.block_on(work()))?;
        Ok(Self::thread(thread))
    }

    /// Waits for its end; blocks. A task of a simulation cannot be waited for like this: it ends later, or with its
    /// runtime.
    pub fn join(self) {
        if let Kind::Thread(thread) = self.0 {
            // Whoever must know of a panic has a guard inside.
            let _ = thread.join();
        }
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// [`Panicked`].
    pub async fn ended(self) -> Result<(), Panicked> {
        let ended = match self.0 {
            Kind::Thread(thread) => matches!(blocking(move || thread.join()).await, Ok(Ok(()))),
            Kind::Local(task) => task.await.is_ok(),
        };
        if ended { Ok(()) } else { Err(Panicked) }
    }
}
