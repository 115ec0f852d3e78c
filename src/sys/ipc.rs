//! System V shared memory, semaphores and message queues: what the kernel tells of them, and making
//! them again with the numbers that they had.
//!
//! Structures are taken apart as bytes: what is asked of another namespace comes as such.
#![allow(unsafe_code)]

use std::fs;
use std::io;
use std::ptr;

use nix::errno::Errno;

use crate::model::number::{as_signed, to_u64};

/// Get a new namespace's object where the kernel would put it next: IPC_CREAT | IPC_EXCL.
const MAKE: i32 = libc::IPC_CREAT | libc::IPC_EXCL;
/// IPC_SET, IPC_RMID and IPC_STAT.
pub const IPC_RMID: i32 = 0;
const IPC_SET: i32 = 1;
/// Tells of the object with this number.
pub const IPC_STAT: i32 = 2;
/// Segments: highest place in use (as the result); the object at a place, whoever may read it.
pub const SHM_INFO: i32 = 14;
/// The object at a place.
pub const SHM_STAT_ANY: i32 = 15;
const SHM_LOCK: i32 = 11;
/// Semaphores, likewise.
pub const SEM_INFO: i32 = 19;
/// The object at a place.
pub const SEM_STAT_ANY: i32 = 20;
/// GETPID of semctl(2): who changed it last.
pub const GETPID: i32 = 11;
/// GETALL of semctl(2).
pub const GETALL: i32 = 13;
const SETVAL: i32 = 16;
/// Queues, likewise.
pub const MSG_INFO: i32 = 12;
/// The object at a place.
pub const MSG_STAT_ANY: i32 = 13;
/// Leaves the message where it is (include/uapi/linux/msg.h).
pub const MSG_COPY: i32 = 0o40000;
/// The automatic undoing of an operation at the end of a process.
pub const SEM_UNDO: i16 = 0x1000;
/// `IPC_NOWAIT` in the width of `sem_flg`.
pub const SEM_NO_WAIT: i16 = 0o4000;

/// Bits of `mode` beside the permissions.
pub const SHM_DEST: u32 = 0o1000;
/// The segment stays in memory.
pub const SHM_LOCKED: u32 = 0o2000;

/// Largest value of a semaphore (SEMVMX).
pub const SEMAPHORE_LIMIT: u16 = 32767;

/// Bytes of the longest structure that is asked for.
pub const STAT_SIZE: usize = 120;

/// `struct ipc64_perm`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Permissions {
    /// Key.
    pub key: i32,
    /// Owner.
    pub uid: u32,
    /// Owner's group.
    pub gid: u32,
    /// Creator.
    pub creator_uid: u32,
    /// Creator's group.
    pub creator_gid: u32,
    /// Permission bits, and others.
    pub mode: u32,
}

/// `struct shmid64_ds`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SegmentStat {
    /// Permissions.
    pub permissions: Permissions,
    /// Bytes.
    pub size: u64,
    /// Last time that it was attached or detached, seconds since the epoch; 0: never.
    pub used: i64,
    /// Last change, seconds since the epoch.
    pub changed: i64,
    /// Creator, in the caller's pid namespace.
    pub creator: i32,
    /// Who attached or detached it last.
    pub last: i32,
    /// How many mappings there are.
    pub attached: u64,
}

/// `struct semid64_ds`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SetStat {
    /// Permissions.
    pub permissions: Permissions,
    /// Last operation; 0: none.
    pub operated: i64,
    /// Last change.
    pub changed: i64,
    /// How many semaphores it has.
    pub count: u64,
}

/// `struct msqid64_ds`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct QueueStat {
    /// Permissions.
    pub permissions: Permissions,
    /// When a message was sent last; 0: never.
    pub sent: i64,
    /// When a message was received last; 0: never.
    pub received: i64,
    /// Last change.
    pub changed: i64,
    /// Bytes in it.
    pub bytes: u64,
    /// Messages in it.
    pub messages: u64,
    /// Most bytes in it.
    pub capacity: u64,
    /// Last sender.
    pub last_sender: i32,
    /// Last receiver.
    pub last_receiver: i32,
}

