//! What about a job's files cannot be saved: each case by name, with its reason and its remedy.
//!
//! Pure data. Who collects the refusals and what becomes of them is decided elsewhere.

use std::fmt;

use nix::unistd::Pid;
use thiserror::Error;

use super::io_uring::RingRefusal;
use super::message_queue::MessageQueueRefusal;
use super::socket::ForeignSocket;
use crate::model::address::AddrRange;
use crate::model::code::{self, Code};
use crate::model::id::{self, Bytes};

/// Where in a process the unsupported thing sits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// An open descriptor.
    Descriptor(i32),
    /// A mapping.
    Mapping(AddrRange),
    /// The executable.
    Executable,
    /// The working directory.
    WorkingDirectory,
    /// The root directory.
    RootDirectory,
    /// No place: the job's ipc namespace has it.
    MessageQueue,
    /// No place: the user named it.
    Named,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Descriptor(number) => write!(f, "descriptor {number}"),
            Self::Mapping(range) => write!(f, "mapping {range}"),
            Self::Executable => f.write_str("executable"),
            Self::WorkingDirectory => f.write_str("working directory"),
            Self::RootDirectory => f.write_str("root directory"),
            Self::MessageQueue => f.write_str("message queue that nobody has open"),
            Self::Named => f.write_str("file named with --save-files"),
        }
    }
}

/// One thing that cannot be saved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The process, as rckpt sees it.
    pub pid: Pid,
    /// Where in the process.
    pub place: Place,
    /// The kernel's name for it: the target of the link in /proc/PID/fd, or the mapping's path.
    pub what: Bytes,
    /// Why.
    pub kind: RefusalKind,
}

impl Refusal {
    /// What the user can do about it.
    #[must_use]
    pub const fn remedy(&self) -> &'static str {
        self.kind.remedy()
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "process {}, {} ({}): {}", self.pid, self.place, self.what, self.kind)
    }
}

impl std::error::Error for Refusal {}

