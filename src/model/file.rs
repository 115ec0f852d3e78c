//! Files, open file descriptions, tables of descriptors, and what flows through pipes.

use serde::{Deserialize, Serialize};

use super::event::{BusyPoll, EpollItem, FileWatch};
use super::id::{
    Bytes, InodeId, ObjectId, OpenFileId, Pid, PipeId, PosixQueueId, SocketId, TerminalId,
};
use super::ring::Ring;
use super::signal::SignalSet;
use super::terminal::TerminalEnd;
use super::time::{TimeSpec, TimerSpec};

/// Name of the memfd that stands in for shared anonymous memory after a restore: only the kernel
/// itself can make the original kind for several processes, so the next dump knows it by this name.
pub const ANONYMOUS_SHARED_NAME: &str = "rckpt-shared-anonymous";

/// Where an inode can be found again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum InodeKind {
    /// Reachable under its path: a regular file, directory, FIFO or device.
    Linked,
    /// No path leads to it any more (deleted, or opened with O_TMPFILE): its content is in the
    /// image. `path` is where it was, without the kernel's " (deleted)".
    Unlinked,
    /// A named file on a memory file system (/dev/shm), whose content a reboot would lose: it is
    /// in the image and put back in place.
    MemoryFile,
    /// `memfd_create`.
    Memfd {
        /// MFD_* bits that matter to a new one: MFD_HUGETLB with its size, MFD_NOEXEC_SEAL.
        flags: u32,
        /// F_SEAL_* bits.
        seals: u32,
    },
    /// MAP_SHARED | MAP_ANONYMOUS memory.
    AnonymousShared,
    /// A segment of System V shared memory.
    Segment {
        /// Its number.
        id: i32,
    },
}

/// A file, whoever has it open or mapped.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Inode {
    /// How to find it again.
    pub kind: InodeKind,
    /// Absolute path as the job sees it, or the name of a memfd; empty for anonymous memory.
    pub path: Bytes,
    /// Device number (`st_dev`).
    pub device: u64,
    /// Inode number (`st_ino`).
    pub number: u64,
    /// Type and permission bits (`st_mode`).
    pub mode: u32,
    /// Device number of a device node (`st_rdev`).
    pub rdev: u64,
    /// Bytes (`st_size`) at the dump.
    pub size: u64,
    /// Last change of the content (`st_mtime`) at the dump.
    pub mtime: TimeSpec,
    /// Names it has (`st_nlink`).
    pub links: u64,
    /// GNU build id, for mapped ELF files.
    pub build_id: Option<Bytes>,
    /// Where its content is kept, when it is. Page `n` is the content from byte `n * 4096` on; an
    /// absent page is a hole.
    pub content: Option<ObjectId>,
    /// Whether some task of the job has it open for writing, or mapped shared and writable.
    pub written: bool,
    /// Extended attributes of its user (`user.*`), with their names, of a file that is made again.
    pub attributes: Vec<(Bytes, Bytes)>,
    /// Hash (xxh3, 128 bits, big-endian) of the first and the last 64 KiB of its `size` bytes, or of
    /// all where it is not larger than that, to tell a change in place from growth. For named regular
    /// files that the job has open for writing and that could be read.
    pub ends: Option<Bytes>,
}

/// A standard stream of rckpt's caller that the job inherited.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Stream {
    /// Descriptor 0.
    Input,
    /// Descriptor 1.
    Output,
    /// Descriptor 2.
    Error,
}

/// What a stream led to at the dump, for messages and for the rollback of regular files.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum StreamTarget {
    /// A regular file, and where reading or writing stood in it.
    Regular {
        /// The file.
        inode: InodeId,
        /// Position in bytes.
        position: u64,
    },
    /// A terminal: its `struct termios2` (44 bytes) and window size (8 bytes) as the kernel gives
    /// them.
    Terminal {
        /// `struct termios2`, raw.
        termios: Vec<u8>,
        /// `struct winsize`, raw.
        window: Vec<u8>,
    },
    /// A pipe, socket or other device: the kernel's name for it.
    Other(Bytes),
}

/// Which end of a pipe.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum PipeEnd {
    /// Opened for reading.
    Read,
    /// Opened for writing.
    Write,
    /// Opened for both, as only FIFOs and /proc/pid/fd links can be.
    Both,
}

