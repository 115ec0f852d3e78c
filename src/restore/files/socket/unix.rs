//! Unix sockets: with their names and files, connected as they were, and with what was queued in them.
//!
//! They are made in two steps. What is queued can hold anything that the job has open, so that comes
//! when everything is open; and so does what would be in the way of queueing it: connections of
//! datagram sockets, which then take messages from one sender alone, ends that are to be closed, and
//! shutdowns.

mod connections;
mod naming;
mod queue;
mod stand_in;

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd, RawFd};

use nix::errno::Errno;

pub(in crate::restore::files) use self::naming::{address_of, is_path};

use self::connections::{Maker, connect_datagrams, connect_pending};
use self::naming::Place;
use super::SocketError;
use crate::model::id::SocketId;
use crate::model::job::Job;
use crate::model::number::to_usize;
use crate::model::socket::{Socket, SocketDetail, UnixBinding, UnixConnection, UnixSocket};
use crate::restore::plan::Plan;
use crate::sys::socket;

/// RCV_SHUTDOWN and SEND_SHUTDOWN.
const RECEIVING: u8 = 1;
const SENDING: u8 = 2;

/// What is needed beside the sockets themselves until they are finished.
#[derive(Debug, Default)]
pub(super) struct UnixSockets {
    /// How those with names are reached.
    places: BTreeMap<SocketId, Place>,
    /// The other ends of those whose peer was closed, which send what is queued before they are.
    far_ends: BTreeMap<SocketId, OwnedFd>,
}

/// Makes the unix sockets of `job`, with their names, and connects them as far as that is not in the
/// way of filling their queues.
pub(super) fn make(
    job: &Job,
    plan: &Plan,
    made: &mut BTreeMap<SocketId, OwnedFd>,
) -> Result<UnixSockets, SocketError> {
    let mut maker = Maker::new(job, plan, made);
    maker.make_all()?;
    Ok(maker.unix)
}

/// Fills their queues with what was there, and does what would have been in the way of that. `files`
/// has a descriptor of each open file of the job.
pub(super) fn finish(
    job: &Job,
    made: &BTreeMap<SocketId, OwnedFd>,
    mut unix_sockets: UnixSockets,
    files: &[RawFd],
) -> Result<(), SocketError> {
    queue::fill_all(job, made, &unix_sockets, files)?;
    connect_datagrams(job, made, &unix_sockets)?;
    connect_pending(job, made, &unix_sockets)?;
    for (id, record, _) in records(job) {
        let far_end = unix_sockets.far_ends.remove(&id);
        if far_end.is_some()
            && record.error == libc::ECONNRESET
            && let Some(socket) = made.get(&id)
        {
            // That is what comes of closing a stream with something unread.
            socket::send(socket, b"x", &[], &[], None).map_err(failed(id, "send"))?;
        }
    }
    for (id, _, unix) in records(job) {
        let how = match (unix.shutdown & RECEIVING != 0, unix.shutdown & SENDING != 0) {
            (false, false) => continue,
            (true, false) => libc::SHUT_RD,
            (false, true) => libc::SHUT_WR,
            (true, true) => libc::SHUT_RDWR,
        };
        if let Some(socket) = made.get(&id) {
            socket::shut_down(socket, how).map_err(failed(id, "shutdown"))?;
        }
    }
    Ok(())
}

/// The unix sockets of a job.
pub(in crate::restore::files) fn records(
    job: &Job,
) -> impl Iterator<Item = (SocketId, &Socket, &UnixSocket)> {
    (0..).zip(&job.sockets).filter_map(|(number, record)| match &record.detail {
        SocketDetail::Unix(unix) => Some((SocketId(number), record, unix)),
        SocketDetail::Inet(_) | SocketDetail::Netlink(_) => None,
    })
}

/// One of them.
fn record_of(job: &Job, id: SocketId) -> Option<(&Socket, &UnixSocket)> {
    let record = job.sockets.get(to_usize(u64::from(id.0)))?;
    match &record.detail {
        SocketDetail::Unix(unix) => Some((record, unix)),
        SocketDetail::Inet(_) | SocketDetail::Netlink(_) => None,
    }
}

/// Whether the listener that a socket was accepted from is one of the job.
pub(in crate::restore::files) fn has_listener(
    job: &Job,
    record: &Socket,
    unix: &UnixSocket,
) -> bool {
    records(job).any(|(_, other, listener)| {
        other.kind == record.kind
            && listener.name == unix.name
            && matches!(listener.connection, UnixConnection::Listening { .. })
    })
}

/// Whether a socket came out of a listener, whose name it shows.
pub(in crate::restore::files) fn is_accepted(record: &Socket, unix: &UnixSocket) -> bool {
    let connected =
        matches!(unix.connection, UnixConnection::Peer(_) | UnixConnection::Gone { .. });
    record.kind != libc::SOCK_DGRAM
        && connected
        && !unix.name.0.is_empty()
        && unix.binding == UnixBinding::None
}

fn duplicate(file: impl AsFd) -> Result<OwnedFd, Errno> {
    let copy = file.as_fd().try_clone_to_owned();
    copy.map_err(|error| Errno::from_raw(error.raw_os_error().unwrap_or(libc::EMFILE)))
}

fn failed(socket: SocketId, operation: &'static str) -> impl FnOnce(Errno) -> SocketError {
    move |source| SocketError::Make { socket, operation, source }
}
