//! A path that the CO named, reached without following a link that somebody put there meanwhile.
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags, OFlag, OpenHow, ResolveFlag, openat, openat2};
use nix::sys::stat::{Mode, SFlag, fstatat, mkdirat};
use nix::unistd::{UnlinkatFlags, unlinkat};

use super::linux;
use crate::failpoint;

/// A name in a folder that is held open: whatever becomes of the path above, it stays the same folder.
#[derive(Debug)]
pub struct Place {
    folder: OwnedFd,
    name: OsString,
    path: PathBuf,
}

/// What stands at a place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A folder.
    Folder,
    /// A file, and how long it is.
    File(u64),
    /// A symbolic link; it is never followed.
    Link,
    /// A device, a socket or a pipe.
    Special,
}

/// Only root sees and writes it.
const MARK: &std::ffi::CStr = c"trusted.holdfast";

/// The path without doubled and single dots and slashes.
pub fn tidy(path: &Path) -> PathBuf {
    path.components().filter(|c| *c != Component::CurDir).collect()
}

/// Opens `path` itself, not what is in it; no component may be a link.
///
/// # Errors
/// ELOOP where one is, else the errno of openat2(2).
pub fn resolve(path: &Path) -> io::Result<OwnedFd> {
    resolve_as(path, OFlag::empty())
}

fn resolve_as(path: &Path, kind: OFlag) -> io::Result<OwnedFd> {
    let how = OpenHow::new()
        .flags(OFlag::O_PATH | OFlag::O_CLOEXEC | kind)
        .resolve(ResolveFlag::RESOLVE_NO_SYMLINKS | ResolveFlag::RESOLVE_NO_MAGICLINKS);
    Ok(openat2(AT_FDCWD, path, how)?)
}

/// A path by which other calls reach what `fd` is open on.
pub fn through(fd: impl AsFd) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", fd.as_fd().as_raw_fd()))
}

