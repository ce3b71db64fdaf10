//! One leak of every kind that the ledger covers is planted, and the ledger's difference names it and its owner.
//!
//! Files, loop devices and mounts are real ones; objects of the API are what a server would list.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test fails by panicking
mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::{Mutex, MutexGuard, PoisonError};

use holdfast_e2e::cluster::driver::Driver;
use holdfast_e2e::cluster::facts::data_folder;
use holdfast_e2e::cluster::objects::Listed;
use holdfast_e2e::cluster::{kubelet, label};
use holdfast_e2e::id::folder_of;
use holdfast_e2e::ledger::{Diff, Facts, Kind, Ledger, Memory, diff};
use libtest_mimic::{Arguments, Failed, Trial};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use serde_json::{Value, json};
use support::{Found, check, is_root, trial};
use tempfile::TempDir;

/// The volume that is there before and after, its name, claim and pod.
const VOLUME: &str = "3f9c";
const PV: &str = "pvc-71";
const CLAIM: &str = "t-81/data-0";
const POD: &str = "0b5d-81";
const DRIVER: &str = "holdfast.csi";
const SYSTEM: &str = "holdfast-system";

/// A data folder, a kubelet folder, and an API, as one node and one server would show them.
struct World {
    folder: TempDir,
    objects: Objects,
    memory: Memory,
}

#[derive(Default)]
struct Objects(Vec<Value>);

impl Objects {
    fn listed(&self) -> Listed {
        let mut listed = Listed::nothing(Driver::own().expect("the own driver's file"));
        for object in &self.0 {
            let object = object.clone();
            match object["kind"].as_str().unwrap() {
                "PersistentVolume" => listed.volumes.push(serde_json::from_value(object).unwrap()),
                "PersistentVolumeClaim" => listed.claims.push(serde_json::from_value(object).unwrap()),
                "VolumeAttachment" => listed.attachments.push(serde_json::from_value(object).unwrap()),
                "CSINode" => listed.csi_nodes.push(serde_json::from_value(object).unwrap()),
                "Lease" => listed.leases.push(serde_json::from_value(object).unwrap()),
                "Pod" => listed.pods.push(serde_json::from_value(object).unwrap()),
                kind => panic!("{kind}"),
            }
        }
        listed
    }
}

impl World {
    /// With one volume in use, which is no leak.
    fn new() -> Self {
        let folder = tempfile::Builder::new().prefix("hf-planted-").tempdir().unwrap();
        let world = Self {
            folder,
            objects: Objects(vec![
                pv(PV, VOLUME, CLAIM, "Bound"),
                json!({"kind": "Pod", "metadata": {"name": "writer", "namespace": "t-81", "uid": POD}}),
                plugin_pod("holdfast-node-a", "w1"),
            ]),
            memory: Memory::default(),
        };
        fs::create_dir_all(world.data("volumes")).unwrap();
        world.image(VOLUME);
        world.record(VOLUME, PV);
        fs::create_dir_all(world.kubelet("pods").join(POD)).unwrap();
        fs::create_dir_all(world.kubelet("plugins/kubernetes.io/csi")).unwrap();
        world
    }

    fn data(&self, path: &str) -> PathBuf {
        self.folder.path().join("data").join(path)
    }

    fn kubelet(&self, path: &str) -> PathBuf {
        self.folder.path().join("kubelet").join(path)
    }

    /// Kubelet's staging folder of a volume.
    fn staging(&self, volume: &str) -> PathBuf {
        let folder = self.kubelet("plugins/kubernetes.io/csi").join(DRIVER);
        folder.join(folder_of(volume))
    }

    fn image(&self, volume: &str) -> PathBuf {
        let path = self.data(&format!("volumes/{volume}.img"));
        fs::File::create(&path).unwrap().set_len(1 << 20).unwrap();
        path
    }

    fn record(&self, volume: &str, name: &str) {
        let text = json!({"version": 1, "id": volume, "name": name}).to_string();
        fs::write(self.data(&format!("volumes/{volume}.json")), text).unwrap();
    }

