//! The act of a scenario: its workload, with its faults where their phases come.
use futures::future::try_join_all;
use k8s_openapi::api::core::v1::PersistentVolume;
use kube::Api;

use super::execute::{ActError, Run};
use super::phase::{self, Scene};
use super::{clone, fencing, leaders, limits, modify, pinned, read_only, second};
use crate::clock::Limit;
use crate::cluster::driver::Class;
use crate::cluster::wait::Look;
use crate::fault::{self, Fault, Held, Hold, Moment, Phase};
use crate::history::What;
use crate::workload::{
    Claim, Consumer, Moving, Placement, VolumeSpec, Workload, create_claim, create_pod, plant,
    pre_provisioned,
};

/// Blocks that a pod writes before it is asked for them.
pub(super) const BLOCKS: u64 = 32;

/// Does what `workload` says.
pub(super) async fn act(run: &Run, workload: &Workload) -> Result<(), ActError> {
    match workload {
        Workload::Lifecycle { volume, volumes: 1 } => life(run, "data", volume, None).await,
        Workload::Lifecycle { volume, volumes } => {
            let one =
                |number| async move { life(run, &format!("data-{number}"), volume, Some(number)).await };
            try_join_all((0..*volumes).map(one)).await.map(drop)
        }
        Workload::Expand { volume, to, online } => expand(run, volume, to, *online).await,
        Workload::Retain { volume } => retain(run, volume).await,
        Workload::PreProvisioned { volume } => by_hand(run, volume).await,
        Workload::MoveStatefulSet { volume } => move_set(run, volume).await,
        Workload::DeleteWhileProvisioning { volume } => delete_while_provisioning(run, volume).await,
        Workload::DeleteWhileAttaching { volume } => delete_while_attaching(run, volume).await,
        Workload::Clone { volume, to } => clone::clone(run, volume, to.as_deref()).await,
        Workload::Modify { volume } => modify::modify(run, volume).await,
        Workload::AttachLimit { volume } => limits::attach_limit(run, volume).await,
        Workload::Capacity { volume } => limits::capacity(run, volume).await,
        Workload::ReadOnly { volume } => read_only::read_only(run, volume).await,
        Workload::SecondAttachment { volume } => second::second_attachment(run, volume).await,
        Workload::Pinned { volume } => pinned::pinned(run, volume).await,
        Workload::LeadersApart { volume } => leaders::leaders_apart(run, volume).await,
        Workload::Fence { volume, loss } => fencing::fence(run, volume, *loss).await,
        Workload::PlantLeak { plants } => {
            Ok(plant::plant(&run.context, &run.site, &run.worker(0), plants).await?)
        }
    }
}

/// Claim, pod, data, and everything gone again; faults strike at their phases. Of many volumes it is told which this is: they
/// take turns at the nodes, and nobody reads them elsewhere.
pub(super) async fn life(
    run: &Run,
    name: &str,
    spec: &VolumeSpec,
    of_many: Option<u32>,
) -> Result<(), ActError> {
    let context = &run.context;
    let node = run.worker(of_many.map_or(0, |number| number as usize));
    let pod_name = format!("{name}-pod");
    let scene = Scene {
        claim: name,
        pod: &pod_name,
        node: &node,
    };
    let held = arm(run, &[Phase::Provisioning], &node).await?;
    let mut claim = create_claim(context, name, spec).await?;
    run.owns(&claim.uid);
    strike(run, &[Phase::Provisioning], &scene, held).await?;

    let late = spec.class == Class::FirstConsumer;
    if !late {
        bound(run, &mut claim).await?;
    }
    let held = arm(run, &[Phase::Attaching, Phase::Mounting], &node).await?;
    let mut pod = create_pod(context, &pod_name, &claim, BLOCKS, &Placement::On(node.clone())).await?;
    run.owns(&pod.uid);
    strike(run, &[Phase::Attaching, Phase::Mounting], &scene, held).await?;
    if late {
        bound(run, &mut claim).await?;
    }
    let pv = claim.pv.clone().unwrap_or_default();
    pod.running(context).await?;
    pod.attached(context, &pv).await?;
    let acknowledged = pod.acknowledged(context, BLOCKS).await?;
    pod.verify(context, acknowledged).await?;

    let held = arm(run, &[Phase::Unmounting, Phase::Detaching], &node).await?;
    pod.delete(context).await?;
    strike(run, &[Phase::Unmounting, Phase::Detaching], &scene, held).await?;
    pod.gone(context).await?;
    claim.detached(context).await?;
    if of_many.is_none() {
        read_elsewhere(run, &claim, acknowledged).await?;
    }

    let held = arm(run, &[Phase::Deleting], &node).await?;
    claim.delete(context).await?;
    strike(run, &[Phase::Deleting], &scene, held).await?;
    claim.gone(context).await?;
    Ok(claim.pv_gone(context).await?)
}

