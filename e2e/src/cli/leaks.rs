//! `holdfast leaks`: everything that exists of volumes on a cluster now.
use anyhow::bail;

use super::args::LeaksArgs;
use super::exit::Exit;
use super::job::told_to_stop;
use super::target::{self, Named, own_site};
use crate::clock::Clock;
use crate::cluster::facts::Gatherer;
use crate::cluster::kind;
use crate::cluster::lookout::{self, Lookout};
use crate::cluster::site::Site;
use crate::id::RunId;
use crate::ledger::{Kind, Ledger, diff};
use crate::progress::{Progress, consents};
use crate::workload::RUN_LABEL;

/// Of a cluster of ours, if none is named.
const USUAL: &str = "holdfast";

/// Prints what exists of volumes; the driver itself is not counted.
///
/// # Errors
/// If anything cannot be read.
pub async fn leaks(args: &LeaksArgs) -> anyhow::Result<Exit> {
    let progress = Progress::default();
    match target::named(&args.target, &progress).await? {
        Named::Nothing => count(&own_site(kind::find(USUAL)?).await?).await,
        Named::Own(name) => count(&own_site(kind::find(&name)?).await?).await,
        Named::Existing(foreign) => match &args.target.image {
            Some(image) if !args.target.api_only => {
                if !(args.yes || consents("put a pod on every node there, to look at it?")) {
                    bail!(
                        "--yes consents to a pod on every node, in namespace hf-lookout; --api-only does without"
                    );
                }
                let label = format!("leaks-{}", RunId::new());
                watched(foreign.site, image, &label).await
            }
            _ => {
                progress.note(
                    "only the API is looked at; the suite's image, by --image, lets pods of it look at the nodes",
                );
                count(&foreign.site).await
            }
        },
    }
}

/// Counts with a pod on every node, which goes whatever happens.
async fn watched(mut site: Site, image: &str, label: &str) -> anyhow::Result<Exit> {
    let client = site.client.clone();
    let counted = async {
        let opened = Lookout::open(&client, image, (RUN_LABEL, label), &site.workers).await?;
        site.lookout = Some(opened.clone());
        let counted = count(&site).await;
        opened.close().await?;
        counted
    };
    tokio::select! {
        counted = counted => counted,
        told = told_to_stop() => {
            told?;
            lookout::close(&client, (RUN_LABEL, label)).await?;
            Ok(Exit::Interrupted)
        }
    }
}

async fn count(site: &Site) -> anyhow::Result<Exit> {
    let gatherer = Gatherer::new(site, Clock::start())?;
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
