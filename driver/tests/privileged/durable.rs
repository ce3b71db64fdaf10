//! T1: what a reply promises is on disk before the reply, for every call that writes, as the kernel saw it.
use std::collections::{BTreeSet, HashMap};

use crate::common::trace::{Step, Traced, in_order};
use crate::common::*;
use holdfast_proto::csi as pb;
use holdfast_proto::csi::controller_client::ControllerClient;
use holdfast_proto::csi::node_client::NodeClient;
use tonic::Code;
use tonic::transport::Channel;

/// Every call whose order is looked at below.
const CALLS: [&str; 11] = [
    "CreateVolume",
    "DeleteVolume",
    "ControllerPublishVolume",
    "ControllerUnpublishVolume",
    "ControllerExpandVolume",
    "ControllerModifyVolume",
    "NodeStageVolume",
    "NodeUnstageVolume",
    "NodePublishVolume",
    "NodeUnpublishVolume",
    "NodeExpandVolume",
];

fn synced(name: &str) -> Step {
    Step::Synced(name.to_owned())
}

/// A file is written beside its place, made durable, put in its place, and its name made durable.
fn put(temporary: &str, name: &str, folder: &str) -> Vec<Step> {
    vec![
        synced(temporary),
        Step::Renamed(temporary.to_owned(), name.to_owned()),
        synced(folder),
    ]
}

fn gone(name: &str, folder: &str) -> Vec<Step> {
    vec![Step::Removed(name.to_owned()), synced(folder)]
}

/// The files of one volume.
struct Files {
    id: String,
    image: String,
}

impl Files {
    fn of(id: &str) -> Self {
        Self {
            id: id.to_owned(),
            image: format!("{id}.img"),
        }
    }

    fn record(&self) -> Vec<Step> {
        put(
            &format!("{}.json.tmp", self.id),
            &format!("{}.json", self.id),
            "volumes",
        )
    }

    fn request(&self) -> Vec<Step> {
        let name = format!("{}.json", self.id);
        put(&format!("{name}.json.tmp"), &name, "requests")
    }

    fn answer(&self) -> Vec<Step> {
        let name = format!("{}.answer.json", self.id);
        put(&format!("{name}.json.tmp"), &name, "requests")
    }

    fn withdrawn(&self) -> Vec<Step> {
        let names = [format!("{}.json", self.id), format!("{}.answer.json", self.id)];
        names.iter().flat_map(|name| gone(name, "requests")).collect()
    }
}

/// A driver that is watched, and its clients.
struct Watched {
    traced: Traced,
    controller: ControllerClient<Channel>,
    node: NodeClient<Channel>,
    fs: Option<&'static str>,
    context: HashMap<String, String>,
}

impl Watched {
    async fn start(fs: Option<&'static str>) -> Self {
        let mut traced = Traced::start();
        let mut controller = ControllerClient::new(traced.driver.channel().await);
        // The connection's own greeting is no reply.
        controller
            .get_capacity(pb::GetCapacityRequest::default())
            .await
            .unwrap();
        traced.steps();
        let mut node = NodeClient::new(traced.driver.channel().await);
        node.node_get_info(pb::NodeGetInfoRequest::default())
            .await
            .unwrap();
        traced.steps();
        Self {
            traced,
            controller,
            node,
            fs,
            context: HashMap::new(),
        }
    }

    /// Asserts that the last call did this in this order before its reply.
    fn did(&mut self, parts: &[Vec<Step>]) {
        let mut wanted = parts.concat();
        wanted.push(Step::Replied);
        in_order(&self.traced.steps(), &wanted);
    }

    /// Asserts that the last call made nothing durable, because it promises nothing that outlives the kernel.
    fn did_nothing_durable(&mut self, wanted: &[Step]) {
        let steps = self.traced.steps();
        let is_durable = |step: &&Step| matches!(step, Step::Synced(_) | Step::Renamed(..));
        assert_eq!(steps.iter().find(is_durable), None, "{steps:#?}");
        in_order(&steps, wanted);
    }

