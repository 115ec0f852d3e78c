//! What of a job cannot be saved: each case by name, with its reason and its remedy.
//!
//! Pure data. Files have refusals of their own ([`super::files::Refusal`]).

use std::fmt;

use nix::unistd::Pid;
use thiserror::Error;

use super::files;
use super::ipc::{IpcObject, IpcRefusal};
use crate::model::address::AddrRange;
use crate::model::births::BirthError;
use crate::model::code::{self, Code};
use crate::model::id::Bytes;

/// One thing that stands in the way of a checkpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Obstacle {
    /// Something that a process has open or mapped.
    File(files::Refusal),
    /// A mapping.
    Mapping {
        /// The process.
        pid: Pid,
        /// Where.
        range: AddrRange,
        /// The kernel's name for it.
        name: Bytes,
        /// Why.
        kind: MappingRefusal,
    },
    /// An object of System V IPC.
    Ipc {
        /// A process that uses it, or the root.
        pid: Pid,
        /// Which.
        object: IpcObject,
        /// Why.
        kind: IpcRefusal,
    },
    /// How processes belong together.
    Tree(BirthError),
    /// Anything else about a process.
    State {
        /// The process.
        pid: Pid,
        /// Why.
        kind: StateRefusal,
    },
}

impl Obstacle {
    /// Its code.
    #[must_use]
    pub const fn code(&self) -> Code {
        match self {
            Self::Mapping { kind, .. } => kind.code(),
            Self::Ipc { kind, .. } => kind.code(),
            Self::State { kind, .. } => kind.code(),
            Self::File(refusal) => refusal.kind.code(),
            Self::Tree(error) => error.code(),
        }
    }
}

impl fmt::Display for Obstacle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(refusal) => refusal.fmt(f),
            Self::Tree(error) => error.fmt(f),
            Self::Ipc { pid, object, kind } => write!(f, "process {pid}, {object}: {kind}"),
            Self::Mapping { pid, range, name, kind } if name.0.is_empty() => {
                write!(f, "process {pid}, mapping {range}: {kind}")
            }
            Self::Mapping { pid, range, name, kind } => {
                write!(f, "process {pid}, mapping {range} ({name}): {kind}")
            }
            Self::State { pid, kind } => write!(f, "process {pid}: {kind}"),
        }
    }
}

/// Everything that stands in the way of a checkpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Obstacles(pub Vec<Obstacle>);

impl Obstacles {
    /// Whether all of them will be gone in a moment if the job runs on.
    #[must_use]
    pub fn are_passing(&self) -> bool {
        let passing = |obstacle: &Obstacle| match obstacle {
            Obstacle::File(refusal) => refusal.kind.is_passing(),
            // What mappings of rings have to wait for is told with the rings.
            Obstacle::Mapping { kind, .. } => {
                matches!(kind, MappingRefusal::AioUnderWay | MappingRefusal::IoUring)
            }
            _ => false,
        };
        self.0.iter().all(passing)
    }
}

impl fmt::Display for Obstacles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, obstacle) in self.0.iter().enumerate() {
            if number > 0 {
                f.write_str("\n")?;
            }
            obstacle.fmt(f)?;
        }
        Ok(())
    }
}

