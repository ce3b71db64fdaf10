//! Kubelet's plugin registration, served by the driver itself.
use std::path::{Path, PathBuf};

use holdfast_proto::registration as pb;
use holdfast_proto::registration::registration_server::Registration;
use tokio::sync::mpsc;
use tonic::{Request, Response, Status};

/// Where kubelet finds the registration socket of `driver`. The `@` is not decoration: kubelet dials the bare path, its gRPC
/// makes `:authority` of it, and h2 refuses one that is escaped unless it reads as user@host (docs/adr/0008).
pub fn socket(folder: &Path, driver: &str) -> PathBuf {
    folder.join(format!("{driver}@reg.sock"))
}

/// The Registration service.
#[derive(Clone, Debug)]
pub struct RegistrationService {
    driver: String,
    endpoint: String,
    refused: mpsc::Sender<String>,
}

impl RegistrationService {
    /// Announces `driver` at `endpoint`, kubelet's path of the CSI socket; what kubelet refuses goes to `refused`.
    pub fn new(driver: &str, endpoint: &Path, refused: mpsc::Sender<String>) -> Self {
        Self {
            driver: driver.to_owned(),
            endpoint: endpoint.display().to_string(),
            refused,
        }
    }
}

#[tonic::async_trait]
impl Registration for RegistrationService {
    async fn get_info(&self, _: Request<pb::InfoRequest>) -> Result<Response<pb::PluginInfo>, Status> {
        Ok(Response::new(pb::PluginInfo {
            r#type: String::from("CSIPlugin"),
            name: self.driver.clone(),
            endpoint: self.endpoint.clone(),
            supported_versions: vec![String::from("1.0.0")],
        }))
    }

    async fn notify_registration_status(
        &self,
        request: Request<pb::RegistrationStatus>,
    ) -> Result<Response<pb::RegistrationStatusResponse>, Status> {
        let status = request.into_inner();
        if status.plugin_registered {
            tracing::info!("registered with kubelet");
        } else {
            tracing::error!(error = status.error, "kubelet refused the registration");
            // The receiver ends the process; if it is gone, it is ending already.
            let _ = self.refused.send(status.error).await;
        }
        Ok(Response::new(pb::RegistrationStatusResponse {}))
    }
}
