//! The moment after the answer: the driver has done what it was asked for, and nobody will ever hear of it.
use std::time::SystemTime;

use kube::api::LogParams;

use super::act::{FaultError, Held, called, leading, still};
use super::spec::Phase;
use crate::clock::Limit;
use crate::cluster::site::Site;
use crate::cluster::wait::{self, Look};
use crate::ledger::{Call, parse_calls};

/// How the driver logs a call that it has done.
const DONE: &str = "Ok";

/// Stops the caller of the call of `phase` that waits at `held`, lets the driver go on, and waits until it has answered; who
/// stands still now, and what was seen.
///
/// # Errors
/// If no call waits in the caller's pod, or the driver does not log in its bound that it has done it.
pub async fn unheard(site: &Site, phase: Phase, held: Held) -> Result<(Held, String), FaultError> {
    let caller = leading(site, phase.caller()).await?;
    let driver = held.containers.iter().find(|held| held.pod == caller.pod);
    let driver = driver.cloned().ok_or_else(|| FaultError::NoTarget {
        what: format!("held driver in {}, whose {} calls", caller.pod, caller.name),
    })?;
    // In the other replica something may wait, too.
    called(std::slice::from_ref(&driver)).await?;
    let deaf = still(vec![caller.clone()]).await?;
    let since = SystemTime::now();
    drop(held);
    let rpc = phase.rpc().unwrap_or_default();
    let pods = site.pods();
    let parameters = LogParams {
        container: Some(driver.name.clone()),
        tail_lines: Some(50),
        ..LogParams::default()
    };
    let look = || async {
        match pods.logs(&driver.pod, &parameters).await {
            Ok(log) => match answered(&parse_calls(&log), rpc, since) {
                Some(call) => Look::Holds(format!(
                    "call {}, {rpc} of {}, answered in {}; its {} stands still",
                    call.call, call.volume, driver.pod, caller.name
                )),
                None => Look::NotYet(format!("{} has logged no {rpc} as done", driver.pod)),
            },
            Err(error) => Look::NotYet(error.to_string()),
        }
    };
    let what = format!("the driver answers {rpc}");
    let seen = wait::until(&what, Limit::CALL, look).await?;
    Ok((deaf, seen))
}

fn answered<'a>(calls: &'a [Call], rpc: &str, since: SystemTime) -> Option<&'a Call> {
    calls
        .iter()
        .find(|call| call.rpc == rpc && call.code == DONE && SystemTime::from(call.timestamp) >= since)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOG: &str = r#"
{"timestamp":"1970-01-01T00:00:10Z","call":1,"rpc":"CreateVolume","volume":"a","code":"Ok"}
{"timestamp":"1970-01-01T00:00:20Z","call":2,"rpc":"DeleteVolume","volume":"a","code":"Ok"}
{"timestamp":"1970-01-01T00:00:30Z","call":3,"rpc":"CreateVolume","volume":"b","code":"Aborted"}
{"timestamp":"1970-01-01T00:00:40Z","call":4,"rpc":"CreateVolume","volume":"b","code":"Ok"}"#;

    #[test]
    fn only_a_call_of_that_kind_that_was_done_since_is_the_answer() {
        let calls = parse_calls(LOG);
        let at = |seconds| SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(seconds);
        let found = |since| answered(&calls, "CreateVolume", at(since)).map(|call| call.call);
        assert_eq!(found(5), Some(1));
        assert_eq!(found(15), Some(4));
        assert_eq!(found(41), None);
    }
}
