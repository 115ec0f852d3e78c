//! Pseudo-terminals of the job's own: made again under their old numbers, in their old modes, with
//! what was queued in them.
//!
//! All of that is done before the first process is born, so that nobody is told of it by a signal.
//! Who is controlled by which terminal comes later, from the leaders of the sessions themselves.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::setsid;
use thiserror::Error;

use super::open::open_path;
use crate::model::id::{Bytes, Pid, TerminalId};
use crate::model::number::to_usize;
use crate::model::terminal::{
    PseudoTerminal, TerminalEnd, TerminalState, Terminals as Records, Termios, WINSIZE_SIZE,
};
use crate::sys::clone::{self, Fork};
use crate::sys::terminal::feeding::Feeding;
use crate::sys::terminal::queue::{self, QueueError, Queues};
use crate::sys::{descriptor, terminal};

/// Where the file system of terminals is.
const DIRECTORY: &str = "/dev/pts";
const PERMISSIONS: u32 = 0o7777;

/// Why a pseudo-terminal could not be made again.
#[derive(Debug, Error)]
#[allow(missing_docs)] // The messages say what each field is.
pub enum TerminalError {
    #[error("making terminal {number} again through {path}: {source}")]
    Make { number: u32, path: Bytes, source: io::Error },
    #[error("making terminal {number} again: somebody else has that number")]
    Taken { number: u32 },
    #[error("{operation} of terminal {number}: {source}")]
    Prepare { number: u32, operation: &'static str, source: Errno },
    #[error("giving terminal {number} what was queued in it: {source}")]
    Fill { number: u32, source: QueueError },
    #[error("setting the permissions of terminal {number}: {source}")]
    SetPermissions { number: u32, source: io::Error },
    #[error("opening terminal {number} as /dev/tty: {source}")]
    OpenAsControlling { number: u32, source: io::Error },
}

/// The terminals while they are opened.
#[derive(Debug, Default)]
pub(super) struct Terminals {
    made: Vec<Made>,
}

/// A terminal.
#[derive(Debug)]
struct Made {
    number: u32,
    /// `None` once the job's own description of it has been handed out, and before it is made.
    master: Option<OwnedFd>,
    /// Open for reading and writing; `None` when the slave has never been open.
    slave: Option<OwnedFd>,
}

impl Terminals {
    /// Makes all of them, with what is queued in them.
    pub fn make(records: &Records, may_chown: bool) -> Result<Self, TerminalError> {
        let mut masters = allocate(&records.own)?;
        let mut made = Vec::with_capacity(records.own.len());
        for record in &records.own {
            let number = record.index;
            let master = masters.remove(&number).ok_or(TerminalError::Taken { number })?;
            let slave = prepare(record, &master)?;
            if record.state != TerminalState::HungUp {
                set_permissions(record, may_chown)
                    .map_err(|source| TerminalError::SetPermissions { number, source })?;
            }
            made.push(Made { number, master: Some(master), slave });
        }
        Ok(Self { made })
    }

    /// Opens an end as the job had it.
    pub fn open(
        &mut self,
        terminal: TerminalId,
        end: TerminalEnd,
        flags: i32,
    ) -> Result<OwnedFd, TerminalError> {
        let made = &mut self.made[to_usize(u64::from(terminal.0))];
        let number = made.number;
        let failed = |operation| move |source| TerminalError::Prepare { number, operation, source };
        let absent = || failed("opening an end")(Errno::EBADF);
        let master = made.master.as_ref().ok_or_else(absent)?;
        match end {
            TerminalEnd::Master => {
                let own = master.try_clone().map_err(|source| {
                    let path = Bytes::default();
                    TerminalError::Make { number, path, source }
                })?;
                descriptor::set_status_flags(&own, flags).map_err(failed("setting the flags"))?;
                Ok(own)
            }
            TerminalEnd::Slave => {
                terminal::open_slave(master, flags).map_err(failed("opening an end"))
            }
            TerminalEnd::SlaveAsControlling => {
                let slave = made.slave.as_ref().ok_or_else(absent)?;
                open_as_controlling(slave, flags)
                    .map_err(|source| TerminalError::OpenAsControlling { number, source })
            }
        }
    }

