//! Pseudo-terminals whose master is in the job: their ends, modes, sessions, and what is queued.
//!
//! Everything but the queues is asked through a duplicate of the master, which changes nothing. The
//! queues can only be read and put back, which is done last of all, and not when the job is merely
//! looked at ([`Surveyed::with_queues`]). Terminals of others are streams of the job, or refused.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::sys::stat::{major, minor};
use nix::sys::statfs::{FsType, fstatfs};
use nix::unistd::Pid;

use super::classify::Class;
use super::refusal::RefusalKind;
use super::scan::{Description, FileStat, descriptor_path};
use super::{CollectFilesError, Collector, Failure, Scope, call_failed, duplicate, index, locks};
use crate::model::file::OpenFileKind;
use crate::model::id::{Bytes, TerminalId};
use crate::model::terminal::{
    Flow, PseudoTerminal, TerminalEnd, TerminalInput, TerminalState, Terminals, Termios,
};
use crate::sys::terminal::feeding::{Feeding, line_discipline};
use crate::sys::terminal::queue::{self, Pair};
use crate::sys::{descriptor, procfs, terminal};

/// DEVPTS_SUPER_MAGIC (include/uapi/linux/magic.h).
const DEVPTS: FsType = FsType(0x1cd1);
/// UNIX98_PTY_SLAVE_MAJOR (include/uapi/linux/major.h).
const SLAVE_MAJOR: u64 = 136;
/// Where the kernel looks for the file system of terminals beside a /dev/ptmx.
const MASTER_PATH: &[u8] = b"/dev/ptmx";
const PERMISSIONS: u32 = 0o7777;

/// A terminal by the device of its file system and its number there.
type Identity = (u64, u32);

/// What is known of a terminal.
#[derive(Debug)]
struct Known {
    record: PseudoTerminal,
    /// A duplicate of the master; `None` when it is hung up.
    master: Option<OwnedFd>,
    /// A duplicate of a slave that can be read and written.
    slave: Option<OwnedFd>,
    /// Why it cannot be saved.
    problem: Option<RefusalKind>,
}

/// The terminals of the job.
#[derive(Debug, Default)]
pub(super) struct TerminalTable {
    known: Vec<Known>,
    numbers: BTreeMap<Identity, usize>,
    /// Hung up slaves by device and inode number.
    hung_up: BTreeMap<(u64, u64), usize>,
    /// For each session of the job that has one, its terminal.
    sessions: BTreeMap<Pid, usize>,
}

impl TerminalTable {
    /// Finds the masters among the descriptions, and the slaves that belong to them.
    pub fn survey(
        scope: &Scope<'_>,
        descriptions: &[Description],
        classes: &[Class],
    ) -> Result<Self, CollectFilesError> {
        let mut table = Self::default();
        let of_class = |wanted: Class| {
            let both = descriptions.iter().zip(classes);
            both.filter(move |(_, class)| **class == wanted).map(|(found, _)| found)
        };
        for found in of_class(Class::TerminalMaster) {
            let file = duplicate(found)?;
            let number = terminal::index(&file).map_err(call_failed(found, "TIOCGPTN"))?;
            table.numbers.insert((instance(found, &file)?, number), table.known.len());
            let session = terminal::session(&file).map_err(call_failed(found, "TIOCGSID"))?;
            if let Some(session) = session {
                table.sessions.insert(session, table.known.len());
            }
            let record = blank(number, Bytes::from(&found.link[..]));
            table.known.push(Known { record, master: Some(file), slave: None, problem: None });
        }
        if table.known.is_empty() {
            return Ok(table);
        }
        for (found, class) in descriptions.iter().zip(classes) {
            let place = match class {
                Class::Terminal => table.of_slave(found),
                Class::ControllingTerminal => table.of_controlling(found)?,
                _ => None,
            };
            let Some(place) = place else { continue };
            let known = &mut table.known[place];
            known.record.state = TerminalState::Open;
            if known.slave.is_none() && found.access() == libc::O_RDWR {
                known.slave = Some(duplicate(found)?);
            }
        }
        for found in of_class(Class::TerminalMaster) {
            table.ask(found)?;
        }
        table.find_outside_holders(scope);
        Ok(table)
    }

    /// Whether a description is of a terminal of the job's own.
    pub fn is_own(&self, found: &Description) -> bool {
        self.of_slave(found).is_some()
    }

