//! Watches the API and every node's mounts, and writes what it sees into the history.
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{Read, Seek};
use std::os::fd::AsFd;
use std::sync::Arc;

use futures::StreamExt;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, Pod};
use k8s_openapi::api::storage::v1::{CSINode, VolumeAttachment};
use kube::runtime::watcher::{self, Event as Seen, watcher};
use kube::{Api, Resource, ResourceExt};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde::de::DeserializeOwned;
use tokio::task::JoinSet;

use super::driver::Driver;
use super::facts::{self, Gatherer};
use super::node::Node;
use super::site::Site;
use crate::clock::Limit;
use crate::history::{Change, Recorder, What};
use crate::ledger::{CsiMount, csi_mounts};

type Facts = BTreeMap<String, String>;

/// Where the scheduler writes the node of a claim's first pod.
const SELECTED_NODE: &str = "volume.kubernetes.io/selected-node";

/// Starts watching; it ends when the returned set is dropped.
pub async fn start(site: &Site, gatherer: &Arc<Gatherer>, recorder: &Recorder) -> JoinSet<()> {
    let mut tasks = JoinSet::new();
    let remembering = Arc::clone(gatherer);
    tasks.spawn(watch(
        site,
        recorder,
        move |pv: &PersistentVolume, driver: &Driver| {
            remembering.meets(pv);
            pv_facts(pv, driver)
        },
    ));
    tasks.spawn(watch::<PersistentVolumeClaim, _>(site, recorder, pvc_facts));
    tasks.spawn(watch::<VolumeAttachment, _>(site, recorder, attachment_facts));
    tasks.spawn(watch::<Pod, _>(site, recorder, pod_facts));
    tasks.spawn(watch::<CSINode, _>(site, recorder, csi_node_facts));
    tasks.spawn(watch::<Lease, _>(site, recorder, lease_facts));
    let Some(cluster) = &site.host else {
        return tasks;
    };
    tasks.spawn(loops(Arc::clone(gatherer), recorder.clone()));
    for node in &cluster.nodes {
        tasks.spawn(mounts(cluster.node(node), recorder.clone()));
    }
    tasks
}

/// Watches the objects of `K`: what `facts` finds in them goes into the history, and after that whoever waits for them hears.
fn watch<K, F>(site: &Site, recorder: &Recorder, facts: F) -> impl Future<Output = ()> + Send + use<K, F>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + std::fmt::Debug + Send + Sync + 'static,
    F: Fn(&K, &Driver) -> Option<Facts> + Send,
{
    let (client, driver, recorder) = (site.client.clone(), Arc::clone(&site.driver), recorder.clone());
    let teller = site.news.teller::<K>();
    async move {
        let mut sight = Sight::new(recorder);
        let mut stream = std::pin::pin!(watcher(Api::<K>::all(client), watcher::Config::default()));
        while let Some(seen) = stream.next().await {
            match seen {
                Ok(Seen::Apply(object) | Seen::InitApply(object)) => {
                    if let Some(facts) = facts(&object, &driver) {
                        sight.present(&object, facts);
                    }
                    teller.tell(&object);
                }
                Ok(Seen::Delete(object)) => {
                    sight.gone(&object.uid().unwrap_or_default());
                    teller.tell(&object);
                }
                Ok(Seen::Init) => sight.listed.clear(),
                Ok(Seen::InitDone) => sight.unlisted().iter().for_each(|object| teller.tell(object)),
                Err(error) => tracing::debug!(%error, kind = %K::kind(&()), "the watch is taken up again"),
            }
        }
    }
}

/// The objects of one kind as they were last seen.
struct Sight<K> {
    recorder: Recorder,
    known: BTreeMap<String, (K, Facts)>,
    /// Those of the list that is being read, by UID.
    listed: BTreeSet<String>,
}

impl<K: Resource<DynamicType = ()> + Clone> Sight<K> {
    fn new(recorder: Recorder) -> Self {
        Self {
            recorder,
            known: BTreeMap::new(),
            listed: BTreeSet::new(),
        }
    }

    fn present(&mut self, object: &K, now: Facts) {
        let uid = object.uid().unwrap_or_default();
        self.listed.insert(uid.clone());
        // Most writes change nothing that a verdict needs, such as a heartbeat.
        if self.known.get(&uid).is_none_or(|(_, before)| *before != now) {
            self.record(Change::Present, object, now.clone());
            self.known.insert(uid, (object.clone(), now));
        }
    }

