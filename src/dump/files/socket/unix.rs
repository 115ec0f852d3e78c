//! Unix sockets.

use std::collections::HashMap;

use super::Subject;
use crate::dump::files::refusal::RefusalKind;
use crate::dump::files::scan::Description;
use crate::dump::files::{CollectFilesError, Collector, Failure, Scope};
use crate::model::id::SocketId;
use crate::model::socket::UnixSocket;

/// What is known of the unix sockets of the job.
#[derive(Debug)]
pub(super) struct UnixTable;

impl UnixTable {
    /// Finds the unix sockets among `subjects`, and how they are connected.
    pub fn survey(
        _scope: &Scope<'_>,
        _subjects: &[Subject<'_>],
    ) -> Result<Self, CollectFilesError> {
        Ok(Self)
    }

    /// Whether the other end of a connection is open outside the job.
    pub const fn leads_outside(&self, _found: &Description) -> bool {
        true
    }

    /// Records a socket. `numbers` has those of all sockets of the job, by inode.
    pub fn collect(
        &mut self,
        _collector: &mut Collector,
        _subject: &Subject<'_>,
        _numbers: &HashMap<u64, SocketId>,
    ) -> Result<UnixSocket, Failure> {
        Err(RefusalKind::Socket.into())
    }
}
