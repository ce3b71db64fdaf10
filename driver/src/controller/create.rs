//! CreateVolume: the record says *creating*, the image comes, the record says *ready*. A crash at any arrow is finished by
//! the next call for the name, or undone by DeleteVolume.
use holdfast_proto::csi as pb;

use crate::error::Error;
use crate::guard::file_lock;
use crate::id::VolumeId;
use crate::request;
use crate::volume::record::{Fingerprint, Format, Record, State};
use crate::volume::store::Store;
use crate::volume::{capability, image, space};

/// A checked request.
#[derive(Clone, Debug)]
pub(super) struct Wanted {
    pub(super) id: VolumeId,
    name: String,
    size_bytes: u64,
    required_bytes: u64,
    limit_bytes: u64,
    fingerprint: Fingerprint,
}

impl TryFrom<pb::CreateVolumeRequest> for Wanted {
    type Error = Error;

    fn try_from(request: pb::CreateVolumeRequest) -> Result<Self, Error> {
        request::name(&request.name)?;
        let mut capabilities = capability::all(request.volume_capabilities)?;
        capabilities.sort();
        let parameters = request::parameters(request.parameters)?;
        if let Some(key) = request.mutable_parameters.keys().next() {
            let reason = String::from("cannot be changed: MODIFY_VOLUME is not declared");
            return Err(Error::Invalid {
                field: "mutable_parameters",
                value: key.clone(),
                reason,
            });
        }
        if request.volume_content_source.is_some() {
            let reason =
                String::from("is not offered: neither CLONE_VOLUME nor CREATE_DELETE_SNAPSHOT is declared");
            return Err(Error::Invalid {
                field: "volume_content_source",
                value: String::from("source"),
                reason,
            });
        }
        let range = request.capacity_range.unwrap_or_default();
        let minimum = space::minimum(&capabilities);
        let (size_bytes, required_bytes, limit_bytes) =
            space::size(range.required_bytes, range.limit_bytes, minimum)?;
        Ok(Self {
            id: VolumeId::of_name(&request.name),
            name: request.name,
            size_bytes,
            required_bytes,
            limit_bytes,
            fingerprint: Fingerprint {
                capabilities,
                parameters,
            },
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
    let record = match store.read(&wanted.id)? {
        Some(found) if found.state == State::Deleting => {
            // The deletion was promised to nobody yet, but begun: it is finished before the name is used again.
            store.erase(&found.id)?;
            begin(store, capacity, wanted)?
        }
        Some(found) => match found.difference(wanted.required_bytes, wanted.limit_bytes, &wanted.fingerprint)
        {
            Some(difference) => {
                let what = format!("volume {} of this name", found.id);
                return Err(Error::Differs {
                    what,
                    difference: difference.to_owned(),
                });
            }
            None => found,
        },
        None => begin(store, capacity, wanted)?,
    };
    let record = finish(store, record)?;
    let volume = pb::Volume {
        capacity_bytes: i64::try_from(record.size_bytes).unwrap_or(i64::MAX),
        volume_id: record.id.to_string(),
        ..pb::Volume::default()
    };
    Ok(pb::CreateVolumeResponse { volume: Some(volume) })
}

/// Reserves the space and says so durably, before anything takes any.
fn begin(store: &Store, capacity: Option<u64>, wanted: &Wanted) -> Result<Record, Error> {
    // The image of a record that was lost: a new volume must not begin with somebody's old data.
    let image = store.image(&wanted.id);
    match image::open_locked(&image) {
        Ok(Some(_free)) => store
            .set_aside(&format!("{}.img", wanted.id))
            .map_err(Error::storage("setting an image without record aside"))?,
        Ok(None) => {
            return Err(Error::InUse {
                id: wanted.id.to_string(),
                by: String::from("a loop device stands on an image of this name that has no record"),
            });
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => return Err(Error::storage("looking for an image without record")(error)),
    }
    let total = space::total(store.root(), capacity)?;
    let record = Record {
        version: 1,
        id: wanted.id.clone(),
        name: wanted.name.clone(),
        state: State::Creating,
        size_bytes: wanted.size_bytes,
        fingerprint: wanted.fingerprint.clone(),
        format: Format::Blank,
        epoch: 0,
        attachment: None,
        revoked: Vec::new(),
    };
    // Its name becomes durable with the image's, before anybody is told.
    store.reserve(&record, |all| {
        space::reserve(total, all.promised_bytes(), wanted.size_bytes)
    })?;
    Ok(record)
}

fn finish(store: &Store, record: Record) -> Result<Record, Error> {
    if record.state == State::Ready {
        return Ok(record);
    }
    store.make_image(&record)?;
    let ready = Record {
        state: State::Ready,
        ..record
    };
    store.write(&ready)?;
    Ok(ready)
}
