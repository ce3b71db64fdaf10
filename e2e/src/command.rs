//! Programs that we call, each with a bound; an error carries the end of what they said.
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use tokio::io::AsyncWriteExt;

/// What to run.
#[derive(Clone, Debug)]
pub struct Command {
    program: OsString,
    args: Vec<OsString>,
    env: Vec<(OsString, OsString)>,
    folder: Option<PathBuf>,
    stdin: Vec<u8>,
    timeout: Duration,
}

/// What a program said.
#[derive(Clone, Debug)]
pub struct Output {
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

/// How a program failed.
#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    /// It could not be started.
    #[error("{program} cannot be started")]
    Start {
        /// Which one.
        program: String,
        /// Why.
        source: std::io::Error,
    },
    /// It ran out of time.
    #[error("{program} did not end in {limit:?}")]
    Timeout {
        /// Which one.
        program: String,
        /// The bound.
        limit: Duration,
    },
    /// It ended with an error.
    #[error("{program} ended with {status}: {tail}")]
    Status {
        /// Which one, with its arguments.
        program: String,
        /// How it ended.
        status: std::process::ExitStatus,
        /// The end of its standard error, or of its output where it wrote no error.
        tail: String,
    },
}

impl Command {
    /// A call of `program` without arguments, with a bound of a minute.
    pub fn new(program: impl AsRef<OsStr>) -> Self {
        Self {
            program: program.as_ref().to_owned(),
            args: Vec::new(),
            env: Vec::new(),
            folder: None,
            stdin: Vec::new(),
            timeout: Duration::from_secs(60),
        }
    }

    /// One more argument.
    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.args.push(arg.as_ref().to_owned());
        self
    }

    /// More arguments.
    pub fn args<A: AsRef<OsStr>>(mut self, args: impl IntoIterator<Item = A>) -> Self {
        self.args.extend(args.into_iter().map(|a| a.as_ref().to_owned()));
        self
    }

    /// A variable of its environment.
    pub fn env(mut self, key: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Self {
        self.env
            .push((key.as_ref().to_owned(), value.as_ref().to_owned()));
        self
    }

    /// The folder it runs in.
    pub fn current_dir(mut self, folder: impl AsRef<Path>) -> Self {
        self.folder = Some(folder.as_ref().to_owned());
        self
    }

    /// What it reads.
    pub fn stdin(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.stdin = bytes.into();
        self
    }

    /// Its bound.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// As a person would type it.
    pub fn shown(&self) -> String {
        let mut words = vec![Path::new(&self.program).display().to_string()];
        words.extend(self.args.iter().map(|a| a.to_string_lossy().into_owned()));
        words.join(" ")
    }
}

/// Runs it to its end; a caller that goes away ends it.
///
/// # Errors
/// Those of [`CommandError`].
pub async fn run(spec: &Command) -> Result<Output, CommandError> {
    let program = Path::new(&spec.program).display().to_string();
    let mut command = tokio::process::Command::new(&spec.program);
    command
        .args(&spec.args)
        .envs(spec.env.iter().map(|(k, v)| (k, v)));
    command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    command.stdin(if spec.stdin.is_empty() {
        Stdio::null()
    } else {
        Stdio::piped()
    });
    if let Some(folder) = &spec.folder {
        command.current_dir(folder);
    }
    let work = async {
        let mut child = command.spawn()?;
        if let Some(mut pipe) = child.stdin.take() {
            // A program that does not read to the end shows its reason by its status.
            let _ = pipe.write_all(&spec.stdin).await;
        }
        child.wait_with_output().await
    };
    let output = tokio::time::timeout(spec.timeout, work)
        .await
        .map_err(|_| CommandError::Timeout {
            program: spec.shown(),
            limit: spec.timeout,
        })?
        .map_err(|source| CommandError::Start { program, source })?;
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    if !output.status.success() {
        let said = if stderr.trim().is_empty() {
            &stdout
        } else {
            &stderr
        };
        let lines: Vec<_> = said.lines().collect();
        let tail = lines
            .get(lines.len().saturating_sub(20)..)
            .unwrap_or_default()
            .join("\n");
        return Err(CommandError::Status {
            program: spec.shown(),
            status: output.status,
            tail,
        });
    }
    Ok(Output { stdout, stderr })
}

/// Where `program` is found: in PATH, or where Debian keeps what only root is expected to use.
pub fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/local/sbin", "/usr/sbin", "/sbin"].map(PathBuf::from))
        .map(|folder| folder.join(program))
        .find(|candidate| candidate.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_bound_ends_a_program() {
        let spec = Command::new("tail")
            .args(["-f", "/dev/null"])
            .timeout(Duration::from_millis(50));
        assert!(matches!(run(&spec).await, Err(CommandError::Timeout { .. })));
    }

    #[tokio::test]
    async fn an_error_carries_what_was_said() {
        let said = run(&Command::new("ls").arg("/nowhere"))
            .await
            .unwrap_err()
            .to_string();
        assert!(said.contains("/nowhere"), "{said}");
    }

    #[tokio::test]
    async fn it_reads_what_it_is_given() {
        assert_eq!(
            run(&Command::new("cat").stdin("abc")).await.unwrap().stdout,
            "abc"
        );
    }
}
