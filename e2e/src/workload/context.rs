//! What every step of a workload needs, and how it fails.
use std::sync::Arc;
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::{Event as KubeEvent, Namespace};
use kube::api::{DeleteParams, ListParams, PostParams};
use kube::{Api, Client, Resource};
use serde::de::DeserializeOwned;
use serde_json::json;

use crate::clock::Limit;
use crate::cluster::ClusterError;
use crate::cluster::driver::{Class, Driver};
use crate::cluster::news::News;
use crate::cluster::wait::{self, Look, WaitError};
use crate::history::{Recorder, What};

/// Label of every namespace that a run makes; its value is the run's name.
pub const RUN_LABEL: &str = "holdfast.run/run";

/// Where a scenario works.
#[derive(Clone)]
pub struct Context {
    /// The API server.
    pub client: Client,
    /// What those who watch it tell those who wait.
    pub news: News,
    /// The driver under test.
    pub driver: Arc<Driver>,
    /// The run, by which its namespaces are told from others.
    pub run: String,
    /// The scenario's own namespace.
    pub namespace: String,
    /// The scenario.
    pub scenario: String,
    /// Where events go.
    pub recorder: Recorder,
    /// The image of the pods that write and verify.
    pub image: String,
}

/// How a step of a workload failed.
#[derive(Debug, thiserror::Error)]
pub enum WorkloadError {
    /// Something did not come true within its bound.
    #[error("{wait}{events}")]
    Wait {
        /// What, and what was seen.
        wait: WaitError,
        /// The events of the namespace.
        events: String,
    },
    /// A pod's image cannot be had where it is to run: nothing of the driver was tried.
    #[error("{wait}{events}")]
    NoImage {
        /// What, and what was seen.
        wait: WaitError,
        /// The events of the namespace.
        events: String,
    },
    /// Something that must hold did not.
    #[error("expected {expected}; seen {seen}")]
    Unmet {
        /// What must hold.
        expected: String,
        /// What was seen.
        seen: String,
    },
    /// The API server refused.
    #[error("{doing}: the API server refused or did not answer")]
    Api {
        /// What was asked.
        doing: String,
        /// Why.
        source: Box<kube::Error>,
    },
    /// The cluster itself could not be read or moved.
    #[error(transparent)]
    Cluster(#[from] ClusterError),
}

impl Context {
    /// Makes the scenario's namespace.
    ///
    /// # Errors
    /// The API server's.
    pub async fn create_namespace(&self) -> Result<(), WorkloadError> {
        let namespace = self.object(json!({
            "apiVersion": "v1", "kind": "Namespace",
            "metadata": {"name": self.namespace, "labels": {
                RUN_LABEL: self.run, "holdfast.run/scenario": self.scenario.replace('#', "-")}}
        }))?;
        Api::<Namespace>::all(self.client.clone())
            .create(&PostParams::default(), &namespace)
            .await
            .map_err(self.api("create the namespace"))?;
        // Pods are refused until the namespace has its account.
        let accounts: Api<k8s_openapi::api::core::v1::ServiceAccount> =
            wait::api(&self.client, &self.namespace);
        let what = "service account of the namespace";
        let exists = |_: &_| Look::Holds(());
        self.until_object(&accounts, what, "default", Limit::PROVISION, exists)
            .await
    }

    /// Asks for the namespace's deletion; one that is gone is no error. Kubernetes waits 5 s before it begins with an empty one.
    ///
    /// # Errors
    /// The API server's.
    pub async fn delete_namespace(&self) -> Result<(), WorkloadError> {
        let namespaces: Api<Namespace> = Api::all(self.client.clone());
        self.delete(&namespaces, &self.namespace, &DeleteParams::default())
            .await
    }

    /// Removes the namespace with what is in it, and waits until it is gone.
    ///
    /// # Errors
    /// If it is not gone in its bound.
    pub async fn remove_namespace(&self) -> Result<(), WorkloadError> {
        self.delete_namespace().await?;
        let namespaces: Api<Namespace> = Api::all(self.client.clone());
        self.gone(&namespaces, &self.namespace).await
    }

    /// Asks for the deletion of `name`; one that is gone is no error.
    ///
    /// # Errors
    /// The API server's.
    pub async fn delete<K>(
        &self,
        api: &Api<K>,
        name: &str,
        parameters: &DeleteParams,
    ) -> Result<(), WorkloadError>
    where
        K: Resource<DynamicType = ()> + Clone + DeserializeOwned + std::fmt::Debug,
    {
        match api.delete(name, parameters).await {
            Ok(_) => Ok(()),
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
            Err(source) => Err(self.api(&format!("delete {} {name}", K::kind(&())))(source)),
        }
    }

