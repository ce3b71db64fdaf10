//! The Helm chart: what it renders, what it grants, and which values it refuses.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test fails by panicking
mod support;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::{Command, Output};

use holdfast_e2e::cluster::versions::Versions;
use libtest_mimic::{Arguments, Failed, Trial};
use serde::Deserialize;
use serde_json::{Value, json};
use support::{check, root, trial};

fn main() {
    let arguments = Arguments::from_args();
    let helm = if arguments.list {
        Err("not looked for".to_owned())
    } else {
        support::tools::find("helm")
    };
    let case = |name: &str, run: fn(&Helm) -> Result<(), Failed>| -> Trial {
        trial(name, &helm, move |program| run(&Helm(program)))
    };
    let cases = vec![
        case("lint_has_no_complaint_with_either_timers", lint),
        case("only_the_node_plugin_is_privileged", privileges),
        case(
            "sockets_node_ids_and_mounts_are_where_each_role_needs_them",
            wiring,
        ),
        case("fast_timers_are_set_only_when_asked_for", timers),
        case("each_sidecar_has_the_least_role", roles),
        case("secrets_are_granted_only_when_asked_for", secrets),
        case("storage_classes_are_five_and_none_is_the_default", classes),
        case("limits_and_places_reach_the_driver_by_values", limits),
        case("attributes_classes_are_made_only_when_asked_for", attributes),
        case("selectors_match_what_they_are_to_select", selectors),
        case("values_that_mean_nothing_are_refused", refused),
        case("sidecars_are_those_of_versions_yaml", sidecar_versions),
    ];
    libtest_mimic::run(&arguments, cases).exit();
}

struct Helm(PathBuf);

impl Helm {
    fn run(&self, args: &[&str]) -> Output {
        // A configuration of the user's own, such as a plugin, has no part in it.
        let home = tempfile::tempdir().unwrap();
        Command::new(&self.0)
            .args(args)
            .current_dir(root())
            .env("HELM_CONFIG_HOME", home.path())
            .env("HELM_CACHE_HOME", home.path())
            .env("HELM_DATA_HOME", home.path())
            .output()
            .unwrap()
    }

    /// The chart's objects with these `--set` values.
    fn render(&self, set: &[&str]) -> Vec<Value> {
        let mut args = vec![
            "template",
            "holdfast",
            "manifests/chart",
            "--namespace",
            "holdfast-system",
        ];
        args.extend(set.iter().flat_map(|value| ["--set", value]));
        let output = self.run(&args);
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        let text = String::from_utf8(output.stdout).unwrap();
        serde_yaml::Deserializer::from_str(&text)
            .map(|document| Value::deserialize(document).unwrap())
            .filter(|document| !document.is_null())
            .collect()
    }
}

fn object<'a>(objects: &'a [Value], kind: &str, name: &str) -> &'a Value {
    objects
        .iter()
        .find(|object| object["kind"] == kind && object["metadata"]["name"] == name)
        .unwrap_or_else(|| panic!("no {kind} {name}"))
}

fn pod(objects: &[Value], kind: &str, name: &str) -> Value {
    object(objects, kind, name)["spec"]["template"]["spec"].clone()
}

fn containers(pod: &Value) -> Vec<Value> {
    pod["containers"].as_array().unwrap().clone()
}

fn args_of(container: &Value) -> Vec<String> {
    container["args"]
        .as_array()
        .unwrap()
        .iter()
        .map(|arg| arg.as_str().unwrap().to_owned())
        .collect()
}

fn lint(helm: &Helm) -> Result<(), Failed> {
    for timers in ["timers=fast", "timers=real"] {
        let output = helm.run(&["lint", "--strict", "manifests/chart", "--set", timers]);
        check(output.status.success(), || {
            String::from_utf8_lossy(&output.stdout).into_owned()
        })?;
    }
    Ok(())
}

