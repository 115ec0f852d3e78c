//! Internet sockets: TCP and UDP over IPv4 and IPv6, and who of the job is connected to whom.
//!
//! The kernel is asked for all of the network namespace (sock_diag(7)), for a connection may wait to be
//! accepted, or outlive the socket of its other end, without any process having it open.

use std::collections::{BTreeSet, HashMap};

use nix::errno::Errno;

use super::{Subject, inet_options, tcp, udp};
use crate::dump::files::refusal::RefusalKind;
use crate::dump::files::scan::Description;
use crate::dump::files::{CollectFilesError, Failure, Scope, call_failed};
use crate::model::id::SocketId;
use crate::model::internet::Endpoint;
use crate::model::socket::{InetSocket, SocketOption};
use crate::sys::inet_diag::{InetSocketInfo, TcpState, inet_sockets, tcp_info};
use crate::sys::socket;

/// SO_PEERNAME: as getpeername(2), but also when the connection is over.
const SO_PEERNAME: i32 = 28;
/// Bytes of `struct sockaddr_in` and `struct sockaddr_in6`: it wants just as much room.
const ADDRESS_4: usize = 16;
const ADDRESS_6: usize = 28;

/// Own address and that of the peer.
pub(super) type Ends = (Endpoint, Endpoint);

/// What is known of the internet sockets of the job.
#[derive(Debug, Default)]
pub(super) struct InetTable {
    /// Connections of the job by their two addresses: inode, and a process that has it, with its
    /// number there.
    connections: HashMap<Ends, Connected>,
    /// Addresses that the job listens at.
    listeners: Vec<Endpoint>,
    /// Inodes of those that somebody outside has open, too.
    shared: BTreeSet<u64>,
    /// UDP sockets by inode.
    datagram: HashMap<u64, InetSocketInfo>,
    /// Whether connections to outside the job are given up.
    gives_up: bool,
    /// Whether nothing is done to have what is on its way delivered.
    only_looks: bool,
}

/// A TCP socket of the job that has a peer.
#[derive(Clone, Copy, Debug)]
pub(super) struct Connected {
    /// Its inode.
    pub inode: u64,
    /// Where it can be had.
    pub holder: (nix::unistd::Pid, i32),
}

