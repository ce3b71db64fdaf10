//! The Identity service.
use holdfast_proto::csi as pb;
use holdfast_proto::csi::identity_server::Identity;
use holdfast_proto::csi::plugin_capability as cap;
use tonic::{Request, Response, Status};

use crate::error::Error;
use crate::health::Health;

/// The Identity service.
#[derive(Clone, Debug)]
pub struct IdentityService {
    name: String,
    health: Health,
}

impl IdentityService {
    /// A service that calls itself `name`.
    pub fn new(name: &str, health: Health) -> Self {
        Self {
            name: name.to_owned(),
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
        use cap::service::Type::{ControllerService, VolumeAccessibilityConstraints};
        // The same from every process, whatever it serves: the specification wants it of all instances of a version.
        let service = |offered: cap::service::Type| {
            cap::Type::Service(cap::Service {
                r#type: offered.into(),
            })
        };
        let expansion = cap::Type::VolumeExpansion(cap::VolumeExpansion {
            r#type: cap::volume_expansion::Type::Online.into(),
        });
        let all = [
            service(ControllerService),
            service(VolumeAccessibilityConstraints),
            expansion,
        ];
        let capabilities = all
            .into_iter()
            .map(|one| pb::PluginCapability { r#type: Some(one) })
            .collect();
        Ok(Response::new(pb::GetPluginCapabilitiesResponse { capabilities }))
    }

    async fn probe(&self, _: Request<pb::ProbeRequest>) -> Result<Response<pb::ProbeResponse>, Status> {
        let ready = self.health.is_ready();
        if !ready && self.health.is_started() {
            let what = self.health.trouble();
            return Err(Error::Unhealthy { what }.into());
        }
        Ok(Response::new(pb::ProbeResponse { ready: Some(ready) }))
    }
}
