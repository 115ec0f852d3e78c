//! How the supervisor and the processes being built talk: reports one way, gates the other.
//!
//! A report is a small message on a socket that carries the sender's credentials, so that the
//! supervisor learns each sender's id in its own pid namespace. A gate is a pipe into which the
//! supervisor puts a byte for everybody who waits there; when it dies instead, all find out and end.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Write};
use std::mem::take;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use nix::cmsg_space;
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, ControlMessageOwned, MsgFlags, SockFlag, SockType, UnixCredentials, recvmsg,
    send, setsockopt, socketpair, sockopt,
};
use nix::unistd::{Pid as HostPid, pipe2, read};
use serde::{Deserialize, Serialize};

use super::opened::ContentPlace;
use crate::model::id::{ObjectId, Pid};
use crate::sys::descriptor::{close_range, move_above};

/// How far a process has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Stage {
    /// The reaper stands in its namespaces and waits for its user and group ids to be mapped.
    Entered,
    /// The reaper is where the job's processes are to be.
    Housed,
    /// It is born, in its session, and so are its children.
    Born,
    /// Groups that it leads are founded.
    Led,
    /// It is in its group.
    Joined,
    /// The reaper has opened what leads to processes.
    Found,
    /// Only the blob is still to be executed.
    Ready,
    /// The reaper has finished and closed what it had opened.
    Settled,
}

/// What the supervisor opens when everybody has reported a stage.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Gate {
    /// User and group ids are mapped.
    Mapped,
    /// What was written to files after the checkpoint is taken back.
    Open,
    /// The supervisor has taken its own names of what was opened.
    Fork,
    /// Everybody is born.
    Lead,
    /// Every group is founded.
    Join,
    /// Every process of the job is there, and none has ended.
    Find,
    /// Stand-ins and zombies may end.
    Finish,
    /// Every process is traced and may execute its blob.
    Execute,
    /// Memory and files have their content.
    Filled,
}

const GATES: [Gate; 9] = [
    Gate::Mapped,
    Gate::Open,
    Gate::Fork,
    Gate::Lead,
    Gate::Join,
    Gate::Find,
    Gate::Finish,
    Gate::Execute,
    Gate::Filled,
];

/// A message to the supervisor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Report {
    /// The sender, of this id in the job's numbering (none for a stand-in without one), has come to
    /// a stage.
    Reached(Stage, Option<Pid>),
    /// The job's open file descriptions exist, nobody is born yet, and the content of these objects
    /// goes into these descriptors of the sender.
    Opened(Vec<(ObjectId, ContentPlace)>),
    /// The sender is at work on something that may take long.
    Working,
    /// The sender could not go on.
    Failed {
        /// Why, in words.
        message: String,
        /// What that was, as far as somebody else can do something about it.
        cause: Cause,
    },
}

/// What a process that is being built failed for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Cause {
    /// Somebody else has an id that the job needs.
    IdTaken,
    /// The checkpoint is damaged.
    Damage,
    /// Anything else.
    Other,
}

/// A report and who sent it, as the supervisor sees it.
#[derive(Clone, Debug)]
pub struct Received {
    /// The sender.
    pub sender: HostPid,
    /// What it says.
    pub report: Report,
}

/// Longest message: reports are short, and a failure's text is cut to fit.
const MESSAGE_LIMIT: usize = 64 * 1024;

/// The supervisor's side.
#[derive(Debug)]
pub struct SupervisorSide {
    reports: OwnedFd,
    gates: BTreeMap<Gate, OwnedFd>,
}

/// The side of the processes being built, inherited from each to the next.
#[derive(Debug)]
pub struct BuilderSide {
    reports: OwnedFd,
    gates: BTreeMap<Gate, OwnedFd>,
    /// The supervisor's ends, as long as this process has them, too: whoever keeps one of them open
    /// never finds out that the supervisor has died.
    inherited: Mutex<Vec<RawFd>>,
}

/// Makes both sides.
///
/// # Errors
/// As `socketpair(2)` and `pipe(2)`.
pub fn connect() -> io::Result<(SupervisorSide, BuilderSide)> {
    let (ours, theirs) =
        socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)?;
    setsockopt(&ours, sockopt::PassCred, &true)?;
    let mut opening = BTreeMap::new();
    let mut waiting = BTreeMap::new();
    for gate in GATES {
        let (wait, open) = pipe2(OFlag::O_CLOEXEC)?;
        opening.insert(gate, open);
        waiting.insert(gate, wait);
    }
    let ends = opening.values().map(AsRawFd::as_raw_fd).chain([ours.as_raw_fd()]);
    let inherited = Mutex::new(ends.collect());
    Ok((
        SupervisorSide { reports: ours, gates: opening },
        BuilderSide { reports: theirs, gates: waiting, inherited },
    ))
}

