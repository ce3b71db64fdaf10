//! Provisioner and attacher lead in different pods: two processes of the controller then work on one data folder.
use super::act::{fault_seen, life};
use super::execute::{ActError, Run};
use crate::fault;
use crate::workload::VolumeSpec;

pub(super) async fn leaders_apart(run: &Run, spec: &VolumeSpec) -> Result<(), ActError> {
    let seen = fault::part_leaders(&run.site).await?;
    fault_seen(run, "leaders in different pods", "took effect", &seen);
    life(run, "data", spec, None).await
}
