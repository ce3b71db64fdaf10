//! The system calls of a node as a trait, so that a test can record them and let the n-th fail.
use std::fs::File;
use std::path::{Path, PathBuf};

use super::mountinfo::Mount;

/// Why the kernel, or a filesystem tool, did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// A system call failed.
    #[error("{call} {subject}")]
    Syscall {
        /// Its name.
        call: &'static str,
        /// What it was called on.
        subject: String,
        /// The errno.
        #[source]
        errno: std::io::Error,
    },
    /// Where something was to be mounted there is nothing any more; nothing was mounted.
    #[error("{path} was removed meanwhile by another call")]
    Gone {
        /// The place.
        path: String,
    },
    /// A tool could not be started.
    #[error("{tool} could not be started")]
    NoTool {
        /// Its name, looked for in PATH.
        tool: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A tool ended with a bad exit code.
    #[error("{tool} ended with {code}: {output}")]
    Tool {
        /// Its name.
        tool: String,
        /// Its exit code, or the signal.
        code: String,
        /// The end of what it said.
        output: String,
    },
    /// A device is still open somewhere after the limit.
    #[error("{device} is still in use after {seconds} s")]
    StillOpen {
        /// The device.
        device: String,
        /// The limit.
        seconds: u64,
    },
    /// The kernel's answer was not understood.
    #[error("{what}: {text:?} was not understood")]
    Unexpected {
        /// What was read.
        what: &'static str,
        /// The text.
        text: String,
    },
}

impl KernelError {
    /// The errno, if a system call failed.
    pub fn errno(&self) -> Option<i32> {
        match self {
            Self::Syscall { errno, .. } => errno.raw_os_error(),
            Self::Gone { .. }
            | Self::NoTool { .. }
            | Self::Tool { .. }
            | Self::StillOpen { .. }
            | Self::Unexpected { .. } => None,
        }
    }
}

/// A file by what never changes while it exists: its path can.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileId {
    /// `st_dev`.
    pub dev: u64,
    /// `st_ino`.
    pub inode: u64,
}

impl FileId {
    /// The identity of an existing file.
    ///
    /// # Errors
    /// The errno of stat(2).
    pub fn of(path: &Path) -> std::io::Result<Self> {
        use std::os::unix::fs::MetadataExt;
        let meta = std::fs::metadata(path)?;
        Ok(Self {
            dev: meta.dev(),
            inode: meta.ino(),
        })
    }
}

/// How a loop device is made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LoopFlags {
    /// Refuses writes for as long as it exists.
    pub read_only: bool,
    /// Is freed at its last close: with the unmount, or with the mount namespace.
    pub autoclear: bool,
}

/// A loop device in use, as LOOP_GET_STATUS64 tells it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoopStatus {
    /// N of /dev/loopN, also its minor number.
    pub number: u32,
    /// The file behind it.
    pub file: FileId,
    /// How it was made.
    pub flags: LoopFlags,
    /// What its maker wrote into it: the node, where nodes share a kernel, and for what it was made.
    pub tag: String,
    /// Whether every read and write of it fails, for good.
    pub blind: bool,
}

/// A loop device held open, so that an autoclearing one lives until it is mounted.
#[derive(Debug)]
pub struct OpenLoop {
    /// N of /dev/loopN.
    pub number: u32,
    /// The open device.
    pub file: File,
    /// By which a double knows whether it is still open.
    #[cfg(test)]
    pub(crate) kept: std::sync::Arc<()>,
}

impl OpenLoop {
    /// A device that was opened.
    pub fn new(number: u32, file: File) -> Self {
        Self {
            number,
            file,
            #[cfg(test)]
            kept: std::sync::Arc::default(),
        }
    }

    /// Its path.
    pub fn path(&self) -> PathBuf {
        super::loop_device::path(self.number)
    }
}

/// Mount flags that the kernel takes as bits; everything else goes to the filesystem as text.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MountFlags {
    /// MS_* bits.
    pub bits: libc::c_ulong,
}

/// How a tool ended.
#[derive(Clone, Debug)]
pub struct ToolOutput {
    /// Exit code; none after a signal.
    pub code: Option<i32>,
    /// The end of stdout and stderr together.
    pub text: String,
}

/// Everything a node plugin asks of the kernel.
///
/// # Errors
/// Every method gives the failed call, its subject and errno as [`KernelError`].
pub trait Kernel: Send + Sync + std::fmt::Debug {
    /// The mounts of this process's namespace, in the order in which they were made.
    fn mounts(&self) -> Result<Vec<Mount>, KernelError>;
    /// Mounts a device.
    fn mount(
        &self,
        device: &Path,
        target: &Path,
        fs: &str,
        flags: MountFlags,
        data: &str,
    ) -> Result<(), KernelError>;
    /// Binds `from` on `to` under `flags`, of which those of a single mount count; the bind is never seen without them,
    /// not even for a moment.
    fn bind(&self, from: &Path, to: &Path, flags: MountFlags) -> Result<(), KernelError>;
    /// Undoes the topmost mount of `target`; never lazily, never through a symbolic link.
    fn unmount(&self, target: &Path) -> Result<(), KernelError>;
    /// The loop devices whose file is called `file_name`; others are not opened.
    fn loops(&self, file_name: &str) -> Result<Vec<LoopStatus>, KernelError>;
    /// The path of the file behind a loop device; none if the device is free.
    fn backing_file(&self, number: u32) -> Option<PathBuf>;
    /// Configures a free loop device with `file`; the device keeps this very open file, and the lock on it.
    fn attach(&self, file: &File, flags: LoopFlags, tag: &str) -> Result<OpenLoop, KernelError>;
    /// Opens an existing loop device.
    fn open_loop(&self, number: u32) -> Result<OpenLoop, KernelError>;
    /// Asks the kernel to let go of the file behind a device; it does so at the last close.
    fn detach(&self, device: &OpenLoop) -> Result<(), KernelError>;
    /// Makes a device as large as its file has become.
    fn refresh_size(&self, device: &OpenLoop) -> Result<(), KernelError>;
    /// A block device's size in bytes.
    fn size_bytes(&self, device: &OpenLoop) -> Result<u64, KernelError>;
    /// Whether what is mounted at `path` answers: a filesystem that was shut down gives an error for everything.
    fn answers(&self, path: &Path) -> Result<bool, KernelError>;
    /// How many errors the filesystem on a loop device has counted, where it counts them.
    fn filesystem_errors(&self, number: u32, fs: &str) -> u64;
    /// Writes out what is in memory of the filesystem on `device`, and ends it for everybody who has it mounted, wherever.
    fn shut_down(&self, device: &OpenLoop, fs: &str) -> Result<(), KernelError>;
    /// Lets every read and write of `device` fail from now on, whoever has it open, mounted or mapped; when this returns,
    /// none is on its way any more. It ends when the device is freed.
    fn blind(&self, device: &OpenLoop) -> Result<(), KernelError>;
    /// Whether this process has a capability, by its number in capabilities(7).
    fn is_capable(&self, capability: u8) -> bool;
    /// Runs a filesystem tool from PATH to its end; it dies with this process.
    fn run(&self, tool: &str, arguments: &[&str]) -> Result<ToolOutput, KernelError>;
}
