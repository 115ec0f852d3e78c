//! Descriptors: taking duplicates out of other processes, comparing what they refer to, and the
//! `fcntl` commands, locks, event counters and timers that the standard library has no names for.
//!
//! Each function is one kernel interface with the error that it gives. It knows nothing of what a
//! descriptor is used for.
#![allow(unsafe_code)]

use std::cmp::Ordering;
use std::collections::BTreeSet;
use std::ffi::CStr;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, IntoRawFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::unistd::Pid;

use crate::model::number::{as_signed, to_usize};
use crate::model::signal::SignalSet;
use crate::model::time::{TimeSpec, TimerSpec};

/// Whether this kernel closes ranges of descriptors (close_range(2), Linux 5.9).
#[must_use]
pub fn closes_ranges() -> bool {
    // SAFETY: the call takes plain numbers; no descriptor has the highest of them.
    let outcome = unsafe { libc::syscall(libc::SYS_close_range, u32::MAX, u32::MAX, 0) };
    outcome == 0
}

/// Opens a pidfd for the process `pid` (pidfd_open(2), Linux 5.3).
pub fn pidfd_open(pid: Pid) -> Result<OwnedFd, Errno> {
    pidfd_open_with(pid, 0)
}

/// Opens a pidfd for the process of the task `tid`, by which its descriptors can be had. That of a
/// thread other than the main one takes Linux 6.9.
pub fn pidfd_open_task(tid: Pid) -> Result<OwnedFd, Errno> {
    const PIDFD_THREAD: i32 = libc::O_EXCL;
    match pidfd_open(tid) {
        Err(Errno::EINVAL | Errno::ENOENT) => pidfd_open_with(tid, PIDFD_THREAD),
        outcome => outcome,
    }
}

/// Opens a pidfd for the process `pid`, or for its main thread alone (PIDFD_THREAD, Linux 6.9).
pub fn pidfd_open_as(pid: Pid, thread: bool) -> Result<OwnedFd, Errno> {
    pidfd_open_with(pid, if thread { libc::O_EXCL } else { 0 })
}

fn pidfd_open_with(pid: Pid, flags: i32) -> Result<OwnedFd, Errno> {
    // SAFETY: the call takes two integers and touches no memory of ours.
    let result = unsafe { libc::syscall(libc::SYS_pidfd_open, pid.as_raw(), flags) };
    owned_descriptor(result)
}

/// Duplicates descriptor `number` of the process behind `pidfd` into this one, close-on-exec
/// (pidfd_getfd(2), Linux 5.6). Both then refer to the same open file description: positions,
/// status flags and owners are shared, so nothing may be done with the duplicate that changes them.
pub fn pidfd_getfd(pidfd: impl AsFd, number: i32) -> Result<OwnedFd, Errno> {
    let pidfd = pidfd.as_fd().as_raw_fd();
    // SAFETY: the call takes three integers and touches no memory of ours.
    let result = unsafe { libc::syscall(libc::SYS_pidfd_getfd, pidfd, number, 0) };
    owned_descriptor(result)
}

/// What two tasks may share, as kcmp(2) can tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shared {
    /// Address space.
    Memory,
    /// Table of descriptors.
    Descriptors,
    /// Working directory, root and umask.
    FileSystem,
    /// Signal handlers.
    SignalHandlers,
    /// What is to be undone in semaphores; none is equal to none.
    SemaphoreUndo,
}

/// Orders two tasks by which object of the kind `what` they use; equal means shared. The order is
/// arbitrary but total, and stays the same until the next boot (kcmp(2)).
pub fn compare_tasks(what: Shared, left: Pid, right: Pid) -> Result<Ordering, Errno> {
    let kind = match what {
        Shared::Memory => KCMP_VM,
        Shared::Descriptors => KCMP_FILES,
        Shared::FileSystem => KCMP_FS,
        Shared::SignalHandlers => KCMP_SIGHAND,
        Shared::SemaphoreUndo => KCMP_SYSVSEM,
    };
    kcmp(left, right, kind, 0, 0)
}

/// Orders two descriptors, each of a task, by the open file description they refer to; equal means
/// the same one. The order is arbitrary but total (kcmp(2), KCMP_FILE).
pub fn compare_files(left: (Pid, i32), right: (Pid, i32)) -> Result<Ordering, Errno> {
    let (Ok(left_number), Ok(right_number)) = (u64::try_from(left.1), u64::try_from(right.1))
    else {
        return Err(Errno::EBADF);
    };
    kcmp(left.0, right.0, KCMP_FILE, left_number, right_number)
}

