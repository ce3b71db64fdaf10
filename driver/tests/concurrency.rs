//! T1: calls beside calls, in one process and in several: nobody waits for what is not his, nobody comes between two steps.
#![allow(
    missing_docs,
    dead_code,
    unreachable_pub,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::disallowed_methods
)]
mod common;

use std::fs::File;
use std::time::{Duration, Instant};

use common::*;
use holdfast_proto::csi as pb;
use holdfast_proto::csi::controller_client::ControllerClient;
use holdfast_proto::csi::node_client::NodeClient;
use nix::fcntl::{Flock, FlockArg};
use tonic::Code;

/// Longer than any call that waits for nobody, shorter than the bound of a lock.
const PROMPT: Duration = Duration::from_secs(4);

fn flocked(path: &str) -> Flock<File> {
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(path)
        .unwrap();
    Flock::lock(file, FlockArg::LockExclusiveNonblock).unwrap()
}

/// A node plugin that hangs in the middle of a call (its lock is held) makes no controller call wait.
async fn a_hanging_node_blocks_no_controller() {
    let driver = Driver::start();
    let mut volume = Volume::made(&driver, None, 16 * MIB).await;
    let path = driver.path(&format!("data/locks/{}.n1.node.lock", volume.id));
    let hanging = flocked(&path);
    let since = Instant::now();
    volume.attach().await.unwrap();
    let mut controller = ControllerClient::new(driver.channel().await);
    let request = pb::ControllerExpandVolumeRequest {
        volume_id: volume.id.clone(),
        capacity_range: Some(pb::CapacityRange {
            required_bytes: 32 * MIB,
            limit_bytes: 0,
        }),
        ..Default::default()
    };
    controller.controller_expand_volume(request).await.unwrap();
    volume.detach().await.unwrap();
    volume.attach().await.unwrap();
    let mut short = tonic::Request::new(pb::NodeUnstageVolumeRequest {
        volume_id: volume.id.clone(),
        staging_target_path: driver.path("stage"),
    });
    short.set_timeout(Duration::from_millis(200));
    let waits = NodeClient::new(driver.channel().await)
        .node_unstage_volume(short)
        .await;
    assert!(waits.is_err(), "a node call did not wait for the node's lock");
    volume.detach().await.unwrap();
    volume.delete().await.unwrap();
    assert!(since.elapsed() < PROMPT, "{:?}", since.elapsed());
    drop(hanging);
    nothing_left(&driver);
}

/// A stage that gets the image only after a detachment reads that it came too late.
async fn a_late_stage_reads_the_record_again() {
    for fs in [Some("ext4"), None] {
        let driver = Driver::start();
        let mut volume = Volume::made(&driver, fs, 64 * MIB).await;
        volume.attach().await.unwrap();
        let image = flocked(&driver.path(&format!("data/volumes/{}.img", volume.id)));
        let staging = volume.stage();
        let detaching = async {
            // The stage has read the record when its lock's file is there and it waits for the image.
            let lock = driver.path(&format!("data/locks/{}.n1.node.lock", volume.id));
            let since = Instant::now();
            while !std::path::Path::new(&lock).exists() {
                assert!(since.elapsed() < PROMPT, "no stage began");
                tokio::task::yield_now().await;
            }
            let record = driver.path(&format!("data/volumes/{}.json", volume.id));
            let mut value: serde_json::Value =
                serde_json::from_slice(&std::fs::read(&record).unwrap()).unwrap();
            value["attachment"] = serde_json::Value::Null;
            let beside = driver.path("record");
            std::fs::write(&beside, value.to_string()).unwrap();
            std::fs::rename(beside, &record).unwrap();
            drop(image);
        };
        let (staged, ()) = tokio::join!(staging, detaching);
        assert_eq!(wait_code(staged), Code::FailedPrecondition, "{fs:?}");
        assert_eq!(loops_below(driver.folder.path()), Vec::<String>::new());
        volume.delete().await.unwrap();
    }
}

/// Nothing of a call's locks outlives it.
async fn no_lock_outlives_its_call() {
    let driver = Driver::start();
    let mut volume = Volume::made(&driver, Some("ext4"), 64 * MIB).await;
    volume.attach().await.unwrap();
    volume.stage().await.unwrap();
    volume.publish("target", false).await.unwrap();
    volume.gone().await;
    let left: Vec<_> = std::fs::read_dir(driver.path("data/locks"))
        .unwrap()
        .flatten()
        .map(|entry| entry.file_name().into_string().unwrap())
        .filter(|name| name.starts_with('v'))
        .collect();
    assert_eq!(left, Vec::<String>::new());
}

fn main() {
    run_cases(vec![
        ("a_hanging_node_blocks_no_controller", || {
            run(a_hanging_node_blocks_no_controller())
        }),
        ("a_late_stage_reads_the_record_again", || {
            run(a_late_stage_reads_the_record_again())
        }),
        ("no_lock_outlives_its_call", || run(no_lock_outlives_its_call())),
    ]);
}
