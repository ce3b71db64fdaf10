//! What a program in a pod says: both of its streams, to their end or to a bound.
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::api::AttachParams;
use tokio::io::AsyncReadExt;

/// Both streams of a program.
#[derive(Debug)]
pub struct Saying {
    /// Its standard output.
    pub said: String,
    /// Its standard error.
    pub complaints: String,
    /// Whether it came to its end in time.
    pub in_time: bool,
}

/// Runs `words` in a container of a pod; a stream that breaks ends early, and shows as words that cannot be understood.
///
/// # Errors
/// The API server's, if the program cannot be started.
pub async fn of(
    pods: &Api<Pod>,
    pod: &str,
    container: &str,
    words: &[&str],
    bound: Duration,
) -> Result<Saying, kube::Error> {
    let parameters = AttachParams::default()
        .stdout(true)
        .stderr(true)
        .container(container);
    let mut process = pods.exec(pod, words.iter().copied(), &parameters).await?;
    let (mut said, mut complaints) = (String::new(), String::new());
    let reading = async {
        if let Some(mut stdout) = process.stdout() {
            let _ = stdout.read_to_string(&mut said).await;
        }
        if let Some(mut stderr) = process.stderr() {
            let _ = stderr.read_to_string(&mut complaints).await;
        }
    };
    let in_time = tokio::time::timeout(bound, reading).await.is_ok();
    Ok(Saying {
        said,
        complaints,
        in_time,
    })
}
