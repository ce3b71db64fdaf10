//! Gathers the raw facts of a ledger: from the host's kernel, the backend's folder, the nodes and the API.
use std::collections::BTreeSet;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::SystemTime;

use futures::future::try_join;
use k8s_openapi::api::core::v1::{PersistentVolume, Pod};
use kube::api::{ListParams, LogParams};
use kube::{Api, ResourceExt};

use super::kind::{Cluster, DATA_DIR, state};
use super::kubelet::{self, KUBELET};
use super::node;
use super::objects::{self, Listed};
use super::shared::Shared;
use super::site::Site;
use super::{ClusterError, at, call, chart, label};
use crate::clock::Clock;
use crate::command::Command;
use crate::ledger::{BackendFile, Call, Facts, FileId, Loop, Memory, parse_calls, parse_listed};

/// Gathers the facts of one cluster, for all who ask at the same time together, and remembers what it saw.
pub struct Gatherer {
    site: Site,
    clock: Clock,
    memory: Mutex<Memory>,
    shared: Shared<Facts>,
}

impl Gatherer {
    /// For the cluster of `site`, in the run of `clock`.
    ///
    /// # Errors
    /// If what earlier runs noted of a cluster of ours cannot be read.
    pub fn new(site: &Site, clock: Clock) -> Result<Self, ClusterError> {
        let noted = match &site.host {
            Some(cluster) => label::nameless(&state(&cluster.name))?,
            None => BTreeSet::new(),
        };
        Ok(Self {
            site: site.clone(),
            clock,
            memory: Mutex::new(Memory::with_nameless(noted)),
            shared: Shared::default(),
        })
    }

    /// All facts, read after this call.
    ///
    /// # Errors
    /// If anything cannot be read: a missing reading is never "nothing there".
    pub async fn gather(&self) -> Result<Arc<Facts>, ClusterError> {
        self.shared.get(self.read()).await
    }

    /// What the driver's containers, those before the last restart too, logged of their calls. It explains a leak and proves
    /// nothing: what cannot be read is left out.
    pub async fn calls(&self) -> Vec<Call> {
        let pods: Api<Pod> = Api::namespaced(self.site.client.clone(), &self.site.driver.namespace);
        let list = pods.list(&ListParams::default()).await.map(|list| list.items);
        let mut calls = Vec::new();
        for pod in list.unwrap_or_default() {
            for previous in [true, false] {
                let parameters = LogParams {
                    container: Some(chart::DRIVER_CONTAINER.to_owned()),
                    previous,
                    ..LogParams::default()
                };
                if let Ok(log) = pods.logs(&pod.name_any(), &parameters).await {
                    calls.extend(parse_calls(&log));
                }
            }
        }
        calls
    }

    /// When the run began whose leaks are looked for.
    pub fn started_at(&self) -> SystemTime {
        self.clock.started_at()
    }

    /// The loop devices over the cluster's files now: number and backing file. Those whose file is deleted are noted for the
    /// removal of the cluster.
    ///
    /// # Errors
    /// If they cannot be read or noted.
    pub async fn own_loops(&self) -> Result<BTreeSet<(u32, String)>, ClusterError> {
        let Some(cluster) = &self.site.host else {
            return Ok(BTreeSet::new());
        };
        let mut facts = of_host(cluster).await?;
        self.learn(&mut facts);
        label::note_nameless(&state(&cluster.name), &facts.nameless())?;
        Ok(facts.own_loops())
    }

    /// Remembers whose volume a PV is: it may be gone before the next reading, and something of the volume not.
    pub fn meets(&self, pv: &PersistentVolume) {
        if let (Some(object), Ok(mut memory)) = (objects::volume(&self.site.driver, pv), self.memory.lock()) {
            memory.meets(object);
        }
    }

    async fn read(&self) -> Result<Facts, ClusterError> {
        let mut facts = match (&self.site.host, &self.site.lookout) {
            (Some(cluster), _) => of_cluster(cluster).await?,
            (None, Some(lookout)) => {
                let data = self.site.driver.data_dir.as_ref();
                lookout
                    .facts(data.map(|data| format!("{data}/")).into_iter().collect())
                    .await?
            }
            // Only the API is to be read.
            (None, None) => Facts::default(),
        };
        // After the nodes: a pod whose folder they showed is in this list, or is gone.
        let listed = Listed::of(&self.site.client, &self.site.driver)
            .await
            .map_err(|source| ClusterError::Api {
                doing: "list the objects of volumes",
                source: Box::new(source),
            })?;
        facts.objects = listed.objects();
        facts.pods = listed.live_pods();
        self.learn(&mut facts);
        Ok(facts)
    }

