//! Sets the options of sockets as recorded.

use std::os::fd::{AsFd, OwnedFd};

use nix::errno::Errno;

use super::SocketError;
use crate::model::id::SocketId;
use crate::model::socket::SocketOption;
use crate::sys::socket::{self, SO_BUF_LOCK};

/// SOCK_SNDBUF_LOCK and SOCK_RCVBUF_LOCK (include/uapi/linux/socket.h): the program has set the size
/// itself.
const SOCK_SNDBUF_LOCK: i32 = 1;
const SOCK_RCVBUF_LOCK: i32 = 2;

/// Sets those recorded options that differ from what the socket has.
pub(super) fn set(
    id: SocketId,
    file: &OwnedFd,
    options: &[SocketOption],
) -> Result<(), SocketError> {
    for option in options {
        let SocketOption { level, name, value } = option;
        let failed =
            |source| SocketError::SetOption { socket: id, level: *level, name: *name, source };
        let current = match socket::option(file, *level, *name, value.0.len().max(64)) {
            // Nothing of the kind is to be switched off here.
            Err(Errno::ENOPROTOOPT | Errno::EOPNOTSUPP)
                if value.0.iter().all(|byte| *byte == 0) =>
            {
                continue;
            }
            outcome => outcome.map_err(failed)?,
        };
        if current == value.0 {
            continue;
        }
        match (*level, *name) {
            (libc::SOL_SOCKET, libc::SO_SNDBUF | libc::SO_RCVBUF) => {
                let wanted = int(&value.0).ok_or(failed(Errno::EINVAL))?;
                let given = set_size(file, *name, wanted).map_err(failed)?;
                if given != wanted && is_own_choice(options, *name) {
                    return Err(SocketError::SetSize { socket: id, wanted, given });
                }
            }
            _ => socket::set_option(file, *level, *name, &value.0).map_err(failed)?,
        }
    }
    Ok(())
}

/// Sets the size of a buffer to what reading it shows, which is twice of what is asked for
/// (socket(7)). Returns what it has become.
///
/// # Errors
/// As setsockopt(2).
pub(super) fn set_size(file: impl AsFd, name: i32, wanted: i32) -> Result<i32, Errno> {
    socket::set_int_option(&file, libc::SOL_SOCKET, name, wanted / 2)?;
    socket::int_option(&file, libc::SOL_SOCKET, name)
}

/// Whether the program has set the size of this buffer, rather than the kernel. Unless that is known
/// it is assumed.
fn is_own_choice(options: &[SocketOption], name: i32) -> bool {
    let bit = if name == libc::SO_SNDBUF { SOCK_SNDBUF_LOCK } else { SOCK_RCVBUF_LOCK };
    let locks = options
        .iter()
        .find(|option| (option.level, option.name) == (libc::SOL_SOCKET, SO_BUF_LOCK))
        .and_then(|option| int(&option.value.0));
    locks.is_none_or(|locks| locks & bit != 0)
}

fn int(value: &[u8]) -> Option<i32> {
    value.try_into().ok().map(i32::from_ne_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::id::Bytes;

    fn option(name: i32, value: &[u8]) -> SocketOption {
        SocketOption { level: libc::SOL_SOCKET, name, value: Bytes::from(value) }
    }

    #[test]
    fn options_become_what_was_read() {
        let wanted = [
            option(libc::SO_SNDBUF, &20_000_i32.to_ne_bytes()),
            option(SO_BUF_LOCK, &1_i32.to_ne_bytes()),
            option(libc::SO_KEEPALIVE, &1_i32.to_ne_bytes()),
            option(libc::SO_LINGER, &[1, 0, 0, 0, 9, 0, 0, 0]),
            option(libc::SO_RCVTIMEO, &[[3, 0, 0, 0, 0, 0, 0, 0], [0; 8]].concat()),
        ];
        let socket = socket::create(libc::AF_UNIX, libc::SOCK_STREAM, 0).unwrap();
        set(SocketId(0), &socket, &wanted).unwrap();
        for option in &wanted {
            let value = socket::option(&socket, option.level, option.name, 64).unwrap();
            assert_eq!(value, option.value.0, "{option:?}");
        }
    }

    #[test]
    fn a_size_that_may_not_be_given_is_an_error_if_the_program_chose_it() {
        let socket = socket::create(libc::AF_UNIX, libc::SOCK_STREAM, 0).unwrap();
        let size = option(libc::SO_RCVBUF, &i32::MAX.to_ne_bytes());
        let kernels = [size.clone(), option(SO_BUF_LOCK, &[0; 4])];
        assert!(set(SocketId(0), &socket, &kernels).is_ok());
        assert!(matches!(
            set(SocketId(0), &socket, &[size]),
            Err(SocketError::SetSize { wanted: i32::MAX, .. })
        ));
    }
}
