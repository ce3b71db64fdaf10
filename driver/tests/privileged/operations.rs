//! T1: what an operator, and whoever reaches the socket, can see and do: metrics, inspect, repair, and a client that means harm.
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::process::Command;
use std::time::{Duration, Instant};

use crate::common::*;
use holdfast_driver::id::VolumeId;
use holdfast_proto::csi as pb;
use holdfast_proto::csi::controller_client::ControllerClient;
use holdfast_proto::csi::identity_client::IdentityClient;

/// A call that waits for nobody, on a busy machine.
const PROMPT: Duration = Duration::from_secs(3);

fn get(port: u16, path: &str) -> String {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    text
}

async fn made(driver: &Driver, name: &str) -> String {
    let reply = ControllerClient::new(driver.channel().await)
        .create_volume(create(name, None, MIB, 0))
        .await;
    reply.unwrap().into_inner().volume.unwrap().volume_id
}

async fn metrics_count_what_happened() {
    let port = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let driver = Driver::with(&["--health-address", &format!("127.0.0.1:{port}")]);
    made(&driver, "a").await;
    made(&driver, "b").await;
    let wrong = create("", None, MIB, 0);
    let mut controller = ControllerClient::new(driver.channel().await);
    controller.create_volume(wrong).await.unwrap_err();
    std::fs::write(driver.path("data/quarantine/x"), b"").unwrap();
    assert!(get(port, "/healthz").starts_with("HTTP/1.1 200"));
    assert!(get(port, "/readyz").starts_with("HTTP/1.1 200"));
    assert!(get(port, "/else").starts_with("HTTP/1.1 404"));
    let text = get(port, "/metrics");
    for line in [
        "holdfast_calls_total{method=\"CreateVolume\",code=\"OK\"} 2",
        "holdfast_calls_total{method=\"CreateVolume\",code=\"INVALID_ARGUMENT\"} 1",
        "holdfast_call_seconds_count{method=\"CreateVolume\"} 3",
        "holdfast_calls_in_flight 0",
        "holdfast_volumes 2",
        "holdfast_promised_bytes 2097152",
        "holdfast_quarantined 1",
        "holdfast_recovered_total 0",
    ] {
        assert!(text.contains(line), "{line} is not in\n{text}");
    }
}

fn tool(driver: &Driver, words: &[&str]) -> (bool, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_holdfast-driver"))
        .args(words)
        .arg("--data-dir")
        .arg(driver.path("data"))
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap() + &String::from_utf8(output.stderr).unwrap();
    (output.status.success(), text)
}

