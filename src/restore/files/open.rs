//! Makes every open file description of the job once, and the descriptors that files are mapped with.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, Permissions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::stat::Mode;

use super::decide::{Connection, Decisions};
use super::epoll;
use super::hidden;
use super::io_uring;
use super::late;
use super::pipe::Pipes;
use super::socket::Sockets;
use super::terminal::Terminals;
use super::{OpenError, OpenedJob, Origin, settle, usage};
use crate::model::file::{
    FileLockKind, Inode, InodeKind, OpenFile, OpenFileKind, Stream, StreamTarget,
};
use crate::model::id::{Bytes, InodeId, OpenFileId, Pid, PosixQueueId};
use crate::model::job::Job;
use crate::model::memory::Backing;
use crate::model::number::to_usize;
use crate::restore::ipc;
use crate::restore::opened::{ContentPlace, Opened};
use crate::restore::plan::{Identity, Plan};
use crate::restore::script::{segment_of, writes_through};
use crate::sys::{descriptor, inotify, terminal};

/// The bit that O_TMPFILE has beside O_DIRECTORY (`__O_TMPFILE`).
const TEMPORARY: i32 = libc::O_TMPFILE & !libc::O_DIRECTORY;

/// Makes everything. All descriptors get numbers from [`Plan::private_fds`].
pub(super) fn open_all(
    job: &Job,
    plan: &Plan,
    decisions: &Decisions,
) -> Result<OpenedJob, OpenError> {
    descriptor::raise_limit().map_err(|errno| OpenError::RaiseLimit { source: errno.into() })?;
    let first = plan.private_fds.start;
    let may_chown = plan.identity == Identity::InPlace && nix::unistd::geteuid().is_root();
    let mut opener = Opener {
        job,
        plan,
        decisions,
        opened: Opened {
            private: plan.private_fds.clone(),
            reaper: Pid(nix::unistd::getpid().as_raw()),
            ..Opened::default()
        },
        origins: BTreeMap::new(),
        unsettled: Vec::new(),
        terminals: Vec::new(),
        pipes: Pipes::default(),
        sockets: Sockets::make(job, plan)?,
        pseudo_terminals: Terminals::make(&job.terminals, may_chown)?,
        objects: ipc::Objects::default(),
    };
    opener.make_files()?;
    opener.objects = ipc::make(job, &mut opener.opened)?;
    for (number, file) in (0..).zip(&job.open_files) {
        let id = OpenFileId(number);
        let made = opener.open(id, file)?;
        lock(file, &made).map_err(|source| {
            let path = opener.name_of(file);
            OpenError::Lock { path, source }
        })?;
        let made = move_up(made, first)?;
        if settle::is_needed(job, file) && !late::is_late(file) {
            opener.unsettled.push((id, duplicate(&made, first)?));
        }
        if let Some(modes) = opener.modes_of(file) {
            opener.terminals.push((duplicate(&made, first)?, modes));
        }
        opener.opened.files.push(descriptor::leave_open(made));
    }
    opener.open_mapped()?;
    opener.open_directories();
    let Opener {
        opened, origins, unsettled, terminals, sockets, pseudo_terminals, objects, ..
    } = opener;
    sockets.finish(job, &opened.files)?;
    let controlling = pseudo_terminals.finish(&job.terminals, first)?;
    Ok(OpenedJob { opened, origins, unsettled, terminals, controlling, objects })
}

struct Opener<'a> {
    job: &'a Job,
    plan: &'a Plan,
    decisions: &'a Decisions,
    opened: Opened,
    /// Files without a name, and those that get their content from the image.
    origins: BTreeMap<InodeId, Origin>,
    /// Descriptions that something is still to be done to.
    unsettled: Vec<(OpenFileId, OwnedFd)>,
    /// Terminals that get their modes back.
    terminals: Vec<(OwnedFd, Vec<u8>)>,
    pipes: Pipes,
    sockets: Sockets,
    pseudo_terminals: Terminals,
    objects: ipc::Objects,
}

