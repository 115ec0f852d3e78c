//! What the kernel tells about the unix sockets of the caller's network namespace: NETLINK_SOCK_DIAG
//! (sock_diag(7)), with a parser that takes bytes.

use nix::errno::Errno;

use super::sock_diag::{ask_all, ask_one, attributes, word};

/// UDIAG_SHOW_NAME, _VFS, _PEER, _ICONS and _RQLEN (include/uapi/linux/unix_diag.h).
const SHOW: u32 = 0x1f;
/// Bytes of `struct unix_diag_msg`.
const MESSAGE: usize = 16;

/// A unix socket that has an inode.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UnixSocketInfo {
    /// SOCK_*.
    pub kind: i32,
    /// TCP_ESTABLISHED (1), TCP_CLOSE (7) or TCP_LISTEN (10).
    pub state: u8,
    /// Inode number, as /proc/PID/fd shows it.
    pub inode: u32,
    /// `sun_path`; empty without a name.
    pub name: Vec<u8>,
    /// Inode number of the file it is bound to, and its device as the kernel numbers it.
    pub file: Option<(u32, u32)>,
    /// Inode of its peer; 0: closed, or not yet accepted.
    pub peer: Option<u32>,
    /// Of a listening socket: inodes of the clients not yet accepted, oldest first; 0: closed.
    pub pending: Vec<u32>,
    /// Bytes to be read, or connections waiting of a listening socket.
    pub receive_queue: u32,
    /// Memory sent and not yet received, or the backlog of a listening socket.
    pub send_queue: u32,
    /// RCV_SHUTDOWN (1) and SEND_SHUTDOWN (2).
    pub shutdown: u8,
}

/// All unix sockets of the caller's network namespace that have an inode. Those not yet accepted have
/// none.
///
/// # Errors
/// As socket(2), send(2) and recv(2); EBADMSG for an answer that is not as the kernel writes it.
pub fn unix_sockets() -> Result<Vec<UnixSocketInfo>, Errno> {
    let mut sockets = Vec::new();
    ask_all(&request(0), &mut |message| {
        sockets.push(parse_socket(message)?);
        Ok(())
    })?;
    Ok(sockets)
}

/// The socket with this inode number.
///
/// # Errors
/// As for [`unix_sockets`]; ENOENT when there is none in the caller's network namespace.
pub fn unix_socket(inode: u32) -> Result<UnixSocketInfo, Errno> {
    let mut socket = None;
    ask_one(&request(inode), &mut |message| {
        socket = Some(parse_socket(message)?);
        Ok(())
    })?;
    socket.ok_or(Errno::ENOENT)
}

/// `struct unix_diag_req`: sockets in any state, with this inode if one alone is asked for.
fn request(inode: u32) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(24);
    bytes.extend([1, 0, 0, 0]); // AF_UNIX
    bytes.extend(u32::MAX.to_ne_bytes());
    bytes.extend(inode.to_ne_bytes());
    bytes.extend(SHOW.to_ne_bytes());
    bytes.extend([0xff; 8]);
    bytes
}

fn parse_socket(body: &[u8]) -> Result<UnixSocketInfo, Errno> {
    let [_, kind, state, ..] = body else { return Err(Errno::EBADMSG) };
    let mut found = UnixSocketInfo {
        kind: i32::from(*kind),
        state: *state,
        inode: word(body, 4)?,
        ..UnixSocketInfo::default()
    };
    // UNIX_DIAG_*.
    attributes(body.get(MESSAGE..).ok_or(Errno::EBADMSG)?, &mut |kind, value| {
        match kind {
            0 => found.name = value.to_vec(),
            1 => found.file = Some((word(value, 0)?, word(value, 4)?)),
            2 => found.peer = Some(word(value, 0)?),
            3 => {
                let (words, _) = value.as_chunks::<4>();
                found.pending = words.iter().map(|word| u32::from_ne_bytes(*word)).collect();
            }
            4 => (found.receive_queue, found.send_queue) = (word(value, 0)?, word(value, 4)?),
            6 => found.shutdown = value.first().copied().unwrap_or_default(),
            _ => {}
        }
        Ok(())
    })?;
    Ok(found)
}

#[cfg(test)]
mod tests {
    use std::os::fd::OwnedFd;

    use super::super::socket;
    use super::*;

    #[test]
    fn a_listener_shows_its_pending_clients_and_a_pair_each_other() {
        let inode = |file: &OwnedFd| {
            let stat = nix::sys::stat::fstat(file).unwrap();
            u32::try_from(stat.st_ino).unwrap()
        };
        let listener = socket::create(libc::AF_UNIX, libc::SOCK_STREAM, 0).unwrap();
        socket::bind(&listener, &[1, 0]).unwrap();
        socket::listen(&listener, 7).unwrap();
        let name = socket::local_address(&listener).unwrap();
        let client = socket::create(libc::AF_UNIX, libc::SOCK_STREAM, 0).unwrap();
        socket::connect(&client, &name).unwrap();
        let (left, right) = socket::pair(libc::AF_UNIX, libc::SOCK_DGRAM, 0).unwrap();
        socket::shut_down(&left, libc::SHUT_RD).unwrap();
        let all = unix_sockets().unwrap();
        let find = |file| all.iter().find(|found| found.inode == inode(file)).unwrap();
        assert_eq!((find(&listener).state, find(&listener).send_queue), (10, 7));
        assert_eq!(find(&listener).pending, [inode(&client)]);
        assert_eq!(find(&listener).name, &name[2..]);
        assert_eq!(find(&client).peer, Some(0));
        assert_eq!(find(&left).peer, Some(inode(&right)));
        assert_eq!((find(&left).shutdown, find(&right).shutdown), (1, 0));
        assert_eq!(unix_socket(inode(&left)).as_ref(), Ok(find(&left)));
        assert_eq!(unix_socket(u32::MAX), Err(Errno::ENOENT));
    }
}
