//! Every node call, failing at each of its calls of the kernel in turn, with each errno: a final code only where everything
//! was undone, and a repetition, or giving up, comes to a good end all the same.
use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;

use holdfast_proto::csi as pb;
use rstest::rstest;
use tonic::Code;

use super::site::Site;
use super::{expand, publish, revoke, stage, stats, unpublish, unstage};
use crate::error::Error;
use crate::id::VolumeId;
use crate::kernel::double::Double;
use crate::volume::capability::Capability;
use crate::volume::errand::{self, Errand, Outcome};
use crate::volume::record::{Attachment, EPOCH, Fingerprint, Format, Record, State};
use crate::volume::store::Store;

const ERRNOS: [i32; 6] = [
    libc::EIO,
    libc::ENOSPC,
    libc::EBUSY,
    libc::EROFS,
    libc::EINTR,
    libc::ENOMEM,
];

/// What kubelet does with one volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Stage,
    Publish,
    PublishReadOnly,
    Grow,
    Expand,
    Stats,
    Unpublish,
    Unstage,
}

/// A volume on a node whose kernel is a double.
struct World {
    folder: tempfile::TempDir,
    kernel: Arc<Double>,
    site: Site,
    id: VolumeId,
    fs: Option<&'static str>,
}

fn capability(fs: Option<&str>) -> pb::VolumeCapability {
    use pb::volume_capability::{AccessMode, AccessType, BlockVolume, MountVolume, access_mode::Mode};
    pb::VolumeCapability {
        access_type: Some(match fs {
            Some(fs) => AccessType::Mount(MountVolume {
                fs_type: fs.to_owned(),
                ..MountVolume::default()
            }),
            None => AccessType::Block(BlockVolume {}),
        }),
        access_mode: Some(AccessMode {
            mode: Mode::SingleNodeMultiWriter.into(),
        }),
    }
}

impl World {
    fn new(fs: Option<&'static str>) -> Self {
        // Memory where there is a folder of it: thousands of worlds, each with records to make durable.
        let folder = tempfile::tempdir_in("/dev/shm")
            .or_else(|_| tempfile::tempdir())
            .unwrap();
        let root = std::fs::canonicalize(folder.path()).unwrap();
        let store = Arc::new(Store::open(&root.join("data")).unwrap());
        let id = VolumeId::of_name("a");
        let kind = Capability::try_from(capability(fs)).unwrap();
        let record = Record {
            version: 1,
            id: id.clone(),
            name: String::from("a"),
            state: State::Ready,
            size_bytes: 64 << 20,
            fingerprint: Fingerprint {
                capabilities: vec![kind.clone()],
                parameters: std::collections::BTreeMap::new(),
                mutable_parameters: Default::default(),
                source: None,
            },
            format: Format::Blank,
            epoch: 1,
            attachment: Some(Attachment {
                node: String::from("n1"),
                epoch: 1,
                read_only: false,
                capability: kind,
                asked_read_only: None,
            }),
            revoked: Vec::new(),
            attributes: Default::default(),
            segments: Default::default(),
        };
        store.write(&record).unwrap();
        let image = std::fs::File::create(store.image(&id)).unwrap();
        image.set_len(record.size_bytes).unwrap();
        std::fs::create_dir(root.join("stage")).unwrap();
        let kernel = Arc::new(Double::default());
        Self {
            site: Site {
                store,
                kernel: kernel.clone(),
                node: String::from("n1"),
            },
            folder,
            kernel,
            id,
            fs,
        }
    }

    fn path(&self, name: &str) -> String {
        let root = std::fs::canonicalize(self.folder.path()).unwrap();
        root.join(name).display().to_string()
    }

