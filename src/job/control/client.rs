//! The asking side of the control socket: finding the supervisor of a process, and asking it.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, poll};
use nix::sys::socket::{self, AddressFamily, MsgFlags, SockFlag, SockType, UnixAddr, sockopt};
use nix::sys::time::{TimeVal, TimeValLike};
use nix::unistd::{Pid, Uid};
use thiserror::Error;

use super::discovery::{self, Name};
use super::protocol::{self, LARGEST, ProtocolError, Reply, Request};

/// How long a supervisor may have no room for another connection.
const CONNECT_PATIENCE: Duration = Duration::from_secs(2);
/// How often it is tried again.
const CONNECT_INTERVAL: Duration = Duration::from_millis(20);
/// How long an answer is waited for before something else is done, in milliseconds.
const MEANWHILE: u16 = 300;

/// Why a supervisor could not be asked.
#[derive(Debug, Error)]
pub enum AskError {
    /// The names of all supervisors could not be read.
    #[error("read /proc/net/unix: {0}")]
    ListNames(#[source] io::Error),
    /// A call on the socket failed.
    #[error("{operation} the supervisor: {source}")]
    UseSocket {
        /// "connect to", "send to" or "receive from".
        operation: &'static str,
        /// What the kernel said.
        #[source]
        source: Errno,
    },
    /// Nobody takes the connection, and no more fit into the queue.
    #[error("the supervisor takes no connections: it is stopped, or stuck")]
    TakesNone,
    /// The supervisor ended, or was killed, before it answered.
    #[error("the supervisor ended before it answered")]
    HungUp,
    /// What it said could not be read.
    #[error("talk to the supervisor: {0}")]
    Understand(#[from] ProtocolError),
    /// It said something that does not answer the question.
    #[error("the supervisor gave an answer to another question")]
    Unexpected,
}

/// A connection to the supervisor of a job.
#[derive(Debug)]
pub struct Connection {
    name: Name,
    socket: OwnedFd,
    supervisor: Option<Pid>,
}

impl Connection {
    /// Connects to the supervisor of that name. `None`: nobody listens there any more, or whoever
    /// does is not the user that the name says.
    pub fn open(name: &Name) -> Result<Option<Self>, AskError> {
        let failed = |operation| move |source| AskError::UseSocket { operation, source };
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let socket = socket::socket(AddressFamily::Unix, SockType::SeqPacket, flags, None)
            .map_err(failed("connect to"))?;
        let address = UnixAddr::new_abstract(&name.to_bytes()).map_err(failed("connect to"))?;
        let begun = Instant::now();
        loop {
            match socket::connect(socket.as_raw_fd(), &address) {
                Ok(()) => break,
                // It is gone, or was none.
                Err(Errno::ECONNREFUSED | Errno::EPROTOTYPE | Errno::EPERM | Errno::EACCES) => {
                    return Ok(None);
                }
                // Whoever waited for room in the queue of one that is stopped would wait for ever.
                Err(Errno::EAGAIN) if begun.elapsed() < CONNECT_PATIENCE => {
                    thread::sleep(CONNECT_INTERVAL);
                }
                Err(Errno::EAGAIN) => return Err(AskError::TakesNone),
                Err(source) => return Err(failed("connect to")(source)),
            }
        }
        fcntl(&socket, FcntlArg::F_SETFL(OFlag::empty())).map_err(failed("connect to"))?;
        let peer =
            socket::getsockopt(&socket, sockopt::PeerCredentials).map_err(failed("connect to"))?;
        // A pid of 0: the supervisor lives outside the pid namespace that we are in.
        let supervisor = (peer.pid() > 0).then(|| Pid::from_raw(peer.pid()));
        Ok((peer.uid() == name.user).then(|| Self { name: name.clone(), socket, supervisor }))
    }

    /// The name by which it was found.
    #[must_use]
    pub const fn name(&self) -> &Name {
        &self.name
    }

    /// The supervisor's process as we see it; `None`: it is outside our pid namespace.
    #[must_use]
    pub const fn supervisor(&self) -> Option<Pid> {
        self.supervisor
    }

    /// Asks, and waits for the answer, at most `patience` long if that is given.
    pub fn ask(&self, request: &Request, patience: Option<Duration>) -> Result<Reply, AskError> {
        if let Some(patience) = patience {
            let failed = |operation| move |source| AskError::UseSocket { operation, source };
            let milliseconds = i64::try_from(patience.as_millis()).unwrap_or(i64::MAX);
            let limit = TimeVal::milliseconds(milliseconds);
            socket::setsockopt(&self.socket, sockopt::ReceiveTimeout, &limit)
                .map_err(failed("receive from"))?;
        }
        self.send(request)?;
        self.receive()
    }

    /// Asks, and waits for the answer as long as it takes; `meanwhile` is called now and then.
    pub fn ask_with_time(
        &self,
        request: &Request,
        meanwhile: &mut dyn FnMut(),
    ) -> Result<Reply, AskError> {
        self.send(request)?;
        loop {
            match poll(&mut [PollFd::new(self.socket.as_fd(), PollFlags::POLLIN)], MEANWHILE) {
                Ok(0) => meanwhile(),
                Ok(_) => return self.receive(),
                Err(Errno::EINTR) => {}
                Err(source) => {
                    return Err(AskError::UseSocket { operation: "receive from", source });
                }
            }
        }
    }

    fn send(&self, request: &Request) -> Result<(), AskError> {
        let failed = |operation| move |source| AskError::UseSocket { operation, source };
        let message = protocol::encode(request)?;
        match socket::send(self.socket.as_raw_fd(), &message, MsgFlags::MSG_NOSIGNAL) {
            Err(Errno::EPIPE | Errno::ECONNRESET) => Err(AskError::HungUp),
            sent => sent.map_err(failed("send to")).map(|_| ()),
        }
    }

    fn receive(&self) -> Result<Reply, AskError> {
        let mut answer = vec![0; LARGEST + 1];
        let length = loop {
            match socket::recv(self.socket.as_raw_fd(), &mut answer, MsgFlags::empty()) {
                Err(Errno::EINTR) => {}
                Ok(0) | Err(Errno::ECONNRESET) => return Err(AskError::HungUp),
                Err(source) => {
                    return Err(AskError::UseSocket { operation: "receive from", source });
                }
                Ok(length) => break length,
            }
        };
        Ok(protocol::decode(&answer[..length])?)
    }
}

/// The supervisors of one user (of all users for `None`), as far as they can be connected to.
pub fn connections(user: Option<Uid>) -> Result<Vec<Result<Connection, AskError>>, AskError> {
    let listeners = discovery::listeners(user).map_err(AskError::ListNames)?;
    Ok(listeners.iter().filter_map(|it| Connection::open(&it.name).transpose()).collect())
}
