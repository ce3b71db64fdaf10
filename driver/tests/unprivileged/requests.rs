//! Properties of every request message, made from the descriptors, so that a method that is added is tested, too: there is
//! always an answer, never a panic, nothing outside the given folders is touched, and no secret reaches a log.
use std::collections::HashMap;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::common::*;
use holdfast_proto::csi::controller_client::ControllerClient;
use prost::Message;
use prost_reflect::{
    DescriptorPool, DynamicMessage, FieldDescriptor, Kind, MapKey, MessageDescriptor, MethodDescriptor, Value,
};
use tonic::Code;

const CANARY: &str = "canary-that-nobody-may-see";
/// How long requests are made; the state they work on is the driver's own, so there is always something new.
const TIME: Duration = Duration::from_secs(6);
/// Longest that any answer may take: a call waits 8 s for its turn and 10 s for a node.
const ANSWER: Duration = Duration::from_secs(30);
/// Calls at once.
const TASKS: u64 = 6;

/// xorshift64*: the same seed gives the same requests.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() >> 33) as usize % bound
    }

    fn pick<'a, T: ?Sized>(&mut self, from: &[&'a T]) -> &'a T {
        from[self.below(from.len())]
    }
}

/// Makes requests: two of three with nothing wrong but perhaps one field, so that they get far, the others anyhow.
struct Maker {
    random: Random,
    root: String,
    ids: Vec<String>,
    is_secret: Box<dyn Fn(&FieldDescriptor) -> bool + Send>,
    careful: bool,
}

fn pool() -> DescriptorPool {
    DescriptorPool::decode(holdfast_proto::DESCRIPTORS).unwrap()
}

fn methods() -> Vec<MethodDescriptor> {
    let pool = pool();
    let services = pool.services().filter(|s| s.full_name().starts_with("csi.v1."));
    services.flat_map(|s| s.methods().collect::<Vec<_>>()).collect()
}

impl Maker {
    fn new(seed: u64, root: &Path, ids: Vec<String>) -> Self {
        let option = pool().get_extension_by_name("csi.v1.csi_secret").unwrap();
        Self {
            random: Random(seed),
            root: root.display().to_string(),
            ids,
            is_secret: Box::new(move |field| field.options().get_extension(&option).as_bool() == Some(true)),
            careful: false,
        }
    }

    fn request(&mut self, of: &MessageDescriptor) -> DynamicMessage {
        self.careful = self.random.below(3) > 0;
        let mut request = self.message(of);
        let fields: Vec<_> = of.fields().collect();
        if self.careful && !fields.is_empty() && self.random.below(3) == 0 {
            self.careful = false;
            let field = &fields[self.random.below(fields.len())];
            let value = self.field(field);
            request.set_field(field, value);
        }
        request
    }

    fn message(&mut self, of: &MessageDescriptor) -> DynamicMessage {
        let mut message = DynamicMessage::new(of.clone());
        let rare = [
            "accessibility_requirements",
            "volume_content_source",
            "accessible_topology",
            "snapshot",
            "block",
        ];
        for field in of.fields() {
            let left_out = if rare.contains(&field.name()) {
                self.random.below(5) > 0
            } else {
                !self.careful && self.random.below(12) == 0
            };
            if !left_out {
                let value = self.field(&field);
                message.set_field(&field, value);
            }
        }
        message
    }

    fn field(&mut self, field: &FieldDescriptor) -> Value {
        if field.is_map() {
            return Value::Map(self.map(field));
        }
        if field.is_list() {
            let count = match (field.name(), self.careful) {
                ("mount_flags", true) => [0, 0, 0, 1][self.random.below(4)],
                (_, true) => 1,
                (_, false) => self.random.below(4),
            };
            return Value::List((0..count).map(|_| self.single(field)).collect());
        }
        self.single(field)
    }

    fn map(&mut self, field: &FieldDescriptor) -> HashMap<MapKey, Value> {
        let entry =
            |key: &str, value: &str| (MapKey::String(key.to_owned()), Value::String(value.to_owned()));
        if (self.is_secret)(field) {
            return HashMap::from([entry("user", CANARY)]);
        }
        if self.careful {
            let epoch = (self.random.below(3) + 1).to_string();
            return match field.name() {
                "publish_context" => HashMap::from([entry("epoch", &epoch)]),
                "segments" => HashMap::from([entry("topology.holdfast.csi/zone", "default")]),
                "mutable_parameters" => {
                    HashMap::from([entry("access", self.random.pick(&["read-only", "read-write"]))])
                }
                _ => HashMap::new(),
            };
        }
        let keys = ["epoch", "access", "atime", "csi.storage.k8s.io/x", "a b", ""];
        let values = ["1", "read-only", "noatime", "default", "", "\u{1}"];
        let mut map: HashMap<_, _> = (0..self.random.below(3))
            .map(|_| entry(self.random.pick(&keys), self.random.pick(&values)))
            .collect();
        if self.random.below(12) == 0 {
            map.extend([entry("large", &"x".repeat(5000))]);
        }
        map
    }

