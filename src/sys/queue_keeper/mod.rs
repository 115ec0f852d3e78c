//! Copies the messages of a POSIX queue, which nobody can look at without taking them: takes all of them
//! and puts all of them back at once, in the same order.
//!
//! The caller must hold everybody who has the queue open (ptrace), and a process of its own, the *keeper*,
//! does the work, so that none of the two can be killed to the harm of the queue:
//!
//! - What is taken lies in memory that both have, which is there before anything is taken, with notes of how
//!   far it has come. When the keeper is killed, the caller goes on where it was: what the keeper had done and
//!   not noted yet, the queue's own numbers tell.
//! - The keeper traces the caller's thread meanwhile. When that is killed, it stops on its way out
//!   (PTRACE_EVENT_EXIT, ptrace(2)) until the keeper has ended, and those whom it holds stay held. So nobody
//!   sees the queue without its messages.
#![allow(unsafe_code)]

mod room;

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::sys::signal::{SigSet, SigmaskHow, sigprocmask};
use nix::sys::stat::{fstat, futimens};
use nix::sys::time::TimeSpec;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Pid, gettid, pipe2, read, setsid, write};
use thiserror::Error;

use self::room::Room;
use super::clone::{self, Fork};
use super::guardian::all_but;
use super::{descriptor, message_queue, ptrace};

/// A message of a queue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// Its priority.
    pub priority: u32,
    /// Its text, which may be empty.
    pub text: Vec<u8>,
}

/// Why the messages of a queue are not known. Unless it is [`KeepError::Late`], they are all in it.
#[derive(Debug, Error)]
pub enum KeepError {
    /// A call failed.
    #[error("{operation}: {source}")]
    Call {
        /// Which.
        operation: &'static str,
        /// Why.
        source: Errno,
    },
    /// The queue would be seen empty if the caller were killed.
    #[error("whoever reads it cannot itself be held meanwhile (PTRACE_SEIZE: {source})")]
    Hold {
        /// Why.
        source: Errno,
    },
    /// Others have used the queue.
    #[error("somebody else has used it at the same moment")]
    Disturbed,
    /// The keeper was killed.
    #[error(
        "process {keeper}, which read it, was killed, and the messages have been put back for it"
    )]
    Killed {
        /// What it was.
        keeper: Pid,
    },
    /// There is no room for what was taken, because others have filled it.
    #[error(
        "{messages} messages have not been put back yet, as there is no room: process {keeper} does that as \
         soon as there is; do not end it"
    )]
    Late {
        /// How many.
        messages: u64,
        /// Who has them.
        keeper: Pid,
    },
}

const fn call(operation: &'static str) -> impl FnOnce(Errno) -> KeepError {
    move |source| KeepError::Call { operation, source }
}

/// The messages of a queue, the next one first, which are all in it again when this returns. `queue` must be a
/// description of the caller's own, for reading and writing, that does not block; everybody else who has the
/// queue open must be held by the calling thread.
///
/// # Errors
/// See [`KeepError`].
pub fn copy_messages(queue: &OwnedFd) -> Result<Vec<Message>, KeepError> {
    let attributes = message_queue::attributes(queue).map_err(call("mq_getattr"))?;
    let bytes = bytes_in(queue)?;
    let room = Room::map(attributes, bytes)
        .map_err(|error| KeepError::Call { operation: "mmap", source: errno_of(&error) })?;
    let keeper = employ(queue, &room)?;
    let outcome = room.outcome(queue, keeper);
    // Without Yama there is nothing to be taken back.
    allow_tracing(0).unwrap_or_default();
    outcome?;
    Ok(room.messages())
}

/// Has a keeper do its work, and waits for its end.
fn employ(queue: &OwnedFd, room: &Room) -> Result<(Pid, WaitStatus), KeepError> {
    let failed = |operation| move |error: io::Error| call(operation)(errno_of(&error));
    let stat = fstat(queue).map_err(call("fstat"))?;
    let times = [
        TimeSpec::new(stat.st_atime, stat.st_atime_nsec),
        TimeSpec::new(stat.st_mtime, stat.st_mtime_nsec),
    ];
    let employer = gettid();
    let (wait, line) = pipe2(nix::fcntl::OFlag::O_CLOEXEC).map_err(call("pipe2"))?;
    let others = all_but(&[queue.as_raw_fd()], wait.as_raw_fd());
    // No exit signal: nobody else waits for it by mistake.
    let keeper = match clone::fork(0, 0, None).map_err(failed("clone3"))? {
        Fork::Child => {
            drop(line);
            keep(queue.as_fd(), &wait, &others, room, employer, times)
        }
        Fork::Parent(keeper) => keeper,
    };
    // Where there is Yama, only whom it names may trace the caller. Elsewhere this fails, and anybody may.
    allow_tracing(keeper.as_raw()).unwrap_or_default();
    let told = write(&line, &[0]);
    drop(line);
    let status = loop {
        match waitpid(keeper, Some(WaitPidFlag::__WALL)) {
            Err(Errno::EINTR) => {}
            status => break status.map_err(call("wait4"))?,
        }
    };
    told.map_err(call("write"))?;
    Ok((keeper, status))
}