    async fn make(&mut self, name: &str, bytes: i64, of: Option<&str>) -> Files {
        use pb::volume_content_source::{Type, VolumeSource};
        let source = of.map(|id| pb::VolumeContentSource {
            r#type: Some(Type::Volume(VolumeSource {
                volume_id: id.to_owned(),
            })),
        });
        let request = pb::CreateVolumeRequest {
            volume_content_source: source,
            ..create(name, self.fs, bytes, 0)
        };
        let reply = self.controller.create_volume(request).await.unwrap();
        Files::of(&reply.into_inner().volume.unwrap().volume_id)
    }

    async fn attach(&mut self, id: &str, node: &str) {
        let publish = pb::ControllerPublishVolumeRequest {
            volume_id: id.to_owned(),
            node_id: node.to_owned(),
            volume_capability: Some(capability(self.fs)),
            ..Default::default()
        };
        let reply = self.controller.controller_publish_volume(publish).await.unwrap();
        self.context = reply.into_inner().publish_context;
    }

    async fn detach(&mut self, id: &str, node: &str) -> Result<(), tonic::Status> {
        let unpublish = pb::ControllerUnpublishVolumeRequest {
            volume_id: id.to_owned(),
            node_id: node.to_owned(),
            ..Default::default()
        };
        self.controller
            .controller_unpublish_volume(unpublish)
            .await
            .map(drop)
    }

    async fn expand(&mut self, id: &str, bytes: i64) {
        let expand = pb::ControllerExpandVolumeRequest {
            volume_id: id.to_owned(),
            capacity_range: Some(pb::CapacityRange {
                required_bytes: bytes,
                limit_bytes: 0,
            }),
            ..Default::default()
        };
        self.controller.controller_expand_volume(expand).await.unwrap();
    }

    async fn delete(&mut self, id: &str) {
        let delete = pb::DeleteVolumeRequest {
            volume_id: id.to_owned(),
            ..Default::default()
        };
        self.controller.delete_volume(delete).await.unwrap();
    }

    fn stage_request(&self, id: &str) -> pb::NodeStageVolumeRequest {
        let staging_target_path = self.traced.driver.path("stage");
        std::fs::create_dir_all(&staging_target_path).unwrap();
        pb::NodeStageVolumeRequest {
            volume_id: id.to_owned(),
            publish_context: self.context.clone(),
            staging_target_path,
            volume_capability: Some(capability(self.fs)),
            ..Default::default()
        }
    }

    async fn stage(&mut self, id: &str) {
        let request = self.stage_request(id);
        self.node.node_stage_volume(request).await.unwrap();
    }

    async fn unstage(&mut self, id: &str) {
        let request = pb::NodeUnstageVolumeRequest {
            volume_id: id.to_owned(),
            staging_target_path: self.traced.driver.path("stage"),
        };
        self.node.node_unstage_volume(request).await.unwrap();
    }
}

async fn controllers_reply_after_their_fsyncs() {
    let mut on = Watched::start(None).await;
    let files = on.make("a", MIB, None).await;
    let (id, image) = (files.id.clone(), files.image.clone());
    let named = |id: &str| Step::Renamed(format!("{id}.json.tmp"), format!("{id}.json"));
    // The intent and the image, with their names, before the record says ready.
    let intent = vec![
        named(&id),
        synced(&format!("{id}.json")),
        synced(&image),
        synced("volumes"),
    ];
    on.did(&[intent, files.record()]);

    let copy = on.make("copy", MIB, Some(&id)).await;
    let temporary = format!("{}.img.tmp", copy.id);
    let intent = vec![
        named(&copy.id),
        synced(&format!("{}.json", copy.id)),
        synced(&temporary),
        Step::Renamed(temporary, copy.image.clone()),
        synced("volumes"),
    ];
    on.did(&[intent, copy.record()]);

    let modify = pb::ControllerModifyVolumeRequest {
        volume_id: id.clone(),
        mutable_parameters: HashMap::from([(String::from("access"), String::from("read-only"))]),
        ..Default::default()
    };
    on.controller.controller_modify_volume(modify).await.unwrap();
    on.did(&[files.record()]);

    on.attach(&id, "n1").await;
    on.did(&[files.record()]);
    on.expand(&id, 2 * MIB).await;
    on.did(&[files.record(), vec![synced(&image)]]);
    on.detach(&id, "n1").await.unwrap();
    on.did(&[files.record()]);

    on.delete(&id).await;
    let record = format!("{id}.json");
    on.did(&[files.record(), gone(&image, "volumes"), gone(&record, "volumes")]);
}

async fn a_filesystem_is_durable_before_it_is_called_made() {
    let mut on = Watched::start(Some("ext4")).await;
    let files = on.make("a", 16 * MIB, None).await;
    on.traced.steps();
    on.attach(&files.id, "n1").await;
    on.traced.steps();
    on.stage(&files.id).await;
    let device = loops_below(on.traced.driver.folder.path()).remove(0);
    let made = vec![
        Step::Ran(String::from("mke2fs")),
        synced(device.trim_start_matches("/dev/")),
    ];
    on.did(&[files.record(), made, files.record(), vec![Step::Mounted]]);
    on.unstage(&files.id).await;
    on.did(&[vec![Step::Unmounted(String::from("stage")), synced(&files.image)]]);
    // It is made once.
    on.stage(&files.id).await;
    on.did_nothing_durable(&[Step::Mounted]);
    on.unstage(&files.id).await;
}

