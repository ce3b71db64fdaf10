//! T1: the real process killed at every failpoint, before and after, and every step made to fail: whatever comes next, nothing
//! leaks and nothing is lost. `cargo test -p holdfast-driver --test crash`
#![allow(
    missing_docs,
    dead_code,
    unreachable_pub,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::disallowed_methods
)]
#[path = "../common/mod.rs"]
mod common;
mod world;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Mutex;
use std::time::Instant;

use common::*;
use libtest_mimic::{Arguments, Trial};
use tonic::Code;
use world::*;

const ERRNOS: [&str; 4] = ["EIO", "ENOSPC", "EBUSY", "EROFS"];
/// Not passed in the life of a volume, but where something is odd: driver/tests/privileged/torn.rs kills at it.
const ELSEWHERE: [&str; 1] = ["set-aside"];

/// What is swept: of a kind of volume only the calls that do another thing than for the kinds before it.
const SWEPT: [(Kind, &[Call]); 4] = [
    (Kind::Ext4, &LIFE),
    (Kind::Block, &LIFE),
    (Kind::Copy, &["CreateVolume"]),
    (
        Kind::Xfs,
        &["NodePublishVolume", "NodeExpandVolume", "NodeUnpublishVolume"],
    ),
];

/// The steps that `calls` take, found by making them.
async fn traced(world: &mut World, calls: &[Call]) -> Vec<String> {
    let trace = world.driver.path("trace");
    world.restart(&[("HOLDFAST_FAILPOINT_TRACE", &trace)]);
    let read = || std::fs::read_to_string(&trace).unwrap_or_default();
    let before = read().lines().count();
    world.calls(calls).await;
    read().lines().skip(before).map(str::to_owned).collect()
}

async fn points(kind: Kind, call: Call) -> Vec<String> {
    let mut world = World::new(kind).await;
    let at = place(call);
    world.calls(&LIFE[..at]).await;
    let found = traced(&mut world, &[call]).await;
    world.calls(&LIFE[at + 1..]).await;
    found
}

/// Makes the call with a plan that kills the process in it.
async fn dies(world: &mut World, call: Call, plan: &str) {
    world.restart(&[("HOLDFAST_FAILPOINT", plan)]);
    let answer = world.call(call).await;
    assert!(
        world.died(),
        "{plan} did not kill the process; the call: {answer:?}"
    );
}

/// Kills the process at a point of `call`, then lets `ending` happen.
async fn killed(kind: Kind, call: Call, plan: &str, ending: &str) {
    let mut world = World::new(kind).await;
    let clean = world.settled();
    let at = place(call);
    world.calls(&LIFE[..at]).await;
    dies(&mut world, call, plan).await;
    match ending {
        "repeated" => {
            world.restart(&[]);
            world.calls(&LIFE[at..]).await;
        }
        "abandoned" => {
            world.restart(&[]);
            world.calls(&UNDO).await;
        }
        // A controller's call is repeated on the other replica; a node's volume moves to another node.
        _ if !is_of_node(call) => {
            world.others_come("n1");
            world.calls(&LIFE[at..]).await;
        }
        _ => {
            world.restart(&[]);
            world.calls(&UNDO[..3]).await;
            world.others_come("n2");
            world.calls(&GIVE).await;
            world.calls(&UNDO).await;
        }
    }
    world.nothing_else(&clean);
}

/// Lets the step fail with each errno, then repeats the call.
async fn failed(kind: Kind, call: Call, point: &str) {
    let mut world = World::new(kind).await;
    let clean = world.settled();
    let at = place(call);
    world.calls(&LIFE[..at]).await;
    for errno in ERRNOS {
        world.restart(&[("HOLDFAST_FAILPOINT", &format!("{point}={errno}"))]);
        if let Err(status) = world.call(call).await {
            assert!(!status.message().is_empty());
            let open = [Code::Aborted, Code::Unavailable, Code::DeadlineExceeded];
            if !open.contains(&status.code()) && call == "CreateVolume" {
                assert_eq!(world.settled(), clean, "final, without a rollback: {status:?}");
            }
        }
    }
    world.restart(&[]);
    world.calls(&LIFE[at..]).await;
    world.nothing_else(&clean);
}

/// Every schedule that ran, for the summary.
static DONE: Mutex<BTreeMap<String, u32>> = Mutex::new(BTreeMap::new());

fn count(key: String) {
    *DONE.lock().unwrap().entry(key).or_default() += 1;
}

