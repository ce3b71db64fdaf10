//! Whose a volume is: its claim, as far as records, PVs and claims tell it, now or at an earlier reading.
use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::backend;
use super::entry::Kind;
use super::facts::Facts;
use super::objects::Object;
use crate::id::folder_of;

/// What is known of one volume.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Known {
    /// The name that it was asked for by.
    name: String,
    /// Its PV.
    pv: String,
    /// Its claim, by namespace and name.
    claim: String,
}

/// Finds the owner of what names a volume in one way or another.
pub(super) struct Owners {
    volumes: BTreeMap<String, Known>,
    by_pv: BTreeMap<String, String>,
    by_folder: BTreeMap<String, String>,
}

/// Adds what `facts` show to what is known.
pub(super) fn learn(known: &mut BTreeMap<String, Known>, facts: &Facts) {
    for file in &facts.backend {
        if let Some(name) = backend::name_in(file) {
            known
                .entry(backend::volume_id(&file.path).to_owned())
                .or_default()
                .name = name;
        }
    }
    learn_objects(known, &facts.objects);
}

/// Adds what PVs and claims among `objects` tell.
pub(super) fn learn_objects(known: &mut BTreeMap<String, Known>, objects: &[Object]) {
    for object in objects.iter().filter(|o| o.kind == Kind::Pv) {
        let volume = known.entry(object.volume.clone()).or_default();
        volume.pv.clone_from(&object.name);
        if !object.claim.is_empty() {
            volume.claim.clone_from(&object.claim);
        }
    }
    // The provisioner calls a volume, and later its PV, by the claim's UID.
    for claim in objects.iter().filter(|o| o.kind == Kind::Pvc) {
        let name = format!("pvc-{}", claim.uid);
        for volume in known.values_mut().filter(|v| v.name == name) {
            volume.claim.clone_from(&claim.name);
        }
    }
}

impl Owners {
    pub(super) fn of(facts: &Facts) -> Self {
        let mut volumes = facts.memory.volumes.clone();
        learn(&mut volumes, facts);
        let index = |key: fn(&str, &Known) -> String| {
            volumes
                .iter()
                .map(|(id, known)| (key(id, known), id.clone()))
                .collect()
        };
        Self {
            by_pv: index(|_, known| known.pv.clone()),
            by_folder: index(|id, _| folder_of(id)),
            volumes,
        }
    }

    /// The owner of volume `id`, as far as it can be told.
    pub(super) fn volume(&self, id: &str) -> String {
        let known = self.volumes.get(id).cloned().unwrap_or_default();
        let mut text = format!("volume {id}");
        for (word, value) in [("name", &known.name), ("claim", &known.claim)] {
            if !value.is_empty() {
                text.push_str(&format!(", {word} {value}"));
            }
        }
        text
    }

    /// The volume that a path of kubelet's belongs to: by its PV's name or by the hash of its id.
    pub(super) fn volume_at(&self, path: &str) -> Option<&str> {
        path.split('/')
            .filter(|part| !part.is_empty())
            .find_map(|part| self.by_folder.get(part).or_else(|| self.by_pv.get(part)))
            .map(String::as_str)
    }
}
