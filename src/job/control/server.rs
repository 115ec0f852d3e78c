//! The answering side of the control socket. Nothing here blocks, and nothing that a client does or
//! leaves undone can hold up the supervisor.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixListener;

use nix::errno::Errno;
use nix::sys::socket::{
    self, AddressFamily, Backlog, MsgFlags, SockFlag, SockType, UnixAddr, sockopt,
};
use nix::unistd::{Pid, Uid};
use thiserror::Error;

use super::discovery::Name;
use super::protocol::{self, LARGEST, ProtocolError, Reply, Request};

/// Clients that may be connected at once; more wait to be accepted.
pub const MOST_CLIENTS: usize = 16;

/// Why the control socket does not work.
#[derive(Debug, Error)]
#[error("{operation} the control socket: {source}")]
pub struct ServeError {
    /// "make", "name" or "listen on".
    pub operation: &'static str,
    /// What the kernel said.
    #[source]
    pub source: Errno,
}

/// The socket that clients connect to. The standard library's type knows only stream sockets by
/// name, but accepts on any.
#[derive(Debug)]
pub struct Listener {
    socket: UnixListener,
}

impl Listener {
    /// Listens under `name`.
    pub fn bind(name: &Name) -> Result<Self, ServeError> {
        let failed = |operation| move |source| ServeError { operation, source };
        let socket = socket::socket(
            AddressFamily::Unix,
            SockType::SeqPacket,
            SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK,
            None,
        )
        .map_err(failed("make"))?;
        let address = UnixAddr::new_abstract(&name.to_bytes()).map_err(failed("name"))?;
        socket::bind(socket.as_raw_fd(), &address).map_err(failed("name"))?;
        let backlog = Backlog::new(16).map_err(failed("listen on"))?;
        socket::listen(&socket, backlog).map_err(failed("listen on"))?;
        Ok(Self { socket: socket.into() })
    }