    fn facts(&mut self) -> Facts {
        let root = format!("{}/", self.folder.path().display());
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        // Both folders of a test lie below this root: only their files tell them apart.
        let mut facts = runtime
            .block_on(data_folder(
                &self.data(""),
                vec![format!("{root}data/"), root.clone()],
            ))
            .unwrap();
        let mountinfo = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let ours: Vec<_> = mountinfo.lines().filter(|line| line.contains(&root)).collect();
        facts.mountinfo.push((String::from("w1"), ours.join("\n")));
        let listed = kubelet::list(Path::new("/"), &self.kubelet("")).unwrap();
        facts
            .kubelet
            .push((String::from("w1"), listed.replace("kubelet//", "kubelet/")));
        let listed = self.objects.listed();
        facts.objects = listed.objects();
        facts.pods = listed.live_pods();
        self.memory.learn(&mut facts);
        facts
    }

    fn ledger(&mut self) -> Ledger {
        self.facts().ledger()
    }
}

fn pv(name: &str, volume: &str, claim: &str, phase: &str) -> Value {
    let (namespace, of) = claim.split_once('/').unwrap();
    json!({
        "kind": "PersistentVolume", "metadata": {"name": name},
        "spec": {
            "csi": {"driver": DRIVER, "volumeHandle": volume},
            "claimRef": {"namespace": namespace, "name": of},
        },
        "status": {"phase": phase},
    })
}

fn plugin_pod(name: &str, node: &str) -> Value {
    json!({
        "kind": "Pod",
        "metadata": {
            "name": name, "namespace": SYSTEM, "uid": name,
            "labels": {"app.kubernetes.io/component": "node"},
        },
        "spec": {"nodeName": node, "containers": []},
    })
}

/// One thing outlived and nothing is missing; its kind, and words of its line.
fn names_it(found: &Diff, kind: Kind, words: &[&str]) -> Result<(), Failed> {
    let kinds: Vec<_> = found.left.iter().map(|e| e.kind).collect();
    check(kinds == [kind] && found.lost.is_empty(), || {
        format!("{kind:?} was planted, found:\n{}", found.lines().join("\n"))
    })?;
    let line = found.lines().join("\n");
    check(words.iter().all(|word| line.contains(word)), || {
        format!("{words:?} are to be in the line:\n{line}")
    })
}

/// Plants by `plant`, and expects one line of `kind` with `words`.
fn planted(
    kind: Kind,
    words: &[&str],
    plant: impl FnOnce(&mut World) -> Vec<Box<dyn std::any::Any>>,
) -> Result<(), Failed> {
    let mut world = World::new();
    let before = world.ledger();
    let kept = plant(&mut world);
    let found = diff(&before, &world.ledger());
    drop(kept);
    names_it(&found, kind, words)
}

fn file_cases() -> Vec<Trial> {
    let here: Found<()> = Ok(());
    type Plant = fn(&World);
    let cases: Vec<(&str, Kind, &[&str], Plant)> = vec![
        (
            "stray_image",
            Kind::ImageAlone,
            &["volumes/aa.img", "owner volume aa"],
            |world| drop(world.image("aa")),
        ),
        (
            "record_without_image",
            Kind::RecordAlone,
            &["volumes/bb.json", "owner volume bb, name pvc-9"],
            |world| world.record("bb", "pvc-9"),
        ),
        (
            "half_made_image",
            Kind::HalfImage,
            &["volumes/3f9c.img.tmp", "claim t-81/data-0"],
            |world| fs::write(world.data("volumes/3f9c.img.tmp"), "").unwrap(),
        ),
        (
            "request_to_a_node",
            Kind::Request,
            &["requests/3f9c.json", "claim t-81/data-0"],
            |world| {
                fs::create_dir_all(world.data("requests")).unwrap();
                fs::write(world.data("requests/3f9c.json"), "{}").unwrap();
            },
        ),
        (
            "half_made_record",
            Kind::Stray,
            &["volumes/3f9c.json.tmp", "claim t-81/data-0"],
            |world| fs::write(world.data("volumes/3f9c.json.tmp"), "").unwrap(),
        ),
        (
            "staging_folder",
            Kind::KubeletDir,
            &["kubernetes.io/csi/holdfast.csi/", "claim t-81/data-0"],
            |world| fs::create_dir_all(world.staging(VOLUME)).unwrap(),
        ),
        (
            "folder_of_a_volume_in_a_pod",
            Kind::KubeletDir,
            &["kubernetes.io~csi/pvc-71", "claim t-81/data-0, pod t-81/writer"],
            |world| {
                let pod = world.kubelet("pods").join(POD);
                fs::create_dir_all(pod.join("volumes/kubernetes.io~csi").join(PV)).unwrap();
            },
        ),
    ];
    cases
        .into_iter()
        .map(|(name, kind, words, plant)| {
            trial(name, &here, move |()| {
                planted(kind, words, |world| {
                    plant(world);
                    Vec::new()
                })
            })
        })
        .collect()
}

