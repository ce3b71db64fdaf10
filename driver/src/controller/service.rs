//! The tonic trait of the Controller service: it decides nothing.
use std::sync::Arc;

use holdfast_proto::csi as pb;
use holdfast_proto::csi::controller_server::Controller;
use holdfast_proto::csi::controller_service_capability::rpc::Type;
use tonic::{Request, Response, Status};

use super::{create, delete, expand, list, publish, unpublish, validate};
use crate::error::Error;
use crate::guard::Guard;
use crate::id::VolumeId;
use crate::volume::store::Store;

/// The Controller service.
#[derive(Clone, Debug)]
pub struct ControllerService {
    store: Arc<Store>,
    guard: Guard,
    capacity_bytes: Option<u64>,
}

/// What is offered; everything else answers UNIMPLEMENTED.
const OFFERED: [Type; 8] = [
    Type::CreateDeleteVolume,
    Type::PublishUnpublishVolume,
    Type::ListVolumes,
    Type::ListVolumesPublishedNodes,
    Type::GetCapacity,
    Type::PublishReadonly,
    Type::ExpandVolume,
    Type::SingleNodeMultiWriter,
];

impl ControllerService {
    /// A service on `store`, which may promise `capacity_bytes`, or what its filesystem has.
    pub fn new(store: Arc<Store>, capacity_bytes: Option<u64>) -> Self {
        Self {
            store,
            guard: Guard::default(),
            capacity_bytes,
        }
    }
}

fn not_offered<T>(rpc: &'static str) -> Result<Response<T>, Status> {
    Err(Error::NotOffered { rpc }.into())
}

#[tonic::async_trait]
impl Controller for ControllerService {
    async fn create_volume(
        &self,
        request: Request<pb::CreateVolumeRequest>,
    ) -> Result<Response<pb::CreateVolumeResponse>, Status> {
        let request = request.into_inner();
        let (store, capacity) = (Arc::clone(&self.store), self.capacity_bytes);
        let id = VolumeId::of_name(&request.name);
        self.guard
            .run("CreateVolume", id.as_str(), request, move |request| {
                create::create(&store, capacity, &create::Wanted::try_from(request)?)
            })
            .await
            .map(Response::new)
    }

    async fn delete_volume(
        &self,
        request: Request<pb::DeleteVolumeRequest>,
    ) -> Result<Response<pb::DeleteVolumeResponse>, Status> {
        let request = request.into_inner();
        let (store, id) = (Arc::clone(&self.store), request.volume_id.clone());
        self.guard
            .run("DeleteVolume", &id, request, move |request| {
                delete::delete(&store, &request.volume_id)
            })
            .await
            .map(Response::new)
    }

    async fn controller_publish_volume(
        &self,
        request: Request<pb::ControllerPublishVolumeRequest>,
    ) -> Result<Response<pb::ControllerPublishVolumeResponse>, Status> {
        let request = request.into_inner();
        let store = Arc::clone(&self.store);
        let id = request.volume_id.clone();
        self.guard
            .run("ControllerPublishVolume", &id, request, move |request| {
                publish::publish(&store, publish::Wanted::try_from(request)?)
            })
            .await
            .map(Response::new)
    }

    async fn controller_unpublish_volume(
        &self,
        request: Request<pb::ControllerUnpublishVolumeRequest>,
    ) -> Result<Response<pb::ControllerUnpublishVolumeResponse>, Status> {
        let request = request.into_inner();
        let (store, id) = (Arc::clone(&self.store), request.volume_id.clone());
        self.guard
            .run("ControllerUnpublishVolume", &id, request, move |request| {
                unpublish::unpublish(&store, &request.volume_id, &request.node_id)
            })
            .await
            .map(Response::new)
    }

    async fn validate_volume_capabilities(
        &self,
        request: Request<pb::ValidateVolumeCapabilitiesRequest>,
    ) -> Result<Response<pb::ValidateVolumeCapabilitiesResponse>, Status> {
        let request = request.into_inner();
        let store = Arc::clone(&self.store);
        let id = request.volume_id.clone();
        self.guard
            .look("ValidateVolumeCapabilities", &id, move || {
                validate::validate(&store, request)
            })
            .await
            .map(Response::new)
    }

