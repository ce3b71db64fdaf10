//! The tonic trait of the Node service: it decides nothing.
use std::sync::Arc;

use holdfast_proto::csi as pb;
use holdfast_proto::csi::node_server::Node;
use holdfast_proto::csi::node_service_capability::rpc::Type;
use tonic::{Request, Response, Status};

use super::{expand, publish, stage, stats, unpublish, unstage};
use crate::error::Error;
use crate::guard::Guard;
use crate::guard::file_lock::{self, Lock};
use crate::id::VolumeId;
use crate::kernel::Kernel;
use crate::volume::store::Store;

/// What every node call works with.
#[derive(Clone, Debug)]
pub(super) struct Site {
    pub(super) store: Arc<Store>,
    pub(super) kernel: Arc<dyn Kernel>,
    pub(super) node: String,
}

impl Site {
    /// The volume's lock on this node, for the whole of a call; no controller waits for it.
    pub(super) fn lock(&self, id: &VolumeId) -> Result<Lock, Error> {
        file_lock::lock(&self.store.node_lock(id, &self.node), id.as_str())
    }

    /// What this node writes into its loop devices: on one kernel under several nodes, as in kind, nothing else tells
    /// whose a device is.
    pub(super) fn tag(&self) -> String {
        use sha2::{Digest, Sha256};
        let mut hash = Sha256::new();
        hash.update(self.node.as_bytes());
        hash.update([0]);
        hash.update(self.store.root().as_os_str().as_encoded_bytes());
        let hex: String = hash.finalize()[..16].iter().map(|b| format!("{b:02x}")).collect();
        format!("holdfast:{hex}")
    }
}

/// The Node service.
#[derive(Clone, Debug)]
pub struct NodeService {
    site: Site,
    guard: Guard,
    limit: u32,
}

const OFFERED: [Type; 4] = [
    Type::StageUnstageVolume,
    Type::GetVolumeStats,
    Type::ExpandVolume,
    Type::SingleNodeMultiWriter,
];

impl NodeService {
    /// A service for `node`, which takes `limit` volumes; 0 means no limit.
    pub fn new(store: Arc<Store>, kernel: Arc<dyn Kernel>, node: &str, limit: u32) -> Self {
        Self {
            site: Site {
                store,
                kernel,
                node: node.to_owned(),
            },
            guard: Guard::default(),
            limit,
        }
    }
}

#[tonic::async_trait]
impl Node for NodeService {
    async fn node_stage_volume(
        &self,
        request: Request<pb::NodeStageVolumeRequest>,
    ) -> Result<Response<pb::NodeStageVolumeResponse>, Status> {
        let request = request.into_inner();
        let (site, id) = (self.site.clone(), request.volume_id.clone());
        self.guard
            .run("NodeStageVolume", &id, request, move |request| {
                stage::stage(&site, &stage::Wanted::try_from(request)?)
            })
            .await
            .map(Response::new)
    }

    async fn node_unstage_volume(
        &self,
        request: Request<pb::NodeUnstageVolumeRequest>,
    ) -> Result<Response<pb::NodeUnstageVolumeResponse>, Status> {
        let request = request.into_inner();
        let (site, id) = (self.site.clone(), request.volume_id.clone());
        self.guard
            .run("NodeUnstageVolume", &id, request, move |request| {
                unstage::unstage(&site, &request.volume_id, &request.staging_target_path)
            })
            .await
            .map(Response::new)
    }

    async fn node_publish_volume(
        &self,
        request: Request<pb::NodePublishVolumeRequest>,
    ) -> Result<Response<pb::NodePublishVolumeResponse>, Status> {
        let request = request.into_inner();
        let (site, id) = (self.site.clone(), request.volume_id.clone());
        self.guard
            .run("NodePublishVolume", &id, request, move |request| {
                publish::publish(&site, &publish::Wanted::try_from(request)?)
            })
            .await
            .map(Response::new)
    }

    async fn node_unpublish_volume(
        &self,
        request: Request<pb::NodeUnpublishVolumeRequest>,
    ) -> Result<Response<pb::NodeUnpublishVolumeResponse>, Status> {
        let request = request.into_inner();
        let (site, id) = (self.site.clone(), request.volume_id.clone());
        self.guard
            .run("NodeUnpublishVolume", &id, request, move |request| {
                unpublish::unpublish(&site, &request.volume_id, &request.target_path)
            })
            .await
            .map(Response::new)
    }

    async fn node_get_volume_stats(
        &self,
        request: Request<pb::NodeGetVolumeStatsRequest>,
    ) -> Result<Response<pb::NodeGetVolumeStatsResponse>, Status> {
        let request = request.into_inner();
        let (site, id) = (self.site.clone(), request.volume_id.clone());
        self.guard
            .look("NodeGetVolumeStats", &id, move || stats::stats(&site, &request))
            .await
            .map(Response::new)
    }

    async fn node_expand_volume(
        &self,
        request: Request<pb::NodeExpandVolumeRequest>,
    ) -> Result<Response<pb::NodeExpandVolumeResponse>, Status> {
        let request = request.into_inner();
        let (site, id) = (self.site.clone(), request.volume_id.clone());
        self.guard
            .run("NodeExpandVolume", &id, request, move |request| {
                expand::expand(&site, request)
            })
            .await
            .map(Response::new)
    }

    async fn node_get_capabilities(
        &self,
        _: Request<pb::NodeGetCapabilitiesRequest>,
    ) -> Result<Response<pb::NodeGetCapabilitiesResponse>, Status> {
        use pb::node_service_capability::{Rpc, Type as Wrapped};
        let one = |offered: Type| pb::NodeServiceCapability {
            r#type: Some(Wrapped::Rpc(Rpc {
                r#type: offered.into(),
            })),
        };
        let capabilities = OFFERED.into_iter().map(one).collect();
        Ok(Response::new(pb::NodeGetCapabilitiesResponse { capabilities }))
    }

    async fn node_get_info(
        &self,
        _: Request<pb::NodeGetInfoRequest>,
    ) -> Result<Response<pb::NodeGetInfoResponse>, Status> {
        Ok(Response::new(pb::NodeGetInfoResponse {
            node_id: self.site.node.clone(),
            max_volumes_per_node: self.limit.into(),
            accessible_topology: None,
        }))
    }

    async fn node_get_volume_health(
        &self,
        _: Request<pb::NodeGetVolumeHealthRequest>,
    ) -> Result<Response<pb::NodeGetVolumeHealthResponse>, Status> {
        Err(Error::NotOffered {
            rpc: "NodeGetVolumeHealth",
        }
        .into())
    }

    async fn node_get_storage_health(
        &self,
        _: Request<pb::NodeGetStorageHealthRequest>,
    ) -> Result<Response<pb::NodeGetStorageHealthResponse>, Status> {
        Err(Error::NotOffered {
            rpc: "NodeGetStorageHealth",
        }
        .into())
    }
}
