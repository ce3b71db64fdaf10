//! Questions to a history: which volumes a namespace owns, and how they moved through their states.
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use super::event::{Change, Event, What};
use crate::id::folder_of;

/// A volume as the API names it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Owned {
    /// Its PV.
    pub pv: String,
    /// The driver's id.
    pub handle: String,
    /// Whether it is a raw device.
    pub block: bool,
}

/// One step of a volume's life. Up: created, attached, staged, published; down: the reverse.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Step {
    /// The PV is there: CREATED.
    Created,
    /// The attachment to a node is confirmed: NODE_READY.
    Attached(String),
    /// It is staged on a node: VOL_READY. The loop device of a raw volume does not tell its node.
    Staged(String),
    /// A pod has it, by node and path: PUBLISHED.
    Published(String, String),
    /// The pod no longer has it: back to VOL_READY.
    Unpublished(String, String),
    /// It is no longer staged: back to NODE_READY.
    Unstaged(String),
    /// The attachment is gone: back to CREATED.
    Detached(String),
    /// The PV is gone.
    Deleted,
}

impl Step {
    /// The step that undoes this one, or that this one undoes.
    pub fn opposite(&self) -> Self {
        match self {
            Self::Created => Self::Deleted,
            Self::Deleted => Self::Created,
            Self::Attached(node) => Self::Detached(node.clone()),
            Self::Detached(node) => Self::Attached(node.clone()),
            Self::Staged(node) => Self::Unstaged(node.clone()),
            Self::Unstaged(node) => Self::Staged(node.clone()),
            Self::Published(node, path) => Self::Unpublished(node.clone(), path.clone()),
            Self::Unpublished(node, path) => Self::Published(node.clone(), path.clone()),
        }
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Created => f.write_str("CREATED"),
            Self::Attached(node) => write!(f, "NODE_READY({node})"),
            Self::Staged(node) => write!(f, "VOL_READY({node})"),
            Self::Published(node, _) => write!(f, "PUBLISHED({node})"),
            Self::Unpublished(node, _) => write!(f, "back to VOL_READY({node})"),
            Self::Unstaged(node) => write!(f, "back to NODE_READY({node})"),
            Self::Detached(node) => write!(f, "back to CREATED({node})"),
            Self::Deleted => f.write_str("gone"),
        }
    }
}

/// A step with its moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transition {
    /// Milliseconds since the run's start.
    pub at_ms: u64,
    /// The step.
    pub step: Step,
}

/// An object of the API as a watch saw it.
#[derive(Clone, Copy, Debug)]
pub struct Seen<'a> {
    /// Milliseconds since the run's start.
    pub at_ms: u64,
    /// Whether it went away then.
    pub gone: bool,
    /// Its namespace, where it has one.
    pub namespace: &'a str,
    /// Its name.
    pub name: &'a str,
    facts: &'a BTreeMap<String, String>,
}

impl<'a> Seen<'a> {
    /// One of its facts, or nothing.
    pub fn fact(&self, key: &str) -> &'a str {
        self.facts.get(key).map_or("", String::as_str)
    }

    /// Whether a fact is `true`.
    pub fn is(&self, key: &str) -> bool {
        self.fact(key) == "true"
    }
}

/// Objects of the kind `wanted`, each time that they were seen.
pub fn objects<'a>(events: &'a [Event], wanted: &'a str) -> impl Iterator<Item = Seen<'a>> {
    events.iter().filter_map(move |event| {
        let What::Object {
            change,
            kind,
            namespace,
            name,
            facts,
        } = &event.what
        else {
            return None;
        };
        (kind == wanted).then_some(Seen {
            at_ms: event.at_ms,
            gone: *change == Change::Gone,
            namespace,
            name,
            facts,
        })
    })
}

/// Volumes whose claim was ever in `namespace`.
pub fn owned_by(events: &[Event], namespace: &str) -> Vec<Owned> {
    let prefix = format!("{namespace}/");
    let mut owned: BTreeMap<&str, Owned> = BTreeMap::new();
    for event in events {
        let What::Object {
            kind, name, facts, ..
        } = &event.what
        else {
            continue;
        };
        let fact = |key: &str| facts.get(key).map(String::as_str).unwrap_or_default();
        if kind == "PersistentVolume" && fact("claim").starts_with(&prefix) {
            owned.insert(
                name,
                Owned {
                    pv: name.clone(),
                    handle: fact("handle").to_owned(),
                    block: fact("mode") == "Block",
                },
            );
        }
    }
    owned.into_values().collect()
}