impl SupervisorSide {
    /// Lets the `waiting` processes that are or will be there through `gate`.
    ///
    /// # Errors
    /// As `write(2)`; EPIPE when nobody is left to wait.
    pub fn open(&mut self, gate: Gate, waiting: usize) -> io::Result<()> {
        if let Some(pipe) = self.gates.remove(&gate) {
            File::from(pipe).write_all(&vec![1; waiting])?;
        }
        Ok(())
    }

    /// Closes every gate: whoever waits at one, or comes to it, ends.
    pub fn close(&mut self) {
        self.gates.clear();
    }

    /// Waits until a report can be received; false when `patience` ends first.
    ///
    /// # Errors
    /// As `poll(2)`.
    pub fn ready(&self, patience: Duration) -> io::Result<bool> {
        let timeout = PollTimeout::try_from(patience).unwrap_or(PollTimeout::MAX);
        let mut reports = [PollFd::new(self.reports.as_fd(), PollFlags::POLLIN)];
        match poll(&mut reports, timeout) {
            Ok(count) => Ok(count > 0),
            Err(Errno::EINTR) => Ok(true),
            Err(error) => Err(error.into()),
        }
    }

    /// Waits for the next report; `None` when every process on the other side has ended.
    ///
    /// # Errors
    /// As `recvmsg(2)`; `InvalidData` for what is no report.
    pub fn receive(&self) -> io::Result<Option<Received>> {
        let mut bytes = vec![0; MESSAGE_LIMIT];
        let mut control = cmsg_space!(UnixCredentials);
        let (length, sender) = loop {
            let mut buffers = [io::IoSliceMut::new(&mut bytes)];
            let descriptor = self.reports.as_raw_fd();
            match recvmsg::<()>(descriptor, &mut buffers, Some(&mut control), MsgFlags::empty()) {
                Err(Errno::EINTR) => {}
                Err(error) => return Err(error.into()),
                Ok(message) => {
                    let sender = message.cmsgs()?.find_map(|item| match item {
                        ControlMessageOwned::ScmCredentials(credentials) => Some(credentials.pid()),
                        _ => None,
                    });
                    break (message.bytes, sender);
                }
            }
        };
        if length == 0 {
            return Ok(None);
        }
        let report = postcard::from_bytes(&bytes[..length])
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
        let sender = HostPid::from_raw(sender.ok_or(io::ErrorKind::InvalidData)?);
        Ok(Some(Received { sender, report }))
    }
}

impl BuilderSide {
    /// Moves every descriptor to `first` or above, out of the way of the job's own numbers.
    ///
    /// # Errors
    /// EMFILE or EINVAL when RLIMIT_NOFILE leaves no room there.
    pub fn move_up(self, first: RawFd) -> io::Result<Self> {
        let reports = move_above(self.reports, first)?;
        let gates = self
            .gates
            .into_iter()
            .map(|(gate, descriptor)| Ok((gate, move_above(descriptor, first)?)))
            .collect::<io::Result<_>>()?;
        Ok(Self { reports, gates, inherited: self.inherited })
    }

    /// Closes the supervisor's ends in a process that was forked by it, before it opens anything.
    ///
    /// # Errors
    /// As `close_range(2)`.
    pub fn leave_supervisor(&self) -> io::Result<()> {
        let inherited = take(&mut *self.inherited.lock().unwrap_or_else(PoisonError::into_inner));
        for number in inherited {
            close_range(number.unsigned_abs(), number.unsigned_abs())?;
        }
        Ok(())
    }

    /// Tells the supervisor.
    ///
    /// # Errors
    /// EPIPE when it is gone.
    pub fn report(&self, report: &Report) -> io::Result<()> {
        let bytes = postcard::to_stdvec(report)
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
        loop {
            match send(self.reports.as_raw_fd(), &bytes, MsgFlags::MSG_NOSIGNAL) {
                Err(Errno::EINTR) => {}
                Err(error) => return Err(error.into()),
                Ok(_) => return Ok(()),
            }
        }
    }

    /// Tells the supervisor why this process cannot go on; a text that is too long is cut.
    pub fn report_failure(&self, text: &str, cause: Cause) {
        let mut end = text.len().min(MESSAGE_LIMIT / 2);
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        // Nobody is left to hear of it when even this fails: the supervisor is gone, and what it
        // built goes with it.
        let message = text[..end].to_owned();
        self.report(&Report::Failed { message, cause }).unwrap_or_default();
    }

    /// Waits until the supervisor opens `gate`.
    ///
    /// # Errors
    /// As `read(2)`; `UnexpectedEof` when the supervisor has died.
    pub fn wait(&self, gate: Gate) -> io::Result<()> {
        let Some(descriptor) = self.gates.get(&gate) else { return Ok(()) };
        loop {
            match read(descriptor, &mut [0]) {
                Err(Errno::EINTR) => {}
                Err(error) => return Err(error.into()),
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(_) => return Ok(()),
            }
        }
    }
}
