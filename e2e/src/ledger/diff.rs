//! What is there after and was not before, and the reverse.
use std::collections::BTreeMap;
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use super::calls::{Call, last_touch};
use super::entry::{Entry, Ledger};

/// A difference of two ledgers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Diff {
    /// What outlived.
    pub left: Vec<Entry>,
    /// What is missing.
    pub lost: Vec<Entry>,
    /// The call that touched a volume last, by the driver's id of it.
    #[serde(default)]
    pub touched: BTreeMap<String, String>,
    /// The same on a node.
    #[serde(default)]
    pub touched_on_node: BTreeMap<String, String>,
}

impl Diff {
    /// Whether nothing differs.
    pub fn is_empty(&self) -> bool {
        self.left.is_empty() && self.lost.is_empty()
    }

    /// Takes from the driver's `calls` which one touched each volume last; `start` is the run's.
    pub fn attribute(&mut self, calls: &[Call], start: SystemTime) {
        for entry in self.left.iter().chain(&self.lost) {
            let on_node = entry.kind.is_of_node();
            if let Some(touch) = last_touch(calls, &entry.volume, on_node, start) {
                let touched = if on_node {
                    &mut self.touched_on_node
                } else {
                    &mut self.touched
                };
                touched.insert(entry.volume.clone(), touch);
            }
        }
    }

    /// An entry each: `+` outlived, `-` is missing; whose it is, and on a line of its own who touched it last.
    pub fn lines(&self) -> Vec<String> {
        let line = |sign: char, e: &Entry| {
            let touched = if e.kind.is_of_node() {
                &self.touched_on_node
            } else {
                &self.touched
            };
            let touch = match touched.get(&e.volume) {
                Some(call) => format!("by {call}"),
                None => String::from("by: unknown"),
            };
            let kind = e.kind.name();
            format!(
                "{sign} {kind:<20} {}  on {}  owner {}\n  {:<20} last touched {touch}",
                e.name, e.place, e.owner, ""
            )
        };
        let left = self.left.iter().map(|e| line('+', e));
        left.chain(self.lost.iter().map(|e| line('-', e))).collect()
    }
}

/// Compares two ledgers by kind, name and place; an owner may be told differently at another time.
pub fn diff(before: &Ledger, after: &Ledger) -> Diff {
    let same = |a: &Entry, b: &Entry| (a.kind, &a.name, &a.place) == (b.kind, &b.name, &b.place);
    let missing = |from: &Ledger, other: &Ledger| {
        let absent = |e: &&Entry| !other.entries.iter().any(|o| same(e, o));
        from.entries.iter().filter(absent).cloned().collect()
    };
    // Debris is nobody's property: whoever takes it away does well.
    let lost: Vec<Entry> = missing(before, after);
    Diff {
        left: missing(after, before),
        lost: lost.into_iter().filter(|e| !e.kind.is_debris()).collect(),
        ..Diff::default()
    }
}

#[cfg(test)]
mod tests {
    use super::super::entry::Kind;
    use super::*;

    fn entry(name: &str) -> Entry {
        Entry {
            kind: Kind::Image,
            name: name.to_owned(),
            place: String::from("backend"),
            owner: format!("volume {name}"),
            volume: name.to_owned(),
        }
    }

    #[test]
    fn what_outlived_and_what_is_missing_are_both_told() {
        let found = diff(
            &Ledger::new([entry("a"), entry("b")]),
            &Ledger::new([entry("b"), entry("c")]),
        );
        assert_eq!(found.left, [entry("c")]);
        assert_eq!(found.lost, [entry("a")]);
        assert!(found.lines()[0].starts_with("+ image"));
    }

    #[test]
    fn debris_that_is_gone_afterwards_is_no_loss() {
        let debris = Entry {
            kind: Kind::PodDir,
            ..entry("pods/u")
        };
        let before = Ledger::new([debris.clone()]);
        assert!(diff(&before, &Ledger::default()).is_empty());
        assert_eq!(diff(&Ledger::default(), &before).left, [debris]);
    }

    #[test]
    fn a_line_names_the_owner_and_the_last_call() {
        let call = r#"{"timestamp":"1970-01-01T00:00:18.204Z","call":41,"rpc":"NodeUnstageVolume","volume":"a","code":"Ok"}"#;
        let mut found = diff(&Ledger::default(), &Ledger::new([entry("a"), entry("b")]));
        found.attribute(&super::super::parse_calls(call), SystemTime::UNIX_EPOCH);
        let lines = found.lines();
        assert_eq!(
            lines[0].split_whitespace().collect::<Vec<_>>().join(" "),
            "+ image a on backend owner volume a last touched by NodeUnstageVolume, call 41, +18.204 s, OK"
        );
        assert!(lines[1].ends_with("last touched by: unknown"), "{}", lines[1]);
    }
}
