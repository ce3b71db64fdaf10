//! What the driver asks of Linux: mounts, loop devices, filesystem tools.

mod calls;
#[cfg(test)]
pub(crate) mod double;
pub mod filesystem;
mod host;
mod linux;
pub mod loop_device;
pub mod mount_flags;
mod mount_point;
pub mod mountinfo;
pub mod ownership;
pub mod place;
pub mod wait;

pub use calls::{FileId, Kernel, KernelError, LoopFlags, LoopStatus, MountFlags, OpenLoop, ToolOutput};
pub use host::{Linux, set_umask};
pub use linux::share_memory;
