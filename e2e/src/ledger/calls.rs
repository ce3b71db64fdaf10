//! What the driver says of its own calls: which one touched a volume last.
use std::time::{Duration, SystemTime};

use k8s_openapi::jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// Calls that change nothing; kubelet makes some of them again and again.
const READERS: [&str; 5] = [
    "ValidateVolumeCapabilities",
    "ControllerGetVolume",
    "ListVolumes",
    "GetCapacity",
    "NodeGetVolumeStats",
];

/// A call that the driver logged as over.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Call {
    /// When it was over, by the driver's clock.
    pub timestamp: Timestamp,
    /// Its number in the life of that process.
    pub call: u64,
    /// The RPC.
    pub rpc: String,
    /// The driver's id of the volume.
    pub volume: String,
    /// How it was answered, as the driver writes it.
    pub code: String,
}

/// A line of the driver's log. Which call it is of stands in the span around it, or in the line itself.
#[derive(Deserialize)]
struct Line {
    timestamp: Timestamp,
    code: String,
    #[serde(flatten)]
    own: Subject,
    #[serde(default)]
    span: Subject,
}

#[derive(Default, Deserialize)]
struct Subject {
    call: Option<u64>,
    rpc: Option<String>,
    volume: Option<String>,
}

/// The calls in a log of the driver, one JSON object a line; every other line is left out.
pub fn parse_calls(log: &str) -> Vec<Call> {
    let call = |line: Line| {
        Some(Call {
            timestamp: line.timestamp,
            call: line.span.call.or(line.own.call)?,
            rpc: line.span.rpc.or(line.own.rpc)?,
            volume: line.span.volume.or(line.own.volume)?,
            code: line.code,
        })
    };
    log.lines()
        .filter_map(|line| serde_json::from_str(line).ok())
        .filter_map(call)
        .collect()
}

/// The last of `calls` that may have changed `volume`, as a leak's line tells it; `start` is the run's. For what is on a node
/// the last of a node's: what came after them on the controller neither made nor left it.
pub(super) fn last_touch(calls: &[Call], volume: &str, on_node: bool, start: SystemTime) -> Option<String> {
    let is_node = |call: &Call| call.rpc.starts_with("Node");
    let touches = || {
        let own = |call: &&Call| !volume.is_empty() && call.volume == volume;
        calls
            .iter()
            .filter(own)
            .filter(|call| !READERS.contains(&call.rpc.as_str()))
    };
    let prefers_node = on_node && touches().any(is_node);
    touches()
        .filter(|call| !prefers_node || is_node(call))
        .max_by_key(|call| (call.timestamp, call.call))
        .map(|call| {
            let when = moment(call.timestamp, start);
            format!("{}, call {}, {when}, {}", call.rpc, call.call, code(&call.code))
        })
}

fn moment(timestamp: Timestamp, start: SystemTime) -> String {
    match SystemTime::from(timestamp).duration_since(start) {
        Ok(after) => format!("+{:.3} s", after.as_secs_f64()),
        // Before the run: only the day's own time says when.
        Err(_) => format!("at {}", trimmed(timestamp)),
    }
}

fn trimmed(timestamp: Timestamp) -> Timestamp {
    let below = Duration::from_nanos(timestamp.subsec_nanosecond().unsigned_abs().into());
    timestamp.checked_sub(below).unwrap_or(timestamp)
}

/// `FailedPrecondition` as the specification writes it.
fn code(name: &str) -> String {
    let mut text = String::new();
    for (index, c) in name.chars().enumerate() {
        if c.is_ascii_uppercase() && index > 0 {
            text.push('_');
        }
        text.push(c.to_ascii_uppercase());
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOG: &str = r#"
{"timestamp":"2026-11-24T12:00:10.500000Z","level":"INFO","message":"done","call":40,"rpc":"NodePublishVolume","volume":"3f9c","code":"Ok","micros":9,"target":"t"}
{"timestamp":"2026-11-24T12:00:18.204000Z","level":"WARN","message":"failed","call":41,"rpc":"NodeUnstageVolume","volume":"3f9c","code":"FailedPrecondition","micros":9,"error":"busy","target":"t"}
{"timestamp":"2026-11-24T12:00:19.000000Z","level":"INFO","message":"done","call":42,"rpc":"NodeGetVolumeStats","volume":"3f9c","code":"Ok","micros":9,"target":"t"}
{"timestamp":"2026-11-24T12:00:20.000000Z","level":"INFO","message":"done","code":"Ok","micros":9,"target":"t","span":{"call":43,"rpc":"DeleteVolume","volume":"aa","name":"call"}}
{"timestamp":"2026-11-24T12:00:21.000000Z","level":"INFO","message":"serving","target":"t"}
error: no JSON"#;

    fn start(text: &str) -> SystemTime {
        SystemTime::from(text.parse::<Timestamp>().unwrap())
    }

    #[test]
    fn the_last_call_that_may_have_changed_a_volume_is_told() {
        let calls = parse_calls(LOG);
        assert_eq!(calls.len(), 4);
        let said = last_touch(&calls, "3f9c", false, start("2026-11-24T12:00:00Z"));
        assert_eq!(
            said.as_deref(),
            Some("NodeUnstageVolume, call 41, +18.204 s, FAILED_PRECONDITION")
        );
        assert_eq!(
            last_touch(&calls, "bb", false, start("2026-11-24T12:00:00Z")),
            None
        );
        assert_eq!(last_touch(&calls, "", false, start("2026-11-24T12:00:00Z")), None);
    }

    #[test]
    fn what_is_on_a_node_was_touched_by_a_call_to_a_node() {
        let log = format!(
            "{LOG}\n{}",
            r#"{"timestamp":"2026-11-24T12:00:30Z","call":2,"rpc":"DeleteVolume","volume":"3f9c","code":"Ok"}"#
        );
        let calls = parse_calls(&log);
        let said = |on_node| last_touch(&calls, "3f9c", on_node, start("2026-11-24T12:00:00Z")).unwrap();
        assert!(
            said(true).starts_with("NodeUnstageVolume, call 41"),
            "{}",
            said(true)
        );
        assert!(said(false).starts_with("DeleteVolume, call 2"), "{}", said(false));
    }

    #[test]
    fn a_call_from_before_the_run_has_the_time_of_day() {
        let said = last_touch(&parse_calls(LOG), "aa", true, start("2026-11-24T13:00:00Z"));
        assert_eq!(
            said.as_deref(),
            Some("DeleteVolume, call 43, at 2026-11-24T12:00:20Z, OK")
        );
    }
}
