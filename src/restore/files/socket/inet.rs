//! Internet sockets.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;

use super::SocketError;
use crate::model::id::SocketId;
use crate::model::job::Job;

/// Makes the internet sockets of `job`, with their addresses and connections.
pub(super) const fn make(
    _job: &Job,
    _made: &mut BTreeMap<SocketId, OwnedFd>,
) -> Result<(), SocketError> {
    Ok(())
}

/// Fills their queues, and does what would have been in the way of that.
pub(super) const fn finish(
    _job: &Job,
    _made: &BTreeMap<SocketId, OwnedFd>,
) -> Result<(), SocketError> {
    Ok(())
}
