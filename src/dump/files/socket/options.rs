//! The options of SOL_SOCKET, which sockets of all domains have.

use nix::errno::Errno;

use super::Subject;
use crate::dump::files::refusal::RefusalKind;
use crate::dump::files::{CollectFilesError, Failure, call_failed};
use crate::model::id::Bytes;
use crate::model::socket::SocketOption;
use crate::sys::socket::{self, SO_BUF_LOCK, SO_PASSPIDFD, SO_PASSRIGHTS};

/// Options that are always recorded, because what a new socket has is a setting of the machine. The
/// last tells which of the former the program has set itself.
const SIZES: [i32; 3] = [libc::SO_SNDBUF, libc::SO_RCVBUF, SO_BUF_LOCK];

/// SOCK_SNDBUF_LOCK and SOCK_RCVBUF_LOCK (include/uapi/linux/socket.h), the bits of SO_BUF_LOCK.
const SOCK_SNDBUF_LOCK: u8 = 1;
const SOCK_RCVBUF_LOCK: u8 = 2;

/// Options that are recorded where they differ from those of a new socket of the kind, in the order to
/// set them in. (SO_SNDLOWAT cannot be set; SO_INCOMING_CPU changes by itself.)
const SETTINGS: [i32; 28] = [
    libc::SO_REUSEADDR,
    libc::SO_REUSEPORT,
    libc::SO_BINDTODEVICE,
    libc::SO_DONTROUTE,
    libc::SO_BROADCAST,
    libc::SO_KEEPALIVE,
    libc::SO_OOBINLINE,
    libc::SO_NO_CHECK,
    libc::SO_PRIORITY,
    libc::SO_LINGER,
    libc::SO_PASSCRED,
    SO_PASSPIDFD,
    libc::SO_PASSSEC,
    SO_PASSRIGHTS,
    libc::SO_RCVLOWAT,
    libc::SO_RCVTIMEO,
    libc::SO_SNDTIMEO,
    libc::SO_TIMESTAMP,
    libc::SO_TIMESTAMPNS,
    libc::SO_TIMESTAMPING,
    libc::SO_RXQ_OVFL,
    libc::SO_PEEK_OFF,
    libc::SO_SELECT_ERR_QUEUE,
    libc::SO_BUSY_POLL,
    libc::SO_MAX_PACING_RATE,
    libc::SO_ZEROCOPY,
    libc::SO_TXTIME,
    libc::SO_LOCK_FILTER,
];

/// Longest value among them.
const VALUE_LIMIT: usize = 64;
/// As many instructions as a filter can have (BPF_MAXINSNS), eight bytes each.
const FILTER_LIMIT: usize = 4096 * 8;
/// SO_GET_FILTER is SO_ATTACH_FILTER the other way (socket(7)).
const SO_GET_FILTER: i32 = libc::SO_ATTACH_FILTER;

/// The options of SOL_SOCKET that a restore has to see to.
pub(super) fn collect(subject: &Subject<'_>) -> Result<Vec<SocketOption>, Failure> {
    check_settable(subject)?;
    let new = socket::create(subject.domain, subject.kind, subject.protocol)
        .map_err(call_failed(subject.found, "socket"))?;
    let mut options = Vec::new();
    for name in sizes(subject)? {
        if let Some(value) = value(subject, &subject.file, name)? {
            options.push(option(name, value));
        }
    }
    for name in SETTINGS {
        let Some(found) = value(subject, &subject.file, name)? else { continue };
        if value(subject, &new, name)?.as_ref() != Some(&found) {
            options.push(option(name, found));
        }
    }
    Ok(options)
}

/// What is recorded of the sizes of buffers. Nobody can tell the kernel that a socket of Multipath TCP is not
/// of a size that was chosen by the program: there, only those that were are recorded.
fn sizes(subject: &Subject<'_>) -> Result<Vec<i32>, Failure> {
    if subject.protocol != libc::IPPROTO_MPTCP {
        return Ok(SIZES.to_vec());
    }
    let locks = value(subject, &subject.file, SO_BUF_LOCK)?.unwrap_or_default();
    let locks = locks.first().copied().unwrap_or_default();
    let chosen = [(libc::SO_SNDBUF, SOCK_SNDBUF_LOCK), (libc::SO_RCVBUF, SOCK_RCVBUF_LOCK)];
    Ok(chosen.into_iter().filter(|(_, bit)| locks & bit != 0).map(|(name, _)| name).collect())
}

const fn option(name: i32, value: Vec<u8>) -> SocketOption {
    SocketOption { level: libc::SOL_SOCKET, name, value: Bytes(value) }
}

/// The value of an option; `None` when this kernel, or this kind of socket, does not have it.
fn value(
    subject: &Subject<'_>,
    file: impl std::os::fd::AsFd,
    name: i32,
) -> Result<Option<Vec<u8>>, CollectFilesError> {
    match socket::option(file, libc::SOL_SOCKET, name, VALUE_LIMIT) {
        Ok(value) => Ok(Some(value)),
        Err(Errno::ENOPROTOOPT | Errno::EOPNOTSUPP) => Ok(None),
        Err(source) => Err(call_failed(subject.found, "getsockopt")(source)),
    }
}

/// What only the administrator can set, and filters, which are programs.
fn check_settable(subject: &Subject<'_>) -> Result<(), Failure> {
    for (name, what) in [(libc::SO_MARK, "SO_MARK"), (libc::SO_DEBUG, "SO_DEBUG")] {
        let found = value(subject, &subject.file, name)?.unwrap_or_default();
        if found.iter().any(|byte| *byte != 0) {
            return Err(RefusalKind::SocketOption { what }.into());
        }
    }
    match socket::option(&subject.file, libc::SOL_SOCKET, SO_GET_FILTER, FILTER_LIMIT) {
        // The length that is given is that of the program.
        Ok(program) if program.is_empty() => Ok(()),
        // EACCES: it cannot be shown in the classic form.
        Ok(_) | Err(Errno::EACCES) => {
            Err(RefusalKind::SocketOption { what: "SO_ATTACH_FILTER" }.into())
        }
        Err(Errno::ENOPROTOOPT | Errno::EOPNOTSUPP) => Ok(()),
        Err(source) => Err(call_failed(subject.found, "SO_GET_FILTER")(source).into()),
    }
}
