//! Internet sockets: what TCP and UDP have in common, and whether their addresses are free here.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::{SocketError, options, remains, tcp, udp};
use crate::model::id::{Bytes, SocketId};
use crate::model::internet::Endpoint;
use crate::model::job::Job;
use crate::model::socket::{InetConnection, InetSocket, Socket, SocketDetail, SocketOption};
use crate::sys::socket;

/// IP_LOCAL_PORT_RANGE and IPV6_FREEBIND, include/uapi/linux/in.h and in6.h.
const IP_LOCAL_PORT_RANGE: i32 = 51;
const IPV6_FREEBIND: i32 = 78;
/// Options that matter to bind(2).
const BEFORE_BINDING: [(i32, i32); 8] = [
    (libc::SOL_SOCKET, libc::SO_REUSEADDR),
    (libc::SOL_SOCKET, libc::SO_REUSEPORT),
    (libc::SOL_SOCKET, libc::SO_BINDTODEVICE),
    (libc::IPPROTO_IP, libc::IP_FREEBIND),
    (libc::IPPROTO_IP, libc::IP_TRANSPARENT),
    (libc::IPPROTO_IP, IP_LOCAL_PORT_RANGE),
    (libc::IPPROTO_IPV6, libc::IPV6_V6ONLY),
    (libc::IPPROTO_IPV6, IPV6_FREEBIND),
];

/// Makes the internet sockets of `job`, with their addresses, connections and queues.
pub(super) fn make(job: &Job, made: &mut BTreeMap<SocketId, OwnedFd>) -> Result<(), SocketError> {
    remains::clear(job);
    tcp::make(job, made)?;
    udp::make(job, made)
}

/// The internet sockets of a job.
pub(super) fn records(job: &Job) -> impl Iterator<Item = (SocketId, &Socket, &InetSocket)> {
    (0..).zip(&job.sockets).filter_map(|(number, record)| match &record.detail {
        SocketDetail::Inet(inet) => Some((SocketId(number), record, inet)),
        SocketDetail::Unix(_) | SocketDetail::Netlink(_) => None,
    })
}

/// A socket like `record`, with the options that matter to bind(2).
pub(super) fn create(id: SocketId, record: &Socket) -> Result<OwnedFd, SocketError> {
    let file = socket::create(record.domain, record.kind, record.protocol)
        .map_err(failed(id, "socket"))?;
    let matters = |option: &&SocketOption| BEFORE_BINDING.contains(&(option.level, option.name));
    let early: Vec<SocketOption> = record.options.iter().filter(matters).cloned().collect();
    options::set(id, &file, &early)?;
    // In a connection of Multipath TCP that could not be put right.
    if record.kind == libc::SOCK_STREAM && !(is_multipath(record) && is_connection(record)) {
        // What is left of earlier connections must not be in the way. It is put right in the end.
        socket::set_int_option(&file, libc::SOL_SOCKET, libc::SO_REUSEADDR, 1)
            .map_err(failed(id, "SO_REUSEADDR"))?;
    }
    Ok(file)
}

/// Whether it was made for Multipath TCP.
pub(super) const fn is_multipath(record: &Socket) -> bool {
    record.protocol == libc::IPPROTO_MPTCP
}

fn is_connection(record: &Socket) -> bool {
    let SocketDetail::Inet(inet) = &record.detail else { return false };
    !matches!(inet.connection, InetConnection::None | InetConnection::Listening { .. })
}

/// Gives a socket its name, if it has one.
pub(super) fn bind(id: SocketId, file: &OwnedFd, name: &Bytes) -> Result<(), SocketError> {
    let Some(endpoint) = Endpoint::parse(&name.0) else { return Ok(()) };
    if endpoint.port == 0 {
        if endpoint.is_wildcard() {
            return Ok(());
        }
        socket::set_int_option(file, libc::IPPROTO_IP, libc::IP_BIND_ADDRESS_NO_PORT, 1)
            .map_err(failed(id, "IP_BIND_ADDRESS_NO_PORT"))?;
    }
    socket::bind(file, &name.0).map_err(named(id, endpoint, "bind"))
}

/// Why an address cannot be had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::restore::files) enum Obstacle {
    /// Somebody has it.
    Taken,
    /// What is left of earlier connections has it, for about a minute.
    Remains,
    /// It cannot be bound.
    Failed(Errno),
}

/// Internet addresses of the job that cannot be had here, and why.
pub(in crate::restore::files) fn unavailable(job: &Job) -> Vec<(Endpoint, Obstacle)> {
    remains::clear(job);
    let mut found: Vec<(Endpoint, Obstacle)> = Vec::new();
    for (id, record, inet) in records(job) {
        let Some(name) = Endpoint::parse(&inet.name.0).filter(|name| name.port != 0) else {
            continue;
        };
        // A connection that is given up needs no address of its own.
        if tcp::is_given_up(inet) || found.iter().any(|(other, _)| *other == name) {
            continue;
        }
        // What fails for another reason will be told when it is made.
        let Ok(file) = create(id, record) else { continue };
        let obstacle = match socket::bind(&file, &inet.name.0) {
            Ok(()) => continue,
            Err(Errno::EADDRINUSE) if record.kind == libc::SOCK_STREAM && remains::have(&name) => {
                Obstacle::Remains
            }
            Err(Errno::EADDRINUSE) => Obstacle::Taken,
            Err(errno) => Obstacle::Failed(errno),
        };
        found.push((name, obstacle));
    }
    found
}

/// Waits for one of `events`; false when none came.
pub(super) fn wait_for(file: impl AsFd, events: PollFlags, patience: Duration) -> bool {
    let timeout = PollTimeout::try_from(patience).unwrap_or(PollTimeout::MAX);
    let mut wanted = [PollFd::new(file.as_fd(), events)];
    loop {
        match poll(&mut wanted, timeout) {
            Err(Errno::EINTR) => {}
            outcome => return outcome == Ok(1),
        }
    }
}

pub(super) fn failed(
    socket: SocketId,
    operation: &'static str,
) -> impl FnOnce(Errno) -> SocketError {
    move |source| SocketError::Make { socket, operation, source }
}

/// A failure that has to do with an address.
pub(super) fn named(
    socket: SocketId,
    endpoint: Endpoint,
    operation: &'static str,
) -> impl FnOnce(Errno) -> SocketError {
    let name = Bytes(endpoint.to_string().into_bytes());
    move |source| SocketError::Name { socket, name, operation, source }
}
