//! The root process of a supervised job: how the supervisor learns that it ended, and who else
//! belongs to the job without being under it.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use thiserror::Error;

use crate::sys::relatives;

/// How a root process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// It exited with this status.
    Exited(i32),
    /// This signal ended it.
    Killed(i32),
}

/// Why it is not known whether the root process ended.
#[derive(Debug, Error)]
pub enum WatchError {
    /// The kernel refused to say.
    #[error("wait for the job's processes: {0}")]
    Wait(#[source] Errno),
    /// The restored job's init, which would tell, has gone without a word.
    #[error("the init of the restored job ended without telling the job's exit status")]
    InitGone,
    /// What it tells could not be read.
    #[error("read the restored job's exit status: {0}")]
    Read(#[source] io::Error),
}

/// The root process of a job, by the way its end is learnt.
#[derive(Debug)]
pub enum Root {
    /// A child of the supervisor, started by `run`. Orphans of the job are the supervisor's other
    /// children.
    Child(Pid),
    /// A process of a restored job, whose parent is the init of the job's namespaces, which tells
    /// its wait status (32 bits, little-endian) through a pipe and adopts the orphans.
    Restored {
        /// The root process.
        root: Pid,
        /// Its parent, a child of the supervisor.
        reaper: Pid,
        /// The pipe.
        status: File,
    },
}

impl Root {
    /// The process, as the supervisor sees it.
    #[must_use]
    pub const fn pid(&self) -> Pid {
        match self {
            Self::Child(root) | Self::Restored { root, .. } => *root,
        }
    }

    /// Whoever adopts the job's orphans.
    #[must_use]
    pub fn adopter(&self) -> Pid {
        match self {
            Self::Child(_) => nix::unistd::getpid(),
            Self::Restored { reaper, .. } => *reaper,
        }
    }

    /// Becomes readable when the root process has ended. A child's end is told by SIGCHLD.
    #[must_use]
    pub fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        match self {
            Self::Child(_) => None,
            Self::Restored { status, .. } => Some(status.as_fd()),
        }
    }

    /// Waits for whatever children have ended, and tells whether the root process is among them.
    ///
    /// Never called while a checkpoint is taken: the supervisor is then the tracer of its own
    /// children, and wait(2) would take the tracer's events away from it (a traced child's stops
    /// are reported whatever the options).
    pub fn ended(&mut self) -> Result<Option<Ended>, WatchError> {
        let mut ended = None;
        loop {
            let status = match waitpid(None, Some(WaitPidFlag::WNOHANG | WaitPidFlag::__WALL)) {
                Ok(WaitStatus::StillAlive) | Err(Errno::ECHILD) => break,
                Err(Errno::EINTR) => continue,
                status => status.map_err(WatchError::Wait)?,
            };
            if status.pid() == Some(self.pid()) && matches!(self, Self::Child(_)) {
                ended = Ended::from_wait(status);
            }
        }
        match self {
            Self::Restored { status, .. } if has_news(status)? => {
                let mut raw = [0; 4];
                status.read_exact(&mut raw).map_err(|error| match error.kind() {
                    io::ErrorKind::UnexpectedEof => WatchError::InitGone,
                    _ => WatchError::Read(error),
                })?;
                let status = WaitStatus::from_raw(self.pid(), i32::from_le_bytes(raw));
                Ok(Ended::from_wait(status.map_err(WatchError::Wait)?))
            }
            _ => Ok(ended),
        }
    }

    /// Whether `pid` belongs to the job.
    pub fn is_above(&self, pid: Pid) -> bool {
        // A process whose line cannot be read has ended, and so belongs to nobody.
        relatives::ancestors(pid).is_ok_and(|line| {
            line.contains(&self.pid()) || line.iter().skip(1).any(|above| *above == self.adopter())
        })
    }
}

/// Whether something can be read, be it only that nothing will come any more.
fn has_news(status: &File) -> Result<bool, WatchError> {
    let mut polled = [PollFd::new(status.as_fd(), PollFlags::POLLIN)];
    match poll(&mut polled, PollTimeout::ZERO) {
        Ok(ready) => Ok(ready > 0),
        Err(Errno::EINTR) => Ok(false),
        Err(errno) => Err(WatchError::Read(errno.into())),
    }
}

impl Ended {
    fn from_wait(status: WaitStatus) -> Option<Self> {
        match status {
            WaitStatus::Exited(_, status) => Some(Self::Exited(status)),
            WaitStatus::Signaled(_, signal, _) => Some(Self::Killed(signal as i32)),
            _ => None,
        }
    }
}