/// The status flags and access mode of a description (F_GETFL).
pub fn status_flags(file: impl AsFd) -> Result<i32, Errno> {
    fcntl(file, libc::F_GETFL, 0)
}

/// Sets those status flags that can be set on an open description (F_SETFL).
pub fn set_status_flags(file: impl AsFd, flags: i32) -> Result<(), Errno> {
    fcntl(file, libc::F_SETFL, flags).map(drop)
}

/// Sets or clears close-on-exec of a descriptor (F_SETFD).
pub fn set_close_on_exec(file: impl AsFd, close: bool) -> Result<(), Errno> {
    fcntl(file, libc::F_SETFD, if close { libc::FD_CLOEXEC } else { 0 }).map(drop)
}

/// Duplicates a descriptor to the lowest free number from `lowest` on, close-on-exec.
pub fn duplicate_above(file: impl AsFd, lowest: RawFd) -> Result<OwnedFd, Errno> {
    let number = fcntl(file, libc::F_DUPFD_CLOEXEC, lowest)?;
    // SAFETY: the kernel has just made this descriptor for us; nobody else knows its number.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// Lets the caller use all numbers below the hard limit on open files: a job may have more open, taken
/// together, than the soft limit allows, and at higher numbers.
///
/// # Errors
/// As setrlimit(2).
pub fn raise_limit() -> Result<(), Errno> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    if soft < hard { setrlimit(Resource::RLIMIT_NOFILE, hard, hard) } else { Ok(()) }
}

/// Moves a descriptor to the lowest free number from `lowest` on, close-on-exec. One that lies
/// there already stays where it is.
pub fn move_above(file: OwnedFd, lowest: RawFd) -> Result<OwnedFd, Errno> {
    if file.as_raw_fd() >= lowest {
        set_close_on_exec(&file, true)?;
        return Ok(file);
    }
    duplicate_above(&file, lowest)
}

/// Makes `number` refer to the same description as `file`, not close-on-exec. What `number`
/// referred to is closed. Fails for a `file` that has this number already.
pub fn duplicate_to(file: impl AsFd, number: RawFd) -> Result<(), Errno> {
    // SAFETY: the call takes integers only. A caller that owns `number` as an `OwnedFd` would find
    // another file behind it, which is what laying out a table of descriptors is.
    let result = unsafe { libc::dup3(file.as_fd().as_raw_fd(), number, 0) };
    Errno::result(result).map(drop)
}

/// The inodes of the sockets that a process has open; none of one that may not be looked into.
#[must_use]
pub fn sockets_of(pid: Pid) -> BTreeSet<u64> {
    let Ok(entries) = std::fs::read_dir(format!("/proc/{pid}/fd")) else { return BTreeSet::new() };
    let inode = |link: std::path::PathBuf| {
        link.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()
    };
    let links = entries.flatten().filter_map(|entry| std::fs::read_link(entry.path()).ok());
    links.filter_map(inode).collect()
}

/// The numbers of all descriptors of this process.
pub fn open_numbers() -> std::io::Result<BTreeSet<RawFd>> {
    let mut numbers = BTreeSet::new();
    for entry in std::fs::read_dir("/proc/self/fd")? {
        numbers.extend(entry?.file_name().to_str().and_then(|name| name.parse::<RawFd>().ok()));
    }
    // That of the listing was among them.
    numbers.retain(|number| std::fs::symlink_metadata(format!("/proc/self/fd/{number}")).is_ok());
    Ok(numbers)
}

/// Closes all descriptors from `first` to `last`, both included (close_range(2), Linux 5.9, with a
/// loop over the numbers below the limit where it is missing).
pub fn close_range(first: u32, last: u32) -> Result<(), Errno> {
    // SAFETY: the call takes integers only. As with `duplicate_to`, the caller answers for the
    // descriptors that it names.
    let result = unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) };
    match Errno::result(result) {
        Ok(_) => Ok(()),
        Err(Errno::ENOSYS) => {
            let (limit, _) = getrlimit(Resource::RLIMIT_NOFILE)?;
            let last = u64::from(last).min(limit.saturating_sub(1));
            for number in u64::from(first)..=last {
                let number = RawFd::try_from(number).map_err(|_| Errno::EBADF)?;
                // SAFETY: as above; a number that is not open gives EBADF, which is no failure here.
                unsafe { libc::close(number) };
            }
            Ok(())
        }
        Err(error) => Err(error),
    }
}

