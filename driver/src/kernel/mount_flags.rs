//! Mount flags: which of them a volume may have, and how the kernel takes them.
use super::MountFlags;
use super::filesystem::Fs;

/// Flags of a single mount, which a bind can have for itself.
const OF_A_MOUNT: &[(&str, libc::c_ulong)] = &[
    ("ro", libc::MS_RDONLY),
    ("noatime", libc::MS_NOATIME),
    ("nodiratime", libc::MS_NODIRATIME),
    ("relatime", libc::MS_RELATIME),
    ("strictatime", libc::MS_STRICTATIME),
    ("nodev", libc::MS_NODEV),
    ("noexec", libc::MS_NOEXEC),
    ("nosuid", libc::MS_NOSUID),
];
/// Flags of every filesystem as a whole.
const OF_ALL: &[(&str, libc::c_ulong)] = &[
    ("lazytime", libc::MS_LAZYTIME),
    ("sync", libc::MS_SYNCHRONOUS),
    ("dirsync", libc::MS_DIRSYNC),
];
/// What mount(8) knows and the kernel does not need.
const EMPTY: &[&str] = &[
    "rw", "defaults", "_netdev", "nofail", "async", "dev", "exec", "suid", "atime", "diratime",
];
/// Options of SELinux, which kubelet adds.
const LABELS: &[&str] = &["context", "fscontext", "defcontext", "rootcontext"];
/// Options of ext4 that harm neither the data nor the node. Not among them: what skips the journal, its barriers or its
/// order, names another device, or lets an error stop the machine.
const OF_EXT4: &[&str] = &[
    "acl",
    "noacl",
    "user_xattr",
    "nouser_xattr",
    "discard",
    "nodiscard",
    "delalloc",
    "nodelalloc",
    "barrier",
    "commit",
    "stripe",
    "journal_checksum",
    "auto_da_alloc",
    "noauto_da_alloc",
    "init_itable",
    "noinit_itable",
    "dioread_lock",
    "dioread_nolock",
    "block_validity",
    "max_batch_time",
    "min_batch_time",
    "inode_readahead_blks",
    "journal_ioprio",
    "i_version",
    "bsddf",
    "minixdf",
    "grpid",
    "nogrpid",
    "quota",
    "noquota",
    "usrquota",
    "grpquota",
    "prjquota",
];
/// The same of XFS.
const OF_XFS: &[&str] = &[
    "discard",
    "nodiscard",
    "nouuid",
    "inode32",
    "inode64",
    "largeio",
    "nolargeio",
    "swalloc",
    "allocsize",
    "logbufs",
    "logbsize",
    "wsync",
    "attr2",
    "ikeep",
    "noikeep",
    "sunit",
    "swidth",
    "noalign",
    "filestreams",
    "grpid",
    "bsdgroups",
    "nogrpid",
    "sysvgroups",
    "quota",
    "noquota",
    "usrquota",
    "uquota",
    "grpquota",
    "gquota",
    "prjquota",
    "pquota",
    "uqnoenforce",
    "gqnoenforce",
    "pqnoenforce",
];

/// Whether a flag may be given to a filesystem.
///
/// # Errors
/// What is wrong with it, continuing a sentence.
pub fn check_flag(fs: Fs, flag: &str) -> Result<(), &'static str> {
    let (name, value) = match flag.split_once('=') {
        Some((name, value)) => (name, Some(value)),
        None => (flag, None),
    };
    let is_bit = |list: &[(&str, libc::c_ulong)]| list.iter().any(|(known, _)| *known == flag);
    let own = match fs {
        Fs::Ext4 => OF_EXT4,
        Fs::Xfs => OF_XFS,
    };
    let good_value = |value: &str| {
        !value.is_empty()
            && value
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.' | ':' | '"'))
    };
    // A label holds commas in its categories; they end an option unless they are quoted, so they are not taken.
    let bad_value = value.is_some_and(|value| !good_value(value));
    match (name, value) {
        _ if bad_value => Err("has a value that no mount option has"),
        ("errors", Some("remount-ro" | "continue")) if fs == Fs::Ext4 => Ok(()),
        ("data", Some("ordered" | "journal")) if fs == Fs::Ext4 => Ok(()),
        ("barrier", Some("0")) => Err("would lose data in a crash"),
        _ if is_bit(OF_A_MOUNT) || is_bit(OF_ALL) || EMPTY.contains(&flag) => Ok(()),
        (name, Some(_)) if LABELS.contains(&name) => Ok(()),
        (name, _) if own.contains(&name) => Ok(()),
        _ => Err("is not among the mount flags that this driver allows for the filesystem"),
    }
}

