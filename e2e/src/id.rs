//! Names that are more than text.
use std::fmt;
use std::str::FromStr;
use std::time::SystemTime;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// A run: part of the names of its cluster, its namespaces and its folder.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct RunId(String);

/// A text that is no run's name.
#[derive(Debug, thiserror::Error)]
#[error("{0:?} is no run: up to 40 of a-z, 0-9 and - are")]
pub struct NotARun(String);

impl RunId {
    /// A new one: the time, and the process for those of one second.
    pub fn new() -> Self {
        let stamp = stamp(SystemTime::now());
        Self(format!("{stamp}-{:04x}", std::process::id() & 0xffff))
    }

    /// As text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Default for RunId {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Display for RunId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for RunId {
    type Err = NotARun;

    fn from_str(text: &str) -> Result<Self, NotARun> {
        let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        if (1..=40).contains(&text.len()) && text.chars().all(fits) {
            Ok(Self(text.to_owned()))
        } else {
            Err(NotARun(text.to_owned()))
        }
    }
}

/// Kubelet's staging folder is called by the SHA-256 of the volume's id.
pub fn folder_of(handle: &str) -> String {
    Sha256::digest(handle.as_bytes())
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

/// The folder of a scenario in the run's folder; `#` before the number of a repetition would have to be quoted.
pub fn scenario_folder(name: &str) -> String {
    name.replace('#', "-")
}

/// 20261124-122100: a moment in UTC as part of a name, which sorts by time.
fn stamp(at: SystemTime) -> String {
    let seconds = at
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs();
    let (year, month, day) = civil(seconds / 86_400);
    let (hour, minute, second) = (seconds / 3600 % 24, seconds / 60 % 60, seconds % 60);
    format!("{year:04}{month:02}{day:02}-{hour:02}{minute:02}{second:02}")
}

/// Year, month and day of a number of days since 1970, by the Gregorian calendar.
fn civil(days: u64) -> (u64, u64, u64) {
    // Counted from 1 March of the year 0, so that the leap day is the last of its year.
    let days = days + 719_468;
    let (era, of_era) = (days / 146_097, days % 146_097);
    let year = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let shifted = (5 * of_year + 2) / 153;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    let day = of_year - (153 * shifted + 2) / 5 + 1;
    (era * 400 + year + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_new_name_is_read_again() {
        let id = RunId::new();
        assert_eq!(id.as_str().parse::<RunId>().unwrap(), id);
        assert!("../etc".parse::<RunId>().is_err());
    }

    #[test]
    fn a_stamp_is_the_time_in_utc() {
        for (seconds, text) in [
            (0, "19700101-000000"),
            (951_827_696, "20000229-123456"),
            (1_795_522_860, "20261124-122100"),
        ] {
            assert_eq!(stamp(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)), text);
        }
    }
}
