//! One scenario through its six phases.
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use tokio::task::JoinSet;

use super::{act, artefacts, settle};
use crate::cluster::ClusterError;
use crate::cluster::facts::Gatherer;
use crate::cluster::site::Site;
use crate::cluster::wait::WaitError;
use crate::fault::{self, Fault, FaultError, driver_ready};
use crate::history::{self, Event, Outcome, Recorder, What};
use crate::id::folder_of;
use crate::invariant;
use crate::ledger::{Diff, Ledger};
use crate::scenario::Scenario;
use crate::workload::{Claim, Context, Workload, WorkloadError, plant};
use crate::yaml::nearest;

/// Every namespace of a scenario begins so.
pub(super) const NAMESPACE_PREFIX: &str = "hf-";

/// What every scenario of a run shares.
#[derive(Clone)]
pub struct Runner {
    /// Where.
    pub site: Site,
    /// What exists there.
    pub facts: Arc<Gatherer>,
    /// The run's name.
    pub run: String,
    /// Number that all chance comes from.
    pub seed: u64,
    /// Where events go.
    pub recorder: Recorder,
    /// The run folder.
    pub folder: PathBuf,
    /// The image of the pods that write and verify.
    pub image: String,
}

/// One scenario on its way.
pub(super) struct Run {
    pub scenario: Scenario,
    pub context: Context,
    pub site: Site,
    /// By how many nodes the seed turns the choice.
    turn: usize,
    owned: Mutex<BTreeSet<String>>,
}

