//! Sockets: their names, options, connections, and what is queued in them.

use serde::{Deserialize, Serialize};

use super::id::{Bytes, OpenFileId, Pid, SocketId};

/// A value set with `setsockopt`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SocketOption {
    /// SOL_SOCKET, IPPROTO_*.
    pub level: i32,
    /// SO_*, IP_*, TCP_*.
    pub name: i32,
    /// Its value as `getsockopt` gives it: SO_SNDBUF and SO_RCVBUF are twice of what was set.
    pub value: Bytes,
}

/// A socket. Exactly one open file description refers to each.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Socket {
    /// AF_*.
    pub domain: i32,
    /// SOCK_STREAM, SOCK_DGRAM or SOCK_SEQPACKET.
    pub kind: i32,
    /// IPPROTO_*; 0 for unix sockets.
    pub protocol: i32,
    /// Options of all levels that a restore has to see to, in the order to set them in.
    pub options: Vec<SocketOption>,
    /// The error that the next call will report (SO_ERROR); 0: none.
    pub error: i32,
    /// What depends on the domain.
    pub detail: SocketDetail,
}

/// What is particular to a domain.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum SocketDetail {
    /// AF_UNIX.
    Unix(UnixSocket),
    /// AF_INET and AF_INET6.
    Inet(InetSocket),
    /// AF_NETLINK.
    Netlink(NetlinkSocket),
}

/// A unix socket.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnixSocket {
    /// Its own name (`sun_path`, without the NUL that ends a path); empty: it has none. One that
    /// begins with NUL is abstract.
    pub name: Bytes,
    /// How it came by the name.
    pub binding: UnixBinding,
    /// Whom it is connected to.
    pub connection: UnixConnection,
    /// RCV_SHUTDOWN (1) and SEND_SHUTDOWN (2).
    pub shutdown: u8,
    /// What it has yet to receive, oldest first. In a stream each entry is a stretch that one
    /// `recvmsg` could receive.
    pub queued: Vec<UnixMessage>,
    /// SO_PEERCRED, where there is one: who connected, listened, or made the pair.
    pub peer_credentials: Option<SocketCredentials>,
}

/// How a unix socket came by its name.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum UnixBinding {
    /// It has no name, or was accepted and shows that of its listener.
    #[default]
    None,
    /// Bound to an abstract name, or to a path that leads to it no more.
    Name,
    /// Bound to a path that leads to it.
    File {
        /// The path, absolute.
        path: Bytes,
        /// Permission bits of the file.
        mode: u32,
        /// Its owner.
        uid: u32,
        /// Its group.
        gid: u32,
    },
}

/// Whom a unix socket is connected to.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum UnixConnection {
    /// Nobody.
    #[default]
    None,
    /// It waits for connections.
    Listening {
        /// The second argument of `listen`, as the kernel bounded it.
        backlog: u32,
        /// Clients that are connected and not yet accepted, oldest first. Nothing they have sent is
        /// waiting.
        pending: Vec<SocketId>,
    },
    /// To a socket of the job. Streams and sequenced packets know each other; datagram sockets need
    /// not.
    Peer(SocketId),
    /// To a listening socket of the job that has not accepted it yet.
    Pending(SocketId),
    /// To one that has been closed, or is given up by the user's leave.
    Gone {
        /// Its name; empty: it had none.
        name: Bytes,
    },
    /// A datagram socket, to one outside the job.
    Outside {
        /// The name to connect to.
        name: Bytes,
    },
}

/// Something queued in a unix socket.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnixMessage {
    /// The bytes.
    pub data: Bytes,
    /// Name of the sender of a datagram; empty: it has none.
    pub sender: Bytes,
    /// Descriptions on their way (SCM_RIGHTS).
    pub files: Vec<OpenFileId>,
    /// SCM_CREDENTIALS, where the receiver asks for them.
    pub credentials: Option<SocketCredentials>,
}

/// `struct ucred`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct SocketCredentials {
    /// The process; 0: one that the job cannot see.
    pub pid: Pid,
    /// Effective user.
    pub uid: u32,
    /// Effective group.
    pub gid: u32,
}

/// An internet socket.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct InetSocket {
    /// Its own address, a `struct sockaddr` as `getsockname` gives it. Port 0: it has none yet.
    pub name: Bytes,
    /// Whom it is connected to.
    pub connection: InetConnection,
    /// RCV_SHUTDOWN (1): after what is queued comes the end. SEND_SHUTDOWN (2): it has sent its end.
    pub shutdown: u8,
    /// What it has yet to receive, oldest first; in a stream, one entry at most.
    pub queued: Vec<InetMessage>,
    /// Multicast groups that it is a member of.
    pub groups: Vec<MulticastGroup>,
}

/// A multicast group on an interface.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MulticastGroup {
    /// Name of the interface.
    pub interface: Bytes,
    /// The group, a `struct sockaddr` without a port.
    pub address: Bytes,
}

/// Whom an internet socket is connected to. Addresses are `struct sockaddr`s of its domain.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum InetConnection {
    /// Nobody.
    #[default]
    None,
    /// TCP: it waits for connections.
    Listening {
        /// The second argument of `listen`, as the kernel bounded it.
        backlog: u32,
    },
    /// UDP: it talks to one address only.
    Datagram {
        /// The address.
        peer: Bytes,
    },
    /// TCP: to a socket of the job, possibly itself.
    Peer(SocketId),
    /// TCP: to a listening socket of the job that has not accepted it yet. Nothing it has sent is
    /// waiting.
    Pending {
        /// Its address.
        peer: Bytes,
    },
    /// TCP: it is trying to connect.
    Connecting {
        /// To whom.
        peer: Bytes,
    },
    /// TCP: to one that has been closed in good order: it has sent its end.
    Gone {
        /// Its address.
        peer: Bytes,
    },
    /// TCP: it was connected, and is not any more: by the end of both directions, by a reset, or by
    /// the user's leave.
    Over {
        /// The address that the peer had.
        peer: Bytes,
    },
}

/// Something queued in an internet socket.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct InetMessage {
    /// The bytes.
    pub data: Bytes,
    /// Address of the sender of a datagram; empty in a stream.
    pub sender: Bytes,
    /// Address (without a port) that a datagram was sent to, where the receiver asks for that; empty
    /// where it does not.
    pub receiver: Bytes,
}

/// A netlink socket that waits for nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetlinkSocket {
    /// Its own address, a `struct sockaddr_nl`. Number 0: it has none yet.
    pub name: Bytes,
}
