//! Unix sockets: their names, whom they are connected to, and what is queued in them.
//!
//! Who is connected to whom comes from [`unix_diag`]. A pending error is noticed without asking for it,
//! which would take it.

mod naming;
mod outsider;

use std::collections::{BTreeSet, HashMap};
use std::path::PathBuf;

use nix::errno::Errno;

use super::Subject;
use super::queue::{self, Queued, Queues};
use crate::dump::files::refusal::RefusalKind;
use crate::dump::files::scan::Description;
use crate::dump::files::{CollectFilesError, Collector, Failure, Scope, call_failed};
use crate::model::id::{Bytes, Pid, SocketId};
use crate::model::socket::{
    SocketCredentials, UnixBinding, UnixConnection, UnixMessage, UnixSocket,
};
use crate::sys::socket::Credentials;
use crate::sys::unix_diag::{self, UnixSocketInfo};
use crate::sys::{descriptor, socket};

/// TCP_LISTEN (include/net/tcp_states.h).
const LISTENING: u8 = 10;
/// RCV_SHUTDOWN and SEND_SHUTDOWN.
const BOTH_WAYS: u8 = 3;

/// What is known of the unix sockets of the job.
#[derive(Debug, Default)]
pub(super) struct UnixTable {
    /// All of this network namespace, by inode; nothing when the kernel does not tell.
    known: HashMap<u64, UnixSocketInfo>,
    /// Inodes of those of the job.
    inside: BTreeSet<u64>,
    /// Inodes of clients that have not been accepted, and of the listeners that they wait for.
    pending: HashMap<u64, u64>,
    /// Whether connections to outside the job are given up.
    gives_up: bool,
    /// Where relative names may lead from.
    directories: Vec<PathBuf>,
}