/// Why something cannot be saved.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum RefusalKind {
    /// A socket.
    #[error("sockets cannot be saved yet")]
    Socket,
    /// A socket of another kind than those that programs talk to each other with.
    #[error("{0} cannot be saved")]
    ForeignSocket(ForeignSocket),
    /// A unix socket of a kind, or in a state, that is not known yet.
    #[error("this unix socket cannot be saved: {reason}")]
    UnixSocket {
        /// What about it.
        reason: &'static str,
    },
    /// A TCP or UDP socket in a state that cannot be saved.
    #[error("this internet socket cannot be saved: {reason}")]
    InetSocket {
        /// What about it.
        reason: &'static str,
    },
    /// A connection of Multipath TCP.
    #[error("it is a connection of Multipath TCP, which cannot be brought back as one")]
    MultipathTcp,
    /// A netlink socket that waits for something.
    #[error("this netlink socket cannot be saved: {reason}")]
    NetlinkSocket {
        /// What about it.
        reason: &'static str,
    },
    /// A TCP or UDP socket in the middle of something.
    #[error("this internet socket cannot be saved now: {reason}")]
    InetPassing {
        /// What about it.
        reason: &'static str,
    },
    /// A TCP connection to somebody outside the job.
    #[error("it is connected from {local} to {remote}, outside the job (TCP)")]
    TcpOutside {
        /// Its own address.
        local: String,
        /// That of its peer.
        remote: String,
    },
    /// A TCP connection with data that its listener has not accepted.
    #[error(
        "it has sent something over a connection that the job has not accepted yet, and that nobody \
         can see before"
    )]
    TcpPending,
    /// A connection that has not been accepted, whose client cannot be brought back.
    #[error("a connection to it has not been accepted yet, whose client {reason}")]
    UnixNotAccepted {
        /// What about the client.
        reason: &'static str,
    },
    /// Datagrams that a unix socket has sent, and nobody has received, are not in the job.
    #[error(
        "some of what it has sent was not found: a process outside the job has yet to receive it, or \
         it is empty and has been looked at before, which can be done but once"
    )]
    UnixSentOutside,
    /// A unix socket is connected to one outside the job.
    #[error("it is connected {}, outside the job", outsider(name, holder.as_ref()))]
    UnixPeerOutside {
        /// The name of its peer; empty: it has none.
        name: Bytes,
        /// Who has the peer open, and what that is called.
        holder: Option<(Pid, String)>,
    },
    /// An option of a socket that only the administrator can set, or a filter.
    #[error("the socket has the option {what}, which cannot be saved")]
    SocketOption {
        /// Its name.
        what: &'static str,
    },
    /// An epoll instance watches something that no process of the job has open.
    #[error(
        "it watches what was added by number {number}, which no process of the job has open any more"
    )]
    WatchesOutside {
        /// The number.
        number: i32,
    },
    /// An epoll instance watches the signals of a process, which does not have both.
    #[error(
        "it watches a signal descriptor, added by number {number}, and no process has both of them \
         open"
    )]
    WatchesSignalsOfOther {
        /// The number.
        number: i32,
    },
    /// Events that wait to be read cannot be looked at.
    #[error("events that the program has not read yet wait in it")]
    EventsQueued,
    /// A number of a watch that would take too long to come to.
    #[error("it has used {number} watches, more than can be brought back")]
    WatchNumber {
        /// The highest number.
        number: i32,
    },
    /// The path of a watched file is not known.
    #[error("the file that its watch {number} is on (inode {inode}) was not found")]
    WatchedFileNotFound {
        /// The number of the watch.
        number: i32,
        /// The inode.
        inode: u64,
    },
    /// `pidfd_open` of a process that is not the job's.
    #[error("it stands for a process outside the job ({process})")]
    PidFdOfOutsider {
        /// The process, as rckpt sees it; 0: not at all.
        process: i32,
    },
    /// `pidfd_open` with PIDFD_THREAD of a thread that is not the main one.
    #[error("it stands for a single thread ({thread}), which is not supported")]
    PidFdOfThread {
        /// The thread.
        thread: i32,
    },
    /// A process that comes back after the files are opened.
    #[error(
        "it leads to process {process} (its number in the job), which shares the table of descriptors or \
         the memory of another (CLONE_FILES, CLONE_VM), and this is not supported"
    )]
    LeadsToSharer {
        /// The process.
        process: id::Pid,
    },
    /// `mq_open`.
    #[error("this POSIX message queue cannot be saved: {0}")]
    MessageQueue(MessageQueueRefusal),
    /// The directory that POSIX message queues are mounted on.
    #[error("it is the directory of POSIX message queues, or lies in it without being one")]
    MessageQueueDirectory,
    /// `fanotify_init`.
    #[error("fanotify groups cannot be saved")]
    Fanotify,
    /// `io_uring_setup`.
    #[error("this ring of io_uring cannot be saved: {0}")]
    IoUring(RingRefusal),
    /// `perf_event_open`.
    #[error("performance counters cannot be saved")]
    PerfEvent,
    /// `bpf`.
    #[error("BPF objects cannot be saved")]
    Bpf,
    /// `userfaultfd`.
    #[error("userfaultfd descriptors cannot be saved")]
    UserFault,
    /// Another kind of kernel object behind an anonymous inode.
    #[error("this kind of kernel object is not known to rckpt")]
    UnknownKernelObject,
    /// A namespace.
    #[error("a descriptor of a namespace that the process is not in cannot be saved")]
    Namespace,
    /// A pseudo-terminal of the job's own in a state that cannot be saved.
    #[error("this pseudo-terminal cannot be saved: {reason}")]
    PseudoTerminal {
        /// What about it.
        reason: &'static str,
    },
    /// A pseudo-terminal of the job's own that a process outside uses, too.
    #[error("process {holder} outside the job uses this pseudo-terminal, too")]
    TerminalSharedWithOutside {
        /// The other process.
        holder: Pid,
    },
    /// A terminal that is no standard stream.
    #[error("it is a terminal, and none that the job's standard streams lead to")]
    ForeignTerminal,
    /// A GPU or other accelerator.
    #[error("state inside a GPU or accelerator cannot be saved")]
    Accelerator,
    /// A character device with state, or not known.
    #[error("the state behind character device {major}:{minor} is not known to rckpt")]
    CharacterDevice {
        /// Major number.
        major: u64,
        /// Minor number.
        minor: u64,
    },
    /// A block device.
    #[error("block devices cannot be saved")]
    BlockDevice,
    /// A pipe that is written outside the job and is no standard stream.
    #[error("the pipe is written to outside the job, and it is no standard stream")]
    PipeLeadsOutside,
    /// A pipe inside the job that a process outside has open, too.
    #[error("process {holder} outside the job has this pipe open, too")]
    PipeSharedWithOutside {
        /// The other process.
        holder: Pid,
    },
    /// The queue of a pipe could not be read.
    #[error("what is queued in the pipe cannot be read: {reason}")]
    PipeUnreadable {
        /// What went wrong.
        reason: String,
    },
    /// The name was removed, but the file has others that are not known.
    #[error("its name was removed, and the {links} other names it has are not in that directory")]
    NameLost {
        /// Names that are left.
        links: u64,
    },
    /// The path leads elsewhere, or nowhere, where rckpt runs.
    #[error(
        "its path leads to no such file here: the job has mounts of its own, or rckpt may not enter a directory on the way"
    )]
    NotReachable,
    /// The path is longer than any that a system call takes.
    #[error(
        "its path is longer than 4095 bytes, so neither the kernel shows it nor could it be opened by it"
    )]
    PathTooLong,
    /// A root directory other than the system's.
    #[error("its root directory is not that of rckpt (chroot)")]
    ChangedRoot,
    /// The content has to go into the image and may not be read.
    #[error("its content has to go into the image and cannot be read: {reason}")]
    ContentUnreadable {
        /// What went wrong.
        reason: String,
    },
    /// A file under /proc of a process outside the job.
    #[error("it belongs to a process outside the job")]
    ProcOfOutsider,
    /// A file under /proc of a single thread, which is not there yet when files are opened again.
    #[error("files under /proc of single threads cannot be saved")]
    ProcOfThread,
    /// A file under /proc bound to the memory that its process had when it was opened.
    #[error("it is bound to the memory of a process")]
    ProcOfMemory,
    /// Opened for writing on a file system that is the kernel's own.
    #[error("it is a file of the kernel's own, open for writing")]
    KernelFileForWriting,
    /// A kind of inode that has no meaning here.
    #[error("files of mode {mode:o} are not known to rckpt")]
    UnknownFile {
        /// `st_mode`.
        mode: u32,
    },
    /// Events on the description are signalled to somebody outside the job.
    #[error("events on it are signalled to task or group {owner}, which is outside the job")]
    OwnerOutside {
        /// The owner, as rckpt sees it.
        owner: i32,
    },
    /// dnotify.
    #[error("its directory is watched by F_NOTIFY (dnotify), and nobody tells for what")]
    DirectoryNotification,
    /// A lease that another process is waiting for.
    #[error("it holds a lease that another process is waiting for")]
    LeaseBreaking,
    /// A System V shared memory segment on huge pages of another size (SHM_HUGETLB).
    #[error(
        "System V shared memory on huge pages (SHM_HUGETLB) of other than 2 MiB cannot be saved"
    )]
    SegmentOfHugePages,
    /// Shared memory on huge pages without a descriptor.
    #[error("shared anonymous memory on huge pages cannot be saved yet")]
    SharedHugePages,
    /// A mapping of a device or of a file of the kernel's own.
    #[error("mappings of devices and kernel files cannot be saved")]
    MappedDevice,
    /// The mapping shows a file that nothing leads to, and no page of it could be read.
    #[error("the file that is mapped was deleted, and its content cannot be read: {reason}")]
    MappedContentUnreadable {
        /// What went wrong.
        reason: String,
    },
}

