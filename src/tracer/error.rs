//! What can go wrong in freezing a tree and in injecting system calls.

use std::io;

use nix::errno::Errno;
use nix::unistd::Pid;
use thiserror::Error;

use crate::model::address::RemoteAddr;
use crate::model::code::{self, Code};
use crate::sys::procfs::ProcError;

/// Why a tree could not be frozen. It runs on unharmed.
#[derive(Debug, Error)]
pub enum FreezeError {
    /// A root does not exist.
    #[error("no process {pid}")]
    NoSuchProcess {
        /// The root.
        pid: Pid,
    },
    /// A root ended before or while it was being frozen.
    #[error("process {pid} has ended")]
    Ended {
        /// The root.
        pid: Pid,
    },
    /// A debugger, strace or another checkpointer is attached.
    #[error(
        "thread {tid} of process {pid} is already traced by process {tracer}; detach that first"
    )]
    AlreadyTraced {
        /// The process.
        pid: Pid,
        /// The thread.
        tid: Pid,
        /// The tracer.
        tracer: Pid,
    },
    /// The kernel does not allow to trace it.
    #[error(
        "not allowed to trace process {pid}: it belongs to another user, is not dumpable, or only \
         its ancestors may trace it; start it under `rckpt run`, or run rckpt as its owner"
    )]
    NotPermitted {
        /// The process.
        pid: Pid,
        /// What the kernel said.
        source: Errno,
    },
    /// A thread did not stop in time.
    #[error("thread {tid} of process {pid} cannot be stopped: it is {cause}; try again later")]
    Busy {
        /// The process.
        pid: Pid,
        /// The thread.
        tid: Pid,
        /// What it is doing.
        cause: Occupation,
    },
    /// New processes or threads appeared faster than they could be stopped.
    #[error("the tree of process {pid} keeps growing while it is being stopped")]
    Growing {
        /// The root.
        pid: Pid,
    },
    /// A thread runs 32-bit code.
    #[error("thread {tid} of process {pid} runs 32-bit code, which is not supported")]
    ThirtyTwoBit {
        /// The process.
        pid: Pid,
        /// The thread.
        tid: Pid,
    },
    /// A request of ptrace failed.
    #[error("cannot {operation} thread {tid}")]
    Trace {
        /// What was tried.
        operation: &'static str,
        /// The thread.
        tid: Pid,
        /// What the kernel said.
        source: Errno,
    },
    /// The memory of a process could not be reached.
    #[error("cannot reach the memory of process {pid}")]
    Memory {
        /// The process.
        pid: Pid,
        /// Why.
        source: io::Error,
    },
    /// A file under /proc could not be used.
    #[error(transparent)]
    Proc(#[from] ProcError),
    /// What a tracer that was killed left behind in a process could not be healed.
    #[error("cannot heal thread {tid} of process {pid}, left by a tracer that was killed")]
    Heal {
        /// The process.
        pid: Pid,
        /// The thread.
        tid: Pid,
        /// Why.
        source: InjectError,
    },
}

impl FreezeError {
    /// Its code.
    #[must_use]
    pub const fn code(&self) -> Code {
        match self {
            Self::NoSuchProcess { .. } => code::attaching::NO_SUCH_PROCESS,
            Self::Ended { .. } => code::attaching::PROCESS_ENDED,
            Self::AlreadyTraced { .. } => code::attaching::ALREADY_TRACED,
            Self::NotPermitted { .. } => code::attaching::NOT_PERMITTED,
            Self::Busy { .. } => code::attaching::BUSY,
            Self::Growing { .. } => code::attaching::GROWING,
            Self::ThirtyTwoBit { .. } => code::attaching::THIRTY_TWO_BIT,
            Self::Trace { .. } | Self::Memory { .. } => code::attaching::TRACE_FAILED,
            Self::Proc(_) => code::attaching::PROC_UNREADABLE,
            Self::Heal { .. } => code::attaching::NOT_HEALED,
        }
    }
}

