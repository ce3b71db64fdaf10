//! The calls that change something: what of the API is declared, and does not only look.
use std::collections::BTreeSet;

/// These only look.
const LOOKS: [&str; 13] = [
    "ValidateVolumeCapabilities",
    "ListVolumes",
    "GetCapacity",
    "ControllerGetCapabilities",
    "ControllerGetVolume",
    "ControllerGetVolumeHealth",
    "ControllerListVolumeHealth",
    "NodeGetVolumeStats",
    "NodeGetCapabilities",
    "NodeGetInfo",
    "NodeGetVolumeHealth",
    "NodeGetStorageHealth",
    "ListSnapshots",
];
/// These are not declared.
const NOT_OFFERED: [&str; 3] = ["CreateSnapshot", "DeleteSnapshot", "GetSnapshot"];

/// The names of all others; a call that is new to the API, or offered at last, is among them.
pub fn calls() -> BTreeSet<String> {
    let pool = prost_reflect::DescriptorPool::decode(holdfast_proto::DESCRIPTORS).unwrap();
    let services = ["csi.v1.Controller", "csi.v1.Node"].map(|name| pool.get_service_by_name(name).unwrap());
    let methods = services
        .iter()
        .flat_map(|service| service.methods().map(|m| m.name().to_owned()));
    methods
        .filter(|name| !LOOKS.contains(&name.as_str()) && !NOT_OFFERED.contains(&name.as_str()))
        .collect()
}
