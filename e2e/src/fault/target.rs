//! Finds the containers that faults act on.
use futures::future::try_join;
use futures::{TryFutureExt, try_join};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::api::storage::v1::CSINode;
use kube::api::ListParams;
use kube::{Api, ResourceExt};

use super::act::FaultError;
use crate::clock::Limit;
use crate::cluster::condition;
use crate::cluster::site::Site;
use crate::cluster::wait::{self, Look};

/// A container of the driver.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Container {
    /// Its pod.
    pub pod: String,
    /// Its name in the pod.
    pub name: String,
    /// Its id, without the runtime's prefix.
    pub id: String,
}

/// A component of the chart.
pub(super) const CONTROLLER: &str = "controller";
/// The other one.
pub(super) const NODE: &str = "node";

impl Site {
    pub(super) fn pods(&self) -> Api<Pod> {
        wait::api(&self.client, &self.driver.namespace)
    }

    /// Pods of a component, on `node` only if it is given.
    pub(super) async fn pods_of(&self, component: &str, node: Option<&str>) -> Result<Vec<Pod>, FaultError> {
        let selector = ListParams::default().labels(&format!("app.kubernetes.io/component={component}"));
        let list = self
            .pods()
            .list(&selector)
            .await
            .map_err(FaultError::api("list the driver's pods"))?;
        let on = |pod: &Pod| pod.spec.as_ref().and_then(|s| s.node_name.clone());
        Ok(list
            .items
            .into_iter()
            .filter(|pod| node.is_none() || on(pod).as_deref() == node)
            .collect())
    }

    /// The container `name` in each pod of a component.
    pub(super) async fn containers(
        &self,
        component: &str,
        node: Option<&str>,
        name: &str,
    ) -> Result<Vec<Container>, FaultError> {
        let pods = self.pods_of(component, node).await?;
        let found: Vec<_> = pods.iter().filter_map(|pod| container(pod, name)).collect();
        if found.is_empty() {
            return Err(FaultError::NoTarget {
                what: format!("container {name} of the {component}"),
            });
        }
        Ok(found)
    }

    /// The pod that holds the lease of a sidecar.
    pub(super) async fn leader(&self, sidecar: &str) -> Result<String, FaultError> {
        let (leases, pods) = try_join(self.leases(), self.pods_of(CONTROLLER, None)).await?;
        leader(sidecar, &leases, &pods)
    }

    async fn leases(&self) -> Result<Vec<Lease>, FaultError> {
        let leases: Api<Lease> = wait::api(&self.client, &self.driver.namespace);
        let list = leases.list(&ListParams::default()).await;
        Ok(list.map_err(FaultError::api("list leases"))?.items)
    }

    /// One container of one pod.
    pub(super) async fn container_of(&self, pod: &str, name: &str) -> Result<Container, FaultError> {
        let found = self
            .pods()
            .get(pod)
            .await
            .map_err(FaultError::api("read a pod"))?;
        container(&found, name).ok_or_else(|| FaultError::NoTarget {
            what: format!("container {name} of {pod}"),
        })
    }
}

/// Of the controller's `pods` the one that holds the lease of a sidecar; leases are told apart by a word of their name.
fn leader(sidecar: &str, leases: &[Lease], pods: &[Pod]) -> Result<String, FaultError> {
    let is = |lease: &&Lease| {
        let name = lease.name_any();
        match sidecar {
            "csi-attacher" => name.contains("attacher"),
            "csi-resizer" => name.contains("resizer"),
            _ => !name.contains("attacher") && !name.contains("resizer"),
        }
    };
    let lease = leases.iter().find(is).and_then(|lease| lease.spec.as_ref());
    let holder = lease.and_then(|lease| lease.holder_identity.clone());
    let holder = holder
        .filter(|h| !h.is_empty())
        .ok_or_else(|| FaultError::NoTarget {
            what: format!("leader of {sidecar}"),
        })?;
    // A holder is the host name, sometimes with a suffix.
    pods.iter()
        .map(ResourceExt::name_any)
        .find(|pod| holder.contains(pod.as_str()))
        .ok_or_else(|| FaultError::NoTarget {
            what: format!("pod of the leader {holder} of {sidecar}"),
        })
}

pub(super) fn container(pod: &Pod, name: &str) -> Option<Container> {
    let statuses = pod.status.as_ref()?.container_statuses.as_ref()?;
    let status = statuses
        .iter()
        .find(|s| s.name == name && s.state.as_ref().is_some_and(|s| s.running.is_some()))?;
    let id = status.container_id.as_deref()?.rsplit('/').next()?;
    Some(Container {
        pod: pod.name_any(),
        name: name.to_owned(),
        id: id.to_owned(),
    })
}

/// Waits until the driver is whole: every pod of it ready, every node ready and with the driver, every lease held by a pod
/// that lives.
///
/// # Errors
/// If it is not in its bound, with what is missing.
pub async fn driver_ready(site: &Site) -> Result<(), FaultError> {
    let look = || async {
        match missing(site).await {
            Ok(None) => Look::Holds(()),
            Ok(Some(missing)) => Look::NotYet(missing),
            Err(error) => Look::NotYet(error.to_string()),
        }
    };
    Ok(wait::until("the driver is whole again", Limit::FAULT, look).await?)
}

async fn missing(site: &Site) -> Result<Option<String>, FaultError> {
    let all = ListParams::default();
    let (every_node, every_csi_node) = (
        Api::<Node>::all(site.client.clone()),
        Api::<CSINode>::all(site.client.clone()),
    );
    let (nodes, controllers, plugins, csi_nodes, leases) = try_join!(
        every_node.list(&all).map_err(FaultError::api("list nodes")),
        site.pods_of(CONTROLLER, None),
        site.pods_of(NODE, None),
        every_csi_node
            .list(&all)
            .map_err(FaultError::api("list CSINodes")),
        site.leases(),
    )?;
    for node in &nodes.items {
        if !matches!(condition::is_node_ready(node), Look::Holds(())) {
            return Ok(Some(format!("node {} is not ready", node.name_any())));
        }
    }
    for (component, found) in [(CONTROLLER, &controllers), (NODE, &plugins)] {
        if found.is_empty() {
            return Ok(Some(format!("no pod of the {component}")));
        }
        for pod in found {
            let name = pod.name_any();
            if pod.metadata.deletion_timestamp.is_some() {
                return Ok(Some(format!("pod {name} is terminating")));
            }
            match condition::is_ready(pod) {
                Look::Holds(_) => {}
                Look::NotYet(seen) | Look::Never(seen) => return Ok(Some(format!("pod {name}: {seen}"))),
            }
        }
    }
    let registered = csi_nodes
        .items
        .iter()
        .filter(|n| matches!(condition::has_driver(n, &site.driver.name), Look::Holds(_)))
        .count();
    if registered < plugins.len() {
        return Ok(Some(format!(
            "{registered} of {} nodes have the driver",
            plugins.len()
        )));
    }
    for sidecar in ["csi-provisioner", "csi-attacher", "csi-resizer"] {
        if let Err(error) = leader(sidecar, &leases, &controllers) {
            return Ok(Some(error.to_string()));
        }
    }
    Ok(None)
}
