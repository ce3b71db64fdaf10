//! What is done with volumes: claims, pods, and the blocks that pods write.
pub mod blocks;
mod claim;
mod context;
pub mod plant;
mod pod;
mod reading;
mod spec;
mod stateful_set;

pub use claim::{Claim, clone_claim, create_claim, pre_provisioned};
pub use context::{Context, RUN_LABEL, WorkloadError};
pub use plant::Plant;
pub use pod::{Consumer, Placement, create_pod, create_pod_of_many, create_reader};
pub use spec::{Access, Mode, VolumeSpec, Workload};
pub use stateful_set::Moving;
