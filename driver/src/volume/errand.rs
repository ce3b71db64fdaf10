//! What a controller, which has no rights on a node, asks of the node plugins: a durable request in the data folder, and the
//! answer of whoever did it. Both survive every crash, and are asked and answered again without harm.
//!
//! A request is written, answered and withdrawn under the volume's record lock. One that nobody answered in time is void:
//! its deadline is in it. One that was answered binds until it is withdrawn.
use std::fs;
use std::io;
use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use super::files::{self, remove, replace};
use super::store::Store;
use crate::error::Error;
use crate::id::VolumeId;

/// How long an errand that nobody answers stands.
const LIFE: Duration = Duration::from_secs(60);

/// What is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// To see to it that the attachment can no longer write.
    Revoke,
}

/// A request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Errand {
    /// The volume.
    pub volume: VolumeId,
    /// What is asked.
    pub kind: Kind,
    /// The node that has the volume.
    pub node: String,
    /// Its attachment.
    pub epoch: u64,
    /// Tells this request from the one before: when it was made, in nanoseconds since 1970.
    pub asked: u64,
    /// When it is void if nobody answered, in nanoseconds since 1970.
    pub deadline: u64,
}

/// What became of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// The node that has the volume lives and uses it.
    InUse(String),
    /// These attachments can no longer write, whatever becomes of whoever has them.
    Revoked(Vec<u64>),
}

/// An answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// Which request it is to.
    pub asked: u64,
    /// The node that gives it.
    pub by: String,
    /// What became of it.
    pub outcome: Outcome,
}

fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

impl Errand {
    /// A request that begins now.
    pub fn revoke(volume: &VolumeId, node: &str, epoch: u64) -> Self {
        let asked = now();
        Self {
            volume: volume.clone(),
            kind: Kind::Revoke,
            node: node.to_owned(),
            epoch,
            asked,
            deadline: asked.saturating_add(u64::try_from(LIFE.as_nanos()).unwrap_or(u64::MAX)),
        }
    }

    fn is_over(&self) -> bool {
        now() >= self.deadline
    }
}

/// The folder of requests and answers.
pub fn folder(store: &Store) -> PathBuf {
    store.root().join("requests")
}

fn request_file(store: &Store, volume: &VolumeId) -> PathBuf {
    folder(store).join(format!("{volume}.json"))
}

fn answer_file(store: &Store, volume: &VolumeId) -> PathBuf {
    folder(store).join(format!("{volume}.answer.json"))
}

