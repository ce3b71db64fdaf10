//! Every record of the folder in memory, as right as the folder at the moment of each look: what a call asks of all volumes
//! costs the same with ten of them and with ten thousand.
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Bound;
use std::sync::Arc;

use super::record::{Record, Source, State};
use super::store::Store;
use super::watch::{Changed, Watch};
use crate::config::Segments;
use crate::error::Error;
use crate::id::VolumeId;

/// Threads that read where everything must be read.
const READERS: usize = 4;
/// So many records are read faster by several threads than by one.
const MANY: usize = 256;

/// What is known of all volumes.
#[derive(Debug)]
pub struct Index {
    watch: Watch,
    complete: bool,
    known: Known,
}

/// What of a record the calls for all volumes show: the whole of ten thousand would be most of what the driver has resident.
#[derive(Clone, Debug)]
pub struct Brief {
    /// What is meant to become of the volume.
    pub state: State,
    /// Its size.
    pub size_bytes: u64,
    /// The node that has it.
    pub node: Option<Arc<str>>,
    /// What its content was copied from.
    pub source: Option<Box<Source>>,
    /// Where it is accessible from; everywhere, if none.
    pub segments: Option<Arc<Segments>>,
}

impl From<Record> for Brief {
    fn from(record: Record) -> Self {
        Self {
            state: record.state,
            size_bytes: record.size_bytes,
            node: record.attachment.map(|attachment| attachment.node.into()),
            source: record.fingerprint.source.map(Box::new),
            segments: Some(record.segments)
                .filter(|segments| !segments.is_empty())
                .map(Arc::new),
        }
    }
}

#[derive(Debug, Default)]
struct Known {
    volumes: BTreeMap<VolumeId, Brief>,
    unreadable: BTreeMap<VolumeId, String>,
    promised_bytes: u64,
    attached: HashMap<Arc<str>, u32>,
    /// Each once, for all volumes there; the nodes' places are few.
    places: BTreeSet<Arc<Segments>>,
}

impl Index {
    /// Knows nothing before its first [`Index::refresh`], but misses nothing from now on.
    pub(super) fn new(store: &Store) -> Self {
        Self {
            watch: Watch::begin(&store.volumes()),
            complete: false,
            known: Known::default(),
        }
    }

    /// Reads what changed since the last time.
    pub(super) fn refresh(&mut self, store: &Store) -> Result<(), Error> {
        match self.watch.look() {
            Changed::These(ids) if self.complete => {
                // A change that was seen and could not be taken must not be forgotten.
                self.complete = false;
                for id in ids {
                    let found = brief(store, &id);
                    self.known.learn(id, found)?;
                }
                self.complete = true;
            }
            Changed::These(_) | Changed::Everything => {
                // Until all of it is known, nothing is: an error below leaves this for the next look.
                self.complete = false;
                self.known = Known::default();
                let ids = store.ids()?;
                for (id, found) in ids.iter().zip(read_all(store, &ids)) {
                    self.known.learn(id.clone(), found)?;
                }
                self.complete = true;
            }
        }
        Ok(())
    }

    /// Bytes promised to volumes, those included that are being made or deleted.
    pub fn promised_bytes(&self) -> u64 {
        self.known.promised_bytes
    }

    /// How many volumes are attached to `node`.
    pub fn attached(&self, node: &str) -> u32 {
        self.known.attached.get(node).copied().unwrap_or(0)
    }

    /// How many records can be read.
    pub fn len(&self) -> usize {
        self.known.volumes.len()
    }

    /// Whether there is no record that can be read.
    pub fn is_empty(&self) -> bool {
        self.known.volumes.is_empty()
    }

    /// The volumes after `id`, or from the first, in the order of ids.
    pub fn after(&self, id: Option<&VolumeId>) -> impl Iterator<Item = (&VolumeId, &Brief)> {
        let from = id.map_or(Bound::Unbounded, |id| Bound::Excluded(id.clone()));
        self.known.volumes.range((from, Bound::Unbounded))
    }

    /// The records that cannot be read, each with the reason.
    pub fn unreadable(&self) -> impl Iterator<Item = (&VolumeId, &str)> {
        self.known
            .unreadable
            .iter()
            .map(|(id, reason)| (id, reason.as_str()))
    }
}

/// The record of `id`, made brief where it is read, so that of many there is only one whole at a time.
fn brief(store: &Store, id: &VolumeId) -> Result<Option<Brief>, Error> {
    Ok(store.read(id)?.map(Brief::from))
}

