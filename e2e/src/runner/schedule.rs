//! In which order scenarios run: those that disturb nobody together, the others one by one.
use std::sync::Arc;
use std::time::Instant;

use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::execute::{Runner, chain};
use super::settle;
use crate::cluster::observe;
use crate::history::{Outcome, What};
use crate::ledger::Ledger;
use crate::scenario::Scenario;

/// The row for what no single scenario explains.
const WHOLE: &str = "whole-run-ledger";

/// Runs all of them, `repeat` times, at the most `jobs` at once; then compares everything with what was there before.
pub async fn run_all(runner: &Runner, scenarios: &[Scenario], jobs: usize, repeat: u32) {
    // Until it is dropped at the end.
    let _observers = observe::start(&runner.client, &runner.cluster, &runner.facts, &runner.recorder).await;
    let before = settle::look(&runner.facts).await;
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
            scenarios.iter().filter(|s| !s.is_exclusive()),
            &name,
            jobs,
        )
        .await;
        for scenario in scenarios.iter().filter(|s| s.is_exclusive()) {
            runner.execute(scenario, &name(scenario)).await;
        }
    }
    let since = Instant::now();
    let verdict = match before {
        Ok(before) => whole(runner, &before).await,
        Err(error) => (Outcome::Broken, chain(&error)),
    };
    let took_ms = u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX);
    let (outcome, message) = verdict;
    let ended = What::ScenarioEnded {
        outcome,
        message,
        took_ms,
    };
    runner.recorder.record(Some(WHOLE), ended);
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
    while let Some(ended) = running.join_next().await {
        if let Err(error) = ended {
            let message = format!("a scenario panicked, which is a mistake of ours: {error}");
            let ended = What::ScenarioEnded {
                outcome: Outcome::Broken,
                message,
                took_ms: 0,
            };
            runner.recorder.record(Some("unknown"), ended);
        }
    }
}

async fn whole(runner: &Runner, before: &Ledger) -> (Outcome, String) {
    match settle::settle(&runner.facts, before, None, true).await {
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
