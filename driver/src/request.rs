//! What every call checks before it does anything: presence first, then form, then the limits of the specification.
use std::collections::{BTreeMap, HashMap};
use std::path::{Component, PathBuf};

use holdfast_proto::csi as pb;

use crate::config::{self, Segments};
use crate::error::Error;
use crate::id::VolumeId;

/// Longest string of the specification where no other limit is given, in bytes.
const STRING_BYTES: usize = 128;
/// Longest id of a node.
const NODE_BYTES: usize = 256;
/// Longest map, keys and values together, in bytes.
const MAP_BYTES: usize = 4096;
/// Linux's own limit of a path.
const PATH_BYTES: usize = 4095;
/// Linux's own limit of a name in a folder.
const FILE_NAME_BYTES: usize = 255;

fn invalid(field: &'static str, value: &str, reason: &str) -> Error {
    let shown: String = value.chars().take(STRING_BYTES).collect();
    Error::Invalid {
        field,
        value: shown,
        reason: reason.to_owned(),
    }
}

fn text(field: &'static str, value: &str, limit: usize) -> Result<(), Error> {
    if value.is_empty() {
        return Err(Error::Missing { field });
    }
    if value.len() > limit {
        return Err(invalid(field, value, &format!("is longer than {limit} bytes")));
    }
    if value.chars().any(char::is_control) {
        return Err(invalid(field, value, "has control characters; leave them out"));
    }
    Ok(())
}

/// The message of a call, logged: its `Debug` shows no secret (proto/src/redact.rs).
pub fn received<M: std::fmt::Debug>(rpc: &'static str, request: tonic::Request<M>) -> M {
    let message = request.into_inner();
    tracing::debug!(rpc, request = ?message, "received");
    message
}

/// The name of a volume that is to be made. Of the control characters the specification bans all but tab, line feed and
/// carriage return.
///
/// # Errors
/// INVALID_ARGUMENT.
pub fn name(value: &str) -> Result<(), Error> {
    let allowed = |c: char| matches!(c, '\t' | '\n' | '\r');
    if value.chars().all(allowed) {
        return Err(Error::Missing { field: "name" });
    }
    text("name", &value.replace(allowed, " "), STRING_BYTES)
}

/// A volume's id; one of another form is no volume of ours, and nothing of it touches a path.
///
/// # Errors
/// INVALID_ARGUMENT.
pub fn volume_id(value: &str) -> Result<Option<VolumeId>, Error> {
    id("volume_id", value)
}

/// An id of a volume in another field than `volume_id`.
///
/// # Errors
/// INVALID_ARGUMENT.
pub fn id(field: &'static str, value: &str) -> Result<Option<VolumeId>, Error> {
    text(field, value, STRING_BYTES)?;
    Ok(VolumeId::parse(value))
}

/// A volume that must exist.
///
/// # Errors
/// INVALID_ARGUMENT, or NOT_FOUND for an id of another form.
pub fn known_id(value: &str) -> Result<VolumeId, Error> {
    volume_id(value)?.ok_or_else(|| Error::VolumeNotFound { id: value.to_owned() })
}

/// A node's id.
///
/// # Errors
/// INVALID_ARGUMENT.
pub fn node_id(value: &str) -> Result<(), Error> {
    text("node_id", value, NODE_BYTES)
}

/// Every byte but zero can be in a path, also a tab or the end of a line.
fn path_text(field: &'static str, value: &str) -> Result<(), Error> {
    if value.contains('\0') {
        return Err(invalid(field, value, "has a zero byte, which no path can have"));
    }
    text(field, &value.replace(char::is_control, " "), PATH_BYTES)
}

/// An absolute path without `..`.
///
/// # Errors
/// INVALID_ARGUMENT.
pub fn path(field: &'static str, value: &str) -> Result<PathBuf, Error> {
    path_text(field, value)?;
    let path = PathBuf::from(value);
    // The root has no name; nothing of ours may ever touch it.
    let names_nothing = path.file_name().is_none();
    if !path.is_absolute() || names_nothing || path.components().any(|c| c == Component::ParentDir) {
        return Err(invalid(
            field,
            value,
            "is no absolute path without ..; give the whole path",
        ));
    }
    if path.components().any(|c| c.as_os_str().len() > FILE_NAME_BYTES) {
        return Err(invalid(field, value, "has a name longer than 255 bytes"));
    }
    Ok(path)
}

/// A path where a volume is looked for: whatever is given, nothing is made there, so what cannot hold a volume simply does not.
///
/// # Errors
/// INVALID_ARGUMENT if it is missing, or goes up.
pub fn place(field: &'static str, value: &str) -> Result<PathBuf, Error> {
    path_text(field, value)?;
    let path = PathBuf::from(value);
    if path.components().any(|c| c == Component::ParentDir) {
        return Err(invalid(field, value, "goes up by ..; give the whole path"));
    }
    Ok(path)
}

