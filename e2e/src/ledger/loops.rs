//! Loop devices: those over the driver's images, and read-only flags that the driver left on a free number.
use serde::{Deserialize, Serialize};

use super::entry::{Entry, Kind};
use super::facts::{Facts, FileId};
use super::owners::Owners;

/// A loop device of the kernel.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Loop {
    /// Its number.
    pub number: u32,
    /// The file behind it, if one is, as it is called where it was attached.
    pub backing: Option<String>,
    /// The same file by device and inode, from the device's own status: it tells two files of one path apart.
    pub file: Option<FileId>,
    /// Whether writes to the device fail.
    pub read_only: bool,
    /// The nodes whose kernel has it, where that is not this machine's.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub node: String,
}

impl Loop {
    /// Whether the file behind it has no name any more.
    pub fn is_deleted(&self) -> bool {
        self.backing.as_ref().is_some_and(|b| b.ends_with(DELETED))
    }
}

const DELETED: &str = " (deleted)";

/// A list of loop devices that cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("`losetup --list --json` says what it should not")]
pub struct NotListed(#[from] serde_json::Error);

#[derive(Deserialize)]
struct Listed {
    loopdevices: Vec<Row>,
}

#[derive(Deserialize)]
struct Row {
    name: String,
    #[serde(rename = "back-file")]
    file: Option<String>,
    #[serde(rename = "back-ino")]
    inode: Option<u64>,
    #[serde(rename = "back-maj:min")]
    device: Option<String>,
    #[serde(default)]
    ro: bool,
}

/// The devices in the output of `losetup --list --json --output NAME,BACK-FILE,BACK-INO,BACK-MAJ:MIN,RO`: those in use.
///
/// # Errors
/// If it is no such output.
pub fn parse_listed(text: &str) -> Result<Vec<Loop>, NotListed> {
    if text.trim().is_empty() {
        return Ok(Vec::new());
    }
    let listed: Listed = serde_json::from_str(text)?;
    let one = |row: Row| {
        Some(Loop {
            number: row.name.strip_prefix("/dev/loop")?.parse().ok()?,
            backing: row.file.filter(|file| !file.is_empty()),
            file: row
                .device
                .as_deref()
                .and_then(device)
                .zip(row.inode.filter(|inode| *inode > 0))
                .map(|(device, inode)| FileId { device, inode }),
            read_only: row.ro,
            node: String::new(),
        })
    };
    Ok(listed.loopdevices.into_iter().filter_map(one).collect())
}

fn device(text: &str) -> Option<(u64, u64)> {
    let (major, minor) = text.trim().split_once(':')?;
    Some((major.trim().parse().ok()?, minor.trim().parse().ok()?))
}

/// The entries of the kernel's loop devices that are the driver's.
pub(super) fn entries(facts: &Facts, owners: &Owners) -> Vec<Entry> {
    let entry = |one: &Loop| {
        let number = one.number;
        let (kind, name, volume) = match &one.backing {
            Some(backing) if facts.owns(one) => {
                let access = if one.read_only { "read-only" } else { "read-write" };
                let file = shown(facts, backing);
                let inode = one
                    .file
                    .map_or_else(String::new, |f| format!(" (inode {})", f.inode));
                let name = format!("/dev/loop{number}, {access}, {file}{inode}");
                let kind = if one.is_deleted() {
                    Kind::DeadLoop
                } else {
                    Kind::Loop
                };
                (kind, name, volume(backing))
            }
            // BLKROSET outlives the detach: the next user of the number could not write.
            None if one.read_only && facts.memory.left_flag(number) => {
                let name = format!("/dev/loop{number}, free, read-only");
                (Kind::LoopFlag, name, String::new())
            }
            Some(_) | None => return None,
        };
        let mut owner = if kind == Kind::LoopFlag {
            String::from("the node plugin that had it last")
        } else {
            owners.volume(&volume)
        };
        if one.is_deleted() {
            owner.push_str(", whose file is deleted");
        }
        Some(Entry {
            kind,
            name,
            place: if one.node.is_empty() {
                String::from("kernel")
            } else {
                one.node.clone()
            },
            owner,
            volume,
        })
    };
    facts.loops.iter().filter_map(entry).collect()
}

/// The backing file by its path below the data folder, where it has one.
fn shown<'a>(facts: &Facts, backing: &'a str) -> &'a str {
    facts
        .roots
        .iter()
        .find_map(|root| backing.strip_prefix(root.as_str()))
        .unwrap_or(backing)
}

fn volume(backing: &str) -> String {
    let file = backing.trim_end_matches(DELETED);
    let name = file.rsplit('/').next().unwrap_or(file);
    name.trim_end_matches(".img").to_owned()
}

#[cfg(test)]
mod tests {
    use super::super::memory::Memory;
    use super::*;

    fn file(inode: u64) -> FileId {
        FileId {
            device: (254, 0),
            inode,
        }
    }

    fn over(number: u32, path: &str, inode: u64) -> Loop {
        Loop {
            number,
            backing: Some(path.to_owned()),
            file: Some(file(inode)),
            read_only: false,
            node: String::new(),
        }
    }

    fn free(number: u32, read_only: bool) -> Loop {
        Loop {
            number,
            backing: None,
            file: None,
            read_only,
            node: String::new(),
        }
    }

