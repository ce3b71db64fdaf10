//! What is full refuses clearly, and takes more once something was freed.
use futures::future::try_join_all;
use k8s_openapi::api::core::v1::Event as KubeEvent;
use k8s_openapi::api::storage::v1::CSINode;
use kube::api::ListParams;
use kube::{Api, ResourceExt};

use super::act::{bound, bound_claim, remove_claim, remove_pod};
use super::execute::{ActError, Run};
use crate::clock::Limit;
use crate::cluster::wait::{self, Look};
use crate::workload::{Claim, Consumer, Placement, VolumeSpec, WorkloadError, create_claim, create_pod};

/// As many pods as a node takes volumes, and one more, which waits until one of the others has gone.
pub(super) async fn attach_limit(run: &Run, spec: &VolumeSpec) -> Result<(), ActError> {
    let context = &run.context;
    let node = run.worker(0);
    let limit = limit_of(run, &node).await?;
    let mut users =
        try_join_all((0..limit).map(|number| user(run, spec, format!("data-{number}"), &node))).await?;
    let (claim, pod) = begin(run, spec, String::from("one-more"), &node).await?;
    pod.not_scheduled(context, "max volume count").await?;
    let (freed, freed_pod) = users.pop().ok_or_else(|| none("a user of a volume"))?;
    remove_pod(run, &freed_pod, &freed).await?;
    let mut pod = pod;
    pod.running(context).await?;
    users.push((claim, pod));
    try_join_all(users.iter().map(|(claim, pod)| async {
        remove_pod(run, pod, claim).await?;
        remove_claim(run, claim).await
    }))
    .await?;
    remove_claim(run, &freed).await
}

async fn user(run: &Run, spec: &VolumeSpec, name: String, node: &str) -> Result<(Claim, Consumer), ActError> {
    let (claim, mut pod) = begin(run, spec, name, node).await?;
    pod.running(&run.context).await?;
    Ok((claim, pod))
}

async fn begin(
    run: &Run,
    spec: &VolumeSpec,
    name: String,
    node: &str,
) -> Result<(Claim, Consumer), ActError> {
    let claim = bound_claim(run, &name, spec).await?;
    let placement = Placement::On(node.to_owned());
    let pod = create_pod(&run.context, &format!("{name}-pod"), &claim, 1, &placement).await?;
    run.owns(&pod.uid);
    Ok((claim, pod))
}

fn none(what: &str) -> ActError {
    ActError::Workload(WorkloadError::Unmet {
        expected: what.to_owned(),
        seen: String::from("none"),
    })
}

/// What the driver told kubelet: how many volumes the node takes.
async fn limit_of(run: &Run, node: &str) -> Result<u32, ActError> {
    let nodes: Api<CSINode> = Api::all(run.site.client.clone());
    let what = format!("CSINode {node} has a limit of {}", run.site.driver.name);
    let look = |found: &CSINode| {
        let plugin = found.spec.drivers.iter().find(|d| d.name == run.site.driver.name);
        let count = plugin.and_then(|d| d.allocatable.as_ref()?.count);
        match count.and_then(|count| u32::try_from(count).ok()) {
            Some(count) => Look::Holds(count),
            None => Look::NotYet(String::from("no allocatable count")),
        }
    };
    Ok(run
        .context
        .waited(
            &what,
            wait::object(&run.context.news, &nodes, &what, node, Limit::CALL, look),
        )
        .await?)
}

/// A claim for more than is left stays unbound, with the driver's reason in its events, until another one was deleted.
pub(super) async fn capacity(run: &Run, spec: &VolumeSpec) -> Result<(), ActError> {
    let context = &run.context;
    let first = bound_claim(run, "first", spec).await?;
    let mut second = create_claim(context, "second", spec).await?;
    run.owns(&second.uid);
    let events: Api<KubeEvent> = wait::api(&context.client, &context.namespace);
    let what = String::from("claim second is refused for want of space");
    let look = || async {
        let list = match events.list(&ListParams::default()).await {
            Ok(list) => list.items,
            Err(error) => return Look::NotYet(format!("the API server: {error}")),
        };
        let of = |event: &&KubeEvent| event.involved_object.uid.as_deref() == Some(second.uid.as_str());
        let said: Vec<String> = list.iter().filter(of).filter_map(|e| e.message.clone()).collect();
        match said.iter().find(|text| text.contains("ResourceExhausted")) {
            Some(_) => Look::Holds(()),
            None => Look::NotYet(format!("events {said:?}")),
        }
    };
    context
        .waited(&what, wait::until(&what, Limit::PROVISION, look))
        .await?;
    remove_claim(run, &first).await?;
    let pv = bound(run, &mut second).await?;
    if Some(pv.name_any()) == first.pv {
        return Err(none("a volume of its own for the second claim"));
    }
    remove_claim(run, &second).await
}