/// Kubelet's record of a staged volume stays where its folder did: the folder was there before, so the file alone is new.
fn left_over_vol_data() -> Result<(), Failed> {
    let mut world = World::new();
    fs::create_dir_all(world.staging(VOLUME)).unwrap();
    let before = world.ledger();
    fs::write(world.staging(VOLUME).join("vol_data.json"), "{}").unwrap();
    let found = diff(&before, &world.ledger());
    names_it(&found, Kind::KubeletDir, &["vol_data.json", "claim t-81/data-0"])
}

/// The pod goes from the API, its folder stays; the file of its hosts tells its name where no earlier reading does.
fn left_over_pod_folder() -> Result<(), Failed> {
    let mut world = World::new();
    let before = world.ledger();
    world.objects.0.retain(|o| o["metadata"]["uid"] != POD);
    let found = diff(&before, &world.ledger());
    names_it(
        &found,
        Kind::PodDir,
        &["pods/0b5d-81", "pod t-81/writer, which the API no longer has"],
    )?;

    let mut world = World::new();
    let before = world.ledger();
    fs::create_dir_all(world.kubelet("pods/9e")).unwrap();
    fs::write(
        world.kubelet("pods/9e/etc-hosts"),
        "# Kubernetes-managed hosts file.\n127.0.0.1\tlocalhost\n10.244.1.5\tweb-0\n",
    )
    .unwrap();
    let found = diff(&before, &world.ledger());
    names_it(&found, Kind::PodDir, &["pods/9e", "a pod called web-0"])
}

fn api_cases() -> Vec<Trial> {
    let here: Found<()> = Ok(());
    let stuck = |mut object: Value, finalizer: &str| {
        object["metadata"]["deletionTimestamp"] = json!("2026-11-24T12:00:00Z");
        object["metadata"]["finalizers"] = json!([finalizer]);
        object
    };
    let attachment = json!({
        "kind": "VolumeAttachment", "metadata": {"name": "csi-1"},
        "spec": {"attacher": DRIVER, "nodeName": "w1", "source": {"persistentVolumeName": PV}}, "status": {"attached": true},
    });
    let claim = json!({
        "kind": "PersistentVolumeClaim", "metadata": {"name": "data-1", "namespace": "t-81", "uid": "u-1"},
        "spec": {"storageClassName": "holdfast-ext4"},
    });
    let cases: Vec<(&str, Kind, Vec<&str>, Value)> = vec![
        (
            "pv_stuck_released",
            Kind::Pv,
            vec!["pvc-8", "volume 8e, claim t-81/old, Released"],
            pv("pvc-8", "8e", "t-81/old", "Released"),
        ),
        (
            "pv_with_a_stuck_finalizer",
            Kind::Pv,
            vec!["claim t-81/old", "terminating", "external-attacher/holdfast-csi"],
            stuck(
                pv("pvc-8", "8e", "t-81/old", "Bound"),
                "external-attacher/holdfast-csi",
            ),
        ),
        (
            "claim_with_a_stuck_finalizer",
            Kind::Pvc,
            vec![
                "t-81/data-1",
                "holdfast-ext4",
                "terminating",
                "kubernetes.io/pvc-protection",
            ],
            stuck(claim, "kubernetes.io/pvc-protection"),
        ),
        (
            "attachment_with_a_stuck_finalizer",
            Kind::Attachment,
            vec![
                "csi-1",
                "pv pvc-71 on w1, claim t-81/data-0",
                "external-attacher/holdfast-csi",
            ],
            stuck(attachment, "external-attacher/holdfast-csi"),
        ),
        (
            "csinode_entry_of_a_driver_that_is_gone",
            Kind::CsiNode,
            vec!["w2", "the node plugin, which has no pod on this node"],
            json!({
                "kind": "CSINode", "metadata": {"name": "w2"},
                "spec": {"drivers": [{"name": DRIVER, "nodeID": "w2", "topologyKeys": []}]},
            }),
        ),
        (
            "lease",
            Kind::Lease,
            vec![
                "holdfast-system/external-attacher",
                "held by holdfast-controller-1",
            ],
            json!({
                "kind": "Lease", "metadata": {"name": "external-attacher", "namespace": SYSTEM},
                "spec": {"holderIdentity": "holdfast-controller-1"},
            }),
        ),
        (
            "driver_pod",
            Kind::DriverPod,
            vec!["node 2", "pod holdfast-node-b on w2"],
            plugin_pod("holdfast-node-b", "w2"),
        ),
    ];
    cases
        .into_iter()
        .map(|(name, kind, words, object)| {
            trial(name, &here, move |()| {
                planted(kind, &words, |world| {
                    world.objects.0.push(object);
                    Vec::new()
                })
            })
        })
        .collect()
}

