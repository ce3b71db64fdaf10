//! A driver's process, and how to reach it.
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use holdfast_proto::csi as pb;
use holdfast_proto::csi::controller_client::ControllerClient;
use holdfast_proto::csi::identity_client::IdentityClient;
use tonic::transport::{Channel, Endpoint};

/// Longer than any start takes.
const START_LIMIT: Duration = Duration::from_secs(30);

/// A driver's command line and what it is called.
pub(super) struct Subject {
    pub(super) name: &'static str,
    pub(super) command: String,
}

/// A process of a subject, stopped at the end.
pub(super) struct Running {
    process: Child,
    pub(super) channel: Channel,
    /// From the start of the process to its first answer.
    pub(super) ready: Duration,
}

impl Running {
    pub(super) async fn start(subject: &Subject, folder: &Path) -> Self {
        let socket = folder.join("csi.sock");
        let fill = |word: &str| {
            word.replace("{socket}", &socket.display().to_string())
                .replace("{dir}", &folder.join("data").display().to_string())
        };
        let mut words = subject.command.split_whitespace().map(fill);
        let log = std::fs::File::options()
            .create(true)
            .append(true)
            .open(folder.join("log"))
            .unwrap();
        let mut command = Command::new(words.next().expect("an empty command line"));
        command
            .args(words)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log);
        let since = Instant::now();
        let process = command
            .spawn()
            .unwrap_or_else(|error| panic!("{}: {error}", subject.command));
        loop {
            if let Some(channel) = answering(&socket).await {
                return Self {
                    process,
                    channel,
                    ready: since.elapsed(),
                };
            }
            let log = || std::fs::read_to_string(folder.join("log")).unwrap_or_default();
            assert!(
                since.elapsed() < START_LIMIT,
                "{} gives no answer: {}",
                subject.name,
                log()
            );
            std::thread::park_timeout(Duration::from_micros(200));
        }
    }

    pub(super) fn controller(&self) -> ControllerClient<Channel> {
        ControllerClient::new(self.channel.clone()).max_decoding_message_size(64 << 20)
    }

    pub(super) fn resident_kib(&self) -> f64 {
        let path = format!("/proc/{}/status", self.process.id());
        let text = std::fs::read_to_string(path).unwrap();
        let line = text.lines().find(|l| l.starts_with("VmRSS:")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    }

    pub(super) fn stop(mut self) {
        let pid = nix::unistd::Pid::from_raw(self.process.id().cast_signed());
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
        let since = Instant::now();
        while self.process.try_wait().unwrap().is_none() {
            if since.elapsed() > Duration::from_secs(5) {
                let _ = self.process.kill();
            }
            std::thread::park_timeout(Duration::from_millis(1));
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

async fn answering(socket: &Path) -> Option<Channel> {
    std::os::unix::net::UnixStream::connect(socket).ok()?;
    let path = socket.to_owned();
    let connector = tower::service_fn(move |_| {
        let path = path.clone();
        async move {
            tokio::net::UnixStream::connect(path)
                .await
                .map(hyper_util::rt::TokioIo::new)
        }
    });
    let channel = Endpoint::from_static("http://localhost")
        .connect_with_connector(connector)
        .await
        .ok()?;
    let probe = IdentityClient::new(channel.clone())
        .probe(pb::ProbeRequest {})
        .await
        .ok()?;
    (probe.into_inner().ready != Some(false)).then_some(channel)
}