impl Opener<'_> {
    /// Makes the files that cannot simply be opened.
    fn make_files(&mut self) -> Result<(), OpenError> {
        let temporary = temporary_files(self.job);
        for ((number, inode), usage) in (0..).zip(&self.job.inodes).zip(usage::of_all(self.job)) {
            let id = InodeId(number);
            let path = self.plan.path_of(id, self.job);
            let action = self.decisions.contents.get(&id).copied();
            if matches!(inode.kind, InodeKind::Segment { .. }) {
                continue;
            }
            let hidden = !matches!(inode.kind, InodeKind::Linked | InodeKind::MemoryFile);
            let made = match action {
                _ if !usage.is_needed() => None,
                Some(_) => Some(hidden::prepare(inode, path.as_path())),
                None if hidden => Some(hidden::make(inode, &path, temporary.contains(&id))),
                None => None,
            };
            let made = made
                .transpose()
                .map_err(|source| OpenError::Make { path: path.clone(), source })?;
            if let Some(object) = inode.content {
                // What nobody needs any more, or is there as it should be, is written nowhere.
                let target = match &made {
                    Some(made) => {
                        made.try_clone().map_err(|source| OpenError::Make { path, source })?
                    }
                    None => open_path(Path::new("/dev/null"), libc::O_WRONLY)
                        .map_err(|source| OpenError::Open { path, source })?,
                };
                let target = move_up(target, self.opened.private.start)?;
                let number = descriptor::leave_open(target);
                self.opened.contents.insert(object, ContentPlace { number, base: 0 });
            }
            if let Some(made) = made {
                let file = move_up(made, self.opened.private.start)?;
                self.origins.insert(id, Origin { file, action });
            }
        }
        Ok(())
    }

    fn open(&mut self, id: OpenFileId, file: &OpenFile) -> Result<OwnedFd, OpenError> {
        let flags = flags_to_open(file.flags);
        match &file.kind {
            OpenFileKind::Regular { inode, position }
            | OpenFileKind::Directory { inode, position } => {
                let made = self.open_inode(*inode, flags)?;
                self.set_position(&made, *position, *inode)?;
                Ok(made)
            }
            OpenFileKind::Path { inode } | OpenFileKind::Device { inode } => {
                self.open_inode(*inode, flags)
            }
            OpenFileKind::Pipe { pipe, end } => {
                let record = &self.job.pipes[to_usize(u64::from(pipe.0))];
                let flags = file.flags.cast_signed();
                self.pipes
                    .open(*pipe, record, *end, flags)
                    .map_err(|source| OpenError::MakePipe { source })
            }
            OpenFileKind::Fifo { inode, pipe, end } => {
                let record = &self.job.pipes[to_usize(u64::from(pipe.0))];
                let path = self.plan.path_of(*inode, self.job);
                let hidden = self.origins.get(inode).map(|origin| origin.file.as_fd());
                let flags = file.flags.cast_signed();
                self.pipes
                    .open_fifo(*pipe, record, (path.as_path(), hidden), *end, flags)
                    .map_err(|source| OpenError::OpenFifo { path, source })
            }
            OpenFileKind::ControllingTerminal => open_path(Path::new("/dev/tty"), flags)
                .map_err(|source| OpenError::OpenTerminal { source }),
            OpenFileKind::PseudoTerminal { terminal, end } => {
                Ok(self.pseudo_terminals.open(*terminal, *end, flags)?)
            }
            OpenFileKind::EventFd { count, semaphore } => {
                event(*count, *semaphore, flags).map_err(|source| OpenError::MakeEvent { source })
            }
            OpenFileKind::TimerFd { clock, .. } => descriptor::timerfd_create(*clock)
                .and_then(|timer| with_flags(timer, flags))
                .map_err(|errno| OpenError::MakeTimer { source: errno.into() }),
            OpenFileKind::SignalFd { mask } => descriptor::signalfd(*mask)
                .and_then(|signals| with_flags(signals, flags))
                .map_err(|errno| OpenError::MakeSignalFd { source: errno.into() }),
            OpenFileKind::Epoll { busy_poll, .. } => epoll::make(*busy_poll)
                .map_err(|errno| OpenError::MakeEpoll { source: errno.into() }),
            OpenFileKind::Stream { stream, target } => self.open_stream(*stream, target, flags),
            OpenFileKind::Socket { socket } => Ok(self.sockets.open(*socket, flags)?),
            OpenFileKind::MessageQueue { queue } => self.open_queue(*queue, flags),
            OpenFileKind::IoUring { ring } => {
                let made = io_uring::make(ring, flags)?;
                let to_map = stay_open(duplicate(&made, self.opened.private.start)?)?;
                self.opened.mapped.rings.insert(id, to_map);
                Ok(made)
            }
            OpenFileKind::Inotify { .. } => inotify::create()
                .and_then(|instance| with_flags(instance, flags))
                .map_err(|errno| OpenError::MakeInotify { source: errno.into() }),
            OpenFileKind::PidFd { .. } | OpenFileKind::Proc { .. } if late::is_late(file) => {
                self.opened.late.insert(id);
                stopgap()
            }
            // Each process opens its own once it has it.
            OpenFileKind::OwnMemory { .. } => stopgap(),
            OpenFileKind::PidFd { .. } | OpenFileKind::Proc { .. } => late::open(file),
        }
    }

    /// A standard stream: the caller's own, or what was decided instead.
    fn open_stream(
        &self,
        stream: Stream,
        target: &StreamTarget,
        flags: i32,
    ) -> Result<OwnedFd, OpenError> {
        let connection = self.decisions.streams.get(&stream);
        if let Some(Connection::Reopened { inode, position }) = connection {
            let made = self.open_inode(*inode, flags)?;
            self.set_position(&made, *position, *inode)?;
            return Ok(made);
        }
        let first = self.opened.private.start;
        let own = match stream {
            Stream::Input => descriptor::duplicate_above(io::stdin(), first),
            Stream::Output => descriptor::duplicate_above(io::stdout(), first),
            Stream::Error => descriptor::duplicate_above(io::stderr(), first),
        };
        let failed = |errno: Errno| OpenError::ConnectStream { stream, source: errno.into() };
        let own = match own {
            // The caller has it closed; what the job does with it leads nowhere.
            Err(Errno::EBADF) => open_path(Path::new("/dev/null"), libc::O_RDWR)
                .map_err(|source| OpenError::ConnectStream { stream, source })?,
            outcome => outcome.map_err(failed)?,
        };
        if let (Some(Connection::OwnAt { position }), StreamTarget::Regular { .. }) =
            (connection, target)
        {
            descriptor::set_position(&own, *position).map_err(failed)?;
        }
        // Whether calls wait is something that the program relies on. A terminal is left as it is:
        // that flag would stay with the caller's shell.
        if !terminal::is_terminal(&own) {
            let now = descriptor::status_flags(&own).map_err(failed)?;
            let wanted = now & !libc::O_NONBLOCK | flags & libc::O_NONBLOCK;
            if wanted != now {
                descriptor::set_status_flags(&own, wanted).map_err(failed)?;
            }
        }
        Ok(own)
    }

    /// A new description of a file.
    fn open_inode(&self, id: InodeId, flags: i32) -> Result<OwnedFd, OpenError> {
        let path = self.plan.path_of(id, self.job);
        let opened = match self.origins.get(&id) {
            Some(origin) => reopen(origin.file.as_fd(), flags),
            None => open_path(path.as_path(), flags),
        };
        opened.map_err(|source| OpenError::Open { path, source })
    }

    /// A new description of a POSIX message queue.
    fn open_queue(&self, id: PosixQueueId, flags: i32) -> Result<OwnedFd, OpenError> {
        let queue = self.objects.posix_queue(id).ok_or(Errno::EBADF);
        queue
            .map_err(io::Error::from)
            .and_then(|queue| reopen(queue, flags))
            .map_err(|source| OpenError::OpenMessageQueue { source })
    }

    fn set_position(&self, made: &OwnedFd, position: u64, inode: InodeId) -> Result<(), OpenError> {
        descriptor::set_position(made, position).map_err(|errno| OpenError::SetPosition {
            path: self.plan.path_of(inode, self.job),
            position,
            source: errno.into(),
        })
    }

    /// Descriptors to map files with. They stay open when the blob is executed.
    fn open_mapped(&mut self) -> Result<(), OpenError> {
        let mut wanted = BTreeSet::new();
        for space in &self.job.address_spaces {
            wanted.insert((space.executable, false));
            for vma in &space.vmas {
                if let Backing::File { inode, .. } = vma.backing
                    && segment_of(self.job, inode).is_none()
                {
                    wanted.insert((inode, writes_through(vma)));
                }
            }
        }
        for (inode, writes) in wanted {
            let flags = if writes { libc::O_RDWR } else { libc::O_RDONLY };
            let made = self.open_inode(inode, flags)?;
            let made = stay_open(move_up(made, self.opened.private.start)?)?;
            self.opened.mapped.files.insert((inode, writes), made);
        }
        Ok(())
    }

    /// Working directories without a name.
    fn open_directories(&mut self) {
        for context in &self.job.fs {
            if let Some(origin) = self.origins.get(&context.cwd) {
                self.opened.directories.insert(context.cwd, origin.file.as_raw_fd());
            }
        }
    }

    /// The modes that a description is to have, if it is a terminal whose modes are ours to set.
    fn modes_of(&self, file: &OpenFile) -> Option<Vec<u8>> {
        match &file.kind {
            OpenFileKind::Stream { stream, target: StreamTarget::Terminal { termios, .. } } => {
                self.decisions.terminals.contains(stream).then(|| termios.clone())
            }
            _ => None,
        }
    }

    /// What to call a description in messages.
    fn name_of(&self, file: &OpenFile) -> Bytes {
        match &file.kind {
            OpenFileKind::Regular { inode, .. } | OpenFileKind::Directory { inode, .. } => {
                self.plan.path_of(*inode, self.job)
            }
            _ => Bytes::default(),
        }
    }
}

