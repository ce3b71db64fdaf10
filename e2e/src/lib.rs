//! Holdfast end-to-end library.
