//! A record that a power failure has torn. The first one of a volume is durable only together with its image
//! ([`Store::reserve`]), and until then nobody was promised anything: what is left of it must not be in the way of whoever
//! asks for the name again, or gives it up. That is told from a promised volume's record by the image, to which nothing was
//! ever written; where something was, or the file is whole and only of another kind, it is left to somebody who looks.
use std::fs;
use std::io;
use std::path::Path;

use serde::de::IgnoredAny;

use super::files;
use super::image;
use super::store::Store;
use crate::error::Error;
use crate::id::VolumeId;

/// Whether the file is there, and not even JSON; what is no file was not torn.
fn is_torn(path: &Path) -> io::Result<bool> {
    match files::read(path) {
        Ok(text) => Ok(text.is_some_and(|text| serde_json::from_slice::<IgnoredAny>(&text).is_err())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// Undoes a creation of which a torn record is left, by the holder of the record lock; whether there was one to undo.
///
/// # Errors
/// The failed call.
pub fn undo(store: &Store, id: &VolumeId) -> Result<bool, Error> {
    if !is_torn(&store.record(id)).map_err(Error::storage("looking at a record"))? {
        return Ok(false);
    }
    let failed = || Error::storage("looking at the image of a torn record");
    // Held until the end: nobody writes to it between this look and its removal.
    let _image = match image::open_locked(&store.image(id)) {
        Ok(Some(image)) if image::is_blank(&image).map_err(failed())? => Some(image),
        Ok(Some(_) | None) => return Ok(false),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => return Err(failed()(error)),
    };
    store.erase(id)?;
    tracing::warn!(volume = %id, "a torn record and an image without data were removed: a creation that was cut off");
    Ok(true)
}

/// Removes torn records of the volume from quarantine, when there is nothing more that they could tell of; by the holder of
/// the record lock.
///
/// # Errors
/// The failed call.
pub fn forget(store: &Store, id: &VolumeId) -> Result<(), Error> {
    let failed = || Error::storage("looking into quarantine");
    let prefix = format!("{id}.json");
    for entry in fs::read_dir(store.quarantine()).map_err(failed())? {
        let entry = entry.map_err(failed())?;
        let is_of_it = entry.file_name().to_str().is_some_and(|n| n.starts_with(&prefix));
        if is_of_it && is_torn(&entry.path()).map_err(failed())? {
            files::remove(&entry.path()).map_err(failed())?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_file_was_not_torn_and_is_not_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        let (pipe, inner) = (folder.path().join("pipe"), folder.path().join("folder"));
        nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
        fs::create_dir(&inner).unwrap();
        for path in [&pipe, &inner] {
            assert!(!is_torn(path).unwrap(), "{}", path.display());
        }
    }
}
