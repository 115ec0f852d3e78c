//! Makes System V shared memory, semaphores and message queues again, and POSIX message queues, in the ipc
//! namespace of the restore, where every number and name is free.
//!
//! What an object tells of who made or used it last comes from stand-ins with their ids, which do the
//! same and end. Segments stay attached to the reaper until they have their content and everybody has
//! attached them; only then do they get their permissions, and go if they were to.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::sys::stat::{Mode, fchmod};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use thiserror::Error;

use crate::model::id::{Bytes, Pid, PosixQueueId};
use crate::model::ipc::{IpcIdentity, MessageQueue, PosixQueue, Segment, SemaphoreSet};
use crate::model::job::Job;
use crate::model::number::{to_u64, to_usize};
use crate::restore::opened::{ContentPlace, Opened};
use crate::sys::clone::{self, Fork};
use crate::sys::descriptor;
use crate::sys::ipc::{self, Kind};
use crate::sys::message_queue::{self, Attributes};

/// Permissions that objects have until everybody has what is theirs.
const MEANWHILE: u32 = 0o700;

/// Why one could not be made again.
#[derive(Debug, Error)]
pub enum IpcError {
    /// A call failed.
    #[error("making {} {id} again: {operation}: {source}", name(*kind))]
    Make {
        /// What it is.
        kind: Kind,
        /// Its number.
        id: i32,
        /// The call.
        operation: &'static str,
        /// Why.
        source: Errno,
    },
    /// Its number could not be chosen.
    #[error(
        "choosing the number {id} for a {}: {source}; it needs a kernel with CONFIG_CHECKPOINT_RESTORE",
        name(*kind)
    )]
    Choose {
        /// What it is.
        kind: Kind,
        /// The number.
        id: i32,
        /// Why.
        source: io::Error,
    },
    /// A POSIX message queue could not be made.
    #[error(
        "making the POSIX message queue /{name} again for {max_messages} messages of {message_size} \
         bytes: {operation}: {source}; see /proc/sys/fs/mqueue (a user's own namespaces begin with 10 \
         messages of 8192 bytes) and ulimit -q"
    )]
    MakePosixQueue {
        /// Its name.
        name: Bytes,
        /// Most messages in it.
        max_messages: u64,
        /// Most bytes in a message.
        message_size: u64,
        /// The call.
        operation: &'static str,
        /// Why.
        source: Errno,
    },
    /// The memory of this process could not be opened for the content of segments.
    #[error("opening the restorer's own memory: {source}")]
    OpenMemory {
        /// Why.
        source: io::Error,
    },
}

const fn name(kind: Kind) -> &'static str {
    match kind {
        Kind::Segment => "System V shared memory segment",
        Kind::Semaphores => "System V semaphore set",
        Kind::Queue => "System V message queue",
    }
}

/// Objects that are there, but not yet as they were.
#[derive(Debug, Default)]
pub struct Objects {
    /// Where segments are attached, in the order of the job's.
    attached: Vec<u64>,
    /// POSIX message queues, in the order of the job's.
    posix_queues: Vec<OwnedFd>,
}

/// Makes all objects of `job`, and notes in `opened` where the content of segments goes.
///
/// # Errors
/// When one cannot be made.
pub fn make(job: &Job, opened: &mut Opened) -> Result<Objects, IpcError> {
    let mut objects = Objects::default();
    let mut memory = None;
    for segment in &job.ipc.segments {
        let address = make_segment(segment)?;
        objects.attached.push(address);
        let inode = job.inodes.get(to_usize(u64::from(segment.inode.0)));
        if let Some(object) = inode.and_then(|inode| inode.content) {
            let number = match memory {
                Some(number) => number,
                None => *memory.insert(open_memory(opened.private.start)?),
            };
            opened.contents.insert(object, ContentPlace { number, base: address });
        }
    }
    job.ipc.semaphores.iter().try_for_each(make_set)?;
    job.ipc.queues.iter().try_for_each(make_queue)?;
    objects.posix_queues = make_posix_queues(&job.ipc.posix_queues, opened.private.start)?;
    Ok(objects)
}

impl Objects {
    /// The POSIX message queue of that number.
    #[must_use]
    pub fn posix_queue(&self, id: PosixQueueId) -> Option<BorrowedFd<'_>> {
        self.posix_queues.get(to_usize(u64::from(id.0))).map(OwnedFd::as_fd)
    }
}

