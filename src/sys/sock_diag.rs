//! NETLINK_SOCK_DIAG (sock_diag(7)): asking the kernel for all sockets of a family in the caller's
//! network namespace, and walking through its answer. What the messages say is left to who asks.

use std::os::fd::{AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, recv, send};

use super::socket;
use crate::model::number::to_usize;

/// NETLINK_SOCK_DIAG.
const NETLINK_SOCK_DIAG: i32 = 4;
/// SOCK_DIAG_BY_FAMILY.
pub(super) const SOCK_DIAG_BY_FAMILY: u16 = 20;
/// NLM_F_REQUEST.
const REQUEST: u16 = 1;
/// NLM_F_REQUEST and NLM_F_DUMP.
const REQUEST_ALL: u16 = 0x301;
/// NLMSG_ERROR and NLMSG_DONE.
const ERROR: u16 = 2;
const DONE: u16 = 3;
/// Bytes of `struct nlmsghdr`.
const HEADER: usize = 16;
/// The kernel puts at most 32 KiB into a datagram of a dump.
const DATAGRAM: usize = 1 << 16;

/// Sends a request with this body, and gives the body of each message of the answer to `each`.
///
/// # Errors
/// As socket(2), send(2) and recv(2); EBADMSG for an answer that is not as the kernel writes it; what
/// the kernel answers instead; what `each` gives.
pub(super) fn ask_all(
    body: &[u8],
    each: &mut dyn FnMut(&[u8]) -> Result<(), Errno>,
) -> Result<(), Errno> {
    let link: OwnedFd = socket::create(libc::AF_NETLINK, libc::SOCK_RAW, NETLINK_SOCK_DIAG)?;
    send(link.as_raw_fd(), &request(REQUEST_ALL, body)?, MsgFlags::empty())?;
    let mut buffer = vec![0; DATAGRAM];
    loop {
        let length = match recv(link.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
            Err(Errno::EINTR) => continue,
            outcome => outcome?,
        };
        if parse(&buffer[..length], each)? == Answer::Complete {
            return Ok(());
        }
    }
}

/// The same for a request that one message answers.
///
/// # Errors
/// As for [`ask_all`].
pub(super) fn ask_one(
    body: &[u8],
    each: &mut dyn FnMut(&[u8]) -> Result<(), Errno>,
) -> Result<(), Errno> {
    let link: OwnedFd = socket::create(libc::AF_NETLINK, libc::SOCK_RAW, NETLINK_SOCK_DIAG)?;
    send(link.as_raw_fd(), &request(REQUEST, body)?, MsgFlags::empty())?;
    let mut buffer = vec![0; DATAGRAM];
    let length = recv(link.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
    parse(&buffer[..length], each).map(drop)
}

fn request(flags: u16, body: &[u8]) -> Result<Vec<u8>, Errno> {
    let length = u32::try_from(HEADER + body.len()).map_err(|_| Errno::EINVAL)?;
    let mut bytes = Vec::with_capacity(HEADER + body.len());
    bytes.extend(length.to_ne_bytes());
    bytes.extend(SOCK_DIAG_BY_FAMILY.to_ne_bytes());
    bytes.extend(flags.to_ne_bytes());
    bytes.extend([0; 8]);
    bytes.extend(body);
    Ok(bytes)
}

/// Whether more datagrams follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    More,
    Complete,
}

/// Walks through one datagram of an answer.
pub(super) fn parse(
    mut bytes: &[u8],
    each: &mut dyn FnMut(&[u8]) -> Result<(), Errno>,
) -> Result<Answer, Errno> {
    while bytes.len() >= HEADER {
        let length = to_usize(u64::from(word(bytes, 0)?));
        let body = bytes.get(HEADER..length).ok_or(Errno::EBADMSG)?;
        match half(bytes, 4)? {
            DONE => return Ok(Answer::Complete),
            ERROR => {
                let code = word(body, 0)?.cast_signed();
                return Err(Errno::from_raw(code.checked_neg().unwrap_or(libc::EBADMSG)));
            }
            SOCK_DIAG_BY_FAMILY => each(body)?,
            _ => {}
        }
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(Answer::More)
}

/// What is done with an attribute: type and value.
type EachAttribute<'a> = dyn FnMut(u16, &[u8]) -> Result<(), Errno> + 'a;

/// Walks through the attributes that follow the fixed part of a message.
pub(super) fn attributes(mut rest: &[u8], each: &mut EachAttribute<'_>) -> Result<(), Errno> {
    while rest.len() >= 4 {
        let length = usize::from(half(rest, 0)?);
        let value = rest.get(4..length).ok_or(Errno::EBADMSG)?;
        each(half(rest, 2)?, value)?;
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(())
}

/// The 16 bits at an offset.
pub(super) fn half(bytes: &[u8], at: usize) -> Result<u16, Errno> {
    let bytes = bytes.get(at..).and_then(<[u8]>::first_chunk).ok_or(Errno::EBADMSG)?;
    Ok(u16::from_ne_bytes(*bytes))
}

/// The 32 bits at an offset.
pub(super) fn word(bytes: &[u8], at: usize) -> Result<u32, Errno> {
    let bytes = bytes.get(at..).and_then(<[u8]>::first_chunk).ok_or(Errno::EBADMSG)?;
    Ok(u32::from_ne_bytes(*bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_that_are_cut_off_are_refused() {
        let each = &mut |_: &[u8]| Ok(());
        assert_eq!(
            parse(&[40, 0, 0, 0, 20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], each),
            Err(Errno::EBADMSG)
        );
        assert_eq!(
            parse(&[16, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], each),
            Ok(Answer::Complete)
        );
        assert_eq!(
            parse(&[20, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xfe, 255, 255, 255], each),
            Err(Errno::ENOENT)
        );
        assert_eq!(attributes(&[9, 0, 1, 0, 5], &mut |_, _| Ok(())), Err(Errno::EBADMSG));
    }
}
