//! What a job's processes have open: tables, open file descriptions, files, pipes, directories.
//!
//! Everything is looked at from outside while the processes are frozen: through /proc, kcmp(2) and
//! duplicates of descriptors, never changing a position, a queue or a counter. One file for each kind
//! of description; whatever none of them knows is refused by name. It does not decide what becomes of
//! refusals, and knows nothing of memory except which files are mapped.

mod classify;
mod content;
mod context;
pub mod ends;
mod epoll;
mod event;
pub mod identity;
mod inode;
mod inotify;
mod io_uring;
mod kernel_file;
pub mod later;
mod locks;
mod message_queue;
pub mod outputs;
mod pidfd;
mod pipe;
mod refusal;
mod regular;
pub mod saved;
mod scan;
mod socket;
mod stream;
mod terminal;
#[cfg(test)]
mod tests;
mod timer;
pub mod unnamed;

use std::collections::{HashMap, HashSet};
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use nix::errno::Errno;
use nix::unistd::Pid;
use thiserror::Error;

pub use self::content::{Content, ContentReader, PageRun, Residency};
pub use self::io_uring::RingRefusal;
pub use self::message_queue::{MessageQueueRefusal, MessageQueues};
pub use self::refusal::{Place, Refusal, RefusalKind};
pub use self::socket::ForeignSocket;
pub use self::terminal::Surveyed;

use self::classify::{Class, classify};
use self::inode::{FileSystem, InodeTable};
use self::scan::Description;
use self::terminal::TerminalTable;
use crate::model::address::AddrRange;
use crate::model::file::{Fd, FdTable, FsContext, Inode, OpenFile, OpenFileKind, Pipe};
use crate::model::id::{self, Bytes, FdTableId, FsId, InodeId, OpenFileId};
use crate::model::socket::Socket;
use crate::sys::descriptor::{self, Shared};
use crate::sys::fdinfo::ParseFdInfoError;
use crate::sys::procfs::ProcError;
use crate::sys::queue_keeper::KeepError;
use crate::sys::terminal::queue::QueueError;
use crate::sys::unix_queue::LookError;

/// A frozen process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Subject {
    /// As rckpt sees it.
    pub pid: Pid,
    /// The task through which the kernel shows its descriptors: itself, unless its main thread has
    /// ended before the others.
    pub task: Pid,
    /// As the job sees it.
    pub recorded: id::Pid,
}

/// Whose files are looked at.
#[derive(Clone, Copy, Debug)]
pub struct Scope<'a> {
    /// All frozen processes but zombies. Threads of one process must share descriptors and
    /// directories.
    pub subjects: &'a [Subject],
    /// The number of each subject's memory, in their order; equal means shared.
    pub memories: &'a [usize],
    /// Zombies of the job: as rckpt sees them, and as the job does.
    pub zombies: &'a [(Pid, id::Pid)],
    /// The root process, as rckpt sees it.
    pub root: Pid,
    /// The `rckpt run` or `rckpt restore` that the job got its standard streams from.
    pub supervisor: Option<Pid>,
    /// Whether TCP connections to outside the job are given up.
    pub tcp_close: bool,
    /// Whether connections of unix sockets to outside the job are given up.
    pub ext_unix: bool,
    /// Whether it is only looked what cannot be saved: what is on its way stays on it.
    pub only_looks: bool,
}

/// A mapping of a file, as /proc/PID/maps shows it.
#[derive(Clone, Copy, Debug)]
pub struct FileMapping<'a> {
    /// The process, as rckpt sees it.
    pub pid: Pid,
    /// Where it is mapped.
    pub range: AddrRange,
    /// Offset in the file.
    pub offset: u64,
    /// Device number, composed as in `st_dev`.
    pub device: u64,
    /// Inode number.
    pub inode: u64,
    /// Path with line feeds decoded and " (deleted)" left on.
    pub path: &'a [u8],
    /// MAP_SHARED.
    pub shared: bool,
    /// PROT_WRITE.
    pub writable: bool,
    /// VM_MAYWRITE (`mw` in smaps).
    pub may_write: bool,
}

