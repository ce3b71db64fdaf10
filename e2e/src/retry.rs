//! The only user of the backoff crate, which is no longer maintained: what fails for a moment is tried again, in bounds.
use std::future::Future;
use std::time::Duration;

use backoff::ExponentialBackoffBuilder;
use backoff::backoff::Backoff;

/// Tries until it succeeds, `again` says no, or `limit` is over; the last error is the one that is told.
///
/// # Errors
/// The last one.
pub async fn retry<T, E, F>(
    limit: Duration,
    again: impl Fn(&E) -> bool,
    mut work: impl FnMut() -> F,
) -> Result<T, E>
where
    F: Future<Output = Result<T, E>>,
{
    let mut pauses = ExponentialBackoffBuilder::new()
        .with_initial_interval(Duration::from_millis(100))
        .with_max_interval(Duration::from_secs(5))
        .with_max_elapsed_time(Some(limit))
        .build();
    loop {
        let error = match work().await {
            Ok(value) => return Ok(value),
            Err(error) => error,
        };
        let Some(pause) = pauses.next_backoff().filter(|_| again(&error)) else {
            return Err(error);
        };
        // A pause between tries, not a wait for a state: that is what wait.rs is for.
        let _ = tokio::time::timeout(pause, std::future::pending::<()>()).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn it_ends_with_the_first_success() {
        let mut left = 3;
        let got = retry(
            Duration::from_secs(5),
            |_: &()| true,
            || {
                left -= 1;
                std::future::ready(if left == 0 { Ok(7) } else { Err(()) })
            },
        );
        assert_eq!(got.await, Ok(7));
    }

    #[tokio::test]
    async fn what_is_hopeless_is_tried_once() {
        let mut tries = 0;
        let got: Result<(), &str> = retry(
            Duration::from_secs(5),
            |_| false,
            || {
                tries += 1;
                std::future::ready(Err("no"))
            },
        )
        .await;
        assert_eq!((got, tries), (Err("no"), 1));
    }
}
