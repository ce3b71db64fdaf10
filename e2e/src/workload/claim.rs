//! Claims and the volumes behind them.
use std::time::Duration;

use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::api::storage::v1::VolumeAttachment;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use kube::{Api, ResourceExt};
use serde_json::json;

use super::context::{Context, WorkloadError};
use super::spec::{Access, Mode, VolumeSpec};
use crate::clock::Limit;
use crate::cluster::wait::Look;
use crate::cluster::{condition, wait};

/// A claim that was made.
#[derive(Clone, Debug)]
pub struct Claim {
    /// Its name.
    pub name: String,
    /// Its UID: the volume's name on the driver's side contains it.
    pub uid: String,
    /// How it was asked for.
    pub spec: VolumeSpec,
    /// Its PV, once bound.
    pub pv: Option<String>,
    /// The driver's id of its volume, once bound.
    pub volume: Option<String>,
}

fn access(access: Access) -> &'static str {
    match access {
        Access::ReadWriteOnce => "ReadWriteOnce",
        Access::ReadWriteOncePod => "ReadWriteOncePod",
    }
}

fn mode(mode: Mode) -> &'static str {
    match mode {
        Mode::Filesystem => "Filesystem",
        Mode::Block => "Block",
    }
}

fn manifest(name: &str, spec: &VolumeSpec, class: &str, pv: Option<&str>) -> serde_json::Value {
    json!({
        "apiVersion": "v1", "kind": "PersistentVolumeClaim",
        "metadata": {"name": name},
        "spec": {
            "storageClassName": class,
            "accessModes": [access(spec.access)],
            "volumeMode": mode(spec.mode),
            "volumeName": pv,
            "resources": {"requests": {"storage": spec.size}},
        }
    })
}

/// Asks for a volume.
///
/// # Errors
/// The API server's.
pub async fn create_claim(context: &Context, name: &str, spec: &VolumeSpec) -> Result<Claim, WorkloadError> {
    create(
        context,
        manifest(name, spec, context.class(spec.class)?, None),
        name,
        spec,
    )
    .await
}

/// Asks for a volume with the data of another claim's.
///
/// # Errors
/// The API server's.
pub async fn clone_claim(
    context: &Context,
    name: &str,
    spec: &VolumeSpec,
    source: &Claim,
) -> Result<Claim, WorkloadError> {
    let mut manifest = manifest(name, spec, context.class(spec.class)?, None);
    manifest["spec"]["dataSource"] = json!({"kind": "PersistentVolumeClaim", "name": source.name});
    create(context, manifest, name, spec).await
}

async fn create(
    context: &Context,
    manifest: serde_json::Value,
    name: &str,
    spec: &VolumeSpec,
) -> Result<Claim, WorkloadError> {
    let claims: Api<PersistentVolumeClaim> = wait::api(&context.client, &context.namespace);
    let object = context.object(manifest)?;
    let made = claims
        .create(&PostParams::default(), &object)
        .await
        .map_err(context.api("create a claim"))?;
    Ok(Claim {
        name: name.to_owned(),
        uid: made.uid().unwrap_or_default(),
        spec: spec.clone(),
        pv: None,
        volume: None,
    })
}

/// A PV written by hand over the volume of `from`, and a claim for it.
///
/// # Errors
/// The API server's.
pub async fn pre_provisioned(
    context: &Context,
    name: &str,
    from: &PersistentVolume,
    spec: &VolumeSpec,
) -> Result<Claim, WorkloadError> {
    let csi = from
        .spec
        .as_ref()
        .and_then(|s| s.csi.clone())
        .ok_or_else(|| WorkloadError::Unmet {
            expected: String::from("a PV of a CSI driver"),
            seen: from.name_any(),
        })?;
    let pv = format!("{}-{name}", context.namespace);
    let object: PersistentVolume = context.object(json!({
        "apiVersion": "v1", "kind": "PersistentVolume",
        "metadata": {"name": pv},
        "spec": {
            "capacity": {"storage": spec.size},
            "accessModes": [access(spec.access)],
            "volumeMode": mode(spec.mode),
            "persistentVolumeReclaimPolicy": "Delete",
            "storageClassName": "",
            "claimRef": {"namespace": context.namespace, "name": name},
            "csi": {
                "driver": context.driver.name, "volumeHandle": csi.volume_handle,
                "fsType": csi.fs_type, "volumeAttributes": csi.volume_attributes,
            },
        }
    }))?;
    let mut object = object;
    // Without this mark the provisioner leaves a PV that it did not write alone, and its volume with it.
    object.annotations_mut().insert(
        String::from("pv.kubernetes.io/provisioned-by"),
        context.driver.name.clone(),
    );
    Api::<PersistentVolume>::all(context.client.clone())
        .create(&PostParams::default(), &object)
        .await
        .map_err(context.api("create a PV"))?;
    create(context, manifest(name, spec, "", Some(&pv)), name, spec).await
}

