//! The calls of one service that run: a twin joins the first and gets its answer, a rival on the same volume waits for its
//! turn, and no caller that goes away stops anything.
//!
//! What this keeps apart is one process's calls; other processes are kept apart by [`super::file_lock`].
use std::any::Any;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tonic::Status;

use super::work;
use crate::error::{Error, to_status};

/// How long a call waits for another one on the same volume before it answers ABORTED.
const LIMIT: Duration = Duration::from_secs(8);

type Answer<T> = Option<Result<T, Arc<Error>>>;

/// A call that was begun and is not answered yet.
#[derive(Debug)]
struct Flight {
    call: u64,
    rpc: &'static str,
    request: Box<dyn Any + Send + Sync>,
    /// A `watch::Receiver<Answer<T>>`.
    answer: Box<dyn Any + Send + Sync>,
}

/// What runs and waits on one volume; the first of the flights has the turn.
#[derive(Debug, Default)]
struct Slot {
    turn: Arc<tokio::sync::Mutex<()>>,
    flights: Vec<Flight>,
}

/// The calls of one service.
#[derive(Clone, Debug, Default)]
pub struct Guard {
    limit: Option<Duration>,
    /// Whose calls these are, for the log; empty for a controller's.
    node: Arc<str>,
    slots: Arc<Mutex<HashMap<String, Slot>>>,
}

impl Guard {
    /// For the calls of a node's plugin.
    pub fn of_node(node: &str) -> Self {
        Self {
            node: Arc::from(node),
            ..Self::default()
        }
    }

    /// Answers a call that changes something: joins its twin, or waits for its turn on `volume` and runs `work` in a task
    /// that outlives the caller.
    ///
    /// # Errors
    /// ABORTED if the turn does not come within the bound, UNAVAILABLE if the work panicked, else the work's own.
    pub async fn run<Q, T, F>(
        &self,
        rpc: &'static str,
        volume: &str,
        request: Q,
        work: F,
    ) -> Result<T, Status>
    where
        Q: Clone + PartialEq + Send + Sync + 'static,
        T: Clone + Send + Sync + 'static,
        F: FnOnce(Q) -> Result<T, Error> + Send + 'static,
    {
        let mut answer = self.begin(rpc, volume, request, work);
        match answer.wait_for(Option::is_some).await.as_deref() {
            Ok(Some(Ok(reply))) => Ok(reply.clone()),
            Ok(Some(Err(error))) => Err(to_status(error)),
            Ok(None) | Err(_) => Err(Error::Broken { rpc }.into()),
        }
    }

