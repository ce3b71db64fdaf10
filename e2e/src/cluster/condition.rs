//! What is waited for on the cluster's objects, one function a condition.
use k8s_openapi::api::core::v1::{ContainerStateWaiting, Node, PersistentVolume, PersistentVolumeClaim, Pod};
use k8s_openapi::api::storage::v1::{CSINode, VolumeAttachment};

use super::wait::Look;

/// The claim is bound; gives its PV's name.
pub fn is_bound(claim: &PersistentVolumeClaim) -> Look<String> {
    let phase = claim
        .status
        .as_ref()
        .and_then(|s| s.phase.as_deref())
        .unwrap_or("none");
    match claim.spec.as_ref().and_then(|s| s.volume_name.clone()) {
        Some(volume) if phase == "Bound" => Look::Holds(volume),
        _ if phase == "Lost" => Look::Never(String::from("phase Lost")),
        volume => Look::NotYet(format!(
            "phase {phase}, volume {}",
            volume.as_deref().unwrap_or("none")
        )),
    }
}

/// Namespace and name of the claim that the PV is, or was, bound to.
pub fn claim_of(pv: &PersistentVolume) -> Option<(&str, &str)> {
    let claim = pv.spec.as_ref()?.claim_ref.as_ref()?;
    Some((claim.namespace.as_deref()?, claim.name.as_deref()?))
}

/// The claim shows at least `bytes`, and no resize is under way.
pub fn has_capacity(claim: &PersistentVolumeClaim, bytes: u64) -> Look<()> {
    let shown = capacity(claim).and_then(quantity_bytes);
    if shown.is_some_and(|now| now >= bytes) && resize(claim).is_none() {
        return Look::Holds(());
    }
    Look::NotYet(resize_seen(claim))
}

/// The controller has done its part of a resize to `bytes`: what is left, if anything, is the node's.
pub fn is_expanded_by_controller(claim: &PersistentVolumeClaim, bytes: u64) -> Look<()> {
    match resize(claim) {
        Some("NodeResizePending" | "NodeResizeInProgress") => Look::Holds(()),
        Some(status) if status.ends_with("Infeasible") => Look::Never(resize_seen(claim)),
        _ => has_capacity(claim, bytes),
    }
}

/// The claim shows whether a pod uses it, where the cluster shows it at all: Kubernetes does since 1.37.
pub fn shows_use(claim: &PersistentVolumeClaim, used: bool) -> Look<()> {
    let conditions = claim.status.as_ref().and_then(|s| s.conditions.as_ref());
    let unused = conditions.and_then(|all| all.iter().find(|c| c.type_ == "Unused"));
    match unused.map(|c| c.status.as_str()) {
        None => Look::Holds(()),
        Some(shown) if shown == if used { "False" } else { "True" } => Look::Holds(()),
        Some(shown) => Look::NotYet(format!("condition Unused is {shown}")),
    }
}

fn capacity(claim: &PersistentVolumeClaim) -> Option<&str> {
    let capacity = claim.status.as_ref()?.capacity.as_ref()?;
    capacity.get("storage").map(|q| q.0.as_str())
}

/// How far a resize is; none if none is under way.
fn resize(claim: &PersistentVolumeClaim) -> Option<&str> {
    let all = claim.status.as_ref()?.allocated_resource_statuses.as_ref()?;
    all.get("storage").map(String::as_str)
}

fn resize_seen(claim: &PersistentVolumeClaim) -> String {
    let conditions = claim.status.as_ref().and_then(|s| s.conditions.as_ref());
    let conditions: Vec<_> = conditions
        .into_iter()
        .flatten()
        .map(|c| format!("{} {}", c.type_, c.message.as_deref().unwrap_or("")))
        .collect();
    format!(
        "capacity {}, resize {}, conditions {conditions:?}",
        capacity(claim).unwrap_or("none"),
        resize(claim).unwrap_or("not under way")
    )
}

