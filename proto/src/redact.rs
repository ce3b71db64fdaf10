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

/// What kubelet puts into the context of a volume for a driver with tokenRequests: credentials of the pod, which the
/// specification does not mark.
const TOKENS: &str = "csi.storage.k8s.io/serviceAccount.tokens";

/// The context of a volume, without the credentials that may be in it.
struct Context<'a>(&'a HashMap<String, String>);

impl fmt::Debug for Context<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut map = f.debug_map();
        for (key, value) in self.0 {
            match key.as_str() {
                TOKENS => map.entry(key, &format_args!("[redacted]")),
                _ => map.entry(key, value),
            };
        }
        map.finish()
    }
}

include!(concat!(env!("OUT_DIR"), "/redacted.rs"));

#[cfg(test)]
mod tests {
    use crate::csi::{CreateVolumeRequest, NodePublishVolumeRequest};

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

    #[test]
    fn the_tokens_of_a_pod_are_hidden_beside_what_is_no_secret() {
        let context = [
            (super::TOKENS, "hunter2"),
            ("csi.storage.k8s.io/pod.name", "web-0"),
        ];
        let request = NodePublishVolumeRequest {
            volume_context: context.map(|(k, v)| (k.to_owned(), v.to_owned())).into(),
            ..NodePublishVolumeRequest::default()
        };
        let shown = format!("{request:?} {request:#?}");
        assert!(!shown.contains("hunter2"), "{shown}");
        assert!(
            shown.contains(super::TOKENS) && shown.contains("web-0"),
            "{shown}"
        );
    }
}
