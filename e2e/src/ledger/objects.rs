//! Objects of the API that belong to volumes.
use serde::{Deserialize, Serialize};

use super::entry::{Entry, Kind};

/// What of an object matters.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Object {
    /// Its kind.
    pub kind: Kind,
    /// Namespace, where it has one, and name.
    pub name: String,
    /// Its UID.
    pub uid: String,
    /// The driver's id of its volume, where it has one.
    pub volume: String,
    /// The claim of a PV, by namespace and name.
    pub claim: String,
    /// Whose it is: the claim of a PV, the PV and node of an attachment.
    pub owner: String,
    /// What holds it.
    pub finalizers: Vec<String>,
    /// Whether its deletion was asked for.
    pub terminating: bool,
}

/// The entries of objects; one that hangs in its deletion says what holds it.
pub(super) fn entries(objects: &[Object]) -> Vec<Entry> {
    objects
        .iter()
        .map(|object| Entry {
            kind: object.kind,
            name: object.name.clone(),
            place: String::from("API"),
            volume: object.volume.clone(),
            owner: if object.terminating {
                format!("{}, terminating, held by {:?}", object.owner, object.finalizers)
            } else {
                object.owner.clone()
            },
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stuck_finalizer_is_named() {
        let pv = Object {
            kind: Kind::Pv,
            name: String::from("pvc-1"),
            uid: String::from("u-1"),
            volume: String::from("3f9c"),
            claim: String::from("t-1/data"),
            owner: String::from("claim t-1/data"),
            finalizers: vec![String::from("external-attacher/holdfast.csi")],
            terminating: true,
        };
        let owner = &entries(&[pv])[0].owner;
        assert!(
            owner.contains("claim t-1/data") && owner.contains("external-attacher/holdfast.csi"),
            "{owner}"
        );
    }
}
