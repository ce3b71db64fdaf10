//! The services of each role on their sockets, from the first accept to the hard stop.
use std::io;
use std::sync::Arc;
use std::time::Duration;

use holdfast_proto::csi::controller_server::ControllerServer;
use holdfast_proto::csi::identity_server::IdentityServer;
use holdfast_proto::csi::node_server::NodeServer;
use holdfast_proto::registration::registration_server::RegistrationServer;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tonic::Status;
use tonic::codegen::http;
use tonic::transport::Server;
use tower::util::MapResponseLayer;

use crate::config::Config;
use crate::controller::ControllerService;
use crate::health::{self, Health};
use crate::identity::IdentityService;
use crate::kernel::Linux;
use crate::metrics::Metrics;
use crate::node::NodeService;
use crate::registration::{self, RegistrationService};
use crate::volume::nodes::Node;
use crate::volume::store::Store;
use crate::{kernel, recover, socket};

/// How long idle clients may hold up the end.
const STOP_LIMIT: Duration = Duration::from_secs(3);

/// Why the driver cannot serve.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// A file or socket could not be used.
    #[error("{what}")]
    Io {
        /// Which.
        what: String,
        /// Why.
        source: io::Error,
    },
    /// gRPC failed.
    #[error("gRPC")]
    Grpc(#[from] tonic::transport::Error),
    /// The descriptors are not what reflection wants.
    #[error("gRPC reflection")]
    Reflection(#[from] tonic_reflection::server::Error),
    /// Kubelet does not want this driver.
    #[error("kubelet refused the registration: {0}")]
    Refused(String),
}

fn io_error(what: impl Into<String>) -> impl FnOnce(io::Error) -> ServeError {
    move |source| ServeError::Io {
        what: what.into(),
        source,
    }
}

/// Serves until SIGTERM or SIGINT.
///
/// # Errors
/// Those of [`ServeError`].
pub async fn serve(config: Config) -> Result<(), ServeError> {
    // First of all: a signal that comes while the driver starts must stop it, too, and not kill it.
    let mut terminate = signal(SignalKind::terminate()).map_err(io_error("SIGTERM"))?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(io_error("SIGINT"))?;
    kernel::set_umask(0o007);
    socket::raise_open_files();
    let shown = config.data_dir.display().to_string();
    let store = Arc::new(Store::open(&config.data_dir).map_err(io_error(format!("data folder {shown}")))?);
    let state = Health::new(&config.data_dir);
    let metrics = Metrics::default();
    let (stop, stopped) = watch::channel(false);
    let (refused, mut refusals) = mpsc::channel(1);

    if let Some(address) = config.health_address {
        let listener = TcpListener::bind(address)
            .await
            .map_err(io_error(format!("health address {address}")))?;
        tokio::spawn(health::serve(
            listener,
            state.clone(),
            Arc::clone(&store),
            metrics.clone(),
        ));
    }
    let known = Node {
        limit: config.max_volumes_per_node,
        segments: config.segments.clone(),
    };
    if config.role.has_node() {
        store
            .add_node(&config.node_id, &known)
            .map_err(io_error("making the node known"))?;
    }
    let listener =
        socket::listen(&config.socket).map_err(io_error(format!("socket {}", config.socket.display())))?;
    let (reporter, health_service) = tonic_health::server::health_reporter();
    reporter.set_serving::<IdentityServer<IdentityService>>().await;
    let reflect = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(holdfast_proto::DESCRIPTORS)
    };
    let mut router = Server::builder()
        .layer(metrics.clone())
        .layer(MapResponseLayer::new(explained))
        .add_service(health_service)
        .add_service(reflect().build_v1()?)
        .add_service(reflect().build_v1alpha()?)
        .add_service(IdentityServer::new(IdentityService::new(
            &config.driver_name,
            state.clone(),
        )));
    if config.role.has_controller() {
        router = router.add_service(ControllerServer::new(ControllerService::new(
            Arc::clone(&store),
            config.capacity_bytes,
        )));
    }
    if config.role.has_node() {
        let node = NodeService::new(Arc::clone(&store), Arc::new(Linux), &config.node_id, known);
        node.watch().map_err(io_error("looking after requests"))?;
        router = router.add_service(NodeServer::new(node));
    }
    // Before the first call is taken: connections wait in the backlog since the socket exists.
    state.set_started();
    let mut served =
        tokio::spawn(router.serve_with_incoming_shutdown(socket::trusted(listener), ended(stopped.clone())));
    tracing::info!(role = ?config.role, socket = %config.socket.display(), "serving");

    // By one role: the node plugin has enough rights, but no need.
    let sweeping = Arc::clone(&store);
    let sweeps = config.role.has_controller();
    tokio::task::spawn_blocking(move || {
        if sweeps && let Err(error) = recover::sweep(&sweeping, &metrics) {
            tracing::error!(error = error.message(), "sweep at start");
        }
    });

    let mut registered = None;
    if let Some((folder, endpoint)) = &config.registration {
        let path = registration::socket(folder, &config.driver_name);
        let listener =
            socket::listen(&path).map_err(io_error(format!("registration socket {}", path.display())))?;
        let service = RegistrationServer::new(RegistrationService::new(
            &config.driver_name,
            endpoint,
            refused.clone(),
        ));
        let incoming = socket::trusted(listener);
        tokio::spawn(
            Server::builder()
                .add_service(service)
                .serve_with_incoming_shutdown(incoming, ended(stopped)),
        );
        registered = Some(path);
    }

    let reason = tokio::select! {
        _ = terminate.recv() => None,
        _ = interrupt.recv() => None,
        error = refusals.recv() => error,
        ended = &mut served => {
            return match ended {
                Ok(result) => Ok(result?),
                Err(error) => Err(io_error("serving")(io::Error::other(error))),
            };
        }
    };
    // The registration goes first: kubelet must not call a driver that is about to leave.
    for path in registered.iter().chain([&config.socket]) {
        let _ = std::fs::remove_file(path);
    }
    let _ = stop.send(true);
    // Calls that run are finished; an idle client that stays connected is not waited for.
    let _ = tokio::time::timeout(STOP_LIMIT, served).await;
    tracing::info!("stopped");
    reason.map_or(Ok(()), |error| Err(ServeError::Refused(error)))
}

/// tonic answers a method that nobody serves without a message, the specification wants one with every error.
fn explained<B>(mut response: http::Response<B>) -> http::Response<B> {
    let headers = response.headers_mut();
    let is_unimplemented = headers.get(Status::GRPC_STATUS).is_some_and(|code| code == "12");
    if is_unimplemented
        && headers
            .get(Status::GRPC_MESSAGE)
            .is_none_or(http::HeaderValue::is_empty)
    {
        let message = "this%20driver%20does%20not%20serve%20this%20method%3B%20see%20its%20capabilities";
        headers.insert(Status::GRPC_MESSAGE, http::HeaderValue::from_static(message));
    }
    response
}

async fn ended(mut stopped: watch::Receiver<bool>) {
    // A sender that is gone means the same.
    let _ = stopped.wait_for(|stop| *stop).await;
}
