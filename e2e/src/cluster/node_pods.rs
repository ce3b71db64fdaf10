//! The images of the pods that a node runs, made of the programs that were built for it.
use std::path::{Path, PathBuf};

use serde_json::json;

use super::images::{self, ImageSpec};
use super::label::remove_tree;
use super::node_rootfs::{copy, files, link};
use super::versions::{Source, Versions};
use super::{ClusterError, at, call};
use crate::command::Command;

const PATH: &str = "PATH=/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
const KUBE_IMAGES: &[&str] = &[
    "kube-apiserver",
    "kube-controller-manager",
    "kube-scheduler",
    "kube-proxy",
];

/// The images that a node holds before it ever starts, in one archive.
pub(super) async fn pod_images(
    versions: &Versions,
    source: &Source,
    module: &Path,
    bin: &Path,
    root: &Path,
    work: &Path,
) -> Result<PathBuf, ClusterError> {
    let trees = work.join("images");
    let kube = trees.join("kubernetes");
    for folder in ["run", "tmp", "etc", "usr/sbin"] {
        let path = kube.join(folder);
        std::fs::create_dir_all(&path).map_err(at(&path, "create"))?;
    }
    copy(&bin.join("hyperkube"), &kube.join("usr/local/bin/hyperkube"))?;
    for name in KUBE_IMAGES {
        link("hyperkube", &kube.join("usr/local/bin").join(name))?;
    }
    proxy_tools(root, &kube).await?;
    copy(&bin.join("server"), &trees.join("etcd/usr/local/bin/etcd"))?;
    copy(&bin.join("coredns"), &trees.join("coredns/coredns"))?;
    let pause = trees.join("pause/pause");
    std::fs::create_dir_all(trees.join("pause")).map_err(at(&pause, "create"))?;
    let compile = Command::new("gcc")
        .args(["-Os", "-static", "-s", "-o"])
        .arg(&pause)
        .arg(module.join("pause.c"));
    call("gcc of pause.c", &compile).await?;
    let official = |name: &str| format!("registry.k8s.io/{name}");
    let (etcd, coredns, pause) = (trees.join("etcd"), trees.join("coredns"), trees.join("pause"));
    let mut specs = vec![
        ImageSpec {
            tree: &kube,
            names: KUBE_IMAGES
                .iter()
                .map(|name| official(&format!("{name}:{}", source.version)))
                .collect(),
            config: json!({ "Env": [PATH] }),
        },
        ImageSpec {
            tree: &etcd,
            names: vec![official(&format!("etcd:{}", source.etcd_tag))],
            config: json!({ "Env": [PATH] }),
        },
        ImageSpec {
            tree: &coredns,
            names: vec![official(&format!("coredns/coredns:{}", source.coredns_tag))],
            config: json!({ "Entrypoint": ["/coredns"] }),
        },
        ImageSpec {
            tree: &pause,
            names: vec![official(&format!("pause:{}", source.pause_tag))],
            config: json!({ "Entrypoint": ["/pause"], "User": "65535:65535" }),
        },
    ];
    let sidecars: Vec<(PathBuf, String, String)> = versions
        .sidecars
        .all()
        .iter()
        .map(|sidecar| {
            let program = sidecar.package.rsplit('/').next().unwrap_or_default().to_owned();
            (trees.join(&program), program, sidecar.image.clone())
        })
        .collect();
    for (tree, program, image) in &sidecars {
        copy(&bin.join(program), &tree.join(program))?;
        let config = json!({ "Entrypoint": [format!("/{program}")] });
        specs.push(ImageSpec {
            tree,
            names: vec![image.clone()],
            config,
        });
    }
    let out = work.join("images.tar");
    images::archive(&specs, &work.join("archive"), &out).await?;
    remove_tree(&trees)?;
    Ok(out)
}

/// What kube-proxy calls, and the libraries of that; extensions of iptables are libraries with libraries of their own.
async fn proxy_tools(root: &Path, tree: &Path) -> Result<(), ClusterError> {
    let extensions = root.join("usr/lib/x86_64-linux-gnu/xtables");
    let mut wanted: Vec<PathBuf> = ["usr/sbin/xtables-nft-multi", "usr/sbin/nft", "usr/sbin/conntrack"]
        .map(PathBuf::from)
        .into();
    for file in files(&extensions)? {
        wanted.push(file.strip_prefix(root).unwrap_or(&file).to_owned());
    }
    let inside = wanted.iter().map(|path| Path::new("/").join(path));
    let spec = Command::new("chroot")
        .arg(root)
        .arg("ldd")
        .args(inside.map(PathBuf::into_os_string));
    let said = call("ldd of kube-proxy's tools", &spec).await?;
    let libraries = said
        .split_whitespace()
        .filter(|word| word.starts_with('/') && !word.ends_with(':'));
    wanted.extend(libraries.map(|library| PathBuf::from(library.trim_start_matches('/'))));
    wanted.sort();
    wanted.dedup();
    for path in &wanted {
        // Links such as /lib are followed here, and are folders in the image.
        let resolved = call(
            "realpath",
            &Command::new("chroot")
                .arg(root)
                .arg("realpath")
                .arg(Path::new("/").join(path)),
        )
        .await?;
        copy(
            &root.join(resolved.trim().trim_start_matches('/')),
            &tree.join(path),
        )?;
    }
    for name in [
        "iptables",
        "iptables-save",
        "iptables-restore",
        "ip6tables",
        "ip6tables-save",
        "ip6tables-restore",
    ] {
        link("xtables-nft-multi", &tree.join("usr/sbin").join(name))?;
    }
    Ok(())
}
