//! A volume made of another one: which source is one, and how it is kept as it is while it is copied.
//!
//! The copy holds a reader's lock on the source's image, and no record lock but its own: every other call on the source, and
//! on any other volume, goes on. What would change the source under it meets that lock: a stage cannot take the image, and
//! DeleteVolume is refused. An expansion only adds a hole behind what is copied. A source that is staged may be written at
//! any moment, so it is refused; freezing it is a request to its node, which comes with snapshots.
use std::fs::File;
use std::io;

use holdfast_proto::csi as pb;
use pb::volume_content_source::Type;

use super::publish::ready;
use crate::error::Error;
use crate::guard::file_lock;
use crate::request;
use crate::volume::capability::Capability;
use crate::volume::fence;
use crate::volume::record::{Format, Source};
use crate::volume::store::Store;

const FIELD: &str = "volume_content_source.volume.volume_id";

/// A source that stays as it is for as long as this lives.
#[derive(Debug)]
pub(super) struct Opened {
    /// Its image.
    pub(super) file: File,
    /// Its size.
    pub(super) size_bytes: u64,
    /// What is on it.
    pub(super) format: Format,
}

/// The source that a request names.
pub(super) fn source(given: pb::VolumeContentSource) -> Result<Source, Error> {
    match given.r#type {
        None => Err(Error::Missing {
            field: "volume_content_source.type (snapshot or volume)",
        }),
        Some(Type::Snapshot(snapshot)) => {
            request::id(
                "volume_content_source.snapshot.snapshot_id",
                &snapshot.snapshot_id,
            )?;
            Err(Error::Unsupported {
                field: "volume_content_source.snapshot",
                value: snapshot.snapshot_id,
                reason: String::from("CREATE_DELETE_SNAPSHOT is not declared; a volume can be a source"),
            })
        }
        Some(Type::Volume(volume)) => match request::id(FIELD, &volume.volume_id)? {
            Some(id) => Ok(Source::Volume(id)),
            None => Err(Error::VolumeNotFound { id: volume.volume_id }),
        },
    }
}

/// Opens the source of a volume with these capabilities.
pub(super) fn open(store: &Store, source: &Source, wanted: &[Capability]) -> Result<Opened, Error> {
    let Source::Volume(id) = source;
    // One that is being made, perhaps from this very volume, holds its record lock for long: it is no source yet.
    ready(store, id)?;
    let _lock = file_lock::lock(&store.lock(id.as_str()), id.as_str())?;
    let record = ready(store, id)?;
    if let Some(other) = wanted.iter().find(|capability| !record.offers(capability)) {
        let reason =
            format!("has another access type or filesystem than {other}; ask for that of the source");
        return Err(Error::Invalid {
            field: FIELD,
            value: id.to_string(),
            reason,
        });
    }
    let unfit = |reason: &str| Error::Unfit {
        id: id.to_string(),
        reason: reason.to_owned(),
    };
    match fence::share(&store.image(id), &record.revoked) {
        Ok(Some(file)) => Ok(Opened {
            file,
            size_bytes: record.size_bytes,
            format: record.format,
        }),
        Ok(None) => Err(unfit(
            "is staged on a node and may be written while it is copied; stop the pods that use it, wait until it is unstaged, \
             and call again",
        )),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            Err(unfit("cannot be copied, its image is missing; restore it first"))
        }
        Err(error) => Err(Error::storage("opening the source of a copy")(error)),
    }
}