/// A loop device of this test; detached at the end.
struct Attached(PathBuf);

/// One test at a time has free devices: their numbers and flags are the whole machine's.
static LOOPS: Mutex<()> = Mutex::new(());

fn alone() -> MutexGuard<'static, ()> {
    LOOPS.lock().unwrap_or_else(PoisonError::into_inner)
}

fn tool(program: &str, words: &[&str], path: &Path) -> Result<String, String> {
    let said = Command::new(program)
        .args(words)
        .arg(path)
        .output()
        .map_err(|error| format!("{program}: {error}"))?;
    if said.status.success() {
        Ok(String::from_utf8_lossy(&said.stdout).trim().to_owned())
    } else {
        Err(format!(
            "{program}: {}",
            String::from_utf8_lossy(&said.stderr).trim()
        ))
    }
}

impl Attached {
    fn find(file: &Path) -> Result<Self, String> {
        tool("losetup", &["--find", "--show"], file).map(|device| Self(PathBuf::from(device)))
    }

    /// As a node does it: by a place of its own, which this machine does not show.
    fn from_a_node(file: &Path) -> Result<Self, String> {
        let text = |error: nix::Error| error.to_string();
        let place = tempfile::tempdir().map_err(|e| e.to_string())?;
        let (folder, name) = (file.parent().unwrap(), file.file_name().unwrap());
        mount(
            Some(folder),
            place.path(),
            None::<&str>,
            MsFlags::MS_BIND,
            None::<&str>,
        )
        .map_err(text)?;
        let device = Self::find(&place.path().join(name));
        umount2(place.path(), MntFlags::MNT_DETACH).map_err(text)?;
        device
    }

    /// The free device with the highest number: whoever else looks for a free one takes the lowest.
    fn last(file: &Path) -> Result<Self, String> {
        let free = |number: &u32| !Path::new(&format!("/sys/block/loop{number}/loop")).exists();
        let mut numbers: Vec<u32> = fs::read_dir("/sys/block")
            .map_err(|error| error.to_string())?
            .filter_map(|entry| {
                entry
                    .ok()?
                    .file_name()
                    .to_str()?
                    .strip_prefix("loop")?
                    .parse()
                    .ok()
            })
            .filter(free)
            .collect();
        numbers.sort_unstable();
        while let Some(number) = numbers.pop() {
            let device = format!("/dev/loop{number}");
            if tool("losetup", &[&device], file).is_ok() {
                return Ok(Self(PathBuf::from(device)));
            }
        }
        Err(String::from("no loop device is free"))
    }

