//! Doing something as another process: the kernel notes with a socket who made, connected or listened
//! on it, and with a message who sent it.
//!
//! A child with the wanted id, which shares our descriptors, does it and ends at once.

use nix::errno::Errno;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};

use crate::sys::clone::{self, Fork};

/// Has `act` done by a process with the id `pid`; 0: by anybody. Where that id belongs to another
/// process here, the caller does it.
///
/// # Errors
/// What `act` failed with, or making the process.
pub(super) fn act_as(pid: i32, act: impl FnOnce() -> Result<(), Errno>) -> Result<(), Errno> {
    if pid == 0 || pid == nix::unistd::getpid().as_raw() {
        return act();
    }
    match in_child(Some(pid), act) {
        Outcome::Done(result) => result,
        Outcome::NotMade(Errno::EEXIST, act) => act(),
        Outcome::NotMade(errno, _) => Err(errno),
    }
}

/// Has `act` done by a child, which may change its root and working directory.
///
/// # Errors
/// What `act` failed with, or making the process.
pub(super) fn act_apart(act: impl FnOnce() -> Result<(), Errno>) -> Result<(), Errno> {
    match in_child(None, act) {
        Outcome::Done(result) => result,
        Outcome::NotMade(errno, _) => Err(errno),
    }
}

enum Outcome<Act> {
    Done(Result<(), Errno>),
    NotMade(Errno, Act),
}

fn in_child<Act: FnOnce() -> Result<(), Errno>>(pid: Option<i32>, act: Act) -> Outcome<Act> {
    let files = u64::from(libc::CLONE_FILES.unsigned_abs());
    match clone::fork(files, 0, pid) {
        Ok(Fork::Child) => clone::exit_now(act().map_or_else(|errno| errno as i32, |()| 0)),
        Ok(Fork::Parent(child)) => Outcome::Done(await_end(child)),
        Err(error) => {
            let errno = Errno::from_raw(error.raw_os_error().unwrap_or(libc::EAGAIN));
            Outcome::NotMade(errno, act)
        }
    }
}

/// The status that a child ends with is its error number.
fn await_end(child: nix::unistd::Pid) -> Result<(), Errno> {
    loop {
        match waitpid(child, Some(WaitPidFlag::__WALL)) {
            Err(Errno::EINTR) => {}
            Ok(WaitStatus::Exited(_, 0)) => return Ok(()),
            Ok(WaitStatus::Exited(_, code)) => return Err(Errno::from_raw(code)),
            Ok(_) => return Err(Errno::EINTR),
            Err(errno) => return Err(errno),
        }
    }
}
