//! TCP sockets. Connections come first: while nothing of the job listens yet, a listener made for one
//! connection alone stands at the address of either end. Then the job's own listeners begin, and last
//! come those that wait to be accepted.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::PollFlags;

use super::inet::{bind, create, failed, is_multipath, named, records, wait_for};
use super::{SocketError, options};
use crate::model::id::{Bytes, SocketId};
use crate::model::internet::Endpoint;
use crate::model::job::Job;
use crate::model::number::to_usize;
use crate::model::socket::{InetConnection, InetSocket, Socket, SocketDetail, SocketOption};
use crate::sys::inet_diag::{TcpState, tcp_info};
use crate::sys::socket;

/// How long a connection on this machine may take. A request that is lost is sent again after a second.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long it may take until everything is at the other end. It may also stay on its way.
const DELIVERY: Duration = Duration::from_secs(2);
/// As large a buffer as the kernel will give (/proc/sys/net/core/wmem_max).
const LARGEST_BUFFER: i32 = i32::MAX;
/// `struct linger`: whether to, and for how many seconds. This way a connection ends by a reset.
const AT_ONCE: [[u8; 4]; 2] = [1_i32.to_ne_bytes(), 0_i32.to_ne_bytes()];
/// What a new socket has.
const NOT_SET: [[u8; 4]; 2] = [[0; 4]; 2];
/// RCV_SHUTDOWN and SEND_SHUTDOWN.
const RECEIVING: u8 = 1;
const SENDING: u8 = 2;

/// Makes the TCP sockets of `job`.
pub(super) fn make(job: &Job, made: &mut BTreeMap<SocketId, OwnedFd>) -> Result<(), SocketError> {
    for (id, record, inet) in tcp(job) {
        match &inet.connection {
            InetConnection::Peer(_) if made.contains_key(&id) => {}
            InetConnection::Peer(peer) => connect_pair(job, Tcp { id, record, inet }, *peer, made)?,
            InetConnection::Gone { peer } | InetConnection::Over { peer } => {
                made.insert(id, Tcp { id, record, inet }.without_peer(peer)?);
            }
            _ => {}
        }
    }
    for (id, record, inet) in tcp(job) {
        if matches!(inet.connection, InetConnection::None | InetConnection::Listening { .. }) {
            let file = create(id, record)?;
            bind(id, &file, &inet.name)?;
            made.insert(id, file);
        }
    }
    for (id, _, inet) in tcp(job) {
        if let (InetConnection::Listening { backlog }, Some(file)) =
            (&inet.connection, made.get(&id))
        {
            let endpoint = Endpoint::parse(&inet.name.0).ok_or_else(|| unknown(id))?;
            socket::listen(file, *backlog).map_err(named(id, endpoint, "listen"))?;
        }
    }
    for (id, record, inet) in tcp(job) {
        if let InetConnection::Pending { peer } | InetConnection::Connecting { peer } =
            &inet.connection
        {
            made.insert(id, Tcp { id, record, inet }.ask(peer)?);
        }
    }
    Ok(())
}

/// Whether a socket's peer was given up together with the connection, so that its address does not
/// matter any more.
pub(super) fn is_given_up(inet: &InetSocket) -> bool {
    matches!(inet.connection, InetConnection::Over { .. })
}

/// The TCP sockets of a job.
fn tcp(job: &Job) -> impl Iterator<Item = (SocketId, &Socket, &InetSocket)> {
    records(job).filter(|(_, record, _)| record.kind == libc::SOCK_STREAM)
}

/// A TCP socket to be made.
#[derive(Clone, Copy)]
struct Tcp<'a> {
    id: SocketId,
    record: &'a Socket,
    inet: &'a InetSocket,
}

/// Makes two sockets that are connected to each other, and fills their queues.
fn connect_pair(
    job: &Job,
    left: Tcp<'_>,
    peer: SocketId,
    made: &mut BTreeMap<SocketId, OwnedFd>,
) -> Result<(), SocketError> {
    let record = job.sockets.get(to_usize(u64::from(peer.0))).ok_or_else(|| unknown(left.id))?;
    let SocketDetail::Inet(inet) = &record.detail else { return Err(unknown(left.id)) };
    if inet.connection != InetConnection::Peer(left.id) {
        return Err(unknown(left.id));
    }
    let right = Tcp { id: peer, record, inet };
    if peer == left.id {
        let own = left.connect_to_itself()?;
        left.fill(&own, &own)?;
        left.shut_down(&own, left.inet)?;
        made.insert(left.id, own);
        return Ok(());
    }
    // Whoever connected may be in the middle of connect(2), and call it again: it must be the one who
    // connects now. The other has the address of a listener.
    // And a socket of Multipath TCP whose peer is none has connected.
    let turned = if is_multipath(left.record) == is_multipath(right.record) {
        listens_at(job, &left.inet.name)
    } else {
        is_multipath(right.record)
    };
    let (left, right) = if turned { (right, left) } else { (left, right) };
    let listener = right.listener()?;
    bind(right.id, &listener, &right.inet.name)?;
    let (own, other) = left.connect(listener, &right.inet.name)?;
    left.fill(&own, &other)?;
    right.fill(&other, &own)?;
    left.shut_down(&own, right.inet)?;
    right.shut_down(&other, left.inet)?;
    settle(&own, &other);
    settle(&other, &own);
    made.insert(left.id, own);
    made.insert(right.id, other);
    Ok(())
}

