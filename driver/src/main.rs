//! The driver binary.
fn main() {}
