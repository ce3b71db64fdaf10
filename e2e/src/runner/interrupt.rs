//! What a run that did not come to its end has left on a cluster that stays: healed, and removed.
use k8s_openapi::api::core::v1::{Namespace, PersistentVolume};
use kube::api::{DeleteParams, ListParams, Patch, PatchParams};
use kube::{Api, ResourceExt};
use serde_json::json;

use crate::clock::Limit;
use crate::cluster::ClusterError;
use crate::cluster::condition::claim_of;
use crate::cluster::site::Site;
use crate::cluster::wait::{self, Look, WaitError};
use crate::fault::{self, FaultError};
use crate::workload::{RUN_LABEL, plant};

/// Why something of it stays.
#[derive(Debug, thiserror::Error)]
pub enum CleanError {
    /// A node could not be healed.
    #[error("a node is not healed")]
    Fault(#[from] FaultError),
    /// What was planted could not be taken away.
    #[error("what was planted stays")]
    Cluster(#[from] ClusterError),
    /// The API server refused.
    #[error("{doing} failed")]
    Api {
        /// What was asked.
        doing: &'static str,
        /// Why.
        source: Box<kube::Error>,
    },
    /// It is not gone in its bound.
    #[error(transparent)]
    Wait(#[from] WaitError),
}

fn api(doing: &'static str) -> impl FnOnce(kube::Error) -> CleanError {
    move |source| CleanError::Api {
        doing,
        source: Box::new(source),
    }
}

/// The namespaces of `run`, or of every run.
///
/// # Errors
/// If they cannot be listed.
pub async fn namespaces(site: &Site, run: Option<&str>) -> Result<Vec<(String, String)>, CleanError> {
    let label = run.map_or_else(|| RUN_LABEL.to_owned(), |run| format!("{RUN_LABEL}={run}"));
    let list = Api::<Namespace>::all(site.client.clone())
        .list(&ListParams::default().labels(&label))
        .await
        .map_err(api("list the namespaces of runs"))?;
    let run = |of: &Namespace| of.labels().get(RUN_LABEL).cloned().unwrap_or_default();
    Ok(list.items.iter().map(|n| (n.name_any(), run(n))).collect())
}

/// Waits until no namespace of `run`, or of any run, is left, but the one called `but`.
///
/// # Errors
/// With those that are.
pub async fn namespaces_gone(site: &Site, run: Option<&str>, but: &str) -> Result<(), CleanError> {
    let look = || async {
        match namespaces(site, run).await {
            Ok(left) => {
                let names = left.into_iter().map(|(name, _)| name).filter(|name| name != but);
                match names.collect::<Vec<_>>().join(", ") {
                    names if names.is_empty() => Look::Holds(()),
                    names => Look::NotYet(names),
                }
            }
            Err(error) => Look::NotYet(error.to_string()),
        }
    };
    Ok(wait::until("the namespaces of the run are gone", Limit::DELETE, look).await?)
}

/// Brings every node back, takes away what was planted, then removes the namespaces of `run` (or of every run) with their
/// volumes, and waits until they are gone.
///
/// # Errors
/// With what stays.
pub async fn clean(site: &Site, run: Option<&str>) -> Result<(), CleanError> {
    fault::heal(site).await?;
    if site.host.is_some() {
        plant::remove(site).await?;
    }
    let ours: Vec<String> = namespaces(site, run)
        .await?
        .into_iter()
        .map(|(name, _)| name)
        .collect();
    let volumes: Api<PersistentVolume> = Api::all(site.client.clone());
    for pv in of(site, &ours).await? {
        // One that outlives its claim on purpose would outlive the run.
        let policy = json!({"spec": {"persistentVolumeReclaimPolicy": "Delete"}});
        match volumes
            .patch(&pv, &PatchParams::default(), &Patch::Merge(&policy))
            .await
        {
            Ok(_) => {}
            Err(kube::Error::Api(status)) if status.code == 404 => {}
            Err(error) => return Err(api("let a volume go")(error)),
        }
    }
    let all: Api<Namespace> = Api::all(site.client.clone());
    for name in &ours {
        match all.delete(name, &DeleteParams::default()).await {
            Ok(_) => {}
            Err(kube::Error::Api(status)) if status.code == 404 => {}
            // Terminating already.
            Err(kube::Error::Api(status)) if status.code == 409 => {}
            Err(error) => return Err(api("delete a namespace")(error)),
        }
    }
    namespaces_gone(site, run, "").await?;
    let look = || async {
        match of(site, &ours).await {
            Ok(left) if left.is_empty() => Look::Holds(()),
            Ok(left) => Look::NotYet(left.join(", ")),
            Err(error) => Look::NotYet(error.to_string()),
        }
    };
    Ok(wait::until("the volumes of the run are gone", Limit::DELETE, look).await?)
}

/// The PVs whose claims are, or were, in `namespaces`.
async fn of(site: &Site, namespaces: &[String]) -> Result<Vec<String>, CleanError> {
    let list = Api::<PersistentVolume>::all(site.client.clone())
        .list(&ListParams::default())
        .await
        .map_err(api("list the volumes"))?;
    let is_ours = |pv: &&PersistentVolume| {
        claim_of(pv).is_some_and(|(namespace, _)| namespaces.iter().any(|ours| ours == namespace))
    };
    Ok(list
        .items
        .iter()
        .filter(is_ours)
        .map(ResourceExt::name_any)
        .collect())
}
