//! Everything that can go wrong with a call, and the only mapping to a gRPC code.
use std::sync::Arc;

use tonic::{Code, Status};

use crate::kernel::KernelError;

/// A variant per cause that a caller must tell apart.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A required field is empty.
    #[error("{field} is required and is not given")]
    Missing {
        /// The field, as the specification calls it.
        field: &'static str,
    },
    /// A field breaks a rule.
    #[error("{field} {value:?} {reason}")]
    Invalid {
        /// The field, as the specification calls it.
        field: &'static str,
        /// What was given; never a secret.
        value: String,
        /// The rule, continuing the sentence.
        reason: String,
    },
    /// A field is in order, and asks for what this driver does not offer.
    #[error("{field} {value:?} is not offered: {reason}")]
    Unsupported {
        /// The field, as the specification calls it.
        field: &'static str,
        /// What was given.
        value: String,
        /// What is offered instead.
        reason: String,
    },
    /// There is no such volume.
    #[error("volume {id:?} does not exist")]
    VolumeNotFound {
        /// As given by the caller.
        id: String,
    },
    /// No node plugin ever registered under this id.
    #[error("node {node:?} is unknown: no node plugin with this id has started on this data folder")]
    NodeNotFound {
        /// As given by the caller.
        node: String,
    },
    /// A path does not hold the volume.
    #[error("volume {id} is not at {path:?}")]
    NotAtPath {
        /// The volume.
        id: String,
        /// Where it was looked for.
        path: String,
    },
    /// A target has content of its own below its mounts.
    #[error("{path} has content though nothing is mounted there; it is left alone, empty it by hand")]
    NotEmpty {
        /// The target.
        path: String,
    },
    /// The same name, attachment, staging or target path in use with other arguments.
    #[error("{what} exists with another {difference}; use another name or path, or ask for the same again")]
    Differs {
        /// What exists.
        what: String,
        /// What the second caller wants otherwise.
        difference: String,
    },
    /// A volume for one node is attached to another one.
    #[error("volume {id} is attached to node {node}; detach it there first")]
    AttachedElsewhere {
        /// The volume.
        id: String,
        /// The node that has it.
        node: String,
    },
    /// The volume is in use in a way that forbids the call.
    #[error("volume {id} is in use: {by}")]
    InUse {
        /// The volume.
        id: String,
        /// Who or what uses it.
        by: String,
    },
    /// The volume's state or kind does not allow the call.
    #[error("volume {id}: {reason}")]
    Unfit {
        /// The volume.
        id: String,
        /// Why, and what to do.
        reason: String,
    },
    /// No volume of such a size can be made.
    #[error("capacity_range: {reason}")]
    Size {
        /// Wanted and possible sizes.
        reason: String,
    },
    /// What is free does not suffice now.
    #[error("{wanted_bytes} more bytes wanted, {free_bytes} free; delete volumes or raise --capacity")]
    NoSpace {
        /// Bytes the call would promise.
        wanted_bytes: u64,
        /// Bytes not yet promised.
        free_bytes: u64,
    },
    /// The node takes no more attachments.
    #[error("node {node} has {limit} volumes attached, its limit; detach one or use another node")]
    NodeFull {
        /// The node.
        node: String,
        /// Its limit.
        limit: u32,
    },
    /// The volume cannot be where it is wanted.
    #[error("accessibility_requirements {wanted} cannot be met: nodes of this driver are at {known}")]
    NoSuchPlace {
        /// Every topology of the request.
        wanted: String,
        /// Every topology that a node has.
        known: String,
    },
    /// The driver can do no work until somebody helps.
    #[error("{what}; the driver cannot work until it is back")]
    Unhealthy {
        /// What is wrong.
        what: String,
    },
    /// A page token that this driver did not give.
    #[error("starting_token {token:?} was not given by this driver; list again without one")]
    BadToken {
        /// As given.
        token: String,
    },
    /// Another call holds the volume.
    #[error("{holder} is in progress on {key}; call again")]
    Busy {
        /// The volume or lock.
        key: String,
        /// The other call.
        holder: String,
    },
    /// Something may be left behind: the caller must call again, or undo.
    #[error("{step} is not finished; call again")]
    HalfDone {
        /// What was being done.
        step: String,
        /// Why it stopped.
        #[source]
        source: KernelError,
    },
    /// The data folder did not do what was asked; nothing is known about the result.
    #[error("{step} failed in the data folder; call again")]
    Storage {
        /// What was being done.
        step: String,
        /// Why it stopped.
        #[source]
        source: std::io::Error,
    },
    /// A record that cannot be read; its volume is untouched until somebody looks.
    #[error("the record of volume {id} cannot be read: {reason}")]
    Unreadable {
        /// The volume.
        id: String,
        /// What is wrong with the file.
        reason: String,
    },
    /// A step failed and everything before it was undone.
    #[error("{step} failed and was undone")]
    Undone {
        /// What was being done.
        step: String,
        /// Why it stopped.
        #[source]
        source: KernelError,
    },
    /// The work itself broke; its state is found again by the next call.
    #[error("{rpc} ended unexpectedly; call again")]
    Broken {
        /// The call.
        rpc: &'static str,
    },
    /// Not offered, therefore not declared.
    #[error("{rpc} is not offered by this driver; see its capabilities")]
    NotOffered {
        /// The call.
        rpc: &'static str,
    },
}

