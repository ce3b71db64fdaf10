//! Watches a volume's state on a node while a workload goes on, from the API and the node's mountinfo.
use std::sync::{Arc, Mutex};

use k8s_openapi::api::core::v1::PersistentVolume;
use k8s_openapi::api::storage::v1::VolumeAttachment;
use kube::Api;
use kube::api::ListParams;
use tokio::task::JoinHandle;

use super::context::Context;
use super::spec::Mode;
use crate::clock::Limit;
use crate::history::{VolumeState, What};

/// A watch that runs until it is ended.
#[derive(Debug)]
pub struct Observer {
    seen: Arc<Mutex<Vec<VolumeState>>>,
    task: JoinHandle<()>,
}

impl Drop for Observer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Observer {
    /// Watches the volume of `pv` on `node`.
    pub fn start(context: &Context, pv: &str, volume: &str, node: &str, mode: Mode) -> Self {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let (context, pv, volume, node) =
            (context.clone(), pv.to_owned(), volume.to_owned(), node.to_owned());
        let into = Arc::clone(&seen);
        let task = tokio::spawn(async move {
            let mut ticks = tokio::time::interval(Limit::LOOK);
            ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
            loop {
                ticks.tick().await;
                // A moment that cannot be read says nothing; the next one may.
                let Some(state) = look(&context, &pv, &volume, &node, mode).await else {
                    continue;
                };
                let Ok(mut seen) = into.lock() else { return };
                if seen.last() != Some(&state) {
                    seen.push(state);
                    let (pv, node) = (pv.clone(), node.clone());
                    context
                        .recorder
                        .record(Some(&context.scenario), What::Volume { pv, node, state });
                }
            }
        });
        Self { seen, task }
    }

    /// The states seen so far, each where it changed.
    pub fn seen(&self) -> Vec<VolumeState> {
        self.seen.lock().map(|seen| seen.clone()).unwrap_or_default()
    }
}

async fn look(context: &Context, pv: &str, volume: &str, node: &str, mode: Mode) -> Option<VolumeState> {
    let mountinfo = context.cluster.node(node).read("/proc/1/mountinfo").await.ok()?;
    let (published, staged) = mounts(&mountinfo, pv, volume, mode);
    if published {
        return Some(VolumeState::Published);
    }
    if staged {
        return Some(VolumeState::VolReady);
    }
    let attachments = Api::<VolumeAttachment>::all(context.client.clone())
        .list(&ListParams::default())
        .await
        .ok()?;
    let attached = attachments.items.iter().any(|a| {
        a.spec.source.persistent_volume_name.as_deref() == Some(pv)
            && a.spec.node_name == node
            && a.status.as_ref().is_some_and(|s| s.attached)
    });
    if attached {
        return Some(VolumeState::NodeReady);
    }
    let exists = Api::<PersistentVolume>::all(context.client.clone())
        .get_opt(pv)
        .await
        .ok()?
        .is_some();
    Some(if exists {
        VolumeState::Created
    } else {
        VolumeState::None
    })
}

/// Whether the volume is published, and whether it is staged, by a node's mountinfo.
fn mounts(mountinfo: &str, pv: &str, volume: &str, mode: Mode) -> (bool, bool) {
    let places: Vec<&str> = mountinfo
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .collect();
    let any = |test: &dyn Fn(&str) -> bool| places.iter().any(|place| test(place));
    match mode {
        Mode::Filesystem => {
            let folder = staging_folder(volume);
            (
                any(&|p| p.contains(&format!("/volumes/kubernetes.io~csi/{pv}/mount"))),
                any(&|p| {
                    p.contains("/plugins/kubernetes.io/csi/")
                        && p.contains(&folder)
                        && p.ends_with("/globalmount")
                }),
            )
        }
        // A device is staged without a mount that everyone could see: published is what can be observed.
        Mode::Block => {
            let published = any(&|p| p.contains(&format!("/volumeDevices/publish/{pv}/")));
            (published, published)
        }
    }
}

/// Kubelet's staging folder is called by the SHA-256 of the volume's id.
pub fn staging_folder(volume: &str) -> String {
    use sha2::Digest;
    sha2::Sha256::digest(volume.as_bytes())
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn staged_and_published_are_told_apart() {
        let stage = format!(
            "1 0 7:0 / /var/lib/kubelet/plugins/kubernetes.io/csi/d/{}/globalmount rw - ext4 /dev/loop0 rw",
            staging_folder("v")
        );
        let publish =
            "2 0 7:0 / /var/lib/kubelet/pods/u/volumes/kubernetes.io~csi/pvc-1/mount rw - ext4 /dev/loop0 rw";
        assert_eq!(mounts(&stage, "pvc-1", "v", Mode::Filesystem), (false, true));
        assert_eq!(
            mounts(&format!("{stage}\n{publish}"), "pvc-1", "v", Mode::Filesystem),
            (true, true)
        );
        assert_eq!(mounts("", "pvc-1", "v", Mode::Filesystem), (false, false));
    }
}