/// The attacher has confirmed the attachment and has no error to report.
pub fn is_attached(attachment: &VolumeAttachment) -> Look<()> {
    match &attachment.status {
        Some(status) if status.attached && status.attach_error.is_none() => Look::Holds(()),
        Some(status) => Look::NotYet(format!(
            "attached {}, attach error {:?}",
            status.attached,
            status.attach_error.as_ref().and_then(|e| e.message.clone())
        )),
        None => Look::NotYet(String::from("no status")),
    }
}

/// The pod's containers are ready; gives the node it runs on.
pub fn is_ready(pod: &Pod) -> Look<String> {
    let Some(status) = &pod.status else {
        return Look::NotYet(String::from("no status"));
    };
    let phase = status.phase.as_deref().unwrap_or("none");
    let ready = status
        .conditions
        .as_ref()
        .is_some_and(|all| all.iter().any(|c| c.type_ == "Ready" && c.status == "True"));
    let node = pod
        .spec
        .as_ref()
        .and_then(|s| s.node_name.clone())
        .unwrap_or_default();
    match phase {
        "Running" if ready => Look::Holds(node),
        "Failed" | "Succeeded" => Look::Never(format!("phase {phase}")),
        _ => Look::NotYet(format!(
            "phase {phase} on {}, {}",
            if node.is_empty() { "no node" } else { &node },
            waiting(pod)
        )),
    }
}

/// The scheduler has refused the pod, with `why` among its reasons.
pub fn is_unschedulable(pod: &Pod, why: &str) -> Look<()> {
    let conditions = pod.status.as_ref().and_then(|s| s.conditions.as_ref());
    let scheduled = conditions.and_then(|all| all.iter().find(|c| c.type_ == "PodScheduled"));
    match scheduled.map(|c| (c.status.as_str(), c.message.as_deref().unwrap_or_default())) {
        Some(("False", reason)) if reason.contains(why) => Look::Holds(()),
        Some(("True", _)) => Look::Never(String::from("it was scheduled")),
        other => Look::NotYet(format!("PodScheduled {other:?}")),
    }
}

/// What the pod, or each of its containers, waits for.
fn waiting(pod: &Pod) -> String {
    let conditions = pod.status.as_ref().and_then(|s| s.conditions.as_ref());
    let unscheduled = conditions
        .into_iter()
        .flatten()
        .find(|c| c.type_ == "PodScheduled" && c.status == "False");
    if let Some(refusal) = unscheduled {
        let why = refusal.message.as_deref().unwrap_or("no reason given");
        return format!("not scheduled: {why}");
    }
    let word = |(name, waiting): (&str, Option<&ContainerStateWaiting>)| {
        let reason = waiting.and_then(|w| w.reason.as_deref()).unwrap_or("not ready");
        match waiting.and_then(|w| w.message.as_deref()) {
            Some(message) => format!("{name}: {reason}: {message}"),
            None => format!("{name}: {reason}"),
        }
    };
    let words: Vec<_> = containers(pod).map(word).collect();
    if words.is_empty() {
        String::from("no container yet")
    } else {
        words.join(", ")
    }
}

/// The pod's containers, each with what it waits for.
fn containers(pod: &Pod) -> impl Iterator<Item = (&str, Option<&ContainerStateWaiting>)> {
    let statuses = pod.status.as_ref().and_then(|s| s.container_statuses.as_ref());
    statuses.into_iter().flatten().map(|status| {
        let state = status.state.as_ref();
        (status.name.as_str(), state.and_then(|s| s.waiting.as_ref()))
    })
}

/// How a container of the pod ended, if one did with an error, the last time that it did.
pub fn has_failed(pod: &Pod) -> Option<String> {
    let statuses = pod.status.as_ref().and_then(|s| s.container_statuses.as_ref());
    statuses.into_iter().flatten().find_map(|status| {
        let states = [status.state.as_ref(), status.last_state.as_ref()];
        let ended = states
            .into_iter()
            .flatten()
            .find_map(|state| state.terminated.as_ref())?;
        let message = ended.message.as_deref().unwrap_or("nothing").trim();
        (ended.exit_code != 0).then(|| {
            format!(
                "{} ended with {}, saying: {message}",
                status.name, ended.exit_code
            )
        })
    })
}