    /// Records an end of a terminal, or what else was opened as one.
    pub fn collect(
        &mut self,
        collector: &mut Collector,
        found: &Description,
        class: &Class,
    ) -> Result<OpenFileKind, Failure> {
        let (place, end) = match class {
            Class::TerminalMaster => {
                let file = duplicate(found)?;
                let number = terminal::index(&file).map_err(call_failed(found, "TIOCGPTN"))?;
                let place = self.numbers.get(&(instance(found, &file)?, number)).copied();
                let place = place.ok_or(RefusalKind::ForeignTerminal)?;
                self.complete(collector, found, place)?;
                (place, TerminalEnd::Master)
            }
            Class::ControllingTerminal => {
                let place = match self.of_controlling(found)? {
                    None => self.of_hung_up(found)?,
                    place => place,
                };
                match place {
                    Some(place) => (place, TerminalEnd::SlaveAsControlling),
                    None => return Ok(OpenFileKind::ControllingTerminal),
                }
            }
            // Consoles are the machine's own: their state is not the job's.
            _ if is_console(found) => {
                let inode = collector.intern_description(found)?;
                return Ok(OpenFileKind::Device { inode });
            }
            _ => {
                let place = match self.of_slave(found) {
                    None if is_slave(found) => self.of_hung_up(found)?,
                    place => place,
                };
                (place.ok_or(RefusalKind::ForeignTerminal)?, TerminalEnd::Slave)
            }
        };
        Ok(OpenFileKind::PseudoTerminal { terminal: TerminalId(index(place)?), end })
    }

    /// Ends the survey.
    pub fn finish(self) -> Surveyed {
        Surveyed(self.known)
    }

    /// Asks the master for everything that it tells.
    fn ask(&mut self, found: &Description) -> Result<(), CollectFilesError> {
        let file = duplicate(found)?;
        let number = terminal::index(&file).map_err(call_failed(found, "TIOCGPTN"))?;
        let Some(place) = self.numbers.get(&(instance(found, &file)?, number)).copied() else {
            return Ok(());
        };
        let Known { record, slave, problem, .. } = &mut self.known[place];
        let termios = terminal::modes(&file).map_err(call_failed(found, "TCGETS2"))?;
        let window = terminal::window_size(&file).map_err(call_failed(found, "TIOCGWINSZ"))?;
        record.termios = termios.to_vec();
        record.window = window.to_vec();
        record.locked = terminal::is_locked(&file).map_err(call_failed(found, "TIOCGPTLCK"))?;
        record.packet_mode =
            terminal::packet_mode(&file).map_err(call_failed(found, "TIOCGPKT"))?;
        if let Some(slave) = slave {
            record.exclusive =
                terminal::is_exclusive(slave).map_err(call_failed(found, "TIOCGEXCL"))?;
        }
        let events = descriptor::poll_now(&file, libc::POLLIN | libc::POLLPRI)
            .map_err(call_failed(found, "poll"))?;
        if record.state == TerminalState::Fresh && events & libc::POLLHUP != 0 {
            record.state = TerminalState::SlaveClosed;
        }
        let node = descriptor_path(found.holder.0, found.holder.1);
        if let Some(node) = node_of(&node, found.holder.0, number) {
            (record.uid, record.gid, record.mode) =
                (node.uid(), node.gid(), node.mode() & PERMISSIONS);
        }
        *problem = problem_of(found, record, &termios, events)
            .map(|reason| RefusalKind::PseudoTerminal { reason });
        Ok(())
    }

    /// Adds what only makes sense in the job's own numbering, and refuses what cannot be saved.
    fn complete(
        &mut self,
        collector: &Collector,
        found: &Description,
        place: usize,
    ) -> Result<(), Failure> {
        if let Some(problem) = self.known[place].problem.take() {
            return Err(problem.into());
        }
        let led = self.sessions.iter().find(|(_, terminal)| **terminal == place);
        if let Some((session, _)) = led {
            let recorded = collector.recorded.get(session).copied();
            let holder = *session;
            let recorded = recorded.ok_or(RefusalKind::TerminalSharedWithOutside { holder })?;
            let file = duplicate(found)?;
            let group = terminal::foreground(&file).map_err(call_failed(found, "TIOCGPGRP"))?;
            let record = &mut self.known[place].record;
            record.session = Some(recorded);
            record.foreground =
                group.and_then(|group| locks::recorded_group(collector, group.as_raw()));
        }
        Ok(())
    }

