//! The nodes that have started on this data folder: how many volumes each takes, and where it is.
//!
//! A driver is not told when a node is removed from the cluster. What it can know is whether the node's plugin still runs:
//! that says so every few seconds, and where none has for a while is no place for a new volume. What is known of the node
//! otherwise stays: its volumes are attached, detached and moved as before, and its place counts again when it comes back.
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use super::files::{self, replace, sync_folder};
use super::store::Store;
use crate::config::{Segments, is_node_id};
use crate::error::Error;

/// How often a node plugin says that it runs.
pub const PERIOD: Duration = Duration::from_secs(10);
/// A node that has said nothing for so long is no place any more: as long as Kubernetes waits before it moves the pods of a
/// node that is not ready.
const SILENCE: Duration = Duration::from_secs(300);

/// What a node plugin tells about itself at its start.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Node {
    /// How many volumes may be attached to it; 0 means no limit.
    pub limit: u32,
    /// Where it is.
    #[serde(default)]
    pub segments: Segments,
}

impl Store {
    /// Makes the node known, or what is known of it new. What is known already is not written again: a node must be able to
    /// start, and to let go of its volumes, where nothing more can be written.
    ///
    /// # Errors
    /// The failed call.
    pub fn add_node(&self, id: &str, node: &Node) -> io::Result<()> {
        let path = self.node_file(id);
        let text = serde_json::to_vec(node)?;
        match files::read(&path) {
            Ok(Some(known)) if known == text => {
                touch(&path)?;
                sync_folder(&self.root().join("nodes"))
            }
            _ => replace(&path, &text),
        }
    }

    fn node_file(&self, id: &str) -> PathBuf {
        self.root().join("nodes").join(id)
    }

    /// Says that the node's plugin still runs; a crash may forget it, so it is not made durable.
    ///
    /// # Errors
    /// The failed call.
    pub fn node_runs(&self, id: &str, node: &Node) -> io::Result<()> {
        match touch(&self.node_file(id)) {
            // Somebody has made the driver forget a node that was gone.
            Err(error) if error.kind() == io::ErrorKind::NotFound => self.add_node(id, node),
            said => said,
        }
    }

    /// A node, if it is known.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn node(&self, id: &str) -> Result<Option<Node>, Error> {
        if !is_node_id(id) {
            return Ok(None);
        }
        match files::read(&self.node_file(id)) {
            Ok(known) => Ok(known.map(|text| parse(&text))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(Error::storage("reading what is known of the node")(error)),
        }
    }

    /// Where nodes are whose plugin runs, each place once.
    ///
    /// # Errors
    /// If the folder cannot be read.
    pub fn places(&self) -> Result<Vec<Segments>, Error> {
        let failed = || Error::storage("listing nodes");
        let mut places = Vec::new();
        for entry in fs::read_dir(self.root().join("nodes")).map_err(failed())? {
            let entry = entry.map_err(failed())?;
            let said = entry.metadata().and_then(|meta| meta.modified());
            // One from the future is another machine's clock.
            let silence = said.map(|said| said.elapsed().unwrap_or_default());
            if !silence.is_ok_and(|silence| silence < SILENCE) {
                continue;
            }
            let name = entry.file_name();
            // A temporary of a node that is being made known has a name, too.
            let id = name.to_str().filter(|name| !name.ends_with(".json.tmp"));
            if let Some(node) = id.map(|id| self.node(id)).transpose()?.flatten() {
                places.push(node.segments);
            }
        }
        places.sort();
        places.dedup();
        Ok(places)
    }
}

/// The time of a node's file is when its plugin was last heard.
fn touch(path: &Path) -> io::Result<()> {
    File::options()
        .write(true)
        // A pipe in its place has nobody who reads it.
        .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
        .open(path)?
        .set_modified(SystemTime::now())
}

/// Before there were segments, the file held only the limit.
fn parse(text: &[u8]) -> Node {
    serde_json::from_slice(text).unwrap_or_else(|_| Node {
        limit: String::from_utf8_lossy(text).trim().parse().unwrap_or(0),
        segments: Segments::new(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_is_known_with_its_limit_and_its_place() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        let node = Node {
            limit: 3,
            segments: Segments::from([(String::from("zone"), String::from("a"))]),
        };
        assert_eq!(store.node("n1").unwrap(), None);
        for id in ["n1", "n2"] {
            store.add_node(id, &node).unwrap();
        }
        assert_eq!(store.node("n1").unwrap(), Some(node.clone()));
        assert_eq!(store.places().unwrap(), [node.segments]);
        assert_eq!(store.node("../n1").unwrap(), None);
    }

    #[test]
    fn a_node_that_is_silent_is_no_place_until_it_is_back() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        let at = |zone: &str| Node {
            limit: 3,
            segments: Segments::from([(String::from("zone"), zone.to_owned())]),
        };
        store.add_node("n1", &at("a")).unwrap();
        store.add_node("n2", &at("b")).unwrap();
        let silent = |id: &str, seconds| {
            let file = File::options()
                .write(true)
                .open(folder.path().join("nodes").join(id));
            let since = SystemTime::now() - Duration::from_secs(seconds);
            file.unwrap().set_modified(since).unwrap();
        };
        silent("n1", 299);
        silent("n2", 301);
        assert_eq!(store.places().unwrap(), [at("a").segments]);
        assert_eq!(
            store.node("n2").unwrap(),
            Some(at("b")),
            "it is known all the same"
        );
        store.node_runs("n2", &at("b")).unwrap();
        assert_eq!(store.places().unwrap(), [at("a").segments, at("b").segments]);
        fs::remove_file(folder.path().join("nodes/n2")).unwrap();
        store.node_runs("n2", &at("b")).unwrap();
        assert_eq!(store.node("n2").unwrap(), Some(at("b")));
    }

    #[test]
    fn a_pipe_in_a_nodes_place_is_no_node_and_is_waited_for_by_nobody() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        nix::unistd::mkfifo(&folder.path().join("nodes/n1"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert_eq!(store.node("n1").unwrap(), None);
        assert!(store.places().unwrap().is_empty());
        assert!(store.node_runs("n1", &Node::default()).is_err());
        store.add_node("n1", &Node::default()).unwrap();
        assert_eq!(store.node("n1").unwrap(), Some(Node::default()));
    }

    #[test]
    fn what_is_known_is_not_written_again() {
        use std::os::unix::fs::MetadataExt;

        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        let file = || {
            fs::metadata(folder.path().join("nodes/n1"))
                .map(|m| m.ino())
                .unwrap()
        };
        let limit = |limit| Node {
            limit,
            ..Node::default()
        };
        store.add_node("n1", &limit(3)).unwrap();
        let first = file();
        store.add_node("n1", &limit(3)).unwrap();
        assert_eq!(file(), first);
        store.add_node("n1", &limit(4)).unwrap();
        assert_eq!(store.node("n1").unwrap(), Some(limit(4)));
    }

    #[test]
    fn a_file_of_an_older_version_is_a_limit() {
        assert_eq!(
            parse(b"8"),
            Node {
                limit: 8,
                segments: Segments::new()
            }
        );
    }
}