/// Gives up ownership of a descriptor and leaves it open.
pub fn leave_open(file: OwnedFd) -> RawFd {
    file.into_raw_fd()
}

/// Who is signalled about events on a description.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owner {
    /// F_OWNER_TID, F_OWNER_PID or F_OWNER_PGRP.
    pub kind: i32,
    /// The thread, process or group, in the caller's pid namespace; 0: none (or not visible).
    pub id: i32,
}

/// Reads the owner of a description (F_GETOWN_EX).
pub fn owner(file: impl AsFd) -> Result<Owner, Errno> {
    let mut owner = FOwnerEx { kind: 0, pid: 0 };
    // SAFETY: F_GETOWN_EX writes one `struct f_owner_ex`, which `owner` is, and lives on our stack.
    let result = unsafe { libc::fcntl(file.as_fd().as_raw_fd(), F_GETOWN_EX, &raw mut owner) };
    Errno::result(result)?;
    Ok(Owner { kind: owner.kind, id: owner.pid })
}

/// Sets the owner of a description (F_SETOWN_EX). The task or group must exist.
pub fn set_owner(file: impl AsFd, owner: Owner) -> Result<(), Errno> {
    let owner = FOwnerEx { kind: owner.kind, pid: owner.id };
    // SAFETY: F_SETOWN_EX reads one `struct f_owner_ex`, which `owner` is.
    let result = unsafe { libc::fcntl(file.as_fd().as_raw_fd(), F_SETOWN_EX, &raw const owner) };
    Errno::result(result).map(drop)
}

/// The signal sent instead of SIGIO, 0 for SIGIO itself (F_GETSIG).
pub fn owner_signal(file: impl AsFd) -> Result<i32, Errno> {
    fcntl(file, F_GETSIG, 0)
}

/// Sets the signal sent instead of SIGIO (F_SETSIG).
pub fn set_owner_signal(file: impl AsFd, signal: i32) -> Result<(), Errno> {
    fcntl(file, F_SETSIG, signal).map(drop)
}

/// The seals of a memory file (F_GET_SEALS); EINVAL for any other file.
pub fn seals(file: impl AsFd) -> Result<u32, Errno> {
    fcntl(file, libc::F_GET_SEALS, 0).map(i32::cast_unsigned)
}

/// Adds seals to a memory file (F_ADD_SEALS).
pub fn add_seals(file: impl AsFd, seals: u32) -> Result<(), Errno> {
    fcntl(file, libc::F_ADD_SEALS, seals.cast_signed()).map(drop)
}

/// Creates a memory file (memfd_create(2)), close-on-exec besides the MFD_* bits in `flags`.
pub fn memfd_create(name: &CStr, flags: u32) -> Result<OwnedFd, Errno> {
    // SAFETY: `name` is a NUL-terminated string that outlives the call.
    let result = unsafe { libc::memfd_create(name.as_ptr(), flags | libc::MFD_CLOEXEC) };
    owned_descriptor(i64::from(result))
}

/// Takes a lease on a description (F_SETLEASE with F_RDLCK or F_WRLCK).
pub fn set_lease(file: impl AsFd, access: i32) -> Result<(), Errno> {
    fcntl(file, libc::F_SETLEASE, access).map(drop)
}

/// Takes a lock on the whole file through its description without waiting (flock(2)): shared, or
/// exclusive.
pub fn lock_description(file: impl AsFd, exclusive: bool) -> Result<(), Errno> {
    let operation = if exclusive { libc::LOCK_EX } else { libc::LOCK_SH };
    // SAFETY: the call takes two integers.
    let result = unsafe { libc::flock(file.as_fd().as_raw_fd(), operation | libc::LOCK_NB) };
    Errno::result(result).map(drop)
}

/// Whom a lock on a range of bytes belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RangeLockHolder {
    /// The open file description (F_OFD_SETLK).
    Description,
    /// The calling process (F_SETLK).
    Process,
}

