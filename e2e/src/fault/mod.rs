//! What goes wrong: held so that it hits, proved to have hit, healed.
mod act;
mod spec;
mod target;

pub use act::{FaultError, Held, Waiting, hold, strike};
pub use spec::{Fault, Hold, Phase, Victim};
pub use target::driver_ready;