    fn name(&self) -> String {
        self.0.display().to_string()
    }
}

impl Drop for Attached {
    fn drop(&mut self) {
        let _ = tool("blockdev", &["--setrw"], &self.0);
        let _ = tool("losetup", &["--detach"], &self.0);
    }
}

fn loops_here() -> Found<()> {
    if !is_root() {
        return Err(String::from("needs root: loop devices"));
    }
    let _alone = alone();
    let file = tempfile::NamedTempFile::new().map_err(|e| e.to_string())?;
    file.as_file().set_len(1 << 20).map_err(|e| e.to_string())?;
    Attached::find(file.path()).map(drop)
}

fn mounts_here() -> Found<()> {
    if !is_root() {
        return Err(String::from("needs root: mounts"));
    }
    let folder = tempfile::tempdir().map_err(|e| e.to_string())?;
    Mounted::at(folder.path()).map(drop)
}

fn loop_device() -> Result<(), Failed> {
    let _alone = alone();
    planted(
        Kind::Loop,
        &[
            "read-write, volumes/3f9c.img (inode ",
            "on kernel",
            "name pvc-71, claim t-81/data-0",
        ],
        |world| vec![Box::new(Attached::find(&world.data("volumes/3f9c.img")).unwrap())],
    )
}

/// Two clusters on one host call their files alike.
fn loop_device_of_another_cluster() -> Result<(), Failed> {
    let _alone = alone();
    let mut world = World::new();
    let before = world.ledger();
    let other = world.folder.path().join("other-data");
    fs::create_dir_all(other.join("volumes")).unwrap();
    let image = other.join("volumes/3f9c.img");
    fs::File::create(&image).unwrap().set_len(1 << 20).unwrap();
    let _kept = Attached::find(&image)?;
    let found = diff(&before, &world.ledger());
    check(found.is_empty(), || {
        format!("not ours:\n{}", found.lines().join("\n"))
    })
}

fn loop_device_of_a_deleted_file() -> Result<(), Failed> {
    let _alone = alone();
    let mut world = World::new();
    let image = world.image("dd");
    let kept = Attached::find(&image)?;
    world.ledger();
    fs::remove_file(&image).unwrap();
    let found = diff(&World::new().ledger(), &world.ledger());
    let _ = &kept;
    names_it(
        &found,
        Kind::DeadLoop,
        &[&kept.name(), "volume dd, whose file is deleted"],
    )?;
    // Another cluster's is called the same: that it goes is no loss of ours.
    let gone = diff(&world.ledger(), &World::new().ledger());
    check(gone.lost.is_empty(), || {
        format!("lost:\n{}", gone.lines().join("\n"))
    })
}

