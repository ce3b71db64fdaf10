//! What nodes that are not on this machine show: a pod of ours on each of them, for as long as they are looked at.
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures::future::try_join_all;
use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::{Namespace, Pod};
use kube::api::{DeleteParams, ListParams, PostParams};
use kube::{Api, Client, ResourceExt};
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::kubelet::KUBELET;
use super::news::News;
use super::wait::{self, Look};
use super::{ClusterError, condition, saying};
use crate::clock::Limit;
use crate::ledger::{Facts, Loop};

/// Its namespace; it begins as those of scenarios do, so that whoever sees it knows whose it is.
pub const NAMESPACE: &str = "hf-lookout";
const NAME: &str = "lookout";
/// One reading of one node.
const LIMIT_READ: Duration = Duration::from_secs(30);

/// What one node shows, as `holdfast io look` writes it.
#[derive(Debug, Serialize, Deserialize)]
pub struct Sight {
    /// Tells kernels apart: several nodes may share one.
    pub kernel: String,
    /// Of the node's first process.
    pub mountinfo: String,
    /// Kubelet's folder, as [`super::kubelet::list`] lists it.
    pub kubelet: String,
    /// Loop devices in use: number, backing file, read-only.
    pub loops: Vec<(u32, String, bool)>,
}

/// A pod of ours on every node.
#[derive(Clone)]
pub struct Lookout {
    client: Client,
    label: Arc<(String, String)>,
    /// Pod and node.
    pods: Arc<Vec<(String, String)>>,
}

impl Lookout {
    /// Puts a pod that runs `image` on every node that takes it, whatever its taints, and waits until each of `nodes` has one;
    /// `label` tells whose it is.
    ///
    /// # Errors
    /// If another one is there; if they do not run in their bound, with what is seen of them, and nothing of it stays.
    pub async fn open(
        client: &Client,
        image: &str,
        label: (&str, &str),
        nodes: &[String],
    ) -> Result<Self, ClusterError> {
        claim(client, label).await?;
        match raise(client, image, nodes).await {
            Ok(pods) => Ok(Self {
                client: client.clone(),
                label: Arc::new((label.0.to_owned(), label.1.to_owned())),
                pods: Arc::new(pods),
            }),
            Err(error) => {
                close(client, label).await?;
                Err(error)
            }
        }
    }

    /// What every node shows now: places of the data folder in `roots`, if the driver has one.
    ///
    /// # Errors
    /// If one of them cannot be asked: a missing reading is never "nothing there".
    pub async fn facts(&self, roots: Vec<String>) -> Result<Facts, ClusterError> {
        let sights = try_join_all(self.pods.iter().map(|(pod, node)| self.look(pod, node))).await?;
        Ok(together(sights, roots))
    }

    async fn look(&self, pod: &str, node: &str) -> Result<(String, Sight), ClusterError> {
        let pods: Api<Pod> = wait::api(&self.client, NAMESPACE);
        let unread = |why: String| ClusterError::Setup(format!("node {node} cannot be looked at: {why}"));
        let words = ["/holdfast", "io", "look"];
        let saying = saying::of(&pods, pod, NAME, &words, LIMIT_READ)
            .await
            .map_err(|error| unread(error.to_string()))?;
        if !saying.in_time {
            return Err(unread(format!("no answer in {LIMIT_READ:?}")));
        }
        let sight = serde_json::from_str(&saying.said)
            .map_err(|error| unread(format!("{error}; {}", saying.complaints)))?;
        Ok((node.to_owned(), sight))
    }

    /// Takes the pods away, and waits until their namespace is gone.
    ///
    /// # Errors
    /// If it is not in its bound.
    pub async fn close(self) -> Result<(), ClusterError> {
        let (key, value) = &*self.label;
        close(&self.client, (key, value)).await
    }
}

/// Takes away what [`Lookout::open`] made with this label, if it is there.
///
/// # Errors
/// If it is not gone in its bound.
pub async fn close(client: &Client, (key, value): (&str, &str)) -> Result<(), ClusterError> {
    let namespaces: Api<Namespace> = Api::all(client.clone());
    let found = namespaces
        .get_opt(NAMESPACE)
        .await
        .map_err(api("read the namespace of the lookout"))?;
    if found.is_none_or(|found| found.labels().get(key).is_none_or(|of| of != value)) {
        return Ok(());
    }
    match namespaces.delete(NAMESPACE, &DeleteParams::default()).await {
        Ok(_) => {}
        Err(kube::Error::Api(status)) if status.code == 404 => return Ok(()),
        // Terminating already.
        Err(kube::Error::Api(status)) if status.code == 409 => {}
        Err(error) => return Err(api("delete the namespace of the lookout")(error)),
    }
    let what = format!("namespace {NAMESPACE} is gone");
    Ok(wait::gone(&News::default(), &namespaces, &what, NAMESPACE, Limit::DELETE).await?)
}

fn api(doing: &'static str) -> impl FnOnce(kube::Error) -> ClusterError {
    move |source| ClusterError::Api {
        doing,
        source: Box::new(source),
    }
}

fn object<K: serde::de::DeserializeOwned>(json: serde_json::Value) -> Result<K, ClusterError> {
    serde_json::from_value(json)
        .map_err(|error| ClusterError::Setup(format!("an object of the lookout: {error}")))
}

