//! What goes wrong: held so that it hits, proved to have hit, healed.
mod act;
mod node;
mod spec;
mod target;

pub use act::{FaultError, Held, Waiting, hold, part_leaders, strike};
pub use node::{bring_back, heal, lose};
pub use spec::{Fault, Hold, Phase, Victim};
pub use target::driver_ready;
