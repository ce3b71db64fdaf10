//! Runs the work of a call where its caller cannot cancel it, and logs how it ended.
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use tonic::Status;

use crate::error::Error;

static CALLS: AtomicU64 = AtomicU64::new(1);

/// Runs `work` to its end on a thread that may block: tonic drops a handler when its client hangs up, and work that is half
/// done must not stop there.
///
/// # Errors
/// The work's own, as a status; UNAVAILABLE if it panicked, so that it is asked for again.
pub async fn run<T, F>(rpc: &'static str, volume: String, work: F) -> Result<T, Status>
where
    T: Send + 'static,
    F: FnOnce() -> Result<T, Error> + Send + 'static,
{
    let call = CALLS.fetch_add(1, Ordering::Relaxed);
    let since = Instant::now();
    tracing::debug!(call, rpc, volume, "begins");
    let done = tokio::task::spawn_blocking(move || {
        let result = work();
        let micros = u64::try_from(since.elapsed().as_micros()).unwrap_or(u64::MAX);
        match &result {
            Ok(_) => tracing::info!(call, rpc, volume, code = "Ok", micros, "done"),
            Err(error) => {
                let code = format!("{:?}", error.code());
                tracing::warn!(call, rpc, volume, code, micros, error = error.message(), "failed");
            }
        }
        result
    });
    match done.await {
        Ok(result) => result.map_err(Status::from),
        Err(_) => Err(Error::Broken { rpc }.into()),
    }
}