/// A pod on another node reads every acknowledged block back: what only a page cache held would not be there.
async fn read_elsewhere(run: &Run, claim: &Claim, acknowledged: u64) -> Result<(), ActError> {
    let context = &run.context;
    let placement = Placement::On(run.worker(1));
    let reader = running_pod(run, &format!("{}-reader", claim.name), claim, 0, &placement).await?;
    reader.verify(context, acknowledged).await?;
    remove_pod(run, &reader, claim).await
}

/// A new claim with its volume.
pub(super) async fn bound_claim(run: &Run, name: &str, spec: &VolumeSpec) -> Result<Claim, ActError> {
    let mut claim = create_claim(&run.context, name, spec).await?;
    run.owns(&claim.uid);
    bound(run, &mut claim).await?;
    Ok(claim)
}

/// A new pod that uses the claim, and runs.
pub(super) async fn running_pod(
    run: &Run,
    name: &str,
    claim: &Claim,
    blocks: u64,
    placement: &Placement,
) -> Result<Consumer, ActError> {
    let mut pod = create_pod(&run.context, name, claim, blocks, placement).await?;
    run.owns(&pod.uid);
    pod.running(&run.context).await?;
    Ok(pod)
}

pub(super) async fn bound(run: &Run, claim: &mut Claim) -> Result<PersistentVolume, ActError> {
    let pv = claim.bound(&run.context).await?;
    run.owns_volume(claim);
    claim.check_pv(&run.context, &pv)?;
    Ok(pv)
}

/// The claim grows; with a pod on it, or before the first and again between two.
async fn expand(run: &Run, spec: &VolumeSpec, to: &str, online: bool) -> Result<(), ActError> {
    let context = &run.context;
    let node = Placement::On(run.worker(0));
    let claim = bound_claim(run, "data", spec).await?;
    let mut pod = running_pod(run, "first", &claim, BLOCKS, &node).await?;
    let written = pod.acknowledged(context, BLOCKS).await?;
    if online {
        claim.request(context, to, true).await?;
        claim.has(context, to).await?;
        pod.verify(context, written).await?;
        pod.has_room(context, to).await?;
    } else {
        remove_pod(run, &pod, &claim).await?;
        claim.request(context, to, false).await?;
        claim.expanded_by_controller(context, to).await?;
        pod = running_pod(run, "second", &claim, BLOCKS, &node).await?;
        claim.has(context, to).await?;
        let written = pod.acknowledged(context, written + BLOCKS).await?;
        pod.verify(context, written).await?;
        pod.has_room(context, to).await?;
    }
    remove_pod(run, &pod, &claim).await?;
    remove_claim(run, &claim).await
}

pub(super) async fn remove_pod(run: &Run, pod: &Consumer, claim: &Claim) -> Result<(), ActError> {
    pod.delete(&run.context).await?;
    pod.gone(&run.context).await?;
    Ok(claim.detached(&run.context).await?)
}

pub(super) async fn remove_claim(run: &Run, claim: &Claim) -> Result<(), ActError> {
    claim.delete(&run.context).await?;
    claim.gone(&run.context).await?;
    Ok(claim.pv_gone(&run.context).await?)
}

/// With Retain the PV outlives its claim, Released; with Delete written into it, it goes with its volume.
async fn retain(run: &Run, spec: &VolumeSpec) -> Result<(), ActError> {
    let context = &run.context;
    let claim = bound_claim(run, "data", spec).await?;
    claim.delete(context).await?;
    claim.gone(context).await?;
    released(run, &claim).await?;
    claim.set_reclaim_policy(context, "Delete").await?;
    Ok(claim.pv_gone(context).await?)
}

async fn released(run: &Run, claim: &Claim) -> Result<(), ActError> {
    let volumes: Api<PersistentVolume> = Api::all(run.context.client.clone());
    let name = claim.pv.as_deref().unwrap_or_default();
    let what = format!("PV {name} is released, not deleted");
    let look = |pv: &PersistentVolume| match pv.status.as_ref().and_then(|s| s.phase.as_deref()) {
        Some("Released") => Look::Holds(()),
        phase => Look::NotYet(format!("phase {phase:?}")),
    };
    Ok(run
        .context
        .until_object(&volumes, &what, name, Limit::DELETE, look)
        .await?)
}

/// A volume is made, let go by its first PV, and used through one written by hand: the data is still there.
async fn by_hand(run: &Run, spec: &VolumeSpec) -> Result<(), ActError> {
    let context = &run.context;
    let node = Placement::On(run.worker(0));
    let mut first = create_claim(context, "made", spec).await?;
    run.owns(&first.uid);
    let pv = bound(run, &mut first).await?;
    let pod = running_pod(run, "first", &first, BLOCKS, &node).await?;
    let written = pod.acknowledged(context, BLOCKS).await?;
    remove_pod(run, &pod, &first).await?;
    first.set_reclaim_policy(context, "Retain").await?;
    first.delete(context).await?;
    first.gone(context).await?;
    released(run, &first).await?;
    let volumes: Api<PersistentVolume> = Api::all(context.client.clone());
    let name = first.pv.as_deref().unwrap_or_default();
    volumes
        .delete(name, &kube::api::DeleteParams::default())
        .await
        .map_err(context.api("delete a PV"))?;
    first.pv_gone(context).await?;

    let mut second = pre_provisioned(context, "by-hand", &pv, spec).await?;
    run.owns(&second.uid);
    bound(run, &mut second).await?;
    let pod = running_pod(run, "second", &second, BLOCKS, &node).await?;
    let written = pod.acknowledged(context, written + BLOCKS).await?;
    pod.verify(context, written).await?;
    remove_pod(run, &pod, &second).await?;
    remove_claim(run, &second).await
}

