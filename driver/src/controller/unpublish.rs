//! ControllerUnpublishVolume: the volume is taken from a node, or from whichever has it.
use std::time::Duration;

use holdfast_proto::csi as pb;

use crate::error::Error;
use crate::guard::file_lock;
use crate::id::VolumeId;
use crate::kernel::wait;
use crate::request;
use crate::volume::errand::{self, Errand, Outcome};
use crate::volume::fence;
use crate::volume::record::Record;
use crate::volume::store::Store;

/// How long one call waits for a node's answer: the attacher gives it 15 s. The next call goes on where this one ended.
const LIMIT: Duration = Duration::from_secs(10);

/// Takes the volume away, or finds that the node does not have it. Not before the node can no longer write: its loop device
/// carries a lock of the image, and lives longer than its plugin or kubelet. While it does, the node is asked to say whether
/// it still uses the volume, and, if it does not answer, another one to see to it that it cannot.
pub(super) fn unpublish(
    store: &Store,
    id: &str,
    node: &str,
) -> Result<pb::ControllerUnpublishVolumeResponse, Error> {
    let gone = pb::ControllerUnpublishVolumeResponse {};
    let given = request::volume_id(id)?;
    if !node.is_empty() {
        request::node_id(node)?;
    }
    let Some(id) = given else {
        return Ok(gone);
    };
    if store.read(&id)?.is_none() {
        return Ok(gone);
    }
    let mut asked = None;
    let done = wait::until(LIMIT, || {
        // Looked at without a lock first: whoever answers needs it.
        if let Some(errand) = &asked
            && !is_decided(store, errand)?
        {
            return Ok(false);
        }
        match step(store, &id, node)? {
            None => Ok(true),
            Some(errand) => {
                asked = Some(errand);
                Ok(false)
            }
        }
    })?;
    match asked {
        Some(errand) if !done => Err(Error::Busy {
            key: format!("volume {id}"),
            holder: format!(
                "node {} still has a device of it and does not answer; taking it away",
                errand.node
            ),
        }),
        _ => Ok(gone),
    }
}

/// Whether there is something to decide: an answer, or nothing that is held any more.
fn is_decided(store: &Store, errand: &Errand) -> Result<bool, Error> {
    if errand::answer(store, errand)?.is_some() {
        return Ok(true);
    }
    let held =
        fence::held(&store.image(&errand.volume)).map_err(Error::storage("looking at an image's locks"))?;
    Ok(!held.contains(&errand.epoch))
}

/// Detaches if that is safe now; else what must be answered first.
fn step(store: &Store, id: &VolumeId, node: &str) -> Result<Option<Errand>, Error> {
    let _lock = file_lock::lock(&store.lock(id.as_str()), id.as_str())?;
    let Some(record) = store.read(id)? else {
        return Ok(None);
    };
    let Some(attachment) = record
        .attachment
        .clone()
        .filter(|a| node.is_empty() || a.node == node)
    else {
        return Ok(None);
    };
    let held = fence::held(&store.image(id)).map_err(Error::storage("looking at an image's locks"))?;
    // Epoch 0 is somebody who reads or removes the image, not a node.
    let live = |epoch: &u64| *epoch > 0 && !record.revoked.contains(epoch);
    let mut revoked = record.revoked.clone();
    if held.iter().any(live) {
        let errand = errand::ask(store, Errand::revoke(id, &attachment.node, attachment.epoch))?;
        match errand::answer(store, &errand)?.map(|answer| answer.outcome) {
            None => return Ok(Some(errand)),
            Some(Outcome::InUse(by)) => {
                // Asked anew by the next call: what the node says may be another thing then.
                errand::withdraw(store, id)?;
                return Err(Error::InUse {
                    id: id.to_string(),
                    by: format!("node {}: {by}; unpublish and unstage it first", attachment.node),
                });
            }
            Some(Outcome::Revoked(epochs)) => revoked.extend(epochs),
        }
    }
    // Those whose devices are gone need no mention any more.
    revoked.retain(|epoch| held.contains(epoch));
    store.write(&Record {
        attachment: None,
        revoked,
        ..record
    })?;
    errand::withdraw(store, id)?;
    Ok(None)
}
