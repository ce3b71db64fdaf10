//! What is full refuses clearly, and takes more once something was freed.
use futures::future::{try_join, try_join_all};
use k8s_openapi::api::core::v1::Event as KubeEvent;
use k8s_openapi::api::storage::v1::CSINode;
use kube::api::ListParams;
use kube::{Api, ResourceExt};

use super::act::{bound, bound_claim, remove_claim, remove_pod, running_pod};
use super::execute::{ActError, Run};
use crate::clock::Limit;
use crate::cluster::wait::{self, Look};
use crate::workload::{
    Claim, Consumer, Placement, VolumeSpec, WorkloadError, create_claim, create_pod, create_pod_of_many,
};

/// A node has as many volumes as it takes, one in a pod of its own and the others in another pod; the pod of one more waits
/// until the first has gone.
pub(super) async fn attach_limit(run: &Run, spec: &VolumeSpec) -> Result<(), ActError> {
    let context = &run.context;
    let node = run.worker(0);
    let placement = Placement::On(node.clone());
    let limit = limit_of(run, &node).await?;
    let names: Vec<String> = (0..limit).map(|number| format!("data-{number}")).collect();
    let claims = try_join_all(names.iter().map(|name| bound_claim(run, name, spec))).await?;
    let (freed, others) = claims.split_first().ok_or_else(|| none("room for a volume"))?;
    let (freed_pod, mut pods) = try_join(
        running_pod(run, "pod", freed, 1, &placement),
        of_all(run, others, &placement),
    )
    .await?;
    let more = bound_claim(run, "one-more", spec).await?;
    let mut more_pod = create_pod(context, "one-more-pod", &more, 1, &placement).await?;
    run.owns(&more_pod.uid);
    more_pod.not_scheduled(context, "max volume count").await?;
    remove_pod(run, &freed_pod, freed).await?;
    more_pod.running(context).await?;

    pods.push(more_pod);
    try_join_all(pods.iter().map(|pod| async {
        pod.delete(context).await?;
        pod.gone(context).await
    }))
    .await?;
    try_join_all(claims.iter().chain([&more]).map(|claim| async {
        claim.detached(context).await?;
        remove_claim(run, claim).await
    }))
    .await
    .map(drop)
}

/// A running pod with all of `claims`; none where there is none.
async fn of_all(run: &Run, claims: &[Claim], placement: &Placement) -> Result<Vec<Consumer>, ActError> {
    let Some((first, others)) = claims.split_first() else {
        return Ok(Vec::new());
    };
    let mut pod = create_pod_of_many(&run.context, "pod-of-many", first, others, 1, placement).await?;
    run.owns(&pod.uid);
    pod.running(&run.context).await?;
    Ok(vec![pod])
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
        .until_object(&nodes, &what, node, Limit::CALL, look)
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