/// Whether the job listens where a connection to this address would arrive.
fn listens_at(job: &Job, name: &Bytes) -> bool {
    let Some(name) = Endpoint::parse(&name.0) else { return false };
    tcp(job).any(|(_, _, inet)| {
        matches!(inet.connection, InetConnection::Listening { .. })
            && Endpoint::parse(&inet.name.0).is_some_and(|listener| listener.takes(&name))
    })
}

impl Tcp<'_> {
    fn failed(&self, operation: &'static str) -> impl FnOnce(Errno) -> SocketError {
        failed(self.id, operation)
    }

    /// A socket with its own name.
    fn bound(&self) -> Result<OwnedFd, SocketError> {
        let file = create(self.id, self.record)?;
        bind(self.id, &file, &self.inet.name)?;
        Ok(file)
    }

    /// A socket of the same kind that is to listen for a moment. It does not know Multipath TCP: connections
    /// of that have all fallen back to plain TCP, and what such a listener accepts is that.
    fn listener(&self) -> Result<OwnedFd, SocketError> {
        if !is_multipath(self.record) {
            return create(self.id, self.record);
        }
        create(self.id, &Socket { protocol: libc::IPPROTO_TCP, ..self.record.clone() })
    }

    /// Connects it to `address` through `listener`, which has that address and is given up. Returns both
    /// ends.
    fn connect(
        &self,
        listener: OwnedFd,
        address: &Bytes,
    ) -> Result<(OwnedFd, OwnedFd), SocketError> {
        let file = self.bound()?;
        self.join(file, listener, address)
    }

    fn join(
        &self,
        file: OwnedFd,
        listener: OwnedFd,
        address: &Bytes,
    ) -> Result<(OwnedFd, OwnedFd), SocketError> {
        let endpoint = Endpoint::parse(&address.0).ok_or_else(|| unknown(self.id))?;
        socket::listen(&listener, 16).map_err(named(self.id, endpoint, "listen"))?;
        self.begin(&file, endpoint)?;
        let own = socket::local_address(&file).map_err(self.failed("getsockname"))?;
        let own = Endpoint::parse(&own).ok_or_else(|| unknown(self.id))?;
        let begun = Instant::now();
        while begun.elapsed() < PATIENCE {
            if !wait_for(&listener, PollFlags::POLLIN, PATIENCE) {
                break;
            }
            let other = socket::accept(&listener).map_err(self.failed("accept"))?;
            let name = socket::peer_address(&other).ok().and_then(|name| Endpoint::parse(&name));
            // Somebody else may have tried this address in the meantime.
            if name == Some(own) {
                self.blocking(&file)?;
                return Ok((file, other));
            }
        }
        Err(named(self.id, endpoint, "connect")(Errno::ETIMEDOUT))
    }

    /// Begins to connect to `endpoint`, without waiting.
    fn begin(&self, file: &OwnedFd, endpoint: Endpoint) -> Result<(), SocketError> {
        let address = endpoint.address(self.record.domain).ok_or_else(|| unknown(self.id))?;
        crate::sys::descriptor::set_status_flags(file, libc::O_NONBLOCK)
            .map_err(self.failed("F_SETFL"))?;
        match socket::connect(file, &address) {
            Ok(()) | Err(Errno::EINPROGRESS) => Ok(()),
            Err(errno) => Err(named(self.id, endpoint, "connect")(errno)),
        }
    }

    fn blocking(&self, file: &OwnedFd) -> Result<(), SocketError> {
        crate::sys::descriptor::set_status_flags(file, 0).map_err(self.failed("F_SETFL"))
    }

    /// A socket that is connected to itself, as one gets by connecting to one's own address.
    fn connect_to_itself(&self) -> Result<OwnedFd, SocketError> {
        let file = self.bound()?;
        let endpoint = Endpoint::parse(&self.inet.name.0).ok_or_else(|| unknown(self.id))?;
        self.begin(&file, endpoint)?;
        self.blocking(&file)?;
        Ok(file)
    }

    /// Makes a socket whose peer is gone, by making the peer, too.
    fn without_peer(&self, peer: &Bytes) -> Result<OwnedFd, SocketError> {
        let (own, other) = self.with_passing_peer(peer)?;
        self.fill(&own, &other)?;
        if self.inet.connection == (InetConnection::Gone { peer: peer.clone() }) {
            self.shut_down_sending(&own)?;
            drop(other);
            self.await_state(&own, |state| {
                !matches!(state, TcpState::Established | TcpState::FinWait1 | TcpState::FinWait2)
            });
            return Ok(own);
        }
        if self.record.error == libc::EPIPE {
            // The end first, and then a reset for what is sent nevertheless.
            drop(other);
            self.await_state(&own, |state| state == TcpState::CloseWait);
            socket::send(&own, b"x", &[], &[], None).map_err(self.failed("send"))?;
        } else {
            reset(other).map_err(self.failed("SO_LINGER"))?;
        }
        self.await_state(&own, |state| state == TcpState::Closed);
        if self.record.error == 0 {
            // Reading the error takes it.
            socket::int_option(&own, libc::SOL_SOCKET, libc::SO_ERROR)
                .map_err(self.failed("SO_ERROR"))?;
        }
        Ok(own)
    }

    /// Connects it to a peer at the given address. One that has been given up, and whose address is no
    /// address of this machine, is connected to another one.
    fn with_passing_peer(&self, peer: &Bytes) -> Result<(OwnedFd, OwnedFd), SocketError> {
        let outcome = self.bound().and_then(|file| {
            let listener = self.listener()?;
            bind(self.id, &listener, peer)?;
            self.join(file, listener, peer)
        });
        match outcome {
            Err(SocketError::Name { .. }) if is_given_up(self.inet) => {}
            outcome => return outcome,
        }
        let own = Endpoint::parse(&self.inet.name.0).ok_or_else(|| unknown(self.id))?;
        let ip = if own.ip.is_ipv4() {
            std::net::Ipv4Addr::LOCALHOST.into()
        } else {
            std::net::Ipv6Addr::LOCALHOST.into()
        };
        let any = Endpoint { ip, port: 0, scope: 0 };
        let address = any.address(self.record.domain).ok_or_else(|| unknown(self.id))?;
        let listener = self.listener()?;
        socket::bind(&listener, &address).map_err(self.failed("bind"))?;
        let address = socket::local_address(&listener).map_err(self.failed("getsockname"))?;
        self.join(create(self.id, self.record)?, listener, &Bytes(address))
    }

    /// Makes a socket that is not connected yet.
    fn ask(&self, peer: &Bytes) -> Result<OwnedFd, SocketError> {
        let file = self.bound()?;
        let endpoint = Endpoint::parse(&peer.0).ok_or_else(|| unknown(self.id))?;
        self.begin(&file, endpoint)?;
        // Where the backlog is full by now, it keeps trying.
        if matches!(self.inet.connection, InetConnection::Pending { .. })
            && wait_for(&file, PollFlags::POLLOUT, DELIVERY)
        {
            self.shut_down_sending(&file)?;
            if self.inet.shutdown & RECEIVING != 0 {
                socket::shut_down(&file, libc::SHUT_RD).map_err(self.failed("shutdown"))?;
            }
        }
        self.blocking(&file)?;
        Ok(file)
    }

    /// Sends what it has yet to receive, from its peer. Sizes of buffers are put right with the other
    /// options.
    fn fill(&self, own: &OwnedFd, peer: &OwnedFd) -> Result<(), SocketError> {
        let length: usize = self.inet.queued.iter().map(|message| message.data.0.len()).sum();
        if length == 0 {
            return Ok(());
        }
        options::set_size(peer, libc::SO_SNDBUF, LARGEST_BUFFER)
            .map_err(self.failed("SO_SNDBUF"))?;
        // This has the kernel make room for as much.
        let room = i32::try_from(length.saturating_add(length / 4).saturating_add(1 << 16));
        let set_room = |value| {
            socket::set_int_option(own, libc::SOL_SOCKET, libc::SO_RCVLOWAT, value)
                .map_err(self.failed("SO_RCVLOWAT"))
        };
        set_room(room.unwrap_or(i32::MAX))?;
        for message in &self.inet.queued {
            let mut rest = message.data.0.as_slice();
            while !rest.is_empty() {
                match socket::send(peer, rest, &[], &[], None) {
                    Ok(sent) => rest = &rest[sent..],
                    Err(Errno::EAGAIN) => self.make_way(own, peer)?,
                    Err(source) => return Err(self.failed("sendmsg")(source)),
                }
            }
        }
        settle(peer, own);
        set_room(1)
    }

    /// Waits until `peer` can send more to `own`.
    fn make_way(&self, own: &OwnedFd, peer: &OwnedFd) -> Result<(), SocketError> {
        look(own).map_err(self.failed("recvmsg"))?;
        if wait_for(peer, PollFlags::POLLOUT, PATIENCE) {
            Ok(())
        } else {
            Err(self.failed("sendmsg")(Errno::ENOBUFS))
        }
    }

    /// Shuts it down as it was. That the peer has sent its end comes of shutting down the peer.
    fn shut_down(&self, file: &OwnedFd, peer: &InetSocket) -> Result<(), SocketError> {
        self.shut_down_sending(file)?;
        if self.inet.shutdown & RECEIVING != 0 && peer.shutdown & SENDING == 0 {
            socket::shut_down(file, libc::SHUT_RD).map_err(self.failed("shutdown"))?;
        }
        Ok(())
    }

    fn shut_down_sending(&self, file: &OwnedFd) -> Result<(), SocketError> {
        if self.inet.shutdown & SENDING == 0 {
            return Ok(());
        }
        socket::shut_down(file, libc::SHUT_WR).map_err(self.failed("shutdown"))
    }

    /// Waits a moment until the kernel has brought a socket to a state.
    fn await_state(&self, file: &OwnedFd, wanted: impl Fn(TcpState) -> bool) {
        let begun = Instant::now();
        while begun.elapsed() < DELIVERY {
            if tcp_info(file).is_ok_and(|info| wanted(info.state)) {
                return;
            }
            thread::sleep(Duration::from_micros(200));
        }
    }
}

