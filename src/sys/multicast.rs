//! Multicast groups: those that somebody on this machine has joined (/proc/net/igmp, /proc/net/igmp6),
//! and whether a socket is a member.
#![allow(unsafe_code)]

use std::ffi::CString;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::AsFd;

use nix::errno::Errno;

use super::socket;
use crate::model::internet::Endpoint;

/// MCAST_JOIN_GROUP and MCAST_MSFILTER (include/uapi/linux/in.h), of both families.
const MCAST_JOIN_GROUP: i32 = 42;
const MCAST_MSFILTER: i32 = 48;
/// MCAST_EXCLUDE: everything but what comes from the sources listed.
const MCAST_EXCLUDE: u32 = 0;
/// Bytes of `struct sockaddr_storage`, and of `struct group_filter` before its list.
const ADDRESS: usize = 128;
const FILTER: usize = 8 + ADDRESS + 8;

/// A group on an interface.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Group {
    /// Name of the interface.
    pub name: String,
    /// Its index.
    pub interface: u32,
    /// The group's address.
    pub ip: IpAddr,
}

/// Groups listed in the text of /proc/net/igmp: a line for each interface, followed by one for each
/// group.
#[must_use]
pub fn parse_igmp(text: &str) -> Vec<Group> {
    let mut current: Option<(u32, &str)> = None;
    let mut groups = Vec::new();
    for line in text.lines().skip(1) {
        let mut words = line.split_whitespace();
        let Some(first) = words.next() else { continue };
        if !line.starts_with(char::is_whitespace) {
            current = first.parse().ok().zip(words.next());
        } else if let (Some((interface, name)), Ok(word)) =
            (current, u32::from_str_radix(first, 16))
        {
            // The address as it lies in memory, shown as a number of this machine.
            let ip = Ipv4Addr::from(word.to_ne_bytes()).into();
            groups.push(Group { name: name.to_owned(), interface, ip });
        }
    }
    groups
}

/// Groups listed in the text of /proc/net/igmp6.
#[must_use]
pub fn parse_igmp6(text: &str) -> Vec<Group> {
    let group = |line: &str| {
        let mut words = line.split_whitespace();
        let interface = words.next()?.parse().ok()?;
        let name = words.next()?.to_owned();
        let ip = Ipv6Addr::from(u128::from_str_radix(words.next()?, 16).ok()?).into();
        Some(Group { name, interface, ip })
    };
    text.lines().filter_map(group).collect()
}

/// How a socket is a member of a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Membership {
    /// Not at all.
    None,
    /// It gets everything.
    Whole,
    /// It takes, or does not take, what comes from certain senders.
    Filtered,
}

/// Whether a socket is a member of a group.
///
/// # Errors
/// As getsockopt(2).
pub fn membership(file: impl AsFd, group: &Group) -> Result<Membership, Errno> {
    let mut filter = request(group).ok_or(Errno::EAFNOSUPPORT)?;
    filter.resize(FILTER, 0);
    match socket::ask_option(file, level(group), MCAST_MSFILTER, &mut filter) {
        Ok(()) => {
            let word = |at: usize| {
                let bytes = filter.get(at..).and_then(<[u8]>::first_chunk).copied();
                bytes.map_or(u32::MAX, u32::from_ne_bytes)
            };
            let (mode, sources) = (word(8 + ADDRESS), word(12 + ADDRESS));
            let whole = mode == MCAST_EXCLUDE && sources == 0;
            Ok(if whole { Membership::Whole } else { Membership::Filtered })
        }
        Err(Errno::EADDRNOTAVAIL | Errno::ENODEV | Errno::EINVAL) => Ok(Membership::None),
        Err(error) => Err(error),
    }
}

/// Makes a socket a member of a group on the interface of that name.
///
/// # Errors
/// As setsockopt(2); ENODEV when there is no such interface.
pub fn join(file: impl AsFd, name: &[u8], ip: IpAddr) -> Result<(), Errno> {
    let name = CString::new(name).map_err(|_| Errno::EINVAL)?;
    // SAFETY: the call reads a string that ends in NUL.
    let interface = unsafe { libc::if_nametoindex(name.as_ptr()) };
    if interface == 0 {
        return Err(Errno::ENODEV);
    }
    let group = &Group { name: String::new(), interface, ip };
    let request = request(group).ok_or(Errno::EAFNOSUPPORT)?;
    socket::set_option(file, level(group), MCAST_JOIN_GROUP, &request)
}

const fn level(group: &Group) -> i32 {
    if group.ip.is_ipv4() { libc::IPPROTO_IP } else { libc::IPPROTO_IPV6 }
}

/// `struct group_req`: the interface, and the group's address at the next multiple of eight.
fn request(group: &Group) -> Option<Vec<u8>> {
    let domain = if group.ip.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    let address = Endpoint { ip: group.ip, port: 0, scope: 0 }.address(domain)?;
    let mut bytes = group.interface.to_ne_bytes().to_vec();
    bytes.extend([0; 4]);
    bytes.extend(address);
    bytes.resize(8 + ADDRESS, 0);
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn group(interface: u32, name: &str, ip: &str) -> Group {
        Group { interface, name: name.to_owned(), ip: ip.parse().unwrap() }
    }

    #[test]
    fn lists_of_groups_are_read() {
        let text = "Idx\tDevice    : Count Querier\tGroup    Users Timer\tReporter\n\
                    1\tlo        :     1      V3\n\t\t\t\t010000E0     1 0:00000000\t\t0\n\
                    4\teth0      :     2      V3\n\t\t\t\t0A0101EF     1 0:00000000\t\t0\n";
        assert_eq!(parse_igmp(text), [group(1, "lo", "224.0.0.1"), group(4, "eth0", "239.1.1.10")]);
        let text = "1    lo              ff020000000000000000000000000001     1 0000000C 0\n";
        assert_eq!(parse_igmp6(text), [group(1, "lo", "ff02::1")]);
        assert_eq!(parse_igmp6("nonsense\n"), []);
    }

    #[test]
    fn a_member_is_known() {
        let socket = socket::create(libc::AF_INET, libc::SOCK_DGRAM, 0).unwrap();
        let group = group(1, "lo", "239.77.1.2");
        assert_eq!(membership(&socket, &group), Ok(Membership::None));
        join(&socket, b"lo", group.ip).unwrap();
        assert_eq!(membership(&socket, &group), Ok(Membership::Whole));
        let listed = parse_igmp(&std::fs::read_to_string("/proc/net/igmp").unwrap());
        assert!(listed.contains(&group), "{listed:?}");
    }
}
