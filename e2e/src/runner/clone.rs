//! A volume made from another one: its data, its own life, and the room that was asked for.
use super::act::{BLOCKS, bound, bound_claim, remove_claim, remove_pod, running_pod};
use super::execute::{ActError, Run};
use crate::workload::{Placement, VolumeSpec, clone_claim};

pub(super) async fn clone(run: &Run, spec: &VolumeSpec, to: Option<&str>) -> Result<(), ActError> {
    let context = &run.context;
    let node = Placement::On(run.worker(0));
    let source = bound_claim(run, "source", spec).await?;
    let writer = running_pod(run, "writer", &source, BLOCKS, &node).await?;
    let written = writer.acknowledged(context, BLOCKS).await?;
    remove_pod(run, &writer, &source).await?;

    let wanted = VolumeSpec {
        size: to.map_or_else(|| spec.size.clone(), str::to_owned),
        ..spec.clone()
    };
    let mut copy = clone_claim(context, "copy", &wanted, &source).await?;
    run.owns(&copy.uid);
    bound(run, &mut copy).await?;
    // On the other node: what only the source's node had in its cache would be missing.
    let other = Placement::On(run.worker(1));
    let reader = running_pod(run, "reader", &copy, BLOCKS, &other).await?;
    let more = reader.acknowledged(context, written + BLOCKS).await?;
    reader.verify(context, more).await?;
    reader.has_room(context, &wanted.size).await?;
    remove_pod(run, &reader, &copy).await?;

    // The source has its own blocks and none of the copy's.
    let again = running_pod(run, "again", &source, 0, &node).await?;
    again.verify_exactly(context, written).await?;
    remove_pod(run, &again, &source).await?;
    remove_claim(run, &source).await?;
    remove_claim(run, &copy).await
}