    /// Sets what would have been in the way, once all ends are open. Gives, for each session that a
    /// terminal controls, a descriptor of that terminal, numbered from `first` on.
    pub fn finish(
        self,
        records: &Records,
        first: RawFd,
    ) -> Result<BTreeMap<Pid, OwnedFd>, TerminalError> {
        let mut control = BTreeMap::new();
        for (record, made) in records.own.iter().zip(self.made) {
            let Made { number, master, slave } = made;
            let failed =
                |operation| move |source| TerminalError::Prepare { number, operation, source };
            if let Some(slave) = &slave
                && record.exclusive
            {
                terminal::make_exclusive(slave).map_err(failed("setting TIOCEXCL"))?;
            }
            if let Some(master) = &master {
                if record.packet_mode {
                    terminal::set_packet_mode(master, true).map_err(failed("setting TIOCPKT"))?;
                }
                terminal::set_locked(master, record.locked)
                    .map_err(failed("setting TIOCSPTLCK"))?;
            }
            if let (Some(session), Some(slave)) = (record.session, slave) {
                let slave =
                    descriptor::move_above(slave, first).map_err(failed("moving a descriptor"))?;
                control.insert(session, slave);
            }
        }
        Ok(control)
    }
}

/// Opens masters until those with the wanted numbers are among them: the kernel gives the lowest
/// number that is free. They do not wait in calls.
fn allocate(own: &[PseudoTerminal]) -> Result<BTreeMap<u32, OwnedFd>, TerminalError> {
    let mut wanted: Vec<&PseudoTerminal> = own.iter().collect();
    wanted.sort_unstable_by_key(|terminal| terminal.index);
    let mut masters = BTreeMap::new();
    // Those with other numbers are kept until all are found, and then closed.
    let mut fillers = Vec::new();
    for terminal in wanted {
        let number = terminal.index;
        let failed = |source| TerminalError::Make { number, path: terminal.master.clone(), source };
        let master = loop {
            let flags = libc::O_RDWR | libc::O_NONBLOCK;
            let master = open_path(terminal.master.as_path(), flags).map_err(failed)?;
            let found = terminal::index(&master).map_err(|errno| failed(errno.into()))?;
            if found == number {
                break master;
            }
            if found > number {
                return Err(TerminalError::Taken { number });
            }
            fillers.push(master);
        };
        masters.insert(number, master);
    }
    Ok(masters)
}

/// Gives a terminal its size, what is queued in it, and its modes. Returns its slave, unless that has
/// never been open.
fn prepare(record: &PseudoTerminal, master: &OwnedFd) -> Result<Option<OwnedFd>, TerminalError> {
    let number = record.index;
    let failed = |operation| move |source| TerminalError::Prepare { number, operation, source };
    terminal::set_locked(master, false).map_err(failed("unlocking"))?;
    let open = || {
        terminal::open_slave(master, libc::O_RDWR | libc::O_NONBLOCK)
            .map_err(failed("opening an end"))
    };
    if record.state == TerminalState::HungUp {
        return open().map(Some);
    }
    let invalid = |_| failed("setting the modes")(Errno::EINVAL);
    let window = <&[u8; WINSIZE_SIZE]>::try_from(&record.window[..]).map_err(invalid)?;
    let modes = <&Termios>::try_from(&record.termios[..]).map_err(invalid)?;
    terminal::set_window_size(master, window).map_err(failed("setting the size"))?;
    if record.state == TerminalState::Fresh {
        terminal::set_modes(master, modes).map_err(failed("setting the modes"))?;
        return Ok(None);
    }
    let slave = open()?;
    let queues =
        Queues { input: record.input.clone(), output: record.output.clone(), flow: record.flow };
    queue::fill(master.as_fd(), slave.as_fd(), &Feeding::new(modes), &queues)
        .map_err(|source| TerminalError::Fill { number, source })?;
    Ok(Some(slave))
}

/// Gives the node of a terminal its permissions, and, for who may do that, its owner.
fn set_permissions(record: &PseudoTerminal, may_chown: bool) -> io::Result<()> {
    let path: PathBuf = Path::new(DIRECTORY).join(record.index.to_string());
    let now = fs::metadata(&path)?;
    if may_chown && (now.uid(), now.gid()) != (record.uid, record.gid) {
        std::os::unix::fs::chown(&path, Some(record.uid), Some(record.gid))?;
    }
    if now.mode() & PERMISSIONS != record.mode {
        fs::set_permissions(&path, fs::Permissions::from_mode(record.mode))?;
    }
    Ok(())
}

/// Opens a slave by the name /dev/tty, as only a session can that it controls: one is made for that
/// alone, and its process keeps what it has opened until we have taken it over.
fn open_as_controlling(slave: &OwnedFd, flags: i32) -> io::Result<OwnedFd> {
    let (mut told, mut teller) = io::pipe()?;
    let (mut waiting, holding) = io::pipe()?;
    match clone::fork(0, 0, None)? {
        Fork::Child => {
            drop((told, holding));
            let opened = setsid()
                .and_then(|_| terminal::take_control(slave))
                .map_err(io::Error::from)
                .and_then(|()| open_path(Path::new("/dev/tty"), flags));
            let number = match &opened {
                Ok(opened) => opened.as_raw_fd(),
                Err(error) => -error.raw_os_error().unwrap_or(libc::EIO),
            };
            let sent = teller.write_all(&number.to_ne_bytes());
            // Ends when the other side is closed.
            let released = sent.and_then(|()| waiting.read(&mut [0]));
            clone::exit_now(i32::from(released.is_err()))
        }
        Fork::Parent(child) => {
            drop((teller, waiting));
            let mut number = [0; 4];
            let taken = told.read_exact(&mut number).and_then(|()| {
                let number = RawFd::from_ne_bytes(number);
                if number < 0 {
                    return Err(io::Error::from_raw_os_error(-number));
                }
                let child = descriptor::pidfd_open(child)?;
                Ok(descriptor::pidfd_getfd(child, number)?)
            });
            drop(holding);
            loop {
                match waitpid(child, Some(WaitPidFlag::__WALL)) {
                    Err(Errno::EINTR) => {}
                    outcome => break outcome.map(drop)?,
                }
            }
            taken
        }
    }
}
