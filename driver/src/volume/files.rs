//! Small files of the data folder: temporary file, fsync, rename, fsync of the folder.
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use crate::failpoint;

/// What is in the file at `path`; nothing if a folder, a link, a pipe or the like is there, for which nobody waits.
pub(super) fn read(path: &Path) -> io::Result<Option<Vec<u8>>> {
    let opened = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
        .open(path);
    let mut file = match opened {
        Err(error) if error.raw_os_error() == Some(libc::ELOOP) => return Ok(None),
        opened => opened?,
    };
    let there = file.metadata()?;
    if !there.is_file() {
        return Ok(None);
    }
    let mut bytes = Vec::with_capacity(usize::try_from(there.len()).unwrap_or(0));
    file.read_to_end(&mut bytes)?;
    Ok(Some(bytes))
}

/// Writes a new file, durably or all but that.
pub(super) fn write(path: &Path, bytes: &[u8], durably: bool) -> io::Result<()> {
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o660)
        .open(path)?;
    file.write_all(bytes)?;
    if durably { file.sync_all() } else { Ok(()) }
}

/// Puts `bytes` in place of the file at `path`, durably, or leaves it as it was.
pub(super) fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    // Added, not put in place of an extension: n.a and n.b are two nodes.
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".json.tmp");
    let put = failpoint::step("file-written", || write(Path::new(&temporary), bytes, true))
        .and_then(|()| failpoint::step("file-named", || fs::rename(&temporary, path)));
    if let Err(error) = put {
        // The error that counts is the first one.
        let _ = fs::remove_file(&temporary);
        return Err(error);
    }
    failpoint::step("file-settled", || {
        sync_folder(path.parent().unwrap_or(Path::new("/")))
    })
}

/// Removes a file durably; one that is gone is no error.
///
/// # Errors
/// The failed call.
pub fn remove(path: &Path) -> io::Result<()> {
    match failpoint::step("file-removed", || fs::remove_file(path)) {
        Ok(()) => sync_folder(path.parent().unwrap_or(Path::new("/"))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

/// Makes names in a folder durable.
///
/// # Errors
/// The failed call.
pub fn sync_folder(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}