/// Everything that can be odd, and a volume that is not, while a driver serves.
async fn inspect_names_what_is_odd_and_repair_undoes_it() {
    let mut driver = Driver::start();
    for name in ["good", "torn", "short", "lost", "orphan", "data"] {
        made(&driver, name).await;
    }
    let path =
        |name: &str, kind: &str| driver.path(&format!("data/volumes/{}.{kind}", VolumeId::of_name(name)));
    assert_eq!(
        tool(&driver, &["repair", "--dry-run"]),
        (true, String::from("nothing is odd\n"))
    );
    std::fs::write(path("torn", "json"), b"{").unwrap();
    std::fs::File::options()
        .write(true)
        .open(path("short", "img"))
        .unwrap()
        .set_len(4096)
        .unwrap();
    std::fs::remove_file(path("lost", "img")).unwrap();
    std::fs::remove_file(path("orphan", "json")).unwrap();
    std::fs::remove_file(path("data", "json")).unwrap();
    std::fs::write(path("data", "img"), b"precious").unwrap();
    std::fs::write(path("gone", "json.tmp"), b"").unwrap();
    std::fs::write(driver.path("data/volumes/README"), b"").unwrap();
    std::fs::write(
        driver.path(&format!("data/locks/{}.lock", VolumeId::of_name("gone"))),
        b"",
    )
    .unwrap();
    let before = tool(&driver, &["inspect"]);
    assert!(before.0);
    for expected in [
        format!("{}.json: the record", VolumeId::of_name("torn")),
        String::from("the image has 4096 bytes, its record 1048576"),
        String::from("its image is missing"),
        String::from("an image without a record and without data"),
        String::from("an image without a record, with data"),
        String::from("a temporary of a call that is over"),
        String::from("README: not of this driver"),
        String::from("a lock that nobody holds"),
    ] {
        assert!(before.1.contains(&expected), "{expected} is not in\n{}", before.1);
    }
    let (_, json) = tool(&driver, &["inspect", "--json"]);
    let json: serde_json::Value = serde_json::from_str(&json).expect(&json);
    assert_eq!(json["volumes"].as_array().unwrap().len(), 3);
    assert_eq!(json["odd"].as_array().unwrap().len(), 8, "{json:#}");
    let dry = tool(&driver, &["repair", "--dry-run"]);
    assert!(dry.0 && dry.1.contains("would"), "{}", dry.1);
    assert_eq!(
        tool(&driver, &["inspect"]).1,
        before.1,
        "a dry run changed something"
    );
    assert!(
        !tool(&driver, &["repair"]).0,
        "neither a dry run nor the real one"
    );
    let done = tool(&driver, &["repair", "--apply"]);
    assert!(done.0 && !done.1.contains("failed"), "{}", done.1);
    let aside = |name: &str, kind: &str| {
        let file = format!("data/quarantine/{}.{kind}", VolumeId::of_name(name));
        std::fs::read(driver.path(&file))
    };
    assert_eq!(aside("data", "img").unwrap(), b"precious");
    assert_eq!(aside("torn", "json").unwrap(), b"{");
    assert_eq!(std::fs::metadata(path("short", "img")).unwrap().len(), 1 << 20);
    for (name, kind) in [("orphan", "img"), ("gone", "json.tmp")] {
        assert!(
            std::fs::metadata(path(name, kind)).is_err(),
            "{name} is still there"
        );
    }
    // What nothing can be done about stays, and is said again.
    let after = tool(&driver, &["inspect"]).1;
    for expected in [
        "its image is missing",
        "README",
        "was set aside",
        "the image of a record in quarantine",
    ] {
        assert!(after.contains(expected), "{expected} is not in\n{after}");
    }
    assert!(
        !after.contains("repair: set") && !after.contains("repair: remove"),
        "{after}"
    );
    driver.kill_and_restart();
    assert_eq!(made(&driver, "good").await, VolumeId::of_name("good").to_string());
}

/// What a call works on is left to it.
async fn repair_leaves_alone_what_is_in_flight() {
    let driver = Driver::start();
    let id = made(&driver, "a").await;
    let record = driver.path(&format!("data/volumes/{id}.json"));
    let text = std::fs::read_to_string(&record)
        .unwrap()
        .replace("\"ready\"", "\"creating\"");
    std::fs::write(&record, text).unwrap();
    let lock = std::fs::File::create(driver.path(&format!("data/locks/{id}.lock"))).unwrap();
    lock.lock().unwrap();
    let shown = tool(&driver, &["inspect"]).1;
    assert!(shown.contains("1 in flight, 0 odd"), "{shown}");
    tool(&driver, &["repair", "--apply"]);
    assert!(std::fs::metadata(&record).is_ok());
    lock.unlock().unwrap();
    tool(&driver, &["repair", "--apply"]);
    assert!(
        std::fs::metadata(&record).is_err(),
        "not repaired when it could be"
    );
}

async fn answers(driver: &Driver, when: &str) {
    let since = Instant::now();
    let mut identity = IdentityClient::new(driver.channel().await);
    identity.probe(pb::ProbeRequest {}).await.expect(when);
    assert!(since.elapsed() < PROMPT, "{when}: {:?}", since.elapsed());
}