    /// Waits until there is no `name` any more.
    ///
    /// # Errors
    /// If it is there after its bound.
    pub async fn gone<K>(&self, api: &Api<K>, name: &str) -> Result<(), WorkloadError>
    where
        K: Resource<DynamicType = ()> + Clone + DeserializeOwned + std::fmt::Debug,
    {
        let what = format!("{} {name} is gone", K::kind(&()));
        self.waited(&what, wait::gone(&self.news, api, &what, name, Limit::DELETE))
            .await
    }

    /// Waits until the object called `name` is as `condition` wants it.
    ///
    /// # Errors
    /// [`WorkloadError::Wait`].
    pub async fn until_object<K, T>(
        &self,
        api: &Api<K>,
        what: &str,
        name: &str,
        limit: Duration,
        condition: impl Fn(&K) -> Look<T>,
    ) -> Result<T, WorkloadError>
    where
        K: Resource<DynamicType = ()> + Clone + DeserializeOwned + std::fmt::Debug,
    {
        self.waited(what, wait::object(&self.news, api, what, name, limit, condition))
            .await
    }

    /// Waits until the objects that `api` lists are as `condition` wants them.
    ///
    /// # Errors
    /// [`WorkloadError::Wait`].
    pub async fn until_objects<K, T>(
        &self,
        api: &Api<K>,
        what: &str,
        limit: Duration,
        condition: impl Fn(&[K]) -> Look<T>,
    ) -> Result<T, WorkloadError>
    where
        K: Resource<DynamicType = ()> + Clone + DeserializeOwned + std::fmt::Debug,
    {
        self.waited(what, wait::objects(&self.news, api, what, limit, condition))
            .await
    }

    /// Waits, records how long, and adds the namespace's events to a bound that ran out.
    ///
    /// # Errors
    /// [`WorkloadError::Wait`].
    pub async fn waited<T>(
        &self,
        what: &str,
        wait: impl Future<Output = Result<T, WaitError>>,
    ) -> Result<T, WorkloadError> {
        let since = Instant::now();
        let result = wait.await;
        self.recorder.record(
            Some(&self.scenario),
            What::Waited {
                what: what.to_owned(),
                took_ms: millis(since.elapsed()),
            },
        );
        match result {
            Ok(value) => Ok(value),
            Err(wait) => Err(WorkloadError::Wait {
                wait,
                events: self.events().await,
            }),
        }
    }

    /// The last warnings of the namespace, one a line.
    async fn events(&self) -> String {
        let events: Api<KubeEvent> = wait::api(&self.client, &self.namespace);
        let Ok(list) = events.list(&ListParams::default()).await else {
            return String::from("\nevents: cannot be read");
        };
        let mut lines: Vec<_> = list
            .items
            .iter()
            .filter(|e| e.type_.as_deref() == Some("Warning"))
            .map(|e| {
                let of = &e.involved_object;
                format!(
                    "\nevent: {} {}: {}: {}",
                    of.kind.as_deref().unwrap_or("?"),
                    of.name.as_deref().unwrap_or("?"),
                    e.reason.as_deref().unwrap_or("?"),
                    e.message.as_deref().unwrap_or("")
                )
            })
            .collect();
        let cut = lines.len().saturating_sub(8);
        lines.drain(..cut);
        lines.concat()
    }

    /// The name of the StorageClass that `class` has on this cluster.
    ///
    /// # Errors
    /// If the driver has none; such a scenario is skipped before it begins.
    pub fn class(&self, class: Class) -> Result<&str, WorkloadError> {
        let name = self.driver.classes.get(&class);
        name.map(String::as_str).ok_or_else(|| WorkloadError::Unmet {
            expected: format!("a StorageClass {} of {}", class.name(), self.driver.name),
            seen: String::from("none in its file"),
        })
    }

    /// Names what was asked when the API server refuses.
    pub fn api(&self, doing: &str) -> impl FnOnce(kube::Error) -> WorkloadError + use<> {
        let doing = format!("{} in {}", doing, self.namespace);
        move |source| WorkloadError::Api {
            doing,
            source: Box::new(source),
        }
    }

    /// An object of the API from its JSON.
    ///
    /// # Errors
    /// If it is none of that type, which is a mistake of ours.
    pub fn object<K: serde::de::DeserializeOwned>(
        &self,
        json: serde_json::Value,
    ) -> Result<K, WorkloadError> {
        serde_json::from_value(json).map_err(|error| WorkloadError::Unmet {
            expected: String::from("an object of the API"),
            seen: error.to_string(),
        })
    }
}

/// Whole milliseconds.
pub(crate) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
