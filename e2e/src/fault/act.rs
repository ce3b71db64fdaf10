//! Hold, see a call wait, strike, see the effect, let go.
use k8s_openapi::api::core::v1::Pod;
use kube::api::DeleteParams;
use kube::{Api, ResourceExt};
use nix::sys::signal::Signal;

use super::spec::{Hold, Phase, Victim};
use super::target::{CONTROLLER, Container, NODE, container};
use crate::clock::Limit;
use crate::cluster::site::Site;
use crate::cluster::wait::{self, Look, WaitError};
use crate::cluster::{ClusterError, chart, process};

/// The driver's socket, as the sidecars and kubelet dial it.
const SOCKET: &str = "csi.sock";

/// Why a fault did not happen as meant; the scenario is Broken then, never Passed.
#[derive(Debug, thiserror::Error)]
pub enum FaultError {
    /// There is nobody to hit.
    #[error("no {what} to act on")]
    NoTarget {
        /// Who.
        what: String,
    },
    /// It was not seen in its bound.
    #[error("the fault missed, or did not heal")]
    Wait(#[from] WaitError),
    /// The API server refused.
    #[error("{doing} failed")]
    Api {
        /// What was asked.
        doing: &'static str,
        /// Why.
        source: Box<kube::Error>,
    },
    /// The cluster could not be acted on.
    #[error("the cluster cannot be acted on")]
    Cluster(#[from] ClusterError),
}

impl FaultError {
    pub(super) fn api(doing: &'static str) -> impl FnOnce(kube::Error) -> Self {
        move |source| Self::Api {
            doing,
            source: Box::new(source),
        }
    }
}

/// A held process at which a call waits.
#[derive(Clone, Debug)]
pub struct Waiting {
    at: Container,
    /// What was seen, for the history.
    pub seen: String,
}

/// Processes that stand still until this is let go, which dropping it does, too.
#[derive(Debug)]
pub struct Held {
    pub(super) containers: Vec<Container>,
}

impl Drop for Held {
    fn drop(&mut self) {
        for container in &self.containers {
            // A container that was killed meanwhile has no process to go on.
            let _ = process::signal(&container.id, Signal::SIGCONT);
        }
    }
}

impl Held {
    /// Waits until a call waits at a held process, and says at which.
    ///
    /// # Errors
    /// [`FaultError::Wait`] where none comes: the operation was over already, or never began.
    pub async fn sees_a_call(&self) -> Result<Waiting, FaultError> {
        called(&self.containers).await
    }
}

/// Waits until a call waits at one of `containers`, which are held.
pub(super) async fn called(containers: &[Container]) -> Result<Waiting, FaultError> {
    let look = || async {
        for held in containers {
            if !process::is_stopped(&held.id) {
                return Look::Never(format!("{} of {} is not stopped", held.name, held.pod));
            }
            match process::waiting_calls(&held.id, SOCKET).await {
                Ok(0) => {}
                Ok(waiting) => {
                    return Look::Holds(Waiting {
                        at: held.clone(),
                        seen: format!(
                            "{waiting} bytes or connections wait at the driver of {}",
                            held.pod
                        ),
                    });
                }
                Err(error) => return Look::NotYet(error.to_string()),
            }
        }
        Look::NotYet(String::from("nothing waits at the driver's socket"))
    };
    Ok(wait::until("a call waits at the held driver", Limit::CALL, look).await?)
}

/// Stops the driver where `what` says; on `node` for the node plugin.
///
/// # Errors
/// If there is none, or it does not stop.
pub async fn hold(site: &Site, what: Hold, node: &str) -> Result<Held, FaultError> {
    let containers = match what {
        Hold::Controller => site.containers(CONTROLLER, None, chart::DRIVER_CONTAINER).await?,
        Hold::NodePlugin => site.containers(NODE, Some(node), chart::DRIVER_CONTAINER).await?,
    };
    still(containers).await
}

/// Stops these, and waits until they are.
pub(super) async fn still(containers: Vec<Container>) -> Result<Held, FaultError> {
    let held = Held { containers };
    for container in &held.containers {
        process::signal(&container.id, Signal::SIGSTOP)?;
    }
    let look = || async {
        match held.containers.iter().find(|c| !process::is_stopped(&c.id)) {
            None => Look::Holds(()),
            Some(c) => Look::NotYet(format!("{} of {} runs", c.name, c.pod)),
        }
    };
    wait::until("who is held stands still", Limit::CALL, look).await?;
    Ok(held)
}

/// Hits `victim` while `held` holds the operation that waits at `waiting`, and proves that it took effect; gives what was seen.
///
/// # Errors
/// Those of [`FaultError`].
pub async fn strike(
    site: &Site,
    victim: Victim,
    phase: Phase,
    node: &str,
    held: Held,
    waiting: &Waiting,
) -> Result<String, FaultError> {
    match victim {
        // Only the one that was called: the other replica lives on, as it would.
        Victim::Controller | Victim::NodePlugin => kill(site, &waiting.at, held).await,
        Victim::Provisioner => kill(site, &leading(site, "csi-provisioner").await?, held).await,
        Victim::Attacher => kill(site, &leading(site, "csi-attacher").await?, held).await,
        Victim::LeaderPod => lose_leader(site, phase, held).await,
        Victim::Kubelet => stop_kubelet(site, node, held).await,
    }
}

pub(super) async fn leading(site: &Site, sidecar: &'static str) -> Result<Container, FaultError> {
    let pod = site.leader(sidecar).await?;
    site.container_of(&pod, sidecar).await
}

/// SIGKILL of every process of the container; the effect is another container in its place.
async fn kill(site: &Site, victim: &Container, held: Held) -> Result<String, FaultError> {
    if process::signal(&victim.id, Signal::SIGKILL)? == 0 {
        return Err(FaultError::NoTarget {
            what: format!("process in {} of {}", victim.name, victim.pod),
        });
    }
    drop(held);
    let what = format!("{} of {} is another container", victim.name, victim.pod);
    let look = |pod: &Pod| replaced(pod, victim);
    Ok(wait::object(&site.news, &site.pods(), &what, &victim.pod, Limit::FAULT, look).await?)
}

fn replaced(pod: &Pod, victim: &Container) -> Look<String> {
    match container(pod, &victim.name) {
        Some(now) if now.id != victim.id => Look::Holds(format!(
            "{} of {} restarted, {} before, {} now",
            victim.name,
            victim.pod,
            short(&victim.id),
            short(&now.id)
        )),
        Some(_) => Look::NotYet(format!("{} still runs as {}", victim.name, short(&victim.id))),
        None => Look::NotYet(format!("{} does not run", victim.name)),
    }
}

fn short(id: &str) -> &str {
    id.get(..12).unwrap_or(id)
}

/// The leader's pod is deleted without grace; the effect is another leader.
async fn lose_leader(site: &Site, phase: Phase, held: Held) -> Result<String, FaultError> {
    let sidecar = phase.caller();
    let before = site.leader(sidecar).await?;
    let uid = site
        .pods()
        .get(&before)
        .await
        .map_err(FaultError::api("read a pod"))?
        .uid();
    let now = DeleteParams::default().grace_period(0);
    site.pods()
        .delete(&before, &now)
        .await
        .map_err(FaultError::api("delete the leader's pod"))?;
    // Who stands still in the lost pod alone is not to hear an answer before it ends.
    let deaf = held
        .containers
        .iter()
        .all(|held| held.pod == before)
        .then_some(held);
    let what = format!("{sidecar} has another leader than {before}");
    let look = || async {
        match site.leader(sidecar).await {
            Ok(leader) if leader != before => Look::Holds(format!("{sidecar}: {before} led, {leader} leads")),
            Ok(_) => Look::NotYet(format!("{before} leads")),
            Err(error) => Look::NotYet(error.to_string()),
        }
    };
    let seen = wait::until(&what, Limit::FAULT, look).await?;
    drop(deaf);
    match site
        .pods()
        .get_opt(&before)
        .await
        .map_err(FaultError::api("read a pod"))?
    {
        Some(pod) if pod.uid() == uid => Err(FaultError::NoTarget {
            what: format!("loss of {before}: it is still there"),
        }),
        Some(_) | None => Ok(seen),
    }
}

/// Makes provisioner and attacher lead in different pods, and tells which.
///
/// # Errors
/// If the attacher's lease does not move in its bound.
pub async fn part_leaders(site: &Site) -> Result<String, FaultError> {
    let provisioner = site.leader("csi-provisioner").await?;
    if site.leader("csi-attacher").await? == provisioner {
        // It stands still until its lease has run out; then it finds itself no leader, and starts anew.
        let attacher = site.container_of(&provisioner, "csi-attacher").await?;
        let held = Held {
            containers: vec![attacher.clone()],
        };
        process::signal(&attacher.id, Signal::SIGSTOP)?;
        let look = || async {
            match site.leader("csi-attacher").await {
                Ok(leader) if leader != provisioner => Look::Holds(()),
                Ok(leader) => Look::NotYet(format!("{leader} leads")),
                Err(error) => Look::NotYet(error.to_string()),
            }
        };
        wait::until("the attacher leads elsewhere", Limit::FAULT, look).await?;
        drop(held);
    }
    let look = || async {
        match (
            site.leader("csi-provisioner").await,
            site.leader("csi-attacher").await,
        ) {
            (Ok(one), Ok(other)) if one != other => {
                Look::Holds(format!("csi-provisioner leads in {one}, csi-attacher in {other}"))
            }
            (Ok(one), Ok(_)) => Look::Never(format!("both lead in {one}")),
            (one, other) => Look::NotYet(format!("{one:?}, {other:?}")),
        }
    };
    Ok(wait::until(
        "provisioner and attacher lead in different pods",
        Limit::FAULT,
        look,
    )
    .await?)
}

/// Kubelet stops, the held driver goes on and answers nobody, kubelet starts again.
async fn stop_kubelet(site: &Site, name: &str, held: Held) -> Result<String, FaultError> {
    let node = site.host()?.node(name);
    node.systemctl("stop", "kubelet").await?;
    let stopped = async {
        let look = || async {
            match node.is_active("kubelet").await {
                Ok(false) => Look::Holds(()),
                Ok(true) => Look::NotYet(String::from("kubelet is active")),
                Err(error) => Look::NotYet(error.to_string()),
            }
        };
        wait::until(&format!("kubelet of {name} is stopped"), Limit::FAULT, look).await
    }
    .await;
    drop(held);
    // Started again whatever was seen: a node without kubelet would spoil every scenario after this one.
    node.systemctl("start", "kubelet").await?;
    stopped?;
    let nodes: Api<k8s_openapi::api::core::v1::Node> = Api::all(site.client.clone());
    let what = format!("node {name} is ready");
    wait::object(
        &site.news,
        &nodes,
        &what,
        name,
        Limit::FAULT,
        crate::cluster::condition::is_node_ready,
    )
    .await?;
    Ok(format!("kubelet of {name} was inactive, and is active again"))
}
