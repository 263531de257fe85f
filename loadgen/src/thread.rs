//! A thread with a runtime of its own, so that a proxy also serves tests that have none.

use std::future::Future;
use std::io;
use std::thread::JoinHandle;

use tokio::sync::oneshot;

/// Ends its thread when dropped.
#[derive(Debug)]
pub struct Worker {
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Worker {
    /// Makes something on a new thread's runtime and runs what it gives until the end.
    ///
    /// # Errors
    /// What the system or `make` refuses.
    pub fn start<T, F>(name: &str, make: impl FnOnce() -> io::Result<(T, F)> + Send + 'static) -> io::Result<(Self, T)>
    where
        T: Send + 'static,
        F: Future<Output = ()>,
    {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (stop, stopped) = oneshot::channel::<()>();
        let (made, is_made) = std::sync::mpsc::sync_channel(1);
        let thread = std::thread::Builder::new().name(name.to_owned()).spawn(move || {
            runtime.block_on(async {
                match make() {
                    Ok((value, work)) => {
                        // The receiver waits right below.
                        let _ = made.send(Ok(value));
                        tokio::select! {
                            biased;
                            _ = stopped => {}
                            () = work => {}
                        }
                    }
                    Err(error) => drop(made.send(Err(error))),
                }
            });
        })?;
        let value = is_made.recv().map_err(|_| io::Error::other("the proxy's thread has panicked"))??;
        Ok((Self { stop: Some(stop), thread: Some(thread) }, value))
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // A panic shows in its own message.
            let _ = thread.join();
        }
    }
}
