//! What is in a data folder.
use std::fs::{self, File};

use serde::Serialize;

use super::odd::{Odd, Repair};
use crate::error::Error;
use crate::id::VolumeId;
use crate::volume::image;
use crate::volume::record::{Record, State};
use crate::volume::store::Store;

#[derive(Debug, Serialize)]
struct Shown {
    #[serde(flatten)]
    record: Record,
    /// Bytes that the image takes; none without an image.
    taken_bytes: Option<u64>,
    /// A loop device, a copy or a call has the image.
    in_use: bool,
}

/// What is in a data folder.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    volumes: Vec<Shown>,
    promised_bytes: u64,
    /// Volumes that a call of some process works on.
    in_flight: Vec<String>,
    pub(super) odd: Vec<Odd>,
}

impl Report {
    pub(super) fn of(store: &Store) -> Result<Self, Error> {
        let mut report = Self {
            volumes: Vec::new(),
            promised_bytes: 0,
            in_flight: Vec::new(),
            odd: Vec::new(),
        };
        report.locks(store)?;
        for id in store.ids()? {
            match store.read(&id) {
                Ok(Some(record)) => report.volume(store, record),
                // Deleted since it was listed.
                Ok(None) => {}
                Err(error @ Error::Unreadable { .. }) => {
                    let file = format!("volumes/{id}.json");
                    let odd = Odd::new(file, Some(&id), error.message(), Repair::SetAside);
                    report.odd.push(odd);
                }
                Err(error) => return Err(error),
            }
        }
        report.files(store)?;
        Ok(report)
    }

    fn is_in_flight(&self, id: &VolumeId) -> bool {
        self.in_flight.iter().any(|busy| busy == id.as_str())
    }

    fn locks(&mut self, store: &Store) -> Result<(), Error> {
        for name in names(store, "locks")? {
            let Some(id) = name.split('.').next().and_then(VolumeId::parse) else {
                continue;
            };
            let path = store.root().join("locks").join(&name);
            // Only tried: taking it would remove it.
            let is_held = File::open(&path).is_ok_and(|file| file.try_lock().is_err());
            if is_held {
                self.in_flight.push(id.to_string());
            } else {
                let file = format!("locks/{name}");
                self.odd.push(Odd::new(
                    file,
                    Some(&id),
                    "a lock that nobody holds",
                    Repair::Remove,
                ));
            }
        }
        self.in_flight.sort();
        self.in_flight.dedup();
        Ok(())
    }

    fn volume(&mut self, store: &Store, record: Record) {
        use std::os::unix::fs::MetadataExt;
        self.promised_bytes += record.size_bytes;
        let path = store.image(&record.id);
        let meta = fs::metadata(&path).ok();
        let in_use = matches!(image::open_locked(&path), Ok(None));
        let id = &record.id;
        let file = format!("volumes/{id}.json");
        match (record.state, &meta) {
            (State::Creating | State::Deleting, _) if self.is_in_flight(id) => {}
            (State::Creating, _) => {
                let what = "a creation that nobody works on";
                self.odd.push(Odd::new(file, Some(id), what, Repair::Recover));
            }
            (State::Deleting, _) => {
                let what = "a deletion that nobody works on";
                self.odd.push(Odd::new(file, Some(id), what, Repair::Recover));
            }
            (State::Ready, None) => {
                let what = "its image is missing: its data is lost, unless the image is found";
                self.odd.push(Odd::new(file, Some(id), what, Repair::Nothing));
            }
            (State::Ready, Some(meta)) if meta.len() < record.size_bytes && !self.is_in_flight(id) => {
                let what = format!(
                    "the image has {} bytes, its record {}",
                    meta.len(),
                    record.size_bytes
                );
                let file = format!("volumes/{id}.img");
                self.odd.push(Odd::new(file, Some(id), what, Repair::Grow));
            }
            (State::Ready, Some(_)) => {}
        }
        self.volumes.push(Shown {
            record,
            taken_bytes: meta.map(|m| m.blocks() * 512),
            in_use,
        });
    }

    /// What has no record, and what is not of this driver.
    fn files(&mut self, store: &Store) -> Result<(), Error> {
        let aside = names(store, "quarantine")?;
        for name in names(store, "volumes")? {
            let id = name.split('.').next().and_then(VolumeId::parse);
            let file = format!("volumes/{name}");
            match (&id, name.split_once('.').map(|(_, kind)| kind)) {
                (Some(id), _) if self.is_in_flight(id) => {}
                (Some(_), Some("json")) => {}
                (Some(id), Some("img")) => {
                    let has_record = self.volumes.iter().any(|v| v.record.id == *id)
                        || self.odd.iter().any(|o| o.id.as_ref() == Some(id));
                    if !has_record {
                        self.orphan(store, id, file, &aside);
                    }
                }
                (Some(id), Some("json.tmp" | "img.tmp")) => {
                    let what = "a temporary of a call that is over";
                    self.odd.push(Odd::new(file, Some(id), what, Repair::Remove));
                }
                _ => self
                    .odd
                    .push(Odd::new(file, None, "not of this driver", Repair::Nothing)),
            }
        }
        for name in aside {
            let file = format!("quarantine/{name}");
            self.odd
                .push(Odd::new(file, None, "was set aside", Repair::Nothing));
        }
        Ok(())
    }

    fn orphan(&mut self, store: &Store, id: &VolumeId, file: String, aside: &[String]) {
        let (what, repair) = match image::open_locked(&store.image(id)) {
            Ok(None) => ("an image without a record, in use", Repair::Nothing),
            // Whoever reads the record again finds its image here.
            _ if aside.iter().any(|name| name.starts_with(id.as_str())) => {
                ("the image of a record in quarantine", Repair::Nothing)
            }
            Ok(Some(image)) if image::is_blank(&image).unwrap_or(false) => {
                ("an image without a record and without data", Repair::Remove)
            }
            Ok(Some(_)) => ("an image without a record, with data", Repair::SetAside),
            Err(_) => ("an image that cannot be opened", Repair::Nothing),
        };
        self.odd.push(Odd::new(file, Some(id), what, repair));
    }

    pub(super) fn text(&self) -> String {
        let mut lines = vec![format!(
            "{} volumes, {} bytes promised, {} in flight, {} odd",
            self.volumes.len(),
            self.promised_bytes,
            self.in_flight.len(),
            self.odd.len()
        )];
        for volume in &self.volumes {
            let record = &volume.record;
            let node = record.attachment.as_ref().map_or_else(String::new, |a| {
                format!(", attached to {} (epoch {})", a.node, a.epoch)
            });
            let taken = volume.taken_bytes.unwrap_or(0);
            let used = if volume.in_use { ", in use" } else { "" };
            lines.push(format!(
                "volume {} {:?}: {:?}, {} bytes, {taken} taken{node}{used}",
                record.id, record.name, record.state, record.size_bytes
            ));
        }
        lines.extend(self.in_flight.iter().map(|id| format!("in flight {id}")));
        for odd in &self.odd {
            lines.push(format!(
                "odd {}: {}; repair: {}",
                odd.file,
                odd.what,
                odd.repair.verb()
            ));
        }
        lines.join("\n")
    }
}

fn names(store: &Store, folder: &str) -> Result<Vec<String>, Error> {
    let failed = || Error::storage(format!("listing {folder}"));
    let mut names = Vec::new();
    for entry in fs::read_dir(store.root().join(folder)).map_err(failed())? {
        names.push(
            entry
                .map_err(failed())?
                .file_name()
                .to_string_lossy()
                .into_owned(),
        );
    }
    names.sort();
    Ok(names)
}
