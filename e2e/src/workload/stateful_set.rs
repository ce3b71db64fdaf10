//! A StatefulSet of one pod that moves from node to node with its volume.
use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use kube::{Api, ResourceExt};
use serde_json::json;

use super::claim::Claim;
use super::context::{Context, WorkloadError};
use super::pod::{self, Consumer, Placement};
use super::spec::VolumeSpec;
use crate::clock::Limit;
use crate::cluster::wait::{self, Look};

/// The set.
#[derive(Clone, Debug)]
pub struct Moving {
    spec: VolumeSpec,
    blocks: u64,
}

const NAME: &str = "moving";

impl Moving {
    /// Makes it, its pod on `node`.
    ///
    /// # Errors
    /// The API server's.
    pub async fn create(
        context: &Context,
        spec: &VolumeSpec,
        blocks: u64,
        node: &str,
    ) -> Result<Self, WorkloadError> {
        let sets: Api<StatefulSet> = wait::api(&context.client, &context.namespace);
        let mut template = pod::spec(context, "unused", spec, blocks, &Placement::On(node.to_owned()));
        // The set's own template names the claim.
        template["volumes"] = json!([]);
        let object = context.object(json!({
            "apiVersion": "apps/v1", "kind": "StatefulSet",
            "metadata": {"name": NAME},
            "spec": {
                "replicas": 1, "serviceName": NAME,
                "selector": {"matchLabels": {"app": NAME}},
                "template": {"metadata": {"labels": {"app": NAME}}, "spec": template},
                "volumeClaimTemplates": [{
                    "metadata": {"name": "data"},
                    "spec": {
                        "storageClassName": context.class(spec.class)?, "accessModes": ["ReadWriteOnce"],
                        "resources": {"requests": {"storage": spec.size}},
                    }
                }]
            }
        }))?;
        sets.create(&PostParams::default(), &object)
            .await
            .map_err(context.api("create a StatefulSet"))?;
        Ok(Self {
            spec: spec.clone(),
            blocks,
        })
    }

    /// Waits for its claim to be bound.
    ///
    /// # Errors
    /// If it is not in its bound.
    pub async fn claim(&self, context: &Context, spec: &VolumeSpec) -> Result<Claim, WorkloadError> {
        let name = format!("data-{NAME}-0");
        let claims: Api<PersistentVolumeClaim> = wait::api(&context.client, &context.namespace);
        let what = format!("claim {name} exists");
        let look = |c: &PersistentVolumeClaim| Look::Holds(c.uid().unwrap_or_default());
        let uid = context
            .until_object(&claims, &what, &name, Limit::PROVISION, look)
            .await?;
        let mut claim = Claim {
            name,
            uid,
            spec: spec.clone(),
            pv: None,
            volume: None,
        };
        claim.bound(context).await?;
        Ok(claim)
    }

    /// Waits for its pod to run on `node`.
    ///
    /// # Errors
    /// If it does not in its bound.
    pub async fn runs_on(&self, context: &Context, node: &str) -> Result<Consumer, WorkloadError> {
        let pods: Api<Pod> = wait::api(&context.client, &context.namespace);
        let name = format!("{NAME}-0");
        let what = format!("pod {name} runs on {node}");
        let look = |p: &Pod| match crate::cluster::condition::is_ready(p) {
            Look::Holds(on) if on == node && p.metadata.deletion_timestamp.is_none() => {
                Look::Holds(Consumer::of(p, &self.spec))
            }
            Look::Holds(on) => Look::NotYet(format!("ready on {on}")),
            // The set replaces a pod that ended.
            Look::NotYet(seen) | Look::Never(seen) => Look::NotYet(seen),
        };
        context.until_object(&pods, &what, &name, Limit::POD, look).await
    }

    /// Sends its pod to `node`.
    ///
    /// # Errors
    /// The API server's.
    pub async fn move_to(&self, context: &Context, node: &str) -> Result<(), WorkloadError> {
        let sets: Api<StatefulSet> = wait::api(&context.client, &context.namespace);
        let patch = json!({"spec": {"template": {"spec": {"affinity": pod::on_node(node)}}}});
        sets.patch(NAME, &PatchParams::default(), &Patch::Merge(&patch))
            .await
            .map(drop)
            .map_err(context.api("move a StatefulSet"))
    }

    /// Removes it; its claim stays.
    ///
    /// # Errors
    /// If it is not gone in its bound.
    pub async fn delete(&self, context: &Context) -> Result<(), WorkloadError> {
        let sets: Api<StatefulSet> = wait::api(&context.client, &context.namespace);
        let parameters = DeleteParams::foreground();
        context.delete(&sets, NAME, &parameters).await?;
        context.gone(&sets, NAME).await
    }

    /// Blocks that each pod of it writes.
    pub fn blocks(&self) -> u64 {
        self.blocks
    }
}
