//! One call at a time per volume, across processes, in a task that outlives its caller.
pub mod file_lock;
mod in_flight;
mod work;

pub use in_flight::Guard;
