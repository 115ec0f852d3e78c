//! Netlink sockets that ask the kernel about the network (NETLINK_ROUTE): libraries leave them open when
//! they have looked up addresses. One that waits for nothing is saved; others are refused.

use super::Subject;
use crate::dump::files::refusal::RefusalKind;
use crate::dump::files::{Failure, call_failed};
use crate::model::id::Bytes;
use crate::model::socket::{NetlinkSocket, SocketOption};
use crate::sys::{descriptor, socket};

/// SOL_NETLINK.
const SOL_NETLINK: i32 = 270;
/// NETLINK_PKTINFO, NETLINK_BROADCAST_ERROR, NETLINK_NO_ENOBUFS, NETLINK_CAP_ACK, NETLINK_EXT_ACK and
/// NETLINK_GET_STRICT_CHK.
const SETTINGS: [i32; 6] = [3, 4, 5, 10, 11, 12];
/// NETLINK_LIST_MEMBERSHIPS, and room for as many groups as NETLINK_ROUTE will ever have.
const NETLINK_LIST_MEMBERSHIPS: i32 = 9;
const GROUPS: usize = 64;

/// Records a netlink socket.
pub(super) fn collect(
    subject: &Subject<'_>,
) -> Result<(NetlinkSocket, Vec<SocketOption>), Failure> {
    let call = |operation| call_failed(subject.found, operation);
    let events = descriptor::poll_now(&subject.file, libc::POLLIN).map_err(call("poll"))?;
    if events & (libc::POLLIN | libc::POLLERR) != 0 {
        return Err(refused("the kernel's answer is queued in it"));
    }
    let groups = socket::option(&subject.file, SOL_NETLINK, NETLINK_LIST_MEMBERSHIPS, GROUPS)
        .map_err(call("NETLINK_LIST_MEMBERSHIPS"))?;
    if groups.iter().any(|byte| *byte != 0) {
        return Err(refused("it is told of changes of the network"));
    }
    let name = socket::local_address(&subject.file).map_err(call("getsockname"))?;
    let mut options = Vec::new();
    for name in SETTINGS {
        // An older kernel does not have all of them.
        let Ok(value) = socket::option(&subject.file, SOL_NETLINK, name, 4) else { continue };
        if value.iter().any(|byte| *byte != 0) {
            options.push(SocketOption { level: SOL_NETLINK, name, value: Bytes(value) });
        }
    }
    Ok((NetlinkSocket { name: Bytes(name) }, options))
}

fn refused(reason: &'static str) -> Failure {
    RefusalKind::NetlinkSocket { reason }.into()
}
