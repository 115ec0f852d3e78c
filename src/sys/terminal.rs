//! Terminals: modes and window size, as raw bytes of the kernel's own structures.
#![allow(unsafe_code)]

use std::os::fd::{AsFd, AsRawFd};

use nix::errno::Errno;

/// Bytes in `struct termios2` (include/uapi/asm-generic/termbits.h): four flag words, the line
/// discipline, 19 control characters, two speeds.
pub const TERMIOS2_SIZE: usize = 44;

/// Bytes in `struct winsize`: rows, columns, and pixels both ways.
pub const WINSIZE_SIZE: usize = 8;

/// `_IOR('T', 0x2a, struct termios2)`.
const TCGETS2: libc::c_ulong = 0x802c_542a;

/// `_IOW('T', 0x2b, struct termios2)`: at once, without waiting for output to drain.
const TCSETS2: libc::c_ulong = 0x402c_542b;

/// The modes of a terminal, raw; ENOTTY for anything else.
pub fn modes(terminal: impl AsFd) -> Result<[u8; TERMIOS2_SIZE], Errno> {
    let mut termios = [0; TERMIOS2_SIZE];
    // SAFETY: TCGETS2 writes one `struct termios2`, as many bytes as `termios` has; the request
    // number itself carries that size.
    let result =
        unsafe { libc::ioctl(terminal.as_fd().as_raw_fd(), TCGETS2, termios.as_mut_ptr()) };
    Errno::result(result).map(|_| termios)
}

/// Sets the modes of a terminal. From a background process group the kernel sends SIGTTOU unless
/// the caller blocks or ignores it.
pub fn set_modes(terminal: impl AsFd, termios: &[u8; TERMIOS2_SIZE]) -> Result<(), Errno> {
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
