//! T1: a record that a power failure tore while its volume was made is in nobody's way: who asks for the name again gets the
//! volume, who gives it up gets rid of it, and nothing is left. What may be somebody's is left alone.
use std::collections::BTreeSet;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::common::*;
use holdfast_proto::csi as pb;
use holdfast_proto::csi::controller_client::ControllerClient;
use tonic::Code;

/// Within this time a sweep has swept.
const LIMIT: Duration = Duration::from_secs(10);

struct World {
    driver: Driver,
}

impl World {
    async fn make(&self, name: &str) -> Result<String, tonic::Status> {
        let mut controller = ControllerClient::new(self.driver.channel().await);
        let reply = controller.create_volume(create(name, None, MIB, 0)).await?;
        Ok(reply.into_inner().volume.unwrap().volume_id)
    }

    async fn delete(&self, id: &str) -> Result<(), tonic::Status> {
        let request = pb::DeleteVolumeRequest {
            volume_id: id.to_owned(),
            ..Default::default()
        };
        let mut controller = ControllerClient::new(self.driver.channel().await);
        controller.delete_volume(request).await.map(drop)
    }

    fn file(&self, folder: &str, id: &str, kind: &str) -> String {
        self.driver.path(&format!("data/{folder}/{id}.{kind}"))
    }

    fn swept(&self, id: &str) {
        let aside = self.file("quarantine", id, "json");
        let since = Instant::now();
        while !Path::new(&aside).exists() {
            assert!(since.elapsed() < LIMIT, "{id} is not in quarantine");
            std::thread::park_timeout(Duration::from_millis(5));
        }
    }

    fn left(&self) -> BTreeSet<String> {
        let folders = ["volumes", "quarantine", "locks", "requests"];
        let names = folders.iter().flat_map(|folder| {
            let entries = std::fs::read_dir(self.driver.path(&format!("data/{folder}"))).unwrap();
            entries
                .flatten()
                .map(move |e| format!("{folder}/{}", e.file_name().to_string_lossy()))
        });
        names.filter(|name| name != "locks/promises.lock").collect()
    }
}

/// What a power failure makes of a record, and what a disk may.
fn tear(record: &str, how: &str) {
    let text = std::fs::read(record).unwrap();
    let torn = match how {
        "empty" => Vec::new(),
        "zeros" => vec![0; text.len()],
        "torn" => text[..40].to_vec(),
        _ => text[..text.len() - 1].to_vec(),
    };
    std::fs::write(record, torn).unwrap();
}

async fn a_torn_creation_is_in_nobodys_way() {
    let mut world = World {
        driver: Driver::start(),
    };
    // Found by the call itself, or after the sweep of a start has found it.
    for is_swept in [false, true] {
        let mut torn = Vec::new();
        for how in ["empty", "zeros", "torn", "truncated"] {
            for has_image in [true, false] {
                for then in ["made", "deleted"] {
                    let name = format!("{how} {has_image} {then}");
                    let id = world.make(&name).await.unwrap();
                    tear(&world.file("volumes", &id, "json"), how);
                    if !has_image {
                        std::fs::remove_file(world.file("volumes", &id, "img")).unwrap();
                    }
                    torn.push((name, id, then));
                }
            }
        }
        if is_swept {
            world.driver.kill_and_restart();
            torn.iter().for_each(|(_, id, _)| world.swept(id));
        }
        for (name, id, then) in torn {
            if then == "made" {
                assert_eq!(world.make(&name).await.unwrap(), id, "{name}");
                assert_eq!(world.make(&name).await.unwrap(), id, "{name}");
            }
            world.delete(&id).await.unwrap();
            world.delete(&id).await.unwrap();
        }
        assert_eq!(world.left(), BTreeSet::new(), "swept: {is_swept}");
    }
}

/// A torn record beside an image with data, and a whole one of another version: neither is a creation that was cut off.
async fn what_may_be_somebodys_is_left_alone() {
    let mut world = World {
        driver: Driver::start(),
    };
    let written = world.make("written").await.unwrap();
    let image = world.file("volumes", &written, "img");
    let file = std::fs::File::options().write(true).open(&image).unwrap();
    file.write_all_at(b"precious", 4096).unwrap();
    tear(&world.file("volumes", &written, "json"), "empty");
    let newer = world.make("newer").await.unwrap();
    let record = world.file("volumes", &newer, "json");
    let text = std::fs::read_to_string(&record).unwrap();
    std::fs::write(&record, text.replace("\"version\":1", "\"version\":9")).unwrap();
    for (name, id) in [("written", &written), ("newer", &newer)] {
        let refused = world.make(name).await.unwrap_err();
        assert_eq!(refused.code(), Code::Unavailable, "{name}");
        assert!(refused.message().contains(id.as_str()), "{}", refused.message());
        assert_eq!(wait_code(world.delete(id).await), Code::Unavailable, "{name}");
    }
    world.driver.kill_and_restart();
    for id in [&written, &newer] {
        world.swept(id);
    }
    assert_eq!(&std::fs::read(&image).unwrap()[4096..4104], b"precious");
    // A name that is asked for again begins without it, and without losing it.
    assert_eq!(world.make("written").await.unwrap(), written);
    let aside = std::fs::read(world.file("quarantine", &written, "img")).unwrap();
    assert_eq!(&aside[4096..4104], b"precious");
    assert!(Path::new(&world.file("quarantine", &written, "json")).exists());
    world.delete(&newer).await.unwrap();
    assert!(Path::new(&world.file("quarantine", &newer, "json")).exists());
}

/// The image of a record that was lost, moved out of the way of a new volume of its name: once, whole, whenever it stops.
async fn a_kill_while_something_is_set_aside_loses_nothing() {
    for plan in ["kill-before", "kill-after", "EIO"] {
        let mut world = World {
            driver: Driver::start(),
        };
        let id = world.make("a").await.unwrap();
        let image = world.file("volumes", &id, "img");
        let file = std::fs::File::options().write(true).open(&image).unwrap();
        file.write_all_at(b"precious", 4096).unwrap();
        std::fs::remove_file(world.file("volumes", &id, "json")).unwrap();
        let folder = world.driver.folder.path().to_owned();
        world.driver.process.kill().unwrap();
        world.driver.process.wait().unwrap();
        let plan = format!("set-aside:1={plan}");
        let environment = [("HOLDFAST_FAILPOINT", plan.as_str())];
        world.driver.process = spawn_env(&folder, "all", "n1", &world.driver.socket, &[], &environment);
        world.make("a").await.unwrap_err();
        world.driver.kill_and_restart();
        assert_eq!(world.make("a").await.unwrap(), id, "{plan}");
        let aside = std::fs::read(world.file("quarantine", &id, "img")).unwrap();
        assert_eq!(&aside[4096..4104], b"precious", "{plan}");
        world.delete(&id).await.unwrap();
        assert_eq!(
            world.left(),
            BTreeSet::from([format!("quarantine/{id}.img")]),
            "{plan}"
        );
    }
}

pub fn cases() -> Vec<Case> {
    vec![
        ("a_torn_creation_is_in_nobodys_way", || {
            run(a_torn_creation_is_in_nobodys_way())
        }),
        ("what_may_be_somebodys_is_left_alone", || {
            run(what_may_be_somebodys_is_left_alone())
        }),
        ("a_kill_while_something_is_set_aside_loses_nothing", || {
            run(a_kill_while_something_is_set_aside_loses_nothing())
        }),
    ]
}