    /// The terminal that a description is a slave of.
    fn of_slave(&self, found: &Description) -> Option<usize> {
        if !is_slave(found) {
            return None;
        }
        let number = u32::try_from(minor(found.stat.rdev)).ok()?;
        let place = self.numbers.get(&(found.stat.device, number)).copied();
        // A hung up slave may outlive the master by whose number it is known.
        place.filter(|_| found.stat.links != 0)
    }

    /// The terminal of the job's own that a description made through /dev/tty leads to. Its number
    /// alone does not tell: the outer terminal may have the same one in another file system.
    fn of_controlling(&self, found: &Description) -> Result<Option<usize>, CollectFilesError> {
        let session = procfs::status(found.holder.0)?.ns_sid.first().copied().unwrap_or_default();
        let Some(place) = self.sessions.get(&Pid::from_raw(session)) else { return Ok(None) };
        let device = match terminal::device(duplicate(found)?) {
            Ok(device) => device,
            Err(Errno::EIO) => return Ok(None),
            Err(errno) => return Err(call_failed(found, "TIOCGDEV")(errno)),
        };
        let number = u64::from(self.known[*place].record.index);
        let is_it = (major(device), minor(device)) == (SLAVE_MAJOR, number);
        Ok(is_it.then_some(*place))
    }

    /// The record of a slave whose master is closed; `None` when it is not hung up.
    fn of_hung_up(&mut self, found: &Description) -> Result<Option<usize>, CollectFilesError> {
        if terminal::modes(duplicate(found)?) != Err(Errno::EIO) {
            return Ok(None);
        }
        if let Some(place) = self.hung_up.get(&found.stat.identity()) {
            return Ok(Some(*place));
        }
        let place = self.known.len();
        let number = if is_slave(found) {
            u32::try_from(minor(found.stat.rdev)).unwrap_or_default()
        } else {
            // Through /dev/tty: nobody can tell any more which one it was.
            self.known.iter().map(|known| known.record.index + 1).max().unwrap_or_default()
        };
        let record = PseudoTerminal {
            state: TerminalState::HungUp,
            mode: found.stat.mode & PERMISSIONS,
            ..blank(number, Bytes::from(MASTER_PATH))
        };
        self.known.push(Known { record, master: None, slave: None, problem: None });
        if is_slave(found) {
            self.hung_up.insert(found.stat.identity(), place);
        }
        Ok(Some(place))
    }

    /// Refuses terminals that somebody outside the job uses, too: what is looked at in them could be
    /// taken meanwhile. Processes of other users cannot be asked, and do not count.
    fn find_outside_holders(&mut self, scope: &Scope<'_>) {
        let inside: BTreeSet<Pid> = scope.subjects.iter().map(|subject| subject.pid).collect();
        let ours = nix::unistd::getpid();
        for process in procfs::processes().unwrap_or_default() {
            if inside.contains(&process) || process == ours {
                continue;
            }
            let Ok(entries) = fs::read_dir(format!("/proc/{process}/fd")) else { continue };
            for entry in entries.flatten() {
                let is_one = fs::read_link(entry.path())
                    .is_ok_and(|link| link.starts_with("/dev/pts/") && !link.ends_with("ptmx"));
                let Some(metadata) = is_one.then(|| fs::metadata(entry.path()).ok()).flatten()
                else {
                    continue;
                };
                let number = u32::try_from(minor(metadata.rdev())).unwrap_or(u32::MAX);
                if let Some(place) = self.numbers.get(&(metadata.dev(), number)) {
                    self.known[*place].problem =
                        Some(RefusalKind::TerminalSharedWithOutside { holder: process });
                }
            }
        }
    }
}

/// The terminals of a job, but for what is queued in them.
#[derive(Debug)]
pub struct Surveyed(Vec<Known>);

impl Surveyed {
    /// The records, with empty queues.
    #[must_use]
    pub fn without_queues(self) -> Terminals {
        let own = self.0.into_iter().map(|known| known.record).collect();
        Terminals { own, outer_foreground: None }
    }