    fn run(&self, step: Step) -> Result<(), Error> {
        let context = HashMap::from([(EPOCH.to_owned(), String::from("1"))]);
        let id = self.id.to_string();
        match step {
            Step::Stage => stage::stage(
                &self.site,
                &stage::Wanted::try_from(pb::NodeStageVolumeRequest {
                    volume_id: id,
                    publish_context: context,
                    staging_target_path: self.path("stage"),
                    volume_capability: Some(capability(self.fs)),
                    ..Default::default()
                })?,
            )
            .map(drop),
            Step::Publish | Step::PublishReadOnly => publish::publish(
                &self.site,
                &publish::Wanted::try_from(pb::NodePublishVolumeRequest {
                    volume_id: id,
                    publish_context: context,
                    staging_target_path: self.path("stage"),
                    target_path: self.path("target"),
                    volume_capability: Some(capability(self.fs)),
                    readonly: step == Step::PublishReadOnly,
                    ..Default::default()
                })?,
            )
            .map(drop),
            Step::Grow => {
                let record = self.site.store.read(&self.id)?.unwrap();
                let grown = Record {
                    size_bytes: 128 << 20,
                    ..record
                };
                self.site.store.write(&grown)?;
                let image = std::fs::File::options()
                    .write(true)
                    .open(self.site.store.image(&self.id))
                    .unwrap();
                image.set_len(128 << 20).unwrap();
                Ok(())
            }
            Step::Expand => expand::expand(
                &self.site,
                pb::NodeExpandVolumeRequest {
                    volume_id: id,
                    volume_path: self.path("target"),
                    ..Default::default()
                },
            )
            .map(drop),
            Step::Stats if self.fs.is_some() => Ok(()), // statvfs of a mount that is none
            Step::Stats => stats::stats(
                &self.site,
                &pb::NodeGetVolumeStatsRequest {
                    volume_id: id,
                    volume_path: self.path("target"),
                    ..Default::default()
                },
            )
            .map(drop),
            Step::Unpublish => unpublish::unpublish(&self.site, &id, &self.path("target")).map(drop),
            Step::Unstage => unstage::unstage(&self.site, &id, &self.path("stage")).map(drop),
        }
    }

    /// Everything that a step may leave: mounts, devices, paths, locks.
    fn shown(&self) -> Vec<String> {
        let mut shown = self.kernel.shown();
        let target = PathBuf::from(self.path("target"));
        if let Ok(meta) = target.symlink_metadata() {
            shown.push(format!("target is_dir={}", meta.is_dir()));
        }
        let held = crate::volume::fence::held(&self.site.store.image(&self.id)).unwrap();
        shown.push(format!("held {held:?}"));
        let locks = std::fs::read_dir(self.path("data/locks")).unwrap().flatten();
        let left: Vec<_> = locks
            .map(|e| e.file_name().into_string().unwrap())
            .filter(|name| name.starts_with('v'))
            .collect();
        shown.push(format!("locks {left:?}"));
        // Whose a device is, and where it is staged, differs from one folder to the next, and is the same in each.
        let place = super::tag::place(std::path::Path::new(&self.path("stage")));
        let same = |text: &String| {
            text.replace(&self.path(""), "")
                .replace(&self.site.owner(), "n1")
                .replace(&place, "stage")
        };
        shown.iter().map(same).collect()
    }

    fn after(fs: Option<&'static str>, before: &[Step]) -> Self {
        let world = Self::new(fs);
        for step in before {
            world.run(*step).unwrap();
        }
        world
    }
}

fn is_final(code: Code) -> bool {
    !matches!(
        code,
        Code::Aborted | Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled
    )
}

/// How often a step calls the kernel; each of them fails once with each errno.
fn sweep(fs: Option<&'static str>, before: &[Step], step: Step) -> usize {
    let good = World::after(fs, before);
    good.run(step).unwrap();
    let good = good.shown();
    let mut failed = 0;
    for nth in 1.. {
        let mut ran = false;
        for errno in ERRNOS {
            let what = format!("{step:?} after {before:?} on {fs:?}, call {nth}, errno {errno}");
            let world = World::after(fs, before);
            let at_first = world.shown();
            world.kernel.fail(nth, errno);
            let result = world.run(step);
            let calls = world.kernel.heal();
            if calls.len() < nth {
                break;
            }
            ran = true;
            failed += 1;
            let what = format!("{what} ({})", calls[nth - 1]);
            if let Err(error) = &result
                && is_final(error.code())
            {
                assert_eq!(
                    world.shown(),
                    at_first,
                    "{what}: final {:?}, but not undone: {}",
                    error.code(),
                    error.message()
                );
            }
            world
                .run(step)
                .unwrap_or_else(|error| panic!("{what}: repeated: {}", error.message()));
            assert_eq!(world.shown(), good, "{what}: repeated");
            // Given up instead: kubelet unpublishes and unstages whatever it is not sure of.
            let world = World::after(fs, before);
            world.kernel.fail(nth, errno);
            let _ = world.run(step);
            world.kernel.heal();
            for undo in [Step::Unpublish, Step::Unstage] {
                world
                    .run(undo)
                    .unwrap_or_else(|error| panic!("{what}: {undo:?}: {}", error.message()));
            }
            assert_eq!(world.shown(), ["held []", "locks []"], "{what}: given up");
        }
        if !ran {
            return failed;
        }
    }
    failed
}

