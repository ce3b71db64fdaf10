//! In which order scenarios run: those that disturb nobody together, the others one by one.
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Instant;

use sha2::{Digest, Sha256};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::execute::{NAMESPACE_PREFIX, Runner, chain};
use super::{interrupt, settle};
use crate::cluster::site::Site;
use crate::cluster::{lookout, observe};
use crate::history::{Outcome, What};
use crate::ledger::{Diff, Ledger};
use crate::scenario::Scenario;

/// The row for what no single scenario explains.
pub const WHOLE: &str = "whole-run-ledger";

/// Runs all of them, `repeat` times, at the most `jobs` at once; then compares everything with what was there before.
pub async fn run_all(runner: &Runner, scenarios: &[Scenario], jobs: usize, repeat: u32) {
    // Until it is dropped at the end.
    let _observers = observe::start(&runner.site, &runner.facts, &runner.recorder).await;
    let before = settle::look(&runner.facts).await;
    let mut order: Vec<&Scenario> = Vec::new();
    for scenario in scenarios {
        match unfit(scenario, &runner.site) {
            None => order.push(scenario),
            Some(why) => ended(runner, &scenario.name, Outcome::Skipped, why, Instant::now()),
        }
    }
    shuffle(&mut order, runner.seed);
    for round in 1..=repeat {
        let name = |s: &Scenario| {
            if repeat == 1 {
                s.name.clone()
            } else {
                format!("{}#{round}", s.name)
            }
        };
        together(
            runner,
            order.iter().copied().filter(|s| !s.is_exclusive()),
            &name,
            jobs,
        )
        .await;
        for scenario in order.iter().filter(|s| s.is_exclusive()) {
            runner.execute(scenario, &name(scenario)).await;
        }
    }
    let since = Instant::now();
    let verdict = match before {
        Ok(before) => whole(runner, &before).await,
        Err(error) => (Outcome::Broken, chain(&error)),
    };
    ended(runner, WHOLE, verdict.0, verdict.1, since);
}

fn ended(runner: &Runner, name: &str, outcome: Outcome, message: String, since: Instant) {
    let took_ms = u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX);
    let ended = What::ScenarioEnded {
        outcome,
        message,
        took_ms,
    };
    runner.recorder.record(Some(name), ended);
}

/// Why a scenario cannot be tried on this cluster, if it cannot.
fn unfit(scenario: &Scenario, site: &Site) -> Option<String> {
    if site.host.is_none() && scenario.needs_host() {
        return Some(String::from(
            "it stops or kills processes of nodes, and those of this cluster are not on this machine",
        ));
    }
    let class = scenario.workload.volume()?.class;
    (!site.driver.classes.contains_key(&class)).then(|| {
        format!(
            "driver {} has no StorageClass for {}",
            site.driver.name,
            class.name()
        )
    })
}

/// Another order for every seed, the same for the same; 0 leaves the order as it is.
fn shuffle(order: &mut [&Scenario], seed: u64) {
    if seed != 0 {
        order.sort_by_cached_key(|scenario| Sha256::digest(format!("{seed} {}", scenario.name)).to_vec());
    }
}

async fn together<'a>(
    runner: &Runner,
    scenarios: impl Iterator<Item = &'a Scenario>,
    name: &impl Fn(&Scenario) -> String,
    jobs: usize,
) {
    let places = Arc::new(Semaphore::new(jobs));
    let mut running = JoinSet::new();
    for scenario in scenarios {
        let (runner, scenario, name, places) = (
            runner.clone(),
            scenario.clone(),
            name(scenario),
            Arc::clone(&places),
        );
        running.spawn(async move {
            let _place = places.acquire_owned().await;
            runner.execute(&scenario, &name).await;
        });
    }
    while let Some(joined) = running.join_next().await {
        if let Err(error) = joined {
            let message = format!("a scenario panicked, which is a mistake of ours: {error}");
            ended(runner, "unknown", Outcome::Broken, message, Instant::now());
        }
    }
}

async fn whole(runner: &Runner, before: &Ledger) -> (Outcome, String) {
    if let Err(error) = interrupt::namespaces_gone(&runner.site, Some(&runner.run), lookout::NAMESPACE).await
    {
        return (Outcome::Leaked, chain(&error));
    }
    // On a cluster of somebody else the driver may have other users, whose volumes come and go.
    let ours = BTreeSet::from([String::from(NAMESPACE_PREFIX)]);
    let tokens = runner.site.host.is_none().then_some(&ours);
    let before = match tokens {
        Some(tokens) => before.of(tokens),
        None => before.clone(),
    };
    match settle::settle(&runner.facts, &before, tokens, true, Diff::is_empty).await {
        Ok(diff) if diff.is_empty() => (Outcome::Passed, String::new()),
        Ok(diff) => (
            Outcome::Leaked,
            format!(
                "expected  nothing left of the run\nseen      {}",
                diff.lines().join("\n          ")
            ),
        ),
        Err(error) => (Outcome::Broken, chain(&error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::workload::{VolumeSpec, Workload};

    fn scenario(name: &str) -> Scenario {
        Scenario {
            name: name.to_owned(),
            why: String::new(),
            workload: Workload::Retain {
                volume: VolumeSpec::default(),
            },
            faults: Vec::new(),
            except: Vec::new(),
            labels: Vec::new(),
        }
    }

    #[test]
    fn a_seed_gives_an_order_of_its_own_and_always_the_same() {
        let all: Vec<Scenario> = (0..10).map(|n| scenario(&n.to_string())).collect();
        let ordered = |seed| {
            let mut order: Vec<&Scenario> = all.iter().collect();
            shuffle(&mut order, seed);
            order.iter().map(|s| s.name.clone()).collect::<Vec<_>>()
        };
        let catalogue: Vec<String> = all.iter().map(|s| s.name.clone()).collect();
        assert_eq!(ordered(0), catalogue);
        assert_ne!(ordered(1), catalogue);
        assert_ne!(ordered(1), ordered(2));
        assert_eq!(ordered(7), ordered(7));
    }
}