/// Makes the queues with their messages, those first whose names are no more: another may have such a name by
/// now. They get their permissions when everybody has them open.
fn make_posix_queues(queues: &[PosixQueue], first: RawFd) -> Result<Vec<OwnedFd>, IpcError> {
    let mut made = BTreeMap::new();
    let (removed, named): (Vec<_>, Vec<_>) =
        queues.iter().enumerate().partition(|(_, queue)| queue.removed);
    for (place, queue) in removed.into_iter().chain(named) {
        let name = CString::new(queue.name.0.as_slice())
            .map_err(|_| posix_failed(queue, "mq_open")(Errno::EINVAL))?;
        let wanted = Attributes {
            max_messages: queue.max_messages,
            message_size: queue.message_size,
            messages: 0,
        };
        let opened = message_queue::make(&name, MEANWHILE, &wanted)
            .and_then(|opened| descriptor::move_above(opened, first))
            .map_err(posix_failed(queue, "mq_open"))?;
        for message in &queue.messages {
            message_queue::send(&opened, &message.text.0, message.priority)
                .map_err(posix_failed(queue, "mq_send"))?;
        }
        made.insert(place, opened);
        if queue.removed {
            message_queue::remove(&name).map_err(posix_failed(queue, "mq_unlink"))?;
        }
    }
    Ok(made.into_values().collect())
}

fn posix_failed(queue: &PosixQueue, operation: &'static str) -> impl FnOnce(Errno) -> IpcError {
    let PosixQueue { name, max_messages, message_size, .. } = queue.clone();
    move |source| IpcError::MakePosixQueue { name, max_messages, message_size, operation, source }
}

/// Gives objects what they could not have before everybody had attached and filled them.
///
/// # Errors
/// When a call fails.
pub fn settle(job: &Job, objects: &Objects) -> Result<(), IpcError> {
    let owner = (nix::unistd::geteuid().as_raw(), nix::unistd::getegid().as_raw());
    let set = |kind, identity: &IpcIdentity, capacity| {
        ipc::set_permissions(kind, identity.id, owner, identity.mode, capacity).map_err(failed(
            kind,
            identity.id,
            "IPC_SET",
        ))
    };
    for (segment, address) in job.ipc.segments.iter().zip(&objects.attached) {
        let (kind, id) = (Kind::Segment, segment.identity.id);
        set(kind, &segment.identity, 0)?;
        if segment.locked {
            ipc::lock_segment(id).map_err(failed(kind, id, "SHM_LOCK"))?;
        }
        if segment.removed {
            ipc::remove_segment(id).map_err(failed(kind, id, "IPC_RMID"))?;
        }
        ipc::detach(*address).map_err(failed(kind, id, "shmdt"))?;
    }
    for semaphores in &job.ipc.semaphores {
        set(Kind::Semaphores, &semaphores.identity, 0)?;
    }
    for queue in &job.ipc.queues {
        set(Kind::Queue, &queue.identity, queue.capacity)?;
    }
    for (queue, opened) in job.ipc.posix_queues.iter().zip(&objects.posix_queues) {
        fchmod(opened, Mode::from_bits_truncate(queue.mode))
            .map_err(posix_failed(queue, "fchmod"))?;
    }
    Ok(())
}

fn make_segment(segment: &Segment) -> Result<u64, IpcError> {
    let IpcIdentity { id, key, .. } = segment.identity;
    let failed = |operation| failed(Kind::Segment, id, operation);
    choose(Kind::Segment, id)?;
    standing_in(segment.creator, || {
        ipc::make_segment(key, segment.size, MEANWHILE, segment.huge_pages)
            .and_then(|made| same(made, id))
    })
    .map_err(failed(if segment.huge_pages { "shmget with SHM_HUGETLB" } else { "shmget" }))?;
    ipc::attach(id).map_err(failed("shmat"))
}

fn make_set(set: &SemaphoreSet) -> Result<(), IpcError> {
    let IpcIdentity { id, key, .. } = set.identity;
    let failed = |operation| failed(Kind::Semaphores, id, operation);
    choose(Kind::Semaphores, id)?;
    ipc::make_set(key, to_u64(set.semaphores.len()), MEANWHILE)
        .and_then(|made| same(made, id))
        .map_err(failed("semget"))?;
    if set.operated {
        ipc::touch(id).map_err(failed("semop"))?;
    }
    let numbered = || (0_u16..).zip(&set.semaphores);
    let mut users: Vec<Pid> = set.semaphores.iter().map(|semaphore| semaphore.last).collect();
    users.sort_unstable();
    users.dedup();
    for user in users {
        standing_in(user, || {
            numbered()
                .filter(|(_, semaphore)| semaphore.last == user)
                // One that nobody has ever changed stays so.
                .filter(|(_, semaphore)| user.0 != 0 || semaphore.value != 0)
                .try_for_each(|(number, semaphore)| ipc::set_value(id, number, semaphore.value))
        })
        .map_err(failed("SETVAL"))?;
    }
    Ok(())
}