impl Claim {
    /// Looks at the claim until `look` says that it holds: the one way to wait for what it shows.
    async fn shows<T>(
        &self,
        context: &Context,
        what: &str,
        limit: Duration,
        look: impl Fn(&PersistentVolumeClaim) -> Look<T>,
    ) -> Result<T, WorkloadError> {
        let claims: Api<PersistentVolumeClaim> = wait::api(&context.client, &context.namespace);
        let what = format!("claim {} {what}", self.name);
        context
            .until_object(&claims, &what, &self.name, limit, look)
            .await
    }

    /// Waits until it is bound.
    ///
    /// # Errors
    /// If it is not in its bound.
    pub async fn bound(&mut self, context: &Context) -> Result<PersistentVolume, WorkloadError> {
        let pv = self
            .shows(context, "is bound", Limit::PROVISION, condition::is_bound)
            .await?;
        let volumes: Api<PersistentVolume> = Api::all(context.client.clone());
        let object = volumes.get(&pv).await.map_err(context.api("read the PV"))?;
        self.volume = object
            .spec
            .as_ref()
            .and_then(|s| s.csi.as_ref())
            .map(|csi| csi.volume_handle.clone());
        self.pv = Some(pv);
        Ok(object)
    }

    /// Checks what a PV must say of this claim: driver, capacity, class, mode, claim and finalizers.
    ///
    /// # Errors
    /// [`WorkloadError::Unmet`] with the field.
    pub fn check_pv(&self, context: &Context, pv: &PersistentVolume) -> Result<(), WorkloadError> {
        let spec = pv.spec.clone().unwrap_or_default();
        let csi = spec.csi.unwrap_or_default();
        let capacity = spec
            .capacity
            .as_ref()
            .and_then(|c| c.get("storage"))
            .and_then(|q| condition::quantity_bytes(&q.0));
        let wanted = condition::quantity_bytes(&self.spec.size);
        let claim = spec.claim_ref.unwrap_or_default();
        let protection = String::from("kubernetes.io/pv-protection");
        let checks = [
            ("driver", csi.driver == context.driver.name, csi.driver.clone()),
            (
                "volumeHandle without ^",
                !csi.volume_handle.is_empty() && !csi.volume_handle.contains('^'),
                csi.volume_handle.clone(),
            ),
            (
                "capacity of at least the request",
                capacity >= wanted,
                format!("{capacity:?}"),
            ),
            (
                "volumeMode",
                spec.volume_mode.as_deref() == Some(mode(self.spec.mode)),
                format!("{:?}", spec.volume_mode),
            ),
            (
                "claimRef with the claim's uid",
                claim.uid.as_deref() == Some(self.uid.as_str()),
                format!("{:?}", claim.uid),
            ),
            (
                "claimRef's namespace",
                claim.namespace.as_deref() == Some(context.namespace.as_str()),
                format!("{:?}", claim.namespace),
            ),
            (
                "finalizer of protection",
                pv.finalizers().contains(&protection),
                format!("{:?}", pv.finalizers()),
            ),
        ];
        match checks.into_iter().find(|(_, holds, _)| !holds) {
            None => Ok(()),
            Some((field, _, seen)) => Err(WorkloadError::Unmet {
                expected: format!("PV {}: {field}", pv.name_any()),
                seen,
            }),
        }
    }

    /// Asks for more, of a claim that pods use or that none does.
    ///
    /// Only once the claim shows which. csi-resizer 2.3.0 writes what it has patched into the cache of its own watch: if
    /// another patch came in between, it has the older object there, and each of its own is refused until the claim changes
    /// again (resize_status.go: markControllerResizeInProgress). Kubernetes 1.37 patches a claim whenever its use changes.
    ///
    /// # Errors
    /// The API server's, or if the claim does not show it in its bound.
    pub async fn request(&self, context: &Context, size: &str, used: bool) -> Result<(), WorkloadError> {
        let what = if used { "is shown used" } else { "is shown unused" };
        self.shows(context, what, Limit::POD, |claim| {
            condition::shows_use(claim, used)
        })
        .await?;
        let claims: Api<PersistentVolumeClaim> = wait::api(&context.client, &context.namespace);
        let patch = json!({"spec": {"resources": {"requests": {"storage": size}}}});
        claims
            .patch(&self.name, &PatchParams::default(), &Patch::Merge(&patch))
            .await
            .map(drop)
            .map_err(context.api("ask for a larger claim"))
    }

