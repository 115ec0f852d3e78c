//! Has what is on its way between two TCP sockets delivered, and looks at what has arrived.
//!
//! What one end has sent and the other has not yet taken in cannot be seen anywhere. But nothing stops
//! the kernel from delivering it while the job stands still, once the receiver's buffer is made large
//! enough: then it can be peeked at. What is changed for that is put back by a [`Guardian`], whatever
//! becomes of us; that more has arrived than would have otherwise is nothing that a program could tell
//! from a faster network.

use std::os::fd::OwnedFd;
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;

use crate::model::id::Bytes;
use crate::model::number::{to_u64, to_usize};
use crate::model::socket::InetMessage;
use crate::sys::descriptor;
use crate::sys::guardian::{Guardian, OptionValue};
use crate::sys::socket::{self, SO_BUF_LOCK};

/// How long it may take until everything has arrived. What was lost is sent again after a moment.
const PATIENCE: Duration = Duration::from_secs(2);
/// After which time without any progress it is given up: the sender tries again what was lost after 0.2 s, and
/// then after twice that. A receiver that holds all that the kernel allows takes no more until it has read.
const STANDSTILL: Duration = Duration::from_millis(700);
/// After which time without any progress more room is made.
const STEP: Duration = Duration::from_millis(40);
/// Room for what the kernel keeps beside the data.
const SLACK: u64 = 1 << 15;
/// SOCK_RCVBUF_LOCK: the program has chosen the size of the receive buffer.
const SOCK_RCVBUF_LOCK: i32 = 2;

/// Has everything that `sender` has sent, and possibly its end, arrive at `receiver`. False when it did
/// not within some time.
pub(super) fn deliver(sender: &OwnedFd, receiver: &OwnedFd) -> Result<bool, Errno> {
    let missing = || socket::output_queued(sender);
    if missing()? == 0 {
        return Ok(true);
    }
    acknowledge(receiver)?;
    if missing()? == 0 {
        return Ok(true);
    }
    let old = socket::int_option(sender, libc::IPPROTO_TCP, libc::TCP_NODELAY)?;
    let no_delay = OptionValue { level: libc::IPPROTO_TCP, name: libc::TCP_NODELAY, value: old };
    let guardian = guardian(&[(sender, no_delay)])?;
    // This sends what waits for more to come, even under TCP_CORK (tcp(7)).
    socket::set_int_option(sender, libc::IPPROTO_TCP, libc::TCP_NODELAY, 1)?;
    let outcome = pull(receiver, missing()?, &missing);
    guardian.release()?;
    outcome
}

/// Makes room at `receiver` for `waiting` bytes more, until nothing is `missing`.
pub(super) fn pull(
    receiver: &OwnedFd,
    waiting: u64,
    missing: &dyn Fn() -> Result<u64, Errno>,
) -> Result<bool, Errno> {
    let option = |name| socket::int_option(receiver, libc::SOL_SOCKET, name);
    let old = |name, value| (receiver, OptionValue { level: libc::SOL_SOCKET, name, value });
    let size = old(libc::SO_RCVBUF, option(libc::SO_RCVBUF)? / 2);
    // SO_RCVLOWAT has the kernel make the buffer larger. It never makes it smaller; SO_RCVBUF does, and
    // marks the size as chosen by the program, which is undone last. Before Linux 5.14 it stays large.
    let low_water = old(libc::SO_RCVLOWAT, option(libc::SO_RCVLOWAT)?);
    // It stays large in a socket of Multipath TCP, too, which shows SO_BUF_LOCK and does not let it be set.
    let can_be_undone = option(libc::SO_PROTOCOL)? != libc::IPPROTO_MPTCP;
    let (name, old) = match option(SO_BUF_LOCK) {
        Ok(locks) if locks & SOCK_RCVBUF_LOCK != 0 => (libc::SO_RCVBUF, vec![size]),
        Ok(_) if !can_be_undone => (libc::SO_RCVLOWAT, vec![low_water]),
        Ok(locks) => (libc::SO_RCVLOWAT, vec![low_water, size, old(SO_BUF_LOCK, locks)]),
        Err(_) => (libc::SO_RCVLOWAT, vec![low_water]),
    };
    let guardian = guardian(&old)?;
    let mut room = Room { receiver, name, bytes: 0 };
    room.set(socket::input_queued(receiver)?.saturating_add(waiting).saturating_add(SLACK))?;
    let outcome = wait(&mut room, missing);
    guardian.release()?;
    outcome
}

