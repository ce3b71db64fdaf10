//! What the driver is told at its start, checked once.
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Parser, ValueEnum};

/// Where a node or a volume is: values by lower-case key.
pub type Segments = BTreeMap<String, String>;

/// Which services a process offers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Role {
    /// Identity and Controller: unprivileged, needs only the data folder.
    Controller,
    /// Identity and Node: privileged, mounts.
    Node,
    /// All of them in one process, for tests and a single machine.
    All,
}

impl Role {
    /// Whether the Controller service is offered.
    pub fn has_controller(self) -> bool {
        matches!(self, Self::Controller | Self::All)
    }

    /// Whether the Node service is offered.
    pub fn has_node(self) -> bool {
        matches!(self, Self::Node | Self::All)
    }
}

/// The command line; every option has an environment variable of the same name.
#[derive(Clone, Debug, Parser)]
#[command(
    name = "holdfast-driver",
    version,
    about = "A compact, complete, crash-safe CSI driver",
    after_help = "Tools on a data folder: holdfast-driver inspect --help, holdfast-driver repair --help"
)]
pub struct Args {
    /// Services to offer
    #[arg(value_enum, env = "HOLDFAST_ROLE")]
    pub role: Role,
    /// Socket to serve CSI on, as unix:///path
    #[arg(long, env = "HOLDFAST_ENDPOINT")]
    pub endpoint: String,
    /// This node's id; needed by node and all
    #[arg(long, env = "HOLDFAST_NODE_ID")]
    pub node_id: Option<String>,
    /// Folder that holds volumes, shared by all nodes
    #[arg(long, env = "HOLDFAST_DATA_DIR")]
    pub data_dir: PathBuf,
    /// Name that the driver gives itself
    #[arg(long, env = "HOLDFAST_DRIVER_NAME", default_value = "holdfast.csi")]
    pub driver_name: String,
    /// Address for HTTP /healthz and /readyz
    #[arg(long, env = "HOLDFAST_HEALTH_ADDRESS")]
    pub health_address: Option<SocketAddr>,
    /// Kubelet's plugins_registry folder; the driver registers itself there
    #[arg(long, env = "HOLDFAST_REGISTRATION_DIR", requires = "kubelet_socket_path")]
    pub registration_dir: Option<PathBuf>,
    /// Where kubelet finds the endpoint: its path on the host
    #[arg(long, env = "HOLDFAST_KUBELET_SOCKET_PATH")]
    pub kubelet_socket_path: Option<PathBuf>,
    /// Bytes that may be promised to volumes; the size of the filesystem below the data folder by default
    #[arg(long, env = "HOLDFAST_CAPACITY")]
    pub capacity: Option<u64>,
    /// How many volumes may be attached to this node; 0 means no limit
    #[arg(long, env = "HOLDFAST_MAX_VOLUMES_PER_NODE", default_value_t = 0)]
    pub max_volumes_per_node: u32,
    /// Where this node is, as KEY=VALUE, several times for several keys; NODE:KEY=VALUE counts only on that node, in place of
    /// the value for all
    #[arg(
        long,
        env = "HOLDFAST_TOPOLOGY",
        value_delimiter = ',',
        value_name = "[NODE:]KEY=VALUE"
    )]
    pub topology: Vec<String>,
    /// error, warn, info, debug or trace
    #[arg(long, env = "HOLDFAST_LOG_LEVEL", default_value = "info")]
    pub log_level: tracing::level_filters::LevelFilter,
}

/// The command line, found meaningful.
#[derive(Clone, Debug)]
pub struct Config {
    /// Services to offer.
    pub role: Role,
    /// The socket's path.
    pub socket: PathBuf,
    /// This node's id; empty for a controller.
    pub node_id: String,
    /// Folder that holds volumes.
    pub data_dir: PathBuf,
    /// Name that the driver gives itself.
    pub driver_name: String,
    /// Address for HTTP health.
    pub health_address: Option<SocketAddr>,
    /// Socket's folder for kubelet's registration and the endpoint to announce.
    pub registration: Option<(PathBuf, PathBuf)>,
    /// Bytes that may be promised to volumes.
    pub capacity_bytes: Option<u64>,
    /// Attachments that one node takes; 0 means no limit.
    pub max_volumes_per_node: u32,
    /// Where this node is; never empty, because a node without a segment could hold no volume that has one.
    pub segments: Segments,
}