/// Mounts and devices end with the kernel, and a target with them: kubelet makes, and asks for, both again. A filesystem
/// that was grown and is smaller again after a power failure grows when it is staged; its device has its image's size,
/// which the controller has made durable.
async fn what_ends_with_the_kernel_is_not_made_durable() {
    for fs in [Some("xfs"), None] {
        let mut on = Watched::start(fs).await;
        let files = on.make("a", 320 * MIB, None).await;
        on.traced.steps();
        on.attach(&files.id, "n1").await;
        on.traced.steps();
        on.stage(&files.id).await;
        if fs.is_none() {
            on.did_nothing_durable(&[Step::Device(String::from("LOOP_CONFIGURE"))]);
        } else {
            on.traced.steps();
        }
        let target = on.traced.driver.path("target");
        let stage = on.stage_request(&files.id);
        let publish = pb::NodePublishVolumeRequest {
            volume_id: files.id.clone(),
            publish_context: on.context.clone(),
            staging_target_path: stage.staging_target_path,
            target_path: target.clone(),
            volume_capability: stage.volume_capability,
            ..Default::default()
        };
        on.node.node_publish_volume(publish).await.unwrap();
        on.did_nothing_durable(&[Step::Mounted]);
        on.expand(&files.id, 400 * MIB).await;
        on.did(&[files.record(), vec![synced(&files.image)]]);
        let expand = pb::NodeExpandVolumeRequest {
            volume_id: files.id.clone(),
            volume_path: target.clone(),
            ..Default::default()
        };
        on.node.node_expand_volume(expand).await.unwrap();
        let mut grown = vec![Step::Device(String::from("LOOP_SET_CAPACITY"))];
        grown.extend(fs.map(|_| Step::Ran(String::from("xfs_growfs"))));
        on.did_nothing_durable(&grown);
        let unpublish = pb::NodeUnpublishVolumeRequest {
            volume_id: files.id.clone(),
            target_path: target,
        };
        on.node.node_unpublish_volume(unpublish).await.unwrap();
        let target = || String::from("target");
        on.did_nothing_durable(&[Step::Unmounted(target()), Step::Removed(target())]);
        // What was written is on the disk before anybody else is told that the volume is free.
        on.unstage(&files.id).await;
        let freed = match fs {
            Some(_) => Step::Unmounted(String::from("stage")),
            None => Step::Device(String::from("LOOP_CLR_FD")),
        };
        on.did(&[vec![freed, synced(&files.image)]]);
    }
}

async fn a_request_is_durable_before_its_answer_and_that_before_it_counts() {
    let mut on = Watched::start(None).await;
    let files = on.make("a", MIB, None).await;
    on.traced.steps();
    on.attach(&files.id, "n1").await;
    on.traced.steps();
    on.stage(&files.id).await;
    on.traced.steps();
    let refused = on.detach(&files.id, "n1").await;
    assert_eq!(wait_code(refused), Code::FailedPrecondition);
    on.did(&[files.request(), files.answer(), files.withdrawn()]);
    on.unstage(&files.id).await;
    on.traced.steps();
    on.detach(&files.id, "n1").await.unwrap();
    on.traced.steps();

    // Another node stages it and dies; the one that is watched acts in its place.
    let folder = on.traced.driver.folder.path().to_owned();
    let socket = folder.join("n2.sock");
    let mut other = spawn_node(&folder, "node", "n2", &socket);
    on.attach(&files.id, "n2").await;
    on.traced.steps();
    let request = on.stage_request(&files.id);
    let staged = NodeClient::new(connect(&socket).await)
        .node_stage_volume(request)
        .await;
    let _ = other.kill();
    let _ = other.wait();
    staged.unwrap();
    on.detach(&files.id, "n2").await.unwrap();
    on.did(&[
        files.request(),
        vec![Step::Device(String::from("LOOP_SET_STATUS64"))],
        files.answer(),
        files.record(),
        files.withdrawn(),
    ]);
}

fn every_call_that_writes_is_looked_at() {
    assert_eq!(BTreeSet::from(CALLS.map(String::from)), writing::calls());
}

pub fn cases() -> Vec<Case> {
    vec![
        ("controllers_reply_after_their_fsyncs", || {
            run(controllers_reply_after_their_fsyncs())
        }),
        ("a_filesystem_is_durable_before_it_is_called_made", || {
            run(a_filesystem_is_durable_before_it_is_called_made())
        }),
        ("what_ends_with_the_kernel_is_not_made_durable", || {
            run(what_ends_with_the_kernel_is_not_made_durable())
        }),
        (
            "a_request_is_durable_before_its_answer_and_that_before_it_counts",
            || run(a_request_is_durable_before_its_answer_and_that_before_it_counts()),
        ),
        ("every_call_that_writes_is_looked_at", || {
            blocking(every_call_that_writes_is_looked_at)
        }),
    ]
}
