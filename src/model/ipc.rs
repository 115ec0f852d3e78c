//! What processes share by number or name instead of by descriptor: System V shared memory, semaphores
//! and message queues, and POSIX message queues.

use serde::{Deserialize, Serialize};

use super::id::{Bytes, InodeId, Pid};

/// Name and permissions of an object (`struct ipc_perm`). Its owner and creator are the job's user.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct IpcIdentity {
    /// The number that the kernel gave it; never negative.
    pub id: i32,
    /// The key that it was made with; 0 (IPC_PRIVATE): none.
    pub key: i32,
    /// Permission bits.
    pub mode: u32,
}

/// A segment of shared memory (`shmget`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Segment {
    /// What it is known by.
    pub identity: IpcIdentity,
    /// Its content, which fills whole pages of the pool where it comes from there.
    pub inode: InodeId,
    /// Bytes that it was made with.
    pub size: u64,
    /// Whether its memory comes from the pool of huge pages of 2 MiB (SHM_HUGETLB).
    pub huge_pages: bool,
    /// Who made it; 0: nobody that the job can see.
    pub creator: Pid,
    /// Whether it goes when nobody has it attached any more (IPC_RMID).
    pub removed: bool,
    /// Whether it is kept in memory (SHM_LOCK).
    pub locked: bool,
}

/// A semaphore of a set.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Semaphore {
    /// `semval`, 0..=32767.
    pub value: u16,
    /// Who changed it last (`sempid`); 0: nobody.
    pub last: Pid,
}

/// What will be added to a semaphore when a process ends (SEM_UNDO).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SemaphoreUndo {
    /// The process.
    pub process: Pid,
    /// The number of the semaphore in its set.
    pub number: u16,
    /// How much; not 0.
    pub adjustment: i16,
}

/// A set of semaphores (`semget`).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SemaphoreSet {
    /// What it is known by.
    pub identity: IpcIdentity,
    /// Its semaphores, never none.
    pub semaphores: Vec<Semaphore>,
    /// Whether anybody has operated on it (`sem_otime`), by which programs see that it is initialised.
    pub operated: bool,
    /// What processes have left to be undone.
    pub undo: Vec<SemaphoreUndo>,
}

/// A message in a queue.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// Its type; positive.
    pub kind: i64,
    /// Its text.
    pub text: Bytes,
}

/// A message queue (`msgget`).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MessageQueue {
    /// What it is known by.
    pub identity: IpcIdentity,
    /// Most bytes that it takes (`msg_qbytes`).
    pub capacity: u64,
    /// What is in it, oldest first.
    pub messages: Vec<Message>,
    /// Who sent last (`msg_lspid`); 0: nobody.
    pub last_sender: Pid,
    /// Who received last (`msg_lrpid`); 0: nobody.
    pub last_receiver: Pid,
}

/// A message in a POSIX queue.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PosixMessage {
    /// Its priority; below 32768 (MQ_PRIO_MAX).
    pub priority: u32,
    /// Its text.
    pub text: Bytes,
}

/// A POSIX message queue (`mq_open`), which belongs to the job's user.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PosixQueue {
    /// Its name, without the slash that it begins with in `mq_open`.
    pub name: Bytes,
    /// Whether the name has been removed (`mq_unlink`) and only descriptors lead to it.
    pub removed: bool,
    /// Permission bits.
    pub mode: u32,
    /// Most messages that it takes (`mq_maxmsg`).
    pub max_messages: u64,
    /// Most bytes in each (`mq_msgsize`).
    pub message_size: u64,
    /// What is in it, in the order in which it is received: the highest priority first, and of one priority the
    /// oldest first.
    pub messages: Vec<PosixMessage>,
}

/// All such objects of a job.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ipc {
    /// Shared memory, ascending by id.
    pub segments: Vec<Segment>,
    /// Semaphores, ascending by id.
    pub semaphores: Vec<SemaphoreSet>,
    /// Message queues, ascending by id.
    pub queues: Vec<MessageQueue>,
    /// POSIX message queues, in no particular order.
    pub posix_queues: Vec<PosixQueue>,
}

impl Ipc {
    /// Whether there are none.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.segments.is_empty()
            && self.semaphores.is_empty()
            && self.queues.is_empty()
            && self.posix_queues.is_empty()
    }
}
