//! Work that blocks: on a thread of the runtime's own for such work, or inside a simulation, which has one thread and
//! no real time, in place.

use tokio::task::{JoinError, JoinSet};

/// Whether this thread runs a simulation.
pub fn simulated() -> bool {
    #[cfg(any(test, feature = "sim"))]
    return super::sim::active();
    #[cfg(not(any(test, feature = "sim")))]
    false
}

/// Runs `work` where blocking is no harm. Work that began goes on to its end, also if this future is dropped.
///
/// # Errors
/// [`JoinError`] if it panicked or the runtime stops.
pub async fn blocking<T, F>(work: F) -> Result<T, JoinError>
where
    F: FnOnce() -> T + Send + 'static,
    T: Send + 'static,
{
    if simulated() { Ok(work()) } else { tokio::task::spawn_blocking(work).await }
}

/// As [`blocking`], as a task of `tasks`: work that has not begun when they are dropped never does.
pub fn blocking_in<T, F>(tasks: &mut JoinSet<T>, work: F)
where
    F: FnOnce() -> T + Send + 'static,
    T: Send + 'static,
{
    if simulated() {
        tasks.spawn(async move { work() });
    } else {
        tasks.spawn_blocking(work);
    }
}