impl RefusalKind {
    /// Its code.
    #[must_use]
    pub const fn code(&self) -> Code {
        match self {
            Self::Socket => code::files::SOCKET,
            Self::ForeignSocket(_) => code::files::FOREIGN_SOCKET,
            Self::UnixSocket { .. } => code::files::UNIX_SOCKET,
            Self::InetSocket { .. } => code::files::INTERNET_SOCKET,
            Self::MultipathTcp => code::files::MULTIPATH_TCP,
            Self::NetlinkSocket { .. } => code::files::NETLINK_SOCKET,
            Self::InetPassing { .. } => code::files::INTERNET_SOCKET_PASSING,
            Self::TcpOutside { .. } => code::files::TCP_OUTSIDE,
            Self::TcpPending => code::files::TCP_PENDING,
            Self::UnixNotAccepted { .. } => code::files::UNIX_NOT_ACCEPTED,
            Self::UnixSentOutside => code::files::UNIX_SENT_OUTSIDE,
            Self::UnixPeerOutside { .. } => code::files::UNIX_PEER_OUTSIDE,
            Self::SocketOption { .. } => code::files::SOCKET_OPTION,
            Self::WatchesOutside { .. } => code::files::EPOLL_WATCHES_OUTSIDE,
            Self::WatchesSignalsOfOther { .. } => code::files::EPOLL_WATCHES_SIGNALS,
            Self::EventsQueued => code::files::EVENTS_QUEUED,
            Self::WatchNumber { .. } => code::files::WATCH_NUMBER,
            Self::WatchedFileNotFound { .. } => code::files::WATCHED_FILE_NOT_FOUND,
            Self::PidFdOfOutsider { .. } => code::files::PIDFD_OF_OUTSIDER,
            Self::PidFdOfThread { .. } => code::files::PIDFD_OF_THREAD,
            Self::LeadsToSharer { .. } => code::files::LEADS_TO_SHARER,
            Self::MessageQueue(error) => error.code(),
            Self::MessageQueueDirectory => code::files::QUEUE_DIRECTORY,
            Self::Fanotify => code::files::FANOTIFY,
            Self::IoUring(_) => code::files::IO_URING,
            Self::PerfEvent => code::files::PERF_EVENT,
            Self::Bpf => code::files::BPF,
            Self::UserFault => code::files::USERFAULTFD,
            Self::UnknownKernelObject => code::files::UNKNOWN_KERNEL_OBJECT,
            Self::Namespace => code::files::NAMESPACE,
            Self::PseudoTerminal { .. } => code::files::PSEUDO_TERMINAL,
            Self::TerminalSharedWithOutside { .. } => code::files::TERMINAL_SHARED_WITH_OUTSIDE,
            Self::ForeignTerminal => code::files::FOREIGN_TERMINAL,
            Self::Accelerator => code::files::ACCELERATOR,
            Self::CharacterDevice { .. } => code::files::CHARACTER_DEVICE,
            Self::BlockDevice => code::files::BLOCK_DEVICE,
            Self::PipeLeadsOutside => code::files::PIPE_LEADS_OUTSIDE,
            Self::PipeSharedWithOutside { .. } => code::files::PIPE_SHARED_WITH_OUTSIDE,
            Self::PipeUnreadable { .. } => code::files::PIPE_UNREADABLE,
            Self::NameLost { .. } => code::files::NAME_LOST,
            Self::NotReachable => code::files::NOT_REACHABLE,
            Self::PathTooLong => code::files::PATH_TOO_LONG,
            Self::ChangedRoot => code::files::CHANGED_ROOT,
            Self::ContentUnreadable { .. } => code::files::CONTENT_UNREADABLE,
            Self::ProcOfOutsider => code::files::PROC_OF_OUTSIDER,
            Self::ProcOfThread => code::files::PROC_OF_THREAD,
            Self::ProcOfMemory => code::files::PROC_OF_MEMORY,
            Self::KernelFileForWriting => code::files::KERNEL_FILE_FOR_WRITING,
            Self::UnknownFile { .. } => code::files::UNKNOWN_FILE,
            Self::OwnerOutside { .. } => code::files::OWNER_OUTSIDE,
            Self::DirectoryNotification => code::files::DIRECTORY_NOTIFICATION,
            Self::LeaseBreaking => code::files::LEASE_BREAKING,
            Self::SegmentOfHugePages => code::memory::SEGMENT_OF_HUGE_PAGES,
            Self::SharedHugePages => code::memory::SHARED_HUGE_PAGES,
            Self::MappedDevice => code::memory::MAPPED_DEVICE,
            Self::MappedContentUnreadable { .. } => code::memory::MAPPED_CONTENT_UNREADABLE,
        }
    }
}

