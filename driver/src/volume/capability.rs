//! What a caller wants to do with a volume, as far as this driver offers it.
use holdfast_proto::csi as pb;
use serde::{Deserialize, Serialize};

use crate::error::Error;
pub use crate::kernel::filesystem::Fs;
use crate::kernel::mount_flags;

const FIELD: &str = "volume_capability";
/// Longest string of the specification, in bytes.
const STRING_BYTES: usize = 128;
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
    /// The group that is to own what is in the filesystem (VOLUME_MOUNT_GROUP).
    #[serde(default)]
    pub mount_group: Option<u32>,
}

impl Capability {
    /// Only flags that harm neither data nor node ever reach the kernel; a volume that no node would stage is not made.
    ///
    /// # Errors
    /// INVALID_ARGUMENT, naming the first of the others.
    pub fn check_flags(&self) -> Result<(), Error> {
        let Some(fs) = self.fs else {
            return Ok(());
        };
        for flag in &self.mount_flags {
            mount_flags::check_flag(fs, flag).map_err(|reason| {
                let flag: String = flag.chars().take(STRING_BYTES).collect();
                let reason = format!("it {reason}");
                unsupported("volume_capability.mount.mount_flags", &flag, &reason)
            })?;
        }
        Ok(())
    }
}

/// As the specification calls it, for messages.
impl std::fmt::Display for Capability {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match (self.access, self.fs) {
            (Access::Block, _) => f.write_str("block")?,
            (Access::Mount, fs) => write!(f, "mount {}", fs.unwrap_or(Fs::Ext4).name())?,
        }
        if !self.mount_flags.is_empty() {
            write!(f, " with {}", self.mount_flags.join(","))?;
        }
        f.write_str(match self.mode {
            Mode::Writer => ", SINGLE_NODE_WRITER",
            Mode::ReaderOnly => ", SINGLE_NODE_READER_ONLY",
            Mode::SingleWriter => ", SINGLE_NODE_SINGLE_WRITER",
            Mode::MultiWriter => ", SINGLE_NODE_MULTI_WRITER",
        })
    }
}

impl TryFrom<pb::VolumeCapability> for Capability {
    type Error = Error;

    fn try_from(wanted: pb::VolumeCapability) -> Result<Self, Error> {
        use pb::volume_capability::AccessType;
        use pb::volume_capability::access_mode::Mode as PbMode;
        let mode = wanted.access_mode.ok_or(Error::Missing {
            field: "volume_capability.access_mode",
        })?;
        // The form of everything is checked before it is asked what of it is offered.
        let access = wanted.access_type.ok_or(Error::Missing {
            field: "volume_capability.access_type (block or mount)",
        })?;
        if let AccessType::Mount(mount) = &access {
            form(mount)?;
        }
        let mode = match PbMode::try_from(mode.mode) {
            Ok(PbMode::Unknown) => {
                return Err(Error::Missing {
                    field: "volume_capability.access_mode.mode",
                });
            }
            Ok(PbMode::SingleNodeWriter) => Mode::Writer,
            Ok(PbMode::SingleNodeReaderOnly) => Mode::ReaderOnly,
            Ok(PbMode::SingleNodeSingleWriter) => Mode::SingleWriter,
            Ok(PbMode::SingleNodeMultiWriter) => Mode::MultiWriter,
            Ok(
                other @ (PbMode::MultiNodeReaderOnly
                | PbMode::MultiNodeSingleWriter
                | PbMode::MultiNodeMultiWriter),
            ) => {
                return Err(unsupported(
                    "volume_capability.access_mode",
                    other.as_str_name(),
                    "a volume is for one node; the SINGLE_NODE_ modes are",
                ));
            }
            Err(_) => {
                return Err(unsupported(
                    "volume_capability.access_mode",
                    &mode.mode.to_string(),
                    "this number is no access mode that the driver knows",
                ));
            }
        };
        match access {
            AccessType::Block(_) => Ok(Self {
                access: Access::Block,
                fs: None,
                mount_flags: Vec::new(),
                mode,
                mount_group: None,
            }),
            AccessType::Mount(mount) => {
                let fs = match mount.fs_type.as_str() {
                    "" | "ext4" => Fs::Ext4,
                    "xfs" => Fs::Xfs,
                    other => {
                        return Err(unsupported(
                            "volume_capability.mount.fs_type",
                            other,
                            "ext4 and xfs are",
                        ));
                    }
                };
                Ok(Self {
                    access: Access::Mount,
                    fs: Some(fs),
                    mount_group: group(&mount.volume_mount_group)?,
                    mount_flags: mount.mount_flags,
                    mode,
                })
            }
        }
    }
}

