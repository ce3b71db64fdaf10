//! Images and records in the driver's data folder.
use super::entry::{Entry, Kind};
use super::facts::BackendFile;
use super::owners::Owners;

/// The entries of the files of a data folder.
pub(super) fn entries(files: &[BackendFile], owners: &Owners) -> Vec<Entry> {
    let there = |id: &str, suffix: &str| {
        let path = format!("volumes/{id}.{suffix}");
        files.iter().any(|file| file.path == path)
    };
    let entry = |file: &BackendFile| {
        let id = volume_id(&file.path);
        let (kind, volume) = match file.path.strip_prefix("volumes/") {
            Some(name) if name == format!("{id}.json") && there(id, "img") => (Kind::Record, id),
            Some(name) if name == format!("{id}.json") => (Kind::RecordAlone, id),
            Some(name) if name == format!("{id}.img") && there(id, "json") => (Kind::Image, id),
            Some(name) if name == format!("{id}.img") => (Kind::ImageAlone, id),
            Some(name) if name == format!("{id}.img.tmp") => (Kind::HalfImage, id),
            None if file.path.starts_with("requests/") => (Kind::Request, id),
            Some(_) | None => (Kind::Stray, id),
        };
        Entry {
            kind,
            name: file.path.clone(),
            place: String::from("backend"),
            owner: owners.volume(volume),
            volume: volume.to_owned(),
        }
    };
    files.iter().map(entry).collect()
}

/// The volume that a file is called by.
pub(super) fn volume_id(path: &str) -> &str {
    let file = path.rsplit('/').next().unwrap_or(path);
    file.split('.').next().unwrap_or(file)
}

/// The name that CreateVolume was called with, where the file is a record that keeps it.
pub(super) fn name_in(file: &BackendFile) -> Option<String> {
    if file.path.starts_with("requests/") {
        return None;
    }
    let value: serde_json::Value = serde_json::from_str(&file.text).ok()?;
    find_name(&value)
}

fn find_name(value: &serde_json::Value) -> Option<String> {
    let fields = value.as_object()?;
    fields
        .get("name")
        .and_then(|n| n.as_str())
        .map(str::to_owned)
        .or_else(|| fields.values().find_map(find_name))
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::super::facts::Facts;
    use super::*;

    fn facts(paths: &[&str]) -> Facts {
        let text = |path: &&str| {
            path.ends_with("bb.json")
                .then(|| String::from(r#"{"name":"pvc-1","size":1}"#))
        };
        let file = |path: &&str| BackendFile {
            path: (*path).to_owned(),
            text: text(path).unwrap_or_default(),
        };
        Facts {
            backend: paths.iter().map(file).collect(),
            ..Facts::default()
        }
    }

    #[rstest]
    #[case::image_and_record(&["volumes/bb.img", "volumes/bb.json"], Kind::Image, "volume bb, name pvc-1")]
    #[case::image_alone(&["volumes/aa.img", "volumes/bb.json"], Kind::ImageAlone, "volume aa")]
    #[case::record_alone(&["volumes/bb.json", "volumes/aa.img"], Kind::RecordAlone, "volume bb, name pvc-1")]
    #[case::half_made(&["volumes/bb.img.tmp", "volumes/bb.json"], Kind::HalfImage, "volume bb, name pvc-1")]
    #[case::half_record(&["volumes/bb.json.tmp", "volumes/bb.json"], Kind::Stray, "volume bb, name pvc-1")]
    #[case::set_aside(&["quarantine/bb.json"], Kind::Stray, "volume bb, name pvc-1")]
    #[case::asked_of_a_node(&["requests/bb.answer.json", "volumes/bb.json"], Kind::Request, "volume bb, name pvc-1")]
    #[case::unknown(&["volumes/notes"], Kind::Stray, "volume notes")]
    fn each_file_has_its_kind_and_owner(#[case] paths: &[&str], #[case] kind: Kind, #[case] owner: &str) {
        let facts = facts(paths);
        let found = entries(&facts.backend, &Owners::of(&facts));
        assert_eq!((found[0].kind, found[0].owner.as_str()), (kind, owner));
    }
}
