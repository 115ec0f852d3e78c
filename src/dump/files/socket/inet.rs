//! Internet sockets: TCP and UDP over IPv4 and IPv6.

use std::collections::HashMap;

use super::Subject;
use crate::dump::files::refusal::RefusalKind;
use crate::dump::files::{CollectFilesError, Collector, Failure, Scope};
use crate::model::id::SocketId;
use crate::model::socket::InetSocket;

/// What is known of the internet sockets of the job.
#[derive(Debug)]
pub(super) struct InetTable;

impl InetTable {
    /// Finds the internet sockets among `subjects`, and how they are connected.
    pub fn survey(
        _scope: &Scope<'_>,
        _subjects: &[Subject<'_>],
    ) -> Result<Self, CollectFilesError> {
        Ok(Self)
    }

    /// Records a socket. `numbers` has those of all sockets of the job, by inode.
    pub fn collect(
        &mut self,
        _collector: &mut Collector,
        _subject: &Subject<'_>,
        _numbers: &HashMap<u64, SocketId>,
    ) -> Result<InetSocket, Failure> {
        Err(RefusalKind::Socket.into())
    }
}
