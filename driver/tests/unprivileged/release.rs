//! What is shipped has no failpoint in it.

/// The word that switches failpoints on is in the binary exactly if it was built with them, and a release build never is.
/// e2e/tests/image.rs looks for it in the driver that is shipped.
#[test]
fn failpoints_are_in_no_binary_without_their_feature() {
    let binary = std::fs::read(env!("CARGO_BIN_EXE_holdfast-driver")).unwrap();
    let word = b"HOLDFAST_FAILPOINT";
    let found = binary.windows(word.len()).any(|window| window == word);
    assert_eq!(found, cfg!(all(feature = "failpoints", debug_assertions)));
}
