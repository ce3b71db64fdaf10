//! Named points, one for each durable step between two states, at which a test kills this process or makes the step fail.
//!
//! Only with the feature `failpoints`, which the tests of this crate turn on, and in a debug build: in a release build, whatever
//! its features, a step is its operation and nothing else.
//! `HOLDFAST_FAILPOINT=image-made:2=kill-after` kills the process after the second time that an image was made;
//! `=kill-before` before it, `=ENOSPC` (or EIO, EBUSY, EROFS) fails instead of it, once. `HOLDFAST_FAILPOINT_TRACE=FILE` adds
//! a line to FILE for every step that is done.

/// Does `operation`, the step called `name`.
///
/// # Errors
/// The operation's own.
#[cfg(not(all(feature = "failpoints", debug_assertions)))]
#[inline(always)]
pub fn step<T>(_name: &'static str, operation: impl FnOnce() -> std::io::Result<T>) -> std::io::Result<T> {
    operation()
}

#[cfg(all(feature = "failpoints", debug_assertions))]
pub use on::step;

#[cfg(all(feature = "failpoints", debug_assertions))]
mod on {
    use std::collections::HashMap;
    use std::io::{self, Write};
    use std::sync::{Mutex, OnceLock, PoisonError};

    #[derive(Debug, PartialEq, Eq)]
    enum Action {
        KillBefore,
        KillAfter,
        Errno(i32),
    }

    #[derive(Debug)]
    struct Plan {
        name: String,
        /// Which time, from 1.
        nth: u32,
        action: Action,
    }

    static PLAN: OnceLock<Option<Plan>> = OnceLock::new();
    static COUNTS: Mutex<Option<HashMap<&'static str, u32>>> = Mutex::new(None);

    fn parse(text: &str) -> Option<Plan> {
        let (point, action) = text.split_once('=')?;
        let (name, nth) = point.split_once(':').unwrap_or((point, "1"));
        let action = match action {
            "kill-before" => Action::KillBefore,
            "kill-after" => Action::KillAfter,
            "EIO" => Action::Errno(libc::EIO),
            "ENOSPC" => Action::Errno(libc::ENOSPC),
            "EBUSY" => Action::Errno(libc::EBUSY),
            "EROFS" => Action::Errno(libc::EROFS),
            _ => return None,
        };
        Some(Plan {
            name: name.to_owned(),
            nth: nth.parse().ok()?,
            action,
        })
    }

    fn kill() -> ! {
        let _ = nix::sys::signal::kill(nix::unistd::getpid(), nix::sys::signal::Signal::SIGKILL);
        // Never reached: the signal cannot be caught.
        std::process::abort()
    }

    /// Does `operation`, the step called `name`, or what the plan says.
    ///
    /// # Errors
    /// The operation's own, or the plan's errno.
    pub fn step<T>(name: &'static str, operation: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        let count = {
            let mut counts = COUNTS.lock().unwrap_or_else(PoisonError::into_inner);
            let count = counts.get_or_insert_default().entry(name).or_default();
            *count += 1;
            *count
        };
        let plan = PLAN.get_or_init(|| {
            std::env::var("HOLDFAST_FAILPOINT")
                .ok()
                .as_deref()
                .and_then(parse)
        });
        let action = plan
            .as_ref()
            .filter(|plan| plan.name == name && plan.nth == count)
            .map(|plan| &plan.action);
        match action {
            Some(Action::KillBefore) => kill(),
            Some(Action::Errno(errno)) => return Err(io::Error::from_raw_os_error(*errno)),
            Some(Action::KillAfter) | None => {}
        }
        let result = operation();
        if action == Some(&Action::KillAfter) {
            kill();
        }
        if let Ok(path) = std::env::var("HOLDFAST_FAILPOINT_TRACE") {
            let file = std::fs::File::options().create(true).append(true).open(path);
            if let Ok(mut file) = file {
                let _ = writeln!(file, "{name}:{count}");
            }
        }
        result
    }
}
