//! Taking a volume from a node that does not answer any more: whoever has its devices, there or anywhere on this kernel, can
//! no longer write to it, and finds that out at once.
use std::collections::HashMap;
use std::path::Path;
use std::time::{Duration, Instant};

use super::site::Site;
use super::tag::{Tag, Use};
use crate::error::Error;
use crate::id::VolumeId;
use crate::kernel::{LoopStatus, filesystem, loop_device};
use crate::volume::errand::{self, Errand, Kind, Outcome};
use crate::volume::fence;
use crate::volume::nodes::{self, Node};

/// How long the node that has a volume may take to answer for it, before another one acts in its place.
const PATIENCE: Duration = Duration::from_secs(3);
/// How long a request that could not be answered rests.
const AGAIN: Duration = Duration::from_millis(250);
/// How often the folder of requests is looked at.
const PERIOD: Duration = Duration::from_millis(50);

/// What is done about one request.
#[derive(Debug)]
struct Care {
    /// Since when it is known here, by the clock that no one sets.
    since: Instant,
    /// Not tried again before.
    next: Instant,
    /// What was in the way the last time.
    trouble: String,
}

/// What one node does about the requests in the data folder.
#[derive(Debug)]
pub(super) struct Errands {
    site: Site,
    known: Node,
    said: Option<Instant>,
    cares: HashMap<(VolumeId, u64), Care>,
    trouble: String,
}

impl Errands {
    pub(super) fn new(site: Site, known: Node) -> Self {
        Self {
            site,
            known,
            said: None,
            cares: HashMap::new(),
            trouble: String::new(),
        }
    }

    /// Looks after requests for as long as the process lives; those that a crash left are among them.
    pub(super) fn watch(mut self) {
        loop {
            let trouble = self.round().err().map_or(String::new(), |error| error.message());
            // Said once, not twenty times a second.
            if trouble != self.trouble && !trouble.is_empty() {
                tracing::warn!(error = trouble, "requests to this node");
            }
            self.trouble = trouble;
            // Nobody unparks this thread: it is a period, because nothing tells a folder's change across machines.
            std::thread::park_timeout(PERIOD);
        }
    }

    /// Does what can be done now.
    fn round(&mut self) -> Result<(), Error> {
        // By this thread, because a node that does not look after requests is no place for volumes either.
        if self.said.is_none_or(|said| said.elapsed() >= nodes::PERIOD) {
            self.said = Some(Instant::now());
            self.site
                .store
                .node_runs(&self.site.node, &self.known)
                .map_err(Error::storage("saying that the node runs"))?;
        }
        let mut standing = Vec::new();
        for volume in errand::volumes(&self.site.store)? {
            if let Some(found) = errand::pending(&self.site.store, &volume)?
                && errand::answer(&self.site.store, &found)?.is_none()
            {
                standing.push(found);
            }
        }
        self.cares
            .retain(|(volume, asked), _| standing.iter().any(|e| e.volume == *volume && e.asked == *asked));
        for errand in standing {
            let now = Instant::now();
            let fresh = || Care {
                since: now,
                next: now,
                trouble: String::new(),
            };
            let key = (errand.volume.clone(), errand.asked);
            let care = self.cares.entry(key).or_insert_with(fresh);
            if now < care.next {
                continue;
            }
            care.next = now + AGAIN;
            let done = match errand.kind {
                Kind::Revoke if errand.node == self.site.node => answer_for_self(&self.site, &errand),
                Kind::Revoke if care.since.elapsed() >= PATIENCE => answer_for_other(&self.site, &errand),
                Kind::Revoke => Ok(()),
            };
            let trouble = done.err().map_or(String::new(), |error| error.message());
            if trouble != care.trouble && !trouble.is_empty() {
                tracing::warn!(volume = %errand.volume, node = errand.node, error = trouble, "request");
            }
            care.trouble = trouble;
        }
        Ok(())
    }
}

/// The node itself: what it still uses is not taken from it.
pub(super) fn answer_for_self(site: &Site, errand: &Errand) -> Result<(), Error> {
    let own = site.loops(&errand.volume)?;
    let uses = own
        .iter()
        .find(|own| own.tag.purpose == Use::Staged && own.tag.epoch == errand.epoch);
    let outcome = match uses {
        Some(own) if own.status.blind => Outcome::Revoked(vec![errand.epoch]),
        Some(own) => {
            let mounts = site.mounts()?;
            let paths = super::mounted::elsewhere(&mounts, [own], Path::new(""));
            let shown: Vec<_> = paths.iter().map(|p| p.display().to_string()).collect();
            Outcome::InUse(match shown.as_slice() {
                [] => String::from("staged there"),
                paths => format!("mounted there at {}", paths.join(", ")),
            })
        }
        // Between its lock and its device, a call of this node is on its way.
        None if fence::held(&site.store.image(&errand.volume))
            .map_err(Error::storage("looking at locks"))?
            .contains(&errand.epoch) =>
        {
            Outcome::InUse(String::from("being staged there"))
        }
        None => return Ok(()),
    };
    let _record = site.record_lock(&errand.volume)?;
    errand::reply(&site.store, errand, &site.node, outcome).map(drop)
}