/// Garbage, messages that are too large, and clients that connect and say nothing, or half of something.
async fn harm_leaves_it_serving() {
    let driver = Driver::start();
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    let mut idle = Vec::new();
    for n in 0..1000 {
        let mut stream = UnixStream::connect(&driver.socket).unwrap();
        // Idle, half of a preface, a whole one and half of a frame.
        let said: &[u8] = match n % 4 {
            0 => b"",
            1 => &preface[..9],
            2 => preface,
            _ => b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x12\x04\x00",
        };
        stream.write_all(said).unwrap();
        idle.push(stream);
    }
    answers(&driver, "beside 1,000 idle connections").await;
    for seed in 0..50_u8 {
        let mut stream = UnixStream::connect(&driver.socket).unwrap();
        let garbage: Vec<u8> = (0..4096_u32)
            .map(|n| (n.wrapping_mul(2_654_435_761).rotate_left(7) >> 9) as u8 ^ seed)
            .collect();
        // Cut off by the driver at any byte.
        let _ = stream.write_all(preface);
        let _ = stream.write_all(&garbage);
    }
    answers(&driver, "after garbage").await;
    let large = pb::CreateVolumeRequest {
        name: "x".repeat(8 << 20),
        ..create("x", None, MIB, 0)
    };
    let refused = ControllerClient::new(driver.channel().await)
        .create_volume(large)
        .await;
    assert!(refused.is_err(), "8 MiB were taken");
    answers(&driver, "after a message that is too large").await;
    made(&driver, "a").await;
    assert_eq!(idle.len(), 1000);
}

/// SIGTERM beside idle and half-open clients ends the process in time, and its socket.
async fn it_ends_in_time() {
    let mut driver = Driver::start();
    let channel = driver.channel().await;
    IdentityClient::new(channel.clone())
        .probe(pb::ProbeRequest {})
        .await
        .unwrap();
    let idle: Vec<_> = (0..100)
        .map(|_| UnixStream::connect(&driver.socket).unwrap())
        .collect();
    let pid = nix::unistd::Pid::from_raw(driver.process.id().cast_signed());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
    let since = Instant::now();
    let ended = loop {
        if let Some(status) = driver.process.try_wait().unwrap() {
            break status;
        }
        assert!(since.elapsed() < Duration::from_secs(5), "still there after 5 s");
        std::thread::park_timeout(Duration::from_millis(5));
    };
    assert!(ended.success(), "{ended}");
    assert!(!driver.socket.exists(), "its socket is left");
    drop((idle, channel));
}

/// A stale socket is replaced, a live one refused; only its owner gets in, and no other file lies beside it.
async fn the_socket_is_its_own() {
    let folder = tempfile::tempdir().unwrap();
    let inner = folder.path().join("socket");
    std::fs::create_dir(&inner).unwrap();
    drop(std::os::unix::net::UnixListener::bind(inner.join("csi.sock")).unwrap());
    let driver = Driver::in_folder(folder, "all", "socket/csi.sock");
    answers(&driver, "in place of a stale socket").await;
    let mode = std::fs::metadata(&driver.socket).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    assert_eq!(std::fs::read_dir(&inner).unwrap().count(), 1);
    let second = Command::new(env!("CARGO_BIN_EXE_holdfast-driver"))
        .args(["all", "--node-id", "n2", "--data-dir"])
        .arg(driver.path("data"))
        .arg("--endpoint")
        .arg(format!("unix://{}", driver.socket.display()))
        .output()
        .unwrap();
    assert!(!second.status.success());
    let text = String::from_utf8(second.stderr).unwrap();
    assert!(text.contains("is served by another process"), "{text}");
    answers(&driver, "after a second one was refused").await;
}

pub fn cases() -> Vec<Case> {
    vec![
        ("metrics_count_what_happened", || {
            run(metrics_count_what_happened())
        }),
        ("inspect_names_what_is_odd_and_repair_undoes_it", || {
            run(inspect_names_what_is_odd_and_repair_undoes_it())
        }),
        ("repair_leaves_alone_what_is_in_flight", || {
            run(repair_leaves_alone_what_is_in_flight())
        }),
        ("harm_leaves_it_serving", || run(harm_leaves_it_serving())),
        ("it_ends_in_time", || run(it_ends_in_time())),
        ("the_socket_is_its_own", || run(the_socket_is_its_own())),
    ]
}
