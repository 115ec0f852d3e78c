//! Sockets: making and connecting them with raw addresses, options as bytes, and a look at what is
//! queued without taking anything out.
//!
//! Addresses are the bytes of a `struct sockaddr` as the kernel gives and takes them. Nothing here
//! waits: a call that would says EAGAIN.
#![allow(unsafe_code)]

use std::io::IoSlice;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::errno::Errno;

use crate::model::number::{to_u64, to_usize};

/// Bytes in a `struct sockaddr_storage`, which every address fits into.
const ADDRESS_LIMIT: usize = size_of::<libc::sockaddr_storage>();
/// Most descriptors in one message (SCM_MAX_FD, include/net/scm.h).
pub const FILES_LIMIT: usize = 253;
/// SO_BUF_LOCK (Linux 5.14): which buffer sizes were set by the program.
pub const SO_BUF_LOCK: i32 = 72;
/// SO_PASSPIDFD (Linux 6.5).
pub const SO_PASSPIDFD: i32 = 76;
/// SO_PASSRIGHTS (Linux 6.16).
pub const SO_PASSRIGHTS: i32 = 83;

/// The user, group and process that `struct ucred` names, as the caller sees them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Credentials {
    /// Process; 0 when the caller's pid namespace does not have it.
    pub pid: i32,
    /// Effective user.
    pub uid: u32,
    /// Effective group.
    pub gid: u32,
}

/// A message that was peeked at.
#[derive(Debug, Default)]
pub struct Peeked {
    /// Its bytes.
    pub data: Vec<u8>,
    /// Whether a record ended before the buffer did, or did not fit (MSG_EOR, MSG_TRUNC).
    pub flags: i32,
    /// Address of its sender.
    pub sender: Vec<u8>,
    /// Duplicates of the descriptors in it, close-on-exec.
    pub files: Vec<OwnedFd>,
    /// SCM_CREDENTIALS.
    pub credentials: Option<Credentials>,
    /// The address of ours that it was sent to (IP_PKTINFO, IPV6_PKTINFO).
    pub receiver: Option<IpAddr>,
}

/// Makes a socket, close-on-exec (socket(2)).
pub fn create(domain: i32, kind: i32, protocol: i32) -> Result<OwnedFd, Errno> {
    // SAFETY: the call takes three integers.
    let result = unsafe { libc::socket(domain, kind | libc::SOCK_CLOEXEC, protocol) };
    owned(result)
}

/// Makes two sockets connected to each other, close-on-exec (socketpair(2)).
pub fn pair(domain: i32, kind: i32, protocol: i32) -> Result<(OwnedFd, OwnedFd), Errno> {
    let mut ends: [RawFd; 2] = [-1; 2];
    // SAFETY: the call writes two descriptors, for which `ends` has room.
    let result =
        unsafe { libc::socketpair(domain, kind | libc::SOCK_CLOEXEC, protocol, ends.as_mut_ptr()) };
    Errno::result(result)?;
    Ok((owned(ends[0])?, owned(ends[1])?))
}

/// Gives a socket a name (bind(2)).
pub fn bind(socket: impl AsFd, address: &[u8]) -> Result<(), Errno> {
    // SAFETY: pointer and length are those of one slice, which is only read.
    let result = unsafe {
        libc::bind(socket.as_fd().as_raw_fd(), address.as_ptr().cast(), length_of(address)?)
    };
    Errno::result(result).map(drop)
}

/// Connects a socket (connect(2)).
pub fn connect(socket: impl AsFd, address: &[u8]) -> Result<(), Errno> {
    // SAFETY: pointer and length are those of one slice, which is only read.
    let result = unsafe {
        libc::connect(socket.as_fd().as_raw_fd(), address.as_ptr().cast(), length_of(address)?)
    };
    Errno::result(result).map(drop)
}

/// Lets a socket take connections (listen(2)). More than `i32::MAX` is as much as that.
pub fn listen(socket: impl AsFd, backlog: u32) -> Result<(), Errno> {
    let backlog = i32::try_from(backlog).unwrap_or(i32::MAX);
    // SAFETY: the call takes two integers.
    Errno::result(unsafe { libc::listen(socket.as_fd().as_raw_fd(), backlog) }).map(drop)
}