    /// Answers a call that only looks: it neither joins (what it sees must not be older than itself) nor waits.
    ///
    /// # Errors
    /// Those of [`work::run`].
    pub async fn look<T, F>(&self, rpc: &'static str, volume: &str, work: F) -> Result<T, Status>
    where
        T: Send + 'static,
        F: FnOnce() -> Result<T, Error> + Send + 'static,
    {
        work::run(
            work::number(),
            rpc,
            volume.to_owned(),
            Arc::clone(&self.node),
            work,
        )
        .await
        .map_err(Status::from)
    }

    fn begin<Q, T, F>(
        &self,
        rpc: &'static str,
        volume: &str,
        request: Q,
        work: F,
    ) -> watch::Receiver<Answer<T>>
    where
        Q: Clone + PartialEq + Send + Sync + 'static,
        T: Clone + Send + Sync + 'static,
        F: FnOnce(Q) -> Result<T, Error> + Send + 'static,
    {
        let call = work::number();
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        let slot = slots.entry(volume.to_owned()).or_default();
        for flight in slot.flights.iter().filter(|flight| flight.rpc == rpc) {
            let twin = flight.request.downcast_ref::<Q>() == Some(&request);
            if let Some(answer) = flight
                .answer
                .downcast_ref::<watch::Receiver<Answer<T>>>()
                .filter(|_| twin)
            {
                tracing::info!(call, rpc, volume, first = flight.call, "joins");
                return answer.clone();
            }
        }
        let (send, answer) = watch::channel(None);
        slot.flights.push(Flight {
            call,
            rpc,
            request: Box::new(request.clone()),
            answer: Box::new(answer.clone()),
        });
        let turn = Arc::clone(&slot.turn);
        drop(slots);
        let (guard, volume) = (self.clone(), volume.to_owned());
        tokio::spawn(async move {
            let limit = guard.limit.unwrap_or(LIMIT);
            let held = tokio::time::timeout(limit, turn.lock_owned()).await;
            let result = match &held {
                Ok(_) => {
                    let node = Arc::clone(&guard.node);
                    work::run(call, rpc, volume.clone(), node, move || work(request)).await
                }
                Err(_) => Err(guard.busy(&volume)),
            };
            // In this order: whoever asks from here on begins anew, and no other call has come in between.
            guard.end(&volume, call);
            send.send_replace(Some(result.map_err(Arc::new)));
            drop(held);
        });
        answer
    }

    fn busy(&self, volume: &str) -> Error {
        let slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        let first = slots.get(volume).and_then(|slot| slot.flights.first());
        Error::Busy {
            key: volume.to_owned(),
            holder: first.map_or("another call", |flight| flight.rpc).to_owned(),
        }
    }

    fn end(&self, volume: &str, call: u64) {
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(slot) = slots.get_mut(volume) {
            slot.flights.retain(|flight| flight.call != call);
            if slot.flights.is_empty() {
                slots.remove(volume);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::sync::mpsc;

    use tonic::Code;

    use super::*;

    fn guard() -> Guard {
        Guard {
            limit: Some(Duration::from_millis(50)),
            ..Guard::default()
        }
    }

    #[tokio::test]
    async fn a_twin_gets_the_first_ones_answer_and_a_rival_is_aborted() {
        let guard = guard();
        let runs = Arc::new(AtomicU32::new(0));
        let (release, released) = mpsc::channel::<()>();
        let counted = Arc::clone(&runs);
        let first = guard.begin("Make", "v1", 1, move |n| {
            counted.fetch_add(1, Ordering::SeqCst);
            released.recv().ok();
            Ok(n * 10)
        });
        let twin = guard.begin("Make", "v1", 1, |_| Ok(0));
        let rival = guard.run("Make", "v1", 2, Ok).await.unwrap_err();
        assert_eq!(rival.code(), Code::Aborted);
        assert!(rival.message().contains("Make is in progress on v1"), "{rival}");
        // Another volume waits for nobody.
        assert_eq!(guard.run("Make", "v2", 2, Ok).await.unwrap(), 2);
        release.send(()).unwrap();
        for mut answer in [first, twin] {
            let got = answer.wait_for(Option::is_some).await.unwrap();
            assert_eq!(*got.as_ref().unwrap().as_ref().unwrap(), 10);
        }
        assert_eq!(runs.load(Ordering::SeqCst), 1);
        assert!(guard.slots.lock().unwrap().is_empty(), "a call is remembered");
    }

    #[tokio::test]
    async fn a_caller_that_goes_away_stops_nothing() {
        let guard = guard();
        let (release, released) = mpsc::channel::<()>();
        let (done, seen) = mpsc::channel();
        let work = move |()| {
            released.recv().ok();
            done.send(()).ok();
            Ok(())
        };
        let call = guard.run("Make", "v1", (), work);
        assert!(
            tokio::time::timeout(Duration::from_millis(1), call)
                .await
                .is_err()
        );
        release.send(()).unwrap();
        let seen = tokio::task::spawn_blocking(move || seen.recv_timeout(Duration::from_secs(5)));
        seen.await.unwrap().expect("the work did not end");
    }

    #[tokio::test]
    async fn a_panic_is_unavailable_and_frees_the_volume() {
        let guard = guard();
        let broken: Result<(), Status> = guard.run("Make", "v1", 1, |_| panic!("on purpose")).await;
        assert_eq!(broken.unwrap_err().code(), Code::Unavailable);
        assert_eq!(guard.run("Make", "v1", 1, Ok).await.unwrap(), 1);
    }
}
