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

/// Detaches `device` and waits until the kernel has let go of `image`.
///
/// Detaching an open device only marks it; the kernel frees it at the last close (loop(4)), so success of the ioctl is
/// not yet freedom.
///
/// # Errors
/// - [`KernelError::StillOpen`] when `limit` has passed; the caller answers ABORTED and is called again.
/// - [`KernelError::Syscall`] with the errno.
pub fn detach(kernel: &dyn Kernel, number: u32, image: &Path, limit: Duration) -> Result<(), KernelError> {
    // Between the listing and now the number may have gone to somebody else: look again before touching it.
    let device = match kernel.open_loop(number) {
        Ok(device) => device,
        Err(error) if error.errno() == Some(libc::ENXIO) => return Ok(()),
        Err(error) => return Err(error),
    };
    if of_image(kernel, image)?.iter().any(|l| l.number == number) {
        kernel.detach(&device)?;
    }
    drop(device);
    wait_free(kernel, number, image, limit)
}

/// Waits until `number` no longer stands on `image`.
///
/// # Errors
/// [`KernelError::StillOpen`] when `limit` has passed.
pub fn wait_free(kernel: &dyn Kernel, number: u32, image: &Path, limit: Duration) -> Result<(), KernelError> {
    let free = || Ok(!of_image(kernel, image)?.iter().any(|l| l.number == number));
    if wait::until(limit, free)? {
        return Ok(());
    }
    Err(KernelError::StillOpen {
        device: path(number).display().to_string(),
        seconds: limit.as_secs(),
    })
}