/// Whether a container waits for an image that its node cannot have, by kubelet's reasons (k8s.io/kubernetes:
/// pkg/kubelet/images/types.go).
pub fn lacks_image(pod: &Pod) -> bool {
    const REASONS: [&str; 5] = [
        "ErrImagePull",
        "ImagePullBackOff",
        "ErrImageNeverPull",
        "InvalidImageName",
        "RegistryUnavailable",
    ];
    containers(pod)
        .filter_map(|(_, waiting)| waiting?.reason.as_deref())
        .any(|reason| REASONS.contains(&reason))
}

/// The node is ready.
pub fn is_node_ready(node: &Node) -> Look<()> {
    let ready = node
        .status
        .as_ref()
        .and_then(|s| s.conditions.as_ref())
        .and_then(|all| all.iter().find(|c| c.type_ == "Ready"))
        .map_or("unknown", |c| c.status.as_str());
    if ready == "True" {
        Look::Holds(())
    } else {
        Look::NotYet(format!("Ready is {ready}"))
    }
}

/// The node has `driver`; gives the driver's name for the node.
pub fn has_driver(node: &CSINode, driver: &str) -> Look<String> {
    match node.spec.drivers.iter().find(|d| d.name == driver) {
        Some(found) => Look::Holds(found.node_id.clone()),
        None => Look::NotYet(format!(
            "drivers {:?}",
            node.spec.drivers.iter().map(|d| &d.name).collect::<Vec<_>>()
        )),
    }
}