/// Sizes and characters of a MountVolume.
fn form(mount: &pb::volume_capability::MountVolume) -> Result<(), Error> {
    for (field, value) in [
        ("volume_capability.mount.fs_type", &mount.fs_type),
        (
            "volume_capability.mount.volume_mount_group",
            &mount.volume_mount_group,
        ),
    ] {
        if value.len() > STRING_BYTES {
            return Err(invalid(field, value, "is longer than 128 bytes"));
        }
        if value.chars().any(char::is_control) {
            return Err(invalid(field, value, "has control characters; leave them out"));
        }
    }
    const FLAGS: &str = "volume_capability.mount.mount_flags";
    let bytes: usize = mount.mount_flags.iter().map(String::len).sum();
    if bytes > FLAGS_BYTES {
        let shown = format!("of {} flags", mount.mount_flags.len());
        return Err(invalid(
            FLAGS,
            &shown,
            &format!("has {bytes} bytes; at most {FLAGS_BYTES} are allowed"),
        ));
    }
    let bad = |flag: &&String| flag.is_empty() || flag.chars().any(|c| c.is_control() || c == ',');
    match mount.mount_flags.iter().find(bad) {
        Some(flag) => Err(invalid(
            FLAGS,
            flag,
            "is no mount flag: give one flag an entry, without control characters",
        )),
        None => Ok(()),
    }
}

/// Kubelet sends a pod's fsGroup as a decimal number.
fn group(given: &str) -> Result<Option<u32>, Error> {
    if given.is_empty() {
        return Ok(None);
    }
    match given.parse() {
        Ok(id) if given.chars().all(|c| c.is_ascii_digit()) && id != u32::MAX => Ok(Some(id)),
        Ok(_) | Err(_) => Err(invalid(
            "volume_capability.mount.volume_mount_group",
            given,
            "is no group; give its number in decimal digits",
        )),
    }
}

fn invalid(field: &'static str, value: &str, reason: &str) -> Error {
    Error::Invalid {
        field,
        value: value.chars().take(STRING_BYTES).collect(),
        reason: reason.to_owned(),
    }
}

fn unsupported(field: &'static str, value: &str, reason: &str) -> Error {
    Error::Unsupported {
        field,
        value: value.to_owned(),
        reason: reason.to_owned(),
    }
}

/// Every one of a list, in an order of their own; an empty list is an error, and so is one that no single volume can fulfil:
/// it is a filesystem or a device, and has one filesystem; and so are mount flags that a node would refuse.
///
/// # Errors
/// INVALID_ARGUMENT.
pub fn all(wanted: Vec<pb::VolumeCapability>) -> Result<Vec<Capability>, Error> {
    const LIST: &str = "volume_capabilities";
    if wanted.is_empty() {
        return Err(Error::Missing { field: LIST });
    }
    let mut found = wanted
        .into_iter()
        .map(Capability::try_from)
        .collect::<Result<Vec<_>, Error>>()?;
    found.iter().try_for_each(Capability::check_flags)?;
    found.sort();
    found.dedup();
    let first = &found[0];
    match found
        .iter()
        .find(|c| c.access != first.access || c.fs != first.fs)
    {
        None => Ok(found),
        Some(other) => Err(unsupported(
            LIST,
            &format!("{first}; {other}"),
            "one volume has one access type and one filesystem; ask for two volumes",
        )),
    }
}

/// The one that a call must have.
///
/// # Errors
/// INVALID_ARGUMENT.
pub fn one(wanted: Option<pb::VolumeCapability>) -> Result<Capability, Error> {
    wanted.ok_or(Error::Missing { field: FIELD })?.try_into()
}

#[cfg(test)]
mod tests {
    use rstest::rstest;
    use tonic::Code;