fn make_queue(queue: &MessageQueue) -> Result<(), IpcError> {
    const SOME_TYPE: i64 = 1;
    let IpcIdentity { id, key, mode } = queue.identity;
    let failed = |operation| failed(Kind::Queue, id, operation);
    choose(Kind::Queue, id)?;
    ipc::make_queue(key, MEANWHILE).and_then(|made| same(made, id)).map_err(failed("msgget"))?;
    // The capacity may have been lowered below what is in it. That of a new queue is the largest that
    // can be had without a privilege.
    let bytes = queue.messages.iter().map(|message| to_u64(message.text.0.len())).sum();
    if queue.capacity.max(bytes) > DEFAULT_CAPACITY {
        let owner = (nix::unistd::geteuid().as_raw(), nix::unistd::getegid().as_raw());
        ipc::set_permissions(Kind::Queue, id, owner, mode | MEANWHILE, queue.capacity.max(bytes))
            .map_err(failed("IPC_SET"))?;
    }
    // Who received last received something.
    if queue.last_receiver.0 != 0 {
        standing_in(queue.last_sender, || ipc::send(id, SOME_TYPE, b""))
            .map_err(failed("msgsnd"))?;
        standing_in(queue.last_receiver, || ipc::receive_nothing(id)).map_err(failed("msgrcv"))?;
    }
    if queue.messages.is_empty() {
        return Ok(());
    }
    standing_in(queue.last_sender, || {
        queue.messages.iter().try_for_each(|message| ipc::send(id, message.kind, &message.text.0))
    })
    .map_err(failed("msgsnd"))
}

/// MSGMNB of include/uapi/linux/msg.h, in a new ipc namespace.
const DEFAULT_CAPACITY: u64 = 16384;

fn choose(kind: Kind, id: i32) -> Result<(), IpcError> {
    ipc::choose_next(kind, id).map_err(|source| IpcError::Choose { kind, id, source })
}

fn same(made: i32, wanted: i32) -> Result<(), Errno> {
    if made == wanted { Ok(()) } else { Err(Errno::EEXIST) }
}

fn failed(kind: Kind, id: i32, operation: &'static str) -> impl FnOnce(Errno) -> IpcError {
    move |source| IpcError::Make { kind, id, operation, source }
}

/// Does something as a process with this id, which ends at once. Where no process can have it, because
/// it is none or a process of the restore's has it, the caller does it.
fn standing_in(pid: Pid, act: impl FnOnce() -> Result<(), Errno>) -> Result<(), Errno> {
    if pid.0 <= 0 {
        return act();
    }
    let child = match clone::fork(0, 0, Some(pid.0)) {
        Ok(Fork::Child) => clone::exit_now(act().map_or_else(|errno| errno as i32, |()| 0)),
        Ok(Fork::Parent(child)) => child,
        Err(error) if error.raw_os_error() == Some(libc::EEXIST) => return act(),
        Err(error) => return Err(Errno::from_raw(error.raw_os_error().unwrap_or(libc::EAGAIN))),
    };
    loop {
        match waitpid(child, Some(WaitPidFlag::__WALL)) {
            Err(Errno::EINTR) => {}
            Err(source) => return Err(source),
            Ok(WaitStatus::Exited(_, 0)) => return Ok(()),
            Ok(WaitStatus::Exited(_, code)) => return Err(Errno::from_raw(code)),
            Ok(_) => return Err(Errno::EINTR),
        }
    }
}

/// The caller's own memory as a file, for the supervisor to write to.
fn open_memory(first: RawFd) -> Result<RawFd, IpcError> {
    let failed = |source| IpcError::OpenMemory { source };
    let memory = OpenOptions::new().write(true).open("/proc/self/mem").map_err(failed)?;
    let memory = descriptor::move_above(OwnedFd::from(memory), first)
        .map_err(|errno| failed(errno.into()))?;
    Ok(descriptor::leave_open(memory))
}