    fn learn(&self, facts: &mut Facts) {
        if let Ok(mut memory) = self.memory.lock() {
            memory.learn(facts);
        }
    }
}

/// What host and nodes of a cluster of ours show.
async fn of_cluster(cluster: &Cluster) -> Result<Facts, ClusterError> {
    let (mut facts, pids) = try_join(of_host(cluster), node::pids(&cluster.docker, &cluster.nodes)).await?;
    for (name, pid) in cluster.nodes.iter().zip(pids) {
        let pid = pid.ok_or_else(|| ClusterError::Setup(format!("node {name} is off")))?;
        facts.mountinfo.push((name.clone(), node::mountinfo(pid)?));
        let root = format!("/proc/{pid}/root");
        let root = Path::new(&root);
        let listed = kubelet::list(root, Path::new(KUBELET)).map_err(at(root, "list kubelet's folder in"))?;
        facts.kubelet.push((name.clone(), listed));
    }
    Ok(facts)
}

async fn of_host(cluster: &Cluster) -> Result<Facts, ClusterError> {
    let slash = |path: &Path| format!("{}/", path.display());
    let roots = vec![slash(&cluster.data_dir), slash(Path::new(DATA_DIR))];
    data_folder(&cluster.data_dir, roots).await
}

/// What this host has of the data folder `root`: its files, and the kernel's loop devices. `roots` are the folder's places
/// as a loop's backing file may name them.
///
/// # Errors
/// If anything cannot be read.
pub async fn data_folder(root: &Path, roots: Vec<String>) -> Result<Facts, ClusterError> {
    // Before and after the loop devices: a file that comes or goes meanwhile is in one of the two.
    let before = backend(root)?;
    let loops = loops().await?;
    let after = backend(root)?;
    Ok(Facts {
        roots,
        folder: file_id(&std::fs::metadata(root).map_err(at(root, "read"))?),
        files: before.iter().chain(&after).map(|(_, id)| *id).collect(),
        backend: after.into_iter().map(|(file, _)| file).collect(),
        loops,
        ..Facts::default()
    })
}

pub(super) fn file_id(metadata: &std::fs::Metadata) -> FileId {
    let device = metadata.dev();
    FileId {
        device: (nix::sys::stat::major(device), nix::sys::stat::minor(device)),
        inode: metadata.ino(),
    }
}

/// Files below the data folder; records with their text.
fn backend(root: &Path) -> Result<Vec<(BackendFile, FileId)>, ClusterError> {
    let mut files = Vec::new();
    for folder in ["volumes", "requests", "quarantine", "."] {
        let path = root.join(folder);
        let entries = match std::fs::read_dir(&path) {
            Ok(entries) => entries,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            Err(source) => return Err(at(&path, "read")(source)),
        };
        for entry in entries {
            let entry = entry.map_err(at(&path, "read"))?;
            let metadata = match entry.metadata() {
                Ok(metadata) if metadata.is_file() => metadata,
                Ok(_) => continue,
                // It went while it was looked at.
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
                Err(source) => return Err(at(&entry.path(), "read")(source)),
            };
            let name = entry.file_name().to_string_lossy().into_owned();
            let text = if name.ends_with(".json") {
                std::fs::read_to_string(entry.path()).unwrap_or_default()
            } else {
                String::new()
            };
            let path = if folder == "." {
                name
            } else {
                format!("{folder}/{name}")
            };
            files.push((BackendFile { path, text }, file_id(&metadata)));
        }
    }
    Ok(files)
}

/// The kernel's loop devices: those in use by what losetup lists of their status, the free ones by their flag.
///
/// # Errors
/// If they cannot be read.
pub async fn loops() -> Result<Vec<Loop>, ClusterError> {
    let spec = Command::new("losetup").args([
        "--list",
        "--json",
        "--output",
        "NAME,BACK-FILE,BACK-INO,BACK-MAJ:MIN,RO",
    ]);
    let text = call("losetup --list", &spec).await?;
    let mut found = parse_listed(&text).map_err(|error| {
        ClusterError::Setup(format!("{error}: {text}; util-linux 2.36 or newer is needed"))
    })?;
    for (number, backing, read_only) in sysfs()? {
        if backing.is_none() && found.iter().all(|one| one.number != number) {
            found.push(Loop {
                number,
                backing: None,
                file: None,
                read_only,
                node: String::new(),
            });
        }
    }
    found.sort();
    Ok(found)
}

/// The kernel's loop devices as sysfs shows them, without asking any: number, backing file if one is attached, read-only.
///
/// # Errors
/// If sysfs cannot be read.
pub fn sysfs() -> Result<Vec<(u32, Option<String>, bool)>, ClusterError> {
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
