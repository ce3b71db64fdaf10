//! The driver's only way to wait on a blocking thread: for a condition, with a bound.
use std::time::{Duration, Instant};

/// How long a detached device or an unmounted filesystem may take to let go.
pub const RELEASE_LIMIT: Duration = Duration::from_secs(10);

/// Asks `condition` again and again until it holds, gives an error, or `limit` has passed.
///
/// Returns whether it held.
///
/// # Errors
/// The condition's own.
pub fn until<E>(limit: Duration, mut condition: impl FnMut() -> Result<bool, E>) -> Result<bool, E> {
    let end = Instant::now() + limit;
    let mut step = Duration::from_millis(1);
    loop {
        if condition()? {
            return Ok(true);
        }
        let now = Instant::now();
        if now >= end {
            return Ok(false);
        }
        // Nobody unparks this thread: it is a pause that stays visible as one.
        std::thread::park_timeout(step.min(end - now));
        step = (step * 2).min(Duration::from_millis(50));
    }
}