/// Takes the oldest connection of a listening socket, close-on-exec (accept4(2)).
pub fn accept(socket: impl AsFd) -> Result<OwnedFd, Errno> {
    let none = std::ptr::null_mut();
    // SAFETY: null pointers say that the address is not wanted.
    let result =
        unsafe { libc::accept4(socket.as_fd().as_raw_fd(), none, none.cast(), libc::SOCK_CLOEXEC) };
    owned(result)
}

/// Shuts down a connection (shutdown(2)): SHUT_RD, SHUT_WR or SHUT_RDWR.
pub fn shut_down(socket: impl AsFd, how: i32) -> Result<(), Errno> {
    // SAFETY: the call takes two integers.
    Errno::result(unsafe { libc::shutdown(socket.as_fd().as_raw_fd(), how) }).map(drop)
}

/// The address of a socket (getsockname(2)).
pub fn local_address(socket: impl AsFd) -> Result<Vec<u8>, Errno> {
    address(socket.as_fd(), libc::getsockname)
}

/// The address of whom a socket is connected to (getpeername(2)).
pub fn peer_address(socket: impl AsFd) -> Result<Vec<u8>, Errno> {
    address(socket.as_fd(), libc::getpeername)
}

/// An option that is one `int`.
pub fn int_option(socket: impl AsFd, level: i32, name: i32) -> Result<i32, Errno> {
    let value = option(socket, level, name, 4)?;
    Ok(i32::from_ne_bytes(value.try_into().map_err(|_| Errno::EINVAL)?))
}

/// Sets an option that is one `int`.
pub fn set_int_option(socket: impl AsFd, level: i32, name: i32, value: i32) -> Result<(), Errno> {
    set_option(socket, level, name, &value.to_ne_bytes())
}

/// The value of an option, of which at most `limit` bytes are asked for (getsockopt(2)).
pub fn option(socket: impl AsFd, level: i32, name: i32, limit: usize) -> Result<Vec<u8>, Errno> {
    let mut value = vec![0_u8; limit];
    let mut length = libc::socklen_t::try_from(limit).map_err(|_| Errno::EINVAL)?;
    // SAFETY: the kernel writes at most `length` bytes, which is what `value` has, and the length.
    let result = unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            level,
            name,
            value.as_mut_ptr().cast(),
            &raw mut length,
        )
    };
    Errno::result(result)?;
    value.truncate(to_usize(u64::from(length)));
    Ok(value)
}

/// Asks for an option whose value says what is asked for (getsockopt(2)).
pub fn ask_option(socket: impl AsFd, level: i32, name: i32, value: &mut [u8]) -> Result<(), Errno> {
    let mut length = length_of(value)?;
    // SAFETY: the kernel reads and writes at most `length` bytes, which is what `value` has, and the
    // length.
    let result = unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            level,
            name,
            value.as_mut_ptr().cast(),
            &raw mut length,
        )
    };
    Errno::result(result).map(drop)
}

/// Sets an option (setsockopt(2)).
pub fn set_option(socket: impl AsFd, level: i32, name: i32, value: &[u8]) -> Result<(), Errno> {
    // SAFETY: pointer and length are those of one slice, which is only read.
    let result = unsafe {
        libc::setsockopt(
            socket.as_fd().as_raw_fd(),
            level,
            name,
            value.as_ptr().cast(),
            length_of(value)?,
        )
    };
    Errno::result(result).map(drop)
}

/// Bytes waiting to be read (SIOCINQ): of a unix stream or sequenced-packet socket all, of a
/// datagram socket those of the first message. EINVAL for one that listens.
pub fn input_queued(socket: impl AsFd) -> Result<u64, Errno> {
    queued(socket.as_fd(), libc::FIONREAD)
}

/// What a socket has sent and nobody has taken yet (SIOCOUTQ). Of a unix socket it is the memory that
/// this occupies; of a TCP socket the bytes not yet acknowledged.
pub fn output_queued(socket: impl AsFd) -> Result<u64, Errno> {
    queued(socket.as_fd(), libc::TIOCOUTQ)
}

