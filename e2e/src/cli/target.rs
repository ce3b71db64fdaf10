//! Which cluster a run works on: one of its own, one of `cluster up`, or one that somebody else made.
use std::sync::Arc;

use anyhow::{Context as _, bail};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};

use super::args::TargetArgs;
use crate::cluster::driver::Driver;
use crate::cluster::existing::{self, Existing};
use crate::cluster::kind::{self, Cluster};
use crate::cluster::news::News;
use crate::cluster::site::Site;
use crate::progress::{Progress, consents};

/// Which cluster.
pub(super) enum Target {
    /// Brought up for the run, and removed after it.
    Fresh(String),
    /// Brought up before; it gets the driver for the run, and stays.
    Own(String),
    /// Somebody else's, with the driver that is on it.
    Existing(Box<Foreign>),
}

/// A cluster of somebody else, ready to be used.
pub(super) struct Foreign {
    pub(super) cluster: Existing,
    pub(super) site: Site,
    /// The suite's image as its nodes can have it.
    pub(super) image: String,
}

/// What options name.
pub(super) enum Named {
    /// No cluster.
    Nothing,
    /// One of `cluster up`.
    Own(String),
    /// Somebody else's, with its driver; nobody was asked yet.
    Existing(Box<Found>),
}

/// A cluster of somebody else that was found.
pub(super) struct Found {
    pub(super) cluster: Existing,
    pub(super) site: Site,
}

/// Finds the cluster that `args` name, and the driver on it; nothing is touched.
///
/// # Errors
/// If it is not there, or the driver is not on it.
pub(super) async fn named(args: &TargetArgs, progress: &Progress) -> anyhow::Result<Named> {
    if let Some(name) = &args.on {
        kind::find(name)?;
        return Ok(Named::Own(name.clone()));
    }
    if args.kubeconfig.is_none() && args.context.is_none() {
        return Ok(Named::Nothing);
    }
    let cluster = existing::open(args.kubeconfig.as_deref(), args.context.as_deref()).await?;
    if let Some(name) = cluster.own() {
        progress.note(&format!("cluster  {name}, of `cluster up`"));
        return Ok(Named::Own(name));
    }
    let driver = Driver::load(&args.driver)?;
    let workers = cluster.workers(&driver).await?;
    progress.note(&format!(
        "cluster  context {} at {} (Kubernetes {}), driver {} on {}",
        cluster.context,
        cluster.server,
        cluster.version,
        driver.name,
        workers.join(", ")
    ));
    let site = Site {
        client: cluster.client.clone(),
        driver: Arc::new(driver),
        workers,
        lookout: None,
        host: None,
        news: News::default(),
    };
    Ok(Named::Existing(Box::new(Found { cluster, site })))
}

/// Finds the cluster that `args` name, and asks before one that is not ours is touched; `fresh` is the name of one that is to be made.
///
/// # Errors
/// What the user is told before a run begins.
pub(super) async fn resolve(
    args: &TargetArgs,
    yes: bool,
    fresh: String,
    progress: &Progress,
) -> anyhow::Result<Target> {
    let Found { cluster, site } = match named(args, progress).await? {
        Named::Nothing => return Ok(Target::Fresh(fresh)),
        Named::Own(name) => return Ok(Target::Own(name)),
        Named::Existing(found) => *found,
    };
    let Some(image) = args.image.clone() else {
        bail!(
            "pods on context {} need the suite's image: `holdfast image FILE` writes it; load or push it, and name it by --image",
            cluster.context
        );
    };
    if !(yes || consents("make pods and volumes there, in namespaces hf-*?")) {
        bail!(
            "this cluster is not one of holdfast's: --yes consents to pods and volumes in namespaces hf-* on it"
        );
    }
    Ok(Target::Existing(Box::new(Foreign { cluster, site, image })))
}

/// A cluster of ours as scenarios see it, by its own kubeconfig; the user's is never read.
///
/// # Errors
/// If the kubeconfig cannot be read.
pub(super) async fn own_site(cluster: Cluster) -> anyhow::Result<Site> {
    let kubeconfig = Kubeconfig::read_from(&cluster.kubeconfig)
        .with_context(|| format!("{} cannot be read", cluster.kubeconfig.display()))?;
    let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
    let client = Client::try_from(config)?;
    Ok(Site::own(Arc::new(cluster), client, Driver::own()?))
}