fn privileges(helm: &Helm) -> Result<(), Failed> {
    let objects = helm.render(&[]);
    let controller = pod(&objects, "Deployment", "holdfast-controller");
    let security = &controller["securityContext"];
    check(
        security["runAsNonRoot"] == true && security["runAsUser"] == 2770,
        || format!("controller: {security}"),
    )?;
    check(
        security["runAsGroup"] == 2770 && security["fsGroup"] == 2770,
        || format!("controller: {security}"),
    )?;
    for (kind, name) in [
        ("Deployment", "holdfast-controller"),
        ("DaemonSet", "holdfast-node"),
    ] {
        let spec = pod(&objects, kind, name);
        check(
            spec["securityContext"]["seccompProfile"]["type"] == "RuntimeDefault",
            || format!("{name}: seccomp"),
        )?;
        for shared in ["hostNetwork", "hostPID", "hostIPC"] {
            check(spec[shared].is_null(), || format!("{name} asks for {shared}"))?;
        }
        for container in containers(&spec) {
            let own = &container["securityContext"];
            check(own["readOnlyRootFilesystem"] == true, || {
                format!("{name}: {}", container["name"])
            })?;
            let privileged = own["privileged"] == true;
            check(privileged == (kind == "DaemonSet"), || {
                format!("{name}: privileged is {privileged}")
            })?;
            if kind == "Deployment" {
                check(own["allowPrivilegeEscalation"] == false, || {
                    format!("{}: escalation", container["name"])
                })?;
                check(own["capabilities"] == json!({ "drop": ["ALL"] }), || {
                    format!("{}: capabilities", container["name"])
                })?;
            }
        }
    }
    let node = object(&objects, "ServiceAccount", "holdfast-node");
    check(node["automountServiceAccountToken"] == false, || {
        "the node plugin needs no token".into()
    })
}

fn wiring(helm: &Helm) -> Result<(), Failed> {
    let objects = helm.render(&[]);
    let controller = pod(&objects, "Deployment", "holdfast-controller");
    let names: Vec<_> = containers(&controller)
        .iter()
        .map(|c| c["name"].clone())
        .collect();
    check(
        names == ["driver", "csi-provisioner", "csi-attacher", "csi-resizer"],
        || format!("{names:?}"),
    )?;
    let driver = args_of(&containers(&controller)[0]);
    check(driver[0] == "controller", || format!("{driver:?}"))?;
    check(!driver.iter().any(|arg| arg.starts_with("--node-id")), || {
        "a controller has no node id".into()
    })?;
    let socket = controller["volumes"]
        .as_array()
        .unwrap()
        .iter()
        .find(|v| v["name"] == "socket")
        .unwrap();
    check(socket["emptyDir"].is_object(), || format!("{socket}"))?;

    let node = pod(&objects, "DaemonSet", "holdfast-node");
    let driver = containers(&node)[0].clone();
    let args = args_of(&driver);
    for expected in [
        "node",
        "--node-id=$(NODE_NAME)",
        "--registration-dir=/registration",
        "--kubelet-socket-path=/var/lib/kubelet/plugins/holdfast.csi/csi.sock",
        "--data-dir=/var/lib/holdfast",
    ] {
        check(args.iter().any(|arg| arg == expected), || {
            format!("no {expected} in {args:?}")
        })?;
    }
    let mounts = driver["volumeMounts"].as_array().unwrap();
    let kubelet = mounts
        .iter()
        .find(|m| m["mountPath"] == "/var/lib/kubelet")
        .unwrap();
    check(kubelet["mountPropagation"] == "Bidirectional", || {
        format!("{kubelet}")
    })?;
    let others = mounts.iter().filter(|m| m["mountPath"] != "/var/lib/kubelet");
    check(
        others.into_iter().all(|m| m["mountPropagation"].is_null()),
        || "only kubelet's folder is shared".into(),
    )?;
    for spec in [&controller, &node] {
        let driver = &containers(spec)[0];
        for probe in ["startupProbe", "livenessProbe"] {
            check(driver[probe]["httpGet"]["path"] == "/healthz", || {
                format!("{probe}: {}", driver[probe])
            })?;
        }
        check(driver["ports"][0]["containerPort"] == 9808, || {
            format!("{}", driver["ports"])
        })?;
    }
    Ok(())
}

