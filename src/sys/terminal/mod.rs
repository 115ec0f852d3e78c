//! Terminals: modes and window size, as raw bytes of the kernel's own structures, sessions and
//! foreground groups, and the two ends of pseudo-terminals.
#![allow(unsafe_code)]

pub mod feeding;
pub mod queue;

use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

use nix::errno::Errno;
use nix::unistd::Pid;

pub use crate::model::terminal::{TERMIOS2_SIZE, Termios, WINSIZE_SIZE};

/// `_IOR('T', 0x2a, struct termios2)`.
const TCGETS2: libc::c_ulong = 0x802c_542a;

/// `_IOW('T', 0x2b, struct termios2)`: at once, without waiting for output to drain.
const TCSETS2: libc::c_ulong = 0x402c_542b;

/// The modes of a terminal, raw; ENOTTY for anything else.
pub fn modes(terminal: impl AsFd) -> Result<Termios, Errno> {
    let mut termios = [0; TERMIOS2_SIZE];
    // SAFETY: TCGETS2 writes one `struct termios2`, as many bytes as `termios` has; the request
    // number itself carries that size.
    let result =
        unsafe { libc::ioctl(terminal.as_fd().as_raw_fd(), TCGETS2, termios.as_mut_ptr()) };
    Errno::result(result).map(|_| termios)
}

/// Sets the modes of a terminal. From a background process group the kernel sends SIGTTOU unless
/// the caller blocks or ignores it.
pub fn set_modes(terminal: impl AsFd, termios: &Termios) -> Result<(), Errno> {
    // SAFETY: TCSETS2 reads one `struct termios2`, as many bytes as `termios` has.
    let result = unsafe { libc::ioctl(terminal.as_fd().as_raw_fd(), TCSETS2, termios.as_ptr()) };
    Errno::result(result).map(drop)
}

/// The window size of a terminal, raw.
pub fn window_size(terminal: impl AsFd) -> Result<[u8; WINSIZE_SIZE], Errno> {
    let mut window = [0; WINSIZE_SIZE];
    // SAFETY: TIOCGWINSZ writes one `struct winsize`, as many bytes as `window` has.
    let result =
        unsafe { libc::ioctl(terminal.as_fd().as_raw_fd(), libc::TIOCGWINSZ, window.as_mut_ptr()) };
    Errno::result(result).map(|_| window)
}

/// Sets the window size of a terminal. Its foreground group gets SIGWINCH when that is a change.
pub fn set_window_size(terminal: impl AsFd, window: &[u8; WINSIZE_SIZE]) -> Result<(), Errno> {
    let file = terminal.as_fd().as_raw_fd();
    // SAFETY: TIOCSWINSZ reads one `struct winsize`, as many bytes as `window` has.
    Errno::result(unsafe { libc::ioctl(file, libc::TIOCSWINSZ, window.as_ptr()) }).map(drop)
}

/// Bytes that can be read: of whole lines when the terminal assembles lines. What has not come as far
/// as the line discipline does not count; `poll` lets it in.
pub fn queued(terminal: impl AsFd) -> Result<u64, Errno> {
    number(terminal, libc::FIONREAD).map(u64::from)
}

/// The number N of a master's `/dev/pts/N`; ENOTTY for anything else.
pub fn index(master: impl AsFd) -> Result<u32, Errno> {
    number(master, libc::TIOCGPTN)
}

/// Whether the slave of this master cannot be opened (TIOCSPTLCK).
pub fn is_locked(master: impl AsFd) -> Result<bool, Errno> {
    number(master, TIOCGPTLCK).map(|locked| locked != 0)
}

/// Locks or unlocks the slave of this master (TIOCSPTLCK).
pub fn set_locked(master: impl AsFd, locked: bool) -> Result<(), Errno> {
    set_number(master, libc::TIOCSPTLCK, i32::from(locked))
}

/// Whether a master is in packet mode (TIOCPKT).
pub fn packet_mode(master: impl AsFd) -> Result<bool, Errno> {
    number(master, TIOCGPKT).map(|mode| mode != 0)
}

/// Turns packet mode of a master on or off. To turn it on forgets earlier events.
pub fn set_packet_mode(master: impl AsFd, on: bool) -> Result<(), Errno> {
    set_number(master, libc::TIOCPKT, i32::from(on))
}

/// Whether a terminal cannot be opened again (TIOCEXCL).
pub fn is_exclusive(terminal: impl AsFd) -> Result<bool, Errno> {
    number(terminal, TIOCGEXCL).map(|exclusive| exclusive != 0)
}

/// Sees to it that a terminal cannot be opened again (TIOCEXCL).
pub fn make_exclusive(terminal: impl AsFd) -> Result<(), Errno> {
    plain(terminal, libc::TIOCEXCL, 0)
}

/// Stops the output of a terminal, or lets go on what was stopped in this way (`tcflow`).
pub fn set_stopped(terminal: impl AsFd, stopped: bool) -> Result<(), Errno> {
    plain(terminal, libc::TCXONC, if stopped { libc::TCOOFF } else { libc::TCOON })
}

/// The device number of the terminal that a description made through /dev/tty leads to.
pub fn device(terminal: impl AsFd) -> Result<u64, Errno> {
    let device = number(terminal, TIOCGDEV)?;
    // As `new_encode_dev` in include/linux/kdev_t.h.
    let (major, minor) = (device >> 8 & 0xfff, device & 0xff | device >> 12 & 0xf_ff00);
    Ok(nix::sys::stat::makedev(u64::from(major), u64::from(minor)))
}