/// What has the place of a description until that can be made.
fn stopgap() -> Result<OwnedFd, OpenError> {
    let path = Path::new("/dev/null");
    open_path(path, libc::O_RDONLY)
        .map_err(|source| OpenError::Open { path: Bytes::from(path), source })
}

/// Opens a path. Where the permissions of a file of our own have been taken away since the job opened
/// it, they are given back for a moment.
///
/// # Errors
/// As open(2).
pub(super) fn open_path(path: &Path, flags: i32) -> io::Result<OwnedFd> {
    let open = || {
        let flags = OFlag::from_bits_retain(flags | libc::O_NOCTTY | libc::O_CLOEXEC);
        nix::fcntl::open(path, flags, Mode::empty()).map_err(io::Error::from)
    };
    match open() {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            let metadata = fs::metadata(path)?;
            let ours = metadata.uid() == nix::unistd::geteuid().as_raw();
            if !ours || metadata.mode() & 0o600 == 0o600 {
                return Err(error);
            }
            let before = Permissions::from_mode(metadata.mode() & 0o7777);
            fs::set_permissions(path, Permissions::from_mode(metadata.mode() & 0o7777 | 0o600))?;
            let outcome = open();
            fs::set_permissions(path, before)?;
            outcome
        }
        outcome => outcome,
    }
}

