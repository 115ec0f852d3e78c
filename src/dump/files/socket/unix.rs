//! Unix sockets: pairs whose both ends are in the job, and ends whose peer has been closed.
//!
//! Who is connected to whom comes from [`unix_diag`]. What is queued is peeked at: nothing is received,
//! and a pending error is noticed without asking for it, which would take it.

use std::collections::{BTreeSet, HashMap};

use nix::errno::Errno;

use super::Subject;
use crate::dump::files::refusal::RefusalKind;
use crate::dump::files::scan::Description;
use crate::dump::files::{CollectFilesError, Collector, Failure, call_failed};
use crate::model::id::{Bytes, Pid, SocketId};
use crate::model::socket::{SocketCredentials, UnixConnection, UnixMessage, UnixSocket};
use crate::sys::unix_diag::{self, UnixSocketInfo};
use crate::sys::{descriptor, socket};

/// TCP_LISTEN (include/net/tcp_states.h).
const LISTENING: u8 = 10;
/// RCV_SHUTDOWN and SEND_SHUTDOWN.
const BOTH_WAYS: u8 = 3;
/// Bytes of `struct ucred`.
const CREDENTIALS: usize = 12;
/// More than any message has.
const SEND_BUFFER: i32 = 1 << 30;

/// What is known of the unix sockets of the job.
#[derive(Debug, Default)]
pub(super) struct UnixTable {
    /// All of this network namespace, by inode; nothing when the kernel does not tell.
    known: HashMap<u64, UnixSocketInfo>,
    /// Inodes of those of the job.
    inside: BTreeSet<u64>,
    /// Inodes of clients that have not been accepted.
    pending: BTreeSet<u64>,
    /// Inodes of those that somebody outside has open, too.
    shared: BTreeSet<u64>,
}

