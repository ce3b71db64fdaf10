//! The tonic trait of the Node service: it decides nothing.
use std::sync::Arc;

use holdfast_proto::csi as pb;
use holdfast_proto::csi::node_server::Node;
use holdfast_proto::csi::node_service_capability::rpc::Type;
use tonic::{Request, Response, Status};

use super::revoke::Errands;
use super::site::Site;
use super::{expand, health, publish, stage, stats, unpublish, unstage};
use crate::guard::Guard;
use crate::kernel::Kernel;
use crate::request::{self, received};
use crate::volume::nodes;
use crate::volume::store::Store;

/// The Node service.
#[derive(Clone, Debug)]
pub struct NodeService {
    site: Site,
    guard: Guard,
    known: nodes::Node,
}

const OFFERED: [Type; 7] = [
    Type::StageUnstageVolume,
    Type::GetVolumeStats,
    Type::ExpandVolume,
    Type::SingleNodeMultiWriter,
    Type::VolumeMountGroup,
    Type::GetVolumeHealth,
    Type::GetStorageHealth,
];

impl NodeService {
    /// A service for `node`, which the data folder knows as `known`.
    pub fn new(store: Arc<Store>, kernel: Arc<dyn Kernel>, node: &str, known: nodes::Node) -> Self {
        Self {
            site: Site {
                store,
                kernel,
                node: node.to_owned(),
            },
            guard: Guard::of_node(node),
            known,
        }
    }

    /// Looks after what controllers ask of this node, on a thread of its own, for as long as the process lives.
    ///
    /// # Errors
    /// If there is no thread to be had.
    pub fn watch(&self) -> std::io::Result<()> {
        let errands = Errands::new(self.site.clone(), self.known.clone());
        std::thread::Builder::new()
            .name(String::from("requests"))
            .spawn(move || errands.watch())
            .map(drop)
    }
}

#[tonic::async_trait]
impl Node for NodeService {
    async fn node_stage_volume(
        &self,
        request: Request<pb::NodeStageVolumeRequest>,
    ) -> Result<Response<pb::NodeStageVolumeResponse>, Status> {
        let request = received("NodeStageVolume", request);
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
        let request = received("NodeUnstageVolume", request);
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
        let request = received("NodePublishVolume", request);
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
        let request = received("NodeUnpublishVolume", request);
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
        let request = received("NodeGetVolumeStats", request);
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
        let request = received("NodeExpandVolume", request);
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
            max_volumes_per_node: self.known.limit.into(),
            accessible_topology: Some(pb::Topology {
                segments: self.known.segments.clone().into_iter().collect(),
            }),
        }))
    }

    async fn node_get_volume_health(
        &self,
        request: Request<pb::NodeGetVolumeHealthRequest>,
    ) -> Result<Response<pb::NodeGetVolumeHealthResponse>, Status> {
        let request = received("NodeGetVolumeHealth", request);
        let (site, id) = (self.site.clone(), request.volume_id.clone());
        self.guard
            .look("NodeGetVolumeHealth", &id, move || {
                health::of_volume(&site, &request)
            })
            .await
            .map(Response::new)
    }

    async fn node_get_storage_health(
        &self,
        request: Request<pb::NodeGetStorageHealthRequest>,
    ) -> Result<Response<pb::NodeGetStorageHealthResponse>, Status> {
        let request = received("NodeGetStorageHealth", request);
        let site = self.site.clone();
        self.guard
            .look("NodeGetStorageHealth", "", move || {
                request::map("secrets", &request.secrets)?;
                Ok(health::of_storage(&site))
            })
            .await
            .map(Response::new)
    }
}