/// A map within its limit. Its values are never shown: it may hold secrets, or what was put in the wrong place.
///
/// # Errors
/// INVALID_ARGUMENT.
pub fn map(field: &'static str, given: &HashMap<String, String>) -> Result<(), Error> {
    let bytes: usize = given.iter().map(|(k, v)| k.len() + v.len()).sum();
    if bytes > MAP_BYTES {
        let shown = format!("of {} entries", given.len());
        return Err(invalid(
            field,
            &shown,
            &format!("has {bytes} bytes; at most {MAP_BYTES} are allowed"),
        ));
    }
    Ok(())
}

/// The parameters of a StorageClass; Kubernetes' own, which it adds by itself, are kept, what is not in `known` is refused.
///
/// # Errors
/// INVALID_ARGUMENT.
pub fn parameters(given: HashMap<String, String>, known: &[&str]) -> Result<BTreeMap<String, String>, Error> {
    let own = |key: &str| key.starts_with("csi.storage.k8s.io/") || known.contains(&key);
    keys("parameters", given, own, known)
}

/// The parameters of a VolumeAttributesClass, each of which must be in `known`.
///
/// # Errors
/// INVALID_ARGUMENT.
pub fn mutable_parameters(
    given: HashMap<String, String>,
    known: &[&str],
) -> Result<BTreeMap<String, String>, Error> {
    keys("mutable_parameters", given, |key| known.contains(&key), known)
}

fn keys(
    field: &'static str,
    given: HashMap<String, String>,
    is_good: impl Fn(&str) -> bool,
    known: &[&str],
) -> Result<BTreeMap<String, String>, Error> {
    map(field, &given)?;
    match given.keys().find(|key| !is_good(key)) {
        Some(key) => Err(invalid(
            field,
            key,
            &format!("is no parameter of this driver; it has {}", known.join(" and ")),
        )),
        None => Ok(given.into_iter().collect()),
    }
}

/// One page of a list: how many entries at the most, and the id after which it begins.
///
/// # Errors
/// INVALID_ARGUMENT for a negative number, ABORTED for a token that was never given.
pub fn page(max_entries: i32, token: &str, most: usize) -> Result<(usize, Option<VolumeId>), Error> {
    let wanted = usize::try_from(max_entries).map_err(|_| {
        invalid(
            "max_entries",
            &max_entries.to_string(),
            "is negative; 0 means no limit",
        )
    })?;
    let after = match token {
        "" => None,
        token => Some(VolumeId::parse(token).ok_or_else(|| Error::BadToken {
            token: token.chars().take(STRING_BYTES).collect(),
        })?),
    };
    let count = if wanted == 0 { most } else { wanted.min(most) };
    Ok((count, after))
}

/// The segments of a topology, by lower-case key: the specification does not tell the case of keys apart.
///
/// # Errors
/// INVALID_ARGUMENT.
pub fn segments(field: &'static str, topology: pb::Topology) -> Result<Segments, Error> {
    map(field, &topology.segments)?;
    let mut found = Segments::new();
    for (key, value) in topology.segments {
        config::segment(&key, &value).map_err(|reason| invalid(field, &format!("{key}={value}"), reason))?;
        if found.insert(key.to_ascii_lowercase(), value).is_some() {
            return Err(invalid(
                field,
                &key,
                "is given twice, in upper and lower case; give it once",
            ));
        }
    }
    Ok(found)
}

/// Where a volume is to be accessible from, in the order of preference.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Placement {
    /// One of these must be it; empty means anywhere.
    pub requisite: Vec<Segments>,
    /// To be tried first, in this order.
    pub preferred: Vec<Segments>,
}

/// A checked TopologyRequirement.
///
/// # Errors
/// INVALID_ARGUMENT.
pub fn placement(wanted: pb::TopologyRequirement) -> Result<Placement, Error> {
    const REQUISITE: &str = "accessibility_requirements.requisite";
    const PREFERRED: &str = "accessibility_requirements.preferred";
    if wanted.requisite.is_empty() && wanted.preferred.is_empty() {
        return Err(Error::Missing {
            field: "accessibility_requirements.requisite or preferred",
        });
    }
    let all = |field, list: Vec<pb::Topology>| {
        list.into_iter()
            .map(|topology| segments(field, topology))
            .collect::<Result<Vec<_>, Error>>()
    };
    let requisite = all(REQUISITE, wanted.requisite)?;
    let preferred = all(PREFERRED, wanted.preferred)?;
    let stray = |one: &&Segments| !requisite.is_empty() && !requisite.contains(one);
    if let Some(stray) = preferred.iter().find(stray) {
        return Err(invalid(
            PREFERRED,
            &config::shown(stray),
            "is not among requisite; every preferred topology must be",
        ));
    }
    Ok(Placement { requisite, preferred })
}