    /// The next client that waits and may talk to us; `None`: no more wait.
    pub fn accept(&self) -> Option<Client> {
        loop {
            let socket = match self.socket.accept() {
                Ok((socket, _)) => OwnedFd::from(socket),
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => continue,
                // None waits, or no descriptors or memory are left: the next event tries again.
                Err(_) => return None,
            };
            let Ok(peer) = socket::getsockopt(&socket, sockopt::PeerCredentials) else { continue };
            if peer.uid() == 0 || peer.uid() == Uid::effective().as_raw() {
                let pid = (peer.pid() > 0).then(|| Pid::from_raw(peer.pid()));
                return Some(Client { socket, pid });
            }
            // Another user: dropping the socket closes it, which is all the answer that is due.
        }
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// What came from a client.
#[derive(Debug)]
pub enum Received {
    /// Nothing yet.
    Nothing,
    /// A request.
    Request(Request),
    /// Something else.
    Unreadable(ProtocolError),
    /// It closed the connection.
    HangUp,
}

/// A client that is connected.
#[derive(Debug)]
pub struct Client {
    socket: OwnedFd,
    pid: Option<Pid>,
}

impl Client {
    /// Its process as we see it; `None`: it is outside our pid namespace.
    #[must_use]
    pub const fn pid(&self) -> Option<Pid> {
        self.pid
    }

    /// What it sent.
    pub fn receive(&self) -> Received {
        let mut message = vec![0; LARGEST + 1];
        match socket::recv(self.socket.as_raw_fd(), &mut message, MsgFlags::MSG_DONTWAIT) {
            Ok(0) => Received::HangUp,
            Ok(length) => match protocol::decode(&message[..length]) {
                Ok(request) => Received::Request(request),
                Err(error) => Received::Unreadable(error),
            },
            Err(Errno::EAGAIN | Errno::EINTR) => Received::Nothing,
            Err(_) => Received::HangUp,
        }
    }

    /// Answers. A client that has gone, or does not read, gets no answer; whether it did is told.
    pub fn reply(&self, reply: &Reply) -> bool {
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
        protocol::encode(reply)
            .is_ok_and(|message| socket::send(self.socket.as_raw_fd(), &message, flags).is_ok())
    }
}

impl AsFd for Client {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;

    use nix::sys::socket::{self, AddressFamily, MsgFlags, SockFlag, SockType, UnixAddr};
    use nix::unistd::{Pid, Uid, getpid};

    use super::{Listener, Received};
    use crate::job::control::client::{AskError, Connection};
    use crate::job::control::discovery::{self, Name};
    use crate::job::control::protocol::{LARGEST, ProtocolError, Refusal, Reply, Request};
    use crate::job::identity;
    use crate::sys::descriptor;

    fn listen() -> (Name, Listener) {
        let name = Name {
            user: Uid::effective().as_raw(),
            job: identity::new_id().unwrap(),
            instance: identity::new_id().unwrap(),
        };
        let listener = Listener::bind(&name).unwrap();
        (name, listener)
    }

    /// As one of a supervisor that is stopped.
    #[test]
    fn nobody_waits_for_ever_for_one_that_takes_no_connections() {
        let (name, listener) = listen();
        let mut connections = Vec::new();
        let outcome = loop {
            match Connection::open(&name) {
                Ok(connection) => connections.push(connection.unwrap()),
                Err(error) => break error,
            }
        };
        assert!(matches!(outcome, AskError::TakesNone), "{outcome}");
        assert!(connections.len() >= 16, "{}", connections.len());
        drop(listener);
    }

    #[test]
    fn a_question_finds_its_way_and_is_answered() {
        let (name, listener) = listen();
        assert!(listener.accept().is_none());
        let found = discovery::listeners(Some(Uid::effective())).unwrap();
        let found: Vec<_> = found.iter().filter(|it| it.name == name).collect();
        assert!(descriptor::sockets_of(getpid()).contains(&found[0].inode));
        let asker = std::thread::spawn({
            let name = name.clone();
            move || {
                let connection = Connection::open(&name).unwrap().unwrap();
                assert_eq!(connection.supervisor(), Some(Pid::this()));
                connection.ask(&Request::Outcome { ticket: 7 }, None)
            }
        });
        let client = loop {
            match listener.accept() {
                Some(client) => break client,
                None => std::thread::yield_now(),
            }
        };
        assert_eq!(client.pid(), Some(Pid::this()));
        let request = loop {
            match client.receive() {
                Received::Nothing => std::thread::yield_now(),
                received => break received,
            }
        };
        assert!(matches!(request, Received::Request(Request::Outcome { ticket: 7 })));
        assert!(client.reply(&Reply::Refused(Refusal::UnknownTicket)));
        let reply = asker.join().unwrap().unwrap();
        assert_eq!(reply, Reply::Refused(Refusal::UnknownTicket));
        assert!(matches!(client.receive(), Received::HangUp));
    }

    #[test]
    fn nonsense_and_silence_harm_nobody() {
        let (name, listener) = listen();
        let connect = || {
            let (family, flags) = (AddressFamily::Unix, SockFlag::SOCK_CLOEXEC);
            let socket = socket::socket(family, SockType::SeqPacket, flags, None).unwrap();
            let address = UnixAddr::new_abstract(&name.to_bytes()).unwrap();
            socket::connect(socket.as_raw_fd(), &address).unwrap();
            (socket, listener.accept().unwrap())
        };
        let (_silent, client) = connect();
        assert!(matches!(client.receive(), Received::Nothing));
        let (talker, client) = connect();
        let check = |message: &[u8], expected: ProtocolError| {
            socket::send(talker.as_raw_fd(), message, MsgFlags::empty()).unwrap();
            match client.receive() {
                Received::Unreadable(error) => assert_eq!(error, expected),
                other => panic!("{other:?}"),
            }
        };
        check(b"hello", ProtocolError::Magic);
        check(&vec![0; LARGEST + 1], ProtocolError::TooLong);
        check(&vec![0; 2 * LARGEST], ProtocolError::TooLong);
    }

    #[test]
    fn a_supervisor_that_is_gone_is_told_from_one_that_ends() {
        let (name, listener) = listen();
        let connection = Connection::open(&name).unwrap().unwrap();
        drop(listener);
        assert!(Connection::open(&name).unwrap().is_none());
        let outcome = connection.ask(&Request::Status, None);
        assert!(matches!(outcome, Err(AskError::HungUp)));
    }
}