/// Looks at the next message, or in a stream at as much as one call can see, at most `limit` bytes,
/// and leaves it there (recvmsg(2) with MSG_PEEK). Where SO_PEEK_OFF is set it looks from there on,
/// and moves it.
///
/// # Errors
/// EAGAIN when nothing is there. A pending error of the socket is given, and thereby taken.
pub fn peek(socket: impl AsFd, limit: usize) -> Result<Peeked, Errno> {
    let mut data = vec![0_u8; limit];
    let mut sender = [0_u8; ADDRESS_LIMIT];
    let mut control = ControlBuffer::new();
    let mut place = libc::iovec { iov_base: data.as_mut_ptr().cast(), iov_len: data.len() };
    // SAFETY: `msghdr` is plain integers and pointers, for which zero is valid.
    let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
    header.msg_name = sender.as_mut_ptr().cast();
    header.msg_namelen = length_of(&sender)?;
    header.msg_iov = &raw mut place;
    header.msg_iovlen = 1;
    header.msg_control = control.0.as_mut_ptr().cast();
    header.msg_controllen = size_of_val(&*control.0);
    let flags = libc::MSG_PEEK | libc::MSG_DONTWAIT | libc::MSG_CMSG_CLOEXEC;
    // SAFETY: every pointer in the header leads to a buffer of the length beside it.
    let result = unsafe { libc::recvmsg(socket.as_fd().as_raw_fd(), &raw mut header, flags) };
    let received = Errno::result(result)?;
    data.truncate(received.cast_unsigned());
    let mut peeked = Peeked { data, flags: header.msg_flags, ..Peeked::default() };
    let length = to_usize(u64::from(header.msg_namelen)).min(ADDRESS_LIMIT);
    peeked.sender = sender[..length].to_vec();
    // SAFETY: recvmsg has filled the header in.
    unsafe { take_control(&header, &mut peeked) };
    Ok(peeked)
}

/// Sends a message, to `receiver` or to whom the socket is connected, with descriptors and
/// credentials when there are any (sendmsg(2)). Returns how many bytes went.
///
/// # Errors
/// EAGAIN when it does not fit; EPIPE, without a signal, when nobody will receive it.
pub fn send(
    socket: impl AsFd,
    data: &[u8],
    receiver: &[u8],
    files: &[RawFd],
    credentials: Option<Credentials>,
) -> Result<usize, Errno> {
    let mut receiver = receiver.to_vec();
    let place = IoSlice::new(data);
    let mut control = ControlBuffer::new();
    // SAFETY: `msghdr` is plain integers and pointers, for which zero is valid.
    let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
    if !receiver.is_empty() {
        header.msg_name = receiver.as_mut_ptr().cast();
        header.msg_namelen = length_of(&receiver)?;
    }
    header.msg_iov = std::ptr::from_ref(&place).cast_mut().cast();
    header.msg_iovlen = 1;
    let mut used = 0;
    if !files.is_empty() {
        let numbers: Vec<u8> = files.iter().flat_map(|number| number.to_ne_bytes()).collect();
        used = control.add(used, (libc::SOL_SOCKET, libc::SCM_RIGHTS), &numbers)?;
    }
    if let Some(wanted) = credentials {
        let bytes =
            [wanted.pid.to_ne_bytes(), wanted.uid.to_ne_bytes(), wanted.gid.to_ne_bytes()].concat();
        used = control.add(used, (libc::SOL_SOCKET, libc::SCM_CREDENTIALS), &bytes)?;
    }
    if used != 0 {
        header.msg_control = control.0.as_mut_ptr().cast();
        header.msg_controllen = used;
    }
    let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
    // SAFETY: every pointer in the header leads to a buffer of the length beside it, and the kernel
    // only reads them.
    let result = unsafe { libc::sendmsg(socket.as_fd().as_raw_fd(), &raw const header, flags) };
    Ok(Errno::result(result)?.cast_unsigned())
}

/// Sends a datagram to `receiver`, from the address `source` of those that the socket may use
/// (sendmsg(2) with IP_PKTINFO or IPV6_PKTINFO).
///
/// # Errors
/// EAGAIN when it does not fit; EINVAL for an address that is not this machine's.
pub fn send_from(
    socket: impl AsFd,
    data: &[u8],
    receiver: &[u8],
    source: IpAddr,
) -> Result<usize, Errno> {
    let mut receiver = receiver.to_vec();
    let place = IoSlice::new(data);
    let mut control = ControlBuffer::new();
    let used = match source {
        // `struct in_pktinfo`: interface, the address to send from, the address of the header.
        IpAddr::V4(ip) => {
            let payload = [[0; 4], ip.octets(), [0; 4]].concat();
            control.add(0, (libc::IPPROTO_IP, libc::IP_PKTINFO), &payload)?
        }
        // `struct in6_pktinfo`: address, interface.
        IpAddr::V6(ip) => {
            let payload = [&ip.octets()[..], &[0; 4]].concat();
            control.add(0, (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO), &payload)?
        }
    };
    // SAFETY: `msghdr` is plain integers and pointers, for which zero is valid.
    let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
    header.msg_name = receiver.as_mut_ptr().cast();
    header.msg_namelen = length_of(&receiver)?;
    header.msg_iov = std::ptr::from_ref(&place).cast_mut().cast();
    header.msg_iovlen = 1;
    header.msg_control = control.0.as_mut_ptr().cast();
    header.msg_controllen = used;
    let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
    // SAFETY: every pointer in the header leads to a buffer of the length beside it, and the kernel
    // only reads them.
    let result = unsafe { libc::sendmsg(socket.as_fd().as_raw_fd(), &raw const header, flags) };
    Ok(Errno::result(result)?.cast_unsigned())
}

