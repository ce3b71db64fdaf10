//! How the program ends. 101 is never ours: cargo and a panic of Rust end with it.
use std::process::ExitCode;

/// How a command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Exit {
    /// Everything passed.
    Passed,
    /// Nothing was selected.
    NothingSelected,
    /// The command line or the set-up is wrong.
    Usage,
    /// An assertion failed.
    Failed,
    /// What was to be tried could not be tried.
    Infrastructure,
    /// Something was left behind.
    Leaked,
    /// Interrupted, after cleaning up.
    Interrupted,
}

impl Exit {
    /// The number.
    pub fn code(self) -> u8 {
        match self {
            Self::Passed => 0,
            Self::NothingSelected => 4,
            Self::Usage => 96,
            Self::Failed => 100,
            Self::Infrastructure => 102,
            Self::Leaked => 103,
            Self::Interrupted => 130,
        }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        ExitCode::from(exit.code())
    }
}
