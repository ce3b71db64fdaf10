//! The image of a volume: a sparse file.
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use super::fence;
use crate::failpoint;

/// Makes an empty image of `size_bytes`, which the caller makes durable; one that is there already is grown to it. Until its
/// record says *ready*, whatever is at this path is nobody's.
///
/// # Errors
/// The failed call.
pub fn create(path: &Path, size_bytes: u64) -> io::Result<File> {
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o660)
        .open(path)?;
    resize(&file, size_bytes)?;
    Ok(file)
}

/// Makes the image at least `size_bytes` long, durably; it never shrinks.
///
/// # Errors
/// The failed call.
pub fn grow(path: &Path, size_bytes: u64) -> io::Result<()> {
    let file = OpenOptions::new().write(true).open(path)?;
    failpoint::step("image-grown", || {
        resize(&file, size_bytes)?;
        file.sync_all()
    })
}

fn resize(file: &File, size_bytes: u64) -> io::Result<()> {
    if file.metadata()?.len() < size_bytes {
        file.set_len(size_bytes)?;
    }
    Ok(())
}

/// Opens the image where nobody else has it, and keeps everybody else out for as long as it is open; none, if somebody has it.
///
/// # Errors
/// The failed call.
pub fn open_locked(path: &Path) -> io::Result<Option<File>> {
    fence::hold_all(path, &[])
}

/// Whether nothing was ever written to the image: not one extent of data in it.
///
/// # Errors
/// The failed call: what cannot be read is not blank.
pub fn is_blank(file: &File) -> io::Result<bool> {
    use nix::unistd::{Whence, lseek};
    match lseek(file, 0, Whence::SeekData) {
        Ok(_) => Ok(false),
        Err(nix::errno::Errno::ENXIO) => Ok(true),
        Err(errno) => Err(errno.into()),
    }
}
