//! epoll: making instances, adding to them, asking what is ready, and what they watch elsewhere.
//!
//! Descriptors are plain numbers here: the caller answers for whose they are, as the number that
//! something is added by is part of what is asked for.
#![allow(unsafe_code)]

use std::cmp::Ordering;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::unistd::Pid;

use crate::model::event::BusyPoll;

/// Creates an instance (epoll_create1(2)), close-on-exec.
pub fn create() -> Result<OwnedFd, Errno> {
    // SAFETY: the call takes an integer.
    let number = Errno::result(unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) })?;
    // SAFETY: the kernel has just made this descriptor for us; nobody else knows its number.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// Adds what `number` refers to (EPOLL_CTL_ADD).
pub fn add(instance: RawFd, number: RawFd, events: u32, data: u64) -> Result<(), Errno> {
    let mut event = libc::epoll_event { events, u64: data };
    // SAFETY: the kernel reads one `struct epoll_event`, which `event` is.
    let result = unsafe { libc::epoll_ctl(instance, libc::EPOLL_CTL_ADD, number, &raw mut event) };
    Errno::result(result).map(drop)
}

/// Takes away what was added by `number` and is still behind it (EPOLL_CTL_DEL).
pub fn remove(instance: RawFd, number: RawFd) -> Result<(), Errno> {
    // SAFETY: the kernel reads nothing for this operation (epoll_ctl(2)).
    let result =
        unsafe { libc::epoll_ctl(instance, libc::EPOLL_CTL_DEL, number, std::ptr::null_mut()) };
    Errno::result(result).map(drop)
}

/// The first event that is ready, without waiting: its EPOLL* bits. It counts as reported.
pub fn take_event(instance: RawFd) -> Result<Option<u32>, Errno> {
    let mut event = libc::epoll_event { events: 0, u64: 0 };
    // SAFETY: the kernel writes at most one `struct epoll_event`, which `event` is.
    let count = Errno::result(unsafe { libc::epoll_wait(instance, &raw mut event, 1, 0) })?;
    Ok((count > 0).then_some(event.events))
}

/// How an instance polls network devices (EPIOCGPARAMS, Linux 6.9); not at all on kernels that
/// cannot.
pub fn busy_poll(instance: impl AsFd) -> Result<BusyPoll, Errno> {
    let mut params = EpollParams::default();
    let number = instance.as_fd().as_raw_fd();
    // SAFETY: the request writes one `struct epoll_params`, which `params` is.
    let result = unsafe { libc::ioctl(number, EPIOCGPARAMS, &raw mut params) };
    match Errno::result(result) {
        Ok(_) => Ok(BusyPoll {
            microseconds: params.busy_poll_usecs,
            budget: params.busy_poll_budget,
            preferred: params.prefer_busy_poll != 0,
        }),
        // Kernels without the request, or without busy polling.
        Err(Errno::ENOTTY | Errno::EINVAL | Errno::EOPNOTSUPP) => Ok(BusyPoll::default()),
        Err(error) => Err(error),
    }
}

/// Sets how an instance polls network devices (EPIOCSPARAMS).
pub fn set_busy_poll(instance: impl AsFd, wanted: BusyPoll) -> Result<(), Errno> {
    let params = EpollParams {
        busy_poll_usecs: wanted.microseconds,
        busy_poll_budget: wanted.budget,
        prefer_busy_poll: u8::from(wanted.preferred),
        pad: 0,
    };
    let number = instance.as_fd().as_raw_fd();
    // SAFETY: the request reads one `struct epoll_params`, which `params` is.
    let result = unsafe { libc::ioctl(number, EPIOCSPARAMS, &raw const params) };
    Errno::result(result).map(drop)
}

/// A thing that an instance watches: the `nth` of those added by `number`, in the order of fdinfo, to
/// what descriptor `instance` of process `pid` refers to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Target {
    /// The process.
    pub pid: Pid,
    /// Its descriptor of the instance.
    pub instance: RawFd,
    /// The number that the thing was added by.
    pub number: RawFd,
    /// Which of several.
    pub nth: u32,
}

/// Orders a descriptor of a process and what an instance watches by the open file description; equal
/// means the same one (kcmp(2), KCMP_EPOLL_TFD, Linux 4.13).
pub fn compare(file: (Pid, RawFd), target: Target) -> Result<Ordering, Errno> {
    let slot = KcmpEpollSlot {
        efd: target.instance.cast_unsigned(),
        tfd: target.number.cast_unsigned(),
        toff: target.nth,
    };
    // SAFETY: the kernel reads one `struct kcmp_epoll_slot`, which `slot` is.
    let result = unsafe {
        libc::syscall(
            libc::SYS_kcmp,
            file.0.as_raw(),
            target.pid.as_raw(),
            KCMP_EPOLL_TFD,
            file.1,
            &raw const slot,
        )
    };
    Ok(match Errno::result(result)? {
        0 => Ordering::Equal,
        1 => Ordering::Less,
        _ => Ordering::Greater,
    })
}

const KCMP_EPOLL_TFD: libc::c_int = 7;

/// `_IOW(0x8A, 0x01, struct epoll_params)` and `_IOR(0x8A, 0x02, struct epoll_params)`,
/// include/uapi/linux/eventpoll.h.
const EPIOCSPARAMS: libc::c_ulong = 0x4008_8a01;
const EPIOCGPARAMS: libc::c_ulong = 0x8008_8a02;

/// `struct epoll_params`, include/uapi/linux/eventpoll.h.
#[repr(C)]
#[derive(Default)]
struct EpollParams {
    busy_poll_usecs: u32,
    busy_poll_budget: u16,
    prefer_busy_poll: u8,
    pad: u8,
}

const _: () = assert!(size_of::<EpollParams>() == 8);

/// `struct kcmp_epoll_slot`, include/uapi/linux/kcmp.h.
#[repr(C)]
struct KcmpEpollSlot {
    efd: u32,
    tfd: u32,
    toff: u32,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_watched_is_known_by_its_description() {
        let instance = create().unwrap();
        let (reader, writer) = std::io::pipe().unwrap();
        let number = reader.as_raw_fd();
        let events = (libc::EPOLLIN | libc::EPOLLET).cast_unsigned();
        add(instance.as_raw_fd(), number, events, 7).unwrap();
        let me = nix::unistd::getpid();
        let target = Target { pid: me, instance: instance.as_raw_fd(), number, nth: 0 };
        let copy = reader.try_clone().unwrap();
        assert_eq!(compare((me, copy.as_raw_fd()), target), Ok(Ordering::Equal));
        assert_ne!(compare((me, writer.as_raw_fd()), target), Ok(Ordering::Equal));
        let none = Target { nth: 1, ..target };
        assert_eq!(compare((me, number), none), Err(Errno::ENOENT));
        nix::unistd::write(&writer, b"x").unwrap();
        let told = libc::EPOLLIN.cast_unsigned();
        assert_eq!(take_event(instance.as_raw_fd()), Ok(Some(told)));
        assert_eq!(take_event(instance.as_raw_fd()), Ok(None));
        remove(instance.as_raw_fd(), number).unwrap();
        add(instance.as_raw_fd(), number, events, 7).unwrap();
        assert_eq!(take_event(instance.as_raw_fd()), Ok(Some(told)));
    }

    #[test]
    fn busy_polling_is_off_at_first() {
        let instance = create().unwrap();
        assert_eq!(busy_poll(&instance), Ok(BusyPoll::default()));
    }
}