impl UnixTable {
    /// Finds the unix sockets among `subjects`, and how they are connected. Those with an inode in
    /// `shared` are open outside the job, too.
    pub fn survey(
        subjects: &[Subject<'_>],
        shared: BTreeSet<u64>,
    ) -> Result<Self, CollectFilesError> {
        let unix = || subjects.iter().filter(|subject| subject.domain == libc::AF_UNIX);
        // A kernel without sock_diag knows none of them, and each will be refused.
        let known = match unix().next().map(|first| (first, unix_diag::unix_sockets())) {
            None | Some((_, Err(Errno::EPROTONOSUPPORT | Errno::ENOENT))) => {
                return Ok(Self::default());
            }
            Some((first, outcome)) => {
                outcome.map_err(call_failed(first.found, "NETLINK_SOCK_DIAG"))?
            }
        };
        let pending = known.iter().flat_map(|info| &info.pending);
        Ok(Self {
            inside: unix().map(|subject| subject.found.stat.number).collect(),
            pending: pending.map(|inode| u64::from(*inode)).collect(),
            shared,
            known: known.into_iter().map(|info| (u64::from(info.inode), info)).collect(),
        })
    }

    /// Whether the other end of a connection is open outside the job.
    pub fn leads_outside(&self, found: &Description) -> bool {
        let peer = self.known.get(&found.stat.number).and_then(|info| info.peer);
        peer.is_none_or(|peer| peer != 0 && !self.inside.contains(&u64::from(peer)))
    }

    /// Records a socket, and tells the error that its next call will report. `numbers` has those of
    /// all sockets of the job, by inode.
    pub fn collect(
        &mut self,
        collector: &mut Collector,
        subject: &Subject<'_>,
        numbers: &HashMap<u64, SocketId>,
    ) -> Result<(UnixSocket, i32), Failure> {
        let inode = subject.found.stat.number;
        let info = self.known.get(&inode).ok_or_else(|| {
            refused("the kernel does not list it in the network namespace of rckpt")
        })?;
        if self.shared.contains(&inode) {
            return Err(refused("a process outside the job has it open, too"));
        }
        if info.state == LISTENING {
            return Err(refused("it listens"));
        }
        if !info.name.is_empty() {
            return Err(refused("it has a name"));
        }
        let connection = self.connection(subject, info, numbers)?;
        let events = descriptor::poll_now(&subject.file, libc::POLLIN | libc::POLLPRI)
            .map_err(call_failed(subject.found, "poll"))?;
        if events & libc::POLLPRI != 0 {
            return Err(refused("out-of-band data are queued in it"));
        }
        let gone = matches!(connection, UnixConnection::Gone { .. });
        let error = match (events & libc::POLLERR != 0, gone) {
            (false, _) => 0,
            // The peer was closed with something unread: the one error that unix_release_sock sets.
            (true, true) => libc::ECONNRESET,
            (true, false) => return Err(refused("an error is pending on it")),
        };
        let queued = match subject.kind {
            libc::SOCK_STREAM => stream_queue(subject)?,
            _ => packet_queue(subject, self.sent_by_peer(info))?,
        };
        let record = UnixSocket {
            connection,
            shutdown: info.shutdown,
            queued,
            peer_credentials: credentials(collector, subject)?,
            ..UnixSocket::default()
        };
        Ok((record, error))
    }

    /// Whom it is connected to.
    fn connection(
        &self,
        subject: &Subject<'_>,
        info: &UnixSocketInfo,
        numbers: &HashMap<u64, SocketId>,
    ) -> Result<UnixConnection, Failure> {
        let inode = subject.found.stat.number;
        let Some(peer) = info.peer.map(u64::from) else {
            return Err(refused("it is not connected"));
        };
        if peer == 0 {
            if self.pending.contains(&inode) {
                return Err(refused("its connection has not been accepted yet"));
            }
            if subject.kind != libc::SOCK_STREAM || info.shutdown != BOTH_WAYS {
                return Err(refused("it is connected to a packet socket that was closed"));
            }
            let name = socket::peer_address(&subject.file)
                .map_err(call_failed(subject.found, "getpeername"))?;
            if name.len() > size_of::<libc::sa_family_t>() {
                return Err(refused("its peer, which was closed, had a name"));
            }
            return Ok(UnixConnection::Gone { name: Bytes::default() });
        }
        let mutual = self.known.get(&peer).and_then(|other| other.peer).map(u64::from);
        match numbers.get(&peer) {
            None => Err(refused("it is connected to a process outside the job")),
            Some(_) if mutual != Some(inode) => {
                Err(refused("its peer is connected to another socket"))
            }
            Some(id) => Ok(UnixConnection::Peer(*id)),
        }
    }

    /// Memory that is occupied by what the peer has sent and nobody has received.
    fn sent_by_peer(&self, info: &UnixSocketInfo) -> u32 {
        let peer = info.peer.and_then(|peer| self.known.get(&u64::from(peer)));
        peer.map_or(u32::MAX, |peer| peer.send_queue)
    }
}

/// What a stream has yet to receive. One look sees all of it, unless something is on its way with it.
fn stream_queue(subject: &Subject<'_>) -> Result<Vec<UnixMessage>, Failure> {
    let length =
        socket::input_queued(&subject.file).map_err(call_failed(subject.found, "SIOCINQ"))?;
    // With nothing queued, a look would take a pending error.
    if length == 0 {
        return Ok(Vec::new());
    }
    Ok(vec![message(subject, length)?])
}

/// What a packet socket has yet to receive: at most one message. The kernel shows the first without
/// moving on, and does not tell how many there are. But it tells how much memory they occupy: when a
/// message like the first needs just as much, there is no other, for none goes without.
fn packet_queue(subject: &Subject<'_>, memory: u32) -> Result<Vec<UnixMessage>, Failure> {
    if memory == 0 {
        return Ok(Vec::new());
    }
    let call = |operation| call_failed(subject.found, operation);
    let length = socket::input_queued(&subject.file).map_err(call("SIOCINQ"))?;
    let first = message(subject, length)?;
    let (left, _right) =
        socket::pair(libc::AF_UNIX, subject.kind, 0).map_err(call("socketpair"))?;
    socket::set_int_option(&left, libc::SOL_SOCKET, libc::SO_SNDBUF, SEND_BUFFER)
        .map_err(call("SO_SNDBUF"))?;
    let several = || refused("more than one packet is queued in it");
    socket::send(&left, &first.data.0, &[], &[], None).map_err(|_| several())?;
    let alone = socket::output_queued(&left).map_err(call("SIOCOUTQ"))?;
    if alone != u64::from(memory) {
        return Err(several());
    }
    Ok(vec![first])
}

/// Looks at the next message, or what is queued in a stream, of `length` bytes.
fn message(subject: &Subject<'_>, length: u64) -> Result<UnixMessage, Failure> {
    let offset = socket::int_option(&subject.file, libc::SOL_SOCKET, libc::SO_PEEK_OFF)
        .map_err(call_failed(subject.found, "SO_PEEK_OFF"))?;
    if offset >= 0 {
        return Err(refused("it has the option SO_PEEK_OFF, which a look would move"));
    }
    let limit = usize::try_from(length + 1).map_err(|_| refused("too much is queued in it"))?;
    let found =
        socket::peek(&subject.file, limit).map_err(call_failed(subject.found, "recvmsg"))?;
    if !found.files.is_empty() {
        return Err(refused("descriptors are on their way in it (SCM_RIGHTS)"));
    }
    if found.credentials.is_some() {
        return Err(refused("credentials are on their way in it (SCM_CREDENTIALS)"));
    }
    if found.data.len() != limit - 1 || found.flags & (libc::MSG_TRUNC | libc::MSG_CTRUNC) != 0 {
        return Err(refused("what is queued in it cannot be seen whole"));
    }
    Ok(UnixMessage { data: Bytes(found.data), ..UnixMessage::default() })
}

/// SO_PEERCRED. The id of a process that is not in the job, or has ended, is left out.
fn credentials(
    collector: &Collector,
    subject: &Subject<'_>,
) -> Result<Option<SocketCredentials>, Failure> {
    let value = socket::option(&subject.file, libc::SOL_SOCKET, libc::SO_PEERCRED, CREDENTIALS)
        .map_err(call_failed(subject.found, "SO_PEERCRED"))?;
    let [pid, uid, gid] = value.as_chunks::<4>().0 else { return Ok(None) };
    let host = nix::unistd::Pid::from_raw(i32::from_ne_bytes(*pid));
    Ok(Some(SocketCredentials {
        pid: collector.recorded.get(&host).copied().unwrap_or(Pid(0)),
        uid: u32::from_ne_bytes(*uid),
        gid: u32::from_ne_bytes(*gid),
    }))
}

fn refused(reason: &'static str) -> Failure {
    RefusalKind::UnixSocket { reason }.into()
}
