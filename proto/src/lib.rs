//! The CSI v1.13 API and kubelet's plugin registration API as Rust types, clients and servers.
//!
//! The two `.proto` files were written from the facts in `wire-facts.txt`; `tests/complete.rs` proves that nothing is
//! missing and no number differs.

/// Package `csi.v1`: every service of the Container Storage Interface.
#[allow(missing_docs, unreachable_pub, clippy::all, clippy::pedantic)]
pub mod csi {
    tonic::include_proto!("csi.v1");
}

mod redact;

/// Package `pluginregistration`: served by a plugin, called by kubelet.
#[allow(missing_docs, unreachable_pub, clippy::all, clippy::pedantic)]
pub mod registration {
    tonic::include_proto!("pluginregistration");
}

/// The encoded `FileDescriptorSet` of both packages and their imports, for gRPC reflection and for finding the fields
/// marked `csi_secret`.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