    fn single(&mut self, field: &FieldDescriptor) -> Value {
        match (field.kind(), self.careful) {
            (Kind::String, _) => Value::String(self.text(field.name())),
            (Kind::Bool, _) => Value::Bool(self.random.below(4) == 0),
            (Kind::Int32, true) => Value::I32(self.random.below(3) as i32),
            (Kind::Int32, false) => Value::I32([-1, i32::MAX, i32::MIN][self.random.below(3)]),
            (Kind::Int64, true) if field.name() == "limit_bytes" => Value::I64(0),
            (Kind::Int64, true) => Value::I64([8 * MIB, 8 * MIB, 16 * MIB][self.random.below(3)]),
            (Kind::Int64, false) => Value::I64([0, 1, 1 << 40, -1, i64::MAX, i64::MIN][self.random.below(6)]),
            (Kind::Enum(_), true) => Value::EnumNumber([1, 1, 1, 6, 7][self.random.below(5)]),
            (Kind::Enum(_), false) => Value::EnumNumber(self.random.below(10) as i32 - 1),
            (Kind::Message(of), _) => Value::Message(self.message(&of)),
            (other, _) => panic!("{}: no request has a {other:?}", field.full_name()),
        }
    }

    fn text(&mut self, name: &str) -> String {
        let odd = [
            "",
            "..",
            "../../outside",
            "/",
            "a\u{0}b",
            "\u{85}",
            "%00",
            "^",
            "数据",
            " ",
            "btrfs",
            "a,b",
            "wheel",
        ];
        if !self.careful && self.random.below(2) == 0 {
            return match self.random.below(8) {
                0 => "x".repeat(129),
                1 => "/x".repeat(3000),
                _ => self.random.pick(&odd).to_owned(),
            };
        }
        let root = self.root.clone();
        let path = |place: &str| format!("{root}/{place}");
        match name {
            "name" => format!("n{}", self.random.below(4)),
            "volume_id" => self.ids[self.random.below(self.ids.len())].clone(),
            "node_id" => self.random.pick(&["n1", "n1", "n1", "n2"]).to_owned(),
            "fs_type" => self.random.pick(&["", "ext4"]).to_owned(),
            "mount_flags" => self.random.pick(&["noatime", "ro"]).to_owned(),
            "volume_mount_group" => self.random.pick(&["", "2000"]).to_owned(),
            "starting_token" => String::new(),
            "staging_target_path" if self.careful => path("stage"),
            name if name.contains("path") && self.careful => path("target"),
            name if name.contains("path") => path(self.random.pick(&[
                "stage",
                "link/target",
                "link",
                "no/such/folder",
                "../outside/kept",
            ])),
            _ => self
                .random
                .pick(&["x", "v0123456789abcdef0123456789abcdef"])
                .to_owned(),
        }
    }
}

/// The codes of the specification for what a caller can do; any other, on a machine where nothing fails, says that somebody
/// did not decide.
const CODES: [Code; 8] = [
    Code::InvalidArgument,
    Code::NotFound,
    Code::AlreadyExists,
    Code::ResourceExhausted,
    Code::FailedPrecondition,
    Code::Aborted,
    Code::OutOfRange,
    Code::Unimplemented,
];

async fn answered(
    channel: &tonic::transport::Channel,
    method: &MethodDescriptor,
    request: &DynamicMessage,
) -> Code {
    let path = format!("/{}/{}", method.parent_service().full_name(), method.name());
    let call = raw::call(channel, &path, request.encode_to_vec());
    let Ok(result) = tokio::time::timeout(ANSWER, call).await else {
        panic!("{path}: no answer in {ANSWER:?} to {request:?}");
    };
    match result {
        Ok(_) => Code::Ok,
        Err(status) => {
            let (code, message) = (status.code(), status.message());
            let fields: Vec<_> = request
                .fields()
                .map(|(field, value)| format!("{}: {value}", field.name()))
                .collect();
            let shown = format!("{path}: {code:?} {message:?} to {}", fields.join(", "));
            assert!(CODES.contains(&status.code()), "{shown}");
            assert!(
                !status.message().is_empty() && status.details().is_empty(),
                "{shown}"
            );
            assert!(!status.message().contains(CANARY), "{shown}");
            status.code()
        }
    }
}

