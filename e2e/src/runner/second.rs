//! A second node is asked for while the first has the volume: the driver refuses, and says who has it.
use k8s_openapi::api::storage::v1::VolumeAttachment;
use kube::Api;
use kube::api::{DeleteParams, PostParams};
use serde_json::json;

use super::act::{BLOCKS, bound_claim, remove_claim, remove_pod, running_pod};
use super::execute::{ActError, Run};
use crate::clock::Limit;
use crate::cluster::wait::Look;
use crate::workload::{Placement, VolumeSpec};

pub(super) async fn second_attachment(run: &Run, spec: &VolumeSpec) -> Result<(), ActError> {
    let context = &run.context;
    let (here, there) = (run.worker(0), run.worker(1));
    let claim = bound_claim(run, "data", spec).await?;
    let pod = running_pod(run, "pod", &claim, 2 * BLOCKS, &Placement::On(here)).await?;

    // The controller of attachments never asks for two; whoever restores its state, or another one beside it, does.
    let attachments: Api<VolumeAttachment> = Api::all(context.client.clone());
    let name = format!("{}-second", context.namespace);
    let object = context.object(json!({
        "apiVersion": "storage.k8s.io/v1", "kind": "VolumeAttachment",
        "metadata": {"name": name},
        "spec": {
            "attacher": context.driver.name, "nodeName": there,
            "source": {"persistentVolumeName": claim.pv},
        }
    }))?;
    attachments
        .create(&PostParams::default(), &object)
        .await
        .map_err(context.api("create an attachment"))?;
    let what = format!("the attachment to {there} is refused");
    let refused = context
        .until_object(&attachments, &what, &name, Limit::ATTACH, is_refused)
        .await;
    context
        .delete(&attachments, &name, &DeleteParams::default())
        .await?;
    context.gone(&attachments, &name).await?;
    refused?;

    // Giving up what was never had takes nothing from the pod.
    let written = pod.acknowledged(context, 2 * BLOCKS).await?;
    pod.verify(context, written).await?;
    remove_pod(run, &pod, &claim).await?;
    remove_claim(run, &claim).await
}

fn is_refused(attachment: &VolumeAttachment) -> Look<()> {
    let status = attachment.status.as_ref();
    if status.is_some_and(|status| status.attached) {
        return Look::Never(String::from("attached, while another node has the volume"));
    }
    let error = status.and_then(|status| status.attach_error.as_ref());
    match error.and_then(|error| error.message.as_deref()) {
        Some(message) if message.contains("FailedPrecondition") => Look::Holds(()),
        message => Look::NotYet(format!("attach error {message:?}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_code_of_the_specification_is_a_refusal() {
        let attachment = |status| -> VolumeAttachment {
            serde_json::from_value(json!({"metadata": {}, "spec": {"attacher": "a", "nodeName": "n", "source": {}}, "status": status}))
                .unwrap()
        };
        let error = |code: &str| json!({"attached": false, "attachError": {"message": format!("rpc error: code = {code}")}});
        assert!(matches!(
            is_refused(&attachment(error("FailedPrecondition"))),
            Look::Holds(())
        ));
        assert!(matches!(
            is_refused(&attachment(error("Internal"))),
            Look::NotYet(_)
        ));
        assert!(matches!(
            is_refused(&attachment(json!({"attached": true}))),
            Look::Never(_)
        ));
    }
}
