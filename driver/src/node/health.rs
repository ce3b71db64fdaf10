//! NodeGetVolumeHealth and NodeGetStorageHealth: what of a volume, or of the data folder, is not as it should be here.
use std::path::Path;

use holdfast_proto::csi as pb;
use nix::sys::statvfs::{FsFlags, statvfs};
use pb::node_get_storage_health_response::StorageBackendHealth;
use pb::volume_health::VolumeHealthEntry;
use pb::{StorageHealthErrorType as Backend, VolumeHealthErrorType as Kind};

use super::mounted;
use super::site::{Own, Site, real};
use super::tag::{self, Use};
use crate::error::Error;
use crate::id::VolumeId;
use crate::kernel::mountinfo::{self, Mount};
use crate::request;
use crate::volume::capability::Mode;
use crate::volume::record::Record;

fn entry(kind: Kind, reason: &str, message: impl Into<String>) -> VolumeHealthEntry {
    VolumeHealthEntry {
        status: kind.into(),
        reason: reason.to_owned(),
        message: message.into(),
    }
}

/// One volume, at one path or, without one, wherever this node has it; nothing wrong is an empty list.
pub(super) fn of_volume(
    site: &Site,
    request: &pb::NodeGetVolumeHealthRequest,
) -> Result<pb::NodeGetVolumeHealthResponse, Error> {
    let id = request::volume_id(&request.volume_id)?;
    let given = [&request.volume_publish_path, &request.staging_target_path]
        .into_iter()
        .find(|path| !path.is_empty());
    let path = given
        .map(|path| request::place("volume_publish_path", path))
        .transpose()?;
    let id = id.ok_or_else(|| Error::VolumeNotFound {
        id: request.volume_id.clone(),
    })?;
    let mut found = Vec::new();
    let record = match site.store.read(&id) {
        Ok(record) => record,
        Err(error @ Error::Unreadable { .. }) => {
            found.push(entry(Kind::Inaccessible, "RecordUnreadable", error.message()));
            None
        }
        Err(error) => return Err(error),
    };
    let loops = site.loops(&id)?;
    if record.is_none() && loops.is_empty() && found.is_empty() {
        return Err(Error::VolumeNotFound { id: id.to_string() });
    }
    found.extend(record.as_ref().and_then(|record| of_image(site, &id, record)));
    let mounts = site.mounts()?;
    match &path {
        Some(path) => found.extend(at_path(site, &id, path, &mounts, &loops, record.as_ref())?),
        None => {
            for own in loops.iter().filter(|own| own.tag.purpose == Use::Staged) {
                let mount = mounts.iter().find(|m| mounted::shows(m, [own]));
                found.extend(of_device(site, mount, own, record.as_ref())?);
            }
        }
    }
    Ok(pb::NodeGetVolumeHealthResponse {
        volume_health: Some(pb::VolumeHealth {
            volume_id: id.to_string(),
            health_statuses: found,
        }),
    })
}

fn at_path(
    site: &Site,
    id: &VolumeId,
    path: &Path,
    mounts: &[Mount],
    loops: &[Own],
    record: Option<&Record>,
) -> Result<Vec<VolumeHealthEntry>, Error> {
    let real = real(path)?;
    let away = || Error::NotAtPath {
        id: id.to_string(),
        path: path.display().to_string(),
    };
    let Some(mount) = mountinfo::at(mounts, &real).last().copied() else {
        // Nothing is mounted where a device is staged.
        let place = tag::place(&real);
        let staged = loops.iter().find(|own| own.tag.place == place).ok_or_else(away)?;
        return of_device(site, None, staged, record);
    };
    let is_attached = || record.is_some_and(|r| r.attached_to(&site.node).is_some());
    match loops.iter().find(|own| mounted::shows(mount, [*own])) {
        Some(own) => of_device(site, Some(mount), own, record),
        // A bind of a device outlives the device; what is behind its number now is somebody else's, or nothing.
        None if mounted::loop_number(mount).is_some() && is_attached() => Ok(vec![entry(
            Kind::Inaccessible,
            "DeviceGone",
            "the loop device of the volume is gone; unpublish, unstage and stage it again",
        )]),
        None => Err(away()),
    }
}

