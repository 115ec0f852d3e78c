//! TCP sockets: fresh and bound ones, listeners, connections within the job, and those whose other end
//! has been closed.
//!
//! Sockets of Multipath TCP are among them as long as they do not use it: fresh ones, listeners, and those
//! whose peer knows plain TCP only. (What a listener accepts from such a client is plain TCP by itself.)

use std::collections::HashMap;
use std::os::fd::OwnedFd;

use nix::errno::Errno;

use super::Subject;
use super::inet::{Connected, Ends, InetTable, addresses, list, plain, refused, refused_now};
use super::tcp_queue;
use super::udp::is_local;
use crate::dump::files::refusal::RefusalKind;
use crate::dump::files::{CollectFilesError, Failure, call_failed};
use crate::model::id::{Bytes, SocketId};
use crate::model::internet::Endpoint;
use crate::model::socket::{InetConnection, InetMessage, InetSocket};
use crate::sys::inet_diag::{InetSocketInfo, TcpState, tcp_connection, tcp_info};
use crate::sys::{descriptor, socket};

/// RCV_SHUTDOWN and SEND_SHUTDOWN.
const RECEIVING: u8 = 1;
const SENDING: u8 = 2;
/// Why a socket is not looked into.
const PLACE_TO_LOOK_AT: &str = "it has the option SO_PEEK_OFF, which a look would move";
/// TCP_ZEROCOPY_RECEIVE, and the bytes of `struct tcp_zerocopy_receive` up to and with `length`.
const TCP_ZEROCOPY_RECEIVE: i32 = 35;
const ZEROCOPY_RECEIVE_LENGTH: usize = 12;
/// include/linux/socket.h, and include/uapi/linux/mptcp.h with the first bytes of `struct mptcp_info`.
const SOL_MPTCP: i32 = 284;
const MPTCP_INFO: i32 = 1;
const MPTCP_INFO_LENGTH: usize = 16;

/// Records a TCP socket, and tells the error that its next call will report.
pub(super) fn collect(
    table: &InetTable,
    subject: &Subject<'_>,
    numbers: &HashMap<u64, SocketId>,
) -> Result<(InetSocket, i32), Failure> {
    let (name, peer) = addresses(subject)?;
    let tcp = Tcp { subject, name: Bytes(name) };
    if peer.is_some() && tcp.has_several_paths()? {
        return Err(RefusalKind::MultipathTcp.into());
    }
    let info = tcp_info(&subject.file).map_err(tcp.call_failed("TCP_INFO"))?;
    let Some(peer) = peer else {
        return match info.state {
            TcpState::Listening => {
                let connection = InetConnection::Listening { backlog: info.backlog };
                Ok((tcp.record(connection, 0, Vec::new()), 0))
            }
            TcpState::Closed => Ok((tcp.record(InetConnection::None, 0, Vec::new()), 0)),
            _ => Err(refused_now("it is in the middle of connecting")),
        };
    };
    if tcp.events()? & libc::POLLPRI != 0 {
        return Err(refused("urgent data are queued in it (MSG_OOB)"));
    }
    match info.state {
        TcpState::Listening => {
            let connection = InetConnection::Listening { backlog: info.backlog };
            Ok((tcp.record(connection, 0, Vec::new()), 0))
        }
        TcpState::Closed => tcp.over(peer),
        TcpState::SynSent => {
            Ok((tcp.record(InetConnection::Connecting { peer: Bytes(peer) }, 0, Vec::new()), 0))
        }
        _ => tcp.connected(table, peer, numbers),
    }
}

/// Who is at the other end of a connection.
enum Other {
    /// A socket of the job.
    Inside(Connected),
    /// One that waits to be accepted by a listener of the job.
    Pending(InetSocketInfo),
    /// One that was closed, as far as the kernel still has it.
    Closed(Option<InetSocketInfo>),
    /// Somebody else.
    Outside,
}

/// A TCP socket that is being looked at.
struct Tcp<'a> {
    subject: &'a Subject<'a>,
    name: Bytes,
}