/// The cluster's removal finds what its own folder no longer shows, and leaves what another cluster calls the same.
fn loop_devices_go_with_their_cluster() -> Result<(), Failed> {
    let _alone = alone();
    let (mut world, mut other) = (World::new(), World::new());
    let mut kept = Vec::new();
    for world in [&mut world, &mut other] {
        let (deleted, there) = (world.image("dd"), world.image("ee"));
        kept.extend([Attached::from_a_node(&deleted)?, Attached::from_a_node(&there)?]);
        world.facts();
        fs::remove_file(&deleted).unwrap();
        let nameless = world.facts().nameless();
        check(nameless.len() == 1, || {
            format!("{nameless:?} for one deleted file")
        })?;
        label::note_nameless(world.folder.path(), &nameless).unwrap();
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(label::release(world.folder.path())).unwrap();
    let holds = |device: &Attached| {
        let name = device.0.file_name().unwrap();
        Path::new("/sys/block").join(name).join("loop").exists()
    };
    let held: Vec<bool> = kept.iter().map(holds).collect();
    // The number of one that went may be somebody's again.
    kept.into_iter()
        .filter(|device| !holds(device))
        .for_each(std::mem::forget);
    check(held == [false, false, true, true], || {
        format!("attached after the removal, ours first: {held:?}")
    })
}

fn free_loop_left_read_only() -> Result<(), Failed> {
    let _alone = alone();
    let mut world = World::new();
    let before = world.ledger();
    let device = Attached::last(&world.data("volumes/3f9c.img"))?;
    world.ledger();
    tool("blockdev", &["--setro"], &device.0)?;
    tool("losetup", &["--detach"], &device.0)?;
    let found = diff(&before, &world.ledger());
    let name = format!("{}, free, read-only", device.name());
    names_it(
        &found,
        Kind::LoopFlag,
        &[&name, "owner the node plugin that had it last"],
    )
}

/// A driver cannot help it, and the kernel takes it away for the next user.
fn flag_that_the_kernel_leaves() -> Result<(), Failed> {
    let _alone = alone();
    let mut world = World::new();
    let before = world.ledger();
    let device = Attached::last(&world.data("volumes/3f9c.img"))?;
    tool("losetup", &["--detach"], &device.0)?;
    tool(
        "losetup",
        &["--read-only", &device.name()],
        &world.data("volumes/3f9c.img"),
    )?;
    world.ledger();
    tool("losetup", &["--detach"], &device.0)?;
    let found = diff(&before, &world.ledger());
    check(found.is_empty(), || {
        format!("no leak:\n{}", found.lines().join("\n"))
    })
}

/// A mount of this test; gone at its end.
struct Mounted(PathBuf);

impl Mounted {
    fn at(path: &Path) -> Result<Self, String> {
        fs::create_dir_all(path).map_err(|e| e.to_string())?;
        mount(Some("tmpfs"), path, Some("tmpfs"), MsFlags::empty(), None::<&str>)
            .map(|()| Self(path.to_owned()))
            .map_err(|errno| format!("no mount is permitted: {errno}"))
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = umount2(&self.0, MntFlags::empty());
    }
}

fn staging_mount() -> Result<(), Failed> {
    let mut world = World::new();
    let place = world.staging(VOLUME).join("globalmount");
    fs::create_dir_all(&place).unwrap();
    let before = world.ledger();
    let kept = Mounted::at(&place)?;
    let found = diff(&before, &world.ledger());
    drop(kept);
    names_it(
        &found,
        Kind::Mount,
        &["globalmount (tmpfs)", "on w1", "claim t-81/data-0"],
    )
}

fn mount_in_a_pod_twice() -> Result<(), Failed> {
    let mut world = World::new();
    let pod = world.kubelet("pods").join(POD);
    let place = pod.join("volumes/kubernetes.io~csi").join(PV).join("mount");
    let first = Mounted::at(&place)?;
    let before = world.ledger();
    let second = Mounted::at(&place)?;
    let found = diff(&before, &world.ledger());
    drop(second);
    drop(first);
    names_it(
        &found,
        Kind::Mount,
        &["mount (tmpfs), layer 2", "claim t-81/data-0"],
    )
}

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let (here, loops, mounts): (Found<()>, _, _) = (Ok(()), loops_here(), mounts_here());
    let mut trials = file_cases();
    trials.extend(api_cases());
    trials.push(trial("vol_data_json", &here, |()| left_over_vol_data()));
    trials.push(trial("pod_folder", &here, |()| left_over_pod_folder()));
    trials.push(trial("loop_device", &loops, |()| loop_device()));
    trials.push(trial(
        "loop_device_of_another_cluster_is_not_ours",
        &loops,
        |()| loop_device_of_another_cluster(),
    ));
    trials.push(trial("loop_device_of_a_deleted_file", &loops, |()| {
        loop_device_of_a_deleted_file()
    }));
    trials.push(trial("loop_devices_go_with_their_cluster", &loops, |()| {
        loop_devices_go_with_their_cluster()
    }));
    trials.push(trial("flag_that_the_kernel_leaves", &loops, |()| {
        flag_that_the_kernel_leaves()
    }));
    trials.push(trial("free_loop_left_read_only", &loops, |()| {
        free_loop_left_read_only()
    }));
    trials.push(trial("staging_mount", &mounts, |()| staging_mount()));
    trials.push(trial("mount_in_a_pod_twice", &mounts, |()| {
        mount_in_a_pod_twice()
    }));
    libtest_mimic::run(&arguments, trials).exit_code()
}
