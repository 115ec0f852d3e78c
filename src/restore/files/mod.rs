//! Files at restore: what has to be done about each is decided before anything is touched; then what
//! was written after the checkpoint is taken back, every description is made once, and what depends on
//! content and processes is done at the end.
//!
//! [`decide`], [`carry_out`] and, when the restore fails, [`put_back`] run in the supervisor, [`open_all`] and
//! [`settle`] in the process that all processes of the job descend from. Nothing here knows of memory or threads.

mod decide;
mod epoll;
mod hidden;
mod inotify;
mod io_uring;
mod judge;
mod late;
mod names;
mod open;
mod own_streams;
mod pipe;
mod put_back;
mod rollback;
mod settle;
mod socket;
mod terminal;
mod usage;

use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;

use nix::errno::Errno;
use thiserror::Error;

pub use self::decide::{Choices, Connection, Cut, Decisions, Problem, Problems, decide, survey};
pub use self::io_uring::RingError;
pub use self::judge::{Action, Policy, ProblemKind};
pub use self::put_back::{NotPutBack, PutBackError, put_back};
pub use self::rollback::{RollbackError, TakenBack, carry_out};
pub use self::socket::SocketError;
pub use self::terminal::TerminalError;

use super::ipc::{self, IpcError};
use super::opened::Opened;
use super::plan::Plan;
use crate::model::file::Stream;
use crate::model::id::{Bytes, InodeId, OpenFileId, Pid};
use crate::model::job::Job;

/// Everything that was opened, and what is still to be done to it once it has its content.
#[derive(Debug)]
pub struct OpenedJob {
    /// The numbers.
    pub opened: Opened,
    /// Files without a name, and those that get their content from the image.
    origins: BTreeMap<InodeId, Origin>,
    /// Descriptions that something is still to be done to.
    unsettled: Vec<(OpenFileId, OwnedFd)>,
    /// Outer terminals that get their modes back, and the modes.
    terminals: Vec<(OwnedFd, Vec<u8>)>,
    /// The terminals of the job's own that control sessions, by session.
    pub controlling: BTreeMap<Pid, OwnedFd>,
    /// System V IPC, and POSIX message queues.
    objects: ipc::Objects,
}

impl OpenedJob {
    /// Closes what files were made through, once they are settled: nobody can have a program executed that
    /// somebody may write to.
    pub fn let_go(&mut self) {
        self.origins.clear();
        self.unsettled.clear();
    }
}

/// A file that was made, or is to get its content from the image.
#[derive(Debug)]
struct Origin {
    /// Open for reading and writing.
    file: OwnedFd,
    /// What was decided about it, when it has a path.
    action: Option<Action>,
}

/// Why what the job had open could not be made again.
#[derive(Debug, Error)]
#[allow(missing_docs)] // The messages say what each field is.
pub enum OpenError {
    #[error("raising the limit on open files (ulimit -n): {source}")]
    RaiseLimit { source: io::Error },
    #[error("moving a descriptor above those of the job: {source}; raise ulimit -n")]
    MoveUp { source: io::Error },
    #[error("making {path} again: {source}")]
    Make { path: Bytes, source: io::Error },
    #[error("opening {path} again: {source}")]
    Open { path: Bytes, source: io::Error },
    #[error("going on at byte {position} of {path}: {source}")]
    SetPosition { path: Bytes, position: u64, source: io::Error },
    #[error("locking {path} again: {source}; another process may hold a lock on it")]
    Lock { path: Bytes, source: io::Error },
    #[error("making a pipe again: {source}")]
    MakePipe { source: io::Error },
    #[error("opening the FIFO {path} again: {source}")]
    OpenFifo { path: Bytes, source: io::Error },
    #[error("opening the controlling terminal: {source}; restore from a terminal")]
    OpenTerminal { source: io::Error },
    #[error("making an event counter again: {source}")]
    MakeEvent { source: io::Error },
    #[error("making a timer again: {source}")]
    MakeTimer { source: io::Error },
    #[error("making a signal descriptor again: {source}")]
    MakeSignalFd { source: io::Error },
    #[error("making an inotify instance again: {source}; see /proc/sys/fs/inotify")]
    MakeInotify { source: io::Error },
    #[error(transparent)]
    Ring(#[from] RingError),
    #[error("opening a POSIX message queue again: {source}")]
    OpenMessageQueue { source: io::Error },
    #[error("opening the descriptor of {} again: {source}", late::name_of(*process))]
    OpenProcess { process: Pid, source: Errno },
    #[error("making an epoll instance again: {source}")]
    MakeEpoll { source: io::Error },
    #[error("connecting {stream:?}, a standard stream, to the caller's own: {source}")]
    ConnectStream { stream: Stream, source: io::Error },
    #[error(transparent)]
    Socket(#[from] SocketError),
    #[error(transparent)]
    PseudoTerminal(#[from] TerminalError),
    #[error(transparent)]
    Ipc(#[from] IpcError),
    #[error(transparent)]
    Settle(#[from] SettleError),
}

impl OpenError {
    /// Whether somebody else has a number that the job needs.
    #[must_use]
    pub const fn id_is_taken(&self) -> bool {
        matches!(self, Self::PseudoTerminal(TerminalError::Taken { .. }))
    }
}

/// Why the last touches to what the job has open failed.
#[derive(Debug, Error)]
#[allow(missing_docs)] // The messages say what each field is.
pub enum SettleError {
    #[error("{operation} on open file {file} of the image: {source}")]
    Description { file: OpenFileId, operation: &'static str, source: Errno },
    #[error("{operation} on {path}: {source}")]
    File { path: Bytes, operation: &'static str, source: Errno },
    #[error("setting the modes of the terminal: {source}")]
    Terminal { source: Errno },
    #[error("making group {group} the foreground of the terminal: {source}")]
    Foreground { group: Pid, source: Errno },
    #[error(
        "watching {path} again for open file {file} of the image (inotify): {source}; see \
         /proc/sys/fs/inotify"
    )]
    WatchFile { file: OpenFileId, path: Bytes, source: Errno },
    #[error("giving an epoll instance back what it watched{}: {source}{}", by_number(*number), unwatchable(*source))]
    Watch { number: Option<i32>, source: Errno },
}

fn by_number(number: Option<i32>) -> String {
    number.map(|number| format!(" by descriptor {number}")).unwrap_or_default()
}

/// Only a standard stream can have become something else.
fn unwatchable(source: Errno) -> &'static str {
    match source {
        Errno::EPERM => {
            "; regular files and /dev/null cannot be watched: restore with a pipe or a terminal as \
             this standard stream, as the job had"
        }
        _ => "",
    }
}

/// Opens every description of the job once and every mapped file, once what was written after the
/// checkpoint is taken back.
///
/// # Errors
/// When one cannot be opened.
pub fn open_all(job: &Job, plan: &Plan, decisions: &Decisions) -> Result<OpenedJob, OpenError> {
    open::open_all(job, plan, decisions)
}

/// Opens what leads to processes of the job, now that all of them are there.
///
/// # Errors
/// When it fails.
pub fn open_late(job: &Job, opened: &mut OpenedJob) -> Result<(), OpenError> {
    late::open_all(job, opened)
}

/// What can only be done once memory and files have their content.
///
/// # Errors
/// When it fails.
pub fn settle(job: &Job, plan: &Plan, opened: &OpenedJob) -> Result<(), OpenError> {
    settle::settle(job, plan, opened)?;
    Ok(ipc::settle(job, &opened.objects)?)
}
