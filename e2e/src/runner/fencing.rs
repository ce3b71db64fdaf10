//! A node is given up while its pod writes, the volume moves, the node comes back: it must not write any more.
use super::act::{BLOCKS, bound_claim, fault_seen, remove_claim, remove_pod, running_pod};
use super::execute::{ActError, Run};
use crate::clock::Limit;
use crate::cluster::node::Loss;
use crate::cluster::wait::{self, Look};
use crate::fault;
use crate::id::folder_of;
use crate::ledger::csi_mounts;
use crate::workload::{Claim, Consumer, Placement, VolumeSpec};

/// More than any scenario lasts: the first pod writes until somebody stops it.
const WITHOUT_END: u64 = 1_000_000;

pub(super) async fn fence(run: &Run, spec: &VolumeSpec, loss: Loss) -> Result<(), ActError> {
    let context = &run.context;
    let (old, new) = (run.worker(0), run.worker(1));
    let claim = bound_claim(run, "data", spec).await?;
    let first = running_pod(run, "first", &claim, WITHOUT_END, &Placement::On(old.clone())).await?;
    let acknowledged = first.acknowledged(context, BLOCKS).await?;

    let name = format!("{loss:?} node").to_lowercase();
    let seen = fault::lose(&run.site, &old, loss).await?;
    fault_seen(run, &name, "took effect", &seen);
    match loss {
        // By the hand of whoever is sure that it does not run any more, and errs.
        Loss::Paused => first.delete_at_once(context).await?,
        // By the pod garbage collector, which removes the pods of nodes that are out of service.
        Loss::SwitchedOff => {}
    }
    first.gone(context).await?;
    let second = running_pod(run, "second", &claim, BLOCKS, &Placement::On(new)).await?;
    second
        .attached(context, claim.pv.as_deref().unwrap_or_default())
        .await?;
    let taken_over = second.acknowledged(context, acknowledged + BLOCKS).await?;

    fault::bring_back(&run.site, &old).await?;
    fault_seen(run, &name, "back", &came_back(run, &old, &first, &claim).await?);
    // Whatever the first pod tried since: every block of both is there, and none of the first after those of the second.
    second.verify(context, taken_over).await?;
    remove_pod(run, &second, &claim).await?;
    // The second had its own cache: what the first wrote below it shows to whoever comes after both.
    let third = running_pod(run, "third", &claim, 0, &Placement::On(old)).await?;
    third.verify(context, taken_over).await?;
    remove_pod(run, &third, &claim).await?;
    remove_claim(run, &claim).await
}

/// Waits until the node has let go of the volume; tells whether its pod was seen to fail at writing meanwhile.
async fn came_back(run: &Run, node: &str, pod: &Consumer, claim: &Claim) -> Result<String, ActError> {
    let on_host = run.site.host()?.node(node);
    let logs = format!(
        "grep -rhm1 'cannot be written' /var/log/pods/*_{} 2>/dev/null; true",
        pod.uid
    );
    let (folder, pv) = (
        folder_of(claim.volume.as_deref().unwrap_or_default()),
        claim.pv.clone().unwrap_or_default(),
    );
    let complaint = std::sync::Mutex::new(String::new());
    let look = || async {
        // The log goes with the pod's folders, so it is looked for at every look.
        if let Ok(found) = on_host.exec(&["sh", "-c", &logs]).await
            && let Some(line) = found.stdout.lines().next()
            && let Ok(mut complaint) = complaint.lock()
        {
            *complaint = line.to_owned();
        }
        let text = match on_host.mountinfo().await {
            Ok(text) => text,
            Err(error) => return Look::NotYet(error.to_string()),
        };
        let left = csi_mounts(&text).into_iter().map(|mount| mount.path);
        match left
            .into_iter()
            .find(|path| path.contains(&folder) || path.contains(&pv))
        {
            None => Look::Holds(()),
            Some(path) => Look::NotYet(format!("{path} is mounted")),
        }
    };
    wait::until(&format!("{node} has let go of the volume"), Limit::FAULT, look)
        .await
        .map_err(ActError::Wait)?;
    let complaint = complaint.into_inner().unwrap_or_default();
    Ok(if complaint.is_empty() {
        format!("{node} has let go of the volume; its pod was not heard")
    } else {
        format!("{node} has let go of the volume; its pod had said: {complaint}")
    })
}