/// Bytes of a Kubernetes quantity with a binary suffix or none.
pub fn quantity_bytes(text: &str) -> Option<u64> {
    let digits = text.trim_end_matches(|c: char| !c.is_ascii_digit());
    let factor = match &text[digits.len()..] {
        "" => 1,
        "Ki" => 1 << 10,
        "Mi" => 1 << 20,
        "Gi" => 1 << 30,
        "Ti" => 1 << 40,
        _ => return None,
    };
    digits.parse::<u64>().ok()?.checked_mul(factor)
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case::plain("67108864", Some(67_108_864))]
    #[case::mebibytes("64Mi", Some(64 << 20))]
    #[case::unknown_suffix("64Xi", None)]
    #[case::nothing("", None)]
    fn quantities(#[case] text: &str, #[case] bytes: Option<u64>) {
        assert_eq!(quantity_bytes(text), bytes);
    }

    #[test]
    fn an_end_is_a_failure_only_with_an_error() {
        let pod = |state: &str, code: i32| -> Pod {
            serde_json::from_value(serde_json::json!({"status": {"containerStatuses": [{
                "name": "io", "image": "", "imageID": "", "ready": false, "restartCount": 1,
                state: {"terminated": {"exitCode": code, "message": "error: stale\n"}}}]}}))
            .unwrap()
        };
        let said = Some(String::from("io ended with 96, saying: error: stale"));
        assert_eq!(has_failed(&pod("lastState", 96)), said);
        assert_eq!(has_failed(&pod("state", 96)), said);
        assert_eq!(has_failed(&pod("state", 0)), None);
        assert_eq!(has_failed(&Pod::default()), None);
    }

    #[test]
    fn a_claim_is_bound_only_with_phase_and_volume() {
        let claim = |json: serde_json::Value| serde_json::from_value::<PersistentVolumeClaim>(json).unwrap();
        let bound = claim(serde_json::json!({"spec": {"volumeName": "pv"}, "status": {"phase": "Bound"}}));
        let half = claim(serde_json::json!({"spec": {"volumeName": "pv"}, "status": {"phase": "Pending"}}));
        assert!(matches!(is_bound(&bound), Look::Holds(name) if name == "pv"));
        assert!(matches!(is_bound(&half), Look::NotYet(_)));
    }

    #[rstest]
    #[case::asked("ControllerResizeInProgress", "64Mi", "no")]
    #[case::pending("NodeResizePending", "64Mi", "expanded")]
    #[case::node("NodeResizeInProgress", "64Mi", "expanded")]
    #[case::impossible("ControllerResizeInfeasible", "64Mi", "never")]
    #[case::not_begun("", "64Mi", "no")]
    #[case::without_a_node("", "128Mi", "expanded whole")]
    #[case::not_written_yet("NodeResizeInProgress", "128Mi", "expanded")]
    fn a_resize_is_the_controllers_and_then_the_nodes(
        #[case] status: &str,
        #[case] shown: &str,
        #[case] is: &str,
    ) {
        let statuses = match status {
            "" => serde_json::json!({}),
            _ => serde_json::json!({"storage": status}),
        };
        let claim: PersistentVolumeClaim = serde_json::from_value(serde_json::json!({"status": {
            "capacity": {"storage": shown}, "allocatedResourceStatuses": statuses}}))
        .unwrap();
        let expanded = match is_expanded_by_controller(&claim, 128 << 20) {
            Look::Holds(()) => "expanded",
            Look::NotYet(_) => "no",
            Look::Never(_) => "never",
        };
        assert!(is.starts_with(expanded), "{expanded}");
        let whole = matches!(has_capacity(&claim, 128 << 20), Look::Holds(()));
        assert_eq!(whole, is.ends_with("whole"));
    }

    #[rstest]
    #[case::older(None, true, true)]
    #[case::used(Some("False"), true, false)]
    #[case::unused(Some("True"), false, true)]
    fn a_claim_shows_its_use(#[case] unused: Option<&str>, #[case] as_used: bool, #[case] as_unused: bool) {
        let conditions: Vec<_> = unused
            .iter()
            .map(|status| serde_json::json!({"type": "Unused", "status": status}))
            .collect();
        let claim: PersistentVolumeClaim =
            serde_json::from_value(serde_json::json!({"status": {"conditions": conditions}})).unwrap();
        assert_eq!(matches!(shows_use(&claim, true), Look::Holds(())), as_used);
        assert_eq!(matches!(shows_use(&claim, false), Look::Holds(())), as_unused);
    }

    fn pod(status: serde_json::Value) -> Pod {
        serde_json::from_value(serde_json::json!({"metadata": {"name": "p"}, "status": status})).unwrap()
    }

    #[rstest]
    #[case::no_node(
        serde_json::json!({"phase": "Pending", "conditions": [
            {"type": "PodScheduled", "status": "False", "message": "0/3 nodes are available"}]}),
        "phase Pending on no node, not scheduled: 0/3 nodes are available",
        false
    )]
    #[case::no_image(
        serde_json::json!({"phase": "Pending", "containerStatuses": [{
            "name": "io", "image": "x", "imageID": "", "ready": false, "restartCount": 0,
            "state": {"waiting": {"reason": "ImagePullBackOff", "message": "Back-off pulling image x"}}}]}),
        "io: ImagePullBackOff: Back-off pulling image x",
        true
    )]
    #[case::no_volume(
        serde_json::json!({"phase": "Pending", "containerStatuses": [{
            "name": "io", "image": "x", "imageID": "", "ready": false, "restartCount": 0,
            "state": {"waiting": {"reason": "ContainerCreating"}}}]}),
        "io: ContainerCreating",
        false
    )]
    fn a_pod_that_does_not_start_tells_what_it_waits_for(
        #[case] status: serde_json::Value,
        #[case] says: &str,
        #[case] image: bool,
    ) {
        let pod = pod(status);
        assert!(matches!(is_ready(&pod), Look::NotYet(seen) if seen.contains(says)));
        assert_eq!(lacks_image(&pod), image);
    }
}
