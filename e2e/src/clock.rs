//! The time of a run: one start for everything, and the named limits.
use std::time::{Duration, Instant, SystemTime};

/// Started once for a run; every event has its distance from it.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    start: Instant,
    wall: SystemTime,
}

impl Clock {
    /// Starts now.
    pub fn start() -> Self {
        Self {
            start: Instant::now(),
            wall: SystemTime::now(),
        }
    }

    /// Time since the start; never runs backwards.
    pub fn elapsed(&self) -> Duration {
        self.start.elapsed()
    }

    /// The start, as the world counts it.
    pub fn started_at(&self) -> SystemTime {
        self.wall
    }
}
