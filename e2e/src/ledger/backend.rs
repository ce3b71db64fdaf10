//! Images and records in the driver's data folder.
use super::entry::{Entry, Kind};

/// The entries of the files of a data folder, given by their path below it and, for a record, its text.
pub(super) fn entries(files: &[(String, String)]) -> Vec<Entry> {
    let records: Vec<_> = files.iter().filter(|(path, _)| is_record(path)).collect();
    files
        .iter()
        .filter_map(|(path, text)| {
            let kind = if is_record(path) {
                Kind::Record
            } else if path.starts_with("volumes/") && path.ends_with(".img") {
                Kind::Image
            } else if path.ends_with(".tmp") || path.starts_with("quarantine/") {
                Kind::Stray
            } else {
                return None;
            };
            let id = volume_id(path);
            let text = if kind == Kind::Record {
                text.as_str()
            } else {
                records
                    .iter()
                    .find(|(p, _)| volume_id(p) == id)
                    .map_or("", |(_, t)| t.as_str())
            };
            let owner = match (name_in(text), text.is_empty()) {
                (Some(name), _) => format!("volume {id}, name {name}"),
                (None, true) if kind == Kind::Image => format!("volume {id}, no record"),
                (None, _) => format!("volume {id}"),
            };
            Some(Entry {
                kind,
                name: path.clone(),
                place: String::from("backend"),
                owner,
            })
        })
        .collect()
}

fn is_record(path: &str) -> bool {
    path.starts_with("volumes/") && path.ends_with(".json")
}

fn volume_id(path: &str) -> &str {
    let file = path.rsplit('/').next().unwrap_or(path);
    file.split('.').next().unwrap_or(file)
}

/// The name that CreateVolume was called with, where the record keeps it.
fn name_in(record: &str) -> Option<String> {
    let value: serde_json::Value = serde_json::from_str(record).ok()?;
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
    use super::*;

    #[test]
    fn a_stray_image_and_a_record_without_image_are_named() {
        let files = [
            (String::from("volumes/aa.img"), String::new()),
            (
                String::from("volumes/bb.json"),
                String::from(r#"{"name":"pvc-1","size":1}"#),
            ),
            (String::from("volumes/bb.json.tmp"), String::new()),
            (String::from("locks/bb.lock"), String::new()),
        ];
        let found = entries(&files);
        assert_eq!(found.len(), 3);
        assert_eq!(
            (found[0].kind, found[0].owner.as_str()),
            (Kind::Image, "volume aa, no record")
        );
        assert_eq!(
            (found[1].kind, found[1].owner.as_str()),
            (Kind::Record, "volume bb, name pvc-1")
        );
        assert_eq!(found[2].kind, Kind::Stray);
    }
}