/// How much a receiver may hold.
struct Room<'a> {
    receiver: &'a OwnedFd,
    /// The option that says so.
    name: i32,
    bytes: u64,
}

impl Room<'_> {
    fn set(&mut self, bytes: u64) -> Result<(), Errno> {
        self.bytes = bytes;
        let value = i32::try_from(bytes).unwrap_or(i32::MAX);
        socket::set_int_option(self.receiver, libc::SOL_SOCKET, self.name, value)
    }
}

/// Looks now and then, which tells the sender of the new room, until nothing is `missing`. No more room
/// is made than it takes: what the sender is once told of it may use, and finds gone when the size is put
/// back.
fn wait(room: &mut Room<'_>, missing: &dyn Fn() -> Result<u64, Errno>) -> Result<bool, Errno> {
    let begun = Instant::now();
    let mut last = missing()?;
    let (mut progress, mut step) = (begun, begun);
    loop {
        let left = missing()?;
        if left == 0 {
            return Ok(true);
        }
        if begun.elapsed() > PATIENCE || progress.elapsed() > STANDSTILL {
            return Ok(false);
        }
        if left != last {
            last = left;
            (progress, step) = (Instant::now(), Instant::now());
        } else if step.elapsed() > STEP {
            step = Instant::now();
            room.set(room.bytes.saturating_add(room.bytes / 4))?;
        }
        // With nothing queued, a look would take a pending error.
        if socket::input_queued(room.receiver)? != 0 {
            socket::peek(room.receiver, 1)?;
        }
        acknowledge(room.receiver)?;
        thread::sleep(Duration::from_micros(200));
    }
}

/// Acknowledges at once what has been received.
fn acknowledge(receiver: &OwnedFd) -> Result<(), Errno> {
    let quick = socket::int_option(receiver, libc::IPPROTO_TCP, libc::TCP_QUICKACK)?;
    let set =
        |value| socket::set_int_option(receiver, libc::IPPROTO_TCP, libc::TCP_QUICKACK, value);
    set(1)?;
    if quick == 0 { set(0) } else { Ok(()) }
}

fn guardian(sockets: &[(&OwnedFd, OptionValue)]) -> Result<Guardian, Errno> {
    Guardian::over(sockets)
        .map_err(|error| error.raw_os_error().map_or(Errno::EIO, Errno::from_raw))
}

/// What has arrived and was not yet read. `None` when it cannot be seen whole.
pub(super) fn queue(receiver: &OwnedFd) -> Result<Option<Vec<InetMessage>>, Errno> {
    let length = socket::input_queued(receiver)?;
    if length == 0 {
        return Ok(Some(Vec::new()));
    }
    let counts_end = counts_end(receiver)?;
    // If it is nothing but the end, a look would take a pending error.
    if counts_end && length == 1 && descriptor::poll_now(receiver, 0)? & libc::POLLERR != 0 {
        return Ok(None);
    }
    let found = socket::peek(receiver, to_usize(length))?;
    let seen = to_u64(found.data.len());
    if seen == 0 && counts_end {
        return Ok(Some(Vec::new()));
    }
    if seen != length && !(counts_end && seen + 1 == length) {
        return Ok(None);
    }
    Ok(Some(vec![InetMessage { data: Bytes(found.data), ..InetMessage::default() }]))
}

