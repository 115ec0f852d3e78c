//! One line about a socket.

use crate::model::id::{Bytes, SocketId};
use crate::model::internet::Endpoint;
use crate::model::job::Job;
use crate::model::number::to_usize;
use crate::model::socket::{
    InetConnection, InetSocket, Socket, SocketDetail, UnixConnection, UnixSocket,
};

/// What a socket is, and whom it is connected to.
pub(super) fn describe(job: &Job, id: SocketId) -> String {
    let record = &job.sockets[to_usize(u64::from(id.0))];
    match &record.detail {
        SocketDetail::Unix(unix) => describe_unix(id, record, unix),
        SocketDetail::Inet(inet) => describe_inet(id, record, inet),
        SocketDetail::Netlink(_) => format!("socket {id}, netlink"),
    }
}

fn describe_unix(id: SocketId, record: &Socket, unix: &UnixSocket) -> String {
    let mut line = format!("socket {id}, unix {}", kind_name(record.kind));
    if !unix.name.0.is_empty() {
        line.push_str(&format!(" {}", shown(&unix.name)));
    }
    match &unix.connection {
        UnixConnection::None => {}
        UnixConnection::Listening { pending, .. } => {
            line.push_str(&format!(", listening, {} pending", pending.len()));
        }
        UnixConnection::Peer(peer) => line.push_str(&format!(", connected to socket {peer}")),
        UnixConnection::Pending(listener) => {
            line.push_str(&format!(", not yet accepted by socket {listener}"));
        }
        UnixConnection::Gone { .. } => line.push_str(", its peer is closed"),
        UnixConnection::Outside { name } => {
            line.push_str(&format!(", connected to {} outside", shown(name)));
        }
    }
    if !unix.queued.is_empty() {
        let bytes: usize = unix.queued.iter().map(|message| message.data.0.len()).sum();
        line.push_str(&format!(", {bytes} bytes queued"));
    }
    line
}

fn describe_inet(id: SocketId, record: &Socket, inet: &InetSocket) -> String {
    let kind = if record.kind == libc::SOCK_STREAM { "tcp" } else { "udp" };
    let mut line = format!("socket {id}, {kind} {}", endpoint(&inet.name));
    match &inet.connection {
        InetConnection::None => {}
        InetConnection::Listening { .. } => line.push_str(", listening"),
        InetConnection::Peer(peer) => line.push_str(&format!(", connected to socket {peer}")),
        InetConnection::Datagram { peer } => {
            line.push_str(&format!(", connected to {}", endpoint(peer)));
        }
        InetConnection::Pending { peer } => {
            line.push_str(&format!(", not yet accepted by {}", endpoint(peer)));
        }
        InetConnection::Connecting { peer } => {
            line.push_str(&format!(", connecting to {}", endpoint(peer)));
        }
        InetConnection::Gone { peer } => {
            line.push_str(&format!(", its peer {} is closed", endpoint(peer)));
        }
        InetConnection::Over { peer } => {
            line.push_str(&format!(", its connection to {} is over", endpoint(peer)));
        }
    }
    if !inet.queued.is_empty() {
        let bytes: usize = inet.queued.iter().map(|message| message.data.0.len()).sum();
        line.push_str(&format!(", {bytes} bytes queued"));
    }
    line
}

/// An address for people.
fn endpoint(address: &Bytes) -> String {
    match Endpoint::parse(&address.0) {
        Some(endpoint) => endpoint.to_string(),
        None => address.0.escape_ascii().to_string(),
    }
}

/// A name, with @ for the NUL of an abstract one.
fn shown(name: &Bytes) -> String {
    match name.0.strip_prefix(&[0]) {
        Some(rest) => format!("@{}", rest.escape_ascii()),
        None => name.to_string(),
    }
}

const fn kind_name(kind: i32) -> &'static str {
    match kind {
        libc::SOCK_STREAM => "stream",
        libc::SOCK_DGRAM => "datagram",
        libc::SOCK_SEQPACKET => "sequenced packets",
        _ => "of an unknown type",
    }
}
