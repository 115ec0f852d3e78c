//! What of System V IPC cannot be saved, and what is left out on purpose: each case by name, with its reason
//! and its remedy.

use std::fmt;

use nix::errno::Errno;
use nix::unistd::Pid;
use thiserror::Error;

use crate::model::code::{self, Code};
use crate::sys::ipc::Kind;

/// An object, for messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IpcObject {
    /// What it is.
    pub kind: Kind,
    /// Its number.
    pub id: i32,
    /// Its key.
    pub key: i32,
}

impl fmt::Display for IpcObject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (name, option) = match self.kind {
            Kind::Segment => ("shared memory segment", 'm'),
            Kind::Semaphores => ("semaphore set", 's'),
            Kind::Queue => ("message queue", 'q'),
        };
        write!(f, "System V {name} {} (key {:#010x}, ipcs -{option})", self.id, self.key)
    }
}

/// Why it cannot be saved.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum IpcRefusal {
    /// Somebody outside the job uses it, too.
    #[error(
        "the job uses it together with {}; checkpoint the program that it belongs to, or end the other \
         one first",
        user.map_or("a process outside the job".to_owned(), |pid| format!("process {pid} outside the job"))
    )]
    UsedOutside {
        /// Who, when that is known.
        user: Option<i32>,
    },
    /// Another user or group owns or made it.
    #[error(
        "it belongs to user {uid} and group {gid}, or was made by others; let the job make its own"
    )]
    Owner {
        /// Its user.
        uid: u32,
        /// Its group.
        gid: u32,
    },
    /// It cannot be read.
    #[error("it cannot be read ({source}); let the program make it readable for its owner")]
    Unreadable {
        /// Why.
        source: Errno,
    },
    /// Only a part of it is mapped.
    #[error(
        "a process has only a part of it attached, the rest having been unmapped or moved, which is not \
         supported"
    )]
    InParts,
    /// What is to be undone at the end of a process cannot be found out.
    #[error("what the process has left to be undone (SEM_UNDO) cannot be found out: {source}")]
    Undo {
        /// Why.
        source: Errno,
    },
    /// Tasks that are not threads of each other undo together.
    #[error(
        "it undoes operations together with task {other}, or apart from it, in another way than threads \
         do (CLONE_SYSVSEM), which is not supported"
    )]
    UndoShared {
        /// The other task.
        other: Pid,
    },
}

impl IpcRefusal {
    /// Its code.
    #[must_use]
    pub const fn code(&self) -> Code {
        match self {
            Self::UsedOutside { .. } => code::processes::IPC_USED_OUTSIDE,
            Self::Owner { .. } => code::processes::IPC_OWNER,
            Self::Unreadable { .. } => code::processes::IPC_UNREADABLE,
            Self::InParts => code::processes::IPC_IN_PARTS,
            Self::Undo { .. } => code::processes::IPC_UNDO,
            Self::UndoShared { .. } => code::processes::IPC_UNDO_SHARED,
        }
    }
}

/// What the user should know of objects that are not in the checkpoint.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum IpcRemark {
    /// Older than the process that its numbers name.
    #[error(
        "{object} is not in the checkpoint: the id of its maker or last user is process {pid}'s now, but it \
         was left alone since before that process began"
    )]
    Older {
        /// The object.
        object: IpcObject,
        /// The process of the job.
        pid: i32,
    },
    /// The file system of queues cannot be had.
    #[error(
        "POSIX message queues that no process has open cannot be found, and are not in the checkpoint if the \
         job has any: /dev/mqueue is not mounted (mount -t mqueue none /dev/mqueue)"
    )]
    QueuesUnseen,
}
