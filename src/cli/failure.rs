//! What a command says when it fails: the one place that turns the kind of an error into an exit
//! status and a hint at the remedy.
//!
//! It knows the error types of the rooms below, and never prints.

use std::error::Error;
use std::fmt;

use crate::job::checkpoint::CheckpointError;
use crate::job::directory::DirectoryError;
use crate::job::report::{Explanation, Kind};
use crate::job::supervisor::SuperviseError;

/// A command that did not do what was asked.
#[derive(Debug)]
pub struct Failure {
    /// Who can do something about it.
    pub kind: Kind,
    /// The operation, the thing it failed on, and the cause.
    pub message: String,
    /// What to do.
    pub hint: Option<String>,
    /// The exit status, where it is not the usual one of the command.
    pub status: Option<u8>,
}

impl Failure {
    /// A failure that another request would avoid.
    pub fn user(message: impl fmt::Display) -> Self {
        Self::new(Kind::User, message)
    }

    /// A failure that lies in the machine.
    pub fn environment(message: impl fmt::Display) -> Self {
        Self::new(Kind::Environment, message)
    }

    /// A failure that should not be possible.
    pub fn internal(message: impl fmt::Display) -> Self {
        Self::new(Kind::Internal, message)
    }

    /// The same, with what to do about it.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// The same in the words of a room below.
    pub fn explanation(self) -> Explanation {
        Explanation { kind: self.kind, message: self.message, hint: self.hint }
    }

    /// The same, with an exit status of its own.
    #[must_use]
    pub const fn status(mut self, status: u8) -> Self {
        self.status = Some(status);
        self
    }

    fn new(kind: Kind, message: impl fmt::Display) -> Self {
        Self { kind, message: message.to_string(), hint: None, status: None }
    }
}

impl From<Explanation> for Failure {
    fn from(explanation: Explanation) -> Self {
        let Explanation { kind, message, hint } = explanation;
        Self { kind, message, hint, status: None }
    }
}

impl From<&CheckpointError> for Failure {
    fn from(error: &CheckpointError) -> Self {
        let message = chain(error);
        match error {
            CheckpointError::Directory(_)
            | CheckpointError::StartThread(_)
            | CheckpointError::ReadProc(_) => Self::environment(message),
            CheckpointError::Dump(_) => Self::environment(message),
            CheckpointError::Panicked => Self::internal(message),
        }
    }
}

impl From<DirectoryError> for Failure {
    fn from(error: DirectoryError) -> Self {
        Self::environment(chain(&error))
    }
}

impl From<SuperviseError> for Failure {
    fn from(error: SuperviseError) -> Self {
        Self::environment(chain(&error)).hint("the job runs on, without a supervisor")
    }
}

/// An error and its causes, outermost first, in one line.
pub fn chain(error: &dyn Error) -> String {
    let mut words = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        let inner_words = inner.to_string();
        // Some errors already print their source; saying it twice helps nobody.
        if !words.ends_with(&inner_words) {
            words.push_str(": ");
            words.push_str(&inner_words);
        }
        cause = inner.source();
    }
    words
}