/// Why a mapping cannot be saved.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum MappingRefusal {
    /// A flag that is not understood.
    #[error("it has the property `{0}`, which is not supported")]
    UnknownFlag(String),
    /// Device memory.
    #[error("it shows memory of a device; close the device before the checkpoint")]
    Device,
    /// Watched by userfaultfd.
    #[error("userfaultfd watches it, which is not supported")]
    UserFault,
    /// A shadow stack.
    #[error(
        "it is a shadow stack, which is not supported; start the job with \
         GLIBC_TUNABLES=glibc.cpu.x86_shstk=off"
    )]
    ShadowStack,
    /// Memory of a ring of io_uring that nobody has open any more, or that cannot be saved itself.
    #[error("it is memory of a ring of io_uring which cannot be saved, or which nobody has open")]
    IoUring,
    /// A ring of io_setup(2) without its context.
    #[error(
        "it is the ring of an asynchronous I/O context (io_setup) that is not this process's own, as a \
         fork leaves it behind, or a part of one; let the program unmap it"
    )]
    AioRing,
    /// Requests are under way.
    #[error(
        "asynchronous I/O requests (io_submit) are under way; take the checkpoint when they are done"
    )]
    AioUnderWay,
    /// Probes of perf.
    #[error("it holds the probes of a tracing tool (uprobes); end that first")]
    Uprobes,
    /// An object without a path.
    #[error("it belongs to a kernel object that is not supported")]
    KernelObject,
    /// A key other than the default one.
    #[error("it has memory protection key {0}, which is not supported")]
    ProtectionKey(u32),
    /// Pages from a pool other than the default one, which the image does not tell.
    #[error("it consists of huge pages of {0} bytes; only those of 2 MiB are supported")]
    HugePageSize(u64),
    /// Shared memory with a NUMA policy for a part of it.
    #[error(
        "a NUMA policy was set for a part of this shared memory (mbind) through another mapping, \
         which is not supported"
    )]
    PolicyOfPart,
    /// A special mapping with an unknown name.
    #[error("it is a special mapping that is not known")]
    Special,
    /// A page that is there and cannot be read.
    #[error(
        "its page at {0} cannot be read: it is damaged, or a guard page of a kernel that does not tell"
    )]
    UnreadablePage(crate::model::address::RemoteAddr),
}

impl MappingRefusal {
    /// Its code.
    #[must_use]
    pub const fn code(&self) -> Code {
        match self {
            Self::UnknownFlag(_) => code::memory::UNKNOWN_FLAG,
            Self::Device => code::memory::DEVICE_MEMORY,
            Self::UserFault => code::memory::USERFAULTFD_WATCHES,
            Self::ShadowStack => code::memory::SHADOW_STACK,
            Self::IoUring => code::memory::IO_URING_MEMORY,
            Self::AioRing => code::memory::AIO_RING,
            Self::AioUnderWay => code::memory::AIO_UNDER_WAY,
            Self::Uprobes => code::memory::UPROBES,
            Self::KernelObject => code::memory::KERNEL_OBJECT_MAPPED,
            Self::ProtectionKey(_) => code::memory::PROTECTION_KEY,
            Self::HugePageSize(_) => code::memory::HUGE_PAGE_SIZE,
            Self::PolicyOfPart => code::memory::POLICY_OF_PART,
            Self::Special => code::memory::SPECIAL_MAPPING,
            Self::UnreadablePage(_) => code::memory::UNREADABLE_PAGE,
        }
    }
}

