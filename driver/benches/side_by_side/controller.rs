//! Calls to the controller.
use std::path::Path;
use std::time::Instant;

use holdfast_proto::csi as pb;

use super::median;
use super::running::Running;

/// Calls in flight where many are.
const AT_ONCE: usize = 16;

pub(super) fn capability() -> pb::VolumeCapability {
    use pb::volume_capability::{AccessMode, AccessType, MountVolume, access_mode::Mode};
    pb::VolumeCapability {
        access_type: Some(AccessType::Mount(MountVolume::default())),
        access_mode: Some(AccessMode {
            mode: Mode::SingleNodeWriter.into(),
        }),
    }
}

pub(super) fn create(name: String) -> pb::CreateVolumeRequest {
    pb::CreateVolumeRequest {
        name,
        capacity_range: Some(pb::CapacityRange {
            required_bytes: 16 << 20,
            limit_bytes: 0,
        }),
        volume_capabilities: vec![capability()],
        ..Default::default()
    }
}

/// Creates `count` volumes one after another; the median of their times in ms.
pub(super) async fn in_sequence(running: &Running, prefix: &str, count: usize) -> f64 {
    let mut controller = running.controller();
    let mut times = Vec::new();
    for n in 0..count {
        let request = create(format!("{prefix}-{n}"));
        let since = Instant::now();
        controller.create_volume(request).await.unwrap();
        times.push(since.elapsed());
    }
    median(times)
}

/// Creates `count` volumes, 16 at once; volumes per second.
pub(super) async fn at_once(running: &Running, prefix: &str, count: usize) -> f64 {
    let since = Instant::now();
    let tasks: Vec<_> = (0..AT_ONCE)
        .map(|task| {
            let mut controller = running.controller();
            let names: Vec<_> = (task..count)
                .step_by(AT_ONCE)
                .map(|n| format!("{prefix}-{n}"))
                .collect();
            tokio::spawn(async move {
                for name in names {
                    controller.create_volume(create(name)).await.unwrap();
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    count as f64 / since.elapsed().as_secs_f64()
}

/// All pages of ListVolumes, the median of five in ms.
pub(super) async fn list(running: &Running, expected: usize) -> f64 {
    let mut times = Vec::new();
    for _ in 0..5 {
        let mut controller = running.controller();
        let mut token = String::new();
        let mut seen = 0;
        let since = Instant::now();
        loop {
            let request = pb::ListVolumesRequest {
                starting_token: token,
                max_entries: 0,
            };
            let page = controller.list_volumes(request).await.unwrap().into_inner();
            seen += page.entries.len();
            token = page.next_token;
            if token.is_empty() {
                break;
            }
        }
        times.push(since.elapsed());
        assert_eq!(seen, expected);
    }
    median(times)
}

/// GetCapacity, the median of 200 in ms.
pub(super) async fn capacity(running: &Running, folder: &Path) -> f64 {
    // What the calls before left to write would take its time beside this one.
    nix::unistd::syncfs(std::fs::File::open(folder).unwrap()).unwrap();
    let mut times = Vec::new();
    for _ in 0..200 {
        let since = Instant::now();
        running
            .controller()
            .get_capacity(pb::GetCapacityRequest::default())
            .await
            .unwrap();
        times.push(since.elapsed());
    }
    median(times)
}
