//! A pod that may only read: what it has says so in the kernel, whatever kubelet forbids beside.
use super::act::{BLOCKS, bound_claim, remove_claim, remove_pod, running_pod};
use super::execute::{ActError, Run};
use crate::cluster::facts;
use crate::workload::{Mode, Placement, VolumeSpec, WorkloadError, create_reader};

pub(super) async fn read_only(run: &Run, spec: &VolumeSpec) -> Result<(), ActError> {
    let context = &run.context;
    let node = run.worker(0);
    let here = Placement::On(node.clone());
    let claim = bound_claim(run, "data", spec).await?;
    let writer = running_pod(run, "writer", &claim, BLOCKS, &here).await?;
    let written = writer.acknowledged(context, BLOCKS).await?;
    remove_pod(run, &writer, &claim).await?;

    let mut reader = create_reader(context, "reader", &claim, &here).await?;
    run.owns(&reader.uid);
    reader.running(context).await?;
    reader.verify_exactly(context, written).await?;
    // The pod's own view is kubelet's, which forbids writing there even where the driver does not.
    let shown = published(run, &node, claim.pv.as_deref().unwrap_or_default(), &reader.uid).await?;
    if shown.is_empty() || !shown.iter().all(|line| is_read_only(spec.mode, line)) {
        return Err(ActError::Workload(WorkloadError::Unmet {
            expected: format!("the volume published to pod reader for reading only on {node}"),
            seen: format!("{shown:?}"),
        }));
    }
    remove_pod(run, &reader, &claim).await?;

    // Nothing of it sticks, to the volume or to the number of its device.
    let again = running_pod(run, "again", &claim, BLOCKS, &here).await?;
    let written = again.acknowledged(context, written + BLOCKS).await?;
    again.verify(context, written).await?;
    remove_pod(run, &again, &claim).await?;
    remove_claim(run, &claim).await
}

/// Lines of the node's mountinfo in which `token` stands, a PV's name or a pod's UID.
pub(super) async fn mounted(run: &Run, node: &str, token: &str) -> Result<Vec<String>, ActError> {
    let text = run.site.host()?.node(node).mountinfo().await?;
    Ok(text
        .lines()
        .filter(|line| line.contains(token))
        .map(str::to_owned)
        .collect())
}

/// Where the driver has put the volume for the pod, not where kubelet binds it again.
async fn published(run: &Run, node: &str, pv: &str, pod: &str) -> Result<Vec<String>, ActError> {
    let folder = format!("/{pod}/volumes/kubernetes.io~csi/{pv}/mount ");
    let device = format!("/volumeDevices/publish/{pv}/{pod} ");
    let mut lines = mounted(run, node, pv).await?;
    lines.retain(|line| line.contains(&folder) || line.contains(&device));
    Ok(lines)
}

/// A mount has the option; of a bound device the device itself is asked.
fn is_read_only(mode: Mode, line: &str) -> bool {
    let field = |index: usize| line.split(' ').nth(index).unwrap_or_default();
    match mode {
        Mode::Filesystem => field(5).split(',').any(|option| option == "ro"),
        Mode::Block => {
            let number = field(3)
                .strip_prefix("/loop")
                .and_then(|number| number.parse::<u32>().ok());
            let all = facts::sysfs().unwrap_or_default();
            all.iter()
                .any(|(of, _, read_only)| Some(*of) == number && *read_only)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mount_s_own_options_count_and_not_the_filesystem_s() {
        let line = |own: &str, fs: &str| {
            format!("9 1 7:0 / /pods/u/mount {own},relatime shared:1 - ext4 /dev/loop0 {fs}")
        };
        assert!(is_read_only(Mode::Filesystem, &line("ro", "rw")));
        assert!(!is_read_only(Mode::Filesystem, &line("rw", "ro")));
        assert!(!is_read_only(
            Mode::Block,
            "9 1 0:5 /loop999999 /volumeDevices/publish/pv/u rw - devtmpfs udev rw"
        ));
    }
}