/// Why something else about a process cannot be saved.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum StateRefusal {
    /// It lives in a namespace that restore does not make.
    #[error("it is in another {0} namespace than rckpt; run rckpt where the job runs")]
    Namespace(&'static str),
    /// Its children would live in another namespace than itself.
    #[error("its children will be in another {0} namespace than itself, which is not supported")]
    NamespaceForChildren(&'static str),
    /// It has another user.
    #[error("its user ids are {uids:?}, and rckpt runs as user {own}")]
    User {
        /// Real, effective, saved and file-system user id.
        uids: [u32; 4],
        /// The user that rckpt runs as.
        own: u32,
    },
    /// It has another group.
    #[error("its group ids are {gids:?}, and rckpt runs as group {own}")]
    Group {
        /// Real, effective, saved and file-system group id.
        gids: [u32; 4],
        /// The group that rckpt runs as.
        own: u32,
    },
    /// Seccomp.
    #[error(
        "it has seccomp filters, which cannot be read; start the job outside of the sandbox, or \
         rckpt and the job inside of it without filters"
    )]
    Seccomp,
    /// landlock_restrict_self(2).
    #[error(
        "it has bounds of its own (Landlock) that nobody can read; start rckpt and the job inside of them, or \
         the job without"
    )]
    Landlock,
    /// A keyring that only it has.
    #[error("it has a keyring of its own for a {0}, whose keys nobody can put back")]
    Keyring(&'static str),
    /// Shadow stacks and the like.
    #[error("it has CPU features switched on that are not supported: {0}")]
    ThreadFeatures(Bytes),
    /// Linear address masking.
    #[error("it has address masking (LAM) switched on, which is not supported")]
    AddressMasking,
    /// PR_SET_SPECULATION_CTRL.
    #[error("it has a setting against flaws of the CPU that is not supported: {0}")]
    Speculation(&'static str),
    /// PR_SET_IO_FLUSHER.
    #[error("its thread {0} serves a file system (PR_SET_IO_FLUSHER), which is not supported")]
    IoFlusher(Pid),
    /// PR_SET_SYSCALL_USER_DISPATCH.
    #[error(
        "its thread {0} catches its own system calls (PR_SET_SYSCALL_USER_DISPATCH, as Wine does), \
         which is not supported"
    )]
    SystemCallDispatch(Pid),
    /// ioperm(2).
    #[error("its thread {0} may use I/O ports of this machine (ioperm), which is not supported")]
    PortPermissions(Pid),
    /// It may not be traced.
    #[error(
        "not allowed to trace it: it belongs to another user, is not dumpable, or only its ancestors may \
         trace it; start it under `rckpt run`, or run rckpt as its owner"
    )]
    NotPermitted,
    /// A debugger, strace or another checkpointer is attached.
    #[error("it is already traced by process {0}; detach that first")]
    AlreadyTraced(Pid),
    /// PR_SCHED_CORE.
    #[error(
        "its thread {0} shares CPU cores only with certain others (PR_SCHED_CORE), which is not \
         supported"
    )]
    CoreScheduling(Pid),
    /// CLONE_SIGHAND without CLONE_THREAD.
    #[error(
        "it shares its signal actions with process {0} (CLONE_SIGHAND), which is not its parent; that is \
         not supported"
    )]
    SharedActions(Pid),
    /// A thread that has left its process's table.
    #[error("its thread {tid} has {what} of its own, which is not supported")]
    ThreadOwns {
        /// The thread.
        tid: Pid,
        /// `descriptors` and the like.
        what: &'static str,
    },
    /// A timer on another task's CPU clock.
    #[error("its timer {id} runs on the CPU clock {clock} of another task, which is not supported")]
    Timer {
        /// The timer.
        id: i32,
        /// Its clock.
        clock: i32,
    },
    /// A timer that tells a thread which is not there.
    #[error("its timer {id} tells thread {tid}, which has ended")]
    TimerThread {
        /// The timer.
        id: i32,
        /// The thread.
        tid: i32,
    },
    /// Restartable sequences, on a kernel that does not tell of them.
    #[error(
        "its thread {0} has registered restartable sequences (rseq), and this kernel, older than \
         Linux 5.13, does not tell where; start it with GLIBC_TUNABLES=glibc.pthread.rseq=0"
    )]
    RseqUntold(Pid),
    /// No vDSO.
    #[error("it has no vDSO mapping, so nothing can be asked of it from inside")]
    NoVdso,
}

impl StateRefusal {
    /// Its code.
    #[must_use]
    pub const fn code(&self) -> Code {
        match self {
            Self::Namespace(_) => code::processes::OTHER_NAMESPACE,
            Self::NamespaceForChildren(_) => code::processes::NAMESPACE_FOR_CHILDREN,
            Self::User { .. } => code::processes::OTHER_USER,
            Self::Group { .. } => code::processes::OTHER_GROUP,
            Self::Seccomp => code::processes::SECCOMP,
            Self::Landlock => code::processes::LANDLOCK,
            Self::Keyring(_) => code::processes::KEYRING,
            Self::ThreadFeatures(_) => code::processes::THREAD_FEATURES,
            Self::AddressMasking => code::processes::ADDRESS_MASKING,
            Self::Speculation(_) => code::processes::SPECULATION,
            Self::IoFlusher(_) => code::processes::IO_FLUSHER,
            Self::SystemCallDispatch(_) => code::processes::SYSTEM_CALL_DISPATCH,
            Self::PortPermissions(_) => code::processes::PORT_PERMISSIONS,
            Self::NotPermitted => code::attaching::NOT_PERMITTED,
            Self::AlreadyTraced(_) => code::attaching::ALREADY_TRACED,
            Self::CoreScheduling(_) => code::processes::CORE_SCHEDULING,
            Self::SharedActions(_) => code::processes::SHARED_ACTIONS,
            Self::ThreadOwns { .. } => code::processes::THREAD_OWNS,
            Self::Timer { .. } => code::processes::FOREIGN_TIMER,
            Self::TimerThread { .. } => code::processes::TIMER_THREAD,
            Self::RseqUntold(_) => code::processes::RSEQ_UNTOLD,
            Self::NoVdso => code::processes::NO_VDSO,
        }
    }
}
