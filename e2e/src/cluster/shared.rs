//! One reading for all who ask for it while it is not begun.
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::Mutex;

/// A reading that many need at once. Whoever asks gets one that began after it asked, so it is never older than the question.
#[derive(Debug)]
pub struct Shared<T> {
    asked: AtomicU64,
    last: Mutex<Last<T>>,
}

#[derive(Debug)]
struct Last<T> {
    /// Everybody up to this number had asked before the reading began.
    covers: u64,
    value: Option<Arc<T>>,
}

impl<T> Default for Shared<T> {
    fn default() -> Self {
        Self {
            asked: AtomicU64::new(0),
            last: Mutex::new(Last {
                covers: 0,
                value: None,
            }),
        }
    }
}

impl<T> Shared<T> {
    /// A reading that begins after this call, made by `read` if nobody else makes one.
    ///
    /// # Errors
    /// Those of `read`; a reading that failed is not shared.
    pub async fn get<E>(&self, read: impl Future<Output = Result<T, E>>) -> Result<Arc<T>, E> {
        let number = self.asked.fetch_add(1, Ordering::SeqCst) + 1;
        let mut last = self.last.lock().await;
        if last.covers >= number
            && let Some(value) = &last.value
        {
            return Ok(Arc::clone(value));
        }
        let covers = self.asked.load(Ordering::SeqCst);
        let value = Arc::new(read.await?);
        last.covers = covers;
        last.value = Some(Arc::clone(&value));
        Ok(value)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU32;

    use tokio::sync::Notify;

    use super::*;

    #[tokio::test]
    async fn those_who_ask_while_one_reads_share_the_next_reading() {
        let (shared, readings, go) = (Shared::default(), AtomicU32::new(0), Notify::new());
        let read = || async {
            let number = readings.fetch_add(1, Ordering::SeqCst) + 1;
            go.notified().await;
            Ok::<_, std::convert::Infallible>(number)
        };
        let ask = || shared.get(read());
        let let_go = async {
            // The first reads already; the others have asked and wait for it.
            assert_eq!(readings.load(Ordering::SeqCst), 1);
            go.notify_one();
            tokio::task::yield_now().await;
            go.notify_one();
        };
        let (a, b, c, d, ()) = tokio::join!(ask(), ask(), ask(), ask(), let_go);
        let numbers: Vec<u32> = [a, b, c, d].into_iter().map(|r| *r.unwrap()).collect();
        assert_eq!(numbers, [1, 2, 2, 2]);
    }

    #[tokio::test]
    async fn a_later_question_is_not_answered_by_an_earlier_reading() {
        let shared = Shared::default();
        let read = |n: u32| async move { Ok::<_, std::convert::Infallible>(n) };
        assert_eq!(*shared.get(read(1)).await.unwrap(), 1);
        assert_eq!(*shared.get(read(2)).await.unwrap(), 2);
    }

    #[tokio::test]
    async fn a_reading_that_failed_is_made_again_by_the_next() {
        let shared: Shared<u32> = Shared::default();
        let first = shared.get(async { Err("no answer") });
        let second = shared.get(async { Ok::<_, &str>(2) });
        let (first, second) = tokio::join!(first, second);
        assert_eq!(first.unwrap_err(), "no answer");
        assert_eq!(*second.unwrap(), 2);
    }
}
