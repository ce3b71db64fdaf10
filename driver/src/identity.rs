//! The Identity service.
use holdfast_proto::csi as pb;
use holdfast_proto::csi::identity_server::Identity;
use holdfast_proto::csi::plugin_capability as cap;
use tonic::{Request, Response, Status};

use crate::health::Health;

/// The Identity service.
#[derive(Clone, Debug)]
pub struct IdentityService {
    name: String,
    has_controller: bool,
    health: Health,
}

impl IdentityService {
    /// A service that calls itself `name`.
    pub fn new(name: &str, has_controller: bool, health: Health) -> Self {
        Self {
            name: name.to_owned(),
            has_controller,
            health,
        }
    }
}

#[tonic::async_trait]
impl Identity for IdentityService {
    async fn get_plugin_info(
        &self,
        _: Request<pb::GetPluginInfoRequest>,
    ) -> Result<Response<pb::GetPluginInfoResponse>, Status> {
        Ok(Response::new(pb::GetPluginInfoResponse {
            name: self.name.clone(),
            vendor_version: env!("CARGO_PKG_VERSION").to_owned(),
            manifest: std::collections::HashMap::new(),
        }))
    }

    async fn get_plugin_capabilities(
        &self,
        _: Request<pb::GetPluginCapabilitiesRequest>,
    ) -> Result<Response<pb::GetPluginCapabilitiesResponse>, Status> {
        let mut capabilities = Vec::new();
        let service = cap::Service {
            r#type: cap::service::Type::ControllerService.into(),
        };
        let expansion = cap::VolumeExpansion {
            r#type: cap::volume_expansion::Type::Online.into(),
        };
        if self.has_controller {
            capabilities.push(pb::PluginCapability {
                r#type: Some(cap::Type::Service(service)),
            });
        }
        capabilities.push(pb::PluginCapability {
            r#type: Some(cap::Type::VolumeExpansion(expansion)),
        });
        Ok(Response::new(pb::GetPluginCapabilitiesResponse { capabilities }))
    }

    async fn probe(&self, _: Request<pb::ProbeRequest>) -> Result<Response<pb::ProbeResponse>, Status> {
        Ok(Response::new(pb::ProbeResponse {
            ready: Some(self.health.is_ready()),
        }))
    }
}