/// To whom a unix socket is connected, in words.
fn outsider(name: &Bytes, holder: Option<&(Pid, String)>) -> String {
    let socket = match name.0.split_first() {
        None => "a socket without a name".to_owned(),
        Some((0, rest)) => format!("@{}", rest.escape_ascii()),
        Some(_) => name.to_string(),
    };
    match holder {
        None => format!("to {socket}"),
        Some((pid, program)) => format!("to {socket} of process {pid} ({program})"),
    }
}

impl RefusalKind {
    /// Whether it will be gone in a moment if the job runs on.
    #[must_use]
    pub const fn is_passing(&self) -> bool {
        match self {
            Self::MessageQueue(refusal) => return refusal.is_passing(),
            Self::IoUring(refusal) => return refusal.is_passing(),
            _ => {}
        }
        matches!(
            self,
            Self::TcpPending
                | Self::InetPassing { .. }
                | Self::UnixNotAccepted { .. }
                | Self::UnixSentOutside
                | Self::LeaseBreaking
                | Self::EventsQueued
                // Programs and the C library read such files in one go.
                | Self::ProcOfThread
                | Self::ProcOfMemory
                | Self::KernelFileForWriting
        )
    }

    /// What the user can do about it.
    #[must_use]
    pub const fn remedy(&self) -> &'static str {
        self.code().remedy()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_names_process_place_thing_and_reason() {
        let refusal = Refusal {
            pid: Pid::from_raw(12),
            place: Place::Descriptor(7),
            what: Bytes::from(&b"socket:[99]"[..]),
            kind: RefusalKind::Socket,
        };
        assert_eq!(
            refusal.to_string(),
            "process 12, descriptor 7 (socket:[99]): sockets cannot be saved yet"
        );
    }
}
