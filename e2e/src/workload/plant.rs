//! Leaks that are made on purpose, one of each kind, so that the ledger itself can be put to the test; and their removal.
//!
//! Everything has a fixed name: whatever a run that was killed has left, [`remove`] of the next one finds.
use std::path::PathBuf;

use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::PersistentVolume;
use k8s_openapi::api::storage::v1::VolumeAttachment;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use kube::core::ClusterResourceScope;
use kube::{Api, Resource, ResourceExt};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::context::{Context, WorkloadError};
use crate::clock::Limit;
use crate::cluster::facts::loops;
use crate::cluster::kind::Cluster;
use crate::cluster::kubelet::KUBELET;
use crate::cluster::site::Site;
use crate::cluster::{ClusterError, at, call, wait};
use crate::command::Command;
use crate::history::What;
use crate::id::folder_of;
use crate::ledger::Kind;

/// PV, attachment and lease.
const NAME: &str = "holdfast-planted";
/// The PV's volume, which the driver does not have.
const VOLUME: &str = "planted-volume";
/// Nobody takes it away but [`remove`].
const FINALIZER: &str = "holdfast.run/planted";
/// Kubelet's folder of a pod that never was.
const POD: &str = "holdfast-planted-pod";
const IMAGE: &str = "planted-image.img";
const RECORD: &str = "planted-record.json";
const HALF: &str = "planted-half.img.tmp";
const LOOP: &str = "planted-loop.img";

/// A staged volume's folder with a mount in it: kubelet's folder, the driver, the volume's folder.
const MOUNT: &str = r#"set -e; s="$1/plugins/kubernetes.io/csi/$2/$3/globalmount"; mkdir -p "$s"; mount -t tmpfs planted "$s""#;
/// The folder of a pod; kubelet removes one without a volume's folder that holds something.
const POD_FOLDER: &str = r#"set -e; v="$1/pods/$2/volumes/kubernetes.io~csi/planted"; mkdir -p "$v"; echo '{}' >"$v/vol_data.json""#;
/// Both away again; kubelet may be quicker with the pod's.
const AWAY: &str = r#"s="$1/plugins/kubernetes.io/csi/$2/$3"; p="$1/pods/$4"; v="$p/volumes/kubernetes.io~csi"
umount "$s/globalmount" 2>/dev/null
rm -f "$v/planted/vol_data.json"
rmdir "$s/globalmount" "$s" "$v/planted" "$v" "$p/volumes" "$p" 2>/dev/null
for place in "$s" "$p"; do [ ! -e "$place" ] || { echo "$place stays" >&2; exit 1; }; done"#;

/// A kind of leak that can be made on a cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Plant {
    /// An image that no record names.
    Image,
    /// A record without an image.
    Record,
    /// An image that was begun and not finished.
    HalfImage,
    /// A loop device, with the image below it.
    Loop,
    /// A mount in a staging folder.
    Mount,
    /// The folder of a pod that the API does not have, with a volume's folder in it.
    PodFolder,
    /// A PV whose finalizer nobody takes away.
    Pv,
    /// An attachment whose finalizer nobody takes away; its PV must be planted before it.
    Attachment,
    /// A lease in the driver's namespace.
    Lease,
}

