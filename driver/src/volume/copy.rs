//! The content of one image as the beginning of another: whole or not at all, and as sparse as it was.
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::copy_file_range;
use nix::unistd::{Whence, lseek};

use super::image;
use crate::failpoint;

/// Bytes between two looks at what the kernel still has to write: on a journaling filesystem everybody's fsync waits for the
/// data of everybody's new blocks, so a large copy must not save its own up to the end.
const SYNCED_BYTES: u64 = 32 << 20;
/// Bytes of one call.
const CHUNK_BYTES: u64 = 8 << 20;

/// Makes the image at `path` with `size_bytes`, of which the first are those of `source`, all but its name durably; one that
/// is there already is whole.
///
/// # Errors
/// The failed call; nothing is at `path` then.
pub fn create(source: &File, path: &Path, size_bytes: u64) -> io::Result<()> {
    if path.exists() {
        return image::grow(path, size_bytes);
    }
    let temporary = path.with_extension("img.tmp");
    let result = failpoint::step("copy-filled", || fill(source, &temporary, size_bytes))
        .and_then(|()| failpoint::step("copy-named", || std::fs::rename(&temporary, path)));
    if let Err(error) = result {
        // Its blocks are free again now, not only when somebody sweeps; the error that counts is the first one.
        let _ = std::fs::remove_file(&temporary);
        return Err(error);
    }
    Ok(())
}

fn fill(source: &File, temporary: &Path, size_bytes: u64) -> io::Result<()> {
    let target = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o660)
        .open(temporary)?;
    target.set_len(size_bytes)?;
    let length = source.metadata()?.len().min(size_bytes);
    let mut unsynced = 0;
    let mut at = 0;
    while let Some((from, to)) = next_data(source, at, length)? {
        let mut position = from;
        while position < to {
            let done = some(source, &target, position, (to - position).min(CHUNK_BYTES))?;
            position += done;
            unsynced += done;
            if unsynced >= SYNCED_BYTES {
                target.sync_data()?;
                unsynced = 0;
            }
        }
        at = to;
    }
    target.sync_all()
}

/// The next extent with data at or after `at`, below `length`.
fn next_data(file: &File, at: u64, length: u64) -> io::Result<Option<(u64, u64)>> {
    if at >= length {
        return Ok(None);
    }
    let signed = |value: u64| i64::try_from(value).map_err(io::Error::other);
    let unsigned = |value: i64| u64::try_from(value).map_err(io::Error::other);
    let from = match lseek(file, signed(at)?, Whence::SeekData) {
        Ok(from) => unsigned(from)?,
        // Only a hole is left.
        Err(Errno::ENXIO) => return Ok(None),
        Err(errno) => return Err(errno.into()),
    };
    if from >= length {
        return Ok(None);
    }
    let to = unsigned(lseek(file, signed(from)?, Whence::SeekHole)?)?;
    Ok(Some((from, to.min(length))))
}

/// Copies up to `count` bytes at `position`; how many. The kernel shares the blocks where its filesystem can (copy_file_range(2)
/// tries what FICLONE does first), else copies them itself; where it can do neither, they go through here.
fn some(source: &File, target: &File, position: u64, count: u64) -> io::Result<u64> {
    let offset = i64::try_from(position).map_err(io::Error::other)?;
    let length = usize::try_from(count).map_err(io::Error::other)?;
    let (mut from, mut to) = (offset, offset);
    let copied = match copy_file_range(source, Some(&mut from), target, Some(&mut to), length) {
        Ok(copied) => copied,
        Err(Errno::EXDEV | Errno::EINVAL | Errno::EOPNOTSUPP | Errno::ENOSYS | Errno::EPERM) => {
            let mut buffer = vec![0; length.min(1 << 20)];
            let read = source.read_at(&mut buffer, position)?;
            target.write_all_at(&buffer[..read], position)?;
            read
        }
        Err(errno) => return Err(errno.into()),
    };
    match u64::try_from(copied).map_err(io::Error::other)? {
        0 => Err(io::Error::new(
            io::ErrorKind::UnexpectedEof,
            "the source became shorter while it was read",
        )),
        copied => Ok(copied),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn content_and_holes_are_those_of_the_source_and_the_rest_is_a_hole() {
        let folder = tempfile::tempdir().unwrap();
        let source = folder.path().join("a.img");
        let file = File::create(&source).unwrap();
        file.set_len(64 * MIB).unwrap();
        file.write_all_at(b"first", 0).unwrap();
        file.write_all_at(&[7; 70_000], 9 * MIB + 123).unwrap();
        file.write_all_at(b"last", 64 * MIB - 4).unwrap();
        let target = folder.path().join("b.img");
        create(&File::open(&source).unwrap(), &target, 128 * MIB).unwrap();
        let (before, after) = (std::fs::read(&source).unwrap(), std::fs::read(&target).unwrap());
        assert_eq!(after.len() as u64, 128 * MIB);
        assert!(after[..before.len()] == before[..], "content differs");
        assert!(after[before.len()..].iter().all(|b| *b == 0));
        let blocks = target.metadata().unwrap().blocks() * 512;
        assert!(blocks < MIB, "{blocks} bytes are taken: the holes were filled");
        assert_eq!(
            std::fs::read_dir(folder.path()).unwrap().count(),
            2,
            "a temporary stays"
        );
    }

    #[test]
    fn a_copy_that_fails_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let source = folder.path().join("a.img");
        image::create(&source, MIB).unwrap();
        let source = File::open(&source).unwrap();
        // Its name is one of a folder.
        let target = folder.path().join("b.img");
        assert!(create(&source, &target.join("c.img"), MIB).is_err());
        assert!(
            create(&source, &target, u64::MAX).is_err(),
            "a size that no file has"
        );
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }
}