/// A new description of the file behind a descriptor.
///
/// # Errors
/// As open(2) on its link in /proc.
pub(super) fn reopen(file: BorrowedFd<'_>, flags: i32) -> io::Result<OwnedFd> {
    // The link may end in a directory or a FIFO, but is itself a link.
    let flags = flags & !libc::O_NOFOLLOW;
    reopen_number(file.as_raw_fd(), flags)
}

/// The same for the number of a descriptor.
///
/// # Errors
/// As open(2) on its link in /proc.
pub(super) fn reopen_number(file: RawFd, flags: i32) -> io::Result<OwnedFd> {
    open_path(Path::new(&format!("/proc/self/fd/{file}")), flags)
}

/// The recorded flags as open(2) may be given them now.
pub(super) fn flags_to_open(recorded: u32) -> i32 {
    let recorded = recorded.cast_signed();
    let mut only_once = libc::O_CREAT | libc::O_EXCL | libc::O_TRUNC | libc::O_ASYNC;
    if recorded & TEMPORARY != 0 {
        only_once |= libc::O_TMPFILE;
    }
    recorded & !only_once
}

/// Files that were made with O_TMPFILE, and so can still get a name (linkat(2)). It remains visible in the
/// flags of the description that it was made by, and in what the kernel calls the file.
fn temporary_files(job: &Job) -> BTreeSet<InodeId> {
    let of_file = |file: &OpenFile| match file.kind {
        OpenFileKind::Regular { inode, .. } if file.flags.cast_signed() & TEMPORARY != 0 => {
            Some(inode)
        }
        _ => None,
    };
    let is_called_so = |(_, inode): &(u32, &Inode)| {
        let name = format!("#{}", inode.number);
        inode.kind == InodeKind::Unlinked
            && inode.path.as_path().file_name().is_some_and(|found| *found == *name)
    };
    let called_so = (0..).zip(&job.inodes).filter(is_called_so);
    let called_so = called_so.map(|(number, _)| InodeId(number));
    job.open_files.iter().filter_map(of_file).chain(called_so).collect()
}