/// Why a command line means nothing.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The endpoint is no absolute socket path.
    #[error("--endpoint {0:?} must be unix:// and an absolute path of at most 107 bytes")]
    Endpoint(String),
    /// A node plugin without an id, or with one that cannot be a file name.
    #[error("--node-id {0:?} must be 1 to 192 letters, digits, '.', '_' or '-', and not begin with '.'")]
    NodeId(String),
    /// The specification's rule for names is broken.
    #[error(
        "--driver-name {0:?} must be 1 to 63 letters, digits, '.' or '-', with a letter or digit at both ends"
    )]
    DriverName(String),
    /// A relative data folder depends on where the process was started.
    #[error("--data-dir {0:?} must be an absolute path")]
    DataDir(PathBuf),
    /// A segment breaks the specification's rules of topology.
    #[error("--topology {given:?} {reason}")]
    Topology {
        /// As given.
        given: String,
        /// The rule, continuing the sentence.
        reason: &'static str,
    },
}

impl TryFrom<Args> for Config {
    type Error = ConfigError;

    fn try_from(args: Args) -> Result<Self, ConfigError> {
        let path = args.endpoint.strip_prefix("unix://").unwrap_or(&args.endpoint);
        let socket = PathBuf::from(path);
        if !socket.is_absolute() || path.len() > 107 {
            return Err(ConfigError::Endpoint(args.endpoint));
        }
        let node_id = args.node_id.unwrap_or_default();
        if (args.role.has_node() || !node_id.is_empty()) && !is_node_id(&node_id) {
            return Err(ConfigError::NodeId(node_id));
        }
        let name = args.driver_name;
        let ends = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
        let inner = |c: char| c.is_ascii_alphanumeric() || c == '.' || c == '-';
        if name.len() > 63
            || !ends(name.chars().next())
            || !ends(name.chars().last())
            || !name.chars().all(inner)
        {
            return Err(ConfigError::DriverName(name));
        }
        if !args.data_dir.is_absolute() {
            return Err(ConfigError::DataDir(args.data_dir));
        }
        let segments = segments_of(&node_id, &name, &args.topology)?;
        Ok(Self {
            role: args.role,
            socket,
            node_id,
            data_dir: args.data_dir,
            driver_name: name,
            health_address: args.health_address,
            registration: args.registration_dir.zip(args.kubelet_socket_path),
            capacity_bytes: args.capacity,
            max_volumes_per_node: args.max_volumes_per_node,
            segments,
        })
    }
}

/// The segments of `node`: those for all, those for it alone in their place, and one that is the same everywhere if there
/// are none, because a driver that declares VOLUME_ACCESSIBILITY_CONSTRAINTS needs a key on every node.
fn segments_of(node: &str, driver: &str, given: &[String]) -> Result<Segments, ConfigError> {
    let (mut of_all, mut own) = (Segments::new(), Segments::new());
    for text in given.iter().filter(|text| !text.is_empty()) {
        let bad = |reason| ConfigError::Topology {
            given: text.clone(),
            reason,
        };
        let (key, value) = text.split_once('=').ok_or_else(|| bad("must be KEY=VALUE"))?;
        let (whose, key) = match key.split_once(':') {
            Some((whose, key)) => (Some(whose), key),
            None => (None, key),
        };
        segment(key, value).map_err(bad)?;
        let segments = match whose {
            None => &mut of_all,
            Some(whose) if whose == node => &mut own,
            Some(_) => continue,
        };
        let before = segments.insert(key.to_ascii_lowercase(), value.to_owned());
        if before.is_some_and(|before| before != value) {
            return Err(bad(
                "has a key that was given another value, the case of keys left aside",
            ));
        }
    }
    of_all.append(&mut own);
    if of_all.is_empty() {
        let key = format!("topology.{}/zone", driver.to_ascii_lowercase());
        of_all.insert(key, String::from("default"));
    }
    Ok(of_all)
}

