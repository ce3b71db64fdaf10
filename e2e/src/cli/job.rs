//! A run on its way: what a killed one left is swept, the cluster prepared, the scenarios run, everything removed again.
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context as _, bail};
use tokio::signal::unix::{SignalKind, signal};

use super::args::{Keep, RunArgs};
use super::exit::Exit;
use super::run::{RunFile, tell};
use super::target::{Target, own_site};
use crate::clock::Clock;
use crate::cluster::facts::Gatherer;
use crate::cluster::kind::{self, Cluster, ClusterSpec, Timers};
use crate::cluster::lookout::Lookout;
use crate::cluster::run_lock::{self, RunLock};
use crate::cluster::site::Site;
use crate::cluster::{bring_up, deploy, tear_down};
use crate::fault::{driver_ready, heal};
use crate::history::{Recorder, What};
use crate::progress::Progress;
use crate::report;
use crate::runner::{Runner, interrupt, run_all};
use crate::scenario::Scenario;
use crate::workload::RUN_LABEL;

/// Removes what runs that were killed have left: their own clusters, and on a cluster that stays, their namespaces.
pub(super) async fn sweep(target: &Target, progress: &Progress) -> anyhow::Result<()> {
    sweep_clusters(progress).await?;
    match target {
        Target::Fresh(_) => {}
        Target::Own(name) => {
            let site = own_site(kind::find(name)?).await?;
            if !interrupt::namespaces(&site, None).await?.is_empty() {
                let step = progress.step("remove what a killed run has left");
                interrupt::clean(&site, None).await?;
                step.done();
            }
        }
        Target::Existing(foreign) => {
            // Whether its run is alive on another machine, nobody here knows.
            if let Some((name, run)) = interrupt::namespaces(&foreign.site, None).await?.first() {
                bail!(
                    "namespace {name} of run {run} is there: that run is under way, or was killed; if it was, \
                     `kubectl delete namespace --selector holdfast.run/run={run}` removes what it left"
                );
            }
        }
    }
    Ok(())
}

/// Removes the clusters of runs that were killed.
pub(super) async fn sweep_clusters(progress: &Progress) -> anyhow::Result<()> {
    for (name, lock) in run_lock::orphans().await? {
        if kind::state(&name).exists() {
            progress.note(&format!("a run was killed: removing its cluster {name}"));
            tear_down::down(&name).await?;
        }
        lock.forget();
    }
    Ok(())
}

/// Holds when the user, or whoever started this program, wants it to end.
pub(super) async fn told_to_stop() -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("SIGTERM cannot be listened for")?;
    tokio::select! {
        told = tokio::signal::ctrl_c() => told.context("Ctrl-C cannot be listened for"),
        _ = terminate.recv() => Ok(()),
    }
}

/// One run on its way.
pub(super) struct Run<'a> {
    pub(super) args: &'a RunArgs,
    pub(super) chosen: &'a [Scenario],
    pub(super) id: &'a str,
    pub(super) folder: &'a Path,
    pub(super) target: &'a Target,
    pub(super) progress: &'a Progress,
}

/// A cluster with the driver on it.
struct Ready {
    site: Site,
    kubernetes: String,
    timers: Option<Timers>,
    image: String,
}

