//! Internet addresses as the kernel writes them (`struct sockaddr_in`, `struct sockaddr_in6`), and what
//! two of them have to do with each other. It makes no system calls.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// AF_INET and AF_INET6 (include/linux/socket.h).
const IPV4: u16 = 2;
const IPV6: u16 = 10;
/// Bytes of `struct sockaddr_in` and `struct sockaddr_in6`.
const LENGTH_4: usize = 16;
const LENGTH_6: usize = 28;

/// An address and a port, the same whether it was written for IPv4 or mapped into IPv6.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Endpoint {
    /// The address; one of IPv4 that is mapped into IPv6 stands here as of IPv4.
    pub ip: IpAddr,
    /// The port, 0 for none.
    pub port: u16,
    /// Index of the interface that an address of the link belongs to; 0: any.
    pub scope: u32,
}

impl Endpoint {
    /// Reads a `struct sockaddr_in` or `struct sockaddr_in6`; `None` for anything else.
    #[must_use]
    pub fn parse(address: &[u8]) -> Option<Self> {
        let family = u16::from_ne_bytes(*address.first_chunk()?);
        let port = u16::from_be_bytes(*address.get(2..)?.first_chunk()?);
        match family {
            IPV4 => {
                let ip: [u8; 4] = *address.get(4..LENGTH_4)?.first_chunk()?;
                Some(Self { ip: Ipv4Addr::from(ip).into(), port, scope: 0 })
            }
            IPV6 => {
                let ip: [u8; 16] = *address.get(8..LENGTH_6)?.first_chunk()?;
                let scope = u32::from_ne_bytes(*address.get(24..LENGTH_6)?.first_chunk()?);
                Some(Self { ip: Ipv6Addr::from(ip).to_canonical(), port, scope })
            }
            _ => None,
        }
    }

    /// The address as a socket of `domain` (AF_*) takes it: mapped into IPv6 where it has to be. `None`
    /// when such a socket cannot have it.
    #[must_use]
    pub fn address(&self, domain: i32) -> Option<Vec<u8>> {
        let domain = u16::try_from(domain).ok()?;
        let mut bytes = Vec::with_capacity(LENGTH_6);
        bytes.extend(domain.to_ne_bytes());
        bytes.extend(self.port.to_be_bytes());
        match (domain, self.ip) {
            (IPV4, IpAddr::V4(ip)) => {
                bytes.extend(ip.octets());
                bytes.resize(LENGTH_4, 0);
            }
            (IPV6, ip) => {
                let ip = match ip {
                    IpAddr::V4(ip) => ip.to_ipv6_mapped(),
                    IpAddr::V6(ip) => ip,
                };
                bytes.extend([0; 4]);
                bytes.extend(ip.octets());
                bytes.extend(self.scope.to_ne_bytes());
            }
            _ => return None,
        }
        Some(bytes)
    }

    /// Whether it stands for every address of the machine.
    #[must_use]
    pub const fn is_wildcard(&self) -> bool {
        self.ip.is_unspecified()
    }

    /// Whether a socket bound here gets what is sent to `other`.
    #[must_use]
    pub fn takes(&self, other: &Self) -> bool {
        self.port == other.port
            && match (self.ip, other.ip) {
                (IpAddr::V4(ip), IpAddr::V6(_)) if ip.is_unspecified() => false,
                (own, ip) => own.is_unspecified() || own == ip,
            }
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.ip {
            IpAddr::V4(ip) => write!(f, "{ip}:{}", self.port),
            IpAddr::V6(ip) => write!(f, "[{ip}]:{}", self.port),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoint(ip: &str, port: u16) -> Endpoint {
        Endpoint { ip: ip.parse().unwrap(), port, scope: 0 }
    }

    #[test]
    fn addresses_are_read_and_written() {
        let four = [2, 0, 0x1f, 0x90, 127, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0];
        assert_eq!(Endpoint::parse(&four), Some(endpoint("127.0.0.1", 8080)));
        assert_eq!(endpoint("127.0.0.1", 8080).address(2), Some(four.to_vec()));
        let link = Endpoint { scope: 4, ..endpoint("fe80::1", 9) };
        assert_eq!(Endpoint::parse(&link.address(10).unwrap()), Some(link));
        assert_eq!(link.address(2), None);
        assert_eq!(Endpoint::parse(&four[..10]), None);
        assert_eq!(Endpoint::parse(&[1, 0, b'/', b'x']), None);
    }

    #[test]
    fn a_mapped_address_is_one_of_ipv4() {
        let four = endpoint("10.1.2.3", 80);
        let mapped = four.address(10).unwrap();
        assert_eq!(mapped.len(), 28);
        assert_eq!(Endpoint::parse(&mapped), Some(four));
    }

    #[test]
    fn wildcards_take_what_they_should() {
        let check = |own: &str, other: &str, expected| {
            assert_eq!(endpoint(own, 5).takes(&endpoint(other, 5)), expected, "{own} {other}");
        };
        check("0.0.0.0", "127.0.0.1", true);
        check("0.0.0.0", "::1", false);
        check("::", "127.0.0.1", true);
        check("::", "::1", true);
        check("127.0.0.1", "127.0.0.1", true);
        check("127.0.0.2", "127.0.0.1", false);
        assert!(!endpoint("::", 5).takes(&endpoint("::1", 6)));
        assert_eq!(endpoint("::1", 6).to_string(), "[::1]:6");
    }
}
