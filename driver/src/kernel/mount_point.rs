//! Where something is to be mounted, held open; and whether it is still there.
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use super::{KernelError, place};

/// A place that the caller has made: if it is not there, another call has removed it since.
#[derive(Debug)]
pub(super) struct MountPoint {
    /// The place itself, not what is in it.
    pub(super) file: OwnedFd,
    path: PathBuf,
}

impl MountPoint {
    /// Opens it; no component of its path may be a link.
    ///
    /// # Errors
    /// [`KernelError::Gone`], or the errno of openat2(2).
    pub(super) fn open(path: &Path) -> Result<Self, KernelError> {
        let path = path.to_owned();
        match place::resolve(&path) {
            Ok(file) => Ok(Self { file, path }),
            Err(error) if place::is_absent(&error) => Err(gone(&path)),
            Err(errno) => Err(KernelError::Syscall {
                call: "openat2",
                subject: path.display().to_string(),
                errno,
            }),
        }
    }

    /// Why nothing could be mounted on it: it is gone, or else what `otherwise` makes of the error.
    pub(super) fn error(
        &self,
        error: io::Error,
        otherwise: impl FnOnce(io::Error) -> KernelError,
    ) -> KernelError {
        if self.is_removed(&error) {
            return gone(&self.path);
        }
        otherwise(error)
    }

    /// Removed after it was opened, it has no name any more. The same errno says that there is no such device.
    fn is_removed(&self, error: &io::Error) -> bool {
        error.raw_os_error() == Some(libc::ENOENT)
            && nix::sys::stat::fstat(&self.file).is_ok_and(|stat| stat.st_nlink == 0)
    }
}

fn gone(path: &Path) -> KernelError {
    KernelError::Gone {
        path: path.display().to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Kernel, Linux, MountFlags, linux};
    use super::*;

    #[test]
    fn only_a_place_that_is_gone_is_gone() {
        let root = tempfile::tempdir().unwrap();
        let root = std::fs::canonicalize(root.path()).unwrap();
        let (here, gone) = (root.join("here"), root.join("gone"));
        std::fs::create_dir(&here).unwrap();
        let is_gone = |result| matches!(result, Err(KernelError::Gone { .. }));
        let flags = MountFlags::default();
        assert!(is_gone(Linux.mount(&here, &gone, "ext4", flags, "")));
        assert!(is_gone(Linux.mount(
            &here,
            &gone.join("in/it"),
            "ext4",
            flags,
            ""
        )));
        assert!(is_gone(Linux.bind(&here, &gone, flags)));
        let missing_source = Linux.bind(&gone, &here, flags).unwrap_err();
        assert_eq!(missing_source.errno(), Some(libc::ENOENT));
        let missing_device = Linux.mount(&gone, &here, "ext4", flags, "").unwrap_err();
        assert!(missing_device.errno().is_some());
    }

    #[test]
    fn a_place_that_is_removed_after_it_was_opened_is_gone_too() {
        let root = tempfile::tempdir().unwrap();
        let root = std::fs::canonicalize(root.path()).unwrap();
        let (folder, file) = (root.join("folder"), root.join("file"));
        std::fs::create_dir(&folder).unwrap();
        std::fs::write(&file, b"").unwrap();
        let (no_entry, other) = (
            io::Error::from_raw_os_error(libc::ENOENT),
            io::Error::from_raw_os_error(libc::EIO),
        );
        let opened = [&folder, &file].map(|path| MountPoint::open(path).unwrap());
        assert!(opened.iter().all(|on| !on.is_removed(&no_entry)));
        std::fs::remove_dir(&folder).unwrap();
        std::fs::remove_file(&file).unwrap();
        assert!(
            opened
                .iter()
                .all(|on| on.is_removed(&no_entry) && !on.is_removed(&other))
        );
        if nix::unistd::geteuid().is_root() {
            // What the kernel says then.
            let tree = linux::open_tree(&place::resolve(&root).unwrap()).unwrap();
            let error = linux::move_mount(&tree, &opened[0].file).unwrap_err();
            assert!(opened[0].is_removed(&error), "{error}");
        }
    }
}
