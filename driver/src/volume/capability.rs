//! What a caller wants to do with a volume, as far as this driver offers it.
use holdfast_proto::csi as pb;
use serde::{Deserialize, Serialize};

use crate::error::Error;
pub use crate::kernel::filesystem::Fs;

const FIELD: &str = "volume_capability";
/// Longest list of mount flags, in bytes (specification, size limits).
const FLAGS_BYTES: usize = 4096;

/// Filesystem or device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Access {
    /// A mounted filesystem.
    Mount,
    /// A raw device.
    Block,
}

/// Access modes of one node; others are not offered, because a loop device belongs to one kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// One node writes; how many pods is left open.
    Writer,
    /// One node reads.
    ReaderOnly,
    /// One target path writes.
    SingleWriter,
    /// Several target paths of one node write.
    MultiWriter,
}

/// A checked VolumeCapability.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Capability {
    /// Filesystem or device.
    pub access: Access,
    /// The filesystem, for a mount.
    pub fs: Option<Fs>,
    /// Mount flags, in the caller's order.
    #[serde(default)]
    pub mount_flags: Vec<String>,
    /// Who may use it.
    pub mode: Mode,
}

impl TryFrom<pb::VolumeCapability> for Capability {
    type Error = Error;

    fn try_from(wanted: pb::VolumeCapability) -> Result<Self, Error> {
        use pb::volume_capability::AccessType;
        use pb::volume_capability::access_mode::Mode as PbMode;
        let mode = wanted.access_mode.ok_or(Error::Missing {
            field: "volume_capability.access_mode",
        })?;
        let mode = match PbMode::try_from(mode.mode) {
            Ok(PbMode::SingleNodeWriter) => Mode::Writer,
            Ok(PbMode::SingleNodeReaderOnly) => Mode::ReaderOnly,
            Ok(PbMode::SingleNodeSingleWriter) => Mode::SingleWriter,
            Ok(PbMode::SingleNodeMultiWriter) => Mode::MultiWriter,
            Ok(
                PbMode::Unknown
                | PbMode::MultiNodeReaderOnly
                | PbMode::MultiNodeSingleWriter
                | PbMode::MultiNodeMultiWriter,
            )
            | Err(_) => {
                return Err(invalid(
                    mode.mode,
                    "is no access mode of a single node, and no other is offered",
                ));
            }
        };
        match wanted.access_type.ok_or(Error::Missing {
            field: "volume_capability.access_type",
        })? {
            AccessType::Block(_) => Ok(Self {
                access: Access::Block,
                fs: None,
                mount_flags: Vec::new(),
                mode,
            }),
            AccessType::Mount(mount) => {
                let fs = match mount.fs_type.as_str() {
                    "" | "ext4" => Fs::Ext4,
                    "xfs" => Fs::Xfs,
                    other => {
                        return Err(invalid(
                            other,
                            "is no filesystem of this driver; ext4 and xfs are",
                        ));
                    }
                };
                if !mount.volume_mount_group.is_empty() {
                    return Err(invalid(
                        mount.volume_mount_group,
                        "cannot be applied: VOLUME_MOUNT_GROUP is not declared",
                    ));
                }
                if mount.mount_flags.iter().map(String::len).sum::<usize>() > FLAGS_BYTES {
                    return Err(invalid("mount_flags", "are longer than 4096 bytes"));
                }
                let bad =
                    |flag: &&String| flag.is_empty() || flag.chars().any(|c| c.is_control() || c == ',');
                if let Some(flag) = mount.mount_flags.iter().find(bad) {
                    return Err(invalid(
                        flag,
                        "is no mount flag: one flag an entry, without control characters",
                    ));
                }
                Ok(Self {
                    access: Access::Mount,
                    fs: Some(fs),
                    mount_flags: mount.mount_flags,
                    mode,
                })
            }
        }
    }
}

fn invalid(value: impl std::fmt::Display, reason: &str) -> Error {
    Error::Invalid {
        field: FIELD,
        value: value.to_string(),
        reason: reason.to_owned(),
    }
}

/// Every one of a list; an empty list is an error.
///
/// # Errors
/// INVALID_ARGUMENT.
pub fn all(wanted: Vec<pb::VolumeCapability>) -> Result<Vec<Capability>, Error> {
    if wanted.is_empty() {
        return Err(Error::Missing {
            field: "volume_capabilities",
        });
    }
    wanted.into_iter().map(Capability::try_from).collect()
}

/// The one that a call must have.
///
/// # Errors
/// INVALID_ARGUMENT.
pub fn one(wanted: Option<pb::VolumeCapability>) -> Result<Capability, Error> {
    wanted.ok_or(Error::Missing { field: FIELD })?.try_into()
}
