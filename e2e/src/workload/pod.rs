//! A pod that uses a claim: where it runs, when it does, and until its volume is detached.
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::storage::v1::VolumeAttachment;
use kube::api::{DeleteParams, PostParams};
use kube::{Api, ResourceExt};
use serde_json::{Value, json};

use super::claim::Claim;
use super::context::{Context, WorkloadError};
use super::spec::{Mode, VolumeSpec};
use crate::clock::Limit;
use crate::cluster::condition;
use crate::cluster::wait::{self, Look};

/// Where the pod finds its volume.
const MOUNT: &str = "/data";
const DEVICE: &str = "/dev/volume";
/// Of pods that are not to be root: only their group lets them at the volume.
const USER: u32 = 1000;

/// Where a pod is to run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Placement {
    /// Wherever the scheduler puts it.
    Anywhere,
    /// On this node.
    On(String),
}

/// A pod with a volume.
#[derive(Clone, Debug)]
pub struct Consumer {
    /// Its name.
    pub name: String,
    /// Its UID.
    pub uid: String,
    /// The node it runs on, once it does.
    pub node: String,
    /// How its volume was asked for.
    pub(super) volume: VolumeSpec,
}

/// The spec of a pod that writes `blocks` blocks to `claim` and then stays.
pub(super) fn spec(
    context: &Context,
    claim: &str,
    volume: &VolumeSpec,
    blocks: u64,
    placement: &Placement,
) -> Value {
    let path = path(volume.mode);
    let container = json!({
        "name": "io",
        "image": context.image,
        "imagePullPolicy": "IfNotPresent",
        // What it complained of when it ended stands in the pod's status then.
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "env": [{"name": "POD_UID", "valueFrom": {"fieldRef": {"fieldPath": "metadata.uid"}}}],
        "args": ["io", "write", "--path", path, "--writer", "$(POD_UID)", "--blocks", blocks.to_string(), "--interval-ms", "5"],
        "volumeMounts": [],
        "volumeDevices": [],
    });
    let mut spec = json!({
        "terminationGracePeriodSeconds": 1,
        "automountServiceAccountToken": false,
        "containers": [container],
        "volumes": [],
    });
    give(&mut spec, "data", claim, volume.mode, "");
    if let Placement::On(node) = placement {
        spec["affinity"] = on_node(node);
    }
    if let Some(group) = volume.group {
        spec["securityContext"] = json!({"runAsUser": USER, "runAsGroup": USER, "fsGroup": group});
    }
    spec
}

/// Gives the pod of `spec` the volume of `claim` as `name`, at the usual place with `suffix` behind it.
fn give(spec: &mut Value, name: &str, claim: &str, mode: Mode, suffix: &str) {
    let (list, place) = match mode {
        Mode::Filesystem => (
            "volumeMounts",
            json!({"name": name, "mountPath": format!("{MOUNT}{suffix}")}),
        ),
        Mode::Block => (
            "volumeDevices",
            json!({"name": name, "devicePath": format!("{DEVICE}{suffix}")}),
        ),
    };
    let volume = json!({"name": name, "persistentVolumeClaim": {"claimName": claim}});
    push(&mut spec["volumes"], volume);
    push(&mut spec["containers"][0][list], place);
}

fn push(list: &mut Value, value: Value) {
    if let Value::Array(list) = list {
        list.push(value);
    }
}

/// Only this node, by its name: the label of its host's name need not be the same.
pub(super) fn on_node(node: &str) -> Value {
    json!({"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [
        {"matchFields": [{"key": "metadata.name", "operator": "In", "values": [node]}]}
    ]}}})
}

pub(super) fn path(mode: Mode) -> String {
    match mode {
        Mode::Filesystem => format!("{MOUNT}/blocks"),
        Mode::Block => String::from(DEVICE),
    }
}

/// Makes a pod that writes `blocks` blocks.
///
/// # Errors
/// The API server's.
pub async fn create_pod(
    context: &Context,
    name: &str,
    claim: &Claim,
    blocks: u64,
    placement: &Placement,
) -> Result<Consumer, WorkloadError> {
    create_pod_of_many(context, name, claim, &[], blocks, placement).await
}

/// Makes a pod that may only read.
///
/// # Errors
/// The API server's.
pub async fn create_reader(
    context: &Context,
    name: &str,
    claim: &Claim,
    placement: &Placement,
) -> Result<Consumer, WorkloadError> {
    let mut spec = spec(context, &claim.name, &claim.spec, 0, placement);
    spec["volumes"][0]["persistentVolumeClaim"]["readOnly"] = json!(true);
    create(context, name, claim, spec, placement).await
}

/// Makes a pod that writes `blocks` blocks to `claim`, and has `others` besides.
///
/// # Errors
/// The API server's.
pub async fn create_pod_of_many(
    context: &Context,
    name: &str,
    claim: &Claim,
    others: &[Claim],
    blocks: u64,
    placement: &Placement,
) -> Result<Consumer, WorkloadError> {
    let mut spec = spec(context, &claim.name, &claim.spec, blocks, placement);
    for other in others {
        let place = format!("-{}", other.name);
        give(&mut spec, &other.name, &other.name, other.spec.mode, &place);
    }
    create(context, name, claim, spec, placement).await
}