fn timers(helm: &Helm) -> Result<(), Failed> {
    const FAST: &[&str] = &[
        "--retry-interval-start=100ms",
        "--retry-interval-max=2s",
        "--kube-api-qps=100",
        "--kube-api-burst=200",
        "--leader-election-lease-duration=6s",
        "--leader-election-renew-deadline=4s",
        "--leader-election-retry-period=1s",
    ];
    for (set, expected) in [("timers=fast", true), ("timers=real", false)] {
        let spec = pod(&helm.render(&[set]), "Deployment", "holdfast-controller");
        for sidecar in &containers(&spec)[1..] {
            let args = args_of(sidecar);
            for flag in FAST {
                check(args.iter().any(|arg| arg == flag) == expected, || {
                    format!("{set}: {} {flag}", sidecar["name"])
                })?;
            }
            for always in ["--v=5", "--leader-election", "--csi-address=/csi/csi.sock"] {
                check(args.iter().any(|arg| arg == always), || {
                    format!("{set}: {} lacks {always}", sidecar["name"])
                })?;
            }
        }
        let attacher = args_of(&containers(&spec)[2]);
        check(
            attacher.iter().any(|arg| arg == "--worker-threads=10") == expected,
            || format!("{attacher:?}"),
        )?;
    }
    Ok(())
}

/// Every (resource, verb) that a role grants.
fn grants(role: &Value) -> BTreeSet<(String, String)> {
    let strings = |list: &Value| -> Vec<String> {
        list.as_array()
            .unwrap()
            .iter()
            .map(|item| item.as_str().unwrap().to_owned())
            .collect()
    };
    let mut found = BTreeSet::new();
    for rule in role["rules"].as_array().unwrap() {
        for resource in strings(&rule["resources"]) {
            found.extend(
                strings(&rule["verbs"])
                    .into_iter()
                    .map(|verb| (resource.clone(), verb)),
            );
        }
    }
    found
}

fn roles(helm: &Helm) -> Result<(), Failed> {
    // What each sidecar calls in our use of it: no snapshots, no published capacity, no secrets.
    let expected: &[(&str, &[(&str, &str)])] = &[
        (
            "holdfast-provisioner",
            &[
                ("persistentvolumes", "get list watch create patch delete"),
                ("persistentvolumeclaims", "get list watch update"),
                ("storageclasses", "get list watch"),
                ("csinodes", "get list watch"),
                ("volumeattachments", "get list watch"),
                ("volumeattributesclasses", "get"),
                ("nodes", "get list watch"),
                ("events", "list watch create update patch"),
            ],
        ),
        (
            "holdfast-attacher",
            &[
                ("persistentvolumes", "get list watch patch"),
                ("csinodes", "get list watch"),
                ("volumeattachments", "get list watch patch"),
                ("volumeattachments/status", "patch"),
            ],
        ),
        (
            "holdfast-resizer",
            &[
                ("persistentvolumes", "get list watch patch"),
                ("persistentvolumeclaims", "get list watch"),
                ("persistentvolumeclaims/status", "patch"),
                ("pods", "get list watch"),
                ("events", "list watch create update patch"),
                ("volumeattributesclasses", "get list watch"),
            ],
        ),
    ];
    let objects = helm.render(&[]);
    for (name, rules) in expected {
        let wanted: BTreeSet<_> = rules
            .iter()
            .flat_map(|(resource, verbs)| {
                verbs
                    .split(' ')
                    .map(|verb| ((*resource).to_owned(), verb.to_owned()))
            })
            .collect();
        let granted = grants(object(&objects, "ClusterRole", name));
        check(granted == wanted, || {
            format!("{name}: {:?}", granted.symmetric_difference(&wanted))
        })?;
        let local: BTreeSet<_> = grants(object(&objects, "Role", name))
            .into_iter()
            .map(|(resource, _)| resource)
            .collect();
        check(
            local == BTreeSet::from(["leases".to_owned(), "events".to_owned()]),
            || format!("{name}: {local:?}"),
        )?;
        for kind in ["ClusterRoleBinding", "RoleBinding"] {
            let binding = object(&objects, kind, name);
            check(binding["roleRef"]["name"] == *name, || format!("{binding}"))?;
            check(binding["subjects"][0]["name"] == "holdfast-controller", || {
                format!("{binding}")
            })?;
        }
    }
    let count = objects
        .iter()
        .filter(|object| object["kind"] == "ClusterRole")
        .count();
    check(count == expected.len(), || format!("{count} cluster roles"))
}