/// Takes a lock on a range of bytes without waiting. `access` is F_RDLCK or F_WRLCK; `length` 0
/// reaches to the end of the file, wherever that comes to lie.
pub fn lock_range(
    file: impl AsFd,
    holder: RangeLockHolder,
    access: i16,
    start: i64,
    length: i64,
) -> Result<(), Errno> {
    let command = match holder {
        RangeLockHolder::Description => libc::F_OFD_SETLK,
        RangeLockHolder::Process => libc::F_SETLK,
    };
    let lock = libc::flock {
        l_type: access,
        l_whence: SEEK_SET,
        l_start: start,
        l_len: length,
        // Must be zero with F_OFD_SETLK (fcntl(2)).
        l_pid: 0,
    };
    // SAFETY: both commands read one `struct flock`, which `lock` is.
    let result = unsafe { libc::fcntl(file.as_fd().as_raw_fd(), command, &raw const lock) };
    Errno::result(result).map(drop)
}

/// Creates an event counter (eventfd2(2)), close-on-exec.
pub fn eventfd(initial: u32, semaphore: bool) -> Result<OwnedFd, Errno> {
    let flags = libc::EFD_CLOEXEC | if semaphore { libc::EFD_SEMAPHORE } else { 0 };
    // SAFETY: the call takes two integers.
    owned_descriptor(i64::from(unsafe { libc::eventfd(initial, flags) }))
}

/// Creates a signal descriptor for the signals in `mask` (signalfd4(2)), close-on-exec.
pub fn signalfd(mask: SignalSet) -> Result<OwnedFd, Errno> {
    let length = size_of_val(&mask.0);
    // SAFETY: the kernel reads the eight bytes of its own set of signals, which `mask` is.
    let result = unsafe {
        libc::syscall(libc::SYS_signalfd4, -1, &raw const mask.0, length, libc::SFD_CLOEXEC)
    };
    owned_descriptor(result)
}

/// Creates a timer descriptor for CLOCK_* `clock` (timerfd_create(2)), close-on-exec.
pub fn timerfd_create(clock: i32) -> Result<OwnedFd, Errno> {
    // SAFETY: the call takes two integers.
    owned_descriptor(i64::from(unsafe { libc::timerfd_create(clock, libc::TFD_CLOEXEC) }))
}

/// Arms a timer descriptor (timerfd_settime(2)); `flags` are TFD_TIMER_*. Forgets expirations that
/// were not read.
pub fn timerfd_settime(file: impl AsFd, flags: i32, timer: TimerSpec) -> Result<(), Errno> {
    let timer = libc::itimerspec {
        it_interval: to_timespec(timer.interval),
        it_value: to_timespec(timer.value),
    };
    let file = file.as_fd().as_raw_fd();
    // SAFETY: `timer` is read during the call only; a null pointer for the old value is allowed.
    let result =
        unsafe { libc::timerfd_settime(file, flags, &raw const timer, std::ptr::null_mut()) };
    Errno::result(result).map(drop)
}

/// Time left and interval of a timer descriptor (timerfd_gettime(2)). Like any look at a periodic
/// timer, it lets expirations that are due be counted first.
pub fn timerfd_gettime(file: impl AsFd) -> Result<TimerSpec, Errno> {
    let zero = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    let mut timer = libc::itimerspec { it_interval: zero, it_value: zero };
    // SAFETY: the call writes one `struct itimerspec`, which `timer` is.
    let result = unsafe { libc::timerfd_gettime(file.as_fd().as_raw_fd(), &raw mut timer) };
    Errno::result(result)?;
    Ok(TimerSpec {
        interval: from_timespec(timer.it_interval),
        value: from_timespec(timer.it_value),
    })
}

/// Sets the number of expirations not yet read (TFD_IOC_SET_TICKS; ENOTTY on kernels built without
/// CONFIG_CHECKPOINT_RESTORE). Must not be zero.
pub fn timerfd_set_ticks(file: impl AsFd, ticks: u64) -> Result<(), Errno> {
    // SAFETY: the request reads one u64, which `ticks` is.
    let result =
        unsafe { libc::ioctl(file.as_fd().as_raw_fd(), TFD_IOC_SET_TICKS, &raw const ticks) };
    Errno::result(result).map(drop)
}

/// Offset of the first byte of data at or after `offset`, and of the hole after it; `None` when
/// only a hole follows (SEEK_DATA, SEEK_HOLE). Moves the position of the description, so it must be
/// one of our own.
pub fn next_data(file: impl AsFd, offset: u64) -> Result<Option<(u64, u64)>, Errno> {
    let start = match seek(&file, offset, libc::SEEK_DATA) {
        Ok(start) => start,
        Err(Errno::ENXIO) => return Ok(None),
        Err(error) => return Err(error),
    };
    let end = seek(&file, start, libc::SEEK_HOLE)?;
    Ok(Some((start, end)))
}