/// The kind of an open file description.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum OpenFileKind {
    /// A regular file, memfd or other file with a position.
    Regular {
        /// The file.
        inode: InodeId,
        /// Position in bytes.
        position: u64,
    },
    /// A directory, and the position of the next entry.
    Directory {
        /// The directory.
        inode: InodeId,
        /// Position as the file system counts.
        position: u64,
    },
    /// Opened with O_PATH.
    Path {
        /// The file.
        inode: InodeId,
    },
    /// An end of a pipe.
    Pipe {
        /// The pipe.
        pipe: PipeId,
        /// Which end.
        end: PipeEnd,
    },
    /// A FIFO that has a path.
    Fifo {
        /// The node.
        inode: InodeId,
        /// What is queued in it.
        pipe: PipeId,
        /// How it was opened.
        end: PipeEnd,
    },
    /// A stateless character device: null, zero, full, random, urandom.
    Device {
        /// The node.
        inode: InodeId,
    },
    /// A terminal of the outside world opened by the job itself through /dev/tty.
    ControllingTerminal,
    /// An end of a pseudo-terminal that the job has made.
    PseudoTerminal {
        /// The terminal.
        terminal: TerminalId,
        /// Which end.
        end: TerminalEnd,
    },
    /// `eventfd`.
    EventFd {
        /// The counter.
        count: u64,
        /// EFD_SEMAPHORE.
        semaphore: bool,
    },
    /// `timerfd_create`.
    TimerFd {
        /// CLOCK_*.
        clock: i32,
        /// Expirations not yet read.
        ticks: u64,
        /// TFD_TIMER_* bits of `timerfd_settime`.
        flags: u32,
        /// Time left, and interval.
        timer: TimerSpec,
    },
    /// `signalfd`.
    SignalFd {
        /// The signals that it is read for.
        mask: SignalSet,
    },
    /// `epoll_create`.
    Epoll {
        /// What it watches, in the kernel's order.
        items: Vec<EpollItem>,
        /// How it polls network devices.
        busy_poll: BusyPoll,
    },
    /// `inotify_init`. No event waits in it.
    Inotify {
        /// What it watches, ascending by number.
        watches: Vec<FileWatch>,
    },
    /// `pidfd_open`.
    PidFd {
        /// The process; 0: one that has ended and been waited for.
        process: Pid,
        /// PIDFD_THREAD: it stands for the main thread alone.
        thread: bool,
    },
    /// `io_uring_setup`. No request is under way in it.
    IoUring {
        /// Where it stands.
        ring: Box<Ring>,
    },
    /// `mq_open`.
    MessageQueue {
        /// The queue.
        queue: PosixQueueId,
    },
    /// One of the three streams that led outside the job.
    Stream {
        /// Which.
        stream: Stream,
        /// What it led to.
        target: StreamTarget,
    },
    /// A file under /proc that belongs to a process of the job, or to none.
    Proc {
        /// Path with the process's own number, never `self`.
        path: Bytes,
        /// Position in bytes.
        position: u64,
    },
    /// /proc/self/mem, opened by the only process that has it, as compilers do that write code which they
    /// may not write otherwise.
    OwnMemory {
        /// Position: an address.
        position: u64,
    },
    /// A socket.
    Socket {
        /// The socket, which no other description refers to.
        socket: SocketId,
    },
}

/// Who is told about events on a description (F_SETOWN, F_SETSIG).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileOwner {
    /// F_OWNER_TID, F_OWNER_PID or F_OWNER_PGRP.
    pub kind: i32,
    /// Thread, process or group, in the job's numbering.
    pub id: Pid,
    /// F_SETSIG; 0: SIGIO.
    pub signal: i32,
}

/// A lock held on a file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileLock {
    /// Which interface it was taken through.
    pub kind: FileLockKind,
    /// F_RDLCK or F_WRLCK.
    pub access: i16,
    /// First byte.
    pub start: u64,
    /// Last byte; `None`: to the end of the file.
    pub end: Option<u64>,
}

/// The interfaces for locking files.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum FileLockKind {
    /// `flock`: belongs to the description.
    Flock,
    /// F_OFD_SETLK: belongs to the description.
    OpenFileDescription,
    /// F_SETLK: belongs to the process.
    Posix {
        /// The process that holds it.
        holder: Pid,
    },
    /// F_SETLEASE: belongs to the description, and always covers the whole file.
    Lease,
}

/// An open file description: what `open` makes and `dup` and `fork` share.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OpenFile {
    /// O_* bits: access mode and status flags, without those that only matter to `open` itself.
    pub flags: u32,
    /// What it is.
    pub kind: OpenFileKind,
    /// Who is signalled about it.
    pub owner: Option<FileOwner>,
    /// Locks held through it.
    pub locks: Vec<FileLock>,
}

/// An entry in a table of descriptors.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fd {
    /// The number.
    pub number: i32,
    /// What it refers to.
    pub file: OpenFileId,
    /// FD_CLOEXEC.
    pub close_on_exec: bool,
}

/// A table of descriptors.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FdTable {
    /// Entries, ascending by number.
    pub entries: Vec<Fd>,
}

/// A pipe's buffer.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pipe {
    /// F_GETPIPE_SZ, bytes.
    pub capacity: u32,
    /// What is queued, oldest first: one entry a packet in packet mode (O_DIRECT), else one in all.
    pub queued: Vec<Bytes>,
}

/// Working directory, root directory and umask.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FsContext {
    /// Working directory.
    pub cwd: InodeId,
    /// Root directory's path as the restoring rckpt sees it; normally `/`.
    pub root: Bytes,
    /// File mode creation mask.
    pub umask: u32,
}

/// A file that the user named as an output: on restore what grew after the checkpoint is cut back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Output {
    /// Absolute path.
    pub path: Bytes,
    /// Inode number, to tell a replaced file.
    pub number: u64,
    /// Bytes at the checkpoint.
    pub size: u64,
    /// `st_mtime` at the checkpoint.
    pub mtime: TimeSpec,
    /// Hash (xxh3, 128 bits, big-endian) of the first `size` bytes, to tell a change in place.
    pub digest: Bytes,
}

/// What the user named with `--outputs`, and what it matched.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outputs {
    /// The paths, patterns and directories as given, made absolute.
    pub named: Vec<Bytes>,
    /// Regular files found under them at the checkpoint.
    pub files: Vec<Output>,
    /// What the user wants to have whole in the image.
    pub saved: Saved,
}

/// What the user named with `--save-files`, and what it matched.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Saved {
    /// The paths, patterns and directories as given, made absolute, and the companions of files that
    /// were found by themselves.
    pub named: Vec<Bytes>,
    /// Whether files that the job changes in place are found by themselves.
    pub by_itself: bool,
    /// The files, whose content is in the image.
    pub files: Vec<InodeId>,
}
