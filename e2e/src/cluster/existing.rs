//! A cluster that somebody else made, by its kubeconfig and context.
use std::path::Path;

use k8s_openapi::api::core::v1::Node;
use k8s_openapi::api::storage::v1::{CSIDriver, CSINode};
use kube::api::ListParams;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client, Config, ResourceExt};

use super::condition::{has_driver, is_node_ready};
use super::driver::Driver;
use super::wait::Look;
use super::{ClusterError, kind};
use crate::clock::Limit;
use crate::yaml::nearest;

/// A cluster that answers.
#[derive(Clone)]
pub struct Existing {
    /// Its context.
    pub context: String,
    /// Where its API server is.
    pub server: String,
    /// Its version.
    pub version: String,
    /// A client for it.
    pub client: Client,
}

/// Finds the cluster of `context` (the current one, if none is named) in `kubeconfig` (the user's, if none is named),
/// which is only read, and asks for its version.
///
/// # Errors
/// If there is no such file or context, with those there are; if it does not answer in [`Limit::REQUEST`].
pub async fn open(kubeconfig: Option<&Path>, context: Option<&str>) -> Result<Existing, ClusterError> {
    let setup = |text: String| ClusterError::Setup(text);
    let file =
        match kubeconfig {
            Some(path) => Kubeconfig::read_from(path)
                .map_err(|e| setup(format!("--kubeconfig {}: {e}", path.display())))?,
            None => Kubeconfig::read()
                .map_err(|e| setup(format!("no kubeconfig: {e}; name one by --kubeconfig")))?,
        };
    let names: Vec<String> = file.contexts.iter().map(|c| c.name.clone()).collect();
    let context = match context
        .map(str::to_owned)
        .or_else(|| file.current_context.clone())
    {
        Some(context) if names.contains(&context) => context,
        Some(context) => {
            let hint = nearest(&context, names.iter().map(String::as_str))
                .map_or_else(String::new, |name| format!("; did you mean `{name}`?"));
            return Err(setup(format!(
                "the kubeconfig has no context `{context}`, it has {}{hint}",
                names.join(", ")
            )));
        }
        None => {
            return Err(setup(format!(
                "the kubeconfig has no current context; name one by --context, it has {}",
                names.join(", ")
            )));
        }
    };
    let options = KubeConfigOptions {
        context: Some(context.clone()),
        ..KubeConfigOptions::default()
    };
    let mut config = Config::from_custom_kubeconfig(file, &options)
        .await
        .map_err(|e| setup(format!("context {context}: {e}")))?;
    config.connect_timeout = Some(Limit::REQUEST);
    config.read_timeout = Some(Limit::REQUEST);
    let server = config.cluster_url.to_string();
    let unreachable = |source: kube::Error| ClusterError::Unreachable {
        context: context.clone(),
        server: server.clone(),
        source: Box::new(source),
    };
    let client = Client::try_from(config).map_err(unreachable)?;
    let version = client.apiserver_version().await.map_err(unreachable)?.git_version;
    Ok(Existing {
        context,
        server,
        version,
        client,
    })
}

impl Existing {
    /// The name of the cluster of ours that this one is, if it is one.
    pub fn own(&self) -> Option<String> {
        let names = kind::known().unwrap_or_default();
        names.into_iter().find(|name| {
            let server = Kubeconfig::read_from(kind::state(name).join("kubeconfig"))
                .ok()
                .and_then(|file| file.clusters.first()?.cluster.as_ref()?.server.clone());
            server.is_some_and(|server| server.trim_end_matches('/') == self.server.trim_end_matches('/'))
        })
    }

    /// The nodes that are ready, take pods, and have `driver`.
    ///
    /// # Errors
    /// If the driver is not on the cluster, with the way to install it.
    pub async fn workers(&self, driver: &Driver) -> Result<Vec<String>, ClusterError> {
        let api = |doing| {
            move |source| ClusterError::Api {
                doing,
                source: Box::new(source),
            }
        };
        let drivers: Api<CSIDriver> = Api::all(self.client.clone());
        let found = drivers
            .get_opt(&driver.name)
            .await
            .map_err(api("read CSIDriver"))?;
        let absent = |what: &str| {
            ClusterError::Setup(format!(
                "driver {} is not on context {}: {what}; install it first: {}",
                driver.name, self.context, driver.install
            ))
        };
        if found.is_none() {
            return Err(absent("no CSIDriver of that name"));
        }
        let all = ListParams::default();
        let plugins = Api::<CSINode>::all(self.client.clone())
            .list(&all)
            .await
            .map_err(api("list CSINodes"))?;
        let nodes = Api::<Node>::all(self.client.clone())
            .list(&all)
            .await
            .map_err(api("list nodes"))?;
        let fits = |node: &&Node| {
            let name = node.name_any();
            let open = node.spec.as_ref().is_none_or(|spec| {
                !spec.unschedulable.unwrap_or(false)
                    && spec
                        .taints
                        .iter()
                        .flatten()
                        .all(|taint| taint.effect == "PreferNoSchedule")
            });
            let plugin = plugins.items.iter().find(|plugin| plugin.name_any() == name);
            open && matches!(is_node_ready(node), Look::Holds(()))
                && plugin.is_some_and(|plugin| matches!(has_driver(plugin, &driver.name), Look::Holds(_)))
        };
        let workers: Vec<String> = nodes
            .items
            .iter()
            .filter(fits)
            .map(ResourceExt::name_any)
            .collect();
        if workers.is_empty() {
            return Err(absent("no ready node that takes pods has it in its CSINode"));
        }
        Ok(workers)
    }
}