    async fn list_volumes(
        &self,
        request: Request<pb::ListVolumesRequest>,
    ) -> Result<Response<pb::ListVolumesResponse>, Status> {
        let request = request.into_inner();
        let store = Arc::clone(&self.store);
        self.guard
            .look("ListVolumes", "", move || list::list(&store, &request))
            .await
            .map(Response::new)
    }

    async fn get_capacity(
        &self,
        request: Request<pb::GetCapacityRequest>,
    ) -> Result<Response<pb::GetCapacityResponse>, Status> {
        let request = request.into_inner();
        let (store, capacity) = (Arc::clone(&self.store), self.capacity_bytes);
        self.guard
            .look("GetCapacity", "", move || {
                list::capacity(&store, capacity, request)
            })
            .await
            .map(Response::new)
    }

    async fn controller_get_capabilities(
        &self,
        _: Request<pb::ControllerGetCapabilitiesRequest>,
    ) -> Result<Response<pb::ControllerGetCapabilitiesResponse>, Status> {
        use pb::controller_service_capability::{Rpc, Type as Wrapped};
        let one = |offered: Type| pb::ControllerServiceCapability {
            r#type: Some(Wrapped::Rpc(Rpc {
                r#type: offered.into(),
            })),
        };
        let capabilities = OFFERED.into_iter().map(one).collect();
        Ok(Response::new(pb::ControllerGetCapabilitiesResponse {
            capabilities,
        }))
    }

    async fn controller_expand_volume(
        &self,
        request: Request<pb::ControllerExpandVolumeRequest>,
    ) -> Result<Response<pb::ControllerExpandVolumeResponse>, Status> {
        let request = request.into_inner();
        let (store, capacity) = (Arc::clone(&self.store), self.capacity_bytes);
        let id = request.volume_id.clone();
        self.guard
            .run("ControllerExpandVolume", &id, request, move |request| {
                expand::expand(&store, capacity, request)
            })
            .await
            .map(Response::new)
    }

    async fn controller_list_volume_health(
        &self,
        _: Request<pb::ControllerListVolumeHealthRequest>,
    ) -> Result<Response<pb::ControllerListVolumeHealthResponse>, Status> {
        not_offered("ControllerListVolumeHealth")
    }

    async fn controller_get_volume_health(
        &self,
        _: Request<pb::ControllerGetVolumeHealthRequest>,
    ) -> Result<Response<pb::ControllerGetVolumeHealthResponse>, Status> {
        not_offered("ControllerGetVolumeHealth")
    }

    async fn create_snapshot(
        &self,
        _: Request<pb::CreateSnapshotRequest>,
    ) -> Result<Response<pb::CreateSnapshotResponse>, Status> {
        not_offered("CreateSnapshot")
    }

    async fn delete_snapshot(
        &self,
        _: Request<pb::DeleteSnapshotRequest>,
    ) -> Result<Response<pb::DeleteSnapshotResponse>, Status> {
        not_offered("DeleteSnapshot")
    }

    async fn list_snapshots(
        &self,
        _: Request<pb::ListSnapshotsRequest>,
    ) -> Result<Response<pb::ListSnapshotsResponse>, Status> {
        not_offered("ListSnapshots")
    }

    async fn get_snapshot(
        &self,
        _: Request<pb::GetSnapshotRequest>,
    ) -> Result<Response<pb::GetSnapshotResponse>, Status> {
        not_offered("GetSnapshot")
    }

    async fn controller_get_volume(
        &self,
        _: Request<pb::ControllerGetVolumeRequest>,
    ) -> Result<Response<pb::ControllerGetVolumeResponse>, Status> {
        not_offered("ControllerGetVolume")
    }

    async fn controller_modify_volume(
        &self,
        _: Request<pb::ControllerModifyVolumeRequest>,
    ) -> Result<Response<pb::ControllerModifyVolumeResponse>, Status> {
        not_offered("ControllerModifyVolume")
    }
}
