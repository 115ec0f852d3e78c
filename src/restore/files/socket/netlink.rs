//! Netlink sockets, which wait for nothing.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;

use nix::errno::Errno;

use super::SocketError;
use super::inet::failed;
use crate::model::id::SocketId;
use crate::model::job::Job;
use crate::model::socket::SocketDetail;
use crate::sys::socket;

/// Where `struct sockaddr_nl` has its number; 0: the socket has none yet.
const NUMBER: std::ops::Range<usize> = 4..8;

/// Makes the netlink sockets of `job`. A number that somebody else has is replaced by another: nobody
/// but the kernel knows a socket by it.
pub(super) fn make(job: &Job, made: &mut BTreeMap<SocketId, OwnedFd>) -> Result<(), SocketError> {
    for (number, record) in (0..).zip(&job.sockets) {
        let SocketDetail::Netlink(netlink) = &record.detail else { continue };
        let id = SocketId(number);
        let file = socket::create(record.domain, record.kind, record.protocol)
            .map_err(failed(id, "socket"))?;
        let mut name = netlink.name.0.clone();
        if name.get(NUMBER).is_some_and(|number| number != [0; 4]) {
            let outcome = match socket::bind(&file, &name) {
                Err(Errno::EADDRINUSE) => {
                    name[NUMBER].fill(0);
                    socket::bind(&file, &name)
                }
                outcome => outcome,
            };
            outcome.map_err(failed(id, "bind"))?;
        }
        made.insert(id, file);
    }
    Ok(())
}
