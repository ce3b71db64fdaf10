//! Everything below a mount given to one group, without following a link and without leaving the filesystem.
use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat};
use nix::sys::stat::{FchmodatFlags, FileStat, Mode, SFlag, fchmodat, fstat};
use nix::unistd::{Gid, fchownat};

use super::{linux, place};

/// What a group may do with a file.
const FILE: u32 = 0o060;
/// What it may do with a folder, which also passes the group on.
const FOLDER: u32 = 0o2070;
/// Deeper than any tree that people make; each level keeps a descriptor open.
const DEPTH: usize = 200;

/// `system.posix_acl_default` for user rwx, group rwx, others r-x: with it, what is made in the folder may be written by its
/// group whatever the umask of who makes it (acl(5), linux/posix_acl_xattr.h).
const DEFAULT_ACL: [u8; 28] = {
    let mut acl = [0; 28];
    acl[0] = 2; // version
    let entries = [(0x01, 7), (0x04, 7), (0x20, 5)];
    let mut at = 0;
    while at < entries.len() {
        let from = 4 + at * 8;
        acl[from] = entries[at].0;
        acl[from + 2] = entries[at].1;
        let mut byte = 4;
        while byte < 8 {
            acl[from + byte] = 0xff; // no id
            byte += 1;
        }
        at += 1;
    }
    acl
};

/// Gives everything in the filesystem that is mounted at `path` to `group`, with the right to write, unless that was done
/// before. Its root says so, and is given last: after a crash half way everything is done again, without harm.
///
/// # Errors
/// The failed call; what was given until then is right already.
pub fn give_to_group(path: &Path, group: u32) -> io::Result<()> {
    let root = place::resolve(path)?;
    let stat = fstat(&root)?;
    if stat.st_gid == group && stat.st_mode & FOLDER == FOLDER {
        return Ok(());
    }
    let folder = openat(&root, ".", folder_flags(), Mode::empty())?;
    below(folder, stat.st_dev, Gid::from_raw(group), DEPTH)?;
    give(root.as_fd(), &stat, Gid::from_raw(group))
}

fn folder_flags() -> OFlag {
    OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC
}

fn below(folder: OwnedFd, device: libc::dev_t, group: Gid, depth: usize) -> io::Result<()> {
    if depth == 0 {
        return Err(io::Error::other("folders are nested too deep"));
    }
    let mut entries = Dir::from_fd(folder.try_clone()?)?;
    for entry in entries.iter() {
        let entry = entry?;
        let name = entry.file_name();
        if name == c"." || name == c".." {
            continue;
        }
        match one(&folder, name, device, group, depth) {
            // Gone since it was listed.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            other => other?,
        }
    }
    Ok(())
}

fn one(folder: &OwnedFd, name: &CStr, device: libc::dev_t, group: Gid, depth: usize) -> io::Result<()> {
    let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let entry = openat(folder, name, flags, Mode::empty())?;
    let stat = fstat(&entry)?;
    if stat.st_dev != device {
        return Ok(());
    }
    if kind(&stat) == SFlag::S_IFDIR {
        let inner = openat(&entry, ".", folder_flags(), Mode::empty())?;
        below(inner, device, group, depth - 1)?;
    }
    give(entry.as_fd(), &stat, group)
}

fn kind(stat: &FileStat) -> SFlag {
    SFlag::from_bits_truncate(stat.st_mode & libc::S_IFMT)
}

/// The group first: changing it takes set-group-ID away.
fn give(entry: BorrowedFd<'_>, stat: &FileStat, group: Gid) -> io::Result<()> {
    if stat.st_gid != group.as_raw() {
        fchownat(entry, "", None, Some(group), AtFlags::AT_EMPTY_PATH)?;
    }
    let more = match kind(stat) {
        SFlag::S_IFLNK => return Ok(()),
        SFlag::S_IFDIR => FOLDER,
        _ => FILE,
    };
    // What is open with O_PATH is changed through its descriptor's name, which is not followed any further.
    let through = place::through(entry);
    if more == FOLDER {
        match linux::set_attribute(&through, c"system.posix_acl_default", &DEFAULT_ACL) {
            // Mounted without access lists: set-group-ID alone must do.
            Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => {}
            other => other?,
        }
    }
    let mode = Mode::from_bits_truncate((stat.st_mode & 0o7777) | more);
    match fchmodat(nix::fcntl::AT_FDCWD, &through, mode, FchmodatFlags::FollowSymlink) {
        Err(Errno::ENOENT) => Ok(()),
        other => Ok(other?),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

    use super::*;

    #[test]
    fn everything_below_is_given_and_nothing_behind_a_link() {
        if !nix::unistd::geteuid().is_root() {
            return;
        }
        let outside = tempfile::tempdir().unwrap();
        std::fs::write(outside.path().join("file"), b"").unwrap();
        let root = tempfile::tempdir().unwrap();
        let path = std::fs::canonicalize(root.path()).unwrap();
        std::fs::create_dir(path.join("folder")).unwrap();
        std::fs::write(path.join("folder/file"), b"").unwrap();
        symlink(outside.path(), path.join("folder/link")).unwrap();
        give_to_group(&path, 4321).unwrap();
        for (name, more) in [("", FOLDER), ("folder", FOLDER), ("folder/file", FILE)] {
            let meta = std::fs::metadata(path.join(name)).unwrap();
            assert_eq!(
                (meta.gid(), meta.permissions().mode() & more),
                (4321, more),
                "{name}"
            );
        }
        assert_ne!(std::fs::metadata(outside.path()).unwrap().gid(), 4321);
        assert_ne!(
            std::fs::metadata(outside.path().join("file")).unwrap().gid(),
            4321
        );
        assert_eq!(
            std::fs::symlink_metadata(path.join("folder/link")).unwrap().gid(),
            4321
        );
    }
}
