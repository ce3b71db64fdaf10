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
    let is_live = |revoked: &[u64]| held.iter().any(|epoch| *epoch > 0 && !revoked.contains(epoch));
    if !is_live(&record.revoked) {
        detach(store, record, &held)?;
        return Ok(None);
    }
    let errand = errand::ask(store, Errand::revoke(id, &attachment.node, attachment.epoch))?;
    match errand::answer(store, &errand)?.map(|answer| answer.outcome) {
        None => Ok(Some(errand)),
        Some(Outcome::InUse(by)) => {
            // Asked anew by the next call: what the node says may be another thing then.
            errand::withdraw(store, id)?;
            Err(Error::InUse {
                id: id.to_string(),
                by: format!("node {}: {by}; unpublish and unstage it first", attachment.node),
            })
        }
        Some(Outcome::Revoked(epochs)) => {
            let record = given_up(record, &epochs);
            if is_live(&record.revoked) {
                // Somebody has come since the answer: it is no answer to that.
                errand::withdraw(store, id)?;
                return Ok(Some(errand));
            }
            detach(store, record, &held)?;
            Ok(None)
        }
    }
}

fn given_up(mut record: Record, epochs: &[u64]) -> Record {
    record.revoked.extend(epochs);
    record
}

/// Writes that nobody has the volume; by the holder of the record lock.
fn detach(store: &Store, mut record: Record, held: &[u64]) -> Result<Record, Error> {
    // Those whose devices are gone need no mention any more.
    record.revoked.retain(|epoch| held.contains(epoch));
    record.attachment = None;
    store.release(&record)?;
    errand::withdraw(store, &record.id)?;
    Ok(record)
}

/// The record as it is if a detachment that was cut off is brought to its end: what was answered to it binds, because the
/// node can no longer write. By the holder of the record lock.
///
/// # Errors
/// The failed call.
pub(super) fn settled(store: &Store, record: Record) -> Result<Record, Error> {
    let Some(epoch) = record.attachment.as_ref().map(|a| a.epoch) else {
        return Ok(record);
    };
    let Some(errand) = errand::pending(store, &record.id)?.filter(|errand| errand.epoch == epoch) else {
        return Ok(record);
    };
    match errand::answer(store, &errand)?.map(|answer| answer.outcome) {
        Some(Outcome::Revoked(epochs)) => {
            let held = fence::held(&store.image(&record.id))
                .map_err(Error::storage("looking at an image's locks"))?;
            detach(store, given_up(record, &epochs), &held)
        }
        Some(Outcome::InUse(_)) | None => Ok(record),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::volume::capability::{Access, Capability, Mode};
    use crate::volume::record::{Attachment, Fingerprint, Format, State};

    fn attached(store: &Store) -> Record {
        let id = VolumeId::of_name("a");
        let capability = Capability {
            access: Access::Block,
            fs: None,
            mount_flags: Vec::new(),
            mode: Mode::Writer,
            mount_group: None,
        };
        let record = Record {
            version: 1,
            id: id.clone(),
            name: String::from("a"),
            state: State::Ready,
            size_bytes: 4096,
            fingerprint: Fingerprint {
                capabilities: vec![capability.clone()],
                parameters: BTreeMap::new(),
                mutable_parameters: BTreeMap::new(),
                source: None,
            },
            format: Format::Blank,
            epoch: 3,
            attachment: Some(Attachment {
                node: String::from("n1"),
                epoch: 3,
                read_only: false,
                asked_read_only: None,
                capability,
            }),
            revoked: Vec::new(),
            attributes: crate::volume::attributes::Attributes::default(),
            segments: BTreeMap::new(),
        };
        store.write(&record).unwrap();
        std::fs::write(store.image(&id), b"").unwrap();
        record
    }

    /// A detachment that was answered, and cut off before its record: whoever comes next brings it to its end.
    #[test]
    fn an_answer_binds_whoever_comes_next() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        let record = attached(&store);
        let dead = fence::hold(&store.image(&record.id), 3).unwrap().unwrap();
        assert_eq!(settled(&store, record.clone()).unwrap(), record);
        let errand = errand::ask(&store, Errand::revoke(&record.id, "n1", 3)).unwrap();
        assert_eq!(
            settled(&store, record.clone()).unwrap(),
            record,
            "not answered yet"
        );
        errand::reply(&store, &errand, "n2", Outcome::Revoked(vec![3])).unwrap();
        let after = settled(&store, record.clone()).unwrap();
        assert_eq!(
            (after.attachment.is_none(), after.revoked.as_slice()),
            (true, &[3][..])
        );
        assert_eq!(store.read(&record.id).unwrap(), Some(after.clone()));
        assert_eq!(errand::volumes(&store).unwrap(), Vec::new());
        // When its device is gone at last, nothing of it is remembered.
        drop(dead);
        store
            .write(&Record {
                attachment: record.attachment.clone(),
                ..after
            })
            .unwrap();
        assert!(step(&store, &record.id, "n1").unwrap().is_none());
        assert_eq!(
            store.read(&record.id).unwrap().unwrap().revoked,
            Vec::<u64>::new()
        );
    }

    /// An answer is to what was there when it was given, not to what has come since.
    #[test]
    fn an_answer_is_not_to_what_came_later() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        let record = attached(&store);
        let _dead = fence::hold(&store.image(&record.id), 3).unwrap().unwrap();
        let errand = step(&store, &record.id, "n1").unwrap().unwrap();
        errand::reply(&store, &errand, "n2", Outcome::Revoked(vec![3])).unwrap();
        let _alive = fence::hold(&store.image(&record.id), 2).unwrap().unwrap();
        assert!(step(&store, &record.id, "n1").unwrap().is_some());
        assert!(store.read(&record.id).unwrap().unwrap().attachment.is_some());
    }
}
