//! Calls to the node, and what they are made of: one volume, attached to it.
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use holdfast_proto::csi as pb;
use holdfast_proto::csi::identity_client::IdentityClient;
use holdfast_proto::csi::node_client::NodeClient;
use tonic::transport::Channel;

use super::controller::{capability, create};
use super::running::Running;
use super::{median, millis};

/// A volume that a node may stage.
struct Attached<'a> {
    running: &'a Running,
    folder: &'a Path,
    volume: pb::Volume,
    publish_context: HashMap<String, String>,
}

impl<'a> Attached<'a> {
    async fn create(
        running: &'a Running,
        folder: &'a Path,
        node: &str,
        wanted: pb::CreateVolumeRequest,
    ) -> Self {
        let mut controller = running.controller();
        let reply = controller.create_volume(wanted).await.unwrap();
        let volume = reply.into_inner().volume.unwrap();
        let attach = pb::ControllerPublishVolumeRequest {
            volume_id: volume.volume_id.clone(),
            node_id: node.to_owned(),
            volume_capability: Some(capability()),
            ..Default::default()
        };
        // A driver that does not attach has nothing to hand on.
        let attached = controller.controller_publish_volume(attach).await;
        let publish_context =
            attached.map_or_else(|_| HashMap::new(), |reply| reply.into_inner().publish_context);
        std::fs::create_dir_all(folder.join("stage")).unwrap();
        Self {
            running,
            folder,
            volume,
            publish_context,
        }
    }

    fn node(&self) -> NodeClient<Channel> {
        NodeClient::new(self.running.channel.clone())
    }

    fn text(&self, name: &str) -> String {
        self.folder.join(name).display().to_string()
    }

    fn target(&self) -> PathBuf {
        self.folder.join("target")
    }

    async fn stage_and_publish(&self) {
        let stage = pb::NodeStageVolumeRequest {
            volume_id: self.volume.volume_id.clone(),
            publish_context: self.publish_context.clone(),
            staging_target_path: self.text("stage"),
            volume_capability: Some(capability()),
            volume_context: self.volume.volume_context.clone(),
            ..Default::default()
        };
        self.node().node_stage_volume(stage).await.unwrap();
        let publish = pb::NodePublishVolumeRequest {
            volume_id: self.volume.volume_id.clone(),
            publish_context: self.publish_context.clone(),
            staging_target_path: self.text("stage"),
            target_path: self.text("target"),
            volume_capability: Some(capability()),
            volume_context: self.volume.volume_context.clone(),
            ..Default::default()
        };
        self.node().node_publish_volume(publish).await.unwrap();
    }

    async fn unpublish_and_unstage(&self) {
        let unpublish = pb::NodeUnpublishVolumeRequest {
            volume_id: self.volume.volume_id.clone(),
            target_path: self.text("target"),
        };
        self.node().node_unpublish_volume(unpublish).await.unwrap();
        let unstage = pb::NodeUnstageVolumeRequest {
            volume_id: self.volume.volume_id.clone(),
            staging_target_path: self.text("stage"),
        };
        self.node().node_unstage_volume(unstage).await.unwrap();
    }

    async fn detach(&self, node: &str) {
        let detach = pb::ControllerUnpublishVolumeRequest {
            volume_id: self.volume.volume_id.clone(),
            node_id: node.to_owned(),
            ..Default::default()
        };
        // A driver that does not attach does not detach either.
        let _ = self
            .running
            .controller()
            .controller_unpublish_volume(detach)
            .await;
    }

    /// Writes 1 GiB into it, as a pod would.
    async fn fill(&self) {
        self.stage_and_publish().await;
        let written = Command::new("dd")
            .args([
                "if=/dev/urandom",
                "bs=1M",
                "count=1024",
                "conv=fsync",
                "status=none",
            ])
            .arg(format!("of={}", self.target().join("data").display()))
            .status();
        assert!(
            written.is_ok_and(|status| status.success()),
            "1 GiB is not written"
        );
        self.unpublish_and_unstage().await;
    }
}

/// Stage, publish, unpublish, unstage of one mounted volume, the median of 15 in ms; none without root.
pub(super) async fn round(running: &Running, folder: &Path, node: &str) -> Option<f64> {
    if !nix::unistd::geteuid().is_root() {
        return None;
    }
    let volume = Attached::create(running, folder, node, create(String::from("round"))).await;
    let mut times = Vec::new();
    for _ in 0..15 {
        let since = Instant::now();
        volume.stage_and_publish().await;
        volume.unpublish_and_unstage().await;
        times.push(since.elapsed());
    }
    Some(median(times))
}

/// ListVolumes and Probe while two clones of 1 GiB are made: the 99th percentile of each pair in ms; none without root, or where
/// nothing is cloned.
pub(super) async fn beside_clones(running: &Running, folder: &Path, node: &str) -> Option<f64> {
    if !nix::unistd::geteuid().is_root() {
        return None;
    }
    let large = |name: &str| pb::CreateVolumeRequest {
        capacity_range: Some(pb::CapacityRange {
            required_bytes: 1536 << 20,
            limit_bytes: 0,
        }),
        ..create(name.to_owned())
    };
    let source = Attached::create(running, folder, node, large("source")).await;
    source.fill().await;
    source.detach(node).await;
    let mut controller = running.controller();
    let clones: Vec<_> = ["clone-1", "clone-2"]
        .map(|name| {
            let mut controller = running.controller();
            let id = source.volume.volume_id.clone();
            let request = pb::CreateVolumeRequest {
                volume_content_source: Some(pb::VolumeContentSource {
                    r#type: Some(pb::volume_content_source::Type::Volume(
                        pb::volume_content_source::VolumeSource { volume_id: id },
                    )),
                }),
                ..large(name)
            };
            tokio::spawn(async move { controller.create_volume(request).await.map(drop) })
        })
        .into();
    let mut times = Vec::new();
    let mut identity = IdentityClient::new(running.channel.clone());
    while clones.iter().any(|clone| !clone.is_finished()) {
        let since = Instant::now();
        let request = pb::ListVolumesRequest {
            max_entries: 100,
            ..Default::default()
        };
        controller.list_volumes(request).await.unwrap();
        identity.probe(pb::ProbeRequest {}).await.unwrap();
        times.push(since.elapsed());
    }
    for clone in clones {
        clone.await.unwrap().ok()?;
    }
    times.sort();
    times.get(times.len() * 99 / 100).copied().map(millis)
}