/// Everything below `folder` with its kind and content.
fn listed(folder: &Path) -> Vec<String> {
    let mut found: Vec<_> = std::fs::read_dir(folder)
        .unwrap()
        .flatten()
        .map(|entry| {
            let text = std::fs::read(entry.path()).unwrap_or_default();
            format!("{:?} {:?} {text:?}", entry.file_name(), entry.file_type())
        })
        .collect();
    found.sort();
    found
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_request_gets_an_answer_and_stays_within_its_root() {
    let mut driver = Driver::start();
    let root = driver.folder.path().join("pods");
    let outside = driver.folder.path().join("outside");
    for folder in [&root, &outside, &outside.join("empty"), &root.join("stage")] {
        std::fs::create_dir(folder).unwrap();
    }
    std::fs::write(outside.join("kept"), b"kept").unwrap();
    std::fs::write(outside.join("nothing"), b"").unwrap();
    std::os::unix::fs::symlink(&outside, root.join("link")).unwrap();
    let before = listed(&outside);
    let seed = std::env::var("HOLDFAST_SEED").map_or(20_260_101, |seed| seed.parse().unwrap());
    let ids: Vec<_> = (0..12)
        .map(|n| holdfast_driver::id::VolumeId::of_name(&format!("n{}", n % 4)).to_string())
        .chain([
            String::from("another drivers"),
            String::from("../../outside/kept"),
        ])
        .collect();
    let channel = driver.channel().await;
    let mut tasks = Vec::new();
    for task in 0..TASKS {
        let (channel, root, ids) = (channel.clone(), root.clone(), ids.clone());
        tasks.push(tokio::spawn(async move {
            let mut maker = Maker::new(seed + task, &root, ids);
            let methods = methods();
            let mut codes: HashMap<Code, usize> = HashMap::new();
            let since = Instant::now();
            while since.elapsed() < TIME {
                let method = &methods[maker.random.below(methods.len())];
                let request = maker.request(&method.input());
                // The end of a volume is rare, so that there are some.
                let ends = ["DeleteVolume", "ControllerUnpublishVolume"];
                if ends.contains(&method.name()) && maker.random.below(4) > 0 {
                    continue;
                }
                *codes
                    .entry(answered(&channel, method, &request).await)
                    .or_default() += 1;
            }
            codes
        }));
    }
    let mut codes: HashMap<Code, usize> = HashMap::new();
    for task in tasks {
        for (code, count) in task.await.unwrap() {
            *codes.entry(code).or_default() += count;
        }
    }
    eprintln!("seed {seed}: {codes:?}");
    assert!(
        codes.values().sum::<usize>() > 200,
        "hardly anything was asked: {codes:?}"
    );
    assert!(
        codes.get(&Code::Ok).is_some_and(|ok| *ok > 20),
        "hardly anything succeeded: {codes:?}"
    );
    assert!(driver.process.try_wait().unwrap().is_none(), "the driver ended");
    assert_eq!(listed(&outside), before, "something outside was touched");
    let log = std::fs::read_to_string(driver.path("log")).unwrap();
    assert!(
        !log.contains("panicked"),
        "a panic: {}",
        log.split("panicked").nth(1).unwrap()
    );
    for entry in std::fs::read_dir(driver.path("data/volumes")).unwrap().flatten() {
        let name = entry.file_name().into_string().unwrap();
        let id = name.split('.').next().unwrap();
        assert!(holdfast_driver::id::VolumeId::parse(id).is_some(), "{name}");
    }
}

#[tokio::test]
async fn no_secret_is_in_any_log_at_any_level() {
    let driver = Driver::with(&["--log-level", "trace"]);
    let channel = driver.channel().await;
    let created = ControllerClient::new(channel.clone())
        .create_volume(create("pvc-1", None, MIB, 0))
        .await
        .unwrap();
    let id = created.into_inner().volume.unwrap().volume_id;
    let root = driver.folder.path().join("pods");
    std::fs::create_dir(&root).unwrap();
    let mut maker = Maker::new(7, &root, vec![id]);
    let mut with_secret = 0;
    for method in methods() {
        let secret = method.input().fields().find(|field| (maker.is_secret)(field));
        let Some(secret) = secret else { continue };
        with_secret += 1;
        let mut codes = std::collections::BTreeSet::new();
        for _ in 0..12 {
            let mut request = maker.request(&method.input());
            let value = maker.field(&secret);
            request.set_field(&secret, value);
            codes.insert(format!("{:?}", answered(&channel, &method, &request).await));
        }
        // Longer than a map may be, and in a message.
        let mut request = DynamicMessage::new(method.input());
        let large = HashMap::from([(
            MapKey::String(String::from("user")),
            Value::String(CANARY.repeat(200)),
        )]);
        request.set_field(&secret, Value::Map(large));
        answered(&channel, &method, &request).await;
        assert!(!codes.is_empty());
    }
    assert_eq!(with_secret, 22, "methods with a secret");
    let log = std::fs::read_to_string(driver.path("log")).unwrap();
    let leak = log.lines().find(|line| line.contains(CANARY));
    assert_eq!(leak, None, "a secret is in the log");
    // The same requests are in the log, with everything that is no secret.
    let served = methods().into_iter().filter(|m| {
        let service = m.parent_service();
        ["Controller", "Node"].contains(&service.name())
            && m.input().fields().any(|field| (maker.is_secret)(&field))
    });
    for method in served {
        let shown = log.lines().any(|line| {
            line.contains(&format!("\"rpc\":\"{}\"", method.name()))
                && line.contains("[redacted]")
                && line.contains("user")
        });
        assert!(shown, "{} is not logged", method.name());
    }
}