impl Run<'_> {
    /// Prepares the cluster, runs the scenarios, and tells how they ended.
    pub(super) async fn job(&self) -> anyhow::Result<Exit> {
        let since = Instant::now();
        let clock = Clock::start();
        let show = self.progress.clone();
        let recorder = Recorder::create(&self.folder.join("events.jsonl"), clock, move |event| {
            if let Some(line) = report::line(event) {
                show.note(&line);
            }
        })?;
        let mut ready = self.prepare().await?;
        let file = RunFile {
            run: self.id.to_owned(),
            kubernetes: ready.kubernetes.clone(),
            timers: ready.timers,
            nodes: self.args.cluster.nodes,
            seed: self.args.seed,
            existing: match self.target {
                Target::Existing(foreign) => Some(self.args.target.again(&foreign.cluster.context)?),
                Target::Fresh(_) | Target::Own(_) => None,
            },
            driver: ready.site.driver.name.clone(),
            scenarios: self.chosen.to_vec(),
        };
        std::fs::write(self.folder.join("run.json"), serde_json::to_vec_pretty(&file)?)?;
        let timers = match ready.timers {
            Some(Timers::Fast) => "fast",
            Some(Timers::Real) => "real",
            None => "the cluster's own",
        };
        let started = What::RunStarted {
            run: self.id.to_owned(),
            kubernetes: ready.kubernetes,
            timers: timers.to_owned(),
            scenarios: self.chosen.len(),
            seed: self.args.seed,
        };
        recorder.record(None, started);
        for (name, took) in self.progress.times() {
            let took_ms = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
            recorder.record(None, What::Step { name, took_ms });
        }
        let lookout = self.look_out(&ready.site, &ready.image).await?;
        ready.site.lookout.clone_from(&lookout);
        let runner = Runner {
            facts: Arc::new(Gatherer::new(&ready.site, clock)?),
            site: ready.site,
            run: self.id.to_owned(),
            seed: self.args.seed,
            recorder: recorder.clone(),
            folder: self.folder.to_owned(),
            image: ready.image,
        };
        run_all(&runner, self.chosen, self.args.jobs as usize, self.args.repeat).await;
        if let Some(lookout) = lookout {
            lookout.close().await?;
        }
        if let Target::Own(name) = self.target {
            deploy::remove(&kind::find(name)?, self.progress).await?;
        }
        let took_ms = u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX);
        recorder.record(None, What::RunEnded { took_ms });
        tell(self.folder)
    }

    /// Pods that look at the nodes of a cluster that is not on this machine.
    async fn look_out(&self, site: &Site, image: &str) -> anyhow::Result<Option<Lookout>> {
        if site.host.is_some() || self.args.target.api_only {
            return Ok(None);
        }
        let step = self.progress.step("a pod on every node, to look at it");
        let label = (RUN_LABEL, self.id);
        let opened = Lookout::open(&site.client, image, label, &site.workers).await?;
        step.done();
        Ok(Some(opened))
    }

    /// Brings the cluster up, if it is not there, and the driver onto it, if it is ours.
    async fn prepare(&self) -> anyhow::Result<Ready> {
        let executable = std::env::current_exe().context("this program's own file cannot be found")?;
        let (cluster, image) = match self.target {
            Target::Existing(foreign) => {
                return Ok(Ready {
                    site: foreign.site.clone(),
                    kubernetes: foreign.cluster.version.clone(),
                    timers: None,
                    image: foreign.image.clone(),
                });
            }
            Target::Own(name) => {
                let cluster = kind::find(name)?;
                let images = deploy::make_images(&cluster.docker, &executable, self.progress).await?;
                deploy::install(&cluster, &images, self.progress).await?;
                (cluster, images.e2e)
            }
            Target::Fresh(name) => self.fresh(name, &executable).await?,
        };
        let (kubernetes, timers) = (cluster.kubernetes.clone(), Some(cluster.timers));
        let site = own_site(cluster).await?;
        // A run that was killed may have left a node paused, off, or marked out of service.
        heal(&site).await?;
        driver_ready(&site).await?;
        Ok(Ready {
            site,
            kubernetes,
            timers,
            image,
        })
    }

    /// A cluster of its own with the driver on it, and the suite's image. What does not wait for each other runs at once: the
    /// driver is built while nodes start, and starts beside the pods of kube-system. What a failure leaves is removed at the end.
    async fn fresh(&self, name: &str, executable: &Path) -> anyhow::Result<(Cluster, String)> {
        let spec = ClusterSpec {
            name: name.to_owned(),
            kubernetes: self.args.cluster.kubernetes.clone(),
            workers: self.args.cluster.nodes,
            timers: self.args.cluster.timers,
            node_image: self.args.cluster.node_image,
            yes: self.args.cluster.yes,
        };
        let step = self.progress.step(report::CLUSTER_STEP);
        let docker = bring_up::ground(&spec, self.progress).await?;
        let (cluster, images) = tokio::try_join!(
            async { anyhow::Ok(bring_up::nodes(&spec, docker.clone(), self.progress).await?) },
            async { anyhow::Ok(deploy::make_images(&docker, executable, self.progress).await?) },
        )?;
        step.done();
        let step = self.progress.step(report::DRIVER_STEP);
        tokio::try_join!(
            async { anyhow::Ok(bring_up::pods(&cluster, self.progress).await?) },
            async { anyhow::Ok(deploy::install(&cluster, &images, self.progress).await?) },
        )?;
        step.done();
        Ok((cluster, images.e2e))
    }

    /// After Ctrl-C or SIGTERM: removes what the run has made; a second one gives that up.
    pub(super) async fn interrupted(&self, lock: Option<RunLock>) -> anyhow::Result<Exit> {
        self.progress
            .note("interrupted; cleaning up (once more: stop at once)");
        let cleaning = async {
            match self.target {
                Target::Fresh(name) if kind::state(name).exists() => tear_down::down(name).await?,
                Target::Fresh(_) => {}
                Target::Own(name) => {
                    let cluster = kind::find(name)?;
                    interrupt::clean(&own_site(cluster.clone()).await?, Some(self.id)).await?;
                    deploy::remove(&cluster, self.progress).await?;
                }
                Target::Existing(foreign) => interrupt::clean(&foreign.site, Some(self.id)).await?,
            }
            anyhow::Ok(())
        };
        tokio::select! {
            cleaned = cleaning => cleaned?,
            told = told_to_stop() => {
                told?;
                self.progress.note("stopped; the next run, or `holdfast cluster down`, removes what is left");
                return Ok(Exit::Interrupted);
            }
        }
        if let Some(lock) = lock {
            lock.forget();
        }
        // What is over by now may be of use; a run that was interrupted before anything began has nothing to tell.
        if self.folder.join("run.json").exists() {
            tell(self.folder)?;
        }
        Ok(Exit::Interrupted)
    }

    /// Removes the cluster that was made for the run, unless it is to be kept.
    pub(super) async fn end(
        &self,
        ended: anyhow::Result<Exit>,
        lock: Option<RunLock>,
    ) -> anyhow::Result<Exit> {
        let keep = match (&ended, self.args.keep) {
            (_, Keep::Always) => true,
            (Ok(exit), Keep::Failed) => *exit != Exit::Passed,
            (Err(_), Keep::Failed) => true,
            (_, Keep::Never) => false,
        };
        let forget = || lock.map_or((), RunLock::forget);
        let Target::Fresh(name) = self.target else {
            forget();
            return infrastructure(ended);
        };
        // What did not come up has removed itself.
        if !kind::state(name).exists() {
            forget();
            return infrastructure(ended);
        }
        if keep {
            self.progress.note(&format!(
                "the cluster stays: `holdfast cluster down {name}` removes it"
            ));
            forget();
            return infrastructure(ended);
        }
        let step = self.progress.step("remove the cluster");
        match (tear_down::down(name).await, ended) {
            (Ok(()), ended) => {
                step.done();
                forget();
                infrastructure(ended)
            }
            (Err(error), Ok(Exit::Passed)) => Err(error.into()),
            (Err(error), ended) => {
                self.progress.note(&format!(
                    "error: the cluster is not removed: {error}; `holdfast cluster down {name}` tries again"
                ));
                infrastructure(ended)
            }
        }
    }
}

/// A cluster that does not come up is no fault of the command line.
fn infrastructure(ended: anyhow::Result<Exit>) -> anyhow::Result<Exit> {
    match ended {
        Ok(exit) => Ok(exit),
        Err(error) => {
            eprintln!("error: {error:#}");
            Ok(Exit::Infrastructure)
        }
    }
}