/// The session that a terminal controls; `None`: no session, or, asked through anything but a master,
/// not the caller's.
pub fn session(terminal: impl AsFd) -> Result<Option<Pid>, Errno> {
    process(terminal, libc::TIOCGSID)
}

/// The foreground process group of the session that a terminal controls, as [`session`].
pub fn foreground(terminal: impl AsFd) -> Result<Option<Pid>, Errno> {
    process(terminal, libc::TIOCGPGRP)
}

/// Makes `group` the foreground process group of the caller's own terminal. Unless the caller blocks
/// or ignores SIGTTOU, it gets it when it is in the background itself.
pub fn set_foreground(terminal: impl AsFd, group: Pid) -> Result<(), Errno> {
    set_number(terminal, libc::TIOCSPGRP, group.as_raw())
}

/// Makes a terminal control the session that the caller leads, which has none yet.
pub fn take_control(terminal: impl AsFd) -> Result<(), Errno> {
    plain(terminal, libc::TIOCSCTTY, 0)
}

/// Leaves the terminal that controls the caller's session. When the caller leads it, all of the session
/// loses the terminal, and its foreground group gets SIGHUP.
pub fn leave_control(terminal: impl AsFd) -> Result<(), Errno> {
    plain(terminal, libc::TIOCNOTTY, 0)
}

/// Opens the slave of a master, close-on-exec and without making it anybody's controlling terminal
/// (TIOCGPTPEER). `flags` are O_* bits. EIO when it is locked, EBUSY when it cannot be opened again.
pub fn open_slave(master: impl AsFd, flags: i32) -> Result<OwnedFd, Errno> {
    // The kernel would show O_CLOEXEC among the status flags ever after.
    let flags = (flags | libc::O_NOCTTY) & !libc::O_CLOEXEC;
    // SAFETY: TIOCGPTPEER takes the flags by value.
    let result = unsafe { libc::ioctl(master.as_fd().as_raw_fd(), libc::TIOCGPTPEER, flags) };
    let number = Errno::result(result)?;
    // SAFETY: the kernel has just made this descriptor for us; nobody else knows its number.
    let slave = unsafe { OwnedFd::from_raw_fd(number) };
    super::descriptor::set_close_on_exec(&slave, true)?;
    Ok(slave)
}

/// `_IOR('T', 0x32, unsigned int)`.
const TIOCGDEV: libc::c_ulong = 0x8004_5432;
/// `_IOR('T', 0x38, int)`.
const TIOCGPKT: libc::c_ulong = 0x8004_5438;
/// `_IOR('T', 0x39, int)`.
const TIOCGPTLCK: libc::c_ulong = 0x8004_5439;
/// `_IOR('T', 0x40, int)`.
const TIOCGEXCL: libc::c_ulong = 0x8004_5440;

/// What a request tells in a C int.
fn number(terminal: impl AsFd, request: libc::c_ulong) -> Result<u32, Errno> {
    let mut value: libc::c_uint = 0;
    // SAFETY: the requests used with this function write one C int, which `value` is.
    let result = unsafe { libc::ioctl(terminal.as_fd().as_raw_fd(), request, &raw mut value) };
    Errno::result(result).map(|_| value)
}

/// Has a request read a C int.
fn set_number(terminal: impl AsFd, request: libc::c_ulong, value: i32) -> Result<(), Errno> {
    // SAFETY: the requests used with this function read one C int, which `value` is.
    let result = unsafe { libc::ioctl(terminal.as_fd().as_raw_fd(), request, &raw const value) };
    Errno::result(result).map(drop)
}

/// A request with an argument by value, or none.
fn plain(terminal: impl AsFd, request: libc::c_ulong, argument: i32) -> Result<(), Errno> {
    // SAFETY: the requests used with this function take their argument by value.
    Errno::result(unsafe { libc::ioctl(terminal.as_fd().as_raw_fd(), request, argument) }).map(drop)
}

fn process(terminal: impl AsFd, request: libc::c_ulong) -> Result<Option<Pid>, Errno> {
    match number(terminal, request) {
        // ENOTTY: it controls no session, or none of the caller's.
        Ok(0) | Err(Errno::ENOTTY) => Ok(None),
        Ok(id) => Ok(Some(Pid::from_raw(id.cast_signed()))),
        Err(errno) => Err(errno),
    }
}

/// Whether a descriptor refers to a terminal.
pub fn is_terminal(file: impl AsFd) -> bool {
    modes(file).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_of_a_pseudo_terminal_are_read_and_set() {
        let pair = nix::pty::openpty(None, None).unwrap();
        let before = modes(&pair.slave).unwrap();
        set_modes(&pair.slave, &before).unwrap();
        assert_eq!(modes(&pair.slave).unwrap(), before);
        assert_eq!(window_size(&pair.slave).unwrap(), [0; WINSIZE_SIZE]);
        assert!(is_terminal(&pair.slave));
    }

    #[test]
    fn a_pipe_is_no_terminal() {
        let (reader, _writer) = std::io::pipe().unwrap();
        assert_eq!(modes(&reader).err(), Some(Errno::ENOTTY));
        assert!(!is_terminal(&reader));
    }
}