/// Reads the records of `ids`, by several threads where there are many; in the order of `ids`.
fn read_all(store: &Store, ids: &[VolumeId]) -> Vec<Result<Option<Brief>, Error>> {
    let read = |ids: &[VolumeId]| -> Vec<_> { ids.iter().map(|id| brief(store, id)).collect() };
    if ids.len() < MANY {
        return read(ids);
    }
    std::thread::scope(|scope| {
        let share = ids.len().div_ceil(READERS);
        let readers: Vec<_> = ids
            .chunks(share)
            .map(|ids| (ids, scope.spawn(move || read(ids))))
            .collect();
        // A reader that broke has read nothing: its share is read here.
        readers
            .into_iter()
            .flat_map(|(ids, reader)| reader.join().unwrap_or_else(|_| read(ids)))
            .collect()
    })
}

impl Known {
    /// Takes the record of `id` as it was found in the folder.
    fn learn(&mut self, id: VolumeId, found: Result<Option<Brief>, Error>) -> Result<(), Error> {
        if let Some(old) = self.volumes.remove(&id) {
            self.promised_bytes = self.promised_bytes.saturating_sub(old.size_bytes);
            if let Some(node) = &old.node
                && let Some(count) = self.attached.get_mut(node)
            {
                *count -= 1;
                if *count == 0 {
                    self.attached.remove(node);
                }
            }
        }
        self.unreadable.remove(&id);
        match found {
            Ok(None) => {}
            Ok(Some(mut volume)) => {
                self.promised_bytes = self.promised_bytes.saturating_add(volume.size_bytes);
                self.share(&mut volume);
                if let Some(node) = &volume.node {
                    *self.attached.entry(Arc::clone(node)).or_default() += 1;
                }
                self.volumes.insert(id, volume);
            }
            Err(error @ Error::Unreadable { .. }) => {
                tracing::warn!(volume = %id, error = error.message(), "record left out");
                self.unreadable.insert(id, error.message());
            }
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// Lets the volume have the names that others have, too, instead of its own.
    fn share(&mut self, volume: &mut Brief) {
        if let Some(node) = &mut volume.node
            && let Some((known, _)) = self.attached.get_key_value(node)
        {
            *node = Arc::clone(known);
        }
        if let Some(segments) = &mut volume.segments {
            match self.places.get(segments) {
                Some(known) => *segments = Arc::clone(known),
                None => drop(self.places.insert(Arc::clone(segments))),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::super::record::Format;
    use super::super::space;
    use super::*;

    fn record(name: &str, size_bytes: u64) -> Record {
        let text = format!(
            r#"{{"version":1,"id":"{}","name":"{name}","state":"creating","size_bytes":{size_bytes},
                "fingerprint":{{"capabilities":[],"parameters":{{}}}}}}"#,
            VolumeId::of_name(name)
        );
        serde_json::from_str(&text).unwrap()
    }

    fn sizes(store: &Store) -> Vec<u64> {
        let mut sizes: Vec<_> = store
            .look(|all| all.after(None).map(|(_, volume)| volume.size_bytes).collect())
            .unwrap();
        sizes.sort();
        assert_eq!(
            store.look(Index::promised_bytes).unwrap(),
            sizes.iter().sum::<u64>()
        );
        assert_eq!(store.look(Index::len).unwrap(), sizes.len());
        sizes
    }

    /// Two stores on one folder are two processes: each has its own index and its own open files.
    #[test]
    fn what_another_process_did_is_seen_at_the_next_look() {
        let folder = tempfile::tempdir().unwrap();
        let (ours, theirs) = (
            Store::open(folder.path()).unwrap(),
            Store::open(folder.path()).unwrap(),
        );
        assert!(sizes(&theirs).is_empty());
        ours.write(&record("a", 1)).unwrap();
        assert_eq!(sizes(&theirs), [1]);
        theirs.write(&record("b", 2)).unwrap();
        theirs.write(&record("a", 4)).unwrap();
        assert_eq!(sizes(&ours), [2, 4]);
        ours.erase(&VolumeId::of_name("a")).unwrap();
        assert_eq!(sizes(&theirs), [2]);
        // Edited in its place, by hand.
        let path = theirs.volumes().join(format!("{}.json", VolumeId::of_name("b")));
        std::fs::write(&path, serde_json::to_vec(&record("b", 8)).unwrap()).unwrap();
        assert_eq!(sizes(&ours), [8]);
    }

    #[test]
    fn attachments_are_counted_by_node() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        let attached = |node: Option<&str>| Record {
            attachment: node.map(|node| {
                let text = format!(
                    r#"{{"node":"{node}","epoch":1,"read_only":false,
                        "capability":{{"access":"block","fs":null,"mode":"writer"}}}}"#
                );
                serde_json::from_str(&text).unwrap()
            }),
            state: State::Ready,
            format: Format::Blank,
            ..record("a", 1)
        };
        let counts = || ["n1", "n2"].map(|node| store.look(|all| all.attached(node)).unwrap());
        for (node, expected) in [
            (Some("n1"), [1, 0]),
            (Some("n1"), [1, 0]),
            (Some("n2"), [0, 1]),
            (None, [0, 0]),
        ] {
            store.write(&attached(node)).unwrap();
            assert_eq!(counts(), expected);
        }
    }

