//! Looks at everything until nothing differs, or the bound has passed.
use std::collections::BTreeSet;
use std::time::Instant;

use crate::clock::Limit;
use crate::cluster::ClusterError;
use crate::cluster::facts::Gatherer;
use crate::ledger::{Diff, Ledger, diff};

/// Everything that exists now.
pub(super) async fn look(facts: &Gatherer) -> Result<Ledger, ClusterError> {
    Ok(facts.gather().await?.ledger())
}

/// The difference to `before` once it is as `settled` wants it, or when the bound has passed, with the calls that explain
/// it; without `patient`, now.
/// With `tokens` only what belongs to one scenario is compared.
pub(super) async fn settle(
    facts: &Gatherer,
    before: &Ledger,
    tokens: Option<&BTreeSet<String>>,
    patient: bool,
    settled: impl Fn(&Diff) -> bool,
) -> Result<Diff, ClusterError> {
    let since = Instant::now();
    let mut ticks = tokio::time::interval(Limit::LOOK * 3);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let over = !patient || since.elapsed() >= Limit::SETTLE;
        match look(facts).await {
            Ok(after) => {
                let after = tokens.map_or_else(|| after.clone(), |tokens| after.of(tokens));
                let mut found = diff(before, &after);
                if settled(&found) && found.is_empty() {
                    return Ok(found);
                }
                if settled(&found) || over {
                    found.attribute(&facts.calls().await, facts.started_at());
                    return Ok(found);
                }
            }
            Err(error) if over => return Err(error),
            Err(_) => {}
        }
    }
}
