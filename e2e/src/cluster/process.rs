//! Processes on this host: of a container, found by its id in their cgroup, as kind's nodes share the host's kernel; or called
//! with a word.
use std::path::Path;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::ClusterError;
use crate::command::{Command, run};

/// Every process of the container `id` (the hexadecimal part), or none where the container is gone.
pub fn of_container(id: &str) -> Vec<Pid> {
    matching(|pid| std::fs::read_to_string(format!("/proc/{pid}/cgroup")).is_ok_and(|text| text.contains(id)))
}

/// Every process that has `word` among the words it was called with.
pub fn with_word(word: &str) -> Vec<Pid> {
    matching(|pid| {
        std::fs::read(format!("/proc/{pid}/cmdline"))
            .is_ok_and(|line| line.split(|byte| *byte == 0).any(|arg| arg == word.as_bytes()))
    })
}

fn matching(fits: impl Fn(i32) -> bool) -> Vec<Pid> {
    let Ok(entries) = std::fs::read_dir("/proc") else {
        return Vec::new();
    };
    let numbers = entries
        .flatten()
        .filter_map(|e| e.file_name().to_str().and_then(|n| n.parse::<i32>().ok()));
    numbers.filter(|pid| fits(*pid)).map(Pid::from_raw).collect()
}

/// Sends `signal` to every process of the container; how many there were.
///
/// # Errors
/// If a process that exists cannot be signalled.
pub fn signal(id: &str, signal: Signal) -> Result<usize, ClusterError> {
    let found = of_container(id);
    for pid in &found {
        match kill(*pid, signal) {
            // It ended between the two looks.
            Ok(()) | Err(nix::errno::Errno::ESRCH) => {}
            Err(errno) => {
                return Err(ClusterError::Setup(format!(
                    "{signal} of process {pid}: {errno}; run as root"
                )));
            }
        }
    }
    Ok(found.len())
}

/// Whether every process of the container is stopped.
pub fn is_stopped(id: &str) -> bool {
    let found = of_container(id);
    !found.is_empty() && found.iter().all(|pid| state(*pid) == Some('T'))
}

fn state(pid: Pid) -> Option<char> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    text.rsplit(')').next()?.trim_start().chars().next()
}

/// What waits unread at the Unix sockets of a container: connections not yet accepted, and bytes not yet read. A held
/// process accepts and reads nothing, so anything here is a call that waits for it.
///
/// # Errors
/// If `ss` or `nsenter` cannot run.
pub async fn waiting_calls(id: &str, socket: &str) -> Result<u64, ClusterError> {
    let Some(pid) = of_container(id).first().copied() else {
        return Ok(0);
    };
    let namespace = format!("/proc/{pid}/ns/net");
    if !Path::new(&namespace).exists() {
        return Ok(0);
    }
    let spec = Command::new("nsenter")
        .arg(format!("--net={namespace}"))
        .args(["ss", "-xa"]);
    let shown = run(&spec).await.map_err(|source| ClusterError::Command {
        doing: String::from("ss"),
        source,
    })?;
    Ok(queued(&shown.stdout, socket))
}

/// Sum of the receive queues of the sockets called `socket` in the output of `ss -xa`.
fn queued(shown: &str, socket: &str) -> u64 {
    shown
        .lines()
        .map(|line| line.split_whitespace().collect::<Vec<_>>())
        .filter(|fields| fields.iter().any(|f| f.ends_with(socket)))
        .filter_map(|fields| fields.get(2).and_then(|n| n.parse::<u64>().ok()))
        .sum()
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    #[test]
    fn a_process_is_found_by_a_whole_word_of_its_call() {
        let mut child = std::process::Command::new("sh")
            .args(["-c", "echo; read x", "a-word=of-this-test"])
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        // It has its words once it speaks.
        let mut line = [0];
        child.stdout.as_mut().unwrap().read_exact(&mut line).unwrap();
        let pid = Pid::from_raw(i32::try_from(child.id()).unwrap());
        assert_eq!(with_word("a-word=of-this-test"), [pid]);
        assert_eq!(with_word("a-word=of-this"), []);
        drop(child.stdin.take());
        child.wait().unwrap();
    }

    #[test]
    fn queues_of_one_socket_are_summed() {
        let shown = "\
Netid State  Recv-Q Send-Q Local Address:Port  Peer Address:Port
u_str LISTEN 2      128    /csi/csi.sock 11            * 0
u_str ESTAB  57     0      /csi/csi.sock 12            * 13
u_str ESTAB  9      0      /run/other.sock 14          * 15";
        assert_eq!(queued(shown, "/csi.sock"), 59);
    }

    #[test]
    fn a_container_that_is_gone_has_no_process() {
        assert!(of_container("no-such-container-id").is_empty());
    }
}
