//! The record of a volume: written before, and marked after, each durable step.
use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::attributes::Attributes;
use super::capability::{Access, Capability, Fs};
use crate::config::Segments;
use crate::id::VolumeId;

/// Key of publish_context: which attachment of the volume this is.
pub const EPOCH: &str = "epoch";

/// What is meant to become of the volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// Its image is being made; whoever asks for the name again finishes it.
    Creating,
    /// It can be used.
    Ready,
    /// Whoever sees this finishes the deletion.
    Deleting,
}

/// How far the filesystem is. A volume is formatted once in its life.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Format {
    /// Nobody has begun.
    #[default]
    Blank,
    /// Begun and never finished, so never mounted either: it may be begun again.
    Begun(Fs),
    /// Done; what is on the device is the user's from now on.
    Done(Fs),
}

/// A node that has the volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attachment {
    /// The node's id.
    pub node: String,
    /// Which attachment of the volume this is, counted over its life: an older one is over.
    pub epoch: u64,
    /// Whether the node may only read: because it was asked for so, or because the volume's attributes say so.
    pub read_only: bool,
    /// What was asked for, where the volume's attributes made more of it.
    #[serde(default)]
    pub asked_read_only: Option<bool>,
    /// How it is used there.
    pub capability: Capability,
}

/// What CreateVolume was asked for, as far as a second call must ask for the same.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fingerprint {
    /// In order, so that the caller's order does not matter.
    pub capabilities: Vec<Capability>,
    /// As given.
    pub parameters: BTreeMap<String, String>,
    /// As given; what they are now is in the record's attributes.
    #[serde(default)]
    pub mutable_parameters: BTreeMap<String, String>,
    /// What the volume's content was copied from.
    #[serde(default)]
    pub source: Option<Source>,
}

/// What a volume's first content is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Source {
    /// That of another volume, as it was when this one was made.
    Volume(VolumeId),
}

/// A volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Form of this file.
    pub version: u32,
    /// Its id.
    pub id: VolumeId,
    /// The name it was asked for under.
    pub name: String,
    /// What is meant to become of it.
    pub state: State,
    /// Its size.
    pub size_bytes: u64,
    /// What it was asked for.
    pub fingerprint: Fingerprint,
    /// How far its filesystem is.
    #[serde(default)]
    pub format: Format,
    /// Attachments so far.
    #[serde(default)]
    pub epoch: u64,
    /// The node that has it; this driver's volumes are for one node.
    #[serde(default)]
    pub attachment: Option<Attachment>,
    /// Attachments that were given up by force: their devices may still stand, but can no longer write.
    #[serde(default)]
    pub revoked: Vec<u64>,
    /// What can be changed during its life.
    #[serde(default)]
    pub attributes: Attributes,
    /// Where it is accessible from; everywhere, if empty.
    #[serde(default)]
    pub segments: Segments,
}

impl Attachment {
    /// What ControllerPublishVolume was asked for.
    pub fn asked_read_only(&self) -> bool {
        self.asked_read_only.unwrap_or(self.read_only)
    }
}

impl Record {
    /// In what a request for the same name differs from this volume, if in anything.
    pub fn difference(
        &self,
        required_bytes: u64,
        limit_bytes: u64,
        fingerprint: &Fingerprint,
    ) -> Option<&'static str> {
        if self.size_bytes < required_bytes || (limit_bytes > 0 && self.size_bytes > limit_bytes) {
            return Some("capacity_range");
        }
        if self.fingerprint.capabilities != fingerprint.capabilities {
            return Some("volume_capabilities");
        }
        if self.fingerprint.parameters != fingerprint.parameters {
            return Some("parameters");
        }
        if self.fingerprint.mutable_parameters != fingerprint.mutable_parameters {
            return Some("mutable_parameters");
        }
        (self.fingerprint.source != fingerprint.source).then_some("volume_content_source")
    }

    /// The attachment to `node`.
    pub fn attached_to(&self, node: &str) -> Option<&Attachment> {
        self.attachment.as_ref().filter(|a| a.node == node)
    }

    /// Whether the volume was asked for as a filesystem or device like `capability`.
    pub fn offers(&self, capability: &Capability) -> bool {
        self.fingerprint
            .capabilities
            .iter()
            .any(|c| match capability.access {
                Access::Block => c.access == Access::Block,
                Access::Mount => c.access == Access::Mount && c.fs == capability.fs,
            })
    }
}