fn of_image(site: &Site, id: &VolumeId, record: &Record) -> Option<VolumeHealthEntry> {
    use std::os::unix::fs::FileExt;
    let image = site.store.image(id);
    let read = std::fs::File::open(&image).and_then(|file| {
        let mut first = [0; 1];
        file.read_at(&mut first, 0)?;
        Ok(file.metadata()?.len())
    });
    match read {
        Ok(length) if length < record.size_bytes => Some(entry(
            Kind::DataLoss,
            "ImageTooShort",
            format!("the image has {length} bytes of {}", record.size_bytes),
        )),
        Ok(_) => None,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Some(entry(
            Kind::DataLoss,
            "ImageMissing",
            "the image is not in the data folder any more; what is written is lost when the volume is unstaged",
        )),
        Err(error) => Some(entry(
            Kind::Inaccessible,
            "ImageUnreadable",
            format!("the image cannot be read: {error}"),
        )),
    }
}

fn of_device(
    site: &Site,
    mount: Option<&Mount>,
    own: &Own,
    record: Option<&Record>,
) -> Result<Vec<VolumeHealthEntry>, Error> {
    let mut found = Vec::new();
    if own.status.blind {
        found.push(entry(
            Kind::Inaccessible,
            "Revoked",
            "the volume was taken from this node; unpublish and unstage it",
        ));
        return Ok(found);
    }
    let Some(mount) = mount.filter(|m| m.major == mounted::LOOP_MAJOR) else {
        return Ok(found);
    };
    let answers = site
        .kernel
        .answers(&mount.target)
        .map_err(Error::half_done("asking a filesystem"))?;
    if !answers {
        found.push(entry(
            Kind::Inaccessible,
            "FilesystemShutDown",
            "the filesystem has shut down; unpublish, unstage and stage it again",
        ));
        return Ok(found);
    }
    let is = |option: &str| mount.super_options.iter().any(|o| o == option);
    let attachment = record.and_then(|r| r.attached_to(&site.node));
    let meant = own.status.flags.read_only
        || attachment.is_some_and(|a| {
            let flags = &a.capability.mount_flags;
            a.read_only || a.capability.mode == Mode::ReaderOnly || flags.iter().any(|flag| flag == "ro")
        });
    if is("emergency_ro") || (is("ro") && !meant) {
        found.push(entry(
            Kind::Degraded,
            "FilesystemReadOnly",
            "the filesystem has become read-only; see the node's kernel log, then unstage and stage it again",
        ));
    }
    let errors = site.kernel.filesystem_errors(own.status.number, &mount.fs);
    if errors > 0 {
        found.push(entry(
            Kind::Degraded,
            "FilesystemErrors",
            format!("the filesystem has counted {errors} errors; see the node's kernel log"),
        ));
    }
    Ok(found)
}

/// The data folder as this node sees it; nothing wrong is an empty list.
pub(super) fn of_storage(site: &Site) -> pb::NodeGetStorageHealthResponse {
    let one = |status: Backend, reason: &str, message: String| StorageBackendHealth {
        status: status.into(),
        reason: reason.to_owned(),
        message,
        volume_capability: None,
    };
    let mut backend_health = Vec::new();
    let root = site.store.root();
    match std::fs::read_dir(site.store.volumes()).and_then(|_| Ok(statvfs(root)?)) {
        Err(error) => backend_health.push(one(
            Backend::StorageUnreachable,
            "DataFolderUnreachable",
            format!("{}: {error}", root.display()),
        )),
        Ok(stats) => {
            if stats.flags().contains(FsFlags::ST_RDONLY) {
                backend_health.push(one(
                    Backend::StorageDegraded,
                    "DataFolderReadOnly",
                    format!("{} is mounted read-only", root.display()),
                ));
            }
            if stats.blocks_available() == 0 {
                backend_health.push(one(
                    Backend::StorageDegraded,
                    "DataFolderFull",
                    format!("{} has no space left", root.display()),
                ));
            }
        }
    }
    pb::NodeGetStorageHealthResponse { backend_health }
}