/// How a keeper ends.
mod ending {
    pub const GOOD: i32 = 0;
    /// It has not begun.
    pub const NOT_HELD: i32 = 1;
    /// A call failed.
    pub const FAILED: i32 = 2;
    /// What it took is with a child of its.
    pub const LATE: i32 = 3;
    /// Others have used the queue.
    pub const DISTURBED: i32 = 4;
    /// Its employer had gone before it began.
    pub const UNEMPLOYED: i32 = 5;
}

/// The keeper's whole life: system calls, and memory that it shares.
fn keep(
    queue: BorrowedFd<'_>,
    wait: &OwnedFd,
    others: &[(u32, u32)],
    room: &Room,
    employer: Pid,
    [accessed, modified]: [TimeSpec; 2],
) -> ! {
    // A signal to the caller's session or group is not for us; a leader of one cannot leave it, which
    // the child of a fork never is.
    setsid().map(drop).unwrap_or_default();
    // Every signal can be blocked that can be blocked.
    sigprocmask(SigmaskHow::SIG_BLOCK, Some(&SigSet::all()), None).unwrap_or_default();
    // Whoever ends all that are called rckpt does not mean this one.
    // SAFETY: the name ends with NUL, and outlives the call.
    unsafe { libc::prctl(libc::PR_SET_NAME, c"queue-keeper".as_ptr()) };
    for (first, last) in others {
        // Before Linux 5.9 they stay open for the moment that this lasts.
        descriptor::close_range(*first, *last).unwrap_or_default();
    }
    let begin = loop {
        match read(wait, &mut [0]) {
            Err(Errno::EINTR) => {}
            outcome => break outcome,
        }
    };
    if begin != Ok(1) {
        clone::exit_now(ending::UNEMPLOYED);
    }
    if let Err(errno) = ptrace::seize_to_outlast(employer) {
        room.note(errno);
        clone::exit_now(ending::NOT_HELD);
    }
    let taken = room.take_all(queue);
    if let Err(errno) = taken {
        room.note(errno);
    }
    if room.give_back(queue).is_err() {
        room.linger(queue);
        clone::exit_now(ending::LATE);
    }
    // Its times tell when somebody used it.
    let times = futimens(queue, &accessed, &modified);
    if let Err(errno) = times {
        room.note(errno);
    }
    if taken.and(times).is_err() {
        clone::exit_now(ending::FAILED);
    }
    clone::exit_now(if room.is_undisturbed(queue) { ending::GOOD } else { ending::DISTURBED })
}

/// Bytes of all messages in a queue, as its file tells.
fn bytes_in(queue: &OwnedFd) -> Result<u64, KeepError> {
    let mut status = [0; 128];
    let length = descriptor::read_at(queue, 0, &mut status).map_err(call("read"))?;
    message_queue::bytes(&status[..length])
        .ok_or(KeepError::Call { operation: "read", source: Errno::EPROTO })
}

/// Lets a process trace the calling one where Yama forbids that; nobody any more when it is 0.
fn allow_tracing(tracer: RawFd) -> Result<(), Errno> {
    // SAFETY: this prctl takes integers only.
    Errno::result(unsafe { libc::prctl(libc::PR_SET_PTRACER, libc::c_long::from(tracer), 0, 0, 0) })
        .map(drop)
}

fn errno_of(error: &io::Error) -> Errno {
    Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO))
}

#[cfg(test)]
mod tests {
    use std::ptr;

    use super::message_queue::Attributes;
    use super::*;