fn half(bytes: &[u8], offset: usize) -> i32 {
    let word = bytes.get(offset..).and_then(|rest| rest.first_chunk().copied());
    i32::from_ne_bytes(word.unwrap_or_default())
}

fn word(bytes: &[u8], offset: usize) -> u64 {
    let word = bytes.get(offset..).and_then(|rest| rest.first_chunk().copied());
    u64::from_ne_bytes(word.unwrap_or_default())
}

fn permissions(bytes: &[u8]) -> Permissions {
    Permissions {
        key: half(bytes, 0),
        uid: half(bytes, 4).cast_unsigned(),
        gid: half(bytes, 8).cast_unsigned(),
        creator_uid: half(bytes, 12).cast_unsigned(),
        creator_gid: half(bytes, 16).cast_unsigned(),
        mode: half(bytes, 20).cast_unsigned(),
    }
}

/// Takes a `struct shmid64_ds` apart (arch/x86/include/uapi/asm/shmbuf.h).
#[must_use]
pub fn segment(bytes: &[u8]) -> SegmentStat {
    SegmentStat {
        permissions: permissions(bytes),
        size: word(bytes, 48),
        used: as_signed(word(bytes, 56)).max(as_signed(word(bytes, 64))),
        changed: as_signed(word(bytes, 72)),
        creator: half(bytes, 80),
        last: half(bytes, 84),
        attached: word(bytes, 88),
    }
}

/// Takes a `struct semid64_ds` apart (arch/x86/include/uapi/asm/sembuf.h).
#[must_use]
pub fn set(bytes: &[u8]) -> SetStat {
    SetStat {
        permissions: permissions(bytes),
        operated: as_signed(word(bytes, 48)),
        changed: as_signed(word(bytes, 64)),
        count: word(bytes, 80),
    }
}

/// Takes a `struct msqid64_ds` apart (include/uapi/asm-generic/msgbuf.h).
#[must_use]
pub fn queue(bytes: &[u8]) -> QueueStat {
    QueueStat {
        permissions: permissions(bytes),
        sent: as_signed(word(bytes, 48)),
        received: as_signed(word(bytes, 56)),
        changed: as_signed(word(bytes, 64)),
        bytes: word(bytes, 72),
        messages: word(bytes, 80),
        capacity: word(bytes, 88),
        last_sender: half(bytes, 96),
        last_receiver: half(bytes, 100),
    }
}

/// Whether the caller's ipc namespace has any such object. Where that cannot be told, it may have.
#[must_use]
pub fn any_here() -> bool {
    ["shm", "sem", "msg"].iter().any(|kind| {
        fs::read(format!("/proc/sysvipc/{kind}"))
            .map_or(true, |text| text.iter().filter(|byte| **byte == b'\n').count() > 1)
    })
}

/// The kinds of objects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Shared memory.
    Segment,
    /// Semaphores.
    Semaphores,
    /// Message queues.
    Queue,
}

impl Kind {
    const fn control(self) -> i64 {
        match self {
            Self::Segment => libc::SYS_shmctl,
            Self::Semaphores => libc::SYS_semctl,
            Self::Queue => libc::SYS_msgctl,
        }
    }
}

/// Has the next object of a kind get this number, if nothing else has it.
///
/// # Errors
/// EACCES or EPERM without CAP_CHECKPOINT_RESTORE over the ipc namespace, ENOENT on a kernel without
/// CONFIG_CHECKPOINT_RESTORE.
pub fn choose_next(kind: Kind, id: i32) -> io::Result<()> {
    let name = match kind {
        Kind::Segment => "shm",
        Kind::Semaphores => "sem",
        Kind::Queue => "msg",
    };
    fs::write(format!("/proc/sys/kernel/{name}_next_id"), id.to_string())
}

