//! Who watches the API tells those who wait for an object that it was seen to change: they need not ask again and again.
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use kube::Resource;
use tokio::sync::broadcast::error::{RecvError, TryRecvError};
use tokio::sync::broadcast::{Receiver, Sender, WeakSender, channel};

use crate::clock::Limit;

/// Changes that one may be behind; whoever is further behind looks, whatever it was.
const BACKLOG: usize = 256;

/// Whom a change is about.
#[derive(Clone, Debug, PartialEq, Eq)]
struct About {
    /// Empty for an object without.
    namespace: String,
    name: String,
}

/// What is told of the objects of a cluster, by kind. It says that there is something to look at and never what: who waits
/// asks the API server, which alone knows.
#[derive(Clone, Default)]
pub struct News {
    kinds: Arc<Mutex<BTreeMap<String, WeakSender<About>>>>,
}

impl News {
    /// For one who watches the objects of `K`; others count on being told as long as this lives.
    pub(super) fn teller<K: Resource<DynamicType = ()>>(&self) -> Teller {
        let (sender, _) = channel(BACKLOG);
        if let Ok(mut kinds) = self.kinds.lock() {
            kinds.insert(K::kind(&()).into_owned(), sender.downgrade());
        }
        Teller(sender)
    }

    /// Of the objects of `K`, that called `name` in `namespace`, or every one.
    pub(super) fn of<K: Resource<DynamicType = ()>>(&self, namespace: &str, name: Option<&str>) -> Listener {
        let kinds = self.kinds.lock().ok();
        let sender = kinds.and_then(|kinds| kinds.get(&*K::kind(&())).and_then(WeakSender::upgrade));
        Listener {
            receiver: sender.map(|sender| sender.subscribe()),
            about: name.map(|name| About {
                namespace: namespace.to_owned(),
                name: name.to_owned(),
            }),
        }
    }
}

/// Tells of changes of one kind.
pub(super) struct Teller(Sender<About>);

impl Teller {
    pub(super) fn tell<K: Resource<DynamicType = ()>>(&self, object: &K) {
        let meta = object.meta();
        // That nobody waits is no error.
        let _ = self.0.send(About {
            namespace: meta.namespace.clone().unwrap_or_default(),
            name: meta.name.clone().unwrap_or_default(),
        });
    }
}

/// Hears of changes, from when it was made on.
pub(super) struct Listener {
    /// None where nobody watches: then only time makes one look again.
    receiver: Option<Receiver<About>>,
    about: Option<About>,
}

impl Listener {
    /// Hears nothing.
    pub(super) fn deaf() -> Self {
        Self {
            receiver: None,
            about: None,
        }
    }

    /// How long to wait for news before the next look all the same: a watch can break off without a word.
    pub(super) fn patience(&self) -> Duration {
        match self.receiver {
            Some(_) => Limit::LOOK * 10,
            None => Limit::LOOK,
        }
    }

    /// Holds once something has changed since the last call.
    pub(super) async fn changed(&mut self) {
        while let Some(receiver) = &mut self.receiver {
            match receiver.recv().await {
                Ok(about) if self.about.as_ref().is_none_or(|wanted| *wanted == about) => break,
                Ok(_) => {}
                Err(RecvError::Lagged(_)) => break,
                Err(RecvError::Closed) => self.receiver = None,
            }
        }
        match &mut self.receiver {
            // What came meanwhile is seen by the same look.
            Some(receiver) => while matches!(receiver.try_recv(), Ok(_) | Err(TryRecvError::Lagged(_))) {},
            None => std::future::pending().await,
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;
    use k8s_openapi::api::core::v1::{Node, Pod};

    use super::*;

    fn pod(namespace: &str, name: &str) -> Pod {
        let json = serde_json::json!({"metadata": {"namespace": namespace, "name": name}});
        serde_json::from_value(json).unwrap()
    }

    #[test]
    fn a_listener_hears_of_its_own_object_once() {
        let news = News::default();
        let teller = news.teller::<Pod>();
        let mut one = news.of::<Pod>("a", Some("x"));
        let mut all = news.of::<Pod>("", None);
        assert_eq!(one.changed().now_or_never(), None);
        teller.tell(&pod("b", "x"));
        teller.tell(&pod("a", "y"));
        assert_eq!(one.changed().now_or_never(), None);
        assert_eq!(all.changed().now_or_never(), Some(()));
        assert_eq!(all.changed().now_or_never(), None, "two changes, one look");
        teller.tell(&pod("a", "x"));
        teller.tell(&pod("a", "x"));
        assert_eq!(one.changed().now_or_never(), Some(()));
        assert_eq!(one.changed().now_or_never(), None);
    }

    #[test]
    fn one_who_is_far_behind_looks() {
        let news = News::default();
        let teller = news.teller::<Pod>();
        let mut one = news.of::<Pod>("a", Some("x"));
        for _ in 0..=BACKLOG {
            teller.tell(&pod("a", "y"));
        }
        assert_eq!(one.changed().now_or_never(), Some(()));
    }

    #[test]
    fn nobody_counts_on_a_watch_that_is_not_there_or_ended() {
        let news = News::default();
        let teller = news.teller::<Pod>();
        assert_eq!(news.of::<Node>("", None).patience(), Limit::LOOK);
        let mut listener = news.of::<Pod>("a", None);
        assert!(listener.patience() > Limit::LOOK);
        drop(teller);
        assert_eq!(listener.changed().now_or_never(), None);
        assert_eq!(listener.patience(), Limit::LOOK);
        assert_eq!(news.of::<Pod>("a", None).patience(), Limit::LOOK);
    }
}
