//! UDP sockets: whom they are bound and connected to, and the datagrams queued in them.

use std::net::IpAddr;

use nix::errno::Errno;

use super::Subject;
use super::inet::{refused, refused_now};
use crate::dump::files::{CollectFilesError, Failure, call_failed};
use crate::model::id::Bytes;
use crate::model::internet::Endpoint;
use crate::model::socket::{InetConnection, InetMessage, InetSocket, MulticastGroup};
use crate::sys::guardian::{Guardian, OptionValue};
use crate::sys::multicast::{self, Membership};
use crate::sys::{descriptor, socket};

/// No datagram is larger, with or without UDP_GRO.
const DATAGRAM: usize = 1 << 16;
/// Options that show the time of a datagram's arrival, which will be another one.
const STAMPS: [i32; 3] = [libc::SO_TIMESTAMP, libc::SO_TIMESTAMPNS, libc::SO_TIMESTAMPING];
/// Options of IP that show something of a datagram that is not recorded.
const SHOWN: [i32; 4] =
    [libc::IP_RECVTTL, libc::IP_RECVTOS, libc::IP_RECVOPTS, libc::IP_RECVORIGDSTADDR];
/// The same of IPv6.
const SHOWN_6: [i32; 2] = [libc::IPV6_RECVHOPLIMIT, libc::IPV6_RECVTCLASS];

/// Records a UDP socket. `shutdown` is what the kernel tells of it.
pub(super) fn collect(subject: &Subject<'_>, shutdown: u8) -> Result<InetSocket, Failure> {
    let name =
        socket::local_address(&subject.file).map_err(call_failed(subject.found, "getsockname"))?;
    let connection = match socket::peer_address(&subject.file) {
        Ok(peer) => InetConnection::Datagram { peer: Bytes(peer) },
        Err(Errno::ENOTCONN) => InetConnection::None,
        Err(source) => return Err(call_failed(subject.found, "getpeername")(source).into()),
    };
    let events = descriptor::poll_now(&subject.file, libc::POLLIN)
        .map_err(call_failed(subject.found, "poll"))?;
    if events & libc::POLLERR != 0 {
        return Err(refused_now("an error is pending on it (SO_ERROR, or MSG_ERRQUEUE)"));
    }
    let unsent =
        socket::output_queued(&subject.file).map_err(call_failed(subject.found, "SIOCOUTQ"))?;
    if unsent != 0 {
        return Err(refused_now(
            "a datagram is being put together in it, or on its way (UDP_CORK)",
        ));
    }
    // A socket that is shut down is always readable.
    let queued = if events & libc::POLLIN == 0 { Vec::new() } else { queue(subject)? };
    let groups = groups(subject)?;
    Ok(InetSocket { name: Bytes(name), connection, shutdown, queued, groups })
}

/// The multicast groups that it is a member of. The kernel tells that only for a given group, so it is
/// asked for all that somebody on this machine has joined.
fn groups(subject: &Subject<'_>) -> Result<Vec<MulticastGroup>, Failure> {
    let read = |path: &str| {
        std::fs::read_to_string(path)
            .map_err(|source| CollectFilesError::ReadProc { path: path.into(), source })
    };
    let mut known = multicast::parse_igmp(&read("/proc/net/igmp")?);
    if subject.domain == libc::AF_INET6 {
        known.extend(multicast::parse_igmp6(&read("/proc/net/igmp6")?));
    }
    let mut groups = Vec::new();
    for group in known {
        let call = |operation| call_failed(subject.found, operation);
        match multicast::membership(&subject.file, &group).map_err(call("MCAST_MSFILTER"))? {
            Membership::None => continue,
            Membership::Whole => {}
            Membership::Filtered => {
                return Err(refused(
                    "it takes what comes from certain senders of a multicast group",
                ));
            }
        }
        let domain = if group.ip.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
        let address = Endpoint { ip: group.ip, port: 0, scope: 0 }.address(domain);
        groups.push(MulticastGroup {
            interface: Bytes(group.name.into_bytes()),
            address: Bytes(address.unwrap_or_default()),
        });
    }
    Ok(groups)
}