async fn create(
    context: &Context,
    name: &str,
    claim: &Claim,
    spec: Value,
    placement: &Placement,
) -> Result<Consumer, WorkloadError> {
    let pods: Api<Pod> = wait::api(&context.client, &context.namespace);
    let object = context.object(json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name},
        "spec": spec,
    }))?;
    let made = pods
        .create(&PostParams::default(), &object)
        .await
        .map_err(context.api("create a pod"))?;
    let node = match placement {
        Placement::On(node) => node.clone(),
        Placement::Anywhere => String::new(),
    };
    Ok(Consumer {
        name: name.to_owned(),
        uid: made.uid().unwrap_or_default(),
        node,
        volume: claim.spec.clone(),
    })
}

impl Consumer {
    /// A pod that somebody else made.
    pub(super) fn of(pod: &Pod, volume: &VolumeSpec) -> Self {
        Self {
            name: pod.name_any(),
            uid: pod.uid().unwrap_or_default(),
            node: pod
                .spec
                .as_ref()
                .and_then(|s| s.node_name.clone())
                .unwrap_or_default(),
            volume: volume.clone(),
        }
    }

    /// Waits until it runs.
    ///
    /// # Errors
    /// If it does not in its bound; [`WorkloadError::NoImage`] where that is no volume's fault.
    pub async fn running(&mut self, context: &Context) -> Result<(), WorkloadError> {
        let pods: Api<Pod> = wait::api(&context.client, &context.namespace);
        let what = format!("pod {} runs", self.name);
        let ready = context
            .until_object(&pods, &what, &self.name, Limit::POD, condition::is_ready)
            .await;
        let error = match ready {
            Ok(node) => {
                self.node = node;
                return Ok(());
            }
            Err(error) => error,
        };
        let pod = pods
            .get_opt(&self.name)
            .await
            .map_err(context.api("read a pod"))?;
        if pod.is_some_and(|pod| condition::lacks_image(&pod))
            && let WorkloadError::Wait { wait, events } = error
        {
            return Err(WorkloadError::NoImage { wait, events });
        }
        Err(error)
    }

    /// Waits until the scheduler has refused it with `why` among its reasons.
    ///
    /// # Errors
    /// If it has not in its bound, or the pod was scheduled.
    pub async fn not_scheduled(&self, context: &Context, why: &str) -> Result<(), WorkloadError> {
        let pods: Api<Pod> = wait::api(&context.client, &context.namespace);
        let what = format!("pod {} waits: {why}", self.name);
        let look = |pod: &Pod| condition::is_unschedulable(pod, why);
        context
            .until_object(&pods, &what, &self.name, Limit::POD, look)
            .await
    }

    /// Waits until the attachment of `pv` to the pod's node is confirmed.
    ///
    /// # Errors
    /// If it is not in its bound.
    pub async fn attached(&self, context: &Context, pv: &str) -> Result<String, WorkloadError> {
        let api: Api<VolumeAttachment> = Api::all(context.client.clone());
        let what = format!("{pv} is attached to {}", self.node);
        let look = |list: &[VolumeAttachment]| {
            let of = |a: &&VolumeAttachment| a.spec.source.persistent_volume_name.as_deref() == Some(pv);
            match list.iter().find(of) {
                None => Look::NotYet(String::from("no attachment")),
                Some(a) if a.spec.attacher != context.driver.name => {
                    Look::Never(format!("attacher {}", a.spec.attacher))
                }
                Some(a) if a.spec.node_name != self.node => {
                    Look::NotYet(format!("attached to {}", a.spec.node_name))
                }
                Some(a) => match condition::is_attached(a) {
                    Look::Holds(()) => Look::Holds(a.name_any()),
                    Look::NotYet(seen) => Look::NotYet(seen),
                    Look::Never(seen) => Look::Never(seen),
                },
            }
        };
        context.until_objects(&api, &what, Limit::ATTACH, look).await
    }

    /// Asks for its deletion.
    ///
    /// # Errors
    /// The API server's.
    pub async fn delete(&self, context: &Context) -> Result<(), WorkloadError> {
        let pods: Api<Pod> = wait::api(&context.client, &context.namespace);
        context.delete(&pods, &self.name, &DeleteParams::default()).await
    }

    /// Removes it without asking its node, as `kubectl delete --force` does.
    ///
    /// # Errors
    /// The API server's.
    pub async fn delete_at_once(&self, context: &Context) -> Result<(), WorkloadError> {
        let pods: Api<Pod> = wait::api(&context.client, &context.namespace);
        let how = DeleteParams::default().grace_period(0);
        context.delete(&pods, &self.name, &how).await
    }

    /// Waits until it is gone.
    ///
    /// # Errors
    /// If it is not in its bound.
    pub async fn gone(&self, context: &Context) -> Result<(), WorkloadError> {
        let pods: Api<Pod> = wait::api(&context.client, &context.namespace);
        context.gone(&pods, &self.name).await
    }
}