fn secrets(helm: &Helm) -> Result<(), Failed> {
    for (set, expected) in [("rbac.secrets=false", 0), ("rbac.secrets=true", 3)] {
        let objects = helm.render(&[set]);
        let with = objects
            .iter()
            .filter(|object| object["kind"] == "ClusterRole")
            .filter(|role| grants(role).contains(&("secrets".to_owned(), "get".to_owned())))
            .count();
        check(with == expected, || format!("{set}: {with} roles read secrets"))?;
    }
    Ok(())
}

fn classes(helm: &Helm) -> Result<(), Failed> {
    let objects = helm.render(&[]);
    let rows: BTreeSet<_> = objects
        .iter()
        .filter(|object| object["kind"] == "StorageClass")
        .map(|class| {
            let text = |value: &Value| value.as_str().unwrap().to_owned();
            assert!(
                class["metadata"]["annotations"].is_null(),
                "no class of ours is the default"
            );
            assert_eq!(class["allowVolumeExpansion"], true);
            assert_eq!(class["provisioner"], "holdfast.csi");
            (
                text(&class["metadata"]["name"]),
                text(&class["parameters"]["csi.storage.k8s.io/fstype"]),
                text(&class["volumeBindingMode"]),
                text(&class["reclaimPolicy"]),
            )
        })
        .collect();
    let expected: BTreeSet<_> = [
        ("holdfast-ext4", "ext4", "Immediate", "Delete"),
        ("holdfast-xfs", "xfs", "Immediate", "Delete"),
        ("holdfast-ext4-wffc", "ext4", "WaitForFirstConsumer", "Delete"),
        ("holdfast-ext4-pinned", "ext4", "WaitForFirstConsumer", "Delete"),
        ("holdfast-ext4-retain", "ext4", "Immediate", "Retain"),
    ]
    .map(|(name, fs, binding, reclaim)| {
        (
            name.to_owned(),
            fs.to_owned(),
            binding.to_owned(),
            reclaim.to_owned(),
        )
    })
    .into();
    check(rows == expected, || format!("{rows:?}"))?;
    let within = helm.render(&["storageClasses.within.example\\.org/zone=a"]);
    for class in within.iter().filter(|object| object["kind"] == "StorageClass") {
        let allowed = &class["allowedTopologies"][0]["matchLabelExpressions"][0];
        let as_meant = if class["metadata"]["name"] == "holdfast-ext4-pinned" {
            allowed.is_null()
        } else {
            allowed["key"] == "example.org/zone" && allowed["values"][0] == "a"
        };
        check(as_meant, || format!("{class:?}"))?;
    }
    let none = helm.render(&["storageClasses.create=false"]);
    check(
        !none.iter().any(|object| object["kind"] == "StorageClass"),
        || "classes although not wanted".into(),
    )
}

fn limits(helm: &Helm) -> Result<(), Failed> {
    let zone = r"topology\.holdfast\.csi/zone";
    let objects = helm.render(&[
        "capacity=1073741824",
        "node.maxVolumesPerNode=5",
        &format!("topology.segments.{zone}=a"),
        "topology.segments.rack=r7",
        &format!("topology.byNode.worker-2.{zone}=b"),
    ]);
    let driver = |kind, name| args_of(&containers(&pod(&objects, kind, name))[0]);
    let options = |args: Vec<String>| -> BTreeSet<String> {
        let wanted = ["--capacity=", "--max-volumes-per-node=", "--topology="];
        args.into_iter()
            .filter(|arg| wanted.iter().any(|option| arg.starts_with(option)))
            .collect()
    };
    let node = options(driver("DaemonSet", "holdfast-node"));
    let expected = [
        "--max-volumes-per-node=5",
        "--topology=rack=r7",
        "--topology=topology.holdfast.csi/zone=a",
        "--topology=worker-2:topology.holdfast.csi/zone=b",
    ];
    check(node == expected.map(str::to_owned).into(), || format!("{node:?}"))?;
    let controller = options(driver("Deployment", "holdfast-controller"));
    check(controller == ["--capacity=1073741824".to_owned()].into(), || {
        format!("{controller:?}")
    })?;
    let unset = helm.render(&[]);
    let node = options(args_of(
        &containers(&pod(&unset, "DaemonSet", "holdfast-node"))[0],
    ));
    check(node.is_empty(), || format!("set though nobody asked: {node:?}"))?;
    // Declared by the driver, so the provisioner must send where a volume is wanted, and may read what it needs for that.
    let provisioner = args_of(&containers(&pod(&unset, "Deployment", "holdfast-controller"))[1]);
    check(
        provisioner
            .iter()
            .any(|arg| arg == "--feature-gates=Topology=true"),
        || format!("{provisioner:?}"),
    )?;
    let grants = grants(object(&unset, "ClusterRole", "holdfast-provisioner"));
    for resource in ["csinodes", "nodes"] {
        let wanted = (resource.to_owned(), "list".to_owned());
        check(grants.contains(&wanted), || format!("{resource}: {grants:?}"))?;
    }
    Ok(())
}

