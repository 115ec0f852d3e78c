//! Connects unix sockets as they were connected: pairs, clients with what a listener accepted, ends
//! whose peer was closed, datagram sockets, and clients that nobody has accepted yet.
//!
//! Which process the kernel notes at each step is what SO_PEERCRED showed: the maker of a pair, who
//! listened for a client, who connected for an accepted socket.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::stat::fstat;
use nix::unistd::dup3;

use super::naming::{self, Place, SocketFile};
use super::stand_in::act_as;
use super::{UnixSockets, duplicate, failed, is_accepted, record_of, records};
use crate::model::file::OpenFileKind;
use crate::model::id::{Bytes, OpenFileId, SocketId};
use crate::model::job::Job;
use crate::model::number::to_usize;
use crate::model::socket::{Socket, UnixBinding, UnixConnection, UnixSocket};
use crate::restore::files::socket::SocketError;
use crate::restore::plan::Plan;
use crate::sys::{socket, unix_diag};

/// Enough for one connection that is accepted at once.
const ONE: u32 = 1;

/// A socket that clients can be connected to, of the job or for the moment.
struct Listener {
    /// The socket of the job; `None` for one that is closed in the end.
    of_job: Option<SocketId>,
    socket: OwnedFd,
    place: Place,
    /// Whom a client sees as having listened.
    listened: i32,
}

/// The sockets of a job while they are made.
pub(super) struct Maker<'a> {
    pub job: &'a Job,
    pub plan: &'a Plan,
    pub made: &'a mut BTreeMap<SocketId, OwnedFd>,
    pub unix: UnixSockets,
    /// By type and name.
    listeners: BTreeMap<(i32, Bytes), Listener>,
}