/// Makes the namespace, which can be there once only.
async fn claim(client: &Client, (key, value): (&str, &str)) -> Result<(), ClusterError> {
    let namespace = json!({
        "apiVersion": "v1", "kind": "Namespace",
        "metadata": {"name": NAMESPACE, "labels": {
            key: value,
            // The node's own view of processes and folders is what these pods are for.
            "pod-security.kubernetes.io/enforce": "privileged"}},
    });
    let namespaces = Api::<Namespace>::all(client.clone());
    match namespaces
        .create(&PostParams::default(), &object(namespace)?)
        .await
    {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if status.code == 409 => Err(ClusterError::Setup(format!(
            "namespace {NAMESPACE} is there: somebody looks at the nodes of this cluster, or was killed while he did; if so, \
             `kubectl delete namespace {NAMESPACE}` removes what is left"
        ))),
        Err(error) => Err(api("create the namespace of the lookout")(error)),
    }
}

async fn raise(
    client: &Client,
    image: &str,
    nodes: &[String],
) -> Result<Vec<(String, String)>, ClusterError> {
    let sets: Api<DaemonSet> = wait::api(client, NAMESPACE);
    sets.create(&PostParams::default(), &object(set(image))?)
        .await
        .map_err(api("create the pods of the lookout"))?;
    let pods: Api<Pod> = wait::api(client, NAMESPACE);
    let look = || async {
        let list = match pods.list(&ListParams::default()).await {
            Ok(list) => list.items,
            Err(error) => return Look::NotYet(format!("the API server: {error}")),
        };
        let mut found = Vec::new();
        for pod in &list {
            match condition::is_ready(pod) {
                Look::Holds(node) => found.push((pod.name_any(), node)),
                Look::NotYet(seen) | Look::Never(seen) => {
                    return Look::NotYet(format!("pod {}: {seen}", pod.name_any()));
                }
            }
        }
        match nodes.iter().find(|node| found.iter().all(|(_, on)| on != *node)) {
            None => Look::Holds(found),
            Some(node) => Look::NotYet(format!("no pod on {node}")),
        }
    };
    Ok(wait::until("a pod of the lookout runs on every node", Limit::POD, look).await?)
}

fn set(image: &str) -> serde_json::Value {
    let labels = json!({"app.kubernetes.io/name": NAME});
    json!({
        "apiVersion": "apps/v1", "kind": "DaemonSet",
        "metadata": {"name": NAME},
        "spec": {
            "selector": {"matchLabels": labels},
            "template": {
                "metadata": {"labels": labels},
                "spec": {
                    // For the mounts of the node's first process.
                    "hostPID": true,
                    "automountServiceAccountToken": false,
                    "terminationGracePeriodSeconds": 1,
                    "tolerations": [{"operator": "Exists"}],
                    "containers": [{
                        "name": NAME, "image": image, "imagePullPolicy": "IfNotPresent",
                        "args": ["io", "stay"],
                        // Kubelet's folders are open to root only; nothing else of root's is needed.
                        "securityContext": {
                            "runAsUser": 0, "allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true,
                            "capabilities": {"drop": ["ALL"]},
                        },
                        "volumeMounts": [{"name": "kubelet", "mountPath": KUBELET, "readOnly": true}],
                    }],
                    "volumes": [{"name": "kubelet", "hostPath": {"path": KUBELET, "type": "Directory"}}],
                },
            },
        },
    })
}

/// Nodes that share a kernel show the same loop devices: those count once, as all of theirs.
fn together(sights: Vec<(String, Sight)>, roots: Vec<String>) -> Facts {
    let mut facts = Facts {
        roots,
        ..Facts::default()
    };
    let mut nodes: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let mut loops = BTreeMap::new();
    for (node, sight) in sights {
        nodes.entry(sight.kernel.clone()).or_default().push(node.clone());
        loops.insert(sight.kernel, sight.loops);
        facts.mountinfo.push((node.clone(), sight.mountinfo));
        facts.kubelet.push((node, sight.kubelet));
    }
    for (kernel, loops) in loops {
        let mut sharing = nodes.remove(&kernel).unwrap_or_default();
        sharing.sort();
        let node = sharing.join(", ");
        facts
            .loops
            .extend(loops.into_iter().map(|(number, backing, read_only)| Loop {
                number,
                backing: Some(backing),
                file: None,
                read_only,
                node: node.clone(),
            }));
    }
    facts
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::Kind;

    fn sight(node: &str, kernel: &str) -> (String, Sight) {
        let pods = "/var/lib/kubelet/pods/u/volumes/kubernetes.io~csi/pvc-1";
        let sight = Sight {
            kernel: kernel.to_owned(),
            mountinfo: format!("9 8 7:3 / {pods}/mount rw - ext4 /dev/loop3 rw"),
            kubelet: format!("{pods}\n"),
            loops: vec![
                (3, String::from("/data/volumes/aa.img"), false),
                (4, String::from("/home/x.img"), false),
            ],
        };
        (node.to_owned(), sight)
    }

    #[test]
    fn a_loop_device_of_a_shared_kernel_counts_once() {
        let sights = vec![sight("w1", "k1"), sight("w2", "k1"), sight("w3", "k2")];
        let ledger = together(sights, vec![String::from("/data/")]).ledger();
        let places = |kind: Kind| -> Vec<String> {
            let of = ledger.entries.iter().filter(|entry| entry.kind == kind);
            of.map(|entry| entry.place.clone()).collect()
        };
        assert_eq!(places(Kind::Loop), ["w1, w2", "w3"]);
        assert_eq!(places(Kind::Mount), ["w1", "w2", "w3"]);
        assert_eq!(places(Kind::KubeletDir), ["w1", "w2", "w3"]);
    }

    #[test]
    fn the_pods_are_what_the_api_takes_for_a_daemon_set() {
        let set: DaemonSet = object(set("x:1")).unwrap();
        let pod = set.spec.template.spec.unwrap();
        assert_eq!(
            (pod.host_pid, pod.containers[0].image.as_deref()),
            (Some(true), Some("x:1"))
        );
    }
}
