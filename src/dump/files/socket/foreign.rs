//! Kinds of sockets that are not saved, and what to call them.
//!
//! Pure: it judges by the three numbers that socket(2) was given. Sockets of the kinds that are left
//! (unix sockets, TCP on one path or several, UDP, netlink for routes) are not its business.

use std::fmt;

/// A kind of socket whose state lies in devices, in the kernel or on other machines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ForeignSocket {
    /// AF_NETLINK, with the protocol (NETLINK_*).
    Netlink(i32),
    /// AF_PACKET.
    Packet,
    /// SOCK_RAW over IPv4 or IPv6.
    RawInternet,
    /// SOCK_DGRAM with IPPROTO_ICMP or IPPROTO_ICMPV6.
    Ping,
    /// IPPROTO_UDPLITE.
    UdpLite,
    /// IPPROTO_SCTP.
    Sctp,
    /// Another protocol over IPv4 or IPv6.
    OtherInternet(i32),
    /// AF_VSOCK.
    Vsock,
    /// AF_ALG.
    CryptoApi,
    /// AF_XDP.
    ExpressDataPath,
    /// AF_CAN.
    Can,
    /// AF_BLUETOOTH.
    Bluetooth,
    /// AF_KEY.
    KeyManagement,
    /// AF_RDS.
    ReliableDatagram,
    /// AF_TIPC.
    Tipc,
    /// AF_SMC.
    SharedMemoryCommunication,
    /// A family that is not known.
    OtherFamily(i32),
}

impl fmt::Display for ForeignSocket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Netlink(protocol) => {
                return match netlink_name(*protocol) {
                    Some(name) => write!(f, "netlink sockets ({name})"),
                    None => write!(f, "netlink sockets (protocol {protocol})"),
                };
            }
            Self::Packet => "packet sockets (AF_PACKET)",
            Self::RawInternet => "raw internet sockets (SOCK_RAW)",
            Self::Ping => "ping sockets (IPPROTO_ICMP)",
            Self::UdpLite => "UDP-Lite sockets",
            Self::Sctp => "SCTP sockets",
            Self::OtherInternet(protocol) => {
                return write!(f, "internet sockets of protocol {protocol}");
            }
            Self::Vsock => "sockets between virtual machines (AF_VSOCK)",
            Self::CryptoApi => "sockets of the kernel's cryptography (AF_ALG)",
            Self::ExpressDataPath => "express data path sockets (AF_XDP)",
            Self::Can => "CAN bus sockets",
            Self::Bluetooth => "Bluetooth sockets",
            Self::KeyManagement => "key management sockets (AF_KEY)",
            Self::ReliableDatagram => "RDS sockets",
            Self::Tipc => "TIPC sockets",
            Self::SharedMemoryCommunication => "SMC sockets",
            Self::OtherFamily(family) => return write!(f, "sockets of address family {family}"),
        })
    }
}

/// Which foreign kind a socket is, by its domain, type and protocol as SO_DOMAIN, SO_TYPE and
/// SO_PROTOCOL give them; `None` for unix sockets, TCP (of several paths, too), UDP and NETLINK_ROUTE.
pub(super) const fn judge(domain: i32, kind: i32, protocol: i32) -> Option<ForeignSocket> {
    Some(match domain {
        libc::AF_UNIX => return None,
        libc::AF_INET | libc::AF_INET6 => match (kind, protocol) {
            (libc::SOCK_STREAM, libc::IPPROTO_TCP | libc::IPPROTO_MPTCP)
            | (libc::SOCK_DGRAM, libc::IPPROTO_UDP) => {
                return None;
            }
            (libc::SOCK_RAW, _) => ForeignSocket::RawInternet,
            (libc::SOCK_DGRAM, libc::IPPROTO_ICMP | libc::IPPROTO_ICMPV6) => ForeignSocket::Ping,
            (_, libc::IPPROTO_UDPLITE) => ForeignSocket::UdpLite,
            (_, libc::IPPROTO_SCTP) => ForeignSocket::Sctp,
            _ => ForeignSocket::OtherInternet(protocol),
        },
        libc::AF_NETLINK if protocol == libc::NETLINK_ROUTE => return None,
        libc::AF_NETLINK => ForeignSocket::Netlink(protocol),
        libc::AF_PACKET => ForeignSocket::Packet,
        libc::AF_VSOCK => ForeignSocket::Vsock,
        libc::AF_ALG => ForeignSocket::CryptoApi,
        libc::AF_XDP => ForeignSocket::ExpressDataPath,
        libc::AF_CAN => ForeignSocket::Can,
        libc::AF_BLUETOOTH => ForeignSocket::Bluetooth,
        libc::AF_KEY => ForeignSocket::KeyManagement,
        libc::AF_RDS => ForeignSocket::ReliableDatagram,
        libc::AF_TIPC => ForeignSocket::Tipc,
        AF_SMC => ForeignSocket::SharedMemoryCommunication,
        _ => ForeignSocket::OtherFamily(domain),
    })
}

