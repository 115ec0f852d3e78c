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
use crate::model::code::{Code, supervising, writing};
use crate::tracer::error::FreezeError;

/// A command that did not do what was asked.
#[derive(Debug)]
pub struct Failure {
    /// What it is in the catalogue.
    pub code: Code,
    /// What each of the things is that the message lists, if it lists any.
    pub details: Vec<Code>,
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
    pub fn user(code: Code, message: impl fmt::Display) -> Self {
        Self::new(code, Kind::User, message)
    }

    /// A failure that lies in the machine.
    pub fn environment(code: Code, message: impl fmt::Display) -> Self {
        Self::new(code, Kind::Environment, message)
    }

    /// A failure that should not be possible.
    pub fn internal(code: Code, message: impl fmt::Display) -> Self {
        Self::new(code, Kind::Internal, message)
    }

    /// The same, with what to do about it.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// The same in the words of a room below.
    pub fn explanation(self) -> Explanation {
        let Self { code, details, kind, message, hint, status: _ } = self;
        Explanation { code, details, kind, message, hint }
    }

    /// The same, with an exit status of its own.
    #[must_use]
    pub const fn status(mut self, status: u8) -> Self {
        self.status = Some(status);
        self
    }

    fn new(code: Code, kind: Kind, message: impl fmt::Display) -> Self {
        let message = without_numbers(&message.to_string());
        Self { code, details: Vec::new(), kind, message, hint: None, status: None }
    }

    /// The same, with the codes of all that the message lists.
    #[must_use]
    fn details(mut self, details: impl IntoIterator<Item = Code>) -> Self {
        self.details.extend(details);
        self
    }
}

impl From<Explanation> for Failure {
    fn from(explanation: Explanation) -> Self {
        let Explanation { code, details, kind, message, hint } = explanation;
        Self { code, details, kind, message, hint, status: None }
    }
}

impl From<&CheckpointError> for Failure {
    fn from(error: &CheckpointError) -> Self {
        let (code, message) = (error.code(), chain(error));
        match error {
            CheckpointError::Directory(error) => Self::from(error),
            CheckpointError::Hook(_) => Self::user(code, message),
            CheckpointError::StartThread(_) => Self::environment(code, message),
            CheckpointError::Dump(error) => Self::from(error),
            CheckpointError::Panicked => Self::internal(code, message),
        }
    }
}