impl Error {
    /// The only place that chooses a code. No `_` arm: a new variant does not compile without its code.
    ///
    /// A final code promises that nothing is left behind: after one, the provisioner never asks again for a claim
    /// that is gone, and kubelet never unstages.
    pub fn code(&self) -> Code {
        match self {
            Self::Missing { .. } | Self::Invalid { .. } | Self::Unsupported { .. } => Code::InvalidArgument,
            Self::VolumeNotFound { .. } | Self::NodeNotFound { .. } | Self::NotAtPath { .. } => {
                Code::NotFound
            }
            Self::Differs { .. } => Code::AlreadyExists,
            Self::AttachedElsewhere { .. }
            | Self::InUse { .. }
            | Self::Unfit { .. }
            | Self::Unhealthy { .. }
            | Self::NotEmpty { .. } => Code::FailedPrecondition,
            Self::Size { .. } => Code::OutOfRange,
            Self::NoSpace { .. } | Self::NodeFull { .. } | Self::NoSuchPlace { .. } => {
                Code::ResourceExhausted
            }
            Self::BadToken { .. } | Self::Busy { .. } | Self::HalfDone { .. } => Code::Aborted,
            Self::Storage { .. } | Self::Unreadable { .. } | Self::Broken { .. } => Code::Unavailable,
            // Two calls at one path: whoever asks again has it.
            Self::Undone {
                source: KernelError::Gone { .. },
                ..
            } => Code::Aborted,
            Self::Undone { .. } => Code::Internal,
            Self::NotOffered { .. } => Code::Unimplemented,
        }
    }

    /// The message with every cause behind it.
    pub fn message(&self) -> String {
        let mut text = self.to_string();
        let mut cause = std::error::Error::source(self);
        while let Some(next) = cause {
            text.push_str(": ");
            text.push_str(&next.to_string());
            cause = next.source();
        }
        text
    }

    /// For `map_err` on an operation of the data folder.
    pub fn storage(step: impl Into<String>) -> impl FnOnce(std::io::Error) -> Self {
        move |source| Self::Storage {
            step: step.into(),
            source,
        }
    }

    /// For `map_err` on a step that may be half done.
    pub fn half_done(step: impl Into<String>) -> impl FnOnce(KernelError) -> Self {
        move |source| Self::HalfDone {
            step: step.into(),
            source,
        }
    }
}

impl From<Error> for Status {
    fn from(error: Error) -> Self {
        Self::new(error.code(), error.message())
    }
}