    fn gone(&mut self, uid: &str) -> Option<K> {
        let (object, before) = self.known.remove(uid)?;
        self.record(Change::Gone, &object, before);
        Some(object)
    }

    /// Those that went while the watch was broken off.
    fn unlisted(&mut self) -> Vec<K> {
        let listed = &self.listed;
        let gone: Vec<String> = self
            .known
            .keys()
            .filter(|uid| !listed.contains(*uid))
            .cloned()
            .collect();
        gone.iter().filter_map(|uid| self.gone(uid)).collect()
    }

    fn record(&self, change: Change, object: &K, facts: Facts) {
        let told = What::Object {
            change,
            kind: K::kind(&()).into_owned(),
            namespace: object.namespace().unwrap_or_default(),
            name: object.name_any(),
            facts,
        };
        self.recorder.record(None, told);
    }
}

fn common<K: Resource>(object: &K) -> Facts {
    let mut facts = Facts::new();
    if object.meta().deletion_timestamp.is_some() {
        facts.insert("deleting".into(), "true".into());
    }
    if !object.finalizers().is_empty() {
        facts.insert("finalizers".into(), object.finalizers().join(","));
    }
    facts
}

fn put(facts: &mut Facts, key: &str, value: Option<impl ToString>) {
    if let Some(value) = value {
        facts.insert(key.into(), value.to_string());
    }
}

fn pv_facts(pv: &PersistentVolume, driver: &Driver) -> Option<Facts> {
    let spec = pv.spec.as_ref()?;
    let csi = spec.csi.as_ref().filter(|csi| csi.driver == driver.name)?;
    let mut facts = common(pv);
    facts.insert("handle".into(), csi.volume_handle.clone());
    put(
        &mut facts,
        "claim",
        spec.claim_ref.as_ref().map(|claim| {
            format!(
                "{}/{}",
                claim.namespace.as_deref().unwrap_or_default(),
                claim.name.as_deref().unwrap_or_default()
            )
        }),
    );
    put(
        &mut facts,
        "phase",
        pv.status.as_ref().and_then(|status| status.phase.clone()),
    );
    put(&mut facts, "mode", spec.volume_mode.clone());
    put(
        &mut facts,
        "policy",
        spec.persistent_volume_reclaim_policy.clone(),
    );
    Some(facts)
}

fn pvc_facts(pvc: &PersistentVolumeClaim, _: &Driver) -> Option<Facts> {
    pvc.namespace().filter(|namespace| namespace.starts_with("hf-"))?;
    let mut facts = common(pvc);
    put(
        &mut facts,
        "phase",
        pvc.status.as_ref().and_then(|status| status.phase.clone()),
    );
    put(
        &mut facts,
        "pv",
        pvc.spec.as_ref().and_then(|spec| spec.volume_name.clone()),
    );
    // With WaitForFirstConsumer the provisioner begins when the scheduler has chosen a node.
    put(&mut facts, "node", pvc.annotations().get(SELECTED_NODE));
    Some(facts)
}

fn attachment_facts(attachment: &VolumeAttachment, driver: &Driver) -> Option<Facts> {
    if attachment.spec.attacher != driver.name {
        return None;
    }
    let mut facts = common(attachment);
    put(
        &mut facts,
        "pv",
        attachment.spec.source.persistent_volume_name.clone(),
    );
    facts.insert("node".into(), attachment.spec.node_name.clone());
    if let Some(status) = &attachment.status {
        facts.insert("attached".into(), status.attached.to_string());
        put(
            &mut facts,
            "error",
            status
                .attach_error
                .as_ref()
                .and_then(|error| error.message.clone()),
        );
    }
    Some(facts)
}

fn pod_facts(pod: &Pod, driver: &Driver) -> Option<Facts> {
    pod.namespace()
        .filter(|namespace| namespace.starts_with("hf-") || *namespace == driver.namespace)?;
    let mut facts = common(pod);
    put(&mut facts, "uid", pod.uid());
    put(
        &mut facts,
        "node",
        pod.spec.as_ref().and_then(|spec| spec.node_name.clone()),
    );
    if let Some(status) = &pod.status {
        put(&mut facts, "phase", status.phase.clone());
        let restarts: i32 = status
            .container_statuses
            .iter()
            .flatten()
            .map(|container| container.restart_count)
            .sum();
        facts.insert("restarts".into(), restarts.to_string());
    }
    Some(facts)
}

