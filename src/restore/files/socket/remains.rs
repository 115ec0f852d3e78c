//! What earlier connections have left in the kernel, and keeps their addresses for a minute.
//!
//! When a job ends, its connections stay in TIME_WAIT, where they keep others from binding the same
//! addresses, and the same connection from being made anew. A connection request from the other end's
//! address is answered by what remains with an acknowledgement that makes no sense to the asker; the
//! reset that the asker sends ends it (RFC 1337). Where the other end's address is kept in the same way, for
//! both ends were closed in the same moment, nobody can ask from there: that takes its time.

use std::collections::BTreeSet;

use nix::errno::Errno;

use super::inet::records;
use crate::model::internet::Endpoint;
use crate::model::job::Job;
use crate::model::socket::InetConnection;
use crate::sys::inet_diag::{InetSocketInfo, TcpState, inet_sockets};
use crate::sys::socket;

/// One address may keep another from being used to clear a third.
const ROUNDS: usize = 3;
/// IPPROTO_TCP.
const TCP: u8 = 6;

/// Clears what is in the way of the TCP sockets of `job`, as far as that can be done. Whether it was
/// will show when the addresses are bound.
pub(super) fn clear(job: &Job) {
    let wanted = wanted(job);
    if wanted.is_empty() {
        return;
    }
    for _ in 0..ROUNDS {
        let Ok(known) = inet_sockets(TCP) else { return };
        let remains: Vec<InetSocketInfo> = known
            .into_iter()
            .filter(|info| info.inode == 0 && info.state == TcpState::TimeWait)
            .filter(|info| wanted.iter().any(|name| name.takes(&info.local)))
            .collect();
        if remains.is_empty() {
            return;
        }
        for info in remains {
            // One that cannot be reached stays.
            provoke(&info).unwrap_or_default();
        }
    }
}

/// Whether nothing but what is left of earlier connections has `name`.
pub(super) fn have(name: &Endpoint) -> bool {
    let name = Endpoint { scope: 0, ..*name };
    let in_the_way = |info: &InetSocketInfo| name.takes(&info.local) || info.local.takes(&name);
    let Ok(known) = inet_sockets(TCP) else { return false };
    let mut users = known.iter().filter(|info| in_the_way(info)).peekable();
    users.peek().is_some() && users.all(|info| info.inode == 0)
}

/// The addresses that TCP sockets of a job have, and those of their peers.
fn wanted(job: &Job) -> BTreeSet<Endpoint> {
    let tcp = records(job).filter(|(_, record, _)| record.kind == libc::SOCK_STREAM);
    let names = tcp.flat_map(|(_, _, inet)| {
        let peer = match &inet.connection {
            InetConnection::Gone { peer } | InetConnection::Over { peer } => Some(peer),
            _ => None,
        };
        [Some(&inet.name), peer]
    });
    let endpoints = names.flatten().filter_map(|name| Endpoint::parse(&name.0));
    endpoints
        .filter(|endpoint| endpoint.port != 0)
        .map(|endpoint| Endpoint { scope: 0, ..endpoint })
        .collect()
}

/// Has what remains of a connection answer a request from its other end.
fn provoke(info: &InetSocketInfo) -> Result<(), Errno> {
    let domain = if info.local.ip.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    let address = |endpoint: Endpoint| endpoint.address(domain).ok_or(Errno::EAFNOSUPPORT);
    let kind = libc::SOCK_STREAM | libc::SOCK_NONBLOCK;
    let asker = socket::create(domain, kind, libc::IPPROTO_TCP)?;
    socket::set_int_option(&asker, libc::SOL_SOCKET, libc::SO_REUSEADDR, 1)?;
    // Should somebody take the request, the connection is gone without a trace.
    let linger = [1_i32.to_ne_bytes(), 0_i32.to_ne_bytes()].concat();
    socket::set_option(&asker, libc::SOL_SOCKET, libc::SO_LINGER, &linger)?;
    socket::bind(&asker, &address(info.remote)?)?;
    match socket::connect(&asker, &address(info.local)?) {
        Ok(()) | Err(Errno::EINPROGRESS) => Ok(()),
        Err(errno) => Err(errno),
    }
}
