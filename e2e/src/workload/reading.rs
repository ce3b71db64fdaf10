//! What a pod says of its volume: the blocks it acknowledged, those it reads back, and the room it has.
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::api::LogParams;

use super::blocks::{self, Report};
use super::context::{Context, WorkloadError};
use super::pod::{Consumer, path};
use super::spec::Mode;
use crate::clock::Limit;
use crate::cluster::condition;
use crate::cluster::saying::{self, Saying};
use crate::cluster::wait::{self, Look};
use crate::history::What;

impl Consumer {
    /// Waits until it has acknowledged `blocks` blocks; the number that it has.
    ///
    /// # Errors
    /// If it has not in its bound.
    pub async fn acknowledged(&self, context: &Context, blocks: u64) -> Result<u64, WorkloadError> {
        let what = format!("pod {} has {blocks} blocks on disk", self.name);
        let look = || async {
            match self.last_acknowledged(context).await {
                Ok(seen) if seen >= blocks => Look::Holds(seen),
                // Data that was lost shows here first: the writer goes on after what it found.
                Ok(seen) => match (self.ended(context).await, self.found(context).await) {
                    (Ok(Some(ended)), _) => Look::Never(format!("{seen} blocks; {ended}")),
                    (Err(error), _) | (_, Err(error)) => Look::NotYet(error.to_string()),
                    (Ok(None), Ok(Some(found))) => {
                        Look::NotYet(format!("{seen} blocks, {found} of them found when it began"))
                    }
                    (Ok(None), Ok(None)) => Look::NotYet(format!("{seen} blocks")),
                },
                Err(error) => Look::NotYet(error.to_string()),
            }
        };
        context.waited(&what, wait::until(&what, Limit::POD, look)).await
    }

    /// How its writer ended, if it did: what it cannot read or write now, it cannot when kubelet starts it again.
    async fn ended(&self, context: &Context) -> Result<Option<String>, kube::Error> {
        let pods: Api<Pod> = wait::api(&context.client, &context.namespace);
        let pod = pods.get_opt(&self.name).await?;
        Ok(pod.as_ref().and_then(condition::has_failed))
    }

    /// How many blocks it found when it began, by its first words.
    async fn found(&self, context: &Context) -> Result<Option<u64>, kube::Error> {
        let pods: Api<Pod> = wait::api(&context.client, &context.namespace);
        let parameters = LogParams {
            limit_bytes: Some(64),
            ..LogParams::default()
        };
        let log = pods.logs(&self.name, &parameters).await?;
        Ok(log.lines().find_map(blocks::found))
    }

    async fn last_acknowledged(&self, context: &Context) -> Result<u64, kube::Error> {
        let pods: Api<Pod> = wait::api(&context.client, &context.namespace);
        let parameters = LogParams {
            tail_lines: Some(20),
            ..LogParams::default()
        };
        let log = pods.logs(&self.name, &parameters).await?;
        Ok(log.lines().filter_map(blocks::acknowledged).max().unwrap_or(0))
    }

    /// Reads the blocks back inside the pod, and checks that all that were acknowledged are there, whole and in order. Who
    /// wrote them goes into the history.
    ///
    /// # Errors
    /// [`WorkloadError::Unmet`] with what is missing.
    pub async fn verify(&self, context: &Context, acknowledged: u64) -> Result<(), WorkloadError> {
        let report = self.read(context, acknowledged).await?;
        if report.blocks >= acknowledged && report.fault.is_none() {
            return Ok(());
        }
        Err(unmet(
            format!("{acknowledged} acknowledged blocks, whole, in order"),
            report,
        ))
    }

    /// The same, and that there is not one block more.
    ///
    /// # Errors
    /// [`WorkloadError::Unmet`] with what is missing or too much.
    pub async fn verify_exactly(&self, context: &Context, blocks: u64) -> Result<(), WorkloadError> {
        let report = self.read(context, blocks).await?;
        if report.blocks == blocks && report.fault.is_none() {
            return Ok(());
        }
        Err(unmet(
            format!("{blocks} blocks and not one more, whole, in order"),
            report,
        ))
    }

    /// Checks that the volume as the pod sees it has the `size` that was asked for, less what a filesystem needs for itself.
    ///
    /// # Errors
    /// [`WorkloadError::Unmet`] with its size.
    pub async fn has_room(&self, context: &Context, size: &str) -> Result<(), WorkloadError> {
        let wanted = condition::quantity_bytes(size).unwrap_or(u64::MAX);
        let least = match self.volume.mode {
            Mode::Block => wanted,
            // Journal, tables and logs of a small filesystem take up to a quarter of it.
            Mode::Filesystem => wanted / 4 * 3,
        };
        let report = self.read(context, 0).await?;
        if report.capacity_bytes >= least {
            return Ok(());
        }
        Err(WorkloadError::Unmet {
            expected: format!("pod {} to have at least {least} bytes of {size}", self.name),
            seen: format!("{} bytes", report.capacity_bytes),
        })
    }

    async fn read(&self, context: &Context, acknowledged: u64) -> Result<Report, WorkloadError> {
        let pods: Api<Pod> = wait::api(&context.client, &context.namespace);
        let path = path(self.volume.mode);
        let words = ["/holdfast", "io", "verify", "--path", &path];
        let Saying {
            said,
            complaints,
            in_time,
        } = saying::of(&pods, &self.name, "io", &words, Limit::POD)
            .await
            .map_err(context.api("exec in a pod"))?;
        let report: Report = serde_json::from_str(said.trim()).map_err(|_| WorkloadError::Unmet {
            expected: format!("pod {} to report the blocks it reads", self.name),
            seen: if in_time {
                format!("{said}{complaints}")
            } else {
                String::from("no answer")
            },
        })?;
        context.recorder.record(
            Some(&context.scenario),
            What::Blocks {
                pod: self.name.clone(),
                acknowledged,
                found: report.blocks,
                writers: report.writers.clone(),
                ends: report.ends.clone(),
            },
        );
        let wanted = self
            .volume
            .class
            .filesystem()
            .filter(|_| self.volume.mode == Mode::Filesystem);
        if let (Some(wanted), Some(seen)) = (wanted, report.filesystem.as_deref())
            && wanted != seen
        {
            return Err(WorkloadError::Unmet {
                expected: format!("pod {} to have {wanted}, as its StorageClass says", self.name),
                seen: seen.to_owned(),
            });
        }
        Ok(report)
    }
}

fn unmet(expected: String, report: Report) -> WorkloadError {
    WorkloadError::Unmet {
        expected,
        seen: format!(
            "{} blocks by {:?}; {}",
            report.blocks,
            report.writers,
            report.fault.unwrap_or_default()
        ),
    }
}