/// How `volume` moved, in the order seen; what a watch repeats counts once.
pub fn transitions(events: &[Event], volume: &Owned) -> Vec<Transition> {
    let folder = folder_of(&volume.handle);
    let image = format!("/{}.img", volume.handle);
    let mut there: BTreeSet<Step> = BTreeSet::new();
    let mut alive: BTreeSet<&str> = BTreeSet::new();
    let mut found = Vec::new();
    for event in events {
        follow(&mut alive, &event.what, &volume.handle);
        // Kernel and backend know the handle only: a retained volume may get a second PV after the first is gone.
        if is_of_handle(&event.what) && !alive.is_empty() && !alive.contains(volume.pv.as_str()) {
            continue;
        }
        let Some(step) = step(&event.what, volume, &folder, &image) else {
            continue;
        };
        there.remove(&step.opposite());
        if there.insert(step.clone()) {
            found.push(Transition {
                at_ms: event.at_ms,
                step,
            });
        }
    }
    found
}

/// Keeps the PVs of `handle` that are there.
fn follow<'a>(alive: &mut BTreeSet<&'a str>, what: &'a What, handle: &str) {
    if let What::Object {
        change,
        kind,
        name,
        facts,
        ..
    } = what
        && kind == "PersistentVolume"
        && facts.get("handle").is_some_and(|of| of == handle)
    {
        match change {
            Change::Present => alive.insert(name),
            Change::Gone => alive.remove(name.as_str()),
        };
    }
}

/// Whether an event names its volume by the driver's id, not by the PV.
fn is_of_handle(what: &What) -> bool {
    if let What::Mount { path, .. } = what {
        path.ends_with("/globalmount")
    } else {
        matches!(what, What::Loop { .. })
    }
}

/// The step that an event shows of `volume`, whose staging folder and image are called so.
fn step(what: &What, volume: &Owned, folder: &str, image: &str) -> Option<Step> {
    let (change, step) = if let What::Object {
        change,
        kind,
        name,
        facts,
        ..
    } = what
    {
        (change, shown(*change, kind, name, facts, volume)?)
    } else if let What::Mount {
        change, node, path, ..
    } = what
    {
        (change, mounted(node, path, volume, folder)?)
    } else if let What::Loop { change, backing, .. } = what
        && volume.block
        && backing.contains(image)
    {
        (change, Step::Staged(String::from("its node")))
    } else {
        return None;
    };
    Some(if *change == Change::Present {
        step
    } else {
        step.opposite()
    })
}

fn shown(
    change: Change,
    kind: &str,
    name: &str,
    facts: &BTreeMap<String, String>,
    volume: &Owned,
) -> Option<Step> {
    match kind {
        "PersistentVolume" if name == volume.pv => Some(Step::Created),
        "VolumeAttachment" if facts.get("pv") == Some(&volume.pv) => {
            let attached = facts.get("attached").is_some_and(|attached| attached == "true");
            let node = facts.get("node").cloned().unwrap_or_default();
            (attached || change == Change::Gone).then_some(Step::Attached(node))
        }
        _ => None,
    }
}

fn mounted(node: &str, path: &str, volume: &Owned, folder: &str) -> Option<Step> {
    if !volume.block && path.ends_with("/globalmount") && path.contains(folder) {
        return Some(Step::Staged(node.to_owned()));
    }
    let published = if volume.block {
        path.contains(&format!("/volumeDevices/publish/{}/", volume.pv))
    } else {
        path.ends_with(&format!("/volumes/kubernetes.io~csi/{}/mount", volume.pv))
    };
    published.then(|| Step::Published(node.to_owned(), path.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(what: What) -> Event {
        Event {
            at_ms: 0,
            scenario: None,
            what,
        }
    }

    fn pv(change: Change, name: &str) -> Event {
        event(What::Object {
            change,
            kind: String::from("PersistentVolume"),
            namespace: String::new(),
            name: name.to_owned(),
            facts: BTreeMap::from([(String::from("handle"), String::from("v1"))]),
        })
    }

    fn staged(change: Change) -> Event {
        event(What::Mount {
            change,
            node: String::from("w1"),
            path: format!("/k/{}/globalmount", folder_of("v1")),
            source: String::new(),
        })
    }

    fn steps(events: &[Event], pv: &str) -> Vec<Step> {
        let volume = Owned {
            pv: pv.to_owned(),
            handle: String::from("v1"),
            block: false,
        };
        transitions(events, &volume).into_iter().map(|t| t.step).collect()
    }

    #[test]
    fn what_is_staged_belongs_to_the_pv_that_is_there() {
        use Change::{Gone, Present};
        let events = [
            pv(Present, "first"),
            staged(Present),
            staged(Gone),
            pv(Gone, "first"),
            pv(Present, "second"),
            staged(Present),
            staged(Gone),
        ];
        let life = [
            Step::Created,
            Step::Staged("w1".into()),
            Step::Unstaged("w1".into()),
        ];
        assert_eq!(steps(&events, "first"), [&life[..], &[Step::Deleted]].concat());
        assert_eq!(steps(&events, "second"), life);
    }

    #[test]
    fn what_is_staged_after_every_pv_is_gone_is_still_seen() {
        use Change::{Gone, Present};
        let events = [pv(Present, "first"), pv(Gone, "first"), staged(Present)];
        assert_eq!(
            steps(&events, "first"),
            [Step::Created, Step::Deleted, Step::Staged("w1".into())]
        );
    }
}
