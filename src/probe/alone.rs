//! Work that may block its thread, one piece at a time.
//!
//! Who stops waiting for it does not end it: nothing can. So the next to ask waits for the same piece first, and however often is
//! asked, no more than one thread stands still.

use tokio::task::JoinHandle;

/// The piece of work that is under way, if any.
#[derive(Debug)]
pub(super) struct Alone<T> {
    running: Option<JoinHandle<T>>,
}

impl<T> Default for Alone<T> {
    fn default() -> Alone<T> {
        Alone { running: None }
    }
}

impl<T: Send + 'static> Alone<T> {
    /// Does it on a thread for such work and waits; what is still under way is waited for instead. May be dropped.
    ///
    /// # Errors
    /// The work has panicked, or the sidecar is ending.
    pub(super) async fn run(&mut self, work: impl FnOnce() -> T + Send + 'static) -> Result<T, String> {
        let running = self.running.get_or_insert_with(|| tokio::task::spawn_blocking(work));
        let done = running.await;
        self.running = None;
        done.map_err(|e| format!("it could not be asked: {e}"))
    }
}
