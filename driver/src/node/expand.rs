//! NodeExpandVolume: the device gets its image's size, the filesystem its device's.
use holdfast_proto::csi as pb;

use super::mounted;
use super::service::Site;
use super::stage::{loops, smaller};
use crate::error::Error;
use crate::kernel::{KernelError, filesystem};
use crate::request;
use crate::volume::capability::{Capability, Fs};

/// Grows what is on this node, or finds it large enough.
pub(super) fn expand(
    site: &Site,
    request: pb::NodeExpandVolumeRequest,
) -> Result<pb::NodeExpandVolumeResponse, Error> {
    let id = request::volume_id(&request.volume_id)?;
    let path = request::place("volume_path", &request.volume_path)?;
    let capability = request.volume_capability.map(Capability::try_from).transpose()?;
    let id = id.ok_or(Error::VolumeNotFound {
        id: request.volume_id,
    })?;
    let _lock = site.lock(&id)?;
    let kernel = site.kernel.as_ref();
    let record = site
        .store
        .read(&id)?
        .ok_or_else(|| Error::VolumeNotFound { id: id.to_string() })?;
    if let Some(other) = capability.filter(|c| !record.offers(c)) {
        let reason = String::from("is not how this volume was asked for");
        return Err(Error::Invalid {
            field: "volume_capability",
            value: format!("{other:?}"),
            reason,
        });
    }
    let range = request.capacity_range.unwrap_or_default();
    if u64::try_from(range.limit_bytes).is_ok_and(|limit| limit > 0 && limit < record.size_bytes) {
        let reason = format!(
            "the volume has {} bytes already and never shrinks, limit_bytes is {}",
            record.size_bytes, range.limit_bytes
        );
        return Err(Error::Size { reason });
    }
    let required = range.required_bytes;
    if u64::try_from(required).is_ok_and(|wanted| wanted > record.size_bytes) {
        let reason = format!(
            "{required} bytes are wanted, the volume has {}; call ControllerExpandVolume first",
            record.size_bytes
        );
        return Err(Error::Size { reason });
    }
    let path = mounted::real(&path)?;
    let found = loops(site, &id)?;
    let away = || Error::NotAtPath {
        id: id.to_string(),
        path: path.display().to_string(),
    };
    let mounts = kernel.mounts().map_err(Error::half_done("reading mountinfo"))?;
    let mount = mounted::at(&mounts, &path, &found).map_err(|_| away())?;
    // Nothing is mounted where a device is staged: its loop device says that it is here.
    if mount.is_none() && !found.iter().any(|l| !l.flags.autoclear) {
        return Err(away());
    }
    for status in &found {
        let device = kernel
            .open_loop(status.number)
            .map_err(Error::half_done("opening a device"))?;
        kernel
            .refresh_size(&device)
            .map_err(Error::half_done("sizing a loop device"))?;
        if let Some(mount) = mount.filter(|m| m.minor == status.number && m.major == 7)
            && smaller(site, &device)?
        {
            let fs = if mount.fs == Fs::Xfs.name() {
                Fs::Xfs
            } else {
                Fs::Ext4
            };
            let grown = match fs {
                Fs::Xfs => filesystem::grow_xfs(kernel, &path),
                Fs::Ext4 => filesystem::grow_ext4(kernel, &device.path()),
            };
            grown.map_err(|source| not_grown(&id.to_string(), fs, source))?;
        }
    }
    Ok(pb::NodeExpandVolumeResponse {
        capacity_bytes: i64::try_from(record.size_bytes).unwrap_or(i64::MAX),
    })
}

/// Without CAP_SYS_RESOURCE the kernel refuses to grow a mounted ext4; the next staging grows it, so nothing is lost.
fn not_grown(id: &str, fs: Fs, source: KernelError) -> Error {
    let denied = matches!(&source, KernelError::Tool { output, .. } if output.contains("ermission") || output.contains("not permitted"));
    if fs == Fs::Ext4 && denied {
        let reason = String::from(
            "a mounted ext4 cannot grow on this node (CAP_SYS_RESOURCE is missing); it grows when it is staged again",
        );
        return Error::Unfit {
            id: id.to_owned(),
            reason,
        };
    }
    Error::HalfDone {
        step: String::from("growing a filesystem"),
        source,
    }
}
