//! Identity, and what is declared.
use super::*;
use crate::common::raw;
use crate::common::*;

#[tokio::test]
async fn every_role_names_the_same_capabilities_and_is_itself() {
    let mut seen = Vec::new();
    for role in ["all", "controller", "node"] {
        let driver = Driver::in_folder(tempfile::tempdir().unwrap(), role, "csi.sock");
        let mut identity = IdentityClient::new(driver.channel().await);
        let info = identity
            .get_plugin_info(pb::GetPluginInfoRequest {})
            .await
            .unwrap()
            .into_inner();
        assert_eq!(info.name, "holdfast.csi");
        assert!(!info.vendor_version.is_empty());
        let probe = identity.probe(pb::ProbeRequest {}).await.unwrap().into_inner();
        assert_eq!(probe.ready, Some(true));
        let reply = identity
            .get_plugin_capabilities(pb::GetPluginCapabilitiesRequest {})
            .await
            .unwrap();
        seen.push(reply.into_inner().capabilities);
    }
    use pb::plugin_capability::{Type, service};
    let service = |wanted: service::Type| {
        seen[0]
            .iter()
            .any(|c| matches!(&c.r#type, Some(Type::Service(s)) if s.r#type() == wanted))
    };
    assert!(service(service::Type::ControllerService));
    assert!(service(service::Type::VolumeAccessibilityConstraints));
    assert!(seen.iter().all(|other| *other == seen[0]), "{seen:?}");
}

#[tokio::test]
async fn probe_fails_while_the_data_folder_is_away() {
    let driver = Driver::start();
    let mut identity = IdentityClient::new(driver.channel().await);
    let (here, away) = (driver.path("data"), driver.path("away"));
    std::fs::rename(&here, &away).unwrap();
    let status = identity.probe(pb::ProbeRequest {}).await.unwrap_err();
    assert_eq!(status.code(), Code::FailedPrecondition);
    assert!(status.message().contains(&here), "{}", status.message());
    std::fs::rename(&away, &here).unwrap();
    let probe = identity.probe(pb::ProbeRequest {}).await.unwrap().into_inner();
    assert_eq!(probe.ready, Some(true));
}

/// Every method of the API answers; UNIMPLEMENTED, with a message, is that of what is not declared and of nothing else.
#[tokio::test]
async fn what_is_not_declared_is_unimplemented_and_the_rest_is_not() {
    let undeclared = [
        "CreateSnapshot",
        "DeleteSnapshot",
        "ListSnapshots",
        "GetSnapshot",
        "GroupControllerGetCapabilities",
        "CreateVolumeGroupSnapshot",
        "DeleteVolumeGroupSnapshot",
        "GetVolumeGroupSnapshot",
        "GetMetadataAllocated",
        "GetMetadataDelta",
    ];
    let driver = Driver::start();
    let channel = driver.channel().await;
    let pool = prost_reflect::DescriptorPool::decode(holdfast_proto::DESCRIPTORS).unwrap();
    for service in pool.services().filter(|s| s.full_name().starts_with("csi.v1.")) {
        // What the Node service declares is told by its own tests.
        if service.name() == "Node" {
            continue;
        }
        for method in service.methods() {
            let path = format!("/{}/{}", service.full_name(), method.name());
            let result = raw::call(&channel, &path, Vec::new()).await;
            let message = result.as_ref().err().map(|s| s.message().to_owned());
            assert_ne!(message.as_deref(), Some(""), "{path}: an error without a message");
            let unimplemented = wait_code(result) == Code::Unimplemented;
            assert_eq!(
                unimplemented,
                undeclared.contains(&method.name()),
                "{path}: {message:?}"
            );
        }
    }
    let unknown = raw::call(&channel, "/csi.v1.Controller/Nonsense", Vec::new())
        .await
        .unwrap_err();
    assert_eq!(unknown.code(), Code::Unimplemented);
    assert!(!unknown.message().is_empty());
}
