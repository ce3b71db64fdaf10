//! Who may write to an image: locks on it that live as long as the loop device that was made with them.
//!
//! They are locks of an open file (F_OFD_SETLK, fcntl_locking(2)): the loop device keeps that very open file, so a lock is
//! free when the device is, whatever becomes of the process that made it. Every attachment locks the byte of its own
//! epoch, so that one that was given up, and can no longer write, keeps nobody else out while its dead device still stands.
use std::fs::{File, OpenOptions};
use std::io;
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};

/// Up to the end, in struct flock.
const TO_THE_END: libc::off_t = 0;

fn range(kind: i32, start: u64, length: libc::off_t) -> io::Result<libc::flock> {
    Ok(libc::flock {
        l_type: kind as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: libc::off_t::try_from(start).map_err(|_| io::ErrorKind::InvalidInput)?,
        l_len: length,
        l_pid: 0,
    })
}

fn lock(file: &File, kind: i32, start: u64, length: libc::off_t) -> io::Result<bool> {
    match fcntl(file, FcntlArg::F_OFD_SETLK(&range(kind, start, length)?)) {
        Ok(_) => Ok(true),
        Err(Errno::EAGAIN | Errno::EACCES) => Ok(false),
        Err(errno) => Err(errno.into()),
    }
}

fn open(image: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).open(image)
}

/// Opens the image under the lock of `epoch`; none, if somebody has that, or all of them.
///
/// # Errors
/// The failed call.
pub fn hold(image: &Path, epoch: u64) -> io::Result<Option<File>> {
    let file = open(image)?;
    Ok(lock(&file, libc::F_WRLCK, epoch, 1)?.then_some(file))
}

/// Opens the image under the locks of all epochs but `revoked`, which are those of devices that can no longer write; none,
/// if somebody has one of the others.
///
/// # Errors
/// The failed call.
pub fn hold_all(image: &Path, revoked: &[u64]) -> io::Result<Option<File>> {
    let file = open(image)?;
    Ok(lock_all(&file, libc::F_WRLCK, revoked)?.then_some(file))
}

/// Opens the image to read it while nobody but `revoked` may write: under locks that several readers can have at once, and
/// no writer beside them; none, if somebody may be writing.
///
/// # Errors
/// The failed call.
pub fn share(image: &Path, revoked: &[u64]) -> io::Result<Option<File>> {
    let file = File::open(image)?;
    Ok(lock_all(&file, libc::F_RDLCK, revoked)?.then_some(file))
}

fn lock_all(file: &File, kind: i32, revoked: &[u64]) -> io::Result<bool> {
    let mut revoked = revoked.to_vec();
    revoked.sort_unstable();
    revoked.dedup();
    let mut start = 0;
    for epoch in revoked {
        let length = epoch.saturating_sub(start);
        if length > 0 && !lock(file, kind, start, length.try_into().unwrap_or(libc::off_t::MAX))? {
            return Ok(false);
        }
        start = epoch + 1;
    }
    lock(file, kind, start, TO_THE_END)
}

/// The epochs whose locks somebody has, in order; none if there is no image. Epoch 0, which no attachment has, stands for
/// somebody who has all of them.
///
/// # Errors
/// The failed call.
pub fn held(image: &Path) -> io::Result<Vec<u64>> {
    let file = match open(image) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut found = Vec::new();
    let mut open_ranges = vec![(0_u64, TO_THE_END)];
    while let Some((start, length)) = open_ranges.pop() {
        let mut asked = range(libc::F_WRLCK, start, length)?;
        fcntl(&file, FcntlArg::F_OFD_GETLK(&mut asked))?;
        if i32::from(asked.l_type) == libc::F_UNLCK {
            continue;
        }
        let first = u64::try_from(asked.l_start).unwrap_or(start).max(start);
        found.push(first);
        // The kernel names one of them; the others are below or above it.
        if first > start {
            open_ranges.push((start, (first - start).try_into().unwrap_or(libc::off_t::MAX)));
        }
        if asked.l_len == TO_THE_END {
            continue;
        }
        let after = u64::try_from(asked.l_start + asked.l_len).unwrap_or(u64::MAX);
        let end = u64::try_from(length).unwrap_or(0).saturating_add(start);
        if length == TO_THE_END {
            open_ranges.push((after, TO_THE_END));
        } else if after < end {
            open_ranges.push((after, (end - after).try_into().unwrap_or(libc::off_t::MAX)));
        }
    }
    found.sort_unstable();
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image() -> (tempfile::TempDir, std::path::PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("v.img");
        std::fs::write(&path, b"").unwrap();
        (folder, path)
    }

    #[test]
    fn each_epoch_is_held_once_and_seen_by_all() {
        let (_folder, path) = image();
        let third = hold(&path, 3).unwrap().unwrap();
        assert!(hold(&path, 3).unwrap().is_none());
        let ninth = hold(&path, 9).unwrap().unwrap();
        let fourth = hold(&path, 4).unwrap().unwrap();
        assert_eq!(held(&path).unwrap(), [3, 4, 9]);
        drop(fourth);
        assert_eq!(held(&path).unwrap(), [3, 9]);
        drop((third, ninth));
        assert_eq!(held(&path).unwrap(), Vec::<u64>::new());
    }

    #[test]
    fn a_copy_of_the_open_file_keeps_the_lock() {
        let (_folder, path) = image();
        let first = hold(&path, 1).unwrap().unwrap();
        let copy = first.try_clone().unwrap();
        drop(first);
        assert_eq!(held(&path).unwrap(), [1]);
        drop(copy);
        assert_eq!(held(&path).unwrap(), Vec::<u64>::new());
    }

    #[test]
    fn all_of_them_leave_out_what_was_revoked() {
        let (_folder, path) = image();
        let dead = hold(&path, 3).unwrap().unwrap();
        assert!(hold_all(&path, &[]).unwrap().is_none());
        assert!(hold_all(&path, &[4]).unwrap().is_none());
        let all = hold_all(&path, &[5, 3, 4]).unwrap().unwrap();
        assert!(hold(&path, 6).unwrap().is_none());
        assert!(hold_all(&path, &[3]).unwrap().is_none());
        drop(all);
        assert!(hold(&path, 6).unwrap().is_some());
        drop(dead);
    }

    #[test]
    fn readers_share_and_keep_writers_out() {
        let (_folder, path) = image();
        let dead = hold(&path, 3).unwrap().unwrap();
        assert!(share(&path, &[]).unwrap().is_none());
        let readers = [
            share(&path, &[3]).unwrap().unwrap(),
            share(&path, &[3]).unwrap().unwrap(),
        ];
        assert!(hold(&path, 4).unwrap().is_none());
        assert_eq!(held(&path).unwrap(), [0, 3, 4]);
        drop(readers);
        assert!(hold(&path, 4).unwrap().is_some());
        drop(dead);
    }

    #[test]
    fn nobody_holds_what_is_not_there() {
        let (folder, _path) = image();
        assert_eq!(held(&folder.path().join("none")).unwrap(), Vec::<u64>::new());
    }
}
