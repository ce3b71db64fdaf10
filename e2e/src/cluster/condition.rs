//! What is waited for on the cluster's objects, one function a condition.
use k8s_openapi::api::core::v1::{Node, PersistentVolumeClaim, Pod};
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

/// The claim shows at least `bytes`, and no resize is under way.
pub fn has_capacity(claim: &PersistentVolumeClaim, bytes: u64) -> Look<()> {
    let status = claim.status.as_ref();
    let shown = status
        .and_then(|s| s.capacity.as_ref())
        .and_then(|c| c.get("storage"))
        .map_or("none", |q| q.0.as_str());
    let resizing = status
        .and_then(|s| s.allocated_resource_statuses.as_ref())
        .is_some_and(|s| !s.is_empty());
    match quantity_bytes(shown) {
        Some(now) if now >= bytes && !resizing => Look::Holds(()),
        _ => Look::NotYet(format!(
            "capacity {shown}, resize {}, conditions {:?}",
            if resizing { "under way" } else { "not under way" },
            status
                .and_then(|s| s.conditions.as_ref())
                .map(|all| all
                    .iter()
                    .map(|c| format!("{} {}", c.type_, c.message.as_deref().unwrap_or("")))
                    .collect::<Vec<_>>())
                .unwrap_or_default()
        )),
    }
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

/// What the pod's containers wait for.
fn waiting(pod: &Pod) -> String {
    let statuses = pod.status.as_ref().and_then(|s| s.container_statuses.as_ref());
    let words: Vec<_> = statuses
        .into_iter()
        .flatten()
        .map(|c| {
            let reason = c
                .state
                .as_ref()
                .and_then(|s| s.waiting.as_ref())
                .and_then(|w| w.reason.clone());
            format!(
                "{}: {}",
                c.name,
                reason.unwrap_or_else(|| String::from("not ready"))
            )
        })
        .collect();
    if words.is_empty() {
        String::from("no container yet")
    } else {
        words.join(", ")
    }
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
    fn a_claim_is_bound_only_with_phase_and_volume() {
        let claim = |json: serde_json::Value| serde_json::from_value::<PersistentVolumeClaim>(json).unwrap();
        let bound = claim(serde_json::json!({"spec": {"volumeName": "pv"}, "status": {"phase": "Bound"}}));
        let half = claim(serde_json::json!({"spec": {"volumeName": "pv"}, "status": {"phase": "Pending"}}));
        assert!(matches!(is_bound(&bound), Look::Holds(name) if name == "pv"));
        assert!(matches!(is_bound(&half), Look::NotYet(_)));
    }
}
