//! `Debug` of every message that has a field marked `csi_secret`: whoever logs or prints a request cannot show a secret. The
//! impls are written by build.rs from the option itself, so a field that is marked tomorrow is hidden tomorrow.
use std::collections::HashMap;
use std::fmt;

/// A map of secrets: which keys were given helps whoever reads a log, their values help nobody.
struct Keys<'a>(&'a HashMap<String, String>);

impl fmt::Debug for Keys<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut keys: Vec<_> = self.0.keys().collect();
        keys.sort();
        f.debug_map()
            .entries(keys.into_iter().map(|key| (key, format_args!("[redacted]"))))
            .finish()
    }
}

include!(concat!(env!("OUT_DIR"), "/redacted.rs"));

#[cfg(test)]
mod tests {
    use crate::csi::CreateVolumeRequest;

    #[test]
    fn a_secret_shows_its_key_and_never_its_value() {
        let request = CreateVolumeRequest {
            name: String::from("pvc-1"),
            secrets: [(String::from("user"), String::from("hunter2"))].into(),
            ..CreateVolumeRequest::default()
        };
        let shown = format!("{request:?} {request:#?}");
        assert!(!shown.contains("hunter2"), "{shown}");
        assert!(
            shown.contains("pvc-1") && shown.contains("user") && shown.contains("[redacted]"),
            "{shown}"
        );
    }
}