/// Sets the position of a description (lseek(2), SEEK_SET). For directories the unit is the file
/// system's own.
pub fn set_position(file: impl AsFd, position: u64) -> Result<(), Errno> {
    seek(file, position, libc::SEEK_SET).map(drop)
}

/// What `poll` says about a descriptor right now, without waiting.
pub fn poll_now(file: impl AsFd, events: i16) -> Result<i16, Errno> {
    let mut request = libc::pollfd { fd: file.as_fd().as_raw_fd(), events, revents: 0 };
    // SAFETY: the call reads and writes one `struct pollfd`, which `request` is.
    let result = unsafe { libc::poll(&raw mut request, 1, 0) };
    Errno::result(result)?;
    Ok(request.revents)
}

const KCMP_FILE: i32 = 0;
const KCMP_VM: i32 = 1;
const KCMP_FILES: i32 = 2;
const KCMP_FS: i32 = 3;
const KCMP_SIGHAND: i32 = 4;
const KCMP_SYSVSEM: libc::c_int = 6;

const F_SETSIG: i32 = 10;
const F_GETSIG: i32 = 11;
const F_SETOWN_EX: i32 = 15;
const F_GETOWN_EX: i32 = 16;

/// `SEEK_SET` in the width of `l_whence`.
const SEEK_SET: i16 = 0;

/// `_IOW('T', 0, __u64)`, include/uapi/linux/timerfd.h.
const TFD_IOC_SET_TICKS: libc::c_ulong = 0x4008_5400;

/// `struct f_owner_ex`, include/uapi/asm-generic/fcntl.h.
#[repr(C)]
struct FOwnerEx {
    kind: i32,
    pid: i32,
}

fn kcmp(left: Pid, right: Pid, kind: i32, first: u64, second: u64) -> Result<Ordering, Errno> {
    // SAFETY: with the kinds used here the call takes five integers and touches no memory of ours.
    let result = unsafe {
        libc::syscall(libc::SYS_kcmp, left.as_raw(), right.as_raw(), kind, first, second)
    };
    match Errno::result(result)? {
        0 => Ok(Ordering::Equal),
        1 => Ok(Ordering::Less),
        // 2 is "greater"; 3, "unequal without an order", is reserved and never returned.
        _ => Ok(Ordering::Greater),
    }
}

fn fcntl(file: impl AsFd, command: i32, argument: i32) -> Result<i32, Errno> {
    // SAFETY: the commands used with this function take an integer or nothing.
    Errno::result(unsafe { libc::fcntl(file.as_fd().as_raw_fd(), command, argument) })
}

fn seek(file: impl AsFd, offset: u64, whence: i32) -> Result<u64, Errno> {
    // Directory positions of some file systems use all 64 bits, so a negative result is an error
    // only when it is -1 and errno says so; such positions are passed through bit by bit.
    Errno::clear();
    // SAFETY: the call takes integers only.
    let result = unsafe { libc::lseek(file.as_fd().as_raw_fd(), as_signed(offset), whence) };
    if result == -1 && Errno::last_raw() != 0 {
        return Err(Errno::last());
    }
    Ok(result.cast_unsigned())
}