impl<'a> Maker<'a> {
    pub fn new(
        job: &'a Job,
        plan: &'a Plan,
        made: &'a mut BTreeMap<SocketId, OwnedFd>,
    ) -> Maker<'a> {
        Maker { job, plan, made, unix: UnixSockets::default(), listeners: BTreeMap::new() }
    }

    /// Makes everything but connections of datagram sockets and of clients that are not accepted, which
    /// would be in the way of filling queues.
    pub fn make_all(&mut self) -> Result<(), SocketError> {
        for (id, record, unix) in records(self.job) {
            if !self.made.contains_key(&id) && !is_accepted(record, unix) {
                self.make_one(id, record, unix)?;
            }
        }
        for (id, _, unix) in records(self.job) {
            if unix.binding != UnixBinding::None {
                self.bind(id, unix)?;
            }
        }
        for (id, record, unix) in records(self.job) {
            if let UnixConnection::Listening { backlog, .. } = unix.connection {
                self.listen(id, record, unix, backlog)?;
            }
        }
        for (id, record, unix) in records(self.job) {
            if record.kind != libc::SOCK_DGRAM {
                self.connect(id, record, unix)?;
            }
        }
        self.listen_again()
    }

    /// Makes a socket that is not accepted from a listener: a pair, or one by itself.
    fn make_one(
        &mut self,
        id: SocketId,
        record: &Socket,
        unix: &UnixSocket,
    ) -> Result<(), SocketError> {
        match &unix.connection {
            UnixConnection::Peer(peer) if is_pair(self.job, id, *peer) => {
                let (left, right) = pair(id, record, unix)?;
                self.made.insert(id, left);
                self.made.insert(*peer, right);
                return Ok(());
            }
            UnixConnection::Gone { name } if name.0.is_empty() => {
                let (socket, far_end) = pair(id, record, unix)?;
                self.made.insert(id, socket);
                self.unix.far_ends.insert(id, far_end);
                return Ok(());
            }
            _ => {}
        }
        let made = create(id, record)?;
        self.made.insert(id, made);
        Ok(())
    }

    fn bind(&mut self, id: SocketId, unix: &UnixSocket) -> Result<(), SocketError> {
        let file = match &unix.binding {
            UnixBinding::File { path, mode, uid, gid } => {
                Some((self.plan.place_of(path), *mode, (*uid, *gid)))
            }
            _ => None,
        };
        let file = file.as_ref().map(|(path, mode, owner)| SocketFile {
            path: path.as_path(),
            mode: *mode,
            owner: *owner,
        });
        let place = naming::bind(&self.copy_of(id)?, &unix.name, file)
            .map_err(|error| name_failed(id, &unix.name, error))?;
        self.unix.places.insert(id, place);
        Ok(())
    }

    fn listen(
        &mut self,
        id: SocketId,
        record: &Socket,
        unix: &UnixSocket,
        backlog: u32,
    ) -> Result<(), SocketError> {
        let listened = maker_of(unix);
        let socket = self.copy_of(id)?;
        act_as(listened, || socket::listen(&socket, backlog)).map_err(failed(id, "listen"))?;
        if let Some(place) = self.unix.places.get(&id) {
            let place = place.try_clone().map_err(failed(id, "dup"))?;
            let listener = Listener { of_job: Some(id), socket, place, listened };
            self.listeners.insert((record.kind, unix.name.clone()), listener);
        }
        Ok(())
    }

    /// Connects a stream or a socket for sequenced packets, if that has not happened from the other
    /// side.
    fn connect(
        &mut self,
        id: SocketId,
        record: &Socket,
        unix: &UnixSocket,
    ) -> Result<(), SocketError> {
        let accepted = is_accepted(record, unix);
        match &unix.connection {
            UnixConnection::Peer(peer) if accepted => {
                let (_, client) =
                    record_of(self.job, *peer).ok_or(failed(id, "connect")(Errno::EINVAL))?;
                let socket = self.copy_of(*peer)?;
                let ends = Ends { client: &socket, name: &unix.name };
                let made = self.couple(id, record, &ends, (maker_of(unix), maker_of(client)))?;
                self.made.insert(id, made);
            }
            UnixConnection::Gone { name } if accepted => {
                let client = create(id, record)?;
                if !name.0.is_empty() {
                    naming::bind(&client, name, None)
                        .map_err(|error| name_failed(id, name, error))?;
                }
                let ends = Ends { client: &client, name: &unix.name };
                let made = self.couple(id, record, &ends, (maker_of(unix), 0))?;
                self.made.insert(id, made);
                self.unix.far_ends.insert(id, client);
            }
            UnixConnection::Gone { name } if !name.0.is_empty() => {
                let client = self.copy_of(id)?;
                let ends = Ends { client: &client, name };
                let far_end = self.couple(id, record, &ends, (0, maker_of(unix)))?;
                self.unix.far_ends.insert(id, far_end);
            }
            _ => {}
        }
        Ok(())
    }

    /// Connects a client to a listener and takes the connection from it.
    fn couple(
        &mut self,
        id: SocketId,
        record: &Socket,
        ends: &Ends<'_>,
        (connects, listens): (i32, i32),
    ) -> Result<OwnedFd, SocketError> {
        let name = ends.name;
        let listener = self.listener(id, record, name, listens)?;
        let address = listener.place.address();
        act_as(connects, || socket::connect(ends.client, &address))
            .map_err(|errno| name_failed(id, name, ("connect", errno)))?;
        loop {
            let accepted = socket::accept(&listener.socket)
                .map_err(|errno| name_failed(id, name, ("accept", errno)))?;
            if is_connected_to(&accepted, ends.client).map_err(failed(id, "NETLINK_SOCK_DIAG"))? {
                return Ok(accepted);
            }
            // A stranger was faster, who finds the connection closed.
        }
    }

    /// A listener with that name, of the job or a new one, that shows `listens` as who listened.
    fn listener(
        &mut self,
        id: SocketId,
        record: &Socket,
        name: &Bytes,
        listens: i32,
    ) -> Result<&Listener, SocketError> {
        let key = (record.kind, name.clone());
        if !self.listeners.contains_key(&key) {
            let socket = create(id, record)?;
            let place =
                naming::bind(&socket, name, None).map_err(|error| name_failed(id, name, error))?;
            act_as(listens, || socket::listen(&socket, ONE)).map_err(failed(id, "listen"))?;
            let listener = Listener { of_job: None, socket, place, listened: listens };
            self.listeners.insert(key.clone(), listener);
        }
        let listener = self.listeners.get_mut(&key).ok_or(failed(id, "listen")(Errno::EINVAL))?;
        if listens != 0 && listener.listened != listens {
            act_as(listens, || socket::listen(&listener.socket, ONE))
                .map_err(failed(id, "listen"))?;
            listener.listened = listens;
        }
        Ok(listener)
    }

    /// Another descriptor of a socket that has been made.
    fn copy_of(&self, id: SocketId) -> Result<OwnedFd, SocketError> {
        let made = self.made.get(&id).ok_or(failed(id, "connect")(Errno::EINVAL))?;
        duplicate(made).map_err(failed(id, "dup"))
    }

    /// Puts right what listeners show where clients were to see somebody else.
    fn listen_again(&mut self) -> Result<(), SocketError> {
        for listener in self.listeners.values() {
            let Some(id) = listener.of_job else { continue };
            let Some((_, unix)) = record_of(self.job, id) else { continue };
            if let UnixConnection::Listening { backlog, .. } = unix.connection
                && listener.listened != maker_of(unix)
            {
                act_as(maker_of(unix), || socket::listen(&listener.socket, backlog))
                    .map_err(failed(id, "listen"))?;
            }
        }
        Ok(())
    }
}

/// What is to become a connection: the client, and the name that the accepted end is to have.
struct Ends<'a> {
    client: &'a OwnedFd,
    name: &'a Bytes,
}

