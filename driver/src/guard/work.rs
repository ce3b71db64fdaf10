//! Runs the work of a call where its caller cannot cancel it, and logs how it ended.
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use crate::error::Error;

static CALLS: AtomicU64 = AtomicU64::new(1);

/// A number for the next call; logs tell calls apart by it.
pub(super) fn number() -> u64 {
    CALLS.fetch_add(1, Ordering::Relaxed)
}

/// Runs `work` to its end on a thread that may block: tonic drops a handler when its client hangs up, and work that is half
/// done must not stop there. Everything it logs carries the call's number, method, volume and node.
///
/// # Errors
/// The work's own; UNAVAILABLE if it panicked, so that it is asked for again.
pub(super) async fn run<T, F>(
    call: u64,
    rpc: &'static str,
    volume: String,
    node: Arc<str>,
    work: F,
) -> Result<T, Error>
where
    T: Send + 'static,
    F: FnOnce() -> Result<T, Error> + Send + 'static,
{
    let since = Instant::now();
    let span = tracing::info_span!("call", call, rpc, volume, node = &*node);
    let done = tokio::task::spawn_blocking(move || {
        let _entered = span.entered();
        tracing::debug!("begins");
        let result = work();
        let micros = u64::try_from(since.elapsed().as_micros()).unwrap_or(u64::MAX);
        match &result {
            Ok(_) => tracing::info!(code = "Ok", micros, "done"),
            Err(error) => {
                let code = format!("{:?}", error.code());
                tracing::warn!(code, micros, error = error.message(), "failed");
            }
        }
        result
    });
    done.await.unwrap_or(Err(Error::Broken { rpc }))
}
