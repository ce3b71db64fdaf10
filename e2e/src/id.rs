//! Names that are more than text.
use std::fmt;
use std::str::FromStr;
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

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
        let stamp = crate::clock::stamp(SystemTime::now());
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_name_is_read_again() {
        let id = RunId::new();
        assert_eq!(id.as_str().parse::<RunId>().unwrap(), id);
        assert!("../etc".parse::<RunId>().is_err());
    }
}
