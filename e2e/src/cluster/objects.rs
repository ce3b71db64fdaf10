//! Objects of the API that belong to volumes or to the driver: listed, then reduced to what a ledger needs.
use std::collections::{BTreeMap, BTreeSet};

use futures::try_join;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, Pod};
use k8s_openapi::api::storage::v1::{CSINode, VolumeAttachment};
use kube::api::ListParams;
use kube::{Api, Client, ResourceExt};
use serde::de::DeserializeOwned;

use super::condition::claim_of;
use super::driver::Driver;
use crate::ledger::{Kind, LivePod, Object};

/// The label that tells the driver's pods apart, and its value for the node plugin.
const COMPONENT: &str = "app.kubernetes.io/component";
const NODE_PLUGIN: &str = "node";
/// A static pod's folder is called by the hash of its file, which its mirror in the API carries here.
const STATIC_POD: &str = "kubernetes.io/config.mirror";

async fn list<K>(api: Api<K>) -> Result<Vec<K>, kube::Error>
where
    K: Clone + DeserializeOwned + std::fmt::Debug,
{
    Ok(api.list(&ListParams::default()).await?.items)
}

/// What the API server listed.
#[derive(Clone, Debug)]
pub struct Listed {
    /// The driver under test.
    pub driver: Driver,
    /// Of all drivers.
    pub volumes: Vec<PersistentVolume>,
    /// Of all drivers.
    pub attachments: Vec<VolumeAttachment>,
    /// Of all namespaces.
    pub claims: Vec<PersistentVolumeClaim>,
    /// Of all nodes.
    pub csi_nodes: Vec<CSINode>,
    /// Of the driver's namespace.
    pub leases: Vec<Lease>,
    /// Of all namespaces.
    pub pods: Vec<Pod>,
}

impl Listed {
    /// Nothing, of `driver`.
    pub fn nothing(driver: Driver) -> Self {
        Self {
            driver,
            volumes: Vec::new(),
            attachments: Vec::new(),
            claims: Vec::new(),
            csi_nodes: Vec::new(),
            leases: Vec::new(),
            pods: Vec::new(),
        }
    }

    /// Lists everything.
    ///
    /// # Errors
    /// The API server's.
    pub async fn of(client: &Client, driver: &Driver) -> Result<Self, kube::Error> {
        // Side by side: the API server answers each only once it has heard from etcd that its cache is as new as the question.
        let (volumes, attachments, claims, csi_nodes, leases, pods) = try_join!(
            list(Api::all(client.clone())),
            list(Api::all(client.clone())),
            list(Api::all(client.clone())),
            list(Api::all(client.clone())),
            list(Api::namespaced(client.clone(), &driver.namespace)),
            list(Api::all(client.clone())),
        )?;
        Ok(Self {
            driver: driver.clone(),
            volumes,
            attachments,
            claims,
            csi_nodes,
            leases,
            pods,
        })
    }

    /// Those that a ledger counts, each with its owner.
    pub fn objects(&self) -> Vec<Object> {
        let volumes: Vec<Object> = self
            .volumes
            .iter()
            .filter_map(|pv| volume(&self.driver, pv))
            .collect();
        let mut objects: Vec<Object> = self
            .attachments
            .iter()
            .filter_map(|attachment| self::attachment(&self.driver, attachment, &volumes))
            .collect();
        objects.extend(self.claims.iter().map(claim));
        let plugins = self.nodes_with_plugin();
        objects.extend(
            self.csi_nodes
                .iter()
                .filter_map(|node| csi_node(&self.driver, node, &plugins)),
        );
        let lease = |lease: &Lease| {
            let holder = lease.spec.as_ref().and_then(|s| s.holder_identity.clone());
            let owner = holder.map_or_else(
                || String::from("a sidecar"),
                |holder| format!("a sidecar, held by {holder}"),
            );
            object(Kind::Lease, lease, owner)
        };
        objects.extend(self.leases.iter().map(lease));
        objects.extend(self.driver_pods());
        objects.extend(volumes);
        objects
    }

    /// All pods, by what kubelet calls their folders.
    pub fn live_pods(&self) -> Vec<LivePod> {
        let live = |pod: &Pod| LivePod {
            folders: pod
                .uid()
                .into_iter()
                .chain(pod.annotations().get(STATIC_POD).cloned())
                .collect(),
            name: full_name(pod),
        };
        self.pods.iter().map(live).collect()
    }