impl UnixTable {
    /// Finds the unix sockets among `subjects`, and how they are connected.
    pub fn survey(scope: &Scope<'_>, subjects: &[Subject<'_>]) -> Result<Self, CollectFilesError> {
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
        let clients_of = |listener: &UnixSocketInfo| {
            let listener_inode = u64::from(listener.inode);
            let clients = listener.pending.clone().into_iter();
            clients.map(move |client| (u64::from(client), listener_inode))
        };
        Ok(Self {
            inside: unix().map(|subject| subject.found.stat.number).collect(),
            pending: known.iter().flat_map(clients_of).collect(),
            gives_up: scope.ext_unix,
            directories: naming::working_directories(
                scope.subjects.iter().map(|subject| subject.task),
            ),
            known: known.into_iter().map(|info| (u64::from(info.inode), info)).collect(),
        })
    }

    /// Whether the other end of a connection is open outside the job.
    pub fn leads_outside(&self, found: &Description) -> bool {
        let peer = self.known.get(&found.stat.number).and_then(|info| info.peer);
        peer.is_none_or(|peer| peer != 0 && !self.inside.contains(&u64::from(peer)))
    }

    /// Records a socket, and tells the error that its next call will report. `numbers` has those of
    /// all sockets of the job, by inode. What is on its way in its queue is left out.
    pub fn collect(
        &self,
        collector: &Collector,
        subject: &Subject<'_>,
        numbers: &HashMap<u64, SocketId>,
        queues: &Queues,
    ) -> Result<(UnixSocket, i32), Failure> {
        let inode = subject.found.stat.number;
        let (Some(info), Some(seen)) = (self.known.get(&inode), queues.seen.get(&inode)) else {
            return Err(refused("the kernel does not list it in the network namespace of rckpt"));
        };
        if queues.shared.contains(&inode) {
            return Err(refused("a process outside the job has it open, too"));
        }
        let connection = self.connection(subject, info, numbers)?;
        let error = pending_error(subject, &connection)?;
        let queued = match &seen.queued {
            Ok(queued) => queued.as_slice(),
            Err(_) => &[],
        };
        match subject.kind {
            libc::SOCK_DGRAM => self.check_sent(subject, info, queues)?,
            libc::SOCK_SEQPACKET => self.check_complete(subject, info, queued)?,
            _ => {}
        }
        let binding = match () {
            () if info.name.is_empty() => UnixBinding::None,
            () if self.is_accepted(subject.kind, info, &connection) => UnixBinding::None,
            () => naming::binding(info, &self.directories),
        };
        let credentials = |found| recorded_credentials(collector, queues, found);
        let record = UnixSocket {
            name: naming::recorded(&info.name),
            binding,
            connection,
            shutdown: info.shutdown,
            queued: queued
                .iter()
                .map(|Queued { message, .. }| UnixMessage {
                    data: Bytes::from(&message.data[..]),
                    sender: match subject.kind {
                        libc::SOCK_DGRAM => naming::of_address(&message.sender),
                        _ => Bytes::default(),
                    },
                    files: Vec::new(),
                    credentials: message.credentials.and_then(credentials),
                })
                .collect(),
            peer_credentials: credentials(seen.peer),
        };
        Ok((record, error))
    }

    /// Whether all packets have been seen, by the memory that they occupy with who sent them.
    fn check_complete(
        &self,
        subject: &Subject<'_>,
        info: &UnixSocketInfo,
        queued: &[Queued],
    ) -> Result<(), Failure> {
        let Some(sender) = info.peer.and_then(|peer| self.known.get(&u64::from(peer))) else {
            return Ok(());
        };
        Self::check_memory(subject, u64::from(sender.send_queue), queued.iter())
    }

    /// Whether all datagrams that a socket has sent have been seen, as far as the memory that they occupy
    /// with it tells: those of senders without a name are counted together.
    fn check_sent(
        &self,
        subject: &Subject<'_>,
        info: &UnixSocketInfo,
        queues: &Queues,
    ) -> Result<(), Failure> {
        let name = naming::recorded(&info.name);
        let senders = self.inside.iter().filter_map(|inode| self.known.get(inode));
        let sent: u64 = senders
            .filter(|other| other.kind == libc::SOCK_DGRAM)
            .filter(|other| naming::recorded(&other.name) == name)
            .map(|other| u64::from(other.send_queue))
            .sum();
        let is_datagram =
            |inode: &u64| self.known.get(inode).is_some_and(|to| to.kind == libc::SOCK_DGRAM);
        let seen = queues
            .seen
            .iter()
            .filter(|(inode, _)| is_datagram(inode))
            .filter_map(|(_, seen)| seen.queued.as_ref().ok())
            .flatten()
            .filter(|queued| naming::of_address(&queued.message.sender) == name);
        Self::check_memory(subject, sent, seen)
    }

    /// Whether what was `seen` occupies as much memory as `sent`, or more: others may have sent it and be
    /// closed.
    fn check_memory<'a>(
        subject: &Subject<'_>,
        sent: u64,
        seen: impl Iterator<Item = &'a Queued>,
    ) -> Result<(), Failure> {
        if sent == 0 {
            return Ok(());
        }
        let memory = queue::memory_of(subject.kind, seen)
            .map_err(call_failed(subject.found, "weighing what is queued"))?;
        if memory < sent { Err(RefusalKind::UnixSentOutside.into()) } else { Ok(()) }
    }

    /// Whom it is connected to.
    fn connection(
        &self,
        subject: &Subject<'_>,
        info: &UnixSocketInfo,
        numbers: &HashMap<u64, SocketId>,
    ) -> Result<UnixConnection, Failure> {
        let inode = subject.found.stat.number;
        if info.state == LISTENING {
            let pending = self.pending_of(info, numbers)?;
            return Ok(UnixConnection::Listening { backlog: info.send_queue, pending });
        }
        let Some(peer) = info.peer.map(u64::from) else { return Ok(UnixConnection::None) };
        if peer != 0 {
            return match numbers.get(&peer) {
                Some(id) => Ok(UnixConnection::Peer(*id)),
                None => self.outside(subject, peer),
            };
        }
        if let Some(listener) = self.pending.get(&inode) {
            return match numbers.get(listener) {
                Some(id) => Ok(UnixConnection::Pending(*id)),
                None => self.outside(subject, *listener),
            };
        }
        if subject.kind != libc::SOCK_DGRAM && info.shutdown != BOTH_WAYS {
            return Err(refused("its peer is not known"));
        }
        let name = self.peer_name(subject)?;
        Ok(UnixConnection::Gone { name })
    }

    /// Clients that a listener has yet to accept.
    fn pending_of(
        &self,
        info: &UnixSocketInfo,
        numbers: &HashMap<u64, SocketId>,
    ) -> Result<Vec<SocketId>, Failure> {
        let unaccepted = |reason| Err(RefusalKind::UnixNotAccepted { reason }.into());
        let mut pending = Vec::new();
        for client in info.pending.iter().map(|client| u64::from(*client)) {
            let sent = self.known.get(&client).map(|client| client.send_queue);
            match numbers.get(&client) {
                None if self.gives_up && client != 0 => {}
                _ if client == 0 => return unaccepted("has been closed"),
                None => return unaccepted("belongs to a process outside the job"),
                Some(_) if sent != Some(0) => {
                    return unaccepted("has sent what nobody can see until then");
                }
                Some(id) => pending.push(*id),
            }
        }
        Ok(pending)
    }

    /// A connection to a socket outside the job.
    fn outside(&self, subject: &Subject<'_>, peer: u64) -> Result<UnixConnection, Failure> {
        let name = self.peer_name(subject)?;
        let found_by_name = !name.0.is_empty() && matches!(name.0[0], 0 | b'/');
        if subject.kind == libc::SOCK_DGRAM && found_by_name {
            return Ok(UnixConnection::Outside { name });
        }
        if self.gives_up {
            return Ok(UnixConnection::Gone { name });
        }
        let holder = outsider::holder_of(peer);
        Err(RefusalKind::UnixPeerOutside { name, holder }.into())
    }

    /// The name of its peer.
    fn peer_name(&self, subject: &Subject<'_>) -> Result<Bytes, Failure> {
        let address = socket::peer_address(&subject.file)
            .map_err(call_failed(subject.found, "getpeername"))?;
        Ok(naming::of_address(&address))
    }

    /// Whether a socket with a name was accepted from a listener with that name, rather than bound to it.
    /// Of two connected ends at least one was, and it has a name. Where both have one and there is no
    /// listener any more, it was most likely the one that is younger.
    fn is_accepted(&self, kind: i32, info: &UnixSocketInfo, connection: &UnixConnection) -> bool {
        let listens = |name: &[u8]| {
            let is_it = |other: &&UnixSocketInfo| {
                other.state == LISTENING && other.kind == kind && other.name == name
            };
            self.known.values().any(|other| is_it(&other))
        };
        let peer = info.peer.and_then(|peer| self.known.get(&u64::from(peer)));
        match connection {
            _ if kind == libc::SOCK_DGRAM => false,
            UnixConnection::Peer(_) => peer.is_some_and(|peer| {
                peer.name.is_empty()
                    || listens(&info.name)
                    || !listens(&peer.name) && info.inode > peer.inode
            }),
            UnixConnection::Gone { name } => name.0.is_empty() || listens(&info.name),
            _ => false,
        }
    }
}

