//! `holdfast leaks`: everything that exists of volumes on a cluster now.
use super::args::LeaksArgs;
use super::exit::Exit;
use super::target::own_site;
use crate::clock::Clock;
use crate::cluster::facts::Gatherer;
use crate::cluster::kind;
use crate::ledger::{Kind, Ledger, diff};

/// Prints what exists of volumes; the driver itself is not counted.
///
/// # Errors
/// If anything cannot be read.
pub async fn leaks(args: &LeaksArgs) -> anyhow::Result<Exit> {
    let site = own_site(kind::find(&args.on)?).await?;
    let gatherer = Gatherer::new(&site, Clock::start());
    let ledger = gatherer.gather().await?.ledger();
    let of_driver = |kind: Kind| matches!(kind, Kind::CsiNode | Kind::Lease | Kind::DriverPod);
    let volumes = Ledger::new(ledger.entries.into_iter().filter(|e| !of_driver(e.kind)));
    let mut found = diff(&Ledger::default(), &volumes);
    if !found.is_empty() {
        found.attribute(&gatherer.calls().await, gatherer.started_at());
    }
    for line in found.lines() {
        println!("{line}");
    }
    println!("{} entries", found.left.len());
    Ok(if found.is_empty() {
        Exit::Passed
    } else {
        Exit::Leaked
    })
}
