//! Holdfast driver library.
