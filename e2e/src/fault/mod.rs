//! What goes wrong: held so that it hits, proved to have hit, healed.
mod act;
mod answer;
mod node;
mod spec;
mod target;

pub use act::{FaultError, Held, Waiting, hold, part_leaders, strike};
pub use answer::unheard;
pub use node::{bring_back, heal, lose};
pub use spec::{Fault, Hold, Moment, Phase, Victim};
pub use target::driver_ready;