async fn sweep(kind: Kind, call: Call) {
    let points = points(kind, call).await;
    println!("{} {call}: {}", kind.name(), points.join(" "));
    for point in &points {
        for when in ["kill-before", "kill-after"] {
            for ending in ["repeated", "abandoned", "taken over"] {
                let plan = format!("{point}={when}");
                println!("{} {call} {plan} {ending}", kind.name());
                killed(kind, call, &plan, ending).await;
                count(format!("{when}, {ending}"));
            }
        }
        println!("{} {call} {point} errnos", kind.name());
        failed(kind, call, point).await;
        count(String::from("errnos, repeated"));
        count(format!("point {}", point.split(':').next().unwrap()));
    }
}

const DETACH: Call = "ControllerUnpublishVolume";

/// A volume whose node has died with it.
async fn lost() -> (World, BTreeSet<String>) {
    let mut world = World::new(Kind::Lost).await;
    let clean = world.settled();
    world.calls(&LIFE[..1]).await;
    world.others_come("n2");
    world.controller = world.driver.socket.clone();
    world.calls(&GIVE).await;
    world.others_die();
    (world, clean)
}

/// Its node comes back, and lets go of what it has.
async fn found(mut world: World, clean: &BTreeSet<String>) {
    world.others_come("n2");
    world.calls(&UNDO).await;
    world.nothing_else(clean);
}

/// Killed while a volume is taken from a node that has died: by the controller, by the node that acts in its place, or both.
async fn sweep_of_a_lost_node(when: &'static str) {
    let (mut world, clean) = lost().await;
    let points = traced(&mut world, &[DETACH]).await;
    found(world, &clean).await;
    println!("lost {DETACH}: {}", points.join(" "));
    for point in points {
        let plan = format!("{point}={when}");
        println!("lost {DETACH} {plan} repeated");
        let (mut world, clean) = lost().await;
        dies(&mut world, DETACH, &plan).await;
        world.restart(&[]);
        world.calls(&[DETACH]).await;
        found(world, &clean).await;
        count(format!("{when}, repeated"));
    }
}

/// Every call that writes has a place in a volume's life, and every step that the source names is taken in one.
async fn everything_is_swept() {
    let calls = LIFE.map(|call| call.split(' ').next().unwrap().to_owned());
    assert_eq!(BTreeSet::from(calls), writing::calls());
    let mut taken = BTreeSet::from(ELSEWHERE.map(String::from));
    for (kind, calls) in SWEPT {
        let mut world = World::new(kind).await;
        let before = place(calls[0]);
        world.calls(&LIFE[..before]).await;
        let upto = place(calls[calls.len() - 1]) + 1;
        let passed = traced(&mut world, &LIFE[before..upto]).await;
        taken.extend(passed.iter().map(|p| p.split(':').next().unwrap().to_owned()));
        world.calls(&LIFE[upto..]).await;
    }
    let mut named = BTreeSet::new();
    steps_below(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut named);
    assert!(named.len() > 20, "{named:?}");
    assert_eq!(taken, named);
}

/// The names of the steps in the sources below a folder.
fn steps_below(folder: &Path, named: &mut BTreeSet<String>) {
    for entry in std::fs::read_dir(folder).unwrap().flatten() {
        let path = entry.path();
        if path.is_dir() {
            steps_below(&path, named);
            continue;
        }
        let text = std::fs::read_to_string(&path).unwrap();
        for call in text.split("failpoint::step(").skip(1) {
            let name = call
                .trim_start()
                .strip_prefix('"')
                .and_then(|rest| rest.split('"').next());
            let shown = path.display();
            named.insert(
                name.unwrap_or_else(|| panic!("{shown}: a step without a name of its own"))
                    .to_owned(),
            );
        }
    }
}

fn main() {
    let mut arguments = Arguments::from_args();
    arguments.test_threads.get_or_insert(8);
    let ignored = needs::are_ignored(needs::FILESYSTEMS);
    let everything = || run(everything_is_swept());
    let mut trials = vec![Trial::test("everything_is_swept", everything)];
    for when in ["kill-before", "kill-after"] {
        let body = move || run(sweep_of_a_lost_node(when));
        trials.push(Trial::test(format!("lost_{DETACH}_{when}"), body));
    }
    for (kind, calls) in SWEPT {
        for call in calls.iter().copied() {
            let body = move || run(sweep(kind, call));
            let name = format!("{}_{}", kind.name(), call.replace(' ', "_"));
            trials.push(Trial::test(name, body));
        }
    }
    let trials = trials.into_iter().map(|t| t.with_ignored_flag(ignored)).collect();
    let since = Instant::now();
    let conclusion = libtest_mimic::run(&arguments, trials);
    let done = DONE.lock().unwrap();
    println!("{} s, schedules by kind:", since.elapsed().as_secs());
    for (key, count) in done.iter() {
        println!("  {count:4}  {key}");
    }
    drop(done);
    conclusion.exit();
}