fn call(number: i64, arguments: [u64; 4]) -> Result<i64, Errno> {
    let [a, b, c, d] = arguments;
    // SAFETY: callers pass integers, or addresses of buffers of their own that are large enough and
    // outlive the call.
    let result = unsafe { libc::syscall(number, a, b, c, d) };
    Errno::result(result)
}

fn to_id(result: i64) -> Result<i32, Errno> {
    i32::try_from(result).map_err(|_| Errno::EOVERFLOW)
}

const fn signed(value: i32) -> u64 {
    (value as i64).cast_unsigned()
}

/// Makes a segment of `size` bytes.
///
/// # Errors
/// As shmget(2).
pub fn make_segment(key: i32, size: u64, mode: u32, huge_pages: bool) -> Result<i32, Errno> {
    let pool = if huge_pages { libc::SHM_HUGETLB } else { 0 };
    let flags = signed(MAKE | pool) | u64::from(mode);
    call(libc::SYS_shmget, [signed(key), size, flags, 0]).and_then(to_id)
}

/// Makes a set of `count` semaphores.
///
/// # Errors
/// As semget(2).
pub fn make_set(key: i32, count: u64, mode: u32) -> Result<i32, Errno> {
    call(libc::SYS_semget, [signed(key), count, signed(MAKE) | u64::from(mode), 0]).and_then(to_id)
}

/// Makes a queue.
///
/// # Errors
/// As msgget(2).
pub fn make_queue(key: i32, mode: u32) -> Result<i32, Errno> {
    call(libc::SYS_msgget, [signed(key), signed(MAKE) | u64::from(mode), 0, 0]).and_then(to_id)
}

/// Sets the permission bits of an object of ours, and the capacity of a queue.
///
/// # Errors
/// As IPC_SET; EPERM for a capacity above /proc/sys/kernel/msgmnb.
pub fn set_permissions(
    kind: Kind,
    id: i32,
    (uid, gid): (u32, u32),
    mode: u32,
    capacity: u64,
) -> Result<(), Errno> {
    let mut bytes = [0_u8; STAT_SIZE];
    bytes[4..8].copy_from_slice(&uid.to_ne_bytes());
    bytes[8..12].copy_from_slice(&gid.to_ne_bytes());
    bytes[20..24].copy_from_slice(&mode.to_ne_bytes());
    bytes[88..96].copy_from_slice(&capacity.to_ne_bytes());
    let address = to_u64(bytes.as_ptr().addr());
    let arguments = match kind {
        Kind::Semaphores => [signed(id), 0, signed(IPC_SET), address],
        Kind::Segment | Kind::Queue => [signed(id), signed(IPC_SET), address, 0],
    };
    call(kind.control(), arguments).map(drop)
}

/// Has a segment go when nobody has it attached any more.
///
/// # Errors
/// As IPC_RMID.
pub fn remove_segment(id: i32) -> Result<(), Errno> {
    call(libc::SYS_shmctl, [signed(id), signed(IPC_RMID), 0, 0]).map(drop)
}

/// Keeps a segment in memory.
///
/// # Errors
/// As SHM_LOCK.
pub fn lock_segment(id: i32) -> Result<(), Errno> {
    call(libc::SYS_shmctl, [signed(id), signed(SHM_LOCK), 0, 0]).map(drop)
}

/// Attaches a segment to the caller's own memory: its address.
///
/// # Errors
/// As shmat(2).
pub fn attach(id: i32) -> Result<u64, Errno> {
    call(libc::SYS_shmat, [signed(id), 0, 0, 0]).map(i64::cast_unsigned)
}

/// Detaches the segment that [`attach`] put at `address`.
///
/// # Errors
/// As shmdt(2).
pub fn detach(address: u64) -> Result<(), Errno> {
    call(libc::SYS_shmdt, [address, 0, 0, 0]).map(drop)
}

