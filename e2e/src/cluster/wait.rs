//! The one way to wait: a condition, a bound, and the last state seen when it runs out.
use std::time::{Duration, Instant};

use kube::api::ListParams;
use kube::core::NamespaceResourceScope;
use kube::{Api, Resource};
use serde::de::DeserializeOwned;

use super::news::{Listener, News};
use crate::clock::Limit;

/// One look at something that is waited for.
#[derive(Debug)]
pub enum Look<T> {
    /// It holds.
    Holds(T),
    /// It does not hold yet; what is seen instead.
    NotYet(String),
    /// It never will; why.
    Never(String),
}

/// A wait that did not end well.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{what} {}; last seen at +{at:.1?}: {seen}", if *never { String::from("cannot come true") } else { format!("not in {limit:?}") })]
pub struct WaitError {
    /// What was waited for.
    pub what: String,
    /// The bound.
    pub limit: Duration,
    /// When it was last looked at, from the wait's start.
    pub at: Duration,
    /// What was seen then.
    pub seen: String,
    /// Whether it was given up before the bound.
    pub never: bool,
}

/// Looks until `look` says that it holds, at the most for `limit`.
///
/// # Errors
/// With the last state seen, when the bound has passed or the condition can no longer come true.
pub async fn until<T, F, Fut>(what: &str, limit: Duration, look: F) -> Result<T, WaitError>
where
    F: FnMut() -> Fut,
    Fut: Future<Output = Look<T>>,
{
    told(Listener::deaf(), what, limit, look).await
}

async fn told<T, F, Fut>(mut news: Listener, what: &str, limit: Duration, mut look: F) -> Result<T, WaitError>
where
    F: FnMut() -> Fut,
    Fut: Future<Output = Look<T>>,
{
    let since = Instant::now();
    let mut last = String::from("nothing");
    loop {
        let (at, never) = match tokio::time::timeout(Limit::REQUEST.min(limit), look()).await {
            Ok(Look::Holds(value)) => return Ok(value),
            Ok(Look::NotYet(seen)) => {
                last = seen;
                (since.elapsed(), false)
            }
            Ok(Look::Never(seen)) => {
                last = seen;
                (since.elapsed(), true)
            }
            Err(_) => (since.elapsed(), false),
        };
        if never || since.elapsed() >= limit {
            return Err(WaitError {
                what: what.to_owned(),
                limit,
                at,
                seen: last,
                never,
            });
        }
        let patience = news.patience().min(limit.saturating_sub(since.elapsed()));
        // Whether there is news or time has passed: the next look tells.
        let _ = tokio::time::timeout(patience, news.changed()).await;
    }
}

/// Waits until the object called `name` is as `condition` wants it; an API server that does not answer is waited for too.
///
/// # Errors
/// Those of [`until`].
pub async fn object<K, T>(
    news: &News,
    api: &Api<K>,
    what: &str,
    name: &str,
    limit: Duration,
    condition: impl Fn(&K) -> Look<T>,
) -> Result<T, WaitError>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + std::fmt::Debug,
{
    let news = news.of::<K>(api.namespace().unwrap_or_default(), Some(name));
    told(news, what, limit, || async {
        match api.get_opt(name).await {
            Ok(Some(object)) => condition(&object),
            Ok(None) => Look::NotYet(format!("there is no {name}")),
            Err(error) => Look::NotYet(format!("the API server: {error}")),
        }
    })
    .await
}

/// Waits until the objects that `api` lists are as `condition` wants them; an API server that does not answer is waited for too.
///
/// # Errors
/// Those of [`until`].
pub async fn objects<K, T>(
    news: &News,
    api: &Api<K>,
    what: &str,
    limit: Duration,
    condition: impl Fn(&[K]) -> Look<T>,
) -> Result<T, WaitError>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + std::fmt::Debug,
{
    told(news.of::<K>("", None), what, limit, || async {
        match api.list(&ListParams::default()).await {
            Ok(list) => condition(&list.items),
            Err(error) => Look::NotYet(format!("the API server: {error}")),
        }
    })
    .await
}

/// Waits until there is no object called `name`.
///
/// # Errors
/// Those of [`until`], with the finalizers that hold the object.
pub async fn gone<K>(
    news: &News,
    api: &Api<K>,
    what: &str,
    name: &str,
    limit: Duration,
) -> Result<(), WaitError>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + std::fmt::Debug,
{
    let news = news.of::<K>(api.namespace().unwrap_or_default(), Some(name));
    told(news, what, limit, || async {
        match api.get_opt(name).await {
            Ok(None) => Look::Holds(()),
            Ok(Some(object)) => Look::NotYet(format!(
                "{name} is there, deletion {}, finalizers {:?}",
                if object.meta().deletion_timestamp.is_some() {
                    "asked for"
                } else {
                    "not asked for"
                },
                object.meta().finalizers.as_deref().unwrap_or_default()
            )),
            Err(error) => Look::NotYet(format!("the API server: {error}")),
        }
    })
    .await
}

/// A namespaced API, by its kind.
pub fn api<K>(client: &kube::Client, namespace: &str) -> Api<K>
where
    K: Resource<Scope = NamespaceResourceScope>,
    K::DynamicType: Default,
{
    Api::namespaced(client.clone(), namespace)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_bound_that_passes_tells_what_was_last_seen() {
        let error = until::<(), _, _>("claim a bound", Duration::from_millis(150), || async {
            Look::NotYet(String::from("phase Pending"))
        })
        .await
        .unwrap_err();
        let said = error.to_string();
        assert!(
            said.contains("claim a bound not in 150ms") && said.contains("phase Pending"),
            "{said}"
        );
    }

    #[tokio::test]
    async fn what_can_never_hold_is_not_waited_for() {
        let error = until::<(), _, _>("pod a runs", Duration::from_secs(60), || async {
            Look::Never(String::from("phase Failed"))
        })
        .await
        .unwrap_err();
        assert!(error.never && error.at < Duration::from_secs(5));
    }
}