    /// The records. The job must be frozen; what is queued is read and put back.
    ///
    /// # Errors
    /// When that fails.
    pub fn with_queues(mut self) -> Result<Terminals, CollectFilesError> {
        let failed = |number: u32, operation| {
            move |source| CollectFilesError::LookIntoTerminal { number, operation, source }
        };
        let mut pairs = Vec::new();
        let mut places = Vec::new();
        for (place, known) in self.0.iter_mut().enumerate() {
            let number = known.record.index;
            if !matches!(known.record.state, TerminalState::Open | TerminalState::SlaveClosed) {
                continue;
            }
            let Some(master) = known.master.take() else { continue };
            let slave = match known.slave.take() {
                Some(slave) => slave,
                None => terminal::open_slave(&master, libc::O_RDWR | libc::O_NONBLOCK)
                    .map_err(failed(number, "open"))?,
            };
            let own = Termios::try_from(&known.record.termios[..])
                .map_err(|_| failed(number, "read the modes of")(Errno::EINVAL))?;
            let packet_mode = known.record.packet_mode;
            pairs.push(Pair { master, slave, feeding: Feeding::new(&own), packet_mode });
            places.push(place);
        }
        for (place, found) in places.into_iter().zip(queue::peek(&pairs)?) {
            let record = &mut self.0[place].record;
            (record.input, record.output, record.flow) = (found.input, found.output, found.flow);
        }
        Ok(self.without_queues())
    }
}

/// What about a terminal cannot be saved.
fn problem_of(
    found: &Description,
    record: &PseudoTerminal,
    termios: &Termios,
    events: i16,
) -> Option<&'static str> {
    if line_discipline(termios) != 0 {
        Some("it is used as a network or serial line (it has a line discipline of another kind)")
    } else if found.access() != libc::O_RDWR {
        Some("its master is not open for both reading and writing")
    } else if record.packet_mode && events & libc::POLLPRI != 0 {
        Some("its master has not yet been told of a change of its modes (packet mode)")
    } else if record.state == TerminalState::Fresh && events & libc::POLLIN != 0 {
        Some("it was typed into before its other end was opened")
    } else {
        None
    }
}

/// The device of the file system of terminals that a master belongs to: its own when it was opened
/// there, else the one beside the /dev/ptmx of whoever opened it.
fn instance(found: &Description, file: &OwnedFd) -> Result<u64, CollectFilesError> {
    let own = fstatfs(file).map_err(call_failed(found, "fstatfs"))?;
    if own.filesystem_type() == DEVPTS {
        return Ok(found.stat.device);
    }
    let path = PathBuf::from(format!("/proc/{}/root/dev/pts", found.holder.0));
    match fs::metadata(&path) {
        Ok(metadata) => Ok(FileStat::from(&metadata).device),
        Err(source) => Err(CollectFilesError::ReadProc { path, source }),
    }
}

/// The node of a slave, as long as it is there.
fn node_of(master: &Path, holder: Pid, number: u32) -> Option<fs::Metadata> {
    let directory = match fs::read_link(master) {
        Ok(link) if link.ends_with("pts/ptmx") => link.parent()?.to_owned(),
        _ => PathBuf::from("/dev/pts"),
    };
    let directory = directory.strip_prefix("/").ok()?;
    let root = PathBuf::from(format!("/proc/{holder}/root"));
    fs::metadata(root.join(directory).join(number.to_string())).ok()
}

fn is_slave(found: &Description) -> bool {
    found.stat.file_type() == libc::S_IFCHR && major(found.stat.rdev) == SLAVE_MAJOR
}

/// Whether it is /dev/console or one of the screen's terminals (Documentation/admin-guide/devices.txt).
fn is_console(found: &Description) -> bool {
    matches!((major(found.stat.rdev), minor(found.stat.rdev)), (5, 1) | (4, 0..64))
}

fn blank(index: u32, master: Bytes) -> PseudoTerminal {
    PseudoTerminal {
        index,
        master,
        state: TerminalState::Fresh,
        termios: Vec::new(),
        window: Vec::new(),
        packet_mode: false,
        locked: false,
        exclusive: false,
        flow: Flow::Running,
        uid: 0,
        gid: 0,
        mode: 0,
        session: None,
        foreground: None,
        input: TerminalInput::Raw(Bytes::default()),
        output: Bytes::default(),
    }
}