/// Takes the locks that belong to a description. Leases come later, those of processes last of all.
fn lock(file: &OpenFile, made: &OwnedFd) -> io::Result<()> {
    for lock in &file.locks {
        let exclusive = i32::from(lock.access) == libc::F_WRLCK;
        match lock.kind {
            FileLockKind::Flock => descriptor::lock_description(made, exclusive)?,
            FileLockKind::OpenFileDescription => {
                let number = |number: u64| i64::try_from(number).map_err(io::Error::other);
                let start = number(lock.start)?;
                let length = match lock.end {
                    None => 0,
                    Some(end) => number(end)?.saturating_sub(start).saturating_add(1),
                };
                let holder = descriptor::RangeLockHolder::Description;
                descriptor::lock_range(made, holder, lock.access, start, length)?;
            }
            FileLockKind::Posix { .. } | FileLockKind::Lease => {}
        }
    }
    Ok(())
}

fn with_flags(file: OwnedFd, flags: i32) -> Result<OwnedFd, Errno> {
    descriptor::set_status_flags(&file, flags)?;
    Ok(file)
}

fn event(count: u64, semaphore: bool, flags: i32) -> io::Result<OwnedFd> {
    let initial = u32::try_from(count).unwrap_or(u32::MAX);
    let event = descriptor::eventfd(initial, semaphore)?;
    let rest = count - u64::from(initial);
    if rest != 0 {
        nix::unistd::write(&event, &rest.to_ne_bytes())?;
    }
    descriptor::set_status_flags(&event, flags)?;
    Ok(event)
}

pub(super) fn duplicate(file: &OwnedFd, first: RawFd) -> Result<OwnedFd, OpenError> {
    descriptor::duplicate_above(file, first)
        .map_err(|errno| OpenError::MoveUp { source: errno.into() })
}

/// Leaves a descriptor open for good, also when the blob is executed.
fn stay_open(file: OwnedFd) -> Result<RawFd, OpenError> {
    descriptor::set_close_on_exec(&file, false)
        .map_err(|errno| OpenError::MoveUp { source: errno.into() })?;
    Ok(descriptor::leave_open(file))
}

fn move_up(file: OwnedFd, first: RawFd) -> Result<OwnedFd, OpenError> {
    descriptor::move_above(file, first).map_err(|errno| OpenError::MoveUp { source: errno.into() })
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::Write;

    use super::*;

    #[test]
    fn flags_of_the_first_opening_are_left_out() {
        let recorded = libc::O_RDWR | libc::O_TMPFILE | libc::O_APPEND | libc::O_ASYNC;
        assert_eq!(flags_to_open(recorded.cast_unsigned()), libc::O_RDWR | libc::O_APPEND);
        let directory = libc::O_DIRECTORY | libc::O_NOFOLLOW;
        assert_eq!(flags_to_open(directory.cast_unsigned()), directory);
    }

    #[test]
    fn a_file_whose_permissions_are_gone_is_opened_by_its_owner() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        fs::write(&path, "").unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o444)).unwrap();
        let opened = open_path(&path, libc::O_WRONLY | libc::O_APPEND).unwrap();
        File::from(opened).write_all(b"x").unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o444);
    }

    #[test]
    fn large_counters_come_back_whole() {
        for count in [0, 7, u64::from(u32::MAX) + 10, u64::MAX - 1] {
            let event = event(count, false, libc::O_NONBLOCK).unwrap();
            let mut bytes = [0; 8];
            match nix::unistd::read(&event, &mut bytes) {
                Ok(8) => assert_eq!(u64::from_ne_bytes(bytes), count),
                other => assert_eq!((other, count), (Err(Errno::EAGAIN), 0)),
            }
        }
    }
}
