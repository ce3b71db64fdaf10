//! A node that is lost, paused or switched off, given up for good as an administrator would, and brought back.
use futures::future::try_join_all;
use k8s_openapi::api::core::v1::{Node as KubeNode, Taint};
use kube::Api;
use kube::api::{Patch, PatchParams};
use serde_json::json;

use super::act::FaultError;
use crate::clock::Limit;
use crate::cluster::bring_up;
use crate::cluster::node::Loss;
use crate::cluster::site::Site;
use crate::cluster::wait::{self, Look};

/// Says that nothing runs on the node any more: its pods are removed and its volumes detached without asking it
/// ([non-graceful node shutdown](https://kubernetes.io/docs/concepts/cluster-administration/node-shutdown/#non-graceful-node-shutdown)).
const OUT_OF_SERVICE: &str = "node.kubernetes.io/out-of-service";

/// Loses `node`, waits until the cluster has noticed, and gives it up; what was seen.
///
/// # Errors
/// If it is not lost in its bound.
pub async fn lose(site: &Site, node: &str, how: Loss) -> Result<String, FaultError> {
    let verb = match how {
        Loss::Paused => "pause",
        Loss::SwitchedOff => "kill",
    };
    site.host()?.node(node).container(verb).await?;
    let what = format!("node {node} is not ready");
    let look = |found: &KubeNode| match crate::cluster::condition::is_node_ready(found) {
        Look::Holds(()) => Look::NotYet(String::from("it is ready")),
        Look::NotYet(seen) | Look::Never(seen) => Look::Holds(seen),
    };
    let seen = wait::object(&site.news, &nodes(site), &what, node, Limit::FAULT, look).await?;
    set_taint(site, node, true).await?;
    Ok(format!("node {node}: {verb}, {seen}; marked out of service"))
}

/// Brings `node` back from whatever state it is in, and waits until it is ready; harmless where nothing is wrong.
///
/// # Errors
/// If it is not ready in its bound.
pub async fn bring_back(site: &Site, node: &str) -> Result<(), FaultError> {
    let host = site.host()?;
    let on_host = host.node(node);
    let was_off = match on_host.state().await?.as_str() {
        "running" => false,
        "paused" => {
            on_host.container("unpause").await?;
            false
        }
        _ => {
            on_host.container("start").await?;
            true
        }
    };
    let look = || async {
        match on_host.systemctl("start", "kubelet").await {
            Ok(_) => Look::Holds(()),
            Err(error) => Look::NotYet(error.to_string()),
        }
    };
    wait::until(&format!("kubelet of {node} starts"), Limit::FAULT, look).await?;
    if was_off {
        // Once systemd answers: the node image makes device nodes of its own before.
        bring_up::loop_devices(host).await?;
    }
    let what = format!("node {node} is ready");
    wait::object(
        &site.news,
        &nodes(site),
        &what,
        node,
        Limit::FAULT,
        crate::cluster::condition::is_node_ready,
    )
    .await?;
    set_taint(site, node, false).await
}

/// Brings every node back.
///
/// # Errors
/// Those of [`bring_back`].
pub async fn heal(site: &Site) -> Result<(), FaultError> {
    if let Some(host) = &site.host {
        try_join_all(host.nodes.iter().map(|node| bring_back(site, node))).await?;
    }
    Ok(())
}

fn nodes(site: &Site) -> Api<KubeNode> {
    Api::all(site.client.clone())
}

async fn set_taint(site: &Site, node: &str, wanted: bool) -> Result<(), FaultError> {
    let found = nodes(site)
        .get(node)
        .await
        .map_err(FaultError::api("read a node"))?;
    let before = found.spec.and_then(|spec| spec.taints).unwrap_or_default();
    let mut taints: Vec<Taint> = before
        .iter()
        .filter(|t| t.key != OUT_OF_SERVICE)
        .cloned()
        .collect();
    if wanted {
        taints.push(Taint {
            key: String::from(OUT_OF_SERVICE),
            value: Some(String::from("nodeshutdown")),
            effect: String::from("NoExecute"),
            time_added: None,
        });
    }
    if taints == before {
        return Ok(());
    }
    let patch = json!({"spec": {"taints": taints}});
    nodes(site)
        .patch(node, &PatchParams::default(), &Patch::Merge(&patch))
        .await
        .map(drop)
        .map_err(FaultError::api("mark a node out of service"))
}
