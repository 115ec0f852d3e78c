//! POSIX message queues: what they tell of themselves without a message being taken, and making them
//! again. Names are those of the file system of queues, without the slash of mq_open(3).
#![allow(unsafe_code)]

use std::ffi::CStr;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::ptr;

use nix::errno::Errno;

/// The file system of queues, as fsopen(2) knows it.
pub const FILE_SYSTEM: &CStr = c"mqueue";
/// FSCONFIG_CMD_CREATE of include/uapi/linux/mount.h.
pub const CREATE_FILE_SYSTEM: u64 = 6;

/// `struct mq_attr`, as far as it is about the queue.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Attributes {
    /// Most messages that it takes.
    pub max_messages: u64,
    /// Most bytes in each.
    pub message_size: u64,
    /// Messages that are in it.
    pub messages: u64,
}

/// What the queue behind a descriptor is like (mq_getattr).
///
/// # Errors
/// EBADF when there is no queue behind it.
pub fn attributes(queue: impl AsFd) -> Result<Attributes, Errno> {
    let mut found = [0_i64; 8];
    let nothing: *const i64 = ptr::null();
    let number = queue.as_fd().as_raw_fd();
    // SAFETY: the kernel writes a `struct mq_attr`, which is eight longs, to the array.
    let outcome =
        unsafe { libc::syscall(libc::SYS_mq_getsetattr, number, nothing, found.as_mut_ptr()) };
    Errno::result(outcome)?;
    let [_, max_messages, message_size, messages, ..] = found.map(i64::cast_unsigned);
    Ok(Attributes { max_messages, message_size, messages })
}

/// Makes a queue that must not be there yet, and opens it for both.
///
/// # Errors
/// EEXIST when there is one of that name; EINVAL and EMFILE beyond the limits of the ipc namespace
/// (/proc/sys/fs/mqueue) and RLIMIT_MSGQUEUE.
pub fn make(name: &CStr, mode: u32, attributes: &Attributes) -> Result<OwnedFd, Errno> {
    let flags = libc::O_RDWR | libc::O_CREAT | libc::O_EXCL | libc::O_CLOEXEC;
    let Attributes { max_messages, message_size, .. } = *attributes;
    let wanted: [u64; 8] = [0, max_messages, message_size, 0, 0, 0, 0, 0];
    // SAFETY: the name ends with NUL, and the array is a `struct mq_attr`; both outlive the call.
    let outcome =
        unsafe { libc::syscall(libc::SYS_mq_open, name.as_ptr(), flags, mode, wanted.as_ptr()) };
    owned(Errno::result(outcome)?)
}

/// Removes the name of a queue (mq_unlink).
///
/// # Errors
/// ENOENT when there is none.
pub fn remove(name: &CStr) -> Result<(), Errno> {
    // SAFETY: the name ends with NUL and outlives the call.
    let outcome = unsafe { libc::syscall(libc::SYS_mq_unlink, name.as_ptr()) };
    Errno::result(outcome).map(drop)
}

/// The directory of all queues of the caller's ipc namespace, whether it is mounted anywhere or not.
///
/// # Errors
/// EPERM for who may not mount, in the user namespace that the ipc namespace belongs to.
pub fn directory() -> Result<OwnedFd, Errno> {
    const CLOSE_ON_EXEC: i32 = 1;
    // SAFETY: the name ends with NUL; everything else are integers, or no string at all.
    unsafe {
        let opened = libc::syscall(libc::SYS_fsopen, FILE_SYSTEM.as_ptr(), CLOSE_ON_EXEC);
        let opened = owned(Errno::result(opened)?)?;
        let nothing: *const libc::c_char = ptr::null();
        let number = opened.as_raw_fd();
        let made =
            libc::syscall(libc::SYS_fsconfig, number, CREATE_FILE_SYSTEM, nothing, nothing, 0);
        Errno::result(made)?;
        let mounted = libc::syscall(libc::SYS_fsmount, number, CLOSE_ON_EXEC, 0);
        owned(Errno::result(mounted)?)
    }
}

fn owned(number: i64) -> Result<OwnedFd, Errno> {
    let number = i32::try_from(number).map_err(|_| Errno::EOVERFLOW)?;
    // SAFETY: the kernel has just given us this descriptor, and nothing else knows of it.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// The process that is to be told of the next message (mq_notify), as the reader of this text, which the
/// file of a queue gives, sees it. `None` when there is none.
#[must_use]
pub fn notified(status: &[u8]) -> Option<i32> {
    let number = word_after(b"NOTIFY_PID:", status)?.parse().ok()?;
    (number != 0).then_some(number)
}

/// The bytes of all messages in a queue, by the same text.
#[must_use]
pub fn bytes(status: &[u8]) -> Option<u64> {
    word_after(b"QSIZE:", status)?.parse().ok()
}

fn word_after<'a>(prefix: &[u8], status: &'a [u8]) -> Option<&'a str> {
    let mut words = status.split(u8::is_ascii_whitespace);
    str::from_utf8(words.find_map(|word| word.strip_prefix(prefix))?).ok()
}

/// Puts a message into a queue (mq_send).
///
/// # Errors
/// As mq_send(3): EAGAIN when it is full and the descriptor does not block, EMSGSIZE when it takes none of
/// that length.
pub fn send(queue: impl AsFd, text: &[u8], priority: u32) -> Result<(), Errno> {
    let number = queue.as_fd().as_raw_fd();
    let for_ever: *const libc::timespec = ptr::null();
    // SAFETY: the kernel reads the text, which outlives the call.
    let outcome = unsafe {
        libc::syscall(libc::SYS_mq_timedsend, number, text.as_ptr(), text.len(), priority, for_ever)
    };
    Errno::result(outcome).map(drop)
}

const _: () = assert!(size_of::<libc::mq_attr>() == 64);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_queue_tells_its_limits() {
        let name = std::ffi::CString::new(format!("rckpt-unit-{}", std::process::id())).unwrap();
        let wanted = Attributes { max_messages: 3, message_size: 70, messages: 0 };
        let queue = make(&name, 0o600, &wanted).unwrap();
        assert_eq!(make(&name, 0o600, &wanted).err(), Some(Errno::EEXIST));
        remove(&name).unwrap();
        assert_eq!(attributes(&queue), Ok(wanted));
        let path = format!("/proc/self/fd/{}", queue.as_raw_fd());
        assert_eq!(notified(&std::fs::read(path).unwrap()), None);
    }

    #[test]
    fn the_status_of_a_queue() {
        let text =
            |pid: i32| format!("QSIZE:0          NOTIFY:2     SIGNO:0     NOTIFY_PID:{pid:<6}\n");
        assert_eq!(notified(text(512).as_bytes()), Some(512));
        assert_eq!(notified(text(0).as_bytes()), None);
        assert_eq!(notified(b""), None);
        assert_eq!(
            bytes(b"QSIZE:129        NOTIFY:0     SIGNO:0     NOTIFY_PID:0     \n"),
            Some(129)
        );
        assert_eq!(bytes(b""), None);
    }
}
