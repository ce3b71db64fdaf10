//! The nodes that have started on this data folder: how many volumes each takes, and where it is.
use std::fs;
use std::io;

use serde::{Deserialize, Serialize};

use super::store::{Store, replace};
use crate::config::{Segments, is_node_id};
use crate::error::Error;

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
    /// Makes the node known, or what is known of it new.
    ///
    /// # Errors
    /// The failed call.
    pub fn add_node(&self, id: &str, node: &Node) -> io::Result<()> {
        replace(&self.root().join("nodes").join(id), &serde_json::to_vec(node)?)
    }

    /// A node, if it is known.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn node(&self, id: &str) -> Result<Option<Node>, Error> {
        if !is_node_id(id) {
            return Ok(None);
        }
        match fs::read_to_string(self.root().join("nodes").join(id)) {
            Ok(text) => Ok(Some(parse(&text))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(Error::storage("reading what is known of the node")(error)),
        }
    }

    /// Where the nodes are, each place once.
    ///
    /// # Errors
    /// If the folder cannot be read.
    pub fn places(&self) -> Result<Vec<Segments>, Error> {
        let failed = || Error::storage("listing nodes");
        let mut places = Vec::new();
        for entry in fs::read_dir(self.root().join("nodes")).map_err(failed())? {
            let name = entry.map_err(failed())?.file_name();
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

/// Before there were segments, the file held only the limit.
fn parse(text: &str) -> Node {
    serde_json::from_str(text).unwrap_or_else(|_| Node {
        limit: text.trim().parse().unwrap_or(0),
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
    fn a_file_of_an_older_version_is_a_limit() {
        assert_eq!(
            parse("8"),
            Node {
                limit: 8,
                segments: Segments::new()
            }
        );
    }
}