/// The pod moves to another node; what it wrote on the first is there on the second.
async fn move_set(run: &Run, spec: &VolumeSpec) -> Result<(), ActError> {
    let context = &run.context;
    let (from, to) = (run.worker(0), run.worker(1));
    let set = Moving::create(context, spec, BLOCKS, &from).await?;
    let claim = set.claim(context, spec).await?;
    run.owns(&claim.uid);
    run.owns_volume(&claim);
    let pv = claim.pv.clone().unwrap_or_default();
    let first = set.runs_on(context, &from).await?;
    run.owns(&first.uid);
    let written = first.acknowledged(context, set.blocks()).await?;
    set.move_to(context, &to).await?;
    let second = set.runs_on(context, &to).await?;
    run.owns(&second.uid);
    second.attached(context, &pv).await?;
    let written = second.acknowledged(context, written + set.blocks()).await?;
    second.verify(context, written).await?;
    set.delete(context).await?;
    second.gone(context).await?;
    claim.detached(context).await?;
    remove_claim(run, &claim).await
}

/// The claim is deleted while CreateVolume stands still: whatever was made must go.
async fn delete_while_provisioning(run: &Run, spec: &VolumeSpec) -> Result<(), ActError> {
    let context = &run.context;
    let held = fault::hold(&run.site, Hold::Controller, "").await?;
    let claim = create_claim(context, "data", spec).await?;
    run.owns(&claim.uid);
    let waiting = held.sees_a_call().await?;
    fault_seen(run, "delete the claim while provisioning", "held", &waiting.seen);
    claim.delete(context).await?;
    drop(held);
    Ok(claim.gone(context).await?)
}

/// The pod is deleted while ControllerPublishVolume stands still: nothing may stay attached.
async fn delete_while_attaching(run: &Run, spec: &VolumeSpec) -> Result<(), ActError> {
    let context = &run.context;
    let claim = bound_claim(run, "data", spec).await?;
    let held = fault::hold(&run.site, Hold::Controller, "").await?;
    let pod = create_pod(context, "pod", &claim, BLOCKS, &Placement::On(run.worker(0))).await?;
    run.owns(&pod.uid);
    let waiting = held.sees_a_call().await?;
    fault_seen(run, "delete the pod while attaching", "held", &waiting.seen);
    pod.delete(context).await?;
    drop(held);
    pod.gone(context).await?;
    claim.detached(context).await?;
    remove_claim(run, &claim).await
}

/// The fault of the first of `phases` that has one.
fn at<'a>(run: &'a Run, phases: &[Phase]) -> Option<&'a Fault> {
    phases
        .iter()
        .find_map(|phase| run.scenario.faults.iter().find(|fault| fault.at == *phase))
}

/// Holds whom the fault of these phases wants held, if there is one.
async fn arm(run: &Run, phases: &[Phase], node: &str) -> Result<Option<Held>, ActError> {
    match at(run, phases) {
        Some(fault) => Ok(Some(fault::hold(&run.site, fault.hold, node).await?)),
        None => Ok(None),
    }
}

/// Strikes once a call waits at whom is held, and the operation is proved to be under way.
async fn strike(run: &Run, phases: &[Phase], scene: &Scene<'_>, held: Option<Held>) -> Result<(), ActError> {
    let (Some(fault), Some(held)) = (at(run, phases), held) else {
        return Ok(());
    };
    let name = format!("{:?} at {:?}", fault.kill, fault.at).to_lowercase();
    let waiting = held.sees_a_call().await?;
    fault_seen(run, &name, "held", &waiting.seen);
    let seen = phase::under_way(run, fault.at, scene).await?;
    fault_seen(run, &name, "under way", &seen);
    let held = match fault.call {
        Moment::Waiting => held,
        Moment::Answered => {
            let (deaf, seen) = fault::unheard(&run.site, fault.at, held).await?;
            fault_seen(run, &name, "answered", &seen);
            deaf
        }
    };
    let seen = fault::strike(&run.site, fault.kill, fault.at, scene.node, held, &waiting).await?;
    fault_seen(run, &name, "took effect", &seen);
    Ok(())
}

pub(super) fn fault_seen(run: &Run, fault: &str, step: &str, seen: &str) {
    run.context.recorder.record(
        Some(&run.context.scenario),
        What::Fault {
            fault: fault.to_owned(),
            step: step.to_owned(),
            seen: seen.to_owned(),
        },
    );
}
