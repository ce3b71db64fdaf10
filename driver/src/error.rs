//! Everything that can go wrong with a call, and the only mapping to a gRPC code.
use std::sync::Arc;

use tonic::{Code, Status};

use crate::kernel::KernelError;

/// A variant per cause that a caller must tell apart.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A required field is empty.
    #[error("{field} is required")]
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
    #[error("{what} exists with another {difference}")]
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
    #[error("node {node} has {limit} volumes attached, its limit")]
    NodeFull {
        /// The node.
        node: String,
        /// Its limit.
        limit: u32,
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
    #[error("{rpc} is not offered")]
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
            Self::Missing { .. } | Self::Invalid { .. } => Code::InvalidArgument,
            Self::VolumeNotFound { .. } | Self::NodeNotFound { .. } | Self::NotAtPath { .. } => {
                Code::NotFound
            }
            Self::Differs { .. } => Code::AlreadyExists,
            Self::AttachedElsewhere { .. }
            | Self::InUse { .. }
            | Self::Unfit { .. }
            | Self::NotEmpty { .. } => Code::FailedPrecondition,
            Self::Size { .. } => Code::OutOfRange,
            Self::NoSpace { .. } | Self::NodeFull { .. } => Code::ResourceExhausted,
            Self::BadToken { .. } | Self::Busy { .. } | Self::HalfDone { .. } => Code::Aborted,
            Self::Storage { .. } | Self::Unreadable { .. } | Self::Broken { .. } => Code::Unavailable,
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