impl From<&DumpError> for Failure {
    fn from(error: &DumpError) -> Self {
        let (code, message) = (error.code(), chain(error));
        match error {
            DumpError::Freeze(error) => Self::from(error),
            DumpError::Refused(Obstacles(obstacles)) => Self::user(code, refusals(obstacles))
                .details(obstacles.iter().map(Obstacle::code))
                .hint("rckpt check PID tells this without taking a checkpoint"),
            DumpError::Write(_) | DumpError::Later(_) if let Some(room) = no_room(error) => {
                Self::environment(room.0, message).hint(room.1)
            }
            DumpError::Write(WriteError::CheckRecords { .. }) | DumpError::Changed { .. } => {
                Self::internal(code, message)
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
            | DumpError::Release { .. } => Self::environment(code, message),
        }
    }
}

impl From<&FreezeError> for Failure {
    fn from(error: &FreezeError) -> Self {
        let (code, message) = (error.code(), chain(error));
        match error {
            FreezeError::NoSuchProcess { .. } | FreezeError::Ended { .. } => {
                Self::user(code, message).hint("rckpt list shows your jobs, ps all processes")
            }
            FreezeError::AlreadyTraced { .. }
            | FreezeError::NotPermitted { .. }
            | FreezeError::ThirtyTwoBit { .. } => Self::user(code, message),
            FreezeError::Busy { .. } | FreezeError::Growing { .. } => {
                Self::environment(code, message).hint("try again in a moment")
            }
            FreezeError::Trace { .. }
            | FreezeError::Memory { .. }
            | FreezeError::Proc(_)
            | FreezeError::Heal { .. } => Self::environment(code, message),
        }
    }
}

/// Everything that stands in the way of a checkpoint, one thing a line, with what to do about each.
pub fn refusals(obstacles: &[Obstacle]) -> String {
    let mut text = "the job cannot be saved as it is:".to_owned();
    for obstacle in obstacles.iter().take(MOST_REFUSALS) {
        text.push_str(&format!("\n  {}: {obstacle}", obstacle.code()));
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

const RAISE_LIMIT: &str = "files may not be so large: raise the limit (ulimit -f) where rckpt is \
    started, or give a place on another file system with --dir";

/// Refusals that are told one by one; a program with thousands of sockets has the first say it all.
const MOST_REFUSALS: usize = 20;

/// Whether something failed because there is no room for it: its code, and what to do.
fn no_room(error: &(dyn Error + 'static)) -> Option<(Code, &'static str)> {
    let mut cause = Some(error);
    while let Some(error) = cause {
        match error.downcast_ref().map(io::Error::kind) {
            Some(io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded) => {
                return Some((writing::DISK_FULL, MAKE_ROOM));
            }
            Some(io::ErrorKind::FileTooLarge) => {
                return Some((writing::FILE_TOO_LARGE, RAISE_LIMIT));
            }
            _ => {}
        }
        cause = error.source();
    }
    None
}

impl From<DirectoryError> for Failure {
    fn from(error: DirectoryError) -> Self {
        Self::from(&error)
    }
}

impl From<&DirectoryError> for Failure {
    fn from(error: &DirectoryError) -> Self {
        let (code, message) = (error.code(), chain(error));
        match error {
            DirectoryError::AnotherJob { .. } => Self::user(code, message).hint(
                "give another directory with --dir, or move this one away if its job is over",
            ),
            DirectoryError::Claim(ClaimError::Held { .. }) => Self::user(code, message).hint(
                "end that one first (kill -TERM takes a last checkpoint), or give another directory \
                 with --dir; where it is known to be gone although this file system keeps no locks, \
                 remove DIR/lock",
            ),
            DirectoryError::Record(RecordError::Trust { .. }) => Self::user(code, message)
                .hint("give a directory of your own with --dir, or act as its owner"),
            DirectoryError::Record(RecordError::Decode { path, .. }) => {
                Self::environment(code, message).hint(format!(
                    "if the checkpoints beside it are yours, remove {} and name one of them",
                    path.display()
                ))
            }
            DirectoryError::SupportIdentity { .. } => {
                Self::environment(code, message).hint("use the rckpt that wrote it, or a newer one")
            }
            DirectoryError::Open { source, .. }
                if source.kind() == std::io::ErrorKind::NotADirectory =>
            {
                Self::user(code, message)
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
            | DirectoryError::Remove { .. } => match no_room(error) {
                Some((code, hint)) => Self::environment(code, message).hint(hint),
                None => Self::environment(code, message),
            },
        }
    }
}

impl From<FindError> for Failure {
    fn from(error: FindError) -> Self {
        let code = error.code();
        match error {
            FindError::Directory(error) => Self::from(error),
            FindError::NoCheckpoint { .. } => Self::user(code, error)
                .hint("there is nothing to bring back from here: start the job again"),
            FindError::Absent { .. }
            | FindError::NoGeneration { .. }
            | FindError::AtGeneration { .. } => Self::user(code, error),
        }
    }
}

impl From<GenerationError> for Failure {
    fn from(error: GenerationError) -> Self {
        let code = error.code();
        match error {
            GenerationError::Read(error) => Self::from(error),
            GenerationError::AnotherJob { .. } => Self::user(code, error)
                .hint("somebody mixed up directories: name the checkpoint's own"),
        }
    }
}

impl From<ReadError> for Failure {
    fn from(error: ReadError) -> Self {
        let (code, message) = (error.code(), chain(&error));
        match error.fault() {
            ReadFault::Damaged => Self::environment(code, message).hint(
                "nothing was started; rckpt verify DIR tells which checkpoints are whole, and \
                 rckpt restore DIR --at GEN brings back an earlier one",
            ),
            ReadFault::Machine => Self::environment(code, message),
            ReadFault::Absent | ReadFault::Unsupported | ReadFault::Untrusted => {
                Self::user(code, message)
            }
        }
    }
}

impl From<SuperviseError> for Failure {
    fn from(error: SuperviseError) -> Self {
        Self::environment(supervising::CANNOT_SUPERVISE, chain(&error))
            .hint("the job runs on, without a supervisor")
    }
}

/// A message without the numbers that the standard library adds to the kernel's words: "(os error 13)".
fn without_numbers(message: &str) -> String {
    let mut parts = message.split(" (os error ");
    let mut text = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        match part.split_once(')') {
            Some((number, rest)) if number.parse::<i32>().is_ok() => text.push_str(rest),
            _ => text.extend([" (os error ", part]),
        }
    }
    text
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

#[cfg(test)]
mod tests {
    use super::without_numbers;

    #[test]
    fn the_kernels_words_stand_alone() {
        let check = |message: &str, expected: &str| assert_eq!(without_numbers(message), expected);
        check("open x: Permission denied (os error 13)", "open x: Permission denied");
        check("a (os error 2): b (os error 17); c", "a: b; c");
        check("open /tmp/x (os error y)", "open /tmp/x (os error y)");
        check("open /tmp/ (os error 3", "open /tmp/ (os error 3");
        check("", "");
    }
}