/// How the act of a scenario failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum ActError {
    #[error(transparent)]
    Workload(#[from] WorkloadError),
    #[error(transparent)]
    Wait(#[from] WaitError),
    #[error("{}", chain(.0))]
    Fault(#[from] FaultError),
    #[error("{}", chain(.0))]
    Cluster(#[from] ClusterError),
    #[error("the act panicked, which is a mistake of ours: {0}")]
    Panic(String),
}

impl ActError {
    /// A fault that missed, a cluster that cannot be read, an image that is not there: nothing was proved. All else is the subject's.
    fn outcome(&self) -> Outcome {
        match self {
            Self::Workload(WorkloadError::Wait { .. } | WorkloadError::Unmet { .. }) | Self::Wait(_) => {
                Outcome::Failed
            }
            Self::Workload(
                WorkloadError::NoImage { .. } | WorkloadError::Api { .. } | WorkloadError::Cluster(_),
            )
            | Self::Fault(_)
            | Self::Cluster(_)
            | Self::Panic(_) => Outcome::Broken,
        }
    }
}

/// An error with its causes, one line.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(next) = cause {
        text = format!("{text}: {next}");
        cause = next.source();
    }
    text
}

impl Run {
    /// What belongs to this scenario can be told by this word in its name or owner.
    pub(super) fn owns(&self, token: &str) {
        if let Ok(mut owned) = self.owned.lock()
            && !token.is_empty()
        {
            owned.insert(token.to_owned());
        }
    }

    /// The words by which a bound claim's volume is found: PV, id, and kubelet's folder for it.
    pub(super) fn owns_volume(&self, claim: &Claim) {
        let volume = claim.volume.as_deref().unwrap_or_default();
        self.owns(claim.pv.as_deref().unwrap_or_default());
        self.owns(volume);
        if !volume.is_empty() {
            self.owns(&folder_of(volume));
        }
    }

    pub(super) fn owned(&self) -> BTreeSet<String> {
        self.owned.lock().map(|owned| owned.clone()).unwrap_or_default()
    }

    /// A worker; scenarios begin at different ones, so that parallel ones spread.
    pub(super) fn worker(&self, offset: usize) -> String {
        let workers = &self.site.workers;
        let start: usize = self.scenario.name.bytes().map(usize::from).sum();
        workers
            .get((start + self.turn + offset) % workers.len().max(1))
            .cloned()
            .unwrap_or_default()
    }
}

/// What is wrong with a scenario's exceptions: one that names no invariant would except nothing, without a word.
fn wrong_exception(scenario: &Scenario) -> Option<String> {
    let unknown = |name: &str| !invariant::NAMES.contains(&name);
    scenario.except.iter().find_map(|exception| {
        let name = exception.invariant.as_str();
        if unknown(name) {
            let near = nearest(name, invariant::NAMES)
                .map_or_else(String::new, |n| format!("; did you mean `{n}`?"));
            Some(format!("there is no invariant `{name}` to except{near}"))
        } else if exception.why.trim().is_empty() {
            Some(format!("the exception of {name} needs a reason"))
        } else {
            None
        }
    })
}

fn wrong_fault(scenario: &Scenario) -> Option<String> {
    scenario.faults.iter().find_map(Fault::wrong)
}

/// Brings back what `scenario` took away.
async fn healed(site: &Site, scenario: &Scenario) -> Result<(), FaultError> {
    if scenario.stops_nodes() {
        fault::heal(site).await?;
    }
    if scenario.is_exclusive() {
        driver_ready(site).await?;
    }
    Ok(())
}

impl Runner {
    /// Runs one scenario as `name`; the outcome is in the history.
    pub async fn execute(&self, scenario: &Scenario, name: &str) {
        let since = Instant::now();
        self.recorder.record(Some(name), What::ScenarioStarted);
        let (outcome, message) = self.phases(scenario, name, since).await;
        self.recorder.record(
            Some(name),
            What::ScenarioEnded {
                outcome,
                message,
                took_ms: u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX),
            },
        );
    }

    async fn phases(&self, scenario: &Scenario, name: &str, since: Instant) -> (Outcome, String) {
        let phase = |phase: &str| {
            let phase = phase.to_owned();
            self.recorder.record(Some(name), What::Phase { phase });
        };
        phase("prepare");
        if let Some(why) = wrong_exception(scenario).or_else(|| wrong_fault(scenario)) {
            return (Outcome::Broken, format!("prepare: {why}"));
        }
        let run = Arc::new(self.prepare(scenario, name));
        let alone = scenario.is_exclusive();
        let before = match self.before(&run, alone).await {
            Ok(before) => before,
            Err(error) => return (Outcome::Broken, format!("prepare: {error}")),
        };

        phase("act");
        // In a task of its own, so that a panic ends the scenario and not the run; an interrupted run ends the task.
        let mut acting = JoinSet::new();
        {
            let run = Arc::clone(&run);
            acting.spawn(async move { act::act(&run, &run.scenario.workload).await });
        }
        let acted = match acting.join_next().await {
            Some(ended) => ended.unwrap_or_else(|error| Err(ActError::Panic(error.to_string()))),
            None => Err(ActError::Panic(String::from("no task"))),
        };

        phase("settle");
        let healed = healed(&run.site, scenario).await;
        let tokens = (!alone).then(|| run.owned());
        let namespace = if acted.is_ok() {
            // That it goes is seen at the run's end: nothing of the next scenario needs to wait for it.
            run.context.delete_namespace().await
        } else {
            Ok(())
        };
        let plants = matches!(scenario.workload, Workload::PlantLeak { .. });
        let own = if plants { self.events_of(name) } else { Vec::new() };
        let as_meant = |diff: &Diff| invariant::as_planted(&own, diff);
        let settled = settle::settle(&self.facts, &before, tokens.as_ref(), acted.is_ok(), as_meant).await;

        phase("judge");
        let (diff, unread) = match settled {
            Ok(diff) => (diff, None),
            Err(error) => (Diff::default(), Some(chain(&error))),
        };
        for line in diff.lines() {
            self.recorder.record(Some(name), What::Difference { line });
        }
        let (outcome, message) = self.verdict(
            &run,
            name,
            &acted,
            &diff,
            unread,
            healed.err().map(|e| chain(&e)),
            namespace.err(),
        );

        phase("clean");
        // What happened before one that passed is in the folders of those before it.
        let own = (outcome == Outcome::Passed).then(|| since.elapsed());
        let kept = artefacts::write(self, &run, &diff, own).await;
        let cleaned = if acted.is_ok() {
            Ok(())
        } else {
            self.clean(&run).await
        };
        let removed = if plants {
            plant::remove(&run.site).await
        } else {
            Ok(())
        };
        let mut message = message;
        for problem in [
            kept.err().map(|e| format!("evidence is missing: {e}")),
            cleaned.err(),
            removed
                .err()
                .map(|e| format!("what was planted stays: {}", chain(&e))),
        ]
        .into_iter()
        .flatten()
        {
            message = format!("{message}\n{problem}").trim_start().to_owned();
        }
        (outcome, message)
    }

    /// What the history has of one scenario; none of it where it cannot be read, which the verdict then says.
    fn events_of(&self, name: &str) -> Vec<Event> {
        let events = history::read(&self.folder.join("events.jsonl")).unwrap_or_default();
        let own = |event: &Event| event.scenario.as_deref() == Some(name);
        events.into_iter().filter(own).collect()
    }

    fn prepare(&self, scenario: &Scenario, name: &str) -> Run {
        // A repeated scenario has a namespace of its own each time.
        let namespace = format!("{NAMESPACE_PREFIX}{}", name.replace(['#', '_', '.'], "-"));
        let run = Run {
            scenario: scenario.clone(),
            context: Context {
                client: self.site.client.clone(),
                news: self.site.news.clone(),
                driver: Arc::clone(&self.site.driver),
                run: self.run.clone(),
                namespace,
                scenario: name.to_owned(),
                recorder: self.recorder.clone(),
                image: self.image.clone(),
            },
            site: self.site.clone(),
            turn: usize::try_from(self.seed % 1009).unwrap_or(0),
            owned: Mutex::default(),
        };
        run.owns(&format!("{}/", run.context.namespace));
        run
    }

    async fn before(&self, run: &Run, alone: bool) -> Result<Ledger, String> {
        if alone {
            driver_ready(&run.site).await.map_err(|e| chain(&e))?;
        }
        let before = if alone {
            settle::look(&self.facts).await.map_err(|e| chain(&e))?
        } else {
            Ledger::default()
        };
        run.context.create_namespace().await.map_err(|e| chain(&e))?;
        Ok(before)
    }

    #[allow(clippy::too_many_arguments)] // the six readings that one verdict is made of
    fn verdict(
        &self,
        run: &Run,
        name: &str,
        acted: &Result<(), ActError>,
        diff: &Diff,
        unread: Option<String>,
        unhealed: Option<String>,
        namespace: Option<WorkloadError>,
    ) -> (Outcome, String) {
        if let Err(error @ ActError::Workload(WorkloadError::NoImage { .. })) = acted {
            // Whatever else is late or there is so because the act ended amid its volume's life.
            return (error.outcome(), error.to_string());
        }
        let mut found: Vec<(Outcome, String)> = Vec::new();
        if let Err(error) = acted {
            found.push((error.outcome(), format!("{error}")));
        }
        found.extend(namespace.map(|error| (Outcome::Leaked, error.to_string())));
        found.extend(unread.map(|error| (Outcome::Broken, format!("the ledger cannot be read: {error}"))));
        found.extend(unhealed.map(|error| (Outcome::Broken, format!("after the faults: {error}"))));
        match history::read(&self.folder.join("events.jsonl")) {
            Err(error) => found.push((Outcome::Broken, format!("the history cannot be read: {error}"))),
            Ok(events) => {
                let own: Vec<_> = events
                    .iter()
                    .filter(|e| e.scenario.as_deref() == Some(name))
                    .cloned()
                    .collect();
                let except: Vec<_> = run.scenario.except.iter().map(|e| e.invariant.clone()).collect();
                for finding in invariant::judge(&own, &events, &run.context.namespace, diff, &except) {
                    // What a scenario still had when it was cut off is no leak yet.
                    let cut = match acted {
                        Err(_) if finding.outcome == Outcome::Leaked => {
                            "; it was cut off by the failure above, and not cleaned yet"
                        }
                        Err(_) | Ok(()) => "",
                    };
                    let text = format!(
                        "invariant {}\nexpected  {}{cut}\nseen      {}",
                        finding.invariant, finding.expected, finding.seen
                    );
                    found.push((finding.outcome, text));
                }
            }
        }
        let worst = found
            .iter()
            .map(|(outcome, _)| *outcome)
            .max()
            .unwrap_or(Outcome::Passed);
        found.sort_by_key(|(outcome, _)| std::cmp::Reverse(*outcome));
        let message: Vec<_> = found.into_iter().map(|(_, text)| text).collect();
        (worst, message.join("\n"))
    }

    /// After a failure: pods and claims go with their namespace; a volume that then stays is what the ledger showed.
    async fn clean(&self, run: &Run) -> Result<(), String> {
        run.context
            .remove_namespace()
            .await
            .map_err(|e| format!("not cleaned: {e}"))
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;
    use crate::cluster::workspace_root;
    use crate::scenario::catalogue;

    #[test]
    fn every_exception_of_the_catalogue_names_an_invariant_and_a_reason() {
        let all = catalogue(&workspace_root().join("e2e/scenarios")).unwrap();
        let wrong: Vec<_> = all.iter().filter_map(wrong_exception).collect();
        assert!(wrong.is_empty(), "{wrong:?}");
        assert!(
            all.iter().any(|s| !s.except.is_empty()),
            "no scenario excepts anything"
        );
    }

    #[test]
    fn every_fault_of_the_catalogue_can_be_done_as_it_is_written() {
        let all = catalogue(&workspace_root().join("e2e/scenarios")).unwrap();
        let wrong: Vec<_> = all.iter().filter_map(wrong_fault).collect();
        assert!(wrong.is_empty(), "{wrong:?}");
    }

    #[rstest]
    #[case::misspelt("no-laek", "because", Some("did you mean `no-leak`?"))]
    #[case::no_reason("no-leak", " ", Some("needs a reason"))]
    #[case::right("no-leak", "because", None)]
    fn an_exception_is_checked(#[case] invariant: &str, #[case] why: &str, #[case] says: Option<&str>) {
        let text = format!(
            r#"{{"name": "x", "why": "y", "workload": {{"kind": "lifecycle"}},
                "except": [{{"invariant": "{invariant}", "why": "{why}"}}]}}"#
        );
        let wrong = wrong_exception(&serde_json::from_str(&text).unwrap());
        assert_eq!(wrong.is_some(), says.is_some());
        assert!(says.is_none_or(|says| wrong.unwrap().contains(says)));
    }
}
