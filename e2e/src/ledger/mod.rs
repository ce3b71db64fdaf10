//! What exists of volumes on a cluster: parsed from raw facts, compared before and after.
mod backend;
mod calls;
mod diff;
mod entry;
mod facts;
mod kubelet_dirs;
mod loops;
mod memory;
mod mounts;
mod objects;
mod owners;

pub use calls::{Call, parse_calls};
pub use diff::{Diff, diff};
pub use entry::{Entry, Kind, Ledger};
pub use facts::{BackendFile, Facts, FileId, LivePod};
pub use loops::{Loop, NotListed, parse_listed};
pub use memory::Memory;
pub use mounts::{CsiMount, csi_mounts};
pub use objects::Object;