/// Whether the end of a stream, if it has been received, is counted among the bytes of its queue
/// (`mptcp_inq_hint` in net/mptcp/protocol.c).
fn counts_end(receiver: &OwnedFd) -> Result<bool, Errno> {
    let protocol = socket::int_option(receiver, libc::SOL_SOCKET, libc::SO_PROTOCOL)?;
    let has_ended = || descriptor::poll_now(receiver, libc::POLLRDHUP);
    Ok(protocol == libc::IPPROTO_MPTCP && has_ended()? & libc::POLLRDHUP != 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::internet::Endpoint;

    /// Two sockets connected over the loopback interface.
    fn pair() -> (OwnedFd, OwnedFd) {
        let make = || socket::create(libc::AF_INET, libc::SOCK_STREAM, 0).unwrap();
        let (listener, client) = (make(), make());
        let any = Endpoint { ip: "127.0.0.1".parse().unwrap(), port: 0, scope: 0 };
        socket::bind(&listener, &any.address(libc::AF_INET).unwrap()).unwrap();
        socket::listen(&listener, 1).unwrap();
        socket::connect(&client, &socket::local_address(&listener).unwrap()).unwrap();
        (client, socket::accept(&listener).unwrap())
    }

    /// Sends until nothing more goes.
    fn stuff(sender: &OwnedFd) -> Vec<u8> {
        let mut sent = Vec::new();
        let piece: Vec<u8> = (0..50_000_u32).flat_map(u32::to_le_bytes).collect();
        while let Ok(went) = socket::send(sender, &piece, &[], &[], None) {
            sent.extend(&piece[..went]);
        }
        sent
    }

    fn size(file: &OwnedFd) -> i32 {
        socket::int_option(file, libc::SOL_SOCKET, libc::SO_RCVBUF).unwrap()
    }

    fn low_water(file: &OwnedFd) -> i32 {
        socket::int_option(file, libc::SOL_SOCKET, libc::SO_RCVLOWAT).unwrap()
    }

    #[test]
    fn what_is_on_its_way_arrives_and_can_be_seen() {
        let (sender, receiver) = pair();
        let before = size(&receiver);
        let sent = stuff(&sender);
        socket::shut_down(&sender, libc::SHUT_WR).unwrap();
        assert_ne!(socket::output_queued(&sender), Ok(0));
        assert_eq!(deliver(&sender, &receiver), Ok(true));
        let found = queue(&receiver).unwrap().unwrap();
        assert!(found[0].data.0 == sent, "{} bytes, not {}", found[0].data.0.len(), sent.len());
        assert_eq!((low_water(&receiver), size(&receiver)), (1, before));
        let locks = socket::int_option(&receiver, libc::SOL_SOCKET, SO_BUF_LOCK);
        assert_eq!(locks, Ok(0));
    }

    #[test]
    fn a_buffer_that_the_program_has_chosen_stays_as_large() {
        let (sender, receiver) = pair();
        socket::set_int_option(&receiver, libc::SOL_SOCKET, libc::SO_RCVBUF, 20_000).unwrap();
        let sent = stuff(&sender);
        assert_eq!(deliver(&sender, &receiver), Ok(true));
        assert_eq!(queue(&receiver).unwrap().unwrap()[0].data.0.len(), sent.len());
        assert_eq!(size(&receiver), 40_000);
    }

    #[test]
    fn what_waits_for_more_is_sent() {
        let (sender, receiver) = pair();
        let cork = |file| socket::int_option(file, libc::IPPROTO_TCP, libc::TCP_CORK);
        socket::set_int_option(&sender, libc::IPPROTO_TCP, libc::TCP_CORK, 1).unwrap();
        socket::send(&sender, b"a part", &[], &[], None).unwrap();
        assert_eq!(deliver(&sender, &receiver), Ok(true));
        assert_eq!(queue(&receiver).unwrap().unwrap()[0].data.0, b"a part");
        let delays = socket::int_option(&sender, libc::IPPROTO_TCP, libc::TCP_NODELAY);
        assert_eq!((cork(&sender), delays), (Ok(1), Ok(0)));
    }
}
