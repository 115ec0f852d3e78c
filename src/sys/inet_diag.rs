//! What the kernel tells about the internet sockets of the caller's network namespace, also about those
//! that no process has open: NETLINK_SOCK_DIAG (sock_diag(7)); and TCP_INFO.

use std::net::IpAddr;
use std::os::fd::AsFd;

use nix::errno::Errno;

use super::sock_diag::{ask_all, ask_one, attributes, word};
use super::socket;
use crate::model::internet::Endpoint;

/// Bytes of `struct inet_diag_msg` (include/uapi/linux/inet_diag.h).
const MESSAGE: usize = 72;
/// INET_DIAG_SHUTDOWN.
const SHUTDOWN: u16 = 8;

/// What a TCP socket is doing (include/net/tcp_states.h).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TcpState {
    /// Both directions are open.
    Established,
    /// It is trying to connect.
    SynSent,
    /// A connection that is only half there.
    SynReceived,
    /// It has sent its end, which is not acknowledged.
    FinWait1,
    /// It has sent its end.
    FinWait2,
    /// The connection is over; its addresses are still kept.
    TimeWait,
    /// It is not connected, or not any more.
    Closed,
    /// The peer has sent its end.
    CloseWait,
    /// Both have sent their ends, the peer first; its own is not acknowledged.
    LastAck,
    /// It waits for connections.
    Listening,
    /// Both have sent their ends, which crossed.
    Closing,
    /// A number that is not known.
    Unknown(u8),
}

impl From<u8> for TcpState {
    fn from(number: u8) -> Self {
        match number {
            1 => Self::Established,
            2 => Self::SynSent,
            // TCP_SYN_RECV and TCP_NEW_SYN_RECV.
            3 | 12 => Self::SynReceived,
            4 => Self::FinWait1,
            5 => Self::FinWait2,
            6 => Self::TimeWait,
            7 => Self::Closed,
            8 => Self::CloseWait,
            9 => Self::LastAck,
            10 => Self::Listening,
            11 => Self::Closing,
            _ => Self::Unknown(number),
        }
    }
}

/// A socket that has an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InetSocketInfo {
    /// What it is doing.
    pub state: TcpState,
    /// Its own address.
    pub local: Endpoint,
    /// That of its peer.
    pub remote: Endpoint,
    /// Bytes that it has yet to receive, its peer's end counting as one.
    pub receive_queue: u32,
    /// Bytes that are not acknowledged, its own end counting as one.
    pub send_queue: u32,
    /// Its inode number; 0: no process has it open.
    pub inode: u32,
    /// RCV_SHUTDOWN (1) and SEND_SHUTDOWN (2).
    pub shutdown: u8,
}

/// All sockets of a protocol (IPPROTO_TCP, IPPROTO_UDP) in the caller's network namespace, over IPv4
/// and IPv6.
///
/// # Errors
/// As netlink(7); ENOENT where the kernel cannot tell.
pub fn inet_sockets(protocol: u8) -> Result<Vec<InetSocketInfo>, Errno> {
    let mut sockets = Vec::new();
    for family in [libc::AF_INET, libc::AF_INET6] {
        let family = u8::try_from(family).map_err(|_| Errno::EINVAL)?;
        // `struct inet_diag_req_v2`: in any state, with any address.
        let mut body = vec![family, protocol, 0, 0];
        body.extend(u32::MAX.to_ne_bytes());
        body.resize(56, 0);
        ask_all(&body, &mut |message| {
            sockets.push(parse(message)?);
            Ok(())
        })?;
    }
    Ok(sockets)
}

/// The one TCP connection from `local` to `remote`; `None` when the kernel has none.
///
/// # Errors
/// As netlink(7).
pub fn tcp_connection(local: Endpoint, remote: Endpoint) -> Result<Option<InetSocketInfo>, Errno> {
    const TCP: u8 = 6;
    let family = if local.ip.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    // `struct inet_diag_req_v2`: in any state, with these addresses, and any cookie.
    let mut body = vec![u8::try_from(family).map_err(|_| Errno::EINVAL)?, TCP, 0, 0];
    body.extend(u32::MAX.to_ne_bytes());
    body.extend([local.port, remote.port].map(u16::to_be_bytes).as_flattened());
    for endpoint in [local, remote] {
        let mut ip = match endpoint.ip {
            IpAddr::V4(ip) => ip.octets().to_vec(),
            IpAddr::V6(ip) => ip.octets().to_vec(),
        };
        ip.resize(16, 0);
        body.extend(ip);
    }
    body.extend(local.scope.to_ne_bytes());
    body.extend([u8::MAX; 8]);
    let mut found = None;
    let asked = ask_one(&body, &mut |message| {
        found = Some(parse(message)?);
        Ok(())
    });
    match asked {
        Ok(()) => Ok(found),
        Err(Errno::ENOENT) => Ok(None),
        Err(error) => Err(error),
    }
}

