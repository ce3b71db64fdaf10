//! A cluster as scenarios see it: its API, its nodes, the driver on it, and the host below, where that is this machine.
use std::sync::Arc;

use kube::Client;

use super::ClusterError;
use super::driver::Driver;
use super::kind::Cluster;
use super::lookout::Lookout;
use super::news::News;

/// Where scenarios run and faults act.
#[derive(Clone)]
pub struct Site {
    /// The API server.
    pub client: Client,
    /// The driver under test.
    pub driver: Arc<Driver>,
    /// Nodes that pods may be put on.
    pub workers: Vec<String>,
    /// What its nodes show, where they are elsewhere and are looked at.
    pub lookout: Option<Lookout>,
    /// Its nodes on this machine; a cluster elsewhere has none.
    pub host: Option<Arc<Cluster>>,
    /// What those who watch it tell those who wait.
    pub news: News,
}

impl Site {
    /// A cluster of ours.
    pub fn own(cluster: Arc<Cluster>, client: Client, driver: Driver) -> Self {
        let workers = match cluster.nodes.split_first() {
            Some((_, workers)) if !workers.is_empty() => workers.to_vec(),
            _ => cluster.nodes.clone(),
        };
        Self {
            client,
            driver: Arc::new(driver),
            workers,
            lookout: None,
            host: Some(cluster),
            news: News::default(),
        }
    }

    /// The nodes on this machine.
    ///
    /// # Errors
    /// If it is a cluster elsewhere, whose processes and mounts nobody here can reach.
    pub fn host(&self) -> Result<&Arc<Cluster>, ClusterError> {
        self.host.as_ref().ok_or_else(|| {
            ClusterError::Setup(String::from("the nodes of this cluster are not on this machine"))
        })
    }
}