/// Why a thread does not stop at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Occupation {
    /// It waits for a child made with `vfork` to call exec or exit.
    Vfork,
    /// It is in an uninterruptible sleep, mostly for a disk or a file server.
    UninterruptibleSleep,
    /// It is ending.
    Ending,
    /// It finds its way back from what a tracer that was killed made it do.
    Healing,
    /// Nobody knows; this is the state letter that /proc shows.
    Unknown(u8),
}

impl std::fmt::Display for Occupation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Vfork => f.write_str("in the middle of vfork"),
            Self::UninterruptibleSleep => {
                f.write_str("in uninterruptible sleep, waiting for a disk or a file server")
            }
            Self::Ending => f.write_str("in the middle of exit"),
            Self::Healing => f.write_str("recovering from a checkpoint that was killed"),
            Self::Unknown(state) => write!(f, "not responding (state {})", char::from(*state)),
        }
    }
}

/// Why a frozen thread could not be made to carry out a system call. Its registers have been put
/// back, or will be by the code that it goes through.
#[derive(Debug, Error)]
pub enum InjectError {
    /// It was killed meanwhile.
    #[error("thread {tid} was killed while it was frozen")]
    Died {
        /// The thread.
        tid: Pid,
    },
    /// It was to make several calls and to wait for us then, and had waited too long.
    #[error("thread {tid} went on by itself, because this machine was too busy to stop it in time")]
    Late {
        /// The thread.
        tid: Pid,
    },
    /// It was lost before, as has been told.
    #[error("thread {tid} cannot be brought back, because it was killed or went on by itself")]
    Lost {
        /// The thread.
        tid: Pid,
    },
    /// The process has no vDSO to put code into.
    #[error("process {pid} has no vDSO mapping, so nothing can be asked of it from inside")]
    NoVdso {
        /// The process.
        pid: Pid,
    },
    /// The vDSO has no padding that is unused.
    #[error("the vDSO of process {pid} has no unused room")]
    NoRoom {
        /// The process.
        pid: Pid,
    },
    /// No address range is free for a scratch page.
    #[error("process {pid} has no free address range of {bytes} bytes")]
    NoHole {
        /// The process.
        pid: Pid,
        /// How many bytes were looked for.
        bytes: u64,
    },
    /// The process is ended up with no thread that can be used.
    #[error("process {pid} has no thread left")]
    NoThread {
        /// The process.
        pid: Pid,
    },
    /// A thread sits in a system call that was not entered by the SYSCALL instruction.
    #[error("thread {tid} is in a system call made in 32-bit mode, at {address}")]
    ForeignCall {
        /// The thread.
        tid: Pid,
        /// Its instruction pointer.
        address: RemoteAddr,
    },
    /// The scratch page could not be mapped or unmapped.
    #[error("cannot {operation} a scratch page in process {pid}")]
    Scratch {
        /// `map` or `unmap`.
        operation: &'static str,
        /// The process.
        pid: Pid,
        /// What the kernel said to the process.
        source: Errno,
    },
    /// A thread did not come back with the registers it was given.
    #[error("thread {tid} did not go back to where it was")]
    Astray {
        /// The thread.
        tid: Pid,
    },
    /// A request of ptrace failed.
    #[error("cannot {operation} thread {tid}")]
    Trace {
        /// What was tried.
        operation: &'static str,
        /// The thread.
        tid: Pid,
        /// What the kernel said.
        source: Errno,
    },
    /// The memory of the process could not be read or written.
    #[error("cannot {operation} {address} in process {pid}")]
    Memory {
        /// `read` or `write`.
        operation: &'static str,
        /// The process.
        pid: Pid,
        /// Where.
        address: RemoteAddr,
        /// Why.
        source: io::Error,
    },
    /// A file under /proc could not be used.
    #[error(transparent)]
    Proc(#[from] ProcError),
}

/// Makes a request of ptrace, and says what it was when it fails.
pub(super) fn trace<T>(
    operation: &'static str,
    tid: Pid,
    request: impl FnOnce(Pid) -> nix::Result<T>,
) -> Result<T, FreezeError> {
    request(tid).map_err(|source| FreezeError::Trace { operation, tid, source })
}