/// Room for control messages, aligned as `struct cmsghdr` has to be: as many descriptors as there can
/// be, credentials, a pidfd, a security label and time stamps.
struct ControlBuffer(Box<[u64; 512]>);

/// `sizeof(struct cmsghdr)`, and the alignment of what follows one.
const HEADER: usize = size_of::<libc::cmsghdr>();
const _: () = assert!(HEADER == 16 && align_of::<libc::cmsghdr>() == 8);

impl ControlBuffer {
    fn new() -> Self {
        Self(Box::new([0; 512]))
    }

    /// Adds a message of a level and type after the first `used` bytes; returns how many are used
    /// then.
    fn add(
        &mut self,
        used: usize,
        (level, kind): (i32, i32),
        payload: &[u8],
    ) -> Result<usize, Errno> {
        let end = used + HEADER + payload.len().next_multiple_of(8);
        if end > size_of_val(&*self.0) {
            return Err(Errno::EINVAL);
        }
        let mut bytes = Vec::with_capacity(end - used);
        bytes.extend_from_slice(&to_u64(HEADER + payload.len()).to_ne_bytes());
        bytes.extend_from_slice(&level.to_ne_bytes());
        bytes.extend_from_slice(&kind.to_ne_bytes());
        bytes.extend_from_slice(payload);
        bytes.resize(end - used, 0);
        let (words, _) = bytes.as_chunks::<8>();
        for (place, word) in self.0[used / 8..].iter_mut().zip(words) {
            *place = u64::from_ne_bytes(*word);
        }
        Ok(end)
    }
}

/// Takes descriptors and credentials out of the control messages that `recvmsg` has written.
///
/// # Safety
/// `header` must be as `recvmsg` has left it, and no descriptor in it be taken twice.
unsafe fn take_control(header: &libc::msghdr, peeked: &mut Peeked) {
    // SAFETY: the kernel has written whole control messages, `msg_controllen` bytes in all; the
    // macros stay within them.
    let mut next = unsafe { libc::CMSG_FIRSTHDR(header) };
    while !next.is_null() {
        // SAFETY: as above.
        let (message, payload) = unsafe { (*next, libc::CMSG_DATA(next)) };
        let length = message.cmsg_len.saturating_sub(HEADER);
        // SAFETY: the payload of a message has that many bytes.
        let payload = unsafe { std::slice::from_raw_parts(payload, length) };
        let words = payload.as_chunks::<4>().0;
        match (message.cmsg_level, message.cmsg_type) {
            (libc::SOL_SOCKET, libc::SCM_RIGHTS) => {
                for word in words {
                    // SAFETY: the kernel has just made these descriptors for us.
                    let file = unsafe { OwnedFd::from_raw_fd(RawFd::from_ne_bytes(*word)) };
                    peeked.files.push(file);
                }
            }
            (libc::SOL_SOCKET, libc::SCM_CREDENTIALS) => {
                if let [pid, uid, gid] = words {
                    peeked.credentials = Some(Credentials {
                        pid: i32::from_ne_bytes(*pid),
                        uid: u32::from_ne_bytes(*uid),
                        gid: u32::from_ne_bytes(*gid),
                    });
                }
            }
            (libc::IPPROTO_IP, libc::IP_PKTINFO) => {
                // The third word is the address in the header of the packet.
                if let [_, _, ip] = words {
                    peeked.receiver = Some(Ipv4Addr::from(*ip).into());
                }
            }
            (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO) => {
                if let Some(ip) = payload.first_chunk::<16>() {
                    peeked.receiver = Some(Ipv6Addr::from(*ip).to_canonical());
                }
            }
            (libc::SOL_SOCKET, SCM_PIDFD) => {
                if let [number] = words {
                    let number = RawFd::from_ne_bytes(*number);
                    // In its place an error can stand.
                    if number >= 0 {
                        // SAFETY: the kernel has just made this descriptor for us; it is not needed.
                        drop(unsafe { OwnedFd::from_raw_fd(number) });
                    }
                }
            }
            _ => {}
        }
        // SAFETY: as above.
        next = unsafe { libc::CMSG_NXTHDR(header, next) };
    }
}

