//! A unix socket in front of Docker's that speaks the daemon's API version for a client that asks for a newer one.
//!
//! See docs/adr/0007. One request per connection: the head is rewritten, everything after it passes untouched. A request
//! that upgrades its connection (exec, attach) keeps its own `Connection` header.
use std::io;
use std::path::{Path, PathBuf};

use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional};
use tokio::net::{UnixListener, UnixStream};

/// Largest head that is read; Docker's clients stay far below.
const HEAD_LIMIT_BYTES: usize = 64 * 1024;

/// A running proxy; it ends when dropped.
pub struct ApiProxy {
    socket: PathBuf,
    _folder: tempfile::TempDir,
    task: tokio::task::JoinHandle<()>,
}

impl ApiProxy {
    /// Listens on a socket of its own and asks `daemon` once for the version that it speaks.
    pub async fn start(daemon: &Path) -> io::Result<Self> {
        let version = daemon_version(daemon).await?;
        let folder = tempfile::Builder::new().prefix("holdfast-api-").tempdir()?;
        let socket = folder.path().join("docker.sock");
        let listener = UnixListener::bind(&socket)?;
        let daemon = daemon.to_owned();
        let task = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let (daemon, version) = (daemon.clone(), version.clone());
                // A broken connection is the client's to report.
                tokio::spawn(async move { drop(serve(client, &daemon, &version).await) });
            }
        });
        Ok(Self {
            socket,
            _folder: folder,
            task,
        })
    }

    /// What DOCKER_HOST has to be for a client.
    pub fn host(&self) -> String {
        format!("unix://{}", self.socket.display())
    }
}

impl Drop for ApiProxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(mut client: UnixStream, daemon: &Path, version: &str) -> io::Result<()> {
    let (head, rest) = read_head(&mut client).await?;
    let mut upstream = UnixStream::connect(daemon).await?;
    upstream.write_all(rewrite(&head, version).as_bytes()).await?;
    upstream.write_all(&rest).await?;
    copy_bidirectional(&mut client, &mut upstream).await?;
    Ok(())
}

/// The head up to and with its empty line, and what was read beyond it.
async fn read_head(stream: &mut UnixStream) -> io::Result<(String, Vec<u8>)> {
    let mut bytes = Vec::new();
    loop {
        if let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") {
            let rest = bytes.split_off(end + 4);
            let head = String::from_utf8(bytes)
                .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
            return Ok((head, rest));
        }
        if bytes.len() > HEAD_LIMIT_BYTES || stream.read_buf(&mut bytes).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
}

/// The head with the daemon's version in its path, closing the connection after the answer unless it is upgraded.
fn rewrite(head: &str, version: &str) -> String {
    let mut lines = head.split("\r\n");
    let first = lines.next().unwrap_or_default();
    let mut words: Vec<String> = first.split(' ').map(str::to_owned).collect();
    if let Some(path) = words.get_mut(1)
        && let Some(rest) = path.strip_prefix("/v")
        && let Some((asked, rest)) = rest.split_once('/')
        && asked.starts_with(|c: char| c.is_ascii_digit())
    {
        *path = format!("/v{version}/{rest}");
    }
    let upgrades = head.to_ascii_lowercase().contains("\r\nupgrade:");
    let mut out = vec![words.join(" ")];
    for line in lines.filter(|line| !line.is_empty()) {
        if upgrades || !line.to_ascii_lowercase().starts_with("connection:") {
            out.push(line.to_owned());
        }
    }
    if !upgrades {
        out.push("Connection: close".to_owned());
    }
    out.join("\r\n") + "\r\n\r\n"
}

async fn daemon_version(daemon: &Path) -> io::Result<String> {
    let mut stream = UnixStream::connect(daemon).await?;
    stream
        .write_all(b"GET /version HTTP/1.1\r\nHost: docker\r\nConnection: close\r\n\r\n")
        .await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    let named = answer
        .split_once("\"ApiVersion\":\"")
        .and_then(|(_, rest)| rest.split('"').next());
    named
        .map(str::to_owned)
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "the daemon names no API version"))
}

/// A case's name, and whether it holds.
pub type Check = (&'static str, fn() -> bool);

/// Checks of the rewriting, called by the test's main as cases.
pub fn checks() -> Vec<Check> {
    vec![
        ("the_version_in_the_path_is_the_daemons", || {
            let head =
                "GET /v1.53/containers/json?all=1 HTTP/1.1\r\nHost: d\r\nConnection: keep-alive\r\n\r\n";
            rewrite(head, "1.41")
                == "GET /v1.41/containers/json?all=1 HTTP/1.1\r\nHost: d\r\nConnection: close\r\n\r\n"
        }),
        ("a_path_without_version_stays", || {
            rewrite("GET /volumes HTTP/1.1\r\nHost: d\r\n\r\n", "1.41")
                .starts_with("GET /volumes HTTP/1.1\r\n")
        }),
        ("an_upgrade_keeps_its_connection", || {
            let head = "POST /v1.53/exec/1/start HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n";
            let out = rewrite(head, "1.41");
            out.contains("Connection: Upgrade\r\nUpgrade: tcp") && !out.contains("close")
        }),
    ]
}