/// Another node, in the place of one that does not answer.
pub(super) fn answer_for_other(site: &Site, errand: &Errand) -> Result<(), Error> {
    let id = &errand.volume;
    let revoked = all_up_to(site, id, errand.epoch)?;
    let _record = site.record_lock(id)?;
    let Some(record) = site.store.read(id)? else {
        return Ok(());
    };
    let held = fence::held(&site.store.image(id)).map_err(Error::storage("looking at locks"))?;
    let live = |epoch: &&u64| **epoch > 0 && !record.revoked.contains(epoch) && !revoked.contains(epoch);
    if let Some(epoch) = held.iter().find(live) {
        // Its device is not on this kernel, or not made yet: nothing here proves that it cannot write.
        return Err(Error::Busy {
            key: format!("volume {id}"),
            holder: format!(
                "attachment {epoch} to node {}, whose device is not on this machine,",
                errand.node
            ),
        });
    }
    if errand::reply(&site.store, errand, &site.node, Outcome::Revoked(revoked))? {
        tracing::warn!(volume = %id, node = errand.node, epoch = errand.epoch, "taken from a node that did not answer");
    }
    Ok(())
}

/// The volume's loop devices of whatever node, with what they were made for.
fn devices(site: &Site, id: &VolumeId) -> Result<Vec<(LoopStatus, Tag)>, Error> {
    let found = loop_device::of_image(site.kernel.as_ref(), &site.store.image(id))
        .map_err(Error::half_done("looking for loop devices"))?;
    Ok(found
        .into_iter()
        .filter_map(|status| Tag::parse(&status.tag).map(|tag| (status, tag)))
        .collect())
}

/// Ends every device of the attachments up to `epoch`; those of them that had one.
fn all_up_to(site: &Site, id: &VolumeId, epoch: u64) -> Result<Vec<u64>, Error> {
    let mut ended = Vec::new();
    for (status, tag) in devices(site, id)? {
        if tag.epoch <= epoch && tag.purpose == Use::Staged {
            end(site, &status)?;
            ended.push(tag.epoch);
        }
    }
    Ok(ended)
}

/// Makes sure that what the record calls revoked is so: a new stage trusts the kernel alone.
pub(super) fn confirm(site: &Site, id: &VolumeId, revoked: &[u64]) -> Result<(), Error> {
    for (status, tag) in devices(site, id)? {
        if revoked.contains(&tag.epoch) && tag.purpose == Use::Staged {
            end(site, &status)?;
        }
    }
    Ok(())
}

/// Lets a device never write again. It stays where it is until its own node detaches it: what is bound, mapped or made a
/// node of by its number must not find another volume there.
fn end(site: &Site, status: &LoopStatus) -> Result<(), Error> {
    if status.blind {
        return Ok(());
    }
    let kernel = site.kernel.as_ref();
    let device = kernel
        .open_loop(status.number)
        .map_err(Error::half_done("opening a device that is to be revoked"))?;
    // While it is open its number goes to nobody else; before, it may have.
    if !loop_device::is_there(kernel, status).map_err(Error::half_done("looking at a device again"))? {
        return Ok(());
    }
    // What was written is written out first, and the filesystem says at once that it is over. Only where this driver has
    // mounted it: what a pod has put on a raw device is not mounted here.
    let mut is_down = false;
    if status.flags.autoclear
        && let Ok(Some(found)) = filesystem::probe(&device.file)
    {
        match kernel.shut_down(&device, found.fs.name()) {
            Ok(()) => is_down = true,
            Err(error) => {
                tracing::warn!(device = status.number, error = %error, "shutting a filesystem down");
            }
        }
    }
    match kernel.blind(&device) {
        // Kernels after 6.18 may refuse it while a filesystem has the device; that one is down then.
        Err(error) if error.errno() == Some(libc::EBUSY) && is_down => Ok(()),
        other => other.map_err(Error::half_done("revoking a loop device")),
    }
}
