//! Options of sockets that are changed for a moment and must be put back whatever becomes of us.
//!
//! A guardian is a small process that holds the sockets and the old values, and puts them back when it
//! is told to, or when whoever made it has died: SIGKILL leaves nothing undone.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::{Pid, pipe2, read, setsid};

use super::clone::{self, Fork};
use super::socket;

/// An option and its value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OptionValue {
    /// SOL_SOCKET, IPPROTO_*.
    pub level: i32,
    /// SO_*, IP_*, TCP_*.
    pub name: i32,
    /// The value, as `setsockopt` takes it.
    pub value: i32,
}

/// Options that will be put back.
#[derive(Debug)]
pub struct Guardian {
    /// Its end is what the guardian waits for.
    line: Option<OwnedFd>,
    process: Pid,
}

impl Guardian {
    /// Sets a guardian over `sockets`: each option gets the value beside it when this is released,
    /// dropped, or when the caller has died. They are set from the first to the last.
    ///
    /// The caller may have other threads: nothing in the guardian takes a lock that one of them might
    /// have held, for it makes system calls only.
    ///
    /// # Errors
    /// As pipe(2) and fork(2).
    pub fn over(sockets: &[(&OwnedFd, OptionValue)]) -> io::Result<Self> {
        let (wait, line) = pipe2(nix::fcntl::OFlag::O_CLOEXEC)?;
        let kept: Vec<RawFd> = sockets.iter().map(|(socket, _)| socket.as_raw_fd()).collect();
        let others = all_but(&kept, wait.as_raw_fd());
        // No exit signal: nobody else waits for it by mistake.
        match clone::fork(0, 0, None)? {
            Fork::Parent(process) => Ok(Self { line: Some(line), process }),
            Fork::Child => {
                drop(line);
                guard(&wait, sockets, &others)
            }
        }
    }

    /// Has everything put back, and waits for that.
    ///
    /// # Errors
    /// The error of the first option that could not be.
    pub fn release(mut self) -> Result<(), Errno> {
        self.finish()
    }

    fn finish(&mut self) -> Result<(), Errno> {
        if self.line.take().is_none() {
            return Ok(());
        }
        loop {
            match waitpid(self.process, Some(WaitPidFlag::__WALL)) {
                Err(Errno::EINTR) => {}
                Err(error) => return Err(error),
                Ok(nix::sys::wait::WaitStatus::Exited(_, 0)) => return Ok(()),
                Ok(nix::sys::wait::WaitStatus::Exited(_, code)) => {
                    return Err(Errno::from_raw(code));
                }
                Ok(_) => return Err(Errno::EINTR),
            }
        }
    }
}

impl Drop for Guardian {
    fn drop(&mut self) {
        // A failure was told if somebody asked; nothing more can be done about it here.
        self.finish().unwrap_or_default();
    }
}

/// The guardian's whole life. It holds no memory but what was there when it was forked.
fn guard(wait: &OwnedFd, sockets: &[(&OwnedFd, OptionValue)], others: &[(u32, u32)]) -> ! {
    // A signal to the caller's session or group is not for us; a leader of one cannot leave it, which
    // the child of a fork never is.
    setsid().map(drop).unwrap_or_default();
    for (first, last) in others {
        // SAFETY: the call takes integers only; nothing but the sockets and the pipe is used by this
        // process from here to its end.
        unsafe { libc::syscall(libc::SYS_close_range, *first, *last, 0) };
    }
    while read(wait, &mut [0]) == Err(Errno::EINTR) {}
    let mut outcome = Ok(());
    for (socket, OptionValue { level, name, value }) in sockets {
        let done = socket::set_int_option(socket.as_fd(), *level, *name, *value);
        outcome = outcome.and(done);
    }
    clone::exit_now(outcome.map_or_else(|errno| errno as i32, |()| 0))
}

/// The ranges of descriptors that are none of these: they might be the end of a pipe that somebody waits
/// for.
pub(super) fn all_but(kept: &[RawFd], wait: RawFd) -> Vec<(u32, u32)> {
    let mut kept: Vec<u32> = kept.iter().chain([&wait]).map(|fd| fd.unsigned_abs()).collect();
    kept.sort_unstable();
    let mut ranges = Vec::new();
    let mut first = 0;
    for number in kept.into_iter().chain([u32::MAX]) {
        if number > first {
            ranges.push((first, number - 1));
        }
        first = number.saturating_add(1);
    }
    ranges
}

#[cfg(test)]
mod tests {
    use super::*;

    fn low_water(socket: &OwnedFd) -> i32 {
        socket::int_option(socket, libc::SOL_SOCKET, libc::SO_RCVLOWAT).unwrap()
    }

    fn old(value: i32) -> OptionValue {
        OptionValue { level: libc::SOL_SOCKET, name: libc::SO_RCVLOWAT, value }
    }

    #[test]
    fn other_descriptors_are_closed() {
        assert_eq!(all_but(&[5, 3], 4), [(0, 2), (6, u32::MAX - 1)]);
        assert_eq!(all_but(&[0], 9), [(1, 8), (10, u32::MAX - 1)]);
    }

    #[test]
    fn options_are_put_back_when_asked() {
        let socket = socket::create(libc::AF_INET, libc::SOCK_STREAM, 0).unwrap();
        let guardian = Guardian::over(&[(&socket, old(1))]).unwrap();
        socket::set_int_option(&socket, libc::SOL_SOCKET, libc::SO_RCVLOWAT, 50).unwrap();
        assert_eq!(low_water(&socket), 50);
        guardian.release().unwrap();
        assert_eq!(low_water(&socket), 1);
    }

    #[test]
    fn options_are_put_back_when_the_maker_dies() {
        let socket = socket::create(libc::AF_INET, libc::SOCK_STREAM, 0).unwrap();
        match clone::fork(0, libc::SIGCHLD, None).unwrap() {
            Fork::Child => {
                let guardian = Guardian::over(&[(&socket, old(3))]);
                let set = socket::set_int_option(&socket, libc::SOL_SOCKET, libc::SO_RCVLOWAT, 50);
                assert!(guardian.is_ok() && set.is_ok());
                nix::sys::signal::kill(nix::unistd::getpid(), nix::sys::signal::Signal::SIGKILL)
                    .unwrap();
                clone::exit_now(1)
            }
            Fork::Parent(child) => {
                waitpid(child, None).unwrap();
                for _ in 0..5000 {
                    if low_water(&socket) == 3 {
                        return;
                    }
                    std::thread::sleep(std::time::Duration::from_millis(1));
                }
                panic!("it is still {}", low_water(&socket));
            }
        }
    }
}
