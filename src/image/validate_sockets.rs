//! The cross references of sockets: see [`super::validate`].

use super::validate::{Checked, Record, demand, refer};
use crate::model::file::OpenFileKind;
use crate::model::id::{OpenFileId, SocketId};
use crate::model::job::Job;
use crate::model::number::{to_u64, to_usize};
use crate::model::socket::{Socket, SocketDetail, UnixConnection, UnixMessage, UnixSocket};

/// Bytes of `sun_path`.
const NAME_LIMIT: usize = 108;
/// RCV_SHUTDOWN and SEND_SHUTDOWN.
const BOTH_WAYS: u8 = 3;
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
            SocketDetail::Inet(_) => {}
        }
    }
    Ok(())
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
    use crate::model::id::Bytes;

    fn refused(expected: &str, change: fn(&mut Job)) {
        let mut job = sample::job();
        change(&mut job);
        assert_eq!(check_job(&job).map_err(|error| error.to_string()), Err(expected.to_owned()));
    }

    fn unix(job: &mut Job, number: usize) -> &mut UnixSocket {
        match &mut job.sockets[number].detail {
            SocketDetail::Unix(unix) => unix,
            SocketDetail::Inet(_) => unreachable!("the sample has a unix socket there"),
        }
    }

    #[test]
    fn impossible_sockets_are_refused() {
        refused("open file 13 refers to socket 9, of which there are 5", |job| {
            job.open_files[13].kind = OpenFileKind::Socket { socket: SocketId(9) };
        });
        refused("socket 0: not exactly one open file refers to it", |job| {
            job.open_files[13].kind = OpenFileKind::Socket { socket: SocketId(1) };
        });
        refused("socket 2 refers to open file 50, of which there are 22", |job| {
            unix(job, 2).queued[0].files[0] = OpenFileId(50);
        });
        refused("socket 3 refers to socket 7, of which there are 5", |job| {
            unix(job, 3).connection = UnixConnection::Peer(SocketId(7));
        });
        refused("socket 3: it is connected to a socket of another kind", |job| {
            unix(job, 3).connection = UnixConnection::Pending(SocketId(4));
        });
        refused("socket 0: its name is too long", |job| {
            unix(job, 0).name = Bytes(vec![b'x'; 109]);
        });
        refused("socket 0: its error is none", |job| job.sockets[0].error = -1);
    }
}