fn parse(body: &[u8]) -> Result<InetSocketInfo, Errno> {
    let [family, state, ..] = body else { return Err(Errno::EBADMSG) };
    let mut found = InetSocketInfo {
        state: TcpState::from(*state),
        local: endpoint(*family, body, 4, 8)?,
        remote: endpoint(*family, body, 6, 24)?,
        receive_queue: word(body, 56)?,
        send_queue: word(body, 60)?,
        inode: word(body, 68)?,
        shutdown: 0,
    };
    attributes(body.get(MESSAGE..).ok_or(Errno::EBADMSG)?, &mut |kind, value| {
        if kind == SHUTDOWN {
            found.shutdown = value.first().copied().unwrap_or_default();
        }
        Ok(())
    })?;
    Ok(found)
}

/// The endpoint whose port and address stand at these offsets.
fn endpoint(family: u8, body: &[u8], port: usize, ip: usize) -> Result<Endpoint, Errno> {
    let word_of = |at: usize| body.get(at..at + 16).ok_or(Errno::EBADMSG);
    let port = body.get(port..port + 2).ok_or(Errno::EBADMSG)?;
    let mut address = vec![family, 0];
    address.extend(port);
    if i32::from(family) == libc::AF_INET {
        address.extend(&word_of(ip)?[..4]);
        address.resize(16, 0);
    } else {
        address.extend([0; 4]);
        address.extend(word_of(ip)?);
        address.extend([0; 4]);
    }
    Endpoint::parse(&address).ok_or(Errno::EBADMSG)
}

/// What TCP_INFO tells of a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TcpInfo {
    /// What it is doing.
    pub state: TcpState,
    /// Of a listening socket: connections not yet accepted.
    pub waiting: u32,
    /// Of a listening socket: how many may be waiting.
    pub backlog: u32,
}

/// Asks a TCP socket what it is doing (TCP_INFO, tcp(7)).
///
/// # Errors
/// As getsockopt(2).
pub fn tcp_info(file: impl AsFd) -> Result<TcpInfo, Errno> {
    // `struct tcp_info` up to tcpi_sacked; the two are used anew in a listening socket.
    let bytes = socket::option(file, libc::IPPROTO_TCP, libc::TCP_INFO, 32)?;
    let state = *bytes.first().ok_or(Errno::EBADMSG)?;
    Ok(TcpInfo { state: state.into(), waiting: word(&bytes, 24)?, backlog: word(&bytes, 28)? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listener_and_a_connection_are_found() {
        let ip = "127.0.0.1".parse().unwrap();
        let address = |port| Endpoint { ip, port, scope: 0 }.address(libc::AF_INET).unwrap();
        let make = || socket::create(libc::AF_INET, libc::SOCK_STREAM, libc::IPPROTO_TCP).unwrap();
        let (listener, client) = (make(), make());
        socket::bind(&listener, &address(0)).unwrap();
        socket::listen(&listener, 9).unwrap();
        let name = socket::local_address(&listener).unwrap();
        socket::connect(&client, &name).unwrap();
        let expected = TcpInfo { state: TcpState::Listening, waiting: 1, backlog: 9 };
        assert_eq!(tcp_info(&listener), Ok(expected));
        assert_eq!(tcp_info(&client).map(|info| info.state), Ok(TcpState::Established));
        let (served, own) =
            (Endpoint::parse(&name), Endpoint::parse(&socket::local_address(&client).unwrap()));
        let all = inet_sockets(6).unwrap();
        let pending =
            all.iter().find(|found| Some(found.local) == served && Some(found.remote) == own);
        assert_eq!(
            pending.map(|found| (found.state, found.inode)),
            Some((TcpState::Established, 0))
        );
        socket::shut_down(&client, libc::SHUT_WR).unwrap();
        let all = inet_sockets(6).unwrap();
        let client =
            all.iter().find(|found| Some(found.local) == own && Some(found.remote) == served);
        assert_eq!(client.map(|found| found.shutdown), Some(2));
        let found = tcp_connection(own.unwrap(), served.unwrap()).unwrap();
        assert_eq!(found.map(|found| found.inode), client.map(|client| client.inode));
        assert_eq!(tcp_connection(own.unwrap(), own.unwrap()), Ok(None));
    }
}