fn owned_descriptor(result: i64) -> Result<OwnedFd, Errno> {
    let number = Errno::result(result)?;
    let number = RawFd::try_from(number).map_err(|_| Errno::EBADF)?;
    // SAFETY: the kernel has just made this descriptor for us; nobody else knows its number.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

const fn to_timespec(time: TimeSpec) -> libc::timespec {
    libc::timespec { tv_sec: time.seconds, tv_nsec: time.nanoseconds }
}

const fn from_timespec(time: libc::timespec) -> TimeSpec {
    TimeSpec { seconds: time.tv_sec, nanoseconds: time.tv_nsec }
}

/// Reads from a descriptor into `buffer` until it is full or nothing more is there, from byte
/// `offset` on, without touching the position of the description (pread(2)). Returns the bytes
/// read.
pub fn read_at(file: impl AsFd, offset: u64, buffer: &mut [u8]) -> Result<usize, Errno> {
    let mut filled = 0;
    while filled < buffer.len() {
        let position = offset + u64::try_from(filled).map_err(|_| Errno::EOVERFLOW)?;
        let Ok(position) = i64::try_from(position) else { return Err(Errno::EOVERFLOW) };
        match nix::sys::uio::pread(&file, &mut buffer[filled..], position) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(Errno::EINTR) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

/// Reads exactly one `read(2)` worth of bytes, at most `limit`.
pub fn read_once(file: impl AsFd, limit: u64) -> Result<Vec<u8>, Errno> {
    let mut buffer = vec![0; to_usize(limit)];
    let count = nix::unistd::read(&file, &mut buffer)?;
    buffer.truncate(count);
    Ok(buffer)
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Seek, Write};

    use super::*;

    #[test]
    fn duplicates_from_ourselves_compare_equal() {
        let file = tempfile::tempfile().unwrap();
        let other = tempfile::tempfile().unwrap();
        let me = nix::unistd::getpid();
        let pidfd = pidfd_open(me).unwrap();
        let copy = pidfd_getfd(&pidfd, file.as_raw_fd()).unwrap();
        let same = compare_files((me, file.as_raw_fd()), (me, copy.as_raw_fd())).unwrap();
        assert_eq!(same, Ordering::Equal);
        let different = compare_files((me, file.as_raw_fd()), (me, other.as_raw_fd())).unwrap();
        let reversed = compare_files((me, other.as_raw_fd()), (me, file.as_raw_fd())).unwrap();
        assert_ne!(different, Ordering::Equal);
        assert_eq!(different, reversed.reverse());
        assert_eq!(pidfd_getfd(&pidfd, 9999).err(), Some(Errno::EBADF));
    }

    #[test]
    fn owners_and_their_signals_are_read_back() {
        let (reader, _writer) = std::io::pipe().unwrap();
        assert_eq!(owner(&reader).unwrap().id, 0);
        let me = nix::unistd::getpid().as_raw();
        let wanted = Owner { kind: 1, id: me };
        set_owner(&reader, wanted).unwrap();
        set_owner_signal(&reader, libc::SIGUSR1).unwrap();
        assert_eq!(owner(&reader).unwrap(), wanted);
        assert_eq!(owner_signal(&reader).unwrap(), libc::SIGUSR1);
    }

    #[test]
    fn data_is_found_between_holes() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(1 << 20).unwrap();
        std::os::unix::fs::FileExt::write_all_at(&file, b"x", 65536).unwrap();
        let (start, end) = next_data(&file, 0).unwrap().unwrap();
        assert!(start <= 65536 && 65536 < end);
        assert!(end < 1 << 20);
        assert_eq!(next_data(&file, end).unwrap(), None);
    }

    #[test]
    fn reading_at_an_offset_leaves_the_position() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"0123456789").unwrap();
        let mut buffer = [0; 8];
        assert_eq!(read_at(&file, 6, &mut buffer).unwrap(), 4);
        assert_eq!(&buffer[..4], b"6789");
        assert_eq!(file.stream_position().unwrap(), 10);
    }

    #[test]
    fn moved_descriptors_lie_above_and_close_on_exec() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"abc").unwrap();
        let moved = move_above(file.into(), 200).unwrap();
        assert!(moved.as_raw_fd() >= 200);
        let again = move_above(moved, 100).unwrap();
        assert!(again.as_raw_fd() >= 200);
        let mut file = std::fs::File::from(again);
        set_position(&file, 1).unwrap();
        let mut rest = String::new();
        file.read_to_string(&mut rest).unwrap();
        assert_eq!(rest, "bc");
    }

    #[test]
    fn timers_keep_what_was_set() {
        let timer = timerfd_create(libc::CLOCK_MONOTONIC).unwrap();
        let long = TimeSpec { seconds: 1000, nanoseconds: 0 };
        timerfd_settime(&timer, 0, TimerSpec { interval: long, value: long }).unwrap();
        let read = timerfd_gettime(&timer).unwrap();
        assert_eq!(read.interval, long);
        assert!(read.value.seconds == 1000 || read.value.seconds == 999);
        assert_eq!(poll_now(&timer, libc::POLLIN).unwrap(), 0);
        match timerfd_set_ticks(&timer, 3) {
            Ok(()) => assert_eq!(poll_now(&timer, libc::POLLIN).unwrap(), libc::POLLIN),
            Err(error) => assert_eq!(error, Errno::ENOTTY),
        }
    }
}
