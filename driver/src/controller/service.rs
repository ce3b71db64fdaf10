//! The tonic trait of the Controller service: it decides nothing.
use std::fmt::Debug;
use std::sync::Arc;

use holdfast_proto::csi as pb;
use holdfast_proto::csi::controller_server::Controller;
use holdfast_proto::csi::controller_service_capability::rpc::Type;
use tonic::{Request, Response, Status};

use super::{capacity, condition, create, delete, expand, get, list, modify, publish, unpublish, validate};
use crate::error::Error;
use crate::guard::Guard;
use crate::id::VolumeId;
use crate::request::{self, received};
use crate::volume::store::Store;

/// The Controller service.
#[derive(Clone, Debug)]
pub struct ControllerService {
    store: Arc<Store>,
    guard: Guard,
    capacity_bytes: Option<u64>,
}

/// What is offered; everything else answers UNIMPLEMENTED.
const OFFERED: [Type; 13] = [
    Type::CreateDeleteVolume,
    Type::PublishUnpublishVolume,
    Type::ListVolumes,
    Type::ListVolumesPublishedNodes,
    Type::GetCapacity,
    Type::PublishReadonly,
    Type::ExpandVolume,
    Type::SingleNodeMultiWriter,
    Type::CloneVolume,
    Type::GetVolume,
    Type::ModifyVolume,
    Type::GetVolumeHealth,
    Type::ListVolumeHealth,
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

fn not_offered<M: Debug, T>(rpc: &'static str, request: Request<M>) -> Result<Response<T>, Status> {
    received(rpc, request);
    Err(Error::NotOffered { rpc }.into())
}

#[tonic::async_trait]
impl Controller for ControllerService {
    async fn create_volume(
        &self,
        request: Request<pb::CreateVolumeRequest>,
    ) -> Result<Response<pb::CreateVolumeResponse>, Status> {
        let request = received("CreateVolume", request);
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
        let request = received("DeleteVolume", request);
        let (store, id) = (Arc::clone(&self.store), request.volume_id.clone());
        self.guard
            .run("DeleteVolume", &id, request, move |request| {
                request::map("secrets", &request.secrets)?;
                delete::delete(&store, &request.volume_id)
            })
            .await
            .map(Response::new)
    }

    async fn controller_publish_volume(
        &self,
        request: Request<pb::ControllerPublishVolumeRequest>,
    ) -> Result<Response<pb::ControllerPublishVolumeResponse>, Status> {
        let request = received("ControllerPublishVolume", request);
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
        let request = received("ControllerUnpublishVolume", request);
        let (store, id) = (Arc::clone(&self.store), request.volume_id.clone());
        self.guard
            .run("ControllerUnpublishVolume", &id, request, move |request| {
                request::map("secrets", &request.secrets)?;
                unpublish::unpublish(&store, &request.volume_id, &request.node_id)
            })
            .await
            .map(Response::new)
    }

    async fn validate_volume_capabilities(
        &self,
        request: Request<pb::ValidateVolumeCapabilitiesRequest>,
    ) -> Result<Response<pb::ValidateVolumeCapabilitiesResponse>, Status> {
        let request = received("ValidateVolumeCapabilities", request);
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
        let request = received("ListVolumes", request);
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
        let request = received("GetCapacity", request);
        let (store, bytes) = (Arc::clone(&self.store), self.capacity_bytes);
        self.guard
            .look("GetCapacity", "", move || {
                capacity::capacity(&store, bytes, request)
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
        let request = received("ControllerExpandVolume", request);
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
        request: Request<pb::ControllerListVolumeHealthRequest>,
    ) -> Result<Response<pb::ControllerListVolumeHealthResponse>, Status> {
        let request = received("ControllerListVolumeHealth", request);
        let store = Arc::clone(&self.store);
        let work = move || condition::list(&store, &request);
        self.guard
            .look("ControllerListVolumeHealth", "", work)
            .await
            .map(Response::new)
    }

    async fn controller_get_volume_health(
        &self,
        request: Request<pb::ControllerGetVolumeHealthRequest>,
    ) -> Result<Response<pb::ControllerGetVolumeHealthResponse>, Status> {
        let request = received("ControllerGetVolumeHealth", request);
        let (store, id) = (Arc::clone(&self.store), request.volume_id.clone());
        let work = move || {
            request::map("secrets", &request.secrets)?;
            condition::get(&store, &request.volume_id)
        };
        self.guard
            .look("ControllerGetVolumeHealth", &id, work)
            .await
            .map(Response::new)
    }

    async fn create_snapshot(
        &self,
        request: Request<pb::CreateSnapshotRequest>,
    ) -> Result<Response<pb::CreateSnapshotResponse>, Status> {
        not_offered("CreateSnapshot", request)
    }

    async fn delete_snapshot(
        &self,
        request: Request<pb::DeleteSnapshotRequest>,
    ) -> Result<Response<pb::DeleteSnapshotResponse>, Status> {
        not_offered("DeleteSnapshot", request)
    }

    async fn list_snapshots(
        &self,
        request: Request<pb::ListSnapshotsRequest>,
    ) -> Result<Response<pb::ListSnapshotsResponse>, Status> {
        not_offered("ListSnapshots", request)
    }

    async fn get_snapshot(
        &self,
        request: Request<pb::GetSnapshotRequest>,
    ) -> Result<Response<pb::GetSnapshotResponse>, Status> {
        not_offered("GetSnapshot", request)
    }

    async fn controller_get_volume(
        &self,
        request: Request<pb::ControllerGetVolumeRequest>,
    ) -> Result<Response<pb::ControllerGetVolumeResponse>, Status> {
        let request = received("ControllerGetVolume", request);
        let (store, id) = (Arc::clone(&self.store), request.volume_id.clone());
        self.guard
            .look("ControllerGetVolume", &id, move || {
                get::get(&store, &request.volume_id)
            })
            .await
            .map(Response::new)
    }

    async fn controller_modify_volume(
        &self,
        request: Request<pb::ControllerModifyVolumeRequest>,
    ) -> Result<Response<pb::ControllerModifyVolumeResponse>, Status> {
        let request = received("ControllerModifyVolume", request);
        let (store, id) = (Arc::clone(&self.store), request.volume_id.clone());
        self.guard
            .run("ControllerModifyVolume", &id, request, move |request| {
                modify::modify(&store, request)
            })
            .await
            .map(Response::new)
    }
}
