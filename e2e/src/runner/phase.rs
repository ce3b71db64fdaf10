//! Proves that an operation has begun and is not over: a fault that comes before or after it hits nothing.
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, Pod};
use k8s_openapi::api::storage::v1::VolumeAttachment;
use kube::api::ListParams;
use kube::{Api, ResourceExt};

use super::execute::{ActError, Run};
use crate::clock::Limit;
use crate::cluster::condition::claim_of;
use crate::cluster::wait::{self, Look};
use crate::fault::{FaultError, Phase};
use crate::id::folder_of;
use crate::ledger::csi_mounts;

/// Whom an operation is about.
#[derive(Clone, Copy, Debug)]
pub(super) struct Scene<'a> {
    /// The claim.
    pub(super) claim: &'a str,
    /// The pod that uses it.
    pub(super) pod: &'a str,
    /// The pod's node.
    pub(super) node: &'a str,
}

/// Waits until the operation of `phase` is seen under way; gives what was seen. The driver is held meanwhile, so what is
/// seen once stays true until it is let go.
///
/// # Errors
/// If it is not in its bound: it was over already, or never began.
pub(super) async fn under_way(run: &Run, phase: Phase, scene: &Scene<'_>) -> Result<String, ActError> {
    let what = format!("{phase:?} is under way").to_lowercase();
    let look = || async {
        match seen(run, phase, scene).await {
            Ok(look) => look,
            Err(error) => Look::NotYet(error.to_string()),
        }
    };
    wait::until(&what, Limit::CALL, look)
        .await
        .map_err(|error| ActError::Fault(FaultError::Wait(error)))
}

async fn seen(run: &Run, phase: Phase, scene: &Scene<'_>) -> Result<Look<String>, ActError> {
    match phase {
        Phase::Provisioning => {
            let claim = claim(run, scene).await?;
            let bound = claim.as_ref().and_then(|c| c.spec.as_ref()?.volume_name.clone());
            Ok(match (claim, bound) {
                (Some(_), None) => Look::Holds(format!("claim {} has no volume yet", scene.claim)),
                (_, Some(volume)) => Look::Never(format!("claim {} has volume {volume}", scene.claim)),
                (None, None) => Look::NotYet(format!("no claim {}", scene.claim)),
            })
        }
        Phase::Attaching => Ok(match attachment(run, scene).await? {
            Some(va) if is_attached(&va) => Look::Never(format!("{} is attached", va.name_any())),
            Some(va) => Look::Holds(format!("attachment {} is not confirmed yet", va.name_any())),
            None => Look::NotYet(String::from("no attachment")),
        }),
        Phase::Detaching => Ok(match attachment(run, scene).await? {
            Some(va) if va.metadata.deletion_timestamp.is_some() => {
                Look::Holds(format!("attachment {} is to go, and is there", va.name_any()))
            }
            Some(va) => Look::NotYet(format!("attachment {} is not to go yet", va.name_any())),
            None => Look::Never(String::from("the attachment is gone")),
        }),
        Phase::Deleting => {
            let Some(pv) = volume(run, scene).await? else {
                return Ok(Look::Never(String::from("the PV is gone")));
            };
            let phase = pv
                .status
                .as_ref()
                .and_then(|s| s.phase.clone())
                .unwrap_or_default();
            Ok(
                if phase == "Released" || pv.metadata.deletion_timestamp.is_some() {
                    Look::Holds(format!("PV {} is {phase}, and is there", pv.name_any()))
                } else {
                    Look::NotYet(format!("PV {} is {phase}", pv.name_any()))
                },
            )
        }
        Phase::Mounting => {
            let attached = attachment(run, scene).await?.is_some_and(|va| is_attached(&va));
            let mounts = mounts(run, scene).await?;
            Ok(match (attached, mounts.as_slice()) {
                (false, _) => Look::NotYet(String::from("not attached yet")),
                (true, []) => Look::Holds(format!("attached to {}, not mounted there yet", scene.node)),
                (true, [path, ..]) => Look::Never(format!("mounted at {path}")),
            })
        }
        Phase::Unmounting => {
            let pods: Api<Pod> = wait::api(&run.site.client, &run.context.namespace);
            let pod = pods.get_opt(scene.pod).await.map_err(api("read a pod"))?;
            let goes = pod.is_none_or(|pod| pod.metadata.deletion_timestamp.is_some());
            let mounts = mounts(run, scene).await?;
            Ok(match (goes, mounts.first()) {
                (false, _) => Look::NotYet(format!("pod {} is not to go yet", scene.pod)),
                (true, Some(path)) => Look::Holds(format!("pod {} is to go, {path} is mounted", scene.pod)),
                (true, None) => Look::Never(format!("nothing is mounted on {} any more", scene.node)),
            })
        }
    }
}

fn api(doing: &'static str) -> impl FnOnce(kube::Error) -> ActError {
    move |source| {
        ActError::Fault(FaultError::Api {
            doing,
            source: Box::new(source),
        })
    }
}

fn is_attached(attachment: &VolumeAttachment) -> bool {
    attachment.status.as_ref().is_some_and(|status| status.attached)
}

async fn claim(run: &Run, scene: &Scene<'_>) -> Result<Option<PersistentVolumeClaim>, ActError> {
    let claims: Api<PersistentVolumeClaim> = wait::api(&run.site.client, &run.context.namespace);
    claims.get_opt(scene.claim).await.map_err(api("read a claim"))
}

/// The PV whose claim this is, or was.
async fn volume(run: &Run, scene: &Scene<'_>) -> Result<Option<PersistentVolume>, ActError> {
    let list = Api::<PersistentVolume>::all(run.site.client.clone())
        .list(&ListParams::default())
        .await
        .map_err(api("list the volumes"))?;
    let its = (run.context.namespace.as_str(), scene.claim);
    Ok(list.items.into_iter().find(|pv| claim_of(pv) == Some(its)))
}

async fn attachment(run: &Run, scene: &Scene<'_>) -> Result<Option<VolumeAttachment>, ActError> {
    let Some(pv) = volume(run, scene).await? else {
        return Ok(None);
    };
    let list = Api::<VolumeAttachment>::all(run.site.client.clone())
        .list(&ListParams::default())
        .await
        .map_err(api("list the attachments"))?;
    let name = pv.name_any();
    Ok(list
        .items
        .into_iter()
        .find(|va| va.spec.source.persistent_volume_name.as_deref() == Some(name.as_str())))
}

/// Where the volume is mounted on the pod's node.
async fn mounts(run: &Run, scene: &Scene<'_>) -> Result<Vec<String>, ActError> {
    let Some(pv) = volume(run, scene).await? else {
        return Ok(Vec::new());
    };
    let csi = pv.spec.as_ref().and_then(|spec| spec.csi.as_ref());
    let folder = folder_of(csi.map_or("", |csi| csi.volume_handle.as_str()));
    let name = pv.name_any();
    let text = run.site.host()?.node(scene.node).mountinfo().await?;
    let paths = csi_mounts(&text).into_iter().map(|mount| mount.path);
    Ok(paths
        .filter(|path| path.contains(&folder) || path.contains(&name))
        .collect())
}