    use super::*;
    use pb::volume_capability::access_mode::Mode as PbMode;
    use pb::volume_capability::{AccessMode, AccessType, BlockVolume, MountVolume};

    fn mount() -> MountVolume {
        MountVolume {
            fs_type: String::from("ext4"),
            ..MountVolume::default()
        }
    }

    fn of(access: Option<AccessType>, mode: Option<i32>) -> pb::VolumeCapability {
        pb::VolumeCapability {
            access_type: access,
            access_mode: mode.map(|mode| AccessMode { mode }),
        }
    }

    fn writer(mount: MountVolume) -> pb::VolumeCapability {
        of(
            Some(AccessType::Mount(mount)),
            Some(PbMode::SingleNodeWriter.into()),
        )
    }

    fn flags(flags: &[&str]) -> MountVolume {
        MountVolume {
            mount_flags: flags.iter().map(|f| (*f).to_owned()).collect(),
            ..mount()
        }
    }

    fn with_group(group: &str) -> MountVolume {
        MountVolume {
            volume_mount_group: group.to_owned(),
            ..mount()
        }
    }

    fn with_fs(fs: &str) -> MountVolume {
        MountVolume {
            fs_type: fs.to_owned(),
            ..mount()
        }
    }

    #[rstest]
    #[case::good(writer(mount()), None)]
    #[case::default_fs(writer(MountVolume::default()), None)]
    #[case::no_mode(of(Some(AccessType::Mount(mount())), None), Some("is required"))]
    #[case::mode_unknown(of(Some(AccessType::Mount(mount())), Some(0)), Some("is required"))]
    #[case::mode_of_the_future(of(Some(AccessType::Mount(mount())), Some(99)), Some("99"))]
    #[case::many_nodes(
        of(Some(AccessType::Mount(mount())), Some(5)),
        Some("MULTI_NODE_MULTI_WRITER")
    )]
    #[case::neither_access_type(of(None, Some(1)), Some("is required"))]
    #[case::unknown_fs(writer(with_fs("btrfs")), Some("btrfs"))]
    #[case::fs_too_long(writer(with_fs(&"x".repeat(129))), Some("128"))]
    #[case::fs_with_control(writer(with_fs("ext4\n")), Some("control"))]
    #[case::largest_flags(writer(flags(&[&"x".repeat(4096)])), None)]
    #[case::flags_too_long(writer(flags(&[&"x".repeat(4000), &"y".repeat(97)])), Some("4096"))]
    #[case::empty_flag(writer(flags(&[""])), Some("is no mount flag"))]
    #[case::two_flags_in_one(writer(flags(&["ro,noatime"])), Some("is no mount flag"))]
    #[case::group(writer(with_group("2000")), None)]
    #[case::group_by_name(writer(with_group("wheel")), Some("wheel"))]
    #[case::group_negative(writer(with_group("-1")), Some("-1"))]
    #[case::group_that_means_none(writer(with_group("4294967295")), Some("4294967295"))]
    fn capabilities(#[case] given: pb::VolumeCapability, #[case] named: Option<&str>) {
        match (Capability::try_from(given), named) {
            (Ok(_), None) => {}
            (Err(error), Some(named)) => {
                assert_eq!(error.code(), Code::InvalidArgument);
                assert!(error.message().contains(named), "{}", error.message());
            }
            (result, _) => panic!("{result:?}"),
        }
    }

    #[test]
    fn one_volume_has_one_access_type_and_one_filesystem() {
        let block = || {
            of(
                Some(AccessType::Block(BlockVolume {})),
                Some(PbMode::SingleNodeWriter.into()),
            )
        };
        let xfs = || writer(with_fs("xfs"));
        assert!(all(vec![block(), block()]).is_ok_and(|all| all.len() == 1));
        let reader = of(
            Some(AccessType::Mount(mount())),
            Some(PbMode::SingleNodeReaderOnly.into()),
        );
        assert!(all(vec![writer(mount()), reader]).is_ok_and(|all| all.len() == 2));
        for mixed in [
            vec![block(), writer(mount())],
            vec![writer(mount()), xfs()],
            vec![],
        ] {
            assert_eq!(all(mixed).unwrap_err().code(), Code::InvalidArgument);
        }
    }
}
