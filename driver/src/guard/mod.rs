//! One call at a time per volume, across processes, in a task that outlives its caller.
pub mod file_lock;
mod work;

pub use work::run;