/// SCM_PIDFD, include/linux/socket.h.
const SCM_PIDFD: i32 = 4;

type AddressCall =
    unsafe extern "C" fn(RawFd, *mut libc::sockaddr, *mut libc::socklen_t) -> libc::c_int;

fn address(socket: BorrowedFd<'_>, call: AddressCall) -> Result<Vec<u8>, Errno> {
    let mut address = [0_u8; ADDRESS_LIMIT];
    let mut length = length_of(&address)?;
    // SAFETY: both calls write at most `length` bytes, which is what `address` has, and the length.
    let result = unsafe { call(socket.as_raw_fd(), address.as_mut_ptr().cast(), &raw mut length) };
    Errno::result(result)?;
    Ok(address[..to_usize(u64::from(length)).min(ADDRESS_LIMIT)].to_vec())
}

fn queued(socket: BorrowedFd<'_>, request: libc::c_ulong) -> Result<u64, Errno> {
    let mut bytes: libc::c_int = 0;
    // SAFETY: both requests write one int, which `bytes` is.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), request, &raw mut bytes) };
    Errno::result(result)?;
    Ok(u64::from(bytes.cast_unsigned()))
}

fn length_of(bytes: &[u8]) -> Result<libc::socklen_t, Errno> {
    libc::socklen_t::try_from(bytes.len()).map_err(|_| Errno::EINVAL)
}

fn owned(result: RawFd) -> Result<OwnedFd, Errno> {
    let number = Errno::result(result)?;
    // SAFETY: the kernel has just made this descriptor for us; nobody else knows its number.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_peeked_at_with_all_that_belongs_to_it() {
        let (left, right) = pair(libc::AF_UNIX, libc::SOCK_SEQPACKET, 0).unwrap();
        set_int_option(&right, libc::SOL_SOCKET, libc::SO_PASSCRED, 1).unwrap();
        let (reader, writer) = std::io::pipe().unwrap();
        let files = [reader.as_raw_fd(), writer.as_raw_fd()];
        assert_eq!(send(&left, b"first", &[], &files, None), Ok(5));
        assert_eq!(send(&left, b"second", &[], &[], None), Ok(6));
        assert_eq!(input_queued(&right), Ok(11));
        for _ in 0..2 {
            let peeked = peek(&right, 100).unwrap();
            assert_eq!(peeked.data, b"first");
            assert_eq!(peeked.files.len(), 2);
            let me = nix::unistd::getpid().as_raw();
            assert_eq!(peeked.credentials.map(|sender| sender.pid), Some(me));
        }
        assert_ne!(output_queued(&left), Ok(0));
        assert_eq!(peek(&left, 100).err(), Some(Errno::EAGAIN));
    }

    #[test]
    fn names_and_options_are_bytes() {
        let socket = create(libc::AF_UNIX, libc::SOCK_DGRAM, 0).unwrap();
        assert_eq!(local_address(&socket).unwrap(), [1, 0]);
        assert_eq!(peer_address(&socket), Err(Errno::ENOTCONN));
        // Bound without a name it gets an abstract one of five hexadecimal digits (unix(7)).
        bind(&socket, &[1, 0]).unwrap();
        let name = local_address(&socket).unwrap();
        assert_eq!((name.len(), &name[..3]), (8, &[1, 0, 0][..]));
        connect(&socket, &name).unwrap();
        assert_eq!(peer_address(&socket).unwrap(), name);
        set_option(&socket, libc::SOL_SOCKET, libc::SO_LINGER, &[1, 0, 0, 0, 7, 0, 0, 0]).unwrap();
        let value = option(&socket, libc::SOL_SOCKET, libc::SO_LINGER, 64).unwrap();
        assert_eq!(value, [1, 0, 0, 0, 7, 0, 0, 0]);
    }
}
