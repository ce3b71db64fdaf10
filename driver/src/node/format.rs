//! The filesystem of a volume: made if nothing ever was on the device, else checked, and ext4 grown, before it is mounted.
use super::site::{Site, unfit};
use super::staging::Job;
use crate::error::Error;
use crate::id::VolumeId;
use crate::kernel::{Kernel, OpenLoop, filesystem};
use crate::volume::capability::Fs;
use crate::volume::record::{Format, Record};

/// Whether the filesystem is smaller than its device.
pub(super) fn is_smaller(kernel: &dyn Kernel, device: &OpenLoop) -> Result<bool, Error> {
    let size = kernel
        .size_bytes(device)
        .map_err(Error::half_done("asking a device's size"))?;
    let found = filesystem::probe(&device.file).map_err(Error::storage("reading a superblock"))?;
    // A filesystem may leave less than one of its groups unused at the end of a device.
    Ok(found.is_some_and(|sb| sb.size_bytes + (1 << 20) <= size))
}

/// A filesystem of the right type on the device; whether it was just made.
pub(super) fn prepare(
    job: &Job<'_>,
    record: &Record,
    fs: Fs,
    device: &OpenLoop,
    blank: bool,
) -> Result<bool, Error> {
    let kernel = job.site.kernel.as_ref();
    if is_to_be_made(job.id, record, fs, device, blank)? {
        mark(job.site, job.id, Format::Begun(fs))?;
        filesystem::make(kernel, fs, &device.path()).map_err(Error::half_done("making a filesystem"))?;
        device
            .file
            .sync_all()
            .map_err(Error::storage("making a filesystem durable"))?;
        mark(job.site, job.id, Format::Done(fs))?;
        return Ok(true);
    }
    let grow = fs == Fs::Ext4 && is_smaller(kernel, device)?;
    if !job.read_only || grow {
        // resize2fs wants a filesystem that was checked whole since its last mount.
        filesystem::check(kernel, fs, &device.path(), grow)
            .map_err(Error::half_done("checking a filesystem"))?;
        if grow {
            filesystem::grow_ext4(kernel, &device.path()).map_err(Error::half_done("growing ext4"))?;
        }
    }
    Ok(false)
}

/// Only a device that is proved blank is formatted, and only once in the volume's life.
fn is_to_be_made(
    id: &VolumeId,
    record: &Record,
    fs: Fs,
    device: &OpenLoop,
    blank: bool,
) -> Result<bool, Error> {
    match record.format {
        Format::Done(done) if done == fs => Ok(false),
        Format::Done(done) => Err(unfit(
            id,
            format!(
                "has {}, {} is wanted; it is never formatted twice",
                done.name(),
                fs.name()
            ),
        )),
        // Its making was never finished, so nobody has ever mounted it.
        Format::Begun(_) => Ok(true),
        Format::Blank if blank => Ok(true),
        Format::Blank => {
            match filesystem::probe(&device.file).map_err(Error::storage("reading a superblock"))? {
                Some(found) if found.fs == fs => Ok(false),
                found => Err(unfit(
                    id,
                    format!(
                        "holds data that is not {} ({found:?}); it is not formatted over",
                        fs.name()
                    ),
                )),
            }
        }
    }
}

/// Writes how far the filesystem is, under the record lock for this moment only: everything else in the record may have
/// changed since it was read.
fn mark(site: &Site, id: &VolumeId, format: Format) -> Result<(), Error> {
    let _lock = site.record_lock(id)?;
    match site.store.read(id)? {
        Some(record) => site.store.write(&Record { format, ..record }),
        None => Err(Error::VolumeNotFound { id: id.to_string() }),
    }
}
