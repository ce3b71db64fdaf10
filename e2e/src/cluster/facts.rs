//! Gathers the raw facts of a ledger: from the host's kernel, the backend's folder, the nodes and the API.
use std::collections::BTreeMap;
use std::path::Path;

use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, Pod};
use k8s_openapi::api::storage::v1::{CSINode, VolumeAttachment};
use kube::api::ListParams;
use kube::{Api, Client, ResourceExt};

use super::kind::{Cluster, DATA_DIR};
use super::{ClusterError, at, chart};
use crate::ledger::{Facts, Kind, Object};

/// Kubelet's folders that a CSI volume may leave something in.
const FIND: &str = "find /var/lib/kubelet/pods -mindepth 4 -maxdepth 4 -path '*/volumes/kubernetes.io~csi/*' 2>/dev/null; \
     find /var/lib/kubelet/pods -mindepth 4 -maxdepth 4 -path '*/volumeDevices/kubernetes.io~csi/*' 2>/dev/null; \
     find /var/lib/kubelet/plugins/kubernetes.io/csi -mindepth 2 -maxdepth 3 2>/dev/null | \
     grep -v -e '/volumeDevices/staging$' -e '/volumeDevices/publish$'; true";

/// Where the backend's files lie as the kernel names them in a loop's backing file: on the host, and in a node.
pub fn roots(cluster: &Cluster) -> Vec<String> {
    let slash = |path: &Path| format!("{}/", path.display());
    vec![slash(&cluster.data_dir), slash(Path::new(DATA_DIR))]
}

/// All facts of `cluster` now.
///
/// # Errors
/// If anything cannot be read: a missing reading is never "nothing there".
pub async fn gather(cluster: &Cluster, client: &Client) -> Result<Facts, ClusterError> {
    let mut facts = Facts {
        backend: backend(&cluster.data_dir)?,
        loops: loops()?,
        ..Facts::default()
    };
    for name in &cluster.nodes {
        let node = cluster.node(name);
        facts
            .mountinfo
            .push((name.clone(), node.read("/proc/1/mountinfo").await?));
        let found = node.exec(&["sh", "-c", FIND]).await?.stdout;
        let paths = found.lines().map(str::to_owned).collect();
        facts.kubelet.push((name.clone(), paths));
    }
    facts.objects = objects(client).await.map_err(|source| ClusterError::Api {
        doing: "list the objects of volumes",
        source: Box::new(source),
    })?;
    Ok(facts)
}

/// Files below the data folder, by their path below it; records with their text.
fn backend(root: &Path) -> Result<Vec<(String, String)>, ClusterError> {
    let mut files = Vec::new();
    for folder in ["volumes", "quarantine", "."] {
        let path = root.join(folder);
        let entries = match std::fs::read_dir(&path) {
            Ok(entries) => entries,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            Err(source) => return Err(at(&path, "read")(source)),
        };
        for entry in entries {
            let entry = entry.map_err(at(&path, "read"))?;
            if !entry.file_type().is_ok_and(|kind| kind.is_file()) {
                continue;
            }
            let name = entry.file_name().to_string_lossy().into_owned();
            // A record may go while it is looked at.
            let text = if name.ends_with(".json") {
                std::fs::read_to_string(entry.path()).unwrap_or_default()
            } else {
                String::new()
            };
            let shown = if folder == "." {
                name
            } else {
                format!("{folder}/{name}")
            };
            files.push((shown, text));
        }
    }
    Ok(files)
}

/// The kernel's loop devices: number, backing file if one is attached, read-only flag.
pub(super) fn loops() -> Result<Vec<(u32, Option<String>, bool)>, ClusterError> {
    let sys = Path::new("/sys/block");
    let mut found = Vec::new();
    for entry in std::fs::read_dir(sys).map_err(at(sys, "read"))? {
        let entry = entry.map_err(at(sys, "read"))?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let Some(number) = name.strip_prefix("loop").and_then(|n| n.parse().ok()) else {
            continue;
        };
        let read = |file: &str| {
            std::fs::read_to_string(entry.path().join(file))
                .ok()
                .map(|t| t.trim_end().to_owned())
        };
        let backing = read("loop/backing_file").filter(|file| !file.is_empty());
        found.push((number, backing, read("ro").as_deref() == Some("1")));
    }
    found.sort();
    Ok(found)
}

async fn objects(client: &Client) -> Result<Vec<Object>, kube::Error> {
    let all = ListParams::default();
    let mut objects = Vec::new();
    let mut claims: BTreeMap<String, String> = BTreeMap::new();
    for pv in Api::<PersistentVolume>::all(client.clone()).list(&all).await? {
        let spec = pv.spec.clone().unwrap_or_default();
        let Some(csi) = spec.csi.filter(|csi| csi.driver == chart::DRIVER_NAME) else {
            continue;
        };
        let claim = spec.claim_ref.map_or_else(
            || String::from("no claim"),
            |c| {
                format!(
                    "claim {}/{}",
                    c.namespace.unwrap_or_default(),
                    c.name.unwrap_or_default()
                )
            },
        );
        claims.insert(pv.name_any(), claim.clone());
        objects.push(object(
            Kind::Pv,
            &pv,
            format!("volume {}, {claim}", csi.volume_handle),
        ));
    }
    for va in Api::<VolumeAttachment>::all(client.clone()).list(&all).await? {
        if va.spec.attacher == chart::DRIVER_NAME {
            let pv = va.spec.source.persistent_volume_name.clone().unwrap_or_default();
            let claim = claims.get(&pv).map_or("no claim", String::as_str);
            objects.push(object(
                Kind::Attachment,
                &va,
                format!("pv {pv} on {}, {claim}", va.spec.node_name),
            ));
        }
    }
    for pvc in Api::<PersistentVolumeClaim>::all(client.clone())
        .list(&all)
        .await?
    {
        let class = pvc
            .spec
            .as_ref()
            .and_then(|s| s.storage_class_name.clone())
            .unwrap_or_default();
        objects.push(object(Kind::Pvc, &pvc, format!("claim of class {class:?}")));
    }
    for node in Api::<CSINode>::all(client.clone()).list(&all).await? {
        if node.spec.drivers.iter().any(|d| d.name == chart::DRIVER_NAME) {
            objects.push(object(Kind::CsiNode, &node, String::from("the node plugin")));
        }
    }
    for lease in Api::<Lease>::namespaced(client.clone(), chart::NAMESPACE)
        .list(&all)
        .await?
    {
        objects.push(object(Kind::Lease, &lease, String::from("a sidecar")));
    }
    // Pods are counted by component: their names change with every failover.
    let mut pods: BTreeMap<String, u32> = BTreeMap::new();
    for pod in Api::<Pod>::namespaced(client.clone(), chart::NAMESPACE)
        .list(&all)
        .await?
    {
        let component = pod
            .labels()
            .get("app.kubernetes.io/component")
            .cloned()
            .unwrap_or_default();
        *pods.entry(component).or_insert(0) += 1;
    }
    objects.extend(pods.into_iter().map(|(component, count)| Object {
        kind: Kind::DriverPod,
        name: format!("{component} x {count}"),
        owner: String::from("the driver"),
        finalizers: Vec::new(),
        terminating: false,
    }));
    Ok(objects)
}

fn object<K: ResourceExt>(kind: Kind, of: &K, owner: String) -> Object {
    let name = of
        .namespace()
        .map_or_else(|| of.name_any(), |ns| format!("{ns}/{}", of.name_any()));
    Object {
        kind,
        name,
        owner,
        finalizers: of.finalizers().to_vec(),
        terminating: of.meta().deletion_timestamp.is_some(),
    }
}