/// Everything found.
#[derive(Debug)]
pub struct Collected {
    /// Tables of descriptors.
    pub fd_tables: Vec<FdTable>,
    /// Directories and umasks.
    pub fs: Vec<FsContext>,
    /// Open file descriptions.
    pub open_files: Vec<OpenFile>,
    /// Files.
    pub inodes: Vec<Inode>,
    /// Pipes.
    pub pipes: Vec<Pipe>,
    /// Sockets.
    pub sockets: Vec<Socket>,
    /// POSIX message queues.
    pub message_queues: MessageQueues,
    /// Pseudo-terminals.
    pub terminals: Surveyed,
    /// Contents that go into the image, each with an object of its own, numbered on from the number
    /// given to [`Collector::finish`].
    pub contents: Vec<Content>,
    /// Descriptors of rckpt through which some contents are read: of descriptions that the job has sent
    /// to itself and not received. They must be closed before the job is thawed.
    pub on_their_way: Vec<OwnedFd>,
    /// What cannot be saved. Unless it is empty, the records above are not complete.
    pub refusals: Vec<Refusal>,
    /// What the user should know although it is saved.
    pub warnings: Vec<Warning>,
}

/// What the user should know about something that is saved.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Warning {
    /// Kernels before 6.5 do not tell.
    #[error(
        "process {pid}, descriptor {number}: this kernel does not tell whether the eventfd is a \
         semaphore (EFD_SEMAPHORE); it is taken for a plain counter"
    )]
    EventFdModeUnknown {
        /// A process that has it.
        pid: Pid,
        /// Its number there.
        number: i32,
    },
    /// A standard stream to a regular file whose path this user cannot follow.
    #[error(
        "process {pid}, descriptor {number}: {path} is a standard stream that cannot be reached by \
         its path; a restore cuts back what is written to it from now on only if its own stream is \
         that file again"
    )]
    StreamNotReachable {
        /// A process that has it.
        pid: Pid,
        /// Its number there.
        number: i32,
        /// The kernel's name for it.
        path: Bytes,
    },
    /// An empty message that the kernel shows only once.
    #[error(
        "process {pid}, descriptor {number}: an empty message waits in this socket behind others, and is in \
         the checkpoint; the kernel shows it but once, so the next checkpoint is refused, or, if its sender \
         is closed, is without it, until the program has received it"
    )]
    SeenOnce {
        /// A process that has it.
        pid: Pid,
        /// Its number there.
        number: i32,
    },
    /// A pipe to a reader outside the job, other than its standard streams.
    #[error(
        "process {pid}, descriptor {number}: a pipe that somebody outside the job reads from; after \
         a restore nobody will, and writing to it gives SIGPIPE"
    )]
    PipeWillBreak {
        /// A process that has it.
        pid: Pid,
        /// Its number there.
        number: i32,
    },
}