    /// Waits until what is left of a resize is the node's, if anything is. A pod that comes earlier changes the claim's use: see
    /// [`Claim::request`].
    ///
    /// # Errors
    /// If it is not in its bound.
    pub async fn expanded_by_controller(&self, context: &Context, size: &str) -> Result<(), WorkloadError> {
        let bytes = condition::quantity_bytes(size).unwrap_or(u64::MAX);
        let what = format!("is expanded to {size} by the controller");
        let look = |claim: &PersistentVolumeClaim| condition::is_expanded_by_controller(claim, bytes);
        self.shows(context, &what, Limit::POD, look).await
    }

    /// Waits until the claim shows `size` and no resize is under way.
    ///
    /// # Errors
    /// If it does not in its bound.
    pub async fn has(&self, context: &Context, size: &str) -> Result<(), WorkloadError> {
        let bytes = condition::quantity_bytes(size).unwrap_or(u64::MAX);
        let look = |claim: &PersistentVolumeClaim| condition::has_capacity(claim, bytes);
        self.shows(context, &format!("has {size}"), Limit::POD, look)
            .await
    }

    /// Asks for its deletion; one that is gone is no error.
    ///
    /// # Errors
    /// The API server's.
    pub async fn delete(&self, context: &Context) -> Result<(), WorkloadError> {
        let claims: Api<PersistentVolumeClaim> = wait::api(&context.client, &context.namespace);
        context
            .delete(&claims, &self.name, &DeleteParams::default())
            .await
    }

    /// Waits until no attachment of its volume is left.
    ///
    /// # Errors
    /// If one is after its bound.
    pub async fn detached(&self, context: &Context) -> Result<(), WorkloadError> {
        let pv = self.pv.as_deref().unwrap_or_default();
        let api: Api<VolumeAttachment> = Api::all(context.client.clone());
        let what = format!("{pv} is detached");
        let look = |list: &[VolumeAttachment]| {
            let of = |a: &&VolumeAttachment| a.spec.source.persistent_volume_name.as_deref() == Some(pv);
            match list.iter().find(of) {
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
        };
        context.until_objects(&api, &what, Limit::DELETE, look).await
    }

    /// Waits until the claim is gone.
    ///
    /// # Errors
    /// If it is not in its bound.
    pub async fn gone(&self, context: &Context) -> Result<(), WorkloadError> {
        let claims: Api<PersistentVolumeClaim> = wait::api(&context.client, &context.namespace);
        context.gone(&claims, &self.name).await
    }

    /// Waits until the PV is gone.
    ///
    /// # Errors
    /// If it is not in its bound.
    pub async fn pv_gone(&self, context: &Context) -> Result<(), WorkloadError> {
        let Some(pv) = &self.pv else {
            return Ok(());
        };
        let volumes: Api<PersistentVolume> = Api::all(context.client.clone());
        context.gone(&volumes, pv).await
    }

    /// Asks for other attributes.
    ///
    /// # Errors
    /// The API server's.
    pub async fn set_attributes_class(&self, context: &Context, class: &str) -> Result<(), WorkloadError> {
        let claims: Api<PersistentVolumeClaim> = wait::api(&context.client, &context.namespace);
        let patch = json!({"spec": {"volumeAttributesClassName": class}});
        claims
            .patch(&self.name, &PatchParams::default(), &Patch::Merge(&patch))
            .await
            .map(drop)
            .map_err(context.api("ask for other attributes"))
    }

    /// Waits until the claim shows that its volume has the attributes of `class`.
    ///
    /// # Errors
    /// If it does not in its bound.
    pub async fn has_attributes_class(&self, context: &Context, class: &str) -> Result<(), WorkloadError> {
        let what = format!("has the attributes of {class}");
        let look = |claim: &PersistentVolumeClaim| {
            let status = claim.status.as_ref();
            match status.and_then(|s| s.current_volume_attributes_class_name.as_deref()) {
                Some(now) if now == class => Look::Holds(()),
                now => Look::NotYet(format!(
                    "attributes class {now:?}, under way: {:?}",
                    status
                        .and_then(|s| s.modify_volume_status.as_ref())
                        .map(|s| &s.status)
                )),
            }
        };
        self.shows(context, &what, Limit::PROVISION, look).await
    }

    /// Changes what happens to the volume when its claim goes.
    ///
    /// # Errors
    /// The API server's.
    pub async fn set_reclaim_policy(&self, context: &Context, policy: &str) -> Result<(), WorkloadError> {
        let volumes: Api<PersistentVolume> = Api::all(context.client.clone());
        let patch = json!({"spec": {"persistentVolumeReclaimPolicy": policy}});
        volumes
            .patch(
                self.pv.as_deref().unwrap_or_default(),
                &PatchParams::default(),
                &Patch::Merge(&patch),
            )
            .await
            .map(drop)
            .map_err(context.api("change the reclaim policy"))
    }
}
