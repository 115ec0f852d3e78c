//! The options of the levels that only internet sockets have: IP, IPv6, TCP and UDP.

use std::os::fd::AsFd;

use nix::errno::Errno;

use super::Subject;
use crate::dump::files::refusal::RefusalKind;
use crate::dump::files::{CollectFilesError, Failure, call_failed};
use crate::model::id::Bytes;
use crate::model::internet::Endpoint;
use crate::model::socket::SocketOption;
use crate::sys::socket;

/// Level and name.
type Name = (i32, i32);

const IP: i32 = libc::IPPROTO_IP;
const IPV6: i32 = libc::IPPROTO_IPV6;
const TCP: i32 = libc::IPPROTO_TCP;
const UDP: i32 = libc::IPPROTO_UDP;

/// Options that are always recorded: a socket is made again with others, or what a new one has is a
/// setting of the machine.
const ALWAYS: [Name; 2] =
    [(libc::SOL_SOCKET, libc::SO_REUSEADDR), (libc::SOL_SOCKET, libc::SO_REUSEPORT)];

/// Options of IP that are recorded where they differ from those of a new socket of the kind
/// (include/uapi/linux/in.h).
const IP_SETTINGS: [i32; 25] = [
    libc::IP_TOS,
    libc::IP_TTL,
    libc::IP_OPTIONS,
    libc::IP_RECVOPTS,
    7, // IP_RETOPTS
    libc::IP_PKTINFO,
    libc::IP_MTU_DISCOVER,
    libc::IP_RECVERR,
    libc::IP_RECVTTL,
    libc::IP_RECVTOS,
    libc::IP_FREEBIND,
    libc::IP_TRANSPARENT,
    libc::IP_RECVORIGDSTADDR,
    libc::IP_MINTTL,
    22, // IP_NODEFRAG
    23, // IP_CHECKSUM
    libc::IP_BIND_ADDRESS_NO_PORT,
    25, // IP_RECVFRAGSIZE
    26, // IP_RECVERR_RFC4884
    libc::IP_MULTICAST_IF,
    libc::IP_MULTICAST_TTL,
    libc::IP_MULTICAST_LOOP,
    49, // IP_MULTICAST_ALL
    50, // IP_UNICAST_IF
    51, // IP_LOCAL_PORT_RANGE
];

/// The same of IPv6 (include/uapi/linux/in6.h).
const IPV6_SETTINGS: [i32; 25] = [
    libc::IPV6_UNICAST_HOPS,
    libc::IPV6_MULTICAST_IF,
    libc::IPV6_MULTICAST_HOPS,
    libc::IPV6_MULTICAST_LOOP,
    libc::IPV6_MTU_DISCOVER,
    libc::IPV6_RECVERR,
    29, // IPV6_MULTICAST_ALL
    31, // IPV6_RECVERR_RFC4884
    33, // IPV6_FLOWINFO_SEND
    libc::IPV6_RECVPKTINFO,
    libc::IPV6_RECVHOPLIMIT,
    53, // IPV6_RECVHOPOPTS
    56, // IPV6_RECVRTHDR
    58, // IPV6_RECVDSTOPTS
    60, // IPV6_RECVPATHMTU
    62, // IPV6_DONTFRAG
    libc::IPV6_RECVTCLASS,
    libc::IPV6_TCLASS,
    70, // IPV6_AUTOFLOWLABEL
    72, // IPV6_ADDR_PREFERENCES
    73, // IPV6_MINHOPCOUNT
    74, // IPV6_ORIGDSTADDR
    75, // IPV6_TRANSPARENT
    76, // IPV6_UNICAST_IF
    78, // IPV6_FREEBIND
];

/// The same of TCP (include/uapi/linux/tcp.h). TCP_MAXSEG and TCP_WINDOW_CLAMP show what a connection
/// has come to, and TCP_QUICKACK changes by itself.
const TCP_SETTINGS: [i32; 19] = [
    libc::TCP_NODELAY,
    libc::TCP_CORK,
    libc::TCP_KEEPIDLE,
    libc::TCP_KEEPINTVL,
    libc::TCP_KEEPCNT,
    libc::TCP_SYNCNT,
    libc::TCP_LINGER2,
    libc::TCP_DEFER_ACCEPT,
    libc::TCP_CONGESTION,
    libc::TCP_THIN_LINEAR_TIMEOUTS,
    libc::TCP_USER_TIMEOUT,
    libc::TCP_FASTOPEN,
    libc::TCP_NOTSENT_LOWAT,
    27, // TCP_SAVE_SYN
    30, // TCP_FASTOPEN_CONNECT
    34, // TCP_FASTOPEN_NO_COOKIE
    36, // TCP_INQ
    37, // TCP_TX_DELAY
    44, // TCP_RTO_MAX_MS
];

