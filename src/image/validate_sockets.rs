//! The cross references of sockets: see [`super::validate`].

use super::validate::{Checked, Record, demand, refer};
use crate::model::file::OpenFileKind;
use crate::model::id::{Bytes, OpenFileId, SocketId};
use crate::model::internet::Endpoint;
use crate::model::job::Job;
use crate::model::number::{to_u64, to_usize};
use crate::model::socket::{
    InetConnection, InetSocket, Socket, SocketDetail, UnixConnection, UnixMessage, UnixSocket,
};

/// Bytes of `sun_path`.
const NAME_LIMIT: usize = 108;
/// RCV_SHUTDOWN and SEND_SHUTDOWN.
const BOTH_WAYS: u8 = 3;
/// Bytes of `struct sockaddr_nl`.
const NETLINK_ADDRESS: usize = 12;
/// Longest name of an interface (IFNAMSIZ without the end).
const INTERFACE_LIMIT: usize = 15;
/// Largest error number (include/linux/err.h, MAX_ERRNO).
const ERROR_LIMIT: i32 = 4095;

/// Checks the sockets of a job.
pub(super) fn check(job: &Job) -> Checked {
    let mut descriptions = vec![0_usize; job.sockets.len()];
    for (number, file) in job.open_files.iter().enumerate() {
        if let OpenFileKind::Socket { socket } = file.kind {
            refer_socket(job, Record::OpenFile(number), socket)?;
            descriptions[to_usize(u64::from(socket.0))] += 1;
        }
    }
    for ((number, socket), descriptions) in job.sockets.iter().enumerate().zip(descriptions) {
        let record = Record::Socket(number);
        demand(descriptions == 1, record, "not exactly one open file refers to it")?;
        demand((0..=ERROR_LIMIT).contains(&socket.error), record, "its error is none")?;
        match &socket.detail {
            SocketDetail::Unix(unix) => check_unix(job, record, socket, unix)?,
            SocketDetail::Inet(inet) => check_inet(job, record, socket, inet)?,
            SocketDetail::Netlink(netlink) => {
                let netlinks = socket.domain == libc::AF_NETLINK;
                demand(netlinks, record, "it is called a netlink socket")?;
                let whole = netlink.name.0.len() == NETLINK_ADDRESS;
                demand(whole, record, "its name is no netlink address")?;
            }
        }
    }
    Ok(())
}

fn check_inet(job: &Job, record: Record, socket: &Socket, inet: &InetSocket) -> Checked {
    let internet = matches!(socket.domain, libc::AF_INET | libc::AF_INET6);
    demand(internet, record, "it is called an internet socket")?;
    demand(inet.shutdown <= BOTH_WAYS, record, "it is shut down in unknown ways")?;
    let address = |bytes: &Bytes, what| demand(is_address(bytes), record, what);
    address(&inet.name, "its name is no internet address")?;
    match &inet.connection {
        InetConnection::None | InetConnection::Listening { .. } => {}
        InetConnection::Peer(peer) => {
            refer_socket(job, record, *peer)?;
            let other = &job.sockets[to_usize(u64::from(peer.0))];
            let same = matches!(&other.detail, SocketDetail::Inet(_)) && other.kind == socket.kind;
            demand(same, record, "it is connected to a socket of another kind")?;
        }
        InetConnection::Datagram { peer }
        | InetConnection::Pending { peer }
        | InetConnection::Connecting { peer }
        | InetConnection::Gone { peer }
        | InetConnection::Over { peer } => {
            address(peer, "its peer's name is no internet address")?;
        }
    }
    for group in &inet.groups {
        address(&group.address, "a multicast group of it is none")?;
        let named = (1..=INTERFACE_LIMIT).contains(&group.interface.0.len());
        demand(named, record, "an interface of a multicast group is none")?;
    }
    inet.queued.iter().try_for_each(|message| {
        for bytes in [&message.sender, &message.receiver] {
            if !bytes.0.is_empty() {
                address(bytes, "an address of a datagram is none")?;
            }
        }
        Ok(())
    })
}

fn is_address(bytes: &Bytes) -> bool {
    Endpoint::parse(&bytes.0).is_some()
}