/// What cannot be read was never promised to anybody, and is written again.
fn read<T: for<'de> Deserialize<'de>>(path: &std::path::Path) -> io::Result<Option<T>> {
    match files::read(path) {
        Ok(text) => Ok(text.and_then(|text| serde_json::from_slice(&text).ok())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

fn written(path: &std::path::Path, value: &impl Serialize) -> io::Result<()> {
    replace(path, &serde_json::to_vec(value)?)
}

/// The request that stands for a volume, answered or not.
///
/// # Errors
/// If it cannot be read.
pub fn pending(store: &Store, volume: &VolumeId) -> Result<Option<Errand>, Error> {
    let failed = || Error::storage(format!("reading a request for {volume}"));
    let Some(found) = read::<Errand>(&request_file(store, volume)).map_err(failed())? else {
        return Ok(None);
    };
    if found.is_over() && answer(store, &found)?.is_none() {
        return Ok(None);
    }
    Ok(Some(found))
}

/// The answer to a request, if there is one.
///
/// # Errors
/// If it cannot be read.
pub fn answer(store: &Store, errand: &Errand) -> Result<Option<Answer>, Error> {
    let found: Option<Answer> = read(&answer_file(store, &errand.volume))
        .map_err(Error::storage(format!("reading an answer for {}", errand.volume)))?;
    Ok(found.filter(|answer| answer.asked == errand.asked))
}

/// Writes a request, unless the same one stands; by the holder of the record lock. Returns the one that stands.
///
/// # Errors
/// The failed call.
pub fn ask(store: &Store, errand: Errand) -> Result<Errand, Error> {
    if let Some(found) = pending(store, &errand.volume)?
        && (found.kind, found.epoch, &found.node) == (errand.kind, errand.epoch, &errand.node)
    {
        return Ok(found);
    }
    written(&request_file(store, &errand.volume), &errand).map_err(Error::storage("writing a request"))?;
    Ok(errand)
}

/// Writes the answer to a request that still stands; by the holder of the record lock. Whether it stood.
///
/// # Errors
/// The failed call.
pub fn reply(store: &Store, errand: &Errand, by: &str, outcome: Outcome) -> Result<bool, Error> {
    if pending(store, &errand.volume)?.as_ref() != Some(errand) || answer(store, errand)?.is_some() {
        return Ok(false);
    }
    let answer = Answer {
        asked: errand.asked,
        by: by.to_owned(),
        outcome,
    };
    written(&answer_file(store, &errand.volume), &answer).map_err(Error::storage("writing an answer"))?;
    Ok(true)
}

/// Takes a request back, with its answer; by the holder of the record lock.
///
/// # Errors
/// The failed call.
pub fn withdraw(store: &Store, volume: &VolumeId) -> Result<(), Error> {
    // In this order: an answer without its request answers nothing.
    remove(&request_file(store, volume))
        .and_then(|()| remove(&answer_file(store, volume)))
        .map_err(Error::storage("withdrawing a request"))
}

/// Removes whatever lies in the folder for a volume; by the holder of the record lock.
///
/// # Errors
/// The failed call.
pub fn clear(store: &Store, volume: &VolumeId) -> Result<(), Error> {
    let failed = || Error::storage(format!("clearing the requests for {volume}"));
    withdraw(store, volume)?;
    for entry in fs::read_dir(folder(store)).map_err(failed())? {
        let entry = entry.map_err(failed())?;
        let name = entry.file_name();
        if name.to_str().is_some_and(|n| n.starts_with(volume.as_str())) {
            remove(&entry.path()).map_err(failed())?;
        }
    }
    Ok(())
}

/// Every volume for which something lies in the folder.
///
/// # Errors
/// If it cannot be listed.
pub fn volumes(store: &Store) -> Result<Vec<VolumeId>, Error> {
    let failed = || Error::storage("listing requests");
    let mut found = Vec::new();
    for entry in fs::read_dir(folder(store)).map_err(failed())? {
        let name = entry.map_err(failed())?.file_name();
        found.extend(
            name.to_str()
                .and_then(|n| n.split('.').next())
                .and_then(VolumeId::parse),
        );
    }
    found.sort();
    found.dedup();
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn site() -> (tempfile::TempDir, Store, VolumeId) {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        (folder, store, VolumeId::of_name("a"))
    }

    #[test]
    fn asked_twice_is_asked_once_and_answered_once() {
        let (_folder, store, id) = site();
        let first = ask(&store, Errand::revoke(&id, "n1", 3)).unwrap();
        assert_eq!(ask(&store, Errand::revoke(&id, "n1", 3)).unwrap(), first);
        assert_eq!(pending(&store, &id).unwrap(), Some(first.clone()));
        assert!(reply(&store, &first, "n2", Outcome::Revoked(vec![3])).unwrap());
        assert!(!reply(&store, &first, "n1", Outcome::InUse(String::from("x"))).unwrap());
        assert_eq!(answer(&store, &first).unwrap().unwrap().by, "n2");
        assert_eq!(volumes(&store).unwrap(), vec![id.clone()]);
        withdraw(&store, &id).unwrap();
        assert_eq!(volumes(&store).unwrap(), []);
        assert!(!reply(&store, &first, "n2", Outcome::Revoked(vec![3])).unwrap());
    }

    #[test]
    fn a_pipe_in_a_requests_place_is_no_request_and_is_waited_for_by_nobody() {
        let (_folder, store, id) = site();
        nix::unistd::mkfifo(&request_file(&store, &id), nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert_eq!(pending(&store, &id).unwrap(), None);
        let asked = ask(&store, Errand::revoke(&id, "n1", 3)).unwrap();
        assert_eq!(pending(&store, &id).unwrap(), Some(asked));
    }

    #[test]
    fn an_answer_to_an_earlier_request_answers_no_other() {
        let (_folder, store, id) = site();
        let first = ask(&store, Errand::revoke(&id, "n1", 3)).unwrap();
        reply(&store, &first, "n2", Outcome::Revoked(vec![3])).unwrap();
        let second = ask(&store, Errand::revoke(&id, "n1", 4)).unwrap();
        assert_ne!(first.asked, second.asked);
        assert_eq!(answer(&store, &second).unwrap(), None);
    }

    #[test]
    fn unanswered_it_is_void_in_time_and_answered_it_binds() {
        let (_folder, store, id) = site();
        let late = |epoch| Errand {
            deadline: 0,
            ..Errand::revoke(&id, "n1", epoch)
        };
        let void = ask(&store, late(3)).unwrap();
        assert_eq!(pending(&store, &id).unwrap(), None);
        assert!(!reply(&store, &void, "n2", Outcome::Revoked(vec![3])).unwrap());
        let standing = ask(&store, Errand::revoke(&id, "n1", 3)).unwrap();
        reply(&store, &standing, "n2", Outcome::Revoked(vec![3])).unwrap();
        let over = Errand {
            deadline: 0,
            ..standing
        };
        written(&request_file(&store, &id), &over).unwrap();
        assert_eq!(pending(&store, &id).unwrap(), Some(over));
    }

    #[test]
    fn a_torn_file_is_nothing() {
        let (_folder, store, id) = site();
        fs::write(request_file(&store, &id), b"{\"vol").unwrap();
        assert_eq!(pending(&store, &id).unwrap(), None);
        ask(&store, Errand::revoke(&id, "n1", 1)).unwrap();
        assert!(pending(&store, &id).unwrap().is_some());
    }
}