    fn facts(files: &[u64], loops: Vec<Loop>) -> Facts {
        Facts {
            roots: vec![String::from("/var/lib/holdfast/")],
            folder: file(1),
            files: files.iter().map(|inode| file(*inode)).collect(),
            loops,
            ..Facts::default()
        }
    }

    fn numbers(facts: &Facts) -> Vec<(Kind, String)> {
        let entries = entries(facts, &Owners::of(facts));
        entries.into_iter().map(|e| (e.kind, e.name)).collect()
    }

    #[test]
    fn another_cluster_s_loop_of_the_same_path_is_not_ours() {
        let loops = vec![
            over(0, "/var/lib/holdfast/volumes/aa.img", 11),
            over(1, "/var/lib/holdfast/volumes/bb.img", 99),
            over(2, "/home/other.img", 98),
        ];
        let found = numbers(&facts(&[11], loops));
        assert_eq!(
            found,
            [(
                Kind::Loop,
                String::from("/dev/loop0, read-write, volumes/aa.img (inode 11)")
            )]
        );
    }

    #[test]
    fn a_loop_whose_file_is_deleted_is_still_counted() {
        let mut memory = Memory::default();
        memory.learn(&mut facts(&[12], vec![over(3, "/elsewhere/bb.img", 12)]));
        let mut later = facts(
            &[],
            vec![
                over(3, "/elsewhere/bb.img (deleted)", 12),
                over(4, "/var/lib/holdfast/volumes/cc.img (deleted)", 13),
                over(5, "/elsewhere/dd.img (deleted)", 14),
            ],
        );
        memory.learn(&mut later);
        let found: Vec<_> = entries(&later, &Owners::of(&later));
        assert_eq!(found.len(), 2, "{found:?}");
        assert_eq!(found[0].owner, "volume bb, whose file is deleted");
        assert_eq!(found[1].owner, "volume cc, whose file is deleted");
    }

    #[test]
    fn an_inode_that_another_cluster_uses_again_is_forgotten() {
        let mut memory = Memory::default();
        memory.learn(&mut facts(&[12], vec![]));
        memory.learn(&mut facts(&[], vec![over(3, "/elsewhere/x.img", 12)]));
        let mut later = facts(&[], vec![over(3, "/elsewhere/x.img (deleted)", 12)]);
        memory.learn(&mut later);
        assert_eq!(numbers(&later), []);
    }

    #[test]
    fn the_flag_of_a_free_device_counts_if_the_driver_left_it() {
        let mut memory = Memory::default();
        memory.learn(&mut facts(
            &[11],
            vec![free(0, true), free(1, false), free(2, false)],
        ));
        let (mut zero, mut one) = (over(0, "/v/aa.img", 11), over(1, "/v/aa.img", 11));
        memory.learn(&mut facts(&[11], vec![one.clone()]));
        (zero.read_only, one.read_only) = (true, true);
        memory.learn(&mut facts(&[11], vec![zero, one, over(2, "/home/x.img", 98)]));
        let mut later = facts(&[11], vec![free(0, true), free(1, true), free(2, true)]);
        memory.learn(&mut later);
        assert_eq!(
            numbers(&later),
            [(Kind::LoopFlag, String::from("/dev/loop1, free, read-only"))]
        );
    }

    #[test]
    fn the_flag_that_the_kernel_leaves_after_a_read_only_device_is_no_leak() {
        let mut memory = Memory::default();
        let mut reader = over(1, "/v/aa.img", 11);
        reader.read_only = true;
        let one_of = |memory: &mut Memory, device: Loop| {
            let mut now = facts(&[11, 12], vec![device]);
            memory.learn(&mut now);
            numbers(&now).first().map(|(kind, _)| *kind)
        };
        // A writable device before it, whose end left no flag, is another use.
        for device in [over(1, "/v/aa.img", 11), free(1, false), reader.clone()] {
            one_of(&mut memory, device);
        }
        assert_eq!(one_of(&mut memory, free(1, true)), None);
        // So is one that was free too shortly to be seen.
        one_of(&mut memory, over(1, "/v/bb.img", 12));
        one_of(&mut memory, reader.clone());
        assert_eq!(one_of(&mut memory, free(1, true)), None);
        // One that was set on a writable device stays where the next user is a reader.
        one_of(&mut memory, over(1, "/v/aa.img", 11));
        one_of(&mut memory, reader.clone());
        assert_eq!(one_of(&mut memory, free(1, true)), Some(Kind::LoopFlag));
        one_of(&mut memory, reader);
        assert_eq!(one_of(&mut memory, free(1, true)), Some(Kind::LoopFlag));
    }

    #[test]
    fn the_list_of_losetup_is_read_and_another_text_is_an_error() {
        let text = r#"{"loopdevices": [
            {"name": "/dev/loop0", "back-ino": 9977982, "back-maj:min": "     254:0  ", "ro": true, "back-file": "/tmp/a b.img (deleted)"},
            {"name": "/dev/loop1", "back-ino": null, "back-maj:min": null, "ro": false, "back-file": "/x"}]}"#;
        let found = parse_listed(text).unwrap();
        assert_eq!(found[0].file, Some(file(9_977_982)));
        assert!(found[0].read_only && found[0].is_deleted());
        assert_eq!((found[1].number, found[1].file), (1, None));
        assert!(parse_listed("").unwrap().is_empty());
        assert!(parse_listed("losetup: not found").is_err());
    }
}
