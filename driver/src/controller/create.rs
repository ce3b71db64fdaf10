//! CreateVolume: the record says *creating*, the image comes, the record says *ready*. A crash at any arrow is finished by
//! the next call for the name, or undone by DeleteVolume or by the sweep at start.
use std::io;

use holdfast_proto::csi as pb;

use super::clone::{self, Opened};
use super::shown;
use crate::error::Error;
use crate::guard::file_lock;
use crate::id::VolumeId;
use crate::request::{self, Placement};
use crate::volume::attributes::{self, Attributes};
use crate::volume::index::Brief;
use crate::volume::record::{Fingerprint, Format, Record, State};
use crate::volume::store::Store;
use crate::volume::{capability, copy, image, space, topology, torn};

/// A checked request.
#[derive(Clone, Debug)]
pub(super) struct Wanted {
    pub(super) id: VolumeId,
    name: String,
    /// Of a volume without a source, and the least of one with.
    size_bytes: u64,
    required_bytes: u64,
    limit_bytes: u64,
    fingerprint: Fingerprint,
    attributes: Attributes,
    placement: Placement,
}

impl TryFrom<pb::CreateVolumeRequest> for Wanted {
    type Error = Error;

    fn try_from(request: pb::CreateVolumeRequest) -> Result<Self, Error> {
        request::name(&request.name)?;
        let capabilities = capability::all(request.volume_capabilities)?;
        let range = request.capacity_range.map(space::range).transpose()?;
        let (required_bytes, limit_bytes) = range.unwrap_or_default();
        let parameters = request::parameters(request.parameters, &attributes::KEYS)?;
        let mutable_parameters = request::mutable_parameters(request.mutable_parameters, &attributes::KEYS)?;
        request::map("secrets", &request.secrets)?;
        // Where both name a key, the specification gives the mutable one precedence.
        let attributes = Attributes::default()
            .with("parameters", &parameters)?
            .with("mutable_parameters", &mutable_parameters)?;
        let source = request.volume_content_source.map(clone::source).transpose()?;
        let placement = request
            .accessibility_requirements
            .map(request::placement)
            .transpose()?
            .unwrap_or_default();
        // The last check: its code is another one.
        let size_bytes = space::size(required_bytes, limit_bytes, space::minimum(&capabilities))?;
        Ok(Self {
            id: VolumeId::of_name(&request.name),
            name: request.name,
            size_bytes,
            required_bytes,
            limit_bytes,
            fingerprint: Fingerprint {
                capabilities,
                parameters,
                mutable_parameters,
                source,
            },
            attributes,
            placement,
        })
    }
}

/// Makes the volume, or finds it made.
pub(super) fn create(
    store: &Store,
    capacity: Option<u64>,
    wanted: &Wanted,
) -> Result<pb::CreateVolumeResponse, Error> {
    let _lock = file_lock::lock(&store.lock(wanted.id.as_str()), wanted.id.as_str())?;
    let found = match store.read(&wanted.id) {
        Err(Error::Unreadable { .. }) if torn::undo(store, &wanted.id)? => None,
        other => other?,
    };
    let (record, source) = match found {
        Some(found) if found.state == State::Deleting => {
            // The deletion was promised to nobody yet, but begun: it is finished before the name is used again.
            store.erase(&found.id)?;
            begin(store, capacity, wanted)?
        }
        // Where it was placed does not count: after a restart the provisioner may ask for the same name with another
        // placement, and must be given the same volume.
        Some(found) => match found.difference(wanted.required_bytes, wanted.limit_bytes, &wanted.fingerprint)
        {
            Some(difference) => {
                let what = format!("volume {} of this name", found.id);
                return Err(Error::Differs {
                    what,
                    difference: difference.to_owned(),
                });
            }
            None => (found, None),
        },
        None => begin(store, capacity, wanted)?,
    };
    let volume = Brief::from(finish(store, record, source)?);
    Ok(pb::CreateVolumeResponse {
        volume: Some(shown::volume(&wanted.id, &volume)),
    })
}

