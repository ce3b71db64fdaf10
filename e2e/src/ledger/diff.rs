//! What is there after and was not before, and the reverse.
use serde::{Deserialize, Serialize};

use super::entry::{Entry, Ledger};

/// A difference of two ledgers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Diff {
    /// What outlived.
    pub left: Vec<Entry>,
    /// What is missing.
    pub lost: Vec<Entry>,
}

impl Diff {
    /// Whether nothing differs.
    pub fn is_empty(&self) -> bool {
        self.left.is_empty() && self.lost.is_empty()
    }

    /// One line an entry: `+` outlived, `-` is missing.
    pub fn lines(&self) -> Vec<String> {
        let line = |sign: char, e: &Entry| {
            format!(
                "{sign} {:<20} {}  on {}  owner {}",
                e.kind.name(),
                e.name,
                e.place,
                e.owner
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
}