/// Makes each of `plants`, on `node` where it needs one, and tells the history what the ledger must name.
///
/// # Errors
/// If one cannot be made; what was made before it stays until [`remove`].
pub async fn plant(
    context: &Context,
    site: &Site,
    node: &str,
    plants: &[Plant],
) -> Result<(), WorkloadError> {
    if plants.is_empty() {
        return Err(WorkloadError::Unmet {
            expected: String::from("a kind of leak to plant"),
            seen: String::from("none in the scenario"),
        });
    }
    let host = site.host()?;
    let folder = folder_of(VOLUME);
    let tell = |kind: Kind, name: String, owner: &str| {
        let (kind, owner) = (kind.name().to_owned(), owner.to_owned());
        let planted = What::Planted { kind, name, owner };
        context.recorder.record(Some(&context.scenario), planted);
    };
    let claim = format!("claim {}/planted", context.namespace);
    for plant in plants {
        match plant {
            Plant::Image => {
                file(host, IMAGE, 1 << 20, "")?;
                tell(Kind::ImageAlone, below(IMAGE), "volume planted-image");
            }
            Plant::Record => {
                file(host, RECORD, 0, r#"{"name": "planted"}"#)?;
                tell(
                    Kind::RecordAlone,
                    below(RECORD),
                    "volume planted-record, name planted",
                );
            }
            Plant::HalfImage => {
                file(host, HALF, 0, "half")?;
                tell(Kind::HalfImage, below(HALF), "volume planted-half");
            }
            Plant::Loop => {
                let path = file(host, LOOP, 1 << 20, "")?;
                let attach = Command::new("losetup").args(["--find", "--show"]).arg(&path);
                call("attach a loop device", &attach).await?;
                let inode = inode(&path)?;
                tell(Kind::ImageAlone, below(LOOP), "volume planted-loop");
                let name = format!("{} (inode {inode})", below(LOOP));
                tell(Kind::Loop, name, "volume planted-loop");
            }
            Plant::Mount => {
                let words = ["sh", "-c", MOUNT, "mount", KUBELET, &context.driver.name, &folder];
                host.node(node).exec(&words).await?;
                // Only the PV tells whose volume the folder is.
                let owner = if plants.contains(&Plant::Pv) {
                    claim.as_str()
                } else {
                    ""
                };
                let staging = format!("/kubernetes.io/csi/{}/{folder}", context.driver.name);
                tell(Kind::KubeletDir, staging.clone(), owner);
                tell(Kind::KubeletDir, format!("{staging}/globalmount"), owner);
                tell(Kind::Mount, format!("{staging}/globalmount (tmpfs)"), owner);
            }
            Plant::PodFolder => {
                let words = ["sh", "-c", POD_FOLDER, "pod", KUBELET, POD];
                host.node(node).exec(&words).await?;
                tell(
                    Kind::PodDir,
                    format!("pods/{POD}"),
                    "a pod that the API does not have",
                );
                let volume = format!("/pods/{POD}/volumes/kubernetes.io~csi/planted");
                tell(Kind::KubeletDir, volume, "kubelet");
            }
            Plant::Pv => {
                pv(context).await?;
                tell(Kind::Pv, NAME.to_owned(), &claim);
            }
            Plant::Attachment => {
                attachment(context, node).await?;
                tell(
                    Kind::Attachment,
                    NAME.to_owned(),
                    &format!("pv {NAME} on {node}, {claim}"),
                );
            }
            Plant::Lease => {
                lease(context).await?;
                let name = format!("{}/{NAME}", context.driver.namespace);
                tell(Kind::Lease, name, "held by planted");
            }
        }
    }
    Ok(())
}

fn below(name: &str) -> String {
    format!("volumes/{name}")
}

fn file(host: &Cluster, name: &str, size_bytes: u64, text: &str) -> Result<PathBuf, ClusterError> {
    let path = host.data_dir.join(below(name));
    std::fs::write(&path, text).map_err(at(&path, "write"))?;
    if size_bytes > 0 {
        let file = std::fs::OpenOptions::new().write(true).open(&path);
        file.and_then(|file| file.set_len(size_bytes))
            .map_err(at(&path, "enlarge"))?;
    }
    Ok(path)
}

fn inode(path: &std::path::Path) -> Result<u64, ClusterError> {
    use std::os::unix::fs::MetadataExt;
    Ok(std::fs::metadata(path).map_err(at(path, "read"))?.ino())
}

async fn pv(context: &Context) -> Result<(), WorkloadError> {
    let object: PersistentVolume = context.object(json!({
        "apiVersion": "v1", "kind": "PersistentVolume",
        "metadata": {"name": NAME, "finalizers": [FINALIZER]},
        "spec": {
            "capacity": {"storage": "1Mi"}, "accessModes": ["ReadWriteOnce"],
            // Whoever else sees it leaves it alone.
            "persistentVolumeReclaimPolicy": "Retain", "storageClassName": NAME,
            "claimRef": {"namespace": context.namespace, "name": "planted"},
            "csi": {"driver": context.driver.name, "volumeHandle": VOLUME},
        }
    }))?;
    stuck(context, Api::all(context.client.clone()), &object).await
}

async fn attachment(context: &Context, node: &str) -> Result<(), WorkloadError> {
    let object: VolumeAttachment = context.object(json!({
        "apiVersion": "storage.k8s.io/v1", "kind": "VolumeAttachment",
        "metadata": {"name": NAME, "finalizers": [FINALIZER]},
        "spec": {"attacher": context.driver.name, "nodeName": node, "source": {"persistentVolumeName": NAME}}
    }))?;
    stuck(context, Api::all(context.client.clone()), &object).await
}

/// Makes it, and asks for its deletion, which the finalizer holds up.
async fn stuck<K>(context: &Context, api: Api<K>, object: &K) -> Result<(), WorkloadError>
where
    K: Clone + DeserializeOwned + Serialize + std::fmt::Debug,
{
    api.create(&PostParams::default(), object)
        .await
        .map_err(context.api("plant an object"))?;
    api.delete(NAME, &DeleteParams::default())
        .await
        .map(drop)
        .map_err(context.api("delete a planted object"))
}

async fn lease(context: &Context) -> Result<(), WorkloadError> {
    let object: Lease = context.object(json!({
        "apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
        "metadata": {"name": NAME}, "spec": {"holderIdentity": "planted"}
    }))?;
    let leases: Api<Lease> = Api::namespaced(context.client.clone(), &context.driver.namespace);
    leases
        .create(&PostParams::default(), &object)
        .await
        .map(drop)
        .map_err(context.api("plant a lease"))
}

/// Takes away everything that [`plant`] makes, whatever of it is there.
///
/// # Errors
/// If something stays.
pub async fn remove(site: &Site) -> Result<(), ClusterError> {
    let host = site.host()?;
    // The attacher needs the PV to detach.
    let attachments: Api<VolumeAttachment> = Api::all(site.client.clone());
    release(&attachments).await?;
    let volumes: Api<PersistentVolume> = Api::all(site.client.clone());
    release(&volumes).await?;
    let leases: Api<Lease> = Api::namespaced(site.client.clone(), &site.driver.namespace);
    gone(leases.delete(NAME, &DeleteParams::default()).await)?;
    let (folder, driver) = (folder_of(VOLUME), site.driver.name.as_str());
    for name in &host.nodes {
        let words = ["sh", "-c", AWAY, "away", KUBELET, driver, &folder, POD];
        host.node(name).exec(&words).await?;
    }
    let image = host.data_dir.join(below(LOOP)).display().to_string();
    for one in loops()
        .await?
        .iter()
        .filter(|one| one.backing.as_ref() == Some(&image))
    {
        let detach = Command::new("losetup").args(["--detach", &format!("/dev/loop{}", one.number)]);
        call("detach a loop device", &detach).await?;
    }
    for name in [IMAGE, RECORD, HALF, LOOP] {
        let path = host.data_dir.join(below(name));
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(at(&path, "remove")(error));
            }
            Ok(()) | Err(_) => {}
        }
    }
    Ok(())
}