/// The datagrams that it has yet to receive. Where SO_PEEK_OFF is set, one look after the other shows
/// one datagram after the other, and takes nothing out. It does not stay set whatever becomes of us.
fn queue(subject: &Subject<'_>) -> Result<Vec<InetMessage>, Failure> {
    let call = |operation| call_failed(subject.found, operation);
    let set = |value| {
        socket::set_int_option(&subject.file, libc::SOL_SOCKET, libc::SO_PEEK_OFF, value)
            .map_err(call("SO_PEEK_OFF"))
    };
    let before = socket::int_option(&subject.file, libc::SOL_SOCKET, libc::SO_PEEK_OFF)
        .map_err(call("SO_PEEK_OFF"))?;
    let value = OptionValue { level: libc::SOL_SOCKET, name: libc::SO_PEEK_OFF, value: before };
    let guardian = Guardian::over(&[(&subject.file, value)])
        .map_err(|error| call("fork")(errno_of(&error)))?;
    set(0)?;
    let mut queued = Vec::new();
    loop {
        match socket::peek(&subject.file, DATAGRAM) {
            Ok(found) => queued.push(message(found)?),
            Err(Errno::EAGAIN) => break,
            Err(source) => return Err(call("recvmsg")(source).into()),
        }
    }
    guardian.release().map_err(call("SO_PEEK_OFF"))?;
    if !queued.is_empty() {
        check_showable(subject)?;
    }
    Ok(queued)
}

/// A datagram that can be sent again: from an address of this machine.
fn message(found: socket::Peeked) -> Result<InetMessage, Failure> {
    let Some(sender) = Endpoint::parse(&found.sender) else {
        return Err(refused("the sender of a datagram that is queued in it is not known"));
    };
    if found.flags & libc::MSG_TRUNC != 0 {
        return Err(refused("a datagram that is queued in it cannot be seen whole"));
    }
    if !is_local(sender.ip, sender.scope) {
        return Err(refused_now("a datagram from another machine is queued in it"));
    }
    let receiver = found
        .receiver
        .and_then(|ip| {
            let domain = if ip.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
            Endpoint { ip, port: 0, scope: 0 }.address(domain)
        })
        .unwrap_or_default();
    Ok(InetMessage {
        data: Bytes(found.data),
        sender: Bytes(found.sender),
        receiver: Bytes(receiver),
    })
}

/// Whether an address is one of this machine's.
pub(super) fn is_local(ip: IpAddr, scope: u32) -> bool {
    let domain = if ip.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    let Some(address) = (Endpoint { ip, port: 0, scope }).address(domain) else { return false };
    socket::create(domain, libc::SOCK_DGRAM, 0)
        .and_then(|probe| socket::bind(&probe, &address))
        .is_ok()
}

/// Whether the program asks for something that a datagram sent again would not show.
fn check_showable(subject: &Subject<'_>) -> Result<(), Failure> {
    let is_on =
        |level, name| socket::int_option(&subject.file, level, name).is_ok_and(|value| value != 0);
    let of_6: &[i32] = if subject.domain == libc::AF_INET6 { &SHOWN_6 } else { &[] };
    if STAMPS.iter().any(|name| is_on(libc::SOL_SOCKET, *name)) {
        return Err(refused("datagrams are queued in it, with times of arrival (SO_TIMESTAMP)"));
    }
    if SHOWN.iter().any(|name| is_on(libc::IPPROTO_IP, *name))
        || of_6.iter().any(|name| is_on(libc::IPPROTO_IPV6, *name))
    {
        return Err(refused(
            "datagrams are queued in it, with values of their headers (IP_RECVTTL, IP_RECVTOS)",
        ));
    }
    Ok(())
}

fn errno_of(error: &std::io::Error) -> Errno {
    error.raw_os_error().map_or(Errno::EIO, Errno::from_raw)
}
