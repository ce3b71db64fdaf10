//! T1: calls beside calls, in one process and in several: nobody waits for what is not his, nobody comes between two steps.
use std::fs::File;
use std::time::{Duration, Instant};

use crate::common::*;
use holdfast_driver::id::VolumeId;
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
        let image = image_held(&driver.path(&format!("data/volumes/{}.img", volume.id)));
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

/// A second identical call gets the answer of the first; another one for the same name is judged after it.
async fn a_twin_joins_and_a_rival_comes_after() {
    let driver = Driver::start();
    let id = VolumeId::of_name("twin");
    let held = flocked(&driver.path(&format!("data/locks/{id}.lock")));
    let call = |bytes: i64| {
        let channel = driver.channel();
        async move {
            ControllerClient::new(channel.await)
                .create_volume(create("twin", None, bytes, bytes))
                .await
        }
    };
    let log = || std::fs::read_to_string(driver.path("log")).unwrap();
    let release = async {
        let since = Instant::now();
        while !log().contains("joins") {
            assert!(since.elapsed() < PROMPT, "no twin joined: {}", log());
            tokio::task::yield_now().await;
        }
        drop(held);
    };
    let (first, twin, rival, ()) = tokio::join!(call(MIB), call(MIB), call(2 * MIB), release);
    let id_of =
        |reply: tonic::Response<pb::CreateVolumeResponse>| reply.into_inner().volume.unwrap().volume_id;
    // Which of the two sizes comes first is open; the twins agree, and the other is refused.
    match (first, twin) {
        (Ok(first), Ok(twin)) => {
            assert_eq!((id_of(first), id_of(twin)), (id.to_string(), id.to_string()));
            assert_eq!(wait_code(rival), Code::AlreadyExists);
        }
        (first, twin) => {
            assert_eq!(
                (wait_code(first), wait_code(twin)),
                (Code::AlreadyExists, Code::AlreadyExists)
            );
            rival.unwrap();
        }
    }
}

/// A client whose deadline of 1 ms passes, and one that vanishes, leave work that is done and can be asked for again.
async fn work_outlives_its_caller() {
    let driver = Driver::start();
    for name in ["deadline", "vanished"] {
        let id = VolumeId::of_name(name);
        let held = flocked(&driver.path(&format!("data/locks/{id}.lock")));
        let channel = driver.channel().await;
        let since = Instant::now();
        let mut vanishing = ControllerClient::new(channel.clone());
        let call = (name == "vanished")
            .then(|| tokio::spawn(async move { vanishing.create_volume(create(name, None, MIB, 0)).await }));
        // Once a twin has joined, a first one is in flight, whose own deadline of 1 ms may have passed long ago.
        let joined = |line: &str| line.contains("\"joins\"") && line.contains(id.as_str());
        while !std::fs::read_to_string(driver.path("log"))
            .unwrap()
            .lines()
            .any(joined)
        {
            assert!(since.elapsed() < PROMPT, "{name}: no call is in flight");
            let mut request = tonic::Request::new(create(name, None, MIB, 0));
            request.set_timeout(Duration::from_millis(1));
            ControllerClient::new(channel.clone())
                .create_volume(request)
                .await
                .unwrap_err();
        }
        call.inspect(|call| call.abort());
        drop(held);
        let record = driver.path(&format!("data/volumes/{id}.json"));
        while !std::fs::read_to_string(&record).is_ok_and(|text| text.contains("\"ready\"")) {
            assert!(since.elapsed() < PROMPT, "{name}: no volume came");
            tokio::task::yield_now().await;
        }
        let mut controller = ControllerClient::new(channel);
        let again = controller
            .create_volume(create(name, None, MIB, 0))
            .await
            .unwrap();
        assert_eq!(again.into_inner().volume.unwrap().volume_id, id.to_string());
    }
}

pub fn cases() -> Vec<Case> {
    vec![
        ("a_twin_joins_and_a_rival_comes_after", || {
            run(a_twin_joins_and_a_rival_comes_after())
        }),
        ("work_outlives_its_caller", || run(work_outlives_its_caller())),
        ("a_hanging_node_blocks_no_controller", || {
            run(a_hanging_node_blocks_no_controller())
        }),
        ("a_late_stage_reads_the_record_again", || {
            run(a_late_stage_reads_the_record_again())
        }),
        ("no_lock_outlives_its_call", || run(no_lock_outlives_its_call())),
    ]
}
