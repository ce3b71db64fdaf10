//! Which records changed since the last look, whoever changed them: inotify(7) on the volumes folder.
//!
//! The kernel queues an event before rename(2) or unlink(2) returns, so a look that begins after another process's change
//! has ended sees it. Every process on the data folder runs on one kernel (docs/adr/0009); where the folder's filesystem may
//! be changed by another machine, or no watch is to be had, everything counts as changed at every look.
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};

use super::store::record_id;
use crate::id::VolumeId;

/// Filesystems whose changes on another machine this kernel does not see: 9P, NFS, CIFS, SMB2, FUSE (virtiofs too), Ceph,
/// GFS2, OCFS2, Lustre.
const SHARED: [i64; 9] = [
    0x0102_1997,
    0x6969,
    0xFF53_4D42,
    0xFE53_4D42,
    0x6573_5546,
    0x00C3_6400,
    0x0116_1970,
    0x7461_636F,
    0x0BD0_0BD0,
];

/// What a look found.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Changed {
    /// The records of these volumes.
    These(BTreeSet<VolumeId>),
    /// Perhaps every one.
    Everything,
}

/// A watch on the folder of records.
#[derive(Debug)]
pub(super) struct Watch {
    folder: PathBuf,
    inotify: Option<Inotify>,
}

impl Watch {
    /// Begins to watch; changes from here on are seen.
    pub(super) fn begin(folder: &Path) -> Self {
        let inotify = match watched(folder) {
            Ok(inotify) => inotify,
            Err(errno) => {
                tracing::warn!(%errno, "no watch on the volumes folder: every call reads every record");
                None
            }
        };
        Self {
            folder: folder.to_owned(),
            inotify,
        }
    }

    /// A watch that sees nothing.
    #[cfg(test)]
    pub(super) fn absent(folder: &Path) -> Self {
        Self {
            folder: folder.to_owned(),
            inotify: None,
        }
    }

    /// What changed since the last look.
    pub(super) fn look(&mut self) -> Changed {
        let Some(inotify) = &self.inotify else {
            return Changed::Everything;
        };
        let mut these = BTreeSet::new();
        loop {
            match inotify.read_events() {
                Ok(events) => {
                    for event in events {
                        let lost = AddWatchFlags::IN_Q_OVERFLOW
                            | AddWatchFlags::IN_IGNORED
                            | AddWatchFlags::IN_UNMOUNT;
                        if event.mask.intersects(lost) {
                            // Watched anew before everything is read: no change falls between the two.
                            *self = Self::begin(&self.folder);
                            return Changed::Everything;
                        }
                        these.extend(event.name.as_deref().and_then(record_id));
                    }
                }
                Err(Errno::EAGAIN) => return Changed::These(these),
                Err(Errno::EINTR) => {}
                Err(errno) => {
                    tracing::warn!(%errno, "the watch on the volumes folder is lost");
                    *self = Self::begin(&self.folder);
                    return Changed::Everything;
                }
            }
        }
    }
}

fn watched(folder: &Path) -> Result<Option<Inotify>, Errno> {
    let kind = nix::sys::statfs::statfs(folder)?.filesystem_type().0;
    if SHARED.contains(&kind) {
        return Ok(None);
    }
    let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)?;
    // A record comes by rename; the others are for hands that edit one in its place.
    let flags = AddWatchFlags::IN_MOVE
        | AddWatchFlags::IN_DELETE
        | AddWatchFlags::IN_CLOSE_WRITE
        | AddWatchFlags::IN_ONLYDIR;
    inotify.add_watch(folder, flags)?;
    Ok(Some(inotify))
}
