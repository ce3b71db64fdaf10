//! A claim gets another VolumeAttributesClass, and the volume shows it.
use k8s_openapi::api::storage::v1::VolumeAttributesClass;
use kube::Api;
use kube::api::{DeleteParams, PostParams};
use serde_json::json;

use super::act::{BLOCKS, bound_claim, remove_claim, remove_pod, running_pod};
use super::execute::{ActError, Run};
use super::read_only::mounted;
use crate::workload::{Placement, VolumeSpec, WorkloadError};

pub(super) async fn modify(run: &Run, spec: &VolumeSpec) -> Result<(), ActError> {
    let context = &run.context;
    let classes: Api<VolumeAttributesClass> = Api::all(context.client.clone());
    let name = format!("{}-noatime", context.namespace);
    let class = context.object(json!({
        "apiVersion": "storage.k8s.io/v1", "kind": "VolumeAttributesClass",
        "metadata": {"name": name},
        "driverName": context.driver.name,
        "parameters": {"atime": "noatime"},
    }))?;
    classes
        .create(&PostParams::default(), &class)
        .await
        .map_err(context.api("create a VolumeAttributesClass"))?;
    let ended = with_class(run, spec, &name).await;
    match classes.delete(&name, &DeleteParams::default()).await {
        Ok(_) => ended,
        Err(kube::Error::Api(status)) if status.code == 404 => ended,
        Err(error) => ended.and(Err(context.api("delete a VolumeAttributesClass")(error).into())),
    }
}

async fn with_class(run: &Run, spec: &VolumeSpec, class: &str) -> Result<(), ActError> {
    let context = &run.context;
    let node = run.worker(0);
    let claim = bound_claim(run, "data", spec).await?;
    claim.set_attributes_class(context, class).await?;
    claim.has_attributes_class(context, class).await?;
    let pod = running_pod(run, "pod", &claim, BLOCKS, &Placement::On(node.clone())).await?;
    let written = pod.acknowledged(context, BLOCKS).await?;
    pod.verify(context, written).await?;
    let pv = claim.pv.clone().unwrap_or_default();
    let shown = mounted(run, &node, &pv).await?;
    if !shown.iter().any(|line| line.contains("noatime")) {
        return Err(ActError::Workload(WorkloadError::Unmet {
            expected: format!("{pv} mounted with noatime, as its class says"),
            seen: format!("{shown:?}"),
        }));
    }
    remove_pod(run, &pod, &claim).await?;
    remove_claim(run, &claim).await
}