fn attributes(helm: &Helm) -> Result<(), Failed> {
    let of = |objects: &[Value]| -> BTreeSet<String> {
        objects
            .iter()
            .filter(|object| object["kind"] == "VolumeAttributesClass")
            .map(|class| {
                assert_eq!(class["driverName"], "holdfast.csi");
                class["parameters"].to_string()
            })
            .collect()
    };
    let made = of(&helm.render(&["volumeAttributesClasses.create=true"]));
    let expected = [
        r#"{"access":"read-only"}"#,
        r#"{"access":"read-write"}"#,
        r#"{"atime":"noatime"}"#,
        r#"{"atime":"relatime"}"#,
    ];
    check(made == expected.map(str::to_owned).into(), || format!("{made:?}"))?;
    let none = of(&helm.render(&[]));
    check(none.is_empty(), || format!("{none:?}"))
}

fn selectors(helm: &Helm) -> Result<(), Failed> {
    let objects = helm.render(&[]);
    for (kind, name, component) in [
        ("Deployment", "holdfast-controller", "controller"),
        ("DaemonSet", "holdfast-node", "node"),
    ] {
        let workload = object(&objects, kind, name);
        let labels = &workload["spec"]["template"]["metadata"]["labels"];
        check(labels["app.kubernetes.io/name"] == "holdfast-driver", || {
            format!("{labels}")
        })?;
        check(labels["app.kubernetes.io/component"] == component, || {
            format!("{labels}")
        })?;
        for (key, value) in workload["spec"]["selector"]["matchLabels"].as_object().unwrap() {
            check(&labels[key] == value, || format!("{name}: {key}"))?;
        }
    }
    let budget = object(&objects, "PodDisruptionBudget", "holdfast-controller");
    let deployment = object(&objects, "Deployment", "holdfast-controller");
    check(
        budget["spec"]["selector"] == deployment["spec"]["selector"],
        || format!("{budget}"),
    )?;
    check(budget["spec"]["maxUnavailable"] == 1, || format!("{budget}"))
}

fn refused(helm: &Helm) -> Result<(), Failed> {
    for set in [
        "timer=fast",
        "timers=slow",
        "dataDir=relative/path",
        "controller.replicas=0",
        "controller.replica=2",
        "node.maxVolumesPerNode=-1",
        "capacity=0",
        "image.driver=",
        "sidecars.attacher.images=x:1",
        "logLevel=loud",
        "driverName=Upper.Case",
        "storageUser=0",
        "topology.zone=a",
        "topology.segments.zone=-a",
        "topology.segments.zone=1",
        "topology.byNode.worker=a",
        "volumeAttributesClasses.make=true",
    ] {
        let output = helm.run(&["template", "holdfast", "manifests/chart", "--set", set]);
        check(!output.status.success(), || format!("{set} was taken"))?;
    }
    Ok(())
}

fn sidecar_versions(helm: &Helm) -> Result<(), Failed> {
    let listed = Versions::load()?.sidecars;
    let spec = pod(&helm.render(&[]), "Deployment", "holdfast-controller");
    let images: Vec<_> = containers(&spec)[1..]
        .iter()
        .map(|c| c["image"].as_str().unwrap().to_owned())
        .collect();
    let expected = listed.all().map(|sidecar| sidecar.image.clone());
    check(images == expected, || {
        format!("the chart has {images:?}, kind/versions.yaml has {expected:?}")
    })
}
