//! This driver and another one, measured by the same calls in one run.
//!
//! `cargo bench -p holdfast-driver` measures this one as cargo links it; HOLDFAST_DRIVER_BINARY names the one that an image is
//! made of. With HOLDFAST_BENCH_OTHER another one is measured beside it: a command line in which `{socket}` and `{dir}` stand
//! for a socket's path and an empty folder. HOLDFAST_BENCH_QUICK=1 stops at 1,000 volumes.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::zombie_processes // Running waits for its process when it is dropped
)]
mod controller;
mod node;
mod running;

use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use holdfast_proto::csi as pb;

use controller::{at_once, capacity, in_sequence, list};
use node::{beside_clones, round};
use running::{Running, Subject};

fn median(mut times: Vec<Duration>) -> f64 {
    times.sort();
    millis(times[times.len() / 2])
}

fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// Name and unit of a figure, and the figure.
type Figures = Vec<(&'static str, Option<f64>)>;

async fn measure(subject: &Subject, quick: bool) -> Figures {
    let base = std::env::var_os("HOLDFAST_BENCH_DIR").map_or_else(std::env::temp_dir, PathBuf::from);
    let folder = tempfile::Builder::new().prefix("bench").tempdir_in(base).unwrap();
    let path = folder.path();
    let mut figures = Figures::new();
    let mut starts = Vec::new();
    for _ in 0..9 {
        let running = Running::start(subject, path).await;
        starts.push(running.ready);
        running.stop();
    }
    figures.push(("ready after start, ms", Some(median(starts))));
    let running = Running::start(subject, path).await;
    figures.push(("resident idle, MiB", Some(running.resident_kib() / 1024.0)));
    in_sequence(&running, "warm", 50).await;
    let first = in_sequence(&running, "few", 100).await;
    figures.push(("CreateVolume p50 in sequence, 100 volumes, ms", Some(first)));
    figures.push((
        "GetCapacity p50, 100 volumes, ms",
        Some(capacity(&running, path).await),
    ));
    figures.push((
        "CreateVolume 16 at once, per second",
        Some(at_once(&running, "many", 850).await),
    ));
    figures.push((
        "resident with 1,000 volumes, MiB",
        Some(running.resident_kib() / 1024.0),
    ));
    figures.push(("ListVolumes of 1,000, ms", Some(list(&running, 1000).await)));
    let mut running = running;
    if !quick {
        at_once(&running, "fill", 8900).await;
        let last = in_sequence(&running, "last", 100).await;
        figures.push(("CreateVolume p50 in sequence, 10,000 volumes, ms", Some(last)));
        figures.push(("the same, against 100 volumes, times", Some(last / first)));
        figures.push((
            "GetCapacity p50, 10,000 volumes, ms",
            Some(capacity(&running, path).await),
        ));
        figures.push((
            "resident with 10,000 volumes, MiB",
            Some(running.resident_kib() / 1024.0),
        ));
        figures.push(("ListVolumes of 10,000, ms", Some(list(&running, 10_000).await)));
        let mut restarts = Vec::new();
        let mut listed = Vec::new();
        for _ in 0..5 {
            running.stop();
            let since = Instant::now();
            running = Running::start(subject, path).await;
            restarts.push(running.ready);
            let request = pb::ListVolumesRequest {
                max_entries: 1,
                ..Default::default()
            };
            // A page of one, where it is offered; the whole list otherwise.
            running.controller().list_volumes(request).await.unwrap();
            listed.push(since.elapsed());
        }
        figures.push((
            "restart with 10,000 volumes to the first Probe, ms",
            Some(median(restarts)),
        ));
        figures.push(("the same, to the first ListVolumes, ms", Some(median(listed))));
    }
    figures.push((
        "stage, publish, unpublish, unstage p50, ms",
        round(&running, path, "bench").await,
    ));
    figures.push((
        "ListVolumes and Probe p99 beside two clones of 1 GiB, ms",
        beside_clones(&running, path, "bench").await,
    ));
    running.stop();
    let clean = Command::new("find")
        .arg(path.join("data"))
        .args(["-depth", "-delete"])
        .status();
    assert!(clean.is_ok_and(|s| s.success()), "{} stays", path.display());
    figures
}

fn main() {
    let quick = std::env::var_os("HOLDFAST_BENCH_QUICK").is_some();
    let shipped = std::env::var("HOLDFAST_DRIVER_BINARY").ok();
    if shipped.is_none() {
        println!(
            "HOLDFAST_DRIVER_BINARY names no static driver: measured is one that has more resident than an image's"
        );
    }
    let mut subjects = vec![Subject {
        name: "holdfast-driver",
        command: format!(
            "{} all --endpoint unix://{{socket}} --node-id bench --data-dir {{dir}} --log-level warn",
            shipped
                .as_deref()
                .unwrap_or(env!("CARGO_BIN_EXE_holdfast-driver"))
        ),
    }];
    match std::env::var("HOLDFAST_BENCH_OTHER") {
        Ok(command) => subjects.push(Subject {
            name: "other",
            command,
        }),
        Err(_) => println!("HOLDFAST_BENCH_OTHER names no other driver: its column is skipped"),
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    let columns: Vec<_> = subjects
        .iter()
        .map(|subject| runtime.block_on(measure(subject, quick)))
        .collect();
    let shown = |figure: Option<f64>| figure.map_or_else(|| String::from("-"), |f| format!("{f:.2}"));
    println!(
        "| figure | {} |",
        subjects.iter().map(|s| s.name).collect::<Vec<_>>().join(" | ")
    );
    println!("|---|{}", "--:|".repeat(subjects.len()));
    for (row, (name, _)) in columns[0].iter().enumerate() {
        let cells: Vec<_> = columns.iter().map(|column| shown(column[row].1)).collect();
        println!("| {name} | {} |", cells.join(" | "));
    }
}