impl Tcp<'_> {
    fn record(
        &self,
        connection: InetConnection,
        shutdown: u8,
        queued: Vec<InetMessage>,
    ) -> InetSocket {
        InetSocket { name: self.name.clone(), connection, shutdown, queued, groups: Vec::new() }
    }

    fn call_failed(&self, operation: &'static str) -> impl FnOnce(Errno) -> CollectFilesError {
        call_failed(self.subject.found, operation)
    }

    fn file(&self) -> &OwnedFd {
        &self.subject.file
    }

    /// Whether it is a connection of Multipath TCP, rather than one that has fallen back to plain TCP.
    fn has_several_paths(&self) -> Result<bool, Failure> {
        if self.subject.protocol != libc::IPPROTO_MPTCP {
            return Ok(false);
        }
        // After a fallback the kernel calls the option not supported (mptcp_getsockopt_info in
        // net/mptcp/sockopt.c).
        match socket::option(self.file(), SOL_MPTCP, MPTCP_INFO, MPTCP_INFO_LENGTH) {
            Ok(_) => Ok(true),
            Err(Errno::EOPNOTSUPP) => Ok(false),
            Err(source) => Err(self.call_failed("MPTCP_INFO")(source).into()),
        }
    }

    /// What `poll` shows of errors, hangups, and urgent data.
    fn events(&self) -> Result<i16, Failure> {
        let events = descriptor::poll_now(self.file(), libc::POLLPRI | libc::POLLRDHUP);
        Ok(events.map_err(self.call_failed("poll"))?)
    }

    fn state(&self) -> Result<TcpState, Failure> {
        Ok(tcp_info(self.file()).map_err(self.call_failed("TCP_INFO"))?.state)
    }

    fn ends(&self, peer: &[u8]) -> Result<Ends, Failure> {
        let ends = Endpoint::parse(&self.name.0).zip(Endpoint::parse(peer));
        let (local, remote) = ends.ok_or_else(|| refused("its addresses are not known"))?;
        Ok((plain(local), plain(remote)))
    }

    /// Records a connection of which at least one direction is open.
    fn connected(
        &self,
        table: &InetTable,
        peer: Vec<u8>,
        numbers: &HashMap<u64, SocketId>,
    ) -> Result<(InetSocket, i32), Failure> {
        let ends = self.ends(&peer)?;
        if has_place_to_look_at(self.file()) {
            return Err(refused(PLACE_TO_LOOK_AT));
        }
        let connection = match self.other(table, ends)? {
            Other::Inside(other) => {
                let Some(id) = numbers.get(&other.inode) else {
                    return Err(refused("its peer is a standard stream of the job"));
                };
                let file = take(other)?;
                if has_place_to_look_at(&file) {
                    return Err(refused("its peer has the option SO_PEEK_OFF"));
                }
                let delivered = table.only_looks()
                    || self.deliver(self.file(), &file)? && self.deliver(&file, self.file())?;
                if !delivered {
                    return Err(refused_now("what is on its way in it does not arrive"));
                }
                InetConnection::Peer(*id)
            }
            Other::Pending(waiting) => {
                self.check_nothing_sent(&waiting)?;
                InetConnection::Pending { peer: Bytes(peer.clone()) }
            }
            Other::Closed(remains) => {
                if !table.only_looks() {
                    self.await_end(ends, remains)?;
                }
                InetConnection::Gone { peer: Bytes(peer.clone()) }
            }
            Other::Outside if table.gives_up() => {
                self.check_mark(ends)?;
                let over = InetConnection::Over { peer: Bytes(peer) };
                let record = self.record(over, RECEIVING | SENDING, self.queue()?);
                return Ok((record, libc::ECONNRESET));
            }
            Other::Outside => {
                let (local, remote) = ends;
                return Err(RefusalKind::TcpOutside {
                    local: local.to_string(),
                    remote: remote.to_string(),
                }
                .into());
            }
        };
        let state = self.state()?;
        if state == TcpState::Closed {
            return self.over(peer);
        }
        let events = self.events()?;
        if events & libc::POLLERR != 0 {
            return Err(refused_now("an error is pending on it (SO_ERROR, or MSG_ERRQUEUE)"));
        }
        self.check_mark(ends)?;
        let receiving = if events & libc::POLLRDHUP == 0 { 0 } else { RECEIVING };
        let sending = if has_sent_end(state) { SENDING } else { 0 };
        Ok((self.record(connection, receiving | sending, self.queue()?), 0))
    }

    /// Where urgent data have been read out of turn, what follows them is hidden until the rest has been
    /// read, too (`tcp_inq` in include/net/tcp.h).
    fn check_mark(&self, (local, remote): Ends) -> Result<(), Failure> {
        let known = tcp_connection(local, remote).map_err(self.call_failed("NETLINK_SOCK_DIAG"))?;
        let Some(known) = known else { return Ok(()) };
        let seen = socket::input_queued(self.file()).map_err(self.call_failed("SIOCINQ"))?;
        let end = u64::from(has_received_end(known.state));
        if u64::from(known.receive_queue) > seen + end {
            return Err(refused(
                "urgent data in it were read before what came ahead of them (MSG_OOB)",
            ));
        }
        Ok(())
    }

    /// Finds the other end of a connection.
    fn other(&self, table: &InetTable, ends: Ends) -> Result<Other, Failure> {
        if let Some(other) = table.peer_of(ends) {
            return Ok(Other::Inside(other));
        }
        let (local, remote) = ends;
        let known = self.find(ends)?;
        Ok(match known {
            Some(info) if info.inode != 0 => Other::Outside,
            Some(info) if is_waiting(info.state) => {
                if table.listens_at(&remote) {
                    Other::Pending(info)
                } else {
                    Other::Outside
                }
            }
            Some(info) => Other::Closed(Some(info)),
            // Only one that has sent its end is forgotten before its peer.
            None if has_received_end(self.state()?) && is_local(remote.ip, local.scope) => {
                Other::Closed(None)
            }
            None => Other::Outside,
        })
    }

    /// The socket at the other end, as the kernel lists it.
    fn find(&self, (local, remote): Ends) -> Result<Option<InetSocketInfo>, Failure> {
        let known = list(self.subject, libc::IPPROTO_TCP)?;
        Ok(known.into_iter().find(|info| info.local == remote && info.remote == local))
    }

    fn deliver(&self, sender: &OwnedFd, receiver: &OwnedFd) -> Result<bool, Failure> {
        Ok(tcp_queue::deliver(sender, receiver).map_err(self.call_failed("setsockopt"))?)
    }

    /// What a listener's client has sent cannot be seen before the connection is accepted.
    fn check_nothing_sent(&self, waiting: &InetSocketInfo) -> Result<(), Failure> {
        let end = u32::from(waiting.state == TcpState::CloseWait);
        let unsent = socket::output_queued(self.file()).map_err(self.call_failed("SIOCOUTQ"))?;
        if waiting.receive_queue > end || unsent != 0 {
            return Err(RefusalKind::TcpPending.into());
        }
        Ok(())
    }

    /// Has everything arrive that a closed peer has left behind.
    fn await_end(&self, ends: Ends, remains: Option<InetSocketInfo>) -> Result<(), Failure> {
        // The end comes last. It counts as one byte for whoever waits for it.
        let missing = || Ok(u64::from(!has_received_end(tcp_info(self.file())?.state)));
        if missing().map_err(self.call_failed("TCP_INFO"))? == 0 {
            return Ok(());
        }
        let waiting = remains.map_or(0, |info| u64::from(info.send_queue));
        let done = tcp_queue::pull(self.file(), waiting, &missing);
        if done.map_err(self.call_failed("setsockopt"))? {
            return Ok(());
        }
        match self.find(ends)? {
            Some(_) => Err(refused_now("what its closed peer has left behind does not arrive")),
            None => Err(refused("its closed peer is gone without an end")),
        }
    }

    /// Records what was connected and is not any more.
    fn over(&self, peer: Vec<u8>) -> Result<(InetSocket, i32), Failure> {
        let queued = self.queue()?;
        let error = match self.events()? & libc::POLLERR {
            0 => 0,
            _ => self.pending_error(&peer, !queued.is_empty())?,
        };
        let connection = InetConnection::Over { peer: Bytes(peer) };
        Ok((self.record(connection, RECEIVING | SENDING, queued), error))
    }

    /// The error that is pending on a connection that is over. Asking for it would take it. But between
    /// sockets of one machine it can only have come of a reset, and is EPIPE when the peer's end had
    /// been received before that (tcp_reset in net/ipv4/tcp_input.c).
    fn pending_error(&self, peer: &[u8], has_queue: bool) -> Result<i32, Failure> {
        let unknown = || refused_now("an error is pending on it (SO_ERROR, or MSG_ERRQUEUE)");
        let (local, remote) = self.ends(peer)?;
        let is_on = |level, name| {
            socket::int_option(self.file(), level, name).is_ok_and(|value| value != 0)
        };
        let has_other_errors = is_on(libc::SOL_SOCKET, libc::SO_TIMESTAMPING)
            || is_on(libc::SOL_SOCKET, libc::SO_ZEROCOPY)
            || is_on(libc::IPPROTO_IP, libc::IP_RECVERR)
            || is_on(libc::IPPROTO_IPV6, libc::IPV6_RECVERR);
        let options = socket::option(self.file(), libc::IPPROTO_TCP, libc::TCP_INFO, 6)
            .map_err(self.call_failed("TCP_INFO"))?;
        // Without any option of TCP it was never connected, and then its peer did not want it.
        let was_refused = options.get(5).is_none_or(|options| *options == 0);
        if has_other_errors || has_queue || was_refused || !is_local(remote.ip, local.scope) {
            return Err(unknown());
        }
        // With nothing to receive this says EIO when the end has been received, and takes nothing.
        let asked = socket::option(
            self.file(),
            libc::IPPROTO_TCP,
            TCP_ZEROCOPY_RECEIVE,
            ZEROCOPY_RECEIVE_LENGTH,
        );
        match asked {
            Ok(_) => Ok(libc::ECONNRESET),
            Err(Errno::EIO) => Ok(libc::EPIPE),
            Err(_) => Err(unknown()),
        }
    }

    fn queue(&self) -> Result<Vec<InetMessage>, Failure> {
        if has_place_to_look_at(self.file()) {
            return Err(refused(PLACE_TO_LOOK_AT));
        }
        let queued = tcp_queue::queue(self.file()).map_err(self.call_failed("recvmsg"))?;
        queued.ok_or_else(|| refused_now("what is queued in it cannot be seen whole"))
    }
}