impl InetTable {
    /// Finds the internet sockets among `subjects`, and how they are connected. Those with an inode in
    /// `shared` are open outside the job, too.
    pub fn survey(
        scope: &Scope<'_>,
        subjects: &[Subject<'_>],
        shared: BTreeSet<u64>,
    ) -> Result<Self, CollectFilesError> {
        let mut table = Self {
            shared,
            gives_up: scope.tcp_close,
            only_looks: scope.only_looks,
            ..Self::default()
        };
        for subject in subjects.iter().filter(|subject| is_internet(subject)) {
            let inode = subject.found.stat.number;
            if subject.kind == libc::SOCK_STREAM {
                let info =
                    tcp_info(&subject.file).map_err(call_failed(subject.found, "TCP_INFO"))?;
                let ends = ends(subject)?;
                match (info.state, ends) {
                    (TcpState::Listening, (Some(local), _)) => table.listeners.push(local),
                    (TcpState::Closed, _) => {}
                    (_, (Some(local), Some(remote))) => {
                        let found = Connected { inode, holder: subject.found.holder };
                        table.connections.insert((local, remote), found);
                    }
                    _ => {}
                }
            }
        }
        let mut datagram = subjects
            .iter()
            .filter(|subject| is_internet(subject) && subject.kind == libc::SOCK_DGRAM);
        if let Some(first) = datagram.next() {
            let known = list(first, libc::IPPROTO_UDP)?;
            table.datagram = known.into_iter().map(|info| (u64::from(info.inode), info)).collect();
        }
        Ok(table)
    }

    /// Whether a socket is connected to one that no process of the job has open; `None` when it is no
    /// internet socket that is connected.
    pub fn leads_outside(&self, found: &Description) -> Option<bool> {
        let own = self.connections.iter().find(|(_, other)| other.inode == found.stat.number);
        own.map(|((local, remote), _)| !self.connections.contains_key(&(*remote, *local)))
    }

    /// Records a socket and its options, and tells the error that its next call will report. `numbers`
    /// has those of all sockets of the job, by inode.
    pub fn collect(
        &self,
        subject: &Subject<'_>,
        numbers: &HashMap<u64, SocketId>,
    ) -> Result<(InetSocket, i32, Vec<SocketOption>), Failure> {
        let inode = subject.found.stat.number;
        if self.shared.contains(&inode) {
            return Err(refused("a process outside the job has it open, too"));
        }
        let (record, error) = match subject.kind {
            libc::SOCK_STREAM => tcp::collect(self, subject, numbers)?,
            _ => {
                let shutdown = self.datagram.get(&inode).map_or(0, |info| info.shutdown);
                (udp::collect(subject, shutdown)?, 0)
            }
        };
        let options = inet_options::collect(subject, &record.name)?;
        Ok((record, error, options))
    }

    /// Whether connections to outside the job are given up: the job will find them reset.
    pub const fn gives_up(&self) -> bool {
        self.gives_up
    }

    /// Whether what is on its way stays there.
    pub const fn only_looks(&self) -> bool {
        self.only_looks
    }

    /// The socket of the job at the other end of a connection.
    pub fn peer_of(&self, (local, remote): Ends) -> Option<Connected> {
        self.connections.get(&(remote, local)).copied()
    }

    /// Whether the job listens where a connection to `address` would arrive.
    pub fn listens_at(&self, address: &Endpoint) -> bool {
        self.listeners.iter().any(|listener| listener.takes(address))
    }
}

fn is_internet(subject: &Subject<'_>) -> bool {
    matches!(subject.domain, libc::AF_INET | libc::AF_INET6)
}

/// All sockets of a protocol that the kernel lists.
pub(super) fn list(
    subject: &Subject<'_>,
    protocol: i32,
) -> Result<Vec<InetSocketInfo>, CollectFilesError> {
    let failed = |source| call_failed(subject.found, "NETLINK_SOCK_DIAG")(source);
    inet_sockets(u8::try_from(protocol).map_err(|_| failed(Errno::EINVAL))?).map_err(failed)
}

/// An endpoint as sock_diag(7) shows it, without the interface.
pub(super) const fn plain(endpoint: Endpoint) -> Endpoint {
    Endpoint { scope: 0, ..endpoint }
}

/// The addresses of a socket and of whom it is or was connected to.
fn ends(subject: &Subject<'_>) -> Result<(Option<Endpoint>, Option<Endpoint>), CollectFilesError> {
    let (local, remote) = addresses(subject)?;
    let remote = remote.and_then(|remote| Endpoint::parse(&remote));
    Ok((Endpoint::parse(&local).map(plain), remote.map(plain)))
}

/// The same as bytes.
pub(super) fn addresses(
    subject: &Subject<'_>,
) -> Result<(Vec<u8>, Option<Vec<u8>>), CollectFilesError> {
    let local =
        socket::local_address(&subject.file).map_err(call_failed(subject.found, "getsockname"))?;
    let length = if subject.domain == libc::AF_INET { ADDRESS_4 } else { ADDRESS_6 };
    match socket::option(&subject.file, libc::SOL_SOCKET, SO_PEERNAME, length) {
        Ok(remote) => Ok((local, Some(remote))),
        Err(Errno::ENOTCONN) => Ok((local, None)),
        Err(source) => Err(call_failed(subject.found, "SO_PEERNAME")(source)),
    }
}

/// A refusal of what will be gone in a moment if the job runs on.
pub(super) fn refused_now(reason: &'static str) -> Failure {
    RefusalKind::InetPassing { reason }.into()
}

pub(super) fn refused(reason: &'static str) -> Failure {
    RefusalKind::InetSocket { reason }.into()
}
