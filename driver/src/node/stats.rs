//! NodeGetVolumeStats.
use holdfast_proto::csi as pb;
use holdfast_proto::csi::volume_usage::Unit;
use nix::sys::statvfs::statvfs;

use super::mounted;
use super::site::{Site, real};
use crate::error::Error;
use crate::request;

/// Bytes and inodes of a filesystem, bytes of a device.
pub(super) fn stats(
    site: &Site,
    request: &pb::NodeGetVolumeStatsRequest,
) -> Result<pb::NodeGetVolumeStatsResponse, Error> {
    let id = request::volume_id(&request.volume_id)?;
    let path = request::place("volume_path", &request.volume_path)?;
    let id = id.ok_or_else(|| Error::VolumeNotFound {
        id: request.volume_id.clone(),
    })?;
    let path = real(&path)?;
    let found = site.loops(&id)?;
    let mounts = site.mounts()?;
    let away = || Error::NotAtPath {
        id: id.to_string(),
        path: request.volume_path.clone(),
    };
    let mount = mounted::at(&mounts, &id, &path, &found)
        .map_err(|_| away())?
        .ok_or_else(away)?;
    let signed = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
    let usage = |available: u64, total: u64, used: u64, unit: Unit| pb::VolumeUsage {
        available: signed(available),
        total: signed(total),
        used: signed(used),
        unit: unit.into(),
    };
    let own = found
        .iter()
        .find(|own| mounted::shows(mount, [*own]))
        .ok_or_else(away)?;
    if mount.major != mounted::LOOP_MAJOR {
        let device = site
            .kernel
            .open_loop(own.status.number)
            .map_err(Error::half_done("opening a device"))?;
        let size = site
            .kernel
            .size_bytes(&device)
            .map_err(Error::half_done("asking a device's size"))?;
        return Ok(pb::NodeGetVolumeStatsResponse {
            usage: vec![usage(0, size, 0, Unit::Bytes)],
        });
    }
    let fs = statvfs(&path).map_err(|e| Error::storage("statvfs of the volume")(e.into()))?;
    let unit = fs.fragment_size();
    let used = (fs.blocks() - fs.blocks_free()) * unit;
    Ok(pb::NodeGetVolumeStatsResponse {
        usage: vec![
            usage(
                fs.blocks_available() * unit,
                fs.blocks() * unit,
                used,
                Unit::Bytes,
            ),
            usage(
                fs.files_available(),
                fs.files(),
                fs.files() - fs.files_free(),
                Unit::Inodes,
            ),
        ],
    })
}