/// Waits a moment until everything that was sent has arrived. What has not is on its way, as it might
/// have been.
fn settle(sender: &OwnedFd, receiver: &OwnedFd) {
    let begun = Instant::now();
    while begun.elapsed() < DELIVERY
        && socket::output_queued(sender).is_ok_and(|bytes| bytes != 0)
        && look(receiver).is_ok()
    {
        let at_once = socket::set_int_option(receiver, libc::IPPROTO_TCP, libc::TCP_QUICKACK, 1);
        if at_once.is_err() {
            return;
        }
        thread::sleep(Duration::from_micros(200));
    }
}

/// Looks into a queue, by which the kernel tells the sender of the room that there is.
fn look(receiver: impl AsFd) -> Result<(), Errno> {
    if socket::input_queued(&receiver)? != 0 {
        socket::peek(&receiver, 1)?;
    }
    Ok(())
}

/// Closes a connection by a reset.
fn reset(file: OwnedFd) -> Result<(), Errno> {
    set_linger(&file, &AT_ONCE.concat())?;
    drop(file);
    Ok(())
}

fn set_linger(file: &OwnedFd, value: &[u8]) -> Result<(), Errno> {
    socket::set_option(file, libc::SOL_SOCKET, libc::SO_LINGER, value)
}

/// Whether `record` is connected to a socket of the job, so that an end of it would leave something in the
/// kernel that keeps its address for a minute.
pub(super) fn leaves_remains(record: &Socket) -> bool {
    let SocketDetail::Inet(inet) = &record.detail else { return false };
    record.kind == libc::SOCK_STREAM
        && matches!(
            inet.connection,
            InetConnection::Peer(_) | InetConnection::Pending { .. } | InetConnection::Gone { .. }
        )
}

/// Has a connection end by a reset for now, so that a restore that fails leaves the way free for the next
/// one. [`put_linger_right`] ends that.
pub(super) fn linger_not(id: SocketId, record: &Socket, file: &OwnedFd) -> Result<(), SocketError> {
    if leaves_remains(record) {
        set_linger(file, &AT_ONCE.concat()).map_err(failed(id, "SO_LINGER"))?;
    }
    Ok(())
}

/// Has a connection end as the job wants it to.
pub(super) fn put_linger_right(record: &Socket, file: &OwnedFd) -> Result<(), Errno> {
    if !leaves_remains(record) {
        return Ok(());
    }
    let is_linger =
        |option: &&SocketOption| (option.level, option.name) == (libc::SOL_SOCKET, libc::SO_LINGER);
    match record.options.iter().find(is_linger) {
        Some(option) => set_linger(file, &option.value.0),
        None => set_linger(file, &NOT_SET.concat()),
    }
}

fn unknown(id: SocketId) -> SocketError {
    failed(id, "connect")(Errno::EINVAL)
}
