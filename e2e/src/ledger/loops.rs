//! Loop devices: those over the driver's images, and read-only flags that stuck to a free number.
use super::entry::{Entry, Kind};

/// The entries of the kernel's loop devices whose backing file lies below one of `roots`.
pub(super) fn entries(loops: &[(u32, Option<String>, bool)], roots: &[String]) -> Vec<Entry> {
    loops
        .iter()
        .filter_map(|(number, backing, read_only)| match backing {
            Some(file) if roots.iter().any(|root| file.starts_with(root.as_str())) => Some(Entry {
                kind: Kind::Loop,
                name: format!(
                    "/dev/loop{number}, {}, {file}",
                    if *read_only { "read-only" } else { "read-write" }
                ),
                place: String::from("kernel"),
                owner: owner(file),
            }),
            Some(_) => None,
            // BLKROSET outlives the detach: the next user of the number could not write.
            None => read_only.then(|| Entry {
                kind: Kind::LoopFlag,
                name: format!("/dev/loop{number}, free, read-only"),
                place: String::from("kernel"),
                owner: String::from("whoever set it last"),
            }),
        })
        .collect()
}

fn owner(file: &str) -> String {
    let name = file
        .trim_end_matches(" (deleted)")
        .rsplit('/')
        .next()
        .unwrap_or(file);
    let id = name.trim_end_matches(".img");
    let deleted = if file.ends_with(" (deleted)") {
        ", whose file is deleted"
    } else {
        ""
    };
    format!("volume {id}{deleted}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_loops_over_the_backend_and_flags_of_free_ones_count() {
        let loops = [
            (0, Some(String::from("/srv/data/volumes/aa.img")), false),
            (1, Some(String::from("/home/other.img")), false),
            (2, None, true),
            (3, None, false),
            (4, Some(String::from("/srv/data/volumes/bb.img (deleted)")), true),
        ];
        let found = entries(&loops, &[String::from("/srv/data/")]);
        assert_eq!(
            found.iter().map(|e| e.kind).collect::<Vec<_>>(),
            [Kind::Loop, Kind::LoopFlag, Kind::Loop]
        );
        assert_eq!(found[2].owner, "volume bb, whose file is deleted");
    }
}