/// Connects the datagram sockets of `job`, whose queues have been filled.
pub(super) fn connect_datagrams(
    job: &Job,
    made: &BTreeMap<SocketId, OwnedFd>,
    unix_sockets: &UnixSockets,
) -> Result<(), SocketError> {
    for (id, record, unix) in records(job) {
        let Some(socket) = made.get(&id).filter(|_| record.kind == libc::SOCK_DGRAM) else {
            continue;
        };
        let connect = |name: &Bytes, address: &[u8]| {
            socket::connect(socket, address)
                .map_err(|errno| name_failed(id, name, ("connect", errno)))
        };
        match &unix.connection {
            UnixConnection::Peer(peer) if !is_pair(job, id, *peer) => {
                let place = unix_sockets.places.get(peer);
                let place = place.ok_or(failed(id, "connect")(Errno::ENOTCONN))?;
                let name = record_of(job, *peer).map(|(_, other)| other.name.clone());
                connect(&name.unwrap_or_default(), &place.address())?;
            }
            UnixConnection::Gone { name } if !name.0.is_empty() => {
                let gone = create(id, record)?;
                let place = naming::bind(&gone, name, None)
                    .map_err(|error| name_failed(id, name, error))?;
                connect(name, &place.address())?;
            }
            UnixConnection::Outside { name } => connect(name, &naming::address_of(name))?,
            _ => {}
        }
    }
    Ok(())
}

/// Connects clients that have not been accepted to their listeners, in their order.
pub(super) fn connect_pending(
    job: &Job,
    made: &BTreeMap<SocketId, OwnedFd>,
    unix_sockets: &UnixSockets,
) -> Result<(), SocketError> {
    for (id, _, unix) in records(job) {
        let UnixConnection::Listening { pending, .. } = &unix.connection else { continue };
        let Some(place) = unix_sockets.places.get(&id) else { continue };
        for client in pending {
            let socket = made.get(client).ok_or(failed(id, "connect")(Errno::EBADF))?;
            act_as(holder_of(job, *client), || socket::connect(socket, &place.address()))
                .map_err(|errno| name_failed(*client, &unix.name, ("connect", errno)))?;
        }
    }
    Ok(())
}

/// A process that has the socket open: most likely the one that connected it.
fn holder_of(job: &Job, id: SocketId) -> i32 {
    let is_it = |file: &OpenFileId| {
        let kind = job.open_files.get(to_usize(u64::from(file.0))).map(|file| &file.kind);
        matches!(kind, Some(OpenFileKind::Socket { socket }) if *socket == id)
    };
    let has_it = |process: &&crate::model::process::Process| {
        let table = job.fd_tables.get(to_usize(u64::from(process.fd_table.0)));
        !process.is_zombie()
            && table.is_some_and(|table| table.entries.iter().any(|entry| is_it(&entry.file)))
    };
    job.processes.iter().find(has_it).map_or(0, |process| process.pid.0)
}

/// A new socket of the recorded kind. Nothing that is done with it here may wait.
pub(super) fn create(id: SocketId, record: &Socket) -> Result<OwnedFd, SocketError> {
    socket::create(record.domain, record.kind | libc::SOCK_NONBLOCK, record.protocol)
        .map_err(failed(id, "socket"))
}

/// Two sockets connected to each other, made by the process that SO_PEERCRED names.
fn pair(
    id: SocketId,
    record: &Socket,
    unix: &UnixSocket,
) -> Result<(OwnedFd, OwnedFd), SocketError> {
    let make = || socket::pair(record.domain, record.kind, record.protocol);
    let mut places = make().map_err(failed(id, "socketpair"))?;
    act_as(maker_of(unix), || {
        let (left, right) = make()?;
        dup3(&left, &mut places.0, OFlag::O_CLOEXEC)?;
        dup3(&right, &mut places.1, OFlag::O_CLOEXEC)
    })
    .map_err(failed(id, "socketpair"))?;
    Ok(places)
}

/// The process that SO_PEERCRED names; 0: none that is known.
const fn maker_of(unix: &UnixSocket) -> i32 {
    match &unix.peer_credentials {
        Some(credentials) => credentials.pid.0,
        None => 0,
    }
}

/// Whether two sockets are connected to each other and were made together: neither has been accepted
/// from a listener, and a datagram socket that was connected shows no credentials.
pub(super) fn is_pair(job: &Job, id: SocketId, peer: SocketId) -> bool {
    let (Some((record, unix)), Some((other_record, other))) =
        (record_of(job, id), record_of(job, peer))
    else {
        return false;
    };
    let mutual = unix.connection == UnixConnection::Peer(peer)
        && other.connection == UnixConnection::Peer(id)
        && record.kind == other_record.kind
        && id != peer;
    if record.kind == libc::SOCK_DGRAM {
        let nameless = unix.name.0.is_empty() || other.name.0.is_empty();
        return mutual && (nameless || maker_of(unix) != 0);
    }
    mutual && !is_accepted(record, unix) && !is_accepted(other_record, other)
}

/// Whether `accepted` is the other end of `client`.
fn is_connected_to(accepted: &OwnedFd, client: &OwnedFd) -> Result<bool, Errno> {
    let inode = |file: &OwnedFd| {
        let number = fstat(file)?.st_ino;
        u32::try_from(number).map_err(|_| Errno::EOVERFLOW)
    };
    Ok(unix_diag::unix_socket(inode(accepted)?)?.peer == Some(inode(client)?))
}

fn name_failed(socket: SocketId, name: &Bytes, (operation, source): naming::Failed) -> SocketError {
    SocketError::Name { socket, name: name.clone(), operation, source }
}