fn gone<T>(deleted: Result<T, kube::Error>) -> Result<(), ClusterError> {
    match deleted {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
        Err(source) => Err(refused(source)),
    }
}

fn refused(source: kube::Error) -> ClusterError {
    ClusterError::Api {
        doing: "remove what was planted",
        source: Box::new(source),
    }
}

/// Takes our finalizer away, leaves those of others to them, and waits until the object is gone.
async fn release<K>(api: &Api<K>) -> Result<(), ClusterError>
where
    K: Clone + DeserializeOwned + std::fmt::Debug + Resource<Scope = ClusterResourceScope>,
{
    gone(api.delete(NAME, &DeleteParams::default()).await)?;
    // Another one's finalizer may come or go between the two calls: the version makes that a conflict, and a second try.
    let look = || async {
        let object = match api.get_opt(NAME).await {
            Ok(Some(object)) => object,
            Ok(None) => return wait::Look::Holds(()),
            Err(error) => return wait::Look::NotYet(error.to_string()),
        };
        let held = object.finalizers();
        if held.iter().any(|f| f == FINALIZER) {
            let rest: Vec<_> = held.iter().filter(|f| *f != FINALIZER).collect();
            let patch =
                json!({"metadata": {"resourceVersion": object.resource_version(), "finalizers": rest}});
            if let Err(error) = api
                .patch(NAME, &PatchParams::default(), &Patch::Merge(&patch))
                .await
            {
                return wait::Look::NotYet(error.to_string());
            }
        }
        wait::Look::NotYet(format!("held by {held:?}"))
    };
    wait::until(&format!("{NAME} is gone"), Limit::DELETE, look)
        .await
        .map_err(|error| ClusterError::Setup(error.to_string()))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::cluster::kubelet;

    async fn sh(script: &str, kubelet: &Path, rest: &[&str]) -> String {
        let spec = Command::new("sh")
            .args(["-c", script, "test"])
            .arg(kubelet)
            .args(rest);
        crate::command::run(&spec).await.unwrap().stdout
    }

    #[tokio::test]
    async fn what_is_planted_on_a_node_is_listed_and_goes_whole() {
        let folder = tempfile::tempdir().unwrap();
        let kubelet = folder.path();
        let listed = || kubelet::list(Path::new("/"), kubelet).unwrap();
        let staging = kubelet.join("plugins/kubernetes.io/csi/d/f/globalmount");
        // The mount itself needs root: e2e/tests/planted.rs.
        std::fs::create_dir_all(&staging).unwrap();
        sh(POD_FOLDER, kubelet, &[POD]).await;
        let found = listed();
        for end in [
            "/csi/d/f",
            "/csi/d/f/globalmount",
            "/holdfast-planted-pod/volumes/kubernetes.io~csi/planted",
            "pod holdfast-planted-pod ",
        ] {
            assert!(
                found.lines().any(|line| line.ends_with(end)),
                "{end} in:\n{found}"
            );
        }
        for _ in 0..2 {
            sh(AWAY, kubelet, &["d", "f", POD]).await;
            assert_eq!(listed(), "");
        }
    }
}