/// Sets the value of a semaphore, as its last user.
///
/// # Errors
/// As SETVAL.
pub fn set_value(id: i32, number: u16, value: u16) -> Result<(), Errno> {
    let arguments = [signed(id), u64::from(number), signed(SETVAL), u64::from(value)];
    call(libc::SYS_semctl, arguments).map(drop)
}

/// An operation on a semaphore, as `struct sembuf`.
#[must_use]
pub fn operation(number: u16, change: i16, flags: i16) -> [u8; 6] {
    let mut bytes = [0; 6];
    bytes[..2].copy_from_slice(&number.to_ne_bytes());
    bytes[2..4].copy_from_slice(&change.to_ne_bytes());
    bytes[4..].copy_from_slice(&flags.to_ne_bytes());
    bytes
}

/// Waits for a semaphore that is zero, which notes the time in its set.
///
/// # Errors
/// As semop(2); EAGAIN when it is not.
pub fn touch(id: i32) -> Result<(), Errno> {
    let wait_for_zero = operation(0, 0, SEM_NO_WAIT);
    let address = to_u64(wait_for_zero.as_ptr().addr());
    call(libc::SYS_semop, [signed(id), address, 1, 0]).map(drop)
}

/// Sends a message without waiting.
///
/// # Errors
/// As msgsnd(2); EAGAIN when the queue is full.
pub fn send(id: i32, kind: i64, text: &[u8]) -> Result<(), Errno> {
    let mut message = kind.to_ne_bytes().to_vec();
    message.extend_from_slice(text);
    let address = to_u64(message.as_ptr().addr());
    let arguments = [signed(id), address, to_u64(text.len()), signed(libc::IPC_NOWAIT)];
    call(libc::SYS_msgsnd, arguments).map(drop)
}

/// Receives the first message, which has no text, without waiting.
///
/// # Errors
/// As msgrcv(2).
pub fn receive_nothing(id: i32) -> Result<(), Errno> {
    let mut kind = 0_i64;
    // SAFETY: the kernel writes the type and at most no bytes of text.
    let result =
        unsafe { libc::msgrcv(id, ptr::from_mut(&mut kind).cast(), 0, 0, libc::IPC_NOWAIT) };
    Errno::result(result).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stat(number: i64, id: i32) -> Vec<u8> {
        let bytes = vec![0_u8; STAT_SIZE];
        let address = to_u64(bytes.as_ptr().addr());
        let arguments = match number {
            libc::SYS_semctl => [signed(id), 0, signed(IPC_STAT), address],
            _ => [signed(id), signed(IPC_STAT), address, 0],
        };
        call(number, arguments).unwrap();
        bytes
    }

    #[test]
    fn structures_are_taken_apart() {
        let own = i32::try_from(std::process::id()).unwrap();
        let id = make_segment(libc::IPC_PRIVATE, 5000, 0o640, false).unwrap();
        let found = segment(&stat(libc::SYS_shmctl, id));
        remove_segment(id).unwrap();
        assert_eq!((found.size, found.creator, found.attached), (5000, own, 0));
        assert_eq!(found.permissions.mode & 0o777, 0o640);

        let id = make_set(libc::IPC_PRIVATE, 3, 0o600).unwrap();
        let before = set(&stat(libc::SYS_semctl, id));
        touch(id).unwrap();
        let after = set(&stat(libc::SYS_semctl, id));
        call(libc::SYS_semctl, [signed(id), 0, signed(IPC_RMID), 0]).unwrap();
        assert_eq!((before.count, before.operated), (3, 0));
        assert_ne!(after.operated, 0);

        let id = make_queue(libc::IPC_PRIVATE, 0o600).unwrap();
        send(id, 7, b"text").unwrap();
        let found = queue(&stat(libc::SYS_msgctl, id));
        call(libc::SYS_msgctl, [signed(id), signed(IPC_RMID), 0, 0]).unwrap();
        assert_eq!((found.messages, found.bytes, found.last_sender), (1, 4, own));
    }
}
