//! A pod that uses a claim: it writes numbered blocks, and verifies them.
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::storage::v1::VolumeAttachment;
use kube::api::{AttachParams, DeleteParams, ListParams, LogParams, PostParams};
use kube::{Api, ResourceExt};
use serde_json::{Value, json};
use tokio::io::AsyncReadExt;

use super::blocks::Report;
use super::claim::Claim;
use super::context::{Context, WorkloadError};
use super::spec::{Mode, VolumeSpec};
use crate::clock::Limit;
use crate::cluster::condition;
use crate::cluster::wait::{self, Look};
use crate::history::What;

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
    volume: VolumeSpec,
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
    let mut container = json!({
        "name": "io",
        "image": context.image,
        "imagePullPolicy": "IfNotPresent",
        // What it complained of when it ended stands in the pod's status then.
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "env": [{"name": "POD_UID", "valueFrom": {"fieldRef": {"fieldPath": "metadata.uid"}}}],
        "args": ["io", "write", "--path", path, "--writer", "$(POD_UID)", "--blocks", blocks.to_string(), "--interval-ms", "5"],
    });
    let place = match volume.mode {
        Mode::Filesystem => ("volumeMounts", json!([{"name": "data", "mountPath": MOUNT}])),
        Mode::Block => ("volumeDevices", json!([{"name": "data", "devicePath": DEVICE}])),
    };
    container[place.0] = place.1;
    let mut spec = json!({
        "terminationGracePeriodSeconds": 1,
        "automountServiceAccountToken": false,
        "containers": [container],
        "volumes": [{"name": "data", "persistentVolumeClaim": {"claimName": claim}}],
    });
    if let Placement::On(node) = placement {
        spec["affinity"] = on_node(node);
    }
    if let Some(group) = volume.group {
        spec["securityContext"] = json!({"runAsUser": USER, "runAsGroup": USER, "fsGroup": group});
    }
    spec
}

fn unmet(expected: String, report: Report) -> WorkloadError {
    WorkloadError::Unmet {
        expected,
        seen: format!(
            "{} blocks by {:?}; {}",
            report.blocks,
            report.writers,
            report.fault.unwrap_or_default()
        ),
    }
}

/// Only this node, by its name: the label of its host's name need not be the same.
pub(super) fn on_node(node: &str) -> Value {
    json!({"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [
        {"matchFields": [{"key": "metadata.name", "operator": "In", "values": [node]}]}
    ]}}})
}

