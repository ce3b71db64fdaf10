//! Where a volume is accessible from: one of the places that were asked for and that a node is at.
use crate::config::{Segments, shown};
use crate::error::Error;

/// The place of a volume: the first preferred one that a node is at, else the first requisite one, else, where none is
/// requisite, everywhere, which is what no segments mean.
///
/// # Errors
/// RESOURCE_EXHAUSTED, so that the caller's scheduler looks for another node.
pub fn choose(requisite: &[Segments], preferred: &[Segments], known: &[Segments]) -> Result<Segments, Error> {
    let mut candidates = preferred.iter().chain(requisite);
    if let Some(found) = candidates.find(|place| is_at(place, known)) {
        return Ok(found.clone());
    }
    if requisite.is_empty() {
        return Ok(Segments::new());
    }
    let list = |places: &[Segments]| places.iter().map(shown).collect::<Vec<_>>().join(" or ");
    Err(Error::NoSuchPlace {
        wanted: list(requisite),
        known: match known {
            [] => String::from("no place, because none has started yet"),
            known => list(known),
        },
    })
}

/// Whether a node is at `place`: a node may be in more segments than a place names.
pub fn is_at(place: &Segments, known: &[Segments]) -> bool {
    known.iter().any(|node| covers(node, place))
}

/// Whether every segment of `place` is one of `node`.
pub fn covers(node: &Segments, place: &Segments) -> bool {
    place.iter().all(|(key, value)| node.get(key) == Some(value))
}

#[cfg(test)]
mod tests {
    use rstest::rstest;
    use tonic::Code;

    use super::*;

    fn at(zone: &str) -> Segments {
        Segments::from([(String::from("zone"), zone.to_owned())])
    }

    fn node(zone: &str, rack: &str) -> Segments {
        Segments::from([
            (String::from("rack"), rack.to_owned()),
            (String::from("zone"), zone.to_owned()),
        ])
    }

    #[rstest]
    #[case::no_wish(&[], &[], Ok(Segments::new()))]
    #[case::the_first_preferred(&["a", "b"], &["b", "a"], Ok(at("b")))]
    #[case::a_preferred_that_is_unknown(&["a", "b"], &["x", "b"], Ok(at("b")))]
    #[case::a_requisite(&["x", "a"], &[], Ok(at("a")))]
    #[case::only_an_unknown_wish(&[], &["x"], Ok(Segments::new()))]
    #[case::only_unknown(&["x"], &["x"], Err(Code::ResourceExhausted))]
    fn places(
        #[case] requisite: &[&str],
        #[case] preferred: &[&str],
        #[case] expected: Result<Segments, Code>,
    ) {
        let requisite: Vec<_> = requisite.iter().map(|z| at(z)).collect();
        let preferred: Vec<_> = preferred.iter().map(|z| at(z)).collect();
        let known = [node("a", "1"), node("b", "2")];
        assert_eq!(
            choose(&requisite, &preferred, &known).map_err(|e| e.code()),
            expected
        );
    }
}
