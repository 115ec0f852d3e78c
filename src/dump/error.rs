//! What can go wrong in a dump. The job runs on in every case.

use std::io;

use nix::errno::Errno;
use nix::unistd::Pid;
use thiserror::Error;

use super::files::CollectFilesError;
use super::files::later::LaterError;
use super::files::outputs::OutputError;
use super::files::saved::SaveError;
use super::refusal::Obstacles;
use crate::image::error::WriteError;
use crate::model::address::{AddrRange, RemoteAddr};
use crate::model::code::{self, Code};
use crate::sys::procfs::ProcError;
use crate::tracer::copy::CopyError;
use crate::tracer::error::{FreezeError, InjectError};

/// The generation could not be committed. Whoever was to commit it knows why.
#[derive(Clone, Copy, Debug, Error)]
#[error("the checkpoint could not be committed")]
pub struct NotCommitted;

/// Why there is no checkpoint.
#[derive(Debug, Error)]
pub enum DumpError {
    /// The job could not be frozen.
    #[error(transparent)]
    Freeze(#[from] FreezeError),
    /// Something of the job cannot be saved.
    #[error("{0}")]
    Refused(Obstacles),
    /// The state of the job could not be collected.
    #[error(transparent)]
    Collect(#[from] CollectError),
    /// The files to be saved whole could not be found.
    #[error(transparent)]
    Save(#[from] SaveError),
    /// The named outputs could not be looked at.
    #[error(transparent)]
    Outputs(#[from] OutputError),
    /// A process could not be copied, or its copy was lost.
    #[error(transparent)]
    Copy(#[from] CopyError),
    /// The image could not be written.
    #[error(transparent)]
    Write(#[from] WriteError),
    /// A file was to be stored once the job ran again, and did not stay what it was; or storing it failed.
    #[error(transparent)]
    Later(#[from] LaterError),
    /// The generation could not be committed.
    #[error(transparent)]
    Commit(#[from] NotCommitted),
    /// Whoever asked for the checkpoint has ended, or has no more time for it.
    #[error(
        "the checkpoint was given up, as the command that asked for it was ended or the time for it \
         (--grace) was over"
    )]
    GivenUp,
    /// The job wrote to so much of its memory meanwhile that there was no more room for the copy.
    #[error(
        "the checkpoint was given up, as only {} MiB of memory were left: what the job writes while a \
         copy of it is saved is needed twice", available >> 20
    )]
    MemoryShort {
        /// Bytes that were left.
        available: u64,
    },
    /// A page was not what the generation before has, though nobody should have written it. Only development
    /// builds look.
    #[error("the page at {page} of process {pid} has changed, but was taken for unchanged")]
    Changed {
        /// The process.
        pid: Pid,
        /// The page.
        page: RemoteAddr,
    },
    /// The checkpoint is good, and the job could not be let go, killed or stopped as asked.
    #[error("the checkpoint is complete, but the job could not be {action}")]
    Release {
        /// `killed` or `stopped` or `let go`.
        action: &'static str,
        /// Why.
        source: FreezeError,
    },
}

impl DumpError {
    /// Its code.
    #[must_use]
    pub const fn code(&self) -> Code {
        match self {
            Self::Freeze(error) => error.code(),
            Self::Collect(error) => error.code(),
            Self::Write(error) => error.code(),
            Self::Later(error) => error.code(),
            Self::Refused(_) => code::processes::REFUSED,
            Self::Save(_) | Self::Outputs(_) => code::writing::OUTPUTS_UNREADABLE,
            Self::Copy(_) => code::attaching::NOT_COPIED,
            Self::Commit(_) => code::writing::NOT_COMMITTED,
            Self::GivenUp => code::writing::GIVEN_UP,
            Self::MemoryShort { .. } => code::writing::MEMORY_SHORT,
            Self::Changed { .. } => code::writing::CHANGED_UNSEEN,
            Self::Release { .. } => code::writing::NOT_LET_GO,
        }
    }
}

impl DumpError {
    /// Whether what stands in the way will be gone in a moment if the job runs on.
    pub(super) fn is_passing(&self) -> bool {
        match self {
            Self::Refused(obstacles) => obstacles.are_passing(),
            Self::Collect(CollectError::Inject { source: InjectError::Late { .. }, .. }) => true,
            _ => false,
        }
    }
}

/// Why the state of a job could not be collected, though nothing is known to be wrong with it.
#[derive(Debug, Error)]
pub enum CollectError {
    /// Something could not be asked of a process from inside.
    #[error("cannot inject into process {pid}")]
    Inject {
        /// The process.
        pid: Pid,
        /// Why.
        source: InjectError,
    },
    /// Nobody could be sent into the namespaces of the job.
    #[error("cannot enter the ipc namespace of process {pid}")]
    Emissary {
        /// The process.
        pid: Pid,
        /// Why.
        source: io::Error,
    },
    /// The objects of System V IPC could not be listed.
    #[error("cannot list System V shared memory, semaphores or message queues")]
    ListIpc {
        /// Why.
        source: Errno,
    },
    /// The POSIX message queues could not be listed.
    #[error("cannot list POSIX message queues")]
    ListMessageQueues {
        /// Why.
        source: io::Error,
    },
    /// The process answered with an error.
    #[error("cannot {operation} of process {pid}")]
    Ask {
        /// What was asked for.
        operation: &'static str,
        /// The process or thread.
        pid: Pid,
        /// What the kernel said to it.
        source: Errno,
    },
    /// A file under /proc could not be used.
    #[error(transparent)]
    Proc(#[from] ProcError),
    /// The memory of a process, or the map of its pages, could not be read.
    #[error("cannot {operation} of process {pid}")]
    Memory {
        /// What was tried.
        operation: &'static str,
        /// The process.
        pid: Pid,
        /// Why.
        source: io::Error,
    },
    /// A mapping is not where it was a moment before, while the process stood still.
    #[error("process {pid} has no mapping {range} any more")]
    Mapping {
        /// The process.
        pid: Pid,
        /// Where it was.
        range: AddrRange,
    },
    /// Its files could not be looked at.
    #[error(transparent)]
    Files(#[from] CollectFilesError),
    /// The machine could not be described.
    #[error("cannot read {what} of this machine")]
    Machine {
        /// What.
        what: &'static str,
        /// Why.
        source: io::Error,
    },
    /// There is more of something than an image can number.
    #[error("the job has more {0} than an image can hold")]
    TooMany(&'static str),
}

impl CollectError {
    /// Its code.
    #[must_use]
    pub const fn code(&self) -> Code {
        match self {
            Self::Inject { .. } => code::attaching::INJECTION_FAILED,
            Self::Emissary { .. }
            | Self::ListIpc { .. }
            | Self::ListMessageQueues { .. }
            | Self::Ask { .. }
            | Self::Memory { .. }
            | Self::Mapping { .. } => code::writing::STATE_UNREADABLE,
            Self::Proc(_) => code::attaching::PROC_UNREADABLE,
            Self::Files(_) => code::writing::FILES_UNREADABLE,
            Self::Machine { .. } => code::attaching::MACHINE_UNREADABLE,
            Self::TooMany(_) => code::writing::TOO_MANY,
        }
    }
}