#[cfg(test)]
mod tests {
    use rstest::rstest;
    use tonic::Code;

    use super::*;

    #[rstest]
    #[case::empty("", Err(Code::InvalidArgument))]
    #[case::longest(&"x".repeat(128), Ok(false))]
    #[case::too_long(&"x".repeat(129), Err(Code::InvalidArgument))]
    #[case::too_long_in_bytes(&"é".repeat(65), Err(Code::InvalidArgument))]
    #[case::control("a\nb", Err(Code::InvalidArgument))]
    #[case::foreign("other", Ok(false))]
    #[case::ours("v0123456789abcdef0123456789abcdef", Ok(true))]
    fn ids(#[case] value: &str, #[case] expected: Result<bool, Code>) {
        assert_eq!(
            volume_id(value).map(|id| id.is_some()).map_err(|e| e.code()),
            expected
        );
    }

    #[rstest]
    #[case::empty("", false)]
    #[case::longest(&"x".repeat(128), true)]
    #[case::too_long(&"x".repeat(129), false)]
    #[case::white_space_is_no_banned_character("a\tb\nc\rd", true)]
    #[case::bell("a\u{7}b", false)]
    #[case::delete("a\u{7f}b", false)]
    #[case::c1("a\u{85}b", false)]
    #[case::any_other_unicode("数据/../卷 ^", true)]
    fn names(#[case] value: &str, #[case] good: bool) {
        let code = name(value).err().map(|e| e.code());
        assert_eq!(code, (!good).then_some(Code::InvalidArgument));
    }

    #[rstest]
    #[case::relative("a/b")]
    #[case::dots("/a/../b")]
    #[case::the_root("/")]
    #[case::control("/a\0b")]
    #[case::long_name(&format!("/{}", "x".repeat(256)))]
    #[case::long_path(&"/x".repeat(2048))]
    fn bad_paths(#[case] value: &str) {
        assert_eq!(
            path("target_path", value).unwrap_err().code(),
            Code::InvalidArgument
        );
    }

    #[test]
    fn a_map_has_4096_bytes_and_its_message_shows_no_value() {
        let of = |bytes: usize| HashMap::from([(String::from("key"), "s".repeat(bytes - 3))]);
        assert!(map("secrets", &of(4096)).is_ok());
        let error = map("secrets", &of(4097)).unwrap_err();
        assert_eq!(error.code(), Code::InvalidArgument);
        assert!(!error.message().contains("sss"), "{}", error.message());
    }

    fn topology(pairs: &[(&str, &str)]) -> pb::Topology {
        let segments = pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned()));
        pb::Topology {
            segments: segments.collect(),
        }
    }

    #[rstest]
    #[case::good(topology(&[("topology.holdfast.csi/zone", "a-1")]), true)]
    #[case::without_prefix(topology(&[("Zone", "a")]), true)]
    #[case::everywhere(topology(&[]), true)]
    #[case::value_too_long(topology(&[("zone", &"x".repeat(64))]), false)]
    #[case::name_too_long(topology(&[(&"x".repeat(64), "a")]), false)]
    #[case::ends_in_a_dash(topology(&[("zone", "a-")]), false)]
    #[case::two_prefixes(topology(&[("a/b/c", "x")]), false)]
    #[case::twice(topology(&[("zone", "a"), ("ZONE", "b")]), false)]
    fn segments_of_a_topology(#[case] given: pb::Topology, #[case] good: bool) {
        let code = segments("accessible_topology", given).err().map(|e| e.code());
        assert_eq!(code, (!good).then_some(Code::InvalidArgument));
    }

    #[rstest]
    #[case::neither(vec![], vec![], false)]
    #[case::preferred_is_among_requisite(vec![topology(&[("zone", "a")])], vec![topology(&[("ZONE", "a")])], true)]
    #[case::preferred_is_not(vec![topology(&[("zone", "a")])], vec![topology(&[("zone", "b")])], false)]
    #[case::only_preferred(vec![], vec![topology(&[("zone", "b")])], true)]
    fn placements(
        #[case] requisite: Vec<pb::Topology>,
        #[case] preferred: Vec<pb::Topology>,
        #[case] good: bool,
    ) {
        let code = placement(pb::TopologyRequirement { requisite, preferred })
            .err()
            .map(|e| e.code());
        assert_eq!(code, (!good).then_some(Code::InvalidArgument));
    }
}
