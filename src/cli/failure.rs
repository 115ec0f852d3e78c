//! What a command says when it fails: the one place that turns the kind of an error into an exit
//! status and a hint at the remedy.
//!
//! It knows the error types of the rooms below, and never prints.

use std::error::Error;
use std::fmt;
use std::io;

use crate::dump::DumpError;
use crate::dump::refusal::{Obstacle, Obstacles};
use crate::image::error::ReadFault;
use crate::image::{ReadError, WriteError};
use crate::job::checkpoint::CheckpointError;
use crate::job::claim::ClaimError;
use crate::job::directory::{DirectoryError, FindError, GenerationError};
use crate::job::record::RecordError;
use crate::job::report::{Explanation, Kind};
use crate::job::supervisor::SuperviseError;
use crate::tracer::error::FreezeError;

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
            CheckpointError::Directory(error) => Self::from(error),
            CheckpointError::Hook(_) => Self::user(message),
            CheckpointError::StartThread(_) => Self::environment(message),
            CheckpointError::Dump(error) => Self::from(error),
            CheckpointError::Panicked => Self::internal(message),
        }
    }
}

impl From<&DumpError> for Failure {
    fn from(error: &DumpError) -> Self {
        let message = chain(error);
        match error {
            DumpError::Freeze(error) => Self::from(error),
            DumpError::Refused(Obstacles(obstacles)) => Self::user(refusals(obstacles))
                .hint("rckpt check PID tells this without taking a checkpoint"),
            DumpError::Write(_) | DumpError::Later(_) if disk_is_full(error) => {
                Self::environment(message).hint(MAKE_ROOM)
            }
            DumpError::Write(WriteError::CheckRecords { .. }) | DumpError::Changed { .. } => {
                Self::internal(message)
            }
            DumpError::Collect(_)
            | DumpError::Outputs(_)
            | DumpError::Save(_)
            | DumpError::Copy(_)
            | DumpError::Write(_)
            | DumpError::Commit(_)
            | DumpError::Later(_)
            | DumpError::GivenUp
            | DumpError::MemoryShort { .. }
            | DumpError::Release { .. } => Self::environment(message),
        }
    }
}

impl From<&FreezeError> for Failure {
    fn from(error: &FreezeError) -> Self {
        let message = chain(error);
        match error {
            FreezeError::NoSuchProcess { .. } | FreezeError::Ended { .. } => {
                Self::user(message).hint("rckpt list shows your jobs, ps all processes")
            }
            FreezeError::AlreadyTraced { .. }
            | FreezeError::NotPermitted { .. }
            | FreezeError::ThirtyTwoBit { .. } => Self::user(message),
            FreezeError::Busy { .. } | FreezeError::Growing { .. } => {
                Self::environment(message).hint("try again in a moment")
            }
            FreezeError::Trace { .. }
            | FreezeError::Memory { .. }
            | FreezeError::Proc(_)
            | FreezeError::Heal { .. } => Self::environment(message),
        }
    }
}

/// Everything that stands in the way of a checkpoint, one thing a line, with what to do about each.
pub fn refusals(obstacles: &[Obstacle]) -> String {
    let mut text = "the job cannot be saved as it is:".to_owned();
    for obstacle in obstacles.iter().take(MOST_REFUSALS) {
        text.push_str(&format!("\n  {obstacle}"));
        if let Obstacle::File(refusal) = obstacle {
            text.push_str(&format!("; {}", refusal.remedy()));
        }
    }
    if let Some(more) = obstacles.len().checked_sub(MOST_REFUSALS).filter(|more| *more > 0) {
        text.push_str(&format!("\n  and {more} more"));
    }
    text
}

const MAKE_ROOM: &str = "the disk or your quota is full: make room (rckpt prune removes old \
    checkpoints), or give another place with --dir";

/// Refusals that are told one by one; a program with thousands of sockets has the first say it all.
const MOST_REFUSALS: usize = 20;

/// Whether something failed because there is no room on a disk.
fn disk_is_full(error: &(dyn Error + 'static)) -> bool {
    let mut cause = Some(error);
    while let Some(error) = cause {
        let full = error.downcast_ref().map(io::Error::kind);
        if matches!(full, Some(io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)) {
            return true;
        }
        cause = error.source();
    }
    false
}

impl From<DirectoryError> for Failure {
    fn from(error: DirectoryError) -> Self {
        Self::from(&error)
    }
}

impl From<&DirectoryError> for Failure {
    fn from(error: &DirectoryError) -> Self {
        let message = chain(error);
        match error {
            DirectoryError::AnotherJob { .. } => Self::user(message).hint(
                "give another directory with --dir, or move this one away if its job is over",
            ),
            DirectoryError::Claim(ClaimError::Held { .. }) => Self::user(message).hint(
                "end that one first (kill -TERM takes a last checkpoint), or give another directory \
                 with --dir; where it is known to be gone although this file system keeps no locks, \
                 remove DIR/lock",
            ),
            DirectoryError::Record(RecordError::Trust { .. }) => Self::user(message)
                .hint("give a directory of your own with --dir, or act as its owner"),
            DirectoryError::Record(RecordError::Decode { path, .. }) => {
                Self::environment(message).hint(format!(
                    "if the checkpoints beside it are yours, remove {} and name one of them",
                    path.display()
                ))
            }
            DirectoryError::SupportIdentity { .. } => {
                Self::environment(message).hint("use the rckpt that wrote it, or a newer one")
            }
            DirectoryError::Open { source, .. }
                if source.kind() == std::io::ErrorKind::NotADirectory =>
            {
                Self::user(message)
            }
            DirectoryError::Claim(ClaimError::Lock { .. })
            | DirectoryError::Create { .. }
            | DirectoryError::Open { .. }
            | DirectoryError::Record(_)
            | DirectoryError::List { .. }
            | DirectoryError::Begin { .. }
            | DirectoryError::Sync { .. }
            | DirectoryError::Rename { .. }
            | DirectoryError::MoveLatest { .. }
            | DirectoryError::Remove { .. } => {
                let failure = Self::environment(message);
                if disk_is_full(error) { failure.hint(MAKE_ROOM) } else { failure }
            }
        }
    }
}

impl From<FindError> for Failure {
    fn from(error: FindError) -> Self {
        match error {
            FindError::Directory(error) => Self::from(error),
            FindError::NoCheckpoint { .. } => Self::user(error)
                .hint("there is nothing to bring back from here: start the job again"),
            FindError::Absent { .. }
            | FindError::NoGeneration { .. }
            | FindError::AtGeneration { .. } => Self::user(error),
        }
    }
}

impl From<GenerationError> for Failure {
    fn from(error: GenerationError) -> Self {
        match error {
            GenerationError::Read(error) => Self::from(error),
            GenerationError::AnotherJob { .. } => {
                Self::user(error).hint("somebody mixed up directories: name the checkpoint's own")
            }
        }
    }
}

impl From<ReadError> for Failure {
    fn from(error: ReadError) -> Self {
        let message = chain(&error);
        match error.fault() {
            ReadFault::Damaged => Self::environment(message).hint(
                "nothing was started; rckpt verify DIR tells which checkpoints are whole, and \
                 rckpt restore DIR --at GEN brings back an earlier one",
            ),
            ReadFault::Machine => Self::environment(message),
            ReadFault::Absent | ReadFault::Unsupported | ReadFault::Untrusted => {
                Self::user(message)
            }
        }
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
