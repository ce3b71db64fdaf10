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

    /// Whole milliseconds since the start.
    pub fn now_ms(&self) -> u64 {
        u64::try_from(self.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}

/// How long something may take before it counts as failed.
#[derive(Clone, Copy, Debug)]
pub struct Limit;

impl Limit {
    /// A claim is bound, a volume made or grown.
    pub const PROVISION: Duration = Duration::from_secs(60);
    /// An attachment is confirmed or gone.
    pub const ATTACH: Duration = Duration::from_secs(60);
    /// A pod runs, from its creation on, attaching and mounting included.
    pub const POD: Duration = Duration::from_secs(120);
    /// An object that was deleted is gone.
    pub const DELETE: Duration = Duration::from_secs(90);
    /// A fault is seen to have taken effect, or to be healed.
    pub const FAULT: Duration = Duration::from_secs(90);
    /// A call is seen waiting at a process that is held.
    pub const CALL: Duration = Duration::from_secs(30);
    /// Nothing is left, from the end of the workload on.
    pub const SETTLE: Duration = Duration::from_secs(60);
    /// Between two looks at something that is waited for.
    pub const LOOK: Duration = Duration::from_millis(100);
    /// One request to the API server.
    pub const REQUEST: Duration = Duration::from_secs(15);
}