    /// A queue that nobody else sees, with these messages.
    pub(super) fn queue(name: &str, messages: &[(&str, u32)]) -> OwnedFd {
        let name = format!("rckpt-keeper-{name}-{}", std::process::id());
        let name = std::ffi::CString::new(name).unwrap();
        let wanted = Attributes { max_messages: 4, message_size: 60, messages: 0 };
        let queue = message_queue::make(&name, 0o600, &wanted).unwrap();
        message_queue::remove(&name).unwrap();
        descriptor::set_status_flags(&queue, libc::O_NONBLOCK).unwrap();
        for (text, priority) in messages {
            message_queue::send(&queue, text.as_bytes(), *priority).unwrap();
        }
        queue
    }

    pub(super) const SENT: [(&str, u32); 4] = [("low", 1), ("first", 9), ("", 4), ("second", 9)];

    pub(super) fn expected() -> Vec<Message> {
        [("first", 9), ("second", 9), ("", 4), ("low", 1)]
            .map(|(text, priority)| Message { priority, text: text.into() })
            .into()
    }

    #[test]
    fn messages_are_copied_and_stay() {
        let queue = queue("copy", &SENT);
        let times = fstat(&queue).unwrap();
        for _ in 0..3 {
            assert_eq!(copy_messages(&queue).unwrap(), expected());
        }
        let after = fstat(&queue).unwrap();
        assert_eq!((times.st_mtime, times.st_mtime_nsec), (after.st_mtime, after.st_mtime_nsec));
        assert_eq!(message_queue::attributes(&queue).unwrap().messages, 4);
    }

    #[test]
    fn whoever_is_traced_takes_nothing() {
        // The unit tests' process has other threads: the one that asks is traced by a child of its.
        let queue = queue("traced", &SENT);
        let (thread, (wait, line)) = (gettid(), pipe2(nix::fcntl::OFlag::O_CLOEXEC).unwrap());
        let tracer = match clone::fork(0, 0, None).unwrap() {
            Fork::Child => {
                let held = ptrace::seize_to_outlast(thread).is_ok();
                write(&line, &[u8::from(held)]).unwrap_or_default();
                loop {
                    nix::unistd::pause();
                }
            }
            Fork::Parent(tracer) => tracer,
        };
        let mut held = [0];
        read(&wait, &mut held).unwrap();
        let outcome = copy_messages(&queue);
        nix::sys::signal::kill(tracer, nix::sys::signal::Signal::SIGKILL).unwrap();
        waitpid(tracer, Some(WaitPidFlag::__WALL)).unwrap();
        assert!(held == [1] && matches!(outcome, Err(KeepError::Hold { source: Errno::EPERM })));
        assert_eq!(copy_messages(&queue).unwrap(), expected());
    }

    /// Somebody waits to send to a full queue, and is not held: what was taken has no room any more. It comes
    /// back when there is.
    #[test]
    fn what_has_no_room_comes_back_later() {
        let queue = queue("late", &SENT);
        let sender = match clone::fork(0, 0, None).unwrap() {
            Fork::Child => {
                descriptor::set_status_flags(&queue, 0).unwrap_or_default();
                let sent = message_queue::send(&queue, b"more", 5);
                clone::exit_now(i32::from(sent.is_err()))
            }
            Fork::Parent(sender) => sender,
        };
        let waits = || {
            std::fs::read_to_string(format!("/proc/{sender}/syscall")).unwrap().starts_with("242 ")
        };
        while !waits() {
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        descriptor::set_status_flags(&queue, libc::O_NONBLOCK).unwrap();
        let outcome = copy_messages(&queue);
        assert!(matches!(outcome, Err(KeepError::Late { messages: 1, .. })), "{outcome:?}");
        let mut texts = Vec::new();
        let mut text = [0; 60];
        while texts.len() < 5 {
            // SAFETY: the text has room for the longest message; no priority and no time is asked for.
            let length = unsafe {
                libc::syscall(
                    libc::SYS_mq_timedreceive,
                    queue.as_raw_fd(),
                    text.as_mut_ptr(),
                    text.len(),
                    ptr::null_mut::<u32>(),
                    ptr::null::<libc::timespec>(),
                )
            };
            match usize::try_from(length) {
                Ok(length) => texts.push(String::from_utf8_lossy(&text[..length]).into_owned()),
                Err(_) => std::thread::sleep(std::time::Duration::from_millis(1)),
            }
        }
        texts.sort();
        assert_eq!(texts, ["", "first", "low", "more", "second"]);
        waitpid(sender, Some(WaitPidFlag::__WALL)).unwrap();
    }
}
