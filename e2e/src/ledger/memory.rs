//! What earlier readings showed: whose a thing is that no longer says so itself.
use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::facts::{Facts, FileId};
use super::objects::Object;
use super::owners;

/// Grows with every reading of one cluster.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Memory {
    /// Files that were in the data folder, and that a loop device still holds.
    files: BTreeSet<FileId>,
    /// Numbers of loop devices that carried a file of the data folder, and nobody else's since.
    numbers: BTreeMap<u32, Use>,
    /// Numbers that were free and read-only before they carried one.
    stuck: BTreeSet<u32>,
    /// Pods by what kubelet calls their folder.
    pods: BTreeMap<String, String>,
    /// What is known of volumes, by id.
    pub(super) volumes: BTreeMap<String, owners::Known>,
}

/// The last use of a number by a file of the data folder.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
struct Use {
    /// The file.
    file: Option<FileId>,
    /// Once the number is free again: whether it is read-only.
    left: Option<bool>,
    /// Whether a flag on the free number is somebody's doing. The kernel itself leaves one after a device that was
    /// read-only from its beginning, and takes it away for the next user, which it does not with one that was set later.
    counts: bool,
}

impl Memory {
    /// That of a reader who was told which files of the data folder have no name any more.
    pub fn with_nameless(files: BTreeSet<FileId>) -> Self {
        Self {
            files,
            ..Self::default()
        }
    }

    /// Learns what `facts` show, and tells them what was known before.
    pub fn learn(&mut self, facts: &mut Facts) {
        facts.memory = self.clone();
        for one in &facts.loops {
            match (one.backing.is_some(), facts.owns(one)) {
                (true, true) => {
                    let last = self.numbers.entry(one.number).or_default();
                    // Between two readings it may have been free, without one.
                    let new = last.file != one.file;
                    if last.left.is_some() || new {
                        last.counts &= last.left.unwrap_or(false);
                        last.left = None;
                        last.file = one.file;
                    }
                    if !one.read_only {
                        last.counts = true;
                        self.stuck.remove(&one.number);
                    }
                }
                (true, false) => {
                    self.numbers.remove(&one.number);
                    self.stuck.remove(&one.number);
                }
                (false, _) => {
                    if let Some(last) = self.numbers.get_mut(&one.number) {
                        last.left = Some(one.read_only);
                    } else if one.read_only {
                        self.stuck.insert(one.number);
                    }
                    if !one.read_only {
                        self.stuck.remove(&one.number);
                    }
                }
            }
        }
        // An inode that is free again may become anybody's; one that a loop device holds cannot.
        let held: BTreeSet<FileId> = facts
            .loops
            .iter()
            .filter(|one| one.is_deleted())
            .filter_map(|one| one.file)
            .collect();
        self.files.retain(|file| held.contains(file));
        self.files.extend(&facts.files);
        for pod in &facts.pods {
            for folder in &pod.folders {
                self.pods.insert(folder.clone(), pod.name.clone());
            }
        }
        owners::learn(&mut self.volumes, facts);
        facts.memory = self.clone();
    }

    /// Learns whose volume `object` is.
    pub fn meets(&mut self, object: Object) {
        owners::learn_objects(&mut self.volumes, &[object]);
    }

    pub(super) fn files(&self) -> &BTreeSet<FileId> {
        &self.files
    }

    pub(super) fn knows(&self, file: FileId) -> bool {
        self.files.contains(&file)
    }

    /// Whether the read-only flag of a free device was left by the driver.
    pub(super) fn left_flag(&self, number: u32) -> bool {
        self.numbers.get(&number).is_some_and(|last| last.counts) && !self.stuck.contains(&number)
    }

    pub(super) fn pod(&self, folder: &str) -> Option<&str> {
        self.pods.get(folder).map(String::as_str)
    }
}

#[cfg(test)]
mod tests {
    use super::super::entry::Kind;
    use super::super::facts::BackendFile;
    use super::*;

    #[test]
    fn whose_volume_it_was_is_known_after_its_pv_has_come_and_gone_between_two_readings() {
        let mut memory = Memory::default();
        memory.meets(Object {
            kind: Kind::Pv,
            name: String::from("pvc-71"),
            uid: String::from("u-1"),
            volume: String::from("3f9c"),
            claim: String::from("t-81/data-0"),
            owner: String::new(),
            finalizers: Vec::new(),
            terminating: false,
        });
        let mut facts = Facts {
            backend: vec![BackendFile {
                path: String::from("volumes/3f9c.img"),
                text: String::new(),
            }],
            ..Facts::default()
        };
        memory.learn(&mut facts);
        let ledger = facts.ledger();
        let owners: Vec<&str> = ledger.entries.iter().map(|e| e.owner.as_str()).collect();
        assert_eq!(owners, ["volume 3f9c, claim t-81/data-0"]);
    }
}