/// The flags that one mount has for itself.
pub fn mount_bits(flags: &[String], read_only: bool) -> MountFlags {
    let mut bits = if read_only { libc::MS_RDONLY } else { 0 };
    for (name, bit) in OF_A_MOUNT {
        if flags.iter().any(|flag| flag == name) {
            bits |= bit;
        }
    }
    MountFlags { bits }
}

/// Whether there are flags that only the mount of a whole filesystem can have.
pub fn has_options(flags: &[String]) -> bool {
    let of_a_mount = |flag: &String| OF_A_MOUNT.iter().any(|(name, _)| name == flag);
    flags
        .iter()
        .any(|flag| !of_a_mount(flag) && !EMPTY.contains(&flag.as_str()))
}

/// Mount flags as bits, and the rest as text for the filesystem.
pub fn mount_options(fs: Fs, flags: &[String], read_only: bool) -> (MountFlags, String) {
    let mut bits = mount_bits(flags, read_only).bits;
    let mut rest: Vec<&str> = Vec::new();
    for flag in flags {
        if let Some((_, bit)) = OF_ALL.iter().find(|(name, _)| name == flag) {
            bits |= bit;
        } else if !OF_A_MOUNT.iter().any(|(name, _)| name == flag) && !EMPTY.contains(&flag.as_str()) {
            rest.push(flag);
        }
    }
    // A clone has its source's UUID, which XFS would refuse to mount beside it.
    if fs == Fs::Xfs && !rest.contains(&"nouuid") {
        rest.push("nouuid");
    }
    (MountFlags { bits }, rest.join(","))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_flags_become_bits_and_others_go_to_the_filesystem() {
        let flags = ["noatime", "discard"].map(String::from);
        let (bits, rest) = mount_options(Fs::Ext4, &flags, true);
        assert_eq!(
            (bits.bits, rest.as_str()),
            (libc::MS_NOATIME | libc::MS_RDONLY, "discard")
        );
    }

    #[test]
    fn dangerous_and_unknown_flags_are_refused() {
        for good in [
            "noatime",
            "discard",
            "commit=30",
            "errors=remount-ro",
            "rw",
            "context=\"system_u:object_r:x:s0\"",
        ] {
            assert_eq!(check_flag(Fs::Ext4, good), Ok(()), "{good}");
        }
        let bad = [
            "bind",
            "remount",
            "move",
            "loop",
            "offset=0",
            "errors=panic",
            "noload",
            "norecovery",
            "barrier=0",
            "nobarrier",
            "journal_path=/dev/sda",
            "data=writeback",
            "logdev=/dev/sda",
            "abort",
            "test_dummy_encryption",
            "nouuid",
            "x",
            "commit=1 2",
            "commit=",
            "noatime=1",
            "shared",
        ];
        for bad in bad {
            assert!(check_flag(Fs::Ext4, bad).is_err(), "{bad}");
        }
        assert_eq!(check_flag(Fs::Xfs, "nouuid"), Ok(()));
        assert!(check_flag(Fs::Xfs, "norecovery").is_err());
    }

    #[test]
    fn a_bind_gets_only_what_a_mount_can_have() {
        let flags = ["noexec", "discard", "sync"].map(String::from);
        assert_eq!(mount_bits(&flags, true).bits, libc::MS_NOEXEC | libc::MS_RDONLY);
        assert!(has_options(&flags));
        assert!(!has_options(&["rw", "noatime"].map(String::from)));
    }
}
