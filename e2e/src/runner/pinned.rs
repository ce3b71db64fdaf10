//! A volume that can be used on one node only: its PV says so, and the scheduler heeds it.
use k8s_openapi::api::core::v1::PersistentVolume;

use super::act::{BLOCKS, bound, remove_claim, remove_pod, running_pod};
use super::execute::{ActError, Run};
use crate::cluster::chart::NODE_SEGMENT;
use crate::workload::{Placement, VolumeSpec, WorkloadError, create_claim, create_pod};

pub(super) async fn pinned(run: &Run, spec: &VolumeSpec) -> Result<(), ActError> {
    let context = &run.context;
    let (here, elsewhere) = (run.worker(0), run.worker(1));
    let mut claim = create_claim(context, "data", spec).await?;
    run.owns(&claim.uid);
    let mut first = create_pod(context, "first", &claim, BLOCKS, &Placement::On(here.clone())).await?;
    run.owns(&first.uid);
    let pv = bound(run, &mut claim).await?;
    let nodes = nodes_of(&pv);
    if nodes != [here.as_str()] {
        return Err(ActError::Workload(WorkloadError::Unmet {
            expected: format!("a PV that says {NODE_SEGMENT} is {here}"),
            seen: format!("{nodes:?}"),
        }));
    }
    first.running(context).await?;
    let written = first.acknowledged(context, BLOCKS).await?;
    remove_pod(run, &first, &claim).await?;

    // Where the volume is not, a pod waits; where nobody says where, it goes to the volume.
    let stray = create_pod(context, "stray", &claim, 0, &Placement::On(elsewhere)).await?;
    run.owns(&stray.uid);
    stray
        .not_scheduled(context, "PersistentVolume's node affinity")
        .await?;
    stray.delete(context).await?;
    stray.gone(context).await?;
    let second = running_pod(run, "second", &claim, 0, &Placement::Anywhere).await?;
    if second.node != here {
        return Err(ActError::Workload(WorkloadError::Unmet {
            expected: format!("pod second on {here}, where its volume is"),
            seen: second.node.clone(),
        }));
    }
    second.verify(context, written).await?;
    remove_pod(run, &second, &claim).await?;
    remove_claim(run, &claim).await
}

/// The nodes that the PV names as its place.
fn nodes_of(pv: &PersistentVolume) -> Vec<&str> {
    let affinity = pv.spec.as_ref().and_then(|spec| spec.node_affinity.as_ref());
    let terms = affinity
        .and_then(|a| a.required.as_ref())
        .map(|r| r.node_selector_terms.as_slice());
    terms
        .unwrap_or_default()
        .iter()
        .flat_map(|term| term.match_expressions.iter().flatten())
        .filter(|expression| expression.key == NODE_SEGMENT)
        .flat_map(|expression| expression.values.iter().flatten().map(String::as_str))
        .collect()
}