/// include/linux/socket.h.
const AF_SMC: i32 = 43;

const fn netlink_name(protocol: i32) -> Option<&'static str> {
    Some(match protocol {
        libc::NETLINK_SOCK_DIAG => "NETLINK_SOCK_DIAG",
        libc::NETLINK_NFLOG => "NETLINK_NFLOG",
        libc::NETLINK_XFRM => "NETLINK_XFRM",
        libc::NETLINK_AUDIT => "NETLINK_AUDIT",
        libc::NETLINK_CONNECTOR => "NETLINK_CONNECTOR",
        libc::NETLINK_NETFILTER => "NETLINK_NETFILTER",
        libc::NETLINK_KOBJECT_UEVENT => "NETLINK_KOBJECT_UEVENT",
        libc::NETLINK_GENERIC => "NETLINK_GENERIC",
        libc::NETLINK_CRYPTO => "NETLINK_CRYPTO",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check((domain, kind, protocol): (i32, i32, i32), expected: Option<&str>) {
        let judged = judge(domain, kind, protocol).map(|kind| kind.to_string());
        assert_eq!(judged.as_deref(), expected, "{domain} {kind} {protocol}");
    }

    #[test]
    fn ordinary_sockets_are_not_foreign() {
        for domain in [libc::AF_INET, libc::AF_INET6] {
            check((domain, libc::SOCK_STREAM, libc::IPPROTO_TCP), None);
            check((domain, libc::SOCK_STREAM, libc::IPPROTO_MPTCP), None);
            check((domain, libc::SOCK_DGRAM, libc::IPPROTO_UDP), None);
        }
        check((libc::AF_UNIX, libc::SOCK_SEQPACKET, 0), None);
    }

    #[test]
    fn others_are_named() {
        let (stream, datagram, raw) = (libc::SOCK_STREAM, libc::SOCK_DGRAM, libc::SOCK_RAW);
        check((libc::AF_NETLINK, raw, 0), None);
        check((libc::AF_NETLINK, raw, 15), Some("netlink sockets (NETLINK_KOBJECT_UEVENT)"));
        check((libc::AF_NETLINK, raw, 30), Some("netlink sockets (protocol 30)"));
        check((libc::AF_PACKET, raw, 0x300), Some("packet sockets (AF_PACKET)"));
        check((libc::AF_INET, raw, libc::IPPROTO_TCP), Some("raw internet sockets (SOCK_RAW)"));
        check((libc::AF_INET6, datagram, 58), Some("ping sockets (IPPROTO_ICMP)"));
        check((libc::AF_INET, datagram, libc::IPPROTO_UDPLITE), Some("UDP-Lite sockets"));
        check((libc::AF_INET, stream, 33), Some("internet sockets of protocol 33"));
        check((libc::AF_VSOCK, stream, 0), Some("sockets between virtual machines (AF_VSOCK)"));
        check((45, stream, 0), Some("sockets of address family 45"));
    }
}
