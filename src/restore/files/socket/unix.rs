//! Unix sockets: pairs, and ends whose peer was closed.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::dup3;

use super::{SocketError, options};
use crate::model::id::SocketId;
use crate::model::job::Job;
use crate::model::socket::{Socket, SocketDetail, UnixConnection, UnixMessage, UnixSocket};
use crate::sys::clone::{self, Fork};
use crate::sys::socket;

/// As large a buffer as the kernel will give (/proc/sys/net/core/wmem_max).
const LARGEST_BUFFER: i32 = i32::MAX;
/// RCV_SHUTDOWN and SEND_SHUTDOWN.
const RECEIVING: u8 = 1;
const SENDING: u8 = 2;

/// Makes the unix sockets of `job`, with their names and connections. Those whose peer was closed get
/// their queue here, while they have a peer.
pub(super) fn make(job: &Job, made: &mut BTreeMap<SocketId, OwnedFd>) -> Result<(), SocketError> {
    for (id, record, unix) in records(job) {
        if made.contains_key(&id) {
            continue;
        }
        let unknown = SocketError::Make { socket: id, operation: "connect", source: Errno::EINVAL };
        match &unix.connection {
            UnixConnection::Peer(peer) => {
                let mutual = records(job).any(|(other, other_record, detail)| {
                    other == *peer
                        && other != id
                        && other_record.kind == record.kind
                        && detail.connection == UnixConnection::Peer(id)
                });
                if !mutual {
                    return Err(unknown);
                }
                let (left, right) = pair(id, record, unix)?;
                made.insert(id, left);
                made.insert(*peer, right);
            }
            UnixConnection::Gone { .. } => {
                let (socket, peer) = pair(id, record, unix)?;
                fill(id, &peer, record.kind, &unix.queued)?;
                if record.error == libc::ECONNRESET {
                    // That is what comes of closing a stream with something unread.
                    socket::send(&socket, b"x", &[], &[], None).map_err(failed(id, "send"))?;
                }
                made.insert(id, socket);
            }
            _ => return Err(unknown),
        }
    }
    Ok(())
}

/// Fills their queues, and does what would have been in the way of that.
pub(super) fn finish(job: &Job, made: &BTreeMap<SocketId, OwnedFd>) -> Result<(), SocketError> {
    for (id, record, unix) in records(job) {
        if let UnixConnection::Peer(peer) = &unix.connection
            && let Some(peer) = made.get(peer)
        {
            fill(id, peer, record.kind, &unix.queued)?;
        }
    }
    for (id, _, unix) in records(job) {
        let how = match (unix.shutdown & RECEIVING != 0, unix.shutdown & SENDING != 0) {
            (false, false) => continue,
            (true, false) => libc::SHUT_RD,
            (false, true) => libc::SHUT_WR,
            (true, true) => libc::SHUT_RDWR,
        };
        if let Some(socket) = made.get(&id) {
            socket::shut_down(socket, how).map_err(failed(id, "shutdown"))?;
        }
    }
    Ok(())
}

/// The unix sockets of a job.
fn records(job: &Job) -> impl Iterator<Item = (SocketId, &Socket, &UnixSocket)> {
    (0..).zip(&job.sockets).filter_map(|(number, record)| match &record.detail {
        SocketDetail::Unix(unix) => Some((SocketId(number), record, unix)),
        SocketDetail::Inet(_) | SocketDetail::Netlink(_) => None,
    })
}

/// Sends what socket `id` has yet to receive, from its peer. The size of the peer's buffer is put right
/// with its other options.
fn fill(
    id: SocketId,
    peer: &OwnedFd,
    kind: i32,
    queued: &[UnixMessage],
) -> Result<(), SocketError> {
    if !queued.is_empty() {
        options::set_size(peer, libc::SO_SNDBUF, LARGEST_BUFFER)
            .map_err(failed(id, "SO_SNDBUF"))?;
    }
    for message in queued {
        let mut rest = message.data.0.as_slice();
        loop {
            let sent = socket::send(peer, rest, &[], &[], None).map_err(failed(id, "sendmsg"))?;
            rest = &rest[sent..];
            if rest.is_empty() || kind != libc::SOCK_STREAM {
                break;
            }
        }
    }
    Ok(())
}

/// Two sockets connected to each other, made by the process that SO_PEERCRED names: a child with its
/// id, which shares our descriptors and ends at once.
fn pair(
    id: SocketId,
    record: &Socket,
    unix: &UnixSocket,
) -> Result<(OwnedFd, OwnedFd), SocketError> {
    let make = || socket::pair(record.domain, record.kind, record.protocol);
    let mut places = make().map_err(failed(id, "socketpair"))?;
    let maker = unix.peer_credentials.map_or(0, |credentials| credentials.pid.0);
    if maker == 0 {
        return Ok(places);
    }
    let files = u64::from(libc::CLONE_FILES.unsigned_abs());
    let child = match clone::fork(files, 0, Some(maker)) {
        Ok(Fork::Parent(child)) => child,
        Ok(Fork::Child) => {
            let outcome = make().and_then(|(left, right)| {
                dup3(&left, &mut places.0, OFlag::O_CLOEXEC)?;
                dup3(&right, &mut places.1, OFlag::O_CLOEXEC)
            });
            clone::exit_now(outcome.map_or_else(|errno| errno as i32, |()| 0));
        }
        Err(error) => {
            let source = Errno::from_raw(error.raw_os_error().unwrap_or(libc::EAGAIN));
            return Err(failed(id, "clone3")(source));
        }
    };
    loop {
        match waitpid(child, Some(WaitPidFlag::__WALL)) {
            Err(Errno::EINTR) => {}
            Ok(WaitStatus::Exited(_, 0)) => return Ok(places),
            Ok(WaitStatus::Exited(_, code)) => {
                return Err(failed(id, "socketpair")(Errno::from_raw(code)));
            }
            Ok(_) => return Err(failed(id, "socketpair")(Errno::EINTR)),
            Err(source) => return Err(failed(id, "waitpid")(source)),
        }
    }
}

fn failed(socket: SocketId, operation: &'static str) -> impl FnOnce(Errno) -> SocketError {
    move |source| SocketError::Make { socket, operation, source }
}
