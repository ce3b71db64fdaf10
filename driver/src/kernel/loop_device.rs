//! Loop devices found by the inode of the file behind them: names and numbers are used again, inodes of a live file are not.
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::{FileId, Kernel, KernelError, LoopStatus, wait};

/// The device's path.
pub fn path(number: u32) -> PathBuf {
    PathBuf::from(format!("/dev/loop{number}"))
}

/// Every loop device that stands on the file at `image`, in the order of their numbers; none if there is no such file.
///
/// # Errors
/// The failed call.
pub fn of_image(kernel: &dyn Kernel, image: &Path) -> Result<Vec<LoopStatus>, KernelError> {
    let Some(name) = image.file_name().and_then(|n| n.to_str()) else {
        return Ok(Vec::new());
    };
    let file = match FileId::of(image) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(errno) => {
            return Err(KernelError::Syscall {
                call: "stat",
                subject: image.display().to_string(),
                errno,
            });
        }
    };
    let mut loops = kernel.loops(name)?;
    loops.retain(|l| l.file == file);
    loops.sort_by_key(|l| l.number);
    Ok(loops)
}

/// Every loop device whose file has, or had, the name of `image`, in the order of their numbers: also that of an image that
/// is gone.
///
/// # Errors
/// The failed call.
pub fn named(kernel: &dyn Kernel, image: &Path) -> Result<Vec<LoopStatus>, KernelError> {
    let Some(name) = image.file_name().and_then(|n| n.to_str()) else {
        return Ok(Vec::new());
    };
    let mut loops = kernel.loops(name)?;
    loops.sort_by_key(|l| l.number);
    Ok(loops)
}

/// Whether `device` still is what it was: numbers are used again, a tag on an inode is not.
///
/// # Errors
/// The failed call.
pub fn is_there(kernel: &dyn Kernel, device: &LoopStatus) -> Result<bool, KernelError> {
    let Some(file) = kernel.backing_file(device.number) else {
        return Ok(false);
    };
    let found = named(kernel, &file)?;
    Ok(found
        .iter()
        .any(|l| l.number == device.number && l.file == device.file && l.tag == device.tag))
}

/// Detaches `device` and waits until the kernel has let go of the file behind it.
///
/// Detaching an open device only marks it; the kernel frees it at the last close (loop(4)), so success of the ioctl is
/// not yet freedom.
///
/// # Errors
/// - [`KernelError::StillOpen`] when `limit` has passed; the caller answers ABORTED and is called again.
/// - [`KernelError::Syscall`] with the errno.
pub fn detach(kernel: &dyn Kernel, device: &LoopStatus, limit: Duration) -> Result<(), KernelError> {
    let open = match kernel.open_loop(device.number) {
        Ok(open) => open,
        Err(error) if error.errno() == Some(libc::ENXIO) => return Ok(()),
        Err(error) => return Err(error),
    };
    // Between the listing and now the number may have gone to somebody else; while it is open it cannot.
    if is_there(kernel, device)? {
        kernel.detach(&open)?;
    }
    drop(open);
    wait_free(kernel, device, limit)
}

/// Waits until `device` no longer stands on its file.
///
/// # Errors
/// [`KernelError::StillOpen`] when `limit` has passed.
pub fn wait_free(kernel: &dyn Kernel, device: &LoopStatus, limit: Duration) -> Result<(), KernelError> {
    if wait::until(limit, || Ok(!is_there(kernel, device)?))? {
        return Ok(());
    }
    Err(KernelError::StillOpen {
        device: path(device.number).display().to_string(),
        seconds: limit.as_secs(),
    })
}