/// Reserves the space and says so durably, before anything takes any.
fn begin(store: &Store, capacity: Option<u64>, wanted: &Wanted) -> Result<(Record, Option<Opened>), Error> {
    // The image of a record that was lost: a new volume must not begin with somebody's old data.
    let image = store.image(&wanted.id);
    let blank = |file| image::is_blank(file).map_err(Error::storage("looking at an image without record"));
    let is_nobodys = match image::open_locked(&image) {
        Ok(Some(free)) if blank(&free)? => {
            store.erase(&wanted.id)?;
            true
        }
        Ok(Some(_free)) => {
            store
                .set_aside(&format!("{}.img", wanted.id))
                .map_err(Error::storage("setting an image without record aside"))?;
            false
        }
        Ok(None) => {
            return Err(Error::InUse {
                id: wanted.id.to_string(),
                by: String::from("a loop device stands on an image of this name that has no record"),
            });
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => true,
        Err(error) => return Err(Error::storage("looking for an image without record")(error)),
    };
    if is_nobodys {
        torn::forget(store, &wanted.id)?;
    }
    let source = match &wanted.fingerprint.source {
        Some(source) => Some(clone::open(store, source, &wanted.fingerprint.capabilities)?),
        None => None,
    };
    let (size_bytes, format) = match &source {
        Some(opened) => {
            let least = opened.size_bytes;
            let size = space::size_of_copy(
                wanted.size_bytes,
                wanted.required_bytes,
                wanted.limit_bytes,
                least,
            )?;
            (size, opened.format)
        }
        None => (wanted.size_bytes, Format::Blank),
    };
    let Placement { requisite, preferred } = &wanted.placement;
    let segments = match (requisite.is_empty(), preferred.is_empty()) {
        (true, true) => Default::default(),
        _ => topology::choose(requisite, preferred, &store.places()?)?,
    };
    let total = space::total(store.root(), capacity)?;
    let record = Record {
        version: 1,
        id: wanted.id.clone(),
        name: wanted.name.clone(),
        state: State::Creating,
        size_bytes,
        fingerprint: wanted.fingerprint.clone(),
        format,
        epoch: 0,
        attachment: None,
        revoked: Vec::new(),
        attributes: wanted.attributes,
        segments,
    };
    // Its name becomes durable with the image's, before anybody is told.
    store.reserve(&record, |all| {
        space::reserve(total, all.promised_bytes(), size_bytes)
    })?;
    Ok((record, source))
}

/// Makes the image and says that the volume is ready. What cannot be made is undone before the caller hears of it, because a
/// caller that has given up does not call again.
fn finish(store: &Store, record: Record, source: Option<Opened>) -> Result<Record, Error> {
    if record.state == State::Ready {
        return Ok(record);
    }
    let image = store.image(&record.id);
    let made = match (&record.fingerprint.source, source) {
        (None, _) => store.make_image(&record),
        (Some(_), Some(opened)) => store
            .settle(&record)
            .and_then(|()| copy::create(&opened.file, &image, record.size_bytes)),
        // A crash cut the copy off: it begins again, with the source as it is now, unless that is gone.
        (Some(source), None) => match clone::open(store, source, &record.fingerprint.capabilities) {
            Ok(opened) if opened.size_bytes <= record.size_bytes => store
                .settle(&record)
                .and_then(|()| copy::create(&opened.file, &image, record.size_bytes)),
            Ok(_) => {
                store.erase(&record.id)?;
                return Err(Error::Busy {
                    key: record.id.to_string(),
                    holder: String::from(
                        "an expansion of its source, which has become larger than this copy,",
                    ),
                });
            }
            Err(error) => {
                store.erase(&record.id)?;
                return Err(error);
            }
        },
    };
    match made {
        Ok(()) => store.sync(format!("making the image of {}", record.id))?,
        Err(error) if error.kind() == io::ErrorKind::StorageFull => {
            store.erase(&record.id)?;
            return Err(Error::NoSpace {
                wanted_bytes: record.size_bytes,
                free_bytes: space::available(store.root())?,
            });
        }
        Err(error) => return Err(Error::storage("making an image")(error)),
    }
    let ready = Record {
        state: State::Ready,
        ..record
    };
    store.write(&ready)?;
    Ok(ready)
}