fn check_unix(job: &Job, record: Record, socket: &Socket, unix: &UnixSocket) -> Checked {
    demand(socket.domain == libc::AF_UNIX, record, "it is called a unix socket")?;
    demand(unix.shutdown <= BOTH_WAYS, record, "it is shut down in unknown ways")?;
    demand(unix.name.0.len() <= NAME_LIMIT, record, "its name is too long")?;
    match &unix.connection {
        UnixConnection::Listening { pending, .. } => {
            for client in pending {
                refer_unix(job, record, *client)?;
            }
        }
        UnixConnection::Peer(peer) | UnixConnection::Pending(peer) => {
            refer_unix(job, record, *peer)?;
        }
        UnixConnection::Gone { name } | UnixConnection::Outside { name } => {
            demand(name.0.len() <= NAME_LIMIT, record, "its peer's name is too long")?;
        }
        UnixConnection::None => {}
    }
    unix.queued.iter().try_for_each(|message| check_message(job, record, message))
}

fn check_message(job: &Job, record: Record, message: &UnixMessage) -> Checked {
    demand(message.sender.0.len() <= NAME_LIMIT, record, "a sender's name is too long")?;
    let mut files = message.files.iter();
    files.try_for_each(|OpenFileId(file)| refer(record, "open file", *file, job.open_files.len()))
}

fn refer_unix(job: &Job, record: Record, socket: SocketId) -> Checked {
    refer_socket(job, record, socket)?;
    let other = &job.sockets[to_usize(u64::from(socket.0))];
    let unix = matches!(other.detail, SocketDetail::Unix(_));
    demand(unix, record, "it is connected to a socket of another kind")
}

fn refer_socket(job: &Job, record: Record, socket: SocketId) -> Checked {
    debug_assert!(to_u64(job.sockets.len()) <= u64::from(u32::MAX));
    refer(record, "socket", socket.0, job.sockets.len())
}

#[cfg(test)]
mod tests {
    use super::super::sample;
    use super::super::validate::check_job;
    use super::*;
    use crate::model::socket::NetlinkSocket;

    fn refused(expected: &str, change: fn(&mut Job)) {
        let mut job = sample::job();
        change(&mut job);
        let violation = check_job(&job).expect_err(expected).to_string();
        // How many there are is the sample's affair.
        assert!(violation.starts_with(expected), "{violation:?} instead of {expected:?}");
    }

    fn unix(job: &mut Job, number: usize) -> &mut UnixSocket {
        match &mut job.sockets[number].detail {
            SocketDetail::Unix(unix) => unix,
            _ => unreachable!("the sample has a unix socket there"),
        }
    }

    fn inet(job: &mut Job, number: usize) -> &mut InetSocket {
        match &mut job.sockets[number].detail {
            SocketDetail::Inet(inet) => inet,
            _ => unreachable!("the sample has an internet socket there"),
        }
    }

    #[test]
    fn impossible_sockets_are_refused() {
        refused("open file 13 refers to socket 9, of which there are", |job| {
            job.open_files[13].kind = OpenFileKind::Socket { socket: SocketId(9) };
        });
        refused("socket 0: not exactly one open file refers to it", |job| {
            job.open_files[13].kind = OpenFileKind::Socket { socket: SocketId(1) };
        });
        refused("socket 2 refers to open file 50, of which there are", |job| {
            unix(job, 2).queued[0].files[0] = OpenFileId(50);
        });
        refused("socket 3 refers to socket 7, of which there are", |job| {
            unix(job, 3).connection = UnixConnection::Peer(SocketId(7));
        });
        refused("socket 3: it is connected to a socket of another kind", |job| {
            unix(job, 3).connection = UnixConnection::Pending(SocketId(4));
        });
        refused("socket 0: its name is too long", |job| {
            unix(job, 0).name = Bytes(vec![b'x'; 109]);
        });
        refused("socket 0: its error is none", |job| job.sockets[0].error = -1);
        refused("socket 4: its name is no internet address", |job| {
            inet(job, 4).name = Bytes(vec![2, 0]);
        });
        refused("socket 4: it is connected to a socket of another kind", |job| {
            inet(job, 4).connection = InetConnection::Peer(SocketId(0));
        });
        refused("socket 4: an interface of a multicast group is none", |job| {
            inet(job, 4).groups[0].interface = Bytes(vec![b'x'; 16]);
        });
        refused("socket 4: its name is no netlink address", |job| {
            let name = Bytes(vec![16, 0]);
            job.sockets[4].domain = libc::AF_NETLINK;
            job.sockets[4].detail = SocketDetail::Netlink(NetlinkSocket { name });
        });
        refused("socket 4: an address of a datagram is none", |job| {
            inet(job, 4).queued[0].sender = Bytes(vec![1, 0, b'x']);
        });
    }
}