/// Why the files of a job could not be looked at.
#[derive(Debug, Error)]
#[allow(missing_docs)] // The messages say what each field is.
pub enum CollectFilesError {
    #[error("cannot list the descriptors of process {pid}")]
    ListDescriptors { pid: Pid, source: std::io::Error },
    #[error("cannot read {path}")]
    ReadProc { path: PathBuf, source: std::io::Error },
    #[error("cannot read the state of a process")]
    ReadProcess(#[from] ProcError),
    #[error("cannot read the state of descriptor {number} of process {pid}")]
    ParseFdInfo { pid: Pid, number: i32, source: ParseFdInfoError },
    #[error("cannot compare processes {left} and {right} (kcmp)")]
    CompareTasks { left: Pid, right: Pid, source: Errno },
    #[error("cannot compare descriptor {number} of process {pid} with others (kcmp)")]
    CompareDescriptors { pid: Pid, number: i32, source: Errno },
    #[error("cannot duplicate descriptor {number} of process {pid} (pidfd_getfd)")]
    DuplicateDescriptor { pid: Pid, number: i32, source: Errno },
    #[error("{operation} failed on descriptor {number} of process {pid}")]
    ReadDescriptor { operation: &'static str, pid: Pid, number: i32, source: Errno },
    #[error("cannot {operation} terminal {number}")]
    LookIntoTerminal { number: u32, operation: &'static str, source: Errno },
    #[error("cannot look into the job's pseudo-terminals")]
    LookIntoTerminals(#[from] QueueError),
    #[error("cannot find the device of the kernel's memory files")]
    FindMemoryDevice { source: Errno },
    #[error("cannot see what is queued in sockets")]
    LookIntoSockets(#[source] LookError),
    #[error("cannot look at the messages in the POSIX message queue /{name}: {source}")]
    LookIntoMessageQueue { name: Bytes, source: KeepError },
    #[error("there are more files than an image can hold")]
    CountFiles,
}

/// Why one thing is not recorded: it is refused, or looking at it failed.
#[derive(Debug)]
enum Failure {
    Refused(RefusalKind),
    Failed(CollectFilesError),
}

impl From<RefusalKind> for Failure {
    fn from(kind: RefusalKind) -> Self {
        Self::Refused(kind)
    }
}

impl From<CollectFilesError> for Failure {
    fn from(error: CollectFilesError) -> Self {
        Self::Failed(error)
    }
}

/// The records of a job's files while they are put together.
#[derive(Debug)]
pub struct Collector {
    /// Recorded process ids by those that rckpt sees.
    recorded: HashMap<Pid, id::Pid>,
    /// Those of processes that have ended and not been waited for.
    zombies: HashMap<Pid, id::Pid>,
    /// Recorded ids of processes that share the table of descriptors of one before them.
    sharers: HashSet<id::Pid>,
    /// Rings of io_uring, by their device and inode numbers, which mappings of them show.
    rings: HashMap<(u64, u64), OpenFileId>,
    /// Inotify instances whose watched files are still to be found.
    unresolved: Vec<inotify::Unresolved>,
    /// For each subject, its table and its directories.
    sharing: Vec<(FdTableId, FsId)>,
    fd_tables: Vec<FdTable>,
    fs: Vec<FsContext>,
    open_files: Vec<OpenFile>,
    pipes: Vec<Pipe>,
    sockets: Vec<Socket>,
    message_queues: MessageQueues,
    terminals: TerminalTable,
    inodes: InodeTable,
    on_their_way: Vec<OwnedFd>,
    refusals: Vec<Refusal>,
    warnings: Vec<Warning>,
}

impl Collector {
    /// Looks at the descriptors and directories of all processes in `scope`.
    ///
    /// # Errors
    /// When something cannot be looked at. What can be looked at but not saved becomes a refusal.
    pub fn collect(scope: &Scope<'_>) -> Result<Self, CollectFilesError> {
        let hosts: Vec<Pid> = scope.subjects.iter().map(|subject| subject.task).collect();
        let tables = share(&hosts, Shared::Descriptors)?;
        let contexts = share(&hosts, Shared::FileSystem)?;
        let mut sharing = Vec::with_capacity(hosts.len());
        for (table, context) in tables.class_of.iter().zip(&contexts.class_of) {
            sharing.push((FdTableId(index(*table)?), FsId(index(*context)?)));
        }
        let mut collector = Self {
            recorded: recorded_ids(scope.subjects),
            zombies: scope.zombies.iter().copied().collect(),
            sharers: sharers(scope, &tables.class_of),
            rings: HashMap::new(),
            unresolved: Vec::new(),
            sharing,
            fd_tables: vec![FdTable::default(); tables.firsts.len()],
            fs: Vec::with_capacity(contexts.firsts.len()),
            open_files: Vec::new(),
            pipes: Vec::new(),
            sockets: Vec::new(),
            message_queues: MessageQueues::default(),
            terminals: TerminalTable::default(),
            inodes: InodeTable::new()?,
            on_their_way: Vec::new(),
            refusals: Vec::new(),
            warnings: Vec::new(),
        };
        collector.collect_descriptors(scope, &tables.firsts)?;
        for pid in contexts.firsts {
            let found = context::collect(&mut collector, pid)?;
            collector.fs.push(found);
        }
        inotify::find_watched(&mut collector)?;
        Ok(collector)
    }

    /// For each subject, in their order: its table of descriptors, and its directories and umask.
    #[must_use]
    pub fn sharing(&self) -> &[(FdTableId, FsId)] {
        &self.sharing
    }

    /// The executable of a process; `None` when it is refused.
    ///
    /// # Errors
    /// When /proc cannot be read.
    pub fn executable(&mut self, pid: Pid) -> Result<Option<InodeId>, CollectFilesError> {
        let link = PathBuf::from(format!("/proc/{pid}/exe"));
        self.intern_link(pid, Place::Executable, link)
    }

    /// The file behind a mapping; `None` when it is refused.
    ///
    /// # Errors
    /// When looking at it fails.
    pub fn mapping(
        &mut self,
        mapping: &FileMapping<'_>,
    ) -> Result<Option<InodeId>, CollectFilesError> {
        match self.inodes.intern_mapping(mapping) {
            Ok(id) => Ok(Some(id)),
            Err(Failure::Failed(error)) => Err(error),
            Err(Failure::Refused(kind)) => {
                let place = Place::Mapping(mapping.range);
                self.refuse(mapping.pid, place, mapping.path, kind);
                Ok(None)
            }
        }
    }

    /// How many mappings of a segment of System V shared memory there are.
    #[must_use]
    pub fn segment_attachments(&self, number: i32) -> u64 {
        self.inodes.segment_attachments(number)
    }

    /// A process that has a segment mapped.
    #[must_use]
    pub fn segment_user(&self, number: i32) -> Option<Pid> {
        self.inodes.segment_user(number)
    }

    /// The file of a segment of this size and mode, of huge pages or not; `user` stands for the job in messages.
    ///
    /// # Errors
    /// When there are too many files.
    pub fn describe_segment(
        &mut self,
        number: i32,
        (size, huge): (u64, bool),
        mode: u32,
        user: Pid,
    ) -> Result<InodeId, CollectFilesError> {
        self.inodes.describe_segment(number, (size, huge), mode, user)
    }

    /// Whether a segment that the job has mapped consists of huge pages.
    #[must_use]
    pub fn segment_is_huge(&self, number: i32) -> bool {
        self.inodes.segment_is_huge(number)
    }

    /// Whether this is the device of the kernel's own huge pages of 2 MiB, which such segments are of.
    #[must_use]
    pub fn is_of_huge_pages(&self, device: u64) -> bool {
        self.inodes.is_of_huge_pages(device)
    }

    /// Whether a process has only a part of a segment of so many pages mapped.
    #[must_use]
    pub fn segment_is_in_parts(&self, segment: InodeId, pages: u64) -> bool {
        self.inodes.segment_is_in_parts(segment, pages)
    }

    /// Notes that a segment which the job has not attached is attached at `range` of `pid` for reading.
    pub fn read_segment_of(&mut self, segment: InodeId, pid: Pid, range: AddrRange) {
        self.inodes.read_segment_of(segment, pid, range);
    }

    /// Whether a segment is read in `pid`.
    #[must_use]
    pub fn reads_segments_of(&self, pid: Pid) -> bool {
        self.inodes.reads_segments_of(pid)
    }

    /// Ends the collection. Must be called while the processes are still frozen, and the contents be
    /// read before they are thawed.
    #[must_use]
    pub fn finish(mut self, first_object: u32) -> Collected {
        let (inodes, contents) = self.inodes.finish(first_object, &mut self.refusals);
        Collected {
            fd_tables: self.fd_tables,
            fs: self.fs,
            open_files: self.open_files,
            inodes,
            pipes: self.pipes,
            sockets: self.sockets,
            message_queues: self.message_queues,
            terminals: self.terminals.finish(),
            contents,
            on_their_way: self.on_their_way,
            refusals: self.refusals,
            warnings: self.warnings,
        }
    }

    /// The file that a link in /proc leads to.
    fn intern_link(
        &mut self,
        pid: Pid,
        place: Place,
        link: PathBuf,
    ) -> Result<Option<InodeId>, CollectFilesError> {
        let target = scan::read_link(&link)?;
        let found = inode::Found {
            stat: scan::stat(&link)?,
            link: &target,
            proc_path: link,
            readable: None,
            user: (pid, place),
        };
        match self.inodes.intern(found) {
            Ok(id) => Ok(Some(id)),
            Err(Failure::Failed(error)) => Err(error),
            Err(Failure::Refused(kind)) => {
                self.refuse(pid, place, &target, kind);
                Ok(None)
            }
        }
    }

    /// The file that a description refers to.
    fn intern_description(&mut self, description: &Description) -> Result<InodeId, Failure> {
        let readable = description.access() != libc::O_WRONLY
            && description.flags() & libc::O_PATH.cast_unsigned() == 0;
        self.inodes.intern(inode::Found {
            stat: description.stat,
            link: &description.link,
            proc_path: description.proc_path(),
            readable: readable.then_some(description.holder),
            user: (description.holder.0, Place::Descriptor(description.holder.1)),
        })
    }

    fn refuse(&mut self, pid: Pid, place: Place, what: &[u8], kind: RefusalKind) {
        self.refusals.push(Refusal { pid, place, what: Bytes::from(what), kind });
    }

    /// Records every description, and fills the tables.
    fn collect_descriptors(
        &mut self,
        scope: &Scope<'_>,
        tables: &[Pid],
    ) -> Result<(), CollectFilesError> {
        let mut descriptions = scan::descriptions(tables)?;
        let queues = socket::Queues::survey(scope, &mut descriptions)?;
        let classes: Vec<Class> = descriptions
            .iter()
            .map(|found| classify(&found.link, found.stat.mode, found.stat.rdev, found.flags()))
            .collect();
        let ours = queues.descriptors();
        let mut pipes = pipe::PipeTable::survey(scope, &descriptions, &classes, &ours)?;
        let mut sockets = socket::SocketTable::survey(scope, &descriptions, &classes, queues)?;
        let mut terminals = TerminalTable::survey(scope, &descriptions, &classes)?;
        let surveyed = (&pipes, &sockets, &terminals);
        let all = stream::Streams::find(scope, &descriptions, &classes, surveyed)?;
        let mut streams_of = Vec::with_capacity(descriptions.len());
        for (found, class) in descriptions.iter().zip(&classes) {
            let streams = all.of(found, class)?;
            if *class == Class::Socket && streams.is_empty() {
                sockets.number(found)?;
            }
            streams_of.push(streams);
        }
        let mut entered: Vec<epoll::Entered<'_>> = Vec::new();
        for ((found, class), streams) in descriptions.iter().zip(classes).zip(streams_of) {
            let first = index(self.open_files.len())?;
            if streams.is_empty() {
                let surveyed = (&mut pipes, &mut sockets, &mut terminals);
                match self.open_file(found, class, tables, surveyed) {
                    Ok(file) => self.enter(file, &found.entries)?,
                    Err(Failure::Failed(error)) => return Err(error),
                    Err(Failure::Refused(kind)) => self.refuse_description(found, kind),
                }
            } else {
                for (stream, entries) in stream::split(&streams, found) {
                    match self.stream(found, stream) {
                        Ok(file) => self.enter(file, &entries)?,
                        Err(Failure::Failed(error)) => return Err(error),
                        Err(Failure::Refused(kind)) => self.refuse_description(found, kind),
                    }
                }
            }
            let records = first..index(self.open_files.len())?;
            entered.push((found, records.map(OpenFileId).collect::<Vec<_>>()));
        }
        epoll::find_watched(self, &entered)?;
        sockets.find_files_on_their_way(self, &entered);
        self.sockets = sockets.finish();
        self.terminals = terminals;
        for table in &mut self.fd_tables {
            table.entries.sort_unstable_by_key(|entry| entry.number);
        }
        Ok(())
    }

    fn refuse_description(&mut self, found: &Description, kind: RefusalKind) {
        let (pid, number) = found.holder;
        self.refuse(pid, Place::Descriptor(number), &found.link, kind);
    }

    /// Adds a description, and the descriptors that refer to it to their tables.
    fn enter(&mut self, file: OpenFile, entries: &[scan::Entry]) -> Result<(), CollectFilesError> {
        let id = OpenFileId(index(self.open_files.len())?);
        self.open_files.push(file);
        for entry in entries {
            self.fd_tables[entry.table].entries.push(Fd {
                number: entry.number,
                file: id,
                close_on_exec: entry.info.flags & libc::O_CLOEXEC.cast_unsigned() != 0,
            });
        }
        Ok(())
    }

    /// The record of a description that is no standard stream.
    fn open_file(
        &mut self,
        found: &Description,
        class: Class,
        tables: &[Pid],
        (pipes, sockets, terminals): (
            &mut pipe::PipeTable<'_>,
            &mut socket::SocketTable,
            &mut TerminalTable,
        ),
    ) -> Result<OpenFile, Failure> {
        let is_directory = class == Class::Directory;
        let kind = match class {
            Class::Regular | Class::Directory => self.open_named(found, class)?,
            Class::Path => OpenFileKind::Path { inode: self.intern_description(found)? },
            Class::Pipe => pipes.collect(self, found)?,
            Class::Fifo => {
                let inode = self.intern_description(found)?;
                pipes.collect_fifo(self, found, inode)?
            }
            Class::Device => OpenFileKind::Device { inode: self.intern_description(found)? },
            Class::ControllingTerminal | Class::Terminal | Class::TerminalMaster => {
                terminals.collect(self, found, &class)?
            }
            Class::EventFd => event::collect(self, found)?,
            Class::TimerFd => timer::collect(found)?,
            Class::SignalFd => event::collect_signals(found)?,
            Class::Epoll => epoll::collect(found)?,
            Class::Inotify => {
                let id = OpenFileId(index(self.open_files.len())?);
                inotify::collect(self, found, id)?
            }
            Class::IoUring => {
                let id = OpenFileId(index(self.open_files.len())?);
                io_uring::collect(self, found, id)?
            }
            Class::PidFd => pidfd::collect(self, found)?,
            Class::Socket => sockets.collect(self, found)?,
            Class::Refused(RefusalKind::Namespace) => kernel_file::collect_namespace(self, found)?,
            Class::Refused(kind) => return Err(kind.into()),
        };
        let opened_as_path = matches!(kind, OpenFileKind::Path { .. });
        let owner = if opened_as_path { None } else { locks::owner(self, found)? };
        // Nothing but F_NOTIFY has a use for the owner of a directory, and sets it by itself.
        if is_directory && owner.is_some_and(|owner| owner.id.0 != 0) {
            return Err(RefusalKind::DirectoryNotification.into());
        }
        Ok(OpenFile {
            flags: found.flags(),
            kind,
            owner,
            locks: locks::collect(self, found, tables)?,
        })
    }

    /// The record of a description of a regular file or directory, or what the kernel shows as one.
    fn open_named(&mut self, found: &Description, class: Class) -> Result<OpenFileKind, Failure> {
        match (FileSystem::of(&found.proc_path()), class) {
            (FileSystem::Proc | FileSystem::Kernel, _) => kernel_file::collect(self, found),
            (FileSystem::MessageQueues, Class::Regular) => message_queue::collect(self, found),
            (_, Class::Regular) => regular::collect(self, found),
            _ => regular::collect_directory(self, found),
        }
    }

    /// The record of a description that leads to where the job's streams lead.
    fn stream(
        &mut self,
        found: &Description,
        stream: crate::model::file::Stream,
    ) -> Result<OpenFile, Failure> {
        let target = stream::target(self, found)?;
        Ok(OpenFile {
            flags: found.flags(),
            kind: OpenFileKind::Stream { stream, target },
            owner: locks::owner(self, found)?,
            locks: Vec::new(),
        })
    }
}

/// Which tasks share an object.
struct Sharing {
    /// For each task, the class of those it shares with.
    class_of: Vec<usize>,
    /// The first task of each class.
    firsts: Vec<Pid>,
}

fn share(tasks: &[Pid], what: Shared) -> Result<Sharing, CollectFilesError> {
    let class_of = identity::number_classes(tasks, |left, right| {
        descriptor::compare_tasks(what, *left, *right).map_err(|source| {
            CollectFilesError::CompareTasks { left: *left, right: *right, source }
        })
    })?;
    let mut firsts = Vec::new();
    for (task, class) in tasks.iter().zip(&class_of) {
        if *class == firsts.len() {
            firsts.push(*task);
        }
    }
    Ok(Sharing { class_of, firsts })
}

/// Those whose table of descriptors or memory another has had before: they are cloned late.
fn sharers(scope: &Scope<'_>, tables: &[usize]) -> HashSet<id::Pid> {
    let mut found = HashSet::new();
    for classes in [tables, scope.memories] {
        let mut known = HashSet::new();
        let subjects = scope.subjects.iter().zip(classes);
        let sharing = subjects.filter(|(_, class)| !known.insert(**class));
        found.extend(sharing.map(|(subject, _)| subject.recorded));
    }
    found
}

/// The recorded ids of processes, by theirs and by those of the tasks that stand for them.
fn recorded_ids(subjects: &[Subject]) -> HashMap<Pid, id::Pid> {
    let both = |found: &Subject| [found.pid, found.task].map(|pid| (pid, found.recorded));
    subjects.iter().flat_map(both).collect()
}

/// A duplicate of the description in our own process. Nothing may be done with it that changes what
/// it shares with the job.
fn duplicate(found: &Description) -> Result<OwnedFd, CollectFilesError> {
    let (pid, number) = found.holder;
    descriptor::pidfd_open_task(pid)
        .and_then(|pidfd| descriptor::pidfd_getfd(&pidfd, number))
        .map_err(|source| CollectFilesError::DuplicateDescriptor { pid, number, source })
}

/// An error of a call on the duplicate of a description.
fn call_failed(
    found: &Description,
    operation: &'static str,
) -> impl FnOnce(Errno) -> CollectFilesError {
    let (pid, number) = found.holder;
    move |source| CollectFilesError::ReadDescriptor { operation, pid, number, source }
}

/// An index as records keep it.
fn index(index: usize) -> Result<u32, CollectFilesError> {
    u32::try_from(index).map_err(|_| CollectFilesError::CountFiles)
}