fn csi_node_facts(node: &CSINode, driver: &Driver) -> Option<Facts> {
    let mut facts = Facts::new();
    let registered = node.spec.drivers.iter().any(|plugin| plugin.name == driver.name);
    facts.insert("registered".into(), registered.to_string());
    Some(facts)
}

fn lease_facts(lease: &Lease, driver: &Driver) -> Option<Facts> {
    lease
        .namespace()
        .filter(|namespace| *namespace == driver.namespace)?;
    let mut facts = Facts::new();
    put(
        &mut facts,
        "holder",
        lease.spec.as_ref().and_then(|spec| spec.holder_identity.clone()),
    );
    Some(facts)
}

/// Follows one node's mounts, also when it was switched off and on: then they are other ones.
async fn mounts(node: Node, recorder: Recorder) {
    let mut known: BTreeSet<CsiMount> = BTreeSet::new();
    let mut ticks = tokio::time::interval(Limit::LOOK);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        // A node that is off has no first process; it is looked for again.
        let Ok(Some(pid)) = node.pid().await else { continue };
        if let Ok(file) = File::open(format!("/proc/{pid}/mountinfo")) {
            of_process(file, pid, &node.name, &recorder, &mut known).await;
            // With the process its mount namespace went.
            tell(&recorder, &node.name, Change::Gone, known.iter());
            known.clear();
        }
    }
}

fn tell<'a>(recorder: &Recorder, node: &str, change: Change, mounts: impl Iterator<Item = &'a CsiMount>) {
    for mount in mounts {
        recorder.record(
            None,
            What::Mount {
                change,
                node: node.to_owned(),
                path: mount.path.clone(),
                source: mount.source.clone(),
            },
        );
    }
}

/// Follows the mounts of one process as long as it lives. The kernel wakes a reader of mountinfo at every change of its
/// mount namespace; the open file keeps that namespace and every mount in it alive, so it must not outlive the process, or a
/// node that was switched off would seem to keep its devices.
async fn of_process(
    mut file: File,
    pid: u32,
    node: &str,
    recorder: &Recorder,
    known: &mut BTreeSet<CsiMount>,
) {
    // A process that ended has no namespaces, even before it is reaped.
    let namespace = format!("/proc/{pid}/ns/mnt");
    while std::fs::read_link(&namespace).is_ok() {
        let mut text = String::new();
        if let Err(error) = file.rewind().and_then(|()| file.read_to_string(&mut text)) {
            return tracing::debug!(%error, node, "its mounts cannot be read");
        }
        let now: BTreeSet<CsiMount> = csi_mounts(&text).into_iter().collect();
        tell(recorder, node, Change::Gone, known.difference(&now));
        tell(recorder, node, Change::Present, now.difference(known));
        *known = now;
        let woken = tokio::task::spawn_blocking(move || {
            wait_for_change(&file);
            file
        });
        match woken.await {
            Ok(back) => file = back,
            Err(error) => return tracing::debug!(%error, node, "its mounts are no longer observed"),
        }
    }
}

/// Should a wake-up be lost, or the wait fail, the next look is half a second away.
fn wait_for_change(file: &File) {
    let mut wanted = [PollFd::new(file.as_fd(), PollFlags::POLLPRI)];
    // A signal in between only means to look earlier.
    let _ = poll(&mut wanted, PollTimeout::from(500u16));
}

/// Follows the loop devices over the backend's files: sysfs wakes nobody, so it is looked at again and again; only when it
/// shows another picture the devices themselves are asked whose they are.
async fn loops(gatherer: Arc<Gatherer>, recorder: Recorder) {
    let mut known: BTreeSet<(u32, String)> = BTreeSet::new();
    let mut picture = Vec::new();
    let mut ticks = tokio::time::interval(Limit::LOOK);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        // What cannot be read now is read at the next look.
        let Ok(all) = facts::sysfs() else { continue };
        if all == picture {
            continue;
        }
        let Ok(now) = gatherer.own_loops().await else {
            continue;
        };
        picture = all;
        let changed = |change, (number, backing): &(u32, String)| {
            recorder.record(
                None,
                What::Loop {
                    change,
                    number: *number,
                    backing: backing.clone(),
                },
            );
        };
        known.difference(&now).for_each(|one| changed(Change::Gone, one));
        now.difference(&known)
            .for_each(|one| changed(Change::Present, one));
        known = now;
    }
}
