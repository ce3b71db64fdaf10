//! One state for Probe and for HTTP /healthz and /readyz.
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::error::Error;
use crate::metrics::{Found, Metrics};
use crate::volume::store::Store;

/// A request that takes longer is dropped.
const LIMIT: Duration = Duration::from_secs(3);
/// Longest request that is read.
const REQUEST_BYTES: usize = 2048;

/// Whether the driver can do its work.
#[derive(Clone, Debug)]
pub struct Health {
    started: Arc<AtomicBool>,
    data_dir: Arc<PathBuf>,
}

impl Health {
    /// Not ready yet.
    pub fn new(data_dir: &Path) -> Self {
        Self {
            started: Arc::default(),
            data_dir: Arc::new(data_dir.to_owned()),
        }
    }

    /// Calls are answered from now on.
    pub fn set_started(&self) {
        self.started.store(true, Ordering::Release);
    }

    /// Whether the start is over.
    pub fn is_started(&self) -> bool {
        self.started.load(Ordering::Acquire)
    }

    /// What is wrong after the start, if the driver is not ready.
    pub fn trouble(&self) -> String {
        format!(
            "the folder {} is not there",
            self.data_dir.join("volumes").display()
        )
    }

    /// Whether calls are answered and the data folder is there.
    pub fn is_ready(&self) -> bool {
        self.started.load(Ordering::Acquire) && self.data_dir.join("volumes").is_dir()
    }
}

fn found(store: &Store) -> Result<Found, Error> {
    let aside = store.root().join("quarantine");
    let aside = std::fs::read_dir(aside).map_err(Error::storage("listing quarantine"))?;
    let quarantined = u64::try_from(aside.count()).unwrap_or(u64::MAX);
    store.look(|all| Found {
        volumes: u64::try_from(all.len()).unwrap_or(u64::MAX),
        bytes: all.promised_bytes(),
        quarantined: quarantined + u64::try_from(all.unreadable().count()).unwrap_or(0),
    })
}

/// Answers /healthz, /readyz and /metrics until the process ends.
pub async fn serve(listener: TcpListener, health: Health, store: Arc<Store>, metrics: Metrics) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                let (health, store, metrics) = (health.clone(), Arc::clone(&store), metrics.clone());
                tokio::spawn(async move {
                    // A prober that hangs up, or is too slow, has its answer.
                    let _ = tokio::time::timeout(LIMIT, answer(stream, &health, store, &metrics)).await;
                });
            }
            Err(error) => {
                tracing::warn!(error = %error, "accept on the health address");
                crate::socket::pause().await;
            }
        }
    }
}

async fn answer(
    mut stream: TcpStream,
    health: &Health,
    store: Arc<Store>,
    metrics: &Metrics,
) -> std::io::Result<()> {
    let mut request = Vec::new();
    let mut chunk = [0_u8; 512];
    while !request.windows(4).any(|w| w == b"\r\n\r\n") && request.len() < REQUEST_BYTES {
        match stream.read(&mut chunk).await? {
            0 => break,
            read => request.extend_from_slice(&chunk[..read]),
        }
    }
    let text = String::from_utf8_lossy(&request);
    let path = text.split(' ').nth(1).unwrap_or("");
    let (status, body) = match path {
        "/healthz" | "/readyz" if health.is_ready() => ("200 OK", String::from("ok")),
        "/healthz" | "/readyz" => ("503 Service Unavailable", String::from("not ready")),
        "/metrics" => match tokio::task::spawn_blocking(move || found(&store)).await {
            Ok(Ok(found)) => ("200 OK", metrics.text(found)),
            Ok(Err(error)) => ("503 Service Unavailable", error.message()),
            Err(error) => ("503 Service Unavailable", error.to_string()),
        },
        _ => ("404 Not Found", String::from("try /healthz, /readyz or /metrics")),
    };
    let length = body.len();
    let reply = format!(
        "HTTP/1.1 {status}\r\nContent-Type: text/plain\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}"
    );
    stream.write_all(reply.as_bytes()).await?;
    stream.shutdown().await
}