/// The error that the next call will report; out-of-band data are noticed, too.
fn pending_error(subject: &Subject<'_>, connection: &UnixConnection) -> Result<i32, Failure> {
    let call = |operation| call_failed(subject.found, operation);
    let events =
        descriptor::poll_now(&subject.file, libc::POLLIN | libc::POLLPRI).map_err(call("poll"))?;
    if events & libc::POLLPRI != 0 {
        return Err(refused("out-of-band data are queued in it"));
    }
    if events & libc::POLLERR == 0 {
        return Ok(0);
    }
    let queued = socket::input_queued(&subject.file).map_err(call("SIOCINQ"))?;
    let gone = matches!(connection, UnixConnection::Gone { .. });
    if subject.kind != libc::SOCK_STREAM && (!gone || queued != 0) {
        return Err(refused("an error is pending on it, and would be taken by looking into it"));
    }
    // The peer was closed with something unread: the one error that unix_release_sock sets.
    if gone { Ok(libc::ECONNRESET) } else { Err(refused("an error is pending on it")) }
}

/// Credentials in the job's numbering; `None` when there are none. The id of a process that is not known
/// there is left out.
fn recorded_credentials(
    collector: &Collector,
    queues: &Queues,
    found: Credentials,
) -> Option<SocketCredentials> {
    /// What stands for a user or group that cannot be shown (/proc/sys/kernel/overflowuid), and for
    /// none at all.
    const NOBODY: [u32; 2] = [65534, u32::MAX];
    let Credentials { pid, uid, gid } = found;
    if pid == 0 && NOBODY.contains(&uid) && NOBODY.contains(&gid) {
        return None;
    }
    let recorded = if queues.own_ids {
        Pid(pid)
    } else {
        let host = nix::unistd::Pid::from_raw(pid);
        collector.recorded.get(&host).copied().unwrap_or(Pid(0))
    };
    Some(SocketCredentials { pid: recorded, uid, gid })
}

fn refused(reason: &'static str) -> Failure {
    RefusalKind::UnixSocket { reason }.into()
}