/// The same of UDP (include/uapi/linux/udp.h).
const UDP_SETTINGS: [i32; 6] = [
    libc::UDP_CORK,
    100, // UDP_ENCAP
    101, // UDP_NO_CHECK6_TX
    102, // UDP_NO_CHECK6_RX
    103, // UDP_SEGMENT
    104, // UDP_GRO
];

/// Those that a connection does not have, although it shows values of them.
const MULTICAST: [Name; 8] = [
    (IP, libc::IP_MULTICAST_IF),
    (IP, libc::IP_MULTICAST_TTL),
    (IP, libc::IP_MULTICAST_LOOP),
    (IP, 49),
    (IPV6, libc::IPV6_MULTICAST_IF),
    (IPV6, libc::IPV6_MULTICAST_HOPS),
    (IPV6, libc::IPV6_MULTICAST_LOOP),
    (IPV6, 29),
];

/// Headers that are put before everything that is sent over IPv6, and cannot be told from those of the
/// connection: IPV6_HOPOPTS, IPV6_RTHDRDSTOPTS, IPV6_RTHDR and IPV6_DSTOPTS.
const HEADERS: [i32; 4] = [54, 55, 57, 59];

/// TCP_ULP.
const TCP_ULP: i32 = 31;
/// Longest value among them: 40 bytes of IP_OPTIONS.
const VALUE_LIMIT: usize = 64;

/// The options of internet levels that a restore has to see to.
///
/// IPV6_V6ONLY cannot be set any more once a socket has an address. It matters only to one that takes
/// all addresses; the kernel sets it for others that are bound.
pub(super) fn collect(subject: &Subject<'_>, name: &Bytes) -> Result<Vec<SocketOption>, Failure> {
    check_settable(subject)?;
    let new = socket::create(subject.domain, subject.kind, subject.protocol)
        .map_err(call_failed(subject.found, "socket"))?;
    let mut options = Vec::new();
    let takes_all = Endpoint::parse(&name.0).is_some_and(|name| name.is_wildcard());
    let for_all = (IPV6, libc::IPV6_V6ONLY);
    for name in ALWAYS.into_iter().chain(takes_all.then_some(for_all)) {
        if let Some(found) = value(subject, &subject.file, name)? {
            options.push(option(name, found));
        }
    }
    for name in settings(subject) {
        let Some(found) = value(subject, &subject.file, name)? else { continue };
        if value(subject, &new, name)?.as_ref() != Some(&found) {
            options.push(option(name, found));
        }
    }
    Ok(options)
}

/// What is looked at: a socket of IPv6 has the options of IPv4, too.
fn settings(subject: &Subject<'_>) -> impl Iterator<Item = Name> + use<> {
    let own: &[i32] = if subject.domain == libc::AF_INET6 { &IPV6_SETTINGS } else { &[] };
    let (level, transport): (i32, &[i32]) = match subject.kind {
        libc::SOCK_STREAM => (TCP, &TCP_SETTINGS),
        _ => (UDP, &UDP_SETTINGS),
    };
    let connects = subject.kind == libc::SOCK_STREAM;
    let of = |level: i32, names: &'static [i32]| names.iter().map(move |name| (level, *name));
    of(IP, &IP_SETTINGS)
        .chain(of(IPV6, own))
        .chain(of(level, transport))
        .filter(move |name| !connects || !MULTICAST.contains(name))
}

fn option((level, name): Name, value: Vec<u8>) -> SocketOption {
    SocketOption { level, name, value: Bytes(value) }
}

/// The value of an option; `None` when this kernel, or this socket in its state, does not have it.
fn value(
    subject: &Subject<'_>,
    file: impl AsFd,
    (level, name): Name,
) -> Result<Option<Vec<u8>>, CollectFilesError> {
    match socket::option(file, level, name, VALUE_LIMIT) {
        Ok(value) => Ok(Some(value)),
        Err(Errno::ENOPROTOOPT | Errno::EOPNOTSUPP | Errno::EINVAL | Errno::ENOTCONN) => Ok(None),
        Err(source) => Err(call_failed(subject.found, "getsockopt")(source)),
    }
}

/// What cannot be set again.
fn check_settable(subject: &Subject<'_>) -> Result<(), Failure> {
    let refused = |what| Err(Failure::Refused(RefusalKind::SocketOption { what }));
    if subject.kind == libc::SOCK_STREAM {
        let layer = value(subject, &subject.file, (TCP, TCP_ULP))?.unwrap_or_default();
        let is_own = subject.protocol == libc::IPPROTO_MPTCP && layer.starts_with(b"mptcp");
        if layer.iter().any(|byte| *byte != 0) && !is_own {
            return refused("TCP_ULP (encryption by the kernel)");
        }
    }
    if subject.domain == libc::AF_INET6 {
        for name in HEADERS {
            if value(subject, &subject.file, (IPV6, name))?.is_some_and(|value| !value.is_empty()) {
                return refused("IPV6_HOPOPTS, IPV6_RTHDR or IPV6_DSTOPTS");
            }
        }
    }
    Ok(())
}
