//! Makes sockets again: first all of them with their names and connections, then, once everything is
//! open that may be on its way in them, what is queued; and last what would have been in the way.

pub(super) mod inet;
mod netlink;
mod options;
mod remains;
mod tcp;
mod udp;
mod unix;

use std::collections::BTreeMap;
use std::os::fd::{OwnedFd, RawFd};

use nix::errno::Errno;
use thiserror::Error;

use crate::model::id::{Bytes, SocketId};
use crate::model::job::Job;
use crate::model::number::to_usize;
use crate::restore::plan::Plan;
use crate::sys::descriptor;

use self::unix::UnixSockets;
pub(super) use self::unix::{
    address_of, has_listener, is_accepted, is_path, records as unix_records,
};

/// Why a socket could not be made again.
#[derive(Debug, Error)]
#[allow(missing_docs)] // The messages say what each field is.
pub enum SocketError {
    #[error("making socket {socket} of the image: {operation}: {source}")]
    Make { socket: SocketId, operation: &'static str, source: Errno },
    #[error("making socket {socket} of the image again as {name}: {operation}: {source}")]
    Name { socket: SocketId, name: Bytes, operation: &'static str, source: Errno },
    #[error(
        "setting option {level}:{name} of socket {socket} of the image: {source}; it may need a \
         privilege"
    )]
    SetOption { socket: SocketId, level: i32, name: i32, source: Errno },
    #[error(
        "the buffers of socket {socket} of the image held {wanted} bytes, and here hold {given}; \
         raise /proc/sys/net/core/wmem_max and rmem_max"
    )]
    SetSize { socket: SocketId, wanted: i32, given: i32 },
}

/// The sockets of a job while they are made.
#[derive(Debug, Default)]
pub(super) struct Sockets {
    made: BTreeMap<SocketId, OwnedFd>,
    unix: UnixSockets,
}

impl Sockets {
    /// Makes all sockets of `job`, with names and connections. Options that matter before are set.
    pub fn make(job: &Job, plan: &Plan) -> Result<Self, SocketError> {
        let mut made = BTreeMap::new();
        let unix = unix::make(job, plan, &mut made)?;
        inet::make(job, &mut made)?;
        netlink::make(job, &mut made)?;
        Ok(Self { made, unix })
    }

    /// A descriptor of a socket, for the one description that refers to it, with the status flags
    /// `flags`.
    pub fn open(&self, id: SocketId, flags: i32) -> Result<OwnedFd, SocketError> {
        let failed = |source| SocketError::Make { socket: id, operation: "dup", source };
        let made = self.made.get(&id).ok_or(failed(Errno::EBADF))?;
        descriptor::set_status_flags(made, flags).map_err(|source| SocketError::Make {
            socket: id,
            operation: "F_SETFL",
            source,
        })?;
        made.try_clone()
            .map_err(|error| failed(Errno::from_raw(error.raw_os_error().unwrap_or(libc::EMFILE))))
    }

    /// Fills the queues, and then does what would have been in the way of that. `files` has a
    /// descriptor of each open file of the job.
    pub fn finish(self, job: &Job, files: &[RawFd]) -> Result<(), SocketError> {
        unix::finish(job, &self.made, self.unix, files)?;
        for (id, file) in &self.made {
            if let Some(record) = job.sockets.get(to_usize(u64::from(id.0))) {
                options::set(*id, file, &record.options)?;
                tcp::linger_not(*id, record, file)?;
            }
        }
        Ok(())
    }
}

/// Whether something has to wait until the restore cannot fail any more.
pub(super) fn has_to_settle(job: &Job, id: SocketId) -> bool {
    job.sockets.get(to_usize(u64::from(id.0))).is_some_and(tcp::leaves_remains)
}

/// Does what had to wait until the restore cannot fail any more.
pub(super) fn settle(job: &Job, id: SocketId, file: &OwnedFd) -> Result<(), Errno> {
    match job.sockets.get(to_usize(u64::from(id.0))) {
        Some(record) => tcp::put_linger_right(record, file),
        None => Ok(()),
    }
}
