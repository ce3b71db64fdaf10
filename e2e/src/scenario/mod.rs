//! What to do, as data: a workload and a plan of faults.
mod parse;
mod select;
mod spec;

pub use parse::{ScenarioError, catalogue, load};
pub use select::{Selection, select};
pub use spec::{Exception, Scenario};
