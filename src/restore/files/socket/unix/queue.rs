//! Fills the queues of unix sockets: every message is sent once more by a sender with the same name, and
//! where the receiver would be told who sent it, by a process with the same id.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd, RawFd};

use nix::errno::Errno;

use super::connections::{create, is_pair};
use super::stand_in::act_as;
use super::{UnixSockets, duplicate, failed, naming, records};
use crate::model::id::SocketId;
use crate::model::job::Job;
use crate::model::number::to_usize;
use crate::model::socket::{Socket, SocketCredentials, UnixConnection, UnixMessage, UnixSocket};
use crate::restore::files::socket::{SocketError, options};
use crate::sys::socket::{self, Credentials};

/// As large a buffer as the kernel will give (/proc/sys/net/core/wmem_max).
const LARGEST_BUFFER: i32 = i32::MAX;

/// Fills the queues of all unix sockets of `job`.
pub(super) fn fill_all(
    job: &Job,
    made: &BTreeMap<SocketId, OwnedFd>,
    unix_sockets: &UnixSockets,
    files: &[RawFd],
) -> Result<(), SocketError> {
    let filler = Filler { job, made, unix_sockets, files };
    records(job).try_for_each(|(id, record, unix)| filler.fill(id, record, unix))
}

struct Filler<'a> {
    job: &'a Job,
    made: &'a BTreeMap<SocketId, OwnedFd>,
    unix_sockets: &'a UnixSockets,
    files: &'a [RawFd],
}

impl Filler<'_> {
    /// Sends what socket `id` has yet to receive.
    fn fill(&self, id: SocketId, record: &Socket, unix: &UnixSocket) -> Result<(), SocketError> {
        for message in &unix.queued {
            let (sender, receiver) = match self.far_end(id, unix) {
                Some(end) => (duplicate(end).map_err(failed(id, "dup"))?, Vec::new()),
                None => {
                    let place = self.unix_sockets.places.get(&id);
                    let place = place.ok_or(failed(id, "sendmsg")(Errno::ENOTCONN))?;
                    (self.sender(id, record, message)?, place.address())
                }
            };
            // The size of the buffer of a socket of the job is put right with its other options.
            options::set_size(&sender, libc::SO_SNDBUF, LARGEST_BUFFER)
                .map_err(failed(id, "SO_SNDBUF"))?;
            self.send(record.kind, &sender, &receiver, message).map_err(failed(id, "sendmsg"))?;
        }
        Ok(())
    }

    /// The only socket that can send to `id`, if there is one.
    fn far_end(&self, id: SocketId, unix: &UnixSocket) -> Option<&OwnedFd> {
        let record = super::record_of(self.job, id)?.0;
        match &unix.connection {
            UnixConnection::Peer(peer)
                if record.kind != libc::SOCK_DGRAM || is_pair(self.job, id, *peer) =>
            {
                self.made.get(peer)
            }
            _ => self.unix_sockets.far_ends.get(&id),
        }
    }

    /// A datagram socket with the name of the sender of `message`: that of the job, one that is connected
    /// to the receiver, or one for this message alone.
    fn sender(
        &self,
        id: SocketId,
        record: &Socket,
        message: &UnixMessage,
    ) -> Result<OwnedFd, SocketError> {
        let nameless = message.sender.0.is_empty();
        let fits = |other: &Socket, unix: &UnixSocket| {
            other.kind == record.kind
                && unix.name == message.sender
                && (!nameless || unix.connection == UnixConnection::Peer(id))
        };
        let known = records(self.job)
            .find(|(_, other, unix)| fits(other, unix))
            .and_then(|(other, ..)| self.made.get(&other));
        if let Some(known) = known {
            return duplicate(known).map_err(failed(id, "dup"));
        }
        let sender = create(id, record)?;
        if !nameless {
            naming::bind(&sender, &message.sender, None).map_err(|(operation, source)| {
                SocketError::Name { socket: id, name: message.sender.clone(), operation, source }
            })?;
        }
        Ok(sender)
    }

    /// Sends one message, of a stream in as many parts as it takes.
    fn send(
        &self,
        kind: i32,
        sender: &OwnedFd,
        receiver: &[u8],
        message: &UnixMessage,
    ) -> Result<(), Errno> {
        let numbers: Option<Vec<RawFd>> = message
            .files
            .iter()
            .map(|id| self.files.get(to_usize(u64::from(id.0))).copied())
            .collect();
        let numbers = numbers.ok_or(Errno::EBADF)?;
        let pid = message.credentials.map_or(0, |credentials| credentials.pid.0);
        act_as(pid, || {
            let own = message.credentials.map(of_caller);
            let mut rest = message.data.0.as_slice();
            let mut files = numbers.as_slice();
            loop {
                let sent = socket::send(sender.as_fd(), rest, receiver, files, own)?;
                rest = &rest[sent..];
                files = &[];
                if rest.is_empty() || kind != libc::SOCK_STREAM {
                    return Ok(());
                }
            }
        })
    }
}

/// The recorded credentials, with the id that the caller has.
fn of_caller(recorded: SocketCredentials) -> Credentials {
    let SocketCredentials { uid, gid, .. } = recorded;
    Credentials { pid: nix::unistd::getpid().as_raw(), uid, gid }
}