/// Whether looking into a socket would move the place that SO_PEEK_OFF says.
fn has_place_to_look_at(file: &OwnedFd) -> bool {
    socket::int_option(file, libc::SOL_SOCKET, libc::SO_PEEK_OFF).is_ok_and(|place| place >= 0)
}

/// Whether a socket that nobody has open waits to be accepted. While its backlog is full, a listener
/// leaves a connection half made.
const fn is_waiting(state: TcpState) -> bool {
    matches!(state, TcpState::Established | TcpState::CloseWait | TcpState::SynReceived)
}

const fn has_sent_end(state: TcpState) -> bool {
    matches!(state, TcpState::FinWait1 | TcpState::FinWait2 | TcpState::Closing | TcpState::LastAck)
}

const fn has_received_end(state: TcpState) -> bool {
    matches!(
        state,
        TcpState::CloseWait
            | TcpState::LastAck
            | TcpState::Closing
            | TcpState::TimeWait
            | TcpState::Closed
    )
}

/// A duplicate of another socket of the job.
fn take(other: Connected) -> Result<OwnedFd, CollectFilesError> {
    let (pid, number) = other.holder;
    descriptor::pidfd_open(pid)
        .and_then(|pidfd| descriptor::pidfd_getfd(&pidfd, number))
        .map_err(|source| CollectFilesError::DuplicateDescriptor { pid, number, source })
}