    #[test]
    fn records_that_cannot_be_read_are_named_and_cost_no_other() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        for name in [
            "whole", "empty", "torn", "foreign", "newer", "folder", "pipe", "link",
        ] {
            store.write(&record(name, 1)).unwrap();
        }
        let path = |name: &str| store.volumes().join(format!("{}.json", VolumeId::of_name(name)));
        std::fs::write(path("empty"), b"").unwrap();
        let torn = std::fs::File::options().write(true).open(path("torn")).unwrap();
        torn.set_len(40).unwrap();
        drop(torn);
        std::fs::copy(path("whole"), path("foreign")).unwrap();
        let newer = std::fs::File::options().write(true).open(path("newer")).unwrap();
        newer.write_all_at(b"{\"version\":9", 0).unwrap();
        drop(newer);
        for name in ["folder", "pipe", "link"] {
            std::fs::remove_file(path(name)).unwrap();
        }
        std::fs::create_dir(path("folder")).unwrap();
        nix::unistd::mkfifo(&path("pipe"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        std::os::unix::fs::symlink(path("whole"), path("link")).unwrap();
        for _ in 0..2 {
            assert_eq!(sizes(&store), [1]);
            let named: Vec<_> = store
                .look(|all| all.unreadable().map(|(id, _)| id.clone()).collect())
                .unwrap();
            let mut expected =
                ["empty", "torn", "foreign", "newer", "folder", "pipe", "link"].map(VolumeId::of_name);
            expected.sort();
            assert_eq!(named, expected);
            // Seen alike by whoever comes new.
            assert_eq!(sizes(&Store::open(folder.path()).unwrap()), [1]);
        }
    }

    /// More events than the kernel keeps (fs.inotify.max_queued_events).
    #[test]
    fn lost_events_are_made_up_for() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        assert!(sizes(&store).is_empty());
        let kept = std::fs::read_to_string("/proc/sys/fs/inotify/max_queued_events").unwrap();
        let path = |n: u64| folder.path().join("volumes").join(format!("other.{n}"));
        std::fs::write(path(0), b"").unwrap();
        for n in 0..kept.trim().parse::<u64>().unwrap() {
            std::fs::rename(path(n), path(n + 1)).unwrap();
        }
        store.write(&record("a", 1)).unwrap();
        assert_eq!(sizes(&store), [1]);
        store.write(&record("b", 2)).unwrap();
        assert_eq!(sizes(&store), [1, 2]);
    }

    #[test]
    fn without_a_watch_every_look_reads_the_folder() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        let mut index = Index {
            watch: Watch::absent(&store.volumes()),
            ..Index::new(&store)
        };
        for n in 1..4 {
            store.write(&record(&n.to_string(), 1)).unwrap();
            index.refresh(&store).unwrap();
            assert_eq!((index.len(), index.promised_bytes()), (n, n as u64));
        }
    }

    /// Two processes with eight calls each take the last bytes: not one too many is promised.
    #[test]
    fn nothing_is_promised_twice() {
        let folder = tempfile::tempdir().unwrap();
        let stores = [
            Store::open(folder.path()).unwrap(),
            Store::open(folder.path()).unwrap(),
        ];
        std::thread::scope(|scope| {
            for call in 0..16 {
                let store = &stores[call % 2];
                scope.spawn(move || {
                    for n in 0..10 {
                        let result = store.write_if(&record(&format!("{call}.{n}"), 1), |all| {
                            space::reserve(100, all.promised_bytes(), 1)
                        });
                        if let Err(error) = result {
                            assert_eq!(error.code(), tonic::Code::ResourceExhausted);
                        }
                    }
                });
            }
        });
        for store in &stores {
            assert_eq!(sizes(store).len(), 100);
        }
        let left = std::fs::read_dir(folder.path().join("volumes")).unwrap().count();
        assert_eq!(left, 100, "a refused promise leaves a file");
    }
}