fn path(mode: Mode) -> String {
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
    let spec = spec(context, &claim.name, &claim.spec, blocks, placement);
    create(context, name, claim, spec, placement).await
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
        let ready = wait::object(&pods, &what, &self.name, Limit::POD, condition::is_ready);
        let error = match context.waited(&what, ready).await {
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
            .waited(&what, wait::object(&pods, &what, &self.name, Limit::POD, look))
            .await
    }

    /// Waits until it has acknowledged `blocks` blocks; the number that it has.
    ///
    /// # Errors
    /// If it has not in its bound.
    pub async fn acknowledged(&self, context: &Context, blocks: u64) -> Result<u64, WorkloadError> {
        let what = format!("pod {} has {blocks} blocks on disk", self.name);
        let look = || async {
            match self.last_acknowledged(context).await {
                Ok(seen) if seen >= blocks => Look::Holds(seen),
                // Data that was lost shows here first: the writer goes on after what it found.
                Ok(seen) => match (self.ended(context).await, self.found(context).await) {
                    (Ok(Some(ended)), _) => Look::Never(format!("{seen} blocks; {ended}")),
                    (Err(error), _) | (_, Err(error)) => Look::NotYet(error.to_string()),
                    (Ok(None), Ok(Some(found))) => {
                        Look::NotYet(format!("{seen} blocks, {found} of them found when it began"))
                    }
                    (Ok(None), Ok(None)) => Look::NotYet(format!("{seen} blocks")),
                },
                Err(error) => Look::NotYet(error.to_string()),
            }
        };
        context.waited(&what, wait::until(&what, Limit::POD, look)).await
    }

    /// How its writer ended, if it did: what it cannot read or write now, it cannot when kubelet starts it again.
    async fn ended(&self, context: &Context) -> Result<Option<String>, kube::Error> {
        let pods: Api<Pod> = wait::api(&context.client, &context.namespace);
        let pod = pods.get_opt(&self.name).await?;
        Ok(pod.as_ref().and_then(condition::has_failed))
    }

    /// How many blocks it found when it began, by its first words.
    async fn found(&self, context: &Context) -> Result<Option<u64>, kube::Error> {
        let pods: Api<Pod> = wait::api(&context.client, &context.namespace);
        let parameters = LogParams {
            limit_bytes: Some(64),
            ..LogParams::default()
        };
        let log = pods.logs(&self.name, &parameters).await?;
        Ok(log.lines().find_map(super::blocks::found))
    }

    async fn last_acknowledged(&self, context: &Context) -> Result<u64, kube::Error> {
        let pods: Api<Pod> = wait::api(&context.client, &context.namespace);
        let parameters = LogParams {
            tail_lines: Some(20),
            ..LogParams::default()
        };
        let log = pods.logs(&self.name, &parameters).await?;
        Ok(log
            .lines()
            .filter_map(super::blocks::acknowledged)
            .max()
            .unwrap_or(0))
    }

    /// Reads the blocks back inside the pod, and checks that all that were acknowledged are there, whole and in order. Who
    /// wrote them goes into the history.
    ///
    /// # Errors
    /// [`WorkloadError::Unmet`] with what is missing.
    pub async fn verify(&self, context: &Context, acknowledged: u64) -> Result<(), WorkloadError> {
        let report = self.read(context, acknowledged).await?;
        if report.blocks >= acknowledged && report.fault.is_none() {
            return Ok(());
        }
        Err(unmet(
            format!("{acknowledged} acknowledged blocks, whole, in order"),
            report,
        ))
    }

    /// The same, and that there is not one block more.
    ///
    /// # Errors
    /// [`WorkloadError::Unmet`] with what is missing or too much.
    pub async fn verify_exactly(&self, context: &Context, blocks: u64) -> Result<(), WorkloadError> {
        let report = self.read(context, blocks).await?;
        if report.blocks == blocks && report.fault.is_none() {
            return Ok(());
        }
        Err(unmet(
            format!("{blocks} blocks and not one more, whole, in order"),
            report,
        ))
    }

    /// Checks that the volume as the pod sees it has the `size` that was asked for, less what a filesystem needs for itself.
    ///
    /// # Errors
    /// [`WorkloadError::Unmet`] with its size.
    pub async fn has_room(&self, context: &Context, size: &str) -> Result<(), WorkloadError> {
        let wanted = condition::quantity_bytes(size).unwrap_or(u64::MAX);
        let least = match self.volume.mode {
            Mode::Block => wanted,
            // Journal, tables and logs of a small filesystem take up to a quarter of it.
            Mode::Filesystem => wanted / 4 * 3,
        };
        let report = self.read(context, 0).await?;
        if report.capacity_bytes >= least {
            return Ok(());
        }
        Err(WorkloadError::Unmet {
            expected: format!("pod {} to have at least {least} bytes of {size}", self.name),
            seen: format!("{} bytes", report.capacity_bytes),
        })
    }

    async fn read(&self, context: &Context, acknowledged: u64) -> Result<Report, WorkloadError> {
        let pods: Api<Pod> = wait::api(&context.client, &context.namespace);
        let path = path(self.volume.mode);
        let words = ["/holdfast", "io", "verify", "--path", &path];
        let parameters = AttachParams::default().stdout(true).stderr(true).container("io");
        let mut process = pods
            .exec(&self.name, words, &parameters)
            .await
            .map_err(context.api("exec in a pod"))?;
        let mut said = String::new();
        let mut complaints = String::new();
        let reading = async {
            if let Some(mut stdout) = process.stdout() {
                // A stream that breaks shows as a report that cannot be read.
                let _ = stdout.read_to_string(&mut said).await;
            }
            if let Some(mut stderr) = process.stderr() {
                let _ = stderr.read_to_string(&mut complaints).await;
            }
        };
        let in_time = tokio::time::timeout(Limit::POD, reading).await.is_ok();
        let report: Report = serde_json::from_str(said.trim()).map_err(|_| WorkloadError::Unmet {
            expected: format!("pod {} to report the blocks it reads", self.name),
            seen: if in_time {
                format!("{said}{complaints}")
            } else {
                String::from("no answer")
            },
        })?;
        context.recorder.record(
            Some(&context.scenario),
            What::Blocks {
                pod: self.name.clone(),
                acknowledged,
                found: report.blocks,
                writers: report.writers.clone(),
                ends: report.ends.clone(),
            },
        );
        let wanted = self
            .volume
            .class
            .filesystem()
            .filter(|_| self.volume.mode == Mode::Filesystem);
        if let (Some(wanted), Some(seen)) = (wanted, report.filesystem.as_deref())
            && wanted != seen
        {
            return Err(WorkloadError::Unmet {
                expected: format!("pod {} to have {wanted}, as its StorageClass says", self.name),
                seen: seen.to_owned(),
            });
        }
        Ok(report)
    }

    /// Waits until the attachment of `pv` to the pod's node is confirmed.
    ///
    /// # Errors
    /// If it is not in its bound.
    pub async fn attached(&self, context: &Context, pv: &str) -> Result<String, WorkloadError> {
        let api: Api<VolumeAttachment> = Api::all(context.client.clone());
        let what = format!("{pv} is attached to {}", self.node);
        let look = || async {
            let list = match api.list(&ListParams::default()).await {
                Ok(list) => list,
                Err(error) => return Look::NotYet(format!("the API server: {error}")),
            };
            let of = |a: &&VolumeAttachment| a.spec.source.persistent_volume_name.as_deref() == Some(pv);
            match list.items.iter().find(of) {
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
        context
            .waited(&what, wait::until(&what, Limit::ATTACH, look))
            .await
    }

    /// Asks for its deletion.
    ///
    /// # Errors
    /// The API server's.
    pub async fn delete(&self, context: &Context) -> Result<(), WorkloadError> {
        let pods: Api<Pod> = wait::api(&context.client, &context.namespace);
        context.delete(&pods, &self.name, &DeleteParams::default()).await
    }

    /// Waits until it is gone.
    ///
    /// # Errors
    /// If it is not in its bound.
    pub async fn gone(&self, context: &Context) -> Result<(), WorkloadError> {
        let pods: Api<Pod> = wait::api(&context.client, &context.namespace);
        context.gone(&pods, &self.name).await
    }

    /// Waits until no attachment of `pv` is left.
    ///
    /// # Errors
    /// If one is after its bound.
    pub async fn detached(&self, context: &Context, pv: &str) -> Result<(), WorkloadError> {
        let api: Api<VolumeAttachment> = Api::all(context.client.clone());
        let what = format!("{pv} is detached");
        let look = || async {
            match api.list(&ListParams::default()).await {
                Err(error) => Look::NotYet(format!("the API server: {error}")),
                Ok(list) => {
                    match list
                        .items
                        .iter()
                        .find(|a| a.spec.source.persistent_volume_name.as_deref() == Some(pv))
                    {
                        None => Look::Holds(()),
                        Some(a) => Look::NotYet(format!(
                            "{} on {}, deletion {}, detach error {:?}",
                            a.name_any(),
                            a.spec.node_name,
                            if a.metadata.deletion_timestamp.is_some() {
                                "asked for"
                            } else {
                                "not asked for"
                            },
                            a.status
                                .as_ref()
                                .and_then(|s| s.detach_error.as_ref())
                                .and_then(|e| e.message.clone())
                        )),
                    }
                }
            }
        };
        context
            .waited(&what, wait::until(&what, Limit::DELETE, look))
            .await
    }
}
