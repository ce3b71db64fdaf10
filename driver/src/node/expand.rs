//! NodeExpandVolume: the device gets its image's size, the filesystem its device's.
use std::path::Path;

use holdfast_proto::csi as pb;

use super::site::{Own, Site, real, unfit};
use super::tag::Use;
use super::{format, mounted};
use crate::error::Error;
use crate::id::VolumeId;
use crate::kernel::mountinfo::Mount;
use crate::kernel::{KernelError, OpenLoop, filesystem};
use crate::request;
use crate::volume::capability::{Capability, Fs};
use crate::volume::record::{Record, State};

/// CAP_SYS_RESOURCE, capabilities(7): without it the kernel refuses to grow a mounted ext4.
const SYS_RESOURCE: u8 = 24;

/// Grows what is on this node, or finds it large enough.
pub(super) fn expand(
    site: &Site,
    request: pb::NodeExpandVolumeRequest,
) -> Result<pb::NodeExpandVolumeResponse, Error> {
    let id = request::volume_id(&request.volume_id)?;
    let path = request::place("volume_path", &request.volume_path)?;
    let capability = request.volume_capability.map(Capability::try_from).transpose()?;
    capability.iter().try_for_each(Capability::check_flags)?;
    request::map("secrets", &request.secrets)?;
    let id = id.ok_or(Error::VolumeNotFound {
        id: request.volume_id,
    })?;
    let _lock = site.lock(&id)?;
    let record = match site.store.read(&id)? {
        Some(record) if record.state == State::Ready => record,
        Some(_) | None => return Err(Error::VolumeNotFound { id: id.to_string() }),
    };
    if let Some(other) = capability.filter(|c| !record.offers(c)) {
        let reason = String::from("is not how this volume was asked for");
        return Err(Error::Invalid {
            field: "volume_capability",
            value: format!("{other:?}"),
            reason,
        });
    }
    possible(&record, request.capacity_range.unwrap_or_default())?;
    let path = real(&path)?;
    let all = site.loops(&id)?;
    let mounts = site.mounts()?;
    let mount = mounted::at(&mounts, &id, &path, &all).ok().flatten();
    // Nothing is mounted where a device is staged: its loop device says that it is here.
    let is_block = |own: &&Own| own.tag.purpose == Use::Staged && !own.status.flags.autoclear;
    let staged = all.iter().find(is_block);
    let Some(shown) = mount
        .and_then(|m| all.iter().find(|own| mounted::shows(m, [*own])))
        .or_else(|| staged.filter(|own| own.tag.place == super::tag::place(&path)))
    else {
        return Err(Error::NotAtPath {
            id: id.to_string(),
            path: path.display().to_string(),
        });
    };
    if !shown.sound {
        return Err(unfit(
            &id,
            "was taken from this node; unpublish and unstage it there",
        ));
    }
    let mut size = record.size_bytes;
    for own in all.iter().filter(|own| own.sound) {
        let device = site
            .kernel
            .open_loop(own.status.number)
            .map_err(Error::half_done("opening a device"))?;
        site.kernel
            .refresh_size(&device)
            .map_err(Error::half_done("sizing a loop device"))?;
        if own.status.number == shown.status.number {
            size = site
                .kernel
                .size_bytes(&device)
                .map_err(Error::half_done("asking a device's size"))?;
            if let Some(mount) = mount.filter(|m| m.major == mounted::LOOP_MAJOR) {
                grow(site, &id, &device, mount, &path)?;
            }
        }
    }
    Ok(pb::NodeExpandVolumeResponse {
        capacity_bytes: i64::try_from(size).unwrap_or(i64::MAX),
    })
}

/// A node makes nothing larger than the controller has made it, and nothing smaller at all.
fn possible(record: &Record, range: pb::CapacityRange) -> Result<(), Error> {
    let bytes = |value: i64, field| {
        u64::try_from(value).map_err(|_| Error::Invalid {
            field,
            value: value.to_string(),
            reason: String::from("is negative"),
        })
    };
    let required = bytes(range.required_bytes, "capacity_range.required_bytes")?;
    let limit = bytes(range.limit_bytes, "capacity_range.limit_bytes")?;
    if limit > 0 && limit < required {
        return Err(Error::Invalid {
            field: "capacity_range.limit_bytes",
            value: limit.to_string(),
            reason: format!("is below required_bytes {required}"),
        });
    }
    let size = record.size_bytes;
    if limit > 0 && limit < size {
        let reason = format!("the volume has {size} bytes already and never shrinks, limit_bytes is {limit}");
        return Err(Error::Size { reason });
    }
    if required > size {
        let reason =
            format!("{required} bytes are wanted, the volume has {size}; call ControllerExpandVolume first");
        return Err(Error::Size { reason });
    }
    Ok(())
}

fn grow(site: &Site, id: &VolumeId, device: &OpenLoop, mount: &Mount, path: &Path) -> Result<(), Error> {
    let kernel = site.kernel.as_ref();
    if !format::is_smaller(kernel, device)? {
        return Ok(());
    }
    if mount.super_options.iter().any(|o| o == "ro") {
        return Err(unfit(
            id,
            "is read-only, so its filesystem cannot grow; it grows when it is staged writable",
        ));
    }
    if mount.fs == Fs::Xfs.name() {
        // Through the staging if this mount is read-only: the call needs one that is not.
        return filesystem::grow_xfs(kernel, &writable(site, mount, path)?)
            .map_err(Error::half_done("growing XFS"));
    }
    let missing = || {
        unfit(
            id,
            "has a mounted ext4, which cannot grow on this node: the kernel asks for CAP_SYS_RESOURCE, which this \
             process does not have; it grows when it is staged again",
        )
    };
    match filesystem::grow_ext4(kernel, &device.path()) {
        Err(error) if is_denied(&error) || !kernel.is_capable(SYS_RESOURCE) => {
            tracing::warn!(volume = %id, error = %error, "ext4 not grown while mounted");
            Err(missing())
        }
        other => other.map_err(Error::half_done("growing ext4")),
    }
}

/// A mount of the same filesystem that may be written through.
fn writable(site: &Site, mount: &Mount, path: &Path) -> Result<std::path::PathBuf, Error> {
    if !mount.is_read_only() {
        return Ok(path.to_owned());
    }
    let mounts = site.mounts()?;
    let same = |m: &&Mount| (m.major, m.minor) == (mount.major, mount.minor) && !m.is_read_only();
    Ok(mounts
        .iter()
        .find(same)
        .map_or_else(|| path.to_owned(), |m| m.target.clone()))
}

fn is_denied(error: &KernelError) -> bool {
    matches!(error, KernelError::Tool { output, .. } if output.contains("ermission") || output.contains("not permitted"))
}