/// The answer to several callers that joined one call.
pub fn to_status(error: &Arc<Error>) -> Status {
    Status::new(error.code(), error.message())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kernel() -> KernelError {
        KernelError::Unexpected {
            what: "loop device",
            text: String::from("reason at the bottom"),
        }
    }

    fn io() -> std::io::Error {
        std::io::Error::other("reason at the bottom")
    }

    /// One of each, with the code that the specification, or what its callers do with a code, wants.
    fn every_variant() -> Vec<(Error, Code)> {
        let text = || String::from("v1");
        vec![
            (Error::Missing { field: "name" }, Code::InvalidArgument),
            (
                Error::Invalid {
                    field: "name",
                    value: text(),
                    reason: String::from("is too long"),
                },
                Code::InvalidArgument,
            ),
            (
                Error::Unsupported {
                    field: "name",
                    value: text(),
                    reason: text(),
                },
                Code::InvalidArgument,
            ),
            (Error::VolumeNotFound { id: text() }, Code::NotFound),
            (Error::NodeNotFound { node: text() }, Code::NotFound),
            (
                Error::NotAtPath {
                    id: text(),
                    path: text(),
                },
                Code::NotFound,
            ),
            (Error::NotEmpty { path: text() }, Code::FailedPrecondition),
            (
                Error::Differs {
                    what: text(),
                    difference: text(),
                },
                Code::AlreadyExists,
            ),
            (
                Error::AttachedElsewhere {
                    id: text(),
                    node: text(),
                },
                Code::FailedPrecondition,
            ),
            (
                Error::InUse {
                    id: text(),
                    by: text(),
                },
                Code::FailedPrecondition,
            ),
            (
                Error::Unfit {
                    id: text(),
                    reason: text(),
                },
                Code::FailedPrecondition,
            ),
            (Error::Size { reason: text() }, Code::OutOfRange),
            (
                Error::NoSpace {
                    wanted_bytes: 1,
                    free_bytes: 0,
                },
                Code::ResourceExhausted,
            ),
            (
                Error::NodeFull {
                    node: text(),
                    limit: 1,
                },
                Code::ResourceExhausted,
            ),
            (
                Error::NoSuchPlace {
                    wanted: text(),
                    known: text(),
                },
                Code::ResourceExhausted,
            ),
            (Error::Unhealthy { what: text() }, Code::FailedPrecondition),
            (Error::BadToken { token: text() }, Code::Aborted),
            (
                Error::Busy {
                    key: text(),
                    holder: text(),
                },
                Code::Aborted,
            ),
            (
                Error::HalfDone {
                    step: text(),
                    source: kernel(),
                },
                Code::Aborted,
            ),
            (
                Error::Storage {
                    step: text(),
                    source: io(),
                },
                Code::Unavailable,
            ),
            (
                Error::Unreadable {
                    id: text(),
                    reason: text(),
                },
                Code::Unavailable,
            ),
            (
                Error::Undone {
                    step: text(),
                    source: kernel(),
                },
                Code::Internal,
            ),
            (
                Error::Undone {
                    step: text(),
                    source: KernelError::Gone {
                        path: String::from("reason at the bottom"),
                    },
                },
                Code::Aborted,
            ),
            (Error::Broken { rpc: "Probe" }, Code::Unavailable),
            (Error::NotOffered { rpc: "Probe" }, Code::Unimplemented),
        ]
    }

    /// The place of a variant in the table. A new one does not compile without a place, and fails without a row there.
    fn place(error: &Error) -> usize {
        match error {
            Error::Missing { .. } => 0,
            Error::Invalid { .. } => 1,
            Error::Unsupported { .. } => 2,
            Error::VolumeNotFound { .. } => 3,
            Error::NodeNotFound { .. } => 4,
            Error::NotAtPath { .. } => 5,
            Error::NotEmpty { .. } => 6,
            Error::Differs { .. } => 7,
            Error::AttachedElsewhere { .. } => 8,
            Error::InUse { .. } => 9,
            Error::Unfit { .. } => 10,
            Error::Size { .. } => 11,
            Error::NoSpace { .. } => 12,
            Error::NodeFull { .. } => 13,
            Error::NoSuchPlace { .. } => 14,
            Error::Unhealthy { .. } => 15,
            Error::BadToken { .. } => 16,
            Error::Busy { .. } => 17,
            Error::HalfDone { .. } => 18,
            Error::Storage { .. } => 19,
            Error::Unreadable { .. } => 20,
            Error::Undone { .. } => 21,
            Error::Broken { .. } => 22,
            Error::NotOffered { .. } => 23,
        }
    }

    #[test]
    fn every_error_has_its_code_a_message_and_no_details() {
        let all = every_variant();
        let mut places: Vec<_> = all.iter().map(|(error, _)| place(error)).collect();
        places.dedup(); // one has two codes, by its cause
        assert_eq!(places, (0..24).collect::<Vec<_>>());
        for (error, code) in all {
            let shown = format!("{error:?}");
            let has_cause = std::error::Error::source(&error).is_some();
            let status = Status::from(error);
            assert_eq!(status.code(), code, "{shown}");
            assert!(!status.message().is_empty(), "{shown}");
            assert!(status.details().is_empty(), "{shown}");
            assert_eq!(
                status.message().contains("reason at the bottom"),
                has_cause,
                "{shown}"
            );
        }
    }
}
