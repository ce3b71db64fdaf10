//! What this driver writes into its loop devices: whose one is, and what it was made for. The kernel keeps it as long as the
//! device, so no record of it can be wrong, lost or left over.
use std::fmt;
use std::path::Path;

use sha2::{Digest, Sha256};

use crate::volume::capability::{Access, Capability, Fs, Mode};

/// What a device is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Use {
    /// The staged volume; it has the image's lock.
    Staged,
    /// A read-only device beside a staged one.
    Reader,
}

/// The text in a loop device, at most 63 bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Tag {
    /// The node and its data folder.
    pub(super) owner: String,
    /// The attachment under which it was made.
    pub(super) epoch: u64,
    /// What it is for.
    pub(super) purpose: Use,
    /// The staging path; of a reader nothing.
    pub(super) place: String,
    /// How the volume was staged.
    pub(super) arguments: String,
}

/// The beginning of a digest, in hexadecimal digits.
fn digest(digits: usize, parts: &[&[u8]]) -> String {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update(part.len().to_le_bytes());
        hash.update(part);
    }
    let hex: String = hash.finalize().iter().map(|b| format!("{b:02x}")).collect();
    hex[..digits].to_owned()
}

/// Of a node on a data folder: on one kernel under several nodes, as in kind, nothing else tells whose a device is.
pub(super) fn owner(node: &str, root: &Path) -> String {
    digest(20, &[node.as_bytes(), root.as_os_str().as_encoded_bytes()])
}

/// Of a staging path, as mountinfo shows it.
pub(super) fn place(staging: &Path) -> String {
    digest(8, &[staging.as_os_str().as_encoded_bytes()])
}

/// Of everything that a second call must ask for in the same way. The group is not of it: pods that share a volume may each
/// have their own. Devices and targets outlive the process, so these words stay as they are from one version to the next.
pub(super) fn arguments(capability: &Capability, read_only: bool) -> String {
    let access = match capability.access {
        Access::Mount => "mount",
        Access::Block => "block",
    };
    let mode = match capability.mode {
        Mode::Writer => "writer",
        Mode::ReaderOnly => "reader-only",
        Mode::SingleWriter => "single-writer",
        Mode::MultiWriter => "multi-writer",
    };
    let fs = capability.fs.map_or("", Fs::name);
    let read_only = if read_only { "read-only" } else { "" };
    let flags = capability.mount_flags.join(",");
    let parts = [access, mode, fs, read_only, &flags].map(str::as_bytes);
    digest(8, &parts)
}

impl Tag {
    pub(super) fn parse(text: &str) -> Option<Self> {
        let mut words = text.strip_prefix("hf:")?.split(':');
        let tag = Self {
            owner: words.next()?.to_owned(),
            epoch: u64::from_str_radix(words.next()?, 16).ok()?,
            purpose: match words.next()? {
                "w" => Use::Staged,
                "r" => Use::Reader,
                _ => return None,
            },
            place: words.next()?.to_owned(),
            arguments: words.next()?.to_owned(),
        };
        words.next().is_none().then_some(tag)
    }
}

impl fmt::Display for Tag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let purpose = match self.purpose {
            Use::Staged => "w",
            Use::Reader => "r",
        };
        write!(
            f,
            "hf:{}:{:x}:{purpose}:{}:{}",
            self.owner, self.epoch, self.place, self.arguments
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_tag_fits_and_is_read_back() {
        let tag = Tag {
            owner: owner("n1", Path::new("/data")),
            epoch: u64::MAX,
            purpose: Use::Staged,
            place: place(Path::new("/stage")),
            arguments: digest(8, &[b"x"]),
        };
        assert!(tag.to_string().len() <= 63, "{}", tag.to_string().len());
        assert_eq!(Tag::parse(&tag.to_string()), Some(tag));
        assert_eq!(Tag::parse("holdfast:x"), None);
        assert_eq!(Tag::parse("hf:a:zz:w:b:c"), None);
    }

    #[test]
    fn other_arguments_are_told_apart_and_the_group_is_not_one() {
        let first = Capability {
            access: Access::Mount,
            fs: Some(Fs::Ext4),
            mount_flags: vec![String::from("noatime")],
            mode: Mode::Writer,
            mount_group: None,
        };
        let of = |c: &Capability| arguments(c, false);
        assert_eq!(of(&first), of(&first.clone()));
        let others = [
            Capability {
                fs: Some(Fs::Xfs),
                ..first.clone()
            },
            Capability {
                mode: Mode::MultiWriter,
                ..first.clone()
            },
            Capability {
                mount_flags: vec![],
                ..first.clone()
            },
        ];
        for other in others {
            assert_ne!(of(&first), of(&other), "{other:?}");
        }
        assert_ne!(of(&first), arguments(&first, true));
        assert_ne!(owner("a", Path::new("b")), owner("ab", Path::new("")));
    }
}
