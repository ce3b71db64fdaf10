//! A folder of a user's own, and the programs that are started in it.
use std::io::{BufRead, BufReader, Read};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use holdfast_e2e::cluster::kind::Cluster;
use libtest_mimic::Failed;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::support::check;

/// A cluster goes, or a line comes, on a machine that does other things too.
pub const LIMIT: Duration = Duration::from_secs(180);

/// A folder for one case, with the words that keep its runs apart from others.
pub struct Desk {
    pub folder: tempfile::TempDir,
}

/// A program on its way, its lines as they come.
pub struct Running {
    words: Vec<String>,
    child: Child,
    lines: Receiver<String>,
    heard: Vec<String>,
}

impl Desk {
    pub fn new() -> Self {
        let folder = tempfile::Builder::new().prefix("hf-trouble-").tempdir().unwrap();
        Self { folder }
    }

    pub fn state(&self) -> PathBuf {
        self.folder.path().join("state")
    }

    pub fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_holdfast"));
        command
            .args(words)
            .current_dir(self.folder.path())
            .env("HOLDFAST_STATE_DIR", self.state())
            .env_remove("GITHUB_STEP_SUMMARY")
            .stdin(Stdio::null());
        command
    }

    pub fn start(&self, words: &[&str]) -> Running {
        let mut child = self
            .command(words)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let (send, lines) = channel();
        listen(child.stdout.take().unwrap(), send.clone());
        listen(child.stderr.take().unwrap(), send);
        Running {
            words: words.iter().map(|word| (*word).to_owned()).collect(),
            child,
            lines,
            heard: Vec::new(),
        }
    }

    pub fn cluster(&self, name: &str) -> Cluster {
        let text = std::fs::read_to_string(self.state().join(name).join("cluster.json")).unwrap();
        serde_json::from_str(&text).unwrap()
    }

    /// What the state folder still has, locks apart.
    pub fn left(&self) -> Vec<String> {
        std::fs::read_dir(self.state())
            .into_iter()
            .flatten()
            .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
            .filter(|name| !name.starts_with('.'))
            .collect()
    }
}

fn listen(said: impl Read + Send + 'static, lines: Sender<String>) {
    std::thread::spawn(move || {
        for line in BufReader::new(said).lines().map_while(Result::ok) {
            // The case is over.
            if lines.send(line).is_err() {
                return;
            }
        }
    });
}

impl Running {
    /// Waits for a line with `word` in it.
    pub fn says(&mut self, word: &str, limit: Duration) -> Result<String, Failed> {
        let until = Instant::now() + limit;
        loop {
            match self
                .lines
                .recv_timeout(until.saturating_duration_since(Instant::now()))
            {
                Ok(line) => {
                    self.heard.push(line.clone());
                    if line.contains(word) {
                        return Ok(line);
                    }
                }
                Err(why) => {
                    let heard = self.heard.join("\n");
                    let why = match why {
                        RecvTimeoutError::Timeout => "not in its bound",
                        RecvTimeoutError::Disconnected => "ended before",
                    };
                    return Err(format!("{word:?} was not said, {why}; heard:\n{heard}").into());
                }
            }
        }
    }

    pub fn tell(&self, signal: Signal) {
        let pid = Pid::from_raw(i32::try_from(self.child.id()).unwrap());
        // A process that is over hears nothing.
        let _ = kill(pid, signal);
    }

    /// Waits for the end: the exit code, or none after a signal that kills.
    pub fn ends(self) -> Result<Option<i32>, Failed> {
        Ok(self.ends_saying()?.0)
    }

    /// Waits for the end, which has this exit code.
    pub fn ends_with(self, expected: i32) -> Result<String, Failed> {
        let words = format!("{:?}", self.words);
        let (code, said) = self.ends_saying()?;
        check(code == Some(expected), || {
            format!("{words} ends with {code:?}, not {expected}; heard:\n{said}")
        })?;
        Ok(said)
    }

    /// Waits for the end: the exit code, and all that was said.
    fn ends_saying(mut self) -> Result<(Option<i32>, String), Failed> {
        let ends = self.is_silent();
        let heard = self.heard.join("\n");
        check(ends, || format!("it does not end; heard:\n{heard}"))?;
        Ok((self.child.wait()?.code(), heard))
    }

    /// Hears the rest: whether its lines end in their bound, as they do with the process.
    fn is_silent(&mut self) -> bool {
        loop {
            match self.lines.recv_timeout(LIMIT) {
                Ok(line) => self.heard.push(line),
                Err(RecvTimeoutError::Disconnected) => return true,
                Err(RecvTimeoutError::Timeout) => return false,
            }
        }
    }
}

/// A case that failed leaves no program behind that would go on making things.
impl Drop for Running {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(Some(_))) {
            return;
        }
        self.tell(Signal::SIGTERM);
        if !self.is_silent() {
            self.tell(Signal::SIGKILL);
        }
        let _ = self.child.wait();
    }
}
