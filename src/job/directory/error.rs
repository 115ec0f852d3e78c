//! Why something cannot be done with a job's directory or with a generation in it.

use std::io;
use std::path::PathBuf;

use thiserror::Error;

use super::identity::{Identity, JOB_FILE_FORMAT};
use crate::image::ReadError;
use crate::job::claim::ClaimError;
use crate::job::record::RecordError;
use crate::model::code::{self, Code};

/// Why something cannot be done with a job's directory.
#[derive(Debug, Error)]
pub enum DirectoryError {
    /// It cannot be made.
    #[error("cannot create the directory {}: {source}", path.display())]
    Create {
        /// The directory.
        path: PathBuf,
        /// The kernel's word.
        source: io::Error,
    },
    /// It cannot be opened.
    #[error("cannot open the directory {}: {source}", path.display())]
    Open {
        /// The directory.
        path: PathBuf,
        /// The kernel's word.
        source: io::Error,
    },
    /// A record in it cannot be read or written, or the directory is another user's.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// It is another job's.
    #[error("{} holds the checkpoints of another job: {}", path.display(), theirs.command_line())]
    AnotherJob {
        /// The directory.
        path: PathBuf,
        /// The job it belongs to.
        theirs: Box<Identity>,
    },
    /// Another rckpt is in charge of it, or nobody can be.
    #[error(transparent)]
    Claim(#[from] ClaimError),
    /// The file that says whose it is was written by a newer program.
    #[error("{} has format {found}, and this rckpt knows {JOB_FILE_FORMAT}", path.display())]
    SupportIdentity {
        /// The file.
        path: PathBuf,
        /// Its format.
        found: u32,
    },
    /// Its entries cannot be listed.
    #[error("cannot list {}: {source}", path.display())]
    List {
        /// The directory.
        path: PathBuf,
        /// The kernel's word.
        source: io::Error,
    },
    /// A new generation cannot be begun.
    #[error("cannot begin a checkpoint in {}: {source}", path.display())]
    Begin {
        /// The temporary directory.
        path: PathBuf,
        /// The kernel's word.
        source: io::Error,
    },
    /// A directory cannot be brought to the disk.
    #[error("cannot bring {} to the disk (fsync): {source}", path.display())]
    Sync {
        /// The directory.
        path: PathBuf,
        /// The kernel's word.
        source: io::Error,
    },
    /// A generation cannot be given its name.
    #[error("cannot rename {} to {}: {source}", from.display(), to.display())]
    Rename {
        /// Its name so far.
        from: PathBuf,
        /// Its name to be.
        to: PathBuf,
        /// The kernel's word.
        source: io::Error,
    },
    /// The link to the newest generation cannot be moved.
    #[error("cannot make {} name the new checkpoint: {source}", path.display())]
    MoveLatest {
        /// The link.
        path: PathBuf,
        /// The kernel's word.
        source: io::Error,
    },
    /// A generation cannot be removed.
    #[error("cannot remove {}: {source}", path.display())]
    Remove {
        /// The generation.
        path: PathBuf,
        /// The kernel's word.
        source: io::Error,
    },
}

impl DirectoryError {
    /// Its code.
    #[must_use]
    pub const fn code(&self) -> Code {
        match self {
            Self::Record(error) => error.code(),
            Self::Claim(error) => error.code(),
            Self::AnotherJob { .. } => code::requests::ANOTHER_JOB,
            Self::SupportIdentity { .. } => code::requests::DIRECTORY_TOO_NEW,
            Self::Create { .. }
            | Self::Open { .. }
            | Self::List { .. }
            | Self::Begin { .. }
            | Self::Sync { .. }
            | Self::Rename { .. }
            | Self::MoveLatest { .. }
            | Self::Remove { .. } => code::requests::DIRECTORY_UNUSABLE,
        }
    }
}

/// Why a generation cannot be used.
#[derive(Debug, Error)]
pub enum GenerationError {
    /// Its image cannot be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// It is another job's than the directory.
    #[error(
        "the checkpoint {} is of another job ({}) than its directory ({})", path.display(),
        String::from_utf8_lossy(found), String::from_utf8_lossy(expected)
    )]
    AnotherJob {
        /// The generation.
        path: PathBuf,
        /// The job in the image.
        found: Vec<u8>,
        /// The job that the directory belongs to.
        expected: Vec<u8>,
    },
}

impl GenerationError {
    /// Its code.
    #[must_use]
    pub const fn code(&self) -> Code {
        match self {
            Self::Read(error) => error.code(),
            Self::AnotherJob { .. } => code::images::MIXED_UP,
        }
    }
}