/// Each call of a volume's life, after those that come before it.
#[rstest]
#[case::stage(&[], Step::Stage)]
#[case::stage_again(&[Step::Stage, Step::Publish], Step::Stage)]
#[case::stage_old_data(&[Step::Stage, Step::Unstage], Step::Stage)]
#[case::stage_grown(&[Step::Stage, Step::Unstage, Step::Grow], Step::Stage)]
#[case::publish(&[Step::Stage], Step::Publish)]
#[case::publish_again(&[Step::Stage, Step::Publish], Step::Publish)]
#[case::publish_read_only(&[Step::Stage], Step::PublishReadOnly)]
#[case::expand(&[Step::Stage, Step::Publish, Step::Grow], Step::Expand)]
#[case::stats(&[Step::Stage, Step::Publish], Step::Stats)]
#[case::unpublish(&[Step::Stage, Step::Publish], Step::Unpublish)]
#[case::unpublish_read_only(&[Step::Stage, Step::PublishReadOnly], Step::Unpublish)]
#[case::unstage(&[Step::Stage], Step::Unstage)]
fn each_call_fails_once_and_ends_well(#[case] before: &[Step], #[case] step: Step) {
    for fs in [Some("ext4"), Some("xfs"), None] {
        let failed = sweep(fs, before, step);
        let is_real = step != Step::Stats || fs.is_none();
        assert_eq!(
            failed > 0,
            is_real,
            "{step:?} on {fs:?} calls the kernel {failed} times"
        );
    }
}

/// NodeUnpublish of another volume may name the staging path, or the target: it removes the empty place that this call has
/// just made. Nobody is to blame, and whoever asks again has it.
#[rstest]
#[case::stage(&[], Step::Stage)]
#[case::publish(&[Step::Stage], Step::Publish)]
#[case::publish_read_only(&[Step::Stage], Step::PublishReadOnly)]
fn a_place_that_another_call_removes_is_asked_for_again(#[case] before: &[Step], #[case] step: Step) {
    for fs in [Some("ext4"), Some("xfs"), None] {
        if fs.is_none() && step == Step::Stage {
            continue; // a block volume is not mounted where it is staged
        }
        let good = World::after(fs, before);
        good.run(step).unwrap();
        let world = World::after(fs, before);
        let at_first = world.shown();
        world.kernel.remove_place();
        let error = world.run(step).unwrap_err();
        assert_eq!(error.code(), Code::Aborted, "{fs:?}: {}", error.message());
        assert_eq!(world.shown(), at_first, "{fs:?}");
        world.run(step).unwrap();
        assert_eq!(world.shown(), good.shown(), "{fs:?}: repeated");
    }
}

/// Another node's revocation, failing at each of its calls: it is answered only when the device can no longer write, and a
/// repetition brings it to its end. The node itself never calls it revoked while its device can.
#[test]
fn a_revocation_is_answered_only_when_it_is_done() {
    for fs in [Some("ext4"), Some("xfs"), None] {
        for nth in 1.. {
            let world = World::after(fs, &[Step::Stage, Step::Publish]);
            let errand = errand::ask(&world.site.store, Errand::revoke(&world.id, "n1", 1)).unwrap();
            let other = Site {
                node: String::from("n2"),
                ..world.site.clone()
            };
            let blind = || world.kernel.shown().iter().any(|line| line.ends_with(" blind"));
            let answered = || errand::answer(&world.site.store, &errand).unwrap();
            world.kernel.fail(nth, libc::EIO);
            let result = revoke::answer_for_other(&other, &errand);
            let calls = world.kernel.heal();
            if calls.len() < nth {
                assert!(result.is_ok() && blind() && nth > 3, "{fs:?}: {calls:?}");
                break;
            }
            assert!(answered().is_none() || blind(), "{fs:?}, call {nth}: {calls:?}");
            if !blind() {
                revoke::answer_for_self(&world.site, &errand).unwrap();
                let answer = answered().unwrap();
                assert!(matches!(answer.outcome, Outcome::InUse(_)), "{answer:?}");
                errand::withdraw(&world.site.store, &world.id).unwrap();
                errand::ask(&world.site.store, errand.clone()).unwrap();
            }
            revoke::answer_for_other(&other, &errand).unwrap();
            assert!(blind(), "{fs:?}, call {nth}: not done when repeated");
            let outcome = answered().unwrap().outcome;
            assert_eq!(outcome, Outcome::Revoked(vec![1]), "{fs:?}, call {nth}");
            for undo in [Step::Unpublish, Step::Unstage] {
                world.run(undo).unwrap();
            }
            assert_eq!(world.shown(), ["held []", "locks []"], "{fs:?}, call {nth}");
        }
    }
}