/// Checks a segment by the specification's rules, which are those of Kubernetes' labels: a key of an optional prefix and a
/// name, a value, each of at most 63 bytes.
///
/// # Errors
/// The rule that is broken, continuing a sentence.
pub fn segment(key: &str, value: &str) -> Result<(), &'static str> {
    let word = |text: &str| {
        let inner = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        let ends = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
        text.len() <= 63 && ends(text.chars().next()) && ends(text.chars().last()) && text.chars().all(inner)
    };
    let (prefix, name) = match key.split_once('/') {
        Some((prefix, name)) => (Some(prefix), name),
        None => (None, key),
    };
    let domain = |text: &str| text.split('.').all(|label| word(label) && !label.contains('_'));
    if !word(name) || prefix.is_some_and(|p| p.len() > 63 || !domain(p)) {
        return Err(
            "has a key that is not [prefix/]name, each of at most 63 letters, digits, '-', '_' or '.', with a letter \
             or digit at both ends",
        );
    }
    if !word(value) {
        return Err(
            "has a value that is not 1 to 63 letters, digits, '-', '_' or '.', with a letter or digit at both ends",
        );
    }
    Ok(())
}

/// Segments as a person reads them.
pub fn shown(segments: &Segments) -> String {
    let pairs: Vec<_> = segments
        .iter()
        .map(|(key, value)| format!("{key}={value}"))
        .collect();
    pairs.join(",")
}

/// Whether `id` can name a node here: it becomes a file name, and Kubernetes keeps at most 192 bytes of it.
pub fn is_node_id(id: &str) -> bool {
    !id.is_empty()
        && id.len() <= 192
        && !id.starts_with('.')
        && id
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-'))
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case::good(&[], None)]
    #[case::relative_socket(&["--endpoint", "unix://csi.sock"], Some("--endpoint"))]
    #[case::tcp(&["--endpoint", "tcp://127.0.0.1:1"], Some("--endpoint"))]
    #[case::slash_in_node(&["--node-id", "../x"], Some("--node-id"))]
    #[case::hidden_node(&["--node-id", ".x"], Some("--node-id"))]
    #[case::name_too_long(&["--driver-name", "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"], Some("--driver-name"))]
    #[case::name_ends_in_dot(&["--driver-name", "a."], Some("--driver-name"))]
    #[case::relative_data(&["--data-dir", "data"], Some("--data-dir"))]
    #[case::topology_without_value(&["--topology", "zone"], Some("--topology"))]
    #[case::topology_of_two_values(&["--topology", "zone=a,Zone=b"], Some("--topology"))]
    #[case::topology_of_a_bad_value(&["--topology", "zone=-"], Some("--topology"))]
    fn command_lines(#[case] change: &[&str], #[case] named: Option<&str>) {
        let mut options = vec![
            ("--endpoint", "unix:///run/csi.sock"),
            ("--node-id", "n1"),
            ("--data-dir", "/data"),
        ];
        for pair in change.chunks(2) {
            options.retain(|(k, _)| *k != pair[0]);
            options.push((pair[0], pair[1]));
        }
        let words = ["holdfast-driver", "all"]
            .into_iter()
            .chain(options.into_iter().flat_map(|(k, v)| [k, v]));
        let parsed = Config::try_from(Args::try_parse_from(words).unwrap());
        match named {
            None => assert_eq!(parsed.unwrap().socket, PathBuf::from("/run/csi.sock")),
            Some(option) => assert!(parsed.unwrap_err().to_string().starts_with(option)),
        }
    }

    #[rstest]
    #[case::none_given(&[], &[("topology.holdfast.csi/zone", "default")])]
    #[case::for_all(&["example.org/Zone=a"], &[("example.org/zone", "a")])]
    #[case::its_own_counts(&["zone=a", "n1:zone=b", "rack=7"], &[("rack", "7"), ("zone", "b")])]
    #[case::another_nodes_does_not(&["zone=a", "n2:zone=b"], &[("zone", "a")])]
    fn segments_of_a_node(#[case] given: &[&str], #[case] expected: &[(&str, &str)]) {
        let given: Vec<_> = given.iter().map(|text| (*text).to_owned()).collect();
        let expected = expected
            .iter()
            .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
            .collect();
        assert_eq!(segments_of("n1", "holdfast.csi", &given).unwrap(), expected);
    }

    #[test]
    fn a_controller_needs_no_node_id() {
        let words = [
            "holdfast-driver",
            "controller",
            "--endpoint",
            "unix:///s",
            "--data-dir",
            "/d",
        ];
        assert!(Config::try_from(Args::try_parse_from(words).unwrap()).is_ok());
    }
}