    fn of_driver(&self) -> impl Iterator<Item = (&Pod, &str)> {
        self.pods
            .iter()
            .filter(|pod| pod.namespace().as_deref() == Some(self.driver.namespace.as_str()))
            .map(|pod| (pod, pod.labels().get(COMPONENT).map_or("", String::as_str)))
    }

    fn nodes_with_plugin(&self) -> BTreeSet<&str> {
        self.of_driver()
            .filter(|(_, component)| *component == NODE_PLUGIN)
            .filter_map(|(pod, _)| pod.spec.as_ref()?.node_name.as_deref())
            .collect()
    }

    /// Pods are counted by component, for their names change with every failover; the owner tells the name.
    fn driver_pods(&self) -> Vec<Object> {
        let mut pods: Vec<(&str, String, &Pod)> = self
            .of_driver()
            .map(|(pod, component)| (component, pod.name_any(), pod))
            .collect();
        pods.sort_by(|a, b| (a.0, &a.1).cmp(&(b.0, &b.1)));
        let mut counts: BTreeMap<&str, u32> = BTreeMap::new();
        pods.into_iter()
            .map(|(component, name, pod)| {
                let number = counts.entry(component).or_insert(0);
                *number += 1;
                let node = pod.spec.as_ref().and_then(|s| s.node_name.as_deref());
                let owner = format!("the driver, pod {name} on {}", node.unwrap_or("no node"));
                Object {
                    name: format!("{component} {number}"),
                    ..object(Kind::DriverPod, pod, owner)
                }
            })
            .collect()
    }
}

/// What a ledger counts of a PV, if it is the driver's.
pub(super) fn volume(driver: &Driver, pv: &PersistentVolume) -> Option<Object> {
    let spec = pv.spec.as_ref()?;
    let csi = spec.csi.as_ref().filter(|csi| csi.driver == driver.name)?;
    let claim = claim_of(pv).map(|(namespace, name)| format!("{namespace}/{name}"));
    let mut owner = format!("volume {}", csi.volume_handle);
    match &claim {
        Some(claim) => owner.push_str(&format!(", claim {claim}")),
        None => owner.push_str(", no claim"),
    }
    let phase = pv.status.as_ref().and_then(|s| s.phase.as_deref());
    // Bound and Available need no word; in the others it waits for somebody.
    if let Some(phase @ ("Released" | "Failed")) = phase {
        owner.push_str(&format!(", {phase}"));
    }
    Some(Object {
        volume: csi.volume_handle.clone(),
        claim: claim.unwrap_or_default(),
        ..object(Kind::Pv, pv, owner)
    })
}

fn attachment(driver: &Driver, attachment: &VolumeAttachment, volumes: &[Object]) -> Option<Object> {
    let spec = &attachment.spec;
    if spec.attacher != driver.name {
        return None;
    }
    let name = spec.source.persistent_volume_name.as_deref().unwrap_or_default();
    let volume = volumes.iter().find(|pv| pv.name == name);
    let claim = match volume.map(|pv| pv.claim.as_str()) {
        None => String::from("which is gone"),
        Some("") => String::from("no claim"),
        Some(claim) => format!("claim {claim}"),
    };
    let owner = format!("pv {name} on {}, {claim}", spec.node_name);
    Some(Object {
        volume: volume.map(|pv| pv.volume.clone()).unwrap_or_default(),
        ..object(Kind::Attachment, attachment, owner)
    })
}

fn claim(claim: &PersistentVolumeClaim) -> Object {
    let class = claim.spec.as_ref().and_then(|s| s.storage_class_name.clone());
    let owner = format!("claim of class {:?}", class.unwrap_or_default());
    object(Kind::Pvc, claim, owner)
}

fn csi_node(driver: &Driver, node: &CSINode, plugins: &BTreeSet<&str>) -> Option<Object> {
    let registered = node.spec.drivers.iter().any(|d| d.name == driver.name);
    let owner = if plugins.contains(node.name_any().as_str()) {
        "the node plugin"
    } else {
        "the node plugin, which has no pod on this node"
    };
    registered.then(|| object(Kind::CsiNode, node, owner.to_owned()))
}

fn full_name<K: ResourceExt>(of: &K) -> String {
    of.namespace()
        .map_or_else(|| of.name_any(), |ns| format!("{ns}/{}", of.name_any()))
}

fn object<K: ResourceExt>(kind: Kind, of: &K, owner: String) -> Object {
    Object {
        kind,
        name: full_name(of),
        uid: of.uid().unwrap_or_default(),
        volume: String::new(),
        claim: String::new(),
        owner,
        finalizers: of.finalizers().to_vec(),
        terminating: of.meta().deletion_timestamp.is_some(),
    }
}