impl Place {
    /// The place of `path`: its folder may be behind links (/var/lib/kubelet may be one), and is then held; none if there
    /// is no such folder.
    ///
    /// # Errors
    /// The failed call.
    pub fn find(path: &Path) -> io::Result<Option<Self>> {
        let path = tidy(path);
        let (Some(folder), Some(name)) = (path.parent(), path.file_name()) else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        let real = match std::fs::canonicalize(folder) {
            Ok(real) => real,
            Err(error) if is_absent(&error) => return Ok(None),
            Err(error) => return Err(error),
        };
        match resolve_as(&real, OFlag::O_DIRECTORY) {
            Ok(folder) => Ok(Some(Self {
                folder,
                name: name.to_owned(),
                path: real.join(name),
            })),
            Err(error) if is_absent(&error) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// As mountinfo shows it.
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn name(&self) -> &OsStr {
        &self.name
    }

    /// What stands there; none if nothing does.
    ///
    /// # Errors
    /// The failed call.
    pub fn kind(&self) -> io::Result<Option<Kind>> {
        let stat = match fstatat(&self.folder, self.name(), AtFlags::AT_SYMLINK_NOFOLLOW) {
            Ok(stat) => stat,
            Err(Errno::ENOENT | Errno::ENOTDIR) => return Ok(None),
            Err(errno) => return Err(errno.into()),
        };
        Ok(Some(
            match SFlag::from_bits_truncate(stat.st_mode & libc::S_IFMT) {
                SFlag::S_IFDIR => Kind::Folder,
                SFlag::S_IFREG => Kind::File(u64::try_from(stat.st_size).unwrap_or(u64::MAX)),
                SFlag::S_IFLNK => Kind::Link,
                _ => Kind::Special,
            },
        ))
    }

    /// Makes a folder there; whether it was made: one that is there already stays as it is.
    ///
    /// # Errors
    /// The failed call.
    pub fn make_folder(&self) -> io::Result<bool> {
        let mode = Mode::from_bits_truncate(0o750);
        failpoint::step("place-made", || match mkdirat(&self.folder, self.name(), mode) {
            Ok(()) => Ok(true),
            Err(Errno::EEXIST) => Ok(false),
            Err(errno) => Err(errno.into()),
        })
    }

    /// Makes an empty file there; whether it was made: one that is there already stays as it is.
    ///
    /// # Errors
    /// The failed call.
    pub fn make_file(&self) -> io::Result<bool> {
        let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let mode = Mode::from_bits_truncate(0o660);
        failpoint::step("place-made", || {
            match openat(&self.folder, self.name(), flags, mode) {
                Ok(_made) => Ok(true),
                Err(Errno::EEXIST) => Ok(false),
                Err(errno) => Err(errno.into()),
            }
        })
    }

    /// Writes `text` on what stands there, beneath whatever will be mounted on it, where the filesystem can keep it.
    pub fn mark(&self, text: &str) {
        let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let marked = openat(&self.folder, self.name(), flags, Mode::empty())
            .map_err(io::Error::from)
            .and_then(|there| linux::set_attribute(&through(&there), MARK, text.as_bytes()));
        if let Err(error) = marked {
            tracing::debug!(path = %self.path.display(), error = %error, "not marked");
        }
    }

    /// What was written by [`Place::mark`], also beneath a mount; none if nothing was, or if it cannot be known.
    pub fn marked(&self) -> Option<String> {
        // A copy of the folder's mount has none of those that lie on it.
        let beneath = linux::open_tree(&self.folder).ok()?;
        let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let there = openat(&beneath, self.name(), flags, Mode::empty()).ok()?;
        String::from_utf8(linux::attribute(&through(&there), MARK).ok()?).ok()
    }

    /// Removes an empty folder, or the name of a file; one that is gone is no error.
    ///
    /// # Errors
    /// The failed call: ENOTEMPTY, or EBUSY where something is mounted.
    pub fn remove(&self, kind: Kind) -> io::Result<()> {
        let flags = match kind {
            Kind::Folder => UnlinkatFlags::RemoveDir,
            Kind::File(_) | Kind::Link | Kind::Special => UnlinkatFlags::NoRemoveDir,
        };
        failpoint::step("place-removed", || {
            match unlinkat(&self.folder, self.name(), flags) {
                Ok(()) | Err(Errno::ENOENT) => Ok(()),
                Err(errno) => Err(errno.into()),
            }
        })
    }
}

/// Nothing can be at a path that leads through nothing, or through a file.
pub fn is_absent(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENOTDIR))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_may_be_links_but_the_last_name_is_not_followed() {
        let root = tempfile::tempdir().unwrap();
        let real = std::fs::canonicalize(root.path()).unwrap();
        std::fs::create_dir(real.join("real")).unwrap();
        std::os::unix::fs::symlink(real.join("real"), real.join("link")).unwrap();
        let place = Place::find(&real.join("link/./target")).unwrap().unwrap();
        assert_eq!(place.path(), real.join("real/target"));
        assert!(place.make_folder().unwrap());
        assert_eq!(place.kind().unwrap(), Some(Kind::Folder));
        let link = Place::find(&real.join("link")).unwrap().unwrap();
        assert_eq!(link.kind().unwrap(), Some(Kind::Link));
        assert_eq!(
            resolve(&real.join("link/target")).unwrap_err().raw_os_error(),
            Some(libc::ELOOP)
        );
        assert!(resolve(&real.join("real/target")).is_ok());
    }

    #[test]
    fn a_folder_that_moves_away_keeps_its_place() {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir(root.path().join("a")).unwrap();
        let place = Place::find(&root.path().join("a/target")).unwrap().unwrap();
        std::fs::rename(root.path().join("a"), root.path().join("b")).unwrap();
        std::os::unix::fs::symlink("/", root.path().join("a")).unwrap();
        place.make_file().unwrap();
        assert!(root.path().join("b/target").is_file());
    }

    #[test]
    fn nothing_is_behind_nothing_or_behind_a_file() {
        let root = tempfile::tempdir().unwrap();
        std::fs::write(root.path().join("file"), b"").unwrap();
        assert!(Place::find(&root.path().join("none/x")).unwrap().is_none());
        assert!(Place::find(&root.path().join("file/x")).unwrap().is_none());
    }
}
